"""Texts and histories changed while an encoder learns."""

from __future__ import annotations

import numpy as np

from kgrank.encoders.augmenting import (
    dropped_events,
    joined_histories,
    masked_tokens,
    shuffled_sentences,
)


def test_sentences_change_places_and_stay_whole() -> None:
    rng = np.random.default_rng(0)
    text = "Warm. Made of wool! 很暖。好看"
    found = {shuffled_sentences(text, rng) for _ in range(200)}
    parts = {"Warm.", "Made of wool!", "很暖。", "好看"}
    assert len(found) == 24
    assert all({p for p in parts if p in shuffled} == parts for shuffled in found)
    assert shuffled_sentences("one lamp, 2.5 m", rng) == "one lamp, 2.5 m"


def test_tokens_are_hidden_but_for_special_ones_and_one() -> None:
    rng = np.random.default_rng(0)
    ids, special = [2, 7, 8, 9, 10, 3], frozenset({2, 3})
    found = [masked_tokens(ids, special, 4, 0.5, rng) for _ in range(1_000)]
    assert all((row[0], row[-1], len(row)) == (2, 3, 6) for row in found)
    hidden = np.array(found)[:, 1:-1] == 4
    assert 0.45 < hidden.mean() < 0.55
    assert hidden.all(axis=1).sum() == 0
    assert masked_tokens([2, 3], special, 4, 0.9, rng) == [2, 3]


def test_dropped_events_leave_the_others_in_order_and_one_at_least() -> None:
    rng = np.random.default_rng(0)
    history = np.tile([5, 6, 7, -1], (2_000, 1))
    found = dropped_events(history, 0.5, rng)
    kept = (found >= 0).sum(axis=1)
    assert set(kept) == {1, 2, 3}
    assert 0.5 < kept.mean() / 3 < 0.58  # half, and one where all would be dropped
    assert {tuple(row) for row in found} == {
        *((5, 6, 7, -1), (5, 6, -1, -1), (5, 7, -1, -1), (6, 7, -1, -1)),
        *((5, -1, -1, -1), (6, -1, -1, -1), (7, -1, -1, -1)),
    }
    nothing = np.full((3, 2), -1)
    assert (dropped_events(nothing, 0.5, rng) == -1).all()


def test_joined_histories_have_another_behind_them() -> None:
    history = np.array([[1, 2, -1, -1], [3, 4, -1, -1]])
    rng = np.random.default_rng(0)
    found = {tuple(row) for _ in range(50) for row in joined_histories(history, 0.5, rng)}
    assert found == {
        *((1, 2, -1, -1), (1, 2, 3, 4), (1, 2, 1, 2)),
        *((3, 4, -1, -1), (3, 4, 1, 2), (3, 4, 3, 4)),
    }
