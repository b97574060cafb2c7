"""Writing a graph into a server that speaks Bolt: in parts, and only those that differ.

The layout is that of `kgrank.kg.graph_server`. Each part is one transaction, which looks what is
there before it writes: tried again, or run after an export that was killed, it does nothing twice.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kgrank.errors import DataError, Fault
from kgrank.kg.bolt import Server, quoted
from kgrank.kg.building import Edges
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_server import EDGES_OF_PART, FORMAT, read_mark, refusal
from kgrank.kg.node_vectors import NodeVectors, hashes
from kgrank.kg.parts import KINDS, Parts
from kgrank.progress import Progress, silent

if TYPE_CHECKING:
    import neo4j

PART_ROWS = 2_000
"""Nodes or edges in a part, about, when a graph is first written."""
MIN_PARTS = 16
MAX_GROWTH = 10
"""How many times as many there may be later, before all is written anew in more parts."""
MESSAGE_BYTES = 4 << 20
"""What is sent at once, about; Neo4j and its like bound messages."""
MAX_ID_BYTES = 8_000
"""What Neo4j's indexes take."""
_UNKNOWN = "?"  # the hash of a part that was changed by another one's transaction

Link = tuple[str, str, str]
"""Label of the head, relation, label of the tail."""
Fact = tuple[bool, int, float]
"""Behaviour, time and weight of an edge."""


@dataclass
class Written:
    """What an export did.

    Attributes:
        generation: how many times the server has got another graph.
        fingerprint: `KnowledgeGraph.fingerprint` of what is there now.
        nodes_written, nodes_removed: nodes made or changed, and taken out.
        edges_written, edges_removed: edges made and taken out.
        parts, parts_written: how many parts there are, of nodes and of edges; how many differed.
        vectors: property → how many nodes have it.
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


def write_graph(
    graph: KnowledgeGraph,
    server: Server,
    vectors: NodeVectors | None = None,
    progress: Progress = silent,
) -> Written:
    """Let the server hold exactly this graph.

    Args:
        graph: what is written.
        server: an open connection.
        vectors: what else the nodes get; properties written before and not given now are removed.
        progress: called with (stage, done, total).

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
    mark, said = read_mark(server), vectors.fingerprint()
    done = Written(fingerprint=graph.fingerprint())
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
    done.parts = 2 * n
    if mark and (mark["fingerprint"], mark["vectors_hash"]) == (done.fingerprint, said):
        done.generation = int(mark["generation"])
        return done
    parts = Parts(graph, n, hashes(of_nodes, len(graph.nodes)))
    before = json.loads(mark["vectors"]) if mark else []
    writing = _Writing(server, parts, of_nodes, list(dict.fromkeys([*before, *of_nodes])), done)
    writing.begin()
    writing.stage("nodes", progress)
    writing.stage("edges", progress)
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
    server.write(lambda tx: tx.run(forget, hash=_UNKNOWN).consume())
    server.write(lambda tx: tx.run("MATCH (g:KgrankGraph) SET g.fingerprint = ''").consume())
    for part in range(parts):
        progress("clearing", part, parts)
        for label in KINDS:
            server.write(partial(_remove_part, label=label, part=part))
    progress("clearing", parts, parts)
    server.write(lambda tx: tx.run("MATCH (p:KgrankPart) DELETE p").consume())
    server.write(lambda tx: tx.run("MATCH (g:KgrankGraph) DELETE g").consume())


