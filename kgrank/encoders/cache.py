"""Vectors kept between runs, by model and content, so that only what changed is encoded again.

    folder/
      <encoder's fingerprint>/
        part-<sha256 of the file>.safetensors     keys    (n, 32) uint8    sha256 of a text or file
                                                  vectors (n, dim) float32
                                                  cut     (n,) bool        only its beginning was
                                                                           read: a text too long,
                                                                           a picture that moves

Parts are only ever added, each under a temporary name and then renamed: an interrupted run leaves
whole parts. A part whose content is not what its name says is not read. A cache may be deleted at
any time, whole or in parts.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

_SPREAD_ROWS = 8_192  # moved at a time


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
        room: int = 0,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Vectors for all keys: what the cache holds, and the rest as `embed` gives it.

        What `embed` gives is kept part by part, but for what it could not read. An interruption
        loses at most the part in work; the next run goes on from there.

        Args:
            fingerprint: the encoder's.
            keys: n distinct sha256 digests.
            dim: the encoder's width.
            embed: encodes some of the rows 0 to n - 1.
            progress: called with (done, total) in rows that the cache lacks.
            order: (n) the rows in the order in which they are encoded; 0 to n - 1 if None.
            room: rows of zeros that the arrays have beyond n.

        Returns:
            vectors (n + room, dim) float32, cut (n + room,) bool and the number of rows that
            `embed` read.

        Raises:
            OSError: the cache cannot be written to.
        """
        vectors, cut, found = self.read(fingerprint, keys, dim, room)
        order = np.arange(len(keys)) if order is None else order
        missing = order[~found[order]]
        n_read = 0
        for start in range(0, len(missing), self.part_rows):
            rows = missing[start : start + self.part_rows]
            part, cut[rows], whole = embed(rows, _continued(progress, start, len(missing)))
            vectors[rows] = part
            rows = rows[whole]
            n_read += len(rows)
            if len(rows):
                self.write(fingerprint, [keys[row] for row in rows], vectors[rows], cut[rows])
        return vectors, cut, n_read

    def width(self, fingerprint: str) -> int | None:
        """How wide the encoder's vectors are; None where the cache holds none."""
        for path in self._parts(fingerprint):
            part = _read_part(path, None)
            if part is not None:
                return int(part["vectors"].shape[1])
        return None

    def _parts(self, fingerprint: str) -> list[Path]:
        return sorted((self.folder / fingerprint).glob("part-*.safetensors"))

    def read(
        self, fingerprint: str, keys: Sequence[bytes], dim: int, room: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the cache holds for the keys, one part in memory at a time.

        Args:
            fingerprint: the encoder's.
            keys: n distinct sha256 digests of contents.
            dim: the encoder's width.
            room: rows of zeros that vectors and cut have beyond n.

        Returns:
            vectors (n + room, dim) float32, cut (n + room,) bool and found (n,) bool; zero where
            not found.
        """
        row_of = {key: row for row, key in enumerate(keys)}
        vectors = np.zeros((len(keys) + room, dim), dtype=np.float32)
        cut = np.zeros(len(keys) + room, dtype=bool)
        found = np.zeros(len(keys), dtype=bool)
        for path in self._parts(fingerprint):
            part = _read_part(path, dim)
            if part is None:
                continue
            flat = part["keys"].tobytes()
            rows = np.array([row_of.get(flat[i : i + 32], -1) for i in range(0, len(flat), 32)])
            held = np.flatnonzero(rows >= 0)
            vectors[rows[held]] = part["vectors"][held]
            cut[rows[held]] = part["cut"][held]
            found[rows[held]] = True
        return vectors, cut, found

    def write(
        self, fingerprint: str, keys: Sequence[bytes], vectors: np.ndarray, cut: np.ndarray
    ) -> None:
        """Add one part: n keys, vectors (n, dim) float32 and cut (n,) bool.

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
                temporary.replace(folder / f"part-{sha256(content).hexdigest()}.safetensors")
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise


def encode_cached(
    encoder: TextEncoder,
    texts: Sequence[str],
    cache: VectorCache,
    progress: Count | None = None,
) -> tuple[np.ndarray, EncodeReport]:
    """Vectors of texts as `TextEncoder.encode` gives them, encoding only what the cache lacks.

    Args:
        encoder: the model.
        texts: n strings.
        cache: where vectors are looked up and kept.
        progress: called with (done, total) in distinct texts that the cache lacks.

    Returns:
        (n, dim) float32 rows of length 1 or zero, and what it took.

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
    # By length, so that the texts of a part pad each other little; the longest first, so that the
    # time left is not underestimated.
    lengths = np.array([len(text) for text in distinct], dtype=np.int64)
    seen: list[bool] = []  # whether the texts were looked at, before the first is encoded

    def embed(rows: Rows, progress: Count | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not seen:
            speaking = [text for text in distinct if says_something(text)]
            if speaking:
                encoder.check_words(speaking)
            seen.append(True)
        found, cut = encoder.embed([distinct[row] for row in rows], progress=progress)
        return found, cut, np.ones(len(rows), dtype=bool)

    vectors, cut, encoded = cache.complete(
        encoder.fingerprint,
        keys,
        encoder.dim,
        embed,
        progress,
        order=np.argsort(-lengths, kind="stable"),
        room=len(texts) - len(distinct),
    )
    place = np.array([number[text] for text in texts], dtype=np.int64)
    empty = _spread(vectors, cut, place)
    report = EncodeReport(
        encoded=encoded,
        reused=len(distinct) - encoded,
        truncated=int(cut.sum()),
        empty=empty,
    )
    return vectors, report


def _spread(vectors: np.ndarray, cut: np.ndarray, place: npt.NDArray[np.int64]) -> int:
    """Put rows where they belong, within the arrays: row r becomes row place[r], which is <= r.

    From the last rows on, so that what is read was not yet written over.

    Returns:
        how many rows are zero then.
    """
    empty = 0
    for end in range(len(place), 0, -_SPREAD_ROWS):
        block = slice(max(0, end - _SPREAD_ROWS), end)
        rows = vectors[place[block]]
        vectors[block], cut[block] = rows, cut[place[block]]
        empty += int((~rows.any(axis=1)).sum())
    return empty


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
