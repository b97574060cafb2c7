"""A graph in numbers: what it holds, how it hangs together, and what in it says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from kgrank.kg.graph import KnowledgeGraph

QUANTILES = (0, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
EXAMPLES = 5


@dataclass(frozen=True)
class RelationStats:
    """One relation in numbers.

    Attributes:
        relation: its name.
        behaviour: whether its edges are events of users.
        edges: how many.
        heads, tails: how many different nodes they leave, and reach.
        pairs: how many different pairs of head and tail; fewer than edges where events repeat.
    """

    relation: str
    behaviour: bool
    edges: int
    heads: int
    tails: int
    pairs: int


@dataclass(frozen=True)
class GraphStats:
    """A graph in numbers.

    Attributes:
        nodes: node type → how many.
        edges: relation → how many.
        relations: each relation by itself; an event kind and an attribute of one name are two.
        degrees: node type → the degree's `QUANTILES` (edges both ways).
        components: how many groups of nodes no edge leads out of, whatever its direction.
        largest_component: how many nodes the largest of them has.
        isolated_items: items without any edge.
        items_without_knowledge: items without any edge but events.
        entities_of_no_item: entities that touch no item.
        entities_of_one_item: entities that touch a single item and so connect nothing.
        entities_of_all_items: entities that touch every item and so tell none apart.
        examples: for each of the last five the first ids, at most `EXAMPLES`.
    """

    nodes: dict[str, int]
    edges: dict[str, int]
    relations: tuple[RelationStats, ...]
    degrees: dict[str, tuple[float, ...]]
    components: int
    largest_component: int
    isolated_items: int
    items_without_knowledge: int
    entities_of_no_item: int
    entities_of_one_item: int
    entities_of_all_items: int
    examples: dict[str, tuple[str, ...]]


def graph_stats(graph: KnowledgeGraph) -> GraphStats:
    """Counts, degrees, and what connects nothing."""
    types, degree = graph.nodes.types, graph.degree()
    relations = _relations(graph)
    edges: dict[str, int] = {}
    for one in relations:
        edges[one.relation] = edges.get(one.relation, 0) + one.edges
    nodes, degrees = {}, {}
    for number, name in enumerate(graph.nodes.type_names):
        of_type = degree[types == number]
        nodes[name] = len(of_type)
        if len(of_type):
            degrees[name] = tuple(float(q) for q in np.quantile(of_type, QUANTILES))
    n = len(graph.nodes)
    ones = np.broadcast_to(np.int8(1), graph.tails.shape)
    links = csr_array((ones, graph.tails, graph.indptr), shape=(n, n))
    components, member_of = connected_components(links, directed=True, connection="weak")
    known = graph.item_entity_matrix(graph.items)
    touched = np.zeros(n, dtype=np.int64)
    touched[known.columns] = np.bincount(known.matrix.indices, minlength=len(known.columns))
    items, entities = graph.nodes.item_nodes, graph.nodes.entity_nodes
    told = np.zeros(n, dtype=bool)
    told[items] = np.diff(known.matrix.indptr) > 0
    silent: dict[str, NDArray[np.int32]] = {
        "isolated_items": items[degree[items] == 0],
        "items_without_knowledge": items[~told[items]],
        "entities_of_no_item": entities[touched[entities] == 0],
        "entities_of_one_item": entities[touched[entities] == 1],
        "entities_of_all_items": entities[(touched[entities] == len(items)) & (len(items) > 0)],
    }
    return GraphStats(
        nodes=nodes,
        edges=edges,
        relations=relations,
        degrees=degrees,
        components=int(components),
        largest_component=int(np.bincount(member_of).max(initial=0)),
        **{name: len(found) for name, found in silent.items()},
        examples={
            name: tuple(graph.node(int(number)).id for number in found[:EXAMPLES])
            for name, found in silent.items()
        },
    )


def _relations(graph: KnowledgeGraph) -> tuple[RelationStats, ...]:
    every = graph.edge_list()
    found = []
    for number, name in enumerate(graph.relations):
        own = np.flatnonzero(every.relations == number)
        heads, tails = every.heads[own], every.tails[own]
        pairs = np.unique(heads.astype(np.int64) * len(graph.nodes) + tails)
        counts = len(own), len(np.unique(heads)), len(np.unique(tails)), len(pairs)
        found.append(RelationStats(name, bool(graph.behaviours[number]), *counts))
    return tuple(found)
