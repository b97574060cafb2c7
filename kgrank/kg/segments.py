"""Segments: the files of an embedding store, each some vectors and their ids, memory-mapped.

A segment is a safetensors file, so any tool reads it; once written it never changes.

    hashes    (n,) uint64         the hashes of the ids, ascending
    offsets   (n + 1,) int64      id r is bytes[offsets[r]:offsets[r + 1]], as Arrow has it
    replaced  (k,) int64          rows of the group's earlier segments that count no more
    vectors   (n × dim) float32
    rows      (n,) uint32         the row of each hash
    bytes     (m,) uint8          the ids in UTF-8, one after the other

Opening reads the header alone, so it costs the same for ten rows as for ten million. Everything
else is read where it is used; what is read is checked as far as a crash or a wrong row could come
of it, and `verify` compares every byte with the checksum.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from kgrank.errors import StoreError
from kgrank.files import sync
from kgrank.settings import Section

MAX_ROWS = 2**32 - 1
"""Rows of one segment, for their numbers are uint32."""

BLOCK_BYTES = 32_000_000
"""How much of the vectors is copied at a time."""

_HASHED_AT_ONCE = 65_536
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

_MEND = "Restore the store's folder from a copy, or write it again."


FileName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*-[0-9]+\.(safetensors|faiss)$")]


def refusal(path: Path, found: str, allowed: str, mend: str = _MEND) -> StoreError:
    """The error that names a file or folder of a store, and what is wrong with it."""
    return StoreError(f"{path}: found {found}; allowed: {allowed}. {mend}")


class FileEntry(Section):
    """What the manifest says of a file: its name in the folder, its size and its sha256 (hex)."""

    file: FileName
    bytes: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry of a file, which is brought to the disk."""
        sync(path)
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        return cls(file=path.name, bytes=path.stat().st_size, sha256=digest)


