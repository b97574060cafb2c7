"""A search of settings: what is tried, what is told, and on which rows it is judged."""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from kgrank import extras
from kgrank.config import Config, read_config
from kgrank.errors import ConfigError, ModelError
from kgrank.kg.tables import Tables
from kgrank.progress import Progress
from kgrank.serving import tuning
from kgrank.serving.cli import app
from kgrank.serving.evaluating import valid_lists
from kgrank.serving.searching import BEST, JOURNAL, TRIALS, search
from kgrank.serving.tuning import folded, tune
from kgrank.spaces import Dimension, TuneSettings, read_space

needs_optuna = pytest.mark.skipif(find_spec("optuna") is None, reason="needs kgrank[tune]")

LINE = [Dimension.of("learn.rate", "lin:-4.0:4.0")]
TWO = [Dimension.of("fit.neighbors", [1, 2, 3]), Dimension.of("text.fields", [["a"], ["a", "b"]])]
GRID = TuneSettings(sampler="grid")


class Hill:
    """A judge whose figure is highest at 1; it remembers what it was asked."""

    def __init__(self, fall_at: int | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.fall_at = fall_at

    def __call__(self, settings: dict[str, Any], progress: Progress) -> Iterator[float]:
        if len(self.asked) == self.fall_at:
            self.fall_at = None
            raise KeyboardInterrupt
        self.asked.append(settings)
        yield -((settings.get("learn.rate", 3.0) - 1) ** 2)


class Table:
    """A judge of two folds: `fit.neighbors` over 10, and the same again."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, settings: dict[str, Any], progress: Progress) -> Iterator[float]:
        self.asked.append(settings)
        value = settings.get("fit.neighbors", 0)
        if value == 2:
            raise ModelError("two is one too many")
        yield value / 10
        yield value / 10


# What may be tried


def test_a_space_is_read_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "kgrank.toml").write_text(
        '[tune.space]\nfit.neighbors = [50, 100]\nlearn.rate = "log:1e-3:1e-2"\n'
    )
    config = read_config(tmp_path)
    words = ["fit.neighbors=5,7", "text.model=none,minilm", "learn.epochs=lin:2:9"]
    space = {one.name: one for one in read_space(config.tune.space, words)}
    assert space["fit.neighbors"].choices == (5, 7)
    assert space["text.model"].choices == ("none", "minilm")
    rate, epochs = space["learn.rate"], space["learn.epochs"]
    assert (rate.low, rate.high, rate.log, rate.whole) == (0.001, 0.01, True, False)
    assert (epochs.ends(), epochs.log) == ((2, 9), False)
    lists = read_space({}, ['text.fields=["title"],["title","brand"]'])
    assert lists[0].choices == (["title"], ["title", "brand"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "found no setting to search"),
        (["fit.neighbors"], "found 'fit.neighbors'; allowed: section.key=values"),
        (["learn.rate=log:0:1"], "allowed: ends above 0 with log"),
        (["learn.rate=lin:3:1"], "low < high"),
        (["learn.rate=log:1"], "allowed: a list, log:low:high or lin:low:high"),
    ],
)
def test_what_is_no_space_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_space({}, words)


# The search


@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_best_of_what_was_tried_is_found(sampler: str, tmp_path: Path) -> None:
    hill = Hill()
    settings = TuneSettings.from_dict({"sampler": sampler, "trials": 15}, "the test")
    found = search(LINE, hill, tmp_path / "out", settings)
    assert found.before == -4
    rates = [trial.settings["learn.rate"] for trial in found.trials]
    assert len(set(rates)) == 15
    assert found.best.settings["learn.rate"] == min(rates, key=lambda rate: abs(rate - 1))
    assert abs(found.best.settings["learn.rate"] - 1) < 0.5
    kept = json.loads((tmp_path / "out" / TRIALS).read_text())
    assert kept["best"]["value"] == found.best.value
    assert len(kept["trials"]) == 15


@needs_optuna
def test_a_grid_is_tried_once_and_a_failure_is_told(tmp_path: Path) -> None:
    table = Table()
    found = search(TWO, table, tmp_path, GRID)
    combinations = [(n, fields) for n in (1, 2, 3) for fields in (["a"], ["a", "b"])]
    tried = [(t.settings["fit.neighbors"], t.settings["text.fields"]) for t in found.trials]
    assert tried == combinations
    assert table.asked[0] == {}
    states = [trial.state for trial in found.trials]
    assert states == ["done", "done", "failed", "failed", "done", "done"]
    assert found.trials[2].error == "two is one too many"
    assert found.trials[2].value is None
    assert (found.best.number, found.best.value, found.best.folds) == (4, 0.3, (0.3, 0.3))
    best = tomllib.loads((tmp_path / BEST).read_text())
    assert best == {"fit": {"neighbors": 3}, "text": {"fields": ["a"]}}
    few = search(TWO, Table(), tmp_path / "few", GRID.model_copy(update={"trials": 2}))
    assert len(few.trials) == 2
    with pytest.raises(ConfigError, match=r"learn\.rate: found a range in a grid"):
        search(LINE, Hill(), tmp_path / "range", GRID)


@needs_optuna
def test_what_is_worse_after_a_fold_is_left_there(tmp_path: Path) -> None:
    """Six trials of 9 and one of 1: the last is below the median once five are done."""
    space = [Dimension.of("fit.neighbors", [9, 8, 7, 9.5, 8.5, 1])]
    table = Table()
    found = search(space, table, tmp_path, GRID)
    last = found.trials[-1]
    assert (last.state, last.value, last.folds) == ("pruned", None, (0.1,))
    assert [trial.state for trial in found.trials[:-1]] == ["done"] * 5


@needs_optuna
def test_the_same_settings_are_not_judged_twice(tmp_path: Path) -> None:
    hill = Hill()
    space = [Dimension.of("learn.rate", [1, 2])]
    found = search(space, hill, tmp_path, TuneSettings(trials=8))
    assert len(hill.asked) == 3  # as it is, 1 and 2
    assert [trial.number for trial in found.trials] == [0, 1]  # there are no more to try
    assert sorted(trial.settings["learn.rate"] for trial in found.trials) == [1, 2]
    assert found.best.settings == {"learn.rate": 1}


@needs_optuna
def test_what_failed_is_not_tried_again_and_all_else_is(tmp_path: Path) -> None:
    """Of 1, 2 and 3 the second fails; with room for 12 trials each is tried once."""
    table, space = Table(), [Dimension.of("fit.neighbors", [1, 2, 2, 3])]
    found = search(space, table, tmp_path, TuneSettings(trials=12, sampler="random"))
    assert sorted(asked.get("fit.neighbors", 0) for asked in table.asked) == [0, 1, 2, 3]
    states = {trial.settings["fit.neighbors"]: trial.state for trial in found.trials}
    assert states == {1: "done", 2: "failed", 3: "done"}
    assert len(found.trials) == 3


@needs_optuna
def test_a_search_cut_short_goes_on_and_tries_again_what_it_was_at(tmp_path: Path) -> None:
    space = [Dimension.of("learn.rate", [1, 2, 3, 4])]
    with pytest.raises(KeyboardInterrupt):
        search(space, Hill(fall_at=3), tmp_path, GRID)  # as it is, 1, 2, and then
    hill = Hill()
    found = search(space, hill, tmp_path, GRID, resume=True)
    assert [asked["learn.rate"] for asked in hill.asked] == [3, 4]
    assert [trial.settings["learn.rate"] for trial in found.trials] == [1, 2, 3, 4]
    assert [trial.state for trial in found.trials] == ["done"] * 4
    again = search(space, hill, tmp_path, GRID, resume=True)
    assert (again, len(hill.asked)) == (found, 2)


@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_cut_short_again_and_again_draws_the_same_trials(
    sampler: str, tmp_path: Path
) -> None:
    space = [*LINE, Dimension.of("fit.neighbors", [1, 2]), Dimension.of("learn.batch", [8, 16])]
    settings = TuneSettings.from_dict({"sampler": sampler, "trials": 14, "seed": 3}, "the test")
    whole = search(space, Hill(), tmp_path / "whole", settings)
    for place in (2, 0, 5, 1):
        with pytest.raises(KeyboardInterrupt):
            search(space, Hill(fall_at=place), tmp_path / "cut", settings, resume=True)
    found = search(space, Hill(), tmp_path / "cut", settings, resume=True)
    assert [trial.settings for trial in found.trials] == [trial.settings for trial in whole.trials]
    other = settings.model_copy(update={"seed": 4})
    drawn = [trial.settings for trial in search(space, Hill(), tmp_path / "b", other).trials]
    assert not [settings for settings in drawn if settings in [t.settings for t in whole.trials]]


@needs_optuna
def test_a_search_killed_while_it_wrote_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of its journal stays behind; the folder is named from where the search began."""
    from optuna.storages.journal import JournalFileSymlinkLock

    monkeypatch.chdir(tmp_path)
    space, hill = [Dimension.of("learn.rate", [1, 2, 3])], Hill()
    released = JournalFileSymlinkLock.release

    def fall(lock: JournalFileSymlinkLock) -> None:
        if len(hill.asked) == 3:
            raise KeyboardInterrupt
        released(lock)

    with monkeypatch.context() as patch:
        patch.setattr(JournalFileSymlinkLock, "release", fall)
        with pytest.raises(KeyboardInterrupt):
            search(space, hill, "out", GRID)
    assert (tmp_path / "out" / f"{JOURNAL}.lock").is_symlink()
    found = search(space, Hill(), "out", GRID, resume=True)
    assert [trial.settings["learn.rate"] for trial in found.trials] == [1, 2, 3]


@needs_optuna
def test_folders_of_other_searches_are_refused(tmp_path: Path) -> None:
    search([Dimension.of("learn.rate", [1])], Hill(), tmp_path / "out", GRID)
    with pytest.raises(ConfigError, match="found a search there already"):
        search([Dimension.of("learn.rate", [1])], Hill(), tmp_path / "out", GRID)
    with pytest.raises(ConfigError, match="found a search of another space"):
        search([Dimension.of("learn.rate", [2])], Hill(), tmp_path / "out", GRID, resume=True)
    (tmp_path / "out" / JOURNAL).unlink()
    with pytest.raises(ConfigError, match="which is no search"):
        search([Dimension.of("learn.rate", [1])], Hill(), tmp_path / "out", GRID, resume=True)


@needs_optuna
def test_where_all_fails_the_first_failure_is_told(tmp_path: Path) -> None:
    space = [Dimension.of("fit.neighbors", [2])]
    with pytest.raises(ModelError, match=r"1 trials that failed, .* two is one too many"):
        search(space, Table(), tmp_path, GRID)


@needs_optuna
def test_where_the_settings_as_they_are_fail_nothing_stays(tmp_path: Path) -> None:
    def fails(settings: dict[str, Any], told: Progress) -> Iterator[float]:
        raise ModelError("nothing to fit on")
        yield 0.0

    out = tmp_path / "out"
    for there in (False, True):
        with pytest.raises(ModelError, match="nothing to fit on"):
            search([Dimension.of("learn.rate", [1])], fails, out, GRID)
        assert out.exists() == there  # a folder that was there stays, and is empty as it was
        assert not there or not any(out.iterdir())
        out.mkdir(exist_ok=True)
    search([Dimension.of("learn.rate", [1])], Hill(), out, GRID)


def test_what_is_not_installed_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"run `pip install kgrank\[tune\]`"):
        search(LINE, Hill(), tmp_path / "out", TuneSettings())
    assert not (tmp_path / "out").exists()


