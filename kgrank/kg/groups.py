"""A group of an embedding store: its segments, read as one table of rows.

    row        0   1   2   3   4 | 5   6   7      a row is a place in the segments, end to end
    segment    first             | second         (replaces row 1, deletes row 3)
    live       1   0   1   0   1 | 1   1   1
    number     0       1       2 | 3   4   5      a number counts the live rows: what users see

An id has one live row at most: what writes it again, or deletes it, lists its earlier row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from kgrank.errors import UnknownIdError
from kgrank.kg.ann import Index
from kgrank.kg.segments import (
    FileEntry,
    MappedFile,
    Segment,
    SegmentEntry,
    id_hashes,
    refusal,
    write_segment,
)
from kgrank.kg.vectors import MAX_DIM, Vectors, block_rows, checked_vectors
from kgrank.kg.vocabulary import read_only
from kgrank.settings import Section

MAX_SEGMENTS = 32
"""From here on a write merges small segments, so that no number of writes makes reading slow."""

NO_IDS = pa.array([], pa.large_string())


class GroupEntry(Section):
    """What the manifest says of a group.

    Attributes:
        dim: the size of its vectors.
        rows: how many of the segments' rows are live.
        segments: the oldest first.
        index: the file of the approximate search, if one was built for these rows.
    """

    dim: Annotated[int, Field(ge=1, le=MAX_DIM)]
    rows: Annotated[int, Field(ge=0)] = 0
    segments: tuple[SegmentEntry, ...] = ()
    index: FileEntry | None = None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file of the group."""
        return (*self.segments, *([self.index] if self.index else []))


