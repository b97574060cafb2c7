"""Paths as Cypher queries against the graph's Neo4j export.

There a node has the label `User`, `Item` or `Entity` and its id as the property `id`; a
relationship has the relation's name and runs from head to tail.
"""

from __future__ import annotations

from collections.abc import Sequence

from kgrank.serving.explanation import Path, PathEdge, PathNode, backward

_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def path_query(path: Path) -> str:
    """A query that returns exactly this path, one row, or none where an edge is missing.

    Parallel edges, such as two purchases of one product, are one path.
    """
    return query_of(path.nodes, path.edges)


def query_of(nodes: Sequence[PathNode], edges: Sequence[PathEdge]) -> str:
    """The same of a path's nodes and edges."""
    said = _said(nodes[0])
    for edge, back, node in zip(edges, backward(nodes, edges), nodes[1:], strict=True):
        step = f"[:{quoted(edge.relation)}]"
        said += (f"<-{step}-" if back else f"-{step}->") + _said(node)
    return f"MATCH p = {said} RETURN p LIMIT 1"


def _said(node: PathNode) -> str:
    label = "User" if node.type == "user" else "Item" if node.type == "item" else "Entity"
    return f"(:{label} {{id: {literal(node.id)}}})"


def literal(text: str) -> str:
    """The text as a Cypher string.

    Cypher reads backslash-u as a character before it looks for quotes, so no backslash stands
    before a u: the string is cut there and joined again.
    """
    if text.isalnum():
        return f"'{text}'"
    pieces = [part.translate(_ESCAPES) for part in text.split("\\u")]
    return "'" + "\\\\' + 'u".join(pieces) + "'"


def quoted(name: str) -> str:
    """The name of a relation in backticks."""
    return "`" + name.replace("`", "``").replace("\\u", "\\u005Cu") + "`"
