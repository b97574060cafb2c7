"""A search of the settings that a text encoder is fine-tuned with."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from kgrank.config import Config, read_config
from kgrank.encoders import finetuning
from kgrank.errors import ConfigError
from kgrank.kg.tables import Tables
from kgrank.serving.cli import app
from kgrank.serving.searching import BEST
from kgrank.serving.tuning import tune_encoder
from kgrank.spaces import Dimension

pytestmark = pytest.mark.skipif(find_spec("optuna") is None, reason="needs kgrank[tune]")

ITEMS = ["a1", "a2", "a3", "a4", "a5", "b1", "b2", "b3", "b4", "b5", "c1", "v1"]
SMALL = ("--set", "pretrain.width=64", "--set", "pretrain.layers=1", "--set", "pretrain.batch=4")
QUICK = ("--set", "finetune.method=frozen", "--set", "finetune.epochs=1")


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def start(tiny_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of the shop's own words. Not to be written to."""
    out = tmp_path_factory.mktemp("start") / "encoder"
    words = ("--set", "pretrain.vocabulary=100", "--epochs", 1, *SMALL)
    assert run("pretrain", tiny_shop, "--out", out, "--from", "scratch", *words).exit_code == 0
    return out


def test_the_best_settings_of_a_fine_tuning_are_found(
    tiny_shop: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search cut short goes on; a fine-tuning with the best settings reaches what it told."""
    out = tmp_path / "out"
    words = ("tune", tiny_shop, "--task", "next", "--from", start, "--out", out, *QUICK)
    words = (*words, "--sampler", "grid", "--space", "finetune.rate=1e-6,0.05")
    whole, calls = finetuning.finetune, 0

    def falling(*given: Any, **options: Any) -> Any:  # at the second trial
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return whole(*given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(finetuning, "finetune", falling)
        cut = run(*words)
    assert cut.exit_code == 130
    assert f"{out} keeps the trials that ended: --resume goes on." in cut.stderr
    result = run(*words, "--resume", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["metric"], len(told["trials"])) == ("score", 2)
    best = told["best"]
    assert best["value"] == max(trial["value"] for trial in told["trials"])
    rate = read_config(out / BEST).finetune.rate
    assert rate == best["settings"]["finetune.rate"]
    tuned = ("--set", f"finetune.rate={rate}", "--out", tmp_path / "tuned", "--json")
    again = run("finetune", tiny_shop, "--task", "next", "--from", start, *QUICK, *tuned)
    assert max(json.loads(again.stdout)["score"][1:]) == best["value"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tuned"]


def test_each_trial_is_judged_in_every_fold(
    tiny_tables: Tables, start: Path, tmp_path: Path
) -> None:
    rows = [
        (f"u{user}", item, "purchase", 100.0 * place)
        for user in range(8)
        for place, item in enumerate(np.random.default_rng(user).permutation(ITEMS)[:8])
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "event", "timestamp"])
    events["split"] = np.repeat(["train", "valid", "test"], [5, 2, 1])[events.index % 8]
    tables = replace(tiny_tables, events=events)
    settings = {"tune": {"folds": 2}, "finetune": {"method": "frozen", "epochs": 1}}
    config = Config.from_dict(settings, "the test")
    space = [Dimension.of("finetune.power", [0.0, 1.0])]
    found = tune_encoder(tables, config, space, tmp_path / "a", tasks={"next": 1}, start=start)
    assert [len(trial.folds) for trial in found.trials] == [2, 2]
    for name in ("finetune.scale", "fit.neighbors"):
        with pytest.raises(ConfigError, match=f"found {name}; allowed: settings of finetune, text"):
            space = [Dimension.of(name, [[1.0, 4.0]])]
            tune_encoder(tables, config, space, tmp_path / "b", tasks={"next": 1}, start=start)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--task", "nxt"), 1, "task: found 'nxt'"),
        (("--task", "next", "--from", "nowhere"), 1, "no text encoder at nowhere"),
        (("--task", "next", "--device", "cpu"), 2, "it says nothing with --task"),
        (("--task", "next", "--metric", "recall@10"), 2, "it says nothing with --task"),
        (("--from", "minilm"), 2, "it says nothing without --task"),
    ],
)
def test_what_is_wrong_is_told_once(
    words: tuple[str, ...], status: int, message: str, tiny_shop: Path, start: Path, tmp_path: Path
) -> None:
    if status == 1 and "--from" not in words:
        words = (*words, "--from", str(start))
    space = ("--space", "finetune.rate=0.1,0.2")
    result = run("tune", tiny_shop, "--out", tmp_path / "out", *space, *words)
    assert result.exit_code == status
    assert message in " ".join(result.stderr.replace("│", "").split())
    assert list(tmp_path.iterdir()) == []
