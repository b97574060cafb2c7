"""However often a group is written to, its files and the search grow with what it holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kgrank.kg import groups
from kgrank.kg.embeddings import EmbeddingStore

IDS = [f"i{number}" for number in range(20)]


def rows(values: np.ndarray) -> np.ndarray:
    """Vectors of two equal numbers each: (n × 2) float32."""
    return np.repeat(np.asarray(values, np.float32)[:, None], 2, axis=1)


def rows_on_disk(store: EmbeddingStore) -> int:
    return sum(entry.rows for entry in store.manifest.groups["item"].segments)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """i0, i1, … = 0, 1, …"""
    store = EmbeddingStore.create(tmp_path / "vectors", dim=2)
    return store.write("item", IDS, rows(np.arange(20)))


def test_a_group_written_anew_again_and_again_is_one_file(store):
    for number in range(40):
        store = store.write("item", IDS, rows(np.arange(20) + number))
        assert [path.name for path in store.path.glob("item-*")] == [
            f"item-{number + 2}.safetensors"
        ]
        assert rows_on_disk(store) == 20
    assert store.vectors("item", IDS)[:, 0].tolist() == list(range(39, 59))


@pytest.mark.parametrize("share", [1, 3, 8, 13, 19])
def test_files_hold_no_more_than_twice_the_rows_and_little_is_copied(store, share, monkeypatch):
    """Any share of the ids at a time, at random. A row is copied for one that died, at most."""
    rng, values, given, written = np.random.default_rng(share), np.arange(20.0), 0, 0
    monkeypatch.setattr(groups, "MAX_SEGMENTS", 1_000)  # none are merged for their number
    for number in range(60):
        some = rng.choice(20, share, replace=False)
        values[some] = number + 100
        store = store.write("item", [IDS[place] for place in some], rows(values[some]))
        given += share
        written += store.manifest.groups["item"].segments[-1].rows
        assert rows_on_disk(store) <= 40
        assert store.vectors("item", IDS)[:, 0].tolist() == values.tolist()
        assert sorted(store.ids("item")) == sorted(IDS)
    assert given <= written <= 2 * given
    store.verify()


def test_what_is_deleted_does_not_stay_for_ever(store):
    """Of 20 rows the eleventh that is deleted makes the dead more than the living."""
    for number, id_ in enumerate(IDS, start=1):
        store = store.delete("item", [id_])
        left = 20 - number
        assert rows_on_disk(store) <= 2 * left
        assert store.ids("item").tolist() == IDS[number:]
    assert rows_on_disk(store) == 0


def test_an_append_copies_nothing(store):
    before = (store.path / "item-1.safetensors").stat()
    store = store.write("item", ["new"], rows(np.ones(1)))
    assert (store.path / "item-1.safetensors").stat() == before
    assert [entry.rows for entry in store.manifest.groups["item"].segments] == [20, 1]


def test_the_exact_search_multiplies_no_dead_segment(store, monkeypatch):
    """Of the rows 20 | 8 | 12 the first 20 were all replaced since."""
    store = store.write("item", IDS[:8], rows(np.arange(8)))
    store = store.write("item", IDS[8:], rows(np.arange(8, 20)))
    assert [entry.rows for entry in store.manifest.groups["item"].segments] == [20, 8, 12]
    product, multiplied = torch.mm, []

    def counting(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        multiplied.append(b.shape[1])
        return product(a, b, out=out)

    monkeypatch.setattr(torch, "mm", counting)
    found = store.nearest("item", rows(np.ones(3)), n=2)
    assert found.ids.tolist() == [["i19", "i18"]] * 3
    assert multiplied == [8, 12]
