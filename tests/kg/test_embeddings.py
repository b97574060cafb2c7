"""Vectors come back as they were written, id by id, generation by generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import kgrank as kr
from kgrank.errors import ConfigError, DataError, StoreError, UnknownIdError
from kgrank.files import replacing
from kgrank.kg import generations, groups, segments, vectors
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.segments import MappedFile, id_hashes
from kgrank.kg.vocabulary import string_array

UNFINISHED = f".tmp-{'0123' * 8}"
ODD_IDS = ["007", "7", "a", "a\0", "a\0b", "茶 🍵", "12345678", "1234567812345678", "x" * 9_000]


def rows(*values: float) -> np.ndarray:
    """Vectors of two equal numbers each: (n × 2) float32."""
    return np.array([[value, value] for value in values], np.float32)


def contents(store: EmbeddingStore) -> dict[str, dict[str, float]]:
    """Each group's ids and the first number of their vectors, in the order of the store."""
    found = {}
    for group in store.groups:
        ids = store.ids(group).tolist()
        found[group] = dict(zip(ids, store.vectors(group, ids)[:, 0].tolist(), strict=True))
        assert len(found[group]) == store.groups[group]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


@pytest.fixture
def store(folder: Path) -> EmbeddingStore:
    """Three writes: a, b, c; then b again and d; then c is deleted."""
    store = EmbeddingStore.create(folder, dim=2)
    store = store.write("item", ["a", "b", "c"], rows(1, 2, 3))
    store = store.write("item", ["b", "d"], rows(20, 40))
    return store.delete("item", ["c"])


def test_vectors_outlive_the_process_bit_for_bit(folder):
    vectors = np.random.default_rng(0).normal(size=(len(ODD_IDS), 5)).astype(np.float32)
    vectors[0] = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal, -0.0, 0.0, 1 / 3
    store = kr.EmbeddingStore.create(str(folder), dim=5).write("entity", ODD_IDS, vectors)
    opened = kr.EmbeddingStore.open(folder)
    assert opened.ids("entity").tolist() == ODD_IDS
    assert opened.vectors("entity", ODD_IDS).tobytes() == vectors.tobytes()
    assert opened.vectors("entity", ["7", "a", "7"]).tobytes() == vectors[[1, 2, 1]].tobytes()
    assert opened.vectors("entity", []).shape == (0, 5)
    assert (opened.generation, opened.dim, len(opened)) == (1, 5, len(ODD_IDS))
    assert repr(store) == f"EmbeddingStore('{folder}', dim=5, generation=1, groups={{'entity': 9}})"
    copy = opened.vectors("entity", ["7"])
    copy[:] = 0
    assert opened.vectors("entity", ["7"]).tobytes() == vectors[1].tobytes()


def test_the_last_writer_of_an_id_wins_and_what_is_deleted_is_unknown(store, folder):
    """b stands where it was written last: a (1), d … b = 20, d = 40."""
    assert contents(EmbeddingStore.open(folder)) == {"item": {"a": 1, "b": 20, "d": 40}}
    assert store.ids("item").tolist() == ["a", "b", "d"]
    with pytest.raises(UnknownIdError, match=r"'item': found 2 unknown ids: 'c', 'x'; allowed: th"):
        store.vectors("item", ["a", "c", "x", "c"])
    again = store.write("item", ["c"], rows(30))
    assert contents(again) == {"item": {"a": 1, "b": 20, "d": 40, "c": 30}}
    assert again.generation == 4


def test_a_write_leaves_the_files_that_are_there_as_they_are(store, folder):
    before = files(folder)
    store.write("user", ["u"], rows(7)).write("item", ["a"], rows(10))
    after = files(folder)
    kept = {name: content for name, content in before.items() if name != "manifest"}
    assert len(kept) == 3
    assert kept.items() <= after.items()
    new = {name: safetensors.numpy.load(after[name]) for name in after.keys() - before.keys()}
    assert new["user-4.safetensors"]["replaced"].tolist() == []
    assert new["item-5.safetensors"]["replaced"].tolist() == [0]
    assert new["item-5.safetensors"]["vectors"].tolist() == [[10, 10]]


