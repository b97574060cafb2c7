"""Item–item weights by ridge regression, exact for a small catalogue, local for a large one.

A column of EASE (Steck, "Embarrassingly Shallow Autoencoders", 2019) or of SLIT (Choi et al.,
"Session-aware Linear Item-Item Models", 2021) is a ridge regression on all other items. Solved over
its strongest neighbours alone it ranks as well on sparse data, stays sparse, and needs no n × n
matrix. Side rows (shared words, shared entities) enter as rows of a further user would, and give
products nobody has bought yet their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

EXACT_ITEMS = 4_096  # up to here one inverse is faster than a local ridge, and exact
DENSE_ITEMS = 16_384  # up to here second moments are held dense: 1 GB of float32
RARE = 200  # beyond that, a word or entity of more items than this is left out of the side rows

Matrix: TypeAlias = npt.NDArray[np.float32] | Any  # dense, or scipy.sparse.csr_matrix


@dataclass(frozen=True)
class Ridge:
    """How item–item weights are fitted.

    Attributes:
        penalty: λ, added to the Gram's diagonal.
        dropout: share of the Gram's own diagonal added as well (EDLAE, Steck 2020: p / (1 − p)).
        entities: weight of the rows of shared entities.
        words: weight of the rows of shared words.
    """

    penalty: float = 100.0
    dropout: float = 0.0
    entities: float = 0.0
    words: float = 0.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of the regression "history → next", and of the side rows.

    Attributes:
        gram: (n_items × n_items) inputs' Gram matrix; float32, dense or CSR by catalogue size.
        cross: (n_items × n_items) inputs × outputs; for EASE the same object as `gram`.
        entities: (n_items × n_items) Gram matrix of the entity rows, or None.
        words: (n_items × n_items) Gram matrix of the word rows, or None.
    """

    gram: Matrix
    cross: Matrix
    entities: Matrix | None
    words: Matrix | None

    @property
    def directed(self) -> bool:
        """Whether inputs and outputs differ, so that an item may point to itself."""
        return self.cross is not self.gram

    def weights(self, ridge: Ridge, *, neighbors: int) -> sp.csr_matrix:
        """Item–item weights B (n_items × n_items) float32 CSR: history row · B = scores.

        Args:
            ridge: penalties and side rows.
            neighbors: entries a column, at most (four times as many where it is exact).
        """
        gram, cross = self.gram, self.cross
        for weight, rows in ((ridge.entities, self.entities), (ridge.words, self.words)):
            if weight and rows is not None:
                shared = weight * rows
                gram = gram + shared
                cross = cross + shared if self.directed else gram
        if not self.directed:
            cross = gram
        n_items = gram.shape[0]
        diagonal = np.asarray(gram.diagonal(), np.float32)
        penalty = (ridge.penalty + ridge.dropout * diagonal).astype(np.float32)
        if n_items <= EXACT_ITEMS:
            return _exact(gram, cross, penalty, directed=self.directed, keep=4 * neighbors)
        return _local(gram, cross, penalty, directed=self.directed, neighbors=neighbors)


def product(left: sp.csr_matrix, right: sp.csr_matrix, block: int = 2_048) -> Matrix:
    """leftᵀ · right, (n_items × n_items) float32: dense for a small catalogue, CSR for a large one.

    Args:
        left: (n_rows × n_items) CSR.
        right: (n_rows × n_items) CSR.
        block: columns of the result worked out at a time.
    """
    n_items = left.shape[1]
    turned, columns = left.T.tocsr(), right.tocsc()
    if n_items > DENSE_ITEMS:
        blocks = [
            (turned @ columns[:, start : start + block]).tocsc()
            for start in range(0, n_items, block)
        ]
        return sp.hstack(blocks, format="csr", dtype=np.float32)
    result = np.zeros((n_items, n_items), np.float32)
    for start in range(0, n_items, block):
        part = turned @ columns[:, start : start + block]
        result[:, start : start + block] = part.toarray()
    return result


def shared_features(features: sp.csr_matrix) -> Matrix:
    """F · Fᵀ of (n_items × n_features) rows; for a large catalogue over rare features only."""
    if features.shape[0] > DENSE_ITEMS:
        frequency = np.bincount(features.indices, minlength=features.shape[1])
        features = features[:, np.flatnonzero(frequency <= RARE)]
    turned = features.T.tocsr()
    return product(turned, turned)


