"""The graph in other libraries' terms: a scipy matrix, networkx, PyTorch Geometric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from kgrank.kg.vocabulary import USER, Vocabulary, read_only

if TYPE_CHECKING:
    import networkx
    from torch_geometric.data import HeteroData

    from kgrank.kg.graph import KnowledgeGraph


@dataclass(frozen=True, eq=False)
class ItemEntityMatrix:
    """What is known of each item, as a matrix, and the edges behind every entry.

    Attributes:
        matrix: `scipy.sparse.csr_array` (n_items, n_columns) float32: the sum of the weights of
            the edges between the item and the column's node, columns ascending within a row.
        columns: (n_columns,) int32: the node of each column, an entity or another item, ascending.
        edge_indptr: (nnz + 1,) int32.
        edges: (n,) int32 edge numbers: the k-th entry (the place in `matrix.data`) sums
            `edges[edge_indptr[k]:edge_indptr[k + 1]]`.
    """

    matrix: Any
    columns: NDArray[np.int32]
    edge_indptr: NDArray[np.int32]
    edges: NDArray[np.int32]

    def edges_at(self, row: int, column: int) -> NDArray[np.int32]:
        """(n,) int32: the numbers of the edges behind one entry; none where it is empty."""
        start, end = self.matrix.indptr[row], self.matrix.indptr[row + 1]
        entry = start + int(np.searchsorted(self.matrix.indices[start:end], column))
        if entry == end or self.matrix.indices[entry] != column:
            return np.empty(0, dtype=np.int32)
        return self.edges[self.edge_indptr[entry] : self.edge_indptr[entry + 1]]


def item_entity_matrix(graph: KnowledgeGraph, items: Vocabulary) -> ItemEntityMatrix:
    """What is known of the items: all edges but behaviours that touch one, from either side.

    The other end, an entity or an item, is the column; an edge between two of the items stands in
    both rows. Users are never columns, and an edge from an item to itself is left out. An item
    that the graph does not know has an empty row.

    Args:
        graph: what is known.
        items: which items are rows, in which order.
    """
    every = graph.edge_list()
    # behaviours would fall out with the users, but they are most of the edges
    knowledge = np.flatnonzero(~graph.behaviours[every.relations]).astype(np.int32)
    ends = every.heads[knowledge], every.tails[knowledge]
    row_of = np.full(len(graph.nodes), -1, dtype=np.int32)
    row_of[graph.nodes.item_nodes] = items.numbers(graph.items.array, missing="negative")
    own, others = np.concatenate(ends), np.concatenate(ends[::-1])
    kept = (row_of[own] >= 0) & (graph.nodes.types[others] != USER) & (own != others)
    rows, others, edges = row_of[own[kept]], others[kept], np.tile(knowledge, 2)[kept]

    columns, places = np.unique(others, return_inverse=True)
    order = np.lexsort((edges, places, rows))
    rows, places, edges = rows[order], places[order], edges[order]
    starts = (np.diff(rows, prepend=-1) != 0) | (np.diff(places, prepend=-1) != 0)
    first = np.flatnonzero(starts)  # an entry begins wherever row or column changes
    sums = np.add.reduceat(graph.weights[edges], first) if len(first) else np.empty(0)
    indptr = np.searchsorted(rows[first], np.arange(len(items) + 1)).astype(np.int32)
    matrix = sparse.csr_array(
        (sums.astype(np.float32), places[first].astype(np.int32), indptr),
        shape=(len(items), len(columns)),
    )
    for array in (matrix.data, matrix.indices, matrix.indptr):
        read_only(array)
    edge_indptr = np.append(first, len(edges)).astype(np.int32)
    return ItemEntityMatrix(matrix, read_only(columns), read_only(edge_indptr), read_only(edges))


def entity_features(weights: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows for the graph channel: IDF-weighted entities, scaled to length 1.

    An entity of one item links nothing and is dropped.

    Args:
        weights: (n_items × n_columns) CSR, `ItemEntityMatrix.matrix` or another of that kind.

    Returns:
        the same shape, float32 CSR.
    """
    linked = sparse.csr_matrix(weights, dtype=np.float32)
    linked.data = np.minimum(linked.data, 1.0)
    frequency = np.bincount(linked.indices, minlength=linked.shape[1])
    idf = np.where(frequency > 1, np.log(linked.shape[0] / np.maximum(frequency, 1)), 0.0)
    linked = (linked @ sparse.diags(idf.astype(np.float32))).tocsr()
    linked.eliminate_zeros()
    return unit_rows(linked)


