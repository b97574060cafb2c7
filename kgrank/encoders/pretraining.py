"""Masked language modelling on a shop's text: an encoder that knows the shop's words.

It goes on from a local folder, or begins from scratch with a vocabulary of the shop's own. What
comes out is a folder that `TextEncoder.load` takes, with the numbers of the training:

    config.json, model.safetensors, the tokenizer's files, how token vectors are pooled
    pretraining.json    settings, counts, perplexity before and after each epoch
    pretraining.svg     perplexity as a drawing
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from kgrank.devices import choose_device
from kgrank.encoders.corpus import split_texts
from kgrank.encoders.folders import (
    copy_text_files,
    draw_epochs,
    quiet_transformers,
    write_figures,
)
from kgrank.encoders.reading import no_known_word
from kgrank.encoders.text import TextEncoder
from kgrank.errors import ModelError
from kgrank.files import check_new, new_folder
from kgrank.progress import Progress, silent
from kgrank.settings import LearnSettings, Section

if TYPE_CHECKING:
    from kgrank.encoders.masking import Pieces
    from kgrank.loop import Sink

SCRATCH = "scratch"

_HEAD = 64  # numbers of an attention head of a model from scratch


class PretrainSettings(Section):
    """The `[pretrain]` section: how a text encoder learns a shop's language.

    Attributes:
        fields: the columns of items that are read, each value a text of its own.
        event_fields: the columns of events that are read, such as a review; not of test rows.
        max_tokens: a longer text is cut into pieces of so many (or the model's own limit, if that
            is lower). A model from scratch reads so many.
        held_out: share of the texts, by a hash of each, on which perplexity is measured.
        masked: share of the words that are masked.
        epochs: passes over the texts, at most; 3 to go on and 20 from scratch if left out.
        patience: epochs without a lower perplexity after which training stops; 2 to go on and 5
            from scratch if left out, because frequencies are learned first, and words a while
            after.
        batch: pieces a step.
        rate: highest learning rate; 5e-5 to go on and 1e-3 from scratch if left out.
        warmup: steps over which the rate rises.
        seed: of everything that is drawn.
        vocabulary: entries of a vocabulary from scratch, about.
        layers: of a model from scratch.
        width: numbers of its vectors.
    """

    fields: tuple[str, ...] = ("title", "description")
    event_fields: tuple[str, ...] = ()
    max_tokens: int = Field(default=128, ge=8)
    held_out: float = Field(default=0.05, gt=0, lt=1)
    masked: float = Field(default=0.15, gt=0, lt=1)
    epochs: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    batch: int = Field(default=32, ge=1)
    rate: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=50, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    vocabulary: int = Field(default=16_000, ge=100)
    layers: int = Field(default=4, ge=1)
    width: int = Field(default=256, ge=_HEAD, multiple_of=_HEAD)

    def learn(self, *, scratch: bool) -> LearnSettings:
        """What the training loop is told."""
        return LearnSettings(
            epochs=self.epochs or (20 if scratch else 3),
            patience=self.patience or (5 if scratch else 2),
            batch=self.batch,
            rate=self.rate or (1e-3 if scratch else 5e-5),
            warmup=self.warmup,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Pretrained:
    """A finished pretraining.

    Attributes:
        folder: the encoder's.
        start: what it went on from: "minilm", a folder, or "scratch".
        perplexity: of the masked tokens of held-out texts, before training and after each epoch.
        best_epoch: after which the folder's weights stood, from 1.
        texts: distinct texts that were learned from.
        held_out: distinct texts that perplexity was measured on.
        pieces: what the texts learned from were cut into.
        long: texts learned from that were cut into several pieces.
        unknown: share of their tokens that the vocabulary does not know.
        vocabulary: its entries.
        seconds: of this run's training; what was done before a resume is not in it.
    """

    folder: str
    start: str
    perplexity: tuple[float, ...]
    best_epoch: int
    texts: int
    held_out: int
    pieces: int
    long: int
    unknown: float
    vocabulary: int
    seconds: float


def pretrain(
    texts: Sequence[str],
    out: str | Path,
    settings: PretrainSettings | None = None,
    *,
    start: str | Path = "minilm",
    device: str = "auto",
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    progress: Progress = silent,
) -> Pretrained:
    """Pretrain an encoder and write its folder, whole or not at all.

    The same texts, settings and start give the same weights to the bit on one machine's CPU,
    whether the training was cut short and resumed or not.

    Args:
        texts: such as `kgrank.encoders.corpus.shop_texts` gives; each counts once.
        out: a new folder. The checkpoint lies beside it while the training lasts.
        settings: the `[pretrain]` section; its defaults if None.
        start: "minilm", a folder that `TextEncoder.load` takes, or "scratch".
        device: "cpu", "cuda" or "auto".
        resume: go on from the checkpoint, if there is one of this very training; if it is of
            another, begin anew and say so (a warning is logged).
        sinks: where figures go.
        progress: told of each stage.

    Raises:
        ConfigError: `out` is there already.
        DataError: fewer than two texts say something.
        ModelError: the start is no encoder, its tokenizer has no mask, has more entries than the
            model, or knows none of the words; training diverges; the checkpoint is damaged.
        OSError: the folder cannot be written.
    """
    import torch

    from kgrank.encoders.masking import Marks, MaskedWordTask, cut_texts
    from kgrank.loop import Loop

    settings, at = settings or PretrainSettings(), choose_device(device)
    named, out = str(out), check_new(out)
    train, held = split_texts(texts, settings.held_out)
    progress("tokens", 0, 1)
    scratch = str(start) == SCRATCH
    torch.manual_seed(settings.seed)
    begun = _from_scratch(train, settings) if scratch else _from_folder(start, settings)
    model, tokenizer, kept, max_tokens = begun.model, begun.tokenizer, begun.folder, begun.limit
    pieces, held_pieces = (cut_texts(tokenizer, part, max_tokens) for part in (train, held))
    if not (len(pieces) and len(held_pieces)):
        raise no_known_word(str(start), "be held out" if len(pieces) else "learn from")
    if begun.headless:
        _know_frequencies(model, pieces)
    progress("tokens", 1, 1)
    learn = settings.learn(scratch=scratch)
    task = MaskedWordTask(
        model,
        pieces,
        held_pieces,
        Marks.of(tokenizer),
        share=settings.masked,
        batch=settings.batch,
        seed=settings.seed,
        device=at,
    )
    before = task.judge()
    loop = Loop(
        task,
        learn,
        "pretraining",
        folder=out.with_name(f".{out.name}.training"),
        resume=resume,
        identity=_identity(settings, begun.fingerprint, pieces, held_pieces),
        sinks=sinks,
        report=progress,
    )
    trained = loop.run()
    done = Pretrained(
        folder=named,
        start=str(start),
        perplexity=tuple(exp(-value) for value in (before, *trained.valid)),
        best_epoch=trained.best_epoch,
        texts=len(train),
        held_out=len(held),
        pieces=len(pieces),
        long=pieces.long,
        unknown=pieces.unknown,
        vocabulary=len(tokenizer),
        seconds=trained.seconds,
    )
    _write(out, model.cpu(), tokenizer, kept, {**asdict(done), "settings": settings.as_dict()})
    return done


@dataclass(frozen=True, eq=False)
class _Begun:
    """What a pretraining begins with.

    Attributes:
        model: a masked language model of transformers.
        tokenizer: its tokenizer.
        folder: where its tokenizer and pooling are described; None = nowhere yet.
        limit: tokens it reads.
        fingerprint: tells it from others.
        headless: whether what tells masked tokens is random.
    """

    model: Any
    tokenizer: Any
    folder: Path | None
    limit: int
    fingerprint: str
    headless: bool


def _from_scratch(texts: Sequence[str], settings: PretrainSettings) -> _Begun:
    """A small BERT with random weights, and the texts' own vocabulary."""
    from transformers import BertConfig, BertForMaskedLM

    from kgrank.encoders.vocabulary import learn_wordpiece

    tokenizer = learn_wordpiece(texts, settings.vocabulary, settings.max_tokens)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // _HEAD,
        intermediate_size=4 * settings.width,
        max_position_embeddings=settings.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    entries = sorted(tokenizer.get_vocab().items())
    fingerprint = sha256(repr(entries).encode()).hexdigest()
    model = BertForMaskedLM(config)
    return _Begun(model, tokenizer, None, settings.max_tokens, fingerprint, headless=True)


