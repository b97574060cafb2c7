"""Whole words masked, to be told from the rest: what a text encoder is pretrained by.

Devlin et al. 2019, "BERT", with the whole-word masking of its later release: what is masked is
never half a word, which its other half would give away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kgrank.devices import half_precision
from kgrank.encoders.reading import whole_texts
from kgrank.encoders.words import HAN

_WINDOW_TEXTS = 8_192  # tokenised at a time
_POOL = 64  # batches whose pieces are put in order of length, so that they pad each other little
_MASKED, _CHANGED = 0.8, 0.9  # of the chosen words, as many become masks, the next another word
_ORDER, _MASKS, _JUDGED = 1, 2, 3  # what a draw is for, beside (seed, epoch, step)
_CHINESE = re.compile(f"[{HAN}]")


@dataclass(frozen=True, eq=False)
class Pieces:
    """Texts cut into what a model reads at a time; each piece has a word that may be masked.

    Attributes:
        starts: (n + 1) int64: piece p holds the tokens [starts[p], starts[p + 1]).
        tokens: (n_tokens) int64 token numbers, the special ones at the ends too.
        words: (n_tokens) int64 number of each token's word in its text; -1 for special and unknown
            tokens, which are never masked. A token that holds a Chinese character is a word, since
            Chinese has no spaces.
        long: texts that were cut into several pieces.
        unknown: share of tokens that the vocabulary does not know.
    """

    starts: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    long: int
    unknown: float

    def __len__(self) -> int:
        return len(self.starts) - 1


def cut_texts(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Pieces:
    """Cut texts into pieces of at most `max_tokens` tokens.

    Args:
        tokenizer: of transformers, of the fast kind; its settings for cutting stay as they were.
        texts: any strings.
        max_tokens: special tokens counted.
    """
    backend = tokenizer.backend_tokenizer
    truncation, padding = backend.truncation, backend.padding
    backend.no_padding()
    backend.enable_truncation(max_tokens)
    lengths: list[int] = []
    tokens: list[npt.NDArray[np.int64]] = []
    words: list[npt.NDArray[np.int64]] = []
    long, met, unknown = 0, 0, 0
    stranger = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    for start in range(0, len(texts), _WINDOW_TEXTS):
        window = whole_texts(texts[start : start + _WINDOW_TEXTS])
        for text, encoding in zip(window, backend.encode_batch(window), strict=True):
            long += bool(encoding.overflowing)
            chinese = _chinese_before(text)
            for piece in (encoding, *encoding.overflowing):
                ids = np.array(piece.ids, np.int64)
                word = np.array([-1 if w is None else w for w in piece.word_ids], np.int64)
                if chinese is not None:
                    word = _parted(word, np.array(piece.offsets, np.int64), chinese)
                is_text = np.array(piece.special_tokens_mask) == 0
                met += int(is_text.sum())
                unknown += int((ids[is_text] == stranger).sum())
                word[~is_text | (ids == stranger)] = -1
                if (word >= 0).any():
                    lengths.append(len(ids))
                    tokens.append(ids)
                    words.append(word)
    backend.no_truncation()
    if truncation:
        backend.enable_truncation(**truncation)
    if padding:
        backend.enable_padding(**padding)
    none = np.empty(0, np.int64)
    return Pieces(
        starts=np.r_[0, np.cumsum(lengths, dtype=np.int64)].astype(np.int64),
        tokens=np.concatenate([none, *tokens]),
        words=np.concatenate([none, *words]),
        long=long,
        unknown=unknown / max(met, 1),
    )


def _chinese_before(text: str) -> npt.NDArray[np.int64] | None:
    """How many Chinese characters stand before each place, (length + 1); None if there are none."""
    places = [match.start() for match in _CHINESE.finditer(text)]
    if not places:
        return None
    return np.searchsorted(np.array(places), np.arange(len(text) + 1)).astype(np.int64)


def _parted(
    words: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    chinese: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The words of tokens, numbered anew where a token of Chinese is one of its own.

    Tokens that are bytes of one character stay together.

    Args:
        words: (n) number of each token's word.
        offsets: (n × 2) the characters it stands for, from the first to after the last.
        chinese: as `_chinese_before` gives.
    """
    first, end = offsets.T
    holds = chinese[end] > chinese[first]
    apart = (words[1:] == words[:-1]) & (first[1:] >= end[:-1]) & (holds[1:] | holds[:-1])
    further = np.cumsum(apart, dtype=np.int64)
    return np.concatenate([words[:1], words[1:] + further])


