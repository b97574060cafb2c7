"""Item–item weights are the ridge regressions of the literature."""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp
import torch

from kgrank.compiled import compiled
from kgrank.fusion import evidence, item_item, local_ridge
from kgrank.fusion.evidence import Evidence, ItemFeatures, Steps
from kgrank.fusion.history import Histories
from kgrank.fusion.item_item import Moments, Ridge, product, side_rows

N = 8
Dense = npt.NDArray[np.float64]


def chosen(seed: int = 0, n_items: int = N, share: float = 0.4) -> sp.csr_matrix:
    """60 users × items, 1 where chosen."""
    dense = np.random.default_rng(seed).random((60, n_items)) < share
    return sp.csr_matrix(dense.astype(np.float32))


def gram_of(rows: sp.csr_matrix) -> Dense:
    found: Dense = (rows.T @ rows).toarray().astype(np.float64)
    return found


def side(seed: int) -> sp.csr_matrix:
    """Side rows, items × 5 features."""
    return sp.random(N, 5, 0.4, "csr", np.float32, np.random.default_rng(seed))


def linear(rows: sp.csr_matrix, words: sp.csr_matrix | None = None) -> Moments:
    gram = product(rows, rows)
    return Moments(gram, gram, None, words)


def ease(gram: Dense, penalty: Dense) -> Dense:
    """B = -P / diag(P) with P = (G + Λ)⁻¹ and a zero diagonal (Steck 2019)."""
    inverse = np.linalg.inv(gram + np.diag(penalty))
    weights: Dense = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def test_exact_weights_are_ease() -> None:
    rows = chosen()
    found = linear(rows).weights(Ridge(5.0), neighbors=100)
    assert (found.format, found.dtype) == ("csr", np.float32)
    assert found.toarray() == pytest.approx(ease(gram_of(rows), np.full(N, 5.0)), abs=1e-5)


def test_ease_of_two_items_by_hand() -> None:
    """Item 0 has 3 users, item 1 has 2, both of whom chose item 0; λ = 1.

    Each column is a regression on the other item alone: 2 / (3 + 1), and 2 / (2 + 1).
    """
    rows = sp.csr_matrix(np.array([[1, 1], [1, 1], [1, 0]], np.float32))
    found = linear(rows).weights(Ridge(1.0), neighbors=1).toarray()
    assert found == pytest.approx(np.array([[0, 2 / 4], [2 / 3, 0]]), abs=1e-6)


def test_dropout_adds_its_share_of_the_diagonal() -> None:
    rows = chosen()
    gram = gram_of(rows)
    found = linear(rows).weights(Ridge(5.0, dropout=0.5), neighbors=100).toarray()
    assert found == pytest.approx(ease(gram, 5.0 + 0.5 * np.diag(gram)), abs=1e-5)


def test_side_rows_count_as_rows_of_further_users() -> None:
    rows, words, entities = chosen(), side(1), side(2)
    gram = product(rows, rows)
    moments = Moments(gram, gram, entities, words)
    found = moments.weights(Ridge(5.0, entities=2.0, words=3.0), neighbors=100).toarray()
    whole = gram_of(rows) + 2.0 * gram_of(entities.T) + 3.0 * gram_of(words.T)
    assert found == pytest.approx(ease(whole, np.full(N, 5.0)), abs=1e-5)
    assert moments.gram == pytest.approx(gram_of(rows))  # the moments serve the next ridge too


def test_directed_weights_are_the_regression_on_what_came_next() -> None:
    """(HᵀH + λI + S)⁻¹ (HᵀY + S), with and without side rows S."""
    before, after, words = chosen(1), chosen(2), side(3)
    moments = Moments(product(before, before), product(before, after), None, words)
    assert moments.directed
    for weight in (0.0, 4.0):
        left = gram_of(before) + 3.0 * np.eye(N) + weight * gram_of(words.T)
        right = (before.T @ after).toarray() + weight * gram_of(words.T)
        found = moments.weights(Ridge(3.0, words=weight), neighbors=100).toarray()
        assert found == pytest.approx(np.linalg.solve(left, right), abs=1e-5)


def test_exact_weights_keep_the_largest_of_each_column() -> None:
    """Four times as many as asked of a local ridge."""
    rows = chosen(n_items=20)
    found = linear(rows).weights(Ridge(5.0), neighbors=2).toarray()
    whole = ease(gram_of(rows), np.full(20, 5.0))
    assert (np.count_nonzero(found, axis=0) == 8).all()
    for column in range(20):
        kept = np.flatnonzero(found[:, column])
        assert set(kept) == set(np.argsort(-np.abs(whole[:, column]))[:8])
        assert found[kept, column] == pytest.approx(whole[kept, column], abs=1e-5)


def test_local_ridge_over_all_neighbours_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    rows = chosen()
    gram = gram_of(rows)
    assert (gram > 0).all()  # every two items share a user
    found = linear(rows).weights(Ridge(5.0, dropout=0.2), neighbors=7).toarray()
    assert found == pytest.approx(ease(gram, 5.0 + 0.2 * np.diag(gram)), abs=1e-4)


