"""A fit chooses on valid what the world was made of."""

import numpy as np
import pytest
import scipy.sparse as sp

from kgrank.errors import ModelError
from kgrank.fusion.evidence import ItemFeatures
from kgrank.fusion.history import Histories
from kgrank.fusion.model import exclude, top_n
from kgrank.fusion.queries import later_queries, next_queries
from kgrank.fusion.settings import FitSettings
from kgrank.fusion.training import Fit, fit, valid_queries

NAN = float("nan")


def silent(_stage: str, _done: int, _total: int) -> None:
    """No progress."""


def histories(users: np.ndarray, items: np.ndarray, times: np.ndarray | None = None) -> Histories:
    return Histories.from_arrays(
        users,
        items,
        np.zeros(len(users), int),
        np.full(len(users), NAN) if times is None else times,
        kind_names=("buy",),
        n_users=int(users.max()) + 1,
        n_items=int(items.max()) + 1,
    )


def nothing_known(n_items: int) -> ItemFeatures:
    empty = sp.csr_matrix((n_items, 1), dtype=np.float32)
    return ItemFeatures(empty, empty, None)


def chain_world() -> tuple[Histories, np.ndarray]:
    """Every user walks round a ring of 20 items, one step at a time: after n comes n + 1."""
    rng = np.random.default_rng(0)
    n_users, length = 200, 8
    users = np.repeat(np.arange(n_users), length)
    start = rng.integers(0, 20, n_users)
    items = (start[users] + np.tile(np.arange(length), n_users)) % 20
    splits = np.tile(np.r_[np.zeros(length - 1), 1], n_users).astype(np.int8)
    return histories(users, items), splits


def fitted(settings: FitSettings | None = None) -> Fit:
    every, splits = chain_world()
    settings = settings or FitSettings(refit=False)
    return fit(every, splits, nothing_known(20), settings, silent)


def test_where_order_says_all_the_next_item_comes_first() -> None:
    every, splits = chain_world()
    found = fitted()
    queries = next_queries(every, np.flatnonzero(splits == 1))
    scores = found.model.scores(every, queries.spans, "new")
    top = top_n(exclude(scores, queries.excluded), 1)[0][:, 0].numpy()
    right = queries.relevant.indices == top
    assert right.mean() > 0.95


def test_the_same_seed_gives_the_same_weights() -> None:
    one, two = (fitted().model for _ in range(2))
    for name in ("weight", "slope", "cold"):
        assert np.array_equal(getattr(one.heads["new"], name), getattr(two.heads["new"], name))
    for first, second in zip(one.channels, two.channels, strict=True):
        assert (first.form.weights != second.form.weights).nnz == 0


def test_refitting_uses_the_valid_events_too() -> None:
    """Popularity counts 7 events a user without them, 8 with."""
    every, splits = chain_world()
    alone, both = fitted().model, fitted(FitSettings(refit=True)).model
    assert not np.array_equal(alone.side.popularity, both.side.popularity)
    assert len(every.items) == 8 * 200
    assert (splits == 0).sum() == 7 * 200


def test_what_cannot_be_fitted_is_refused() -> None:
    every, splits = chain_world()
    with pytest.raises(ModelError, match="no train events"):
        fit(every, np.ones_like(splits), nothing_known(20), FitSettings(), silent)
    with pytest.raises(ModelError, match="no valid events"):
        fit(every, np.zeros_like(splits), nothing_known(20), FitSettings(), silent)


def test_a_split_by_time_is_asked_at_moments_and_one_at_random_by_user() -> None:
    users = np.repeat([0, 1], 6)
    every = histories(users, np.arange(12))
    by_time = np.tile(np.array([0, 0, 0, 0, 1, 1], np.int8), 2)
    queries = valid_queries(every, by_time, FitSettings())
    assert (queries.spans.last - queries.spans.first).tolist() == [4, 5, 4, 5]
    at_random = np.tile(np.array([1, 0, 1, 0, 0, 0], np.int8), 2)
    queries = valid_queries(every, at_random, FitSettings())
    assert (queries.spans.last - queries.spans.first).tolist() == [4, 4]
    assert queries.relevant[0].indices.tolist() == [0, 2]


def test_a_basket_is_never_split() -> None:
    """Items 2 and 3 were bought at once: neither is history of the other."""
    times = np.array([1.0, 2.0, 3.0, 3.0, 4.0])
    every = histories(np.zeros(5, int), np.arange(5), times)
    queries = later_queries(every, np.array([2, 3, 4]), per_user=3)
    assert queries.spans.last.tolist() == [2, 4]
    assert [row.indices.tolist() for row in queries.relevant] == [[2, 3, 4], [4]]
    asked = next_queries(every, np.array([2, 3, 4]))
    assert asked.spans.last.tolist() == [2, 2, 4]


def test_an_item_met_before_stays_listable_for_the_event_that_chose_it_again() -> None:
    every = histories(np.zeros(3, int), np.array([0, 1, 0]))
    queries = next_queries(every, np.array([2]))
    assert queries.excluded.toarray().tolist() == [[0.0, 1.0]]
