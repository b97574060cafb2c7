"""Compiled products say what scipy and numpy say, at any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion.local_ridge import Rows
from kgrank.fusion.products import add_scaled, at_least, multiply, multiply_dense

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
