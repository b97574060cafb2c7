"""A graph as one file or folder of another library's terms; without pickle.

networkx: a node-link JSON file, `networkx.node_link_graph(data, name="node", edges="edges")`.
PyTorch Geometric: a folder of `nodes.parquet` (`type`, `id`, `name`, in the order of the graph's
nodes), `tensors.safetensors` (`0.edge_index`, `0.edge_weight`, …) and `about.json`, which names
the edge type of each number; `load_pyg` makes a HeteroData of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgrank.errors import ConfigError, StoreError
from kgrank.files import check_new, check_new_file, new_folder, replacing
from kgrank.kg.exchange import from_networkx, to_networkx
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.pyg import from_pyg, to_pyg

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

TENSORS, NODES, ABOUT = "tensors.safetensors", "nodes.parquet", "about.json"
_EDGE_TENSORS = ("edge_index", "edge_weight", "edge_time", "edge_behaviour")
_LINKS: dict[str, Any] = {"name": "node", "edges": "edges"}


def save_networkx(graph: KnowledgeGraph, path: Path) -> None:
    """Write the graph as node-link JSON, whole or not at all.

    Raises:
        ConfigError: the file's name does not end in .json, by which it is known when it is read;
            or there is something of this name.
    """
    import networkx

    if path.suffix != ".json":
        raise ConfigError(
            f"{path}: found a name that does not end in .json; allowed: one that does, since the "
            f"file is known by it when it is read. Name it {path.name}.json."
        )
    check_new_file(path)  # before the work
    data = networkx.node_link_data(to_networkx(graph), **_LINKS)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, ensure_ascii=False, allow_nan=False)


def load_networkx(path: Path) -> KnowledgeGraph:
    """The graph of a node-link JSON file.

    Raises:
        StoreError: the file holds something else.
        DataError: a node or edge lacks what it needs; see `kgrank.kg.exchange.from_networkx`.
    """
    import networkx

    try:
        data = json.loads(path.read_text("utf-8"))
        links = networkx.node_link_graph(data, directed=True, multigraph=True, **_LINKS)
    except (ValueError, KeyError, TypeError, AttributeError, networkx.NetworkXError) as error:
        raise StoreError(
            f"{path}: found no node-link JSON ({error!r:.200}); allowed: what networkx's "
            'node_link_data(…, name="node", edges="edges") gives. Export it again.'
        ) from error
    return from_networkx(links)


def save_pyg(graph: KnowledgeGraph, folder: Path) -> None:
    """Write the graph's HeteroData into a new folder, whole or not at all.

    Raises:
        ConfigError: the folder exists and is not empty.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.torch import save_file

    check_new(folder)  # before the work
    data = to_pyg(graph)
    rows = [
        (number, kind, id_, name)
        for kind in data.node_types
        for number, id_, name in zip(
            data[kind].node_number.tolist(), data[kind].node_id, data[kind].name, strict=True
        )
    ]
    columns = zip(*[row[1:] for row in sorted(rows)], strict=True) if rows else [()] * 3
    names = ("type", "id", "name")
    table = pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})
    tensors = {
        f"{number}.{name}": data[kind][name].contiguous()
        for number, kind in enumerate(data.edge_types)
        for name in _EDGE_TENSORS
    }
    about = {
        "format": 1,
        "edge_types": data.edge_types,
        "attributes": data.attributes,
        "relations": data.relations,
    }
    with new_folder(folder) as temporary:
        pq.write_table(table, temporary / NODES, compression="zstd")
        save_file(tensors, temporary / TENSORS)
        (temporary / ABOUT).write_text(json.dumps(about, ensure_ascii=False), "utf-8")


def load_pyg(folder: Path) -> HeteroData:
    """The HeteroData that `save_pyg` wrote.

    Raises:
        StoreError: a file is missing or holds something else.
    """
    import pyarrow.parquet as pq
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch_geometric.data import HeteroData

    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        nodes = pq.read_table(folder / NODES).to_pandas()
        tensors = load_file(folder / TENSORS)
        data = HeteroData()
        for kind, own in nodes.groupby("type", sort=False):
            data[kind].num_nodes = len(own)
            data[kind].node_id, data[kind].name = own["id"].to_numpy(), own["name"].to_numpy()
            data[kind].node_number = torch.tensor(own.index)
        for number, (head, relation, tail) in enumerate(about["edge_types"]):
            store = data[head, relation, tail]
            for name in _EDGE_TENSORS:
                store[name] = tensors[f"{number}.{name}"]
            ends = torch.tensor([[data[head].num_nodes], [data[tail].num_nodes]])
            if ((store.edge_index < 0) | (store.edge_index >= ends)).any():
                raise ValueError(f"an edge of {relation!r} ends at no node")
        data.attributes, data.relations = about["attributes"], about["relations"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise StoreError(
            f"{folder}: found no graph for PyTorch Geometric ({error}); allowed: {NODES}, "
            f"{TENSORS} and {ABOUT} as they were written. Export it again."
        ) from error
    return data


def load_graph(path: Path) -> KnowledgeGraph | None:
    """The graph of a file or folder of any of these kinds, or of `KnowledgeGraph.save`.

    Returns:
        None if `path` is of no such kind.

    Raises:
        StoreError, BundleError, DataError: it is damaged.
    """
    if path.is_file() and path.suffix == ".json":
        return load_networkx(path)
    if (path / TENSORS).is_file():
        return from_pyg(load_pyg(path))
    if (path / "edges.parquet").is_file() and (path / NODES).is_file():
        return KnowledgeGraph.load(path)
    return None
