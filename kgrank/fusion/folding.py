"""One history against many items, compiled by numba: what events say, and how large the scores are.

A call from Python costs as much as such a loop over one item, so all items of a list go into one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kgrank.compiled import compiled
from kgrank.fusion.local_ridge import Floats, Ints, Rows
from kgrank.fusion.lookup import empty_table, place_in, slot_of, table_of

Doubles = npt.NDArray[np.float64]


@compiled
def row_entries(rows: Rows, items: Ints, targets: Ints) -> Floats:
    """M[h, i] of each item h and target i, (n_targets × n_items_given) float32.

    Args:
        rows: the rows of M, an (n_items × n_items) matrix.
        items: (n) row numbers; some may come again.
        targets: (n_targets) column numbers, each once.
    """
    places = table_of(targets)
    out = np.zeros((len(targets), len(items)), np.float32)
    for column in range(len(items)):
        for entry in range(rows.starts[items[column]], rows.starts[items[column] + 1]):
            place = place_in(places, targets, rows.items[entry])
            if place >= 0:
                out[place, column] += rows.values[entry]
    return out


@compiled
def row_products(rows: Rows, items: Ints, targets: Ints) -> Floats:
    """⟨F[h], F[i]⟩ of each item h and target i, (n_targets × n_items_given) float32.

    Args:
        rows: the rows of F, each column at most once in a row.
        items: (n) row numbers; some may come again.
        targets: (n_targets) row numbers.
    """
    out = np.zeros((len(targets), len(items)), np.float32)
    for place in range(len(targets)):
        first, last = rows.starts[targets[place]], rows.starts[targets[place] + 1]
        own, values = rows.items[first:last], rows.values[first:last]
        columns = table_of(own)
        for item in range(len(items) if last > first else 0):
            for entry in range(rows.starts[items[item]], rows.starts[items[item] + 1]):
                column = place_in(columns, own, rows.items[entry])
                if column >= 0:
                    out[place, item] += rows.values[entry] * values[column]
    return out


@compiled
def size_of_rows(rows: Rows, items: Ints, weights: Floats, n_columns: int) -> float:
    """The root mean square of Σ_h w(h) · M[h] over the columns; 1 where all is 0.

    Args:
        rows: the rows of M, an (n_items × n_columns) matrix.
        items: (n) row numbers; some may come again.
        weights: (n) float32.
        n_columns: how many columns there are.
    """
    return _root_mean_square(_summed(rows, items, weights)[1], n_columns)


@compiled
def size_of_products(rows: Rows, turned: Rows, items: Ints, weights: Floats) -> float:
    """The root mean square of Σ_h w(h) · F · F[h] over the items; 1 where all is 0.

    Args:
        rows: the rows of F, an (n_items × n_columns) matrix.
        turned: its columns.
        items: (n) row numbers; some may come again.
        weights: (n) float32.
    """
    columns, sums = _summed(rows, items, weights)
    out = np.zeros(len(rows.starts) - 1, np.float32)
    for place in range(len(columns)):
        weight = sums[place]
        for other in range(turned.starts[columns[place]], turned.starts[columns[place] + 1]):
            out[np.uint32(turned.items[other])] += weight * turned.values[other]
    return _root_mean_square(out, len(out))


@compiled
def _summed(rows: Rows, items: Ints, weights: Floats) -> tuple[Ints, Floats]:
    """The columns where Σ_h w(h) · M[h] has entries, each once, and the sums there."""
    most = 0
    for item in items:
        most += rows.starts[item + 1] - rows.starts[item]
    columns, sums, n = np.empty(most, np.int32), np.zeros(most, np.float32), 0
    slots = empty_table(most)
    for place in range(len(items)):
        weight = weights[place]
        for entry in range(rows.starts[items[place]], rows.starts[items[place] + 1]):
            slot = slot_of(slots, columns, rows.items[entry])
            if slots[slot] < 0:
                slots[slot], columns[n] = n, rows.items[entry]
                n += 1
            sums[slots[slot]] += weight * rows.values[entry]
    return columns[:n], sums[:n]


@compiled
def _root_mean_square(values: Floats, n: int) -> float:
    """Of n values, of which all but these are 0; 1 where all are."""
    squares = 0.0
    for place in range(len(values)):
        squares += values[place] * values[place]
    return float(np.sqrt(squares / n)) if squares > 0.0 else 1.0
