import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kgrank.data import sample_shop
from kgrank.errors import ConfigError, DataError, ModelError, UnknownIdError
from kgrank.kg.graph import Edge, GraphSettings, KnowledgeGraph
from kgrank.kg.tables import Tables, read_tables
from kgrank.kg.vocabulary import Vocabulary

EVENTS = pd.DataFrame(
    [
        ("u1", "hammer", "view", 100.0, np.nan, "train"),
        ("u1", "hammer", "view", 200.9, np.nan, "train"),
        ("u1", "hammer", "purchase", 300.0, 2.0, "valid"),
        ("u2", "saw", "view", 150.0, np.nan, "train"),
        ("007", "茶", "view", np.nan, np.nan, "train"),
        ("u2", "a:b", "purchase", 400.0, np.nan, "test"),
    ],
    columns=["user_id", "item_id", "event", "timestamp", "value", "split"],
)
ITEMS = pd.DataFrame(
    [
        ("hammer", "Claw Hammer", "", "Stanley", "tools|hand tools", 20.0, "a.jpg"),
        ("saw", "Hand Saw", "", "Stanley", " tools ", 10.0, "b.jpg"),
        ("茶", "", "", "", "", 5.0, ""),
        ("a:b", "Odd", "", "Acme", "tools|tools|", 40.0, ""),
    ],
    columns=["item_id", "title", "description", "brand", "category", "price", "image"],
)
USERS = pd.DataFrame({"user_id": ["u1", "u2"], "city": ["東京", ""], "age": [30.0, 40.0]})
TRIPLES = pd.DataFrame(
    [
        ("hammer", "goes_with", "saw", 0.5),
        ("hammer", "goes_with", "saw", 0.5),
        ("hammer", "brand", "brand:Stanley", 1.0),
        ("brand:Stanley", "based_in", "Q1", 1.0),
        ("茶", "fits", "brand:New", 1.0),
        ("saw", "made_of", "no:steel", 2.0),
        ("u1", "likes", "a:b", 1.0),
    ],
    columns=["head", "relation", "tail", "weight"],
)
ENTITIES = pd.DataFrame(
    [
        ("Q1", "New Britain", "place"),
        ("Q2", "", ""),
        ("brand:Acme", "Acme Corp.", ""),
        ("saw", "no item", ""),
    ],
    columns=["entity_id", "name", "type"],
)


def shop(**tables):
    return Tables(
        events=tables.get("events", EVENTS),
        items=tables.get("items", ITEMS),
        users=tables.get("users", USERS),
        triples=tables.get("triples", TRIPLES),
        entities=tables.get("entities", ENTITIES),
        queries=pd.DataFrame(),
    )


@pytest.fixture(scope="module")
def graph():
    return KnowledgeGraph.from_tables(shop())


def said(graph, type_, id_, direction):
    """The neighbours as sorted (relation, type, id, weight, time)."""
    found = graph.neighbors(graph.node_number(type_, id_), direction=direction)
    return sorted(
        (graph.relations[relation], *graph.node(int(node))[:2], float(weight), int(time))
        for node, relation, weight, time in zip(
            found.nodes, found.relations, found.weights, found.times, strict=True
        )
    )


OUT = {
    ("user", "u1"): [
        ("city", "city", "city:東京", 1, 0),
        ("likes", "item", "a:b", 1, 0),
        ("purchase", "item", "hammer", 2, 300),
        ("view", "item", "hammer", 1, 100),
        ("view", "item", "hammer", 1, 200),
    ],
    ("user", "u2"): [("view", "item", "saw", 1, 150)],
    ("user", "007"): [("view", "item", "茶", 1, 0)],
    ("item", "hammer"): [
        ("brand", "brand", "brand:Stanley", 1, 0),
        ("category", "category", "category:hand tools", 1, 0),
        ("category", "category", "category:tools", 1, 0),
        ("goes_with", "item", "saw", 0.5, 0),
    ],
    ("item", "saw"): [
        ("brand", "brand", "brand:Stanley", 1, 0),
        ("category", "category", "category:tools", 1, 0),
        ("made_of", "entity", "no:steel", 2, 0),
    ],
    ("item", "茶"): [("fits", "brand", "brand:New", 1, 0)],
    ("item", "a:b"): [
        ("brand", "brand", "brand:Acme", 1, 0),
        ("category", "category", "category:tools", 1, 0),
    ],
    ("brand", "brand:Stanley"): [("based_in", "place", "Q1", 1, 0)],
    ("brand", "brand:Acme"): [],
    ("brand", "brand:New"): [],
    ("category", "category:tools"): [],
    ("category", "category:hand tools"): [],
    ("city", "city:東京"): [],
    ("place", "Q1"): [],
    ("entity", "Q2"): [],
    ("entity", "no:steel"): [],
}


