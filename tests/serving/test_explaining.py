"""A reason is arithmetic: what is shown adds up to the score, over paths that are in the graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from kgrank.fusion.channels import SparseFeatures
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import Tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.explaining import path_shares
from kgrank.serving.explanation import Explanation
from kgrank.serving.recommender import Recommender

N_ITEMS = 299


class PathShare(NamedTuple):
    item: int
    entity: int
    share: float


@pytest.fixture(scope="session")
def even(shop_bundle: Bundle) -> Recommender:
    """The sample shop's channels, all weighed alike: each, the graph too, has a part everywhere."""
    model = shop_bundle.model
    n = len(model.channels)
    weights = replace(FusionWeights.equal(n), slope=np.full(n, 0.5, np.float32), trend=0.25)
    heads = replace(model, heads={"new": weights, "all": replace(weights, trend=0.75)})
    return Recommender(replace(shop_bundle, model=heads), device="cpu")


@pytest.fixture(scope="session")
def pairs(shop_bundle: Bundle, truth: dict[str, Any]) -> list[tuple[str, str]]:
    """150 drawn pairs of a user and an item, cold items and the planted case among them."""
    rng = np.random.default_rng(7)
    users = rng.choice(shop_bundle.users.ids(), 150)
    items = rng.choice(shop_bundle.items.ids(), 150)
    items[:24] = [*truth["cold"], *truth["cold"]]
    return [("u-ada", "tarn-bottle"), *zip(map(str, users), map(str, items), strict=True)]


def graph_has(graph: KnowledgeGraph, explanation: Explanation) -> bool:
    """Whether every edge of every path stands in the graph with its direction and relation."""
    for path in explanation.paths:
        types = {node.id: node.type for node in path.nodes}
        for edge in path.edges:
            head = graph.node_number(types[edge.head], edge.head)
            tail = graph.node_number(types[edge.tail], edge.tail)
            if tail not in graph.neighbors(head, edge.relation).nodes:
                return False
    return True


@pytest.mark.parametrize("which", ["recommender", "even"])
@pytest.mark.parametrize("repeats", ["exclude", "allow"])
def test_the_parts_add_up_to_the_score_of_the_list(
    request: pytest.FixtureRequest,
    pairs: list[tuple[str, str]],
    which: str,
    repeats: Literal["exclude", "allow"],
) -> None:
    recommender: Recommender = request.getfixturevalue(which)
    users = list(dict.fromkeys(user for user, _ in pairs))
    lists = recommender.recommend(users, n=N_ITEMS, repeats=repeats)
    scores = lists.set_index(["user_id", "item_id"])["score"].to_dict()
    listed = 0
    for user, item in pairs:
        found = recommender.explain(user, item, repeats=repeats)
        total = sum(found.contributions.values())
        assert found.bias + total == pytest.approx(found.score, rel=1e-6)
        by_event = sum(event.contribution for event in found.events)
        assert by_event == pytest.approx(total, rel=1e-6, abs=1e-9)
        if (user, item) in scores:
            assert found.score == pytest.approx(scores[user, item], rel=1e-5, abs=1e-6)
            listed += 1
    assert listed > 100


