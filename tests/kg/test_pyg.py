"""PyTorch Geometric's HeteroData: a graph comes back as it was, and a wrong one is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import ToSparseTensor, ToUndirected

from kgrank.errors import DataError
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_files import load_graph, save_pyg
from kgrank.kg.pyg import from_pyg, to_pyg
from kgrank.kg.tables import checked_tables

VIEW = ("user", "view", "item")


@pytest.fixture
def graph() -> KnowledgeGraph:
    """Nodes whose types alternate: brands are met between the items' own facts and the places."""
    items = pd.DataFrame(
        {
            "item_id": list("abc"),
            "title": ["Saw", "", "Axe"],
            "brand": ["x", "y", "x"],
            "colour": ["red", "", "blue"],
        }
    )
    events = pd.DataFrame(
        {
            "user_id": ["u", "v", "v", "w"],
            "item_id": ["c", "a", "a", "late"],
            "event": ["view", "buy", "view", "view"],
            "timestamp": [5.0, 7.0, 7.0, 9.0],
            "value": [1.0, -2.0, 3.0, 1.0],
        }
    )
    triples = pd.DataFrame(
        {"head": ["b", "Q1"], "relation": ["near", "near"], "tail": ["Q1", "a"], "weight": [0.5, 2]}
    )
    tables = {"items": items, "events": events, "triples": triples}
    return KnowledgeGraph.from_tables(checked_tables(tables)).with_events(
        pd.DataFrame({"user_id": ["new"], "item_id": ["fresh"], "event": ["view"]})
    )


def same(one: KnowledgeGraph, other: KnowledgeGraph) -> bool:
    """Whether nodes, edges and relations have the same numbers too."""
    edges = one.edge_list(), other.edge_list()
    arrays = ("heads", "relations", "tails", "weights", "times")
    return (
        one.nodes.ids.equals(other.nodes.ids)
        and one.nodes.names.equals(other.nodes.names)
        and np.array_equal(one.nodes.types, other.nodes.types)
        and (one.relations, one.attributes) == (other.relations, other.attributes)
        and all(np.array_equal(*(getattr(part, name) for part in edges)) for name in arrays)
    )


def test_numbers_of_nodes_and_edges_come_back_too(graph: KnowledgeGraph, tmp_path: Path) -> None:
    assert (np.diff(graph.nodes.types) < 0).any()  # an item after an entity
    data = graph.to_pyg()
    assert same(from_pyg(data), graph)
    assert data["item"].node_number.tolist() == graph.nodes.item_nodes.tolist()
    save_pyg(graph, tmp_path / "saved")
    loaded = load_graph(tmp_path / "saved")
    assert loaded is not None
    assert same(loaded, graph)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_a_copy_is_read_as_well(
    graph: KnowledgeGraph, copied: Callable[[HeteroData], HeteroData]
) -> None:
    assert same(from_pyg(copied(graph.to_pyg())), graph)


def test_a_subgraph_of_pyg_keeps_ids_and_names(graph: KnowledgeGraph) -> None:
    data = graph.to_pyg()
    kept = data.subgraph({"item": torch.tensor([0, 2])})
    assert kept["item"].node_id.tolist() == ["a", "c"]
    assert kept["item"].name.tolist() == ["Saw", "Axe"]
    part = from_pyg(kept)
    assert part.items.array.to_pylist() == ["a", "c"]
    assert from_pyg(
        data.subgraph({"item": torch.tensor([True, False, True, False, False])})
    ).equals(part)


def test_what_coalesce_leaves_too_long_is_refused(graph: KnowledgeGraph) -> None:
    twice = pd.DataFrame({"user_id": ["u"], "item_id": ["c"], "event": ["view"], "timestamp": [6]})
    data = graph.with_events(twice).to_pyg().coalesce()
    with pytest.raises(DataError, match=r"'edge_weight'.*\(5,\); allowed: \(4,\).*coalesce"):
        from_pyg(data)


def small() -> HeteroData:
    """u viewed a and b, of items a, b and c."""
    data = HeteroData()
    data["item"].node_id = ["a", "b", "c"]
    data["user"].node_id = ["u"]
    data[VIEW].edge_index = torch.tensor([[0, 0], [0, 1]])
    return data


def edges(graph: KnowledgeGraph) -> list[tuple[str, str, float, int]]:
    every = graph.edge_list()
    return [
        (graph.node(head).id, graph.node(tail).id, float(weight), int(time))
        for head, tail, weight, time in zip(
            every.heads, every.tails, every.weights, every.times, strict=True
        )
    ]


@pytest.mark.parametrize(
    ("weights", "times"),
    [
        (torch.tensor([-1.0, 2.0]), torch.tensor([0, 2**32 - 1])),
        (torch.tensor([-1, 2]), torch.tensor([0.0, 2**32 - 1], dtype=torch.float64)),
        (torch.tensor([-1.0, 2.0], requires_grad=True), np.array([0, 2**32 - 1])),
    ],
)
def test_numbers_of_any_kind_are_read(weights: Any, times: Any) -> None:
    data = small()
    data[VIEW].edge_weight, data[VIEW].edge_time = weights, times
    data[VIEW].edge_index = EdgeIndex(data[VIEW].edge_index)
    assert edges(from_pyg(data)) == [("u", "a", -1.0, 0), ("u", "b", 2.0, 2**32 - 1)]