def test_every_neighbour_set_of_the_toy_shop(graph):
    assert {tuple(graph.node(n)[:2]) for n in range(len(graph.nodes))} == set(OUT)
    assert len(graph.nodes) == len(OUT)
    for (type_, id_), expected in OUT.items():
        assert said(graph, type_, id_, "out") == expected
        back = [
            (relation, *head, weight, time)
            for head, edges in OUT.items()
            for relation, *tail, weight, time in edges
            if tuple(tail) == (type_, id_)
        ]
        assert said(graph, type_, id_, "in") == sorted(back)
        assert said(graph, type_, id_, "both") == sorted(expected + back)


def test_names_come_from_titles_entities_and_values_else_the_id(graph):
    names = {node.id: node.name for node in map(graph.node, range(len(graph.nodes)))}
    assert names["hammer"] == "Claw Hammer"
    assert names["茶"] == "茶"
    assert names["u1"] == "u1"
    assert names["Q1"] == "New Britain"
    assert names["Q2"] == "Q2"
    assert names["brand:Stanley"] == "Stanley"
    assert names["brand:Acme"] == "Acme Corp."
    assert names["brand:New"] == "New"
    assert names["no:steel"] == "no:steel"


def test_relations_are_behaviours_then_knowledge_by_name(graph):
    assert graph.relations == (
        *("purchase", "view"),
        *("based_in", "brand", "category", "city", "fits", "goes_with", "likes", "made_of"),
    )
    assert graph.behaviours.tolist() == [True] * 2 + [False] * 8
    assert graph.attributes == ("brand", "category", "city")


def test_neighbors_of_one_relation_and_the_edges_behind_them(graph):
    hammer, u1 = graph.node_number("item", "hammer"), graph.node_number("user", "u1")
    views = graph.neighbors(hammer, relation="view", direction="in")
    assert views.nodes.tolist() == [u1, u1]
    assert [graph.edge(int(number)) for number in views.edges] == [
        Edge(u1, "view", hammer, 1.0, 100),
        Edge(u1, "view", hammer, 1.0, 200),
    ]
    with pytest.raises(ModelError, match=r"found relation 'brnd'; .*Did you mean 'brand'"):
        graph.neighbors(hammer, relation="brnd")
    with pytest.raises(UnknownIdError, match="node number -1"):
        graph.neighbors(-1)
    with pytest.raises(ModelError, match="found direction 'down'; allowed: out, in, both"):
        graph.neighbors(hammer, direction="down")
    for wrong in (-1, graph.n_edges):
        with pytest.raises(UnknownIdError, match=f"edge number {wrong}"):
            graph.edge(wrong)


def test_behaviour_edges_are_the_events_alone(graph):
    found = graph.behaviour_edges(graph.node_number("user", "u1"))
    assert [graph.relations[relation] for relation in found.relations] == [
        *("purchase", "view", "view"),
    ]
    assert found.times.tolist() == [300, 100, 200]
    assert len(graph.behaviour_edges(graph.node_number("item", "saw"))) == 0


def test_degree_counts_edges_each_way(graph):
    hammer = graph.node_number("item", "hammer")
    degrees = [int(graph.degree(way)[hammer]) for way in ("out", "in", "both")]
    assert degrees == [4, 3, 7]
    assert graph.degree("out").sum() == graph.degree("in").sum() == graph.n_edges == 18


