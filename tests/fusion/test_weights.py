"""The gate by hand, and what each way to find weights promises."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kgrank.fusion.evidence import TREND, item_side
from kgrank.fusion.history import Histories
from kgrank.fusion.search import Ranking, coordinate_ascent, lift_cold
from kgrank.fusion.weights import (
    Candidates,
    FusionWeights,
    ItemSide,
    place_cold,
    softmax_regression,
)

NAMES = ("weight", "slope", "cold", "trend", "cold_bias")


def side_of(n_items: int, n_cold: int = 0, seed: int = 0) -> ItemSide:
    """Random popularity and trend; the last `n_cold` items are cold."""
    popularity, trend = np.random.default_rng(seed).random((2, n_items), np.float32)
    return ItemSide(popularity, trend, np.arange(n_items) >= n_items - n_cold)


def candidates_of(scores: torch.Tensor, relevant: torch.Tensor) -> Candidates:
    """Every query ranks the same items 0, 1, …; scores are (queries × items × channels)."""
    return Candidates(
        scores=scores,
        items=torch.arange(scores.shape[1]).repeat(len(scores), 1),
        relevant=relevant,
        real=torch.ones_like(relevant),
        n_relevant=relevant.sum(1).clamp(min=1),
    )


def candidates_ndcg(
    candidates: Candidates, side: ItemSide, weights: FusionWeights, *, k: int = 10
) -> float:
    """What the direct search maximises."""
    return Ranking.of(candidates, side, k).ndcg(weights)


def two_channels(n_queries: int = 200, n_items: int = 30) -> Candidates:
    """One relevant item a query; the first channel speaks for it, the second is noise."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(n_queries, n_items, 2)).astype(np.float32))
    relevant = torch.zeros(n_queries, n_items, dtype=torch.bool)
    relevant[torch.arange(n_queries), torch.from_numpy(rng.integers(0, n_items, n_queries))] = True
    scores[:, :, 0] += 2.0 * relevant
    return candidates_of(scores, relevant)


def test_gates_and_bias_by_hand() -> None:
    """0.5 - 1 · popularity, never below 0; an item without history has its own weight and bias."""
    side = ItemSide(
        popularity=np.array([0.0, 0.25, 1.0, 0.0], np.float32),
        trend=np.array([0.0, 0.5, 1.0, 0.0], np.float32),
        cold=np.array([False, False, False, True]),
    )
    one = np.array([0.5], np.float32)
    weights = FusionWeights(one, -2 * one, 6 * one, trend=2.0, cold_bias=0.1)
    assert weights.gates(side).tolist() == [[0.5, 0.25, 0.0, 3.0]]
    assert weights.bias(side).tolist() == pytest.approx([0.0, 1.0, 2.0, 0.1])


def test_equal_and_single_weights() -> None:
    side = side_of(4, n_cold=1)
    assert FusionWeights.equal(2).gates(side).tolist() == [[1.0] * 4] * 2
    assert FusionWeights.single(2, 1).gates(side).tolist() == [[0.0] * 4, [1.0] * 4]
    for weights in (FusionWeights.equal(2), FusionWeights.single(2, 1)):
        assert weights.bias(side).tolist() == [0.0] * 4


def test_weights_survive_being_a_vector() -> None:
    two = np.array([1.0, 2.0], np.float32)
    weights = FusionWeights(two, two + 2, two + 4, trend=7.0, cold_bias=8.0)
    assert weights.vector().tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    again = FusionWeights.from_vector(weights.vector())
    for name in NAMES:
        assert np.array_equal(getattr(again, name), getattr(weights, name))


def test_popularity_trend_and_coldness_by_hand() -> None:
    """Item 0: two users, one of them twice; item 1: one user, long ago; item 2: nobody.

    Popularity log(1 + users) over the largest: 1, log 2 / log 3, 0. Trend counts the two events on
    item 0 that are inside the window (the first, just outside it, is not).
    """
    every = Histories.from_arrays(
        np.array([0, 0, 1, 1]),
        np.array([0, 0, 1, 0]),
        np.zeros(4, int),
        np.array([0.0, 1.0, 0.0, TREND]),
        kind_names=("buy",),
        n_users=2,
        n_items=3,
    )
    side = item_side(every)
    assert side.popularity.tolist() == pytest.approx([1.0, np.log(2) / np.log(3), 0.0])
    assert side.trend.tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert side.cold.tolist() == [False, False, True]
    untimed = item_side(replace(every, times=np.full(4, np.nan)))
    assert untimed.trend.tolist() == untimed.popularity.tolist() == side.popularity.tolist()


