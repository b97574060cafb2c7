import logging
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from kgrank.encoders.cache import EncodeReport, VectorCache, encode_cached, keep_encoded
from kgrank.encoders.text import TextEncoder

TEXTS = ["red lamp", "usb cable", "", "red lamp", "blue shoe for men", "red " * 40]


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> TextEncoder:
    return TextEncoder.load(tiny_folder, device="cpu")


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/part-*.safetensors"))


def test_the_second_run_encodes_nothing_and_gives_the_same_bytes(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    cache = VectorCache(tmp_path / "not" / "there" / "yet")
    first, report = encode_cached(encoder, TEXTS, cache)
    assert report == EncodeReport(encoded=4, reused=0, truncated=1, empty=1)
    assert_allclose(first, encoder.encode(TEXTS), atol=1e-6)

    second, report = encode_cached(encoder, TEXTS, cache)
    assert report == EncodeReport(encoded=0, reused=4, truncated=1, empty=1)
    assert (second == first).all()
    assert second.dtype == np.float32
    assert len(parts(cache.folder)) == 1


def test_only_what_changed_is_encoded(encoder: TextEncoder, tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    encode_cached(encoder, TEXTS, cache)
    changed = ["red lamp", "green lamp", "", "usb charger"]
    seen: list[tuple[int, int]] = []
    vectors, report = encode_cached(
        encoder, changed, cache, lambda done, total: seen.append((done, total))
    )
    assert report == EncodeReport(encoded=2, reused=1, truncated=0, empty=1)
    assert seen == [(2, 2)]
    assert_allclose(vectors, encoder.encode(changed), atol=1e-6)


def test_an_interrupted_run_keeps_its_whole_parts(encoder: TextEncoder, tmp_path: Path) -> None:
    texts = [f"red {'lamp ' * n}" for n in range(10)]
    cache = VectorCache(tmp_path, part_rows=3)

    def interrupt(done: int, total: int) -> None:
        assert total == 10
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_cached(encoder, texts, cache, interrupt)
    assert len(parts(tmp_path)) == 2
    seen: list[tuple[int, int]] = []
    vectors, report = encode_cached(
        encoder, texts, cache, lambda done, total: seen.append((done, total))
    )
    assert (report.encoded, report.reused) == (4, 6)
    assert seen == [(3, 4), (4, 4)]
    assert_allclose(vectors, encoder.encode(texts), atol=1e-6)


def test_a_failed_write_leaves_no_file(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        encode_cached(encoder, TEXTS, VectorCache(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "emptied", "foreign"])
def test_a_damaged_part_is_named_ignored_and_encoded_again(
    encoder: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache = VectorCache(tmp_path, part_rows=3)
    expected, _ = encode_cached(encoder, TEXTS, cache)
    broken = parts(tmp_path)[0]
    content = bytearray(broken.read_bytes())
    if damage == "flipped bit":
        content[-20] ^= 1
    changed = {"cut short": content[:-7], "emptied": b"", "foreign": b"\x00" * 50}
    broken.write_bytes(changed.get(damage, content))

    with caplog.at_level(logging.WARNING, logger="kgrank.encoders.cache"):
        vectors, report = encode_cached(encoder, TEXTS, cache)
    assert 0 < report.encoded < 4
    assert report.encoded + report.reused == 4
    assert_allclose(vectors, expected, atol=1e-6)
    assert [str(broken) in message for message in caplog.messages] == [True]
    assert encode_cached(encoder, TEXTS, cache)[1].encoded == 0


def test_a_part_of_another_width_is_not_mistaken_for_ours(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    cache = VectorCache(tmp_path)
    wide = np.ones((1, 17), dtype=np.float32)
    cache.write(encoder.fingerprint, [b"k" * 32], wide, np.zeros(1, dtype=bool))
    assert (cache.find(encoder.fingerprint, [b"k" * 32], 17).all() == wide).all()
    assert not cache.find(encoder.fingerprint, [b"k" * 32], 16).all().any()


def test_a_text_that_says_nothing_is_zero_whatever_the_cache_holds_of_it(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    """As older versions with byte-level tokenizers had put there."""
    cache = VectorCache(tmp_path)
    spoken = np.ones((1, encoder.dim), dtype=np.float32)
    cache.write(encoder.fingerprint, [sha256(b" ").digest()], spoken, np.zeros(1, dtype=bool))
    vectors, report = encode_cached(encoder, [" ", "lamp"], cache)
    assert report == EncodeReport(encoded=1, reused=0, truncated=0, empty=1)
    assert not vectors[0].any()
    assert vectors[1].any()


def test_vectors_come_in_blocks_whatever_part_they_are_in(
    encoder: TextEncoder, tmp_path: Path
) -> None:
    texts = [f"red {'lamp ' * (n % 7)}" for n in range(10)] + ["", "blue"]
    kept, _ = keep_encoded(encoder, texts, VectorCache(tmp_path, part_rows=3))
    assert len(parts(tmp_path)) == 3
    assert_allclose(kept.all(), encoder.encode(texts), atol=1e-6)
    blocks = list(kept.blocks(5))
    assert [len(block) for block in blocks] == [5, 5, 2]
    assert_allclose(np.concatenate(blocks), encoder.encode(texts), atol=1e-6)


def test_another_model_shares_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    for max_tokens in (24, 10):
        other = TextEncoder.load(tiny_folder, device="cpu", max_tokens=max_tokens)
        vectors, report = encode_cached(other, TEXTS, cache)
        assert report.reused == 0
        assert_allclose(vectors, other.encode(TEXTS), atol=1e-6)


def test_what_a_killed_run_left_half_written_is_not_read(
    encoder: TextEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = VectorCache(tmp_path)
    encode_cached(encoder, TEXTS, cache)
    (parts(tmp_path)[0].parent / ".tmp-abc").write_bytes(b"half")
    assert encode_cached(encoder, TEXTS, cache)[1].encoded == 0
    assert caplog.messages == []


def test_no_texts(encoder: TextEncoder, tmp_path: Path) -> None:
    vectors, report = encode_cached(encoder, [], VectorCache(tmp_path))
    assert vectors.shape == (0, encoder.dim)
    assert report == EncodeReport(encoded=0, reused=0, truncated=0, empty=0)
    assert list(tmp_path.iterdir()) == []


def test_half_an_emoji_has_a_key(encoder: TextEncoder, tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    encode_cached(encoder, ["lamp \ud83d"], cache)
    assert encode_cached(encoder, ["lamp \ud83d", "lamp ?"], cache)[1].reused == 1
