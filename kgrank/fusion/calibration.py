"""Probabilities that mean what they say: maps from scores to them, and how far they are off.

All figures take weighted pairs, so that a sample of pairs that were drawn at different rates speaks
for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit

from kgrank.fusion.prediction import Logistic
from kgrank.fusion.regression import regression

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Method = Literal["none", "platt", "isotonic"]

BINS = 15  # of the expected calibration error, as Guo et al. (2017)
KNOT_HITS = 10  # hits that a knot of the isotonic map rests on, at least
KNOTS = 50  # at most
LEAST = 1e-9  # probabilities are cut off here and at 1 − LEAST before a logarithm is taken


def platt(scores: Doubles, hits: Doubles, weights: Doubles) -> Logistic:
    """sigmoid(slope · score + shift) of the highest likelihood (Platt, 1999).

    Args:
        scores: (n_pairs) log-odds before calibration.
        hits: (n_pairs) 1 where it happened, else 0.
        weights: (n_pairs) how many pairs each stands for.
    """
    design = np.stack([scores, np.ones(len(scores))], axis=1)
    least = np.array([1e-3, -np.inf])  # a map that never falls
    slope, shift = regression(
        design,
        hits,
        weights,
        loss="logistic",
        penalty=np.full(2, 1e-6),
        lower=least,
        start=np.array([1.0, 0.0]),
    )
    return Logistic(float(slope), float(shift))


def isotonic(scores: Doubles, hits: Doubles, weights: Doubles) -> Logistic:
    """The best map that never falls (Zadrozny and Elkan, 2002), over bins that hold some hits each.

    Bins of one size would mostly hold no hit where hits are rare. Each gives a knot: the log-odds
    of its mean probability before, and those of its share of hits, pooled with its neighbours'
    where the shares fall.

    Args:
        scores, hits, weights: as in `platt`; some hits.
    """
    of_hits = np.sort(scores[hits > 0.0])
    n_bins = int(np.clip(len(of_hits) // KNOT_HITS, 1, KNOTS))
    cuts = np.unique(of_hits[np.arange(1, n_bins) * len(of_hits) // n_bins])
    bins = np.searchsorted(cuts, scores, side="right")  # equal scores are in one bin
    bins = np.unique(bins, return_inverse=True)[1]  # the first has none if many tie for the lowest
    mass = np.bincount(bins, weights)
    before = np.bincount(bins, weights * expit(scores)) / mass
    shares = np.bincount(bins, weights * hits) / mass
    shares = isotonic_regression(shares, weights=mass).x
    x, y = _log_odds(before), _log_odds(np.minimum(shares, 1.0 - 0.5 / (mass + 1.0)))
    y = np.maximum.accumulate(y)
    rising = np.r_[True, np.diff(x) > 1e-9]
    knots = tuple((float(a), float(b)) for a, b in zip(x[rising], y[rising], strict=True))
    return Logistic(knots=knots)


def _log_odds(probability: Doubles) -> Doubles:
    return np.asarray(logit(np.clip(probability, LEAST, 1.0 - LEAST)))


_MAPS: dict[Method, Callable[[Doubles, Doubles, Doubles], Logistic]] = {
    "none": lambda *_: Logistic(),
    "platt": platt,
    "isotonic": isotonic,
}


def calibrate(
    scores: Doubles, hits: Doubles, weights: Doubles, half: Flags
) -> tuple[Method, Logistic, Doubles]:
    """The map of the least log loss, each fitted on one half of the users, judged on the other.

    Args:
        scores, hits, weights: as in `platt`.
        half: (n_pairs) which half the pair's user is in.

    Returns:
        the method; its map, fitted on all pairs; and the cross-fitted probabilities, (n_pairs).
    """
    found: dict[Method, Doubles] = {}
    for method, fit in _MAPS.items():
        found[method] = expit(scores)
        for judged in (half, ~half):
            if hits[~judged].any() and judged.any():
                link = fit(scores[~judged], hits[~judged], weights[~judged])
                found[method][judged] = link(scores[judged])
    best = min(found, key=lambda method: log_loss(found[method], hits, weights))
    return best, _MAPS[best](scores, hits, weights), found[best]


def log_loss(probability: Doubles, hits: Doubles, weights: Doubles) -> float:
    """Mean −log-likelihood, in nats a pair."""
    from sklearn import metrics

    sure = np.clip(probability, LEAST, 1.0 - LEAST)
    return float(metrics.log_loss(hits, sure, sample_weight=weights, labels=[0, 1]))


def calibration_error(
    probability: Doubles, hits: Doubles, weights: Doubles, *, bins: int = BINS
) -> float:
    """The expected calibration error: Σ_b share_b · |mean probability_b − share of hits_b|.

    The bins hold the same mass of pairs each, from the least probable on (Guo et al., 2017, with
    bins of equal mass as in Nixon et al., 2019).
    """
    order = np.argsort(probability, kind="stable")
    weights = weights[order]
    total = weights.sum()
    middle = (np.cumsum(weights) - weights / 2.0) / total
    of = np.minimum((middle * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(of, weights * (probability[order] - hits[order]), bins)
    return float(np.abs(gaps).sum() / total)


def auc(scores: npt.NDArray[np.floating], hits: Doubles, weights: Doubles) -> float:
    """How probably a pair that happened has a higher score than one that did not; ties half.

    ½ where there are only pairs of one kind.
    """
    from sklearn.metrics import roc_auc_score

    one_kind = not hits.any() or bool(hits.all())
    return 0.5 if one_kind else float(roc_auc_score(hits, scores, sample_weight=weights))
