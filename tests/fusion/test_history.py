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
    found: list[float] = h.weights(h.of_users(np.array([0])), decay).toarray()[0].tolist()
    return found


def test_events_are_grouped_by_user_in_the_order_given() -> None:
    h = histories([7.0, 1.0, 2.0, 3.0])
    assert h.starts.tolist() == [0, 3, 3, 4]
    assert h.users().tolist() == [0, 0, 0, 2]
    assert h.items.tolist() == [1, 2, 1, 0]
    assert h.kinds.tolist() == [0, 1, 0, 1]
    assert h.times.tolist() == [1.0, 2.0, 3.0, 7.0]
    assert h.n_users == 3


def test_an_item_met_twice_adds_up() -> None:
    assert row(Decay()) == [0.0, 2.0, 1.0, 0.0]


def test_power_counts_age_in_events() -> None:
    """Ages 2, 1, 0 weigh 1/3, 1/2, 1."""
    assert row(Decay(power=1.0)) == pytest.approx([0.0, 4 / 3, 0.5, 0.0])


def test_span_halves_after_so_many_events() -> None:
    """With a span of one event: 1/4, 1/2, 1."""
    assert row(Decay(span=1.0)) == pytest.approx([0.0, 1.25, 0.5, 0.0])


def test_ages_are_weighed_by_a_table() -> None:
    """Ages 2, 1, 0: beyond the table's end nothing counts."""
    assert row(Decay(ages=(3.0, 0.5))) == pytest.approx([0.0, 3.0, 0.5, 0.0])


def test_gaps_are_powers_of_two_of_a_second_before_the_newest_event() -> None:
    """0, 3 and 1000 seconds before the newest: gaps 0, 2 and 9, beyond the table its last."""
    decay = Decay(gaps=(1.0, 5.0, 0.5, 0.25))
    assert row(decay, [0.0, 0.0, 997.0, 1000.0]) == pytest.approx([0.0, 1.25, 0.5, 0.0])
    assert row(decay) == pytest.approx([0.0, 2.0, 1.0, 0.0])  # without times all are the newest


def test_half_life_counts_days_back_from_the_newest_event() -> None:
    """20, 10 and 0 days old at a half-life of 10 days: 1/4, 1/2, 1."""
    times = [0.0, 0.0, 10 * DAY, 20 * DAY]
    assert row(Decay(half_life=10.0), times) == pytest.approx([0.0, 1.25, 0.5, 0.0])


def test_half_life_fades_nothing_where_there_are_no_times() -> None:
    assert row(Decay(half_life=10.0)) == [0.0, 2.0, 1.0, 0.0]


def test_half_life_looks_back_from_the_newest_event_of_the_span() -> None:
    """Asked after two events, the second (day 10) is the newest: 1/2, 1."""
    h = histories([0.0, 0.0, 10 * DAY, 20 * DAY])
    found = h.weights(Spans(np.array([0]), np.array([2])), Decay(half_life=10.0))
    assert found.toarray()[0].tolist() == pytest.approx([0.0, 0.5, 1.0, 0.0])


def test_kinds_weigh_as_named_and_others_one() -> None:
    assert row(Decay(kinds={"buy": 3.0})) == [0.0, 2.0, 3.0, 0.0]


def test_all_of_a_decay_multiplies() -> None:
    """Item 2: age 1, 10 days, a buy: 1/2 (power) · 1/√2 (span 2) · 1/2 (half-life) · 3."""
    decay = Decay(power=1.0, span=2.0, half_life=10.0, kinds={"buy": 3.0, "view": 0.0})
    times = [0.0, 0.0, 10 * DAY, 20 * DAY]
    assert row(decay, times) == pytest.approx([0.0, 0.0, 0.75 / np.sqrt(2), 0.0])


def test_event_weights_stand_span_after_span_oldest_first() -> None:
    h = histories()
    spans = Spans(np.array([3, 1, 0]), np.array([4, 1, 3]))
    events, weights = h.event_weights(spans, Decay(power=1.0))
    assert events.tolist() == [3, 0, 1, 2]
    assert weights.dtype == np.float32
    assert weights.tolist() == pytest.approx([1.0, 1 / 3, 1 / 2, 1.0])


def test_binary_leaves_the_histories_as_they_are() -> None:
    """User 0 met item 1 twice: one entry in the matrix, two events still in the histories."""
    h = histories()
    items, starts = h.items.tolist(), h.starts.tolist()
    assert h.binary().toarray().tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    assert h.items.tolist() == items
    assert h.starts.tolist() == starts


def test_weights_leave_the_histories_as_they_are() -> None:
    h = histories()
    items = h.items.tolist()
    h.weights(h.of_users(np.arange(3)), Decay(power=1.0))
    assert h.items.tolist() == items


def test_a_span_sees_only_its_events() -> None:
    h = histories()
    spans = Spans(np.array([0, 1, 3]), np.array([2, 1, 3]))
    assert h.weights(spans, Decay()).toarray().tolist() == [[0, 1, 1, 0], [0] * 4, [0] * 4]


EVERYTHING = Decay(power=1.0, span=2.0, half_life=3.0, kinds={"buy": 2.0})


def test_empty_spans_weigh_nothing_under_any_decay() -> None:
    """At the first event, behind the last one, and no span at all."""
    h = histories([1.0, 2.0, 3.0, 4.0])
    spans = Spans(np.array([0, 4]), np.array([0, 4]))
    assert h.weights(spans, EVERYTHING).toarray().tolist() == [[0] * 4, [0] * 4]
    assert h.weights(spans[:0], EVERYTHING).shape == (0, 4)


def test_histories_without_events_weigh_nothing() -> None:
    nothing = histories().where(np.zeros(4, bool))
    assert nothing.n_users == 3
    assert nothing.binary().shape == (3, 4)
    found = nothing.weights(nothing.of_users(np.arange(3)), EVERYTHING)
    assert found.toarray().tolist() == [[0] * 4] * 3


def test_where_keeps_the_users_and_the_order() -> None:
    kept = histories([7.0, 1.0, 2.0, 3.0]).where(np.array([True, False, True, True]))
    assert kept.items.tolist() == [1, 1, 0]
    assert kept.times.tolist() == [1.0, 3.0, 7.0]
    assert kept.kinds.tolist() == [0, 0, 1]
    assert kept.starts.tolist() == [0, 2, 2, 3]


def test_some_items_are_numbered_anew() -> None:
    smaller = histories().of_items(np.array([2, 1]))
    assert smaller.items.tolist() == [1, 0, 1]
    assert smaller.starts.tolist() == [0, 3, 3, 3]
    assert smaller.n_items == 2


def test_spans_are_taken_by_slice_and_by_number() -> None:
    spans = histories().of_users(np.array([2, 0, 1]))
    assert (spans.first.tolist(), spans.last.tolist()) == ([3, 0, 3], [4, 3, 3])
    assert len(spans) == 3
    assert spans[:2].last.tolist() == [4, 3]
    assert spans[np.array([1])].first.tolist() == [0]
