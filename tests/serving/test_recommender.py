"""Lists follow what was planted in the sample shop, and keep to their rules exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kgrank.errors import ConfigError, UnknownIdError
from kgrank.fusion import model as modelling
from kgrank.fusion.model import Repeats
from kgrank.serving.bundle import Bundle
from kgrank.serving.recommender import Recommender

REPEATS: tuple[Repeats, ...] = ("exclude", "allow", "only")


@pytest.fixture(scope="session")
def active(shop_bundle: Bundle) -> list[str]:
    """Users with ten events and more."""
    counts = shop_bundle.events["user_id"].value_counts()
    return sorted(str(user) for user in counts.index[counts >= 10])


@pytest.fixture(scope="session")
def met(shop_bundle: Bundle) -> dict[str, set[str]]:
    """User → items of any event before test."""
    items: dict[str, set[str]] = {}
    events = shop_bundle.events
    for user, item in zip(events["user_id"], events["item_id"], strict=True):
        items.setdefault(user, set()).add(item)
    return items


def rank_of(lists: pd.DataFrame, item: str, column: str = "item_id") -> int:
    return int(lists.loc[lists[column] == item, "rank"].iloc[0])


def faded(recommender: Recommender, half_life: float) -> Recommender:
    """The same model, every channel's events fading by days with this half-life."""
    model = recommender.bundle.model
    channels = tuple(
        replace(channel, decay=replace(channel.decay, half_life=half_life))
        for channel in model.channels
    )
    bundle = replace(recommender.bundle, model=replace(model, channels=channels))
    return Recommender(bundle, device="cpu")


# What was planted


@pytest.mark.parametrize("repeats", ["exclude", "allow"])
def test_lists_are_mostly_of_the_users_taste(
    recommender: Recommender, truth: dict[str, Any], active: list[str], repeats: Repeats
) -> None:
    """An eighth of the catalogue is of a user's taste; four fifths of the list are."""
    likes = {taste: set(of["products"]) for taste, of in truth["tastes"].items()}
    lists = recommender.recommend(active, n=10, repeats=repeats)
    listed = zip(lists["user_id"], lists["item_id"], strict=True)
    liked = [item in likes[truth["users"][user]] for user, item in listed]
    assert len(liked) == 10 * len(active)
    assert np.mean(liked) > 0.8


def test_what_follows_a_product_is_near_the_top_after_it(
    recommender: Recommender, truth: dict[str, Any]
) -> None:
    for pair in truth["order"]:
        history = [(pair["first"], "purchase")]
        assert rank_of(recommender.recommend_history(history, n=299), pair["then"]) <= 5
        similar = recommender.similar_items([pair["first"]], n=299)
        assert rank_of(similar, pair["then"], "similar_id") <= 5


@pytest.mark.parametrize("repeats", ["only", "allow"])
def test_what_is_bought_again_and_again_is_on_top(
    recommender: Recommender, truth: dict[str, Any], repeats: Repeats
) -> None:
    users = [repeat["user"] for repeat in truth["repeats"]]
    lists = recommender.recommend(users, n=299, repeats=repeats)
    by_user = dict(iter(lists.groupby("user_id")))
    ranks = np.array([rank_of(by_user[r["user"]], r["item"]) for r in truth["repeats"]])
    assert np.mean(ranks == 1) > 0.5
    assert np.mean(ranks <= 3) > 0.8


def test_a_cold_product_is_found_for_the_tastes_it_is_for(
    recommender: Recommender, truth: dict[str, Any], active: list[str]
) -> None:
    """The share of the list above it: 0 = on top, 0.5 = where chance puts it."""
    lists = recommender.recommend(active, n=299)
    length = lists.groupby("user_id")["rank"].transform("max")
    lists = lists.assign(share=(lists["rank"] - 1) / (length - 1))
    taste = lists["user_id"].map(truth["users"])
    for item, tastes in truth["cold"].items():
        of_item = lists["item_id"] == item
        fans = lists.loc[of_item & taste.isin(tastes), "share"].mean()
        others = lists.loc[of_item & ~taste.isin(tastes), "share"].mean()
        assert fans < 0.3, item
        assert fans < others - 0.15, item


# Rules of a list


def test_repeats_say_which_items_may_be_listed(
    recommender: Recommender, active: list[str], met: dict[str, set[str]]
) -> None:
    everything = set(recommender.bundle.items.ids())
    allowed: dict[Repeats, Callable[[set[str]], set[str]]] = {
        "exclude": lambda known: everything - known,
        "allow": lambda known: everything,
        "only": lambda known: known,
    }
    for repeats in REPEATS:
        lists = recommender.recommend(active[:50], n=1000, repeats=repeats)
        for user, items in lists.groupby("user_id")["item_id"]:
            assert sorted(items) == sorted(allowed[repeats](met[str(user)]))