def test_one_neighbour_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """b = G_nj / (G_nn + λ), λ = 1.

    Item 0's strongest neighbour is item 1 (2 users in common; 1 has 2), that of items 1 and 2 is
    item 0 (2 and 1 in common; 0 has 3).
    """
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    rows = sp.csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]], np.float32))
    found = linear(rows).weights(Ridge(1.0), neighbors=1).toarray()
    assert found == pytest.approx(np.array([[0, 2 / 4, 1 / 4], [2 / 3, 0, 0], [0, 0, 0]]), abs=1e-6)


def test_an_item_that_shares_nothing_is_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users choose {0, 1} and {1, 2}; λ = 1; nobody chooses item 3.

    Column 0 is solved over item 1 alone: 1 / (2 + 1), though 1 and 2 have a user in common.
    Column 1 is solved over 0 and 2, which have none: 1 / (1 + 1) each.
    """
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    rows = sp.csr_matrix(np.array([[1, 1, 0, 0], [0, 1, 1, 0]], np.float32))
    found = linear(rows).weights(Ridge(1.0), neighbors=3).toarray()
    expected = [[0, 1 / 2, 0, 0], [1 / 3, 0, 1 / 3, 0], [0, 1 / 2, 0, 0], [0, 0, 0, 0]]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


def test_of_equal_neighbours_the_first_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user chooses all of six items: of the other five, the three lowest numbers."""
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    rows = sp.csr_matrix(np.ones((2, 6), np.float32))
    found = linear(rows).weights(Ridge(1.0), neighbors=3).toarray()
    near = [np.flatnonzero(column).tolist() for column in found.T]
    assert near == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2], [0, 1, 2]]


