"""The knowledge graph: one typed, immutable value of users, items, entities and their edges."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from kgrank.errors import ConfigError, ModelError, UnknownIdError
from kgrank.kg import exchange
from kgrank.kg.building import (
    Edges,
    Facts,
    GraphSettings,
    attribute_columns,
    attribute_facts,
    behaviour_facts,
    sorted_edges,
    triple_facts,
    with_entity_table,
)
from kgrank.kg.exchange import ItemEntityMatrix
from kgrank.kg.stats import GraphStats, graph_stats
from kgrank.kg.tables import Tables
from kgrank.kg.vocabulary import Node, Nodes, Vocabulary, read_only

if TYPE_CHECKING:
    import networkx
    from torch_geometric.data import HeteroData

__all__ = ["Edge", "GraphSettings", "GraphStats", "ItemEntityMatrix", "KnowledgeGraph", "Neighbors"]

Direction = Literal["out", "in", "both"]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The edges at one node, by number; of "both", those that leave it come first.

    Attributes:
        nodes: (n,) int32, the node at the other end of each.
        relations: (n,) uint8 or int16, places in `KnowledgeGraph.relations`.
        weights: (n,) float32.
        times: (n,) uint32 seconds UTC, 0 = none.
        edges: (n,) int32 edge numbers.
    """

    nodes: NDArray[np.int32]
    relations: NDArray[np.integer]
    weights: NDArray[np.float32]
    times: NDArray[np.uint32]
    edges: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True)
