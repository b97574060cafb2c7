"""The model's scores add up over channels and events, and lists are in a stated order."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.history import DAY, Decay, Histories, Spans
from kgrank.fusion.model import FusedModel, Head, exclude, top_n
from kgrank.fusion.weights import FusionWeights, ItemSide

INF = float("inf")
N_ITEMS, N_USERS = 12, 6


def histories() -> Histories:
    """Six users with five events each but the last, who has none; two kinds, a day between two."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(N_USERS - 1), 5)
    return Histories.from_arrays(
        users,
        rng.integers(0, N_ITEMS, len(users)),
        rng.integers(0, 2, len(users)),
        np.tile(np.arange(5) * DAY, N_USERS - 1),
        kind_names=("buy", "view"),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )


def model() -> FusedModel:
    """One channel of each form, each with another decay; the last two items are cold."""
    rng = np.random.default_rng(1)
    weights = sp.random(N_ITEMS, N_ITEMS, 0.5, "csr", np.float32, rng)
    words = sp.random(N_ITEMS, 4, 0.5, "csr", np.float32, rng)
    vectors = torch.from_numpy(rng.normal(size=(N_ITEMS, 3)).astype(np.float32))
    channels = (
        Channel("linear", Decay(power=0.5), ItemItem(weights)),
        Channel("text", Decay(half_life=2.0, kinds={"view": 0.3}), SparseFeatures(words)),
        Channel("embedding", Decay(span=2.0), DenseFeatures(vectors)),
    )
    popularity = np.linspace(1.0, 0.0, N_ITEMS, dtype=np.float32)
    side = ItemSide(popularity, popularity[::-1].copy(), np.arange(N_ITEMS) >= 10)
    new = FusionWeights(
        weight=np.array([1.0, 0.5, 0.7], np.float32),
        slope=np.array([-2.0, 0.2, 0.1], np.float32),  # the first gate is 0 for popular items
        cold=np.array([0.0, 2.0, 1.0], np.float32),
        trend=0.5,
        cold_bias=0.25,
    )
    return FusedModel(channels, side, {"new": new, "all": FusionWeights.single(3, 0)})


@pytest.mark.parametrize("head", ["new", "all"])
def test_parts_sum_to_the_score_over_channels_and_events(head: Head) -> None:
    every, fused = histories(), model()
    for user in range(N_USERS):
        span = every.of_users(np.array([user]))
        scores = fused.scores(every, span, head)[0].numpy()
        for item in range(N_ITEMS):
            split = fused.parts(every, span, item, head)
            assert split.parts.shape == split.factors.shape == (3, len(split.events))
            assert split.events.tolist() == list(range(span.first[0], span.last[0]))
            assert split.score == pytest.approx(scores[item], abs=1e-6, rel=1e-6)


def test_each_part_is_its_factor_times_what_the_channel_says_of_the_event() -> None:
    every, fused = histories(), model()
    split = fused.parts(every, every.of_users(np.array([2])), 11, "new")
    items = every.items[split.events]
    said = np.array([channel.form.of_events(items, 11) for channel in fused.channels])
    assert split.parts == pytest.approx(split.factors * said, abs=1e-12)
    assert not split.factors[0].any()  # the cold weight of the first channel is 0
    assert split.factors[1:].all()
    assert split.bias == 0.25


def test_channel_scores_and_the_bias_are_the_score() -> None:
    every, fused = histories(), model()
    spans = every.of_users(np.arange(N_USERS))
    parts = dict(fused.channel_scores(every, spans, "new"))
    assert list(parts) == ["linear", "text", "embedding"]
    bias = torch.from_numpy(fused.heads["new"].bias(fused.side))
    torch.testing.assert_close(bias + sum(parts.values()), fused.scores(every, spans, "new"))


def test_a_channel_without_weight_is_not_worked_out() -> None:
    every, fused = histories(), model()
    names = [name for name, _ in fused.channel_scores(every, every.of_users(np.arange(2)), "all")]
    assert names == ["linear"]


