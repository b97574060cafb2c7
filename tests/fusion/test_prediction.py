"""A user's own part is counted from the history; a predictor is kept as plain values."""

from dataclasses import replace

import numpy as np
import pytest

from kgrank.fusion.history import DAY, Histories
from kgrank.fusion.prediction import Bounded, Logistic, Predictor, user_facts

LOG2, LOG3, LOG4 = np.log([2.0, 3.0, 4.0])


def histories() -> Histories:
    """User 0 views item 0, rates it 5 and item 1 with 2 a day later; user 1 nothing; user 2 views.

    User 2's view is two days after that, and the newest event of all.
    """
    return Histories.from_arrays(
        np.array([0, 0, 0, 2]),
        np.array([0, 0, 1, 1]),
        np.array([1, 0, 0, 1]),
        np.array([0.0, 1.0, 1.0, 3.0]) * DAY,
        kind_names=("rating", "view"),
        n_users=3,
        n_items=2,
        values=np.array([np.nan, 5.0, 2.0, np.nan]),
    )


def test_the_facts_of_a_history_by_hand() -> None:
    """User 0 rated 2 above and 0 above what was expected, so (2 + 0) / (2 + 5)."""
    every = histories()
    facts = user_facts(every, every.of_users(np.arange(3)), ["rating"], np.array([3.0, 2.0]))
    assert facts == pytest.approx(
        np.array([[1, LOG4, LOG3, LOG3, 2 / 7], [1, 0, 0, 0, 0], [1, LOG2, 0, 0, 0]])
    )
    assert (user_facts(every, every.of_users(np.arange(3)), ["rating"], None)[:, 4] == 0).all()


def test_where_an_event_is_given_the_share_of_the_kinds_counts() -> None:
    """User 0 has two ratings among three events, log(3 / 4); user 2 has none of one, log(1 / 2)."""
    every = histories()
    spans = every.of_users(np.arange(3))
    facts = user_facts(every, spans, ["rating"], None, given=True)
    plain = user_facts(every, spans, ["rating"], None)
    assert facts[:, 1].tolist() == [0.0, 0.0, 0.0]
    assert facts[:, 2] == pytest.approx([LOG3 - LOG4, 0.0, -LOG2])
    assert facts[:, [0, 3, 4]].tolist() == plain[:, [0, 3, 4]].tolist()


def test_a_history_without_times_or_events_has_facts_too() -> None:
    every = replace(histories(), times=np.full(4, np.nan), values=None)
    facts = user_facts(every, every.of_users(np.arange(3)), ["view"], np.zeros(2, np.float32))
    assert facts[:, 3:].tolist() == [[0, 0]] * 3
    assert facts[:, 2] == pytest.approx([LOG2, 0, LOG2])


def test_the_isotonic_map_between_and_beyond_its_knots() -> None:
    """Half-way between two knots are log-odds half-way; beyond, one more is one more."""
    link = Logistic(knots=((0.0, -2.0), (2.0, 0.0)))
    odds = np.array([-3.0, -2.0, -1.0, 0.0, 1.0])
    assert link([-1.0, 0.0, 1.0, 2.0, 3.0]) == pytest.approx(1 / (1 + np.exp(-odds)))


def test_a_predictor_is_kept_as_plain_values() -> None:
    base = np.array([0.5, -0.5], np.float32)
    own = np.arange(5.0)
    for link in (Logistic(2.0, -1.0), Logistic(knots=((0.0, -2.0), (2.0, 0.0))), Bounded(1, 5)):
        one = Predictor(("buy",), base, own, link, "all", 14.0, ("see",))
        two = Predictor.from_json(one.as_json(), base)
        assert two.link == link
        assert (two.kinds, two.lists, two.days, two.given) == (("buy",), "all", 14.0, ("see",))
        assert two.own.tolist() == own.tolist()
    older = {name: value for name, value in one.as_json().items() if name != "given"}
    assert Predictor.from_json(older, base).given == ()
    with pytest.raises(ValueError, match="another kind"):
        Predictor.from_json({**one.as_json(), "own": [1.0]}, base)
    assert Bounded(1.0, 5.0)([0.0, 3.0, 6.0]).tolist() == [1.0, 3.0, 5.0]
