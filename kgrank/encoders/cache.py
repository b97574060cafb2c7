"""Vectors kept between runs, by model and content, so that only what changed is encoded again.

    folder/
      <encoder's fingerprint>/
        part-<sha256 of the file>.safetensors     keys    (n, 32) uint8    sha256 of a text or file
                                                  vectors (n, dim) float32
                                                  cut     (n,) bool        only its beginning was
                                                                           read: a text too long,
                                                                           a picture that moves

Parts are only ever added, each under a temporary name and then renamed: an interrupted run leaves
whole parts. A part whose content is not what its name says is not read. A cache may be deleted
between two runs, whole or in parts.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from kgrank.encoders.reading import check_texts, says_something
from kgrank.encoders.text import TextEncoder
from kgrank.progress import Count

_log = logging.getLogger(__name__)

_BLOCK_ROWS = 65_536  # read at a time


@dataclass(frozen=True)
class EncodeReport:
    """What it took to encode a list of texts.

    Attributes:
        encoded: distinct texts that the model read now.
        reused: distinct texts whose vectors were in the cache.
        truncated: rows of the list whose text was longer than the model reads.
        empty: rows whose text says nothing; their vectors are zero.
    """

    encoded: int
    reused: int
    truncated: int
    empty: int


Rows = npt.NDArray[np.integer]
Embed = Callable[[Rows, Count | None], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Rows to vectors (n, dim) float32, which were cut (n,) bool, and which could be read (n,) bool."""


