"""Rules at work: lists keep to them, stay full while products remain, and scores still add up."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch

from kgrank.errors import ConfigError
from kgrank.fusion.channels import Channel, DenseFeatures
from kgrank.fusion.history import Decay
from kgrank.fusion.model import Repeats
from kgrank.kg.tables import read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.placing import Caps, Pins, Spread, fill
from kgrank.serving.ranking import rank_partition, rank_users
from kgrank.serving.reasons import Reasons
from kgrank.serving.recommender import Recommender
from kgrank.serving.rules import Rules, moment
from kgrank.serving.training import train

USERS = ["u-ada", "u-ben", "u-eva", "u-ivy"]
JUNE = moment("2026-06-01T12:00:00Z")


def rules(*entries: dict[str, Any], **segments: Any) -> Rules:
    named = [{"name": f"rule {number}", **entry} for number, entry in enumerate(entries)]
    return Rules.from_dict({"rule": named, "segments": segments}, "the test")


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle) -> Bundle:
    """The hand-made shop, with prices from 1, stock, colours and some users' cities."""
    items = tiny_bundle.item_table
    items = items.assign(
        price=np.arange(1.0, len(items) + 1),
        in_stock=["false" if i in ("a3", "b3") else "true" for i in items["item_id"]],
        color=["red" if i[1] in "12" else "blue|green" for i in items["item_id"]],
    )
    users = pd.DataFrame({"user_id": ["u-ada", "u-eva"], "city": ["Cork", "Cork"]}, dtype="str")
    return replace(tiny_bundle, item_table=items, user_table=users)


def under(bundle: Bundle, *entries: dict[str, Any], at: float = JUNE, **more: Any) -> Recommender:
    return Recommender(bundle, "cpu", rules(*entries, **more), at)


def items_of(lists: pd.DataFrame) -> dict[str, list[str]]:
    return {str(u): rows["item_id"].tolist() for u, rows in lists.groupby("user_id", sort=False)}


def everything(recommender: Recommender, **more: Any) -> dict[str, list[str]]:
    return items_of(recommender.recommend(USERS, n=12, **more))


@pytest.fixture(scope="module")
def plain(bundle: Bundle) -> Recommender:
    return Recommender(bundle, "cpu")


# What is left out


def test_without_rules_or_out_of_their_time_lists_are_the_same_to_the_bit(
    bundle: Bundle, plain: Recommender
) -> None:
    rule = {"action": "boost", "by": 3.0, "items": {"item_id": "a1"}, "until": "2026-05-31"}
    nobody = {"action": "exclude", "items": {"item_id": "a1"}, "users": {"city": "Oslo"}}
    expected = plain.recommend(USERS, n=7)
    pd.testing.assert_frame_equal(expected, under(bundle, rule).recommend(USERS, n=7))
    pd.testing.assert_frame_equal(expected, under(bundle, nobody).recommend(USERS, n=7))
    early = under(bundle, rule, at=moment("2026-05-31T23:00:00Z")).recommend(USERS, n=7)
    assert not early.equals(expected)


@pytest.mark.parametrize("repeats", ["exclude", "allow", "only"])
def test_a_list_without_the_excluded_is_the_same_list_and_full(
    bundle: Bundle, plain: Recommender, repeats: Repeats
) -> None:
    left_out = {"a3", "b3"}
    rule = {"action": "exclude", "items": {"in_stock": False}}
    whole = everything(plain, repeats=repeats)
    kept = {u: [i for i in items if i not in left_out] for u, items in whole.items()}
    kept = {u: items for u, items in kept.items() if items}
    assert everything(under(bundle, rule), repeats=repeats) == kept
    top = items_of(under(bundle, rule).recommend(USERS, n=3, repeats=repeats))
    assert top == {u: items[:3] for u, items in kept.items()}


