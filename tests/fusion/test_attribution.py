"""Whose doing a weight is: the rows of the regression, counted again with dense matrices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse as sp

from kgrank.fusion import evidence as evidence_module
from kgrank.fusion import item_item
from kgrank.fusion.attribution import Regression, SharedFacts
from kgrank.fusion.evidence import Evidence, ItemFeatures, Steps
from kgrank.fusion.history import Histories
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.ways import Ways

N_USERS, N_ITEMS = 40, 9
RIDGE = Ridge(penalty=4.0, dropout=0.3, entities=2.0, words=1.5)


def shop(seed: int = 0) -> Evidence:
    """40 users with 2 to 7 events on 9 items, some twice; 5 entities and 6 words."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 8, N_USERS)
    users = np.repeat(np.arange(N_USERS), lengths)
    items = rng.integers(0, N_ITEMS, len(users))
    histories = Histories.from_arrays(
        users,
        items,
        np.zeros(len(users), np.int64),
        np.arange(len(users), dtype=np.float64),
        kind_names=("view",),
        n_users=N_USERS,
        n_items=N_ITEMS,
    )
    entities = sp.random(N_ITEMS, 5, 0.4, "csr", np.float32, rng)
    words = sp.random(N_ITEMS, 6, 0.4, "csr", np.float32, rng)
    return Evidence(histories, ItemFeatures(words, entities))


def dense_rows(
    evidence: Evidence, ridge: Ridge, steps: Steps | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], list[tuple[str, int]]]:
    """Inputs and outputs of every row, and whose it is: a user, an entity or a word."""
    histories, features = evidence.histories, evidence.features
    if steps is None:
        inputs = outputs = histories.binary()
        owners = np.arange(N_USERS)
    else:
        inputs, outputs = evidence.steps(steps)
        users = histories.users()
        owners = users[np.flatnonzero(np.arange(len(users)) > histories.starts[users])]
    sides = [np.sqrt(ridge.entities) * features.entities.T, np.sqrt(ridge.words) * features.words.T]
    tables = [side.toarray().astype(np.float64) for side in sides]
    whose = [("user", int(user)) for user in owners]
    whose += [("entity", e) for e in range(len(tables[0]))]
    whose += [("word", w) for w in range(len(tables[1]))]
    inputs, outputs = inputs.toarray().astype(np.float64), outputs.toarray().astype(np.float64)
    return np.vstack([inputs, *tables]), np.vstack([outputs, *tables]), whose


def totals(ways: Ways) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for place, middle, part in zip(*(column.tolist() for column in ways[1:]), strict=True):
        found[place, middle] = found.get((place, middle), 0.0) + part
    return found


@pytest.mark.parametrize("steps", [None, Steps(0.5), Steps(0.5, 3)])
def test_the_rows_of_a_column_add_up_to_the_weight(steps: Steps | None) -> None:
    """Λ_h B[h, i] = Σ z[row, h] (y[row, i] − Σ_j z[row, j] B[j, i]), up and down together."""
    evidence = shop()
    moments = evidence.linear_moments() if steps is None else evidence.directed_moments(steps)
    weights = moments.weights(RIDGE, neighbors=100)
    regression = Regression.of(evidence, RIDGE, steps, weights)
    inputs, outputs, _ = dense_rows(evidence, RIDGE, steps)
    column = weights.toarray().astype(np.float64)
    pulls = inputs.T @ (outputs - inputs @ column)
    wanted = column * regression.penalty[:, None].astype(np.float64)
    if steps is None:  # an item is no neighbour of its own
        np.fill_diagonal(pulls, 0.0)
    assert pulls == pytest.approx(wanted, abs=2e-3)
    assert np.abs(wanted).max() > 1.0