class Edge:
    """One edge as it is stored. `head` and `tail` are node numbers; `time` 0 = none."""

    head: int
    relation: str
    tail: int
    weight: float
    time: int


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """A typed, directed multigraph in compressed rows both ways; nothing in it ever changes.

    Nodes are numbered over all types (`nodes`), edges by (head, relation, tail, time, weight):

        edge number      0  1  2 | 3  4 | …       forward: node v owns the edges
        tails            5  6  6 | 5  7 | …       indptr[v] to indptr[v + 1]
        edge_relations   0  0  1 | 0  2 | …
        weights, times   …
        reverse_edges    0  3 | 1  2 | 4 | …      backward: node v is the tail of
        reverse_heads    0  1 | 0  0 | 1 | …      reverse_edges[reverse_indptr[v]:…[v + 1]]

    An event kind and an attribute may share a name; they are two relations then, told apart by
    `behaviours`. Where all weights or all times are the same, their array is a view of one number.

    Attributes:
        nodes: types, ids and names.
        relations: the name of each relation number.
        behaviours: (n_relations,) bool: events of users (else: knowledge).
        attributes: the attribute columns; an id "brand:X" belongs to the attribute `brand`.
        indptr: (n_nodes + 1,) int32.
        tails: (n_edges,) int32 node numbers.
        edge_relations: (n_edges,) uint8, or int16 where there are more than 256 relations.
        weights: (n_edges,) float32.
        times: (n_edges,) uint32 seconds UTC, 0 = none.
        reverse_indptr: (n_nodes + 1,) int32.
        reverse_edges: (n_edges,) int32 edge numbers, ascending within a tail.
        reverse_heads: (n_edges,) int32: the heads of `reverse_edges`.
    """

    nodes: Nodes
    relations: tuple[str, ...]
    behaviours: NDArray[np.bool_]
    attributes: tuple[str, ...]
    indptr: NDArray[np.int32]
    tails: NDArray[np.int32]
    edge_relations: NDArray[np.integer]
    weights: NDArray[np.float32]
    times: NDArray[np.uint32]
    reverse_indptr: NDArray[np.int32]
    reverse_edges: NDArray[np.int32]
    reverse_heads: NDArray[np.int32]

    @classmethod
    def from_tables(cls, tables: Tables, settings: GraphSettings | None = None) -> KnowledgeGraph:
        """The graph of a shop's tables.

        All events make edges but those of the split "test"; to hide the valid split too, pass
        tables without it. Users and items that occur only in events are nodes as well; every
        row of the entities table is a node. Attributes, triples: `kgrank.kg.building`.

        Raises:
            DataError: an id comes twice in a table, a time or weight is out of range, or a type
                name is reserved.
            ConfigError: settings name columns that are not there, or bin text; a line for each.
        """
        settings = settings or GraphSettings()
        _check_named(settings, [*tables.items.columns, *tables.users.columns])
        of_items = attribute_columns(tables, "items", settings)
        of_users = attribute_columns(tables, "users", settings)
        attributes = tuple(sorted({*of_items, *of_users}))
        user_ids, item_ids = tables.users["user_id"], tables.items["item_id"]
        nodes = Nodes.empty().with_users(user_ids).with_items(item_ids, tables.items["title"])
        nodes, behaviour = behaviour_facts(nodes, tables.events)
        nodes = with_entity_table(nodes, tables, attributes)
        items = nodes.item_nodes[nodes.items.numbers(item_ids)]
        users = nodes.user_nodes[nodes.users.numbers(user_ids)]
        facts = [behaviour]
        for owners, columns in ((items, of_items), (users, of_users)):
            for column, values in columns.items():
                nodes, described = attribute_facts(nodes, owners, column, values)
                facts.append(described)
        nodes, given = triple_facts(nodes, tables.triples, attributes)
        empty = cls.from_edges(Nodes.empty(), (), np.empty(0, bool), attributes, Edges.empty())
        return empty._with_facts(nodes, [*facts, given])

    @classmethod
    def from_edges(
        cls,
        nodes: Nodes,
        relations: Sequence[str],
        behaviours: NDArray[np.bool_],
        attributes: Sequence[str],
        edges: Edges,
    ) -> KnowledgeGraph:
        """A graph of edges in any order, their numbers within bounds.

        Raises:
            ModelError: there are too many edges or relations for the arrays' types.
        """
        if len(edges) > np.iinfo(np.int32).max:
            raise ModelError(
                f"found {len(edges)} edges; allowed: 2147483647. Leave old events out."
            )
        if len(relations) > np.iinfo(np.int16).max:
            raise ModelError(
                f"found {len(relations)} relations; allowed: 32767. Is `event` or `relation` a "
                "free text?"
            )
        n = len(nodes)
        edges = sorted_edges(edges, n, behaviours)
        narrow = np.uint8 if len(relations) <= 256 else np.int16
        indptr = np.zeros(n + 1, dtype=np.int32)
        np.cumsum(np.bincount(edges.heads, minlength=n), dtype=np.int32, out=indptr[1:])
        numbers = np.arange(len(edges), dtype=np.int32)
        by_tail = sparse.csr_array((numbers, edges.tails, indptr), shape=(n, n)).tocsc()
        return cls(
            nodes,
            tuple(relations),
            read_only(behaviours.copy()),
            tuple(attributes),
            read_only(indptr),
            read_only(edges.tails),
            read_only(edges.relations.astype(narrow, copy=False)),
            read_only(_held_once(edges.weights)),
            read_only(_held_once(edges.times)),
            read_only(by_tail.indptr),
            read_only(by_tail.data),
            read_only(by_tail.indices),
        )

    def with_events(self, events: pd.DataFrame) -> KnowledgeGraph:
        """A graph with the events added (see `behaviour_facts`); node numbers stay as they are.

        An entity whose id now gets an event as an item stays an entity, with its triples; the
        item is a node of its own.

        Raises:
            DataError: a time lies outside 1970 to 2106, or a value outside ±3.4e38.
        """
        nodes, facts = behaviour_facts(self.nodes, events)
        return self._with_facts(nodes, [facts])

    def with_triples(self, triples: pd.DataFrame) -> KnowledgeGraph:
        """A graph with the triples added (see `triple_facts`); node numbers stay as they are.

        Raises:
            DataError: a weight lies outside ±3.4e38.
        """
        nodes, facts = triple_facts(self.nodes, triples, self.attributes)
        return self._with_facts(nodes, [facts])

    def _with_facts(self, nodes: Nodes, facts: Iterable[Facts]) -> KnowledgeGraph:
        """`nodes` hold this graph's nodes under their numbers; new relations go to the end."""
        facts = [fact for fact in facts if len(fact.edges)]
        said = {(name, fact.behaviour) for fact in facts for name in fact.names}
        keys = list(zip(self.relations, self.behaviours.tolist(), strict=True))
        keys += sorted(said - set(keys), key=lambda key: (not key[1], key[0]))
        number_of = {key: number for number, key in enumerate(keys)}
        parts = [self.edge_list()]
        for fact in facts:
            own = [number_of[name, fact.behaviour] for name in fact.names]
            numbers = np.array(own, dtype=np.int32)
            parts.append(replace(fact.edges, relations=numbers[fact.edges.relations]))
        return self.from_edges(
            nodes,
            [name for name, _ in keys],
            np.array([behaviour for _, behaviour in keys], dtype=bool),
            self.attributes,
            Edges.concatenated(parts),
        )

    def __repr__(self) -> str:
        return (
            f"KnowledgeGraph({len(self.nodes)} nodes, {self.n_edges} edges, "
            f"{len(self.relations)} relations)"
        )

    @property
    def users(self) -> Vocabulary:
        """The users' ids; `nodes.user_nodes` gives their nodes."""
        return self.nodes.users

    @property
    def items(self) -> Vocabulary:
        """The items' ids; `nodes.item_nodes` gives their nodes."""
        return self.nodes.items

    @property
    def entities(self) -> Vocabulary:
        """The entities' ids; `nodes.entity_nodes` gives their nodes."""
        return self.nodes.entities

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return len(self.tails)

    @property
    def bytes_per_edge(self) -> float:
        """Bytes of the arrays of both directions over edges: at most 22 and 8 · nodes / edges.

        One less with up to 256 relations, four less where all weights are the same, and four
        where all times are.
        """
        arrays = (
            *(self.indptr, self.tails, self.edge_relations, self.weights, self.times),
            *(self.reverse_indptr, self.reverse_edges, self.reverse_heads),
        )
        held = (array.nbytes if any(array.strides) else array.itemsize for array in arrays)
        return sum(held) / max(self.n_edges, 1)

    def node(self, number: int) -> Node:
        """Type, id and name of a node; raises UnknownIdError if no node has this number."""
        return self.nodes.node(number)

    def node_number(self, type_: str, id_: str) -> int:
        """The number of the node of this type and id; raises UnknownIdError if there is none."""
        return self.nodes.node_number(type_, id_)

    def edge(self, number: int) -> Edge:
        """One edge by its number.

        Raises:
            UnknownIdError: no edge has this number.
        """
        if not 0 <= number < self.n_edges:
            raise UnknownIdError(
                f"found edge number {number}; allowed: 0 to {self.n_edges - 1}. Take it from "
                "neighbors() or item_entity_matrix() of the same graph."
            )
        return Edge(
            int(np.searchsorted(self.indptr, number, side="right")) - 1,
            self.relations[int(self.edge_relations[number])],
            int(self.tails[number]),
            float(self.weights[number]),
            int(self.times[number]),
        )

    def edge_list(self) -> Edges:
        """All edges in the order of their numbers, with their heads written out."""
        heads = np.repeat(np.arange(len(self.nodes), dtype=np.int32), np.diff(self.indptr))
        return Edges(heads, self.edge_relations, self.tails, self.weights, self.times)

    def neighbors(
        self, node: int, relation: str | None = None, direction: Direction = "out"
    ) -> Neighbors:
        """The edges at a node: those it is the head of ("out"), the tail of ("in"), or "both".

        Raises:
            UnknownIdError: no node has this number.
            ModelError: the graph has no such relation, or there is no such direction.
        """
        self.nodes.check(node)
        if direction not in get_args(Direction):
            raise ModelError(f"found direction {direction!r}; allowed: out, in, both.")
        start, end = self.indptr[node], self.indptr[node + 1]
        edges, ends = np.arange(start, end, dtype=np.int32), self.tails[start:end]
        if direction != "out":
            start, end = self.reverse_indptr[node], self.reverse_indptr[node + 1]
            incoming, heads = self.reverse_edges[start:end], self.reverse_heads[start:end]
            both = direction == "both"
            edges = np.concatenate([edges, incoming]) if both else incoming
            ends = np.concatenate([ends, heads]) if both else heads
        if relation is not None:
            kept = np.isin(self.edge_relations[edges], self._relation_numbers(relation))
            edges, ends = edges[kept], ends[kept]
        return self._at(edges, ends)

    def behaviour_edges(self, user: int) -> Neighbors:
        """The events of the user with this node number, by (event kind, item, time).

        Raises:
            UnknownIdError: no node has this number.
        """
        self.nodes.check(user)
        start, end = self.indptr[user], self.indptr[user + 1]
        events = self.behaviours[self.edge_relations[start:end]]
        edges = np.arange(start, end, dtype=np.int32)[events]
        return self._at(edges, self.tails[edges])

    def _at(self, edges: NDArray[np.int32], ends: NDArray[np.int32]) -> Neighbors:
        relations, weights = self.edge_relations[edges], self.weights[edges]
        arrays = (ends, relations, weights, self.times[edges], edges)
        return Neighbors(*(read_only(array.view()) for array in arrays))

    def _relation_numbers(self, name: str) -> list[int]:
        numbers = [number for number, known in enumerate(self.relations) if known == name]
        if not numbers:
            close = difflib.get_close_matches(name, self.relations, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "See graph.relations."
            raise ModelError(
                f"found relation {name!r}; allowed: {', '.join(self.relations)}. {hint}"
            )
        return numbers

    def degree(self, direction: Direction = "both") -> NDArray[np.int32]:
        """(n_nodes,) int32: how many edges leave each node ("out"), reach it ("in"), or both."""
        leaving, reaching = np.diff(self.indptr), np.diff(self.reverse_indptr)
        return {"out": leaving, "in": reaching, "both": leaving + reaching}[direction]

    def item_entity_matrix(self, items: Vocabulary) -> ItemEntityMatrix:
        """What is known of the items; see `kgrank.kg.exchange.item_entity_matrix`."""
        return exchange.item_entity_matrix(self, items)

    def stats(self) -> GraphStats:
        """See `kgrank.kg.stats.graph_stats`."""
        return graph_stats(self)

    def fingerprint(self) -> str:
        """The sha256 of what the graph says, whatever the numbers of nodes and relations."""
        from kgrank.kg.storage import fingerprint

        return fingerprint(self)

    def equals(self, other: KnowledgeGraph) -> bool:
        """Whether both graphs hold the same nodes and edges."""
        return self.fingerprint() == other.fingerprint()

    def to_networkx(self) -> networkx.MultiDiGraph[tuple[str, str]]:
        """See `kgrank.kg.exchange.to_networkx`; `from_networkx` there makes a graph of it again."""
        return exchange.to_networkx(self)

    def to_pyg(self) -> HeteroData:
        """See `kgrank.kg.pyg.to_pyg`; `kgrank.kg.pyg.from_pyg` makes a graph of it again."""
        from kgrank.kg.pyg import to_pyg

        return to_pyg(self)

    def save(self, folder: Path) -> None:
        """See `kgrank.kg.storage.save`."""
        from kgrank.kg.storage import save

        save(self, folder)

    @staticmethod
    def load(folder: Path) -> KnowledgeGraph:
        """See `kgrank.kg.storage.load`."""
        from kgrank.kg.storage import load

        return load(folder)


def _held_once(numbers: NDArray[T]) -> NDArray[T]:
    """The same numbers (n,); in the memory of one where all of them are the same."""
    if len(numbers) and (numbers == numbers[0]).all():
        return np.broadcast_to(numbers[:1].copy(), numbers.shape)
    return numbers


def _check_named(settings: GraphSettings, columns: Sequence[str]) -> None:
    """Raises ConfigError, a line for each column of neither items nor users that is named."""
    usual: tuple[str, ...] = GraphSettings.model_fields["ignore"].default
    ignored = (name for name in settings.ignore if name not in usual)
    faults = []
    for name in (*settings.bins, *settings.categorical, *ignored):
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Correct or remove it."
            faults.append(
                f"[kg] names the column {name!r}: found no such column; allowed: "
                f"{', '.join(dict.fromkeys(columns))}. {hint}"
            )
    if faults:
        raise ConfigError("\n".join(faults))