def test_ndcg_of_candidates_counts_ties_as_misses() -> None:
    """Relevant item 0 scores 2, item 1 as well, item 2 less: rank 2, 1/log2(3)."""
    relevant = torch.tensor([[True, False, False]])
    scores = torch.tensor([[[2.0], [2.0], [1.0]]])
    found = candidates_ndcg(candidates_of(scores, relevant), side_of(3), FusionWeights.equal(1))
    assert found == pytest.approx(1 / np.log2(3))


def test_ndcg_of_candidates_leaves_out_padding_and_what_is_behind_the_cut() -> None:
    """The better item 1 is padding: rank 1. The ideal counts relevant items that are elsewhere."""
    relevant = torch.tensor([[True, False, False, True]])
    scores = torch.tensor([[[2.0], [9.0], [1.0], [0.0]]])
    real = torch.tensor([[True, False, True, True]])
    candidates = replace(candidates_of(scores, relevant), real=real)
    weights, side = FusionWeights.equal(1), side_of(4)
    whole = 1 + 1 / np.log2(3)
    found = candidates_ndcg(candidates, side, weights)
    assert found == pytest.approx((1 + 1 / np.log2(4)) / whole)
    assert candidates_ndcg(candidates, side, weights, k=2) == pytest.approx(1 / whole)
    more = replace(candidates, n_relevant=torch.tensor([3]))
    assert candidates_ndcg(more, side, weights, k=2) == pytest.approx(1 / whole)
    assert candidates_ndcg(more, side, weights) == pytest.approx(1.5 / (whole + 0.5))


def test_joined_rankings_are_the_queries_of_all() -> None:
    """Three lists and five of other items with other gates: the mean is that of eight lists."""
    parts = []
    for n_queries, n_items, seed in ((3, 12, 1), (5, 20, 2)):
        rng = np.random.default_rng(seed)
        scores = torch.from_numpy(rng.normal(size=(n_queries, n_items, 2)).astype(np.float32))
        relevant = torch.from_numpy(rng.random((n_queries, n_items)) < 0.3)
        candidates = candidates_of(scores, relevant)
        parts.append(Ranking.of(candidates, side_of(n_items, n_cold=4, seed=seed)))
    joined = Ranking.joined(parts)
    vectors = np.random.default_rng(3).normal(size=(4, 8))
    for weights in map(FusionWeights.from_vector, vectors):
        of_parts = [part.ndcg(weights) for part in parts]
        assert of_parts[0] != of_parts[1]
        assert joined.ndcg(weights) == pytest.approx((3 * of_parts[0] + 5 * of_parts[1]) / 8)


def test_candidates_rank_by_gates_and_bias() -> None:
    """NDCG of the candidates equals NDCG of the scores that gates and bias make by hand."""
    rng = np.random.default_rng(4)
    scores = torch.from_numpy(rng.normal(size=(20, 15, 2)).astype(np.float32))
    relevant = torch.from_numpy(np.arange(15) == rng.integers(0, 15, (20, 1)))
    side = side_of(15, n_cold=5)
    weights = FusionWeights.from_vector(np.array([0.3, 1.0, 0.9, -1.5, 2.0, 0.1, 0.7, 0.2]))
    found = candidates_ndcg(candidates_of(scores, relevant), side, weights)
    fused = np.einsum("qmc,cm->qm", scores.numpy(), weights.gates(side)) + weights.bias(side)
    of_relevant = fused[relevant.numpy()][:, None]
    ranks = (fused > of_relevant).sum(1)
    expected = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0.0).mean()
    assert found == pytest.approx(expected, abs=1e-6)


def test_queries_without_a_relevant_candidate_are_left_out() -> None:
    relevant = torch.tensor([[False, False], [False, True], [False, False]])
    scores = torch.arange(6.0).reshape(3, 2, 1)
    answered = candidates_of(scores, relevant).answered()
    assert len(answered) == 1
    assert answered.scores.tolist() == [[[2.0], [3.0]]]
    assert answered.relevant.tolist() == [[False, True]]


def test_regression_finds_the_channel_that_speaks_for_what_is_relevant() -> None:
    """Relevant scores are N(2, 1), others N(0, 1): the log-odds, so the weight, is 2 per unit."""
    found = softmax_regression(two_channels(1_000), side_of(30), FusionWeights.equal(2))
    weight = found.weight + found.slope / 2  # at a popularity of one half
    assert weight[0] == pytest.approx(2.0, abs=0.25)
    assert abs(weight[1]) < 0.1


