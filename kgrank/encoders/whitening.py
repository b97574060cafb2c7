"""Whitening: sentence vectors turned and scaled until no direction is favoured.

A language model's vectors crowd in a narrow cone, so that all cosines look alike. Su et al. 2021,
"Whitening Sentence Representations for Better Semantics and Faster Retrieval": subtract the mean,
turn onto the principal axes, divide each by its standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kgrank.errors import ModelError

_CHUNK_ROWS = 65_536  # keeps the float64 copy of a large table small
_NULL = 1e-9  # an axis with less than this share of the largest variance carries only rounding


@dataclass(frozen=True, eq=False)
class Whitening:
    """A fitted whitening: x ↦ (x − mean) · transform, scaled to length 1.

    Attributes:
        mean: (d,) float32.
        transform: (d, k) float32; column j is a principal axis over its standard deviation, the
            widest first.
    """

    mean: np.ndarray
    transform: np.ndarray

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Whiten rows: (n, d) float → (n, k) float32 of length 1; zero rows stay zero.

        Raises:
            ModelError: the rows are not d wide.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ModelError(
                f"found vectors of shape {vectors.shape}; this whitening takes rows of "
                f"{len(self.mean)} numbers. Encode them with the model it was fitted on."
            )
        whitened = np.zeros((len(vectors), self.transform.shape[1]), dtype=np.float32)
        mean, transform = self.mean.astype(np.float64), self.transform.astype(np.float64)
        for start in range(0, len(vectors), _CHUNK_ROWS):
            chunk = vectors[start : start + _CHUNK_ROWS]
            turned = (chunk - mean) @ transform
            norms = np.linalg.norm(turned, axis=1, keepdims=True)
            known = chunk.any(axis=1, keepdims=True) & (norms > 0)
            np.divide(turned, norms, out=whitened[start : start + _CHUNK_ROWS], where=known)
        return whitened


def whiten(vectors: np.ndarray, dim: int | None = None, shrinkage: float = 0.05) -> Whitening:
    """Fit a whitening on the distinct rows that say something (a zero row stands for no text).

    Axes of the same variance may turn into each other between machines; cosines do not change.

    Args:
        vectors: (n, d) float.
        dim: keep the so many widest axes; None keeps all that carry variance.
        shrinkage: in [0, 1]; how far each variance is drawn towards their mean, so that narrow
            axes, which hold mostly noise, are not blown up (Ledoit & Wolf 2004). 0 is Su et al.

    Returns:
        A whitening to k = min(dim, axes with variance) dimensions. With fewer than two distinct
        rows there is nothing to whiten, and `apply` only scales to length 1.

    Raises:
        ModelError: the vectors are not a finite (n, d) array, or an argument is out of range.
    """
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ModelError(f"found an array of shape {vectors.shape}; whitening takes finite rows")
    if not 0 <= shrinkage <= 1 or (dim is not None and dim < 1):
        raise ModelError(
            f"found dim={dim}, shrinkage={shrinkage}; allowed: dim ≥ 1 or None, shrinkage in [0, 1]"
        )
    rows = np.unique(vectors[vectors.any(axis=1)], axis=0).astype(np.float64)
    width = vectors.shape[1]
    if len(rows) < 2:
        return Whitening(np.zeros(width, np.float32), np.eye(width, dtype=np.float32))
    mean = rows.mean(axis=0)
    centred = rows - mean
    variances, axes = np.linalg.eigh(centred.T @ centred / len(rows))  # ascending
    variances, axes = variances[::-1], axes[:, ::-1]
    kept = int((variances > _NULL * variances[0]).sum())
    kept = kept if dim is None else min(dim, kept)
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    transform = axes[:, :kept] / np.sqrt(shrunk[:kept])
    # An eigenvector's sign is arbitrary: make its largest entry positive.
    largest = np.abs(transform).argmax(axis=0)
    transform *= np.sign(transform[largest, np.arange(kept)])
    return Whitening(mean.astype(np.float32), transform.astype(np.float32))
