"""Ids and vectors as they are given to an embedding store: checked, and read block by block."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from kgrank.errors import DataError, Fault
from kgrank.kg.segments import BLOCK_BYTES
from kgrank.kg.vocabulary import Ids, Vocabulary

MAX_DIM = 65_536

_CONVERT = (
    "Convert them: numpy.asarray(vectors, numpy.float32), a torch tensor by "
    "tensor.detach().cpu().float().numpy()."
)


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


def checked_pair(name: str, content: Any, dim: int | None) -> tuple[Any, Vectors]:
    """The checked ids of a group, and what its vectors of size `dim` (any if None) are read from.

    Raises:
        DataError: it is no pair, or ids or the vectors' shape are at fault.
    """
    if not isinstance(content, tuple | list) or len(content) != 2:
        found, allowed = f"a {type(content).__name__}", "a pair of ids and vectors, or None"
        raise DataError([Fault(name, None, None, found, allowed, "Pass (ids, vectors).")])
    ids, vectors = checked_ids(content[0]), content[1]
    # What is no column or table is left to be read some rows at a time.
    lazy = len(getattr(vectors, "shape", ())) == 2 and not isinstance(vectors, pa.Table)
    if not lazy or hasattr(vectors, "to_numpy"):
        vectors = _array(vectors)
    checked_shape(vectors.shape, len(ids), dim)
    return ids, vectors


def whole(number: object) -> int | None:
    """A whole number of Python or numpy, as an int; None for anything else (True is none)."""
    return int(number) if isinstance(number, Integral) and not isinstance(number, bool) else None


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
        vectors: an array, or a column of rows of one length (pyarrow, pandas).
        first: the number of the first of them, for the error.

    Raises:
        DataError: they are of another shape, no float32, masked or not finite.
    """
    matrix = _array(vectors)
    checked_shape(matrix.shape, n, dim)
    if matrix.dtype != np.float32:
        mend = "Convert them: vectors.astype(numpy.float32)."
        raise DataError([Fault("vectors", None, None, str(matrix.dtype), "float32", mend)])
    found, mend = "a value that is not finite", "Has the training that made it diverged?"
    wrong = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if isinstance(vectors, np.ma.MaskedArray) and np.ma.is_masked(vectors):
        found, mend = "a masked value", "Fill it, or leave the row out."
        wrong = np.flatnonzero(np.ma.getmaskarray(vectors).any(axis=1))
    if len(wrong):
        place, count = first + int(wrong[0]) + 1, len(wrong)
        raise DataError([Fault("vectors", place, None, found, "finite numbers", mend, count)])
    return matrix


def _array(vectors: Any) -> NDArray[Any]:
    """What was given as an array of any shape and dtype; raises DataError."""
    try:
        if isinstance(vectors, pa.ChunkedArray):
            one = vectors.num_chunks == 1
            vectors = vectors.chunk(0) if one else vectors.combine_chunks()
        if isinstance(vectors, pa.Array):
            return _of_arrow(vectors)
        if isinstance(vectors, pa.Table):
            raise TypeError("a whole table: pass its column of vectors")
        if isinstance(vectors, list | tuple):
            lengths = {len(row) for row in vectors if hasattr(row, "__len__")}
            return _stacked(vectors) if len(lengths) > 1 else np.asarray(vectors)
        array = np.asarray(vectors)
        rows_of_one = array.dtype == object and array.ndim == 1 and len(array)
        return _stacked(array) if rows_of_one else array
    except (TypeError, ValueError, RuntimeError) as error:  # of numpy, torch and pyarrow
        found, allowed = f"no array ({error})", "(n × dim) float32"
        raise DataError([Fault("vectors", None, None, found, allowed, _CONVERT)]) from None


def _of_arrow(column: Any) -> NDArray[Any]:
    """A column of lists of one length as an array (n × dim), not copied unless it has to be."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists and not pa.types.is_fixed_size_list(kind):
        found, allowed = f"a column of {kind}", "lists of float32"
        raise DataError([Fault("vectors", None, None, found, allowed, _CONVERT)])
    if column.null_count:
        raise _odd_row(pc.index(column.is_null(), True).as_py(), "an empty cell", "a list")
    lengths = pc.list_value_length(column).to_numpy()
    _check_lengths(lengths)
    numbers = column.flatten()
    if numbers.null_count:
        place = pc.index(numbers.is_null(), True).as_py()
        raise _odd_row(place // int(lengths[0]), "an empty number", "finite numbers")
    dim = int(lengths[0]) if len(lengths) else getattr(kind, "list_size", 0)
    array: NDArray[Any] = numbers.to_numpy(zero_copy_only=False).reshape(len(column), dim)
    return array


def _stacked(rows: Any) -> NDArray[Any]:
    """Rows (n,), each an array or a list, as an array (n × dim)."""
    arrays = [np.asarray(row) for row in rows]
    for place, array in enumerate(arrays):
        if array.ndim != 1:
            raise _odd_row(place, f"{type(rows[place]).__name__}", "a row of numbers")
    _check_lengths(np.array([len(array) for array in arrays]))
    return np.stack(arrays)


def _check_lengths(lengths: NDArray[np.integer[Any]]) -> None:
    for place in np.flatnonzero(lengths != lengths[:1])[:1].tolist():
        allowed = f"{lengths[0]}, as many as in row 1"
        raise _odd_row(place, f"{lengths[place]} numbers", allowed)


def _odd_row(place: int, found: str, allowed: str) -> DataError:
    return DataError([Fault("vectors", place + 1, None, found, allowed, "Mend or leave it out.")])


def block_rows(rows: NDArray[np.int64], dim: int) -> Iterator[NDArray[np.int64]]:
    """The rows (k,), as many at a time as make BLOCK_BYTES of vectors."""
    step = max(1, BLOCK_BYTES // (4 * dim))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
