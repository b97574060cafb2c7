"""Paths as Cypher queries against the graph's Neo4j export.

There a node has the label `User`, `Item` or `Entity` and its id as the property `id`; a
relationship has the relation's name and runs from head to tail.
"""

from __future__ import annotations

from kgrank.serving.explanation import Path

_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def path_query(path: Path) -> str:
    """A query that returns exactly this path, one row, or none where an edge is missing.

    Parallel edges, such as two purchases of one product, are one path.
    """
    nodes = [f"(:{_label(node.type)} {{id: {literal(node.id)}}})" for node in path.nodes]
    said = nodes[0]
    for edge, back, node in zip(path.edges, path.backward(), nodes[1:], strict=True):
        step = f"[:{quoted(edge.relation)}]"
        said += (f"<-{step}-" if back else f"-{step}->") + node
    return f"MATCH p = {said} RETURN p LIMIT 1"


def literal(text: str) -> str:
    """The text as a Cypher string.

    Cypher reads backslash-u as a character before it looks for quotes, so no backslash stands
    before a u: the string is cut there and joined again.
    """
    pieces = [part.translate(_ESCAPES) for part in text.split("\\u")]
    return "'" + "\\\\' + 'u".join(pieces) + "'"


def quoted(name: str) -> str:
    """The name of a relation in backticks."""
    return "`" + name.replace("`", "``").replace("\\u", "\\u005Cu") + "`"


def _label(type_: str) -> str:
    return {"user": "User", "item": "Item"}.get(type_, "Entity")