def test_groups_do_not_know_each_other(store):
    store = store.write("user", ["a", "u"], rows(5, 6))
    assert contents(store) == {"item": {"a": 1, "b": 20, "d": 40}, "user": {"a": 5, "u": 6}}
    assert store.groups == {"item": 3, "user": 2}
    assert len(store) == 5
    store = store.delete("user", ["a", "u"])
    assert store.groups == {"item": 3, "user": 0}
    assert store.ids("user").tolist() == []
    with pytest.raises(UnknownIdError, match="found the group 'users'; allowed: 'item', 'user'"):
        store.ids("users")


def test_an_open_store_keeps_its_generation(store):
    item_only = store.write("user", ["u"], rows(7))
    newest = item_only.write("item", ["a"], rows(10)).delete("user", ["u"]).compact()
    assert contents(store) == {"item": {"a": 1, "b": 20, "d": 40}}
    assert contents(item_only)["user"] == {"u": 7}
    assert (store.generation, store.refresh().generation) == (3, newest.generation) == (3, 7)
    assert contents(store.refresh()) == contents(newest)
    assert contents(store) == {"item": {"a": 1, "b": 20, "d": 40}}


def test_a_stale_store_writes_onto_the_newest_generation(store):
    store.write("item", ["e"], rows(5))
    assert contents(store.write("item", ["f"], rows(6)))["item"].keys() == {*"abdef"}


def test_compaction_takes_what_was_erased_from_the_disk(folder):
    secret = np.array([[0.123456, 0.654321]], np.float32)
    store = EmbeddingStore.create(folder, dim=2).write("user", ["u-1", "u-2"], rows(1, 2))
    store = store.write("user", ["erase-me"], secret).write("user", ["u-3"], rows(3))
    kept = store.compact()
    for name in (b"erase-me", secret.tobytes()):
        assert any(name in content for content in files(folder).values())
    store = kept.delete("user", ["erase-me"])
    assert "erase-me" not in store.ids("user")
    store = store.compact()
    for name in (b"erase-me", secret.tobytes()):
        assert not any(name in content for content in files(folder).values())
    assert sorted(files(folder)) == ["manifest", "user-6.safetensors"]
    assert contents(store) == {"user": {"u-1": 1, "u-2": 2, "u-3": 3}}
    assert store.compact().generation == store.generation  # there is nothing to merge


def test_compaction_removes_what_an_earlier_one_left(store, folder):
    """Killed after the switch: the old file is still there, and the generation is compact."""
    old = (folder / "item-1.safetensors").read_bytes()
    store.compact()
    (folder / "item-1.safetensors").write_bytes(old)
    (folder / UNFINISHED).write_bytes(b"half a manifest")
    (folder / "notes.txt").write_text("mine")
    store.compact()
    assert sorted(files(folder)) == ["item-4.safetensors", "manifest", "notes.txt"]


def test_what_is_not_the_store_s_own_stays(store, folder):
    """Names that look like its own, but that no writer of this store gave; and a folder."""
    others = ["backup-1.safetensors", "backup-3.faiss", "item-9.safetensors.part", ".tmp-mine"]
    for name in others:
        (folder / name).write_text("mine")
    for name in ("x-1.faiss", "item-4.faiss", UNFINISHED):
        (folder / name).mkdir()
    begun = ["user-4.safetensors", "item-4.safetensors", f".tmp-{'f' * 32}"]
    for name in begun:
        (folder / name).write_text("a killed writer began this")
    store = store.write("item", ["e"], rows(5)).compact().delete("item", ["a"])
    listed = [segment.file for segment in store.manifest.groups["item"].segments]
    left = {path.name for path in folder.iterdir()} - {"manifest", "lock", *listed}
    assert left == {*others, "x-1.faiss", "item-4.faiss", UNFINISHED}
    assert all((folder / name).read_text() == "mine" for name in others)