def test_regression_stands_at_the_lowest_loss() -> None:
    """Mean of -log softmax(relevant) + 1e-4 · |w|², worked out anew; no small step lowers it."""
    candidates, side = two_channels(), side_of(30, n_cold=10)
    found = softmax_regression(candidates, side, FusionWeights.equal(2), steps=200).vector()
    assert found[4] > 0.0  # so that the floor of the cold weights at 0 is not met

    def loss(vector: np.ndarray) -> float:
        scores = candidates.scores.double().numpy()
        warm = vector[:2, None] + vector[2:4, None] * side.popularity
        gates = np.where(side.cold, vector[4:6, None], warm)
        bias = np.where(side.cold, vector[7], vector[6] * side.trend)
        fused = np.einsum("qmc,cm->qm", scores, gates) + bias
        wanted = fused[candidates.relevant.numpy()]
        penalty = 1e-4 * float((vector**2).sum())
        return float((np.log(np.exp(fused).sum(1)) - wanted).mean()) + penalty

    lowest = loss(found)
    assert lowest < loss(FusionWeights.equal(2).vector()) - 0.1
    for place in (0, 1, 2, 3, 4, 6, 7):
        for step in (-0.05, 0.05):
            moved = found.copy()
            moved[place] += step
            assert loss(moved) > lowest


def test_regression_gives_cold_items_no_weight_below_zero() -> None:
    candidates = two_channels()
    against = replace(candidates, scores=-candidates.scores)
    found = softmax_regression(against, side_of(30, n_cold=15), FusionWeights.equal(2))
    assert found.weight[0] + found.slope[0] / 2 < -1.0
    assert found.cold[0] == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ascent_never_ends_below_its_start(seed: int) -> None:
    """From random weights in a random world."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.normal(size=(30, 25, 3)).astype(np.float32))
    candidates = candidates_of(scores, torch.from_numpy(rng.random((30, 25)) < 0.1)).answered()
    side = side_of(25, n_cold=5, seed=seed)
    start = FusionWeights.from_vector(np.abs(rng.normal(size=11)))
    found = coordinate_ascent(Ranking.of(candidates, side), start)
    before = candidates_ndcg(candidates, side, start)
    assert candidates_ndcg(candidates, side, found) > before


def test_ascent_turns_a_channel_off_that_stands_in_the_way() -> None:
    """The first channel ranks perfectly, the second is loud noise."""
    rng = np.random.default_rng(0)
    relevant = torch.from_numpy(np.arange(20) == rng.integers(0, 20, (50, 1)))
    noise = torch.from_numpy(3 * rng.normal(size=(50, 20)).astype(np.float32))
    candidates = candidates_of(torch.stack([relevant.float(), noise], 2), relevant)
    side = side_of(20)
    assert candidates_ndcg(candidates, side, FusionWeights.equal(2)) < 0.7
    found = coordinate_ascent(Ranking.of(candidates, side), FusionWeights.equal(2))
    assert candidates_ndcg(candidates, side, found) == pytest.approx(1.0)
    assert found.gates(side)[1].max() < found.gates(side)[0].min()


def test_ascent_moves_only_the_parameters_it_is_asked_to() -> None:
    """Every second query wants a warm item, the other a cold one."""
    rng = np.random.default_rng(5)
    scores = torch.from_numpy(rng.normal(size=(60, 20, 2)).astype(np.float32))
    wanted = rng.integers(0, 10, 60) + 10 * (np.arange(60) % 2)
    candidates = candidates_of(scores, torch.from_numpy(np.arange(20) == wanted[:, None]))
    side, start = side_of(20, n_cold=10), FusionWeights.equal(2)
    warm = coordinate_ascent(Ranking.of(candidates, side), start, over="warm")
    cold = coordinate_ascent(Ranking.of(candidates, side), start, over="cold")
    for found, moving in (
        (warm, {"weight", "slope", "trend"}),
        (cold, {"cold", "cold_bias"}),
    ):
        moved = {n for n in NAMES if not np.array_equal(getattr(found, n), getattr(start, n))}
        assert moved
        assert moved <= moving


def ladder() -> tuple[Candidates, ItemSide]:
    """Ten queries with ten warm items that score 20 to 11, and a cold one: 10, 9, … 1."""
    warm = torch.arange(20.0, 10.0, -1.0).repeat(10, 1)
    cold = torch.arange(10.0, 0.0, -1.0)[:, None]
    relevant = torch.zeros(10, 11, dtype=torch.bool)
    relevant[:, 10] = True
    zeros = np.zeros(11, np.float32)
    side = ItemSide(zeros, zeros, np.arange(11) == 10)
    return candidates_of(torch.cat([warm, cold], 1)[:, :, None], relevant), side


@pytest.mark.parametrize(("floor", "lift"), [(0.5, 1.0), (4.25, 5.0), (10.0, 10.0)])
def test_cold_items_are_lifted_to_the_floor_and_no_further(floor: float, lift: float) -> None:
    """For five of ten to beat the tenth place, which scores 11, the fifth's 6 needs 5 more."""
    candidates, side = ladder()
    start = replace(FusionWeights.equal(1), trend=0.3)
    lifted = lift_cold(Ranking.of(candidates, side), start, floor)
    assert lifted.cold_bias == pytest.approx(lift, abs=0.001)
    assert lifted.cold_bias > lift  # an equal score is a miss
    for name in set(NAMES) - {"cold_bias"}:
        assert np.array_equal(getattr(lifted, name), getattr(start, name))


