"""The graph on disk: two parquet files that any tool can read, and the graph's fingerprint.

`nodes.parquet` has one row a node in the order of the node numbers: `type`, `id`, `name`.
`edges.parquet` has one row an edge in the order of the edge numbers: `head` and `tail` (int32, rows
of nodes.parquet from 0), `relation` (int16), `weight` (float32), `time` (uint32 seconds UTC,
0 = none). Both carry the same JSON (`About`) under the key `kgrank` of their metadata.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from kgrank.errors import BundleError, DataError
from kgrank.kg.building import Edges, sorted_edges
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.vocabulary import ITEM, USER, Nodes, Vocabulary, read_only
from kgrank.settings import Section

NODES = pa.schema(
    [("type", pa.large_string()), ("id", pa.large_string()), ("name", pa.large_string())]
)
EDGES = pa.schema(
    [
        ("head", pa.int32()),
        ("relation", pa.int16()),
        ("tail", pa.int32()),
        ("weight", pa.float32()),
        ("time", pa.uint32()),
    ]
)


class About(Section):
    """What both files say of themselves.

    Attributes:
        format: the number of this layout.
        fingerprint: see `fingerprint`; tells that both files are of one graph.
        relations: the name of each relation number.
        behaviours: for each relation whether it is an event kind (else: knowledge).
        attributes: the attribute columns.
    """

    format: Literal[1] = 1
    fingerprint: str
    relations: tuple[str, ...]
    behaviours: tuple[bool, ...]
    attributes: tuple[str, ...]


def save(graph: KnowledgeGraph, folder: Path) -> None:
    """Writes `nodes.parquet` and `edges.parquet` into the folder, each in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    about = About(
        fingerprint=fingerprint(graph),
        relations=graph.relations,
        behaviours=tuple(graph.behaviours.tolist()),
        attributes=graph.attributes,
    )
    nodes, edges = graph.nodes, graph.edge_list()
    columns = (edges.heads, edges.relations, edges.tails, edges.weights, edges.times)
    for name, schema, arrays in (
        ("nodes.parquet", NODES, (_types(nodes), nodes.ids, nodes.names)),
        ("edges.parquet", EDGES, tuple(pa.array(column) for column in columns)),
    ):
        schema = schema.with_metadata({"kgrank": about.model_dump_json()})
        part = folder / f"{name}.part"
        table = pa.table(list(arrays), schema=schema)
        pq.write_table(table, part, compression="zstd", write_page_checksum=True)
        part.replace(folder / name)


def load(folder: Path) -> KnowledgeGraph:
    """The graph that `save` wrote into the folder.

    Raises:
        BundleError: a file is missing, damaged, of an unknown format or of another graph, or a
            row is out of bounds.
    """
    node_table, about = _read(folder / "nodes.parquet", NODES)
    edge_table, edges_about = _read(folder / "edges.parquet", EDGES)
    if about != edges_about:
        raise BundleError(
            f"{folder}: found nodes.parquet of graph {about.fingerprint[:12]} and edges.parquet of "
            f"graph {edges_about.fingerprint[:12]}; allowed: both of one. Save the graph again."
        )
    try:
        nodes = nodes_of_columns(*(node_table[name].combine_chunks() for name in NODES.names))
    except DataError as error:
        raise BundleError(f"{folder / 'nodes.parquet'}: {error}") from error
    columns = (edge_table[name].to_numpy() for name in EDGES.names)
    edges = Edges(*columns)
    behaviours = np.array(about.behaviours, dtype=bool)
    _check(edges, nodes, behaviours, folder / "edges.parquet")
    return KnowledgeGraph.from_edges(nodes, about.relations, behaviours, about.attributes, edges)


