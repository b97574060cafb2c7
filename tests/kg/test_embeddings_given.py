"""Ids and vectors as people have them: taken as they are meant, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from kgrank.errors import ConfigError, DataError
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.vectors import checked_vectors

IDS = ["a", "b", "c"]
VECTORS = np.array([[1, 2], [3, 4], [5, 6]], np.float32)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore.create(tmp_path / "vectors").write("item", IDS, VECTORS)


def lists(kind: Any) -> Any:
    return pa.array(VECTORS.tolist(), kind)


FORMS: dict[str, Callable[[], Any]] = {
    "fixed-size lists": lambda: lists(pa.list_(pa.float32(), 2)),
    "a slice": lambda: pa.concat_arrays([lists(pa.list_(pa.float32(), 2))] * 2)[3:],
    "lists": lambda: lists(pa.list_(pa.float32())),
    "large lists": lambda: lists(pa.large_list(pa.float32())),
    "chunks": lambda: pa.chunked_array(
        [lists(pa.list_(pa.float32(), 2))[:1], lists(pa.list_(pa.float32(), 2))[1:]]
    ),
    "a Series of arrays": lambda: pd.Series(list(VECTORS), index=[7, 8, 9]),
    "an array of arrays": lambda: pd.Series(list(VECTORS)).to_numpy(),
    "a list of arrays": lambda: list(VECTORS),
    "a DataFrame": lambda: pd.DataFrame(VECTORS),
    "a tensor": lambda: torch.from_numpy(VECTORS),
    "a list of tensors": lambda: list(torch.from_numpy(VECTORS)),
    "a masked array without a mask": lambda: np.ma.masked_array(VECTORS),
}


@pytest.mark.parametrize("form", FORMS)
def test_vectors_are_taken_in_any_of_the_usual_forms(store, form):
    assert store.write("user", IDS, FORMS[form]()).vectors("user", IDS).tolist() == VECTORS.tolist()
    store = store.replace({"other": (IDS, FORMS[form]())})
    assert store.vectors("other", IDS).tolist() == VECTORS.tolist()
    found = store.nearest("item", FORMS[form](), n=1)
    assert found.scores[:, 0].tolist() == [17, 39, 61]  # (1, 2) · (5, 6), …


def test_a_group_goes_to_parquet_and_back(store, tmp_path):
    store = store.write("item", ["b", "茶"], VECTORS[:2])
    store.to_parquet(tmp_path / "items.parquet", "item")
    expected = store.to_arrow("item")
    for number, table in enumerate((expected, pq.read_table(tmp_path / "items.parquet"))):
        store = store.write(f"copy_{number}", table["id"], table["vector"])
        assert store.to_arrow(f"copy_{number}").to_pydict() == expected.to_pydict()
    frame = pd.read_parquet(tmp_path / "items.parquet")
    store = store.write("frame", frame["id"], frame["vector"])
    assert store.to_arrow("frame").to_pydict() == expected.to_pydict()


def test_an_arrow_column_is_not_copied():
    column = lists(pa.list_(pa.float32(), 2))
    for given in (column, pa.chunked_array([column])):
        assert checked_vectors(given, 3, 2).ctypes.data == column.flatten().buffers()[1].address


SINGLE = pa.list_(pa.float32(), 2)
FAULTS: dict[str, tuple[Any, str]] = {
    "a ragged list": (
        [[1.0, 2.0], [1.0], [2.0]],
        "vectors, row 2: found 1 numbers; allowed: 2, as",
    ),
    "deeply ragged": ([[1.0, [2.0]], [1.0, 2.0], [2.0, 3.0]], r"vectors: found no array \(setting"),
    "a row missing": (pd.Series([VECTORS[0], None, VECTORS[2]]), "row 2: found NoneType; allowed"),
    "an empty cell": (
        pa.array([[1, 2], [1, 2], None], SINGLE),
        "vectors, row 3: found an empty ce",
    ),
    "an empty number": (pa.array([[1, 2], [3, None], [1, 2]], SINGLE), "row 2: found an empty num"),
    "lists of two lengths": (
        pa.array([[1, 2], [3, 4], [5]], pa.list_(pa.float32())),
        "vectors, row 3: found 1 numbers; allowed: 2, as many as in row 1",
    ),
    "lists of doubles": (
        lists(pa.list_(pa.float64())),
        "found double|found float64; allowed: float",
    ),
    "numbers": (pa.array([1.0, 2.0, 3.0]), "found a column of double; allowed: lists of float32"),
    "a table": (pa.table({"vector": lists(SINGLE)}), "found no array .a whole table: pass its col"),
    "a tensor with a gradient": (
        torch.ones(3, 2, requires_grad=True),
        r"requires grad.*a torch tensor by tensor.detach\(\).cpu\(\).float\(\).numpy\(\)",
    ),
    "bfloat16": (torch.ones(3, 2, dtype=torch.bfloat16), r"BFloat16.*tensor.detach\(\)"),
    "a mask": (
        np.ma.masked_array(VECTORS, mask=[[0, 0], [0, 1], [1, 0]]),
        r"vectors, row 2 \(and 1 more rows\): found a masked value; allowed: finite numbers. Fill",
    ),
    "None": (None, r"found the shape \(\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_forms_are_refused_with_what_to_do(store, fault):
    given, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        store.write("user", IDS, given)
    with pytest.raises(DataError, match=message):
        store.replace({"user": (IDS, given)})
    assert store.refresh().groups == {"item": 3}


@pytest.mark.parametrize("ids", [{"a", "b", "c"}, frozenset("abc")])
def test_ids_without_an_order_are_refused(store, ids):
    """Nobody could tell which of the vectors belongs to which of them."""
    message = f"ids: found a {type(ids).__name__}; allowed: ids in an order. Make a list of it fir"
    with pytest.raises(DataError, match=message):
        store.write("user", ids, VECTORS)
    with pytest.raises(DataError, match=message):
        store.vectors("item", ids)
    assert store.write("user", dict.fromkeys(IDS).keys(), VECTORS).ids("user").tolist() == IDS


@pytest.mark.parametrize("content", [["a"], (IDS,), "ab", 3, {"a": 1}, (IDS, VECTORS, VECTORS)])
def test_what_is_no_pair_of_ids_and_vectors_replaces_nothing(store, content):
    with pytest.raises(
        DataError, match=r"item: found a .*; allowed: a pair of ids and vectors, or"
    ):
        store.replace({"item": content})


@pytest.mark.parametrize("groups", [[("item", (IDS, VECTORS))], None])
def test_groups_to_replace_come_by_their_names(store, groups):
    with pytest.raises(
        ConfigError, match=r"groups: found a .*; allowed: a mapping of names to \(ids"
    ):
        store.replace(groups)
