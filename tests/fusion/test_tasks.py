"""Heads learn the probabilities and ratings that a world was made with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.sparse as sp

from kgrank.fusion.channels import Channel, ItemItem, SparseFeatures
from kgrank.fusion.evidence import ItemFeatures, item_side, numbered
from kgrank.fusion.history import DAY, Decay, Histories
from kgrank.fusion.model import FusedModel
from kgrank.fusion.outcomes import MeanRatings, event_shares, outcomes_of, task_queries
from kgrank.fusion.pairs import Pairs
from kgrank.fusion.prediction import Lists
from kgrank.fusion.settings import FitSettings, TaskSettings
from kgrank.fusion.tasks import TaskHeads, learn_tasks, mend_of
from kgrank.fusion.training import fit
from kgrank.kg.vocabulary import Vocabulary

N_USERS, N_ITEMS = 400, 300
KINDS = ("purchase", "rating", "view")


def world(seed: int = 0) -> tuple[Histories, npt.NDArray[np.int8]]:
    """Even users view even items on train, and buy on valid: of their side 4 %, of the other 1 %.

    Each also rates six items on train and two on valid: 3, one more for their own side, one less
    for a strict user (every third), and noise of .3.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        own = np.arange(N_ITEMS) % 2 == user % 2
        viewed = rng.choice(np.flatnonzero(own), 6, replace=False)
        bought = np.flatnonzero(rng.random(N_ITEMS) < np.where(own, 0.04, 0.01))
        rated = rng.choice(N_ITEMS, 8, replace=False)
        values = 3.0 + own[rated] - (user % 3 == 0) + rng.normal(0, 0.3, 8)
        rows += [(user, item, 2, 0, np.nan) for item in viewed]
        rows += [(user, item, 1, 0, v) for item, v in zip(rated[:6], values[:6], strict=True)]
        rows += [(user, item, 1, 1, v) for item, v in zip(rated[6:], values[6:], strict=True)]
        rows += [(user, item, 0, 1, np.nan) for item in bought]
    users, items, kinds, splits, values = (np.array(column) for column in zip(*rows, strict=True))
    histories = Histories.from_arrays(
        users,
        items,
        kinds,
        splits * 10 * DAY,
        kind_names=KINDS,
        n_users=N_USERS,
        n_items=N_ITEMS,
        values=values,
    )
    return histories, splits.astype(np.int8)


def sides() -> Channel:
    """A channel that speaks for items of the side of what was viewed."""
    parity = np.arange(N_ITEMS) % 2
    weights = sp.csr_matrix((parity[:, None] == parity).astype(np.float32))
    return Channel("linear", Decay(kinds={"rating": 0.0}), ItemItem(weights))


def learned(lists: Lists = "all", **kinds: tuple[str, ...]) -> tuple[TaskHeads, FusedModel]:
    histories, splits = world()
    train = histories.where(splits == 0)
    side = item_side(train)
    heads = learn_tasks(
        [sides()], side, histories, splits, TaskSettings(**kinds), lists=lists, seed=0
    )
    weights = {task: head.weights for task, head in heads.found.items()}
    predictors = {task: head.predictor(train, side) for task, head in heads.found.items()}
    return heads, FusedModel((sides(),), side, weights, predictors)


def test_a_purchase_is_as_probable_as_the_world_makes_it() -> None:
    """4 % on the user's own side and 1 % on the other, for other users of the same world too."""
    heads, model = learned()
    assert set(heads.found) == {"purchase", "rating"}
    histories, splits = world(seed=1)
    train = histories.where(splits == 0)
    scores = model.scores(train, train.of_users(np.arange(N_USERS)), "purchase")
    found = model.predictors["purchase"].link(scores)
    own = np.arange(N_ITEMS) % 2 == np.arange(N_USERS)[:, None] % 2
    assert found[own].mean() == pytest.approx(0.04, abs=0.004)
    assert found[~own].mean() == pytest.approx(0.01, abs=0.002)
    facts = heads.found["purchase"].facts
    assert facts["pairs"] == pytest.approx(N_USERS * N_ITEMS)
    assert facts["share"] == pytest.approx(0.025, abs=0.002)
    assert facts["days"] == 10.0
    assert facts["ece_after"] < 0.002
    # .8 of the hits are on the own side, which half of all pairs are: .8 · .5 + ½ · (.4 + .1)
    assert facts["auc"] == pytest.approx(0.65, abs=0.03)


