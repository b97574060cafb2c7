"""One history against many items, compiled by numba: what events say, and how large the scores are.

A call from Python costs as much as such a loop over one item, so all items of a list go into one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kgrank.compiled import compiled
from kgrank.fusion.local_ridge import Floats, Ints, Rows

Doubles = npt.NDArray[np.float64]


@compiled
def row_entries(rows: Rows, items: Ints, targets: Ints) -> Floats:
    """M[h, i] of each item h and target i, (n_targets × n_items_given) float32.

    Args:
        rows: the rows of M, an (n_items × n_items) matrix.
        items: (n) row numbers; some may come again.
        targets: (n_targets) column numbers, each once.
    """
    place_of = np.full(len(rows.starts) - 1, -1, np.int32)
    for place in range(len(targets)):
        place_of[targets[place]] = place
    out = np.zeros((len(targets), len(items)), np.float32)
    for column in range(len(items)):
        for entry in range(rows.starts[items[column]], rows.starts[items[column] + 1]):
            place = place_of[rows.items[entry]]
            if place >= 0:
                out[place, column] += rows.values[entry]
    return out


@compiled
def row_products(rows: Rows, items: Ints, targets: Ints, n_columns: int) -> Floats:
    """⟨F[h], F[i]⟩ of each item h and target i, (n_targets × n_items_given) float32.

    Args:
        rows: the rows of F, an (n_items × n_columns) matrix.
        items: (n) row numbers; some may come again.
        targets: (n_targets) row numbers.
        n_columns: how many columns there are.
    """
    own = np.zeros(n_columns, np.float32)
    out = np.zeros((len(targets), len(items)), np.float32)
    for place in range(len(targets)):
        first, last = rows.starts[targets[place]], rows.starts[targets[place] + 1]
        for entry in range(first, last):
            own[rows.items[entry]] += rows.values[entry]
        for column in range(len(items) if last > first else 0):
            for entry in range(rows.starts[items[column]], rows.starts[items[column] + 1]):
                out[place, column] += rows.values[entry] * own[rows.items[entry]]
        for entry in range(first, last):
            own[rows.items[entry]] = 0.0
    return out


@compiled
def summed_rows(rows: Rows, items: Ints, weights: Floats, n_columns: int) -> Floats:
    """Σ_h w(h) · M[h], (n_columns) float32.

    Args:
        rows: the rows of M, an (n_items × n_columns) matrix.
        items: (n) row numbers; some may come again.
        weights: (n) float32.
        n_columns: how many columns there are.
    """
    out = np.zeros(n_columns, np.float32)
    for place in range(len(items)):
        weight = weights[place]
        for entry in range(rows.starts[items[place]], rows.starts[items[place] + 1]):
            out[np.uint32(rows.items[entry])] += weight * rows.values[entry]
    return out


@compiled
def root_mean_square(values: Floats) -> float:
    """Of (n) float32; 1 where all are 0."""
    squares = 0.0
    for place in range(len(values)):
        squares += values[place] * values[place]
    return float(np.sqrt(squares / len(values))) if squares > 0.0 else 1.0


@compiled
def summed_products(rows: Rows, turned: Rows, items: Ints, weights: Floats) -> Floats:
    """Σ_h w(h) · F · F[h], (n_items) float32.

    Args:
        rows: the rows of F, an (n_items × n_columns) matrix.
        turned: its columns.
        items: (n) row numbers; some may come again.
        weights: (n) float32.
    """
    of_columns = summed_rows(rows, items, weights, len(turned.starts) - 1)
    out = np.zeros(len(rows.starts) - 1, np.float32)
    for place in range(len(items)):
        for entry in range(rows.starts[items[place]], rows.starts[items[place] + 1]):
            column = rows.items[entry]
            weight = of_columns[column]
            if weight != 0.0:
                of_columns[column] = 0.0
                for other in range(turned.starts[column], turned.starts[column + 1]):
                    out[np.uint32(turned.items[other])] += weight * turned.values[other]
    return out
