"""PyTorch Geometric's RGCN, GATv2 and HGT as encoders of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from kgrank.kg.gnn import EncoderName, GraphEncoder, GraphInput, check_behaviours, table
from kgrank.kg.propagation import Adjacency, propagate

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData


class MessageEncoder(GraphEncoder):
    """PyTorch Geometric's RGCN, GATv2 or HGT over items, facts' tails and users.

    A user starts from the mean of the items it met; all else from learned vectors. Every edge is
    walked in every epoch, and each convolution writes out a message of `dim` floats for each: a
    graph whose messages do not fit in memory is one for "light".

    To the layers, types and relations go by names of their own (t0, r0): a column may have a name
    that torch cannot give to a parameter.

    Args:
        graph: what is learned on.
        dim: length of the vectors.
        layers: how many convolutions.
        name: "rgcn", "gatv2" or "hgt".
        start: see `GraphEncoder`.

    Raises:
        ModelError: there is no kind of behaviour.
    """

    def __init__(
        self,
        graph: GraphInput,
        dim: int,
        layers: int,
        name: EncoderName,
        start: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
    ) -> None:
        from torch_geometric import nn as gnn

        check_behaviours(graph, f"{name} walks them")
        super().__init__(graph, dim, start)
        self._names = _safe_names(graph)
        data = _with_behaviours(graph, self._names)
        self._types, self._edge_types = data.node_types, data.edge_types
        self._edges = {kind: data[kind].edge_index for kind in self._edge_types}
        self.tables = nn.ParameterDict(
            {
                kind: table(int(data[kind].num_nodes), dim)
                for kind in self._types
                if kind not in ("item", "user")
            }
        )
        seen = [_means(matrix) for matrix in graph.behaviours.values()]
        self._met_items = Adjacency.of(sp.csr_matrix(sum(seen[1:], start=seen[0])))
        n_kinds = len(self._edge_types)
        self.kind = table(n_kinds if name == "gatv2" else 0, dim)  # of an edge
        self.name = name
        heads = 2 if dim % 2 == 0 else 1  # which share the vector's numbers
        if name == "hgt":
            meta = (self._types, self._edge_types)
            made = [gnn.HGTConv(dim, dim, meta, heads=heads) for _ in range(layers)]
        elif name == "rgcn":
            made = [gnn.RGCNConv(dim, dim, n_kinds, num_bases=8) for _ in range(layers)]
        else:
            made = [
                gnn.GATv2Conv(dim, dim // heads, heads=heads, edge_dim=dim, add_self_loops=False)
                for _ in range(layers)
            ]
        self.layers = nn.ModuleList(made)

    def table(self, kind: str) -> nn.Parameter:
        """The learned vectors of a type of entities, (n_nodes × dim)."""
        found: nn.Parameter = self.tables[self._names[kind]]
        return found

    def brought(self, said: Tensor | None = None) -> Tensor:
        """What the convolutions bring to each item, (n_items × dim)."""
        items = self.base(said)
        nodes = {"item": items, "user": propagate(items, self._met_items), **self.tables}
        if self.name == "hgt":
            return self._heterogeneous(nodes)
        starts, total = {}, 0
        for kind in self._types:
            starts[kind], total = total, total + len(nodes[kind])
        x = torch.cat([nodes[kind] for kind in self._types])
        parts, kinds = [], []
        for number, (head, relation, tail) in enumerate(self._edge_types):
            index = self._edges[head, relation, tail]
            parts.append(index + index.new_tensor([[starts[head]], [starts[tail]]]))
            kinds.append(index.new_full((index.shape[1],), number))
        edges, of_kind = torch.cat(parts, dim=1), torch.cat(kinds)
        for layer in self.layers:
            what = of_kind if self.name == "rgcn" else self.kind[of_kind]
            x = x + nn.functional.relu(layer(x, edges, what))
        place = starts["item"]
        brought: Tensor = x[place : place + len(items)] - items
        return brought

    def to_device(self, device: str) -> GraphEncoder:
        """The encoder with its edges on `device`."""
        self._edges = {kind: index.to(device) for kind, index in self._edges.items()}
        self._met_items = self._met_items.to(device)
        return super().to_device(device)

    def _heterogeneous(self, nodes: dict[str, Tensor]) -> Tensor:
        items = nodes["item"]
        for layer in self.layers:
            out = layer(nodes, self._edges)
            nodes = {
                kind: x if out.get(kind) is None else x + nn.functional.relu(out[kind])
                for kind, x in nodes.items()
            }
        return nodes["item"] - items


def _safe_names(graph: GraphInput) -> dict[str, str]:
    """Node type → its name in the layers."""
    kept = ("item", "user")
    kinds = enumerate(graph.data.node_types)
    return {kind: kind if kind in kept else f"t{number}" for number, kind in kinds} | {
        kind: kind for kind in kept
    }


def _with_behaviours(graph: GraphInput, names: dict[str, str]) -> HeteroData:
    """The facts and the given behaviours, every edge both ways, for PyTorch Geometric."""
    from torch_geometric.data import HeteroData
    from torch_geometric.transforms import ToUndirected

    data = HeteroData()
    for kind in graph.data.node_types:
        data[names[kind]].num_nodes = graph.data[kind].num_nodes
    data["user"].num_nodes = max(matrix.shape[0] for matrix in graph.behaviours.values())
    facts = [kind for kind in graph.data.edge_types if "user" not in (kind[0], kind[2])]
    for number, (head, relation, tail) in enumerate(facts):
        index = graph.data[head, relation, tail].edge_index
        data[names[head], f"r{number}", names[tail]].edge_index = index
    for number, matrix in enumerate(graph.behaviours.values(), start=len(facts)):
        entries = matrix.tocoo()
        index = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
        data["user", f"r{number}", "item"].edge_index = index
    return ToUndirected(merge=False)(data)


def _means(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Rows that sum to 1."""
    sums = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1e-12)
    return sp.csr_matrix(sp.diags(1.0 / sums) @ matrix, dtype=np.float32)
