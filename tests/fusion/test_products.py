"""Compiled products say what scipy and numpy say, at any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion.local_ridge import Rows
from kgrank.fusion.products import SPARSE, add_scaled, at_least, multiply, multiply_dense

N, N_ITEMS = 13, 9


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def some(shape: tuple[int, int], seed: int) -> sp.csr_matrix:
    return sp.random(*shape, 0.4, "csr", np.float32, np.random.default_rng(seed))


def test_a_product_is_added_to_what_is_there(threads: int) -> None:
    history, weights = some((N, N_ITEMS), 1), some((N_ITEMS, N_ITEMS), 2)
    out = np.ones((N, N_ITEMS), np.float32)
    multiply(history, Rows.of(weights), out)
    assert out == pytest.approx(1.0 + (history @ weights).toarray(), rel=1e-5)
    dense = np.ones((N, N_ITEMS), np.float32)
    multiply_dense(history, weights.toarray(), dense)
    assert dense == pytest.approx(out, rel=1e-5)


def test_rows_are_scaled_and_columns_gated(threads: int) -> None:
    """A row of scores (3, 4, 0, 0) has the root mean square 2.5."""
    history = sp.csr_matrix(np.array([[1, 0], [0, 0], [0, 2]], np.float32))
    weights = sp.csr_matrix(np.array([[3, 4, 0, 0], [0, 0, 1, 1]], np.float32))
    out = np.full((3, 4), 10.0, np.float32)
    add_scaled(history, Rows.of(weights), np.array([1, 0.5, 1, 0], np.float32), out)
    third = np.sqrt(2.0)  # (0, 0, 2, 2) over its root mean square
    expected = [[11.2, 10.8, 10, 10], [10, 10, 10, 10], [10, 10, 10 + third, 10]]
    assert out == pytest.approx(np.array(expected), rel=1e-6)


def test_entries_of_at_least_their_columns_bound_are_kept() -> None:
    matrix = np.array([[1, -2, 0], [3, 1, 0], [-4, 2, 5]], np.float32)
    kept = at_least(matrix, np.array([3, 2, 0], np.float32))
    assert kept.has_sorted_indices
    assert kept.toarray().tolist() == [[0, -2, 0], [3, 0, 0], [-4, 2, 5]]
    assert kept.nnz == 5  # a zero is not kept, whatever the bound


def test_rows_of_few_products_are_scaled_alike(threads: int) -> None:
    """1,000 items of which a row reaches 30: what the plain way over all items gives."""
    rng = np.random.default_rng(4)
    weights = sp.csr_matrix(
        (
            rng.normal(size=10_000).astype(np.float32),
            rng.integers(0, 90, 10_000),
            range(0, 10_001, 10),
        ),
        (1_000, 1_000),
    )
    history = sp.random(20, 1_000, 0.003, "csr", np.float32, rng)
    assert 10 * np.diff(history.indptr).max() <= 1_000 // SPARSE
    gate = rng.random(1_000, np.float32)
    out = np.ones((20, 1_000), np.float32)
    add_scaled(history, Rows.of(weights), gate, out)
    plain = (history @ weights).toarray().astype(np.float64)
    size = np.sqrt((plain**2).mean(axis=1, keepdims=True))
    expected = 1.0 + gate * plain / np.where(size > 0, size, 1.0)
    assert out == pytest.approx(expected, rel=1e-4, abs=1e-5)
