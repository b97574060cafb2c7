"""A user is the weighted sum of their events."""

import numpy as np
import pytest

from kgrank.fusion.history import DAY, Decay, Histories, Spans

NAN = float("nan")


def histories(times: list[float] | None = None) -> Histories:
    """User 0: items 1, 2, 1 (view, buy, view); user 1: nothing; user 2: item 0 (buy)."""
    return Histories.from_arrays(
        np.array([2, 0, 0, 0]),
        np.array([0, 1, 2, 1]),
        np.array([1, 0, 1, 0]),
        np.array(times if times else [NAN] * 4),
        kind_names=("view", "buy"),
        n_users=3,
        n_items=4,
    )


def row(decay: Decay, times: list[float] | None = None) -> list[float]:
    """User 0's weights of items 0 to 3."""
    h = histories(times)
    return h.weights(h.of_users(np.array([0])), decay).toarray()[0].tolist()


def test_an_item_met_twice_adds_up() -> None:
    assert row(Decay()) == [0.0, 2.0, 1.0, 0.0]


def test_power_counts_age_in_events() -> None:
    """Ages 2, 1, 0 weigh 1/3, 1/2, 1."""
    assert row(Decay(power=1.0)) == pytest.approx([0.0, 4 / 3, 0.5, 0.0])


def test_span_halves_after_so_many_events() -> None:
    """With a span of one event: 1/4, 1/2, 1."""
    assert row(Decay(span=1.0)) == pytest.approx([0.0, 1.25, 0.5, 0.0])


def test_half_life_counts_days_back_from_the_newest_event() -> None:
    """20, 10 and 0 days old at a half-life of 10 days: 1/4, 1/2, 1."""
    times = [0.0, 0.0, 10 * DAY, 20 * DAY]
    assert row(Decay(half_life=10.0), times) == pytest.approx([0.0, 1.25, 0.5, 0.0])


def test_kinds_weigh_as_named_and_others_one() -> None:
    assert row(Decay(kinds={"buy": 3.0})) == [0.0, 2.0, 3.0, 0.0]


def test_binary_leaves_the_histories_as_they_are() -> None:
    h = histories()
    before = h.items.copy()
    assert h.binary().toarray().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert h.items.tolist() == before.tolist()


def test_a_span_sees_only_its_events() -> None:
    h = histories()
    spans = Spans(np.array([0, 1, 3]), np.array([2, 1, 3]))
    assert h.weights(spans, Decay()).toarray().tolist() == [[0, 1, 1, 0], [0] * 4, [0] * 4]


def test_some_items_are_numbered_anew() -> None:
    smaller = histories().of_items(np.array([2, 1]))
    assert smaller.items.tolist() == [1, 0, 1]
    assert smaller.starts.tolist() == [0, 3, 3, 3]
    assert smaller.n_items == 2
