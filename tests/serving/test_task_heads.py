"""Lists with probabilities and ratings, from Python and the command line, kept in the bundle."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from kgrank.config import Config
from kgrank.errors import BundleError, ConfigError, ModelError
from kgrank.fusion.model import Task
from kgrank.kg.tables import read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import train

TASKS: tuple[Task, ...] = ("click", "purchase")


def answer(*words: object) -> Any:
    """What a verb prints with --json."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """80 users rate 15 of 30 films: 3, one more or less by user and by film, and noise of .3."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    likes, good = rng.choice([-1, 1], 80), rng.choice([-1, 1], 30)
    rows = [
        (f"u{user}", f"f{film}", "rating", 3 + likes[user] + good[film] + rng.normal(0, 0.3), split)
        for user in range(80)
        for film, split in zip(
            rng.permutation(30)[:15], ["train"] * 9 + ["valid"] * 3 + ["test"] * 3, strict=True
        )
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "event", "value", "split"])
    events.to_csv(folder / "events.csv", index=False)
    config = Config.from_dict({"text": {"model": "none"}, "kg": {"encoder": "none"}}, "the tests")
    return train(read_tables(folder), config)


@pytest.fixture(scope="module")
def converting(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """120 users look at 20 of 40 products; of even ones 7 in 10 looks end in a purchase, else 1."""
    folder = tmp_path_factory.mktemp("looks")
    rng = np.random.default_rng(0)
    rows = []
    for user in range(120):
        for place, item in enumerate(rng.permutation(40)[:20]):
            split = "train" if place < 10 else "valid" if place < 15 else "test"
            kinds = ["view"] + ["purchase"] * (rng.random() < (0.1 if item % 2 else 0.7))
            rows += [(f"u{user}", f"p{item}", kind, split) for kind in kinds]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "event", "split"])
    events.assign(position=range(len(events))).to_csv(folder / "events.csv", index=False)
    config = Config.from_dict({"text": {"model": "none"}, "kg": {"encoder": "none"}}, "the tests")
    return train(read_tables(folder), config)


def test_a_conversion_is_the_purchase_after_a_look(converting: Bundle, tmp_path: Path) -> None:
    converting.save(tmp_path)
    recommender = Recommender.load(tmp_path, device="cpu")
    lists = recommender.recommend([f"u{user}" for user in range(120)], n=40, task="conversion")
    assert list(lists) == ["user_id", "item_id", "score", "probability", "rank"]
    even = lists["item_id"].str[1:].astype(int) % 2 == 0
    assert lists["probability"][even].mean() == pytest.approx(0.7, abs=0.07)
    assert lists["probability"][~even].mean() == pytest.approx(0.1, abs=0.05)
    first = lists.iloc[0]
    assert_explained(recommender, "u0", first["item_id"], "conversion", first["probability"])
    found = answer("evaluate", tmp_path, "--task", "conversion")["prediction"]
    assert found["pairs"] == 120 * 5
    assert found["auc"] > 0.75
    assert found["log_loss"] < 0.85 * found["log_loss_of_share"]
    assert found["mean_probability"] == pytest.approx(found["share"], abs=0.06)
    assert found["ece"] < 0.08
    purchase = answer("evaluate", tmp_path, "--task", "purchase")["prediction"]
    assert purchase["pairs"] == 120 * 40  # what nobody looked at counts as not bought


def test_the_shop_has_a_head_for_each_task_and_says_how_good_it_is(shop_bundle: Bundle) -> None:
    facts = shop_bundle.facts["tasks"]
    assert set(TASKS) <= set(facts)
    assert facts["click"]["kinds"] == ["click", "view"]
    for task in TASKS:
        assert facts[task]["auc"] > 0.7
        assert facts[task]["ece_after"] < 0.2 * facts[task]["share"]
        assert 17 < facts[task]["days"] < 19


@pytest.mark.parametrize("task", TASKS)
def test_lists_of_a_task_say_what_they_predict(recommender: Recommender, task: Task) -> None:
    lists = recommender.recommend(["u-ada", "0001"], n=20, task=task)
    assert list(lists) == ["user_id", "item_id", "score", "probability", "rank"]
    for _, of_user in lists.groupby("user_id"):
        assert (of_user["score"].diff().dropna() <= 0).all()
        assert (of_user["probability"].diff().dropna() <= 0).all()
        assert of_user["probability"].between(0.0, 1.0).all()
    ranked = recommender.rank("u-ada", lists["item_id"][:3].tolist(), task)
    assert ranked["probability"].tolist() == pytest.approx(lists["probability"][:3].tolist())
    assert_explained(recommender, "u-ada", lists["item_id"][0], task, lists["probability"][0])


