"""A profile's lines stand on events; what is refused takes its line, and what is like it, down."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from kgrank.fusion.history import REFUSED, Decay, Histories, Spans
from kgrank.kg.tables import read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import prepare

START, DAY = 1_700_000_000, 86_400


def refused(bundle: Bundle, user: str, items: Iterable[str]) -> Bundle:
    """The bundle after the user refused the items, one after the other."""
    newest = bundle.events[bundle.events["user_id"] == user].iloc[[-1]]
    more = [newest.assign(item_id=item, event=REFUSED) for item in items]
    return replace(bundle, events=pd.concat([bundle.events, *more], ignore_index=True))


def test_a_refusal_counts_against_by_as_much() -> None:
    """Newest last: a purchase that weighs 2 at age 1, then a refusal at age 0; power 1."""
    histories = Histories(
        starts=np.array([0, 2]),
        items=np.array([3, 5], np.int32),
        kinds=np.array([1, 0], np.int16),
        times=np.full(2, np.nan),
        kind_names=(REFUSED, "purchase"),
        n_items=8,
    )
    whole = Spans(np.array([0]), np.array([2]))
    decay = Decay(power=1.0, kinds={"purchase": 2.0})
    assert histories.event_weights(whole, decay)[1].tolist() == [1.0, -1.0]
    decay = replace(decay, kinds={"purchase": 2.0, REFUSED: 3.0})
    assert histories.event_weights(whole, decay)[1].tolist() == [1.0, -3.0]


def test_a_line_tells_its_relation_its_events_and_when(tiny_bundle: Bundle) -> None:
    """u-ada: a1, a2, a3 on days 0, 3, 6 and a4 on day 30; a1 and a2 are of steel, a3 of wool."""
    lines = {line.name: line for line in Recommender(tiny_bundle, "cpu").profile("u-ada").entities}
    assert lines["Alder"].relation == "brand"
    assert lines["Alder"].events == {"purchase": 4}
    assert lines["Alder"].last == START + 30 * DAY
    assert lines["Steel"].relation == "made_of"
    assert lines["Steel"].item_ids == ("a1", "a2")
    assert (lines["Steel"].events, lines["Steel"].last) == ({"purchase": 2}, START + 3 * DAY)


def test_the_price_band_is_of_what_was_bought(tiny_bundle: Bundle) -> None:
    """a1, a2, a3, a4 cost 10, 20, 40 and 80: quantiles at places .3, 1.5 and 2.7 of 0 to 3."""
    assert Recommender(tiny_bundle, "cpu").profile("u-ada").price is None
    price = tiny_bundle.item_table["item_id"].map({"a1": "10", "a2": "20", "a3": "40", "a4": "80"})
    table = tiny_bundle.item_table.assign(price=price.fillna(""))
    events = tiny_bundle.events
    looked = events[events["user_id"] == "u-ada"].iloc[[0]].assign(event="view")
    seen = pd.concat([events, looked], ignore_index=True)
    bundle = replace(tiny_bundle, item_table=table, events=seen)
    band = Recommender(bundle, "cpu").profile("u-ada").price
    assert band is not None
    assert (band.low, band.median, band.high) == pytest.approx((13.0, 30.0, 68.0))
    assert band.events == 4
    assert Recommender(bundle, "cpu").profile("u-eva").price is None


def test_the_price_band_is_of_what_the_settings_call_a_purchase(tiny_bundle: Bundle) -> None:
    """Of u-ada's a1 … a4 the first two are an "order", the others a "look"."""
    price = tiny_bundle.item_table["item_id"].map({"a1": "10", "a2": "20", "a3": "40", "a4": "80"})
    table = tiny_bundle.item_table.assign(price=price.fillna(""))
    ordered = tiny_bundle.events["item_id"].isin(["a1", "a2"])
    events = tiny_bundle.events.assign(event=ordered.map({True: "order", False: "look"}))
    bundle = replace(tiny_bundle, item_table=table, events=events)
    band = Recommender(bundle, "cpu").profile("u-ada").price
    assert band is not None
    assert (band.median, band.events) == (15.0, 2)
    tasks = bundle.config.tasks.model_copy(update={"purchase": ("look",)})
    looked = replace(bundle, config=bundle.config.model_copy(update={"tasks": tasks}))
    band = Recommender(looked, "cpu").profile("u-ada").price
    assert band is not None
    assert (band.median, band.events) == (60.0, 2)