def test_cold_items_that_reach_the_floor_are_left_where_they_are() -> None:
    candidates, side = ladder()
    high = replace(FusionWeights.equal(1), cold_bias=9.5)  # nine of ten are listed
    assert lift_cold(Ranking.of(candidates, side), high, floor=8.5) is high


def test_where_no_lift_reaches_the_floor_the_weights_stay() -> None:
    """Twenty cold items tie at 0, one of them relevant: lifted, they still tie."""
    scores = torch.cat([torch.arange(20.0, 10.0, -1.0).repeat(4, 1), torch.zeros(4, 20)], 1)
    relevant = torch.zeros(4, 30, dtype=torch.bool)
    relevant[:, 29] = True
    candidates = Candidates(
        scores=scores[:, :, None],
        items=torch.arange(30).repeat(4, 1),
        relevant=relevant,
        real=torch.ones_like(relevant),
        n_relevant=torch.ones(4, dtype=torch.int64),
    )
    zeros = np.zeros(30, np.float32)
    side = ItemSide(zeros, zeros, np.arange(30) >= 10)
    weights = FusionWeights.equal(1)
    assert lift_cold(Ranking.of(candidates, side), weights, floor=1.2) is weights


def test_cold_items_are_raised_to_the_middle_of_the_lists() -> None:
    """Warm items score 1 to 10 for one user; for another only 19 and 20 may be listed.

    A cold item at 0 passes five of ten with a lift of 5. Over both lists its mean place is the
    middle once it has passed all ten of the one and none of the other.
    """
    one, other = torch.arange(1.0, 11.0), torch.arange(11.0, 21.0)
    other[:8] = -torch.inf
    scores = torch.stack([torch.cat([one, torch.zeros(1)]), torch.cat([other, torch.zeros(1)])])
    start, cold = FusionWeights.equal(1), np.arange(11) == 10
    raised = place_cold(scores, cold, start, k=11)
    assert raised.cold_bias == pytest.approx(10.0, abs=0.001)
    assert place_cold(scores[:1], cold, start, k=11).cold_bias == pytest.approx(5.0, abs=0.001)
    scores[0, 10] = 7.5
    assert place_cold(scores[:1], cold, start, k=11) is start
    assert place_cold(scores, np.zeros(11, bool), start) is start


def test_cold_items_are_raised_into_half_their_share_of_the_lists() -> None:
    """Two of twelve are cold, in the middle with 5.5; lists of 3 should hold one in each four.

    The mean of 2 / 12 / 2 = 1/12 of 3 places is a quarter of an item a list; with four lists one
    item in one of them is enough: the one whose cold item scores 7 and must pass 8.
    """
    warm = torch.arange(1.0, 11.0).repeat(4, 1)
    raised = torch.tensor([[5.5, 5.5], [5.5, 5.5], [5.5, 5.5], [7.0, 5.5]])
    start, cold = FusionWeights.equal(1), np.arange(12) >= 10
    found = place_cold(torch.cat([warm, raised], 1), cold, start, k=3)
    assert found.cold_bias == pytest.approx(1.0, abs=0.001)  # above 8 of that list


def test_cold_items_that_most_lists_may_not_hold_stay_where_they_are() -> None:
    """One of forty lists may hold the cold item: 1/80 of the places of two, less than 1/22."""
    scores = torch.cat([torch.arange(1.0, 11.0).repeat(40, 1), torch.zeros(40, 1)], 1)
    scores[1:, 10] = -torch.inf
    start = FusionWeights.equal(1)
    assert place_cold(scores, np.arange(11) == 10, start, k=2) is start


def test_items_left_out_are_neither_ranked_nor_relevant() -> None:
    candidates, side = ladder()
    without = candidates.without(side.cold)
    assert not without.relevant.any()
    assert not without.real[:, 10].any()
    assert without.real[:, :10].all()
