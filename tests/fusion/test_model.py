"""The model's scores add up over channels and events, and lists are in a stated order."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion import model as modelling
from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.history import DAY, Decay, Histories, Spans
from kgrank.fusion.lists import may_be_listed, top_n
from kgrank.fusion.model import FusedModel, Head, Repeats, exclude, only
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


def test_two_dense_channels_are_one_product() -> None:
    """Each with its own decay, size and gate; the bias is the last column."""
    every, fused = histories(), model()
    more = Channel("graph", Decay(power=1.0), DenseFeatures(torch.arange(24.0).view(12, 2) - 7.0))
    three = fused.heads["new"]
    weights = FusionWeights(
        np.append(three.weight, np.float32(0.4)),
        np.append(three.slope, np.float32(-0.3)),
        np.append(three.cold, np.float32(0.6)),
        three.trend,
        three.cold_bias,
    )
    four = FusedModel((*fused.channels, more), fused.side, {"new": weights, "all": weights})
    spans = every.of_users(np.arange(N_USERS))
    added = sum(part for _, part in four.channel_scores(every, spans, "new"))
    bias = torch.from_numpy(weights.bias(four.side))
    torch.testing.assert_close(bias + added, four.scores(every, spans, "new"))


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


def by_hand(
    scores: npt.NDArray[np.float32], listed: npt.NDArray[np.bool_], n: int
) -> list[list[int]]:
    """Item numbers by score, then by number; those that are not listed left out."""
    return [
        sorted(np.flatnonzero(may), key=lambda item: (-row[item], item))[:n]
        for row, may in zip(scores, listed, strict=True)
    ]


@pytest.mark.parametrize("candidates", [None, [7, 2, 11, 2]], ids=["all items", "some items"])
@pytest.mark.parametrize("repeats", ["exclude", "allow", "only"])
def test_top_lists_the_best_scores_of_what_may_be_listed(
    repeats: Repeats, candidates: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users at a time, so that six are three blocks."""
    every, fused = histories(), model()
    spans = every.of_users(np.arange(N_USERS))
    scores = fused.scores(every, spans, "new").numpy()
    met = every.binary().toarray() > 0
    listed = {"exclude": ~met, "allow": np.ones_like(met), "only": met}[repeats]
    if candidates is not None:
        listed = listed & np.isin(np.arange(N_ITEMS), candidates)
    numbers = None if candidates is None else np.array(candidates)
    monkeypatch.setattr(modelling, "CELLS", 2 * N_ITEMS)
    items, values = fused.top(every, spans, "new", 4, repeats=repeats, candidates=numbers)
    assert items.dtype == torch.int64
    assert values.dtype == torch.float32
    found = [[item for item in row if item >= 0] for row in items.tolist()]
    assert found == by_hand(scores, listed, 4)
    for user, row in enumerate(found):
        assert values[user, : len(row)].numpy() == pytest.approx(scores[user, row], abs=1e-6)


def test_top_without_the_bias_is_what_the_channels_say() -> None:
    every, fused = histories(), model()
    spans = every.of_users(np.arange(N_USERS))
    bias = fused.heads["new"].bias(fused.side)
    scores = fused.scores(every, spans, "new").numpy() - bias
    items, values = fused.top(every, spans, "new", N_ITEMS, bias=False)
    found = np.take_along_axis(scores, items.numpy(), axis=1)
    assert found == pytest.approx(values.numpy(), abs=1e-6)
    assert not values[N_USERS - 1].any()  # a user without events