def assert_explained(
    recommender: Recommender, user: str, item: str, task: Task, prediction: float
) -> None:
    """The parts sum to the score, and the score leads to the prediction."""
    why = recommender.explain(user, item, task=task)
    assert why.score == pytest.approx(why.bias + sum(why.contributions.values()), rel=1e-6)
    events = sum(event.contribution for event in why.events)
    assert why.score == pytest.approx(why.bias + events, rel=1e-6)
    assert why.task == task
    assert why.prediction == pytest.approx(prediction, rel=1e-4)


def test_ratings_are_told_and_are_better_than_means(rated: Bundle) -> None:
    facts = rated.facts["tasks"]["rating"]
    assert facts["rmse"] < facts["baselines"]["item_and_user_means"]["rmse"]
    recommender = Recommender(rated, "cpu")
    lists = recommender.recommend(["u3", "u5"], n=10, task="rating")
    assert list(lists) == ["user_id", "item_id", "score", "rating", "rank"]
    assert lists["rating"].between(rated.events["value"].min(), rated.events["value"].max()).all()
    assert (lists.groupby("user_id")["rating"].diff().dropna() <= 0).all()
    assert_explained(recommender, "u3", lists["item_id"][0], "rating", lists["rating"][0])
    told = evaluate_bundle(rated, task="rating")["prediction"]
    assert told["pairs"] == 240
    assert told["rmse"] < 0.6
    assert told["rmse"] < 0.95 * told["baselines"]["item_and_user_means"]["rmse"]
    assert told["baselines"]["global_mean"]["rmse"] > 1.2


def test_a_visitor_who_looked_more_is_more_likely_to_buy(recommender: Recommender) -> None:
    few = [("tarn-bottle", "view")]
    more = [("tarn-bottle", "view")] * 3 + [("tarn-bottle", "cart"), ("tarn-bottle", "purchase")]
    one, two = (recommender.recommend_history(h, n=5, task="purchase") for h in (few, more))
    assert list(one) == ["item_id", "score", "probability", "rank"]
    assert two["probability"].sum() > one["probability"].sum()


def test_rank_lists_have_no_prediction(recommender: Recommender) -> None:
    lists = recommender.recommend(["u-ada"], n=3)
    assert list(lists) == ["user_id", "item_id", "score", "rank"]
    why = recommender.explain("u-ada", lists["item_id"][0])
    assert (why.task, why.prediction) == ("rank", None)


def test_a_task_that_is_unknown_or_without_a_head_is_refused(
    recommender: Recommender, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="found 'buy'; allowed: rank, click, purchase, conversion, rating"
    ):
        recommender.recommend(["u-ada"], task="buy")  # type: ignore[arg-type]
    tiny = Recommender(tiny_bundle, "cpu")
    few = r"'purchase', which .* no head for \(\d+ pairs on valid.* Train on more of its events"
    with pytest.raises(ModelError, match=few):
        tiny.recommend(["u-ada"], task="purchase")
    tiny_bundle.save(tmp_path)
    told = CliRunner().invoke(
        app, ["rank", str(tmp_path), "--out", str(tmp_path / "out"), "--task", "click"]
    )
    assert told.exit_code == 1
    assert "no event is of its kinds" in told.stderr
    assert "Name its kinds of events under [tasks], and train anew." in told.stderr
    assert not (tmp_path / "out").exists()


def test_heads_come_back_from_disk_as_they_were(shop_bundle: Bundle, shop_models: Path) -> None:
    loaded = Bundle.load(shop_models)
    users = [str(user) for user in shop_bundle.users.ids()][:50]
    for task in TASKS:
        ours, theirs = (
            Recommender(bundle, "cpu").recommend(users, 20, task=task)
            for bundle in (shop_bundle, loaded)
        )
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def changed(models: Path, entry: str, value: object) -> Path:
    """The current bundle of a models folder with an entry of its manifest changed, or taken out."""
    bundle = models / (models / "current").read_text().strip()
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest.pop(entry)
    if value is not None:
        manifest[entry] = value
    content = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(content)
    (bundle / "manifest.sha256").write_text(f"{sha256(content).hexdigest()}  manifest.json\n")
    return bundle


