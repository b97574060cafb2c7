"""Queries that give back the path: quoted so that no name can leave its quotes."""

from __future__ import annotations

from pathlib import Path as Folder

import pytest

from kgrank.kg.graph import KnowledgeGraph
from kgrank.serving.cypher import literal, path_query, quoted
from kgrank.serving.explanation import Path, PathEdge, PathNode
from kgrank.serving.recommender import Recommender

NASTY = ["it's", 'a "b"', "back\\slash", "new\nline", "`tick`", "x'})-[]-() //", "\\u0027", "日本"]


def test_a_path_as_a_query() -> None:
    path = Path(
        (
            PathNode("u1", "user", "ann"),
            PathNode("p1", "item", "Pan"),
            PathNode("brand:N", "brand", "N"),
            PathNode("p2", "item", "Lid"),
        ),
        (
            PathEdge("purchase", "u1", "p1"),
            PathEdge("made by", "p1", "brand:N"),
            PathEdge("made by", "p2", "brand:N"),
        ),
        0.5,
    )
    assert path_query(path) == (
        "MATCH p = (:User {id: 'u1'})-[:`purchase`]->(:Item {id: 'p1'})"
        "-[:`made by`]->(:Entity {id: 'brand:N'})<-[:`made by`]-(:Item {id: 'p2'}) "
        "RETURN p LIMIT 1"
    )


def test_quotes_are_escaped_and_no_backslash_stands_before_a_u() -> None:
    """Cypher turns backslash-u and four digits into a character before it looks for quotes."""
    assert literal("it's") == r"'it\'s'"
    assert literal("a\\b") == r"'a\\b'"
    assert literal("\\u0027") == r"'\\' + 'u0027'"
    assert quoted("a`b") == "`a``b`"
    for name in NASTY:
        assert "\\u" not in literal(name).replace("\\\\' + 'u", "")
    assert quoted("\\u0060") == "`\\u005Cu0060`"  # the first five stand for the backslash


def test_a_server_finds_exactly_the_paths_that_are_shown(
    even: Recommender, tmp_path: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample shop's graph around two explanations, in a database that speaks Cypher."""
    arcadedb = pytest.importorskip("arcadedb_embedded")
    listed = even.recommend(["u-ada", *even.bundle.users.ids()[:3]], n=2)
    pairs = zip(listed["user_id"].tolist(), listed["item_id"].tolist(), strict=True)
    paths = [path for pair in pairs for path in even.explain(*pair, max_paths=5).paths]
    assert any(path.over_user for path in paths)
    assert not all(path.over_user for path in paths)
    monkeypatch.chdir(tmp_path)  # where it leaves its logs
    database = arcadedb.create_database(str(tmp_path / "graph"))
    try:
        _fill(database, even.bundle.graph, paths)
        for path in paths:
            found = list(database.query("opencypher", path.cypher))
            assert len(found) == 1
            nodes = path.cypher.replace("RETURN p LIMIT 1", "RETURN [n IN nodes(p) | n.id] AS ids")
            ids = list(next(iter(database.query("opencypher", nodes))).get("ids"))
            assert ids == [node.id for node in path.nodes]
        gone = paths[0].edges[-1]
        wrong = paths[0].cypher.replace(f"`{gone.relation}`", "`nothing`")
        assert list(database.query("opencypher", wrong)) == []
        for number, name in enumerate(NASTY):
            with database.transaction():
                database.command(
                    "opencypher", f"CREATE (:Item {{id: {literal(name)}, number: {number}}})"
                )
        for number, name in enumerate(NASTY):
            query = f"MATCH (n:Item {{id: {literal(name)}}}) RETURN n.number AS n, n.id AS id"
            rows = [(row.get("n"), row.get("id")) for row in database.query("opencypher", query)]
            assert rows == [(number, name)]
    finally:
        database.close()


def _fill(database: object, graph: KnowledgeGraph, paths: list[Path]) -> None:
    """All edges between the nodes of the paths."""
    nodes = {(node.type, node.id) for path in paths for node in path.nodes}
    numbers = {graph.node_number(type_, id_) for type_, id_ in nodes}
    kinds = {"user": "User", "item": "Item"}
    for kind in ("User", "Item", "Entity"):
        database.schema.create_vertex_type(kind)
    edges = [
        (number, int(end), graph.relations[int(relation)])
        for number in numbers
        for end, relation in zip(
            graph.neighbors(number).nodes, graph.neighbors(number).relations, strict=True
        )
        if int(end) in numbers
    ]
    for relation in {relation for _, _, relation in edges}:
        database.schema.create_edge_type(relation)
    with database.transaction():
        for number in numbers:
            node = graph.node(number)
            label = kinds.get(node.type, "Entity")
            database.command("opencypher", f"CREATE (:{label} {{id: {literal(node.id)}}})")
        for head, tail, relation in edges:
            ends = [graph.node(number) for number in (head, tail)]
            said = [
                f"(n{k}:{kinds.get(node.type, 'Entity')} {{id: {literal(node.id)}}})"
                for k, node in enumerate(ends)
            ]
            database.command(
                "opencypher",
                f"MATCH {said[0]}, {said[1]} CREATE (n0)-[:{quoted(relation)}]->(n1)",
            )
