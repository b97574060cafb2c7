"""What an evaluation may be asked on: the bundle's own tables, however they were split."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from kgrank.config import Config
from kgrank.errors import DataError
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app
from kgrank.serving.evaluating import evaluate_bundle, refitted
from kgrank.serving.training import train

N_USERS, N_ITEMS, LENGTH = 20, 12, 10
QUICK = {"text": {"model": "none"}, "kg": {"encoder": "none"}}


def rows(cut: str) -> pd.DataFrame:
    """Ten events of each of twenty users, one after the other, whose split is told in some way."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(N_ITEMS)[:LENGTH] for _ in range(N_USERS)])
    place = np.tile(np.arange(LENGTH), N_USERS)
    events = pd.DataFrame(
        {
            "user_id": [f"u{user}" for user in np.repeat(np.arange(N_USERS), LENGTH)],
            "item_id": [f"i{item}" for item in items],
            "event": np.where(place % 3, "view", "purchase"),
        }
    )
    if cut == "user":
        return events.assign(position=place)
    events = events.assign(timestamp=1.7e9 + 3600.0 * place)
    if cut == "column":
        split = np.where(place < LENGTH - 2, "train", np.where(place < LENGTH - 1, "valid", "test"))
        return events.assign(split=split)
    return events


def shop(folder: Path, events: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    events.to_csv(folder / "events.csv", index=False)
    ids = [f"i{n}" for n in range(N_ITEMS)]
    brands = ["Alder", "Birch", "Cedar"] * (N_ITEMS // 3)
    pd.DataFrame({"item_id": ids, "brand": brands}).to_csv(folder / "items.csv", index=False)
    return folder


def fitted(folder: Path, **fit: Any) -> Bundle:
    return train(read_tables(folder), Config.from_dict({**QUICK, "fit": fit}, "the tests"))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The shop fitted, by how its events are split: "time", "user" or "column"."""
    folder = tmp_path_factory.mktemp("shops")
    return {cut: fitted(shop(folder / cut, rows(cut))) for cut in ("time", "user", "column")}


CUTS = pytest.mark.parametrize("cut", ["time", "user", "column"])


@CUTS
def test_other_graphs_are_judged_on_the_same_rows(bundles: dict[str, Bundle], cut: str) -> None:
    bundle = bundles[cut]
    plain, result = evaluate_bundle(bundle), evaluate_bundle(bundle, graph="all")
    assert plain["queries"] == result["queries"] == N_USERS
    assert result["graph"]["true"] == plain["metrics"]
    assert set(result["graph_difference"]) == {"shuffled", "none"}
    alone = evaluate_bundle(bundle, graph="shuffled")
    assert alone["metrics"] == result["graph"]["shuffled"]
    assert alone["baselines"] == result["baselines"] == plain["baselines"]


def test_rules_about_facts_do_not_hinder_a_fit_without_them(tmp_path: Path) -> None:
    """Rules change no score that is measured; the brand they name is not in the other tables."""
    folder = shop(tmp_path, rows("time"))
    rule = '[[rule]]\nname = "No Alder"\naction = "exclude"\nitems.brand = "Alder"\n'
    (folder / "rules.toml").write_text(rule, "utf-8")
    found = evaluate_bundle(fitted(folder), graph="none")
    assert found["queries"] == N_USERS


def test_what_is_read_as_a_text_stays_in_every_graph(tmp_path: Path) -> None:
    """So the graphs differ in facts alone: where the only fact is a text, they do not differ."""
    config = Config.from_dict(
        {**QUICK, "text": {"model": "none", "fields": ["brand"]}, "kg": {"encoder": "none"}},
        "the tests",
    )
    bundle = train(read_tables(shop(tmp_path, rows("time"))), config)
    found = evaluate_bundle(bundle, graph="all")["graph"]
    assert found["shuffled"] == found["true"]


@CUTS
def test_a_fit_with_another_seed_can_be_evaluated(
    bundles: dict[str, Bundle], cut: str, tmp_path: Path
) -> None:
    bundle = bundles[cut]
    assert bundle.source is not None
    other = refitted(bundle, read_tables(bundle.source), seed=7)
    assert other.cuts == bundle.cuts
    other.save(tmp_path)
    again = evaluate_bundle(Bundle.load(tmp_path))
    assert again["baselines"] == evaluate_bundle(bundle)["baselines"]


def told(*words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_valid_rows_that_the_channels_know_are_told_of(
    bundles: dict[str, Bundle], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundles["time"].save(tmp_path)
    with caplog.at_level(logging.WARNING, logger="kgrank"):
        assert json.loads(told(tmp_path, "--json").stdout)["in_sample"] is False
        assert not caplog.messages
        found = told(tmp_path, "--split", "valid", "--graph", "none", "--json")
        assert found.exit_code == 0
        assert json.loads(found.stdout)["in_sample"] is True
        (message,) = caplog.messages
        assert "train with --set fit.refit=false" in message
    assert "In sample" in told(tmp_path, "--split", "valid").stdout
    assert "In sample" not in told(tmp_path).stdout


def test_valid_rows_that_the_channels_do_not_know_are_in_order(
    bundles: dict[str, Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    source = bundles["time"].source
    assert source is not None
    unseen = fitted(source, refit=False)
    with caplog.at_level(logging.WARNING, logger="kgrank"):
        assert evaluate_bundle(unseen, split="valid")["in_sample"] is False
    assert not caplog.messages


# Other tables


def swapped(events: pd.DataFrame) -> pd.DataFrame:
    """The first events of two users change items."""
    items = events["item_id"].to_numpy().copy()
    items[[0, LENGTH]] = items[[LENGTH, 0]]
    return events.assign(item_id=items)


def without_a_row(events: pd.DataFrame) -> pd.DataFrame:
    return events.drop(index=3)


def a_row_twice(events: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([events, events.iloc[[2]]])


def another_kind(events: pd.DataFrame) -> pd.DataFrame:
    return events.assign(event=events["event"].where(events.index != 0, "click"))


def of_a_stranger(events: pd.DataFrame) -> pd.DataFrame:
    return events.assign(user_id=events["user_id"].where(events.index >= 2, "somebody"))


Change = Callable[[pd.DataFrame], pd.DataFrame]


@CUTS
@pytest.mark.parametrize(
    ("change", "added", "missing"),
    [(swapped, 2, 2), (without_a_row, 0, 1), (a_row_twice, 1, 0), (another_kind, 1, 1)],
)
def test_train_and_valid_rows_that_are_not_the_bundles_are_refused(
    bundles: dict[str, Bundle],
    tmp_path: Path,
    cut: str,
    change: Change,
    added: int,
    missing: int,
) -> None:
    source = shop(tmp_path / "other", change(rows(cut)))
    with pytest.raises(DataError) as caught:
        evaluate_bundle(bundles[cut], source=source)
    (fault,) = caught.value.faults
    found = [int(number) for number in re.findall(r"\d+", fault.found)]
    if cut == "user" and added != missing:  # the later places of this user move on
        assert 0 < sum(found) < 2 * LENGTH
    else:
        assert found == [added, missing]
    assert "--source" in fault.mend


def test_a_fit_again_is_refused_on_other_tables_too(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    source = shop(tmp_path / "other", of_a_stranger(rows("time")))
    with pytest.raises(DataError, match="2 train and valid rows"):
        evaluate_bundle(bundles["time"], source=source, graph="none")
    with pytest.raises(DataError, match="2 train and valid rows"):
        refitted(bundles["time"], read_tables(source), seed=1)


@CUTS
def test_neither_the_order_of_rows_nor_other_test_rows_matter(
    bundles: dict[str, Bundle], tmp_path: Path, cut: str
) -> None:
    bundle, events = bundles[cut], rows(cut)
    mixed = shop(tmp_path / "mixed", events.sample(frac=1.0, random_state=0))
    assert evaluate_bundle(bundle, source=mixed)["metrics"] == evaluate_bundle(bundle)["metrics"]
    if cut == "user":  # the last of each user is the test row, so that none can go
        return
    kept = shop(
        tmp_path / "kept", events[(events.index % LENGTH < LENGTH - 1) | (events.index < 50)]
    )
    assert evaluate_bundle(bundle, source=kept)["queries"] == 5


def test_rows_without_any_order_have_that_of_the_file(tmp_path: Path) -> None:
    """Users may be mixed with each other, but not the events of a user."""
    events = rows("user").drop(columns="position")
    bundle = fitted(shop(tmp_path / "shop", events))
    place = events.index % LENGTH
    by_place = shop(tmp_path / "by-place", events.iloc[np.argsort(place, kind="stable")])
    found = evaluate_bundle(bundle, source=by_place)
    assert found["metrics"] == evaluate_bundle(bundle)["metrics"]
    backwards = shop(tmp_path / "backwards", events[::-1])
    with pytest.raises(DataError, match="train and valid rows"):
        evaluate_bundle(bundle, source=backwards)


def test_tables_that_a_setting_named_are_found_again(tmp_path: Path) -> None:
    """Not those that the folder holds under their usual name."""
    source = shop(tmp_path / "shop", rows("time"))
    rows("time").iloc[:100].to_csv(source / "half.csv", index=False)
    values = {**QUICK, "tables": {"events": "half.csv"}}
    config = Config.from_dict(values, "the tests")
    train(read_tables(source, config.tables), config).save(tmp_path / "models")
    assert evaluate_bundle(Bundle.load(tmp_path / "models"))["users"] == 10


def test_tables_that_a_toml_named_are_found_again(tmp_path: Path) -> None:
    """Though the configuration of the fit said nothing of them."""
    source = shop(tmp_path / "shop", rows("time"))
    (source / "events.csv").rename(source / "log.csv")
    (source / "kgrank.toml").write_text('[tables]\nevents = "log.csv"\n', "utf-8")
    fitted(source).save(tmp_path / "models")
    assert evaluate_bundle(Bundle.load(tmp_path / "models"))["users"] == N_USERS


# What was met before


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"protocol": "next"}, 6),
        ({"protocol": "next", "history": "train"}, 6),
        ({"protocol": "next", "repeats": "allow"}, 6),
        ({"protocol": "next", "relevant": "new"}, 0),
        ({"protocol": "user"}, 4),
        ({"protocol": "user", "history": "train"}, 4),
        ({"protocol": "user", "relevant": "new"}, 0),
    ],
)
def test_answers_met_before_are_counted(
    tiny_bundle: Bundle, asked: dict[str, Any], expected: int
) -> None:
    """In test u-ada meets a1 and a4 again, u-ben a2, u-eva b4 and b1, u-gus b3."""
    assert evaluate_bundle(tiny_bundle, **asked)["met_before"] == expected


def test_next_may_list_its_answer_again_and_user_may_not(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """u-ada alone, and of her test rows a1 alone, which she met.

    She met a1, a2, a3 and a4 of twelve items. "next" finds a1 among the nine that may be listed;
    "user" never lists it.
    """
    events = tiny_tables.events
    own = (events["user_id"] == "u-ada") & (events["item_id"] == "a1")
    replace(tiny_tables, events=events[(events["split"] != "test") | own]).save(tmp_path / "one")
    by_row, by_user = (
        evaluate_bundle(tiny_bundle, source=tmp_path / "one", protocol=protocol)
        for protocol in ("next", "user")
    )
    assert by_row["queries"] == by_user["queries"] == 1
    assert by_row["met_before"] == by_user["met_before"] == 1
    assert by_row["metrics"]["mrr"] >= 1 / 9
    assert by_user["metrics"]["mrr"] == by_user["metrics"]["recall@20"] == 0.0
