"""Item–item weights by ridge regression, exact for a small catalogue, local for a large one.

A column of EASE (Steck, "Embarrassingly Shallow Autoencoders", 2019) or of SLIT (Choi et al.,
"Session-aware Linear Item-Item Models", 2021) is a ridge regression on all other items. Solved over
its strongest neighbours alone it ranks as well on sparse data, stays sparse, and needs no n × n
matrix. Side rows (shared words, shared entities) enter as rows of a further user would, and give
products nobody has bought yet their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.local_ridge import Rows, local_ridge
from kgrank.fusion.products import at_least, multiply

EXACT_ITEMS = 4_096  # up to here one inverse takes seconds, and is exact
LARGE_ITEMS = 16_384  # beyond that, moments see recent events and rare features alone
RARE = 200  # a word or entity of more items than this is not rare

Dense: TypeAlias = npt.NDArray[np.float32]
Matrix: TypeAlias = Dense | Any  # dense, or scipy.sparse.csc_matrix


@dataclass(frozen=True)
class Ridge:
    """How item–item weights are fitted.

    Attributes:
        penalty: λ, added to the Gram's diagonal.
        dropout: share of the Gram's own diagonal added as well (EDLAE, Steck 2020: p / (1 − p)).
        entities: weight of the rows of shared entities, at least 0.
        words: weight of the rows of shared words, at least 0.
    """

    penalty: float = 100.0
    dropout: float = 0.0
    entities: float = 0.0
    words: float = 0.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the regression "history → next", and the side rows.

    Attributes:
        gram: (n_items × n_items) inputs' Gram matrix; float32, dense up to EXACT_ITEMS, else CSC.
        cross: (n_items × n_items) inputs × outputs; for EASE the same object as `gram`.
        entities: (n_items × n_entities) float32 CSR, the entity rows, or None.
        words: (n_items × n_terms) float32 CSR, the word rows, or None.
    """

    gram: Matrix
    cross: Matrix
    entities: sp.csr_matrix | None
    words: sp.csr_matrix | None

    @property
    def directed(self) -> bool:
        """Whether inputs and outputs differ, so that an item may point to itself."""
        return self.cross is not self.gram

    @property
    def small(self) -> bool:
        """Whether the catalogue is so small that the weights are exact."""
        return isinstance(self.gram, np.ndarray)

    def weights(self, ridge: Ridge, *, neighbors: int) -> sp.csr_matrix:
        """Item–item weights B (n_items × n_items) float32 CSR: history row · B = scores.

        Args:
            ridge: penalties and side rows.
            neighbors: entries a column, at most (four times as many where it is exact).
        """
        if self.small:
            return _largest(self.exact(ridge), 4 * neighbors)
        return self._local(ridge, neighbors)

    def exact(self, ridge: Ridge, precision: torch.dtype = torch.float64) -> torch.Tensor:
        """All weights of a small catalogue, (n_items × n_items) float32.

        Args:
            ridge: penalties and side rows.
            precision: of the solution; in float32, which is faster, it is off by some 1e-6 of its
                largest entry.
        """
        gram, cross = torch.from_numpy(self.gram), torch.from_numpy(self.cross)
        for name, weight, _ in self._sides(ridge):
            shared = torch.from_numpy(self._shared[name])
            gram = torch.add(gram, shared, alpha=weight)
            cross = torch.add(cross, shared, alpha=weight) if self.directed else gram
        penalty = ridge.penalty + ridge.dropout * gram.diagonal()
        full = gram.to(precision, copy=True)
        full.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(full)
        if failed:  # too little penalty for this precision
            factor = torch.linalg.cholesky(full.double())
        # torch.cholesky_inverse needs less work, but waits long for a core that others use as well
        right = (
            cross.to(factor.dtype) if self.directed else torch.eye(len(full), dtype=factor.dtype)
        )
        weights = torch.cholesky_solve(right, factor)
        if not self.directed:
            weights.div_(-weights.diagonal().clone()).fill_diagonal_(0.0)
        return weights.float().contiguous()

    def _local(self, ridge: Ridge, neighbors: int) -> sp.csr_matrix:
        nothing = sp.csr_matrix((self.gram.shape[0], 1), dtype=np.float32)
        rows = [np.float32(np.sqrt(weight)) * rows for _, weight, rows in self._sides(ridge)]
        side = sp.hstack([nothing, *rows], format="csr", dtype=np.float32)
        diagonal = self.gram.diagonal() + np.asarray(side.multiply(side).sum(axis=1)).ravel()
        return local_ridge(
            self.gram,
            self.cross,
            side,
            (ridge.penalty + ridge.dropout * diagonal).astype(np.float32),
            with_self=self.directed,
            neighbors=neighbors,
            threads=torch.get_num_threads(),
        )

    def _sides(self, ridge: Ridge) -> list[tuple[str, float, sp.csr_matrix]]:
        """Name, weight and rows of the sides that count."""
        sides = ("entities", ridge.entities, self.entities), ("words", ridge.words, self.words)
        return [side for side in sides if side[1] and side[2] is not None]

    @cached_property
    def _shared(self) -> dict[str, Dense]:
        """Gram matrices of the sides, (n_items × n_items); a local ridge does without."""
        sides = ("entities", self.entities), ("words", self.words)
        return {name: _product(rows, rows.T.tocsr()) for name, rows in sides if rows is not None}


def product(left: sp.csr_matrix, right: sp.csr_matrix) -> Matrix:
    """leftᵀ · right, (n_items × n_items) float32: dense for a small catalogue, else CSC.

    Args:
        left: (n_rows × n_items) CSR.
        right: (n_rows × n_items) CSR.
    """
    if left.shape[1] > EXACT_ITEMS:
        return (right.T.tocsr() @ left).T
    return _product(left.T.tocsr(), right)


def _product(left: sp.csr_matrix, right: sp.csr_matrix) -> Dense:
    """left · right, float32 and dense."""
    out = np.zeros((left.shape[0], right.shape[1]), np.float32)
    multiply(left, Rows.of(right), out)
    return out


def side_rows(features: sp.csr_matrix) -> sp.csr_matrix | None:
    """The features (n_items × n_features) that make side rows: of a large catalogue the rare ones.

    Returns:
        The same without the columns left out; None where nothing is known of any item.
    """
    features = features[:, side_columns(features)]
    return features if features.nnz else None


def side_columns(features: sp.csr_matrix) -> npt.NDArray[np.int64] | slice:
    """The columns of the features (n_items × n_features) that make side rows."""
    if features.shape[0] <= LARGE_ITEMS:
        return slice(None)
    frequency = np.bincount(features.indices, minlength=features.shape[1])
    return np.flatnonzero(frequency <= RARE)


def _largest(weights: torch.Tensor, keep: int) -> sp.csr_matrix:
    """The `keep` entries of each column that are farthest from 0, and those equal to the last."""
    columns = weights.T.abs().contiguous()  # as rows, which are searched faster
    least = columns.topk(min(keep, len(weights)), dim=1, sorted=False).values.amin(1)
    return at_least(weights.numpy(), least.numpy())
