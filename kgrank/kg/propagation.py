"""One step along the edges: the sparse kernel, the same step as a PyTorch Geometric layer, and the
draw of a sample of edges.

The kernel is `embedding_bag` over compressed rows with the weights of the edges, forward over the
rows and backward over the transposed rows: no message is ever written out, which is what makes
PyG's general path slow on a CPU (a message of `dim` floats for each edge).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric import EdgeIndex, is_compiling
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import is_torch_sparse_tensor

from kgrank.compiled import compiled
from kgrank.errors import ModelError

NARROW = np.iinfo(np.int32).max  # the largest number of an edge or node that takes 4 bytes


@dataclass(frozen=True, eq=False)
class Rows:
    """A sparse matrix in compressed rows, as torch tensors.

    Attributes:
        starts: (n_rows + 1) int32; int64 as the columns are where a number is beyond `NARROW`.
        columns: (nnz) int32.
        weights: (nnz) float.
        n_columns: how many columns there are.
    """

    starts: Tensor
    columns: Tensor
    weights: Tensor
    n_columns: int

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> Rows:
        """From scipy's CSR, with float32 weights; nothing is shared with it."""
        kind = np.int32 if max(matrix.nnz, matrix.shape[1]) <= NARROW else np.int64
        return cls(
            torch.from_numpy(matrix.indptr.astype(kind)),
            torch.from_numpy(matrix.indices.astype(kind)),
            torch.from_numpy(matrix.data.astype(np.float32)),
            matrix.shape[1],
        )

    @classmethod
    def of_pairs(cls, rows: Tensor, columns: Tensor, weights: Tensor, shape: torch.Size) -> Rows:
        """From the (nnz) int64 rows and columns of the entries, in any order."""
        kind = torch.int32 if max(len(rows), shape[1]) <= NARROW else torch.int64
        order = torch.argsort(rows, stable=True)
        starts = rows.new_zeros(shape[0] + 1, dtype=kind)
        starts[1:] = torch.cumsum(torch.bincount(rows, minlength=shape[0]), 0)
        return cls(starts, columns[order].to(kind), weights[order], shape[1])

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on `device`."""
        starts, columns, weights = (t.to(device) for t in (self.starts, self.columns, self.weights))
        return Rows(starts, columns, weights, self.n_columns)

    def times(self, vectors: Tensor) -> Tensor:
        """The product with (n_columns × dim) vectors, (n_rows × dim) of the vectors' dtype."""
        if not len(self.columns):
            return vectors.new_zeros(len(self.starts) - 1, vectors.shape[1])
        return torch.nn.functional.embedding_bag(
            self.columns,
            vectors,
            self.starts,
            mode="sum",
            per_sample_weights=self.weights.to(vectors.dtype),
            include_last_offset=True,
        )


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Edges from sources to targets, compressed both ways so that gradients take the same road.

    It takes 16 bytes an edge: 4 for the end and 4 for the weight, both ways.

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

    @classmethod
    def from_edge_index(
        cls, edge_index: Tensor, edge_weight: Tensor | None = None, *, size: tuple[int, int]
    ) -> Adjacency:
        """From PyG's edges, on their device; edges that are there twice count twice.

        Args:
            edge_index: (2 × n_edges) integers, sources first; an `EdgeIndex` too.
            edge_weight: (n_edges) float, which no gradient is wanted for; 1 if None.
            size: (n_sources, n_targets).

        Raises:
            ModelError: an argument is of another shape or dtype, an edge ends beyond `size`, or
                the weights want a gradient.
        """
        index = edge_index.as_tensor() if isinstance(edge_index, EdgeIndex) else edge_index
        if index.dim() != 2 or len(index) != 2 or index.is_floating_point():
            raise ModelError(
                f"found an edge_index of shape {tuple(index.shape)} and {index.dtype}; allowed: "
                "(2, n_edges) integers. Give the sources as its first row, the targets second."
            )
        sources, targets = index.long()
        for name, ends, n in (("source", sources, size[0]), ("target", targets, size[1])):
            if len(ends) and (int(ends.min()) < 0 or int(ends.max()) >= n):
                raise ModelError(
                    f"found an edge whose {name} is {int(ends.min())} to {int(ends.max())}; "
                    f"allowed: 0 to {n - 1}. Mend the edges, or give another size."
                )
        if edge_weight is None:
            edge_weight = torch.ones(len(sources), device=index.device)
        elif edge_weight.shape != sources.shape or not edge_weight.is_floating_point():
            raise ModelError(
                f"found an edge_weight of shape {tuple(edge_weight.shape)} and "
                f"{edge_weight.dtype}; allowed: ({len(sources)},) floats. Give one for each edge."
            )
        _refuse_gradient(edge_weight)
        return cls(
            Rows.of_pairs(targets, sources, edge_weight, torch.Size((size[1], size[0]))),
            Rows.of_pairs(sources, targets, edge_weight, torch.Size(size)),
        )

    @classmethod
    def from_sparse(cls, matrix: Tensor) -> Adjacency:
        """From an (n_targets × n_sources) sparse tensor of edge weights, PyG's `adj_t`.

        Raises:
            ModelError: the tensor wants a gradient.
        """
        _refuse_gradient(matrix)
        with _quietly():
            csr = matrix if matrix.layout == torch.sparse_csr else matrix.to_sparse_csr()
            ways = csr, csr.t().to_sparse_csr()
        forward, backward = (
            Rows(one.crow_indices(), one.col_indices(), one.values(), one.shape[1]) for one in ways
        )
        return cls(forward, backward)

    @cached_property
    def transposed(self) -> Adjacency:
        """The same edges walked the other way."""
        return Adjacency(self.backward, self.forward)

    @cached_property
    def sparse(self) -> Tensor:
        """The edges as torch's (n_targets × n_sources) sparse CSR tensor, in the same memory."""
        rows = self.forward
        size = len(rows.starts) - 1, rows.n_columns
        with _quietly():
            return torch.sparse_csr_tensor(
                rows.starts, rows.columns, rows.weights, size, check_invariants=False
            )

    def to(self, device: torch.device | str) -> Adjacency:
        """The same edges on `device`."""
        return Adjacency(self.forward.to(device), self.backward.to(device))


