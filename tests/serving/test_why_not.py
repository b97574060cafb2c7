"""Why not: the reason holds, the gap adds up, and the change does what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kgrank.errors import ConfigError, UnknownIdError
from kgrank.fusion.history import REFUSED
from kgrank.fusion.model import Repeats
from kgrank.serving.bundle import Bundle
from kgrank.serving.recommender import Recommender
from kgrank.serving.rules import Rules
from kgrank.serving.why_not import Change


def under(bundle: Bundle, *entries: dict[str, Any]) -> Recommender:
    named = [{"name": f"rule {number}", **entry} for number, entry in enumerate(entries)]
    return Recommender(bundle, "cpu", Rules.from_dict({"rule": named}, "the test"))


def changed(bundle: Bundle, user: str, change: Change) -> Bundle:
    """The bundle whose user has the event more or less: the newest of its kind goes."""
    events = bundle.events
    own = events[events["user_id"] == user]
    if change.action == "remove":
        of = own[(own["item_id"] == change.item_id) & (own["event"] == change.event)]
        return replace(bundle, events=events.drop(index=of.index[-1]))
    newest = own.iloc[[-1]].assign(item_id=change.item_id, event=change.event)
    return replace(bundle, events=pd.concat([events, newest], ignore_index=True))


@pytest.mark.parametrize("repeats", ["exclude", "allow", "only"])
def test_the_change_that_is_told_lists_the_product_where_it_is_told(
    shop_bundle: Bundle, recommender: Recommender, repeats: Repeats
) -> None:
    """Of thirty users each a product just below their list of ten, or any where that is short."""
    rng = np.random.default_rng(3)
    told = 0
    for user in map(str, rng.choice(shop_bundle.users.ids(), 30)):
        whole = recommender.recommend([user], n=299, repeats=repeats)["item_id"].tolist()
        item = str(rng.choice(whole[9:30] if len(whole) > 30 else shop_bundle.items.ids()))
        why = recommender.why_not(user, item, repeats=repeats)
        lists = recommender.recommend([user], repeats=repeats)
        listed = lists[lists["item_id"] == item]
        assert (why.place is None) == listed.empty
        assert (why.reason == "listed") == (why.place is not None)
        if why.change is None:
            continue
        told += 1
        after = Recommender(changed(shop_bundle, user, why.change), "cpu")
        lists = after.recommend([user], repeats=repeats)
        places = lists.loc[lists["item_id"] == item, "rank"].tolist()
        assert places == [why.change.place]
    assert told > 2


def test_no_single_event_is_said_only_where_none_does_it(tiny_bundle: Bundle) -> None:
    """Every event that can be added or removed is tried here by hand."""
    recommender, nothing = Recommender(tiny_bundle, "cpu"), 0
    for user in ("u-ada", "u-ivy"):
        for item in ("a1", "a5", "b1", "b3", "b5", "v1"):
            why = recommender.why_not(user, item, n=1)
            if why.reason == "listed":
                continue
            own = tiny_bundle.events[tiny_bundle.events["user_id"] == user]
            tried = [Change("remove", i, "purchase", 1) for i in set(own["item_id"])]
            tried += [Change("add", i, "purchase", 1) for i in tiny_bundle.items.ids()]
            first = []
            for change in tried:
                after = Recommender(changed(tiny_bundle, user, change), "cpu")
                first += after.recommend([user], n=1)["item_id"].tolist()
            assert (why.change is None) == (item not in first)
            nothing += why.change is None
            assert ("None of" in why.text) == (why.change is None)
    assert nothing > 2


def test_rank_and_gap_are_those_of_the_scores(
    shop_bundle: Bundle, recommender: Recommender
) -> None:
    user = str(shop_bundle.users.ids()[5])
    whole = recommender.recommend([user], n=299).set_index("item_id")
    for item in whole.index[[3, 15, 100, 200]]:
        why = recommender.why_not(user, str(item), n=10)
        assert why.rank == whole.loc[item, "rank"]
        assert why.of == len(whole)
        assert why.score == pytest.approx(whole.loc[item, "score"], abs=1e-5)
        assert why.lowest is not None
        assert (why.lowest.item_id, why.lowest.place) == (whole.index[9], 10)
        gap = whole.loc[why.lowest.item_id, "score"] - whole.loc[item, "score"]
        assert sum(why.gap.values()) == pytest.approx(gap, abs=1e-5)


def test_what_was_met_or_is_no_candidate_is_told_so(tiny_bundle: Bundle) -> None:
    recommender = Recommender(tiny_bundle, "cpu")
    assert recommender.why_not("u-ada", "a1").reason == "met"
    assert recommender.why_not("u-ada", "a1").rank is None
    assert recommender.why_not("u-ada", "b5", repeats="only").reason == "not met"
    away = recommender.why_not("u-ada", "b5", candidates=["b1", "b2"])
    assert (away.reason, away.change) == ("not a candidate", None)
    assert recommender.why_not("u-ada", "b5", candidates=["b5"]).reason == "listed"
    # u-ada met a1 once: without that she could have it.
    change = recommender.why_not("u-ada", "a1", n=3).change
    assert change is not None
    assert (change.action, change.item_id) == ("remove", "a1")


def test_a_rule_that_keeps_a_product_off_is_named_and_no_history_helps(
    tiny_bundle: Bundle,
) -> None:
    out = {"action": "exclude", "items": {"item_id": "a5"}}
    recommender = under(tiny_bundle, out)
    why = recommender.why_not("u-ada", "a5")
    assert (why.reason, why.change, why.tried) == ("rule", None, 0)
    assert [(e.rule, e.action) for e in why.rules] == [("rule 0", "exclude")]
    assert why.rules[0].place_without == 1
    assert "“rule 0” keeps it off every list" in why.text
    only = under(tiny_bundle, {"action": "only", "items": {"brand": "Birch"}})
    assert "lists other products only" in only.why_not("u-ada", "a5").text
    assert "只列出别的商品" in only.why_not("u-ada", "a5", language="zh").text


def test_rules_that_change_places_are_told_by_leaving_them_out(tiny_bundle: Bundle) -> None:
    """u-ada's list is a5, c1, b2, …; a5 and c1 are of one brand."""
    plain = Recommender(tiny_bundle, "cpu").recommend(["u-ada"], n=8)["item_id"].tolist()
    assert plain[:3] == ["a5", "c1", "b2"]
    cap = {"action": "cap", "most": 1, "attribute": "brand"}
    why = under(tiny_bundle, cap).why_not("u-ada", "c1", n=3)
    assert why.reason == "rule"
    [told] = why.rules
    assert (told.action, told.place, told.place_without) == ("cap", None, 2)
    assert "keeps it off place 2" in told.text
    capped = {"action": "cap", "most": 1, "items": {"item_id": ["a5", "c1"]}}
    both = under(tiny_bundle, cap, capped).why_not("u-ada", "c1", n=3)
    assert (both.reason, [effect.place_without for effect in both.rules]) == ("rule", [2, 2])
    assert "keep it off place 2 together" in both.text
    pin = {"action": "pin", "place": 1, "items": {"item_id": plain[-1]}}
    [told] = under(tiny_bundle, pin).explain("u-ada", plain[-1]).rules
    assert (told.action, told.place, told.place_without) == ("pin", 1, 8)
    [told] = under(tiny_bundle, pin).explain("u-ada", "a5").rules
    assert "moves it from place 1 to place 2" in told.text
    spread = {"action": "diversify", "strength": 1.0, "attributes": ["brand"]}
    [told] = under(tiny_bundle, spread).explain("u-ada", "c1").rules
    assert told.action == "diversify"
    assert told.place is not None
    assert told.place > 2