class SegmentEntry(FileEntry):
    """What the manifest says of a segment.

    Attributes:
        rows: n, the vectors in it, replaced ones too.
        replaced: k, the earlier rows that it replaces or deletes.
        id_bytes: m, the length of all ids.
        max_norm: the Euclidean length of its longest vector.
        sum: `words_sum` of all arrays but the vectors; None in stores of format 2.
    """

    rows: Annotated[int, Field(ge=0, le=MAX_ROWS)]
    replaced: Annotated[int, Field(ge=0)]
    id_bytes: Annotated[int, Field(ge=0)]
    max_norm: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    sum: Annotated[int, Field(ge=0, lt=2**64)] | None = None

    def layout(self, dim: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The arrays in the order of the file: safetensors' name of the dtype, and the shape."""
        return {
            "hashes": ("U64", (self.rows,)),
            "offsets": ("I64", (self.rows + 1,)),
            "replaced": ("I64", (self.replaced,)),
            "vectors": ("F32", (self.rows, dim)),
            "rows": ("U32", (self.rows,)),
            "bytes": ("U8", (self.id_bytes,)),
        }

    def header(self, dim: int) -> bytes:
        """What the file begins with: the length of the JSON, the JSON, spaces up to 64 bytes."""
        entries, start = {}, 0
        for name, (dtype, shape) in self.layout(dim).items():
            end = start + math.prod(shape) * _DTYPES[dtype].itemsize
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            start = end
        text = json.dumps(entries).encode()
        text += b" " * (-(len(text) + 8) % 64)
        return len(text).to_bytes(8, "little") + text


_DTYPES: dict[str, np.dtype[Any]] = {
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
}


def words_sum(*arrays: NDArray[Any]) -> int:
    """The sum of the numbers, modulo 2⁶⁴; bytes are taken eight at a time, little endian.

    It is some thirty times as fast as a sha256, and tells damage, not forgery.
    """
    total = 0
    for array in arrays:
        whole = len(array) // 8 * 8
        if array.dtype == np.uint8:
            total += int(array[:whole].view("<u8").sum()) + int(array[whole:].sum())
        else:
            total += int(array.sum(dtype=np.uint64))
    return total % 2**64


def id_hashes(ids: Any) -> NDArray[np.uint64]:
    """(n,) uint64: a hash of each id of a `pyarrow.LargeStringArray` (n,).

    The id's UTF-8 is cut into words of 8 bytes (little endian, the last one filled with zeros).
    Word j, plus (j + 1) · 0x9E3779B97F4A7C15, is mixed by the finaliser of splitmix64 (Steele,
    Lea & Flood 2014); the hash is the sum of the words and the length in bytes, mixed once more,
    all modulo 2⁶⁴.
    """
    parts = [
        _hashed(*_flat(ids.slice(start, _HASHED_AT_ONCE)))
        for start in range(0, len(ids), _HASHED_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _hashed(offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    lengths = np.diff(offsets)
    words = -(-lengths // 8)
    ends = np.cumsum(words)
    starts = ends - words
    padded = np.zeros(8 * int(words.sum()), np.uint8)
    padded[np.repeat(8 * starts - offsets[:-1], lengths) + np.arange(len(data))] = data
    place = np.arange(len(padded) // 8) - np.repeat(starts, words)
    mixed = _mixed(padded.view("<u8") + (place + 1).astype(np.uint64) * _GOLDEN)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return _mixed(sums[ends] - sums[starts] + lengths.astype(np.uint64))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _flat(ids: Any) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Offsets (n + 1,) int64 from 0 and bytes (m,) uint8 of a `pyarrow.LargeStringArray` (n,)."""
    _, offset_buffer, data = ids.buffers()
    if not len(ids):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    offsets = np.frombuffer(offset_buffer, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    content = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], content


def write_segment(
    path: Path,
    ids: Any,
    blocks: Iterable[NDArray[np.float32]],
    dim: int,
    replaced: NDArray[np.int64],
) -> SegmentEntry:
    """Write a file and wait until it is on the disk; one block of vectors is in memory at a time.

    Args:
        path: the file, which must not exist.
        ids: `pyarrow.LargeStringArray` (n,), n different ids.
        blocks: the vectors (… × dim) float32, n rows together.
        dim: the size of a vector.
        replaced: (k,) rows of earlier segments.

    Raises:
        OSError: the file cannot be written.
    """
    offsets, content = _flat(ids)
    hashes = id_hashes(ids)
    order = np.argsort(hashes, kind="stable")
    entry = SegmentEntry(
        file=path.name,
        bytes=1,
        sha256="0" * 64,
        rows=len(ids),
        replaced=len(replaced),
        id_bytes=len(content),
        max_norm=0.0,
        sum=words_sum(hashes, offsets, replaced, order, content),
    )
    digest, size, largest = sha256(), 0, 0.0
    with path.open("xb") as file:

        def put(array: NDArray[Any], dtype: str) -> None:
            nonlocal size
            data = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data
            digest.update(data)
            size += file.write(data)

        put(np.frombuffer(entry.header(dim), np.uint8), "u1")
        put(hashes[order], "<u8")
        put(offsets, "<i8")
        put(replaced, "<i8")
        for block in blocks:
            put(block, "<f4")
            squares = np.einsum("nd,nd->n", block, block, dtype=np.float64)
            largest = max(largest, float(squares.max(initial=0.0)))
        put(order, "<u4")
        put(content, "u1")
    sync(path)
    update = {"bytes": size, "sha256": digest.hexdigest(), "max_norm": math.sqrt(largest)}
    return entry.model_copy(update=update)


@dataclass(frozen=True, eq=False)
class MappedFile:
    """A file of the store, open and mapped; it stays readable after another process removed it.

    Attributes:
        path: where it was opened.
        entry: what the manifest says of it.
        content: (n_bytes,) uint8. Writable for numpy's sake (torch wants that of a tensor), but
            private to this process: nothing that is written gets to the file.
        identity: the file's device, inode and size.
    """

    path: Path
    entry: FileEntry
    content: NDArray[np.uint8]
    identity: tuple[int, int, int]

    @classmethod
    def open(cls, folder: Path, entry: FileEntry) -> MappedFile:
        """Map a file after a look at its size.

        Raises:
            StoreError: it is not there, no plain file, unreadable, or of another size.
        """
        path = folder / entry.file
        if path.is_symlink() or not path.is_file():
            found = "no plain file" if path.exists() or path.is_symlink() else "no such file"
            raise refusal(path, found, "the file that was written")
        try:
            with path.open("rb") as file:
                if (size := file.seek(0, 2)) != entry.bytes:
                    raise refusal(path, f"{size:,} bytes", f"{entry.bytes:,} bytes")
                mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
                identity = _identity(os.fstat(file.fileno()))
        except OSError as error:
            raise refusal(path, str(error), "a file that can be read") from None
        return cls(path, entry, np.frombuffer(mapped, np.uint8), identity)

    def stands(self) -> bool:
        """Whether this very file is still at its path, of this size."""
        try:
            return _identity(self.path.lstat()) == self.identity
        except OSError:
            return False

    def verify(self) -> None:
        """Read the file and compare it with the manifest.

        Raises:
            StoreError: a byte is other than it was written, or the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                found = file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise refusal(self.path, str(error), "a file that can be read") from None
        if found != self.entry.sha256:
            raise refusal(self.path, "other bytes", "what the manifest has the sha256 of")


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_size


@dataclass(frozen=True, eq=False)
class Segment:
    """An open segment: views of its file, of the shapes that the head of this module gives."""

    mapped: MappedFile
    entry: SegmentEntry
    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    replaced: NDArray[np.int64]
    vectors: NDArray[np.float32]
    rows: NDArray[np.uint32]
    bytes: NDArray[np.uint8]

    @classmethod
    def open(cls, folder: Path, entry: SegmentEntry, dim: int) -> Segment:
        """Map a segment after a look at its size and header.

        Raises:
            StoreError: it is missing, of another size, or its header is not what was written.
        """
        mapped = MappedFile.open(folder, entry)
        header = entry.header(dim)
        start, arrays = len(header), {}
        if mapped.content[:start].tobytes() != header:
            raise refusal(mapped.path, "another header", "the one that was written")
        for name, (dtype, shape) in entry.layout(dim).items():
            end = start + math.prod(shape) * _DTYPES[dtype].itemsize
            arrays[name] = mapped.content[start:end].view(_DTYPES[dtype]).reshape(shape)
            start = end
        if start != entry.bytes:
            raise refusal(mapped.path, f"{entry.bytes:,} bytes", f"{start:,} bytes")
        return cls(mapped, entry, **arrays)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def sound(self) -> bool:
        """Whether all but the vectors adds up to what was written (or nobody knows)."""
        found = words_sum(self.hashes, self.offsets, self.replaced, self.rows, self.bytes)
        return self.entry.sum in (None, found)

    def ids(self, rows: NDArray[np.integer[Any]] | None = None) -> Any:
        """The ids of the rows (k,), or all of them: `pyarrow.LargeStringArray` (k,).

        Raises:
            StoreError: the file is damaged there.
        """
        buffers = pa.py_buffer(self.offsets), pa.py_buffer(self.bytes)
        try:
            ids = pa.LargeStringArray.from_buffers(len(self), *buffers)
            if rows is not None:
                starts, ends = self.offsets[rows], self.offsets[rows + 1]
                if ((starts < 0) | (starts > ends) | (ends > len(self.bytes))).any():
                    raise refusal(self.mapped.path, "an id out of bounds", "ids within the file")
                ids = ids.take(pa.array(rows))
            ids.validate(full=True)
        except pa.ArrowInvalid as error:
            raise refusal(self.mapped.path, f"no ids ({error})", "ids in UTF-8") from None
        return ids

    def find(self, ids: Any, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """(k,) int64: the row of each id, -1 where this segment has none.

        Args:
            ids: `pyarrow.LargeStringArray` (k,).
            hashes: their `id_hashes`, (k,) uint64.

        Raises:
            StoreError: the file is damaged there.
        """
        found = np.full(len(ids), -1, np.int64)
        places = np.searchsorted(self.hashes, hashes)
        asked = np.arange(len(ids))
        while True:  # a further round where different ids have one hash
            asked = asked[places[asked] < len(self)]
            asked = asked[self.hashes[places[asked]] == hashes[asked]]
            if not len(asked):
                return found
            rows = self.rows[places[asked]].astype(np.int64)
            if (rows >= len(self)).any():
                raise refusal(self.mapped.path, "a row out of bounds", f"0 to {len(self) - 1}")
            same = pc.equal(self.ids(rows), ids.take(pa.array(asked)))
            same = same.to_numpy(zero_copy_only=False)
            found[asked[same]] = rows[same]
            asked = asked[~same]
            places[asked] += 1

    def blocks(self, rows: NDArray[np.int64] | None = None) -> Iterator[NDArray[np.float32]]:
        """The vectors of the rows (k,), or all of them, a block (… × dim) float32 at a time."""
        n = len(self) if rows is None else len(rows)
        step = max(1, BLOCK_BYTES // (4 * self.vectors.shape[1]))
        for start in range(0, n, step):
            end = start + step
            yield self.vectors[start:end] if rows is None else self.vectors[rows[start:end]]