def _refuse_gradient(weights: Tensor) -> None:
    if weights.requires_grad:
        raise ModelError(
            "found edge weights that want a gradient; allowed: given ones, which the kernel has no "
            "gradient for. Give LightConv the edge_index and edge_weight, or detach the weights."
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's word that sparse CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse", UserWarning)
        yield


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
        vectors: (n_sources × dim) float; the weights are brought to their dtype.
        adjacency: the edges.

    Returns:
        (n_targets × dim) of the same dtype, differentiable in `vectors`.

    Raises:
        ModelError: the vectors are of another shape, or no floats.
    """
    n = adjacency.forward.n_columns
    if vectors.dim() != 2 or len(vectors) != n or not vectors.is_floating_point():
        raise ModelError(
            f"found vectors of shape {tuple(vectors.shape)} and {vectors.dtype}; allowed: ({n}, "
            "dim) floats, a row for each source of the edges. Give those of the same nodes."
        )
    return cast(Tensor, _Propagate.apply(vectors, adjacency))  # type: ignore[no-untyped-call]


class LightConv(MessagePassing):  # type: ignore[misc]  # PyG's types are unknown to mypy
    """LightGCN's step (He et al., 2020) for PyTorch Geometric, with the kernel as its fused path.

    Every call goes through `propagate`, so that PyG's hooks fire. The kernel runs
    (`message_and_aggregate`) where PyG fuses: with an `Adjacency`, a sparse tensor (`adj_t`) and an
    `EdgeIndex` that is sorted by column. From the last two an Adjacency is made in every call: keep
    one where the same edges are walked again. PyG's own message path, with the same result, runs
    with any other `edge_index`, where weights want a gradient, and while a model is explained.
    """

    SUPPORTS_FUSED_EDGE_INDEX = True

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
            x: (n_sources × dim) float.
            edges: an Adjacency; an (n_targets × n_sources) sparse tensor; or the `edge_index`,
                (2 × n_edges) int64, sources first, an `EdgeIndex` too.
            edge_weight: (n_edges) float with an `edge_index`; 1 if None.
            size: (n_sources, n_targets) with an `edge_index` that is no EdgeIndex; sources and
                targets are the same nodes if None.

        Raises:
            ModelError: `x` does not fit the edges, or there are weights or a size beside edges that
                have their own.
        """
        if isinstance(edges, Adjacency):
            _refuse_beside("an Adjacency", edge_weight, size)
            if is_compiling():  # PyG fires no hooks then
                return propagate(x, edges)
            return self._walked(edges.sparse, x, edges, None)
        index: Tensor = edges
        if is_torch_sparse_tensor(edges):
            _refuse_beside("a sparse tensor", edge_weight, size)
            if not edges.requires_grad:
                return self._walked(edges, x, None, None)
            with _quietly():
                entries = edges.to_sparse(layout=torch.sparse_coo).coalesce()
            size = entries.shape[1], entries.shape[0]
            index, edge_weight = entries.indices().flip(0), entries.values()
        elif isinstance(edges, EdgeIndex):
            _refuse_beside("an EdgeIndex", None, size)
            if edge_weight is None or not edge_weight.requires_grad:
                return self._walked(edges, x, None, edge_weight)
            index, size = edges.as_tensor(), _size(edges, x)
        both = x if size is None else (x, None)
        return self._walked(index, both, None, edge_weight, size)

    def _walked(
        self,
        edges: Tensor,
        x: Tensor | tuple[Tensor, None],
        adjacency: Adjacency | None,
        edge_weight: Tensor | None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        out = self.propagate(edges, x=x, adjacency=adjacency, edge_weight=edge_weight, size=size)
        return cast(Tensor, out)

    def message(self, x_j: Tensor, edge_weight: Tensor | None) -> Tensor:
        """What travels along each edge, (n_edges × dim)."""
        return x_j if edge_weight is None else x_j * edge_weight[:, None].to(x_j.dtype)

    def message_and_aggregate(
        self, edges: Tensor, x: Tensor, adjacency: Adjacency | None, edge_weight: Tensor | None
    ) -> Tensor:
        """Both at once, without messages.

        Args:
            edges: a sparse tensor, or an EdgeIndex.
            x: (n_sources × dim) float.
            adjacency: the same edges, if they are there as one.
            edge_weight: (n_edges) float with an EdgeIndex; 1 if None.
        """
        if adjacency is None or edges is not adjacency.sparse:  # or a hook has changed them
            if isinstance(edges, EdgeIndex):
                adjacency = Adjacency.from_edge_index(edges, edge_weight, size=_size(edges, x))
            else:
                adjacency = Adjacency.from_sparse(edges)
        return propagate(x, adjacency)


def _size(edges: EdgeIndex, x: Tensor) -> tuple[int, int]:
    """Sources and targets of an EdgeIndex; as many as `x` has rows where it does not say."""
    n_sources, n_targets = (len(x) if n is None else int(n) for n in edges.sparse_size())
    return n_sources, n_targets


def _refuse_beside(what: str, edge_weight: Tensor | None, size: tuple[int, int] | None) -> None:
    """Raises ModelError if there are weights or a size that the edges have already."""
    for name, value in (("edge_weight", edge_weight), ("size", size)):
        if value is not None:
            raise ModelError(
                f"found {name} beside {what}; allowed: {what} alone, which has its own. Leave "
                f"{name} out."
            )


def sampled(matrix: sp.csr_matrix, most: int, seed: int | Sequence[int]) -> sp.csr_matrix:
    """At most `most` edges of each row, drawn without replacement, scaled so that sums keep their
    expectation: the neighbour sampler for graphs whose edges should not all be walked.

    One pass over the row lengths: beside the matrix that it gives, it holds nothing that grows with
    the edges.

    Args:
        matrix: CSR; it is given back as it is where no row is longer.
        most: edges that a row keeps.
        seed: of the draw, one number or several; the same seed keeps the same edges.
    """
    lengths = np.diff(matrix.indptr)
    if not len(lengths) or lengths.max() <= most:
        return matrix
    starts = np.zeros_like(matrix.indptr)
    np.cumsum(np.minimum(lengths, most), out=starts[1:])
    columns = np.empty(starts[-1], matrix.indices.dtype)
    weights = np.empty(starts[-1], np.float32)
    rng = np.random.default_rng(seed)
    _draw(matrix.indptr, matrix.indices, matrix.data, most, rng, columns, weights)
    return sp.csr_matrix((weights, columns, starts), matrix.shape)


@compiled
def _draw(
    starts: npt.NDArray[np.integer],
    columns: npt.NDArray[np.integer],
    weights: npt.NDArray[np.floating],
    most: int,
    rng: np.random.Generator,
    drawn: npt.NDArray[np.integer],
    drawn_weights: npt.NDArray[np.float32],
) -> None:
    """Of each row a sample in order (Knuth's algorithm S): of n that are left, k wanted, the next
    is taken with the chance k / n."""
    n = 0
    for row in range(len(starts) - 1):
        left = starts[row + 1] - starts[row]
        wanted = min(left, most)
        scale = max(left / most, 1.0)
        for edge in range(starts[row], starts[row + 1]):
            if wanted == left or rng.random() * left < wanted:
                drawn[n], drawn_weights[n] = columns[edge], weights[edge] * scale
                n += 1
                wanted -= 1
            left -= 1
