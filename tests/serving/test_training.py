"""A fit is a function of the train and valid rows, the facts and the seed; of nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from kgrank.config import Config
from kgrank.errors import ModelError
from kgrank.kg.splits import SplitCuts
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.training import train

ARRAYS = ("weights", "item_item", "features", "vectors")
CONFIG = Config.from_dict({"text": {"model": "none"}}, "the tests")


def arrays_of(bundle: Bundle, models: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array that a saved bundle holds."""
    folder = bundle.save(models)
    return {
        f"{file}/{name}": values
        for file in ARRAYS
        for name, values in load_file(folder / f"{file}.safetensors").items()
    }


def assert_same_weights(one: Bundle, other: Bundle, folder: Path) -> None:
    """Bit for bit, and found in the same way."""
    ours, theirs = arrays_of(one, folder / "one"), arrays_of(other, folder / "other")
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("item_item/linear") for name in ours)
    for name, values in ours.items():
        assert values.dtype == theirs[name].dtype
        assert values.tobytes() == theirs[name].tobytes(), name
    assert one.facts["choices"] == other.facts["choices"]
    assert one.facts["fusion"] == other.facts["fusion"]
    for head, weights in one.model.heads.items():
        assert weights.trend == other.model.heads[head].trend
        assert weights.cold_bias == other.model.heads[head].cold_bias


def test_the_same_tables_and_seed_give_the_same_weights(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    assert_same_weights(tiny_bundle, train(tiny_tables, CONFIG), tmp_path)


def test_without_its_test_rows_a_shop_gives_the_same_bundle(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    events = tiny_tables.events
    without = replace(tiny_tables, events=events[events["split"] != "test"])
    again = train(without, CONFIG)
    assert_same_weights(tiny_bundle, again, tmp_path)
    assert again.graph.fingerprint() == tiny_bundle.graph.fingerprint()
    assert list(again.users.ids()) == list(tiny_bundle.users.ids())


def test_other_test_rows_change_nothing(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    events = tiny_tables.events.copy()
    test = events["split"] == "test"
    events.loc[test, "item_id"] = "b5"
    events.loc[test, "user_id"] = "u-ivy"
    events.loc[test, "event"] = "view"
    events.loc[test, "timestamp"] += 1e6
    assert_same_weights(tiny_bundle, train(replace(tiny_tables, events=events), CONFIG), tmp_path)


def test_other_train_rows_change_the_weights(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    events = tiny_tables.events.copy()
    row = events.index[events["split"] == "train"][0]
    events.loc[row, "item_id"] = "b5"
    other = train(replace(tiny_tables, events=events), CONFIG)
    with pytest.raises(AssertionError):
        assert_same_weights(tiny_bundle, other, tmp_path)


def test_a_bundle_holds_no_test_row_and_no_user_of_test_alone(
    tiny_tables: Tables, tiny_bundle: Bundle
) -> None:
    assert set(tiny_bundle.events["split"]) == {"train", "valid"}
    assert len(tiny_bundle.events) == 35
    assert "u-new" not in tiny_bundle.users
    assert tiny_bundle.facts["rows"] == {"train": 25, "valid": 10}
    relations = tiny_bundle.graph.stats().edges
    assert relations["purchase"] == 35


def test_an_item_of_test_alone_is_cold_and_one_of_valid_is_not(tiny_bundle: Bundle) -> None:
    """Channels and coldness are of train + valid once they are fitted again."""
    cold = tiny_bundle.items.ids(np.flatnonzero(tiny_bundle.model.side.cold))
    assert list(cold) == ["c1"]


def test_without_an_items_table_a_bundle_knows_the_items_of_train_and_valid(
    tiny_tables: Tables, tmp_path: Path
) -> None:
    """c1 is in test rows only; without these the bundle is the same, items in the same order."""
    events = tiny_tables.events
    bundles = []
    for name, kept in (("whole", events), ("without", events[events["split"] != "test"])):
        (tmp_path / name).mkdir()
        kept.to_csv(tmp_path / name / "events.csv", index=False)
        bundles.append(train(read_tables(tmp_path / name), CONFIG))
    whole, without = bundles
    assert sorted(whole.items.ids()) == sorted(set(tiny_tables.items["item_id"]) - {"c1"})
    assert whole.items == without.items
    assert whole.item_table["item_id"].tolist() == list(whole.items.ids())
    assert_same_weights(whole, without, tmp_path / "models")


def test_without_refit_channels_are_of_train_alone(tiny_tables: Tables) -> None:
    config = Config.from_dict({"text": {"model": "none"}, "fit": {"refit": False}}, "the tests")
    bundle = train(tiny_tables, config)
    cold = bundle.items.ids(np.flatnonzero(bundle.model.side.cold))
    assert list(cold) == ["c1", "v1"]
    assert len(bundle.events) == 35  # histories hold both all the same


def test_a_shop_that_tells_nothing_of_its_items_is_fitted_on_events_alone(
    tiny_tables: Tables,
) -> None:
    bare = replace(
        tiny_tables.without_graph(),
        items=tiny_tables.items[["item_id"]].assign(title="", description=""),
    )
    bundle = train(bare, CONFIG)
    assert {channel.name for channel in bundle.model.channels} <= {
        *("linear", "directed", "learned", "repeat")
    }
    assert bundle.names["a1"] == "a1"


@pytest.mark.parametrize("missing", ["train", "valid"])
def test_without_train_or_valid_rows_there_is_nothing_to_fit(
    tiny_tables: Tables, missing: str
) -> None:
    events = tiny_tables.events
    config = Config.from_dict({**CONFIG.as_dict(), "split": {"valid": 0.0}}, "the tests")
    with pytest.raises(ModelError, match=f"found no {missing}"):
        train(replace(tiny_tables, events=events[events["split"] != missing]), config)


def test_progress_is_told_of_every_stage(tiny_tables: Tables) -> None:
    told: list[tuple[str, int, int]] = []
    train(tiny_tables, CONFIG, progress=lambda *stage: told.append(stage))
    stages = dict.fromkeys(name for name, _, _ in told)
    assert next(iter(stages)) == "graph"
    assert {"choosing settings", "fusion", "fitting channels"} <= stages.keys()
    assert all(0 <= done <= total for _, done, total in told)


def test_a_shop_of_train_and_test_rows_is_cut_as_its_bundle_says(
    tiny_tables: Tables, tmp_path: Path
) -> None:
    events = tiny_tables.events
    marked = events.assign(split=events["split"].replace("valid", "train"))
    folder = tmp_path / "shop"
    replace(tiny_tables, events=marked).save(folder)
    bundle = Bundle.load(train(read_tables(folder), CONFIG).save(tmp_path / "models"))
    train_times = marked.loc[marked["split"] == "train", "timestamp"]
    first, last = train_times.min(), train_times.max()
    assert bundle.cuts == SplitCuts(valid_from=first + 0.9 * (last - first), of_train=True)
    valid = bundle.events[bundle.events["split"] == "valid"]
    assert valid["timestamp"].min() >= bundle.cuts.valid_from
    assert len(bundle.events) == len(train_times)
    for split in ("valid", "test"):
        found = evaluate_bundle(bundle, split=split)
        wanted = valid if split == "valid" else marked[marked["split"] == "test"]
        assert found["users"] == wanted["user_id"].nunique()
