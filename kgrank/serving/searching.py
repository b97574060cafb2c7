"""A search: settings are tried, and those with the highest figure win. What is judged is not said.

A folder keeps what was found:

    trials.journal   every trial as it goes, in Optuna's own words; a search goes on from it
    trials.json      all trials, when the search is over
    best.toml        the best settings, to be put into a kgrank.toml

`kgrank.serving.tuning` searches the settings of a fit, and of a fine-tuning, with it.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kgrank.errors import ConfigError, KgrankError, ModelError
from kgrank.extras import needs
from kgrank.files import replacing
from kgrank.progress import Progress, silent
from kgrank.spaces import Dimension, TuneSettings

if TYPE_CHECKING:
    import optuna

Settings = dict[str, Any]
Judge = Callable[[Settings, Progress], Iterator[float]]
"""Settings to figures, one a fold, whose mean is to be high; it may be left before the last."""

JOURNAL, TRIALS, BEST = "trials.journal", "trials.json", "best.toml"
TRIED = 20  # trials where nothing says how many
_FIRST_TRIALS = 5  # that are never cut short, nor guided
_LOCKED = 5  # seconds; a line of the journal is written in a thousandth of one
_MARK, _BEFORE, _TOLD = "identity", "before", "told"  # what is kept beside Optuna's own figures


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        number: from 0.
        settings: `section.key` → value.
        state: "done"; "pruned": left before its last fold, since it was below the median of the
            others so far; "failed": see `error`.
        value: mean over folds; None where it was not done.
        folds: the figure of each fold it came to.
        seconds: it took; 0 where the same settings had been tried before.
        error: why it failed.
    """

    number: int
    settings: Settings
    state: Literal["done", "pruned", "failed"]
    value: float | None
    folds: tuple[float, ...]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        folder: where it is kept.
        metric: that was to be highest.
        before: what the settings reach as they are.
        best: the best trial; of equal ones the first.
        trials: all of them.
    """

    folder: str
    metric: str
    before: float
    best: Tried
    trials: tuple[Tried, ...]


def search(
    space: Sequence[Dimension],
    judge: Judge,
    out: str | Path,
    settings: TuneSettings,
    *,
    metric: str | None = None,
    identity: str = "",
    resume: bool = False,
    progress: Progress = silent,
) -> Tuned:
    """Try settings and keep what was found in a folder.

    A trial that raises a `KgrankError` has failed, and the search goes on. Settings that were tried
    before are not tried again, nor do they count. With several folds, a trial that is below the
    median of the others after a fold is left there (`optuna.pruners.MedianPruner`).

    Args:
        space: what is tried.
        judge: of the settings.
        out: a new folder.
        settings: how it is searched; its space is not looked at.
        metric: what the judge's figure is called; that of the settings if None.
        identity: what else must be the same for a search to go on.
        resume: go on with the search in `out`, if there is one; a trial that was cut short is
            tried again, and the same trials follow as without a break.
        progress: told of each trial.

    Raises:
        ConfigError: a grid of ranges; or `out` holds something already, or another search.
        ModelError: optuna is not installed, or every trial failed.
        OSError: the folder cannot be written.
    """
    needs("optuna", "tune", "a search of settings")
    out, metric = Path(out), metric or settings.metric
    grid = _grid(space) if settings.sampler == "grid" else []
    n_trials = settings.trials or (len(grid) if grid else TRIED)
    n_trials = int(min(n_trials, math.prod(one.size() for one in space)))
    words = [[asdict(one) for one in space], settings.sampler, metric, identity]
    mark = sha256(json.dumps(words, default=str).encode()).hexdigest()
    made = not out.exists()
    study = _study(out, mark, settings, resume)

    def told(trials: Sequence[Tried]) -> Progress:
        best = _best(trials)
        words = "" if best is None else f"best {best.value:.4f}, "
        return lambda stage, *_: progress(f"trials: {words}{stage}", len(trials), n_trials)

    if _BEFORE not in study.user_attrs:
        try:
            before = float(np.mean(list(judge({}, told(())))))
        except KgrankError:  # nothing was tried: nothing stays
            (out / JOURNAL).unlink()
            if made:
                out.rmdir()
            raise
        study.set_user_attr(_BEFORE, before)
    while len(trials := _trials(study)) < n_trials:
        if grid and not _waiting(study):
            study.enqueue_trial(grid[len(trials)])
        study.sampler = _sampler(study, settings)
        _try(study, space, judge, trials, told(trials))
    progress("trials", n_trials, n_trials)
    best = _best(trials)
    if best is None:
        raise ModelError(
            f"{out}: found {len(trials)} trials that failed, the first of them with: "
            f"{trials[0].error} Search other settings."
        )
    found = Tuned(str(out), metric, study.user_attrs[_BEFORE], best, tuple(trials))
    _write(found, out)
    return found


def _study(out: Path, mark: str, settings: TuneSettings, resume: bool) -> optuna.Study:
    """The search in the folder, or a new one; what was cut short is told to have failed.

    Raises:
        ConfigError: the folder holds something, or another search.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = out / JOURNAL
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not path.is_file():
            raise ConfigError(
                f"{out}: found something there already, which is no search; allowed: a new folder. "
                "Name another one."
            )
        if not resume:
            raise ConfigError(
                f"{out}: found a search there already; allowed: a new folder. Go on with it by "
                "--resume, or name another one."
            )
    out.mkdir(parents=True, exist_ok=True)
    # The lock of a writer that was killed is broken after a while, but only if its link leads
    # somewhere: one to a relative path does not.
    whole = str(path.resolve())
    lock = JournalFileSymlinkLock(whole, grace_period=_LOCKED)
    storage = JournalStorage(JournalFileBackend(whole, lock_obj=lock))
    study = optuna.create_study(
        storage=storage,
        study_name="kgrank",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_FIRST_TRIALS),
    )
    if study.user_attrs.get(_MARK, mark) != mark:
        raise ConfigError(
            f"{out}: found a search of another space, or with other data or settings; allowed: the "
            "same. Name another folder."
        )
    study.set_user_attr(_MARK, mark)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _sampler(study: optuna.Study, settings: TuneSettings) -> optuna.samplers.BaseSampler:
    """What draws the next trial: by the seed and by what came to an end, so that a search that was
    cut short goes on with the very trials of one that was not.
    """
    import optuna

    seed = int(np.random.SeedSequence((settings.seed, len(_ended(study)))).generate_state(1)[0])
    if settings.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_FIRST_TRIALS)
    return optuna.samplers.RandomSampler(seed=seed)


