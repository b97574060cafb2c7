"""`kgrank compress`: what it tells, what it keeps, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kgrank.config import Config
from kgrank.encoders.pretraining import PretrainSettings, pretrain
from kgrank.encoders.text import TextEncoder
from kgrank.errors import ModelError
from kgrank.fusion.metrics import ListMetrics
from kgrank.kg.tables import Tables
from kgrank.serving import compressing
from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app
from kgrank.serving.compressing import _shared_neighbors, _turned_cosine
from kgrank.serving.training import train


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of two layers that knows the tiny shop's words. Not to be written to."""
    out = tmp_path_factory.mktemp("encoder") / "small"
    texts = [f"{words} number {n}" for words in ("alpine tent", "baking tin") for n in range(9)]
    settings = PretrainSettings(width=64, layers=2, batch=4, epochs=1)
    pretrain(texts, out, settings, start="scratch", device="cpu")
    return out


def test_a_shop_tells_what_is_lost(encoder: Path, tiny_shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    words = ("compress", encoder, "--out", out, "--method", "layers", "--source", tiny_shop)
    result = run(*words, "--most-loss", 1, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    assert told == json.loads((out / "compression.json").read_text())
    assert told["made"]["layers"] == [0]
    assert told["folder"] == str(out)
    assert told["texts"] == 12
    for one in (told["original"], told["compressed"]):
        assert 0 <= one["recall"] <= 1
        assert one["texts_per_second"] > 0
    assert told["compressed"]["megabytes"] < told["original"]["megabytes"]
    change = told["compressed"]["recall"] - told["original"]["recall"]
    assert told["interval"][0] <= change <= told["interval"][1]
    assert TextEncoder.load(out, device="cpu").dim == 64
    again = run(*words)
    assert again.exit_code == 1
    assert f"{out}: found something there already" in again.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_without_a_shop_accuracy_is_said_to_be_unmeasured(
    encoder: Path, tiny_tables: Tables, tmp_path: Path
) -> None:
    result = run("compress", encoder, "--out", tmp_path / "table", "--method", "static")
    assert result.exit_code == 0, result.output
    assert "Accuracy is unmeasured" in result.stdout
    assert f"--set text.model={tmp_path / 'table'}" in result.stdout
    told = json.loads((tmp_path / "table" / "compression.json").read_text())
    assert (told["lost"], told["compressed"]["recall"]) == (None, None)
    assert told["compressed"]["form"] == "static"
    stages: list[str] = []
    text = {"model": str(tmp_path / "table"), "device": "cuda"}
    config = Config.from_dict({"text": text}, "the test")
    with pytest.raises(ModelError, match="found the device cuda for an encoder of the form static"):
        train(tiny_tables, config, progress=lambda stage, *_: stages.append(stage))
    assert stages == []  # before any work
    modes = {path.stat().st_mode for path in (tmp_path / "table").iterdir()}
    assert len(modes) == 1  # who may read one file may read all


def test_a_shop_without_titles_is_refused(encoder: Path, tiny_shop: Path, tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shutil.copytree(tiny_shop, shop)
    for path in shop.glob("items.*"):
        path.unlink()
    out = tmp_path / "half"
    result = run("compress", encoder, "--out", out, "--method", "layers", "--source", shop)
    assert result.exit_code == 1
    assert "found 0 distinct text(s) among" in result.stderr
    assert list(tmp_path.iterdir()) == [shop]


def test_a_student_of_a_shop(encoder: Path, tiny_shop: Path, tmp_path: Path) -> None:
    words = ("--method", "distil", "--layers", 1, "--source", tiny_shop, "--most-loss", 1)
    sets = ("--set", "compress.epochs=2", "--set", 'compress.fields=["title"]')
    runs = ("--track", f"tensorboard:{tmp_path / 'runs'}")
    result = run("compress", encoder, "--out", tmp_path / "student", *words, *sets, *runs)
    assert result.exit_code == 0, result.output
    assert "Cosine on held-out texts" in result.stdout
    assert list((tmp_path / "runs").glob("*/events.*"))
    assert not list(tmp_path.glob(".*"))


def test_too_great_a_loss_is_refused_unless_forced(
    encoder: Path, tiny_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.50 with the original and 0.48 with the smaller one are 4 % less."""
    recalls = iter([0.5, 0.48] * 3)
    fitted: list[Bundle] = []

    def lists(bundle: Bundle, *rest: object) -> tuple[ListMetrics, np.ndarray]:
        fitted.append(bundle)
        each = np.full(4, next(recalls))
        return ListMetrics({10: each}, {10: each}, each), np.arange(4)

    monkeypatch.setattr(compressing, "valid_lists", lists)
    words = ("compress", encoder, "--out", tmp_path / "out", "--method", "layers")
    words = (*words, "--source", tiny_shop)
    refused = run(*words)
    assert refused.exit_code == 1
    assert "0.4800 against 0.5000" in refused.stderr
    assert "4.0% less; allowed: 2.0%" in refused.stderr
    table, _, rest = refused.stdout.partition(" times smaller")  # what was measured is told
    assert "R@10 on valid" in table
    assert "0.4800" in table
    assert "cosine 0." in rest
    assert "R@10 lost: 4.0%" in rest
    assert "To use it" not in rest
    assert list(tmp_path.iterdir()) == []
    assert [bundle.config.fit.refit for bundle in fitted] == [False, False]
    assert fitted[0].config.text.model == str(encoder)
    assert run(*words, "--most-loss", 0.05).exit_code == 0
    forced = run(*words[:3], tmp_path / "forced", *words[4:], "--force", "--json")
    assert forced.exit_code == 0
    assert json.loads(forced.stdout)["lost"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--method", "layers", "--layers", "2"), 1, "compress.layers: found 2; allowed: 1 to 1"),
        (("--method", "static", "--layers", "2"), 2, "--layers"),
        (("--method", "static", "--resume"), 2, "--resume"),
        (("--method", "distil"), 2, "--source"),
        (("--method", "static", "--force"), 2, "--force"),
        (("--method", "smaller"), 2, "--method"),
        (("--method", "static", "--set", "compress.dims=2"), 1, "Is 'dim' meant?"),
    ],
)
def test_what_is_wrong_is_told_once(
    words: tuple[str, ...], status: int, message: str, encoder: Path, tmp_path: Path
) -> None:
    result = run("compress", encoder, "--out", tmp_path / "out", *words)
    assert result.exit_code == status
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_likeness_does_not_depend_on_the_axes() -> None:
    """Turned by a rotation, all titles are alike; with the rows mixed up, few are."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=(400, 8)).astype(np.float32)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0].astype(np.float32)
    assert _turned_cosine(one, one @ turn) == pytest.approx(1, abs=1e-5)
    assert _shared_neighbors(one, one @ turn) > 0.99
    mixed = one[rng.permutation(400)]
    assert _turned_cosine(one, mixed) < 0.3
    assert _shared_neighbors(one, mixed) < 0.1
