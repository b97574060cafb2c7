"""A store is whole, or it is refused by the name of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from kgrank.errors import StoreError, UnknownIdError
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


MANIFESTS = {
    "another format": (
        lambda m: m.update(format=1),
        "found store format 1; allowed: store format 2",
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