def test_stores_without_edges_or_names_are_read() -> None:
    data = small()
    data["item", "near", "item"].edge_index = torch.empty(2, 0, dtype=torch.long)
    data["item"].name = np.array(["Saw", "Axe", "Nail"])
    found = from_pyg(data)
    assert edges(found) == [("u", "a", 1.0, 0), ("u", "b", 1.0, 0)]
    assert [found.node(number).name for number in range(4)] == ["Saw", "Axe", "Nail", "u"]
    assert not len(from_pyg(HeteroData()).nodes)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 3], "row 1, .*'node_id': found 1; allowed: a text"),
        (["a", None, "c"], "row 2, .*found None"),
        (["a", "", "c"], "row 2, .*found ''"),
        (torch.tensor([1, 2, 3]), "found a Tensor; allowed: a list"),
        (["a", "a", "c"], "found 'a' again"),
        ("abc", "found a str; allowed: a list"),
        (None, "found nothing; allowed: a list"),
    ],
)
def test_ids_are_texts_each_once(ids: object, message: str) -> None:
    data = small()
    data["item"].node_id = ids
    with pytest.raises(DataError, match=message):
        from_pyg(data)


def test_every_node_has_an_id_and_a_name() -> None:
    data = small()
    data["item"].name = ["Saw"]
    with pytest.raises(DataError, match="'item', column 'name': found 1 for 3 nodes"):
        from_pyg(data)
    data = small()
    data["item"].num_nodes = 4
    with pytest.raises(DataError, match="'node_id': found 3 ids of 4 nodes"):
        from_pyg(data)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (torch.tensor([[0, 0], [0, 3]]), "row 2, .*found 3; allowed: a tail of 0 to 2"),
        (torch.tensor([[0, -1], [0, 1]]), "row 2, .*found -1; allowed: a head of 0 to 0"),
        (
            torch.tensor([[0.0, 0], [0, 1]]),
            r"float32 of shape \(2, 2\); allowed: \(2, n\) integers",
        ),
        (torch.tensor([0, 1]), r"int64 of shape \(2,\)"),
        (torch.eye(2).to_sparse(), "found a Tensor; allowed: a dense tensor"),
    ],
)
def test_edges_lead_to_nodes_of_their_types(index: torch.Tensor, message: str) -> None:
    data = small()
    data[VIEW].edge_index = index
    with pytest.raises(DataError, match=message):
        from_pyg(data)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("edge_weight", torch.tensor([np.nan, 1.0]), "row 1, .*found nan; allowed: finite"),
        ("edge_weight", torch.tensor([1.0, 1e39], dtype=torch.float64), r"row 2, .*3\.4e38"),
        ("edge_weight", torch.ones(2, 1), r"shape \(2, 1\); allowed: \(2,\) numbers"),
        ("edge_weight", torch.ones(1), r"shape \(1,\); allowed: \(2,\) numbers"),
        ("edge_weight", [1.0, 1.0], "found a list; allowed: a dense tensor"),
        ("edge_time", torch.tensor([-5, 5]), "row 1, .*found -5; allowed: whole seconds"),
        ("edge_time", torch.tensor([5, 2**32]), "row 2, .*found 4294967296"),
        ("edge_time", torch.tensor([1.5, 5.0]), r"row 1, .*found 1\.5"),
        ("edge_behaviour", torch.tensor([1, 0]), r"int64 of shape \(2,\); allowed: \(2,\) bool"),
    ],
)
def test_what_edges_carry_is_in_range(name: str, values: object, message: str) -> None:
    data = small()
    data[VIEW][name] = values
    with pytest.raises(DataError, match=message) as caught:
        from_pyg(data)
    assert f"edge store {VIEW}" in str(caught.value)
    assert f"column {name!r}" in str(caught.value)


def test_knowledge_weighs_more_than_nothing() -> None:
    data = small()
    data[VIEW].edge_weight = torch.tensor([-1.0, -1.0])
    data[VIEW].edge_behaviour = torch.tensor([True, False])
    with pytest.raises(DataError, match=r"row 2, .*found -1\.0; allowed: weights above 0"):
        from_pyg(data)


def test_only_users_behave_and_only_towards_items(graph: KnowledgeGraph) -> None:
    data = graph.to_pyg()
    with pytest.raises(DataError, match=r"'rev_.*'edge_behaviour'.*found True; allowed: false"):
        from_pyg(ToUndirected()(data))


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")  # of torch, once a process
def test_graphs_of_another_form_are_refused(graph: KnowledgeGraph) -> None:
    with pytest.raises(DataError, match="found a Data; allowed: a HeteroData"):
        from_pyg(Data(edge_index=torch.zeros(2, 0, dtype=torch.long)))
    sparse = ToSparseTensor()(to_pyg(graph))
    with pytest.raises(DataError, match=r"adj_t.* and no edge_index"):
        from_pyg(sparse)
    data = small()
    data["item", "of", "brand"].edge_index = torch.tensor([[0], [0]])
    with pytest.raises(DataError, match=r"'brand'.*allowed: node types item, user"):
        from_pyg(data)
    for name, value in (("relations", ["view"]), ("relations", 3), ("attributes", "brand")):
        data = small()
        data[name] = value
        with pytest.raises(DataError, match=f"column '{name}': found .*another name"):
            from_pyg(data)