# What is judged


def of_events(tables: Tables, events: pd.DataFrame) -> Tables:
    items = pd.DataFrame({"item_id": events["item_id"].drop_duplicates()})
    return replace(tables, events=events.reset_index(drop=True), items=items)


def test_folds_go_back_in_time(tiny_tables: Tables, even_events: pd.DataFrame) -> None:
    """One event a day, days 4 and 5 valid: a window reaches one day back, to day 3, 2 and 1."""
    tables = of_events(tiny_tables, even_events)
    parts = folded(tables, Config().split, 4)
    for part, (first, last) in zip(parts, [(4, 5), (3, 3), (2, 2), (1, 1)], strict=True):
        assert part.events["timestamp"].max() == 1.7e9 + 86_400 * last
        valid = part.events["split"] == "valid"
        assert part.events.loc[valid, "timestamp"].min() == 1.7e9 + 86_400 * first
        assert part.events.loc[~valid, "timestamp"].max() == 1.7e9 + 86_400 * (first - 1)
    with pytest.raises(ConfigError, match=r"tune\.folds: found 5; allowed: 4 or fewer"):
        folded(tables, Config().split, 5)


def test_folds_without_times_take_each_users_last_events(
    tiny_tables: Tables, even_events: pd.DataFrame
) -> None:
    """Six events a user, the last two valid: then a third of the four before, then of the three."""
    tables = of_events(tiny_tables, even_events.drop(columns="timestamp"))
    parts = folded(tables, Config().split, 3)
    sizes = [part.events["split"].value_counts().to_dict() for part in parts]
    assert sizes == [
        {"train": 240, "valid": 120},
        {"train": 180, "valid": 60},
        {"train": 120, "valid": 60},
    ]
    last = parts[1].events.groupby("user_id").tail(1)
    assert (last["split"] == "valid").all()


