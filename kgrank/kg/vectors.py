"""Ids and vectors as they are given to an embedding store: checked, and read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from kgrank.errors import DataError, Fault
from kgrank.kg.segments import BLOCK_BYTES
from kgrank.kg.vocabulary import Ids, Vocabulary

MAX_DIM = 65_536


class Vectors(Protocol):
    """Vectors (n × dim) float32 that are read some rows at a time: an array in memory or mapped,
    or what works them out when they are asked for.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, dim)."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.float32]:
        """(k × dim) float32: the rows (k,) int64."""


def checked_ids(ids: Ids) -> Any:
    """`pyarrow.LargeStringArray` (n,) of n different ids; raises DataError."""
    array = Vocabulary.from_ids(ids).array
    empty = np.flatnonzero(pc.equal(array, "").to_numpy(zero_copy_only=False))
    if len(empty):
        place, mend = int(empty[0]) + 1, "Give it an id, or leave it out."
        raise DataError([Fault("ids", place, None, "an empty id", "text", mend)])
    return array


def checked_shape(shape: tuple[int, ...], n: int | None, dim: int | None) -> int:
    """The size of each of n vectors of size `dim`, any n and size if None; raises DataError."""
    wrong = len(shape) != 2 or n not in (None, shape[0]) or dim not in (None, shape[1])
    if wrong or not 1 <= shape[1] <= MAX_DIM:
        size = f"1 to {MAX_DIM:,}" if dim is None else dim
        found, allowed = f"the shape {shape}", f"({'n' if n is None else n}, {size})"
        mend = "Pass one row for each id or query."
        raise DataError([Fault("vectors", None, None, found, allowed, mend)])
    return shape[1]


def checked_vectors(
    vectors: ArrayLike, n: int | None, dim: int | None, first: int = 0
) -> NDArray[np.float32]:
    """The vectors as an array (n × dim), any n and dim if None.

    Args:
        first: the number of the first of them, for the error.

    Raises:
        DataError: they are of another shape, no float32, or not finite.
    """
    matrix = np.asarray(vectors)
    checked_shape(matrix.shape, n, dim)
    if matrix.dtype != np.float32:
        mend = "Convert them: vectors.astype(numpy.float32)."
        raise DataError([Fault("vectors", None, None, str(matrix.dtype), "float32", mend)])
    wrong = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(wrong):
        found, mend = "a value that is not finite", "Has the training that made it diverged?"
        place, count = first + int(wrong[0]) + 1, len(wrong)
        raise DataError([Fault("vectors", place, None, found, "finite numbers", mend, count)])
    return matrix


def block_rows(rows: NDArray[np.int64], dim: int) -> Iterator[NDArray[np.int64]]:
    """The rows (k,), as many at a time as make BLOCK_BYTES of vectors."""
    step = max(1, BLOCK_BYTES // (4 * dim))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