@dataclass(frozen=True, eq=False)
class Marks:
    """Token numbers that stand for no text, and those that do.

    Attributes:
        pad: fills a short row.
        mask: stands for a masked token.
        plain: (n) int64 all others but the special ones.
    """

    pad: int
    mask: int
    plain: npt.NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Any) -> Marks:
        """Those of a tokenizer of transformers that has a mask."""
        special = set(tokenizer.all_special_ids)
        plain = sorted(set(tokenizer.get_vocab().values()) - special)
        return cls(tokenizer.pad_token_id or 0, tokenizer.mask_token_id, np.array(plain, np.int64))


@dataclass(frozen=True, eq=False)
class Masked:
    """Some pieces with words masked.

    Attributes:
        tokens: (n × width) int64 what the model reads, padded.
        real: (n × width) bool: whether a token is there.
        wanted: (n × width) int64 the token that stood where one is to be told; -1 elsewhere.
    """

    tokens: npt.NDArray[np.int64]
    real: npt.NDArray[np.bool_]
    wanted: npt.NDArray[np.int64]


def mask_words(
    pieces: Pieces,
    rows: npt.NDArray[np.int64],
    marks: Marks,
    share: float,
    rng: np.random.Generator,
    *,
    plainly: bool = False,
) -> Masked:
    """Choose a share of the words of each piece, at least one; all tokens of a word go together.

    Of the chosen words 80 % become masks, 10 % random tokens, and 10 % stay, so that the model has
    something to say of words that are not masked too.

    Args:
        pieces: the texts.
        rows: (n) which pieces.
        marks: of their vocabulary.
        share: of the words, in (0, 1].
        rng: what is drawn from.
        plainly: all chosen words become masks.
    """
    first = pieces.starts[rows]
    lengths = pieces.starts[rows + 1] - first
    real = np.arange(lengths.max()) < lengths[:, None]
    places = np.where(real, first[:, None] + np.arange(real.shape[1]), 0)
    tokens = np.where(real, pieces.tokens[places], marks.pad)
    words = np.where(real, pieces.words[places], -1)

    row, column = np.nonzero(words >= 0)
    n_words = int(words.max()) + 1
    names, of = np.unique(row * n_words + words[row, column], return_inverse=True)
    owner = names // n_words  # row of each word
    counts = np.bincount(owner, minlength=len(rows))
    wanted_words = np.maximum(1, np.rint(share * counts))
    order = np.lexsort((rng.random(len(names)), owner))
    place = np.arange(len(names)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(names), bool)
    chosen[order[place < wanted_words[owner]]] = True  # owner is in order, before and after

    fate = np.zeros(len(names)) if plainly else rng.random(len(names))
    hidden = chosen[of]
    row, column, fate = row[hidden], column[hidden], fate[of][hidden]
    wanted = np.full(tokens.shape, -1, np.int64)
    wanted[row, column] = tokens[row, column]
    drawn = marks.plain[rng.integers(len(marks.plain), size=len(row))]
    stays = np.where(fate < _CHANGED, drawn, tokens[row, column])
    tokens[row, column] = np.where(fate < _MASKED, marks.mask, stays)
    return Masked(tokens, real, wanted)


