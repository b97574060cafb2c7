"""A reason is arithmetic: what is shown adds up to the score, over paths that are in the graph."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from kgrank.errors import ModelError
from kgrank.fusion.channels import Channel, DenseFeatures, SparseFeatures
from kgrank.fusion.history import REFUSED, Decay
from kgrank.fusion.model import FusedModel
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.entities import EntityVectors, entity_vectors, symmetric
from kgrank.kg.gnn import GraphInput, LightEncoder, graph_encoder, type_starts
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import Tables
from kgrank.kg.vocabulary import USER
from kgrank.serving.bundle import Bundle
from kgrank.serving.drawing import draw_paths, path_texts
from kgrank.serving.explaining import Explainer
from kgrank.serving.explanation import Explanation
from kgrank.serving.paths import LEAST_INFORMATION, FoundPaths
from kgrank.serving.recommender import Recommender

N_ITEMS = 299


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
        found.check()
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


def all_paths(recommender: Recommender, user: str, item: str) -> FoundPaths:
    """Every path of a score in lists of new products."""
    bundle, model, histories = recommender.bundle, recommender.model, recommender.bundle.histories
    number, of = int(bundle.users.numbers([user])[0]), int(bundle.items.numbers([item])[0])
    folded = model.folded(histories, histories.of_users(np.array([number])), "new")
    parts = model.parts_of(folded, of, "new")
    return recommender.explainer.paths.find(parts, folded, of, number)


def test_what_paths_carried_and_what_has_none_is_each_channels_contribution(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    names = [channel.name for channel in even.model.channels]
    carried: Counter[str] = Counter()
    for user, item in pairs:
        found = even.explain(user, item, repeats="exclude")
        every = all_paths(even, user, item)
        assert every.of_channels.sum(axis=0) == pytest.approx(every.parts)
        assert (every.parts > 0.0).all()
        for name, of_paths in zip(names, every.of_channels.sum(axis=1), strict=True):
            rest, whole = found.remainder[name], found.contributions[name]
            assert rest.paths == pytest.approx(of_paths)
            assert rest.paths + rest.without_path == pytest.approx(whole)
            carried[name] += rest.paths > 0.0
            if name in ("text", "repeat"):
                assert rest.paths == 0.0
    assert min(carried[name] for name in ("linear", "directed", "graph")) > 60, carried


def test_the_graph_channel_is_all_paths(even: Recommender, pairs: list[tuple[str, str]]) -> None:
    """But from a product of the history to itself: what it shares with itself is no reason."""
    for user, item in pairs:
        met = even.bundle.events.loc[even.bundle.events["user_id"] == user, "item_id"]
        if item not in set(met):
            found = even.explain(user, item, repeats="exclude")
            rest = found.remainder["graph"]
            assert rest.without_path == pytest.approx(0.0, abs=1e-5)


def test_paths_of_item_weights_carry_no_more_than_what_speaks_for_the_product(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    """What paths of `linear` carried is at most what events with weights above 0 brought."""
    number = [channel.name for channel in even.model.channels].index("linear")
    histories = even.bundle.histories
    for user, item in pairs[:60]:
        span = histories.of_users(even.bundle.users.numbers([user]))
        of = int(even.bundle.items.numbers([item])[0])
        parts = even.model.parts(histories, span, of, "new").parts[number]
        most = parts[parts > 0.0].sum()
        assert all_paths(even, user, item).of_channels[number].sum() <= most * (1 + 1e-5) + 1e-9


def test_a_shown_path_is_in_the_graph_and_carries_its_part(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    graph, shown = even.bundle.graph, Counter[str]()
    met = set(zip(even.bundle.events["user_id"], even.bundle.events["item_id"], strict=True))
    for user, item in pairs:
        found = even.explain(user, item, max_paths=50)
        assert graph_has(graph, found)
        for path in found.paths:
            first, product, *between, last = path.nodes
            assert (first.id, first.type, last.id, last.type) == (user, "user", item, "item")
            assert product.type == "item" and (user, product.id) in met
            assert product.id != item
            assert len(path.edges) == len(path.nodes) - 1
            assert {path.edges[0].head, path.edges[0].tail} == {user, product.id}
            assert path.contribution > 0.0
            assert sum(path.channels.values()) == pytest.approx(path.contribution)
            if between and between[0].type == "user":
                assert between[0].id != user
                assert {(between[0].id, product.id), (between[0].id, item)} <= met
                shown["user"] += 1
            else:
                assert path.others == 0 and path.others_contribution == 0.0
                shown["entity" if between else "fact"] += 1
                assert len(between) <= 1
        for channel, rest in found.remainder.items():
            carried = sum(path.channels.get(channel, 0.0) for path in found.paths)
            assert carried <= rest.paths * (1 + 1e-5) + 1e-9
    assert min(shown["user"], shown["entity"]) > 200


def test_one_path_carries_what_several_channels_say_over_it(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    several = 0
    for user, item in pairs[:40]:
        keys = [
            tuple((node.type, node.id) for node in path.nodes)
            for path in even.explain(user, item, max_paths=50).paths
        ]
        assert len(set(keys)) == len(keys)
        for path in even.explain(user, item, max_paths=50).paths:
            several += {"graph", "linear"} <= set(path.channels)
    assert several > 20


def test_paths_stand_by_what_they_carry_each_through_a_node_of_its_own(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    for user, item in pairs:
        paths = even.explain(user, item, max_paths=50).paths
        middles = [(path.nodes[2].type, path.nodes[2].id) for path in paths]
        assert len(set(middles)) == len(middles)
        carried = [path.together for path in paths]
        assert carried == sorted(carried, reverse=True)
        over_users = [path.nodes[1].id for path in paths if path.over_user]
        assert len(set(over_users)) == len(over_users)  # one stands for all over that product


def test_a_path_over_a_user_stands_for_all_over_the_same_product(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    graph, several = even.bundle.graph, 0
    for user, item in pairs[:60]:
        every = all_paths(even, user, item)
        over = graph.nodes.types[every.middles] == USER
        over &= even.explainer.paths.information[every.middles] >= LEAST_INFORMATION
        for path in even.explain(user, item, max_paths=50, repeats="exclude").paths:
            if path.over_user:
                product = int(even.bundle.items.numbers([path.nodes[1].id])[0])
                group = every.parts[over & (every.items == product)]
                assert path.others == len(group) - 1
                assert path.together == pytest.approx(group.sum())
                assert path.contribution <= group.max() * (1 + 1e-9)
                several += path.others > 0
    assert several > 30


def test_of_two_paths_the_second_is_over_another_product_where_one_carries_enough(
    even: Recommender, pairs: list[tuple[str, str]]
) -> None:
    """The next of the same product only where none over another carries a tenth of the first."""
    others = 0
    for user, item in pairs:
        whole = even.explain(user, item, max_paths=1000, repeats="exclude").paths
        shown = even.explain(user, item, max_paths=2, repeats="exclude").paths
        assert shown[:1] == whole[:1]
        assert len(shown) == min(2, len(whole))
        assert all(path.together >= whole[0].together / 100 for path in whole)
        if len(shown) == 2:
            over_others = [
                path
                for path in whole
                if path.nodes[1] != shown[0].nodes[1] and path.together >= shown[0].together / 10
            ]
            if over_others:
                assert shown[1].nodes[1] != shown[0].nodes[1]
                others += 1
    assert others > 30


def test_at_most_so_many_paths_the_strongest_among_them(even: Recommender) -> None:
    whole = even.explain("u-ada", "tarn-bottle", max_paths=50).paths
    assert len(whole) >= 2
    for most in range(3):
        paths = even.explain("u-ada", "tarn-bottle", max_paths=most).paths
        assert len(paths) == most
        assert paths[:1] == whole[: min(1, most)]


def test_what_all_products_share_is_no_way(even: Recommender) -> None:
    """A node's information is 1 − log(products it touches) / log(products)."""
    bundle, finder = even.bundle, even.explainer.paths
    brand = bundle.graph.node_number("brand", "brand:Nordfell")
    n = (bundle.item_table["brand"] == "Nordfell").sum()
    wanted = 1 - np.log(n) / np.log(len(bundle.items))
    assert finder.information[brand] == pytest.approx(wanted)
    user = bundle.graph.node_number("user", "u-ada")
    assert finder.information[user] == pytest.approx(1 - np.log(3) / np.log(len(bundle.items)))
    degrees = np.exp((1 - finder.information) * np.log(len(bundle.items)))
    assert (degrees[finder.information < LEAST_INFORMATION] > 100).all()