def test_an_event_kind_and_an_attribute_of_one_name_stay_two_relations():
    items = ITEMS.assign(view=["sea", "", "", ""])
    graph = KnowledgeGraph.from_tables(shop(items=items))
    both = [graph.behaviours[n] for n, name in enumerate(graph.relations) if name == "view"]
    assert both == [True, False]
    hammer = graph.node_number("item", "hammer")
    assert len(graph.neighbors(hammer, relation="view", direction="both")) == 3
    assert graph.item_entity_matrix(graph.items).matrix[[0]].sum() == 1 + 1 + 1 + 0.5 + 1


def test_numbers_become_entities_only_where_the_settings_say_so():
    bins = GraphSettings(bins={"price": 2}, categorical=("age",), ignore=("image", "brand"))
    graph = KnowledgeGraph.from_tables(shop(triples=TRIPLES[:0]), bins)
    # prices 5, 10, 20, 40: the second half begins at place 2, which is 20
    low = ("price", "price", "price:[5, 20)", 1, 0)
    high = ("price", "price", "price:[20, 40]", 1, 0)
    assert [e for e in said(graph, "item", "saw", "out") if e[0] == "price"] == [low]
    assert [e for e in said(graph, "item", "茶", "out") if e[0] == "price"] == [low]
    assert [e for e in said(graph, "item", "hammer", "out") if e[0] == "price"] == [high]
    assert [e for e in said(graph, "item", "a:b", "out") if e[0] == "price"] == [high]
    assert ("age", "age", "age:30", 1, 0) in said(graph, "user", "u1", "out")
    assert graph.relations == ("purchase", "view", "age", "category", "city", "price")


def test_text_that_is_all_numbers_counts_as_numbers():
    items = ITEMS.assign(year=["1995", "", "1996", "1995.5"], code=["007", "7", "7a", ""])
    graph = KnowledgeGraph.from_tables(shop(items=items))
    assert "year" not in graph.relations and "price" not in graph.relations
    assert said(graph, "code", "code:007", "in") == [("code", "item", "hammer", 1, 0)]
    graph = KnowledgeGraph.from_tables(shop(items=items), GraphSettings(categorical=("year",)))
    assert said(graph, "year", "year:1995", "in") == [("year", "item", "hammer", 1, 0)]
    graph = KnowledgeGraph.from_tables(shop(items=items), GraphSettings(bins={"year": 5}))
    assert said(graph, "year", "year:[1995, 1995.5)", "in") == [("year", "item", "hammer", 1, 0)]


@pytest.mark.parametrize(
    ("prices", "bins", "expected"),
    [
        ([1, 1, 1, 1], 3, ["[1, 1]"] * 4),
        ([1, 2, np.nan, 2], 2, ["[1, 2)", "[2, 2]", "", "[2, 2]"]),
        ([0.5, 19.99, 7, 7], 4, ["[0.5, 7)", "[19.99, 19.99]", "[7, 19.99)", "[7, 19.99)"]),
        ([3, 1, 2, 4], 100, ["[3, 4)", "[1, 2)", "[2, 3)", "[4, 4]"]),
    ],
)
def test_quantile_bins_never_part_equal_values(prices, bins, expected):
    tables = shop(items=ITEMS.assign(price=prices))
    graph = KnowledgeGraph.from_tables(tables, GraphSettings(bins={"price": bins}))
    found = [
        [graph.node(int(n)).name for n in graph.neighbors(int(node), "price").nodes]
        for node in graph.nodes.item_nodes
    ]
    assert found == [[label] if label else [] for label in expected]


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"bins": {"prize": 5}}, "column 'prize'.*Did you mean 'price'"),
        ({"categorical": ("yaer",)}, "column 'yaer'"),
        ({"ignore": ("image", "brnad", "nope")}, "column 'brnad'.*'brand'(.|\n)*column 'nope'"),
        ({"bins": {"brand": 5}}, "'brand' of items: found text"),
    ],
)
def test_settings_that_do_not_fit_the_tables(section, said):
    with pytest.raises(ConfigError, match=said):
        KnowledgeGraph.from_tables(shop(), GraphSettings(**section))