class MaskedModel(nn.Module):
    """A masked language model of transformers whose head sees only the tokens asked for.

    The head costs as much as the whole encoder where it has a large vocabulary.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._asked: Tensor | None = None
        model.base_model.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, given: Any, output: Any) -> Any:
        if self._asked is not None:
            output["last_hidden_state"] = output["last_hidden_state"][self._asked][None]
        return output

    def forward(self, tokens: Tensor, real: Tensor, asked: Tensor) -> Tensor:
        """(n_asked × vocabulary) float32 scores.

        Args:
            tokens: (n × width) int64.
            real: (n × width) bool.
            asked: (n × width) bool.
        """
        self._asked = asked
        try:
            logits = self.model(input_ids=tokens, attention_mask=real.long()).logits
        finally:
            self._asked = None
        scores: Tensor = logits[0].float()
        return scores


class MaskedWordTask:
    """What `kgrank.loop.Loop` trains: to tell masked words from the rest of a piece.

    Args:
        model: a masked language model of transformers.
        train: what is learned from.
        held: on what the model is judged, under masks that never change.
        marks: of the vocabulary.
        share: of words that are masked.
        batch: pieces a step.
        seed: of all draws.
        device: "cpu", or "cuda", where the model computes in bfloat16.
    """

    def __init__(
        self,
        model: Any,
        train: Pieces,
        held: Pieces,
        marks: Marks,
        *,
        share: float,
        batch: int,
        seed: int,
        device: str,
    ) -> None:
        self.module = MaskedModel(model).to(device)
        self.train, self.held, self.marks = train, held, marks
        self.share, self.batch, self.seed, self.device = share, batch, seed, device

    def batches(self, epoch: int) -> Sequence[Masked]:
        """All train pieces, `batch` a step and in random order, under masks drawn for the epoch."""
        return _Epoch(self, epoch)

    @property
    def settled(self) -> bool:
        """Always."""
        return True

    def loss(self, batch: Masked, share: slice) -> Tensor:
        """Mean of −log probability over the tokens asked for."""
        return self._surprise(batch, share) / int((batch.wanted >= 0).sum())

    def judge(self) -> float:
        """Mean log probability of the held-out tokens asked for; perplexity is exp(−that)."""
        order = np.argsort(np.diff(self.held.starts), kind="stable")
        total, n_asked = 0.0, 0
        self.module.eval()
        with torch.no_grad():
            for number, start in enumerate(range(0, len(order), self.batch)):
                rows = order[start : start + self.batch]
                rng = np.random.default_rng((self.seed, 0, number, _JUDGED))
                masked = mask_words(self.held, rows, self.marks, self.share, rng, plainly=True)
                total += float(self._surprise(masked, slice(None)))
                n_asked += int((masked.wanted >= 0).sum())
        return -total / n_asked

    def _surprise(self, batch: Masked, share: slice) -> Tensor:
        """Sum of −log probability over the tokens asked for in some rows."""
        tokens, real, wanted = (
            torch.from_numpy(array[share]).to(self.device)
            for array in (batch.tokens, batch.real, batch.wanted)
        )
        asked = wanted >= 0
        with half_precision(self.device):
            scores = self.module(tokens, real, asked)
        return nn.functional.cross_entropy(scores, wanted[asked], reduction="sum")


class _Epoch(Sequence[Masked]):
    """The batches of one epoch, each masked when it is asked for."""

    def __init__(self, task: MaskedWordTask, epoch: int) -> None:
        self.task, self.epoch = task, epoch
        rng = np.random.default_rng((task.seed, epoch, 0, _ORDER))
        lengths = np.diff(task.train.starts)
        rows = rng.permutation(len(lengths))
        batches: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(rows), _POOL * task.batch):
            pool = rows[start : start + _POOL * task.batch]
            pool = pool[np.argsort(lengths[pool], kind="stable")]
            batches += np.split(pool, range(task.batch, len(pool), task.batch))
        self.rows = [batches[number] for number in rng.permutation(len(batches))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Masked:  # type: ignore[override]
        task = self.task
        rng = np.random.default_rng((task.seed, self.epoch, number, _MASKS))
        return mask_words(task.train, self.rows[number], task.marks, task.share, rng)
