"""One step along the edges: the kernel, its gradient, PyG's path, and the sampler."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.kg.propagation import Adjacency, LightConv, propagate, sampled

EDGES = sp.csr_matrix(np.array([[0.0, 2.0, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 0.0], [1, 1, 1]]))


def test_each_target_gets_the_weighted_sum_of_its_sources_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0]])
    reached = propagate(vectors, Adjacency.of(EDGES))
    assert reached.tolist() == [[0.0, 2.0], [2.0, 1.0], [0.0, 0.0], [4.0, 3.0]]


def test_the_gradient_walks_the_edges_backward() -> None:
    vectors = torch.randn(3, 5, dtype=torch.float32, requires_grad=True)
    pull = torch.randn(4, 5)
    (propagate(vectors, Adjacency.of(EDGES)) * pull).sum().backward()
    expected = torch.from_numpy(EDGES.toarray()).float().T @ pull
    assert vectors.grad is not None
    assert torch.allclose(vectors.grad, expected, atol=1e-6)


def test_no_edges_bring_nothing() -> None:
    nothing = Adjacency.of(sp.csr_matrix((4, 3), dtype=np.float32))
    assert propagate(torch.ones(3, 2), nothing).tolist() == [[0.0, 0.0]] * 4


def test_the_pyg_layer_says_the_same_on_both_of_its_paths() -> None:
    entries = EDGES.tocoo()
    index = torch.from_numpy(np.stack([entries.col, entries.row])).long()
    weight = torch.from_numpy(entries.data).float()
    vectors = torch.randn(3, 4)
    layer = LightConv()
    by_messages = layer(vectors, index, weight, size=(3, 4))
    assert torch.allclose(layer(vectors, Adjacency.of(EDGES)), by_messages, atol=1e-6)


def test_a_sample_keeps_short_rows_whole_and_long_ones_in_expectation() -> None:
    rng = np.random.default_rng(0)
    matrix = sp.random(40, 60, density=0.3, format="csr", dtype=np.float32, rng=rng)
    drawn = [sampled(matrix, 10, seed) for seed in range(400)]
    lengths = np.diff(matrix.indptr)
    assert (np.diff(drawn[0].indptr) == np.minimum(lengths, 10)).all()
    mean = sum(part.toarray() for part in drawn) / len(drawn)
    short = lengths <= 10
    assert np.array_equal(drawn[0].toarray()[short], matrix.toarray()[short])
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    assert mean.sum(axis=1) == pytest.approx(sums, rel=0.05)


def test_the_same_seed_draws_the_same_edges() -> None:
    matrix = sp.csr_matrix(np.ones((3, 50), np.float32))
    assert np.array_equal(sampled(matrix, 5, 7).indices, sampled(matrix, 5, 7).indices)
    assert not np.array_equal(sampled(matrix, 5, 7).indices, sampled(matrix, 5, 8).indices)
