"""A store is whole, or it is refused by the name of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from kgrank.errors import StoreError, UnknownIdError
from kgrank.kg import groups
from kgrank.kg.embeddings import EmbeddingStore


def rows(*values: float) -> np.ndarray:
    """Vectors of two equal numbers each: (n × 2) float32."""
    return np.array([[value, value] for value in values], np.float32)


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


def flip(at: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def linked(path: Path) -> None:
    path.rename(path.with_name("away"))
    path.symlink_to(path.with_name("away"))


@pytest.mark.parametrize("file", ["item-1.safetensors", "item-2.safetensors", "item-3.safetensors"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "found no such file"),
        (cut, r"found \d+ bytes; allowed: \d+ bytes"),
        (grow, r"found \d+ bytes; allowed: \d+ bytes"),
        (flip(20), "found another header"),
        (linked, "found no plain file"),
    ],
)
def test_a_damaged_file_is_refused_by_name_at_opening(store, folder, file, damage, message):
    damage(folder / file)
    with pytest.raises(StoreError, match=f"{folder / file}: {message}"):
        EmbeddingStore.open(folder)


def test_verifying_finds_one_changed_bit_anywhere(store, folder):
    store.verify()
    name = "item-2.safetensors"
    whole = (folder / name).read_bytes()
    start = len(store.manifest.groups["item"].segments[1].header(2))
    for at in range(start, len(whole)):
        flip(at)(folder / name)
        with pytest.raises(StoreError, match=f"{name}: found other bytes; allowed: what the mani"):
            EmbeddingStore.open(folder).verify()
        (folder / name).write_bytes(whole)
    store.verify()


@pytest.mark.parametrize("file", ["item-1.safetensors", "item-2.safetensors"])
def test_a_changed_byte_is_an_error_or_a_wrong_number_but_no_crash(store, folder, file):
    """Opening checks no content. What could lead out of the file is refused where it is read."""
    whole = (folder / file).read_bytes()
    refused = 0
    for at in range(len(store.manifest.groups["item"].segments[0].header(2)), len(whole)):
        content = bytearray(whole)
        content[at] ^= 0x85
        (folder / file).write_bytes(content)
        try:
            damaged = EmbeddingStore.open(folder)
            damaged.to_arrow("item")
            damaged.vectors("item", damaged.ids("item"))
            damaged.vectors("item", ["a"])
        except (StoreError, UnknownIdError):
            refused += 1
    assert 30 < refused < len(whole)


def test_files_that_contradict_the_manifest_are_refused(store, folder):
    """The deletion says row 1 (b, replaced before) in the place of row 2 (c): four rows live."""
    path = folder / "item-3.safetensors"
    start = len(store.manifest.groups["item"].segments[2].header(2))
    content = bytearray(path.read_bytes())
    assert content[start + 8 : start + 16] == (2).to_bytes(8, "little")
    content[start + 8] = 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{path}: found 4 rows; allowed: 3 rows"):
        EmbeddingStore.open(folder).ids("item")


def test_damage_gets_no_checksum_of_its_own(store, folder):
    """A changed bit in what is copied, anywhere: the files are not merged, and stay as they are."""
    for name in ("item-1.safetensors", "item-2.safetensors", "item-3.safetensors"):
        whole = (folder / name).read_bytes()
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        start = len(store.manifest.groups["item"].segments[int(name[5]) - 1].header(2))
        for at in range(start, len(whole), 3):
            flip(at)(folder / name)
            with pytest.raises(StoreError, match=name):
                EmbeddingStore.open(folder).compact()
            (folder / name).write_bytes(whole)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    store.compact().verify()


def test_a_write_that_merges_verifies_what_it_copies(store, folder, monkeypatch):
    monkeypatch.setattr(groups, "MAX_SEGMENTS", 2)
    path = folder / "item-2.safetensors"
    whole = path.read_bytes()
    flip(whole.index(rows(40).tobytes()))(path)
    for write in (
        lambda: store.write("item", ["e", "f", "g"], rows(5, 6, 7)),
        lambda: store.replace({"item": (list("abdefg"), rows(1, 20, 40, 5, 6, 7))}),
    ):
        with pytest.raises(StoreError, match=f"{path}: found other bytes"):
            write()
    assert store.refresh().generation == 3
    path.write_bytes(whole)
    assert store.write("item", ["e", "f", "g"], rows(5, 6, 7)).groups == {"item": 6}


@pytest.mark.parametrize("name", ["item-1.safetensors", "item-2.safetensors"])
def test_no_id_comes_twice_for_damage_that_hides_it(store, folder, name):
    """Hashes, rows, offsets, ids: what is written next says that one of these is damaged."""
    whole = (folder / name).read_bytes()
    segment = store._groups["item"].segments[int(name[5]) - 1]
    values = segment.vectors.tobytes()
    first = whole.index(values)
    for at in range(len(segment.entry.header(2)), len(whole)):
        if first <= at < first + len(values):
            continue
        flip(at)(folder / name)
        damaged = EmbeddingStore.open(folder)
        for write in (
            lambda damaged=damaged: damaged.write("item", ["a", "b", "d"], rows(1, 2, 4)),
            lambda damaged=damaged: damaged.replace({"item": (["a", "b"], rows(1, 2))}),
            lambda damaged=damaged: damaged.delete("item", ["a"]),
        ):
            with pytest.raises(StoreError, match=f"{name}: found other ids; allowed: those that"):
                write()
        (folder / name).write_bytes(whole)
    assert store.write("item", ["a", "b"], rows(1, 2)).ids("item").tolist() == ["d", "a", "b"]


def test_a_write_is_refused_while_a_file_is_missing(store, folder):
    """An open store still has it mapped, but nobody could open what would be written."""
    (folder / "item-1.safetensors").rename(folder / "away")
    before = (folder / "manifest").read_bytes()
    for write in (
        lambda: store.write("item", ["e"], rows(5)),
        lambda: store.write("user", ["u"], rows(5)),
        lambda: store.delete("item", ["a"]),
        store.compact,
        store.refresh,
    ):
        with pytest.raises(StoreError, match=r"item-1.safetensors: found no such file"):
            write()
    assert (folder / "manifest").read_bytes() == before
    assert store.vectors("item", ["a"]).tolist() == [[1, 1]]
    (folder / "away").rename(folder / "item-1.safetensors")
    assert store.write("item", ["e"], rows(5)).groups == {"item": 4}


def test_a_file_that_was_restored_is_read_anew(store, folder):
    """Its damaged self is still mapped by who opened it before; nothing of that is copied."""
    path = folder / "item-1.safetensors"
    whole = path.read_bytes()
    flip(whole.index(rows(1).tobytes()))(path)
    damaged = EmbeddingStore.open(folder)
    with pytest.raises(StoreError, match=f"{path}: found other bytes"):
        damaged.compact()
    (folder / "copy").write_bytes(whole)
    (folder / "copy").rename(path)
    assert damaged.vectors("item", ["a"]).tolist() != [[1, 1]]
    assert damaged.refresh().vectors("item", ["a"]).tolist() == [[1, 1]]
    assert damaged.compact().vectors("item", ["a"]).tolist() == [[1, 1]]


def test_a_store_of_the_format_before_is_read_and_written_to(store, folder):
    """Format 2 lists no former files, and no sums of what finds an id."""
    manifest = json.loads((folder / "manifest").read_bytes().splitlines()[0])
    del manifest["former"]
    for segment in manifest["groups"]["item"]["segments"]:
        del segment["sum"]
    content = json.dumps({**manifest, "format": 2}).encode()
    (folder / "manifest").write_bytes(content + f"\n{sha256(content).hexdigest()}\n".encode())
    left = folder / "item-1.faiss"  # by a writer of that format, killed before it was removed
    left.write_bytes(b"of a user who is erased")
    mine = folder / "item-1.safetensors.bak"
    mine.write_bytes(b"mine")
    old = EmbeddingStore.open(folder)
    new = old.write("item", ["e"], rows(5))
    assert (left.exists(), mine.exists()) == (False, True)
    assert new.ids("item").tolist() == [*old.ids("item"), "e"] == ["a", "b", "d", "e"]
    assert json.loads((folder / "manifest").read_bytes().splitlines()[0])["format"] == 3


MANIFESTS = {
    "another format": (
        lambda m: m.update(format=1),
        "found store format 1; allowed: store format 2 or 3. Read",
    ),
    "no format": (lambda m: m.pop("format"), "found store format None"),
    "true": (lambda m: m.update(format=True), "found store format True"),
    "an extra key": (lambda m: m.update(more=1), "found another manifest"),
    "no dim": (lambda m: m.update(dim=0), "found another manifest"),
    "a path": (
        lambda m: m["groups"]["item"]["segments"][0].update(file="../item-1.safetensors"),
        "found another manifest",
    ),
    "rows": (
        lambda m: m["groups"]["item"]["segments"][0].update(rows=2),
        "item-1.safetensors: found another header",
    ),
}


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_that_this_version_did_not_write_is_refused(store, folder, change):
    alter, message = MANIFESTS[change]
    manifest = json.loads((folder / "manifest").read_bytes().splitlines()[0])
    alter(manifest)
    content = json.dumps(manifest).encode()
    seal = sha256(content).hexdigest().encode()
    (folder / "manifest").write_bytes(content + b"\n" + seal + b"\n")
    with pytest.raises(StoreError, match=message):
        EmbeddingStore.open(folder)


def test_a_damaged_manifest_is_refused(store, folder):
    whole = (folder / "manifest").read_bytes()
    for at in range(0, len(whole) - 1, 7):
        flip(at)(folder / "manifest")
        with pytest.raises(StoreError, match="manifest: found other bytes"):
            EmbeddingStore.open(folder)
        (folder / "manifest").write_bytes(whole[:at])
        with pytest.raises(StoreError, match="manifest: found other bytes"):
            EmbeddingStore.open(folder)
        (folder / "manifest").write_bytes(whole)


def test_what_is_no_store_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for path, found in (
        (tmp_path / "none", "nothing of this name"),
        (tmp_path, "a folder without a manifest"),
        (tmp_path / "file", "a file"),
    ):
        with pytest.raises(StoreError, match=f"{path}: found {found}; allowed: the folder of an"):
            EmbeddingStore.open(path)


def test_a_stale_view_is_not_called_damaged(store):
    newest = store.compact()
    with pytest.raises(StoreError, match="found generation 4; allowed: generation 3, whose files"):
        store.verify()
    newest.verify()