def test_a_bundle_from_before_there_were_tasks_still_ranks(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    tiny_bundle.save(tmp_path)
    old = Recommender(Bundle.load(changed(tmp_path, "predictors", None)), "cpu")
    lists = old.recommend(["u-ada"], 5)
    pd.testing.assert_frame_equal(lists, Recommender(tiny_bundle, "cpu").recommend(["u-ada"], 5))


def test_a_calibration_that_falls_is_refused(shop_bundle: Bundle, tmp_path: Path) -> None:
    shop_bundle.save(tmp_path)
    values = {h: p.as_json() for h, p in shop_bundle.model.predictors.items()}
    values["purchase"]["link"] = {"slope": -1.0, "shift": 0.0, "knots": []}
    with pytest.raises(BundleError, match="calibration that falls"):
        Bundle.load(changed(tmp_path, "predictors", values))


def test_the_command_line_ranks_and_explains_by_task(
    shop_models: Path, tmp_path: Path, recommender: Recommender
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("u-ada\n0001\n")
    words = ("--users", users, "-n", 5, "--task", "purchase")
    manifest = answer("rank", shop_models, "--out", tmp_path / "lists", *words)
    assert manifest["task"] == "purchase"
    table = pq.read_table(tmp_path / "lists" / "part-00000.parquet")
    assert table.column_names == ["user_id", "item_id", "score", "probability", "rank"]
    lists = recommender.recommend(["u-ada", "0001"], 5, task="purchase")
    assert table["probability"].to_pylist() == lists["probability"].tolist()
    item = lists["item_id"][0]
    about = ("--user", "u-ada", "--item", item, "--task", "purchase")
    why = answer("explain", shop_models, *about)
    assert why["prediction"] == pytest.approx(lists["probability"][0], rel=1e-4)
    said = CliRunner().invoke(app, ["explain", str(shop_models), *about])
    assert "probability (purchase)" in said.stdout


def test_evaluate_tells_how_good_the_predictions_are(shop_models: Path) -> None:
    found = answer("evaluate", shop_models, "--task", "purchase")
    assert found["task"] == "purchase"
    assert {"rank", "popularity", "ease"} <= set(found["baselines"])
    told = found["prediction"]
    assert told["auc"] > 0.7
    assert told["log_loss"] < told["log_loss_of_share"]
    assert told["ece"] < 0.3 * told["share"]
    assert 0.7 < told["mean_probability"] / told["share"] < 1.4
    assert told["hits"] < found["queries"] * 10


def test_evaluation_counts_only_events_of_the_task(shop_bundle: Bundle) -> None:
    """Hits are the distinct purchases on test of users who were known before, within the window."""
    found = evaluate_bundle(shop_bundle, task="purchase", repeats="allow")
    tables = pd.read_csv(Path(str(shop_bundle.source)) / "events.csv.gz", dtype=str)
    known = tables[tables["split"] != "test"]
    times = pd.to_datetime(tables["timestamp"]).map(pd.Timestamp.timestamp)
    days = shop_bundle.model.predictors["purchase"].days
    assert days is not None
    inside = times <= times[tables["split"] != "test"].max() + days * 86_400
    bought = tables[(tables["split"] == "test") & (tables["event"] == "purchase")]
    expected = tables[
        (tables["split"] == "test")
        & (tables["event"] == "purchase")
        & tables["user_id"].isin(known["user_id"])
        & inside
    ]
    pairs = expected[["user_id", "item_id"]].drop_duplicates()
    assert found["prediction"]["hits"] == len(pairs)
    assert found["prediction"]["pairs"] == known["user_id"].nunique() * 299
    assert found["users"] == bought["user_id"].nunique()


def test_what_does_not_go_with_a_task_is_refused(shop_bundle: Bundle) -> None:
    for wrong in ({"protocol": "next"}, {"history": "train"}, {"graph": "none"}):
        with pytest.raises(ConfigError, match="with task 'click'"):
            evaluate_bundle(shop_bundle, task="click", **wrong)
    plain = replace(shop_bundle, model=replace(shop_bundle.model, predictors={}))
    with pytest.raises(ModelError, match="no head for"):
        evaluate_bundle(plain, task="click")
    assert np.isfinite(shop_bundle.model.predictors["click"].base).all()