def test_the_next_writer_removes_a_group_that_was_taken_out(store, folder, monkeypatch):
    """The one before it could not: it ended between the switch and the last file."""
    store = store.write("user", ["u"], rows(7))

    def fails(path: Path, manifest: generations.Manifest) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(generations, "remove_unlisted", fails)
        with pytest.raises(OSError, match="killed"):
            store.replace({"user": None})
    assert (folder / "user-4.safetensors").exists()
    assert EmbeddingStore.open(folder).groups == {"item": 3}
    store.write("item", ["e"], rows(5))
    assert not (folder / "user-4.safetensors").exists()


def test_many_small_writes_make_few_files(store, folder, monkeypatch):
    """From the fourth file on: a file is merged with those after it that are not smaller."""
    monkeypatch.setattr(groups, "MAX_SEGMENTS", 4)
    expected = {f"i{number}": float(number) for number in range(40)}
    for id_, value in expected.items():
        store = store.write("item", [id_], rows(value))
        assert len(list(folder.glob("item-*"))) <= 6
    assert contents(store)["item"] == {"a": 1, "b": 20, "d": 40, **expected}
    assert contents(store.compact()) == contents(store)


ids_strategy = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["item", "user"]), ids_strategy),
            st.tuples(st.just("delete"), ids_strategy),
            st.tuples(st.just("replace"), ids_strategy),
            st.tuples(st.just("compact"), st.just([])),
        ),
        max_size=12,
    )
)
def test_a_store_is_a_dictionary(steps, tmp_path_factory):
    """Whatever is written, deleted and merged: the ids and vectors are those of a dict."""
    store = EmbeddingStore.create(tmp_path_factory.mktemp("law"), dim=2)
    expected: dict[str, dict[str, float]] = {"item": {}}
    store = store.write("item", [], rows().reshape(0, 2))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(groups, "MAX_SEGMENTS", 2)
        for number, (what, ids) in enumerate(steps):
            if what == "compact":
                store = store.compact()
            elif what == "delete":
                ids = [id_ for id_ in ids if id_ in expected["item"]]
                store = store.delete("item", ids)
                for id_ in ids:
                    del expected["item"][id_]
            elif what == "replace":  # every other vector is the one that was there, if there is one
                old = expected["item"]
                values = [old.get(id_, -1.0) if id_ < "e" else number for id_ in ids]
                store = store.replace({"item": (ids, rows(*values).reshape(-1, 2))})
                new = dict(zip(ids, values, strict=True))
                kept = {id_: value for id_, value in old.items() if new.get(id_) == value}
                expected["item"] = {**kept, **{id_: new[id_] for id_ in ids if id_ not in kept}}
            else:
                values = [100 * number + place for place in range(len(ids))]
                store = store.write(what, ids, rows(*values).reshape(-1, 2))
                group = expected.setdefault(what, {})
                for id_, value in zip(ids, values, strict=True):
                    group.pop(id_, None)
                    group[id_] = value
    for view in (store, EmbeddingStore.open(store.path)):
        assert {name: list(group.items()) for name, group in contents(view).items()} == {
            name: list(group.items()) for name, group in expected.items()
        }
    store.verify()


def test_replacing_writes_what_differs_and_deletes_what_is_gone(store, folder):
    """a = 1 and d = 40 stay, b becomes 21, e is new; vectors of users have a size of their own."""
    before = files(folder)
    wide = np.ones((2, 3), np.float32)
    many = EmbeddingStore.create(folder.with_name("many"))
    many = many.replace({"item": (["a", "b"], rows(1, 2)), "user": (["u", "v"], wide)})
    assert (many.dims, many.dim, many.generation) == ({"item": 2, "user": 3}, None, 1)
    store = store.replace({"item": (["e", "d", "b", "a"], rows(5, 40, 21, 1)), "user": None})
    assert store.generation == 4
    assert contents(EmbeddingStore.open(folder)) == {"item": {"a": 1, "d": 40, "e": 5, "b": 21}}
    after = files(folder)
    written = safetensors.numpy.load(after["item-4.safetensors"])
    assert written["vectors"].tolist() == [[5, 5], [21, 21]]
    assert before.keys() - {"manifest"} < after.keys()