def clicking(seed: int = 0) -> tuple[Histories, npt.NDArray[np.int8]]:
    """On valid users click ten items of each side and buy 40 % of their own, 10 % of the other.

    On train they clicked eight items of their own side. 5 % of all are bought on valid without
    a click, which is no conversion.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(N_USERS):
        own = np.arange(N_ITEMS) % 2 == user % 2
        clicked = np.r_[*(rng.choice(np.flatnonzero(side), 10, False) for side in (own, ~own))]
        bought = clicked[rng.random(20) < np.where(own[clicked], 0.4, 0.1)]
        others = np.setdiff1d(np.flatnonzero(rng.random(N_ITEMS) < 0.05), clicked)
        rows += [(user, item, 1, 0) for item in rng.choice(np.flatnonzero(own), 8, False)]
        rows += [(user, item, 1, 1) for item in clicked]
        rows += [(user, item, 0, 1) for item in np.r_[bought, others]]
    users, items, kinds, splits = np.array(rows).T
    histories = Histories.from_arrays(
        users,
        items,
        kinds,
        splits * 10 * DAY,
        kind_names=("purchase", "view"),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )
    return histories, splits.astype(np.int8)


def test_a_conversion_is_as_probable_as_a_purchase_is_after_a_click() -> None:
    """40 % and 10 %, where a purchase of any item is 7.3 % and 5.3 %."""
    histories, splits = clicking()
    train = histories.where(splits == 0)
    side = item_side(train)
    heads = learn_tasks([sides()], side, histories, splits, TaskSettings(), lists="all", seed=0)
    head = heads.found["conversion"]
    assert head.facts["pairs"] == N_USERS * 20
    assert head.facts["share"] == pytest.approx(0.25, abs=0.01)
    assert (head.facts["kinds"], head.facts["given"]) == (["purchase"], ["view"])
    assert head.facts["ece_after"] < 0.03
    model = FusedModel(
        (sides(),), side, {"conversion": head.weights}, {"conversion": head.predictor(train, side)}
    )
    others = clicking(seed=1)[0].where(clicking(seed=1)[1] == 0)
    scores = model.scores(others, others.of_users(np.arange(N_USERS)), "conversion")
    found = model.predictors["conversion"].link(scores)
    own = np.arange(N_ITEMS) % 2 == np.arange(N_USERS)[:, None] % 2
    assert found[own].mean() == pytest.approx(0.4, abs=0.03)
    assert found[~own].mean() == pytest.approx(0.1, abs=0.02)
    split = model.parts(others, others.of_users(np.array([7])), 3, "conversion")
    assert split.score == pytest.approx(float(scores[7, 3]), rel=1e-5)


def test_a_conversion_is_a_purchase_after_the_first_click_of_the_same_product() -> None:
    """Item 0: click, purchase, click. 1: a click. 2: a purchase. 3: purchase, click. 4: both."""
    view, buy = 0, 1
    events = [(0, view), (0, buy), (0, view), (1, view), (2, buy), (3, buy), (3, view), (4, view)]
    items, kinds = np.array([*events, (4, buy)]).T
    histories = Histories.from_arrays(
        np.zeros(len(items), int),
        items,
        kinds,
        np.arange(float(len(items))),
        kind_names=("view", "purchase"),
        n_users=1,
        n_items=5,
    )
    queries = task_queries(histories, "all")
    outcome = outcomes_of("conversion", histories, ["purchase"], queries, ["view"])
    assert outcome.indices.tolist() == [0, 1, 3, 4]
    assert outcome.data.tolist() == [1.0, 0.0, 0.0, 1.0]
    met = outcomes_of(
        "conversion", histories, ["purchase"], task_queries(histories, "new"), ["view"]
    )
    assert met.nnz == 0
    # Half of the four convert; an item's own share counts as one user's among five of that half.
    up, down = np.log(3.5 / 6 / 0.5), np.log(2.5 / 6 / 0.5)
    shares = event_shares(histories, ["purchase"], ["view"])
    assert shares == pytest.approx([up, down, 0.0, down, up])


def test_conversions_need_products_that_were_clicked_and_not_bought() -> None:
    histories, splits = clicking()
    clicks = histories.of_kinds(["view"]) & (splits == 1)
    bought = outcomes_of(
        "conversion",
        histories.where(splits == 1),
        ["purchase"],
        task_queries(histories, "all"),
        ["view"],
    )
    rows = np.repeat(np.arange(N_USERS), np.diff(bought.indptr))
    hits = (rows * N_ITEMS + bought.indices)[bought.data > 0.0]
    kept = ~clicks | np.isin(histories.users() * N_ITEMS + histories.items, hits)
    histories, splits = histories.where(kept), splits[kept]
    side = item_side(histories.where(splits == 0))
    heads = learn_tasks([sides()], side, histories, splits, TaskSettings(), lists="all", seed=0)
    assert heads.left_out["conversion"] == (
        f"{len(hits)} of {len(hits)} clicked pairs on valid were bought, 50 that were and 50 that "
        "were not are needed"
    )


def test_a_rating_is_that_of_the_user_and_the_side() -> None:
    heads, model = learned()
    facts = heads.found["rating"].facts
    baselines = facts["baselines"]
    assert facts["rmse"] < 0.9 * baselines["item_and_user_means"]["rmse"]
    assert facts["rmse"] < 0.75 * baselines["global_mean"]["rmse"]
    histories, splits = world(seed=1)
    train = histories.where(splits == 0)
    users = np.arange(N_USERS)
    scores = model.scores(train, train.of_users(users), "rating").numpy()
    strict = users % 3 == 0
    assert scores[strict].mean() < scores[~strict].mean() - 0.3
    own = np.arange(N_ITEMS) % 2 == users[:, None] % 2
    assert scores[own].mean() > scores[~own].mean() + 0.5


def test_a_users_own_part_changes_no_list_and_parts_sum_to_the_score() -> None:
    heads, model = learned()
    histories, splits = world()
    train = histories.where(splits == 0)
    spans = train.of_users(np.array([7]))
    for head in heads.found:
        items, values = model.top(train, spans, head, 5)
        assert values[0].tolist() == model.scores(train, spans, head)[0][items[0]].tolist()
        split = model.parts(train, spans, int(items[0, 0]), head)
        assert split.score == pytest.approx(float(values[0, 0]), rel=1e-5)
        own = model.own_parts(train, spans, head)
        plain = FusedModel(model.channels, model.side, {head: model.heads[head]})
        base = model.predictors[head].base
        without = plain.scores(train, spans, head)[0].numpy() + base
        assert values[0].tolist() == pytest.approx((without[items[0]] + own[0]).tolist(), rel=1e-5)


def test_a_new_product_is_as_probable_as_others_of_its_words() -> None:
    """Ten products nobody has met, and nobody has bought on valid, are of a side by their word."""
    histories, splits = world()
    kept = histories.items < N_ITEMS - 10
    histories, splits = histories.where(kept), splits[kept]
    words = sp.csr_matrix(np.eye(2, dtype=np.float32)[np.arange(N_ITEMS) % 2])
    text = Channel("text", Decay(kinds={"rating": 0.0}), SparseFeatures(words))
    train = histories.where(splits == 0)
    side = item_side(train)
    channels = (sides(), text)
    heads = learn_tasks(channels, side, histories, splits, TaskSettings(), lists="all", seed=0)
    head = heads.found["purchase"]
    assert head.facts["pairs"] == pytest.approx(N_USERS * (N_ITEMS - 10), rel=0.01)
    assert head.weights.cold[0] == 0.0  # it knows products by who chose them
    model = FusedModel(
        channels, side, {"purchase": head.weights}, {"purchase": head.predictor(train, side)}
    )
    scores = model.scores(train, train.of_users(np.arange(N_USERS)), "purchase")
    found = model.predictors["purchase"].link(scores)[:, -10:]
    own = np.arange(N_ITEMS)[-10:] % 2 == np.arange(N_USERS)[:, None] % 2
    assert found[own].mean() == pytest.approx(0.04, abs=0.006)
    assert found[~own].mean() == pytest.approx(0.01, abs=0.004)


def test_a_head_that_says_no_more_than_a_mean_is_left_out() -> None:
    """Ratings are noise."""
    histories, splits = world()
    noise = np.random.default_rng(5).normal(3.0, 1.0, len(splits))
    rated = histories.of_kinds(["rating"])
    histories = replace(histories, values=np.where(rated, noise, np.nan))
    side = item_side(histories.where(splits == 0))
    settings = TaskSettings(click=(), purchase=())
    heads = learn_tasks([sides()], side, histories, splits, settings, lists="all", seed=0)
    assert heads.found == {}
    mean = np.mean(histories.values[rated & (splits == 1)])
    assert heads.left_out["rating"] == (
        f"of 800 pairs on valid it says no more than their mean, {mean:.3g}"
    )
    said = mend_of(heads.left_out["rating"])  # its kinds are named, and there are enough
    assert said == "Leave the task, or train on events and facts that tell its products apart."


def test_a_task_without_enough_rows_is_left_out_and_why() -> None:
    heads, _ = learned(click=("look",), purchase=(), rating=("view",))
    assert heads.found == {}
    assert heads.left_out == {
        "click": "no event is of its kinds",
        "purchase": "no event is of its kinds",
        "conversion": "no event is of its kinds",
        "rating": "0 pairs on valid, 50 are needed",
    }
    assert mend_of(heads.left_out["click"]).startswith("Name its kinds of events under [tasks]")
    assert mend_of(heads.left_out["rating"]).startswith("Train on more of its events")


def test_new_pairs_are_those_the_user_has_not_met() -> None:
    heads, _ = learned("new")
    histories, splits = world()
    train, valid = histories.where(splits == 0), histories.where(splits == 1)
    met = train.binary()
    assert heads.found["purchase"].facts["pairs"] == pytest.approx(N_USERS * N_ITEMS - met.nnz)
    bought = valid.where(valid.of_kinds(["purchase"])).binary()
    fresh = bought.nnz - bought.multiply(met).nnz
    assert heads.found["purchase"].facts["hits"] == fresh
    queries = task_queries(train, "new")
    assert outcomes_of("purchase", valid, ("purchase",), queries).nnz == fresh


def test_a_sample_of_pairs_holds_all_hits_and_stands_for_all() -> None:
    histories, splits = world()
    train, valid = histories.where(splits == 0), histories.where(splits == 1)
    queries = task_queries(train, "new")
    hits = outcomes_of("purchase", valid, ("purchase",), queries)
    pairs = Pairs.sampled([sides()], queries, hits, seed=0)
    assert len(pairs) < 0.4 * N_USERS * N_ITEMS
    keys = pairs.queries * N_ITEMS + pairs.items
    assert len(np.unique(keys)) == len(keys)
    rows = np.repeat(np.arange(N_USERS), np.diff(hits.indptr))
    assert np.isin(rows * N_ITEMS + hits.indices, keys[pairs.leading]).all()
    assert np.asarray(queries.excluded[pairs.queries, pairs.items]).sum() == 0
    stands_for = np.bincount(pairs.queries, pairs.weights)
    assert stands_for == pytest.approx(N_ITEMS - np.diff(queries.excluded.indptr))
    assert (pairs.weights[pairs.leading] == 1.0).all()


def test_the_last_rating_counts_and_means_are_shrunk_towards_all() -> None:
    """Item 0 has ratings 5 and 3, item 1 has 1; the mean is 3. With two more at 3: 3.5 and 7/3."""
    histories = Histories.from_arrays(
        np.array([0, 0, 1]),
        np.array([0, 0, 1]),
        np.zeros(3, int),
        np.arange(3.0),
        kind_names=("rating",),
        n_users=3,
        n_items=3,
        values=np.array([5.0, 3.0, 1.0]),
    )
    means = MeanRatings.of(histories, ["rating"], shrink=2.0)
    assert means.of_items == pytest.approx([3.5, 7 / 3, 3.0])
    assert means.of_users == pytest.approx([3.5, 7 / 3, 3.0])
    outcome = outcomes_of("rating", histories, ["rating"], task_queries(histories, "all"))
    assert outcome.toarray().tolist() == [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_heads_that_rank_are_the_same_to_the_bit_with_tasks_and_without(
    repeat_events: pd.DataFrame,
) -> None:
    users, items = (Vocabulary.from_ids(repeat_events[c].unique()) for c in ("user_id", "item_id"))
    histories, splits = numbered(repeat_events, users, items)
    nothing = sp.csr_matrix((len(items), 1), dtype=np.float32)
    features, settings = ItemFeatures(nothing, nothing), FitSettings()

    def fitted(tasks: TaskSettings | None) -> FusedModel:
        return fit(histories, splits, features, settings, lambda *_: None, tasks=tasks).model

    plain, predicting = fitted(None), fitted(TaskSettings())
    assert set(predicting.heads) == {"new", "all", "purchase"}
    spans = histories.of_users(np.arange(5))
    for head in plain.heads:
        one, two = (model.scores(histories, spans, head) for model in (plain, predicting))
        assert one.numpy().tobytes() == two.numpy().tobytes()
