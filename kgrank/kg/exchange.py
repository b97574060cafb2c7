"""The graph in other libraries' terms: a scipy matrix, networkx. `kgrank.kg.pyg` is one more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from kgrank.errors import DataError, Fault
from kgrank.kg.building import Edges
from kgrank.kg.vocabulary import ITEM, USER, Vocabulary, read_only

if TYPE_CHECKING:
    import networkx

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

    Nodes carry `type`, `id` and `name`; edges `relation`, `weight`, `time` (seconds UTC, 0 = none)
    and `behaviour` (whether it is an event); the graph itself `attributes` and `relations`. Meant
    for small graphs and drawings: it takes some hundred bytes an edge. `from_networkx` reads it.
    """
    import networkx

    nodes = [graph.node(number) for number in range(len(graph.nodes))]
    keys = [(node.type, node.id) for node in nodes]
    out: networkx.MultiDiGraph[tuple[str, str]] = networkx.MultiDiGraph(**about_of(graph))
    out.add_nodes_from((key, node._asdict()) for key, node in zip(keys, nodes, strict=True))
    edges, behaviours = graph.edge_list(), graph.behaviours.tolist()
    columns = (edges.heads, edges.relations, edges.tails, edges.weights, edges.times)
    out.add_edges_from(
        (
            keys[head],
            keys[tail],
            number,
            {
                "relation": graph.relations[relation],
                "weight": weight,
                "time": time,
                "behaviour": behaviours[relation],
            },
        )
        for number, (head, relation, tail, weight, time) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    )
    return out


def from_networkx(data: networkx.MultiDiGraph[tuple[str, str]]) -> KnowledgeGraph:
    """The graph that `to_networkx` gave; or another one whose nodes and edges carry the same.

    Edges without `weight` weigh 1, without `time` have none; without `behaviour` those from a user
    to an item are events. Nodes without `name` go by their id.

    Raises:
        DataError: a node has no `type` or `id`, an id comes twice, or an edge has no `relation`.
    """
    nodes = [
        (_given(node, key, "type"), _given(node, key, "id"), str(node.get("name") or node["id"]))
        for key, node in data.nodes(data=True)
    ]
    number_of = {key: number for number, key in enumerate(data.nodes)}
    told = [
        (
            number_of[head],
            _given(edge, (head, tail), "relation"),
            number_of[tail],
            float(edge.get("weight", 1.0)),
            int(edge.get("time", 0)),
            edge.get("behaviour"),
        )
        for head, tail, edge in data.edges(data=True)
    ]
    heads, names, tails, weights, times, behaviours = zip(*told, strict=True) if told else [()] * 6
    return assembled(
        nodes,
        np.array(heads, dtype=np.int32),
        np.array(names, dtype=object),
        np.array(tails, dtype=np.int32),
        np.array(weights, dtype=np.float32),
        np.array(times, dtype=np.uint32),
        np.array(behaviours, dtype=object),
        data.graph,
    )


def _given(values: Mapping[str, Any], where: object, name: str) -> str:
    """A text that a node or edge has to carry."""
    value = values.get(name)
    if not isinstance(value, str) or not value:
        found, allowed = f"{where!r} with {name} {value!r}", f"nodes and edges with a text {name!r}"
        raise DataError([Fault("graph", None, name, found, allowed, "Set it, then try again.")])
    return value


def about_of(graph: KnowledgeGraph) -> dict[str, Any]:
    """What of a graph its nodes and edges do not tell."""
    keys = zip(graph.relations, graph.behaviours.tolist(), strict=True)
    return {"attributes": list(graph.attributes), "relations": [list(key) for key in keys]}


def assembled(
    nodes: Sequence[tuple[str, str, str]],
    heads: NDArray[np.int32],
    names: NDArray[np.object_],
    tails: NDArray[np.int32],
    weights: NDArray[np.float32],
    times: NDArray[np.uint32],
    behaviours: NDArray[np.object_],
    about: Mapping[str, Any],
) -> KnowledgeGraph:
    """A graph of nodes (type, id, name) and edges (n_edges,) by their places; see `about_of`.

    Raises:
        DataError: an id comes twice, or `about` holds something else under a name of `about_of`.
    """
    from kgrank.kg.graph import KnowledgeGraph
    from kgrank.kg.storage import nodes_of_columns

    columns = zip(*nodes, strict=True) if nodes else [()] * 3
    graph_nodes = nodes_of_columns(*(pa.array(column, pa.large_string()) for column in columns))
    unsaid = np.array([one is None for one in behaviours], dtype=bool)
    events = (graph_nodes.types[heads] == USER) & (graph_nodes.types[tails] == ITEM)
    said = np.where(unsaid, events, behaviours).astype(bool)
    keys, attributes = _told(about)
    keys += sorted(set(zip(names.tolist(), said.tolist(), strict=True)) - set(keys))
    number_of = {key: number for number, key in enumerate(keys)}
    numbers = [number_of[key] for key in zip(names.tolist(), said.tolist(), strict=True)]
    return KnowledgeGraph.from_edges(
        graph_nodes,
        [name for name, _ in keys],
        np.array([behaviour for _, behaviour in keys], dtype=bool),
        attributes,
        Edges(heads, np.array(numbers, dtype=np.int32), tails, weights, times),
    )


def _told(about: Mapping[str, Any]) -> tuple[list[tuple[str, bool]], list[str]]:
    """Relations and attributes as `about_of` gives them; none where they are absent."""
    relations, attributes = about.get("relations", ()), about.get("attributes", ())
    try:
        keys = [(name, behaviour) for name, behaviour in relations]
        fits = all(isinstance(n, str) and b in (False, True) for n, b in keys)
    except (TypeError, ValueError):
        fits = False
    for name, value, right, allowed in (
        ("relations", relations, fits, "a list of [name, whether it is a behaviour]"),
        ("attributes", attributes, _texts(attributes), "a list of names"),
    ):
        if not right:
            mend = f"Take it out of the graph, or give it another name than {name!r}."
            raise DataError([Fault("graph", None, name, f"{value!r:.80}", allowed, mend)])
    return [(name, bool(behaviour)) for name, behaviour in dict.fromkeys(keys)], list(attributes)


def _texts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values)