def test_replacing_by_the_same_is_no_generation_and_keeps_the_index(store, folder):
    store = store.write("user", ["u"], rows(7)).build_index("item")
    before = files(folder)
    same = ["d", "b", "a"], rows(40, 20, 1)
    assert store.replace({"item": same}).generation == store.generation
    assert store.replace({"item": same, "other": None}).generation == store.generation
    assert files(folder) == before
    other = store.replace({"item": same, "user": (["u"], rows(8))})
    assert other.nearest("item", rows(1), n=1, exact=False).ids.tolist() == [["d"]]
    assert contents(other)["user"] == {"u": 8}


def test_replacing_takes_groups_out_and_leaves_those_that_are_not_named(store):
    store = store.write("user", ["u"], rows(7)).write("mine", ["m"], rows(1))
    store = store.replace({"item": (["a"], rows(1)), "user": None})
    assert contents(EmbeddingStore.open(store.path)) == {"item": {"a": 1}, "mine": {"m": 1}}


def test_vectors_of_another_size_take_the_place_of_all(folder):
    store = EmbeddingStore.create(folder).write("item", ["a", "b"], rows(1, 2))
    with pytest.raises(DataError, match=r"found the shape \(1, 3\); allowed: \(1, 2\)"):
        store.write("item", ["a"], np.ones((1, 3), np.float32))
    store = store.replace({"item": (["a"], np.ones((1, 3), np.float32))})
    assert store.vectors("item", ["a"]).tolist() == [[1, 1, 1]]
    assert store.nearest("item", np.ones((1, 3), np.float32)).scores.tolist() == [[3]]
    assert sorted(files(folder)) == ["item-2.safetensors", "manifest"]
    assert "dims={'item': 3}, generation=2" in repr(store)


def test_replacing_again_and_again_does_not_fill_the_disk(folder):
    """Never more than twice the live rows, whatever share of them a generation replaces."""
    store, ids = EmbeddingStore.create(folder, dim=2), [f"i{number}" for number in range(20)]
    values = np.zeros(20)
    for generation in range(12):
        values[generation % 4 :: 2] += 1
        store = store.replace({"item": (ids, rows(*values))})
        assert contents(store)["item"] == dict(zip(ids, values.tolist(), strict=True))
        assert sum(e.rows for e in store.manifest.groups["item"].segments) <= 40
    store.verify()


class Counted:
    """Vectors that are worked out when they are asked for: id number n is n, n."""

    shape = (5, 2)

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        self.asked.append(numbers.tolist())
        return rows(*numbers)


def test_vectors_are_read_a_block_at_a_time(folder, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK_BYTES", 16)
    store, given = EmbeddingStore.create(folder), Counted()
    store = store.replace({"item": (list("abcde"), given)})
    assert given.asked == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4]]
    assert contents(store) == {"item": {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}}
    given.asked.clear()
    store = store.write("item", ["b", "e"], rows(7, 7)).replace({"item": (list("abcde"), given)})
    assert given.asked == [[0, 1], [2, 3], [4], [1, 4]]