def shop(n_items: int) -> Evidence:
    """40 users with up to 12 events, the last item without any; word and entity rows."""
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(40), 12)
    histories = Histories.from_arrays(
        users,
        rng.integers(0, n_items - 1, len(users)),
        np.zeros(len(users), int),
        np.full(len(users), np.nan),
        kind_names=("buy",),
        n_users=40,
        n_items=n_items,
    )
    words, entities = (
        sp.random(n_items, n_items // 2, 3 / n_items, "csr", np.float32, np.random.default_rng(s))
        for s in (8, 9)
    )
    words.data -= 0.3  # a side row may say that two items differ
    return Evidence(histories, ItemFeatures(words, entities, None))


@pytest.mark.parametrize("n_items", [30, 700], ids=["long rows", "short rows"])
@pytest.mark.parametrize("directed", [False, True], ids=["linear", "directed"])
def test_a_local_column_is_the_ridge_on_its_strongest_neighbours(
    monkeypatch: pytest.MonkeyPatch, directed: bool, n_items: int
) -> None:
    """Ten items with the largest entries > 0; a directed column may take the item itself."""
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    made = shop(n_items)
    moments = made.directed_moments(Steps(0.5)) if directed else made.linear_moments()
    assert moments.directed == directed
    found = moments.weights(Ridge(5.0, 0.1, 2.0, 3.0), neighbors=10).toarray()
    shared = 2.0 * gram_of(made.features.entities.T) + 3.0 * gram_of(made.features.words.T)
    gram, cross = moments.gram.toarray() + shared, moments.cross.toarray() + shared
    if not directed:
        np.fill_diagonal(cross, 0.0)
    left = gram + np.diag(5.0 + 0.1 * np.diag(gram))
    expected = np.zeros_like(gram)
    for column in range(n_items):
        near = np.argsort(-cross[:, column].astype(np.float32), kind="stable")[:10]
        near = near[cross[near, column] > 1e-6]
        expected[near, column] = np.linalg.solve(left[np.ix_(near, near)], cross[near, column])
    assert np.count_nonzero(expected, axis=0).max() == 10
    assert np.abs(found - expected).max() < 1e-5


def test_a_system_without_one_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three items bought by the same four users, and no penalty: the pivots are 4 and 4 - 2²."""
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    moments = linear(sp.csr_matrix(np.ones((4, 3), np.float32)))
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        moments.weights(Ridge(0.0), neighbors=2)


def test_neither_blocks_nor_threads_change_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    moments = shop(100).directed_moments(Steps(0.5))
    at_once = moments.weights(Ridge(5.0, words=2.0), neighbors=10)
    monkeypatch.setattr(local_ridge, "BLOCK", 200)  # three systems
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    in_blocks = moments.weights(Ridge(5.0, words=2.0), neighbors=10)
    assert in_blocks.nnz > 900
    assert (in_blocks != at_once).nnz == 0


def test_compiled_loops_need_no_folder_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba finds none for its cache, it compiles in memory."""
    njit = numba.njit

    def without_cache(**options: Any) -> Any:
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", without_cache)
    doubled = compiled(lambda x: 2 * x)
    assert doubled(3) == 6


@pytest.mark.parametrize("exact_items", [100, 0], ids=["exact", "local"])
def test_shared_words_give_a_product_nobody_bought_its_weights(
    monkeypatch: pytest.MonkeyPatch, exact_items: int
) -> None:
    """Item 7 has no users and the word of item 0."""
    monkeypatch.setattr(item_item, "EXACT_ITEMS", exact_items)
    dense = chosen().toarray()
    dense[:, 7] = 0.0
    words = np.eye(N, dtype=np.float32)
    words[7] = words[0]
    moments = linear(sp.csr_matrix(dense), sp.csr_matrix(words))
    assert not moments.weights(Ridge(5.0), neighbors=7).toarray()[:, 7].any()
    column = moments.weights(Ridge(5.0, words=3.0), neighbors=7).toarray()[:, 7]
    assert column.argmax() == 0
    assert column[0] > 0.1


@pytest.mark.parametrize("exact_items", [100, 0], ids=["small", "larger"])
def test_products_are_dense_for_a_small_catalogue_alone(
    monkeypatch: pytest.MonkeyPatch, exact_items: int
) -> None:
    monkeypatch.setattr(item_item, "EXACT_ITEMS", exact_items)
    left, right = chosen(1), chosen(2)
    found = product(left, right)
    assert sp.issparse(found) == (exact_items == 0)
    assert found.dtype == np.float32
    assert sp.csr_matrix(found).toarray().tolist() == (left.T @ right).toarray().tolist()


def test_a_large_catalogue_shares_rare_words_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first word is in three items, the second in two: with RARE = 2 only it links."""
    words = sp.csr_matrix(np.array([[1, 0], [1, 2], [1, 3]], np.float32))
    assert side_rows(words).toarray().tolist() == [[1, 0], [1, 2], [1, 3]]
    monkeypatch.setattr(item_item, "LARGE_ITEMS", 2)
    monkeypatch.setattr(item_item, "RARE", 2)
    assert side_rows(words).toarray().tolist() == [[0], [2], [3]]
    monkeypatch.setattr(item_item, "RARE", 1)
    assert side_rows(words) is None


def one_user(items: list[int], n_items: int) -> Evidence:
    histories = Histories.from_arrays(
        np.zeros(len(items), int),
        np.array(items),
        np.zeros(len(items), int),
        np.full(len(items), np.nan),
        kind_names=("buy",),
        n_users=1,
        n_items=n_items,
    )
    return Evidence.of_events(histories)


def test_linear_moments_count_users_in_common() -> None:
    """Item 0 twice and item 1 once: one user has both."""
    moments = one_user([0, 1, 0], 3).linear_moments()
    assert moments.gram.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert not moments.directed


def test_directed_moments_by_hand() -> None:
    """Events 0, 1, 2 of power 1: before 1 stands (0: 1); before 2 stands (0: 1/2, 1: 1)."""
    moments = one_user([0, 1, 2], 3).directed_moments(Steps(1.0))
    assert moments.gram.tolist() == [[1.25, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]
    assert moments.cross.tolist() == [[0, 1, 0.5], [0, 0, 1], [0, 0, 0]]


def test_what_comes_soon_counts_the_less_the_later_it_comes() -> None:
    """Before 1 stands 0, and next are 1 and, at the second place, 2."""
    moments = one_user([0, 1, 2], 3).directed_moments(Steps(1.0, reach=2))
    assert moments.gram.tolist() == [[1.25, 0.5, 0], [0.5, 1, 0], [0, 0, 0]]
    assert moments.cross == pytest.approx(np.array([[0, 1, 0.5 + 0.5**0.5], [0, 0, 1], [0, 0, 0]]))


def test_a_bundle_says_how_far_its_directed_weights_reach() -> None:
    """One of before the reach was chosen says the power alone; EASE has no steps."""
    steps = Steps(0.5, reach=20)
    assert Steps.of_choice({"steps": steps._asdict()}) == steps
    assert Steps.of_choice({"power": 0.5}) == Steps(0.5, reach=1)
    assert Steps.of_choice({"steps": None}) is None
    assert Steps.of_choice({"power": None}) is None


def test_directed_moments_look_back_ten_events() -> None:
    """The twelfth event (item 11) sees items 1 to 10, not item 0."""
    moments = one_user(list(range(12)), 12).directed_moments(Steps(0.0))
    assert moments.cross[:, 11].tolist() == [0.0] + [1.0] * 10 + [0.0]


def test_the_moments_of_a_large_catalogue_see_the_last_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With RECENT = 2, item 0 stands too far back."""
    monkeypatch.setattr(evidence, "RECENT", 2)
    assert one_user([0, 1, 2], 3).linear_moments().gram[0, 0] == 1.0
    monkeypatch.setattr(evidence, "LARGE_ITEMS", 2)
    gram = one_user([0, 1, 2], 3).linear_moments().gram
    assert gram.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
