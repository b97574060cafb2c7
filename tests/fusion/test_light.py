"""The learned channel's paths over users are terms of its own product, each counted once."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.history import Histories
from kgrank.fusion.light import SharedUsers, tied
from kgrank.kg.entities import EntityVectors, LightSteps, symmetric


def histories(
    users: list[int], items: list[int], kinds: list[int], names: tuple[str, ...]
) -> Histories:
    return Histories.from_arrays(
        np.array(users),
        np.array(items),
        np.array(kinds),
        np.arange(len(users), dtype=np.float64),
        kind_names=names,
        n_users=max(users) + 1,
        n_items=max(items) + 1,
    )


def shared_users(every: Histories, sums: np.ndarray, steps: LightSteps) -> SharedUsers:
    """Of sources and targets (2 × n_items × dim) before they are of length 1."""
    tables = torch.from_numpy(sums.astype(np.float32))
    lengths = tables.norm(dim=2)
    unit = tables / lengths[:, :, None]
    nothing = EntityVectors((), np.empty((0, sums.shape[2]), np.float32), steps)
    form = DenseFeatures(unit[1], unit[0], nothing, lengths.numpy())
    found = SharedUsers.of(form, steps, every)
    assert found is not None
    return found


def test_one_user_who_met_both_by_hand() -> None:
    """Base 2 and 3, w = ½; the user's edges weigh 1 / √(2 · 1) each, so p = 5 / √2.

    The user brings ½ · 1/√2 · 5/√2 = 1.25 to both, so T = 3.25 and 4.25, and S = T. Of S_0 T_1:
    1.25 · 1.25, from item 1 over the user to 0 and met again ¼ · 3 · 3, from 0 to 1 ¼ · 2 · 2.
    """
    every = histories([0, 0], [0, 1], [0, 0], ("view",))
    steps = LightSteps(np.array([[2.0], [3.0]], np.float32), np.array([[[0.5]]], np.float32))
    shared = shared_users(every, np.array([[[3.25], [4.25]]] * 2), steps)
    found = shared.shares(np.array([0]), np.array([1]), -1)
    assert found.parts == pytest.approx([(1.25**2 + 9 / 4 + 4 / 4) / (3.25 * 4.25)])
    assert [column.tolist() for column in found[:3]] == [[0], [0], [0]]
    own = shared.shares(np.array([0]), np.array([1]), 0)
    assert not len(own.parts)  # one's own row is no way
    assert not len(shared.shares(np.array([1]), np.array([1]), -1).parts)  # nor is a circle


@pytest.mark.parametrize("hops", [1, 2])
def test_the_terms_are_those_of_the_products_of_the_vectors(hops: int) -> None:
    """Every term by dense products; of some pairs all users together carry most of the near part.

    8 users, 6 items, two kinds, 3 numbers a vector; sources have own parts that targets lack.
    """
    rng = np.random.default_rng(hops)
    n_users, n_items, dim = 8, 6, 3
    users = [*np.sort(rng.integers(0, n_users, 40)).tolist(), n_users - 1]
    items, kinds = [*rng.integers(0, n_items, 40).tolist(), n_items - 1], rng.integers(0, 2, 41)
    every = histories(users, items, kinds.tolist(), ("buy", "view"))
    adjacent = [
        symmetric(matrix).toarray().astype(np.float64) for matrix in every.by_kind().values()
    ]
    base = rng.random((n_items, dim))
    weights = rng.random((hops, 2, dim))
    whole, y = sum(adjacent), [base]
    brought = np.zeros((n_users, n_items, dim))  # n[u, i]
    ways = np.zeros((hops, n_users, n_items, dim))  # W_t[u, i]
    for t in range(hops):
        p = whole @ y[t]
        ways[t] = sum(a[:, :, None] * w for a, w in zip(adjacent, weights[t], strict=True))
        brought += ways[t] * p[:, None]
        y.append((ways[t] * p[:, None]).sum(axis=0))
    targets = base + brought.sum(axis=0)
    assert targets == pytest.approx(sum(y))
    own = base + rng.random((n_items, dim))
    sources = own + brought.sum(axis=0)
    steps = LightSteps(base.astype(np.float32), weights.astype(np.float32))
    shared = shared_users(every, np.stack([sources, targets]), steps)
    met, goals = np.array([0, 2, 3]), np.array([1, 3, 5])
    found = shared.shares(met, goals, 4)
    got = {
        (int(t), int(h), int(u)): float(part)
        for t, h, u, part in zip(*(column.tolist() for column in found), strict=True)
    }
    wanted = {}
    for t, i in enumerate(goals.tolist()):
        for place, h in enumerate(met.tolist()):
            size = np.linalg.norm(sources[h]) * np.linalg.norm(targets[i])
            for u in range(n_users):
                if h == i or u == 4 or not (whole[u, h] and whole[u, i]):
                    continue
                terms = brought[u, h] @ brought[u, i]
                to_h = sum(ways[k][u, h] * whole[u, i] * y[k][i] for k in range(hops))
                to_i = sum(ways[k][u, i] * whole[u, h] * y[k][h] for k in range(hops))
                terms += to_h @ base[i] + own[h] @ to_i
                wanted[t, place, u] = terms / size
            of_all = sum(part for (a, b, _), part in wanted.items() if (a, b) == (t, place))
            rest = sources[h] @ targets[i] - own[h] @ base[i]
            assert of_all <= rest / size + 1e-9
    assert got == pytest.approx(wanted, rel=1e-4)
    assert len(wanted) > 10


@pytest.mark.parametrize(("base", "share"), [(None, 9.0), ([[2.0], [4.0]], 6.0)])
def test_a_fact_that_ties_both_by_hand(base: list[list[float]] | None, share: float) -> None:
    """Item 0 brings 1/2 · 4 = 2 to item 1, and item 1 brings 1/4 · 4 = 1 to item 0; S = T = (3, 5).

    Without steps ⟨S_0, 2⟩ + ⟨1, T_1⟩ − ⟨1, 2⟩ = 6 + 5 − 2. With a base of 2 and 4 the steps
    brought 1 to each, so it is ⟨2, 2⟩ + ⟨1, 4⟩ − 2.
    """
    sums = torch.tensor([[3.0], [5.0]])
    lengths = np.stack([sums[:, 0].numpy()] * 2)
    form = DenseFeatures(torch.ones(2, 1), torch.ones(2, 1), None, lengths)
    weights = sp.csr_matrix(np.array([[0.0, 0.25], [0.5, 0.0]], np.float32))
    steps = base and LightSteps(np.array(base, np.float32), np.ones((1, 1, 1), np.float32))
    found = tied(form, steps or None, weights, np.array([[4.0], [4.0]], np.float32))
    assert found.toarray() == pytest.approx(np.array([[0, share / 15], [share / 15, 0]]))
    against = tied(form, steps or None, weights, -np.array([[4.0], [4.0]], np.float32))
    assert not against.nnz  # what takes away is no way


def test_steps_of_other_kinds_of_events_have_no_paths() -> None:
    every = histories([0, 0], [0, 1], [0, 1], ("buy", "view"))
    steps = LightSteps(np.ones((2, 1), np.float32), np.ones((1, 1, 1), np.float32))
    form = DenseFeatures(torch.ones(2, 1), None, None, np.ones((2, 2), np.float32))
    assert SharedUsers.of(form, steps, every) is None
