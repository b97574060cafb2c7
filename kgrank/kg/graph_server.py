"""The graph in a server that speaks Bolt: written whole or by what changed, and read back.

    (:User {id, name})  (:Item {id, name})  (:Entity {id, name, type})
    (head)-[:`relation` {weight, time, behaviour}]->(tail)       time: seconds UTC, 0 = none
    (:User)-[:RECOMMENDED {score, rank, kgrank_model}]->(:Item)  lists, where they were asked for

Every node also has `kgrank_part`, `kgrank_hash` (of itself) and `kgrank_edges` (a hash of the edges
that leave it). One `:KgrankGraph` says which graph it is, and one `:KgrankPart` for each part
(`kgrank.kg.parts`) has the hash of what that part holds. A part is written in one transaction, its
hashes with it; so an export that was cut short is gone on with by running it again, and one that
differs in little reads and writes little. The three labels belong to the export: what others relate
by them is removed when the edges of that node change. A relationship that has `kgrank_model` is a
place in a model's list: no part of the graph, and never read as one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from kgrank.errors import DataError, StoreError
from kgrank.kg.bolt import Server
from kgrank.kg.building import Edges
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.node_scores import MODEL_PROPERTY
from kgrank.kg.parts import KINDS
from kgrank.kg.storage import nodes_of_columns
from kgrank.kg.vocabulary import Nodes
from kgrank.progress import Progress, silent

T = TypeVar("T")

FORMAT = 2
"""The layout that is written. Nodes of layout 1, which is read too, had no `kgrank_edges`."""
_CONNECTIONS = 2  # that read at a time: while one waits, another unpacks


def read_graph(server: Server, progress: Progress = silent) -> KnowledgeGraph:
    """The graph that `write_graph` wrote, proved by its fingerprint.

    Raises:
        StoreError: there is none, it is only half written, it is not what was written (others
            have changed it), or the server cannot be reached.
    """
    mark = read_mark(server)
    if mark is None:
        raise refusal(server, "no graph of kgrank", "one that was exported", "Export it first")
    if not mark["fingerprint"]:
        mend = "Run the export again: it goes on where it stopped"
        raise refusal(server, "a graph that is not wholly written", "a whole one", mend)
    changed = "another graph than was written"
    mend = "Somebody has changed it, or writes it just now. Export it again with --repair"
    try:
        graph = _read(server, mark, progress)
    except (DataError, KeyError, TypeError, ValueError) as error:  # pyarrow's are of these too
        raise refusal(server, f"{changed} ({error})", mark["fingerprint"], mend) from error
    if graph.fingerprint() != mark["fingerprint"]:
        raise refusal(server, changed, f"the fingerprint {mark['fingerprint'][:12]}", mend)
    return graph


def _read(server: Server, mark: Mapping[str, Any], progress: Progress) -> KnowledgeGraph:
    """The graph as it is there; many kinds of error if it is not as it was written."""
    parts = int(mark["parts"])
    columns: list[list[Any]] = [[], [], []]
    for part, kinds in enumerate(_ahead(partial(_read_nodes, server), parts)):
        progress("nodes", part, parts)
        for kind in kinds:
            for column, values in zip(columns, kind, strict=True):
                column.append(pa.array(values, pa.large_string()))
    progress("nodes", parts, parts)
    types, ids, names = (pa.concat_arrays([pa.array([], pa.large_string()), *c]) for c in columns)
    if not len(types) == len(ids) == len(names):
        raise ValueError("a node without id, type or name")
    nodes = nodes_of_columns(types, ids, names)
    relations = [(str(name), bool(behaviour)) for name, behaviour in json.loads(mark["relations"])]
    numbers, found = _Numbers(nodes, relations), [Edges.empty()]
    heads = json.loads(mark["heads"])
    for part, rows in enumerate(_ahead(partial(_read_edges, server, heads), parts)):
        progress("edges", part, parts)
        found += [numbers.edges(*row) for row in rows]
    progress("edges", parts, parts)
    return KnowledgeGraph.from_edges(
        nodes,
        [name for name, _ in relations],
        np.array([behaviour for _, behaviour in relations], dtype=bool),
        json.loads(mark["attributes"]),
        Edges.concatenated(found),
    )


def refusal(server: Server, found: str, allowed: str, mend: str) -> StoreError:
    """What is wrong with the graph in the server."""
    return StoreError(f"{server.address}: found {found}; allowed: {allowed}. {mend}.")


_MARK = "MATCH (g:KgrankGraph {id: 'graph'}) RETURN properties(g)"


def read_mark(server: Server) -> dict[str, Any] | None:
    """What the server says of the graph that it holds; None if there is none."""
    rows = server.read(_MARK)
    if not rows:
        return None
    mark: dict[str, Any] = rows[0][0]
    if mark.get("format") not in (1, FORMAT):
        mend = "Use the kgrank that wrote it, or empty the database"
        found, allowed = f"a graph of format {mark.get('format')!r}", f"1 to {FORMAT}"
        raise refusal(server, found, allowed, mend)
    return mark


_READ_NODES = (
    "MATCH (n:{label} {{kgrank_part: $part}}) RETURN collect(n.id), {type}, collect(n.name)"
)
_EDGES = f"""
WHERE r.{MODEL_PROPERTY} IS NULL
WITH h, r, t, CASE WHEN t:User THEN 'User' WHEN t:Item THEN 'Item' WHEN t:Entity THEN 'Entity'
    END AS kind