def test_only_and_exclude_go_before_pins_and_boosts(bundle: Bundle) -> None:
    only = {"action": "only", "items": {"item_id": ["b1", "b2", "c1"]}}
    also = {"action": "only", "items": {"item_id": ["b1", "c1", "a1"]}}
    pins = {"action": "pin", "items": {"item_id": "a5"}}
    boost = {"action": "boost", "by": 50.0, "items": {"item_id": "a4"}}
    lists = everything(under(bundle, pins, boost, only, also), repeats="allow")
    assert {user: sorted(items) for user, items in lists.items()} == {
        user: ["b1", "c1"] for user in USERS
    }


def test_a_rule_is_for_whom_it_is_for(bundle: Bundle, plain: Recommender) -> None:
    rule = {"action": "exclude", "items": {"item_id": "v1"}, "users": {"city": "Cork"}}
    some = {"action": "exclude", "items": {"item_id": "c1"}, "segments": ["some"]}
    recommender = under(bundle, rule, some, some={"ids": ["u-ben", "u-ada"]})
    whole, lists = everything(plain, repeats="allow"), everything(recommender, repeats="allow")
    gone = {user: set(whole[user]) - set(lists[user]) for user in USERS}
    assert gone == {
        "u-ada": {"v1", "c1"},
        "u-ben": {"c1"},
        "u-eva": {"v1"},
        "u-ivy": set(),
    }
    visitor = recommender.recommend_history([("a1", "purchase")], n=12)
    assert {"v1", "c1"} <= set(visitor["item_id"])


def test_one_user_alone_has_the_list_they_have_among_others(bundle: Bundle) -> None:
    recommender = under(
        bundle,
        {"action": "boost", "by": 0.7, "items": {"color": "red"}, "users": {"city": "Cork"}},
        {"action": "cap", "most": 2, "attribute": "brand"},
        {"action": "diversify", "strength": 0.4, "attributes": ["color"]},
    )
    lists = recommender.recommend(USERS, n=5)
    for user in USERS:
        own = lists[lists["user_id"] == user].reset_index(drop=True)
        pd.testing.assert_frame_equal(own, recommender.recommend([user], n=5))


def test_candidates_are_kept_to(bundle: Bundle, plain: Recommender) -> None:
    rule = {"action": "exclude", "items": {"in_stock": False}}
    pins = {"action": "pin", "items": {"item_id": "c1"}}
    some = ["v1", "b3", "b5", "a5", "b4"]
    lists = everything(under(bundle, rule, pins), candidates=some)
    whole = everything(plain, candidates=some)
    assert lists == {user: [i for i in whole[user] if i != "b3"] for user in USERS}


def test_similar_items_keep_to_what_is_left_out_for_everybody(
    bundle: Bundle, plain: Recommender
) -> None:
    left_out = {"action": "exclude", "items": {"in_stock": False}}
    boost = {"action": "boost", "by": 9.0, "items": {"item_id": "v1"}}
    found = under(bundle, left_out, boost).similar_items(["a1"], n=11)
    whole = plain.similar_items(["a1"], n=11)
    kept = whole[~whole["similar_id"].isin(["a3", "b3"])]
    assert found["similar_id"].tolist() == kept["similar_id"].tolist()
    assert found["score"].tolist() == kept["score"].tolist()


# What is added


def test_a_boost_adds_so_many_units_and_a_list_is_in_order_of_the_sums(
    bundle: Bundle, plain: Recommender
) -> None:
    red = {"action": "boost", "by": 0.5, "items": {"color": "red"}}
    cheap = {"action": "boost", "by": -0.25, "items": {"price": {"at_most": 3}}}
    recommender = under(bundle, red, cheap)
    unit = recommender.ruling.unit("new")
    histories = bundle.histories
    active = np.flatnonzero(np.diff(histories.starts))
    raw = plain.model.scores(histories, histories.of_users(active), "new").double()
    assert unit == pytest.approx(float(raw.std(dim=1, correction=0).mean()))
    table = bundle.item_table
    added = 0.5 * (table["color"] == "red") - 0.25 * (table["price"] <= 3)
    by_item = dict(zip(table["item_id"], added * unit, strict=True))
    before = plain.recommend(USERS, n=12).set_index(["user_id", "item_id"])["score"]
    after = recommender.recommend(USERS, n=12)
    assert len(after) == len(before)
    for user, item, score in zip(after["user_id"], after["item_id"], after["score"], strict=True):
        assert score == pytest.approx(before[user, item] + by_item[item], abs=1e-5)
    assert (after.groupby("user_id")["score"].diff().fillna(0.0) <= 0.0).all()


