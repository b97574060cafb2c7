"""The fusion never falls below its best channel, and finds what is new."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Channel, ItemItem, SparseFeatures, sizes
from kgrank.fusion.fusing import METHODS, Fused, _best, fuse, scaled_scores
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.lists import top_n
from kgrank.fusion.metrics import list_metrics
from kgrank.fusion.model import FusedModel, exclude
from kgrank.fusion.queries import Queries, user_queries
from kgrank.fusion.weights import FusionWeights, ItemSide

N_USERS, N_ITEMS, N_COLD = 300, 60, 10
NAMES = ("noise", "linear", "text")


class World:
    """Even users like even items; the last ten items are new, and known by their words alone.

    With `cold_on_valid`, every user's second held-out row is a new item of their side.
    """

    def __init__(self, *, cold_on_valid: bool = False) -> None:
        rng = np.random.default_rng(0)
        users = np.repeat(np.arange(N_USERS), 6)
        items = 2 * rng.integers(0, (N_ITEMS - N_COLD) // 2, len(users)) + users % 2
        place = np.arange(len(users)) % 6
        if cold_on_valid:
            new = (
                N_ITEMS
                - N_COLD
                + 2 * rng.integers(0, N_COLD // 2, N_USERS)
                + np.arange(N_USERS) % 2
            )
            items[place == 5] = new
        every = Histories.from_arrays(
            users,
            items,
            np.zeros(len(users), int),
            np.full(len(users), np.nan),
            kind_names=("buy",),
            n_users=N_USERS,
            n_items=N_ITEMS,
        )
        self.train = every.where(place < 4)
        self.queries = user_queries(self.train, every.where(place >= 4), self.train)
        buyers = np.bincount(self.train.items, minlength=N_ITEMS).astype(np.float32)
        self.side = ItemSide(buyers / buyers.max(), buyers / buyers.max(), buyers == 0)
        words = np.zeros((N_ITEMS, 2), np.float32)
        words[np.arange(N_ITEMS), np.arange(N_ITEMS) % 2] = 1.0
        noise = sp.random(N_ITEMS, N_ITEMS, 0.3, "csr", np.float32, np.random.default_rng(1))
        together = (self.train.binary().T @ self.train.binary()).tocsr()
        self.channels = (
            Channel("noise", Decay(), ItemItem(noise)),
            Channel("linear", Decay(power=0.5), ItemItem(together)),
            Channel("text", Decay(), SparseFeatures(sp.csr_matrix(words))),
        )

    def fused(self) -> Fused:
        return fuse(self.channels, self.side, self.queries, seed=0)

    def lists(self, weights: FusionWeights) -> Any:
        """Each user's ten best items of those they have not met, (n_users × 10)."""
        model = FusedModel(self.channels, self.side, {"new": weights, "all": weights})
        scores = model.scores(self.train, self.queries.spans, "new")
        return top_n(exclude(scores, self.queries.excluded), 10)[0].numpy()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def fused(world: World) -> Fused:
    return world.fused()


def test_every_channel_and_every_method_is_judged(fused: Fused) -> None:
    assert set(fused.ndcg) == {*NAMES, *METHODS}
    assert fused.method in fused.ndcg


def test_never_below_the_best_single_channel_on_cross_fitted_users(fused: Fused) -> None:
    singles = [fused.ndcg[name] for name in NAMES]
    assert fused.ndcg[fused.method] == max(fused.ndcg.values()) >= max(singles)
    assert fused.ndcg["noise"] < max(singles) / 2


def test_a_single_channel_must_be_clearly_better_than_a_mixture() -> None:
    """By more than a standard error: .01 / 10 for 100 queries that differ by 0 or .02."""
    spread = np.tile([0.0, 0.02], 50)
    mixture = np.full(100, 0.3)
    for ahead, taken in ((-0.0095, "bagged"), (-0.0085, "one")):  # means of +.0005 and +.0015
        found = {"one": mixture + spread + ahead, "two": mixture - 0.1, "bagged": mixture}
        assert _best(found, ["one", "two"]) == taken


def test_a_single_channel_is_judged_by_full_ranking(world: World, fused: Fused) -> None:
    for number, name in enumerate(NAMES):
        scores = scaled_scores(world.channels[number], world.queries)
        top = exclude(scores, world.queries.excluded).topk(10, dim=1).indices.numpy()
        expected = list_metrics(top, world.queries.relevant, (10,)).ndcg[10].mean()
        assert fused.ndcg[name] == pytest.approx(expected)