def test_only_and_allow_give_an_item_the_same_score(
    recommender: Recommender, active: list[str]
) -> None:
    keys = ["user_id", "item_id"]
    only = recommender.recommend(active[:20], n=299, repeats="only").set_index(keys)["score"]
    allow = recommender.recommend(active[:20], n=299, repeats="allow").set_index(keys)["score"]
    pd.testing.assert_series_equal(only, allow[only.index], check_exact=True)


@pytest.mark.parametrize("repeats", REPEATS)
def test_a_list_stands_by_score_and_equal_scores_by_item_number(
    recommender: Recommender, active: list[str], repeats: Repeats
) -> None:
    bundle = recommender.bundle
    lists = recommender.recommend(active[:20], n=299, repeats=repeats)
    assert np.isfinite(lists["score"]).all()
    assert lists["score"].dtype == np.float32
    assert list(dict.fromkeys(lists["user_id"])) == active[:20]
    for _, rows in lists.groupby("user_id"):
        numbers = bundle.items.numbers(rows["item_id"])
        order = np.lexsort((numbers, -rows["score"].to_numpy()))
        assert (order == np.arange(len(rows))).all()
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))


def test_without_a_history_the_list_is_the_bias_with_ties_by_item_number(
    recommender: Recommender,
) -> None:
    bundle = recommender.bundle
    lists = recommender.recommend_history([], n=299)
    bias = bundle.model.heads["new"].bias(bundle.model.side)
    assert len(np.unique(bias)) < 250  # there are ties: all cold products, for one
    order = sorted(range(299), key=lambda item: (-bias[item], item))
    assert lists["item_id"].tolist() == list(bundle.items.ids(order))
    assert lists["score"].tolist() == bias[order].tolist()


def test_a_cut_among_equal_scores_keeps_the_first_items(recommender: Recommender) -> None:
    whole = recommender.recommend_history([], n=299)["item_id"].tolist()
    for n in range(1, 60):
        assert recommender.recommend_history([], n=n)["item_id"].tolist() == whole[:n]


def test_candidates_are_the_whole_list_with_the_others_left_out(
    recommender: Recommender, active: list[str]
) -> None:
    candidates = ["tarn-bottle", "090", "213", "7", "007", "278"]
    for repeats in REPEATS:
        whole = recommender.recommend(active[:30], n=299, repeats=repeats)
        kept = whole[whole["item_id"].isin(candidates)]
        narrowed = recommender.recommend(active[:30], n=299, candidates=candidates, repeats=repeats)
        columns = ["user_id", "item_id", "score"]
        pd.testing.assert_frame_equal(
            narrowed[columns], kept[columns].reset_index(drop=True), check_exact=True
        )


def test_no_candidates_and_no_users_give_no_lists(recommender: Recommender) -> None:
    for empty in (
        recommender.recommend([]),
        recommender.recommend(["u-ada"], candidates=[]),
    ):
        assert empty.columns.tolist() == ["user_id", "item_id", "score", "rank"]
        assert len(empty) == 0
    assert len(recommender.similar_items([])) == 0


def test_a_list_longer_than_the_catalogue_ends_with_it(recommender: Recommender) -> None:
    assert len(recommender.recommend(["u-ada"], n=5000)) == 299 - 3
    assert len(recommender.recommend(["u-ada"], n=5000, repeats="allow")) == 299