@dataclass(frozen=True, eq=False)
class KeptVectors:
    """Where a cache holds the vectors of n contents, so that they are read when they are needed.

    Attributes:
        dim: numbers of a vector.
        files: the parts; and where in each its vectors begin, bytes.
        part: (n) int32, the file of each content; -1 = its vector is zero, and nowhere.
        row: (n) int32, its row there.
        cut: (n) bool, whether only its beginning was read.
        zero: (n) bool, whether its vector is zero.
    """

    dim: int
    files: list[tuple[Path, int]]
    part: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    cut: npt.NDArray[np.bool_]
    zero: npt.NDArray[np.bool_]

    @classmethod
    def none(cls, n: int, dim: int) -> KeptVectors:
        """Of n contents of which the cache holds nothing."""
        nowhere, first = np.full(n, -1, np.int32), np.zeros(n, np.int32)
        return cls(dim, [], nowhere, first, np.zeros(n, bool), np.ones(n, bool))

    def __len__(self) -> int:
        return len(self.part)

    def _add(self, path: Path, rows: Rows, places: Rows, vectors: np.ndarray) -> None:
        """Some contents' vectors are at these places of a part."""
        self.part[rows], self.row[rows] = len(self.files), places
        self.zero[rows] = ~vectors.any(axis=1)
        self.files.append((path, _begin(path)))

    def take(self, rows: Rows) -> KeptVectors:
        """Those of some rows, each as often as it is named."""
        arrays = {name: getattr(self, name)[rows] for name in ("part", "row", "cut", "zero")}
        return replace(self, **arrays)

    def blocks(self, n: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors, at most n at a time (None = 65,536): (n, dim) float32.

        Raises:
            OSError: a part is gone.
        """
        n = n or _BLOCK_ROWS
        for start in range(0, len(self), n):
            part, row = self.part[start : start + n], self.row[start : start + n]
            block = np.zeros((len(part), self.dim), np.float32)
            order = np.argsort(part, kind="stable")
            numbers, first = np.unique(part[order], return_index=True)
            for number, rows in zip(numbers, np.split(order, first[1:]), strict=True):
                if number >= 0:
                    path, begins = self.files[number]
                    shape = int(row[rows].max()) + 1, self.dim
                    block[rows] = np.memmap(path, np.float32, "r", begins, shape)[row[rows]]
            yield block

    def all(self) -> npt.NDArray[np.float32]:
        """All vectors, (n, dim) float32; raises as `blocks`."""
        return next(self.blocks(len(self)), np.zeros((0, self.dim), np.float32))

    def without(self, which: npt.NDArray[np.bool_]) -> KeptVectors:
        """The same, but that the vectors of some contents, (n) bool, are zero."""
        part = np.where(which, np.int32(-1), self.part)
        return replace(self, part=part, cut=self.cut & ~which, zero=self.zero | which)


@dataclass(frozen=True)
class VectorCache:
    """A folder of vectors.

    Attributes:
        folder: made when first written to.
        part_rows: how many vectors go into a part, and so how many an interruption may cost.
    """

    folder: Path
    part_rows: int = 2_000

    def complete(
        self,
        fingerprint: str,
        keys: Sequence[bytes],
        dim: int,
        embed: Embed,
        progress: Count | None = None,
        *,
        order: Rows | None = None,
    ) -> tuple[KeptVectors, int]:
        """Let the cache hold the vectors of all keys: what it lacks, `embed` gives.

        That is kept part by part, but for what could not be read, whose vectors are zero. An
        interruption loses at most the part in work; the next run goes on from there.

        Args:
            fingerprint: the encoder's.
            keys: n distinct sha256 digests.
            dim: the encoder's width.
            embed: encodes some of the rows 0 to n - 1.
            progress: called with (done, total) in rows that the cache lacks.
            order: (n) the rows in the order in which they are encoded; 0 to n - 1 if None.

        Returns:
            where the vectors are, and the number of rows that `embed` read.

        Raises:
            OSError: the cache cannot be written to.
        """
        kept = self.find(fingerprint, keys, dim)
        order = np.arange(len(keys)) if order is None else order
        missing = order[kept.part[order] < 0]
        n_read = 0
        for start in range(0, len(missing), self.part_rows):
            rows = missing[start : start + self.part_rows]
            vectors, kept.cut[rows], whole = embed(rows, _continued(progress, start, len(missing)))
            rows = rows[whole]
            n_read += len(rows)
            if len(rows):
                named = [keys[row] for row in rows]
                path = self.write(fingerprint, named, vectors[whole], kept.cut[rows])
                kept._add(path, rows, np.arange(len(rows)), vectors[whole])
        return kept, n_read

    def width(self, fingerprint: str) -> int | None:
        """How wide the encoder's vectors are; None where the cache holds none."""
        for path in self._parts(fingerprint):
            part = _read_part(path, None)
            if part is not None:
                return int(part["vectors"].shape[1])
        return None

    def _parts(self, fingerprint: str) -> list[Path]:
        return sorted((self.folder / fingerprint).glob("part-*.safetensors"))

    def find(self, fingerprint: str, keys: Sequence[bytes], dim: int) -> KeptVectors:
        """Where the vectors of n distinct keys are, of those it holds; one part is read at a time.

        Args:
            fingerprint: the encoder's.
            keys: sha256 digests of contents.
            dim: the encoder's width.
        """
        row_of = {key: row for row, key in enumerate(keys)}
        kept = KeptVectors.none(len(keys), dim)
        for path in self._parts(fingerprint):
            found = _read_part(path, dim)
            if found is None:
                continue
            flat = found["keys"].tobytes()
            rows = np.array([row_of.get(flat[i : i + 32], -1) for i in range(0, len(flat), 32)])
            held = np.flatnonzero(rows >= 0)
            if len(held):
                kept.cut[rows[held]] = found["cut"][held]
                kept._add(path, rows[held], held, found["vectors"][held])
        return kept

    def write(
        self, fingerprint: str, keys: Sequence[bytes], vectors: np.ndarray, cut: np.ndarray
    ) -> Path:
        """Add one part: n keys, vectors (n, dim) float32 and cut (n,) bool. Returns its file.

        Raises:
            OSError: the folder cannot be written to.
        """
        folder = self.folder / fingerprint
        folder.mkdir(parents=True, exist_ok=True)
        table = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 32)
        content = save({"keys": table, "vectors": np.ascontiguousarray(vectors), "cut": cut})
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                path = folder / f"part-{sha256(content).hexdigest()}.safetensors"
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return path


