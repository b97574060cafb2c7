"""The graph in a server: what changed is written, and nothing is lost or doubled."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import bolt_server
import numpy as np
import pandas as pd
import pytest

from kgrank.errors import ConfigError, DataError, StoreError
from kgrank.kg import graph_writing
from kgrank.kg.bolt import PASSWORD_VARIABLE, Address, Server, is_server, quoted
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_server import read_graph
from kgrank.kg.graph_writing import write_graph
from kgrank.kg.node_scores import NodeScores
from kgrank.kg.node_vectors import NodeVectors
from kgrank.kg.part_writing import PartWriter
from kgrank.kg.tables import Tables, checked_tables


def tables(n: int = 300) -> Tables:
    """n events of n / 3 users with 20 items of 4 brands."""
    numbers = np.arange(n)
    events = pd.DataFrame(
        {
            "user_id": [f"u{number}" for number in numbers // 3],
            "item_id": [f"i{number}" for number in numbers * 7 % 20],
            "event": np.where(numbers % 3, "view", "buy"),
            "timestamp": 1e9 + numbers,
        }
    )
    items = pd.DataFrame({"item_id": [f"i{number}" for number in range(20)]})
    items = items.assign(title=[f"Item {n}" for n in range(20)], brand=list("abcd") * 5)
    return checked_tables({"events": events, "items": items})


def graph_of(shop: Tables) -> KnowledgeGraph:
    return KnowledgeGraph.from_tables(shop)


GRAPH = graph_of(tables())


def in_server(server: Server) -> tuple[int, int]:
    """Nodes and edges of the export that are really there."""
    [[nodes]] = server.read("MATCH (n) WHERE n:User OR n:Item OR n:Entity RETURN count(n)")
    [[edges]] = server.read("MATCH (h)-[r]->(t) WHERE h.kgrank_part IS NOT NULL RETURN count(r)")
    return nodes, edges


def whole(server: Server, graph: KnowledgeGraph) -> bool:
    return (
        in_server(server) == (len(graph.nodes), graph.n_edges)
        and read_graph(server).fingerprint() == graph.fingerprint()
    )


def test_labels_relations_and_properties_are_as_promised(bolt: Server) -> None:
    write_graph(GRAPH, bolt)
    assert bolt.read(
        "MATCH (u:User {id: 'u1'})-[r:`buy`]->(i:Item) "
        "RETURN u.name, i.id, i.name, r.weight, r.time, r.behaviour"
    ) == [["u1", "i1", "Item 1", 1.0, 1_000_000_003, True]]
    assert bolt.read(
        "MATCH (:Item {id: 'i1'})-[r:`brand`]->(e:Entity) RETURN e.id, e.type, e.name, r.behaviour"
    ) == [["brand:b", "brand", "b", False]]


def test_only_what_changed_is_written(bolt: Server) -> None:
    first = write_graph(GRAPH, bolt)
    assert (first.generation, first.nodes_written) == (1, len(GRAPH.nodes))
    assert (first.edges_written, first.edges_removed) == (GRAPH.n_edges, 0)
    again = write_graph(GRAPH, bolt)
    assert (again.generation, again.parts_written, again.edges_written) == (1, 0, 0)
    more = pd.DataFrame({"user_id": ["u1", "u1", "new"], "item_id": ["i1", "i1", "i2"]})
    grown = GRAPH.with_events(more.assign(event="buy", timestamp=2e9))
    added = write_graph(grown, bolt)
    assert (added.nodes_written, added.edges_written, added.edges_removed) == (1, 3, 0)
    assert added.parts_written <= 3  # one of nodes, and the edges of u1 and of new
    assert whole(bolt, grown)
    back = write_graph(GRAPH, bolt)
    assert (back.nodes_removed, back.generation) == (1, 3)
    assert back.edges_removed - back.edges_written <= 3  # u1's with i1 are made anew, and new's go
    assert whole(bolt, GRAPH)


def test_only_the_edges_of_changed_heads_are_looked_at(
    bolt: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph(GRAPH, bolt)
    looked: list[str] = []
    facts = PartWriter._facts

    def watched(self: PartWriter, tx: Any, heads: Any) -> Any:
        looked.extend(self.parts.ids[head] for head in heads)
        return facts(self, tx, heads)

    monkeypatch.setattr(PartWriter, "_facts", watched)
    more = pd.DataFrame({"user_id": ["u1", "u5"], "item_id": ["i1", "i9"]})
    grown = GRAPH.with_events(more.assign(event="buy", timestamp=2e9))
    write_graph(grown, bolt)
    assert sorted(looked) == ["u1", "u5"]
    assert whole(bolt, grown)


def test_parts_that_differ_go_together(bolt: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graph(GRAPH, bolt)
    sent: list[int] = []
    write = Server.write

    def counted(self: Server, work: Any) -> Any:
        sent.append(1)
        return write(self, work)

    more = pd.DataFrame({"user_id": [f"u{n}" for n in range(100)], "item_id": "i1"})
    grown = GRAPH.with_events(more.assign(event="buy", timestamp=2e9))
    monkeypatch.setattr(Server, "write", counted)
    told = write_graph(grown, bolt)
    assert (told.parts_written, told.edges_written) == (16, 100)
    assert len(sent) == 4  # the beginning, twice eight parts, and the end
    assert whole(bolt, grown)


def test_an_export_from_before_heads_had_hashes_is_gone_on_with(bolt: Server) -> None:
    write_graph(GRAPH, bolt)
    bolt.write(lambda tx: tx.run("MATCH (n) REMOVE n.kgrank_edges").consume())
    bolt.write(lambda tx: tx.run("MATCH (g:KgrankGraph) SET g.format = 1").consume())
    assert whole(bolt, GRAPH)
    other = graph_of(tables(297))  # a user less, so that edges go too
    told = write_graph(other, bolt)
    assert (told.nodes_removed, told.edges_written) == (1, 0)
    assert whole(bolt, other)


def test_names_and_types_change_in_place(bolt: Server) -> None:
    write_graph(GRAPH, bolt)
    shop = tables()
    items = shop.items.assign(title=["Other", *shop.items["title"][1:]])
    renamed = graph_of(replace(shop, items=items))
    told = write_graph(renamed, bolt)
    assert (told.nodes_written, told.edges_written, told.edges_removed) == (1, 0, 0)
    assert whole(bolt, renamed)


class Stop(Exception):
    """What a test stops an export with."""


def stopping(stage: str, part: int) -> graph_writing.Progress:
    def told(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, part):
            raise Stop

    return told


@pytest.mark.parametrize("stage", ["nodes", "edges"])
@pytest.mark.parametrize("part", [5, 16])
def test_an_export_cut_short_goes_on(bolt: Server, stage: str, part: int) -> None:
    with pytest.raises(Stop):
        write_graph(GRAPH, bolt, progress=stopping(stage, part))
    with pytest.raises(StoreError, match="not wholly written; allowed: a whole one"):
        read_graph(bolt)
    before = in_server(bolt)
    told = write_graph(GRAPH, bolt)
    assert (told.nodes_written, told.edges_written) == (
        len(GRAPH.nodes) - before[0],
        GRAPH.n_edges - before[1],
    )
    assert whole(bolt, GRAPH)


@pytest.mark.parametrize("stage", ["nodes", "edges"])
def test_the_old_graph_comes_back_after_half_a_change(bolt: Server, stage: str) -> None:
    """Removing a node takes edges of other parts along; those parts are not taken for sound."""
    write_graph(GRAPH, bolt)
    shop = tables()
    without = graph_of(
        replace(
            shop,
            events=shop.events[shop.events["item_id"] != "i3"],
            items=shop.items[shop.items["item_id"] != "i3"],
        )
    )
    for part in (5, 16):
        with pytest.raises(Stop):
            write_graph(without, bolt, progress=stopping(stage, part))
        write_graph(GRAPH, bolt)
        assert whole(bolt, GRAPH)
    write_graph(without, bolt)
    assert whole(bolt, without)


def test_a_graph_that_has_grown_much_is_written_in_more_parts(
    bolt: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph(GRAPH, bolt)
    monkeypatch.setattr(graph_writing, "MIN_PARTS", 40)
    monkeypatch.setattr(graph_writing, "MAX_GROWTH", 2)
    with pytest.raises(Stop):
        write_graph(GRAPH, bolt, progress=stopping("clearing", 7))
    monkeypatch.setattr(graph_writing, "MIN_PARTS", 20)
    write_graph(GRAPH, bolt)  # a graph that needs no more parts goes on with those there are
    assert whole(bolt, GRAPH)
    monkeypatch.setattr(graph_writing, "MIN_PARTS", 40)
    assert write_graph(graph_of(tables(330)), bolt).parts == 80
    assert whole(bolt, graph_of(tables(330)))


def test_the_export_that_began_last_is_the_one_that_ends(bolt: Server) -> None:
    def second(name: str, done: int, total: int) -> None:
        if (name, done) == ("edges", 3):
            write_graph(GRAPH, bolt)

    with pytest.raises(StoreError, match="another export that began later; allowed: one at a time"):
        write_graph(graph_of(tables(330)), bolt, progress=second)
    assert whole(bolt, GRAPH)


def test_nodes_of_others_are_left_alone(bolt: Server) -> None:
    bolt.write(lambda tx: tx.run("CREATE (:User {id: 'theirs'}), (:Shop {id: 1})").consume())
    with pytest.raises(StoreError, match="1 nodes labelled User that are no export of kgrank"):
        write_graph(GRAPH, bolt)
    bolt.write(lambda tx: tx.run("MATCH (n:User) DELETE n").consume())
    write_graph(GRAPH, bolt)
    assert bolt.read("MATCH (s:Shop) RETURN count(s)") == [[1]]


def test_a_node_that_somebody_made_before_us_is_told(bolt: Server) -> None:
    write_graph(GRAPH, bolt)
    bolt.write(lambda tx: tx.run("CREATE (:Item {id: 'soon', name: 'theirs'})").consume())
    more = pd.DataFrame({"user_id": ["u1"], "item_id": ["soon"], "event": "buy"})
    grown = GRAPH.with_events(more.assign(timestamp=2e9))
    with pytest.raises(StoreError, match="labelled Item with the id 'soon' that is no export"):
        write_graph(grown, bolt)
    assert bolt.read("MATCH (i:Item {id: 'soon'}) RETURN i.name") == [["theirs"]]
    bolt.write(lambda tx: tx.run("MATCH (i:Item {id: 'soon'}) DELETE i").consume())
    write_graph(grown, bolt)
    assert whole(bolt, grown)


@pytest.mark.parametrize(
    "change",
    [
        "MATCH (:User {id: 'u1'})-[r:buy]->() DELETE r",
        "MATCH (u:User {id: 'u1'}), (i:Item {id: 'i5'}) CREATE (u)-[:buy {weight: 1.0}]->(i)",
        "MATCH (u:User {id: 'u1'}), (i:Item {id: 'i5'}) "
        "CREATE (u)-[:buy {weight: 1.0, time: 5, behaviour: true}]->(i)",
        "MATCH (u:User {id: 'u1'}), (i:Item {id: 'i5'}) CREATE (u)-[:mine]->(i)",
        "MATCH (i:Item {id: 'i5'}) SET i.name = 'x'",
        "MATCH (i:Item {id: 'i5'}) SET i.name = 5",
        "MATCH (i:Item {id: 'i5'}) REMOVE i.name",
        "MATCH (i:Item {id: 'i5'}) DETACH DELETE i",
        "MATCH (:User {id: 'u1'})-[r:buy]->() SET r.weight = 9.0",
        "MATCH (:Item {id: 'i5'})-[r:brand]->() REMOVE r.behaviour",
        "MATCH (e:Entity {id: 'brand:a'}) SET e.type = 'x'",
        "MATCH (u:User {id: 'u1'}) CREATE (u)-[:buy {weight: 1.0}]->(:Item {id: 'theirs'})",
    ],
)
def test_what_others_changed_is_not_taken_for_the_graph(bolt: Server, change: str) -> None:
    write_graph(GRAPH, bolt)
    bolt.write(lambda tx: tx.run(change).consume())
    with pytest.raises(StoreError, match=r"another graph than was written.* again with --repair"):
        read_graph(bolt)
    assert write_graph(GRAPH, bolt).parts_written == 0  # the hashes say that nothing changed
    told = write_graph(GRAPH, bolt, repair=True)
    assert told.edges_written + told.edges_removed <= 20
    assert read_graph(bolt).fingerprint() == GRAPH.fingerprint()
    assert write_graph(GRAPH, bolt).parts_written == 0


@pytest.mark.parametrize("stage", ["repair", "nodes", "edges"])
def test_a_repair_cut_short_goes_on(bolt: Server, stage: str) -> None:
    write_graph(GRAPH, bolt, scores=lists_of(40))
    change = "MATCH (i:Item {id: 'i5'}) DETACH DELETE i"
    bolt.write(lambda tx: tx.run(change).consume())
    with pytest.raises(Stop):
        write_graph(GRAPH, bolt, scores=lists_of(40), progress=stopping(stage, 5), repair=True)
    write_graph(GRAPH, bolt, scores=lists_of(40))
    assert read_graph(bolt).fingerprint() == GRAPH.fingerprint()
    assert len(bolt.read(LISTS)) == 80
    assert write_graph(GRAPH, bolt, scores=lists_of(40)).parts_written == 0


def test_nothing_there_is_told(bolt: Server) -> None:
    with pytest.raises(StoreError, match="found no graph of kgrank; allowed: one that was exp"):
        read_graph(bolt)


def test_vectors_are_properties_that_come_and_go(bolt: Server, tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path / "store")
    vectors = np.arange(9, dtype=np.float32).reshape(3, 3) / 7
    store = store.write("item", ["i1", "i2", "not in the graph"], vectors)
    store = store.write("entity", ["brand:a"], np.ones((1, 2), np.float32))
    told = write_graph(GRAPH, bolt, NodeVectors.of_store(store))
    assert told.vectors == {"vector_item": 2, "vector_entity": 1}
    [[found]] = bolt.read("MATCH (i:Item {id: 'i2'}) RETURN i.vector_item")
    assert np.array(found, np.float32).tolist() == vectors[1].tolist()
    assert bolt.read("MATCH (n) WHERE n.vector_entity IS NOT NULL RETURN n.id") == [["brand:a"]]
    assert whole(bolt, GRAPH)
    store = store.write("item", ["i2"], -vectors[1:2])
    told = write_graph(GRAPH, bolt, NodeVectors.of_store(store))
    assert (told.nodes_written, told.edges_written) == (1, 0)
    assert write_graph(GRAPH, bolt, NodeVectors.of_store(store)).nodes_written == 0
    assert write_graph(GRAPH, bolt).nodes_written == 3
    query = "MATCH (n) WHERE n.vector_item IS NOT NULL OR n.vector_entity IS NOT NULL RETURN n.id"
    assert bolt.read(query) == []
    other = EmbeddingStore.create(tmp_path / "other").write("mine", ["i1"], vectors[:1])
    with pytest.raises(StoreError, match="found the groups mine; allowed: at least one of item"):
        NodeVectors.of_store(other)


def lists_of(users: int, n: int = 2, model: str = "m1") -> NodeScores:
    """User u's list: item u, then u + 1 and so on."""
    rows = [
        (f"u{user}", f"i{(user + place) % 20}", 1 / (user + place + 1), place + 1)
        for user in range(users)
        for place in range(n)
    ]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "score", "rank"])
    return NodeScores.of_lists(GRAPH, model, [table[: len(table) // 2], table[len(table) // 2 :]])


LISTS = (
    "MATCH (u:User)-[r:RECOMMENDED]->(i:Item) WHERE r.kgrank_model IS NOT NULL "
    "RETURN u.id, i.id, r.score, r.rank, r.kgrank_model ORDER BY u.id, r.rank"
)


def test_scores_come_and_go_and_are_no_part_of_the_graph(bolt: Server) -> None:
    told = write_graph(GRAPH, bolt, scores=lists_of(50))
    assert (told.scores, told.scores_written, told.scores_removed) == (100, 100, 0)
    assert bolt.read(LISTS)[2:4] == [  # of "u1": scores are float32
        ["u1", "i1", 0.5, 1, "m1"],
        ["u1", "i2", float(np.float32(1 / 3)), 2, "m1"],
    ]
    assert read_graph(bolt).fingerprint() == GRAPH.fingerprint()
    assert write_graph(GRAPH, bolt, scores=lists_of(50)).parts_written == 0
    more = write_graph(GRAPH, bolt, scores=lists_of(51))  # the part of one user
    assert (more.parts_written, more.nodes_written, more.edges_written) == (1, 0, 0)
    assert more.scores_written == more.scores_removed + 2
    other = write_graph(GRAPH, bolt, scores=lists_of(50, model="m2"))
    assert (other.scores_written, other.scores_removed) == (100, 102)
    assert {row[4] for row in bolt.read(LISTS)} == {"m2"}
    gone = write_graph(GRAPH, bolt)
    assert (gone.scores, gone.scores_removed) == (0, 100)
    assert bolt.read(LISTS) == []
    assert whole(bolt, GRAPH)


@pytest.mark.parametrize("part", [5, 16])
def test_scores_cut_short_go_on(bolt: Server, part: int) -> None:
    wanted = lists_of(60, 3)
    with pytest.raises(Stop):
        write_graph(GRAPH, bolt, scores=wanted, progress=stopping("scores", part))
    there = len(bolt.read(LISTS))
    assert (part == 16) == (there == 180)
    told = write_graph(GRAPH, bolt, scores=wanted)
    assert (told.edges_written, told.scores_written, told.scores_removed) == (0, 180 - there, 0)
    assert len(bolt.read(LISTS)) == 180


def test_scores_of_items_that_go_and_come_back(bolt: Server) -> None:
    """Removing an item takes places of lists along; those parts are not taken for sound."""
    write_graph(GRAPH, bolt, scores=lists_of(40))
    shop = tables()
    kept = {"events": shop.events["item_id"] != "i3", "items": shop.items["item_id"] != "i3"}
    without = graph_of(
        replace(shop, events=shop.events[kept["events"]], items=shop.items[kept["items"]])
    )
    with pytest.raises(Stop):
        write_graph(without, bolt, progress=stopping("edges", 0))
    assert len(bolt.read(LISTS)) < 80
    write_graph(GRAPH, bolt, scores=lists_of(40))
    assert len(bolt.read(LISTS)) == 80
    assert read_graph(bolt).fingerprint() == GRAPH.fingerprint()


def test_a_relation_of_the_same_name_is_still_a_fact(bolt: Server) -> None:
    """A shop whose staff recommend products to users."""
    told = pd.DataFrame({"head": ["u1", "u1"], "relation": "RECOMMENDED", "tail": ["i1", "i9"]})
    staff = GRAPH.with_triples(told)
    write_graph(staff, bolt, scores=lists_of(10))
    assert read_graph(bolt).fingerprint() == staff.fingerprint()
    assert len(bolt.read(LISTS)) == 20
    write_graph(GRAPH, bolt, scores=lists_of(10))
    assert read_graph(bolt).fingerprint() == GRAPH.fingerprint()
    assert len(bolt.read(LISTS)) == 20


@pytest.mark.parametrize("name", ["", "a\0", "a\\u0060b"])
def test_a_relation_that_could_mean_something_else_is_refused(bolt: Server, name: str) -> None:
    odd = GRAPH.with_triples(pd.DataFrame({"head": ["i1"], "relation": [name], "tail": ["x"]}))
    with pytest.raises(DataError, match="allowed: names that are not empty, without NUL"):
        write_graph(odd, bolt)
    assert bolt.read("MATCH (n) RETURN count(n)") == [[0]]


def test_an_id_longer_than_an_index_takes_is_refused(bolt: Server) -> None:
    long = GRAPH.with_events(pd.DataFrame({"user_id": ["x" * 9000], "item_id": "i1", "event": "v"}))
    with pytest.raises(DataError, match=r"found an id of 9,000 bytes .* allowed: 8,000 bytes"):
        write_graph(long, bolt)
    assert bolt.read("MATCH (n) RETURN count(n)") == [[0]]


def test_names_are_quoted() -> None:
    assert quoted("a`b``") == "`a``b`````"
    assert quoted("x]->() DETACH DELETE n //") == "`x]->() DETACH DELETE n //`"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("neo4j://u:hush@host", "found a password in the address"),
        ("neo4j://u:hush/1@host", "found a password in the address"),
        ("neo4j://u:1#hush@host", "found a password in the address"),
        ("neo4j://u:hush@host:port/?x", "found a password in the address"),
        ("http://host", "found the server 'http://host'"),
        ("neo4j://", "found the server"),
        ("neo4j://host/a/b", "found the server"),
        ("neo4j://host:port", "of another form"),
        ("bolt://host?x=1", "found the server"),
    ],
)
def test_a_wrong_address_is_told_without_its_password(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Address.parse(text)
    assert said in str(raised.value)
    assert "hush" not in str(raised.value)


def test_an_address_is_taken_apart() -> None:
    assert Address.parse("neo4j://host") == Address("neo4j://host", "neo4j", None)
    assert Address.parse("bolt+s://me@[::1]:1/shop") == Address("bolt+s://[::1]:1", "me", "shop")
    assert str(Address.parse("bolt://me@h/shop")) == "bolt://h/shop"
    assert [is_server(t) for t in ("bolt://x", "neo4j+s://x", "shop", "neo4j", "c://x")] == [
        *[True, True, False, False, False]
    ]


def test_an_unreachable_server_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"neo4j://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StoreError, match=r"found no answer .* allowed: a server that speaks B"):
            Server(Address.parse(uri)).__enter__()


def test_a_wrong_password_is_told_and_never_shown(
    bolt_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    right = os.environ.get(PASSWORD_VARIABLE)
    if right:
        with Server(Address.parse(bolt_uri)) as server:
            server.read("RETURN 1")
            assert right not in repr(server) + repr(vars(server)) + repr(server.address)
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong and secret")
    with pytest.raises(StoreError, match=rf"is refused .* Set {PASSWORD_VARIABLE} in") as raised:
        Server(Address.parse(bolt_uri)).__enter__()
    monkeypatch.delenv(PASSWORD_VARIABLE)
    with pytest.raises(StoreError, match=f"Set {PASSWORD_VARIABLE} in the environment"):
        Server(Address.parse(bolt_uri)).__enter__()
    assert raised.value.__cause__ is None
    for told in (str(raised.value), caplog.text):
        assert "wrong and secret" not in told
        assert not right or right not in told
    assert "127.0.0.1" in caplog.text or right is None  # the driver did log


class Line:
    """A TCP line to a server that can be cut: now, or when the next commit has been answered."""

    def __init__(self, uri: str) -> None:
        there = Address.parse(uri)
        host, _, port = there.uri.partition("://")[2].rpartition(":")
        self._to = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.lose_commit = self._dropping = False
        port = self._listener.getsockname()[1]
        self.address = replace(there, uri=f"bolt://127.0.0.1:{port}")
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            self._open += [near, far]
            threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self._dropping:  # the answer to the commit goes nowhere
                    self._dropping = False
                    self.cut()
                    return
                if self.lose_commit and b"\x00\x02\xb0\x12\x00\x00" in data:  # COMMIT
                    self.lose_commit, self._dropping = False, True
                target.sendall(data)
        self._end(source, target)

    def _end(self, *sockets: socket.socket) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def cut(self) -> None:
        self._end(*self._open)
        self._open.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def line(bolt: Server, bolt_uri: str) -> Iterator[Line]:
    line = Line(bolt_uri)
    yield line
    line.close()


def test_a_lost_connection_is_made_again(bolt: Server, line: Line) -> None:
    def cutting(name: str, done: int, total: int) -> None:
        if done in (3, 4, 11):
            line.cut()

    with Server(line.address, retry_seconds=5) as server:
        told = write_graph(GRAPH, server, progress=cutting)
    assert (told.nodes_written, told.edges_written) == (len(GRAPH.nodes), GRAPH.n_edges)
    assert whole(bolt, GRAPH)


@pytest.mark.parametrize("stage", ["nodes", "edges"])
def test_a_commit_whose_answer_is_lost_is_not_done_twice(
    bolt: Server, line: Line, stage: str
) -> None:
    def losing(name: str, done: int, total: int) -> None:
        line.lose_commit = (name, done) == (stage, 5)

    with Server(line.address, retry_seconds=5) as server:
        with pytest.raises(StoreError, match="run again: what is written already stays"):
            write_graph(GRAPH, server, progress=losing)
        write_graph(GRAPH, server)
    assert whole(bolt, GRAPH)


def test_a_server_killed_in_mid_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not bolt_server.installed():
        pytest.skip("arcadedb-embedded, the Bolt server of the tests, has no wheel here")
    monkeypatch.setenv(PASSWORD_VARIABLE, bolt_server.PASSWORD)
    own = bolt_server.BoltServer(tmp_path)
    own.start()

    def killing_at(part: int) -> graph_writing.Progress:
        def killing(name: str, done: int, total: int) -> None:
            if (name, done) == ("edges", part):
                own.kill()

        return killing

    try:
        address = Address.parse(own.uri)
        with (
            Server(address, retry_seconds=1) as server,
            pytest.raises(StoreError, match="found no answer"),
        ):
            write_graph(GRAPH, server, progress=killing_at(7))
        own.start()
        with Server(address, retry_seconds=1) as server:
            nodes, edges = in_server(server)
            assert nodes == len(GRAPH.nodes)
            assert 0 < edges < GRAPH.n_edges
            told = write_graph(GRAPH, server)
            assert (told.nodes_written, told.edges_written) == (0, GRAPH.n_edges - edges)
            assert whole(server, GRAPH)
            more = pd.DataFrame({"user_id": [f"u{n}" for n in range(100)], "item_id": "i1"})
            grown = GRAPH.with_events(more.assign(event="buy", timestamp=2e9))
            with pytest.raises(StoreError, match="found no answer"):
                write_graph(grown, server, progress=killing_at(12))  # 8 parts were written
        own.start()
        with Server(address) as server:
            edges = in_server(server)[1]
            assert GRAPH.n_edges < edges < grown.n_edges
            assert write_graph(grown, server).edges_written == grown.n_edges - edges
            assert whole(server, grown)
    finally:
        own.kill()
