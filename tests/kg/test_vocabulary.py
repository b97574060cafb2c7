import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgrank.errors import DataError, UnknownIdError
from kgrank.kg.vocabulary import Nodes, Vocabulary

IDS = ["b", "007", "7", "茶", "a:b", " b"]


@pytest.mark.parametrize(
    "given_as",
    [
        list,
        pd.Series,
        pd.Index,
        np.array,
        pa.array,
        lambda ids: pd.Series(ids, dtype="category"),
        lambda ids: pd.concat([pd.Series(ids[:2]), pd.Series(ids[2:])]),
        lambda ids: (id_ for id_ in ids),
    ],
)
def test_ids_keep_their_order_and_letters_however_they_come(given_as):
    vocabulary = Vocabulary.from_ids(given_as(IDS))
    assert vocabulary.ids().tolist() == IDS
    assert vocabulary.numbers(given_as(IDS[::-1])).tolist() == [5, 4, 3, 2, 1, 0]
    assert vocabulary.numbers(given_as(IDS)).dtype == np.int32


def test_numbers_of_a_few_ids_and_of_many_are_the_same():
    vocabulary = Vocabulary.from_ids([f"item-{n}" for n in range(1000)])
    wanted = ["item-999", "nobody", "item-0", "item-999"]
    assert vocabulary.numbers(wanted, missing="negative").tolist() == [999, -1, 0, 999]
    many = wanted * 50
    assert vocabulary.numbers(many, missing="negative").tolist() == [999, -1, 0, 999] * 50


def test_membership_is_to_the_letter():
    vocabulary = Vocabulary.from_ids(IDS)
    assert "007" in vocabulary and "7" in vocabulary
    assert "07" not in vocabulary and "B" not in vocabulary and 7 not in vocabulary
    assert len(vocabulary) == 6


def test_an_id_that_comes_twice_is_named():
    with pytest.raises(DataError, match=r"row 3.*'007' again \(first in row 1\)"):
        Vocabulary.from_ids(["007", "7", "007", "7"])


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ("u1", "the single string 'u1'"),
        ([7], r"row 1.*7 \(int\)"),
        (["a", None], r"row 2.*None"),
        (["a", 1, "b"], r"row 2.*1 \(int\)"),
        ((x for x in ["a", 1.5]), r"row 2.*1.5 \(float\)"),
        (pd.Series(["a", "b", None]), r"row 3.*nan"),
        (pa.array(["a", None]), r"row 2.*None"),
        (np.ma.masked_array(["a", "b"], mask=[False, True]), r"row 2.*masked"),
        (["a", "\ud800"], r"row 2: found '\\ud800'; allowed: text for UTF-8"),
        (np.array(["a", "\ud800"]), r"row 2: found '\\ud800'; allowed: text for UTF-8"),
        (pd.Series(["a", "\ud800"], [7, 8], dtype=object), r"row 2: found '\\ud800'"),
        ({"a", "b"}, "found a set; allowed: ids in an order"),
    ],
)
def test_what_is_no_string_is_named(ids, said):
    with pytest.raises(DataError, match=said):
        Vocabulary.from_ids(ids)


def test_unknown_ids_are_counted_once_each_and_five_are_named():
    vocabulary = Vocabulary.from_ids(IDS)
    with pytest.raises(UnknownIdError) as caught:
        vocabulary.numbers(["x1", "b", "x2", "x1", "x3", "x4", "x5", "x6", "x7"])
    assert "7 unknown ids: 'x1', 'x2', 'x3', 'x4', 'x5', …;" in str(caught.value)
    with pytest.raises(UnknownIdError, match="1 unknown id: 'x'; allowed: none"):
        Vocabulary.from_ids([]).numbers(["x"])


def test_ids_of_numbers_and_numbers_out_of_range():
    vocabulary = Vocabulary.from_ids(IDS)
    assert vocabulary.ids([3, 3, 0]).tolist() == ["茶", "茶", "b"]
    for wrong in ([6], [-1]):
        with pytest.raises(IndexError):
            vocabulary.ids(wrong)


def test_extending_keeps_every_number_and_the_old_value():
    vocabulary = Vocabulary.from_ids(["b", "a"])
    grown = vocabulary.extended(["c", "a", "aa", "c"])
    assert grown.ids().tolist() == ["b", "a", "c", "aa"]
    assert vocabulary.ids().tolist() == ["b", "a"]
    assert vocabulary.extended(["a"]) == vocabulary
    assert grown != vocabulary


@given(st.lists(st.text(), unique=True), st.lists(st.text()))
def test_numbers_and_ids_undo_each_other(ids, more):
    vocabulary = Vocabulary.from_ids(ids).extended(more)
    assert vocabulary.ids(vocabulary.numbers(vocabulary.ids())).tolist() == [
        *ids,
        *dict.fromkeys(id_ for id_ in more if id_ not in ids),
    ]


def test_nodes_keep_their_numbers_when_users_and_items_alternate():
    nodes = Nodes.empty().with_users(["u1", "u2"]).with_items(["i1"], ["Hammer"])
    nodes = nodes.with_entities(["brand:S"], ["brand"], ["S"]).with_users(["u2", "u3"])
    nodes = nodes.with_items(["i1", "u1"], ["other name", ""])
    assert nodes.user_nodes.tolist() == [0, 1, 4]
    assert nodes.item_nodes.tolist() == [2, 5]
    assert nodes.entity_nodes.tolist() == [3]
    assert nodes.numbers.tolist() == [0, 1, 0, 0, 2, 1]
    assert nodes.ids.to_pylist() == ["u1", "u2", "i1", "brand:S", "u3", "u1"]
    assert [tuple(nodes.node(number)) for number in (2, 3, 4, 5)] == [
        ("item", "i1", "Hammer"),
        ("brand", "brand:S", "S"),
        ("user", "u3", "u3"),
        ("item", "u1", "u1"),
    ]


def test_one_id_of_two_types_is_two_nodes_and_items_come_first_where_the_type_is_unsaid():
    nodes = Nodes.empty().with_users(["1", "2"]).with_items(["1"])
    nodes = nodes.with_entities(["1", "2", "3"], ["entity"] * 3, [""] * 3)
    assert [nodes.node_number(type_, "1") for type_ in ("user", "item", "entity")] == [0, 2, 3]
    assert nodes.resolved(["1", "2", "3", "4"]).tolist() == [2, 1, 5, -1]


@pytest.mark.parametrize(
    ("type_", "id_"), [("brand", "Q1"), ("place", "Q2"), ("user", "Q1"), ("colour", "Q1")]
)
def test_a_node_that_is_not_there_is_an_unknown_id(type_, id_):
    nodes = Nodes.empty().with_entities(["Q1", "brand:S"], ["place", "brand"], ["", ""])
    with pytest.raises(UnknownIdError, match=f"no node of type '{type_}' with id '{id_}'"):
        nodes.node_number(type_, id_)


def test_a_node_number_is_not_counted_from_the_end():
    nodes = Nodes.empty().with_users(["u1", "u2"])
    for wrong in (-1, 2):
        with pytest.raises(UnknownIdError, match=f"node number {wrong}; allowed: 0 to 1"):
            nodes.node(wrong)
