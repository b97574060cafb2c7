import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kgrank.errors import BundleError
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import Tables


def shop(events=(), triples=()):
    columns = ["user_id", "item_id", "event", "timestamp", "value"]
    return Tables(
        events=pd.DataFrame(list(events), columns=columns).astype(
            {"user_id": "str", "item_id": "str", "event": "str", "timestamp": float, "value": float}
        ),
        items=pd.DataFrame(
            {
                "item_id": ["007", "a:b", "7"],
                "title": ["Hammer", "", "Säge"],
                "description": "",
                "brand": ["茶|Acme", "Acme", ""],
            }
        ),
        users=pd.DataFrame({"user_id": ["007"]}),
        triples=pd.DataFrame(list(triples), columns=["head", "relation", "tail"]).astype("str"),
        entities=pd.DataFrame({"entity_id": ["Q1"], "name": ["Alone"], "type": ["place"]}),
        queries=pd.DataFrame(),
    )


@pytest.fixture
def graph():
    events = [
        ("007", "007", "view", 1.7e9, np.nan),
        ("007", "007", "view", 1.7e9, np.nan),
        ("u 2", "a:b", "brand", np.nan, 0.1),
    ]
    return KnowledgeGraph.from_tables(shop(events, [("7", "goes_with", "a:b"), ("u 2", "in", "X")]))


def test_a_graph_comes_back_number_for_number(graph, tmp_path):
    graph.save(tmp_path / "deep" / "graph")
    loaded = KnowledgeGraph.load(tmp_path / "deep" / "graph")
    assert loaded.equals(graph)
    assert [loaded.node(n) for n in range(len(loaded.nodes))] == [
        graph.node(n) for n in range(len(graph.nodes))
    ]
    for name, value in vars(graph).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(loaded, name), value)
            assert getattr(loaded, name).dtype == value.dtype
            assert not getattr(loaded, name).flags.writeable
    assert (loaded.relations, loaded.attributes) == (graph.relations, graph.attributes)
    assert sorted(path.name for path in (tmp_path / "deep" / "graph").iterdir()) == [
        *("edges.parquet", "nodes.parquet")
    ]


def test_a_loaded_graph_grows_like_the_one_that_was_saved(graph, tmp_path):
    graph.save(tmp_path)
    more = pd.DataFrame({"head": ["a:b"], "relation": ["brand"], "tail": ["brand:New"]})
    grown = KnowledgeGraph.load(tmp_path).with_triples(more)
    assert grown.equals(graph.with_triples(more))
    assert grown.node_number("brand", "brand:New") == len(graph.nodes)


def test_a_folder_can_be_written_again(graph, tmp_path):
    graph.save(tmp_path)
    other = graph.with_events(
        pd.DataFrame({"user_id": ["u9"], "item_id": ["7"], "event": ["view"]}, dtype="str")
    )
    other.save(tmp_path)
    assert KnowledgeGraph.load(tmp_path).equals(other)
    assert not other.equals(graph)


def test_any_tool_can_read_the_files(graph, tmp_path):
    graph.save(tmp_path)
    nodes = pd.read_parquet(tmp_path / "nodes.parquet")
    edges = pd.read_parquet(tmp_path / "edges.parquet")
    ends = nodes["id"].to_numpy()[edges[["head", "tail"]].to_numpy()]
    assert ["007", "brand:茶"] in ends.tolist()
    assert edges["time"].max() == 1_700_000_000
    assert nodes.loc[nodes["id"] == "Q1"].to_numpy().tolist() == [["place", "Q1", "Alone"]]


def change(path, column, row, value):
    """The file with one cell changed, its metadata as they were."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    place = table.schema.get_field_index(column)
    field = table.schema.field(place)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), path)


@pytest.mark.parametrize(
    ("file", "column", "value", "said"),
    [
        ("edges", "tail", 9, r"edges.parquet, row 2: found tail 9; allowed: 0 to 8"),
        ("edges", "tail", -1, "row 2: found tail -1"),
        ("edges", "head", 99, "row 2: found head 99; allowed: 0 to 8"),
        ("edges", "relation", 5, "row 2: found relation 5; allowed: 0 to 4"),
        ("edges", "weight", np.nan, "row 2: found weight nan"),
        ("edges", "tail", 0, "row 2: found tail 0; allowed: items"),
        ("edges", "head", 2, "row 2: found head 2; allowed: users"),
        ("nodes", "id", None, "nodes.parquet: found columns"),
        ("nodes", "id", "a:b", r"nodes.parquet: .*'a:b' again"),
    ],
)
def test_a_row_out_of_bounds_is_named(graph, tmp_path, file, column, value, said):
    graph.save(tmp_path)
    assert graph.edge(1).relation == "view"
    assert graph.node(1).id == "007"
    change(tmp_path / f"{file}.parquet", column, 1, value)
    with pytest.raises(BundleError, match=said):
        KnowledgeGraph.load(tmp_path)


def test_a_missing_file_is_named(graph, tmp_path):
    with pytest.raises(BundleError, match=r"nodes\.parquet: found no such file"):
        KnowledgeGraph.load(tmp_path / "nowhere")
    graph.save(tmp_path)
    (tmp_path / "edges.parquet").unlink()
    with pytest.raises(BundleError, match=r"edges\.parquet: found no such file"):
        KnowledgeGraph.load(tmp_path)


def test_a_damaged_file_is_named(graph, tmp_path):
    graph.save(tmp_path)
    path = tmp_path / "edges.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(BundleError, match=r"edges\.parquet is damaged"):
        KnowledgeGraph.load(tmp_path)
    flipped = bytearray(whole)
    flipped[40] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(BundleError, match=r"edges\.parquet is damaged"):
        KnowledgeGraph.load(tmp_path)


def test_files_of_two_graphs_do_not_mix(graph, tmp_path):
    graph.save(tmp_path / "one")
    KnowledgeGraph.from_tables(shop()).save(tmp_path / "two")
    (tmp_path / "one" / "edges.parquet").replace(tmp_path / "two" / "edges.parquet")
    with pytest.raises(BundleError, match="allowed: both of one"):
        KnowledgeGraph.load(tmp_path / "two")


@pytest.mark.parametrize("metadata", [None, {"kgrank": "{"}, {"kgrank": '{"format": 2}'}])
def test_an_unknown_format_is_refused(graph, tmp_path, metadata):
    graph.save(tmp_path)
    path = tmp_path / "nodes.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    with pytest.raises(BundleError, match="unknown format; allowed: format 1"):
        KnowledgeGraph.load(tmp_path)


def test_other_columns_are_refused(graph, tmp_path):
    graph.save(tmp_path)
    path = tmp_path / "edges.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["time"]), path)
    with pytest.raises(BundleError, match="found columns"):
        KnowledgeGraph.load(tmp_path)


words = st.text(max_size=4)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(words, words, words), max_size=5))
def test_whatever_the_ids_hold_they_come_back(tmp_path, triples):
    graph = KnowledgeGraph.from_tables(shop(triples=triples))
    graph.save(tmp_path)
    loaded = KnowledgeGraph.load(tmp_path)
    assert loaded.fingerprint() == graph.fingerprint()
    assert loaded.nodes.ids.equals(graph.nodes.ids)
