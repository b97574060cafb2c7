"""A graph server read as tables: an export of ours, and a database of somebody else's labels."""

from dataclasses import replace
from datetime import timedelta, timezone
from typing import Any

import pandas as pd
import pytest
from neo4j.time import Date, DateTime

from kgrank.data import sample_shop
from kgrank.errors import ConfigError, DataError, StoreError
from kgrank.kg.bolt import Server
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_writing import write_graph
from kgrank.kg.node_scores import NodeScores
from kgrank.kg.server_tables import Neo4jSettings, _moment, read_server_tables
from kgrank.kg.tables import read_tables

THEIRS = """
CREATE (ann:Customer {nr: 7, city: 'Lund', since: date('2020-01-31')}),
       (bob:Customer {nr: 8}),
       (saw:Product {sku: 'S-1', title: 'Hand saw', text: 'It saws.', price: 12.5,
                    tags: ['a', 'b']}),
       (nail:Product {sku: 'N-1'}),
       (acme:Brand {key: 1, label: 'Acme'}), (tools:Category {key: 1}),
       (ann)-[:BOUGHT {at: datetime('2024-01-02T03:04:05Z'), n: 2}]->(saw),
       (ann)-[:BOUGHT {at: datetime('2024-01-02T03:04:05Z'), n: 2}]->(saw),
       (bob)-[:SAW {at: datetime('2024-01-02T23:00:00Z')}]->(nail),
       (bob)-[:HATES]->(nail),
       (saw)-[:MADE_BY]->(acme), (saw)-[:IN {share: 0.5}]->(tools), (nail)-[:IN]->(tools),
       (acme)-[:OWNS]->(:Warehouse {key: 1})
"""


def settings(server: str, **values: Any) -> Neo4jSettings:
    return Neo4jSettings(
        **{
            "uri": server,
            "user_label": "Customer",
            "item_label": "Product",
            "entity_labels": ("Brand", "Category"),
            "user_id": "nr",
            "item_id": "sku",
            "entity_id": "key",
            "title": "title",
            "description": "text",
            "name": "label",
            "events": ("BOUGHT", "SAW"),
            "time": "at",
            "value": "n",
            "weight": "share",
            "attributes": ("city", "price", "tags", "since"),
            **values,
        }
    )


@pytest.fixture
def theirs(bolt: Server) -> Server:
    bolt.write(lambda tx: tx.run(THEIRS).consume())
    return bolt


def rows(frame: pd.DataFrame) -> list[list[Any]]:
    return [[None if cell != cell else cell for cell in row] for row in frame.to_numpy().tolist()]


