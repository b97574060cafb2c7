"""A graph cut into parts with a hash each: two copies differ only in parts whose hashes differ.

Nodes go to parts by a hash of kind and id, so a node stays in its part whatever is added; an edge
goes with its head. Hashes are of ids, names and relations, never of numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kgrank.kg.building import Edges
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.node_scores import NodeScores
from kgrank.kg.vocabulary import ITEM

KINDS = ("User", "Item", "Entity")
"""The three kinds of node, by the label they have in a graph server."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a graph.

    Attributes:
        graph: what is cut.
        n: how many parts there are, of nodes, of edges and of scores each.
        said: (n_nodes,) uint64: a hash of what else is written of each node, such as a vector.
        scored: the lists that users get.
    """

    graph: KnowledgeGraph
    n: int
    said: NDArray[np.uint64]
    scored: NodeScores

    @cached_property
    def ids(self) -> list[str]:
        """(n_nodes,) the nodes' ids."""
        ids: list[str] = self.graph.nodes.ids.to_pylist()
        return ids

    @cached_property
    def names(self) -> list[str]:
        """(n_nodes,) the nodes' names."""
        names: list[str] = self.graph.nodes.names.to_pylist()
        return names

    @cached_property
    def kinds(self) -> NDArray[np.int8]:
        """(n_nodes,) int8: places in `KINDS`."""
        return np.minimum(self.graph.nodes.types, ITEM + 1).astype(np.int8)

    @cached_property
    def keys(self) -> NDArray[np.uint64]:
        """(n_nodes,) uint64: a hash of kind and id."""
        return _hashes(f"{k} {id_}" for k, id_ in zip(self.kinds.tolist(), self.ids, strict=True))

    @cached_property
    def contents(self) -> NDArray[np.uint64]:
        """(n_nodes,) uint64: a hash of type, name and `said`."""
        types, names = self.graph.nodes.types.tolist(), self.graph.nodes.type_names
        return _hashes(
            f"{said} {len(names[type_])} {names[type_]} {name}"
            for said, type_, name in zip(self.said.tolist(), types, self.names, strict=True)
        )

    @cached_property
    def of_nodes(self) -> NDArray[np.int32]:
        """(n_nodes,) int32: the part of each node."""
        return (self.keys % np.uint64(self.n)).astype(np.int32)

    @cached_property
    def _nodes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _grouped(self.of_nodes, self.n)

    @cached_property
    def _edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _grouped(self.of_nodes[self._list.heads], self.n)

    @cached_property
    def _scores(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return _grouped(self.of_nodes[self.scored.users], self.n)

    @cached_property
    def _list(self) -> Edges:
        return self.graph.edge_list()

    @cached_property
    def _relations(self) -> NDArray[np.uint64]:
        keys = zip(self.graph.behaviours.tolist(), self.graph.relations, strict=True)
        return _hashes(f"{behaviour} {name}" for behaviour, name in keys)

    def nodes(self, *parts: int) -> NDArray[np.int64]:
        """(n,) int64: the nodes of parts, in each by number."""
        return _of(self._nodes, parts)

    def edges(self, *parts: int) -> Edges:
        """The edges that leave the nodes of parts, in each in the order of their numbers."""
        return self._list.take(_of(self._edges, parts))

    @cached_property
    def edges_of_heads(self) -> NDArray[np.uint64]:
        """(n_nodes,) uint64: a hash of the edges that leave each node, 0 where there are none."""
        edges = self._list
        # a sum, so that order does not matter and an edge that comes twice counts twice
        mixed = self.keys[edges.tails]
        for column in (
            self._relations[edges.relations],
            edges.times.astype(np.uint64),
            edges.weights.view(np.uint32).astype(np.uint64),
        ):
            mixed = _mixed(mixed ^ column)
        out = np.zeros(len(self.keys), dtype=np.uint64)
        np.add.at(out, edges.heads, mixed)
        return out

    def scores(self, *parts: int) -> NodeScores:
        """The lists of the users of parts."""
        return self.scored.take(_of(self._scores, parts))

    def node_hash(self, part: int) -> str:
        """The hash of the nodes of a part, "" where there are none."""
        nodes = self.nodes(part)
        return _hash_of_rows(self.keys[nodes], self.contents[nodes])

    def edge_hash(self, part: int) -> str:
        """The hash of the edges of a part, "" where there are none."""
        edges = self.edges(part)
        return _hash_of_rows(
            self.keys[edges.heads],
            self._relations[edges.relations],
            self.keys[edges.tails],
            edges.times.astype(np.uint64),
            edges.weights.view(np.uint32).astype(np.uint64),
        )

    def score_hash(self, part: int) -> str:
        """The hash of the lists of a part and of whose they are, "" where there are none."""
        scores = self.scores(part)
        model = _hashes([self.scored.model])
        return _hash_of_rows(
            self.keys[scores.users],
            self.keys[scores.items],
            scores.scores.view(np.uint32).astype(np.uint64),
            scores.ranks.astype(np.uint64),
            np.broadcast_to(model, len(scores)),
        )


def _hashes(texts: Any) -> NDArray[np.uint64]:
    """(n,) uint64: the first 8 bytes of the BLAKE2b of each text."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), which mixes all bits.

    A constant is added first, so that 0 does not stay 0.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _grouped(parts: NDArray[np.int32], n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places (m,) by part, and where each part begins (n + 1,)."""
    starts = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(parts, minlength=n), out=starts[1:])
    return np.argsort(parts, kind="stable"), starts


def _of(
    grouped: tuple[NDArray[np.int64], NDArray[np.int64]], parts: Sequence[int]
) -> NDArray[np.int64]:
    """The places that are in some parts."""
    order, starts = grouped
    return np.concatenate([order[:0], *(order[starts[p] : starts[p + 1]] for p in parts)])


def _hash_of_rows(*columns: NDArray[np.uint64]) -> str:
    """The sha256 (128 bits of it, hex) of rows in any order."""
    if not len(columns[0]):
        return ""
    rows = np.stack(columns, axis=1)[np.lexsort(columns[::-1])]
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<u8").data).hexdigest()[:32]