def _remove_part(tx: neo4j.ManagedTransaction, label: str, part: int) -> None:
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
        self.writer = uuid.uuid4().hex

    def begin(self) -> None:
        """Say that the graph is being written, by this export."""
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
        }
        told = ", ".join(f"g.{name} = ${name}" for name in about)
        query = (
            f"MERGE (g:KgrankGraph {{id: 'graph'}}) SET {told}, "
            "g.generation = coalesce(g.generation, 0)"
        )
        self.server.write(lambda tx: tx.run(query, about).consume())

    def finish(self, said: str) -> None:
        """Say that the graph is whole."""

        def work(tx: neo4j.ManagedTransaction) -> int:
            mark = self._own(tx)
            if mark["fingerprint"]:  # done already, and the answer was lost
                return int(mark["generation"])
            about = {
                "fingerprint": self.done.fingerprint,
                "generation": int(mark["generation"]) + 1,
                "vectors": json.dumps(list(self.vectors)),
                "vectors_hash": said,
            }
            told = ", ".join(f"g.{name} = ${name}" for name in about)
            tx.run(f"MATCH (g:KgrankGraph {{id: 'graph'}}) SET {told}", about).consume()
            return int(mark["generation"]) + 1

        self.done.generation = self.server.write(work)

    def stage(self, name: str, progress: Progress) -> None:
        """Write the parts of the nodes, or of the edges, that differ from the server's."""
        known = dict(self.server.read("MATCH (p:KgrankPart) RETURN p.id, p.hash"))
        n = self.parts.n
        for part in range(n):
            progress(name, part, n)
            key = f"{name}-{part}"
            hash_ = (self.parts.node_hash if name == "nodes" else self.parts.edge_hash)(part)
            if known.get(key, "") != hash_:
                counts = self.server.write(partial(self._part, key=key, hash_=hash_, part=part))
                self.done.parts_written += 1
                for what, count in counts.items():
                    setattr(self.done, what, getattr(self.done, what) + count)
        progress(name, n, n)

    def _own(self, tx: neo4j.ManagedTransaction) -> dict[str, Any]:
        """The mark; raises StoreError if another export has begun."""
        record = tx.run("MATCH (g:KgrankGraph {id: 'graph'}) RETURN properties(g)").single()
        mark: dict[str, Any] = record[0] if record else {}
        if mark.get("writer") != self.writer:
            mend = "Let that one end, then export again"
            raise refusal(self.server, "another export that began later", "one at a time", mend)
        return mark

    def _part(self, tx: neo4j.ManagedTransaction, key: str, hash_: str, part: int) -> Counter[str]:
        """Write one part and its hash; nothing if it is written already."""
        self._own(tx)
        record = tx.run("MATCH (p:KgrankPart {id: $key}) RETURN p.hash", key=key).single()
        counts: Counter[str] = Counter()
        if record is not None and record[0] == hash_:
            return counts
        stage = self._nodes if key.startswith("nodes") else self._edges
        stage(tx, part, record is None, counts)
        tx.run("MERGE (p:KgrankPart {id: $key}) SET p.hash = $hash", key=key, hash=hash_).consume()
        return counts

    def _nodes(
        self, tx: neo4j.ManagedTransaction, part: int, empty: bool, counts: Counter[str]
    ) -> None:
        nodes = self.parts.nodes(part)
        contents = self.parts.contents.view(np.int64)
        for kind, label in enumerate(KINDS):
            own = nodes[self.parts.kinds[nodes] == kind]
            wanted = {self.parts.ids[node]: int(node) for node in own}
            there = {} if empty else _ids_and_hashes(tx, label, part)
            gone = [id_ for id_ in there if id_ not in wanted]
            new = [node for id_, node in wanted.items() if id_ not in there]
            other = [n for id_, n in wanted.items() if there.get(id_, contents[n]) != contents[n]]
            properties = ["name", "kgrank_hash", *(["type"] if label == "Entity" else [])]
            fresh = ", ".join(f"{p}: row.{p}" for p in ["id", "kgrank_part", *properties])
            vectors = "".join(f", {p}: row.{p}" for p in self.vectors)
            create = f"UNWIND $rows AS row CREATE (n:{label} {{{fresh}{vectors}}}) RETURN count(*)"
            told = ", ".join(f"n.{p} = row.{p}" for p in [*properties, *self.properties])
            change = f"UNWIND $rows AS row MATCH (n:{label} {{id: row.id}}) SET {told} "
            self._send(tx, create, (self._row(node, part) for node in new))
            self._send(tx, f"{change}RETURN count(*)", (self._row(node, part) for node in other))
            _remove(tx, label, gone)
            counts["nodes_written"] += len(new) + len(other)
            counts["nodes_removed"] += len(gone)

    def _row(self, node: int, part: int) -> tuple[dict[str, Any], int]:
        """What is sent for a node, and about how many bytes that is."""
        parts, nodes = self.parts, self.parts.graph.nodes
        row: dict[str, Any] = {
            "id": parts.ids[node],
            "kgrank_part": part,
            "name": parts.names[node],
            "kgrank_hash": int(parts.contents.view(np.int64)[node]),
        }
        if parts.kinds[node] == len(KINDS) - 1:
            row["type"] = nodes.type_names[int(nodes.types[node])]
        size = 64 + 4 * (len(row["id"]) + len(row["name"]))
        for name in self.properties:
            row[name] = None
            if name in self.vectors and (place := self.vectors[name][0][node]) >= 0:
                row[name] = self.vectors[name][1][place].tolist()
                size += 9 * len(row[name])
        return row, size

    def _edges(
        self, tx: neo4j.ManagedTransaction, part: int, empty: bool, counts: Counter[str]
    ) -> None:
        edges = self.parts.edges(part)
        if not empty:
            edges, stale = self._difference(edges, _facts(tx, part))
            for (head, relation, tail), ends in stale.items():
                query = (
                    f"UNWIND $rows AS row MATCH (h:{head} {{id: row[0]}})"
                    f"-[r:{quoted(relation)}]->(t:{tail} {{id: row[1]}}) DELETE r RETURN count(*)"
                )
                sized = ((list(pair), 4 * (len(pair[0]) + len(pair[1]))) for pair in ends)
                counts["edges_removed"] += self._send(tx, query, sized, exact=False)
        graph, kinds = self.parts.graph, self.parts.kinds
        links = np.stack([edges.relations, kinds[edges.heads], kinds[edges.tails]]).astype(np.int64)
        for relation, head, tail in np.unique(links, axis=1).T.tolist():
            chosen = (links == np.array([[relation], [head], [tail]])).all(axis=0)
            query = (
                f"UNWIND $rows AS row MATCH (h:{KINDS[head]} {{id: row[0]}}) "
                f"UNWIND row[1] AS e MATCH (t:{KINDS[tail]} {{id: e[0]}}) "
                f"CREATE (h)-[:{quoted(graph.relations[relation])} {{weight: e[1], time: e[2], "
                "behaviour: $behaviour}]->(t) RETURN count(*)"
            )
            behaviour = bool(graph.behaviours[relation])
            rows = self._rows(edges.take(np.flatnonzero(chosen)))
            counts["edges_written"] += self._send(tx, query, rows, behaviour=behaviour)

    def _rows(self, edges: Edges) -> Iterator[tuple[list[Any], int]]:
        """The edges by head, and about how many bytes each head's are."""
        ids = self.parts.ids
        starts = np.flatnonzero(np.diff(edges.heads, prepend=-1, append=-1))
        tails, weights, times = (a.tolist() for a in (edges.tails, edges.weights, edges.times))
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            head = ids[edges.heads[start]]
            for first in range(start, end, 500):
                some = range(first, min(first + 500, end))
                of_head = [[ids[tails[e]], weights[e], times[e]] for e in some]
                yield [head, of_head], 4 * len(head) + sum(20 + 4 * len(e[0]) for e in of_head)

    def _send(
        self,
        tx: neo4j.ManagedTransaction,
        query: str,
        rows: Iterator[tuple[Any, int]],
        exact: bool = True,
        **parameters: Any,
    ) -> int:
        """Run the query on all rows, some at a time.

        Returns:
            the sum of the counts that it returns. With `exact` it has to be that of the rows.
        """
        total = 0
        for batch in _batches(rows):
            record = tx.run(query, {"rows": batch, **parameters}).single(strict=True)
            total += int(record[0])
            wanted = sum(len(row[1]) if isinstance(row, list) else 1 for row in batch)
            if exact and int(record[0]) != wanted:
                found = f"{wanted - int(record[0]):,} nodes fewer than were written"
                mend = "Somebody removes them: empty the database and export again"
                raise refusal(self.server, found, "what was written", mend)
        return total

    def _difference(
        self, edges: Edges, there: dict[Link, dict[tuple[str, str], list[Fact]]]
    ) -> tuple[Edges, dict[Link, list[tuple[str, str]]]]:
        """The edges to make, and the ends between which all edges of a relation go first."""
        graph, ids, kinds = self.parts.graph, self.parts.ids, self.parts.kinds
        wanted: dict[tuple[Link, tuple[str, str]], list[tuple[Fact, int]]] = defaultdict(list)
        columns = (edges.heads, edges.relations, edges.tails, edges.times, edges.weights)
        for place, (head, relation, tail, time, weight) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        ):
            link = KINDS[kinds[head]], graph.relations[relation], KINDS[kinds[tail]]
            fact = bool(graph.behaviours[relation]), time, weight
            wanted[link, (ids[head], ids[tail])].append((fact, place))
        made: list[int] = []
        stale: dict[Link, list[tuple[str, str]]] = defaultdict(list)
        for link, pairs in there.items():
            for ends, facts in pairs.items():
                own = wanted.get((link, ends), [])
                if Counter(facts) - Counter(fact for fact, _ in own):
                    stale[link].append(ends)
        for (link, ends), own in wanted.items():
            old = Counter() if ends in stale[link] else Counter(there.get(link, {}).get(ends, []))
            for fact, place in own:
                if old[fact] > 0:
                    old[fact] -= 1
                else:
                    made.append(place)
        return edges.take(np.array(sorted(made), dtype=np.int64)), stale