def test_without_the_edges_of_a_path_an_item_has_it_no_more(even: Recommender) -> None:
    """The features without the entity of the strongest path: the score falls by its share."""
    number = [channel.name for channel in even.model.channels].index("graph")
    channel = even.model.channels[number]
    assert isinstance(channel.form, SparseFeatures)
    found = even.explain("u-ada", "tarn-bottle", max_paths=50)
    item = int(even.bundle.items.numbers(["tarn-bottle"])[0])
    entity = even.bundle.graph.node_number("brand", "brand:Nordfell")
    column = int(np.flatnonzero(even.bundle.item_entities.columns == entity)[0])
    values = channel.form.values.tolil()
    values[item, column] = 0.0
    channels = list(even.model.channels)
    channels[number] = replace(channel, form=SparseFeatures(values.tocsr()))
    model = replace(even.model, channels=tuple(channels))
    after = Recommender(replace(even.bundle, model=model), "cpu").explain("u-ada", "tarn-bottle")
    gone = [path for path in found.paths if path.nodes[2].id == "brand:Nordfell"]
    assert len(gone) == 1
    fell = found.contributions["graph"] - after.contributions["graph"]
    # One number of many changes the size that scores are divided by, so not to the last digit.
    assert fell == pytest.approx(gone[0].channels["graph"], rel=0.02)


