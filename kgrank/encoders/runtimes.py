"""What turns token numbers into sentence vectors: a transformer, an ONNX graph or a static table.

A folder holds one of three forms, told apart by its files:

    transformer   config.json, *.safetensors                    run by torch and transformers
    onnx          config.json, onnx/model.onnx                  run by onnxruntime
    static        config.json of the model type "model2vec",    run by numpy
                  model.safetensors with the tensor `embeddings`

each with its tokenizer's files. The second is laid out as sentence-transformers does, the third as
Model2Vec does, whose published models load as they are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.devices import half_precision
from kgrank.encoders.folders import (
    check_vocabulary,
    load_transformer,
    prompt_tokens,
    read_json,
)
from kgrank.encoders.pooling import Mode, Pooling
from kgrank.errors import ModelError
from kgrank.extras import needs

if TYPE_CHECKING:
    import tokenizers
    import torch

Form = Literal["transformer", "onnx", "static"]

ONNX_FILE = Path("onnx") / "model.onnx"
TABLE_FILE = "model.safetensors"
TABLE = "embeddings"  # the tensor of a static table
STATIC = "model2vec"  # its model type in config.json


class Runtime(Protocol):
    """A form of an encoder at work. Safe to call from several threads."""

    def __call__(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Sentence vectors, (b, dim) float32 of any length, of b texts of one or more tokens."""


def form_of(folder: Path) -> Form:
    """Which form of an encoder the folder holds.

    Raises:
        ModelError: config.json is no JSON.
    """
    if read_json(folder / "config.json").get("model_type") == STATIC:
        return "static"
    if (folder / ONNX_FILE).is_file() and not any(folder.glob("*.safetensors")):
        return "onnx"
    return "transformer"


def load_runtime(
    form: Form, folder: Path, device: str, pooling: Pooling, pad_id: int | None
) -> tuple[Runtime, tokenizers.Tokenizer]:
    """The encoder of a folder, ready to run, and its tokenizer.

    Args:
        form: as `form_of` says.
        folder: where its files are.
        device: "cpu" or "cuda", the latter for a transformer only.
        pooling: how token vectors become one; a projection only of a transformer.
        pad_id: number of the padding in an ONNX graph.

    Raises:
        ModelError: a file is missing or damaged, onnxruntime is not installed, or a token was added
            behind a prompt.
    """
    if form == "transformer":
        model, tokenizer, _ = load_transformer(folder, "text encoder", "AutoTokenizer")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{folder}: found the tokenizer {type(tokenizer).__name__}, which is written in "
                "Python; allowed: one of the package tokenizers, which tokenizer.json holds. "
                "Choose an encoder such as BERT, RoBERTa, MPNet or ModernBERT."
            )
        table = getattr(model.get_input_embeddings(), "weight", None)
        if table is not None:
            check_vocabulary(folder, backend.get_vocab(), len(table), prompt_tokens(model.config))
        projection = pooling.projection()
        if projection is not None:
            projection = projection.to(device)
        model = model.to(device).eval()
        runtime = TransformerRuntime(model, tokenizer, device, pooling.mode, projection)
        return runtime, backend
    backend = _read_tokenizer(folder)
    if form == "onnx":
        config = SimpleNamespace(**read_json(folder / "config.json"))
        rows = getattr(config, "vocab_size", None)
        if isinstance(rows, int):
            check_vocabulary(folder, backend.get_vocab(), rows, prompt_tokens(config))
        return OnnxRuntime(_session(folder / ONNX_FILE), pooling.mode, pad_id or 0), backend
    return StaticRuntime(_read_table(folder, backend)), backend


