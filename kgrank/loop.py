"""The one training loop: AdamW, a schedule, early stopping on valid, checkpoints that resume.

What is trained is a `Task`; the loop knows nothing of graphs or text. Every draw a task makes comes
from (seed, epoch, step), never from a state that runs on, so that a run that was killed and resumed
ends with the very weights of one that was not.

Processes that are joined (`kgrank.processes`) each take their share of every batch, and the
gradients are summed, so that more processes compute the same step faster.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kgrank.errors import ModelError
from kgrank.processes import add_up, agreed, follow, rank, world
from kgrank.progress import Progress, silent
from kgrank.settings import LearnSettings

Batch = TypeVar("Batch")

_CHECKPOINT = "checkpoint.safetensors"
_LOWEST_RATE = 0.02  # of the highest, at the end of the schedule
_UNREADABLE = (SafetensorError, LookupError, ValueError, TypeError, RuntimeError, OSError)
_log = logging.getLogger(__name__)


class Task(Protocol[Batch]):
    """What the loop trains."""

    @property
    def module(self) -> nn.Module:
        """Holds all that is learned."""

    def batches(self, epoch: int) -> Sequence[Batch]:
        """The epoch's batches, a function of the epoch alone; as many in every epoch."""

    def loss(self, batch: Batch, share: slice) -> Tensor:
        """The loss of the rows batch[share], divided by the rows of the whole batch."""

    def judge(self) -> float:
        """How good the module is on valid; higher is better. Only process 0 is asked."""

    @property
    def settled(self) -> bool:
        """Whether the module holds all there is to know: a checkpoint may be written."""


class Sink(Protocol):
    """Where figures go while a model is trained, such as `kgrank.tracking.sink_of` makes.

    One sink takes the figures of several trainings. Who made it ends it.
    """

    def log(self, training: str, step: int, values: Mapping[str, float]) -> None:
        """Take the figures that the training of this name has at one of its steps, from 1."""


@dataclass(frozen=True)
class Trained:
    """How a training went.

    Attributes:
        best_epoch: epochs after which valid was best, from 1; the module holds those weights.
        valid: what `judge` said after each epoch.
        losses: mean loss of each epoch.
        seconds: of this run; what was done before a resume is not in it.
    """

    best_epoch: int
    valid: tuple[float, ...]
    losses: tuple[float, ...]
    seconds: float


@dataclass
class _State:
    """Where the run stands; what a checkpoint holds besides tensors."""

    epoch: int = 0
    step: int = 0  # within the epoch
    total: float = 0.0  # sum of the epoch's losses so far
    valid: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()


