"""A static table that learns from a shop's texts what the whole encoder says of them.

Of all tables, the one whose texts come nearest to the encoder's vectors and that stays near the
table it begins as: ridge regression, solved by conjugate gradients (Hestenes and Stiefel 1952), so
that no model is trained. Model2Vec's makers do the like by gradient descent ("Tokenlearn", 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

Floats = npt.NDArray[np.float32]

STRENGTHS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)  # how much a row is held where it begins
_STEPS = 100  # of conjugate gradients, at most
_EXACT = 1e-3  # of the first residual's length, at which they end
_TINY = 1e-30


def token_means(ids: Sequence[Sequence[int]], entries: int) -> sp.csr_matrix:
    """What makes texts of a table: (n, entries) float32, each row a mean of tokens."""
    starts = np.r_[0, np.cumsum([len(text) for text in ids])]
    tokens = np.fromiter((token for text in ids for token in text), np.int64, starts[-1])
    lengths = np.maximum(np.diff(starts), 1)
    shares = np.repeat(1.0 / lengths, np.diff(starts)).astype(np.float32)
    return sp.csr_matrix((shares, tokens, starts), (len(ids), entries))


def widest_axes(vectors: Floats, dim: int) -> Floats:
    """The axes that hold most of the vectors' length: (d, min(dim, d)) float32, widest first."""
    _, axes = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)  # ascending
    axes = axes[:, ::-1][:, :dim]
    # An axis's sign is arbitrary: make its largest entry positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return np.asarray(axes, np.float32)


def begun_table(rows: Floats, means: sp.csr_matrix, vectors: Floats) -> Floats:
    """A table in the scale of the vectors, and around their mean: (entries, k) float32.

    Args:
        rows: (entries, k) float32, weighed token vectors around zero.
        means: (n, entries), of `token_means`.
        vectors: (n, k) float32, what is to come out.
    """
    middle = vectors.mean(axis=0)
    said = means @ rows
    scale = (said * (vectors - middle)).sum() / max(float((said * said).sum()), _TINY)
    return np.asarray(scale * rows + middle, np.float32)


def taught_table(table: Floats, means: sp.csr_matrix, vectors: Floats, strength: float) -> Floats:
    """The T that minimises ‖means · T − vectors‖² + strength · ‖T − table‖²: (entries, k) float32.

    Args:
        table: (entries, k) float32, where it begins.
        means: (n, entries), of `token_means`.
        vectors: (n, k) float32, what is to come out.
        strength: above 0.
    """
    met = np.flatnonzero(means.getnnz(axis=0))  # all other rows stay
    lost = vectors - means @ table
    means = means[:, met]
    transposed = means.T.tocsr()
    rest = np.asarray(transposed @ lost, np.float32)  # (met, k)
    change, direction = np.zeros_like(rest), rest.copy()
    length = (rest * rest).sum(axis=0)
    enough = _EXACT**2 * length
    for _ in range(_STEPS):
        if (length <= enough).all():
            break
        image = transposed @ (means @ direction) + strength * direction
        step = length / np.maximum((direction * image).sum(axis=0), _TINY)
        change += step * direction
        rest -= step * image
        before, length = length, (rest * rest).sum(axis=0)
        direction = rest + length / np.maximum(before, _TINY) * direction
    taught = table.copy()
    taught[met] += change
    return taught


def likeness(table: Floats, means: sp.csr_matrix, vectors: Floats) -> float:
    """Mean cosine of the table's texts and the encoder's vectors.

    Args:
        table: (entries, k) float32.
        means: (n, entries), of `token_means`.
        vectors: (n, k) float32, the part in the table's axes of vectors of length 1.
    """
    said = means @ table
    lengths = np.maximum(np.linalg.norm(said, axis=1), _TINY)
    return float(((said * vectors).sum(axis=1) / lengths).mean())
