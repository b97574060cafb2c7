"""Calibration maps never fall and mend what is off; the figures are those worked by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from kgrank.fusion import calibration
from kgrank.fusion.calibration import (
    auc,
    calibrate,
    calibration_error,
    isotonic,
    log_loss,
    platt,
)
from kgrank.fusion.prediction import Logistic


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, hits whose probability is sigmoid(2 · score − 1), and weights of 1."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n)
    hits = (rng.random(n) < expit(2.0 * scores - 1.0)).astype(float)
    return scores, hits, np.ones(n)


def test_the_calibration_error_by_hand() -> None:
    """Two bins of two pairs: (.1 + .2)/2 beside 0 hits, (.6 + .8)/2 beside ½: .5·.15 + .5·.2."""
    probability, hits = np.array([0.8, 0.1, 0.6, 0.2]), np.array([1.0, 0.0, 0.0, 0.0])
    assert calibration_error(probability, hits, np.ones(4), bins=2) == pytest.approx(0.175)


def test_a_weighted_pair_counts_as_so_many() -> None:
    """Three misses at .1 and a hit at .9 fill two bins of two: .1, then |.1 + .9 − 1| / 2 = 0."""
    probability, hits = np.array([0.1, 0.1, 0.1, 0.9]), np.array([0.0, 0.0, 0.0, 1.0])
    assert calibration_error(probability, hits, np.ones(4), bins=2) == pytest.approx(0.05)
    rng = np.random.default_rng(0)
    probability, hits = rng.random(20), (rng.random(20) < 0.5).astype(float)
    weights = rng.integers(1, 4, 20)
    rows, even = np.repeat(np.arange(20), weights), np.ones(weights.sum())
    for figure in (auc, log_loss):
        weighted = figure(probability, hits, weights.astype(float))
        assert weighted == pytest.approx(figure(probability[rows], hits[rows], even))


def test_auc_and_log_loss_as_scikit_learn_has_them() -> None:
    scores, hits, _ = drawn(500)
    scores = scores.round(1)  # some ties
    weights = np.random.default_rng(1).uniform(0.5, 2.0, 500)
    ours = auc(scores, hits, weights), log_loss(expit(scores), hits, weights)
    theirs = (
        roc_auc_score(hits, scores, sample_weight=weights),
        sklearn_log_loss(hits, expit(scores), sample_weight=weights),
    )
    assert ours == pytest.approx(theirs)
    assert auc(scores, np.ones(500), weights) == 0.5


def test_platt_finds_the_slope_and_shift() -> None:
    link = platt(*drawn(20_000))
    assert (link.slope, link.shift) == pytest.approx((2.0, -1.0), abs=0.1)
    falling = platt(np.arange(6.0), np.array([1.0, 1, 1, 0, 0, 0]), np.ones(6))
    assert falling.slope > 0


def test_isotonic_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bins of two hits each: shares ½, 1/3, ½ of weights 4, 6, 4; the first two are pooled to .4.

    A knot stands at the mean probability before.
    """
    monkeypatch.setattr(calibration, "KNOT_HITS", 2)
    before = np.repeat([0.1, 0.2, 0.3], [4, 6, 4])
    hits = np.array([0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1, 0, 1], float)
    link = isotonic(logit(before), hits, np.ones(14))
    assert [x for x, _ in link.knots] == pytest.approx(logit([0.1, 0.2, 0.3]))
    assert link(logit([0.1, 0.2, 0.3])) == pytest.approx([0.4, 0.4, 0.5])
    assert link(logit(before)) == pytest.approx(IsotonicRegression().fit_transform(before, hits))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-8, 8), st.booleans(), st.floats(0.1, 50)), min_size=3, max_size=60
    )
)
def test_a_map_never_falls(pairs: list[tuple[float, bool, float]]) -> None:
    """A falling map is refused when it is made, so none of these may raise."""
    scores, hits, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    hits[0], hits[1] = 1.0, 0.0
    line = np.linspace(-12.0, 12.0, 200)
    for link in (platt(scores, hits, weights), isotonic(scores, hits, weights)):
        assert (np.diff(link(line)) >= 0.0).all()


def test_hits_that_all_have_the_lowest_score_give_a_map() -> None:
    hits = np.repeat([1.0, 0.0], [30, 70])
    assert isotonic(np.zeros(100), hits, np.ones(100))(0.0) == pytest.approx(0.3)


def test_what_falls_is_refused() -> None:
    for wrong in ({"slope": 0.0}, {"knots": ((0.0, 1.0), (1.0, 0.5))}):
        with pytest.raises(ValueError, match="falls somewhere"):
            Logistic(**wrong)  # type: ignore[arg-type]


def test_the_better_map_is_taken_and_the_error_shrinks() -> None:
    """A sigmoid's own distortion is Platt's; one with a step is none's but the isotonic map's."""
    scores, hits, weights = drawn(8_000)
    half = np.arange(8_000) % 2 == 0
    method, link, calibrated = calibrate(scores, hits, weights, half)
    assert method == "platt"
    before = calibration_error(expit(scores), hits, weights)
    assert calibration_error(calibrated, hits, weights) < before / 3
    assert np.abs(link(scores) - expit(2.0 * scores - 1.0)).max() < 0.03
    rng = np.random.default_rng(3)
    step = np.where(scores > 0.0, 0.3, 0.05)
    hits = (rng.random(8_000) < step).astype(float)
    method, link, calibrated = calibrate(scores, hits, weights, half)
    assert method == "isotonic"
    assert calibration_error(calibrated, hits, weights) < 0.03
    assert link([-1.0, 1.0]) == pytest.approx([0.05, 0.3], abs=0.03)


def test_calibrated_scores_stay_as_they_are() -> None:
    rng = np.random.default_rng(4)
    scores = rng.normal(size=4_000) - 3.0
    hits = (rng.random(4_000) < expit(scores)).astype(float)
    _, link, _ = calibrate(scores, hits, np.ones(4_000), np.arange(4_000) % 2 == 0)
    assert np.abs(link(scores) - expit(scores)).max() < 0.1
