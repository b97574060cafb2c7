"""Writing parts of a graph into a server, in a transaction that looks what is there first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kgrank.kg.bolt import Server, quoted
from kgrank.kg.building import Edges
from kgrank.kg.graph_server import EDGES_OF_NODES, refusal
from kgrank.kg.node_scores import MODEL_PROPERTY, RECOMMENDED
from kgrank.kg.parts import KINDS, Parts

if TYPE_CHECKING:
    import neo4j

MESSAGE_BYTES, MESSAGE_ROWS = 4 << 20, 2_000
"""What is sent at once, about; Neo4j and its like bound messages."""
EDGES_PROPERTY = "kgrank_edges"
"""Of a node: the hash of the edges that leave it."""
UNKNOWN = "?"
"""The hash of a part that the writing of another one has changed."""

Link = tuple[str, str, str]
"""Label of the head, relation, label of the tail."""
Fact = tuple[bool | None, int, float]
"""Behaviour, time and weight of an edge; others' edges may have none of them."""


class PartWriter:
    """What writes the parts of a graph.

    Args:
        server: where to; for messages.
        parts: what is written.
        vectors: property → for each node the row of its vector (n_nodes,) or -1, and the vectors.
        properties: of vectors, those that are to be removed too.
    """

    def __init__(
        self,
        server: Server,
        parts: Parts,
        vectors: dict[str, tuple[NDArray[np.int32], Any]],
        properties: Sequence[str],
    ) -> None:
        self.server, self.parts, self.vectors = server, parts, vectors
        self.properties = properties

    def nodes(
        self, tx: neo4j.ManagedTransaction, parts: Sequence[int], empty: bool
    ) -> Counter[str]:
        """Write the nodes of some parts.

        Args:
            tx: the transaction.
            parts: which parts.
            empty: whether the server is known to have none of them.

        Returns:
            how many nodes were written and removed, as in `Written`.
        """
        counts: Counter[str] = Counter()
        nodes = self.parts.nodes(*parts)
        contents = self.parts.contents.view(np.int64)
        for kind, label in enumerate(KINDS):
            own = nodes[self.parts.kinds[nodes] == kind]
            wanted = {self.parts.ids[node]: int(node) for node in own}
            there = {} if empty else _ids_and_hashes(tx, label, parts)
            gone = [id_ for id_ in there if id_ not in wanted]
            new = [node for id_, node in wanted.items() if id_ not in there]
            other = [n for id_, n in wanted.items() if there.get(id_, contents[n]) != contents[n]]
            properties = ["name", "kgrank_hash", *(["type"] if label == "Entity" else [])]
            fresh = ", ".join(f"{p}: row.{p}" for p in ["id", "kgrank_part", *properties])
            fresh += f", {EDGES_PROPERTY}: 0"
            vectors = "".join(f", {p}: row.{p}" for p in self.vectors)
            create = f"UNWIND $rows AS row CREATE (n:{label} {{{fresh}{vectors}}}) RETURN count(*)"
            told = ", ".join(f"n.{p} = row.{p}" for p in [*properties, *self.properties])
            change = f"UNWIND $rows AS row MATCH (n:{label} {{id: row.id}}) SET {told} "
            if not empty:
                self._refuse_others(tx, label, [self.parts.ids[node] for node in new])
            self._send(tx, create, map(self._row, new))
            self._send(tx, f"{change}RETURN count(*)", map(self._row, other))
            _remove(tx, label, gone)
            counts["nodes_written"] += len(new) + len(other)
            counts["nodes_removed"] += len(gone)
        return counts

    def _refuse_others(self, tx: neo4j.ManagedTransaction, label: str, ids: Sequence[str]) -> None:
        """Raises StoreError if a node that is to be made is there, but not as a part of ours."""
        query = f"UNWIND $ids AS id MATCH (n:{label} {{id: id}}) RETURN n.id LIMIT 1"
        for batch in _batches((id_, 4 * len(id_)) for id_ in ids):
            if (record := tx.run(query, ids=batch).single()) is not None:
                found = f"a node labelled {label} with the id {record[0]!r} that is no export"
                mend = "Somebody has made or changed it: remove it, and export again"
                raise refusal(self.server, found, "the nodes of the export alone", mend)

    def _row(self, node: int) -> tuple[dict[str, Any], int]:
        """What is sent for a node, and about how many bytes that is."""
        parts, nodes = self.parts, self.parts.graph.nodes
        row: dict[str, Any] = {
            "id": parts.ids[node],
            "kgrank_part": int(parts.of_nodes[node]),
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

    def edges(
        self, tx: neo4j.ManagedTransaction, parts: Sequence[int], empty: bool
    ) -> Counter[str]:
        """Write the edges of some parts, as `nodes` does it; their nodes have to be there.

        Only the edges of heads whose hash differs from the one at the node are looked at.
        """
        counts: Counter[str] = Counter()
        edges = self.parts.edges(*parts)
        heads = self._other_heads(tx, parts)
        if not empty:
            changed = np.zeros(len(self.parts.ids), dtype=bool)
            changed[heads] = True
            edges = edges.take(np.flatnonzero(changed[edges.heads]))
            edges, stale = self._difference(edges, self._facts(tx, heads))
            for (head, relation, tail), ends in stale.items():
                query = (
                    f"UNWIND $rows AS row MATCH (h:{head} {{id: row[0]}})"
                    f"-[r:{quoted(relation)}]->(t:{tail} {{id: row[1]}}) "
                    f"WHERE r.{MODEL_PROPERTY} IS NULL DELETE r RETURN count(*)"
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
            some = edges.take(np.flatnonzero(chosen))
            rows = self._rows(some.heads, some.tails, some.weights.tolist(), some.times.tolist())
            counts["edges_written"] += self._send(tx, query, rows, behaviour=behaviour)
        for kind, label in enumerate(KINDS):
            of_kind = heads[kinds[heads] == kind]
            query = (
                f"UNWIND $rows AS row MATCH (h:{label} {{id: row.id}}) "
                f"SET h.{EDGES_PROPERTY} = row.hash RETURN count(*)"
            )
            hashes = self.parts.edges_of_heads.view(np.int64)[of_kind].tolist()
            told = zip((self.parts.ids[head] for head in of_kind.tolist()), hashes, strict=True)
            self._send(tx, query, (({"id": i, "hash": h}, 32 + 4 * len(i)) for i, h in told))
        return counts

    def _other_heads(self, tx: neo4j.ManagedTransaction, parts: Sequence[int]) -> NDArray[np.int64]:
        """(n,) int64: nodes of some parts, whose edges are others than the server says, or may be.

        A node just made has the hash 0, that of no edges; one whose edges another part's writing
        has removed has none.
        """
        nodes = self.parts.nodes(*parts)
        wanted = self.parts.edges_of_heads.view(np.int64)
        found = []
        for kind, label in enumerate(KINDS):
            own = nodes[self.parts.kinds[nodes] == kind].tolist()
            there = _ids_and_hashes(tx, label, parts, EDGES_PROPERTY) if own else {}
            found += [n for n in own if there.get(self.parts.ids[n], "") != int(wanted[n])]
        return np.array(found, dtype=np.int64)

    def _facts(
        self, tx: neo4j.ManagedTransaction, heads: NDArray[np.int64]
    ) -> dict[Link, dict[tuple[str, str], list[Fact]]]:
        """The edges of some nodes as the server has them."""
        found: dict[Link, dict[tuple[str, str], list[Fact]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for kind, label in enumerate(KINDS):
            ids = [self.parts.ids[head] for head in heads[self.parts.kinds[heads] == kind].tolist()]
            for batch in _batches((id_, 4 * len(id_)) for id_ in ids):
                for relation, behaviour, tail, *columns in tx.run(
                    EDGES_OF_NODES.format(label=label), ids=batch
                ):
                    of_link = found[label, relation, tail]
                    for head, end, weight, time in zip(*columns, strict=True):
                        of_link[head, end].append((behaviour, time, weight))
        return found

    def scores(
        self, tx: neo4j.ManagedTransaction, parts: Sequence[int], empty: bool
    ) -> Counter[str]:
        """Write the lists of the users of some parts in the place of those that are there."""
        counts: Counter[str] = Counter()
        if not empty:
            query = (
                "UNWIND $parts AS part "
                f"MATCH (h:User {{kgrank_part: part}})-[r:{RECOMMENDED}]->() "
                f"WHERE r.{MODEL_PROPERTY} IS NOT NULL DELETE r RETURN count(*)"
            )
            removed = tx.run(query, parts=list(parts)).single(strict=True)
            counts["scores_removed"] = int(removed[0])
        scores = self.parts.scores(*parts)
        query = (
            "UNWIND $rows AS row MATCH (h:User {id: row[0]}) "
            "UNWIND row[1] AS e MATCH (t:Item {id: e[0]}) "
            f"CREATE (h)-[:{RECOMMENDED} {{score: e[1], rank: e[2], {MODEL_PROPERTY}: $model}}]->"
            "(t) RETURN count(*)"
        )
        rows = self._rows(scores.users, scores.items, scores.scores.tolist(), scores.ranks.tolist())
        counts["scores_written"] = self._send(tx, query, rows, model=scores.model)
        return counts

    def _rows(
        self, heads: NDArray[np.int32], tails: NDArray[np.int32], *about: list[Any]
    ) -> Iterator[tuple[list[Any], int]]:
        """Head, then [tail, …] of each of its edges; and about how many bytes that is.

        Args:
            heads, tails: (n,) int32: nodes; the edges of a head stand together.
            about: (n,) each: what else is said of an edge.
        """
        ids = self.parts.ids
        starts = np.flatnonzero(np.diff(heads, prepend=-1, append=-1))
        ends = [ids[tail] for tail in tails.tolist()]
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            head = ids[heads[start]]
            for first in range(start, end, 500):
                some = slice(first, min(first + 500, end))
                columns = [ends[some], *(column[some] for column in about)]
                of_head = [list(edge) for edge in zip(*columns, strict=True)]
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
            fact: Fact = bool(graph.behaviours[relation]), time, weight
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
        if batch and (total + size > MESSAGE_BYTES or len(batch) == MESSAGE_ROWS):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += size
    if batch:
        yield batch


def _ids_and_hashes(
    tx: neo4j.ManagedTransaction, label: str, parts: Sequence[int], name: str = "kgrank_hash"
) -> dict[str, int | str]:
    """Id → the property of that name, a hash; "" where a node has none."""
    query = (
        f"UNWIND $parts AS part MATCH (n:{label} {{kgrank_part: part}}) "
        f"RETURN collect(n.id), collect(coalesce(n.{name}, ''))"
    )
    ids, found = tx.run(query, parts=list(parts)).single(strict=True)
    return dict(zip(ids, found, strict=True))


def _remove(tx: neo4j.ManagedTransaction, label: str, ids: list[str]) -> None:
    """Remove nodes with their edges; forget the hashes of the heads and parts that those are of."""
    if not ids:
        return
    node = f"UNWIND $ids AS id MATCH (n:{label} {{id: id}})"
    heads = (
        f"{node}<-[]-(h) WHERE h.kgrank_part IS NOT NULL "
        f"SET h.{EDGES_PROPERTY} = null RETURN DISTINCT h.kgrank_part"
    )
    parts = {record[0] for record in tx.run(heads, ids=ids)}
    parts |= {record[0] for record in tx.run(f"{node} RETURN DISTINCT n.kgrank_part", ids=ids)}
    tx.run(
        "UNWIND $keys AS key MATCH (p:KgrankPart {id: key}) SET p.hash = $hash",
        keys=[f"{of}-{part}" for of in ("edges", "scores") for part in sorted(parts)],
        hash=UNKNOWN,
    ).consume()
    tx.run(f"{node} DETACH DELETE n", ids=ids).consume()
