"""Writing a graph into a server that speaks Bolt: in parts, and only those that differ.

The layout is that of `kgrank.kg.graph_server`. Each new part is one transaction, and so are a few
that differ from what is there; it looks what is there before it writes: tried again, or run after
an export that was killed, it does nothing twice.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kgrank.errors import DataError, Fault
from kgrank.kg.bolt import Server, quoted
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_server import FORMAT, read_mark, refusal
from kgrank.kg.node_scores import NodeScores
from kgrank.kg.node_vectors import NodeVectors, hashes
from kgrank.kg.part_writing import EDGES_PROPERTY, UNKNOWN, PartWriter
from kgrank.kg.parts import KINDS, Parts
from kgrank.progress import Progress, silent

if TYPE_CHECKING:
    import neo4j

PART_ROWS = 2_000
"""Nodes or edges in a part, about, when a graph is first written."""
MIN_PARTS = 16
MAX_GROWTH = 10
"""How many times as many there may be later, before all is written anew in more parts."""
TOGETHER = 8
"""Parts that are there already and differ, in one transaction: they change by little, mostly."""
MAX_ID_BYTES = 8_000
"""What Neo4j's indexes take."""


@dataclass
class Written:
    """What an export did.

    Attributes:
        generation: how many times the server has got another graph.
        fingerprint: `KnowledgeGraph.fingerprint` of what is there now.
        nodes_written, nodes_removed: nodes made or changed, and taken out.
        edges_written, edges_removed: edges made and taken out.
        parts, parts_written: how many parts there are, of nodes, of edges and, where there are
            any, of scores; how many differed.
        vectors: property → how many nodes have it.
        scores: how many places of lists there are now.
        scores_written, scores_removed: places of lists made and taken out.
    """

    generation: int = 0
    fingerprint: str = ""
    nodes_written: int = 0
    nodes_removed: int = 0
    edges_written: int = 0
    edges_removed: int = 0
    parts: int = 0
    parts_written: int = 0
    vectors: dict[str, int] = field(default_factory=dict)
    scores: int = 0
    scores_written: int = 0
    scores_removed: int = 0