@dataclass(frozen=True, eq=False)
class Group:
    """An open group: its segments, and its index if there is one."""

    name: str
    entry: GroupEntry
    segments: tuple[Segment, ...] = ()
    index: Index | None = None

    @classmethod
    def open(
        cls, folder: Path, name: str, entry: GroupEntry, known: Mapping[FileEntry, Any]
    ) -> Group:
        """Map the files of a group but those that are open already.

        Args:
            folder: the store's.
            name: what the group is called.
            entry: what the manifest says of the group.
            known: segments and indexes that are open, by their entries.

        Raises:
            StoreError: a file is missing, or its size or header is not what was written.
        """
        segments = tuple(known.get(e) or Segment.open(folder, e, entry.dim) for e in entry.segments)
        index = None
        if entry.index:
            index = known.get(entry.index) or Index(MappedFile.open(folder, entry.index))
        return cls(name, entry, segments, index)

    def __len__(self) -> int:
        return self.entry.rows

    @property
    def dim(self) -> int:
        """The size of a vector."""
        return self.entry.dim

    @property
    def files(self) -> tuple[Segment | Index, ...]:
        """Every file of the group, open."""
        return (*self.segments, *([self.index] if self.index else []))

    @property
    def max_norm(self) -> float:
        """The length of the longest vector (or of a longer one that was replaced)."""
        return max((segment.entry.max_norm for segment in self.segments), default=0.0)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(n_segments + 1,) int64: the first row of each segment, and the number of all rows."""
        return np.cumsum([0, *map(len, self.segments)], dtype=np.int64)

    @cached_property
    def live(self) -> NDArray[np.bool_]:
        """(n_rows,) bool: whether a row counts.

        Raises:
            StoreError: the segments contradict each other or the manifest.
        """
        live = self._live(len(self.segments))
        if (found := int(live.sum())) != len(self):
            raise refusal(self.segments[-1].mapped.path, f"{found} rows", f"{len(self)} rows")
        return live

    def _live(self, n_segments: int) -> NDArray[np.bool_]:
        """(n_rows,) bool: what counted after the first `n_segments` were written."""
        live = np.ones(self.starts[n_segments], np.bool_)
        for start, segment in zip(self.starts, self.segments[:n_segments], strict=False):
            if ((segment.replaced < 0) | (segment.replaced >= start)).any():
                allowed = f"rows below {start}"
                raise refusal(segment.mapped.path, "a replaced row out of bounds", allowed)
            live[segment.replaced] = False
        return read_only(live)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(len,) int64: the row of each number."""
        return read_only(np.flatnonzero(self.live))

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of live rows, of the same shape."""
        return rows if len(self) == self.starts[-1] else np.searchsorted(self.rows, rows)

    def find(self, ids: Any) -> NDArray[np.int64]:
        """(k,) int64: the live row of each id, -1 where it has none.

        Args:
            ids: `pyarrow.LargeStringArray` (k,).
        """
        rows = np.full(len(ids), -1, np.int64)
        hashes = id_hashes(ids)
        for start, segment in zip(self.starts, self.segments, strict=False):
            found = segment.find(ids, hashes)
            held = np.flatnonzero(found >= 0)
            held = held[self.live[start + found[held]]]
            rows[held] = start + found[held]
        return rows

    def check_sound(self) -> None:
        """What a writer asks first: an id that damage hides would be in the group twice.

        Raises:
            StoreError: ids, hashes or replaced rows are other than they were written.
        """
        for segment in self.segments:
            if not segment.sound:
                raise refusal(segment.mapped.path, "other ids", "those that were written")

    def known(self, ids: Any) -> NDArray[np.int64]:
        """`find` for ids that have to be there; raises UnknownIdError."""
        rows = self.find(ids)
        if (rows < 0).any():
            unknown = ids.filter(pa.array(rows < 0)).unique().to_pylist()
            shown = ", ".join(map(repr, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            raise UnknownIdError(
                f"{self.name!r}: found {len(unknown)} unknown id{'s' * (len(unknown) > 1)}: "
                f"{shown}; allowed: the {len(self)} ids of the group. Ids are compared to the "
                "letter: check spelling, case and leading zeros."
            )
        return rows

    def parts(
        self, first: int = 0, live: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[Segment, NDArray[np.int64] | None]]:
        """Each segment from the `first` on with its live rows in it; None if all are live.

        Args:
            live: (n_rows,) bool, if others than `self.live` are asked for.
        """
        live = self.live if live is None else live
        for number, segment in enumerate(self.segments[first:], start=first):
            own = live[self.starts[number] : self.starts[number + 1]]
            yield segment, None if own.all() else np.flatnonzero(own)

    def ids(self, rows: NDArray[np.int64] | None = None) -> Any:
        """`pyarrow.LargeStringArray` (k,): the ids of the rows (k,), or of all live ones."""
        if rows is None:
            return pa.concat_arrays([NO_IDS, *(s.ids(own) for s, own in self.parts())])
        split = list(self._split(rows))
        ids = pa.concat_arrays([NO_IDS, *(segment.ids(own) for segment, own, _ in split)])
        places = np.concatenate([np.empty(0, np.int64), *(places for *_, places in split)])
        return ids.take(pa.array(np.argsort(places)))

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(k × dim) float32: the vectors of the rows (k,), copied."""
        vectors = np.empty((len(rows), self.dim), np.float32)
        for segment, own, places in self._split(rows):
            vectors[places] = segment.vectors[own]
        return vectors

    def _split(
        self, rows: NDArray[np.int64]
    ) -> Iterator[tuple[Segment, NDArray[np.int64], NDArray[np.int64]]]:
        """Each segment of which there are rows (k,), the rows in it, and their places in (k,)."""
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            yield self.segments[number], rows[places] - self.starts[number], places

    @property
    def schema(self) -> Any:
        """The columns of `batches`."""
        return pa.schema([("id", pa.string()), ("vector", pa.list_(pa.float32(), self.dim))])

    def batches(self) -> Iterator[Any]:
        """The live rows, a `pyarrow.RecordBatch` at a time; not copied where all are live."""
        for segment, rows in self.parts():
            ids, start = segment.ids(rows), 0
            for block in segment.blocks(rows):
                own = ids.slice(start, len(block)).cast(pa.string())
                flat = pa.array(block.reshape(-1))
                columns = [own, pa.FixedSizeListArray.from_arrays(flat, self.dim)]
                yield pa.record_batch(columns, schema=self.schema)
                start += len(block)

    def merging_from(self, live: NDArray[np.bool_], n_new: int) -> int:
        """The first of the segments that a write of `n_new` rows takes into its own.

        Where fewer than half of all rows would be live, all segments are, so that the files stay
        below twice what they hold; a row is copied there for each that died, at most. Segments at
        the end without any live row go, for that copies nothing.

        As a rule no other is taken. Among many, those at the end that together are no larger than
        what follows them are, so that each of the others is larger than all after it: there are
        few of them, and a row is copied only a few times in its life.

        Args:
            live: (n_rows,) bool, the rows that count after the write.
            n_new: how many it adds.
        """
        n_rows, first = int(self.starts[-1]), len(self.segments)
        if n_rows + n_new > 2 * (int(live.sum()) + n_new):
            return 0
        end = n_rows - int(live[::-1].argmax()) if live.any() else 0  # after it all rows are dead
        if end < n_rows:
            first = int(np.searchsorted(self.starts, end))
        if len(self.segments) >= MAX_SEGMENTS:
            while first and len(self.segments[first - 1]) <= n_new:
                first -= 1
                n_new += len(self.segments[first])
        return first

    def write(
        self,
        path: Path,
        dead: NDArray[np.int64],
        ids: Any = NO_IDS,
        blocks: Iterable[NDArray[np.float32]] = (),
        first: int | None = None,
    ) -> GroupEntry:
        """Write one segment: the live rows of the segments that are merged, then the new ones.

        Segments that are copied are verified before, so that no damage gets a checksum of its own.

        Args:
            path: the file to write.
            dead: (k,) rows that count no more.
            ids: `pyarrow.LargeStringArray` (n,): n different ids, their live rows among the dead.
            blocks: the vectors (… × dim) float32, n rows together.
            first: the segment from which on they are merged; None = what `merging_from` says.

        Returns:
            The group as it then is; no index is of it.

        Raises:
            StoreError: a segment that is to be merged is damaged.
        """
        live = self.live.copy()
        live[dead] = False
        first = self.merging_from(live, len(ids)) if first is None else first
        kept = list(self.parts(first, live))
        for segment, rows in kept:
            if rows is None or len(rows) or len(segment.replaced):
                segment.mapped.verify()
        base = self.starts[first]
        written = write_segment(
            path,
            pa.concat_arrays([*(segment.ids(rows) for segment, rows in kept), ids]),
            chain(chain.from_iterable(segment.blocks(rows) for segment, rows in kept), blocks),
            self.dim,
            np.flatnonzero(self._live(first) & ~live[:base]),
        )
        segments = (*self.entry.segments[:first], written)
        return GroupEntry(dim=self.dim, rows=int(live.sum()) + len(ids), segments=segments)

    def replace(self, path: Path, ids: Any, vectors: Vectors) -> GroupEntry:
        """The group with exactly these vectors, of which those that it lacks are written.

        A row that is the same stays where it is.

        Args:
            path: the file to write.
            ids: `pyarrow.LargeStringArray` (n,): n different ids.
            vectors: (n × dim); read twice.

        Returns:
            The group as it then is; the same entry, with its index, if nothing differs.

        Raises:
            DataError: vectors are at fault; nothing is written.
            StoreError: a segment is damaged where an id is, or is to be merged and damaged.
        """
        self.check_sound()
        rows = self.find(ids)
        new = rows < 0
        for part in block_rows(np.arange(len(ids)), self.dim):
            block = checked_vectors(vectors[part], len(part), self.dim, int(part[0]))
            held = np.flatnonzero(rows[part] >= 0)
            new[part[held]] = (block[held] != self.vectors(rows[part[held]])).any(axis=1)
        stale = self.live.copy()
        stale[rows[~new]] = False
        dead, changed = np.flatnonzero(stale), np.flatnonzero(new)
        if not len(dead) and not len(changed):
            return self.entry
        blocks = (vectors[some] for some in block_rows(changed, self.dim))
        return self.write(path, dead, ids.filter(pa.array(new)), blocks)
