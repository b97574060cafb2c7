"""Item–item weights that are sparse and never negative: SLIM (Ning and Karypis, 2011).

Column j minimises ½‖z_j − Z b‖² + λ₁‖b‖₁ + ½ Σ_h λ_h b_h² over b ≥ 0 with b_j = 0, by coordinate
descent on the Gram matrix ZᵀZ (Friedman, Hastie and Tibshirani, 2010), over a few candidates.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from kgrank.compiled import compiled
from kgrank.fusion.local_ridge import Floats, Ints
from kgrank.fusion.products import by_rows

SWEEPS = 10  # over a column's candidates, at most
SETTLED = 1e-3  # no weight changed more in a sweep: the column is done


def slim(gram: Floats, candidates: Ints, penalty: Floats, sparsity: float) -> sp.csr_matrix:
    """The weights B, (n_items × n_items) float32 CSR.

    Args:
        gram: (n_items × n_items) float32, symmetric.
        candidates: (n_items × k) int32: items that may have a weight in each column, ascending.
        penalty: (n_items) float32 > 0, λ of each item's weights.
        sparsity: λ₁ ≥ 0.
    """
    n_items, k = candidates.shape
    solved = np.empty((n_items, k), np.float32)
    by_rows(
        lambda first, last: _descend(
            first, last, gram, candidates, penalty, np.float32(sparsity), solved
        ),
        n_items,
    )
    starts = np.arange(0, n_items * k + 1, k)
    weights = sp.csc_matrix((solved.ravel(), candidates.ravel(), starts), (n_items, n_items))
    weights.eliminate_zeros()
    return weights.tocsr()


@compiled
def _descend(
    first: int,
    last: int,
    gram: Floats,
    candidates: Ints,
    penalty: Floats,
    sparsity: np.float32,
    solved: Floats,
) -> None:
    k = candidates.shape[1]
    system, rest = np.empty((k, k), np.float32), np.empty(k, np.float32)
    for j in range(first, last):
        items, weights = candidates[j], solved[j]
        weights[:] = 0.0
        for row in range(k):
            of = gram[items[row]]
            rest[row] = of[j]  # what the other weights leave of cross moments
            for column in range(k):
                system[row, column] = of[np.uint32(items[column])]
        for _ in range(SWEEPS):
            largest = np.float32(0.0)
            for row in range(k):
                if items[row] == j:
                    continue
                own = system[row, row]
                wanted = rest[row] + own * weights[row] - sparsity
                found = max(wanted / (own + penalty[items[row]]), np.float32(0.0))
                change = np.float32(found - weights[row])
                if change != 0.0:
                    weights[row] = found
                    others = system[row]
                    for column in range(k):
                        rest[column] -= change * others[column]
                    largest = max(largest, abs(change))
            if largest < SETTLED:
                break
