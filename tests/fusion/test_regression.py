"""The regression finds the minimum: by hand, against other implementations, and at its bounds."""

import numpy as np
import pytest
from scipy.special import logit
from sklearn.linear_model import LogisticRegression, Ridge

from kgrank.fusion.regression import regression

FREE = np.full(2, -np.inf)
FAINT = np.full(2, 1e-9)


def test_the_log_odds_of_two_groups_by_hand() -> None:
    """x = 0: 1 of 5 hits; x = 1: 3 of 5. So θ = (logit .2, logit .6 − logit .2)."""
    x = np.repeat([0.0, 1.0], 5)
    hits = np.array([1, 0, 0, 0, 0, 1, 1, 1, 0, 0], float)
    design = np.stack([np.ones(10), x], axis=1)
    found = regression(design, hits, np.ones(10), loss="logistic", penalty=FAINT, lower=FREE)
    assert found == pytest.approx([logit(0.2), logit(0.6) - logit(0.2)], abs=1e-5)


def test_a_weight_of_three_is_the_row_three_times() -> None:
    rng = np.random.default_rng(0)
    design, hits = rng.normal(size=(40, 2)), (rng.random(40) < 0.3).astype(float)
    weights = np.where(np.arange(40) < 10, 3.0, 1.0)
    rows = np.repeat(np.arange(40), weights.astype(int))
    weighted = regression(design, hits, weights, loss="logistic", penalty=np.ones(2), lower=FREE)
    repeated = regression(
        design[rows], hits[rows], np.ones(60), loss="logistic", penalty=np.ones(2), lower=FREE
    )
    assert weighted == pytest.approx(repeated, abs=1e-7)


def test_logistic_as_scikit_learn_finds_it() -> None:
    rng = np.random.default_rng(1)
    design = rng.normal(size=(300, 4))
    hits = (rng.random(300) < 1 / (1 + np.exp(-design @ [1.0, -2.0, 0.5, 0.0]))).astype(float)
    weights = rng.uniform(0.5, 2.0, 300)
    free, penalty = np.full(4, -np.inf), np.full(4, 2.0)
    ours = regression(design, hits, weights, loss="logistic", penalty=penalty, lower=free)
    theirs = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-10, max_iter=1000)
    theirs.fit(design, hits, sample_weight=weights)
    assert ours == pytest.approx(theirs.coef_[0], abs=1e-4)


def test_least_squares_with_an_offset_as_scikit_learn_finds_it() -> None:
    rng = np.random.default_rng(2)
    design, values = rng.normal(size=(50, 3)), rng.normal(size=50)
    weights, offset = rng.uniform(0.5, 2.0, 50), rng.normal(size=50)
    ours = regression(
        design,
        values,
        weights,
        loss="squared",
        penalty=np.full(3, 2.0),
        lower=np.full(3, -np.inf),
        offset=offset,
    )
    theirs = Ridge(alpha=2.0, fit_intercept=False).fit(design, values - offset, weights)
    assert ours == pytest.approx(theirs.coef_, abs=1e-8)


def test_a_parameter_stays_at_its_bound_and_the_others_do_without_it() -> None:
    """x speaks against a hit, and may not: what is left is the share of hits."""
    design = np.stack([np.ones(8), np.repeat([0.0, 1.0], 4)], axis=1)
    hits = np.array([1, 1, 1, 0, 1, 0, 0, 0], float)
    found = regression(
        design, hits, np.ones(8), loss="logistic", penalty=FAINT, lower=np.array([-np.inf, 0.0])
    )
    assert found == pytest.approx([logit(0.5), 0.0], abs=1e-6)