@pytest.mark.parametrize(
    "section",
    [{"bins": {"price": 1}}, {"bins": {"a": 2}, "ignore": ("a",)}, {"bin": {}}],
)
def test_settings_out_of_range(section):
    with pytest.raises(ValidationError):
        GraphSettings(**section)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"events": EVENTS.assign(timestamp=1.7e12)}, r"events, row 1, column 'timestamp'.*1000"),
        ({"events": EVENTS.assign(value=[1, np.inf, 1, 1, 1, 1])}, "row 2, column 'value'"),
        ({"triples": TRIPLES.assign(weight=1e300)}, "triples, row 1, column 'weight'"),
        ({"items": ITEMS.rename(columns={"brand": "item"})}, "items, column 'item'.*type 'item'"),
        (
            {"entities": ENTITIES.assign(type="user")},
            r"entities, row 1, column 'type' \(and 2 more rows\)",  # "saw" is an item
        ),
        ({"items": pd.concat([ITEMS, ITEMS[1:2]])}, "'saw' again"),
        ({"entities": pd.concat([ENTITIES, ENTITIES[:1]])}, "'Q1' again"),
    ],
)
def test_faults_in_the_tables_are_named(tables, said):
    with pytest.raises(DataError, match=said):
        KnowledgeGraph.from_tables(shop(**tables))


