"""A writer that is stopped at any moment leaves the old generation or the new one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kgrank.errors import StoreError
from kgrank.kg.embeddings import EmbeddingStore

FAULTS = Path(__file__).with_name("faults.py")
_spec = spec_from_file_location("faults", FAULTS)
assert _spec is not None
assert _spec.loader is not None
faults = module_from_spec(_spec)
_spec.loader.exec_module(faults)

OLD = {"a": 1.0, "b": 2.0, "c": 4.0}
NEW = {
    "write": {"a": 1.0, "b": 20.0, "c": 4.0, "d": 40.0},
    "replace": {"a": 1.0, "b": 20.0, "d": 40.0},
    "delete": {"c": 4.0},
    "compact": OLD,
    "build_index": OLD,
}


def contents(store: EmbeddingStore) -> dict[str, float]:
    """The group "item"; a second group is there after "replace", and not before it is done."""
    ids = sorted(store.ids("item"))
    assert store.groups.get("user", 0) == ("a" in ids and "c" not in ids)
    vectors = store.vectors("item", ids)
    assert (vectors[:, 0] == vectors[:, 1]).all()
    return dict(zip(ids, vectors[:, 0].tolist(), strict=True))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """a = 1, b = 2, c = 3, then c = 4: generation 2, and an index: generation 3."""
    store = EmbeddingStore.create(tmp_path / "start", dim=2)
    store = store.write("item", ["a", "b", "c"], np.array([[1, 1], [2, 2], [3, 3]], np.float32))
    store = store.write("item", ["c"], np.array([[4, 4]], np.float32))
    store.build_index("item")
    return tmp_path / "start"


def check_whole(folder: Path, operation: str) -> int:
    """The store is the old or the new one and can be written to; the generation it was found in.

    The next writer leaves no file that is not of its generation.
    """
    store = EmbeddingStore.open(folder)
    store.verify()
    generation = store.generation
    assert (generation, contents(store)) in ((3, OLD), (4, NEW[operation]))
    store = store.write("item", ["e"], np.array([[5, 5]], np.float32))
    assert contents(store) == {**(OLD if generation == 3 else NEW[operation]), "e": 5.0}
    listed = {file.file for group in store.manifest.groups.values() for file in group.files}
    assert {path.name for path in folder.iterdir()} == {"manifest", "lock", *listed}
    return generation


def test_a_writer_killed_at_any_step_leaves_one_generation(start, tmp_path):
    """kill -9 before each write (half of it done), fsync, rename and unlink, in a process."""
    command = [sys.executable, str(FAULTS), "steps", str(start), str(tmp_path / "out")]
    subprocess.run(command, check=True)
    found: dict[str, list[int]] = {"write": [], "replace": [], "delete": [], "compact": []}
    for operation, generations in found.items():
        for step in range(len(list((tmp_path / "out").glob(f"{operation}-*")))):
            generations.append(check_whole(tmp_path / "out" / f"{operation}-{step}", operation))
        # First the old one, from some step on the new one: never back.
        assert generations == sorted(generations)
        assert generations.count(3) >= 10
        assert generations.count(4) >= 2


def test_a_writer_killed_at_random_leaves_what_was_written_last(tmp_path):
    command = [sys.executable, str(FAULTS), "random", str(tmp_path / "store"), "30"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) >= 2


@pytest.mark.parametrize("operation", NEW)
def test_a_writer_that_fails_at_any_step_leaves_one_generation(start, tmp_path, operation):
    """The disk is full, or takes no more fsync, rename or unlink, at each step in turn."""

    def disk_full() -> None:
        raise OSError(28, "No space left on device")

    generations, failed = [], True
    while failed:
        folder = tmp_path / str(len(generations))
        shutil.copytree(start, folder)
        store = EmbeddingStore.open(folder)
        try:
            with faults.stopping_at(len(generations), disk_full):
                getattr(faults, operation)(store)
            failed = False
        except OSError as error:
            assert error.errno == 28
        assert contents(store) == OLD
        generations.append(check_whole(folder, operation))
    assert generations == sorted(generations)
    assert generations.count(3) >= 5


def test_a_store_whose_making_was_stopped_can_be_made(tmp_path):
    def disk_full() -> None:
        raise OSError(28, "No space left on device")

    step, failed = 0, True
    while failed:
        folder = tmp_path / str(step)
        try:
            with faults.stopping_at(step, disk_full):
                EmbeddingStore.create(folder, dim=2)
            failed = False
        except OSError:
            if not (folder / "manifest").exists():
                with pytest.raises(StoreError, match=r"nothing of this name|without a manifest"):
                    EmbeddingStore.open(folder)
                EmbeddingStore.create(folder, dim=2)
        assert EmbeddingStore.open(folder).dim == 2
        step += 1
    assert step > 4


class Disk:
    """What of a folder survives a power cut: what was brought to the disk by fsync.

    A file has the content of its last fsync (or none), the folder the names of its last fsync.
    The system may also have written names of its own accord: the manifest's, or all others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.synced = {path.stat().st_ino: path.read_bytes() for path in folder.iterdir()}
        self.names = self._now()

    def _now(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self.folder.iterdir()}

    def after(self, what: str, path: Any) -> None:
        """Note what a step did; `path` is a descriptor for "fsync"."""
        if what == "open":
            self.synced.pop(path.stat().st_ino, None)
        elif what == "fsync":
            real = Path(f"/proc/self/fd/{path}").readlink()
            if real == self.folder:
                self.names = self._now()
            elif real.is_file():
                self.synced[real.stat().st_ino] = real.read_bytes()

    def states(self) -> Iterator[dict[str, bytes]]:
        """Files as they may be found: names of the manifest and of the rest, each old or new."""
        now = self._now()
        for manifest in (self.names, now):
            for rest in (self.names, now):
                names = {name: number for name, number in rest.items() if name != "manifest"}
                names["manifest"] = manifest["manifest"]
                yield {name: self.synced.get(number, b"") for name, number in names.items()}


@pytest.mark.parametrize("operation", NEW)
def test_a_power_cut_at_any_step_leaves_one_generation(start, tmp_path, operation):
    disk = Disk(start)
    found = []

    def look() -> None:
        for files in disk.states():
            shutil.rmtree(tmp_path / "found", ignore_errors=True)
            (tmp_path / "found").mkdir()
            for name, content in files.items():
                (tmp_path / "found" / name).write_bytes(content)
            store = EmbeddingStore.open(tmp_path / "found")
            store.verify()
            assert (store.generation, contents(store)) in ((3, OLD), (4, NEW[operation]))
            found.append(store.generation)

    def after(what: str, path: Any) -> None:
        with faults.unwatched():
            disk.after(what, path)
            look()

    store = EmbeddingStore.open(start)
    with faults.watched(lambda what, path: None, after):
        getattr(faults, operation)(store)
    look()
    assert set(found[:8]) == {3}
    assert set(found[-4:]) == {4}