def test_a_learned_channel_that_adds_no_more_than_noise_is_left_out(world: World) -> None:
    """Here it is noise; one that knows the held-out rows is kept."""
    noise = replace(world.channels[0], name="learned")
    left_out = fuse([*world.channels[1:], noise], world.side, world.queries, seed=0)
    assert not left_out.weights.weighs(2)
    others = fuse(world.channels[1:], world.side, world.queries, seed=0)
    assert left_out.ndcg.keys() == others.ndcg.keys() | {"learned", "softmax with learned"}
    assert left_out.method == others.method
    wanted = (world.train.binary().T @ world.queries.relevant).tocsr()
    knows = Channel("learned", Decay(), ItemItem(sp.csr_matrix(wanted, dtype=np.float32)))
    kept = fuse([*world.channels[1:], knows], world.side, world.queries, seed=0)
    assert kept.weights.weighs(2)
    assert kept.ndcg["softmax"] > kept.ndcg["softmax without learned"] + 0.1


def test_products_without_history_are_listed_for_those_whom_their_words_suit(
    world: World, fused: Fused
) -> None:
    """Valid holds none of them: hidden products teach the gate.

    They are a sixth of the catalogue: between half of that share of the lists and all of it.
    """
    assert not world.queries.relevant[:, world.side.cold].nnz
    top = world.lists(fused.weights)
    cold = world.side.cold[top]
    assert 0.99 / 12 <= cold.mean() <= 1 / 6
    suits = top % 2 == world.queries.users[:, None] % 2
    assert suits[cold].mean() > 0.95


def test_new_products_that_were_bought_on_valid_are_found() -> None:
    """Every user bought one of five new items on their side; text alone puts them on top."""
    world = World(cold_on_valid=True)
    found = world.fused()
    top = world.lists(found.weights)
    cold = sp.csr_matrix(world.queries.relevant.multiply(world.side.cold.astype(np.float32)))
    recall = list_metrics(top, cold, (10,)).recall[10].mean()
    alone = FusionWeights.single(3, 2)
    assert recall >= 0.85 * list_metrics(world.lists(alone), cold, (10,)).recall[10].mean()
    without = list_metrics(world.lists(FusionWeights.single(3, 1)), cold, (10,))
    assert recall > without.recall[10].mean() + 0.2


def test_scores_are_scaled_to_size_one(world: World) -> None:
    scores = scaled_scores(world.channels[1], world.queries)
    assert scores.shape == (len(world.queries), N_ITEMS)
    assert sizes(scores)[:, 0].numpy() == pytest.approx(np.ones(len(scores)))


def test_users_too_few_to_cross_fit_get_the_best_single_channel(world: World) -> None:
    """One user stands on one side alone."""
    one = Queries(
        world.queries.histories,
        world.queries.spans[:1],
        world.queries.users[:1],
        world.queries.relevant[:1],
        world.queries.excluded[:1],
    )
    found = fuse(world.channels, world.side, one, seed=0)
    assert set(found.ndcg) == set(NAMES)
    assert found.method == max(NAMES, key=lambda name: found.ndcg[name])
    best = NAMES.index(found.method)
    assert np.flatnonzero(found.weights.weight).tolist() == [best]
    assert torch.isfinite(torch.tensor(found.weights.vector())).all()


def test_a_shop_of_fewer_products_than_a_list_is_fused() -> None:
    """Six products, two of them new: lists are shorter than the cut-off of the metrics."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(N_USERS), 4)
    every = Histories.from_arrays(
        users,
        rng.integers(0, 4, len(users)),
        np.zeros(len(users), int),
        np.full(len(users), np.nan),
        kind_names=("buy",),
        n_users=N_USERS,
        n_items=6,
    )
    last = np.arange(len(users)) % 4 == 3
    train = every.where(~last)
    popularity = np.bincount(train.items, minlength=6).astype(np.float32)
    side = ItemSide(popularity / popularity.max(), popularity / popularity.max(), popularity == 0)
    together = Channel("linear", Decay(), ItemItem((train.binary().T @ train.binary()).tocsr()))
    words = Channel("text", Decay(), SparseFeatures(sp.identity(6, np.float32, format="csr")))
    queries = user_queries(train, every.where(last), train)
    fused = fuse([together, words], side, queries, seed=2)  # hides an item
    assert np.isfinite(fused.weights.vector()).all()
