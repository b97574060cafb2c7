"""What every store of graphs keeps: the same promises, in process and in a server."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kgrank.data import sample_shop
from kgrank.kg.bolt import Server
from kgrank.kg.building import Edges
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_server import read_graph
from kgrank.kg.graph_writing import write_graph
from kgrank.kg.tables import Tables, read_tables

ODD = "a `b` 'c' \"d\" $x {y} //z\n茶 \\ ) DETACH DELETE n //"


@dataclass(frozen=True)
class Store:
    """Where a graph goes, and comes back from."""

    save: Callable[[KnowledgeGraph], object]
    load: Callable[[], KnowledgeGraph]


@pytest.fixture(params=["parquet", "server"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "parquet":
        return Store(lambda graph: graph.save(tmp_path), lambda: KnowledgeGraph.load(tmp_path))
    server: Server = request.getfixturevalue("bolt")
    return Store(lambda graph: write_graph(graph, server), lambda: read_graph(server))


def shop(**tables: pd.DataFrame) -> Tables:
    events = pd.DataFrame(
        {
            "user_id": ["007", "007", "007", "7", "茶"],
            "item_id": ["7", "7", "7", "saw", "saw"],
            "event": ["buy", "buy", "buy", "likes", ODD],
            "timestamp": [10.0, 10.0, 20.0, 4294967295.0, np.nan],
            "value": [np.nan, np.nan, 0.1, -2.5, 1e-30],
        }
    )
    items = pd.DataFrame(
        {
            "item_id": ["saw", "7", "alone"],
            "title": ["Hand Saw", "", "Nobody's"],
            "description": "",
            "brand": ["Stanley", f"Stanley|{ODD}", ""],
        }
    )
    triples = pd.DataFrame(
        [
            ("7", "likes", "saw", 0.5),
            ("saw", ODD, "e`1", 1.0),
            ("saw", ODD, "e`1", 2.0),
            ("e`1", "next", "e`1", 1.0),
        ],
        columns=["head", "relation", "tail", "weight"],
    )
    entities = pd.DataFrame(
        {"entity_id": ["e`1", "Q1"], "name": [ODD, "Alone"], "type": ["odd`", "place"]}
    )
    users = pd.DataFrame({"user_id": ["茶", "nobody"]})
    made = {"events": events, "items": items, "triples": triples, "entities": entities}
    return Tables(**{**made, "users": users, "queries": pd.DataFrame(), **tables})


GRAPH = KnowledgeGraph.from_tables(shop())
EMPTY = KnowledgeGraph.from_edges(
    replace(GRAPH.nodes).empty(), (), np.empty(0, bool), (), Edges.empty()
)


def test_a_graph_comes_back_to_the_letter(store: Store) -> None:
    store.save(GRAPH)
    back = store.load()
    assert back.fingerprint() == GRAPH.fingerprint()
    assert sorted(map(str, back.relations)) == sorted(GRAPH.relations)
    assert back.attributes == ("brand",)
    user, item = back.node_number("user", "007"), back.node_number("item", "7")
    bought = back.neighbors(user, "buy")
    assert bought.nodes.tolist() == [item] * 3  # three times the same thing
    assert bought.times.tolist() == [10, 10, 20]
    assert bought.weights.tolist() == [1, 1, np.float32(0.1)]
    assert back.node(back.node_number("odd`", "e`1")).name == ODD
    assert back.node(back.node_number("item", "7")).name == "7"


@pytest.mark.parametrize(
    "graph",
    [
        EMPTY,
        KnowledgeGraph.from_tables(
            shop(
                users=pd.DataFrame({"user_id": ["only"]}),
                events=shop().events[:0],
                items=shop().items[:0],
                triples=shop().triples[:0],
                entities=shop().entities[:0],
            )
        ),
    ],
    ids=["nothing", "one user"],
)
def test_a_graph_without_edges_comes_back(store: Store, graph: KnowledgeGraph) -> None:
    store.save(graph)
    assert store.load().fingerprint() == graph.fingerprint()


def test_what_is_saved_again_takes_the_place_of_what_was(store: Store) -> None:
    store.save(GRAPH)
    named = shop().entities.assign(name=["Other", "Alone"], type=["place", "place"])
    fewer = shop(
        events=shop().events[1:4].assign(value=[3.0, 0.1, -2.5]),
        users=pd.DataFrame({"user_id": ["茶"]}),
        items=shop().items[:2],
        entities=named,
    )
    for tables in (fewer, shop(), shop(events=shop().events[:0]), shop()):
        graph = KnowledgeGraph.from_tables(tables)
        store.save(graph)
        assert store.load().fingerprint() == graph.fingerprint()


def test_a_name_of_a_megabyte_comes_back(store: Store) -> None:
    name = "茶" * 350_000
    items = shop().items.assign(title=["Hand Saw", name, "x" * 1_000_000])
    graph = KnowledgeGraph.from_tables(shop(items=items))
    store.save(graph)
    back = store.load()
    assert back.node(back.node_number("item", "7")).name == name
    assert back.fingerprint() == graph.fingerprint()


def test_the_sample_shop_comes_back(store: Store) -> None:
    sample = read_tables(sample_shop())
    graph = KnowledgeGraph.from_tables(replace(sample, events=sample.events[:1000]))
    store.save(graph)
    back = store.load()
    assert back.fingerprint() == graph.fingerprint()
    ours, theirs = back.stats(), graph.stats()
    assert dict(ours.edges) == dict(theirs.edges)
    assert {k: v for k, v in ours.nodes.items() if v} == {
        k: v for k, v in theirs.nodes.items() if v
    }
    assert (ours.components, ours.largest_component) == (
        theirs.components,
        theirs.largest_component,
    )
