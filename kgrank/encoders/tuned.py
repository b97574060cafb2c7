"""A text encoder as it is fine-tuned: which of its weights move, and the vectors it gives.

Encoding is what costs. A step encodes a few texts anew, with gradients; what all other products
say is taken from a table of the vectors they had when they were last encoded (a memory bank, as in
Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kgrank.encoders.adaptive_rank import AdaptiveRanks
from kgrank.encoders.augmenting import masked_tokens, shuffled_sentences
from kgrank.encoders.runtimes import special_tokens
from kgrank.encoders.soft_prompt import prompted
from kgrank.encoders.text import TextEncoder
from kgrank.encoders.whitening import whiten
from kgrank.errors import ConfigError

Method = Literal["full", "frozen", "lora", "adalora", "prompt"]
# texts encoded at a time, next to others of their length
_TOGETHER = {"cpu": 16, "cuda": 128}
_BATCH_TOKENS = 4_096  # encoded at a time, where nothing is learned


class TunedText(nn.Module):
    """An encoder, the texts it is to learn from, and the heads that tasks put on it.

    Args:
        encoder: what is trained; its weights change.
        texts: the distinct texts of products first, then others.
        n_table: how many are of products, whose vectors the table holds.
        method: "full": all weights of the encoder; "lora": low-rank additions to its linear layers
            (Hu et al. 2022), by the package peft; "adalora": the same, with ranks that are shared
            out (`kgrank.encoders.adaptive_rank`); "prompt": a few vectors that stand before every
            text (`kgrank.encoders.soft_prompt`); "frozen": a linear projection of its vectors
            alone, which begins as their whitening.
        rank: of the additions; how many vectors "prompt" learns.
        embeddings: whether "full" trains the vectors of single tokens too.
        said_otherwise: the texts in other words, to learn from as well; None = none.
        masked: share of tokens that are hidden while it learns.
        shuffled: how often sentences change places while it learns.

    Raises:
        ConfigError: peft is not installed; "frozen" is asked to change texts; a prompt leaves no
            room for them.
        ModelError: the vocabulary knows no word of the texts; the tokenizer takes no prompt.
    """

    table: Tensor

    def __init__(
        self,
        encoder: TextEncoder,
        texts: Sequence[str],
        n_table: int,
        *,
        method: Method,
        rank: int = 8,
        embeddings: bool = False,
        said_otherwise: Sequence[str] | None = None,
        masked: float = 0.0,
        shuffled: float = 0.0,
    ) -> None:
        super().__init__()
        self.texts, self.n_table = tuple(texts), n_table
        self.said_otherwise, self.masked, self.shuffled = said_otherwise, masked, shuffled
        ids, self.cut = encoder.tokenise(self.texts)
        self.special = special_tokens(encoder.loaded[1])
        encoder.check_words(self.texts)
        if method == "prompt":
            encoder = prompted(encoder, ids, rank)
            ids, self.cut = encoder.tokenise(self.texts)
            self.special = special_tokens(encoder.loaded[1])
        self.encoder = encoder
        first = next(sequence for sequence in ids if sequence)
        self.nothing = [token for token in first if token in self.special] or first[:1]
        self.ids = ids
        self.says = torch.tensor([bool(sequence) for sequence in ids], device=encoder.device)
        self.raw: Tensor | None = None
        self.adapted: Any = None
        self.ranks: AdaptiveRanks | None = None
        if method == "frozen":
            if masked or shuffled or said_otherwise is not None:
                raise ConfigError(
                    "finetune.method: found 'frozen' and texts that are to be changed (masked, "
                    "shuffled or translated); allowed: as they are, since each is encoded once. "
                    "Set these to 0, or take another method."
                )
            self._freeze()
        else:
            self._unfreeze(method, rank, embeddings)
            self.transformer = encoder.model
            if encoder.projection is not None:
                self.projection = encoder.projection
        self.register_buffer("table", torch.zeros(n_table, self.dim, device=encoder.device))

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.dim

    def _freeze(self) -> None:
        """Encode every text for once, and let a projection learn."""
        encoder = self.encoder
        encoder.model.requires_grad_(False)
        order = sorted(range(len(self.ids)), key=lambda row: len(self.ids[row]))
        raw: Tensor | None = None
        with torch.no_grad():
            while order:
                size = max(1, _BATCH_TOKENS // max(1, len(self.ids[order[-1]])))
                rows, order = order[-size:], order[:-size]
                found = encoder.pooled([self.ids[row] or self.nothing for row in rows])
                if raw is None:
                    raw = torch.zeros(len(self.ids), found.shape[1], device=found.device)
                raw[rows] = found
        assert raw is not None  # there is a text
        self.raw = raw
        if encoder.projection is None:
            fitted = whiten(raw[: self.n_table].cpu().numpy())
            linear = nn.Linear(*fitted.transform.shape)
            with torch.no_grad():
                linear.weight.copy_(torch.from_numpy(fitted.transform.T))
                linear.bias.copy_(torch.from_numpy(-fitted.mean @ fitted.transform))
            self.encoder = encoder.projected(linear.to(encoder.device))
        projection = self.encoder.projection
        assert projection is not None
        self.projection = projection

    def _unfreeze(self, method: Method, rank: int, embeddings: bool) -> None:
        """Say which weights of the encoder learn. Nothing is dropped out."""
        model = self.encoder.model
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.requires_grad_(method == "full")
        if method == "full":
            model.get_input_embeddings().weight.requires_grad_(embeddings)  # type: ignore[operator]
            return
        try:
            from peft import LoraConfig, LoraModel, TrainableTokensConfig, TrainableTokensModel
        except ImportError:
            raise ConfigError(
                f"finetune.method: found {method!r}, for which the package peft is missing; "
                "allowed: full or frozen without it. Run `pip install kgrank[peft]`."
            ) from None
        if method == "adalora":
            self.ranks = AdaptiveRanks(model, rank)
            self.adapted = self.ranks.adapted
            return
        if method == "prompt":
            if self.encoder.projection is not None:
                self.encoder.projection.requires_grad_(False)
            rows = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
            tokens = TrainableTokensConfig(token_indices=list(range(rows - rank, rows)))
            self.adapted = TrainableTokensModel(model, tokens, "default")
            return
        lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        self.adapted = LoraModel(model, lora, "default")

    def merged(self) -> TextEncoder:
        """The encoder with all that was learned in its own weights."""
        if self.adapted is not None:
            self.adapted.merge_and_unload()
            self.adapted = None
        return self.encoder

    def vectors(
        self, rows: npt.NDArray[np.integer], rng: np.random.Generator | None = None
    ) -> Tensor:
        """Vectors of length 1 of some texts, with gradients, (n × dim) float32; zero for nothing.

        Args:
            rows: (n) which texts.
            rng: what the changes of texts are drawn from; None = they are read as they are.
        """
        at = torch.from_numpy(np.asarray(rows, np.int64)).to(self.encoder.device)
        if self.raw is not None:
            pooled = self.raw[at]
        else:
            ids = [sequence or self.nothing for sequence in self._read(rows, rng)]
            order = sorted(range(len(ids)), key=lambda row: len(ids[row]))  # to pad them little
            size = _TOGETHER[self.encoder.device]
            parts = [order[start : start + size] for start in range(0, len(order), size)]
            found = [self.encoder.pooled([ids[row] for row in part]) for part in parts]
            pooled = torch.cat(found)[torch.from_numpy(np.argsort(order))]
        return self.encoder.vectors(pooled) * self.says[at][:, None]

    def _read(
        self, rows: npt.NDArray[np.integer], rng: np.random.Generator | None
    ) -> list[list[int]]:
        """The tokens of some texts, changed as is asked for."""
        if rng is None:
            return [self.ids[row] for row in rows]
        if self.said_otherwise is None and not self.shuffled:
            ids = [self.ids[row] for row in rows]
        else:
            texts = [self.texts[row] for row in rows]
            if self.said_otherwise is not None:
                other = rng.random(len(rows)) < 0.5
                texts = [
                    self.said_otherwise[row] if changes else text
                    for row, changes, text in zip(rows, other, texts, strict=True)
                ]
            moved = rng.random(len(rows)) < self.shuffled
            texts = [
                shuffled_sentences(text, rng) if changes else text
                for text, changes in zip(texts, moved, strict=True)
            ]
            ids, _ = self.encoder.tokenise(texts)
        if not self.masked:
            return ids
        tokenizer = self.encoder.tokenizer
        hidden = tokenizer.mask_token_id
        mask = tokenizer.unk_token_id if hidden is None else hidden
        return [masked_tokens(one, self.special, mask, self.masked, rng) for one in ids]

    def refresh(self) -> None:
        """Fill the table anew."""
        with torch.no_grad():
            if self.raw is not None:
                self.table.copy_(self.vectors(np.arange(self.n_table)))
            else:
                encoded = self.encoder.encode(self.texts[: self.n_table])
                self.table.copy_(torch.from_numpy(encoded))

    def everything(
        self, fresh: npt.NDArray[np.integer] | None, rng: np.random.Generator | None
    ) -> Tensor:
        """Vectors of all products, (n_table × dim): those of `fresh` with gradients.

        Args:
            fresh: (n) which are encoded anew; None = all, for a projection alone.
            rng: as of `vectors`.
        """
        if fresh is None:
            return self.vectors(np.arange(self.n_table))
        new = self.vectors(fresh, rng)
        at = torch.from_numpy(np.asarray(fresh, np.int64)).to(new.device)
        known = self.table.index_copy(0, at, new)
        with torch.no_grad():
            self.table.index_copy_(0, at, new)
        return known
