"""Generations of an embedding store: the manifest, the switch to a next one, the writer's lock."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from kgrank.errors import StoreError
from kgrank.files import TEMPORARY, replacing, sync
from kgrank.kg.ann import Index
from kgrank.kg.groups import Group, GroupEntry
from kgrank.kg.segments import FileEntry, FileName, Segment, refusal
from kgrank.kg.vectors import MAX_DIM
from kgrank.settings import Section

FORMATS = 2, 3
"""The numbers of the layouts that are read; the last is written. 2 has no `former`, no `sum`."""

MAX_MANIFEST_BYTES = 16_000_000

MANIFEST, LOCK = "manifest", "lock"
UNFINISHED = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{32}")
"""The names of manifests that a killed writer did not finish."""


class Manifest(Section):
    """What a generation is.

    Attributes:
        format: the number of the layout.
        dim: the one size that vectors may have; None = each group has its own.
        generation: how many times the store was written to.
        groups: what is in it.
        former: the files of the generation before it that it has no use for; the writer that made
            it removes them, or if that was killed the next one.
    """

    format: Literal[2, 3] = 3
    dim: Annotated[int, Field(ge=1, le=MAX_DIM)] | None = None
    generation: Annotated[int, Field(ge=0)] = 0
    groups: Mapping[str, GroupEntry] = Field(default_factory=dict)
    former: tuple[FileName, ...] = ()

    @property
    def files(self) -> set[str]:
        """The names of its files."""
        return {file.file for group in self.groups.values() for file in group.files}

    def next(self, groups: Mapping[str, GroupEntry]) -> Manifest:
        """The generation after this one, with these groups."""
        manifest = Manifest(dim=self.dim, generation=self.generation + 1, groups=groups)
        former = tuple(sorted(self.files - manifest.files))
        return manifest.model_copy(update={"former": former})


def newest(path: Path, known: Mapping[str, Group]) -> tuple[Manifest, dict[str, Group]]:
    """The newest generation and its groups, of which those that are open already are taken over.

    Raises:
        StoreError: there is no store, its format is unknown, or a file is missing or of another
            size than it was written.
    """
    while True:
        manifest = read_manifest(path)
        try:
            return manifest, _open_groups(path, manifest, known)
        except StoreError:
            # Between manifest and files a writer may have gone on to a next generation.
            if read_manifest(path).generation == manifest.generation:
                raise


def switch(path: Path, manifest: Manifest, known: Mapping[str, Group]) -> dict[str, Group]:
    """Make this the newest generation, in one step; then remove what it has no use for.

    Args:
        path: the store's folder, locked.
        manifest: the generation; its files are written, but their names maybe not safe yet.
        known: the groups of the generation before it.

    Returns:
        Its groups.
    """
    groups = _open_groups(path, manifest, known)
    content = manifest.model_dump_json().encode()
    sync(path)
    with replacing(path / MANIFEST) as temporary:
        temporary.write_bytes(content + f"\n{sha256(content).hexdigest()}\n".encode())
    remove_unlisted(path, manifest)
    return groups


def _open_groups(path: Path, manifest: Manifest, known: Mapping[str, Group]) -> dict[str, Group]:
    opened = (file for group in known.values() for file in group.files)
    files: dict[FileEntry, Segment | Index] = {f.entry: f for f in opened if f.mapped.stands()}
    groups = {}
    for name, entry in manifest.groups.items():
        same = name in known and known[name].entry == entry and files.keys() >= {*entry.files}
        groups[name] = known[name] if same else Group.open(path, name, entry, files)
    return groups


def remove_unlisted(path: Path, manifest: Manifest) -> None:
    """Remove what the generation before had, and what a killed writer began; others' files stay.

    Format 2 does not say what the generation before had: there all that has the name of such a
    file and is not of this generation goes, once, before the store is of format 3.
    """
    number = manifest.generation + 1 if manifest.format == FORMATS[-1] else "[0-9]+"
    begun = re.compile(rf"[a-z][a-z0-9_]*-{number}\.(safetensors|faiss)")
    unlisted = [
        file
        for file in path.iterdir()
        if (
            file.name in manifest.former
            or (begun.fullmatch(file.name) and file.name not in manifest.files)
            or UNFINISHED.fullmatch(file.name)
        )
        and file.is_file()
        and not file.is_symlink()
    ]
    for file in unlisted:
        file.unlink()
    if unlisted:
        sync(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only writer; the lock goes with the process, however that ends."""
    if not path.is_dir():
        raise _no_store(path)
    with (path / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "Wait until the other has finished, and write again."
            raise refusal(path, "another writer", "one at a time", mend) from None
        yield


def _no_store(path: Path) -> StoreError:
    found = "a folder without a manifest" if path.is_dir() else "a file"
    found = found if path.exists() else "nothing of this name"
    mend = "Correct the path, or make a store with EmbeddingStore.create."
    return refusal(path, found, "the folder of an embedding store", mend)


def read_manifest(path: Path) -> Manifest:
    """The newest generation of the store in this folder.

    Raises:
        StoreError: there is no store, or its manifest is damaged or of an unknown format.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise _no_store(path)
    try:
        if (size := file.stat().st_size) > MAX_MANIFEST_BYTES:
            raise refusal(file, f"{size:,} bytes", f"at most {MAX_MANIFEST_BYTES:,}")
        content, _, seal = file.read_bytes().rstrip(b"\n").rpartition(b"\n")
    except OSError as error:
        raise refusal(file, str(error), "a file that can be read") from None
    if sha256(content).hexdigest().encode() != seal:
        raise refusal(file, "other bytes than its last line has the sha256 of", "what was written")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise refusal(file, f"no JSON ({error})", "JSON in UTF-8") from None
    number = values.get("format") if isinstance(values, dict) else None
    if type(number) is not int or number not in FORMATS:
        mend = "Read it with the kgrank that wrote it or a newer one."
        allowed = f"store format {' or '.join(map(str, FORMATS))}"
        raise refusal(file, f"store format {number!r}", allowed, mend)
    try:
        return Manifest.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise refusal(file, f"another manifest ({error})", "one of this format") from None
