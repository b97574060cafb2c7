"""Metrics equal an independent implementation's, and hand-worked numbers."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.sparse as sp

from kgrank.errors import ConfigError, DataError
from kgrank.fusion.metrics import evaluate, hits_of, list_metrics, paired_bootstrap

Lists = list[npt.NDArray[np.int64]]


def relevant_rows(*rows: list[int], n_items: int = 6) -> sp.csr_matrix:
    """One list of relevant items a row."""
    of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    items = np.concatenate([np.array(row, int) for row in rows])
    return sp.csr_matrix((np.ones(len(of), np.float32), (of, items)), (len(rows), n_items))


def pairs(lists: Lists) -> pd.DataFrame:
    """`user_id`, `item_id` and `rank` of each place of the lists."""
    rows = [(f"u{u}", f"i{i}", r) for u, row in enumerate(lists) for r, i in enumerate(row, 1)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])


def test_hand_worked_list() -> None:
    """Three relevant items, hits at ranks 1 and 3 of three.

    recall@3 = 2/3; DCG = 1 + 1/2; ideal = 1 + 1/log2(3) + 1/2.
    """
    found = list_metrics(np.array([[0, 1, 2]]), relevant_rows([0, 2, 4]), (3,)).means()
    assert found["recall@3"] == pytest.approx(2 / 3)
    assert found["ndcg@3"] == pytest.approx(1.5 / (1.5 + 1 / np.log2(3)))
    assert found["mrr"] == 1.0


def test_the_ideal_list_is_no_longer_than_what_is_relevant() -> None:
    """One relevant item at rank 1 is a perfect list, however long."""
    found = list_metrics(np.array([[1, 0, 2]]), relevant_rows([1]), (3,))
    assert found.means()["ndcg@3"] == 1.0


def test_the_ideal_list_is_no_longer_than_the_list() -> None:
    """Five relevant, two places, both hits: NDCG 1 but recall 2/5."""
    found = list_metrics(np.array([[0, 1, 5]]), relevant_rows([0, 1, 2, 3, 4]), (2,))
    assert found.means() == pytest.approx({"recall@2": 2 / 5, "ndcg@2": 1.0, "mrr": 1.0})


def test_each_cut_off_counts_its_own_places() -> None:
    """The only hit at rank 3: nothing at 2; 1/log2(4) = 1/2 at 3; reciprocal rank 1/3."""
    found = list_metrics(np.array([[3, 4, 1]]), relevant_rows([1]), (2, 3)).means()
    expected = {"recall@2": 0, "ndcg@2": 0, "recall@3": 1, "ndcg@3": 0.5, "mrr": 1 / 3}
    assert found == pytest.approx(expected)


def test_places_behind_the_end_of_a_list_are_no_hits() -> None:
    top = np.array([[2, -1, -1], [5, 0, -1]])
    relevant = relevant_rows([5], [0])
    assert hits_of(top, relevant).tolist() == [[False] * 3, [False, True, False]]
    assert list_metrics(top, relevant, (3,)).recall[3].tolist() == [0.0, 1.0]


def test_nothing_is_a_hit_where_nothing_is_relevant() -> None:
    nothing = sp.csr_matrix((1, 6), dtype=np.float32)
    assert hits_of(np.array([[0, 5]]), nothing).tolist() == [[False, False]]


def test_means_of_some_lists() -> None:
    found = list_metrics(np.array([[0], [1], [2]]), relevant_rows([0], [0], [2]), (1,))
    assert found.means()["recall@1"] == pytest.approx(2 / 3)
    assert found.means(np.array([True, True, False]))["recall@1"] == 0.5


@pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaWarning")
def test_equals_ranx_on_random_lists() -> None:
    """recall, NDCG and reciprocal rank to 1e-6, of item numbers and of tables."""
    from ranx import Qrels, Run
    from ranx import evaluate as ranx_evaluate

    rng = np.random.default_rng(3)
    n_users, n_items = 40, 60
    lists = [rng.permutation(n_items)[:25] for _ in range(n_users)]
    wanted = [rng.permutation(n_items)[: rng.integers(1, 30)] for _ in range(n_users)]
    names = ["recall@5", "recall@10", "recall@20", "ndcg@5", "ndcg@10", "ndcg@20", "mrr"]
    theirs = ranx_evaluate(
        Qrels({f"u{u}": {f"i{i}": 1 for i in row} for u, row in enumerate(wanted)}),
        Run(
            {
                f"u{u}": {f"i{i}": 100.0 - r for r, i in enumerate(row)}
                for u, row in enumerate(lists)
            }
        ),
        names,
    )
    relevant = relevant_rows(*(row.tolist() for row in wanted), n_items=n_items)
    of_numbers = list_metrics(np.array(lists), relevant, (5, 10, 20)).means()
    of_tables = evaluate(pairs(lists), pairs(wanted), k=(5, 10, 20)).iloc[0]
    assert 0.1 < theirs["ndcg@10"] < 0.9
    for name in names:
        assert of_numbers[name] == pytest.approx(theirs[name], abs=1e-6), name
        assert of_tables[name] == pytest.approx(theirs[name], abs=1e-6), name


def test_tables_in_table_out() -> None:
    """Ranks need not be in the order of the rows; user b has no list and scores 0.

    User a wants x, which stands second: NDCG 1/log2(3), reciprocal rank 1/2, halved by b's 0.
    """
    lists = pd.DataFrame({"user_id": ["a", "a"], "item_id": ["x", "y"], "rank": [2, 1]})
    wanted = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "x"]})
    found = evaluate(lists, wanted, k=(1, 2))
    assert list(found) == ["users", "recall@1", "ndcg@1", "recall@2", "ndcg@2", "mrr"]
    assert len(found) == 1
    row = found.iloc[0].to_dict()
    assert row["users"] == 2
    assert (row["recall@1"], row["recall@2"]) == (0.0, 0.5)
    assert row["ndcg@2"] == pytest.approx(0.5 / np.log2(3))
    assert row["mrr"] == 0.25


def test_the_highest_score_comes_first_and_equal_ones_in_the_order_of_the_rows() -> None:
    """x, y, z score 1, 2, 1: the list is y, x, z."""
    lists = pd.DataFrame({"user_id": "a", "item_id": ["x", "y", "z"], "score": [1.0, 2.0, 1.0]})
    for item, reciprocal in (("y", 1.0), ("x", 1 / 2), ("z", 1 / 3)):
        wanted = pd.DataFrame({"user_id": ["a"], "item_id": [item]})
        assert evaluate(lists, wanted)["mrr"].item() == pytest.approx(reciprocal)


def test_users_who_are_not_asked_about_do_not_count() -> None:
    lists = pd.DataFrame({"user_id": ["b", "a"], "item_id": ["y", "x"], "rank": [1, 1]})
    wanted = pd.DataFrame({"user_id": ["a"], "item_id": ["x"]})
    found = evaluate(lists, wanted)
    assert (found["users"].item(), found["recall@10"].item()) == (1, 1.0)


def test_a_relevant_pair_that_stands_twice_counts_once() -> None:
    lists = pd.DataFrame({"user_id": ["a"], "item_id": ["x"], "rank": [1]})
    wanted = pd.DataFrame({"user_id": ["a"] * 3, "item_id": ["x", "x", "y"]})
    assert evaluate(lists, wanted)["recall@10"].item() == 0.5


def test_ids_are_compared_as_text() -> None:
    """User 7 wants items 1 and 2; the lists are of "7" and hold "2"."""
    lists = pd.DataFrame({"user_id": ["7"], "item_id": ["2"], "rank": [1]})
    wanted = pd.DataFrame({"user_id": [7, 7], "item_id": [1, 2]})
    assert evaluate(lists, wanted)["recall@10"].item() == 0.5


def test_without_any_list_everyone_scores_zero() -> None:
    lists = pd.DataFrame({"user_id": ["a"], "item_id": ["x"], "rank": [1]}).iloc[:0]
    wanted = pd.DataFrame({"user_id": ["a"], "item_id": ["x"]})
    found = evaluate(lists, wanted)
    assert (found["users"].item(), found["recall@10"].item(), found["mrr"].item()) == (1, 0, 0)


def test_what_cannot_be_scored_is_refused() -> None:
    lists = pd.DataFrame({"user_id": ["a", "a"], "item_id": ["x", "x"], "rank": [1, 2]})
    wanted = pd.DataFrame({"user_id": ["a"], "item_id": ["x"]})
    with pytest.raises(DataError, match="recommended, column 'item_id': found an item twice"):
        evaluate(lists, wanted)
    mixed = lists.assign(item_id=pd.Series([1, "1"], dtype=object))
    with pytest.raises(DataError, match="found an item twice"):
        evaluate(mixed, wanted)
    with pytest.raises(DataError, match="neither `rank` nor `score`"):
        evaluate(lists.drop(columns="rank"), wanted)
    with pytest.raises(DataError, match=r"recommended.* a column 'user_id'"):
        evaluate(lists.drop(columns="user_id"), wanted)
    with pytest.raises(DataError, match=r"relevant.* only user_id; allowed: a column 'item_id'"):
        evaluate(lists, wanted.drop(columns="item_id"))
    with pytest.raises(DataError, match="relevant: found no rows"):
        evaluate(lists, wanted.iloc[:0])


@pytest.mark.parametrize("k", [[], 0, (0,), (10, -1), (2.5,), "10", True, None, [[1, 2]]])
def test_cut_offs_that_are_none_are_refused(k: Any) -> None:
    lists = pd.DataFrame({"user_id": ["a"], "item_id": ["x"], "rank": [1]})
    with pytest.raises(ConfigError, match=r"k: found .*; allowed: whole numbers of at least 1"):
        evaluate(lists, lists, k=k)


def test_one_cut_off_needs_no_list() -> None:
    lists = pd.DataFrame({"user_id": ["a", "a"], "item_id": ["x", "y"], "rank": [1, 2]})
    wanted = lists[["user_id", "item_id"]]
    for k in (1, np.int64(1), np.array([1])):
        found = evaluate(lists, wanted, k=k)
        assert list(found) == ["users", "recall@1", "ndcg@1", "mrr"]
        assert found["recall@1"].item() == 0.5


@pytest.mark.parametrize("column", ["rank", "score"])
def test_what_orders_a_list_has_to_be_numbers(column: str) -> None:
    """As text 10 would come before 9; nobody knows where an absent one belongs."""
    lists = pd.DataFrame({"user_id": "a", "item_id": ["x", "y", "z"]})
    wanted = lists.iloc[:1]
    for values in (["10", "9", "8"], pd.Series([9, "10", 8], dtype=object)):
        with pytest.raises(DataError, match=f"row 1, column '{column}'.*; allowed: numbers"):
            evaluate(lists.assign(**{column: values}), wanted)
    with pytest.raises(DataError, match=f"row 2, column '{column}': found no number; allowed"):
        evaluate(lists.assign(**{column: [1.0, np.nan, 2.0]}), wanted)
    whole = pd.Series([10, 9, 8], dtype="Int64")
    assert evaluate(lists.assign(**{column: whole}), wanted)["mrr"].item() > 0


def test_a_bootstrap_draws_users_with_all_their_lists() -> None:
    """Two users, one of three lists: samples are (a, a), (b, b) and twice as often (a, b).

    Their means are 1, 0 and 3/4; as single lists, samples of four would lie all over [0, 1].
    """
    ours, users = np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 2])
    found = paired_bootstrap(ours, np.zeros(4), users)
    assert found.mean == pytest.approx(0.75)
    assert (found.low, found.high) == (0.0, 1.0)
    assert not found.beyond_noise
    alone = paired_bootstrap(ours[:3], np.zeros(3), users[:3])
    assert (alone.mean, alone.beyond_noise) == (1.0, False)


def test_a_bootstrap_interval_is_that_of_the_normal_approximation() -> None:
    """The mean of 400 lists of as many users, half a standard deviation above 0."""
    rng = np.random.default_rng(0)
    gain = rng.normal(0.5, 1.0, 400)
    found = paired_bootstrap(gain + 1.0, np.ones(400), np.arange(400))
    error = gain.std() / 20.0
    assert found.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.1 * error)
    assert found.beyond_noise
    swapped = paired_bootstrap(np.ones(400), gain + 1.0, np.arange(400))
    assert swapped.beyond_noise and swapped.high < 0.0
    assert paired_bootstrap(gain, gain, np.arange(400)).beyond_noise is False