def test_other_users_can_be_left_out(even: Recommender, pairs: list[tuple[str, str]]) -> None:
    hidden = 0
    users = set(even.bundle.users.ids().tolist())
    for user, item in pairs[:30]:
        whole = even.explain(user, item, max_paths=5)
        found = even.explain(user, item, max_paths=5, anonymous=True)
        assert replace(found, paths=()) == replace(whole, paths=())
        for path, open_path in zip(found.paths, whole.paths, strict=True):
            named = {node.id for node in path.nodes} | {
                end for edge in path.edges for end in (edge.head, edge.tail)
            }
            assert named & users <= {user}
            assert path.contribution == open_path.contribution
            assert bool(path.cypher) != path.over_user
            hidden += path.over_user
            assert bool(open_path.cypher)
    assert hidden > 2


def test_no_text_names_another_user(even: Recommender, pairs: list[tuple[str, str]]) -> None:
    for user, item in pairs[:40]:
        for language in ("en", "zh"):
            found = even.explain(user, item, language=language)
            others = {p.nodes[2].id for p in found.paths if p.over_user}
            for said in (found.text, *path_texts(found), draw_paths(found)):
                assert not any(re.search(rf"\b{re.escape(other)}\b", said) for other in others)


def test_a_sum_that_is_off_is_an_internal_error(even: Recommender) -> None:
    found = even.explain("u-ada", "tarn-bottle")
    moved = 1e-3 * (abs(found.bias) + sum(map(abs, found.contributions.values())))
    rest = found.remainder["graph"]
    faults = [
        replace(found, score=found.score + moved),
        replace(found, events=found.events[1:]),
        replace(
            found,
            remainder={**found.remainder, "graph": replace(rest, paths=rest.paths + moved)},
        ),
        replace(found, paths=(*found.paths, *found.paths, *found.paths)),
    ]
    for fault in faults:
        with pytest.raises(ModelError, match="internal error: why 'tarn-bottle' for 'u-ada'"):
            fault.check()


