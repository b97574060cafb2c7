"""Files that are whole or not there at all, through power cuts too."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kgrank.errors import ConfigError

TEMPORARY = ".tmp-"
"""What the name of a file that is not finished begins with; nobody reads such a file."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path`; what is written there takes the place of `path` in one step.

        with replacing(folder / "current") as temporary:
            temporary.write_text("…")

    If the block raises, `path` stays as it was and the temporary file goes.

    Raises:
        OSError: the file cannot be written to, brought to the disk or renamed.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def check_new(out: str | Path) -> Path:
    """The whole path of a folder that is to be written.

    Raises:
        ConfigError: something is there already, other than an empty folder.
    """
    path = Path(out).resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ConfigError(
            f"{out}: found something there already; allowed: a new folder. Name another one, or "
            "remove it."
        )
    return path


def check_new_file(path: Path) -> None:
    """Raises ConfigError if there is something at `path`, where a file is to be written."""
    if path.exists():
        raise ConfigError(
            f"{path}: found something there already; allowed: a new file. Name another one, or "
            "remove it."
        )


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """An empty folder beside `out`; what is written into it stands at `out` in one step.

    Who may read other new files may read all of its files: safetensors lets nobody else read those
    it writes. If the block raises, there is nothing at `out`.

    Raises:
        ConfigError: something is at `out` already, other than an empty folder.
        OSError: the folder cannot be written to, brought to the disk or renamed.
    """
    whole = check_new(out)
    temporary = whole.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        readable = temporary.stat().st_mode & 0o666
        for path in temporary.rglob("*.safetensors"):
            path.chmod(readable)
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        if whole.is_dir():
            whole.rmdir()  # it is empty, and not all systems rename onto it
        temporary.rename(whole)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(whole.parent)


def sync(path: Path) -> None:
    """Wait until the file, or the list of a folder's names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
