"""The vectors of a shop's products, as a file."""

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import save_file

from kgrank.encoders import cache as caching
from kgrank.encoders import embedding as module
from kgrank.encoders.cache import VectorCache, encode_cached
from kgrank.encoders.compression import CompressSettings, compress
from kgrank.encoders.embedding import Embedded, embed_items
from kgrank.encoders.text import TextEncoder, TextSettings
from kgrank.errors import ConfigError, ModelError

TITLES = ["red lamp", "usb cable", None, "red lamp", "blue shoe for men", "red " * 40, "the " * 40]
ITEMS = pd.DataFrame({"item_id": [f"00{n}" for n in range(len(TITLES))], "title": TITLES})


@pytest.fixture
def embed(tiny_folder: Path, tmp_path: Path) -> Callable[..., Embedded]:
    def run(items: pd.DataFrame = ITEMS, **changes: object) -> Embedded:
        given = {"model": str(tiny_folder), "device": "cpu", **changes}
        settings = TextSettings.model_validate(given)
        return embed_items(items, tmp_path / "new" / "v.parquet", settings, cache=tmp_path / "c")

    return run


def test_a_file_holds_what_the_encoder_says(
    embed: Callable[..., Embedded],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_GROUP_ROWS", 3)
    done = embed()
    assert (done.items, done.encoded, done.reused, done.truncated, done.empty) == (7, 6, 0, 2, 1)
    assert (done.dim, done.max_tokens) == (16, 24)
    table = pq.read_table(done.file)
    assert [str(kind) for kind in table.schema.types] == [
        "string",
        "fixed_size_list<element: float>[16]",
    ]
    assert table.schema.metadata[b"fingerprint"].decode() == done.fingerprint
    assert table["item_id"].to_pylist() == ITEMS["item_id"].tolist()
    vectors = np.stack(table["vector"].to_pylist())
    expected = TextEncoder.load(tiny_folder, device="cpu").encode([t or "" for t in TITLES])
    assert_allclose(vectors, expected, atol=1e-6)
    assert not vectors[2].any()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["v.parquet"]


def test_the_next_run_encodes_what_changed_and_replaces_the_file(
    embed: Callable[..., Embedded],
) -> None:
    embed()
    changed = ITEMS.assign(title=[*TITLES[:6], "green lamp"])
    done = embed(changed)
    assert (done.encoded, done.reused) == (1, 5)
    assert len(pq.read_table(done.file)) == 7


def test_what_cannot_be_embedded_leaves_the_file_as_it_was(
    embed: Callable[..., Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(embed().file)
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=r"text\.fields: found 'titel'"):
        embed(fields=("titel",))
    with pytest.raises(ModelError, match=r"text\.model: found none and no encoder"):
        embed(model="none")

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "v.parquet")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        embed()
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["v.parquet"]


def test_vectors_are_held_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,000 titles of 4,096 numbers are 49 MB, a third of them said twice; their peak is little
    more: at this rate a million of 384 numbers (1.5 GB) stay below 2 GB."""
    folder = tmp_path / "wide"
    folder.mkdir()
    compress(tiny_folder, folder, "static", CompressSettings(dim=4))
    wide = np.random.default_rng(0).normal(size=(16, 4_096)).astype(np.float32)
    save_file({"embeddings": wide}, folder / "model.safetensors")
    encoder = TextEncoder.load(folder)
    words = ["red", "blue", "green", "usb", "cable", "lamp", "shoe", "men", "the", "a"]
    titles = [" ".join(words[int(digit)] for digit in f"{n:04d}") for n in range(2_000)]
    texts = [titles[n * 7 % 2_000] for n in range(3_000)]
    monkeypatch.setattr(caching, "_SPREAD_ROWS", 64)
    monkeypatch.setattr("kgrank.encoders.text._WINDOW_TEXTS", 64)
    size = 4 * 3_000 * 4_096
    found = []
    for cache in (VectorCache(tmp_path / "cache", part_rows=64), None):
        tracemalloc.start()
        vectors = encode_cached(encoder, texts, cache)[0] if cache else encoder.encode(texts)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert vectors.nbytes == size
        assert peak < 1.3 * size
        found.append(vectors)
    assert_allclose(found[0], found[1], atol=1e-6)
    assert_allclose(found[0][[0, 2_000]], encoder.encode([titles[0]] * 2), atol=1e-6)
    assert_allclose(found[0][2_999], encoder.encode([titles[2_999 * 7 % 2_000]])[0], atol=1e-6)
    shutil.rmtree(tmp_path / "cache")