def test_what_a_boost_lists_stands_in_the_gap(tiny_bundle: Bundle) -> None:
    boost = {"action": "boost", "by": 9.0, "items": {"item_id": ["b4", "b5"]}}
    recommender = under(tiny_bundle, boost)
    why = recommender.why_not("u-ada", "c1", n=2)
    assert why.gap["rules"] == pytest.approx(9.0 * recommender.ruling.unit("new"))
    lists = recommender.recommend(["u-ada"], n=8).set_index("item_id")["score"]
    assert why.lowest is not None
    gap = lists[why.lowest.item_id] - lists["c1"]
    assert sum(why.gap.values()) == pytest.approx(gap, abs=1e-5)
    assert "the shop's rules (+" in why.text


def test_wrong_questions_are_refused(tiny_bundle: Bundle) -> None:
    recommender = Recommender(tiny_bundle, "cpu")
    with pytest.raises(UnknownIdError):
        recommender.why_not("nobody", "a1")
    with pytest.raises(UnknownIdError):
        recommender.why_not("u-ada", "nothing")
    with pytest.raises(ConfigError, match="n: found 0"):
        recommender.why_not("u-ada", "a1", n=0)
    with pytest.raises(ConfigError, match="language"):
        recommender.why_not("u-ada", "a1", language="fr")  # type: ignore[arg-type]


def test_what_would_list_a_product_is_no_refusal(shop_bundle: Bundle) -> None:
    """Of users who refused all but one of what they met: one more event that speaks for it."""
    events = shop_bundle.events.copy()
    sizes = events.groupby("user_id", sort=True).size()
    users = sizes[(sizes > 4) & (sizes < 9)].index[:6].tolist()
    own = events["user_id"].isin(users) & events.duplicated("user_id", keep="last")
    events.loc[own, "event"] = REFUSED
    refusing = Recommender(replace(shop_bundle, events=events), "cpu")
    changes = []
    for user in users:
        item = refusing.recommend([user], n=14)["item_id"].iloc[-1]
        changes.append(refusing.why_not(user, item).change)
    added = [change for change in changes if change is not None and change.action == "add"]
    assert added
    assert REFUSED not in {change.event for change in added}
