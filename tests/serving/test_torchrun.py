"""`torchrun … -m kgrank train`: two processes give what one gives, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app

SETTINGS = [
    *("--set", "text.model=none", "--set", "kg.dim=8", "--set", "kg.hops=0"),
    *("--set", "learn.batch=64", "--set", "learn.rate=0.02", "--set", "learn.epochs=3"),
]


@pytest.fixture(scope="module")
def four_tastes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 users of four tastes choose 5 of their taste's 20 items: few pairs repeat, tastes do.

    The learned channel finds the four tastes, and the bundle keeps it.
    """
    rng = np.random.default_rng(0)
    items = np.array([user % 4 + 4 * rng.permutation(20)[:5] for user in range(100)])
    days = np.tile(np.arange(5), 100)
    events = pd.DataFrame(
        {
            "user_id": [f"u{user}" for user in np.repeat(np.arange(100), 5)],
            "item_id": [f"i{item}" for item in items.ravel()],
            "timestamp": 1_700_000_000 + 86_400 * days,
            "split": np.where(days < 3, "train", "valid"),
        }
    )
    folder = tmp_path_factory.mktemp("four") / "shop"
    folder.mkdir()
    events.to_csv(folder / "events.csv", index=False)
    return folder


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc-per-node", "2", *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def learned(folder: str) -> dict[str, np.ndarray[Any, Any]]:
    """The vectors of the learned channel: of the second fit, on train and valid."""
    arrays = load_file(Path(folder) / "vectors.safetensors")
    return {name: values for name, values in arrays.items() if name.startswith("learned")}


def test_two_processes_write_one_bundle_that_holds_what_one_process_finds(
    four_tastes: Path, tmp_path: Path
) -> None:
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    runs = tmp_path / "runs"
    words = ["train", str(four_tastes), *SETTINGS, "--json", "--track", f"tensorboard:{runs}"]
    done = torchrun("-m", "kgrank", *words, "--out", str(shared))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # one object, of one process
    assert done.stderr.count("learned …\n") == done.stderr.count("learned refit …\n") == 1
    left = {path.name for path in shared.iterdir()}
    assert left == {"current", Path(told["bundle"]).name}
    (run,) = runs.iterdir()
    events = EventAccumulator(str(run)).Reload()
    valid = [value.value for value in events.Scalars("learned/valid")]
    assert valid == pytest.approx(told["learned"]["valid"])
    assert len(events.Scalars("learned refit/epoch_loss")) == told["learned"]["best_epoch"]

    one = json.loads(CliRunner().invoke(app, [*words, "--out", str(alone)]).stdout)
    assert one["choices"]["linear"] == told["choices"]["linear"]
    for figures in ("losses", "valid"):
        assert told["learned"][figures] == pytest.approx(one["learned"][figures], rel=1e-3)
    assert told["learned"]["best_epoch"] == one["learned"]["best_epoch"]
    vectors, expected = learned(told["bundle"]), learned(one["bundle"])
    names = {"learned", "learned.sources", "learned.lengths"}
    assert vectors.keys() == expected.keys() == names
    for name, values in expected.items():
        assert np.allclose(vectors[name], values, atol=1e-3), name
    assert Bundle.load(shared).model.channels[-1].name == "learned"


ELSEWHERE = """
import os, sys
from kgrank.serving.cli import main
if os.environ["RANK"] == "1":
    sys.argv[2] = "nowhere"
main()
"""


def test_a_process_that_fails_ends_all_with_its_message_and_no_bundle(
    four_tastes: Path, tmp_path: Path
) -> None:
    """The second process does not find the tables, and the first does not wait for it."""
    script, models = tmp_path / "elsewhere.py", tmp_path / "models"
    script.write_text(ELSEWHERE)
    done = torchrun(str(script), "train", str(four_tastes), *SETTINGS, "--out", str(models))
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere: found nothing of this name" in done.stderr
    assert not models.exists()