def test_labels_of_somebody_else_become_tables(theirs: Server, bolt_uri: str) -> None:
    tables = read_server_tables(settings(bolt_uri))
    at = 1_704_164_645.0
    assert list(tables.events) == ["user_id", "item_id", "event", "timestamp", "value"]
    assert rows(tables.events) == [
        ["7", "S-1", "BOUGHT", at, 2.0],
        ["7", "S-1", "BOUGHT", at, 2.0],
        ["8", "N-1", "SAW", 1_704_236_400.0, None],
    ]
    assert rows(tables.items[["item_id", "title", "description", "price", "tags"]]) == [
        ["N-1", "", "", None, ""],
        ["S-1", "Hand saw", "It saws.", 12.5, "a|b"],
    ]
    assert rows(tables.users[["user_id", "city", "since"]]) == [
        ["7", "Lund", "2020-01-31"],
        ["8", "", ""],
    ]
    assert rows(tables.entities) == [
        ["Brand:1", "Acme", "Brand"],
        ["Category:1", "Category:1", "Category"],
    ]
    assert rows(tables.triples) == [  # HATES leads from users to items and is no event
        ["N-1", "IN", "Category:1", 1.0],
        ["S-1", "IN", "Category:1", 0.5],
        ["S-1", "MADE_BY", "Brand:1", 1.0],
    ]
    only = read_server_tables(settings(bolt_uri, relations=("MADE_BY", "HATES")))
    assert sorted(only.triples["relation"]) == ["HATES", "MADE_BY"]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (DateTime(2024, 1, 3, tzinfo=timezone(timedelta(hours=1))), 1_704_236_400.0),
        (DateTime(2024, 1, 3), 1_704_240_000.0),
        (Date(2024, 1, 3), 1_704_240_000.0),
        (7, 7),
        ("2024-01-03", "2024-01-03"),
        (None, None),
    ],
)
def test_times_of_neo4j_become_seconds(time: Any, seconds: Any) -> None:
    assert _moment(time) == seconds


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"events": ()}, r"that is marked as an event; there are: BOUGHT, HATES, SAW\. Name the"),
        ({"events": ("BUYS",)}, r"found no \(:Customer\)-\[…\]->\(:Product\) of type BUYS; there"),
        ({"entity_labels": ("Brand", "Product")}, r"one label for two kinds \(Product\)"),
        ({"user_label": "Product"}, r"one label for two kinds \(Product\)"),
        ({"uri": None}, "neo4j.uri: found none"),
    ],
)
def test_a_map_that_fits_nothing_is_told(
    theirs: Server, bolt_uri: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        read_server_tables(settings(bolt_uri, **values))


def test_further_properties_of_events_are_kept_where_they_are_asked_for(
    theirs: Server, bolt_uri: str
) -> None:
    theirs.write(lambda tx: tx.run("MATCH ()-[r:SAW]->() SET r.said = 'Too short.'").consume())
    asked = ("said", "nowhere")
    events = read_server_tables(settings(bolt_uri), asked).events
    assert "nowhere" not in events
    told = dict(zip(events["event"], events["said"], strict=True))
    assert told == {"BOUGHT": "", "SAW": "Too short."}
    assert "said" not in read_server_tables(settings(bolt_uri)).events


def test_faults_name_what_they_are_in(theirs: Server, bolt_uri: str) -> None:
    theirs.write(lambda tx: tx.run("CREATE (:Product {sku: 'S-1'}), (:Product)").consume())
    with pytest.raises(DataError) as raised:
        read_server_tables(settings(bolt_uri))
    told = str(raised.value)
    assert "Product, row" in told
    assert "allowed: each id once" in told
    assert "found nothing; allowed: text that is not empty" in told


def test_what_was_exported_is_read_as_the_tables_it_was_of(bolt: Server, bolt_uri: str) -> None:
    sample = read_tables(sample_shop())
    shop = replace(sample, events=sample.events[:1000])
    graph = KnowledgeGraph.from_tables(shop)
    user, item = shop.events["user_id"][0], shop.items["item_id"][0]
    lists = pd.DataFrame({"user_id": [user], "item_id": item, "score": 1.0, "rank": 1})
    write_graph(graph, bolt, scores=NodeScores.of_lists(graph, "m", [lists]))
    read = read_server_tables(Neo4jSettings(uri=bolt_uri))
    seen = shop.events[shop.events["split"] != "test"]
    columns = ["user_id", "item_id", "event", "timestamp"]
    ours = seen[columns].sort_values(columns).to_numpy().tolist()
    assert read.events[columns].sort_values(columns).to_numpy().tolist() == ours
    titles = dict(zip(shop.items["item_id"], shop.items["title"], strict=True))
    assert dict(zip(read.items["item_id"], read.items["title"], strict=True)) == titles
    brands = read_server_tables(Neo4jSettings(uri=bolt_uri, relations=("brand",)))
    assert (len(brands.events), set(brands.triples["relation"])) == (len(seen), {"brand"})
    assert "RECOMMENDED" not in set(read.triples["relation"])  # a list is no fact
    again = KnowledgeGraph.from_tables(read)
    # attributes come as relations to entities: the same graph but for what it calls attributes
    assert again.stats().edges == graph.stats().edges
    assert again.stats().nodes == {n: count for n, count in graph.stats().nodes.items() if count}
    assert (again.attributes, graph.attributes != ()) == ((), True)


def test_an_export_under_way_is_not_read(bolt: Server, bolt_uri: str) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_graph(KnowledgeGraph.from_tables(read_tables(sample_shop())), bolt, progress=stop)
    with pytest.raises(StoreError, match="not wholly written"):
        read_server_tables(Neo4jSettings(uri=bolt_uri))
