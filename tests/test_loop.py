"""The training loop: the same weights whatever happens on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kgrank.errors import ModelError
from kgrank.loop import Loop, Trained
from kgrank.processes import joined
from kgrank.progress import Progress
from kgrank.settings import LearnSettings

SETTINGS = LearnSettings(epochs=4, batch=8, rate=0.05, warmup=2, checkpoint_seconds=0.0)


class Line:
    """Fit y = 2x + noise; dropout and the order of the batches are drawn anew each epoch."""

    def __init__(self, valid: Sequence[float] | None = None) -> None:
        torch.manual_seed(3)
        self.module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(40, 3, generator=generator)
        self.y = 2.0 * self.x[:, :1]
        self.told = list(valid or [])
        self.judged: list[dict[str, Tensor]] = []

    def batches(self, epoch: int) -> Sequence[Tensor]:
        order = torch.randperm(40, generator=torch.Generator().manual_seed(epoch))
        return order.split(8)

    def loss(self, batch: Tensor, share: slice) -> Tensor:
        rows = batch[share]
        missed = self.module(self.x[rows]) - self.y[rows]
        return torch.as_tensor(missed.square().sum() / len(batch))

    def judge(self) -> float:
        self.judged.append({n: t.clone() for n, t in self.module.state_dict().items()})
        if self.told:
            return self.told[len(self.judged) - 1]
        return -float((self.module(self.x) - self.y).square().mean())

    @property
    def settled(self) -> bool:
        return True


def quiet(stage: str, done: int, total: int) -> None:
    """Told of progress, does nothing."""


def run(folder: Path | None = None, *, resume: bool = False, report: Progress = quiet) -> Line:
    task = Line()
    Loop(task, SETTINGS, "line", folder=folder, resume=resume, report=report).run()
    return task


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    assert same(run().module, run().module)


def test_training_learns() -> None:
    task = Line()
    trained = Loop(task, SETTINGS.model_copy(update={"epochs": 30}), "line").run()
    assert trained.losses[-1] < trained.losses[0] / 2


@pytest.mark.parametrize("stop", [1, 5, 7, 19])
def test_a_training_cut_short_ends_with_the_weights_of_one_that_was_not(
    tmp_path: Path, stop: int
) -> None:
    def cut(stage: str, done: int, total: int) -> None:
        if done > stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", report=cut)
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()
    assert same(run(tmp_path / "run", resume=True).module, run().module)
    assert not (tmp_path / "run").exists()  # nothing is left of it


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_loop import run
def report(stage, done, total):
    if done == {stop} and not {resume}:
        os.kill(os.getpid(), signal.SIGKILL)
task = run(Path({folder!r}), resume={resume}, report=report)
print([parameter.sum().item() for parameter in task.module.parameters()])
"""


def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path) -> None:
    def started(folder: str, *, stop: int, resume: bool) -> subprocess.CompletedProcess[str]:
        words = {"here": str(Path(__file__).parent), "folder": str(tmp_path / folder)}
        code = KILLED.format(**words, stop=stop, resume=resume)
        return subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True
        )

    killed = started("cut", stop=13, resume=False)
    assert killed.returncode == -signal.SIGKILL
    whole = started("whole", stop=10**6, resume=False)
    resumed = started("cut", stop=13, resume=True)
    assert whole.stdout
    assert resumed.stdout == whole.stdout, resumed.stderr


def test_a_checkpoint_of_another_training_is_not_taken_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def cut(stage: str, done: int, total: int) -> None:
        if done > 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, report=cut)
    task = Line()
    assert Loop(task, SETTINGS, "line", folder=tmp_path, resume=True).state.step > 0
    assert caplog.messages == []
    other = SETTINGS.model_copy(update={"rate": 0.01})
    loop = Loop(task, other, "line", folder=tmp_path, resume=True)
    assert (loop.state.epoch, loop.state.step) == (0, 0)
    Loop(task, SETTINGS, "circle", folder=tmp_path, resume=True)
    found = f"{tmp_path / 'checkpoint.safetensors'}: found the checkpoint of another training"
    assert caplog.messages == [
        f"{found} (with other data or settings); line begins anew and replaces it",
        f"{found} (line); circle begins anew and replaces it",
    ]


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"\x10" * 40)
    with pytest.raises(ModelError, match=str(path)):
        run(tmp_path, resume=True)


def test_the_weights_that_did_best_on_valid_are_kept_and_training_stops() -> None:
    task = Line(valid=[0.1, 0.4, 0.3, 0.2, 0.9])
    settings = LearnSettings(epochs=5, patience=2, rate=0.05, warmup=0)
    trained = Loop(task, settings, "line").run()
    assert (trained.best_epoch, trained.valid) == (2, (0.1, 0.4, 0.3, 0.2))
    best = task.judged[1]
    assert all(torch.equal(t, best[name]) for name, t in task.module.state_dict().items())


def test_a_second_fit_runs_the_epochs_it_is_told_without_judging() -> None:
    task = Line()
    trained = Loop(task, SETTINGS, "line", stop_after=3).run()
    assert (trained.best_epoch, trained.valid, len(trained.losses)) == (3, (), 3)
    assert not task.judged


def test_a_loss_that_is_not_finite_names_step_and_batch() -> None:
    task = Line()
    task.y[task.batches(0)[3][0]] = float("nan")
    with pytest.raises(ModelError, match=r"step 3 \(epoch 0, batch 3\)"):
        Loop(task, SETTINGS, "line").run()


