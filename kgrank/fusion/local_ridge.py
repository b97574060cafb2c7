"""The local ridge of a large catalogue, compiled by numba.

Column j of the weights solves (G_NN + Λ_NN) b = C_Nj over N, its strongest neighbours. G and C are
sparse moments plus S · Sᵀ of side rows S, which is never formed. A row of such a sum is unpacked
into a buffer of one float an item; every system that needs some of it reads it there:

    rows of G + S · Sᵀ   one at a time ──►  buffer (n_items)  ──►  lower triangles of a block of
                                                                   systems, then Cholesky

So a row is worked out once a block. For 100,000 items, looking up each pair of neighbours in the
sparse matrices takes seven times as long, and the same loops in numpy three times.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.compiled import compiled

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Four = tuple[Any, Any, Any, Any]  # float32

BLOCK = 1 << 26  # floats of lower triangles that are held at a time, by all threads: 256 MiB


class Rows(NamedTuple):
    """The compressed rows (or columns) of a sparse matrix."""

    starts: Longs
    items: Ints
    values: Floats

    @classmethod
    def of(cls, matrix: Any) -> Rows:
        """The rows of a `scipy.sparse` CSR matrix, the columns of a CSC matrix; not copied."""
        return cls(
            matrix.indptr.astype(np.int64, copy=False),
            matrix.indices.astype(np.int32, copy=False),
            matrix.data.astype(np.float32, copy=False),
        )


class Summed(NamedTuple):
    """M + S · Sᵀ, (n_items × n_items): the rows of M, of S (by item) and of Sᵀ (by feature)."""

    own: Rows
    side: Rows
    turned: Rows


class Buffer(NamedTuple):
    """One unpacked row: (n_items) values, which of them are set, and a list of these items."""

    values: Floats
    is_set: npt.NDArray[np.bool_]
    items: Ints


def local_ridge(
    gram: sp.csc_matrix,
    cross: sp.csc_matrix,
    side: sp.csr_matrix,
    penalty: Floats,
    *,
    with_self: bool,
    neighbors: int,
    threads: int,
) -> sp.csr_matrix:
    """Item–item weights, (n_items × n_items) float32 CSR: column j is fitted on its neighbours.

    Neighbours of j are the items with the largest entries > 0 in column j of `cross` + S · Sᵀ; of
    equal ones, those with the lower numbers.

    Args:
        gram: (n_items × n_items) float32, symmetric.
        cross: (n_items × n_items) float32.
        side: (n_items × n_features) float32, the rows S.
        penalty: (n_items) float32 > 0, Λ's diagonal.
        with_self: whether an item may be its own neighbour.
        neighbors: how many neighbours a column has, at most.
        threads: how many columns are worked on at a time.

    Raises:
        numpy.linalg.LinAlgError: a system is not positive definite, for want of a penalty.
    """
    n_items = gram.shape[0]
    k = min(neighbors, n_items - 1)
    own, turned = Rows.of(side), Rows.of(side.tocsc())
    left, right = (Summed(Rows.of(matrix), own, turned) for matrix in (gram, cross))
    near = np.empty((n_items, k), np.int32)
    solved = np.empty((n_items, k), np.float32)
    counts = np.empty(n_items, np.int32)
    with ThreadPoolExecutor(threads) as pool:

        def mapped(work: Callable[[int, int], None], cuts: npt.NDArray[np.integer]) -> None:
            list(pool.map(work, cuts[:-1].tolist(), cuts[1:].tolist()))

        def choose(first: int, last: int) -> None:
            _choose(first, last, right, with_self, near, solved, counts)

        def solve(first: int, last: int) -> None:
            triangles = np.empty(starts[last] - starts[first], np.float32)
            _fill(first, last, left, penalty, near, counts, starts, triangles)
            _solve(first, last, counts, triangles, solved)

        mapped(choose, np.linspace(0, n_items, 4 * threads + 1).astype(np.int64))
        starts = np.append(0, np.cumsum(counts * (counts + 1) // 2, dtype=np.int64))
        size = starts + k * np.arange(n_items + 1)  # of triangles and of the lists in _fill
        n_blocks = threads * int(np.ceil(size[-1] / BLOCK))
        mapped(solve, np.searchsorted(size, np.linspace(0, size[-1], n_blocks + 1)))
    kept = np.arange(k) < counts[:, None]
    ends = np.append(0, np.cumsum(counts, dtype=np.int64))
    weights = sp.csc_matrix((solved[kept], near[kept], ends), (n_items, n_items))
    weights.eliminate_zeros()
    return weights.tocsr()


@compiled
def _empty(n_items: int) -> Buffer:
    return Buffer(
        np.zeros(n_items, np.float32), np.zeros(n_items, np.bool_), np.empty(n_items, np.int32)
    )


@compiled
def _unpack(row: int, summed: Summed, buffer: Buffer) -> int:
    """Adds the row to the empty buffer; the number of items in its list, n_items if not listed."""
    own, side, turned = summed
    values, is_set, items = buffer
    n_entries = own.starts[row + 1] - own.starts[row]
    for feature in side.items[side.starts[row] : side.starts[row + 1]]:
        n_entries += turned.starts[feature + 1] - turned.starts[feature]
    if 4 * n_entries > len(values):  # a list would cost more than it saves
        for entry in range(own.starts[row], own.starts[row + 1]):
            values[np.uint32(own.items[entry])] += own.values[entry]
        for entry in range(side.starts[row], side.starts[row + 1]):
            feature, weight = side.items[entry], side.values[entry]
            for place in range(turned.starts[feature], turned.starts[feature + 1]):
                values[np.uint32(turned.items[place])] += weight * turned.values[place]
        return len(values)
    n = 0
    for entry in range(own.starts[row], own.starts[row + 1]):
        item = np.uint32(own.items[entry])
        if not is_set[item]:
            is_set[item] = True
            items[n] = item
            n += 1
        values[item] += own.values[entry]
    for entry in range(side.starts[row], side.starts[row + 1]):
        feature, weight = side.items[entry], side.values[entry]
        for place in range(turned.starts[feature], turned.starts[feature + 1]):
            item = np.uint32(turned.items[place])
            if not is_set[item]:
                is_set[item] = True
                items[n] = item
                n += 1
            values[item] += weight * turned.values[place]
    return n


@compiled
def _clear(buffer: Buffer, n: int) -> None:
    values, is_set, items = buffer
    if n == len(values):
        values[:] = 0.0
        is_set[:] = False
        return
    for item in items[:n]:
        values[item] = 0.0
        is_set[item] = False


@compiled
def _choose(
    first: int, last: int, cross: Summed, with_self: bool, near: Ints, wanted: Floats, counts: Ints
) -> None:
    """Columns first to last: their neighbours, `cross` there, and how many they are."""
    n_items, k = near.shape
    buffer = _empty(n_items)
    for j in range(first, last):
        n = _unpack(j, cross, buffer)
        if not with_self:
            buffer.values[j] = 0.0
        best, chosen = wanted[j], near[j]
        found = 0
        least = np.float32(0.0)
        for place in range(n):
            item = place if n == n_items else buffer.items[place]
            value = buffer.values[item]
            if value < least or value <= 0.0:
                continue
            found = _push(best, chosen, found, value, item)
            if found == k:
                least = best[0]
        counts[j] = found
        _clear(buffer, n)


@compiled
def _push(values: Floats, items: Ints, found: int, value: float, item: int) -> int:
    """Puts one item into a heap of the best, the worst on top; how many it holds then."""
    k = len(values)
    place = found
    if found < k:
        while place > 0:
            up = (place - 1) // 2
            if _worse(values[up], items[up], value, item):
                break
            values[place], items[place] = values[up], items[up]
            place = up
        found += 1
    elif _worse(value, item, values[0], items[0]):
        return found
    else:
        place = 0
        while 2 * place + 1 < k:
            down = 2 * place + 1
            if down + 1 < k and _worse(
                values[down + 1], items[down + 1], values[down], items[down]
            ):
                down += 1
            if _worse(value, item, values[down], items[down]):
                break
            values[place], items[place] = values[down], items[down]
            place = down
    values[place], items[place] = value, item
    return found


@compiled
def _worse(value: float, item: int, other_value: float, other_item: int) -> bool:
    return value < other_value or (value == other_value and item > other_item)


@compiled
def _fill(
    first: int,
    last: int,
    gram: Summed,
    penalty: Floats,
    near: Ints,
    counts: Ints,
    starts: Longs,
    triangles: Floats,
) -> None:
    """Lower triangles of the systems of columns first to last, row after row."""
    n_items, k = near.shape
    buffer = _empty(n_items)
    newest = np.full(n_items, -1, np.int32)  # of each item the rows it is, in lists
    older = np.empty((last - first) * k, np.int32)
    for j in range(first, last):
        for row in range(counts[j]):
            number = (j - first) * k + row
            older[number] = newest[near[j, row]]
            newest[near[j, row]] = number
    for item in range(n_items):
        number = newest[item]
        if number < 0:
            continue
        n = _unpack(item, gram, buffer)
        own = buffer.values[item] + penalty[item]
        while number >= 0:
            j, row = first + number // k, number % k
            start = starts[j] - starts[first] + row * (row + 1) // 2
            out, others = triangles[start : start + row], near[j]
            for column in range(len(out)):
                out[column] = buffer.values[np.uint32(others[column])]
            triangles[start + row] = own
            number = older[number]
        _clear(buffer, n)


@compiled
def _solve(first: int, last: int, counts: Ints, triangles: Floats, solved: Floats) -> None:
    """Solves the systems of columns first to last; `solved` holds their right sides before."""
    k = solved.shape[1]
    system = np.empty((k + 1, k + 1), np.float32)
    start = 0
    for j in range(first, last):
        m = counts[j]
        x = system[m]
        for row in range(m):
            x[row] = solved[j, row]
            for column in range(row + 1):
                system[row, column] = triangles[start + column]
            start += row + 1
        _factor(system, m)
        for row in range(m - 1, -1, -1):
            x[row] *= system[row, row]
            solved[j, row] = x[row]
            for column in range(row):
                x[column] -= system[row, column] * x[row]


@compiled
def _factor(system: Floats, m: int) -> None:
    """Cholesky in place of rows 0 to m - 1, with the diagonal inverted; row m becomes L⁻¹ · row m.

    Two rows by four columns at a time, so that each number that is read is used several times: as
    fast as LAPACK for a hundred rows, and several threads do not get into each other's way.
    """
    for i in range(0, m + 1, 2):
        row, other = system[i], system[min(i + 1, m)]
        whole = i // 4 * 4
        for j in range(0, whole, 4):
            a, b, c, d = system[j], system[j + 1], system[j + 2], system[j + 3]
            own, others = _products(row, other, a, b, c, d, j)
            w, x, y, z = _settled(row, a, b, c, d, j, own)
            p, q, r, s = _settled(other, a, b, c, d, j, others)
            row[j], row[j + 1], row[j + 2], row[j + 3] = w, x, y, z
            other[j], other[j + 1], other[j + 2], other[j + 3] = p, q, r, s
        for late in range(i, min(i + 2, m + 1)):
            row = system[late]
            for j in range(whole, min(late + 1, m)):
                rest = row[j]
                for column in range(j):
                    rest -= row[column] * system[j, column]
                if j < late:
                    row[j] = rest * system[j, j]
                elif rest > 0.0:
                    row[j] = 1.0 / np.sqrt(rest)
                else:
                    raise np.linalg.LinAlgError("A system is not positive definite.")


@compiled
def _products(
    row: Floats, other: Floats, a: Floats, b: Floats, c: Floats, d: Floats, n: int
) -> tuple[Four, Four]:
    """The first n of two rows times those of a, b, c and d."""
    row_a = row_b = row_c = row_d = other_a = other_b = other_c = other_d = np.float32(0.0)
    for place in range(n):
        x, y = row[place], other[place]
        row_a += x * a[place]
        row_b += x * b[place]
        row_c += x * c[place]
        row_d += x * d[place]
        other_a += y * a[place]
        other_b += y * b[place]
        other_c += y * c[place]
        other_d += y * d[place]
    return (row_a, row_b, row_c, row_d), (other_a, other_b, other_c, other_d)


@compiled
def _settled(
    row: Floats,
    a: Floats,
    b: Floats,
    c: Floats,
    d: Floats,
    j: int,
    known: Four,
) -> Four:
    """Four columns of the factor's row, from rows j to j + 3 of it."""
    w = (row[j] - known[0]) * a[j]
    x = (row[j + 1] - known[1] - w * b[j]) * b[j + 1]
    y = (row[j + 2] - known[2] - w * c[j] - x * c[j + 1]) * c[j + 2]
    z = (row[j + 3] - known[3] - w * d[j] - x * d[j + 1] - y * d[j + 2]) * d[j + 3]
    return w, x, y, z