def test_a_score_by_hand() -> None:
    """A history of items 0 and 1 (power 1: ½, 1) over three items, one channel, gate 2, no bias.

    ½ · (0, 2, 4) + (3, 0, 1) = (3, 1, 3); its size is √(19/3).
    """
    one = Histories.from_arrays(
        np.zeros(2, int),
        np.array([0, 1]),
        np.zeros(2, int),
        np.full(2, np.nan),
        kind_names=("buy",),
        n_users=1,
        n_items=3,
    )
    weights = sp.csr_matrix(np.array([[0, 2, 4], [3, 0, 1], [0, 0, 0]], np.float32))
    zeros = np.zeros(3, np.float32)
    gate = FusionWeights(np.array([2.0], np.float32), zeros[:1], zeros[:1], 0.0, 0.0)
    fused = FusedModel(
        (Channel("linear", Decay(power=1.0), ItemItem(weights)),),
        ItemSide(zeros, zeros, np.zeros(3, bool)),
        {"new": gate, "all": gate},
    )
    size = np.sqrt(19 / 3)
    span = one.of_users(np.array([0]))
    expected = 2 * np.array([3, 1, 3]) / size
    assert fused.scores(one, span, "new")[0].numpy() == pytest.approx(expected)
    split = fused.parts(one, span, 2, "new")
    assert split.parts == pytest.approx(np.array([[2 * 2 / size, 2 * 1 / size]]))


def test_a_visitor_without_events_is_shown_the_bias() -> None:
    """0.5 · trend for what was sold, 0.25 for what is new."""
    every, fused = histories(), model()
    nobody = Spans(np.array([0]), np.array([0]))
    expected = np.where(fused.side.cold, 0.25, 0.5 * fused.side.trend)
    assert fused.scores(every, nobody, "new")[0].numpy() == pytest.approx(expected)
    assert fused.parts(every, nobody, 11, "new").score == 0.25


def test_a_batch_scores_as_its_users_do_alone() -> None:
    every, fused = histories(), model().to("cpu")
    batch = fused.scores(every, every.of_users(np.arange(N_USERS)), "new")
    for user in range(N_USERS):
        alone = fused.scores(every, every.of_users(np.array([user])), "new")
        torch.testing.assert_close(alone[0], batch[user])


def test_equal_scores_order_by_item_number() -> None:
    items, values = top_n(torch.tensor([[1.0, 3.0, 3.0, 1.0, 2.0]]), 5)
    assert items.tolist() == [[1, 2, 4, 0, 3]]
    assert values.tolist() == [[3.0, 3.0, 2.0, 1.0, 1.0]]


def test_equal_scores_order_by_item_number_also_at_the_cut() -> None:
    scores = torch.tensor([[1.0, 3.0, 1.0, 1.0, 2.0], [-INF, 5.0, -INF, 5.0, -INF]])
    items, values = top_n(scores, 3)
    assert items.tolist() == [[1, 4, 0], [1, 3, -1]]
    assert values.tolist() == [[3.0, 2.0, 1.0], [5.0, 5.0, -INF]]


def test_many_ties_at_the_cut_keep_the_first_items() -> None:
    """1000 equal scores, and ten that are better: the ten, then items 0 to 4."""
    scores = torch.zeros(2, 1000)
    scores[:, 990:] = 1.0
    items, _ = top_n(scores, 15)
    assert items.tolist() == [[*range(990, 1000), *range(5)]] * 2


def test_lists_are_the_head_of_a_stable_sort() -> None:
    """Whole-number scores, so that nearly every list is cut in the middle of a tie."""
    scores = np.random.default_rng(0).integers(0, 6, (200, 40)).astype(np.float32)
    for n in (1, 7, 39, 40):
        items, values = top_n(torch.from_numpy(scores), n)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        assert np.array_equal(items.numpy(), expected)
        assert np.array_equal(values.numpy(), np.take_along_axis(scores, expected, axis=1))


def test_a_list_is_no_longer_than_the_catalogue_and_may_be_empty() -> None:
    items, _ = top_n(torch.tensor([[1.0, 2.0], [-INF, -INF]]), 10)
    assert items.tolist() == [[1, 0], [-1, -1]]


def test_excluded_items_are_masked_in_place() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    items = sp.csr_matrix(np.array([[1, 0, 1], [0, 0, 0]], np.float32))
    assert exclude(scores, items) is scores
    assert scores.tolist() == [[-INF, 2.0, -INF], [4.0, 5.0, 6.0]]