def _batches(rows: Iterator[tuple[Any, int]]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    total = 0
    for row, size in rows:
        if batch and (total + size > MESSAGE_BYTES or len(batch) == PART_ROWS):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += size
    if batch:
        yield batch


def _ids_and_hashes(tx: neo4j.ManagedTransaction, label: str, part: int) -> dict[str, int]:
    query = (
        f"MATCH (n:{label} {{kgrank_part: $part}}) "
        "RETURN collect(n.id), collect(coalesce(n.kgrank_hash, 0))"
    )
    ids, found = tx.run(query, part=part).single(strict=True)
    return dict(zip(ids, found, strict=True))


def _remove(tx: neo4j.ManagedTransaction, label: str, ids: list[str]) -> None:
    """Remove nodes with their edges, and forget the hashes of the parts that those belong to."""
    if not ids:
        return
    node = f"UNWIND $ids AS id MATCH (n:{label} {{id: id}})"
    heads = f"{node}<-[]-(h) WHERE h.kgrank_part IS NOT NULL RETURN DISTINCT h.kgrank_part"
    parts = {record[0] for record in tx.run(heads, ids=ids)}
    parts |= {record[0] for record in tx.run(f"{node} RETURN DISTINCT n.kgrank_part", ids=ids)}
    tx.run(
        "UNWIND $keys AS key MATCH (p:KgrankPart {id: key}) SET p.hash = $hash",
        keys=[f"edges-{part}" for part in sorted(parts)],
        hash=_UNKNOWN,
    ).consume()
    tx.run(f"{node} DETACH DELETE n", ids=ids).consume()


def _facts(
    tx: neo4j.ManagedTransaction, part: int
) -> dict[Link, dict[tuple[str, str], list[Fact]]]:
    """The edges of a part as the server has them."""
    found: dict[Link, dict[tuple[str, str], list[Fact]]] = defaultdict(lambda: defaultdict(list))
    for label in KINDS:
        for relation, behaviour, tail, *columns in tx.run(
            EDGES_OF_PART.format(label=label), part=part
        ):
            of_link = found[label, relation, tail]
            for head, end, weight, time in zip(*columns, strict=True):
                of_link[head, end].append((bool(behaviour), time, weight))
    return found