def test_top_holds_no_more_scores_at_a_time_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 2.5 users: two at a time; room for less than one: one at a time."""
    every, fused = histories(), model()
    held: list[int] = []

    def watched(scores: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        held.append(len(scores))
        return top_n(scores, n)

    monkeypatch.setattr(modelling, "top_n", watched)
    for cells in (2 * N_ITEMS + 6, 5):
        monkeypatch.setattr(modelling, "CELLS", cells)
        fused.top(every, every.of_users(np.arange(5)), "new", 3)
    assert held == [2, 2, 1, 1, 1, 1, 1, 1]


def test_no_histories_and_no_candidates_have_no_lists() -> None:
    every, fused = histories(), model()
    assert fused.top(every, every.of_users(np.arange(0)), "new", 3)[0].numel() == 0
    nothing = np.array([], np.int64)
    items, _ = fused.top(every, every.of_users(np.arange(2)), "new", 3, candidates=nothing)
    assert items.numel() == 0


def test_the_heads_do_not_mix() -> None:
    """In turn, from the same model: each has its own gates and bias."""
    every, fused = histories(), model()
    spans = every.of_users(np.arange(N_USERS))
    new, every_item = (fused.scores(every, spans, head) for head in ("new", "all"))
    swapped = replace(fused, heads={"new": fused.heads["all"], "all": fused.heads["new"]})
    assert torch.equal(swapped.scores(every, spans, "new"), every_item)
    assert torch.equal(swapped.scores(every, spans, "all"), new)
    assert torch.equal(fused.scores(every, spans, "new"), new)
    assert not torch.equal(new, every_item)


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


@pytest.mark.parametrize("n_items", [40, 1000, 1024])
def test_lists_are_the_head_of_a_stable_sort(n_items: int) -> None:
    """Whole-number scores, so that nearly every list is cut in the middle of a tie.

    Of 1000 items, 31 chunks and a rest, short lists are found through the best of each chunk.
    """
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (200, n_items)).astype(np.float32)
    scores[:100] += (rng.random((100, n_items)) < 0.01) * rng.integers(0, 9, (100, n_items))
    for n in (1, 3, 7, 39, 40):
        items, values = top_n(torch.from_numpy(scores), n)
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :n]
        assert np.array_equal(items.numpy(), expected)
        assert np.array_equal(values.numpy(), np.take_along_axis(scores, expected, axis=1))


def test_what_is_found_on_another_device_is_what_may_be_listed() -> None:
    """At least 2 in the first row, 1 in the second, none in the third; -inf is never there."""
    scores = torch.tensor([[2.0, 1.0, 3.0], [-INF, 1.0, 0.0], [-INF, -INF, -INF]])
    starts, items, values = may_be_listed(scores, torch.tensor([2.0, 1.0, -INF]))
    assert starts.tolist() == [0, 2, 3, 3]
    assert items.tolist() == [0, 2, 1]
    assert values.tolist() == [2.0, 3.0, 1.0]


def test_a_short_list_of_many_items_leaves_out_what_is_masked() -> None:
    """Of 700 items only 5, 333 and 698 may be listed, or none at all."""
    scores = torch.full((2, 700), -INF)
    scores[0, [5, 333, 698]] = torch.tensor([1.0, 2.0, 2.0])
    items, values = top_n(scores, 4)
    assert items.tolist() == [[333, 698, 5, -1], [-1, -1, -1, -1]]
    assert values.tolist() == [[2.0, 2.0, 1.0, -INF], [-INF] * 4]


def test_a_list_is_no_longer_than_the_catalogue_and_may_be_empty() -> None:
    items, _ = top_n(torch.tensor([[1.0, 2.0], [-INF, -INF]]), 10)
    assert items.tolist() == [[1, 0], [-1, -1]]


def test_excluded_items_are_masked_in_place() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    items = sp.csr_matrix(np.array([[1, 0, 1], [0, 0, 0]], np.float32))
    assert exclude(scores, items) is scores
    assert scores.tolist() == [[-INF, 2.0, -INF], [4.0, 5.0, 6.0]]


def test_all_but_some_items_are_masked_in_place() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    items = sp.csr_matrix(np.array([[1, 0, 1], [0, 0, 0]], np.float32))
    assert only(scores, items) is scores
    assert scores.tolist() == [[1.0, -INF, 3.0], [-INF, -INF, -INF]]