def keep_encoded(
    encoder: TextEncoder,
    texts: Sequence[str],
    cache: VectorCache,
    progress: Count | None = None,
) -> tuple[KeptVectors, EncodeReport]:
    """Encode what the cache lacks of texts; their vectors are as `TextEncoder.encode` gives them.

    Args:
        encoder: the model.
        texts: n strings.
        cache: where vectors are looked up and kept.
        progress: called with (done, total) in distinct texts that the cache lacks.

    Returns:
        where the n vectors are, of length 1 or zero, and what it took.

    Raises:
        ModelError: the tokenizer knows no word of texts that say something; or as
            `TextEncoder.embed`.
        OSError: the cache cannot be written to.
    """
    check_texts(texts)
    number: dict[str, int] = {}  # of each distinct text, as they come
    for text in texts:
        number.setdefault(text, len(number))
    distinct = list(number)
    keys = [sha256(text.encode("utf-8", "surrogatepass")).digest() for text in distinct]
    speaking = np.array([says_something(text) for text in distinct], dtype=bool)
    # By length, so that the texts of a part pad each other little; the longest first, so that the
    # time left is not underestimated.
    lengths = np.array([len(text) for text in distinct], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    seen: list[bool] = []  # whether the texts were looked at, before the first is encoded

    def embed(rows: Rows, progress: Count | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not seen:
            encoder.check_words([distinct[row] for row in np.flatnonzero(speaking)])
            seen.append(True)
        found, cut = encoder.embed([distinct[row] for row in rows], progress=progress)
        return found, cut, np.ones(len(rows), dtype=bool)

    kept, encoded = cache.complete(
        encoder.fingerprint, keys, encoder.dim, embed, progress, order=order[speaking[order]]
    )
    kept = kept.without(~speaking)  # older versions kept other vectors of some of these
    kept = kept.take(np.array([number[text] for text in texts], dtype=np.int64))
    report = EncodeReport(
        encoded=encoded,
        reused=int(speaking.sum()) - encoded,
        truncated=int(kept.cut.sum()),
        empty=int(kept.zero.sum()),
    )
    return kept, report


def encode_cached(
    encoder: TextEncoder,
    texts: Sequence[str],
    cache: VectorCache,
    progress: Count | None = None,
) -> tuple[npt.NDArray[np.float32], EncodeReport]:
    """As `keep_encoded`, with the vectors in memory: (n, dim) float32.

    Raises:
        ModelError, OSError: as `keep_encoded`; or a part of the cache was removed meanwhile.
    """
    kept, report = keep_encoded(encoder, texts, cache, progress)
    return kept.all(), report


def _continued(progress: Count | None, before: int, total: int) -> Count | None:
    """The progress of one part as progress of the whole."""
    if progress is None:
        return None

    def report(done: int, _part_total: int) -> None:
        progress(before + done, total)

    return report


def _read_part(path: Path, dim: int | None) -> dict[str, np.ndarray] | None:
    """The part's arrays; None, and a warning, if it is not whole or not `dim` wide."""
    try:
        content = path.read_bytes()
        if path.stem != f"part-{sha256(content).hexdigest()}":
            raise ValueError("its content is not what its name says")
        part = load(content)
        n = len(part["keys"])
        dim = part["vectors"].shape[-1] if dim is None else dim
        shapes = {name: (array.shape, array.dtype.name) for name, array in part.items()}
        expected = {
            "keys": ((n, 32), "uint8"),
            "vectors": ((n, dim), "float32"),
            "cut": ((n,), "bool"),
        }
        if shapes != expected:
            raise ValueError(f"it holds {shapes}, not {expected}")
    except (OSError, ValueError, KeyError, IndexError, SafetensorError) as error:
        _log.warning("cached vectors ignored, they are made again: %s: %s", path, error)
        return None
    return part


def _begin(path: Path) -> int:
    """Where the vectors of a whole part begin, in bytes of its file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return 8 + length + int(header["vectors"]["data_offsets"][0])