def test_a_result_on_valid_that_is_not_finite_names_the_epoch() -> None:
    with pytest.raises(ModelError, match="line: found nan on valid after epoch 2; allowed: finite"):
        Loop(Line(valid=[0.1, float("nan")]), SETTINGS, "line").run()


def test_nothing_to_train_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Line()
    monkeypatch.setattr(task, "batches", lambda epoch: [])
    with pytest.raises(ModelError, match="line: found nothing to train on"):
        Loop(task, SETTINGS, "line").run()


def test_a_checkpoint_of_weights_of_another_shape_is_named(tmp_path: Path) -> None:
    """As after a change of the model's code that its identity does not tell."""
    path = tmp_path / "checkpoint.safetensors"
    loop = Loop(Line(), SETTINGS, "line", folder=tmp_path)
    loop._save()
    task = Line()
    task.module[0] = nn.Linear(3, 5)
    with pytest.raises(ModelError, match=f"{path}: found a checkpoint that cannot be read"):
        Loop(task, SETTINGS, "line", folder=tmp_path, resume=True)


def test_what_a_kill_left_of_a_checkpoint_goes_in_the_end(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.safetensors.123").write_bytes(b"half")
    run(tmp_path)
    assert not tmp_path.exists()


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.figures: list[tuple[str, int, Mapping[str, float]]] = []

    def log(self, training: str, step: int, values: Mapping[str, float]) -> None:
        self.figures.append((training, step, values))


def test_figures_and_progress_are_told() -> None:
    kept, told = Kept(), list[tuple[str, int, int]]()

    def report(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    trained = Loop(Line(), SETTINGS, "line", sinks=[kept], report=report).run()
    assert told[-1][1:] == (20, 20)
    assert all(part in told[0][0] for part in ("line: loss ", "rate ", "s left"))
    steps = [(training, step) for training, step, values in kept.figures if "loss" in values]
    assert steps == [("line", step) for step in range(1, 21)]
    assert kept.figures[0][2]["rate"] == pytest.approx(0.05 / 2)  # the first of two warm-up steps
    ends = [(step, values) for _, step, values in kept.figures if "epoch" in values]
    assert [step for step, _ in ends] == [5, 10, 15, 20]
    assert [values["epoch"] for _, values in ends] == [1, 2, 3, 4]
    assert [values["valid"] for _, values in ends] == list(trained.valid)
    assert [values["epoch_loss"] for _, values in ends] == list(trained.losses)
    seconds = [values["seconds"] for _, values in ends]
    assert 0 < seconds[0] < seconds[-1] <= trained.seconds


def test_a_sink_takes_the_figures_of_two_trainings() -> None:
    kept = Kept()
    Loop(Line(), SETTINGS, "line", sinks=[kept]).run()
    first = len(kept.figures)
    Loop(Line(), SETTINGS, "line refit", sinks=[kept], stop_after=2).run()
    assert {training for training, _, _ in kept.figures[first:]} == {"line refit"}
    ends = [values for _, _, values in kept.figures[first:] if "epoch" in values]
    assert [values["epoch"] for values in ends] == [1, 2]
    assert all("valid" not in values for values in ends)


SHARED = """
import os, sys, torch
sys.path.insert(0, {here!r})
from test_loop import Line, SETTINGS
from kgrank.errors import ModelError
from kgrank.loop import Loop
from kgrank.processes import joined
task = Line()
task.module[1].p = 0.0
rank = os.environ.get("RANK", "alone")
if rank == "1":  # process 0 decides: its weights to begin with, its word on valid
    task.module[0].weight.data.zero_()
    task.told = [9.0, 8.0, 7.0, 6.0] * 2
try:
    with joined("cpu"):
        for name in ("line", "line again"):
            trained = Loop(task, SETTINGS, name).run()
        best = torch.tensor(trained.best_epoch)
        torch.save({{**task.module.state_dict(), "best": best}}, {out!r} + "/" + rank)
        Loop(task, SETTINGS, "line", identity="data of " + rank).run()
except ModelError as error:
    sys.stdout.write(f"{{rank}}: {{error}}\\n")
"""


def test_two_processes_take_the_steps_that_one_takes_and_agree_to_the_bit(tmp_path: Path) -> None:
    """Through two trainings; a third, in which their data differ, they refuse."""
    script = tmp_path / "script.py"
    script.write_text(SHARED.format(here=str(Path(__file__).parent), out=str(tmp_path)))
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for launcher in ((), torchrun):
        done = subprocess.run(
            [sys.executable, *launcher, str(script)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
    assert "1: line: found other data, settings or another checkpoint in process 1" in done.stdout
    assert "0: process 0: found another process of this training gone" in done.stdout
    alone, first, second = (
        torch.load(tmp_path / name, weights_only=True) for name in ("alone", "0", "1")
    )
    for name, weights in alone.items():
        assert torch.allclose(first[name], weights, atol=1e-5), name
        assert torch.equal(first[name], second[name]), name


def test_a_process_without_a_gpu_of_its_own_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ModelError, match=r"process 1 of this machine, which has 1 GPU"),
        joined("cuda"),
    ):
        pass


def test_what_training_reports_is_whole() -> None:
    trained = Loop(Line(), SETTINGS, "line").run()
    assert isinstance(trained, Trained)
    assert len(trained.valid) == len(trained.losses) == 4
    assert trained.seconds > 0
