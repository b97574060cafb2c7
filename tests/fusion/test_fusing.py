"""The fusion adds up, never falls below its best channel, and finds what is new."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.fusing import fuse
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.model import FusedModel, top_n
from kgrank.fusion.queries import Queries, user_queries
from kgrank.fusion.weights import Candidates, FusionWeights, ItemSide, lift_cold

N_USERS, N_ITEMS, N_COLD = 300, 60, 10


def world(seed: int = 0) -> tuple[Histories, Queries, ItemSide, sp.csr_matrix]:
    """Even users like even items; the last ten items are new, and known by their words alone."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(N_USERS), 6)
    items = 2 * rng.integers(0, (N_ITEMS - N_COLD) // 2, len(users)) + users % 2
    kinds, times = np.zeros(len(users), int), np.full(len(users), np.nan)
    every = Histories.from_arrays(
        users, items, kinds, times, kind_names=("buy",), n_users=N_USERS, n_items=N_ITEMS
    )
    last = np.arange(len(users)) % 6 >= 4
    train = every.where(~last)
    queries = user_queries(train, every.where(last), train)
    popularity = np.bincount(train.items, minlength=N_ITEMS).astype(np.float32)
    side = ItemSide(popularity / popularity.max(), popularity / popularity.max(), popularity == 0)
    words = np.zeros((N_ITEMS, 2), np.float32)
    words[np.arange(N_ITEMS), np.arange(N_ITEMS) % 2] = 1.0
    return train, queries, side, sp.csr_matrix(words)


def channels(train: Histories, words: sp.csr_matrix) -> list[Channel]:
    noise = sp.random(N_ITEMS, N_ITEMS, 0.3, "csr", np.float32, np.random.default_rng(1))
    together = (train.binary().T @ train.binary()).tocsr()
    return [
        Channel("noise", Decay(), ItemItem(noise)),
        Channel("linear", Decay(power=0.5), ItemItem(together)),
        Channel("text", Decay(), SparseFeatures(words)),
    ]


def test_never_below_the_best_single_channel_on_cross_fitted_users() -> None:
    train, queries, side, words = world()
    fused = fuse(channels(train, words), side, queries, seed=0)
    singles = [fused.ndcg[name] for name in ("noise", "linear", "text")]
    assert fused.ndcg[fused.method] >= max(singles)
    assert fused.ndcg["noise"] < max(singles)


def test_products_without_history_are_listed_for_whom_their_words_suit() -> None:
    """Valid holds none of them: hidden products teach the gate."""
    train, queries, side, words = world()
    parts = channels(train, words)
    weights = fuse(parts, side, queries, seed=0).weights
    model = FusedModel(tuple(parts), side, {"new": weights, "all": weights})
    cold = np.flatnonzero(side.cold)
    scores = model.scores(train, train.of_users(np.arange(2)), "new")[:, cold]
    suits = torch.from_numpy(cold % 2)[None, :] == torch.arange(2)[:, None]
    assert float(scores[suits].min()) > float(scores[~suits].max())


def test_parts_sum_to_the_score_over_channels_and_events() -> None:
    train, _, side, words = world()
    vectors = torch.from_numpy(np.random.default_rng(2).random((N_ITEMS, 5), np.float32))
    parts = [*channels(train, words), Channel("embedding", Decay(span=2.0), DenseFeatures(vectors))]
    weights = FusionWeights(
        weight=np.array([0.3, 1.0, 0.5, 0.7], np.float32),
        slope=np.array([0.0, -0.4, 0.2, 0.1], np.float32),
        cold=np.array([0.0, 0.0, 2.0, 1.0], np.float32),
        trend=0.5,
        cold_bias=0.25,
    )
    model = FusedModel(tuple(parts), side, {"new": weights, "all": weights})
    for user, item in ((0, 4), (1, 4), (7, N_ITEMS - 1)):
        span = train.of_users(np.array([user]))
        split = model.parts(train, span, item, "new")
        assert split.parts.shape == (4, 4)
        assert split.score == pytest.approx(
            float(model.scores(train, span, "new")[0, item]), rel=1e-5
        )


def test_gates_by_hand() -> None:
    """0.5 - 1 · popularity, never below 0; an item without history has its own weight and bias."""
    side = ItemSide(
        popularity=np.array([0.0, 0.25, 1.0, 0.0], np.float32),
        trend=np.array([0.0, 0.5, 1.0, 0.0], np.float32),
        cold=np.array([False, False, False, True]),
    )
    one = np.array([0.5], np.float32)
    weights = FusionWeights(one, -2 * one, 6 * one, trend=2.0, cold_bias=0.1)
    assert weights.gates(side)[0].tolist() == [0.5, 0.25, 0.0, 3.0]
    assert weights.bias(side).tolist() == pytest.approx([0.0, 1.0, 2.0, 0.1])


def test_equal_scores_order_by_item_number_also_at_the_cut() -> None:
    inf = float("inf")
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0], [-inf, 5.0, -inf, 5.0, -inf]])
    items, values = top_n(scores, 3)
    assert items.tolist() == [[1, 4, 0], [1, 3, -1]]
    assert values.tolist() == [[3.0, 2.0, 1.0], [5.0, 5.0, -inf]]


def test_cold_items_are_lifted_to_the_floor_and_no_further() -> None:
    """Ten queries; the relevant cold item is 1, 2, … 10 below the tenth place."""
    n = 10
    warm = torch.arange(20.0, 10.0, -1.0).repeat(n, 1)
    cold = (10.0 - torch.arange(n, dtype=torch.float32))[:, None]
    scores = torch.cat([warm, cold], 1)[:, :, None]
    relevant = torch.zeros(n, 11, dtype=torch.bool)
    relevant[:, 10] = True
    candidates = Candidates(
        scores=scores,
        items=torch.arange(11).repeat(n, 1),
        relevant=relevant,
        real=torch.ones_like(relevant),
        n_relevant=torch.ones(n, dtype=torch.int64),
    )
    zeros = np.zeros(11, np.float32)
    side = ItemSide(zeros, zeros, np.arange(11) == 10)
    lifted = lift_cold(candidates, side, FusionWeights.equal(1), floor=0.5)
    assert lifted.cold_bias == pytest.approx(5.0, abs=0.01)  # five of ten then beat the tenth's 11
    low = lift_cold(candidates, side, replace(lifted, cold_bias=9.0), floor=0.5)
    assert low.cold_bias == 9.0
