"""History times item–item weights, compiled by numba: sparse rows in, dense scores out.

scipy multiplies two sparse matrices into a third one, whose entries it must find, and which most
callers then unpack; here every product is added where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp
import torch

from kgrank.compiled import compiled
from kgrank.fusion.local_ridge import Floats, Ints, Longs, Rows

SPARSE = 8  # of a row with so many times fewer products than items, only those are looked at


def multiply(history: sp.csr_matrix, weights: Rows, out: Floats) -> None:
    """Add history · weights to `out`.

    Args:
        history: (n × n_items) CSR float32.
        weights: the rows of an (n_items × n_items) matrix.
        out: (n × n_items) float32.
    """
    left = Rows.of(history)
    by_rows(lambda first, last: _multiply(first, last, left, weights, out), len(out))


def multiply_dense(history: sp.csr_matrix, weights: Floats, out: Floats) -> None:
    """Add history · weights to `out`, as `multiply` does, where most weights are not zero.

    Args:
        history: (n × n_items) CSR float32.
        weights: (n_items × n_items) float32.
        out: (n × n_items) float32.
    """
    left = Rows.of(history)
    by_rows(lambda first, last: _multiply_dense(first, last, left, weights, out), len(out))


def add_scaled(history: sp.csr_matrix, weights: Rows, gate: Floats, out: Floats) -> None:
    """Add history · weights to `out`, each row over its root mean square, each column times a gate.

    Args:
        history: (n × n_items) CSR float32.
        weights: the rows of an (n_items × n_items) matrix.
        gate: (n_items) float32.
        out: (n × n_items) float32.
    """
    left = Rows.of(history)
    by_rows(lambda first, last: _add_scaled(first, last, left, weights, gate, out), len(out))


def at_least(matrix: Floats, least: Floats) -> sp.csr_matrix:
    """The entries of a matrix whose absolute value is at least their column's, but for zeros.

    Args:
        matrix: (n_rows × n_columns) float32.
        least: (n_columns) float32.

    Returns:
        (n_rows × n_columns) float32 CSR.
    """
    counts = np.zeros(len(matrix) + 1, np.int64)
    by_rows(lambda first, last: _count(first, last, matrix, least, counts), len(matrix))
    starts = np.cumsum(counts)
    found = np.empty(starts[-1], np.float32), np.empty(starts[-1], np.int32)
    by_rows(lambda first, last: _gather(first, last, matrix, least, starts, *found), len(matrix))
    return sp.csr_matrix((*found, starts), matrix.shape)


def by_rows(work: Callable[[int, int], None], n_rows: int) -> None:
    """Do the work, given the first row and the end, on a part of the rows in each thread."""
    threads = min(torch.get_num_threads(), n_rows)
    if threads <= 1:
        work(0, n_rows)
        return
    cuts = np.linspace(0, n_rows, 4 * threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1], cuts[1:]))


@compiled
def _multiply(first: int, last: int, history: Rows, weights: Rows, out: Floats) -> None:
    for row in range(first, last):
        _accumulate(row, history, weights, out[row])


@compiled
def _multiply_dense(first: int, last: int, history: Rows, weights: Floats, out: Floats) -> None:
    for row in range(first, last):
        into = out[row]
        for entry in range(history.starts[row], history.starts[row + 1]):
            of_item, factor = weights[history.items[entry]], history.values[entry]
            for item in range(len(into)):
                into[item] += factor * of_item[item]


@compiled
def _accumulate(row: int, history: Rows, weights: Rows, out: Floats) -> None:
    for entry in range(history.starts[row], history.starts[row + 1]):
        item, factor = history.items[entry], history.values[entry]
        for place in range(weights.starts[item], weights.starts[item + 1]):
            out[np.uint32(weights.items[place])] += factor * weights.values[place]


@compiled
def _add_scaled(
    first: int, last: int, history: Rows, weights: Rows, gate: Floats, out: Floats
) -> None:
    n_items = out.shape[1]
    scores = np.zeros(n_items, np.float32)
    found, of_found = np.empty(n_items // SPARSE, np.int32), np.empty(n_items // SPARSE, np.float32)
    for row in range(first, last):
        _accumulate(row, history, weights, scores)
        entries, squares = 0, 0.0
        for entry in range(history.starts[row], history.starts[row + 1]):
            item = history.items[entry]
            entries += weights.starts[item + 1] - weights.starts[item]
        if entries <= len(found):  # so few that the others need not be looked at
            n = 0
            for entry in range(history.starts[row], history.starts[row + 1]):
                item = history.items[entry]
                for place in range(weights.starts[item], weights.starts[item + 1]):
                    other = weights.items[place]
                    score = scores[other]
                    if score != 0.0:  # else it was met before, or adds up to nothing
                        squares += score * score
                        found[n], of_found[n], scores[other] = other, score, 0.0
                        n += 1
            if squares > 0.0:
                factor = np.float32(1.0 / np.sqrt(squares / n_items))
                for place in range(n):
                    item = found[place]
                    out[row, item] += of_found[place] * gate[item] * factor
            continue
        for item in range(n_items):
            squares += scores[item] * scores[item]
        if squares > 0.0:
            factor = np.float32(1.0 / np.sqrt(squares / n_items))
            into = out[row]
            for item in range(n_items):
                into[item] += scores[item] * gate[item] * factor
        scores[:] = 0.0


@compiled
def _count(first: int, last: int, matrix: Floats, least: Floats, counts: Longs) -> None:
    for row in range(first, last):
        of_row, n = matrix[row], np.int32(0)  # as narrow as a weight: many at once
        for column in range(len(of_row)):
            kept = abs(of_row[column]) >= least[column] and of_row[column] != 0.0
            n += np.int32(1) if kept else np.int32(0)
        counts[row + 1] = n


@compiled
def _gather(
    first: int,
    last: int,
    matrix: Floats,
    least: Floats,
    starts: Longs,
    values: Floats,
    columns: Ints,
) -> None:
    for row in range(first, last):
        of_row, place = matrix[row], starts[row]
        for column in range(len(of_row)):
            value = of_row[column]
            if abs(value) >= least[column] and value != 0.0:
                values[place], columns[place] = value, column
                place += 1