def test_every_event_is_there_once_the_largest_first(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    events = even.bundle.events
    for user, item in pairs[:40]:
        found = even.explain(user, item)
        own = events[events["user_id"] == user]
        happened = Counter(zip(own["item_id"], own["event"], strict=True))
        assert Counter((e.item_id, e.event) for e in found.events) == happened
        brought = [event.contribution for event in found.events]
        assert brought == sorted(brought, reverse=True)


def test_an_item_that_was_met_is_explained_as_in_lists_of_all(even: Recommender) -> None:
    met, fresh = "alta-tent", "tarn-bottle"
    assert even.explain("u-ada", met) == even.explain("u-ada", met, repeats="allow")
    assert even.explain("u-ada", met) != even.explain("u-ada", met, repeats="exclude")
    assert even.explain("u-ada", fresh) == even.explain("u-ada", fresh, repeats="exclude")
    assert even.explain("u-ada", met, repeats="only") == even.explain("u-ada", met, repeats="allow")


def test_all_paths_together_carry_what_the_graph_contributes(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    bundle, model = even.bundle, even.model
    number = [channel.name for channel in model.channels].index("graph")
    form = model.channels[number].form
    assert isinstance(form, SparseFeatures)
    carried = 0
    for user, item in pairs:
        span = bundle.histories.of_users(bundle.users.numbers([user]))
        of = int(bundle.items.numbers([item])[0])
        parts = model.parts(bundle.histories, span, of, "new")
        shares = path_shares(bundle, form, of, parts.factors[number], parts.events)
        graph = even.explain(user, item, repeats="exclude").contributions["graph"]
        assert shares["share"].sum() == pytest.approx(graph, rel=1e-5, abs=1e-7)
        assert not shares.duplicated(["item", "entity"]).any()
        carried += graph > 0.0
    assert carried > 100


def test_a_shown_path_is_in_the_graph_and_carries_its_part(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    graph, shown = even.bundle.graph, 0
    met = set(zip(even.bundle.events["user_id"], even.bundle.events["item_id"], strict=True))
    for user, item in pairs:
        found = even.explain(user, item, max_paths=50)
        assert graph_has(graph, found)
        for path in found.paths:
            first, product, _, last = path.nodes
            assert (first.id, first.type, last.id, last.type) == (user, "user", item, "item")
            assert product.type == "item" and (user, product.id) in met
            assert len(path.edges) == 3
            assert {path.edges[0].head, path.edges[0].tail} == {user, product.id}
            assert path.contribution > 0.0
            shown += 1
        carried = sum(path.contribution for path in found.paths)
        assert carried <= found.contributions["graph"] * (1 + 1e-5) + 1e-9
    assert shown > 200


def test_paths_stand_by_what_they_carry_each_through_an_entity_of_its_own(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    for user, item in pairs:
        paths = even.explain(user, item, max_paths=50).paths
        assert len({path.nodes[2].id for path in paths}) == len(paths)
        carried = [path.contribution for path in paths]
        assert carried == sorted(carried, reverse=True)


def test_of_two_paths_the_second_is_over_another_product_where_one_carries_enough(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    """The strongest, and with it the strongest over another product and entity that carries a
    tenth of it; the next of the same product only where there is none. Less than a hundredth of the
    strongest is not shown."""
    bundle = even.bundle
    number = [channel.name for channel in even.model.channels].index("graph")
    form = even.model.channels[number].form
    assert isinstance(form, SparseFeatures)
    others = 0
    for user, item in pairs:
        shown = even.explain(user, item, max_paths=2, repeats="exclude").paths
        span = bundle.histories.of_users(bundle.users.numbers([user]))
        of = int(bundle.items.numbers([item])[0])
        parts = even.model.parts(bundle.histories, span, of, "new")
        shares = path_shares(bundle, form, of, parts.factors[number], parts.events)
        columns = [shares[name].tolist() for name in ("item", "entity", "share")]
        rows = [PathShare(*row) for row in zip(*columns, strict=True) if row[2] > 0.0]
        rows.sort(key=lambda row: -row.share)
        rows = [row for row in rows if row.share >= rows[0].share / 100]
        assert len(shown) == min(2, len({row.entity for row in rows}))
        if len(shown) < 2:
            continue
        best = rows[0]
        assert shown[0].contribution == pytest.approx(best.share, rel=1e-6)
        rest = [row for row in rows if row.entity != best.entity]
        over_others = [
            row for row in rest if row.item != best.item and row.share >= best.share / 10
        ]
        second = (over_others or rest)[0]
        assert shown[1].contribution == pytest.approx(second.share, rel=1e-6)
        others += bool(over_others)
    assert others > 30


def test_at_most_so_many_paths_the_strongest_among_them(even: Recommender) -> None:
    whole = even.explain("u-ada", "tarn-bottle", max_paths=50).paths
    assert len(whole) == 2  # the brand and the category; the hub carries next to nothing
    for most in range(3):
        paths = even.explain("u-ada", "tarn-bottle", max_paths=most).paths
        assert len(paths) == most
        assert paths[:1] == whole[: min(1, most)]


def test_without_an_edge_of_its_path_an_item_has_that_path_no_more(even: Recommender) -> None:
    """The features without the entity of the strongest path: the score falls by its share."""
    found = even.explain("u-ada", "tarn-bottle", max_paths=50)
    number = [channel.name for channel in even.model.channels].index("graph")
    channel = even.model.channels[number]
    assert isinstance(channel.form, SparseFeatures)
    item = int(even.bundle.items.numbers(["tarn-bottle"])[0])
    entity = even.bundle.graph.node_number("brand", "brand:Nordfell")
    column = int(np.flatnonzero(even.bundle.item_entities.columns == entity)[0])
    values = channel.form.values.tolil()
    values[item, column] = 0.0
    channels = list(even.model.channels)
    channels[number] = replace(channel, form=SparseFeatures(values.tocsr()))
    model = replace(even.model, channels=tuple(channels))
    without = Recommender(replace(even.bundle, model=model), "cpu")
    after = without.explain("u-ada", "tarn-bottle", max_paths=50)
    gone = [path for path in found.paths if path.nodes[2].id == "brand:Nordfell"]
    assert len(gone) == 1
    assert "brand:Nordfell" not in {path.nodes[2].id for path in after.paths}
    # One number of many changes the size that scores are divided by, so not to the last digit.
    assert found.score - after.score == pytest.approx(gone[0].contribution, rel=0.02)


def test_the_planted_case_is_explained_by_its_brand_and_its_category(
    recommender: Recommender, truth: dict[str, Any]
) -> None:
    case = truth["case"]
    found = recommender.explain(case["user"], case["item"], max_paths=2)
    shown = sorted([node.id for node in path.nodes] for path in found.paths)
    assert shown == sorted(case["paths"])
    assert found.contributions["linear"] == found.contributions["directed"] == 0.0  # it is cold
    assert {event.item_id for event in found.events} == set(case["history"])
    more = recommender.explain(case["user"], case["item"], max_paths=50)
    assert more.paths == found.paths  # the hub, which all products share, is no reason
    assert "shipping" not in more.text
    assert more.paths[0].edges[0].relation == "purchase"


def test_a_product_that_shares_nothing_has_no_path(
    recommender: Recommender, truth: dict[str, Any]
) -> None:
    lonely = truth["odd"]["no_attributes"]
    found = recommender.explain("u-ada", lonely)
    assert found.paths == ()
    assert found.contributions["graph"] == 0.0


def test_a_user_without_events_is_explained_by_the_bias(tiny_bundle: Bundle) -> None:
    users = tiny_bundle.users.extended(["u-mute"])
    found = Recommender(replace(tiny_bundle, users=users), "cpu").explain("u-mute", "a1")
    assert found.score == found.bias
    assert found.events == ()
    assert found.paths == ()


def test_the_text_speaks_both_languages_of_the_same_products(recommender: Recommender) -> None:
    english = recommender.explain("u-ada", "tarn-bottle")
    chinese = recommender.explain("u-ada", "tarn-bottle", language="zh")
    assert replace(chinese, text="") == replace(english, text="")
    title = recommender.bundle.names["brook-bottle"]
    for text in (english.text, chinese.text):
        assert title in text
        assert "Water bottles" in text
    assert english.text.startswith("You bought")
    assert "您购买过" in chinese.text


# Profiles


def test_a_profile_counts_what_the_tables_hold(
    recommender: Recommender, shop_tables: Tables
) -> None:
    """Every fortieth user, counted again row by row."""
    names = ("user_id", "timestamp", "item_id", "event", "split")
    columns = [shop_tables.events[name].tolist() for name in names]
    for user in map(str, recommender.bundle.users.ids()[::40]):
        rows = [
            (time, item, event)
            for of, time, item, event, split in zip(*columns, strict=True)
            if of == user and split != "test"
        ]
        profile = recommender.profile(user)
        assert profile.user_id == user
        assert profile.events == Counter(event for _, _, event in rows)
        assert profile.first == (rows[0][0] if rows else None)
        assert profile.last == (rows[-1][0] if rows else None)
        newest = list(dict.fromkeys(item for _, item, _ in reversed(rows)))
        assert profile.items == tuple(newest[:10])


def test_the_profile_of_the_planted_user(recommender: Recommender) -> None:
    """Three purchases; 21 March and 7 June 2025, as the sample shop's events say."""
    profile = recommender.profile("u-ada")
    assert profile.events == {"purchase": 3}
    assert profile.items == ("field-notebook", "brook-bottle", "alta-tent")
    assert (profile.first, profile.last) == (1_742_558_400.0, 1_749_314_880.0)
    of = {interest.id: interest.item_ids for interest in profile.entities}
    assert of["brand:Nordfell"] == ("alta-tent",)
    assert of["category:Water bottles"] == ("brook-bottle",)


def test_interests_stand_by_what_they_weigh_in_the_users_products(tiny_bundle: Bundle) -> None:
    """u-gus met b3, b4, b5 and b1: all Birch, one of them of wool, and nothing else.

    Twelve items. Birch: 6 of them, idf ln 2; wool: a3 and b1, idf ln 6. Rows have length 1:
    b3, b4 and b5 are (birch 1); b1 = (ln 2, ln 6) / √(ln² 2 + ln² 6) = (0.361, 0.933).
    """
    profile = Recommender(tiny_bundle, "cpu").profile("u-gus")
    length = np.hypot(np.log(2), np.log(6))
    birch, wool = 3 + np.log(2) / length, np.log(6) / length
    assert [interest.name for interest in profile.entities] == ["Birch", "Wool"]
    shares = [interest.share for interest in profile.entities]
    assert shares == pytest.approx([birch / (birch + wool), wool / (birch + wool)], rel=1e-5)
    assert [interest.item_ids for interest in profile.entities] == [
        ("b1", "b3", "b4", "b5"),
        ("b1",),
    ]


def test_a_user_without_events_has_an_empty_profile(tiny_bundle: Bundle) -> None:
    users = tiny_bundle.users.extended(["u-mute"])
    profile = Recommender(replace(tiny_bundle, users=users), "cpu").profile("u-mute")
    assert profile.events == {}
    assert profile.first is profile.last is None
    assert profile.items == ()
    assert profile.entities == ()