def unit_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same rows scaled to length 1; empty rows stay empty."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    return (sparse.diags(scale.astype(np.float32)) @ matrix).tocsr()


def to_networkx(graph: KnowledgeGraph) -> networkx.MultiDiGraph[tuple[str, str]]:
    """The graph for networkx: a node's key is (type, id), an edge's key its edge number.

    Nodes carry `type`, `id` and `name`; edges `relation`, `weight` and `time` (seconds UTC,
    0 = none). Meant for small graphs and drawings: it takes some hundred bytes an edge.
    """
    import networkx

    nodes = [graph.node(number) for number in range(len(graph.nodes))]
    keys = [(node.type, node.id) for node in nodes]
    out: networkx.MultiDiGraph[tuple[str, str]] = networkx.MultiDiGraph()
    out.add_nodes_from((key, node._asdict()) for key, node in zip(keys, nodes, strict=True))
    edges = graph.edge_list()
    columns = (edges.heads, edges.relations, edges.tails, edges.weights, edges.times)
    out.add_edges_from(
        (keys[head], keys[tail], number, _attributes(graph.relations[relation], weight, time))
        for number, (head, relation, tail, weight, time) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    )
    return out


def _attributes(relation: str, weight: float, time: int) -> dict[str, Any]:
    return {"relation": relation, "weight": weight, "time": time}


def to_pyg(graph: KnowledgeGraph) -> HeteroData:
    """The graph for PyTorch Geometric, one edge store for each (head type, relation, tail type).

    Node stores hold `num_nodes`, `node_id` and `name` (lists of str). Edge stores hold
    `edge_index` (2, n) int64 in numbers of the type's own nodes (for users and items: their
    vocabulary numbers), `edge_weight` (n,) float32, `edge_time` (n,) int64 seconds UTC, 0 = none.
    """
    import torch
    from torch_geometric.data import HeteroData

    data, nodes = HeteroData(), graph.nodes
    local = np.empty(len(nodes), dtype=np.int64)
    every = [nodes.node(number) for number in range(len(nodes))]
    for number, type_ in enumerate(nodes.type_names):
        members = np.flatnonzero(nodes.types == number)
        local[members] = np.arange(len(members))
        if len(members):
            data[type_].num_nodes = len(members)
            data[type_].node_id = [every[member].id for member in members]
            data[type_].name = [every[member].name for member in members]

    edges = graph.edge_list()
    # an event kind and a relation of the same name share a store where their ends agree
    named = np.array([graph.relations.index(name) for name in graph.relations], dtype=np.int64)
    shape = len(nodes.type_names), len(named), len(nodes.type_names)
    ends = nodes.types[edges.heads], nodes.types[edges.tails]
    kinds, kind_of = np.unique(
        np.ravel_multi_index((ends[0], named[edges.relations], ends[1]), shape), return_inverse=True
    )
    for number, kind in enumerate(kinds):
        some = edges.take(kind_of == number)
        head, relation, tail = np.unravel_index(kind, shape)
        names = nodes.type_names[head], graph.relations[relation], nodes.type_names[tail]
        store = data[names]
        store.edge_index = torch.from_numpy(np.stack([local[some.heads], local[some.tails]]))
        store.edge_weight = torch.from_numpy(some.weights)
        store.edge_time = torch.from_numpy(some.times.astype(np.int64))
    return data
