"""Item–item weights are the ridge regressions of the literature."""

import numpy as np
import pytest
import scipy.sparse as sp

from kgrank.fusion import item_item
from kgrank.fusion.item_item import Moments, Ridge, product


def chosen(seed: int = 0, n_users: int = 60, n_items: int = 8) -> sp.csr_matrix:
    dense = np.random.default_rng(seed).random((n_users, n_items)) < 0.4
    return sp.csr_matrix(dense.astype(np.float32))


def linear(rows: sp.csr_matrix, words: np.ndarray | None = None) -> Moments:
    gram = product(rows, rows)
    return Moments(gram, gram, None, None if words is None else (words @ words.T))


def ease(gram: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    inverse = np.linalg.inv(gram.astype(np.float64) + np.diag(penalty))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0.0)
    return weights


def test_exact_weights_are_ease() -> None:
    """B = -P / diag(P) with P = (XᵀX + λI)⁻¹ and a zero diagonal (Steck 2019)."""
    rows = chosen()
    found = linear(rows).weights(Ridge(5.0), neighbors=100).toarray()
    gram = (rows.T @ rows).toarray()
    assert found == pytest.approx(ease(gram, np.full(8, 5.0)), abs=1e-5)


def test_dropout_adds_its_share_of_the_diagonal() -> None:
    rows = chosen()
    gram = (rows.T @ rows).toarray()
    found = linear(rows).weights(Ridge(5.0, dropout=0.5), neighbors=100).toarray()
    assert found == pytest.approx(ease(gram, 5.0 + 0.5 * np.diag(gram)), abs=1e-5)


def test_directed_weights_are_the_regression_on_what_came_next() -> None:
    """(HᵀH + λI)⁻¹ HᵀY."""
    before, after = chosen(1), chosen(2)
    moments = Moments(product(before, before), product(before, after), None, None)
    found = moments.weights(Ridge(3.0), neighbors=100).toarray()
    gram = (before.T @ before).toarray() + 3.0 * np.eye(8)
    assert found == pytest.approx(np.linalg.solve(gram, (before.T @ after).toarray()), abs=1e-5)


@pytest.mark.parametrize("dense_items", [1_000, 0])
def test_local_ridge_over_all_neighbours_is_exact(
    monkeypatch: pytest.MonkeyPatch, dense_items: int
) -> None:
    """Dense and sparse moments alike."""
    monkeypatch.setattr(item_item, "DENSE_ITEMS", dense_items)
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    rows = chosen()
    assert ((rows.T @ rows).toarray() > 0).all()  # every two items share a user
    found = linear(rows).weights(Ridge(5.0), neighbors=7).toarray()
    gram = (rows.T @ rows).toarray()
    assert found == pytest.approx(ease(gram, np.full(8, 5.0)), abs=1e-4)


def test_local_ridge_solves_over_the_strongest_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """One neighbour: b = G_nj / (G_nn + λ), by hand."""
    monkeypatch.setattr(item_item, "EXACT_ITEMS", 0)
    rows = sp.csr_matrix(np.array([[1, 1, 0], [1, 1, 0], [1, 0, 1]], np.float32))
    found = linear(rows).weights(Ridge(1.0), neighbors=1).toarray()
    # item 0's strongest neighbour is 1 (2 users; 1 has 2), item 1's is 0 (0 has 3), item 2's is 0.
    assert found == pytest.approx(np.array([[0, 2 / 4, 1 / 4], [2 / 3, 0, 0], [0, 0, 0]]), abs=1e-6)


def test_shared_words_give_a_product_nobody_bought_its_weights() -> None:
    rows = chosen()
    dense = rows.toarray()
    dense[:, 7] = 0.0
    words = np.eye(8, dtype=np.float32)
    words[7] = words[0]
    moments = linear(sp.csr_matrix(dense), words)
    assert moments.weights(Ridge(5.0), neighbors=100).toarray()[0, 7] == 0.0
    column = moments.weights(Ridge(5.0, words=3.0), neighbors=100).toarray()[:, 7]
    assert column.argmax() == 0
    assert column[0] > 0.1