def test_a_boost_moves_a_product_and_not_its_probability(
    shop_bundle: Bundle, recommender: Recommender
) -> None:
    pushed = shop_bundle.item_table["item_id"].iloc[:40].tolist()
    boost = {"action": "boost", "by": 1.0, "items": {"item_id": pushed}}
    boosted, users = under(shop_bundle, boost), ["u-ada", "0001"]
    keys = ["user_id", "item_id"]
    plain = recommender.recommend(users, n=299, task="purchase").set_index(keys)
    lists = boosted.recommend(users, n=20, task="purchase").set_index(keys)
    added = lists["score"] - plain.loc[lists.index, "score"]
    unit = boosted.ruling.unit("purchase")
    is_pushed = lists.index.get_level_values("item_id").isin(pushed)
    assert is_pushed.any()
    assert added.tolist() == pytest.approx((unit * is_pushed).tolist(), abs=1e-5)
    same = plain.loc[lists.index, "probability"].tolist()
    assert lists["probability"].tolist() == pytest.approx(same, rel=1e-4)
    why = boosted.explain("u-ada", pushed[0], task="purchase")
    assert why.contributions["rules"] == pytest.approx(unit)
    assert why.bias + sum(why.contributions.values()) == pytest.approx(why.score)
    assert why.prediction == recommender.explain("u-ada", pushed[0], task="purchase").prediction