def write_graph(
    graph: KnowledgeGraph,
    server: Server,
    vectors: NodeVectors | None = None,
    scores: NodeScores | None = None,
    progress: Progress = silent,
    *,
    repair: bool = False,
) -> Written:
    """Let the server hold exactly this graph.

    Args:
        graph: what is written.
        server: an open connection.
        vectors: what else the nodes get; properties written before and not given now are removed.
        scores: lists that users get, made for this very graph; those written before go.
        progress: called with (stage, done, total).
        repair: trust no hash of the server's: look at all that is there, and mend what others have
            changed since it was written.

    Raises:
        DataError: the name of a relation or an id is none that a server takes; nothing is written.
        StoreError: the server holds nodes of these labels that are no export, another export has
            begun meanwhile, or the server cannot be reached or refuses. What was written stays,
            and the next export goes on from there.
    """
    for name in graph.relations:
        quoted(name)
    for vocabulary in (graph.users, graph.items, graph.entities):
        for id_ in vocabulary.array.to_pylist():
            if len(id_) * 4 > MAX_ID_BYTES and (n := len(id_.encode())) > MAX_ID_BYTES:
                raise DataError([_too_long(id_, n)])
    vectors = vectors or NodeVectors({})
    scores = scores or NodeScores.none()
    mark = read_mark(server)
    done = Written(fingerprint=graph.fingerprint(), scores=len(scores))
    said = {
        "fingerprint": done.fingerprint,
        "vectors_hash": vectors.fingerprint(),
        "scores_hash": scores.fingerprint(graph),
    }
    rows = max(len(graph.nodes), graph.n_edges)
    n = max(MIN_PARTS, -(-rows // PART_ROWS))
    if mark is None:
        _refuse_others(server)
        _make_schema(server)
    elif n > int(mark["parts"]) * MAX_GROWTH:
        _clear(server, int(mark["parts"]), progress)
        mark = None
    else:
        n = int(mark["parts"])
    of_nodes = vectors.of_nodes(graph)
    done.vectors = {name: int((rows >= 0).sum()) for name, (rows, _) in of_nodes.items()}
    done.parts = (3 if len(scores) else 2) * n
    repair = mark is not None and (repair or bool(mark.get("repairing")))
    if mark and not repair and said == {name: mark.get(name, "") for name in said}:
        done.generation = int(mark["generation"])
        return done
    parts = Parts(graph, n, hashes(of_nodes, len(graph.nodes)), scores)
    before = json.loads(mark["vectors"]) if mark else []
    writing = _Writing(server, parts, of_nodes, list(dict.fromkeys([*before, *of_nodes])), done)
    writing.begin(repair)
    if repair:
        writing.forget(progress)
    writing.stage("nodes", progress)
    writing.stage("edges", progress)
    writing.stage("scores", progress)
    writing.finish(said)
    return done


def _too_long(id_: str, n: int) -> Fault:
    found, allowed = f"an id of {n:,} bytes ({id_[:20]!r}…)", f"{MAX_ID_BYTES:,} bytes"
    mend = "A server's index holds no longer one: shorten it."
    return Fault("graph", None, None, found, allowed, mend)


def _refuse_others(server: Server) -> None:
    """Raises StoreError if there are nodes of our labels that no export has written."""
    for label in KINDS:
        if n := int(server.read(f"MATCH (n:{label}) RETURN count(n)")[0][0]):
            found = f"{n:,} nodes labelled {label} that are no export of kgrank"
            mend = "Name another database; to train from this one, map its labels in [neo4j]"
            raise refusal(server, found, "none of them", mend)


def _make_schema(server: Server) -> None:
    for label in (*KINDS, "KgrankGraph", "KgrankPart"):
        server.schema(
            f"CREATE CONSTRAINT kgrank_{label.lower()}_id IF NOT EXISTS "
            f"FOR (n:{label}) REQUIRE n.id IS UNIQUE"
        )
    for label in KINDS:
        server.schema(
            f"CREATE INDEX kgrank_{label.lower()}_part IF NOT EXISTS "
            f"FOR (n:{label}) ON (n.kgrank_part)"
        )


def _clear(server: Server, parts: int, progress: Progress) -> None:
    """Remove what was exported; the mark goes last, so that a clearing cut short is known."""
    forget = "MATCH (p:KgrankPart) SET p.hash = $hash"
    server.write(lambda tx: tx.run(forget, hash=UNKNOWN).consume())
    server.write(lambda tx: tx.run("MATCH (g:KgrankGraph) SET g.fingerprint = ''").consume())
    for part in range(parts):
        progress("clearing", part, parts)
        for label in KINDS:
            server.write(partial(_remove_part, label=label, part=part))
    progress("clearing", parts, parts)
    server.write(lambda tx: tx.run("MATCH (p:KgrankPart) DELETE p").consume())
    server.write(lambda tx: tx.run("MATCH (g:KgrankGraph) DELETE g").consume())


def _remove_part(tx: neo4j.ManagedTransaction, label: str, part: int) -> None:
    tx.run(
        f"MATCH (n:{label} {{kgrank_part: $part}})<-[]-(h) WHERE h.kgrank_part IS NOT NULL "
        f"SET h.{EDGES_PROPERTY} = null",  # should the clearing be cut short
        part=part,
    ).consume()
    tx.run(f"MATCH (n:{label} {{kgrank_part: $part}}) DETACH DELETE n", part=part).consume()


class _Writing:
    """One export under way."""

    def __init__(
        self,
        server: Server,
        parts: Parts,
        vectors: dict[str, tuple[NDArray[np.int32], Any]],
        properties: Sequence[str],
        done: Written,
    ) -> None:
        self.server, self.parts, self.vectors, self.done = server, parts, vectors, done
        self.properties = properties  # of vectors, those that are to be removed too
        self.of_parts = PartWriter(server, parts, vectors, properties)
        self.writer = uuid.uuid4().hex

    def begin(self, repair: bool) -> None:
        """Say that the graph is being written, by this export, and whether nothing is trusted."""
        graph = self.parts.graph
        keys = list(zip(graph.relations, graph.behaviours.tolist(), strict=True))
        heads = sorted(set(self.parts.kinds[graph.edge_list().heads].tolist()))
        about = {
            "format": FORMAT,
            "parts": self.parts.n,
            "writer": self.writer,
            "fingerprint": "",
            "relations": json.dumps(keys),
            "attributes": json.dumps(graph.attributes),
            "heads": json.dumps([KINDS[head] for head in heads]),
            "vectors": json.dumps(self.properties),
            "vectors_hash": "",
            "scores_hash": "",
            "repairing": repair,
        }
        told = ", ".join(f"g.{name} = ${name}" for name in about)
        query = (
            f"MERGE (g:KgrankGraph {{id: 'graph'}}) SET {told}, "
            "g.generation = coalesce(g.generation, 0)"
        )
        self.server.write(lambda tx: tx.run(query, about).consume())

    def forget(self, progress: Progress) -> None:
        """Forget the hashes of all nodes and parts, so that everything is looked at.

        The mark says so until the export has ended; one that is cut short begins here again.
        """
        for part in range(self.parts.n):
            progress("repair", part, self.parts.n)
            self.server.write(partial(self._forget, part=part))
        progress("repair", self.parts.n, self.parts.n)

    def _forget(self, tx: neo4j.ManagedTransaction, part: int) -> None:
        self._own(tx)
        for label in KINDS:
            query = (
                f"MATCH (n:{label} {{kgrank_part: $part}}) "
                f"SET n.kgrank_hash = null, n.{EDGES_PROPERTY} = null"
            )
            tx.run(query, part=part).consume()
        tx.run(
            "UNWIND $keys AS key MATCH (p:KgrankPart {id: key}) SET p.hash = $hash",
            keys=[f"{of}-{part}" for of in ("nodes", "edges", "scores")],
            hash=UNKNOWN,
        ).consume()

    def finish(self, said: Mapping[str, str]) -> None:
        """Say that all is whole, and what it is."""

        def work(tx: neo4j.ManagedTransaction) -> int:
            mark = self._own(tx)
            if mark["fingerprint"]:  # done already, and the answer was lost
                return int(mark["generation"])
            about = {
                **said,
                "generation": int(mark["generation"]) + 1,
                "vectors": json.dumps(list(self.vectors)),
                "repairing": False,
            }
            told = ", ".join(f"g.{name} = ${name}" for name in about)
            tx.run(f"MATCH (g:KgrankGraph {{id: 'graph'}}) SET {told}", about).consume()
            return int(mark["generation"]) + 1

        self.done.generation = self.server.write(work)

    def stage(self, name: str, progress: Progress) -> None:
        """Write the parts of the nodes, the edges or the scores that differ from the server's."""
        known = dict(self.server.read("MATCH (p:KgrankPart) RETURN p.id, p.hash"))
        n = self.parts.n
        hash_of = {
            "nodes": self.parts.node_hash,
            "edges": self.parts.edge_hash,
            "scores": self.parts.score_hash,
        }[name]
        waiting: dict[str, tuple[int, str]] = {}
        for part in range(n):
            progress(name, part, n)
            key = f"{name}-{part}"
            hash_ = hash_of(part)
            if known.get(key, "") == hash_:
                continue
            if key not in known:
                self._write(name, {key: (part, hash_)})
                continue
            waiting[key] = part, hash_
            if len(waiting) == TOGETHER:
                self._write(name, waiting)
                waiting = {}
        self._write(name, waiting)
        progress(name, n, n)

    def _write(self, name: str, parts: Mapping[str, tuple[int, str]]) -> None:
        """Write parts (key → number and hash) in one transaction."""
        if not parts:
            return
        counts = self.server.write(partial(self._parts, name=name, parts=parts))
        self.done.parts_written += len(parts)
        for what, count in counts.items():
            setattr(self.done, what, getattr(self.done, what) + count)

    def _own(self, tx: neo4j.ManagedTransaction) -> dict[str, Any]:
        """The mark; raises StoreError if another export has begun."""
        record = tx.run("MATCH (g:KgrankGraph {id: 'graph'}) RETURN properties(g)").single()
        mark: dict[str, Any] = record[0] if record else {}
        if mark.get("writer") != self.writer:
            mend = "Let that one end, then export again"
            raise refusal(self.server, "another export that began later", "one at a time", mend)
        return mark

    def _parts(
        self, tx: neo4j.ManagedTransaction, name: str, parts: Mapping[str, tuple[int, str]]
    ) -> Counter[str]:
        """Write parts and their hashes, but those that are written already."""
        self._own(tx)
        query = "UNWIND $keys AS key MATCH (p:KgrankPart {id: key}) RETURN p.id, p.hash"
        there = {record[0]: record[1] for record in tx.run(query, keys=list(parts))}
        left = {key: told for key, told in parts.items() if there.get(key) != told[1]}
        if not left:
            return Counter()
        write = {
            "nodes": self.of_parts.nodes,
            "edges": self.of_parts.edges,
            "scores": self.of_parts.scores,
        }[name]
        counts = write(tx, [part for part, _ in left.values()], not there)
        rows = [{"id": key, "hash": hash_} for key, (_, hash_) in left.items()]
        query = "UNWIND $rows AS row MERGE (p:KgrankPart {id: row.id}) SET p.hash = row.hash"
        tx.run(query, rows=rows).consume()
        return counts
