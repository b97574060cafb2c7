"""One step along the edges: the kernel, its gradient, PyG's path, and the sampler."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from kgrank.errors import ModelError
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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_vectors_dtype_is_kept(dtype: torch.dtype) -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0]], dtype=dtype)
    reached = LightConv()(vectors, Adjacency.of(EDGES))
    assert reached.dtype == dtype
    assert reached.tolist() == [[0.0, 2.0], [2.0, 1.0], [0.0, 0.0], [4.0, 3.0]]


def test_first_and_second_derivatives_are_those_of_finite_differences() -> None:
    vectors = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    edges = Adjacency.of(EDGES)
    assert torch.autograd.gradcheck(lambda x: propagate(x, edges), vectors)
    assert torch.autograd.gradgradcheck(lambda x: propagate(x, edges), vectors)


@pytest.mark.parametrize("shape", [(4, 5), (2, 5), (3,), (1, 3, 5)])
def test_vectors_of_other_nodes_are_refused_before_the_step(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"allowed: \(3, dim\) floats"):
        LightConv()(torch.randn(shape), Adjacency.of(EDGES))
    with pytest.raises(ModelError, match=r"torch\.int64"):
        propagate(torch.ones(3, 2, dtype=torch.long), Adjacency.of(EDGES))


# The PyG layer


def coordinates() -> tuple[Tensor, Tensor]:
    """EDGES as edge_index and edge_weight, sorted by target."""
    entries = EDGES.tocoo()
    index = torch.from_numpy(np.stack([entries.col, entries.row])).long()
    return index, torch.from_numpy(entries.data).float()


def sorted_index() -> EdgeIndex:
    return EdgeIndex(coordinates()[0], sparse_size=(3, 4), sort_order="col")


def csr() -> Tensor:
    return Adjacency.of(EDGES).sparse


def test_the_pyg_layer_says_the_same_of_edges_in_any_form() -> None:
    index, weight = coordinates()
    vectors = torch.randn(3, 4, requires_grad=True)
    pull = torch.randn(4, 4)
    layer = LightConv()

    def found(*given: Tensor | Adjacency, **size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        out = layer(vectors, *given, **size)
        return out, torch.autograd.grad((out * pull).sum(), vectors)[0]

    out, gradient = found(index, weight, size=(3, 4))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = EdgeIndex(index[:, order], sparse_size=(3, 4))
    for given in (
        (Adjacency.of(EDGES),),
        (Adjacency.from_edge_index(index[:, order], weight[order], size=(3, 4)),),
        (csr(),),
        (csr().to_sparse_coo(),),
        (csr().to_sparse_csc(),),
        (sorted_index(), weight),
        (shuffled, weight[order]),
    ):
        other, of_other = found(*given)
        assert torch.allclose(other, out, atol=1e-6)
        assert torch.allclose(of_other, gradient, atol=1e-6)


def test_the_kernel_is_pygs_fused_path_and_its_hooks_fire() -> None:
    index, weight = coordinates()
    layer, told = LightConv(), []
    layer.register_propagate_forward_pre_hook(lambda *_: told.append("propagate"))
    layer.register_message_forward_hook(lambda *_: told.append("message"))
    layer.register_message_and_aggregate_forward_hook(lambda *_: told.append("fused"))
    fused = ((Adjacency.of(EDGES),), (csr(),), (sorted_index(), weight))
    for given in fused:
        told.clear()
        layer(torch.randn(3, 4), *given)
        assert told == ["propagate", "fused"]
    told.clear()
    layer(torch.randn(3, 4), index, weight, size=(3, 4))
    assert told == ["propagate", "message"]


def test_a_hook_may_give_the_step_other_edges() -> None:
    twice = Adjacency.of(2 * EDGES).sparse
    layer = LightConv()
    layer.register_message_and_aggregate_forward_pre_hook(lambda _, given: (twice, given[1]))
    vectors = torch.randn(3, 4)
    expected = 2 * propagate(vectors, Adjacency.of(EDGES))
    assert torch.allclose(layer(vectors, Adjacency.of(EDGES)), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["edge_index", "EdgeIndex", "coo", "csr"])
def test_weights_that_want_a_gradient_get_it(form: str) -> None:
    index, given = coordinates()
    weight = given.requires_grad_()
    vectors = torch.randn(3, 4)
    if form == "edge_index":
        out = LightConv()(vectors, index, weight, size=(3, 4))
    elif form == "EdgeIndex":
        out = LightConv()(vectors, sorted_index(), weight)
    else:
        entries = index.flip(0), weight, (4, 3)
        matrix = torch.sparse_coo_tensor(*entries, check_invariants=True)
        out = LightConv()(vectors, matrix if form == "coo" else matrix.to_sparse_csr())
    [gradient] = torch.autograd.grad(out.sum(), weight)
    assert torch.allclose(gradient, vectors.sum(dim=1)[index[0]], atol=1e-6)


def test_weights_beside_edges_that_have_their_own_are_refused() -> None:
    _, weight = coordinates()
    vectors, layer = torch.randn(3, 4), LightConv()
    for edges, what in ((Adjacency.of(EDGES), "an Adjacency"), (csr(), "a sparse tensor")):
        with pytest.raises(ModelError, match=f"found edge_weight beside {what}"):
            layer(vectors, edges, weight)
    for edges in (Adjacency.of(EDGES), csr(), sorted_index()):
        with pytest.raises(ModelError, match="found size beside"):
            layer(vectors, edges, size=(3, 4))
    with pytest.raises(ModelError, match="weights that want a gradient"):
        Adjacency.from_sparse(csr().requires_grad_())


def test_edges_made_of_an_edge_index_by_hand() -> None:
    """0 → 1 twice with 2 and 3, 2 → 0 with 0.5."""
    index = torch.tensor([[0, 2, 0], [1, 0, 1]])
    edges = Adjacency.from_edge_index(index, torch.tensor([2.0, 0.5, 3.0]), size=(3, 2))
    vectors = torch.tensor([[1.0], [7.0], [4.0]])
    assert propagate(vectors, edges).tolist() == [[2.0], [5.0]]
    assert propagate(torch.tensor([[1.0], [10.0]]), edges.transposed).tolist() == [[50], [0], [0.5]]
    plain = Adjacency.from_edge_index(index, size=(3, 2))
    assert propagate(vectors, plain).tolist() == [[4.0], [2.0]]


@pytest.mark.parametrize(
    ("index", "weight", "message"),
    [
        (torch.tensor([[0, 3], [0, 0]]), None, "an edge whose source is 0 to 3; allowed: 0 to 2"),
        (torch.tensor([[0, 1], [0, -1]]), None, "an edge whose target is -1 to 0; allowed: 0 to 1"),
        (torch.tensor([[0.0, 1], [0, 1]]), None, r"shape \(2, 2\) and torch.float32"),
        (torch.tensor([0, 1]), None, r"shape \(2,\) and torch.int64"),
        (torch.tensor([[0, 1], [0, 1]]), torch.ones(1), r"shape \(1,\).*allowed: \(2,\) floats"),
        (torch.tensor([[0, 1], [0, 1]]), torch.ones(2).requires_grad_(), "want a gradient"),
    ],
)
def test_edges_that_lead_nowhere_are_refused(
    index: Tensor, weight: Tensor | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Adjacency.from_edge_index(index, weight, size=(3, 2))


# The sampler


def test_a_sample_keeps_short_rows_whole_and_long_ones_in_expectation() -> None:
    rng = np.random.default_rng(0)
    matrix = sp.random(40, 60, density=0.3, format="csr", dtype=np.float32, rng=rng)
    drawn = [sampled(matrix, 10, seed) for seed in range(400)]
    lengths = np.diff(matrix.indptr)
    assert (np.diff(drawn[0].indptr) == np.minimum(lengths, 10)).all()
    mean = sum(part.toarray() for part in drawn) / len(drawn)
    short = lengths <= 10
    assert np.array_equal(drawn[0].toarray()[short], matrix.toarray()[short])
    assert all(part.has_canonical_format for part in drawn)  # in order, each column once
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    assert mean.sum(axis=1) == pytest.approx(sums, rel=0.05)


def test_the_same_seed_draws_the_same_edges() -> None:
    matrix = sp.csr_matrix(np.ones((3, 50), np.float32))
    assert np.array_equal(sampled(matrix, 5, 7).indices, sampled(matrix, 5, 7).indices)
    assert not np.array_equal(sampled(matrix, 5, 7).indices, sampled(matrix, 5, 8).indices)
    assert not np.array_equal(
        sampled(matrix, 5, (7, 0)).indices, sampled(matrix, 5, (7, 1)).indices
    )


def test_each_edge_of_a_long_row_is_as_likely_as_any_other() -> None:
    """2 of 6 in 6000 draws: each 2000 times, with a standard deviation of 36."""
    matrix = sp.csr_matrix(np.ones((6_000, 6), np.float32))
    times = np.bincount(sampled(matrix, 2, 0).indices, minlength=6)
    assert np.abs(times - 2_000).max() < 5 * 36


def test_a_draw_holds_no_more_than_what_it_gives() -> None:
    matrix = sp.csr_matrix(np.ones((400, 2_500), np.float32))  # 8 MB
    sampled(matrix[:2], 10, 0)  # compiled
    tracemalloc.start()
    drawn = sampled(matrix, 10, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert drawn.nnz == 4_000
    assert peak < 200_000
