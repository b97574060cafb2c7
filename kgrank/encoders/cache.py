"""Vectors kept between runs, by model and text, so that only what changed is encoded again.

    folder/
      <encoder's fingerprint>/
        part-<sha256 of the file>.safetensors     keys    (n, 32) uint8    sha256 of each text
                                                  vectors (n, dim) float32
                                                  cut     (n,) bool        text was too long

Parts are only ever added, each under a temporary name and then renamed: an interrupted run leaves
whole parts. A part whose content is not what its name says is not read. A cache may be deleted at
any time, whole or in parts.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from kgrank.encoders.folders import Progress
from kgrank.encoders.text import TextEncoder

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class VectorCache:
    """A folder of vectors.

    Attributes:
        folder: made when first written to.
        part_texts: how many texts go into a part, and so how many an interruption may cost.
    """

    folder: Path
    part_texts: int = 2_000

    def read(
        self, fingerprint: str, keys: Sequence[bytes], dim: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the cache holds for the keys, one part in memory at a time.

        Args:
            fingerprint: the encoder's.
            keys: n distinct sha256 digests of texts.
            dim: the encoder's width.

        Returns:
            vectors (n, dim) float32, cut (n,) bool and found (n,) bool; zero where not found.
        """
        row_of = {key: row for row, key in enumerate(keys)}
        vectors = np.zeros((len(keys), dim), dtype=np.float32)
        cut = np.zeros(len(keys), dtype=bool)
        found = np.zeros(len(keys), dtype=bool)
        for path in sorted((self.folder / fingerprint).glob("part-*.safetensors")):
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
    progress: Progress | None = None,
) -> tuple[np.ndarray, EncodeReport]:
    """Vectors of texts as `TextEncoder.encode` gives them, encoding only what the cache lacks.

    An interruption loses at most the part in work; the next run goes on from there.

    Args:
        encoder: the model.
        texts: n strings.
        cache: where vectors are looked up and kept.
        progress: called with (done, total) in distinct texts that the cache lacks.

    Returns:
        (n, dim) float32 rows of length 1 or zero, and what it took.

    Raises:
        ModelError: the model gives numbers that are not finite.
        OSError: the cache cannot be written to.
    """
    # By length, so that the texts of a part pad each other little; the longest first, so that the
    # time left is not underestimated.
    distinct = sorted(dict.fromkeys(texts), key=len, reverse=True)
    keys = [sha256(text.encode("utf-8", "surrogatepass")).digest() for text in distinct]
    vectors, cut, found = cache.read(encoder.fingerprint, keys, encoder.dim)
    missing = np.flatnonzero(~found)
    for start in range(0, len(missing), cache.part_texts):
        rows = missing[start : start + cache.part_texts]
        vectors[rows], cut[rows] = encoder.embed(
            [distinct[row] for row in rows], progress=_continued(progress, start, len(missing))
        )
        part_keys = [keys[row] for row in rows]
        cache.write(encoder.fingerprint, part_keys, vectors[rows], cut[rows])
    place = {text: row for row, text in enumerate(distinct)}
    order = np.array([place[text] for text in texts], dtype=np.int64)
    result = vectors[order]
    report = EncodeReport(
        encoded=len(missing),
        reused=len(distinct) - len(missing),
        truncated=int(cut[order].sum()),
        empty=int((~result.any(axis=1)).sum()),
    )
    return result, report


def _continued(progress: Progress | None, before: int, total: int) -> Progress | None:
    """The progress of one part as progress of the whole."""
    if progress is None:
        return None

    def report(done: int, _part_total: int) -> None:
        progress(before + done, total)

    return report


def _read_part(path: Path, dim: int) -> dict[str, np.ndarray] | None:
    """The part's arrays; None, and a warning, if it is not whole."""
    try:
        content = path.read_bytes()
        if path.stem != f"part-{sha256(content).hexdigest()}":
            raise ValueError("its content is not what its name says")
        part = load(content)
        n = len(part["keys"])
        shapes = {name: (array.shape, array.dtype.name) for name, array in part.items()}
        expected = {
            "keys": ((n, 32), "uint8"),
            "vectors": ((n, dim), "float32"),
            "cut": ((n,), "bool"),
        }
        if shapes != expected:
            raise ValueError(f"it holds {shapes}, not {expected}")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        _log.warning("cached vectors ignored, their texts are encoded again: %s: %s", path, error)
        return None
    return part