def _from_folder(start: str | Path, settings: PretrainSettings) -> _Begun:
    """The encoder of a folder with the head it has, or with a random one.

    Raises:
        ModelError: see `pretrain`.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    encoder = TextEncoder.load(start, "cpu", settings.max_tokens)  # finds what is wrong with it
    where, options = str(encoder.folder), {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(where, **options)
            model, report = AutoModelForMaskedLM.from_pretrained(
                where,
                **options,
                use_safetensors=True,
                dtype="float32",
                output_loading_info=True,
            )
    except Exception as error:  # any of a dozen kinds, each meaning that it has no such head
        raise ModelError(f"cannot make a masked language model of {where}: {error}") from error
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"{where}: found a tokenizer without a mask token; allowed: one that has it, as those "
            "of BERT, RoBERTa, MPNet and ModernBERT do. Go on from such an encoder."
        )
    headless = bool(report["missing_keys"])
    limit = encoder.max_tokens
    return _Begun(model, tokenizer, encoder.folder, limit, encoder.fingerprint, headless)


def _know_frequencies(model: Any, pieces: Pieces) -> None:
    """Let a random head begin with how often each token is met; it would learn that first."""
    import torch

    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        met = torch.from_numpy(pieces.tokens[pieces.words >= 0])
        counts = torch.bincount(met, minlength=len(bias)).float() + 0.1
        with torch.no_grad():
            bias.copy_(torch.log(counts / counts.sum()))


def _identity(
    settings: PretrainSettings, fingerprint: str, pieces: Pieces, held_pieces: Pieces
) -> str:
    """What a checkpoint must have been trained on."""
    digest = sha256(json.dumps([settings.as_dict(), fingerprint]).encode())
    for part in (pieces, held_pieces):
        for array in (part.starts, part.tokens, part.words):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _write(
    out: Path, model: Any, tokenizer: Any, kept: Path | None, facts: Mapping[str, Any]
) -> None:
    """Write the encoder's folder under a temporary name, and rename it."""
    with new_folder(out) as folder:
        with quiet_transformers():
            model.save_pretrained(folder)
            if kept is None:
                tokenizer.save_pretrained(folder)
            else:
                copy_text_files(kept, folder)
        write_figures(folder, "pretraining", facts)
        drawing = folder / "pretraining.svg"
        draw_epochs(drawing, facts["perplexity"], "perplexity", "Masked tokens of held-out texts")