def _exact(
    gram: npt.NDArray[np.float32],
    cross: npt.NDArray[np.float32],
    penalty: npt.NDArray[np.float32],
    *,
    directed: bool,
    keep: int,
) -> sp.csr_matrix:
    """All columns at once, in float64; then the `keep` largest entries of each."""
    full = torch.from_numpy(gram).double()
    full.diagonal().add_(torch.from_numpy(penalty).double())
    factor = torch.linalg.cholesky(full)
    if directed:
        weights = torch.cholesky_solve(torch.from_numpy(cross).double(), factor)
    else:
        inverse = torch.cholesky_inverse(factor)
        weights = -inverse / inverse.diagonal()
        weights.fill_diagonal_(0.0)
    n_items = len(weights)
    rows = weights.abs().topk(min(keep, n_items), dim=0).indices  # (keep, n_items)
    values = weights.gather(0, rows).float()
    columns = torch.arange(n_items).expand_as(rows)
    return _assemble(rows.numpy(), columns.numpy(), values.numpy(), n_items)


def _local(
    gram: Matrix,
    cross: Matrix,
    penalty: npt.NDArray[np.float32],
    *,
    directed: bool,
    neighbors: int,
) -> sp.csr_matrix:
    """Column j solves (G_NN + Λ_NN) b = C_Nj over N, the items with the largest C_·j > 0."""
    n_items = gram.shape[0]
    k = min(neighbors, n_items - 1)
    columns_of = cross if isinstance(cross, np.ndarray) else cross.tocsc()
    load = torch.from_numpy(penalty)
    block = 512 if isinstance(cross, np.ndarray) else 128  # a long sparse column is unpacked whole
    parts = []
    for start in range(0, n_items, block):
        js = np.arange(start, min(start + block, n_items))
        near, wanted = _strongest(columns_of, js, k, with_self=directed)  # (block, k)
        shares = wanted > 0.0  # the rest are no neighbours: left out of the system
        local = _gather(gram, near) * (shares[:, :, None] & shares[:, None, :])
        local.diagonal(dim1=1, dim2=2).add_(load[near])
        factor = torch.linalg.cholesky(local)
        solved = torch.cholesky_solve((wanted * shares)[:, :, None], factor)[:, :, 0]
        parts.append((near.numpy(), np.repeat(js, k).reshape(-1, k), solved.numpy()))
    rows, columns, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _assemble(rows, columns, values, n_items)


def _strongest(
    cross: Matrix, js: npt.NDArray[np.int64], k: int, *, with_self: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest entries of columns js: rows (n × k) int64 and values, 0 where there are fewer.

    Args:
        cross: dense, or CSC.
        js: (n) consecutive columns.
        k: how many.
        with_self: whether the diagonal counts.
    """
    if isinstance(cross, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(cross[:, js].T))
        if not with_self:
            values[torch.arange(len(js)), torch.from_numpy(js)] = 0.0
        found = values.topk(k, dim=1)
        return found.indices, found.values
    starts = cross.indptr[js[0] : js[-1] + 2].astype(np.int64)
    lengths = np.diff(starts)
    column = np.repeat(np.arange(len(js)), lengths)
    place = np.arange(lengths.sum()) - np.repeat(starts[:-1] - starts[0], lengths)
    rows = np.zeros((len(js), max(k, int(lengths.max()))), np.int64)
    packed = np.zeros(rows.shape, np.float32)
    rows[column, place] = cross.indices[starts[0] : starts[-1]]
    packed[column, place] = cross.data[starts[0] : starts[-1]]
    if not with_self:
        packed[rows == js[:, None]] = 0.0
    values, places = torch.from_numpy(packed).topk(k, dim=1)
    return torch.from_numpy(rows).gather(1, places), values


def _gather(gram: Matrix, near: torch.Tensor) -> torch.Tensor:
    """gram[near, near] of each row of `near`, (n_rows × k × k) float32."""
    left, right = near[:, :, None], near[:, None, :]
    if isinstance(gram, np.ndarray):
        return torch.from_numpy(gram)[left, right]
    n, k = near.shape
    shape = (n, k, k)
    rows, columns = (np.broadcast_to(i.numpy(), shape).ravel() for i in (left, right))
    return torch.from_numpy(np.asarray(gram[rows, columns], np.float32).reshape(shape))


def _assemble(
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    n_items: int,
) -> sp.csr_matrix:
    kept = values != 0.0
    entries = (values[kept], (rows[kept], columns[kept]))
    weights = sp.csr_matrix(entries, (n_items, n_items), dtype=np.float32)
    weights.sort_indices()
    return weights