def test_a_line_goes_when_its_products_are_refused_and_its_like_fall(
    shop_bundle: Bundle, recommender: Recommender
) -> None:
    """The strongest line of ten users: each event behind it is followed by a refusal."""
    told = falls = 0
    for user in map(str, shop_bundle.users.ids()[:60]):
        lines = recommender.profile(user).entities
        node = shop_bundle.graph.node_number(lines[0].type, lines[0].id)
        column = int(np.flatnonzero(shop_bundle.item_entities.columns == node)[0])
        rows = shop_bundle.item_entities.matrix[:, [column]].toarray().ravel() > 0
        like = set(shop_bundle.items.ids(np.flatnonzero(rows)))
        own = shop_bundle.events[shop_bundle.events["user_id"] == user]
        behind = own.loc[own["item_id"].isin(lines[0].item_ids), "item_id"]
        if len(like - set(own["item_id"])) < 3 or len(behind) > 8:
            continue
        told += 1
        after = Recommender(refused(shop_bundle, user, behind), "cpu")
        assert lines[0].id not in {line.id for line in after.profile(user).entities}
        assert not set(lines[0].item_ids) & set(after.profile(user).items)
        before, now = (r.recommend([user], n=299) for r in (recommender, after))
        assert set(before["item_id"]) == set(now["item_id"])  # what was refused was met
        ranks = [x.loc[x["item_id"].isin(like), "rank"].mean() for x in (before, now)]
        falls += ranks[1] > ranks[0]
    assert told >= 8
    assert falls == told


def test_nothing_is_learned_from_refusals_and_none_is_to_be_foreseen(
    tiny_shop: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    tables = read_tables(tiny_shop)
    last = tables.events.iloc[[-1]]
    refusals = [
        last.assign(user_id="u-ada", item_id="b5", event=REFUSED, split="train"),
        last.assign(user_id="u-shy", item_id="b4", event=REFUSED, split="valid"),
        last.assign(user_id="u-ben", item_id="b3", event=REFUSED, split="test"),
    ]
    more = replace(tables, events=pd.concat([tables.events, *refusals], ignore_index=True))
    config = tiny_bundle.config
    plain, with_refusals = prepare(tables, config, tmp_path), prepare(more, config, tmp_path)
    assert "u-shy" in with_refusals.users
    assert with_refusals.histories.kind_names == plain.histories.kind_names == ("purchase",)
    assert len(with_refusals.histories.items) == len(plain.histories.items)
    assert REFUSED not in with_refusals.graph.relations
    more.save(tmp_path / "more")
    asked, without = (
        evaluate_bundle(tiny_bundle, source=folder, protocol="next")
        for folder in (tmp_path / "more", tiny_shop)
    )
    assert asked["queries"] == without["queries"]


def test_a_product_tells_its_facts_its_like_and_whom_it_draws(tiny_bundle: Bundle) -> None:
    """a1 was chosen by u-ada, u-ben, u-cai and u-dot; three of these four and u-eva are of Cork."""
    cities = {"u-ada": "Cork", "u-ben": "Cork", "u-cai": "Cork", "u-dot": "Oslo", "u-eva": "Cork"}
    users = pd.DataFrame({"user_id": list(cities), "city": list(cities.values())}, dtype="str")
    bundle = replace(tiny_bundle, user_table=users)
    recommender = Recommender(bundle, "cpu")
    known = recommender.profile_item("a1", n=3)
    assert known.title == "alpine tent number 1"
    assert (known.events, known.users) == ({"purchase": 6}, 4)
    assert {(fact.relation, fact.name) for fact in known.facts} == {
        ("brand", "Alder"),
        ("made_of", "Steel"),
    }
    similar = recommender.similar_items(["a1"], n=3)
    assert [item for item, _ in known.similar] == similar["similar_id"].tolist()
    [drawn] = known.drawn
    assert (drawn.attribute, drawn.value, drawn.users) == ("city", "Cork", 3)
    assert (drawn.share, drawn.share_of_all) == (3 / 4, 4 / 9)
    away = Recommender(refused(bundle, "u-eva", ("a1",)), "cpu").profile_item("a1")
    assert (away.users, away.events[REFUSED]) == (4, 1)


def test_the_command_line_asks_for_a_user_or_a_product(shop_models: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["profile", str(shop_models), *words])
        return result.exit_code, result.stdout

    status, text = run("--item", "brook-bottle")
    assert status == 0
    assert "Water bottles" in text
    assert "Whom it draws" in text
    assert "Whom it draws" not in run("--item", "tarn-bottle")[1]  # nobody has met it
    status, text = run("--user", "u-ada")
    assert status == 0
    assert "2025-06-07" in text
    assert 'An event "not_interested" on its products takes a line away.' in text
    assert run()[0] == run("--user", "u-ada", "--item", "brook-bottle")[0] == 2