def test_scores_that_lists_do_not_have_are_an_internal_error(even: Recommender) -> None:
    """One explanation of many is held against the list's score: here the first."""
    fresh = Explainer(even.bundle, replace(even.model))
    real = fresh.model.scores
    object.__setattr__(fresh.model, "scores", lambda *of: real(*of) + 0.5)
    with pytest.raises(ModelError, match="internal error"):
        next(fresh.explain("u-ada", ["tarn-bottle"]))


def test_the_learned_channel_speaks_over_what_both_products_share(
    shop_bundle: Bundle, pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    """The parts that an entity brings to both vectors, worked out again from the encoder's facts.

    Entities of the sample shop have one relation each, so nothing is lost in means. A fact that
    ties both products is a path of two edges.
    """
    data, histories = shop_bundle.graph.to_pyg(), shop_bundle.histories
    words = next(c.form.values for c in shop_bundle.model.channels if c.name == "text")
    graph = GraphInput.of(data, histories.by_kind(), words)
    torch.manual_seed(0)
    encoder = graph_encoder("light", graph, 16, 1)
    assert isinstance(encoder, LightEncoder)
    with torch.no_grad():
        encoder.tail.mul_(20.0)
        sums = encoder.sums(encoder.shared())
        facts = encoder.facts().double().numpy()
    lengths = torch.stack(sums).norm(dim=2)
    vectors = [of / length[:, None] for of, length in zip(sums, lengths, strict=True)]
    entities = entity_vectors(encoder, graph)
    form = DenseFeatures(vectors[1], vectors[0], entities, lengths.numpy())
    channel = Channel("learned", Decay(power=0.5), form)
    weights = FusionWeights.equal(1)
    model = FusedModel((channel,), shop_bundle.model.side, {"new": weights, "all": weights})
    recommender = Recommender(replace(shop_bundle, model=model), "cpu")
    steps, of_kinds = entities.steps, [symmetric(m) for m in histories.by_kind().values()]
    assert steps is not None
    users = sum(matrix @ steps.base for matrix in of_kinds)
    brought = sum(w * (m.T @ users) for w, m in zip(steps.weights[0], of_kinds, strict=True))
    assert steps.base + brought == pytest.approx(sums[1].numpy(), rel=1e-3, abs=1e-5)
    known = graph.known.toarray().astype(np.float64)
    start, n_products = type_starts(data)[0]["item"], len(shop_bundle.items)
    tails = graph.nodes[graph.tails] - start
    products = (tails >= 0) & (tails < n_products)  # as entities they have no vectors
    squares = (facts**2).sum(axis=1)
    base, own = steps.base.astype(np.float64), sums[0].double().numpy()
    own -= sums[1].double().numpy() - base  # sources before the steps

    def of_fact(one: int, other: int) -> np.ndarray:
        """What facts to one product bring to the other."""
        brought: np.ndarray = known[other] * (products & (tails == one)) @ facts
        return brought

    ties = np.argwhere(known[:, products] > 0)
    tied = {(int(i), int(tails[products][f])) for i, f in ties}
    owners: dict[int, str] = {}
    for event_user, event_item in zip(histories.users().tolist(), histories.items, strict=True):
        owners.setdefault(int(event_item), str(shop_bundle.users.ids()[event_user]))
    asked = [(owners[h], str(shop_bundle.items.ids()[i])) for i, h in sorted(tied) if h in owners]
    carried = over_users = direct = shown = 0
    for user, item in [*pairs[:40], *asked[:20]]:
        every = all_paths(recommender, user, item)
        is_user = shop_bundle.graph.nodes.types[every.middles] == USER
        over_users += int(is_user.sum())
        number, of = int(shop_bundle.users.numbers([user])[0]), every.items
        folded = model.folded(histories, histories.of_users(np.array([number])), "new")
        target = int(shop_bundle.items.numbers([item])[0])
        factors = model.parts_of(folded, target, "new").factors[0]
        met, place = np.unique(folded.items, return_inverse=True)
        wanted, wanted_direct = {}, {}
        for product, factor in zip(met.tolist(), np.bincount(place, factors), strict=True):
            there, back = of_fact(product, target), of_fact(target, product)
            of_tie = own[product] @ there + back @ base[target] - there @ back
            of_tie /= float(lengths[0, product]) * float(lengths[1, target])
            wanted_direct[product] = max(0.0, float(factor * of_tie)) if product != target else 0.0
            shared = known[product] * known[target] * squares
            shared /= float(lengths[0, product]) * float(lengths[1, target])
            if product != target:
                wanted[product] = float(factor * shared.sum())
        for product, part in wanted.items():
            is_tie = every.middles == recommender.explainer.paths.item_nodes[product]
            over_facts = every.parts[(of == product) & ~is_user & ~is_tie].sum()
            assert over_facts == pytest.approx(part, rel=1e-4, abs=1e-9)
            over_tie = every.parts[(of == product) & is_tie].sum()
            assert over_tie == pytest.approx(wanted_direct[product], rel=1e-3, abs=1e-7)
            carried += part > 0.0
            direct += over_tie > 0.0
        why = next(recommender.explainer.explain(user, [item], max_paths=20))
        why.check()
        assert graph_has(shop_bundle.graph, why)
        short = [path for path in why.paths if len(path.edges) == 2]
        assert all(path.nodes[1].type == "item" and path.nodes[2].id == item for path in short)
        shown += len(short)
    assert carried > 40
    assert over_users > 40
    assert direct > 10
    assert shown > 5
    again = Bundle.load(replace(shop_bundle, model=model).save(tmp_path))
    form_again = again.model.channels[0].form
    assert isinstance(form_again, DenseFeatures) and form_again.entities is not None
    assert entities.items is not None and form_again.entities.items is not None
    assert form_again.entities.items.ids == entities.items.ids
    assert (form_again.entities.items.values == entities.items.values).all()


def test_another_encoder_than_light_has_no_paths_of_its_own(shop_bundle: Bundle) -> None:
    n_items = len(shop_bundle.items)
    vectors = torch.nn.functional.normalize(torch.randn(n_items, 8), dim=1)
    ids = ("brand:Nordfell",)
    form = DenseFeatures(vectors, None, EntityVectors(ids, np.ones((1, 8), np.float32)))
    weights = FusionWeights.equal(1)
    model = FusedModel(
        (Channel("learned", Decay(), form),),
        shop_bundle.model.side,
        {"new": weights, "all": weights},
    )
    found = Recommender(replace(shop_bundle, model=model), "cpu").explain("u-ada", "tarn-bottle")
    assert found.paths == ()
    assert found.remainder["learned"].without_path == found.contributions["learned"] != 0.0


def test_several_items_of_one_user_are_explained_as_one_by_one(even: Recommender) -> None:
    items = ["tarn-bottle", "alta-tent", "brook-bottle"]
    together = list(even.explainer.explain("0001", items, max_paths=2))
    assert together == [even.explain("0001", item, max_paths=2) for item in items]


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
    hub = [node.id for path in more.paths for node in path.nodes if node.type == "shipping"]
    assert not hub  # which all products share, and so is no reason
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


def test_what_was_refused_takes_away_and_is_no_reason(shop_bundle: Bundle) -> None:
    """Every third event refuses: parts still add up, and no path runs over a refusal."""
    events = shop_bundle.events
    kinds = np.where(np.arange(len(events)) % 3 == 0, REFUSED, events["event"].astype("str"))
    refusing = Recommender(replace(shop_bundle, events=events.assign(event=kinds)), "cpu")
    users = refusing.bundle.users.ids()[:15].tolist()
    listed = refusing.recommend(users, n=3, repeats="allow")
    against = 0
    for user, item in zip(listed["user_id"], listed["item_id"], strict=True):
        found = refusing.explain(user, item, max_paths=50)
        against += sum(event.contribution < 0 for event in found.events)
        assert all(path.contribution > 0 for path in found.paths)
        assert graph_has(shop_bundle.graph, found)
    assert against


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