def test_a_boost_that_ends_while_a_list_is_made_is_told_as_it_was_applied(
    shop_bundle: Bundle, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock strikes noon after it was first looked at."""
    pushed = shop_bundle.item_table["item_id"].iloc[:40].tolist()
    boost = {"action": "boost", "by": 1.0, "items": {"item_id": pushed}}
    known = rules({**boost, "until": "2026-06-01T12:00:00Z"})
    boosted = Recommender(shop_bundle, "cpu", known)
    keys = ["user_id", "item_id"]
    plain = recommender.recommend(["u-ada"], n=299, task="purchase").set_index(keys)
    ticks = itertools.chain([JUNE - 1], itertools.repeat(JUNE))
    monkeypatch.setattr("kgrank.serving.ruling.time.time", lambda: next(ticks))
    lists = boosted.recommend(["u-ada"], n=20, task="purchase").set_index(keys)
    assert (lists["score"] > plain.loc[lists.index, "score"] + 1e-3).any()
    same = plain.loc[lists.index, "probability"].tolist()
    assert lists["probability"].tolist() == pytest.approx(same, rel=1e-4)


# Filling


def test_what_is_pinned_stands_where_it_is_pinned_and_the_rest_closes_up(
    bundle: Bundle, plain: Recommender
) -> None:
    third = {"action": "pin", "place": 3, "items": {"item_id": "c1"}}
    first = {"action": "pin", "place": 3, "items": {"item_id": "v1"}}
    far = {"action": "pin", "place": 9, "items": {"item_id": "b5"}}
    lists = items_of(under(bundle, third, first, far).recommend(USERS, n=6, repeats="allow"))
    whole = everything(plain, repeats="allow")
    for user in USERS:
        rest = [i for i in whole[user] if i not in ("c1", "v1")]
        assert lists[user] == [*rest[:2], "c1", "v1", *rest[2:4]]
    met = items_of(under(bundle, first).recommend(["u-eva"], n=3))["u-eva"]
    assert "v1" not in met  # she has it, and repeats are left out


def test_of_several_items_the_best_are_pinned(bundle: Bundle, plain: Recommender) -> None:
    rule = {"action": "pin", "most": 2, "items": {"brand": "Birch"}}
    lists = items_of(under(bundle, rule).recommend(USERS, n=4, repeats="allow"))
    birch = set(bundle.item_table.query("brand == 'Birch'")["item_id"])
    for user, whole in everything(plain, repeats="allow").items():
        own = [i for i in whole if i in birch][:2]
        assert lists[user] == [*own, *[i for i in whole if i not in own][:2]]


def test_a_list_ends_early_only_where_a_cap_allows_no_more(
    bundle: Bundle, plain: Recommender
) -> None:
    cap = {"action": "cap", "most": 2, "attribute": "brand"}
    lists = everything(under(bundle, cap), repeats="allow")
    brand = dict(zip(bundle.item_table["item_id"], bundle.item_table["brand"], strict=True))
    for user, whole in everything(plain, repeats="allow").items():
        best = {b: [i for i in whole if brand[i] == b][:2] for b in ("Alder", "Birch")}
        assert lists[user] == [i for i in whole if i in best["Alder"] + best["Birch"]]
    some = {"action": "cap", "most": 1, "items": {"color": "green"}}
    for items in everything(under(bundle, some), repeats="allow").values():
        assert sum(item[1] in "345" for item in items) == 1
        assert len(items) == 7  # all six red ones, and one of the six that are blue and green


def test_what_is_pinned_counts_under_a_cap_that_cannot_keep_it_off(bundle: Bundle) -> None:
    cap = {"action": "cap", "most": 1, "attribute": "brand"}
    pins = {"action": "pin", "place": 2, "most": 2, "items": {"item_id": ["b4", "b5"]}}
    for items in items_of(under(bundle, cap, pins).recommend(USERS, n=9, repeats="allow")).values():
        assert set(items[1:]) == {"b4", "b5"}
        assert items[0][0] in "ac"


def test_more_items_are_looked_at_where_caps_use_up_the_best(shop_bundle: Bundle) -> None:
    """Caps that leave one item of most categories: lists of 12 reach far below the best 18."""
    cap = {"action": "cap", "most": 1, "attribute": "category"}
    plain, capped = Recommender(shop_bundle, "cpu"), under(shop_bundle, cap)
    users = shop_bundle.users.ids()[:40].tolist()
    category = dict(
        zip(shop_bundle.item_table["item_id"], shop_bundle.item_table["category"], strict=True)
    )
    whole = items_of(plain.recommend(users, n=299))
    deepest = 0
    for user, items in items_of(capped.recommend(users, n=12)).items():
        first = list({category[i]: i for i in reversed(whole[user])}.values())
        expected = sorted(first, key=whole[user].index)[:12]
        assert items == expected
        deepest = max(deepest, whole[user].index(items[-1]))
    assert deepest > 18


def test_diversity_by_vectors_needs_some_and_spreads_lists(shop_bundle: Bundle) -> None:
    """With an embedding that no list is weighed by."""
    rule = {"action": "diversify", "strength": 0.7, "vectors": True}
    model, codes = shop_bundle.model, pd.factorize(shop_bundle.item_table["category"])[0]
    sparse = [n for n, of in enumerate(model.channels) if not isinstance(of.form, DenseFeatures)]
    heads_left = {name: head.of_channels(sparse) for name, head in model.heads.items()}
    model = replace(model, channels=tuple(model.channels[n] for n in sparse), heads=heads_left)
    plain = replace(shop_bundle, model=model)
    with pytest.raises(ConfigError, match="vectors = true; allowed: in bundles with one of"):
        under(plain, rule)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(codes.max() + 1, 16))[codes] + 0.3 * rng.normal(size=(299, 16))
    form = DenseFeatures(torch.from_numpy(vectors.astype(np.float32)))
    heads = {
        name: replace(
            head,
            **{part: np.append(getattr(head, part), 0) for part in ("weight", "slope", "cold")},
        )
        for name, head in model.heads.items()
    }
    channels = (*model.channels, Channel("embedding", Decay(), form))
    bundle = replace(shop_bundle, model=replace(model, channels=channels, heads=heads))
    users = shop_bundle.users.ids()[:40].tolist()

    def likeness(lists: pd.DataFrame) -> float:
        numbers = [bundle.items.numbers(rows["item_id"]) for _, rows in lists.groupby("user_id")]
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return float(np.mean([(unit[own] @ unit[own].T).mean() for own in numbers]))

    spread, usual = (
        under(bundle, rule).recommend(users),
        Recommender(bundle, "cpu").recommend(users),
    )
    pd.testing.assert_frame_equal(usual, Recommender(plain, "cpu").recommend(users))
    assert likeness(spread) < 0.8 * likeness(usual)
    assert len(spread) == len(usual) == 400


# The kernel, by hand and against a slow double


def no_pins() -> Pins:
    return Pins(np.zeros(1, np.int64), *(np.empty(0, np.int64),) * 3)


def no_caps(n_items: int) -> Caps:
    none = np.empty(0, np.int32)
    return Caps(np.zeros(n_items + 1, np.int64), none, none)


def filled(
    scores: npt.NDArray[np.float32], n: int, pins: Pins, caps: Caps, spread: Spread
) -> tuple[list[int], bool]:
    order = np.argsort(-scores, kind="stable")
    items = np.where(np.isneginf(scores[order]), -1, order)[None]
    listed, own = np.empty((1, n), np.int64), np.empty((1, n), np.float32)
    pin_scores = scores[pins.items][None]
    short = fill(items, scores[order][None], pins, pin_scores, caps, spread, listed, own)
    kept = listed[0][listed[0] >= 0]
    assert np.array_equal(own[0][: len(kept)], scores[kept])
    assert np.isneginf(own[0][len(kept) :]).all()
    return kept.tolist(), bool(short[0])


def test_maximal_marginal_relevance_by_hand() -> None:
    """Scores 1, .9, .8, .5, 0 of brands A, A, A, B, C at strength .5, lists of 3.

    First the best, item 0. Then item 1 has .5 · .9 - .5 · 1 = -.05, item 3 .5 · .5 = .25, item 4 0:
    item 3. Then item 1 has -.05, item 2 -.1, item 4 0: item 4.
    """
    scores = np.array([1.0, 0.9, 0.8, 0.5, 0.0], np.float32)
    codes = np.array([0, 0, 0, 1, 2], np.int32)
    starts, single = np.arange(6)[None], codes[:, None].copy()
    none = np.empty((5, 0), np.float32)

    def listed(strength: float, pool: int, several: bool = False) -> list[int]:
        one, own = (single[:, :0].copy(), starts) if several else (single, starts[:0])
        spread = Spread(strength, pool, one, own, codes, none)
        return filled(scores, 3, no_pins(), no_caps(5), spread)[0]

    assert listed(0.5, 5) == [0, 3, 4]
    assert listed(0.0, 5) == [0, 1, 2]
    assert listed(1.0, 5) == [0, 3, 4]
    # In the pool of 4 item 3 is the last, 0, and items 1 and 2 have .5 · .8 - .5 and .5 · .6 - .5.
    assert listed(0.5, 4) == [0, 3, 1]
    assert listed(0.5, 2) == [0, 1, 2]  # after the pool, by score
    assert listed(0.5, 5, several=True) == [0, 3, 4]
    assert listed(0.5, 4, several=True) == [0, 3, 1]


def slow(
    scores: npt.NDArray[np.float32],
    n: int,
    pins: list[tuple[int, int, list[int]]],
    groups: list[set[int]],
    shades: list[set[int]],
    limits: list[int],
    strength: float,
    pool: int,
) -> list[int]:
    """The rules of `kgrank.serving.placing`, said as simply as can be."""
    order = [i for i in np.argsort(-scores, kind="stable").tolist() if np.isfinite(scores[i])]
    forced: dict[int, int] = {}
    for place, most, items in pins:
        own = [i for i in order if i in items and i not in forced.values()][:most]
        for item in own:
            free = next((p for p in range(place, n) if p not in forced), None)
            if free is not None:
                forced[free] = item
    listed: list[int] = []
    best = order[:pool]
    low, span = scores[best[-1]], scores[best[0]] - scores[best[-1]]

    def like(i: int, j: int) -> float:
        every = groups[i] | groups[j]
        both = len(groups[i] & groups[j]) / len(every) if every else 0.0
        return (both + len(shades[i] & shades[j])) / 2

    def gain(i: int) -> float:
        relevance = (scores[i] - low) / span if span else 0.0
        return (1 - strength) * relevance - strength * max((like(i, j) for j in listed), default=0)

    for place in range(n):
        if place in forced:
            listed.append(forced[place])
            continue
        here = [*listed, *(i for p, i in forced.items() if p >= place)]
        free = [
            i
            for i in order
            if i not in here
            and all(sum(g in groups[j] for j in here) < limits[g] for g in groups[i])
        ]
        near = [i for i in free if i in best] if strength else []
        if near:
            listed.append(max(near, key=lambda i: (round(gain(i), 6), -order.index(i))))
        elif free:
            listed.append(free[0])
    return listed


@pytest.mark.parametrize("seed", range(60))
def test_lists_are_filled_as_the_slow_double_fills_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_items, n = 30, int(rng.integers(1, 12))
    scores = rng.normal(size=n_items).astype(np.float32)
    scores[rng.random(n_items) < 0.2] = -np.inf
    groups = [set(rng.choice(5, rng.integers(0, 3), replace=False).tolist()) for _ in scores]
    limits = rng.integers(1, 4, 5).tolist() if seed % 2 else [99] * 5
    strength = float(rng.choice([0.0, 0.3, 0.8]))
    pool = int(rng.integers(1, 25))
    pins = [
        (
            int(rng.integers(0, 6)),
            int(rng.integers(1, 3)),
            sorted(rng.choice(30, 3, False).tolist()),
        )
        for _ in range(int(rng.integers(0, 3)))
    ]
    starts = np.cumsum([0, *map(len, groups)])
    codes = np.array([g for own in groups for g in sorted(own)], np.int32)
    single = rng.integers(-1, 4, (30, 1)).astype(np.int32)
    kernel = filled(
        scores,
        n,
        Pins(
            np.cumsum([0, *(len(items) for *_, items in pins)]),
            np.array([i for *_, items in pins for i in items], np.int64),
            np.array([place for place, *_ in pins], np.int64),
            np.array([most for _, most, _ in pins], np.int64),
        ),
        Caps(starts, codes, np.array(limits, np.int32)),
        Spread(strength, pool, single, starts[None], codes, np.empty((30, 0), np.float32)),
    )[0]
    shades = [{int(shade)} if shade >= 0 else set() for shade in single[:, 0]]
    assert kernel == slow(scores, n, pins, groups, shades, limits, strength, pool)


# Where rules come from


def test_rules_are_kept_in_the_bundle_and_others_can_be_named(
    bundle: Bundle, plain: Recommender, tmp_path: Path
) -> None:
    kept = replace(bundle, rules=rules({"action": "exclude", "items": {"item_id": "a1"}}))
    folder = kept.save(tmp_path / "models")
    loaded = Recommender.load(folder, "cpu")
    assert loaded.bundle.rules.rules == kept.rules.rules
    whole = everything(plain, repeats="allow")
    lists = everything(loaded, repeats="allow")
    assert lists == {u: [i for i in items if i != "a1"] for u, items in whole.items()}
    assert everything(Recommender.load(folder, "cpu", Rules.none()), repeats="allow") == whole
    other = tmp_path / "other.toml"
    other.write_text('[[rule]]\nname = "x"\naction = "exclude"\nitems.item_id = "a2"\n')
    lists = everything(Recommender.load(folder, "cpu", other), repeats="allow")
    assert lists == {u: [i for i in items if i != "a2"] for u, items in whole.items()}
    other.write_text('[[rule]]\nname = "x"\naction = "exclude"\nitems.item_id = "z2"\n')
    with pytest.raises(ConfigError, match=r"other\.toml, rule 'x', items\.item_id: found .*'z2'"):
        Recommender.load(folder, "cpu", other)


def test_a_shop_whose_rules_are_at_fault_is_not_trained(tiny_shop: Path, tmp_path: Path) -> None:
    for name in ("events", "items"):
        (tmp_path / f"{name}.csv").write_bytes((tiny_shop / f"{name}.csv").read_bytes())
    (tmp_path / "rules.toml").write_text(
        '[[rule]]\nname = "x"\naction = "exclude"\nitems.brnd = "Alder"\n'
    )
    with pytest.raises(ConfigError, match="Is 'brand' meant"):
        train(read_tables(tmp_path), bundle_config())


def bundle_config() -> Any:
    from kgrank.config import Config

    return Config.from_dict({"text": {"model": "none"}}, "the test")


def test_a_job_tells_its_rules_and_does_not_go_on_under_others(
    bundle: Bundle, tmp_path: Path
) -> None:
    rule = {"action": "exclude", "items": {"item_id": "a1"}}
    manifest = rank_users(under(bundle, rule), tmp_path / "out", n=3, repeats="allow")
    assert manifest["rules"] == ["rule 0"]
    again = rank_users(under(bundle, rule), tmp_path / "out", n=3, repeats="allow", resume=True)
    assert again == manifest
    other = {"action": "exclude", "items": {"item_id": "a2"}}
    with pytest.raises(ConfigError, match="found a job with bundle"):
        rank_users(under(bundle, other), tmp_path / "out", n=3, repeats="allow", resume=True)
    listed = pd.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert "a1" not in set(listed["item_id"])
    assert set(listed.groupby("user_id").size()) == {3}
    assert "rules" not in rank_users(Recommender(bundle, "cpu"), tmp_path / "plain", n=3)


def test_reasons_beside_the_rows_tell_what_rules_do_in_lists_of_that_length(
    shop_bundle: Bundle,
) -> None:
    item = shop_bundle.items.id(10)
    pin = {"action": "pin", "place": 13, "items": {"item_id": {"equals": item}}}
    user = shop_bundle.users.id(0)
    lists = rank_partition(under(shop_bundle, pin), [user], 20, "allow", reasons=Reasons())
    row = lists[lists["item_id"] == item].iloc[0]
    assert row["rank"] == 13
    assert "“rule 0”" in row["text"]
    assert "place 13" in row["text"]


def test_the_rules_of_a_fixed_recommender_are_those_of_its_moment(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sale begins at noon: who asks each time gets it then, a job begun before goes on without.

    An item that is new until noon counts as new for that job.
    """
    table = bundle.item_table.assign(new_until="2026-06-01T12:00:00Z")
    dated = replace(bundle, item_table=table)
    sale = {"action": "pin", "items": {"item_id": "b5"}, "from": "2026-06-01T12:00:00Z"}
    new = {"item_id": "a5", "new_until": {"after": "now"}}
    known = rules(sale, {"action": "exclude", "items": new})
    clock = {"now": JUNE - 1}
    monkeypatch.setattr("kgrank.serving.ruling.time.time", lambda: clock["now"])
    recommender = Recommender(dated, "cpu", known)
    job = recommender.fixed()
    before = everything(recommender, repeats="allow")
    assert not any("a5" in items for items in before.values())
    clock["now"] = JUNE
    assert everything(job, repeats="allow") == before
    after = everything(recommender, repeats="allow")
    assert all(items[0] == "b5" and "a5" in items for items in after.values())
    assert job.ruling.in_force() == ("rule 1",)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_lists_are_the_same_on_a_cuda_device(bundle: Bundle) -> None:
    entries = (
        {"action": "boost", "by": 0.7, "items": {"color": "red"}, "users": {"city": "Cork"}},
        {"action": "cap", "most": 2, "attribute": "brand"},
    )
    here, there = under(bundle, *entries), Recommender(bundle, "cuda", rules(*entries), JUNE)
    assert everything(here) == everything(there)
