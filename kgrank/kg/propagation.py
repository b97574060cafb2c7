"""One step along the edges: the sparse kernel, and the same step as a PyTorch Geometric layer.

The kernel is `embedding_bag` over compressed rows with the weights of the edges, forward over the
rows and backward over the transposed rows: no message is ever written out, which is what makes
PyG's general path slow on a CPU (a message of `dim` floats for each edge).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing


@dataclass(frozen=True, eq=False)
class Rows:
    """A sparse matrix in compressed rows, as torch tensors.

    Attributes:
        starts: (n_rows + 1) int64.
        columns: (nnz) int64.
        weights: (nnz) float32.
        n_columns: how many columns there are.
    """

    starts: Tensor
    columns: Tensor
    weights: Tensor
    n_columns: int

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> Rows:
        """From scipy's CSR, with int64 indices."""
        return cls(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            matrix.shape[1],
        )

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on `device`."""
        starts, columns, weights = (t.to(device) for t in (self.starts, self.columns, self.weights))
        return Rows(starts, columns, weights, self.n_columns)

    def times(self, vectors: Tensor) -> Tensor:
        """The product with (n_columns × dim) vectors, (n_rows × dim) float32."""
        if not len(self.columns):
            return vectors.new_zeros(len(self.starts) - 1, vectors.shape[1])
        return torch.nn.functional.embedding_bag(
            self.columns,
            vectors,
            self.starts,
            mode="sum",
            per_sample_weights=self.weights,
            include_last_offset=True,
        )


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Edges from sources to targets, compressed both ways so that gradients take the same road.

    Attributes:
        forward: (n_targets × n_sources) rows.
        backward: (n_sources × n_targets) rows, the transpose.
    """

    forward: Rows
    backward: Rows

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> Adjacency:
        """From an (n_targets × n_sources) CSR matrix of edge weights."""
        return cls(Rows.of(matrix), Rows.of(matrix.T.tocsr()))

    @property
    def transposed(self) -> Adjacency:
        """The same edges walked the other way."""
        return Adjacency(self.backward, self.forward)

    def to(self, device: torch.device | str) -> Adjacency:
        """The same edges on `device`."""
        return Adjacency(self.forward.to(device), self.backward.to(device))


class _Propagate(torch.autograd.Function):
    """adjacency · vectors; the gradient is adjacencyᵀ · gradient."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, adjacency: Adjacency) -> Tensor:
        ctx.adjacency = adjacency
        return adjacency.forward.times(vectors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.adjacency.backward.times(gradients[0].contiguous()), None


def propagate(vectors: Tensor, adjacency: Adjacency) -> Tensor:
    """Each target's weighted sum of its sources' vectors.

    Args:
        vectors: (n_sources × dim) float32.
        adjacency: the edges.

    Returns:
        (n_targets × dim) float32, differentiable in `vectors`.
    """
    return cast(Tensor, _Propagate.apply(vectors, adjacency))  # type: ignore[no-untyped-call]


class LightConv(MessagePassing):  # type: ignore[misc]  # PyG's types are unknown to mypy
    """LightGCN's step (He et al., 2020) for PyTorch Geometric, with the kernel as its fused path.

    Given an `Adjacency` it runs the kernel; given an `edge_index` with `edge_weight` it runs PyG's
    own message path, with the same result.
    """

    def __init__(self) -> None:
        super().__init__(aggr="sum", flow="source_to_target")

    def forward(
        self,
        x: Tensor,
        edges: Adjacency | Tensor,
        edge_weight: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """One step.

        Args:
            x: (n_sources × dim) float32.
            edges: the edges, or their `edge_index`, (2 × n_edges) int64, sources first.
            edge_weight: (n_edges) float32 with an `edge_index`; 1 if None.
            size: (n_sources, n_targets) with an `edge_index`; sources and targets are the same
                nodes if None.
        """
        if isinstance(edges, Adjacency):
            return self.message_and_aggregate(edges, x)
        if size is not None:
            return cast(Tensor, self.propagate(edges, x=(x, None), weight=edge_weight, size=size))
        return cast(Tensor, self.propagate(edges, x=x, weight=edge_weight, size=size))

    def message(self, x_j: Tensor, weight: Tensor | None) -> Tensor:
        """What travels along each edge, (n_edges × dim)."""
        return x_j if weight is None else x_j * weight[:, None]

    def message_and_aggregate(self, edges: Adjacency, x: Tensor) -> Tensor:
        """Both at once, without messages."""
        return propagate(x, edges)


def sampled(matrix: sp.csr_matrix, most: int, seed: int) -> sp.csr_matrix:
    """At most `most` edges of each row, drawn without replacement, scaled so that sums keep their
    expectation: the neighbour sampler for graphs whose edges should not all be walked.

    Args:
        matrix: CSR.
        most: edges that a row keeps.
        seed: of the draw; the same seed keeps the same edges.
    """
    lengths = np.diff(matrix.indptr)
    if not len(lengths) or lengths.max() <= most:
        return matrix
    rng = np.random.default_rng(seed)
    keys = rng.random(matrix.nnz)
    row = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((keys, row))
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], lengths)
    kept = np.sort(order[place < most])
    scale = np.maximum(lengths / most, 1.0)[row[kept]]
    starts = np.r_[0, np.cumsum(np.minimum(lengths, most))]
    data = (matrix.data[kept] * scale).astype(np.float32)
    return sp.csr_matrix((data, matrix.indices[kept], starts), matrix.shape)
