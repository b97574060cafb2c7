from dataclasses import replace

import networkx
import numpy as np
import pandas as pd
import pytest

from kgrank.errors import DataError
from kgrank.kg.exchange import from_networkx, to_networkx
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.pyg import from_pyg, to_pyg
from kgrank.kg.tables import Tables

# torch_geometric compiles with torch.jit when it is imported
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


TABLES = Tables(
    events=pd.DataFrame(
        {
            "user_id": ["007", "007", "茶"],
            "item_id": ["a:b", "a:b", "saw"],
            "event": "likes",
            "timestamp": [10.0, 20.0, np.nan],
            "value": [np.nan, 4.0, np.nan],
        }
    ),
    items=pd.DataFrame(
        {
            "item_id": ["saw", "a:b"],
            "title": ["Hand Saw", ""],
            "description": "",
            "brand": ["Stanley", "Stanley|Acme"],
        }
    ),
    users=pd.DataFrame({"user_id": ["茶"]}),
    triples=pd.DataFrame(
        [("茶", "likes", "saw", 0.5), ("saw", "goes_with", "a:b", 1.0)],
        columns=["head", "relation", "tail", "weight"],
    ),
    entities=pd.DataFrame({"entity_id": ["Q1"], "name": ["Alone"], "type": ["place"]}),
    queries=pd.DataFrame(),
)


@pytest.fixture(scope="module")
def graph():
    return KnowledgeGraph.from_tables(TABLES)


EDGES = [
    (("user", "007"), "likes", ("item", "a:b"), 1.0, 10),
    (("user", "007"), "likes", ("item", "a:b"), 4.0, 20),
    (("user", "茶"), "likes", ("item", "saw"), 1.0, 0),
    (("user", "茶"), "likes", ("item", "saw"), 0.5, 0),
    (("item", "saw"), "brand", ("brand", "brand:Stanley"), 1.0, 0),
    (("item", "a:b"), "brand", ("brand", "brand:Stanley"), 1.0, 0),
    (("item", "a:b"), "brand", ("brand", "brand:Acme"), 1.0, 0),
    (("item", "saw"), "goes_with", ("item", "a:b"), 1.0, 0),
]


def test_networkx_holds_every_node_and_edge(graph):
    exported = graph.to_networkx()
    assert exported.nodes["item", "saw"] == {"type": "item", "id": "saw", "name": "Hand Saw"}
    assert exported.nodes["place", "Q1"]["name"] == "Alone"
    assert exported.number_of_nodes() == len(graph.nodes) == 7
    found = [
        (head, data["relation"], tail, data["weight"], data["time"])
        for head, tail, data in exported.edges(data=True)
    ]
    assert sorted(found) == sorted(EDGES)


def test_an_edge_key_of_networkx_is_the_edge_number(graph):
    for head, tail, number, data in graph.to_networkx().edges(keys=True, data=True):
        edge = graph.edge(number)
        assert (graph.node_number(*head), graph.node_number(*tail)) == (edge.head, edge.tail)
        behaviour = data.pop("behaviour")
        assert data == {"relation": edge.relation, "weight": edge.weight, "time": edge.time}
        assert behaviour == (head[0] == "user" and edge.weight != 0.5)  # the one triple of a user


def test_pyg_holds_every_node_and_edge(graph):
    data = graph.to_pyg()
    with pytest.warns(UserWarning, match="'place'} are isolated"):
        assert data.validate()
    assert data["user"].node_id.tolist() == ["茶", "007"]
    assert data["item"].node_id.tolist() == ["saw", "a:b"]
    assert data["item"].name.tolist() == ["Hand Saw", "a:b"]
    assert data["place"].num_nodes == 1
    assert set(data.edge_types) == {
        ("user", "likes", "item"),
        ("item", "brand", "brand"),
        ("item", "goes_with", "item"),
    }
    found = []
    for head_type, relation, tail_type in data.edge_types:
        store = data[head_type, relation, tail_type]
        rows = zip(
            *store.edge_index.tolist(),
            store.edge_weight.tolist(),
            store.edge_time.tolist(),
            strict=True,
        )
        found += [
            (
                (head_type, data[head_type].node_id[head]),
                relation,
                (tail_type, data[tail_type].node_id[tail]),
                weight,
                time,
            )
            for head, tail, weight, time in rows
        ]
    assert sorted(found) == sorted(EDGES)


@pytest.mark.parametrize(
    ("there", "back"), [(to_networkx, from_networkx), (to_pyg, from_pyg)], ids=["networkx", "pyg"]
)
def test_a_graph_comes_back_as_it_was(graph, there, back):
    assert back(there(graph)).fingerprint() == graph.fingerprint()
    empty = KnowledgeGraph.from_tables(replace(TABLES, events=TABLES.events[:0]))
    assert back(there(empty)).fingerprint() == empty.fingerprint() != graph.fingerprint()


def test_a_graph_made_in_networkx_needs_little():
    data = networkx.MultiDiGraph()
    data.add_node("u", type="user", id="u")
    data.add_node("i", type="item", id="i", name="Saw")
    data.add_node("b", type="brand", id="b")
    data.add_edge("u", "i", relation="view")
    data.add_edge("i", "b", relation="brand", weight=2)
    graph = from_networkx(data)
    assert (graph.relations, graph.behaviours.tolist()) == (("brand", "view"), [False, True])
    assert graph.node(1) == ("item", "i", "Saw")
    assert graph.edge(1).weight == 2
    data.add_node("x", id="x")
    with pytest.raises(DataError, match=r"'x' with type None; allowed: .* a text 'type'"):
        from_networkx(data)


def test_what_pyg_gets_is_its_own(graph):
    before = graph.fingerprint()
    data = graph.to_pyg()
    data["user", "likes", "item"].edge_weight.zero_()
    assert graph.fingerprint() == before


def test_weights_and_times_that_are_all_the_same_are_exported_too():
    plain = TABLES.events[["user_id", "item_id", "event"]]
    graph = KnowledgeGraph.from_tables(replace(TABLES, events=plain, triples=TABLES.triples[:0]))
    exported = [data for *_, data in graph.to_networkx().edges(data=True)]
    assert [(data["weight"], data["time"]) for data in exported] == [(1.0, 0)] * 6
    store = graph.to_pyg()["user", "likes", "item"]
    assert (store.edge_weight.tolist(), store.edge_time.tolist()) == ([1.0] * 3, [0] * 3)
