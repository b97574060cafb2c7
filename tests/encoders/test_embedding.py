"""The vectors of a shop's products, as a file."""

import shutil
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import save_file

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
    monkeypatch.setattr("kgrank.encoders.cache._BLOCK_ROWS", 3)
    done = embed()
    assert (done.items, done.encoded, done.reused, done.truncated, done.empty) == (7, 5, 0, 2, 1)
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
    assert (done.encoded, done.reused) == (1, 4)
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


@pytest.fixture
def wide(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextEncoder:
    """An encoder of 4,096 numbers, and all that holds some of them at a time holds few."""
    folder = tmp_path / "wide"
    folder.mkdir()
    compress(tiny_folder, folder, "static", CompressSettings(dim=4))
    table = np.random.default_rng(0).normal(size=(16, 4_096)).astype(np.float32)
    save_file({"embeddings": table}, folder / "model.safetensors")
    monkeypatch.setattr("kgrank.encoders.cache._BLOCK_ROWS", 64)
    monkeypatch.setattr("kgrank.encoders.text._WINDOW_TEXTS", 64)
    return TextEncoder.load(folder)


def said(n: int) -> list[str]:
    """n titles, a third of them said twice."""
    words = ["red", "blue", "green", "usb", "cable", "lamp", "shoe", "men", "the", "a"]
    titles = [" ".join(words[int(digit)] for digit in f"{n:04d}") for n in range(n * 2 // 3)]
    return [titles[row * 7 % len(titles)] for row in range(n)]


def test_vectors_are_held_once(wide: TextEncoder, tmp_path: Path) -> None:
    """3,000 titles of 4,096 numbers are 49 MB; their peak is little more."""
    texts = said(3_000)
    size = 4 * 3_000 * 4_096
    found = []
    for cache in (VectorCache(tmp_path / "cache", part_rows=64), None):
        tracemalloc.start()
        vectors = encode_cached(wide, texts, cache)[0] if cache else wide.encode(texts)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert vectors.nbytes == size
        assert peak < 1.3 * size
        found.append(vectors)
    assert_allclose(found[0], found[1], atol=1e-6)
    assert_allclose(found[0][[0, 2_000]], wide.encode([texts[0]] * 2), atol=1e-6)
    assert_allclose(found[0][2_999], wide.encode([texts[2_999]])[0], atol=1e-6)
    shutil.rmtree(tmp_path / "cache")


def test_a_file_of_vectors_is_written_without_holding_them(
    wide: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million titles take no more memory where their vectors are twice as long."""
    small = partial(VectorCache, part_rows=64)
    monkeypatch.setattr("kgrank.encoders.embedding.VectorCache", small)
    texts = said(3_000)
    items = pd.DataFrame({"item_id": [str(n) for n in range(3_000)], "title": texts})
    settings = TextSettings(model=str(tmp_path / "wide"), device="cpu")
    out = tmp_path / "vectors.parquet"
    tracemalloc.start()
    done = embed_items(items, out, settings, cache=tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (done.items, done.dim) == (3_000, 4_096)
    assert peak < 0.3 * 4 * 3_000 * 4_096
    vectors = np.stack(pq.read_table(out)["vector"].to_pylist()[-5:])
    assert_allclose(vectors, wide.encode(texts[-5:]), atol=1e-6)
