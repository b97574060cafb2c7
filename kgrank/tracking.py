"""Figures of a training in TensorBoard, MLflow or Weights & Biases: `pip install "kgrank[track]"`.

    with sink_of("tensorboard:runs") as sink:
        kr.train(tables, sinks=[sink])

A figure's name is that of its training and its own, such as "learned/loss". Each package is
imported when its sink is made.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kgrank.errors import ConfigError
from kgrank.loop import Sink

NAME = "kgrank"  # the experiment in MLflow, and the project in W&B if no other is named
MLFLOW_SECONDS = 5.0  # between two calls to MLflow, at least
MLFLOW_FIGURES = 900  # of one call, at most; it takes 1000
MLFLOW_VALUE = 500  # characters of a setting, at most

_log = logging.getLogger(__name__)

Settings = Mapping[str, Mapping[str, Any]]


def sink_of(word: str, settings: Settings | None = None) -> AbstractContextManager[Sink]:
    """The sink that a word names, begun now and ended when its `with` block is left.

    Args:
        word: "tensorboard:DIR" (a new folder in DIR), "mlflow[:URI]" (a new run of the experiment
            "kgrank"; without URI where MLflow itself says, see MLFLOW_TRACKING_URI) or
            "wandb[:PROJECT]" (a new run of the project, "kgrank" if none is named; with
            WANDB_MODE=offline it stays on this machine).
        settings: what tells this run from others, as `Config.as_dict` gives it.

    Raises:
        ConfigError: the word is unknown, its package is missing, or MLflow or W&B refuses.
        OSError: the folder cannot be written to.
    """
    kind, _, place = word.partition(":")
    if kind not in _SINKS or (kind == "tensorboard" and not place):
        raise ConfigError(
            f"found the tracker {word!r}; allowed: tensorboard:DIR, mlflow[:URI] and "
            "wandb[:PROJECT]. Name one of them."
        )
    try:
        return _SINKS[kind](place, settings or {})
    except ImportError as error:
        raise ConfigError(
            f"tracker {word!r}: found no package for it ({error}); allowed: {kind} installed. "
            'Run pip install "kgrank[track]".'
        ) from error


@contextmanager
def sinks_of(words: Sequence[str] | None, settings: Settings) -> Iterator[list[Sink]]:
    """The sinks that words name, each as `sink_of` makes it; none for None."""
    with ExitStack() as tracked:
        yield [tracked.enter_context(sink_of(word, settings)) for word in words or ()]


class _TensorBoard(AbstractContextManager[Sink]):
    def __init__(self, place: str, settings: Settings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(place) / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"
        self._writer: Any = SummaryWriter(str(folder))
        self._writer.add_text("settings", f"```\n{json.dumps(settings, indent=1)}\n```")

    def log(self, training: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{training}/{name}", value, step)

    def __exit__(self, *failed: object) -> None:
        self._writer.close()


class _MLflow(AbstractContextManager[Sink]):
    """Figures are sent together, and not at all once MLflow failed: a training is worth more."""

    def __init__(self, place: str, settings: Settings) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        flat = {f"{part}.{key}": v for part, of in settings.items() for key, v in of.items()}
        params = [Param(name, str(value)[:MLFLOW_VALUE]) for name, value in flat.items()]
        try:
            self._client = MlflowClient(tracking_uri=place or None)
            known = self._client.get_experiment_by_name(NAME)
            experiment = known.experiment_id if known else self._client.create_experiment(NAME)
            self._run = self._client.create_run(experiment).info.run_id
            self._client.log_batch(self._run, params=params)
        except MlflowException as error:
            raise ConfigError(
                f"tracker mlflow: found {place or 'its default'!r}, which it refuses ({error}); "
                "allowed: what MLflow can write to, such as http://HOST:PORT or "
                "sqlite:///FILE. Name one of them."
            ) from error
        self._waiting: list[Any] = []
        self._sent = time.monotonic()
        self._works = True

    def log(self, training: str, step: int, values: Mapping[str, float]) -> None:
        now = round(time.time() * 1000)
        self._waiting += [
            self._metric(f"{training}/{name}", value, now, step) for name, value in values.items()
        ]
        late = time.monotonic() - self._sent > MLFLOW_SECONDS
        if late or len(self._waiting) >= MLFLOW_FIGURES:
            self._send()

    def _send(self) -> None:
        """Send what waits."""
        if self._works and self._waiting:
            try:
                self._client.log_batch(self._run, metrics=self._waiting)
            except Exception as error:  # stores have faults of every kind
                self._works = False
                _log.warning("tracker mlflow: figures from now on are lost: %s", error)
        self._waiting, self._sent = [], time.monotonic()

    def __exit__(self, *failed: object) -> None:
        self._send()
        if self._works:
            try:
                with redirect_stdout(sys.stderr):  # it prints where the run is to be seen
                    self._client.set_terminated(self._run, "FAILED" if failed[0] else "FINISHED")
            except Exception as error:
                _log.warning("tracker mlflow: the run is not marked as ended: %s", error)


class _WandB(AbstractContextManager[Sink]):
    def __init__(self, place: str, settings: Settings) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=place or NAME,
                config={name: dict(values) for name, values in settings.items()},
                reinit="create_new",
                settings=wandb.Settings(console="off"),  # what is printed here is not sent
            )
        except wandb.errors.Error as error:
            raise ConfigError(
                f"tracker wandb: found that it refuses ({error}); allowed: a login and a server "
                "that answers. Run wandb login, or set WANDB_MODE=offline to write a local run."
            ) from error
        self._known: set[str] = set()

    def log(self, training: str, step: int, values: Mapping[str, float]) -> None:
        own_step = f"{training}/step"  # W&B's own may not begin anew with the second training
        if training not in self._known:
            self._known.add(training)
            self._run.define_metric(own_step)
            self._run.define_metric(f"{training}/*", step_metric=own_step)
        figures = {f"{training}/{name}": value for name, value in values.items()}
        self._run.log({**figures, own_step: step})

    def __exit__(self, *failed: object) -> None:
        self._run.finish(exit_code=1 if failed[0] else 0)


_SINKS: dict[str, Callable[[str, Settings], AbstractContextManager[Sink]]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}