FAULTS: dict[str, tuple[list[Any], Any, str]] = {
    "twice": (["x", "y", "x"], rows(1, 2, 3), "ids, row 3: found 'x' again .first in row 1"),
    "empty": (["x", ""], rows(1, 2), "ids, row 2: found an empty id"),
    "number": (["x", 7], rows(1, 2), r"ids, row 2: found 7 \(int\); allowed: strings"),
    "infinite": (["x", "y"], rows(1, np.inf), "vectors, row 2: found a value that is not finite"),
    "nan": (["x", "y"], rows(np.nan, 1), "vectors, row 1: found a value that is not finite"),
    "double": (["x"], rows(1).astype(float), "vectors: found float64; allowed: float32"),
    "dim": (["x"], np.ones((1, 3), np.float32), r"the shape \(1, 3\); allowed: \(1, 2\)"),
    "rows": (["x"], rows(1, 2), r"vectors: found the shape \(2, 2\); allowed: \(1, 2\)"),
    "flat": (["x", "y"], np.ones(2, np.float32), r"found the shape \(2,\); allowed: \(2, 2\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_one_group_replaces_none(store, folder, fault):
    ids, given, message = FAULTS[fault]
    with pytest.raises(DataError, match=message):
        store.replace({"user": (["u"], rows(7)), "item": (ids, given)})
    assert contents(EmbeddingStore.open(folder)) == contents(store)
    store.write("item", ["x"], rows(1))
    assert not list(folder.glob("user-*"))


def splitmix_sum(id_: str) -> int:
    """The hash as its docstring defines it, word by word."""

    def mixed(x: int) -> int:
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2**64
        return x ^ x >> 31

    data = id_.encode()
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    total = sum(mixed((w + (j + 1) * 0x9E3779B97F4A7C15) % 2**64) for j, w in enumerate(words))
    return mixed((total + len(data)) % 2**64)


def test_the_hash_on_disk_is_the_documented_one(monkeypatch):
    monkeypatch.setattr(segments, "_HASHED_AT_ONCE", 4)
    ids = string_array(["", *ODD_IDS])
    assert id_hashes(ids).tolist() == [splitmix_sum(id_) for id_ in ["", *ODD_IDS]]
    assert id_hashes(ids.slice(2, 3)).tolist() == [splitmix_sum(id_) for id_ in ODD_IDS[1:4]]


def test_ids_of_one_hash_are_told_apart(folder, monkeypatch):
    for module in (segments, groups):
        monkeypatch.setattr(module, "id_hashes", lambda ids: np.full(len(ids), 7, np.uint64))
    store = EmbeddingStore.create(folder, dim=2).write("item", list("abcd"), rows(1, 2, 3, 4))
    assert store.vectors("item", ["d", "b", "c"])[:, 0].tolist() == [4, 2, 3]
    with pytest.raises(UnknownIdError, match="'e'"):
        store.vectors("item", ["a", "e"])


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_of_a_faulty_write_is_written(store, folder, fault):
    ids, vectors, message = FAULTS[fault]
    before = files(folder)
    with pytest.raises(DataError, match=message):
        store.write("item", ids, vectors)
    assert files(folder) == before
    assert store.refresh().generation == store.generation


def test_what_cannot_be_deleted_deletes_nothing(store, folder):
    before = files(folder)
    with pytest.raises(UnknownIdError, match="found 1 unknown id: 'c'"):
        store.delete("item", ["a", "c"])
    with pytest.raises(DataError, match="'a' again"):
        store.delete("item", ["a", "a"])
    assert files(folder) == before


@pytest.mark.parametrize("name", ["", "Item", "1", "a-b", "../x", "a" * 65, 7])
def test_a_group_has_a_plain_name(store, name):
    with pytest.raises(ConfigError, match="group: found"):
        store.write(name, ["x"], rows(1))


def test_one_writer_at_a_time_and_readers_all_the_while(store, folder):
    with (
        generations.locked(folder),
        pytest.raises(StoreError, match=f"{folder}: found another writer; allowed: one at a time"),
    ):
        store.write("item", ["x"], rows(1))
    with generations.locked(folder):
        assert contents(EmbeddingStore.open(folder)) == contents(store)
    assert contents(store.write("item", ["x"], rows(1)))["item"]["x"] == 1


def test_a_store_is_made_in_a_new_or_empty_folder(folder, tmp_path):
    for dim in (0, 1.5, True, "2", 65_537):
        with pytest.raises(ConfigError, match="dim: found"):
            EmbeddingStore.create(folder, dim)
    assert not folder.exists()
    store = EmbeddingStore.create(folder, np.int64(2))
    assert (store.generation, store.groups, store.dim) == (0, {}, 2)
    (tmp_path / "killed").mkdir()
    for left in ("lock", UNFINISHED):
        (tmp_path / "killed" / left).touch()
    EmbeddingStore.create(tmp_path / "killed", 2)
    assert sorted(files(tmp_path / "killed")) == ["manifest"]
    with pytest.raises(StoreError, match="found a store; allowed: a new or empty folder"):
        EmbeddingStore.create(folder, 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(StoreError, match=r"found letter.txt; allowed: a new or empty folder"):
        EmbeddingStore.create(tmp_path / "other", 2)
    with pytest.raises(StoreError, match="found a file"):
        EmbeddingStore.create(tmp_path / "other" / "letter.txt", 2)
    with pytest.raises(UnknownIdError, match="allowed: none, for nothing was written yet"):
        store.ids("item")


def test_a_store_that_is_another_now_is_not_written_to(store, folder):
    for path in folder.iterdir():
        path.unlink()
    EmbeddingStore.create(folder, 3)
    with pytest.raises(StoreError, match="found vectors of size 3; allowed: size 2"):
        store.write("item", ["x"], rows(1))


def test_a_reader_that_meets_a_compaction_opens_the_generation_after_it(store, monkeypatch):
    """It reads the manifest, then the files of it are merged and gone."""
    stale, read = store.manifest, generations.read_manifest
    manifests = [stale]
    store.compact()
    monkeypatch.setattr(
        generations, "read_manifest", lambda path: manifests.pop() if manifests else read(path)
    )
    opened = EmbeddingStore.open(store.path)
    assert (opened.generation, contents(opened)) == (4, contents(store))


def test_refreshing_opens_new_files_only(store, monkeypatch):
    opened = []
    whole = MappedFile.open
    monkeypatch.setattr(
        MappedFile, "open", lambda folder, entry: opened.append(entry.file) or whole(folder, entry)
    )
    EmbeddingStore.open(store.path).write("user", ["u"], rows(1))
    assert opened == [f"item-{n}.safetensors" for n in (1, 2, 3)] + ["user-4.safetensors"]
    del opened[:]
    assert store.refresh().groups == {"item": 3, "user": 1}
    assert opened == ["user-4.safetensors"]


def test_other_tools_read_the_files(store, folder, tmp_path):
    arrays = safetensors.numpy.load_file(folder / "item-2.safetensors")
    assert arrays["vectors"].tolist() == [[20, 20], [40, 40]]
    assert arrays["bytes"].tobytes() == b"bd"
    assert arrays["replaced"].tolist() == [1]
    table = store.to_arrow("item")
    assert [str(field.type) for field in table.schema] == [
        "string",
        "fixed_size_list<item: float>[2]",
    ]
    assert table.to_pydict() == {"id": ["a", "b", "d"], "vector": [[1, 1], [20, 20], [40, 40]]}
    store.to_parquet(tmp_path / "new" / "items.parquet", "item")
    assert pq.read_table(tmp_path / "new" / "items.parquet").equals(table)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["items.parquet"]


def test_a_failed_export_leaves_the_earlier_file(store, tmp_path, monkeypatch):
    path = tmp_path / "items.parquet"
    store.to_parquet(path, "item")
    before = path.read_bytes()

    def fails(self: object, batch: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", fails)
    with pytest.raises(OSError, match="disk full"):
        store.to_parquet(path, "item")
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["items.parquet", "vectors"]


def test_a_block_that_raises_replaces_nothing(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "x") as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}