def fingerprint(graph: KnowledgeGraph) -> str:
    """The sha256 (hex) of nodes, names, relations, attributes and edges.

    Nodes are taken by (type, id) and relations by name, so graphs that say the same have the same
    fingerprint in whichever order they learned it.
    """
    nodes, edges = graph.nodes, graph.edge_list()
    table = pa.table({"type": _types(nodes), "id": nodes.ids, "name": nodes.names})
    order = pc.sort_indices(table, sort_keys=[("type", "ascending"), ("id", "ascending")])
    keys = list(zip((~graph.behaviours).tolist(), graph.relations, strict=True))
    relation_order = sorted(range(len(keys)), key=keys.__getitem__)
    node_rank, relation_rank = _rank(order.to_numpy()), _rank(np.array(relation_order, dtype=int))
    edges = sorted_edges(
        Edges(
            node_rank[edges.heads],
            relation_rank[edges.relations],
            node_rank[edges.tails],
            edges.weights,
            edges.times,
        ),
        len(nodes),
        graph.behaviours[relation_order],
    )
    digest = hashlib.sha256(b"kgrank graph 1\n")
    header = [len(nodes), len(edges), sorted(keys), sorted(graph.attributes)]
    digest.update(json.dumps(header).encode())
    for column in table.take(order).columns:
        digest.update(pc.binary_length(column).to_numpy().astype("<i8").tobytes())
        digest.update("".join(column.to_pylist()).encode())
    for array, dtype in (
        (edges.heads, "<i4"),
        (edges.relations, "<i4"),
        (edges.tails, "<i4"),
        (edges.weights, "<f4"),
        (edges.times, "<u4"),
    ):
        digest.update(np.ascontiguousarray(array, dtype=dtype).data)
    return digest.hexdigest()


def _rank(order: NDArray[Any]) -> NDArray[np.int32]:
    """(n,) int32: the place of each number in `order` (n,)."""
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank


def _types(nodes: Nodes) -> Any:
    """(n_nodes,) the type's name of each node."""
    return pa.array(nodes.type_names, pa.large_string()).take(pa.array(nodes.types))


def _read(path: Path, schema: Any) -> tuple[Any, About]:
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path}: found no such file; allowed: a folder with nodes.parquet and edges.parquet. "
            "Check the folder, or save the graph again."
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise BundleError(
            f"{path} is damaged: {error}. Restore or save the graph again."
        ) from error
    try:
        about = About.model_validate_json((table.schema.metadata or {}).get(b"kgrank", b"{}"))
    except ValidationError as error:
        raise BundleError(
            f"{path}: found metadata of an unknown format; allowed: format 1. Load it with the "
            f"version of kgrank that saved it.\n{error}"
        ) from error
    if not table.schema.equals(schema) or any(column.null_count for column in table.columns):
        raise BundleError(
            f"{path}: found columns {table.schema.remove_metadata()}; allowed: {schema}, without "
            "empty cells. Save the graph again."
        )
    return table, about


def nodes_of_columns(types: Any, ids: Any, names: Any) -> Nodes:
    """Nodes from their columns (n_nodes,); raises DataError if an id comes twice in its kind."""
    encoded = types.dictionary_encode()
    seen = encoded.dictionary.to_pylist()
    type_names = ("user", "item", *(name for name in seen if name not in ("user", "item")))
    number_of = np.array([type_names.index(name) for name in seen], dtype=np.int16)
    numbers = read_only(number_of[encoded.indices.to_numpy()])
    kinds = np.minimum(numbers, ITEM + 1)
    users, items, entities = (
        Vocabulary.from_ids(ids.filter(pa.array(kinds == kind))) for kind in range(3)
    )
    return Nodes(type_names, numbers, names, users, items, entities)


def _check(edges: Edges, nodes: Nodes, behaviours: NDArray[np.bool_], path: Path) -> None:
    """Raises BundleError naming the first edge that the nodes and relations do not allow."""
    for name, numbers, n in (
        ("head", edges.heads, len(nodes)),
        ("tail", edges.tails, len(nodes)),
        ("relation", edges.relations, len(behaviours)),
    ):
        _refuse((numbers < 0) | (numbers >= n), name, numbers, f"0 to {n - 1}", path)
    _refuse(~np.isfinite(edges.weights), "weight", edges.weights, "finite numbers", path)
    events = behaviours[edges.relations]
    for name, ends, kind in (("head", edges.heads, USER), ("tail", edges.tails, ITEM)):
        wrong = events & (nodes.types[ends] != kind)
        _refuse(wrong, name, ends, f"{nodes.type_names[kind]}s, for this is an event", path)


def _refuse(
    wrong: NDArray[np.bool_], name: str, values: NDArray[Any], allowed: str, path: Path
) -> None:
    for row in np.flatnonzero(wrong)[:1]:
        raise BundleError(
            f"{path}, row {row + 1}: found {name} {values[row]}; allowed: {allowed}. "
            "The file does not belong to these nodes: save the graph again."
        )