def test_faults_of_what_was_read_name_its_file(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id\nu,a\n")
    (tmp_path / "entities.csv").write_text("entity_id,name,type\nx,X,place\ny,Y,user\nz,Z,item\n")
    (tmp_path / "users.csv").write_text("user_id,item\nu,spoon\n")
    with pytest.raises(DataError, match=r"users.csv, column 'item': .* name it in \[kg\] ignore"):
        KnowledgeGraph.from_tables(read_tables(tmp_path))
    with pytest.raises(DataError) as raised:
        KnowledgeGraph.from_tables(read_tables(tmp_path), GraphSettings(ignore=("item",)))
    (fault,) = raised.value.faults
    assert (fault.file, fault.row, fault.count) == ("entities.csv", 2, 2)


def test_the_test_split_is_not_read():
    late = pd.DataFrame([("new user", "new item", "gift", 500.0, 1.0, "test")])
    late.columns = EVENTS.columns
    graph = KnowledgeGraph.from_tables(shop(events=pd.concat([EVENTS, late])))
    assert graph.equals(KnowledgeGraph.from_tables(shop()))
    assert "new user" not in graph.users and "new item" not in graph.items


def test_events_without_times_values_or_split():
    events = EVENTS[["user_id", "item_id", "event"]]
    graph = KnowledgeGraph.from_tables(shop(events=events))
    assert graph.times.max() == 0
    assert len(graph.behaviour_edges(graph.node_number("user", "u2"))) == 2


def test_the_item_entity_matrix_by_hand(graph):
    wanted = Vocabulary.from_ids(["a:b", "hammer", "never seen", "saw", "茶"])
    known = graph.item_entity_matrix(wanted)
    columns = [graph.node(int(node)).id for node in known.columns]
    assert sorted(columns) == sorted(
        [
            *("hammer", "saw", "brand:Stanley", "brand:Acme", "brand:New"),
            *("category:tools", "category:hand tools", "no:steel"),
        ]
    )
    expected = np.zeros((5, len(columns)), dtype=np.float32)
    for row, column, weight in [
        *[(0, "brand:Acme", 1), (0, "category:tools", 1)],
        *[(1, "brand:Stanley", 1), (1, "category:tools", 1), (1, "category:hand tools", 1)],
        *[(1, "saw", 0.5), (3, "hammer", 0.5)],
        *[(3, "brand:Stanley", 1), (3, "category:tools", 1), (3, "no:steel", 2)],
        (4, "brand:New", 1),
    ]:
        expected[row, columns.index(column)] = weight
    assert known.matrix.dtype == np.float32
    np.testing.assert_array_equal(known.matrix.toarray(), expected)
    number = known.edges_at(3, columns.index("hammer"))
    ends = graph.node_number("item", "hammer"), graph.node_number("item", "saw")
    assert [graph.edge(int(n)) for n in number] == [Edge(ends[0], "goes_with", ends[1], 0.5, 0)]
    assert len(known.edges_at(0, columns.index("hammer"))) == 0
    assert len(known.edges_at(2, 0)) == 0


def test_an_entry_of_several_edges_sums_them_and_knows_each():
    triples = pd.DataFrame(
        [
            ("saw", "directed", "Q1", 2.0),
            ("saw", "wrote", "Q1", 3.0),
            ("Q1", "made", "saw", 5.0),
            ("Q1", "made", "saw", 0.5),
            ("saw", "like", "saw", 9.0),
        ],
        columns=["head", "relation", "tail", "weight"],
    )
    graph = KnowledgeGraph.from_tables(shop(triples=triples))
    known = graph.item_entity_matrix(Vocabulary.from_ids(["saw"]))
    column = known.columns.tolist().index(graph.node_number("place", "Q1"))
    assert known.matrix[0, column] == 10.5
    edges = [graph.edge(int(number)) for number in known.edges_at(0, column)]
    assert sorted((edge.relation, edge.weight) for edge in edges) == [
        *[("directed", 2.0), ("made", 0.5), ("made", 5.0), ("wrote", 3.0)],
    ]
    assert graph.node_number("item", "saw") not in known.columns


def test_stats_of_the_toy_shop(graph):
    stats = graph.with_triples(
        pd.DataFrame(
            [(item, "sold_in", "shop") for item in ITEMS["item_id"]],
            columns=["head", "relation", "tail"],
        )
    ).stats()
    assert stats.nodes == {
        **{"user": 3, "item": 4, "brand": 3, "category": 2, "city": 1, "place": 1, "entity": 3}
    }
    assert stats.edges["view"] == 4 and stats.edges["goes_with"] == 1
    assert sum(stats.edges.values()) == 22
    assert stats.isolated_items == 0
    # brand:Acme, brand:New, category:hand tools, no:steel touch one item; the shop all four
    assert (stats.entities_of_one_item, stats.entities_of_all_items) == (4, 1)
    # u1 5, u2 1, 007 1
    assert stats.degrees["user"] == pytest.approx((1, 1, 1, 3, 4.2, 4.92, 5))
    alone = ITEMS.assign(brand="", category="")
    assert KnowledgeGraph.from_tables(shop(items=alone)).stats().isolated_items == 0
    bare = KnowledgeGraph.from_tables(shop(items=alone, triples=TRIPLES[:0]))
    assert bare.stats().isolated_items == 1  # only a:b, whose one event is of the test split


def test_nothing_can_be_written(graph):
    before = graph.fingerprint()
    arrays = [value for value in vars(graph).values() if isinstance(value, np.ndarray)]
    found, known = graph.neighbors(0), graph.item_entity_matrix(graph.items)
    arrays += [*vars(found).values(), known.columns, known.edges, known.matrix.data]
    assert len(arrays) == 17
    for array in [*arrays, graph.nodes.types, graph.nodes.item_nodes]:
        with pytest.raises(ValueError, match="read-only"):
            array[:1] = 0
    graph.with_events(EVENTS)
    assert graph.fingerprint() == before


def of_events(n, kinds=3, **columns):
    """The graph of n events of six users on four items alone."""
    events = {
        "user_id": [f"u{k % 6}" for k in range(n)],
        "item_id": [f"i{k % 4}" for k in range(n)],
        "event": [f"kind {k % kinds}" for k in range(n)],
    }
    nothing = {"items": ITEMS[["item_id", "title"]][:0], "users": USERS[["user_id"]][:0]}
    nothing |= {"triples": TRIPLES[:0], "entities": ENTITIES[:0]}
    return KnowledgeGraph.from_tables(shop(events=pd.DataFrame(events | columns), **nothing))


@pytest.mark.parametrize(
    ("an_edge", "for_all", "kinds", "columns"),
    [
        (4 * 3 + 1, 4 + 4, 3, {}),  # both ends and the edge's number; the relation
        (4 * 3 + 1, 4 + 4, 256, {"value": 2.5, "timestamp": 1.6e9}),
        (4 * 3 + 2, 4 + 4, 257, {}),
        (4 * 3 + 1 + 4, 4, 3, {"value": np.arange(1000) % 2}),
        (4 * 3 + 1 + 4, 4, 3, {"timestamp": np.arange(1000) // 999 + 1.6e9}),
        (4 * 3 + 1 + 4 + 4, 0, 3, {"value": np.arange(1000), "timestamp": np.arange(1000) + 1e9}),
    ],
    ids=["bare", "256 kinds", "257 kinds", "weights", "times", "both"],
)
def test_weights_and_times_take_memory_where_they_differ(an_edge, for_all, kinds, columns):
    """1,000 edges of 10 nodes; a row's start both ways takes 2 × 4 bytes a node and 2 × 4 more."""
    graph = of_events(1000, kinds, **columns)
    assert graph.bytes_per_edge * 1000 == pytest.approx(1000 * an_edge + for_all + 8 * 11)
    found = graph.edge(999)
    assert (found.weight, found.time) == (graph.weights[999], graph.times[999])
    assert graph.weights.shape == graph.times.shape == (1000,)
    arrays = [value for value in vars(graph).values() if isinstance(value, np.ndarray)]
    owners = [array if array.base is None else array.base for array in arrays]
    held = sum(owner.nbytes for owner in owners) - graph.behaviours.nbytes
    assert held / 1000 == pytest.approx(graph.bytes_per_edge)  # no larger array stays behind


def test_the_sample_shop_takes_at_most_24_bytes_an_edge():
    graph = KnowledgeGraph.from_tables(read_tables(sample_shop()))
    assert graph.n_edges > 10_000
    assert graph.bytes_per_edge <= 24


def test_what_is_held_once_is_saved_and_added_to(tmp_path):
    graph = of_events(12)
    graph.save(tmp_path)
    loaded = KnowledgeGraph.load(tmp_path)
    assert loaded.equals(graph)
    assert loaded.bytes_per_edge == graph.bytes_per_edge
    more = pd.DataFrame({"user_id": ["u0"], "item_id": ["i0"], "event": ["kind 0"], "value": [3.0]})
    grown = loaded.with_events(more)
    assert sorted(grown.weights.tolist()) == [1.0] * 12 + [3.0]
    assert grown.weights.dtype == np.float32


def test_an_empty_shop_is_a_graph_too():
    empty = shop(
        events=EVENTS[:0],
        items=ITEMS[:0],
        users=USERS[:0],
        triples=TRIPLES[:0],
        entities=ENTITIES[:0],
    )
    graph = KnowledgeGraph.from_tables(empty)
    assert (len(graph.nodes), graph.n_edges, graph.relations) == (0, 0, ())
    assert graph.item_entity_matrix(Vocabulary.from_ids(["x"])).matrix.shape == (1, 0)
    assert graph.stats().isolated_items == 0
    grown = graph.with_events(EVENTS).with_triples(TRIPLES)
    assert said(grown, "user", "u2", "out") == [("view", "item", "saw", 1, 150)]


def test_adding_keeps_node_numbers_and_merges_what_is_known(graph):
    events = pd.DataFrame(
        [("a new user", "a new item", "gift", 500.0)],
        columns=["user_id", "item_id", "event", "timestamp"],
    )
    grown = graph.with_events(events).with_triples(TRIPLES)
    for number in range(len(graph.nodes)):
        assert grown.node(number) == graph.node(number)
    assert grown.n_edges == graph.n_edges + 1
    assert said(grown, "user", "a new user", "out") == [("gift", "item", "a new item", 1, 500)]
    assert grown.relations == (*graph.relations, "gift")
    assert graph.with_triples(TRIPLES).equals(graph)
    assert grown.items.ids().tolist() == ["hammer", "saw", "茶", "a:b", "a new item"]


def test_triples_added_later_make_the_same_entities(graph):
    later = KnowledgeGraph.from_tables(shop(triples=TRIPLES[:2])).with_triples(TRIPLES[2:])
    assert later.equals(graph)


ids = st.sampled_from(["007", "7", "茶", "a:b", "hammer", "x"])
events_of = st.lists(
    st.tuples(
        ids,
        ids,
        st.sampled_from(["view", "buy"]),
        st.sampled_from([np.nan, 1.0, 2.0]),
        st.sampled_from([np.nan, -1.0, 2.0]),
        st.sampled_from(["train", "test"]),
    ),
    max_size=12,
)
triples_of = st.lists(
    st.tuples(
        st.sampled_from(["007", "hammer", "brand:X", "Q1"]),
        st.sampled_from(["r", "view"]),
        st.sampled_from(["saw", "茶", "brand:Stanley", "Q2", "u1"]),
        st.sampled_from([1.0, 0.5]),
    ),
    max_size=8,
)


def frame(rows, like):
    return pd.DataFrame(rows, columns=like.columns).astype(like.dtypes)


@settings(max_examples=20, deadline=None)
@given(events_of, triples_of)
def test_every_edge_is_found_from_both_ends(events, triples):
    graph = KnowledgeGraph.from_tables(
        shop(events=frame(events, EVENTS), triples=frame(triples, TRIPLES))
    )
    out, back = set(), set()
    for node in range(len(graph.nodes)):
        found = graph.neighbors(node, direction="out")
        out |= {
            (node, *rest) for rest in zip(found.nodes, found.relations, found.edges, strict=True)
        }
        found = graph.neighbors(node, direction="in")
        back |= {
            (head, node, *rest)
            for head, *rest in zip(found.nodes, found.relations, found.edges, strict=True)
        }
    assert out == back
    for head, tail, relation, number in out:
        edge = graph.edge(int(number))
        assert (edge.head, edge.relation, edge.tail) == (head, graph.relations[relation], tail)
    assert len(out) == graph.n_edges
    n_events = sum(split == "train" for *_, split in events)
    assert graph.behaviours[graph.edge_relations].sum() == n_events


@settings(max_examples=20, deadline=None)
@given(events_of, triples_of, st.randoms(use_true_random=False))
def test_the_order_of_rows_leaves_no_trace(events, triples, random):
    tables = shop(events=frame(events, EVENTS), triples=frame(triples, TRIPLES))
    random.shuffle(events)
    random.shuffle(triples)
    mixed = shop(events=frame(events, EVENTS), triples=frame(triples, TRIPLES))
    graph, again = KnowledgeGraph.from_tables(tables), KnowledgeGraph.from_tables(mixed)
    assert graph.equals(again)
    assert graph.relations == again.relations
    for number in range(len(graph.nodes)):
        assert graph.node(number) == again.node(number)


def test_the_order_of_items_and_entities_changes_numbers_but_not_what_is_said(graph):
    turned = KnowledgeGraph.from_tables(shop(items=ITEMS[::-1], entities=ENTITIES[::-1]))
    assert turned.items.ids().tolist() == graph.items.ids().tolist()[::-1]
    assert turned.equals(graph)


@settings(max_examples=20, deadline=None)
@given(events_of, events_of)
def test_events_in_two_steps_are_events_in_one(first, second):
    first, second = frame(first, EVENTS), frame(second, EVENTS)
    graph = KnowledgeGraph.from_tables(shop(events=EVENTS[:1]))
    at_once = graph.with_events(pd.concat([first, second]))
    assert graph.with_events(first).with_events(second).equals(at_once)
    from_start = KnowledgeGraph.from_tables(shop(events=pd.concat([EVENTS[:1], first, second])))
    assert from_start.equals(at_once)


def test_the_fingerprint_tells_every_part_apart(graph):
    others = [
        shop(events=EVENTS[1:]),
        shop(events=EVENTS.assign(timestamp=EVENTS["timestamp"] + 1)),
        shop(events=EVENTS.assign(value=3.0)),
        shop(events=EVENTS.assign(event="view")),
        shop(items=ITEMS.assign(title="x")),
        shop(items=ITEMS.assign(brand="Acme")),
        shop(users=pd.concat([USERS, USERS[:1].assign(user_id="u9")])),
        shop(triples=TRIPLES.assign(weight=1.0)),
        shop(entities=ENTITIES[1:]),
    ]
    prints = {KnowledgeGraph.from_tables(tables).fingerprint() for tables in others}
    assert len(prints | {graph.fingerprint()}) == len(others) + 1