@pytest.mark.parametrize("steps", [None, Steps(0.5), Steps(0.5, 3)])
@pytest.mark.parametrize("neighbors", [1, 100])
def test_each_row_that_holds_both_has_its_part_of_the_weight(
    steps: Steps | None, neighbors: int
) -> None:
    evidence = shop(1)
    moments = evidence.linear_moments() if steps is None else evidence.directed_moments(steps)
    weights = moments.weights(RIDGE, neighbors=neighbors)
    regression = Regression.of(evidence, RIDGE, steps, weights)
    inputs, outputs, whose = dense_rows(evidence, RIDGE, steps)
    table = weights.toarray().astype(np.float64)
    items, user = np.array([0, 2, 3, 5, 8]), 4
    n_ways = 0
    for target in range(N_ITEMS):
        rest = outputs[:, target] - inputs @ table[:, target]
        wanted: dict[str, dict[tuple[int, int], float]] = {"user": {}, "entity": {}}
        for place, item in enumerate(items.tolist()):
            both = (inputs[:, item] > 0) & (outputs[:, target] > 0) & (rest > 0)
            pull = np.where(both, inputs[:, item] * rest, 0.0) / regression.penalty[item]
            weight = table[item, target]
            if weight <= 0.0 or item == target:
                continue
            for row in np.flatnonzero(pull):
                kind, number = whose[row]
                if kind != "word" and (kind, number) != ("user", user):
                    share = weight * pull[row] / max(pull.sum(), weight)
                    of = wanted[kind]
                    of[place, number] = of.get((place, number), 0.0) + share
        found = regression.shares(items, np.array([target]), user)
        assert totals(found.users) == pytest.approx(wanted["user"], rel=2e-3, abs=1e-6)
        assert totals(found.entities) == pytest.approx(wanted["entity"], rel=2e-3, abs=1e-6)
        n_ways += len(wanted["user"]) + len(wanted["entity"])
    assert n_ways > 50


def test_the_parts_of_a_weight_are_at_most_the_weight() -> None:
    evidence = shop(2)
    weights = evidence.linear_moments().weights(RIDGE, neighbors=100)
    regression = Regression.of(evidence, RIDGE, None, weights)
    items = np.arange(N_ITEMS)
    for target in range(N_ITEMS):
        users, entities = regression.shares(items, np.array([target]), -1)
        sums = np.zeros(N_ITEMS)
        for ways in (users, entities):
            sums += np.bincount(ways.places, ways.parts, minlength=N_ITEMS)
        column = weights[:, [target]].toarray()[:, 0]
        assert (sums <= np.maximum(column, 0.0) * (1 + 1e-5)).all()
        assert sums[target] == 0.0
        assert (sums[column <= 0.0] == 0.0).all()


def test_a_large_catalogue_has_its_rare_features_and_its_local_ridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same split where only entities of at most 2 items are side rows."""
    for name, value in {"EXACT_ITEMS": 4, "LARGE_ITEMS": 5, "RARE": 2}.items():
        monkeypatch.setattr(item_item, name, value)
    monkeypatch.setattr(evidence_module, "LARGE_ITEMS", 5)
    evidence = shop(3)
    frequency = np.bincount(evidence.features.entities.indices, minlength=5)
    assert (frequency > 2).any() and (frequency == 2).any()
    ridge = Ridge(penalty=2.0, entities=3.0)
    weights = evidence.linear_moments().weights(ridge, neighbors=N_ITEMS)
    regression = Regression.of(evidence, ridge, None, weights)
    seen, items = set(), np.arange(N_ITEMS)
    for target in range(N_ITEMS):
        seen |= set(regression.shares(items, np.array([target]), -1).entities.middles.tolist())
    assert seen <= set(np.flatnonzero(frequency <= 2).tolist())
    assert seen


def test_shared_facts_by_hand() -> None:
    """Item 0 = (2, 0, 1), item 1 = (3, 4, 0), item 2 = (0, 5, 6): 0 and 2 share the last, 6."""
    table = sp.csr_matrix(np.array([[2, 0, 1], [3, 4, 0], [0, 5, 6]], np.float32))
    found = SharedFacts.of(table, table).shares(np.array([0, 1, 2]), np.array([2]))
    assert totals(found) == {(0, 2): 6.0, (1, 1): 20.0}
