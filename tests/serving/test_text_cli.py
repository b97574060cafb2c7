"""The verbs of the text encoder: an encoder of a shop's own text, from tables to a folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from kgrank.encoders import pretraining
from kgrank.encoders.text import TextEncoder
from kgrank.loop import Loop
from kgrank.serving.cli import app

SMALL = ("--set", "pretrain.width=64", "--set", "pretrain.layers=1", "--set", "pretrain.batch=4")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_shops_products_are_embedded_once(
    tiny_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    small, out = tmp_path / "small", tmp_path / "vectors.parquet"
    words = ("--set", "pretrain.vocabulary=100", "--epochs", 1, *SMALL)
    assert run("pretrain", tiny_shop, "--out", small, "--from", "scratch", *words).exit_code == 0
    told = json.loads(run("embed", tiny_shop, "--model", small, "--out", out, "--json").stdout)
    assert (told["items"], told["encoded"], told["reused"], told["dim"]) == (12, 12, 0, 64)
    assert len(pd.read_parquet(out)) == 12
    cut = ("--set", f"text.model={small}", "--set", "text.max_tokens=3")
    again = run("embed", tiny_shop, *cut, "--out", out)
    assert again.exit_code == 0, again.output
    assert "12 texts were cut at 3 tokens." in again.stdout
    gone = run("embed", tiny_shop, "--model", tmp_path / "gone", "--out", out)
    assert (gone.exit_code, gone.stderr.count("no text encoder at")) == (1, 1)


def test_an_encoder_is_made_of_a_shops_titles(tiny_shop: Path, tmp_path: Path) -> None:
    out, runs = tmp_path / "encoder", tmp_path / "runs"
    words = ("pretrain", tiny_shop, "--out", out, "--from", "scratch", "--epochs", 2, *SMALL)
    result = run(*words, "--track", f"tensorboard:{runs}", "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    assert told["folder"] == str(out)
    assert (told["texts"] + told["held_out"], len(told["perplexity"])) == (12, 3)
    assert list(runs.glob("*/events.*"))
    assert TextEncoder.load(out, device="cpu").dim == 64
    again = run(*words)
    assert again.exit_code == 1
    assert f"{out}: found something there already" in again.stderr
    shown = run("pretrain", tiny_shop, "--out", tmp_path / "b", "--from", out, *SMALL)
    assert shown.exit_code == 0
    assert f"kgrank train {tiny_shop} --set text.model={tmp_path / 'b'}" in shown.stdout
    assert "perplexity" in shown.stdout


def test_a_checkpoint_of_other_settings_does_not_vanish_without_a_word(
    tiny_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*("pretrain", tiny_shop, "--out", tmp_path / "out"), *("--from", "scratch"), *SMALL]
    saved = Loop._save

    def fall(loop: Loop[Any]) -> None:  # when the first checkpoint is written
        saved(loop)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "_save", fall)
    assert run(*words).exit_code == 130
    (checkpoint,) = (tmp_path / ".out.training").iterdir()
    words += ["--set", "pretrain.rate=0.002", "--epochs", 1, "--resume"]
    result = subprocess.run(
        [sys.executable, "-m", "kgrank", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    told = f"{checkpoint}: found the checkpoint of another training (with other data or settings)"
    assert result.stderr.count(f"{told}; pretraining begins anew and replaces it\n") == 1


def test_reviews_are_read_where_they_are_named_but_not_those_of_test(
    tiny_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    events = pd.read_csv(tiny_shop / "events.csv")
    events["review"] = "of " + events["split"] + " " + events.index.astype(str)
    events.iloc[::-1].to_json(shop / "events.jsonl", orient="records", lines=True)
    taken: list[str] = []

    def take(texts: list[str], *rest: object, **options: object) -> None:
        taken.extend(texts)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "pretrain", take)
    named = ("--set", 'pretrain.fields=["title"]', "--set", 'pretrain.event_fields=["review"]')
    assert run("pretrain", shop, "--out", tmp_path / "out", *named).exit_code == 130
    seen = events.loc[events["split"] != "test", "review"]
    assert sorted(filter(None, taken)) == sorted(seen)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--from", "nowhere"), 1, "no text encoder at nowhere"),
        (("--set", 'pretrain.fields=["name"]'), 1, "pretrain.fields: found 'name'"),
        (("--set", 'pretrain.event_fields=["review"]'), 1, "pretrain.event_fields: found 'review'"),
        (("--set", "pretrain.mask=0.2"), 1, "Is 'masked' meant?"),
        (("--epochs", "0"), 2, "--epochs"),
    ],
)
def test_what_is_wrong_is_told_once(
    words: tuple[str, ...], status: int, message: str, tiny_shop: Path, tmp_path: Path
) -> None:
    result = run("pretrain", tiny_shop, "--out", tmp_path / "out", *words)
    assert result.exit_code == status
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def rated_shop(tiny_shop: Path, tmp_path: Path) -> Path:
    """The tiny shop with ratings, two of them off the scale; the file runs backwards in time."""
    shop = tmp_path / "shop"
    shop.mkdir()
    events = pd.read_csv(tiny_shop / "events.csv").iloc[::-1]
    events = events.assign(value=3.0, mood="glad", words="so")
    bought = events.index[(events["event"] == "purchase") & (events["split"] != "test")]
    events.loc[bought[[1, 3]], "value"] = 9.0
    events.to_csv(shop / "events.csv", index=False)
    shutil.copy(tiny_shop / "items.csv", shop)
    return shop


def test_what_is_wrong_with_labels_is_found_in_the_file(rated_shop: Path, tmp_path: Path) -> None:
    words = ("finetune", rated_shop, "--out", tmp_path / "out", "--task")
    off = run(*words, "rating", "--set", 'tasks.rating=["purchase"]')
    assert off.exit_code == 1
    events = pd.read_csv(rated_shop / "events.csv")
    wrong = events[events["value"] == 9.0].iloc[0]
    assert (
        f"events, row {wrong.name + 1}, column 'value' (and 1 more rows): found the rating 9 "
        f"(of user '{wrong.user_id}' for item '{wrong.item_id}'); allowed: 1 to 5"
    ) in off.stderr
    for verb, setting in (
        (("finetune", "--task", "sentiment"), "finetune.event_field"),
        (("finetune", "--task", "sentiment"), "finetune.label"),
        (("tune", "--task", "next", "--space", "finetune.rate=0.1,0.2"), "finetune.label"),
        (("pretrain",), "pretrain.event_fields"),
    ):
        value = '["reviews"]' if verb[0] == "pretrain" else "reviews"
        said = ("--out", tmp_path / "out", "--set", f"{setting}={value}")
        result = run(verb[0], rated_shop, *verb[1:], *said)
        assert result.exit_code == 1
        assert f"{setting}: found 'reviews'; allowed: the columns of events, user_id" in (
            result.stderr
        )
        assert "mood, words. Name one of them, or add the column." in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_encoder_learns_from_a_shops_events(tiny_shop: Path, tmp_path: Path) -> None:
    start, out = tmp_path / "start", tmp_path / "out"
    assert run("pretrain", tiny_shop, "--out", start, "--from", "scratch", *SMALL).exit_code == 0
    words = ("finetune", tiny_shop, "--from", start, "--task", "next", "--task", "purchase=0.5")
    result = run(*words, "--out", out, "--epochs", 1, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    assert told["tasks"] == {"next": 1.0, "purchase": 0.5}
    assert set(told["after"]["purchase"]) == {"auc", "log_loss"}
    assert TextEncoder.load(out, device="cpu").dim == 64
    shown = run(*words, "--out", tmp_path / "b", "--set", "finetune.method=frozen")
    assert shown.exit_code == 0, shown.output
    assert f"kgrank train {tiny_shop} --set text.model={tmp_path / 'b'}" in shown.stdout
    assert "recall@10" in shown.stdout
    trained = run(
        "train",
        tiny_shop,
        "--out",
        tmp_path / "m",
        "--set",
        f"text.model={out}",
        *("--set", "kg.encoder=none"),
    )
    assert trained.exit_code == 0, trained.output


def test_classes_that_train_lacks_are_told(rated_shop: Path, tmp_path: Path) -> None:
    events = pd.read_csv(rated_shop / "events.csv")
    events["mood"] = ["glad", "sad"] * (len(events) // 2) + ["sad"] * (len(events) % 2)
    valid = events.index[events["split"] == "valid"]
    events.loc[valid[:2], "mood"] = "odd"
    events.to_csv(rated_shop / "events.csv", index=False)
    start, out = tmp_path / "start", tmp_path / "out"
    assert run("pretrain", rated_shop, "--out", start, "--from", "scratch", *SMALL).exit_code == 0
    words = ("--set", "finetune.event_field=words", "--set", "finetune.label=mood")
    told = ("finetune", rated_shop, "--from", start, "--out", out, "--epochs", 1)
    result = run(*told, "--task", "sentiment", *words)
    assert result.exit_code == 0, result.output
    assert "Valid rows of classes that train does not hold are not judged: 2 of odd." in (
        result.stdout
    )


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--task", "next=much"), 1, "found 'much' for a weight"),
        (("--task", "next", "--task", "next=2"), 1, "found next twice"),
        (("--task", "click"), 1, "kinds there are: purchase"),
        (("--task", "next", "--set", "finetune.method=prefix"), 1, "'lora', 'adalora' or 'prompt'"),
        ((), 2, "--task"),
    ],
)
def test_what_cannot_be_learned_is_told(
    words: tuple[str, ...], status: int, message: str, tiny_shop: Path, tmp_path: Path
) -> None:
    result = run("finetune", tiny_shop, "--out", tmp_path / "out", *words)
    assert result.exit_code == status
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