def test_folds_of_a_split_that_is_not_by_time_are_refused(
    tiny_tables: Tables, even_events: pd.DataFrame
) -> None:
    first = even_events.groupby("user_id").cumcount() < 2
    even_events["split"] = first.map({True: "valid", False: "train"})
    tables = of_events(tiny_tables, even_events)
    assert len(folded(tables, Config().split, 1)) == 1
    with pytest.raises(ConfigError, match="valid rows that stand before train rows"):
        folded(tables, Config().split, 2)


@needs_optuna
def test_test_rows_are_never_read(tiny_tables: Tables, tmp_path: Path) -> None:
    config = Config.from_dict({"text": {"model": "none"}, "tune": {"sampler": "grid"}}, "test")
    space = [Dimension.of("fit.neighbors", [1, 5])]
    events = tiny_tables.events
    without = replace(tiny_tables, events=events[events["split"] != "test"])
    found = [
        tune(tables, config, space, tmp_path / name)
        for name, tables in (("whole", tiny_tables), ("without", without))
    ]
    assert [t.value for t in found[0].trials] == [t.value for t in found[1].trials]
    assert 0 < found[0].best.value <= 1  # type: ignore[operator]


# The command line


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@needs_optuna
def test_a_shop_is_searched_and_its_best_settings_can_be_read(
    tiny_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ("tune", tiny_shop, "--out", out, "--set", "text.model=none", "--metric", "recall@10")
    words = (*words, "--sampler", "grid", "--space", "fit.neighbors=2,9")
    judged = 0

    def falling(*given: Any) -> Any:  # at the second trial
        nonlocal judged
        judged += 1
        if judged == 3:
            raise KeyboardInterrupt
        return valid_lists(*given)

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "valid_lists", falling)
        cut = run(*words)
    assert cut.exit_code == 130
    assert f"{out} keeps the trials that ended: --resume goes on." in cut.stderr
    result = run(*words, "--resume", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["metric"], len(told["trials"])) == ("recall@10", 2)
    assert told["best"]["value"] == max(trial["value"] for trial in told["trials"])
    best = read_config(out / BEST).fit.neighbors
    assert best == told["best"]["settings"]["fit.neighbors"]
    shown = run(*words, "--resume")
    assert shown.exit_code == 0
    assert f"neighbors = {best}" in shown.stdout


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 1, "found no setting to search"),
        (("--space", "fit.neighbours=5"), 1, "Is 'neighbors' meant?"),
        (("--space", "fit.neighbors=5,0"), 1, "fit.neighbors: found 0"),
        (("--space", "split.valid=0.1,0.2"), 1, "found split.valid; allowed: settings of kg"),
        (("--space", "fit.refit=true"), 1, "other than fit.refit"),
        (("--space", "fit.neighbors=5", "--sampler", "best"), 2, "--sampler"),
        (("--space", "fit.neighbors=5", "--trials", "0"), 2, "--trials"),
    ],
)
def test_what_is_wrong_is_told_once(
    words: tuple[str, ...], status: int, message: str, tiny_shop: Path, tmp_path: Path
) -> None:
    result = run("tune", tiny_shop, "--out", tmp_path / "out", *words)
    assert result.exit_code == status
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []
