"""A static table: one vector a token, so that a text is encoded without running a model.

The method is Model2Vec's (Tulkens and van Dongen 2024, "Model2Vec: Fast State-of-the-Art Static
Embeddings"): each token is read by the model as a text of its own, the vectors are turned onto
their principal axes, of which the widest stay, and each is weighed by how rare its token is (Arora
et al. 2017, "A Simple but Tough-to-Beat Baseline for Sentence Embeddings"). The folder is of
Model2Vec's format too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from kgrank.encoders.reading import whole_texts
from kgrank.encoders.runtimes import STATIC, TABLE, TABLE_FILE
from kgrank.encoders.teaching import widest_axes
from kgrank.encoders.text import TextEncoder
from kgrank.errors import ModelError
from kgrank.progress import Progress, silent

_BATCH = 1_024  # tokens read at a time
_SMOOTH = 1.0  # added to how often each token was met


def token_vectors(encoder: TextEncoder, progress: Progress = silent) -> npt.NDArray[np.float32]:
    """What the encoder says of each token of its vocabulary, read as a text of its own.

    Returns:
        (entries, dim) float32; rows of zeros for special tokens, and for numbers without a token.

    Raises:
        ModelError: the model gives numbers that are not finite.
    """
    tokenizer = encoder.loaded[1]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    probe = tokenizer.encode("a")
    before = [*probe.special_tokens_mask, 0].index(0)  # a prompt is in it
    start, rest = probe.ids[:before], zip(probe.ids, probe.special_tokens_mask, strict=True)
    end = [id_ for id_, mark in rest if mark][before:]
    special = {id_ for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = sorted(set(vocabulary.values()) - special)
    table = np.zeros((max(vocabulary.values()) + 1, encoder.dim), np.float32)
    for first in range(0, len(ids), _BATCH):
        progress("token vectors", first, len(ids))
        batch = ids[first : first + _BATCH]
        table[batch] = encoder.said([[*start, id_, *end] for id_ in batch])
    progress("token vectors", len(ids), len(ids))
    if not np.isfinite(table).all():
        raise ModelError(
            f"the encoder in {encoder.folder} gives numbers that are not finite: its weights are "
            "damaged. Get the folder anew from its source."
        )
    return table


def static_table(
    vectors: npt.NDArray[np.float32],
    dim: int,
    shares: npt.NDArray[np.float64],
    rarity: float,
) -> npt.NDArray[np.float32]:
    """The table of a vocabulary.

    Args:
        vectors: (entries, d) float32, of `token_vectors`.
        dim: axes that stay, at most.
        shares: (entries) each token's share of all tokens.
        rarity: a of the weight a / (a + share).

    Returns:
        (entries, min(dim, d)) float32; rows of zeros stay.
    """
    rows = weighed_tokens(vectors, np.ones(len(vectors)))
    axes = widest_axes(rows, dim)
    return weighed_tokens(vectors, rarity / (rarity + shares)) @ axes


def weighed_tokens(
    vectors: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Token vectors around their mean, times their weights; rows of zeros stay."""
    known = vectors.any(axis=1)
    rows = np.zeros_like(vectors)
    rows[known] = (vectors[known] - vectors[known].mean(axis=0)) * weights[known, None]
    return rows


def token_shares(
    encoder: TextEncoder, entries: int, texts: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Each token's share of all tokens: (entries) float64.

    As the texts have it; without texts, by Zipf's law on the number of the token, since
    vocabularies are laid out by how often a token is met.
    """
    if not texts:
        ranks = np.arange(2, entries + 2, dtype=np.float64)
        return np.asarray(1.0 / ranks / (1.0 / ranks).sum())
    counts = np.full(entries, _SMOOTH)
    for encoding in encoder.loaded[1].encode_batch_fast(
        whole_texts(texts), add_special_tokens=False
    ):
        np.add.at(counts, encoding.ids, 1.0)
    return np.asarray(counts / counts.sum())


def write_static(folder: Path, table: npt.NDArray[np.float32], name: str, rarity: float) -> None:
    """Write a table, and what tells its form, in Model2Vec's format; in float16, which halves it.

    Raises:
        OSError: the folder cannot be written to.
    """
    save_file({TABLE: table.astype(np.float16)}, folder / TABLE_FILE)
    config: dict[str, Any] = {
        "model_type": STATIC,
        "architectures": ["StaticModel"],
        "tokenizer_name": name,
        "apply_pca": table.shape[1],
        "sif_coefficient": rarity,
        "hidden_dim": table.shape[1],
        "seq_length": 1_000_000,
        "normalize": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