def said_by(runtime: Runtime, folder: Path, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """What a runtime says of texts; where its model fails, one error names the model.

    Args:
        runtime: of the folder.
        folder: where its files are.
        ids: token numbers of b texts, none of them empty.

    Returns:
        (b, dim) float32, of any length.

    Raises:
        ModelError: the model fails.
    """
    try:
        return runtime(ids)
    except Exception as error:  # models raise any kind
        kind = read_json(folder / "config.json").get("model_type", "nameless")
        raise ModelError(
            f"{folder}: found a {kind} model that fails on {len(ids)} text(s) of up to "
            f"{max(map(len, ids))} tokens ({type(error).__name__}: {error}); allowed: an encoder "
            "whose forward pass takes token numbers and their mask alone, as those of BERT, "
            "RoBERTa, MPNet and ModernBERT do. Choose such an encoder, or get the folder anew from "
            "its source."
        ) from error


def special_tokens(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """The tokens that are no word of a text: special ones, the unknown one, and a prompt's."""
    added = backend.get_added_tokens_decoder().items()
    unknown = backend.token_to_id(getattr(backend.model, "unk_token", None) or "")
    found = {number for number, token in added if token.special} | set(backend.encode("").ids)
    return frozenset(found if unknown is None else found | {unknown})


@dataclass(frozen=True, eq=False)
class TransformerRuntime:
    """A transformer of torch.

    Attributes:
        model: on the device; in evaluation mode, unless somebody trains it.
        tokenizer: the tokenizer, of transformers.
        device: "cpu" or "cuda".
        mode: how token vectors become one.
        projection: what the one goes through then; nothing if None.
    """

    model: torch.nn.Module
    tokenizer: Any
    device: str
    mode: Mode
    projection: torch.nn.Linear | None

    def __call__(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Runtime`."""
        import torch

        with torch.inference_mode():
            pooled = self.pooled(ids)
            if self.projection is not None:
                pooled = self.projection(pooled)
        array: np.ndarray = pooled.cpu().numpy()
        return array

    def pooled(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Token vectors made one, with gradients: (b × width of the transformer) float32."""
        import torch

        arrays = padded(ids, self.tokenizer.pad_token_id or 0)
        tokens, mask = (torch.from_numpy(array).to(self.device) for array in arrays)
        with half_precision(self.device):
            return sentence_vectors(self.model, tokens, mask, self.mode)


@dataclass(frozen=True, eq=False)
class OnnxRuntime:
    """An ONNX graph from `input_ids` and `attention_mask` (b × width) to `last_hidden_state`.

    Attributes:
        session: of onnxruntime.
        mode: how token vectors become one.
        pad_id: number of the padding.
    """

    session: Any
    mode: Mode
    pad_id: int

    def __call__(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Runtime`."""
        tokens, mask = padded(ids, self.pad_id)
        given = {"input_ids": tokens, "attention_mask": mask}
        hidden: np.ndarray = self.session.run(["last_hidden_state"], given)[0]  # (b, width, dim)
        if self.mode == "cls":
            return hidden[:, 0]
        real = mask.astype(np.float32)
        total = np.einsum("bwd,bw->bd", hidden, real)
        return np.asarray(total / real.sum(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class StaticRuntime:
    """A vector for each token, whatever stands beside it; a text is the sum of its tokens.

    Attributes:
        table: (entries, dim) float32; a row of zeros for a token that says nothing.
    """

    table: npt.NDArray[np.float32]

    def __call__(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """See `Runtime`."""
        starts = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(sequence) for sequence in ids], out=starts[1:])
        tokens = np.fromiter((token for text in ids for token in text), np.int64, starts[-1])
        ones = np.ones(len(tokens), np.float32)
        counts = sp.csr_matrix((ones, tokens, starts), (len(ids), len(self.table)))
        return np.asarray(counts @ self.table)


def padded(
    ids: Sequence[Sequence[int]], pad_id: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Texts as one array: token numbers and 1 for each that is no padding, (b × width) int64."""
    width = max(map(len, ids))
    tokens = np.full((len(ids), width), pad_id, np.int64)
    mask = np.zeros_like(tokens)
    for row, sequence in enumerate(ids):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return tokens, mask


def sentence_vectors(
    model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor, mode: Mode
) -> torch.Tensor:
    """(b, dim) float32, of any length: token vectors made one.

    Args:
        model: gives `last_hidden_state`.
        tokens: (b × width) int64.
        mask: (b × width) int64, 1 where there is no padding.
        mode: how.
    """
    hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
    if mode == "cls":
        first: torch.Tensor = hidden[:, 0]
        return first
    mean: torch.Tensor = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return mean


def table_shape(folder: Path) -> tuple[int, int]:
    """Entries and width of a static table, from its file's header.

    Raises:
        ModelError: the file is damaged or holds no table.
    """
    from safetensors import safe_open

    try:
        with safe_open(folder / TABLE_FILE, "np") as file:
            entries, dim = file.get_slice(TABLE).get_shape()
    except Exception as error:  # safetensors raises several kinds
        raise _no_table(folder, error) from error
    return int(entries), int(dim)


def _read_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no tokenizer.json; get the folder anew from its source")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(
            f"cannot read {path}: {error}; get the folder anew from its source"
        ) from error


def _session(path: Path) -> Any:
    needs("onnxruntime", "onnx", f"the encoder in {path.parent.parent}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # as torch does
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # a dozen kinds, each meaning that the file is unusable
        raise ModelError(
            f"cannot load {path}: {error}; get the folder anew from its source"
        ) from error


def _read_table(folder: Path, backend: tokenizers.Tokenizer) -> npt.NDArray[np.float32]:
    """The folder's table, with zeros for what the tokenizer does not know.

    Raises:
        ModelError: it cannot be read, or is not of this tokenizer.
    """
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / TABLE_FILE)
        table = tensors[TABLE].astype(np.float32)
        if "mapping" in tensors:  # token → row, in tables whose rows were clustered
            table = table[tensors["mapping"]]
        if "weights" in tensors:
            table = table * tensors["weights"].astype(np.float32)[:, None]
    except Exception as error:  # safetensors and numpy raise several kinds
        raise _no_table(folder, error) from error
    vocabulary = backend.get_vocab(with_added_tokens=True)
    check_vocabulary(folder, vocabulary, len(table), 0)
    unknown = vocabulary.get(getattr(backend.model, "unk_token", None) or "")
    if unknown is not None:
        table[unknown] = 0.0
    return np.ascontiguousarray(table)


def _no_table(folder: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{folder / TABLE_FILE}: found no static table that can be read ({error}); allowed: "
        f"safetensors with a tensor {TABLE!r}. Get the folder anew from its source."
    )