WHERE kind IS NOT NULL
RETURN type(r), r.behaviour, kind, collect(h.id), collect(t.id),
    collect(coalesce(r.weight, 'none')), collect(coalesce(r.time, 'none'))
"""
_EDGES_OF_PART = "MATCH (h:{label} {{kgrank_part: $part}})-[r]->(t)" + _EDGES
EDGES_OF_NODES = "UNWIND $ids AS id MATCH (h:{label} {{id: id}})-[r]->(t)" + _EDGES
# a list of each property, for a row an edge would take the driver far longer


def _read_nodes(server: Server, part: int) -> list[tuple[list[str], list[str], list[str]]]:
    """Types, ids and names of the nodes of a part, for each kind."""
    kinds = []
    for label in KINDS:
        type_ = "collect(n.type)" if label == "Entity" else "null"
        query = _READ_NODES.format(label=label, type=type_)
        for ids, types, names in server.read(query, part=part):
            kinds.append((types or [label.lower()] * len(ids), ids, names))
    return kinds


def _read_edges(server: Server, heads: Sequence[str], part: int) -> list[list[Any]]:
    """The edges of a part: label of the head, then a row of `_EDGES`."""
    rows = []
    for label in heads:
        for row in server.read(_EDGES_OF_PART.format(label=label), part=part):
            rows.append([label, *row])
    return rows


def _ahead(work: Callable[[int], T], n: int) -> Iterator[T]:
    """The results of `work` for 0 to n - 1: a few are asked for while others are looked at."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        waiting: deque[Future[T]] = deque()
        for part in range(n):
            waiting.append(pool.submit(work, part))
            if len(waiting) > 2 * _CONNECTIONS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Numbers:
    """From ids and names to the numbers of a graph."""

    def __init__(self, nodes: Nodes, relations: Sequence[tuple[str, bool]]) -> None:
        kinds = (
            (nodes.users, nodes.user_nodes),
            (nodes.items, nodes.item_nodes),
            (nodes.entities, nodes.entity_nodes),
        )
        self._kinds = dict(zip(KINDS, kinds, strict=True))
        self._relations = {key: number for number, key in enumerate(relations)}

    def edges(
        self,
        head: str,
        relation: str,
        behaviour: bool,
        tail: str,
        heads: list[str],
        tails: list[str],
        weights: list[float],
        times: list[int],
    ) -> Edges:
        """Edges of one relation between two kinds; KeyError or ValueError if they are none."""
        if not len(heads) == len(tails) == len(weights) == len(times):
            raise ValueError("an edge without weight or time")
        number = self._relations[relation, behaviour]
        return Edges(
            self._nodes(head, heads),
            np.full(len(heads), number, dtype=np.int16),
            self._nodes(tail, tails),
            np.array(weights, dtype=np.float32),
            np.array(times, dtype=np.uint32),
        )

    def _nodes(self, kind: str, ids: list[str]) -> Any:
        vocabulary, nodes = self._kinds[kind]
        numbers = vocabulary.numbers(pa.array(ids, pa.large_string()), missing="negative")
        if (numbers < 0).any():
            raise ValueError("an edge of a node that is not there")
        return nodes[numbers]
