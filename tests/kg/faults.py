"""Stops a writer of files at its n-th step, or looks at the disk between its steps.

A step is a write to a file (half of it reaches the file, then comes the stop), an fsync, a rename
or an unlink. As a script it kills writers of an embedding store with SIGKILL: see `main`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from kgrank.kg.embeddings import EmbeddingStore

Step = Callable[[str, Any], None]


class _Watched:
    """A file opened for writing whose every write is a step."""

    def __init__(self, file: Any, step: Step) -> None:
        self._file, self._step = file, step

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B") if len(data) else memoryview(b"")
        half = self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._step("write", self._file.name)
        return half + self._file.write(data[len(data) // 2 :])

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


_watching = [True]


@contextmanager
def unwatched() -> Iterator[None]:
    """What is done to files in this block is no step."""
    _watching[0] = False
    try:
        yield
    finally:
        _watching[0] = True


@contextmanager
def watched(before: Step, after: Step = lambda what, path: None) -> Iterator[None]:
    """Call `before` and `after` around each step, with what it is and the path (or descriptor)."""
    opened, fsync, replace, unlink = Path.open, os.fsync, Path.replace, Path.unlink

    def _open(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = opened(self, mode, *args, **options)
        if not _watching[0] or mode not in ("wb", "xb"):
            return file
        after("open", self)
        return _Watched(file, before)

    def stepping(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(path: Any, *args: Any, **options: Any) -> Any:
            if not _watching[0]:
                return call(path, *args, **options)
            before(what, path)
            result = call(path, *args, **options)
            after(what, path)
            return result

        return step

    with ExitStack() as stack:
        stack.enter_context(patch.object(Path, "open", _open))
        stack.enter_context(patch.object(os, "fsync", stepping("fsync", fsync)))
        stack.enter_context(patch.object(Path, "replace", stepping("replace", replace)))
        stack.enter_context(patch.object(Path, "unlink", stepping("unlink", unlink)))
        yield


@contextmanager
def stopping_at(number: int, stop: Callable[[], None]) -> Iterator[None]:
    """Stop at the step of this number, from 0."""
    left = number

    def before(what: str, path: Any) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            stop()

    with watched(before):
        yield


def write(store: EmbeddingStore) -> EmbeddingStore:
    """Replace b, add d."""
    return store.write("item", ["b", "d"], np.array([[20, 20], [40, 40]], np.float32))


def replace(store: EmbeddingStore) -> EmbeddingStore:
    """Keep a, replace b, add d, delete c; and a second group."""
    vectors = np.array([[1, 1], [20, 20], [40, 40]], np.float32)
    users = ["u"], np.array([[7, 7]], np.float32)
    return store.replace({"item": (["a", "b", "d"], vectors), "user": users})


def delete(store: EmbeddingStore) -> EmbeddingStore:
    return store.delete("item", ["a", "b"])


def compact(store: EmbeddingStore) -> EmbeddingStore:
    return store.compact()


def build_index(store: EmbeddingStore) -> EmbeddingStore:
    return store.build_index("item")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed(work: Callable[[], None], after: float | None = None) -> bool:
    """Run in a child process, kill it after some seconds if given; whether it was killed."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the writer failed with exit status {os.WEXITSTATUS(status)}")
    return os.WIFSIGNALED(status)


def kill_at_every_step(start: Path, out: Path) -> None:
    """Leave out/<operation>-<step>: a copy of the store `start` in which a writer was killed."""
    for operation in (write, replace, delete, compact):
        step, killed = 0, True
        while killed:
            folder = out / f"{operation.__name__}-{step}"
            shutil.copytree(start, folder)

            def work(operation: Any = operation, folder: Path = folder, step: int = step) -> None:
                store = EmbeddingStore.open(folder)
                with stopping_at(step, _die):
                    operation(store)

            killed = _killed(work)
            step += 1


def kill_at_random(folder: Path, times: int) -> None:
    """Kill a writer again and again that gives 40 ids one common value, one higher each time."""
    ids = [f"i{number}" for number in range(40)]
    EmbeddingStore.create(folder, 3)

    def work() -> None:
        store = EmbeddingStore.open(folder)
        while True:
            value = store.vectors("item", ids[:1])[0, 0] + 1 if store.groups else 1.0
            store = store.write("item", ids, np.full((40, 3), value, np.float32))
            if value % 3 == 0:
                store = store.compact()

    seen, seeded = 0.0, random.Random(0)
    for _ in range(times):
        _killed(work, after=seeded.uniform(0.002, 0.05))
        store = EmbeddingStore.open(folder)
        store.verify()
        if not store.groups:
            continue
        vectors = store.vectors("item", ids)
        value = float(vectors[0, 0])
        if not (vectors == value).all() or value < seen or sorted(store.ids("item")) != sorted(ids):
            raise RuntimeError(f"found {vectors[:, 0]} after {seen}")
        seen = value
    print(int(seen))


def main() -> None:
    """`faults.py steps START OUT` or `faults.py random FOLDER TIMES`."""
    if sys.argv[1] == "steps":
        kill_at_every_step(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        kill_at_random(Path(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
