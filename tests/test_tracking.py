"""Figures arrive in TensorBoard, MLflow and W&B: read back from what these wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kgrank.errors import ConfigError, ModelError
from kgrank.loop import Sink
from kgrank.tracking import sink_of

SETTINGS = {"learn": {"rate": 0.003, "epochs": 8}, "kg": {"encoder": "light"}}


def two_trainings(sink: Sink) -> None:
    """A fit of two steps and a second fit of one, whose steps begin anew."""
    sink.log("learned", 1, {"loss": 4.0, "rate": 0.1})
    sink.log("learned", 2, {"loss": 3.0, "rate": 0.2})
    sink.log("learned", 2, {"valid": 0.25, "epoch": 1.0})
    sink.log("learned refit", 1, {"loss": 2.0, "rate": 0.1})


EXPECTED = {
    "learned/loss": [(1, 4.0), (2, 3.0)],
    "learned/rate": [(1, 0.1), (2, 0.2)],
    "learned/valid": [(2, 0.25)],
    "learned/epoch": [(2, 1.0)],
    "learned refit/loss": [(1, 2.0)],
    "learned refit/rate": [(1, 0.1)],
}


def test_tensorboard_reads_the_figures_of_both_trainings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):
        with sink_of(f"tensorboard:{tmp_path}", SETTINGS) as sink:
            two_trainings(sink)
    runs = sorted(tmp_path.iterdir())
    assert len(runs) == 2  # a second call is a run beside the first
    for run in runs:
        events = EventAccumulator(str(run)).Reload()
        found = {
            name: [(scalar.step, pytest.approx(scalar.value)) for scalar in events.Scalars(name)]
            for name in events.Tags()["scalars"]
        }
        assert found == EXPECTED
        (said,) = events.Tensors("settings/text_summary")
        text = said.tensor_proto.string_val[0].decode()
        assert json.loads(text.strip("`\n")) == SETTINGS


def mlflow_run(uri: str) -> Any:
    """The last run of the experiment, and the client that knows it."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("kgrank")
    return client, client.search_runs([experiment.experiment_id], max_results=1)[0]


@pytest.mark.filterwarnings("default")
def test_mlflow_holds_the_figures_and_settings_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/runs.db"
    with sink_of(f"mlflow:{uri}", SETTINGS) as sink:
        two_trainings(sink)
    client, run = mlflow_run(uri)
    found = {
        name: [
            (value.step, value.value) for value in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }
    assert found == EXPECTED
    assert run.data.params == {"learn.rate": "0.003", "learn.epochs": "8", "kg.encoder": "light"}
    assert run.info.status == "FINISHED"

    with pytest.raises(ModelError), sink_of(f"mlflow:{uri}") as sink:
        raise ModelError("diverged")
    assert mlflow_run(uri)[1].info.status == "FAILED"


@pytest.mark.filterwarnings("default")
def test_a_training_outlives_its_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store goes away; the sink says so once and takes what else comes."""
    pytest.importorskip("mlflow")
    from kgrank.fusion import tracking

    monkeypatch.setattr(tracking, "MLFLOW_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = tmp_path / "store"
    with sink_of(f"mlflow:{store.as_uri()}") as sink:
        sink.log("learned", 1, {"loss": 4.0})
        store.rename(tmp_path / "gone")
        for step in (2, 3):
            sink.log("learned", step, {"loss": 3.0})
    assert [r.levelname for r in caplog.records if r.name == tracking.__name__] == ["WARNING"]
    assert "figures from now on are lost" in caplog.text


@pytest.mark.filterwarnings("default")
def test_an_mlflow_that_refuses_is_named_before_the_training() -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(ConfigError, match="tracker mlflow: found 'gopher://there'"):
        sink_of("mlflow:gopher://there")


@pytest.mark.filterwarnings("default")
def test_wandb_writes_the_figures_of_a_local_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with sink_of("wandb:shop", SETTINGS) as sink:
        two_trainings(sink)
    found: dict[str, list[tuple[float, float]]] = {}
    steps: dict[str, str] = {}
    for record in wandb_records(tmp_path):
        values = {".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
        for name, value in values.items():
            if name in EXPECTED:
                training = name.partition("/")[0]
                found.setdefault(name, []).append((values[f"{training}/step"], value))
        steps |= (
            {record.metric.glob_name: record.metric.step_metric} if record.metric.glob_name else {}
        )
    assert found == EXPECTED
    assert steps == {f"{t}/*": f"{t}/step" for t in ("learned", "learned refit")}


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of the one local run: 7 bytes, then each with checksum, length and type."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.rglob("run-*.wandb")
    content = path.read_bytes()
    assert len(content) < 32_768  # beyond that, records go over several blocks
    place = 7
    while place < len(content):
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        place += 7 + length
        yield Record.FromString(content[place - length : place])


def test_wandb_without_a_login_is_told_what_to_do(tmp_path: Path) -> None:
    """In a process of its own, for W&B reads the environment once."""
    pytest.importorskip("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, "-m", "kgrank", "train", str(tmp_path), "--track", "wandb"]
    environment = {**kept, "HOME": str(tmp_path), "WANDB_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "set WANDB_MODE=offline" in done.stderr


@pytest.mark.parametrize("word", ["tensorbord:runs", "tensorboard", "tensorboard:", "", ":x"])
def test_an_unknown_word_is_told_the_known_ones(word: str) -> None:
    with pytest.raises(ConfigError, match="tensorboard:DIR, mlflow"):
        sink_of(word)


@pytest.mark.parametrize(
    ("word", "package"),
    [("tensorboard:runs", "tensorboard"), ("mlflow", "mlflow"), ("wandb", "wandb")],
)
def test_a_missing_package_names_the_extra(
    word: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"kgrank\[track\]"):
        sink_of(word)
