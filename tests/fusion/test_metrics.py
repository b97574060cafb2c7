"""Metrics equal an independent implementation's, and hand-worked numbers."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from kgrank.errors import DataError
from kgrank.fusion.metrics import evaluate, list_metrics


def test_hand_worked_list() -> None:
    """Three relevant items, hits at ranks 1 and 3 of three.

    recall@3 = 2/3; DCG = 1 + 1/2; ideal = 1 + 1/log2(3) + 1/2.
    """
    relevant = sp.csr_matrix(np.array([[1, 0, 1, 0, 1]], np.float32))
    found = list_metrics(np.array([[0, 1, 2]]), relevant, (3,)).means()
    assert found["recall@3"] == pytest.approx(2 / 3)
    assert found["ndcg@3"] == pytest.approx(1.5 / (1.5 + 1 / np.log2(3)))
    assert found["mrr"] == 1.0


def test_the_ideal_list_is_as_long_as_there_are_relevant_items() -> None:
    """One relevant item at rank 1 is a perfect list, however long."""
    relevant = sp.csr_matrix(np.array([[0, 1, 0]], np.float32))
    assert list_metrics(np.array([[1, 0, 2]]), relevant, (3,)).means()["ndcg@3"] == 1.0


@pytest.mark.filterwarnings("ignore")
def test_equals_ranx_on_random_lists() -> None:
    """recall, NDCG and reciprocal rank to 1e-6, tables in."""
    from ranx import Qrels, Run
    from ranx import evaluate as ranx_evaluate

    rng = np.random.default_rng(3)
    n_users, n_items = 40, 60
    lists = [rng.permutation(n_items)[:25] for _ in range(n_users)]
    wanted = [rng.permutation(n_items)[: rng.integers(1, 30)] for _ in range(n_users)]
    recommended = pd.DataFrame(
        [(f"u{u}", f"i{i}", r + 1) for u, row in enumerate(lists) for r, i in enumerate(row)],
        columns=["user_id", "item_id", "rank"],
    )
    relevant = pd.DataFrame(
        [(f"u{u}", f"i{i}") for u, row in enumerate(wanted) for i in row],
        columns=["user_id", "item_id"],
    )
    ours = evaluate(recommended, relevant, k=(5, 10, 20)).iloc[0]
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
    for name in names:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name


def test_a_user_without_a_list_scores_zero() -> None:
    recommended = pd.DataFrame({"user_id": ["a"], "item_id": ["x"], "score": [1.0]})
    relevant = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "x"]})
    assert evaluate(recommended, relevant)["recall@10"].item() == 0.5


def test_what_cannot_be_scored_is_refused() -> None:
    lists = pd.DataFrame({"user_id": ["a", "a"], "item_id": ["x", "x"], "rank": [1, 2]})
    wanted = pd.DataFrame({"user_id": ["a"], "item_id": ["x"]})
    with pytest.raises(DataError, match="an item twice in one list"):
        evaluate(lists, wanted)
    with pytest.raises(DataError, match="neither `rank` nor `score`"):
        evaluate(lists.drop(columns="rank"), wanted)
    with pytest.raises(DataError, match="column 'item_id'"):
        evaluate(lists, wanted.drop(columns="item_id"))
    with pytest.raises(DataError, match="no rows"):
        evaluate(lists, wanted.iloc[:0])
