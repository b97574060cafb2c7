"""A query is what was known at a moment, and what turned out to be relevant."""

import numpy as np

from kgrank.fusion.history import Histories
from kgrank.fusion.queries import (
    Queries,
    all_allowed,
    later_queries,
    new_only,
    next_queries,
    only_items,
    user_queries,
)

N_ITEMS = 6


def histories(by_user: list[list[int]], times: list[float] | None = None) -> Histories:
    users = np.repeat(np.arange(len(by_user)), [len(items) for items in by_user])
    return Histories.from_arrays(
        users,
        np.array([item for items in by_user for item in items], int),
        np.zeros(len(users), int),
        np.array(times) if times else np.full(len(users), np.nan),
        kind_names=("buy",),
        n_users=len(by_user),
        n_items=N_ITEMS,
    )


def known(queries: Queries) -> list[list[int]]:
    """The items of each query's history, in order."""
    spans = zip(queries.spans.first, queries.spans.last, strict=True)
    return [queries.histories.items[first:last].tolist() for first, last in spans]


def entries(matrix: object) -> list[list[int]]:
    """The columns that each row of a CSR matrix holds."""
    return [sorted(row.indices.tolist()) for row in matrix]  # type: ignore[attr-defined]


def test_one_query_a_user_with_held_out_rows() -> None:
    """User 1 has no held-out rows; user 2 has nothing else."""
    train = histories([[0, 1, 0], [2], []])
    held_out = histories([[3, 3, 1], [], [4]])
    queries = user_queries(train, held_out, train)
    assert queries.users.tolist() == [0, 2]
    assert known(queries) == [[0, 1, 0], []]
    assert entries(queries.relevant) == [[1, 3], [4]]
    assert entries(queries.excluded) == [[0, 1], []]
    assert queries.relevant.max() == 1.0


def test_what_is_known_besides_the_history_is_excluded_too() -> None:
    queries = user_queries(histories([[0]]), histories([[3]]), histories([[0, 2]]))
    assert known(queries) == [[0]]
    assert entries(queries.excluded) == [[0, 2]]


def test_every_held_out_event_is_a_query_with_all_before_it_as_history() -> None:
    every = histories([[0, 1, 2, 3], [4, 5]])
    queries = next_queries(every, np.array([2, 3, 5]))
    assert queries.users.tolist() == [0, 0, 1]
    assert known(queries) == [[0, 1], [0, 1, 2], [4]]
    assert entries(queries.relevant) == [[2], [3], [5]]
    assert entries(queries.excluded) == [[0, 1], [0, 1, 2], [4]]


def test_a_first_event_is_asked_with_an_empty_history() -> None:
    queries = next_queries(histories([[0, 1], [2]]), np.array([0, 2]))
    assert known(queries) == [[], []]
    assert entries(queries.excluded) == [[], []]


def test_an_item_met_before_stays_listable_for_the_event_that_chose_it_again() -> None:
    queries = next_queries(histories([[0, 1, 0]]), np.array([2]))
    assert entries(queries.relevant) == [[0]]
    assert entries(queries.excluded) == [[1]]


def test_a_moment_has_all_before_as_history_and_all_after_as_relevant() -> None:
    """User 0's held-out rows are 2, 3, 4; user 1's is 6."""
    every = histories([[0, 1, 2, 3, 2], [4, 5]])
    queries = later_queries(every, np.array([2, 3, 4, 6]), per_user=5)
    assert queries.users.tolist() == [0, 0, 0, 1]
    assert known(queries) == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [4]]
    assert entries(queries.relevant) == [[2, 3], [2, 3], [2], [5]]
    assert entries(queries.excluded) == [[0, 1], [0, 1, 2], [0, 1, 2, 3], [4]]
    assert queries.relevant.max() == 1.0  # item 2 comes twice after the first moment


def test_moments_are_spread_evenly_over_a_user() -> None:
    """Five held-out events, at most two moments: the first and the fourth."""
    every = histories([[0, 1, 2, 3, 4, 5]])
    queries = later_queries(every, np.arange(1, 6), per_user=2)
    assert known(queries) == [[0], [0, 1, 2, 3]]
    assert entries(queries.relevant) == [[1, 2, 3, 4, 5], [4, 5]]


def test_a_basket_is_never_split() -> None:
    """Items 2 and 3 were bought at once: neither is history of the other."""
    every = histories([[0, 1, 2, 3, 4]], [1.0, 2.0, 3.0, 3.0, 4.0])
    queries = later_queries(every, np.array([2, 3, 4]), per_user=3)
    assert known(queries) == [[0, 1], [0, 1, 2, 3]]
    assert entries(queries.relevant) == [[2, 3, 4], [4]]
    asked = next_queries(every, np.array([2, 3, 4]))
    assert known(asked) == [[0, 1], [0, 1], [0, 1, 2, 3]]


def test_two_users_at_the_same_time_share_no_basket() -> None:
    every = histories([[0, 1], [2, 3]], [5.0, 5.0, 5.0, 6.0])
    asked = next_queries(every, np.array([2, 3]))
    assert known(asked) == [[], [2]]


def test_new_only_drops_what_was_met_and_queries_left_without_an_answer() -> None:
    train = histories([[0, 1], [2], [3]])
    queries = user_queries(train, histories([[0, 4], [2], [5]]), train)
    fresh = new_only(queries)
    assert fresh.users.tolist() == [0, 2]
    assert known(fresh) == [[0, 1], [3]]
    assert entries(fresh.relevant) == [[4], [5]]
    assert entries(queries.relevant) == [[0, 4], [2], [5]]  # a change returns a new value


def test_all_allowed_excludes_nothing() -> None:
    train = histories([[0, 1]])
    queries = all_allowed(user_queries(train, histories([[0, 4]]), train))
    assert queries.excluded.shape == (1, N_ITEMS)
    assert entries(queries.excluded) == [[]]
    assert entries(queries.relevant) == [[0, 4]]


def test_only_items_keeps_shape_and_the_chosen_columns() -> None:
    relevant = histories([[0, 1, 2], [1], []]).binary()
    kept = only_items(relevant, np.arange(N_ITEMS) == 1)
    assert kept.shape == relevant.shape
    assert entries(kept) == [[1], [1], []]


def test_answerable_drops_queries_without_anything_relevant() -> None:
    train = histories([[0], [1], [2]])
    queries = user_queries(train, histories([[3], [4], [5]]), train)
    queries = Queries(
        train,
        queries.spans,
        queries.users,
        only_items(queries.relevant, np.arange(N_ITEMS) != 4),
        queries.excluded,
    )
    assert queries.answerable().users.tolist() == [0, 2]


def test_a_sample_is_drawn_once_each_in_order_and_again_by_its_seed() -> None:
    train = histories([[0]] * 30)
    queries = user_queries(train, histories([[u % 5 + 1] for u in range(30)]), train)
    drawn = queries.sample(10, seed=1)
    assert len(drawn) == 10
    assert (np.diff(drawn.users) > 0).all()
    assert drawn.users.tolist() == queries.sample(10, seed=1).users.tolist()
    assert drawn.users.tolist() != queries.sample(10, seed=2).users.tolist()
    assert entries(drawn.relevant) == [[user % 5 + 1] for user in drawn.users]
    assert queries.sample(30, seed=1) is queries