class Loop(Generic[Batch]):
    """Trains a task.

    Args:
        task: what is trained; its module lies on the device it is trained on.
        settings: the `[learn]` section.
        name: of the task, in messages and figures.
        folder: where the checkpoint is kept; none is written if None. It is removed at the end.
        resume: go on from the checkpoint in `folder`, if there is one of this very training. One
            of another training, such as of yesterday's data, is not gone on from: a warning is
            logged, the training begins anew, and its own checkpoints take the place of that one.
        identity: what else must be the same for a checkpoint to be of this training (data,
            settings).
        sinks: where figures go; each step's loss and rate, and each epoch's mean loss, result on
            valid and seconds since the start.
        report: told of progress, with loss, rate and time left in words.
        after_step: called after each step of the optimizer, whose gradients still stand, with the
            steps before it and those of all epochs.
        stop_after: train exactly this many epochs and do not judge: for a second fit on more data.
    """

    def __init__(
        self,
        task: Task[Batch],
        settings: LearnSettings,
        name: str,
        *,
        folder: Path | None = None,
        resume: bool = False,
        identity: str = "",
        sinks: Sequence[Sink] = (),
        report: Progress = silent,
        after_step: Callable[[int, int], None] | None = None,
        stop_after: int | None = None,
    ) -> None:
        self.task, self.settings, self.name = task, settings, name
        self.folder, self.sinks, self.report = folder, sinks, report
        self.after_step = after_step
        self.stop_after = stop_after
        about = [name, settings.as_dict(), identity, stop_after, version("kgrank")]
        self.identity = json.dumps(about)
        self.state = _State()
        parameters = [p for p in task.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            parameters, settings.rate, weight_decay=settings.decay, betas=(0.9, 0.98), fused=True
        )
        self.best: dict[str, Tensor] = {}
        if resume and folder is not None and (folder / _CHECKPOINT).exists():
            self._restore(folder / _CHECKPOINT)

    def run(self) -> Trained:
        """Train until the epochs are over or valid no longer gets better.

        Raises:
            ModelError: a loss or gradient is not finite: the message names step and batch; or the
                result on valid is not: it names the epoch. There is nothing to train on. Or the
                joined processes do not train the same, or one of them has ended.
        """
        start, saved = time.monotonic(), time.monotonic()
        state, settings = self.state, self.settings
        self._level()
        epochs = self.stop_after or settings.epochs
        while state.epoch < epochs and not self._stalled():
            batches = self.task.batches(state.epoch)
            if not len(batches):
                raise ModelError(
                    f"{self.name}: found nothing to train on; allowed: one batch or more. Give it "
                    "more events."
                )
            total_steps = settings.epochs * len(batches)
            begun, begun_at = time.monotonic(), state.step
            while state.step < len(batches):
                done = state.epoch * len(batches) + state.step
                loss, rate = self._step(batches[state.step], done, total_steps)
                state.step += 1
                state.total += loss
                each = (time.monotonic() - begun) / (state.step - begun_at)
                left = each * (epochs * len(batches) - done - 1)
                mean = state.total / state.step
                words = f"{self.name}: loss {mean:.3f}, rate {rate:.2g}, {left:.0f} s left"
                self.report(words, done + 1, epochs * len(batches))
                self._log(done + 1, {"loss": loss, "rate": rate})
                late = time.monotonic() - saved > settings.checkpoint_seconds
                if late and self.task.settled:
                    self._save()
                    saved = time.monotonic()
            values = self._end_epoch(len(batches))
            values["seconds"] = time.monotonic() - start
            self._log(state.epoch * len(batches), values)
            self._save()
        if self.best:
            self.task.module.load_state_dict(self.best)
        if self.folder is not None and rank() == 0:
            for path in (self.folder / _CHECKPOINT, *self.folder.glob(f".{_CHECKPOINT}.*")):
                path.unlink(missing_ok=True)  # a kill may leave one that is not whole
            with suppress(OSError):  # something else lies there
                self.folder.rmdir()
        best = 1 + max(range(len(state.valid)), key=lambda e: state.valid[e]) if state.valid else 0
        seconds = time.monotonic() - start
        return Trained(best or state.epoch, state.valid, state.losses, seconds)

    def _step(self, batch: Batch, done: int, total: int) -> tuple[float, float]:
        """One step of the optimizer: the loss and the rate it was taken at."""
        settings, module = self.settings, self.task.module
        torch.manual_seed(hash((settings.seed, done)) % 2**31)
        rising = min(1.0, (done + 1) / max(settings.warmup, 1))
        rate = settings.rate * rising * max(_LOWEST_RATE, 1.0 - done / total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        module.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.task.loss(batch, slice(rank(), None, world()))
        loss.backward()  # type: ignore[no-untyped-call]
        value = loss.detach().clone()
        add_up(value)
        for parameter in module.parameters():
            if parameter.grad is not None:  # or it is None in all processes
                add_up(parameter.grad)
        norm = nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        # A device is waited for once.
        said, length = map(float, torch.stack((value, norm)).tolist())
        if not (math.isfinite(said) and math.isfinite(length)):
            what = "a gradient" if math.isfinite(said) else f"a loss of {said}"
            raise ModelError(
                f"{self.name}: found {what} that is not finite at step {done} (epoch "
                f"{self.state.epoch}, batch {self.state.step}); allowed: finite numbers. Lower the "
                "rate in its section, such as learn.rate."
            )
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step(done, total)
        return said, rate

    def _end_epoch(self, n_batches: int) -> dict[str, float]:
        """The figures of the epoch that is over."""
        state = self.state
        state.losses = (*state.losses, state.total / n_batches)
        state.epoch, state.step, state.total = state.epoch + 1, 0, 0.0
        figures = {"epoch": float(state.epoch), "epoch_loss": state.losses[-1]}
        if self.stop_after is not None:
            return figures
        self.task.module.eval()
        with torch.no_grad():
            value = agreed(self.task.judge() if rank() == 0 else 0.0)
        if not math.isfinite(value):
            raise ModelError(
                f"{self.name}: found {value} on valid after epoch {state.epoch}; allowed: finite "
                "numbers. Lower the rate in its section, such as learn.rate."
            )
        if value > max(state.valid, default=-math.inf):
            weights = self.task.module.state_dict()
            self.best = {name: tensor.detach().clone() for name, tensor in weights.items()}
        state.valid = (*state.valid, value)
        return {**figures, "valid": value}

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if rank() == 0:
            for sink in self.sinks:
                sink.log(self.name, step, values)

    def _level(self) -> None:
        """Begin with the weights of process 0, at the same step of the same training.

        Raises:
            ModelError: this process has another training before it, or another checkpoint.
        """
        if world() == 1:
            return
        place = f"{self.identity} {self.state.epoch} {self.state.step}"
        mark = float(int(sha256(place.encode()).hexdigest()[:12], 16))  # 48 bits: a float holds it
        if agreed(mark) != mark:
            raise ModelError(
                f"{self.name}: found other data, settings or another checkpoint in process "
                f"{rank()} than in process 0; allowed: the same. Give every machine the same "
                "tables, and to resume, a models folder that all of them see."
            )
        for tensor in self.task.module.state_dict().values():
            follow(tensor)

    def _stalled(self) -> bool:
        valid = self.state.valid
        if not valid:
            return False
        best = max(range(len(valid)), key=lambda epoch: valid[epoch])
        return len(valid) - 1 - best >= self.settings.patience

    def _save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        if self.folder is None or rank() != 0:
            return
        tensors = {f"module.{n}": t.contiguous() for n, t in self.task.module.state_dict().items()}
        tensors |= {f"best.{name}": tensor.contiguous() for name, tensor in self.best.items()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in entry.items()}
        words = {"identity": self.identity, "state": json.dumps(vars(self.state))}
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{_CHECKPOINT}.{os.getpid()}"
        try:
            save_file({n: t.cpu().clone() for n, t in tensors.items()}, temporary, words)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.folder / _CHECKPOINT)
        finally:
            temporary.unlink(missing_ok=True)

    def _restore(self, path: Path) -> None:
        """Go on where the checkpoint stands, if it belongs to this very training.

        Raises:
            ModelError: it is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                words = file.metadata() or {}
                if words.get("identity") != self.identity:
                    self._warn(path, json.loads(words["identity"])[0])
                    return
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said: dict[str, Any] = json.loads(words["state"])
            said |= {name: tuple(said[name]) for name in ("valid", "losses")}
            self._take(_State(**said), tensors)
        except _UNREADABLE as error:
            raise ModelError(
                f"{path}: found a checkpoint that cannot be read ({error}); allowed: one written "
                "by this version. Remove it, and the training starts anew."
            ) from error

    def _take(self, state: _State, tensors: Mapping[str, Tensor]) -> None:
        """Stand where a checkpoint of this training stands."""
        self.state = state
        self.task.module.load_state_dict(_named(tensors, "module."))
        self.best = _named(tensors, "best.")
        optimizer = self.optimizer.state_dict()
        of_parameter: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _named(tensors, "optimizer.").items():
            number, entry = name.split(".", 1)
            of_parameter.setdefault(int(number), {})[entry] = tensor
        self.optimizer.load_state_dict({**optimizer, "state": of_parameter})

    def _warn(self, path: Path, other: str) -> None:
        """Say that the checkpoint is of another training, whose name is given."""
        if rank() == 0:
            _log.warning(
                "%s: found the checkpoint of another training (%s); %s begins anew and replaces it",
                path,
                "with other data or settings" if other == self.name else other,
                self.name,
            )


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
