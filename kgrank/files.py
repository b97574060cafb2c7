"""Files that are whole or not there at all, through power cuts too."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


def sync(path: Path) -> None:
    """Wait until the file, or the list of a folder's names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
