"""Queries that give back the path: quoted so that no name can leave its quotes."""

from __future__ import annotations

from kgrank.kg.bolt import Server
from kgrank.kg.graph_writing import write_graph
from kgrank.serving.cypher import literal, path_query, query_of, quoted
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


def test_a_server_finds_exactly_the_paths_that_are_shown(even: Recommender, bolt: Server) -> None:
    """In the export of the sample shop; two parallel edges are one path."""
    listed = even.recommend(["u-ada", *even.bundle.users.ids()[:3]], n=2)
    pairs = zip(listed["user_id"].tolist(), listed["item_id"].tolist(), strict=True)
    paths = [path for pair in pairs for path in even.explain(*pair, max_paths=5).paths]
    assert any(path.over_user for path in paths)
    assert not all(path.over_user for path in paths)
    write_graph(even.bundle.graph, bolt)
    for path in paths:
        assert len(bolt.read(path.cypher)) == 1
        every = path.cypher.replace("RETURN p LIMIT 1", "RETURN DISTINCT [n IN nodes(p) | n.id]")
        assert bolt.read(every) == [[[node.id for node in path.nodes]]]
    gone = paths[0].edges[-1]
    assert bolt.read(paths[0].cypher.replace(f"`{gone.relation}`", "`nothing`")) == []


def test_a_server_reads_quotes_as_they_are_meant(bolt: Server) -> None:
    """Ids and relations of any letters, as somebody else may have written them."""
    for number, name in enumerate(NASTY):
        query = (
            f"CREATE (:User {{id: {literal(name)}, number: {number}}})"
            f"-[:{quoted(name)}]->(:Item {{id: {literal(name)}}})"
        )
        bolt.write(lambda tx, query=query: tx.run(query).consume())
    for number, name in enumerate(NASTY):
        nodes = PathNode(name, "user", ""), PathNode(name, "item", "")
        said = query_of(nodes, [PathEdge(name, name, name)])
        found = bolt.read(said.replace("RETURN p LIMIT 1", "RETURN [n IN nodes(p) | n.id]"))
        assert found == [[[name, name]]]
        query = f"MATCH (n:User {{id: {literal(name)}}}) RETURN n.number, n.id"
        assert bolt.read(query) == [[number, name]]