def test_users_together_get_what_they_get_alone(
    recommender: Recommender, active: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [*active[:40], "u-once", "u-ada"]
    for repeats in REPEATS:
        batch = recommender.recommend(users, n=299, repeats=repeats)
        with monkeypatch.context() as small:
            small.setattr(modelling, "CELLS", 7 * 299)  # seven users at a time
            blocks = recommender.recommend(users, n=299, repeats=repeats)
        single = pd.concat(
            [recommender.recommend([user], n=299, repeats=repeats) for user in users],
            ignore_index=True,
        )
        keys = ["user_id", "item_id"]
        for other in (blocks, single):
            assert len(other) == len(batch)
            scores = batch.set_index(keys)["score"], other.set_index(keys)["score"]
            pd.testing.assert_series_equal(
                scores[0].sort_index(), scores[1].sort_index(), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("repeats", ["no", "", "Exclude"])
def test_an_unknown_kind_of_list_is_refused(recommender: Recommender, repeats: Any) -> None:
    with pytest.raises(ConfigError, match="exclude, allow, only"):
        recommender.recommend(["u-ada"], repeats=repeats)


def test_an_unknown_id_is_named(recommender: Recommender) -> None:
    calls: list[Callable[[], object]] = [
        lambda: recommender.recommend(["u-ada", "no-such-id"]),
        lambda: recommender.recommend(["u-ada"], candidates=["no-such-id"]),
        lambda: recommender.recommend_history([("no-such-id", "view")]),
        lambda: recommender.rank("no-such-id", ["090"]),
        lambda: recommender.rank("u-ada", ["090", "no-such-id"]),
        lambda: recommender.similar_items(["no-such-id"]),
        lambda: recommender.explain("no-such-id", "090"),
        lambda: recommender.explain("u-ada", "no-such-id"),
        lambda: recommender.profile("no-such-id"),
    ]
    for call in calls:
        with pytest.raises(UnknownIdError, match="'no-such-id'"):
            call()


def test_a_message_says_whose_id_is_unknown(recommender: Recommender) -> None:
    with pytest.raises(
        UnknownIdError, match=r"1 unknown user id: 'x'; allowed: the \d+ known user"
    ):
        recommender.recommend(["x"])
    with pytest.raises(UnknownIdError, match="2 unknown item ids: 'x', 'y'"):
        recommender.similar_items(["x", "y"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rec: rec.recommend("u-ada"), r"user_ids: found 'u-ada'; .* Write \['u-ada'\]"),
        (lambda rec: rec.recommend(None), "user_ids: found None; allowed: a list"),
        (lambda rec: rec.recommend(["u-ada"], candidates="090"), "candidates: found '090'"),
        (lambda rec: rec.rank("u-ada", "090"), "item_ids: found '090'"),
        (lambda rec: rec.similar_items("090"), "item_ids: found '090'"),
        (
            lambda rec: rec.recommend(["u-ada"], n=2.5),
            "n: found 2.5; allowed: a whole number, 1 or more",
        ),
        (lambda rec: rec.recommend(["u-ada"], n="3"), "n: found '3'"),
        (lambda rec: rec.recommend(["u-ada"], n=True), "n: found True"),
        (lambda rec: rec.recommend(["u-ada"], n=0), "n: found 0"),
        (lambda rec: rec.explain("u-ada", "090", max_paths=-1), "max_paths: found -1"),
        (lambda rec: rec.explain("u-ada", "090", max_paths="x"), "max_paths: found 'x'"),
        (lambda rec: rec.recommend_history(["090"]), "history: found '090'; allowed: pairs"),
        (lambda rec: rec.recommend_history(None), "history: found None"),
        (lambda rec: rec.recommend_history([("090", "view", 1)]), r"history: found \('090'"),
        (lambda rec: rec.recommend_history([("090", None)]), r"history: found \('090', None\)"),
    ],
)
def test_what_is_no_list_or_number_is_refused(
    recommender: Recommender, call: Callable[[Recommender], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(recommender)


def test_texts_of_numpy_and_rows_of_tables_are_events(recommender: Recommender) -> None:
    plain = recommender.recommend_history([("090", "view"), ("alta-tent", "purchase")])
    for given in (
        [(np.str_("090"), "view"), ["alta-tent", np.str_("purchase")]],
        np.array([["090", "view"], ["alta-tent", "purchase"]], dtype=object),
    ):
        pd.testing.assert_frame_equal(recommender.recommend_history(given), plain)


def test_ids_may_come_one_after_the_other(recommender: Recommender, active: list[str]) -> None:
    users = active[:2]
    pd.testing.assert_frame_equal(recommender.recommend(iter(users)), recommender.recommend(users))


def test_named_products_have_the_scores_of_the_lists_that_are_named(
    recommender: Recommender,
) -> None:
    """Met or not: where all may be listed, a score is what the list says and `explain` sums up."""
    listed = recommender.recommend(["u-ada"], n=20, repeats="allow").set_index("item_id")["score"]
    ranked = recommender.rank("u-ada", listed.index.tolist(), repeats="allow")
    assert ranked["item_id"].tolist() == listed.index.tolist()
    assert ranked["score"].tolist() == pytest.approx(listed.tolist(), rel=1e-5)
    for item in listed.index[:3]:
        assert recommender.explain("u-ada", item, repeats="allow").score == pytest.approx(
            listed[item], rel=1e-5
        )


def test_ids_that_are_one_number_are_two_products(recommender: Recommender) -> None:
    lists = recommender.recommend_history([("7", "purchase")], n=299)
    assert "007" in set(lists["item_id"])
    assert "7" not in set(lists["item_id"])


# A visitor


def history_of(bundle: Bundle, user: str) -> list[tuple[str, str]]:
    events = bundle.events[bundle.events["user_id"] == user]
    return list(zip(events["item_id"], events["event"], strict=True))


def test_a_visitor_with_a_users_history_gets_the_users_list(
    recommender: Recommender, active: list[str]
) -> None:
    """A visitor's events carry no times, so this holds where no channel fades by days."""
    timeless = faded(recommender, float("inf"))
    for user in [*active[:10], "u-ada", "u-once"]:
        known = timeless.recommend([user], n=20)
        visitor = timeless.recommend_history(history_of(timeless.bundle, user), n=20)
        pd.testing.assert_frame_equal(known.drop(columns="user_id"), visitor, rtol=1e-5)


def test_where_a_channel_fades_by_days_a_visitors_events_count_as_of_one_day(
    recommender: Recommender,
) -> None:
    """u-ada's events are weeks apart: a week's half-life tells her from a visitor."""
    weekly = faded(recommender, 7.0)
    known = weekly.recommend(["u-ada"], n=299).set_index("item_id")["score"]
    history = history_of(weekly.bundle, "u-ada")
    visitor = weekly.recommend_history(history, n=299).set_index("item_id")["score"]
    timeless = faded(recommender, float("inf")).recommend_history(history, n=299)
    assert abs(known - visitor[known.index]).max() > 0.1
    pd.testing.assert_series_equal(visitor, timeless.set_index("item_id")["score"])


def test_the_order_of_a_visitors_events_counts(recommender: Recommender) -> None:
    """The same two products, the one with a follower last or first."""
    late = recommender.recommend_history([("alta-tent", "purchase"), ("090", "purchase")], n=299)
    early = recommender.recommend_history([("090", "purchase"), ("alta-tent", "purchase")], n=299)
    score = {
        name: frame.set_index("item_id")["score"]
        for name, frame in (("late", late), ("early", early))
    }
    assert score["late"]["213"] > score["early"]["213"]


def test_an_event_of_a_kind_the_shop_never_had_counts_all_the_same(
    recommender: Recommender,
) -> None:
    lists = recommender.recommend_history([("090", "gift")], n=5)
    assert rank_of(lists, "213") <= 5


# Given products, similar products


def test_rank_stands_in_the_order_of_recommend(recommender: Recommender, active: list[str]) -> None:
    for user in active[:20]:
        whole = recommender.recommend([user], n=299)
        candidates = whole["item_id"].sort_values().tolist()[::3]
        listed = recommender.recommend([user], n=299, candidates=candidates)
        ranked = recommender.rank(user, candidates)
        pd.testing.assert_frame_equal(ranked, listed.drop(columns="user_id"), check_exact=True)


def test_rank_ranks_what_the_user_has_met_too_and_each_item_once(
    recommender: Recommender,
) -> None:
    ranked = recommender.rank("u-ada", ["alta-tent", "090", "alta-tent", "tarn-bottle"])
    assert sorted(ranked["item_id"]) == ["090", "alta-tent", "tarn-bottle"]
    assert ranked["rank"].tolist() == [1, 2, 3]


def test_similar_items_are_a_history_of_the_item_alone_without_popularity(
    recommender: Recommender,
) -> None:
    """No kind of event is known, so each channel weighs the one event as 1."""
    bundle = recommender.bundle
    bias = bundle.model.heads["new"].bias(bundle.model.side)
    table = recommender.similar_items(["090", "alta-tent"], n=299)
    assert table.columns.tolist() == ["item_id", "similar_id", "score", "rank"]
    for item, rows in table.groupby("item_id"):
        assert sorted([item, *rows["similar_id"]]) == sorted(bundle.items.ids())
        alone = recommender.recommend_history([(str(item), "interaction")], n=299)
        scores = alone.set_index("item_id")["score"][rows["similar_id"]].to_numpy()
        without = scores - bias[bundle.items.numbers(rows["similar_id"])]
        np.testing.assert_allclose(rows["score"], without, atol=1e-5)


def test_a_recommender_of_a_bundle_reads_a_users_events_in_time(tiny_bundle: Bundle) -> None:
    """u-ada's train and valid items are excluded, her test items are not."""
    lists = Recommender(tiny_bundle, "cpu").recommend(["u-ada"], n=12)
    assert sorted(lists["item_id"]) == sorted({"a5", "b1", "b2", "b3", "b4", "b5", "c1", "v1"})


def test_a_known_user_without_events_gets_the_visitors_empty_list(tiny_bundle: Bundle) -> None:
    users = tiny_bundle.users.extended(["u-mute"])
    quiet = Recommender(replace(tiny_bundle, users=users), "cpu")
    known = quiet.recommend(["u-mute"], n=12)
    pd.testing.assert_frame_equal(known.drop(columns="user_id"), quiet.recommend_history([], n=12))
    assert quiet.recommend(["u-mute"], repeats="only").empty