def _waiting(study: optuna.Study) -> bool:
    """Whether a trial is laid out that was not begun."""
    from optuna.trial import TrialState

    return bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def _try(
    study: optuna.Study,
    space: Sequence[Dimension],
    judge: Judge,
    trials: Sequence[Tried],
    told: Progress,
) -> None:
    """One more trial."""
    import optuna

    trial, begun = study.ask(), time.monotonic()
    settings = {one.name: _drawn(trial, one) for one in space}
    same = next((t for t in trials if t.settings == settings), None)
    if same is not None:  # the sampler is told again, and `_trials` passes over it
        _keep(trial, settings, same.folds, 0.0, same.error)
        state = {"done": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[same.state]
        study.tell(trial, same.value, state=optuna.trial.TrialState[state])
        return
    folds: list[float] = []
    try:
        for value in judge(settings, told):
            folds.append(value)
            trial.report(float(np.mean(folds)), len(folds))
            _keep(trial, settings, folds, time.monotonic() - begun)
            if trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                return
    except KgrankError as error:
        _keep(trial, settings, folds, time.monotonic() - begun, str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    study.tell(trial, float(np.mean(folds)))


def _drawn(trial: optuna.Trial, one: Dimension) -> Any:
    """What the sampler says of a setting."""
    if one.choices:  # by number, since a choice may be a list, which Optuna cannot keep
        return one.choices[trial.suggest_categorical(one.name, range(len(one.choices)))]
    if one.whole:
        return trial.suggest_int(one.name, int(one.low), int(one.high), log=one.log)
    return trial.suggest_float(one.name, one.low, one.high, log=one.log)


def _keep(
    trial: optuna.Trial,
    settings: Settings,
    folds: Sequence[float],
    seconds: float,
    error: str | None = None,
) -> None:
    told = {"settings": settings, "folds": list(folds), "seconds": seconds, "error": error}
    trial.set_user_attr(_TOLD, told)


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that came to an end of their own; what was cut short is tried again."""
    from optuna.trial import TrialState

    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=ended)
        if trial.state != TrialState.FAIL
        or trial.user_attrs.get(_TOLD, {}).get("error") is not None
    ]


def _trials(study: optuna.Study) -> list[Tried]:
    """All trials that came to an end of their own, but for what was drawn again."""
    from optuna.trial import TrialState

    states: dict[Any, Literal["done", "pruned", "failed"]] = {
        TrialState.COMPLETE: "done",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
    }
    ended: list[Tried] = []
    for trial in _ended(study):
        told = trial.user_attrs[_TOLD]
        state = states[trial.state]
        value = trial.value if state == "done" else None
        folds = tuple(told["folds"])
        settings, error = told["settings"], told["error"]
        if any(settings == before.settings for before in ended):
            continue
        ended.append(Tried(len(ended), settings, state, value, folds, told["seconds"], error))
    return ended


def _best(trials: Sequence[Tried]) -> Tried | None:
    """The best trial that was done; of equal ones the first."""
    done = [trial for trial in trials if trial.value is not None]
    return max(done, key=lambda trial: (trial.value, -trial.number), default=None)


def _grid(space: Sequence[Dimension]) -> list[dict[str, int]]:
    """Every combination of choices, by their numbers.

    Raises:
        ConfigError: there is a range.
    """
    for one in space:
        if not one.choices:
            raise ConfigError(
                f"tune.space, {one.name}: found a range in a grid; allowed: a list. Name its "
                "values, or take the sampler tpe or random."
            )
    numbers = itertools.product(*(range(len(one.choices)) for one in space))
    return [dict(zip((one.name for one in space), of, strict=True)) for of in numbers]


def _write(found: Tuned, out: Path) -> None:
    """Write all trials, and the best settings as a part of a kgrank.toml."""
    with replacing(out / TRIALS) as path:
        path.write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", "utf-8")
    with replacing(out / BEST) as path:
        path.write_text(fragment(found), "utf-8")


def fragment(found: Tuned) -> str:
    """The best settings as TOML."""
    best = found.best
    lines = [
        f"# {found.metric} of {best.value:.4f} on valid, the best of {len(found.trials)} trials;",
        f"# {found.before:.4f} with the settings as they were.",
    ]
    sections: dict[str, list[str]] = {}
    for name, value in best.settings.items():
        section, _, key = name.partition(".")
        # JSON's numbers, strings, booleans and lists are TOML's too.
        sections.setdefault(section, []).append(f"{key} = {json.dumps(value)}")
    for section, entries in sections.items():
        lines += ["", f"[{section}]", *entries]
    return "\n".join(lines) + "\n"
