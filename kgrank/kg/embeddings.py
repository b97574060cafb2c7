"""Vectors that outlive the process: named groups of them on disk, memory-mapped.

    store = EmbeddingStore.create("vectors/", dim=128)
    store = store.write("item", item_ids, item_vectors)      # generation 1
    store.vectors("item", ["i-7"])                           # (1 × 128)
    store.nearest("item", user_vectors, n=10).ids            # (n_users × 10)
    store.replace({"item": (ids, new), "user": (users, u)})  # what differs, in one generation

    vectors/
      manifest                 the generation: its files, their sizes and sha256; the last line is
                               the sha256 of the line before it
      item-1.safetensors       what generation 1 wrote into the group "item"
      item-4.faiss             its index, built in generation 4
      lock                     held by the one process that writes

A generation is the manifest and the files it lists; none of them is ever changed. A write adds
files, then puts a new manifest in the old one's place by renaming, and only then removes files
that are no longer listed. So a process that is killed at any moment leaves the old generation or
the new one. What it had begun to write nobody reads, and the next writer removes it: files that
have such a name with the number of the next generation. Other files in the folder stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from kgrank.errors import ConfigError, ModelError, UnknownIdError
from kgrank.files import replacing, sync
from kgrank.kg.ann import build_index
from kgrank.kg.generations import (
    LOCK,
    MANIFEST,
    UNFINISHED,
    Manifest,
    locked,
    newest,
    read_manifest,
    remove_unlisted,
    switch,
)
from kgrank.kg.groups import Group, GroupEntry
from kgrank.kg.segments import FileEntry, refusal
from kgrank.kg.vectors import (
    MAX_DIM,
    Vectors,
    checked_ids,
    checked_pair,
    checked_shape,
    checked_vectors,
    whole,
)
from kgrank.kg.vocabulary import Ids, Vocabulary, string_array

if TYPE_CHECKING:
    from kgrank.kg.nearest import Neighbors

_GROUP = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingStore:
    """One generation of a store. It never changes: what writes gives a new value.

    A store that is open keeps its generation, whatever others write or merge meanwhile;
    `refresh` gives the newest. Many processes may read while one writes. POSIX systems only.

    Attributes:
        path: the folder.
        manifest: what the generation is.
    """

    path: Path
    manifest: Manifest
    _groups: Mapping[str, Group]

    @classmethod
    def create(cls, path: str | Path, dim: int | None = None) -> EmbeddingStore:
        """A store with nothing in it: generation 0.

        Args:
            path: a folder that is empty or does not exist yet.
            dim: the size of every vector, 1 to 65,536; None = each group has its own, that of the
                vectors first written into it.

        Raises:
            ConfigError: `dim` is out of range.
            StoreError: there is something already, or another process is writing there.
            OSError: the folder cannot be written to.
        """
        size = None if dim is None else whole(dim) or 0
        if size is not None and not 1 <= size <= MAX_DIM:
            raise ConfigError(f"dim: found {dim!r}; allowed: 1 to {MAX_DIM:,}. Correct it.")
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise refusal(path, "a file", "a new or empty folder", "Name another.")
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)
        with locked(path):
            names = {entry.name for entry in path.iterdir()}
            if foreign := sorted(n for n in names - {LOCK} if not UNFINISHED.fullmatch(n)):
                found = "a store" if MANIFEST in names else ", ".join(foreign[:5])
                mend = "Open it, or name another folder."
                raise refusal(path, found, "a new or empty folder", mend)
            manifest = Manifest(dim=size)
            return cls(path, manifest, switch(path, manifest, {}))

    @classmethod
    def open(cls, path: str | Path) -> EmbeddingStore:
        """The newest generation; it takes milliseconds, for nothing but sizes is looked at.

        Raises:
            StoreError: there is no store, its format is unknown, or a file is missing or of
                another size than it was written. `verify` finds other damage.
        """
        return cls(Path(path), *newest(Path(path), {}))

    def refresh(self) -> EmbeddingStore:
        """The newest generation; files that are open are not opened again while they are there.

        Raises:
            StoreError: as in `open`.
        """
        return EmbeddingStore(self.path, *newest(self.path, self._groups))

    @property
    def dim(self) -> int | None:
        """The size of every vector; None where each group has its own."""
        return self.manifest.dim

    @property
    def dims(self) -> dict[str, int]:
        """The size of each group's vectors."""
        return {name: group.dim for name, group in self._groups.items()}

    @property
    def generation(self) -> int:
        """How many times the store had been written to."""
        return self.manifest.generation

    @property
    def groups(self) -> dict[str, int]:
        """How many vectors each group has."""
        return {name: len(group) for name, group in self._groups.items()}

    def __len__(self) -> int:
        """How many vectors all groups have."""
        return sum(self.groups.values())

    def __repr__(self) -> str:
        size = f"dims={self.dims}" if self.dim is None else f"dim={self.dim}"
        about = f"{size}, generation={self.generation}, groups={self.groups}"
        return f"EmbeddingStore({str(self.path)!r}, {about})"

    def ids(self, group: str) -> NDArray[np.object_]:
        """(n,) strings: the ids in the order they were written; one written again goes to the end.

        Raises:
            UnknownIdError: there is no such group.
            StoreError: a file is damaged.
        """
        return _objects(self._group(group).ids())

    def vectors(self, group: str, ids: Ids) -> NDArray[np.float32]:
        """(n × dim) float32: a copy of the vectors of the ids (n,).

        Raises:
            UnknownIdError: there is no such group, or an id is not in it.
            DataError: something is not a string.
            StoreError: a file is damaged.
        """
        known = self._group(group)
        return known.vectors(known.known(string_array(ids)))

    def write(self, group: str, ids: Ids, vectors: ArrayLike) -> EmbeddingStore:
        """Add vectors, or put them in the place of those that the ids had.

        One file is written, of the new vectors alone; after 32 writes small files are merged on
        the way, and where more than half of the rows on disk would be replaced or deleted ones, all
        files are. So the files of a group have never more than twice its rows, and what merging
        copies grows with what was written. Files are verified before they are merged. An index of
        the group is dropped: it is stale.

        Args:
            group: its name: lower-case letters, digits, underscores. A new name is a new group.
            ids: n different strings, none empty.
            vectors: (n × dim) float32, finite: an array, a tensor, or a column of lists of one
                length (pyarrow, pandas). An Arrow array is not copied.

        Returns:
            The next generation after the newest on disk (which may be newer than this one).

        Raises:
            ConfigError: the group's name is not one.
            DataError: ids or vectors are at fault; nothing is written.
            StoreError: another process is writing, or a file is damaged.
            OSError: the disk is full or the like; the newest generation stays.
        """
        _check_names([group])
        array = checked_ids(ids)
        matrix = checked_vectors(vectors, len(array), self.dim)
        with self._writing() as store:
            known = store._groups.get(group)
            dim = checked_shape(matrix.shape, len(array), known.dim if known else None)
            known = known or Group(group, GroupEntry(dim=dim))
            known.check_sound()
            rows = known.find(array)
            path = store._next_file(group, "safetensors")
            entry = known.write(path, rows[rows >= 0], array, [matrix])
            return store._with({group: entry})

    def replace(
        self, groups: Mapping[str, tuple[Ids, Vectors | ArrayLike] | None]
    ) -> EmbeddingStore:
        """Let groups hold exactly these vectors, all of them from one generation to the next.

        Only vectors that are new or others than before are written; ids that are not given again
        are deleted, as `delete` does it. A group of which nothing differs stays as it is, with its
        index. Where the vectors of a group are of another size than before, all are written. Groups
        that are not named stay.

        Args:
            groups: name → n different ids, none empty, and their vectors (n × dim) float32, finite;
                None takes the group out. Vectors are read a block at a time, and twice.

        Returns:
            The next generation after the newest on disk, or the newest if nothing differs.

        Raises:
            ConfigError: `groups` is no mapping, or a group's name is not one.
            DataError: ids or vectors are at fault; the newest generation stays.
            StoreError: another process is writing, or a file is damaged.
            OSError: the disk is full or the like; the newest generation stays.
        """
        if not isinstance(groups, Mapping):
            found, allowed = f"a {type(groups).__name__}", "a mapping of names to (ids, vectors)"
            raise ConfigError(f"groups: found {found}; allowed: {allowed}. Pass a dict.")
        _check_names(groups)
        given = {
            name: checked_pair(name, content, self.dim)
            for name, content in groups.items()
            if content is not None
        }
        with self._writing() as store:
            entries: dict[str, GroupEntry | None] = {
                name: None for name in groups if name in store._groups
            }
            for name, (array, vectors) in given.items():
                known, dim = store._groups.get(name), vectors.shape[1]
                if known is None or known.dim != dim:
                    known = Group(name, GroupEntry(dim=dim))
                path = store._next_file(name, "safetensors")
                entries[name] = known.replace(path, array, vectors)
            same = all(store.manifest.groups.get(name) == entry for name, entry in entries.items())
            return store if same else store._with(entries)

    def delete(self, group: str, ids: Ids) -> EmbeddingStore:
        """Take ids out of a group, so that nothing finds them any more.

        Their bytes stay in older files until `compact`: **to erase a user, delete and compact.**
        Views that were opened before, and copies made of the folder, still have them.

        Returns:
            The next generation after the newest on disk.

        Raises:
            UnknownIdError: there is no such group, or an id is not in it; nothing is written.
            DataError: an id is not a string or comes twice.
            StoreError: another process is writing, or a file is damaged.
            OSError: the disk is full or the like; the newest generation stays.
        """
        if isinstance(ids, Set):  # in what order they go does not matter
            ids = sorted(ids, key=str)
        array = Vocabulary.from_ids(ids).array
        with self._writing() as store:
            known = store._group(group)
            known.check_sound()
            rows = known.known(array)
            path = store._next_file(group, "safetensors")
            return store._with({group: known.write(path, rows)})

    def compact(self) -> EmbeddingStore:
        """Merge the files of each group into one, without what was replaced or deleted.

        They are verified first: damage is refused, and not copied under a checksum of its own.
        When this returns, no file of the store holds a deleted id or its vector. (If it is killed
        after the new generation is there, old files may be left: the next writer removes them,
        `compact` too.) Indexes stay valid. Memory: the ids of a group, and a block of vectors.

        Returns:
            The next generation, or the newest if there was nothing to merge.

        Raises:
            StoreError: another process is writing, or a file is damaged.
            OSError: the disk is full or the like; the newest generation stays.
        """
        none = np.empty(0, np.int64)
        with self._writing() as store:
            entries: dict[str, GroupEntry | None] = {}
            for name, group in store._groups.items():
                if len(group.segments) > 1 or not group.live.all():
                    entry = group.write(store._next_file(name, "safetensors"), none, first=0)
                    entries[name] = entry.model_copy(update={"index": group.entry.index})
            return store._with(entries) if entries else store

    def build_index(self, group: str) -> EmbeddingStore:
        """Build the index of a group's vectors as they are now, for approximate search.

        It takes minutes for a million vectors, and their size in float16 of memory.

        Returns:
            The next generation after the newest on disk.

        Raises:
            UnknownIdError: there is no such group.
            ModelError: the group has no vectors, or faiss is not installed (`kgrank[ann]`).
            StoreError: another process is writing, or a file is damaged.
            OSError: the disk is full or the like; the newest generation stays.
        """
        with self._writing() as store:
            known = store._group(group)
            if not len(known):
                raise ModelError(f"{group!r}: found no vectors; allowed: some. Write them first.")
            path = store._next_file(group, "faiss")
            blocks = (block for part, rows in known.parts() for block in part.blocks(rows))
            build_index(path, blocks, known.max_norm)
            entry = known.entry.model_copy(update={"index": FileEntry.of(path)})
            return store._with({group: entry})

    def nearest(
        self, group: str, vectors: ArrayLike, n: int = 10, exact: bool | None = None
    ) -> Neighbors:
        """The n vectors of a group with the largest inner products with each of the given ones.

        The exact search takes 256 queries × 32,768 rows at a time: its memory does not grow with
        the group. Equal scores order by number.

        Args:
            group: where to search.
            vectors: (n_queries × dim) float32, finite.
            n: how many, 1 or more; cut to the size of the group.
            exact: True compares every vector; False searches through the index, which misses a
                few; None does that in groups of more than a million vectors if they have an index
                and faiss is installed, and else compares every vector.

        Raises:
            UnknownIdError: there is no such group.
            ConfigError: n is below 1, or no whole number.
            DataError: the vectors are at fault.
            ModelError: `exact` is False but there is no index of these vectors, or no faiss; or
                scores may be beyond float32.
            StoreError: a file is damaged.
        """
        from kgrank.kg.nearest import nearest  # and torch with it

        if (length := whole(n) or 0) < 1:
            mend = "Ask for at least one."
            raise ConfigError(f"n: found {n!r}; allowed: a whole number, 1 or more. {mend}")
        known = self._group(group)
        return nearest(known, checked_vectors(vectors, None, known.dim), length, exact)

    def verify(self) -> None:
        """Read every byte of this generation's files and compare it with the checksums.

        Raises:
            StoreError: a file is damaged or missing; or the generation is no longer the newest
                and its files are gone (`refresh` first).
        """
        generation = read_manifest(self.path).generation
        for file in (file for group in self._groups.values() for file in group.files):
            if generation > self.generation and not file.mapped.path.exists():
                found, allowed = f"generation {generation}", f"generation {self.generation}"
                raise refusal(self.path, found, f"{allowed}, whose files are gone", "Refresh.")
            file.mapped.verify()

    def to_arrow(self, group: str) -> Any:
        """A group as a `pyarrow.Table`: `id` (string) and `vector` (fixed-size list of float).

        The vectors are those on disk, mapped, where nothing of a file was replaced or deleted. The
        way back, from Parquet too: `store.write(group, table["id"], table["vector"])`.

        Raises:
            UnknownIdError: there is no such group.
            StoreError: a file is damaged.
        """
        known = self._group(group)
        return pa.Table.from_batches(known.batches(), known.schema)

    def to_parquet(self, path: str | Path, group: str) -> None:
        """Write a group as one Parquet file with the columns of `to_arrow`, all or nothing.

        Raises:
            UnknownIdError: there is no such group.
            StoreError: a file is damaged.
            OSError: the file cannot be written.
        """
        known, path = self._group(group), Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
        with (
            replacing(path) as temporary,
            pq.ParquetWriter(temporary, known.schema, **options) as writer,
        ):
            for batch in known.batches():
                writer.write_batch(batch)

    def _group(self, name: str) -> Group:
        if name not in self._groups:
            known = ", ".join(map(repr, self._groups)) or "none, for nothing was written yet"
            mend = "Check the spelling."
            raise UnknownIdError(f"found the group {name!r}; allowed: {known}. {mend}")
        return self._groups[name]

    def _next_file(self, group: str, kind: str) -> Path:
        return self.path / f"{group}-{self.generation + 1}.{kind}"

    @contextmanager
    def _writing(self) -> Iterator[EmbeddingStore]:
        """The newest generation, while nobody else writes and nothing unlisted lies about."""
        with locked(self.path):
            store = self.refresh()
            if store.dim != self.dim:
                found, allowed = f"vectors of size {store.dim}", f"size {self.dim}, as before"
                raise refusal(self.path, found, allowed, "Open the store again.")
            remove_unlisted(self.path, store.manifest)
            yield store

    def _with(self, entries: Mapping[str, GroupEntry | None]) -> EmbeddingStore:
        """Make a generation in which these groups are others, or (None) are no more."""
        changed = {**self.manifest.groups, **entries}
        groups = {name: entry for name, entry in changed.items() if entry is not None}
        manifest = self.manifest.next(groups)
        return EmbeddingStore(self.path, manifest, switch(self.path, manifest, self._groups))


def _check_names(groups: Iterable[str]) -> None:
    for group in groups:
        if not isinstance(group, str) or not _GROUP.fullmatch(group):
            allowed = "a lower-case letter, then letters, digits, _ (64 at most)"
            raise ConfigError(f"group: found {group!r}; allowed: {allowed}. Rename it.")


def _objects(ids: Any) -> NDArray[np.object_]:
    return np.asarray(ids.to_numpy(zero_copy_only=False), dtype=object)
