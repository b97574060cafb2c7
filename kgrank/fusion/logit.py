"""Fusion weights by multinomial logistic regression on candidate lists, compiled by numba.

The loss is that of a conditional logit (McFadden, 1974): what was chosen should be likely under a
softmax over the candidates of its query. Gates are straight lines in popularity that are never
below zero, so the regression holds their two ends at zero or above; the loss is convex then, and
L-BFGS-B (Byrd et al., 1995; SciPy's) finds its one lowest point.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.optimize import minimize

from kgrank.compiled import compiled
from kgrank.fusion.search import Doubles, Ranking
from kgrank.fusion.weights import CURVE, FusionWeights

PENALTY = 1e-4  # of the squared parameters, against a mean over the queries
STEPS = 200  # at most
ENOUGH = 1e-6  # relative gain of a step below which the search ends
PARTS = 16  # the queries' parts, added in their order: the sum is the same on any number of threads


def softmax_regression(ranking: Ranking, *, curve: bool = False) -> FusionWeights:
    """Weights that make the relevant items likely under a softmax over the candidates.

    Args:
        ranking: candidate lists; queries without a relevant candidate have no say.
        curve: whether the bias also follows a curve in popularity.

    Returns:
        the weights; no gate is below zero at any popularity, and none of cold items is.
    """
    n = len(ranking.scores)
    counts = np.diff(ranking.relevant_starts)
    asked = max(int((counts > 0).sum()), 1)
    wanted = _wanted(ranking, np.repeat(1.0 / np.maximum(counts, 1), counts) / asked)
    wanted = wanted[: 3 * n + 2 + CURVE * curve]
    ends = np.linspace(0, len(counts), PARTS + 1).round().astype(np.int64)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:

        def loss(vector: Doubles) -> tuple[float, Doubles]:
            """The penalised mean of −log softmax(relevant), and its gradient."""
            gradients = np.zeros((PARTS, len(vector)))

            def part(number: int) -> float:
                first, last = ends[number], ends[number + 1]
                return float(_log_totals(ranking, first, last, vector, gradients[number]))

            total = sum(pool.map(part, range(PARTS))) / asked
            value = total - vector @ wanted + PENALTY * vector @ vector
            return float(value), gradients.sum(0) / asked - wanted + 2.0 * PENALTY * vector

        bounds = [(0.0, None)] * (3 * n) + [(None, None)] * (len(wanted) - 3 * n)
        options = {"maxiter": STEPS, "ftol": ENOUGH}
        start = np.zeros(len(wanted))
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    low, high, cold, rest = np.split(found, [n, 2 * n, 3 * n])
    flat = np.zeros(0 if curve else CURVE)
    return FusionWeights.from_vector(np.concatenate([low, high - low, cold, rest, flat]))


def _wanted(ranking: Ranking, share: Doubles) -> Doubles:
    """Σ over the relevant candidates of their share times what each parameter multiplies."""
    scores = ranking.scores[:, ranking.relevant].astype(np.float64)
    popularity = ranking.popularity[ranking.relevant].astype(np.float64)
    cold = ranking.cold[ranking.relevant]
    warm, new = np.where(cold, 0.0, share), np.where(cold, share, 0.0)
    places = np.arange(CURVE)[:, None]
    hats = np.maximum(1.0 - np.abs(popularity * (CURVE - 1) - places), 0.0)
    channels = [scores @ (warm * (1.0 - popularity)), scores @ (warm * popularity), scores @ new]
    biases = [warm @ ranking.trend[ranking.relevant], new.sum()]
    return np.concatenate([*channels, biases, hats @ warm])


@compiled
def _log_totals(
    ranking: Ranking, first: int, last: int, vector: Doubles, gradient: Doubles
) -> float:
    """Σ over some queries of log Σ exp(score of each candidate), and its gradient.

    Args:
        ranking: what is ranked.
        first, last: the queries' numbers; `last` is not among them.
        vector: gates at popularity 0, at 1, of cold items; trend, cold bias; the curve, if any.
        gradient: like `vector`; added to.
    """
    n = len(ranking.scores)
    steps = len(vector) - 3 * n - 3  # of the curve; −1 without one
    by_trend, lift = np.float32(vector[3 * n]), np.float32(vector[3 * n + 1])
    total = 0.0
    for query in range(first, last):
        if ranking.relevant_starts[query] == ranking.relevant_starts[query + 1]:
            continue
        start, end = ranking.starts[query], ranking.starts[query + 1]
        length = end - start
        popularity, trend = ranking.popularity[start:end], ranking.trend[start:end]
        cold = ranking.cold[start:end]
        new, warm = np.empty(length, np.float32), np.empty(length, np.float32)  # 0 or 1
        fused = np.empty(length, np.float32)
        for i in range(length):
            new[i] = np.float32(1.0) if cold[i] else np.float32(0.0)
            warm[i] = np.float32(1.0) - new[i]
            fused[i] = by_trend * warm[i] * trend[i] + lift * new[i]
        if steps > 0:
            for i in range(length):
                step = min(int(popularity[i] * steps), steps - 1)
                part = popularity[i] * steps - step
                at = 3 * n + 2 + step
                fused[i] += warm[i] * (vector[at] * (1.0 - part) + vector[at + 1] * part)
        for channel in range(n):
            scores = ranking.scores[channel, start:end]
            low, gate_new = np.float32(vector[channel]), np.float32(vector[2 * n + channel])
            slope = np.float32(vector[n + channel] - vector[channel])
            for i in range(length):
                gate = warm[i] * (low + slope * popularity[i]) + new[i] * gate_new
                fused[i] += gate * scores[i]
        highest = fused.max()
        mass = 0.0
        for i in range(length):
            fused[i] = np.exp(fused[i] - highest)
            mass += fused[i]
        total += highest + np.log(mass)
        scale = np.float32(1.0 / mass)
        for i in range(length):  # from here on the probabilities of new and of warm candidates
            new[i] *= fused[i] * scale
            warm[i] *= fused[i] * scale
        for channel in range(n):
            scores = ranking.scores[channel, start:end]
            all_warm, popular, all_new = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for i in range(length):
                known = warm[i] * scores[i]
                all_warm += known
                popular += known * popularity[i]
                all_new += new[i] * scores[i]
            gradient[channel] += all_warm - popular
            gradient[n + channel] += popular
            gradient[2 * n + channel] += all_new
        trendy, share_new = np.float32(0.0), np.float32(0.0)
        for i in range(length):
            trendy += warm[i] * trend[i]
            share_new += new[i]
        gradient[3 * n] += trendy
        gradient[3 * n + 1] += share_new
        if steps > 0:
            for i in range(length):
                step = min(int(popularity[i] * steps), steps - 1)
                part = popularity[i] * steps - step
                at = 3 * n + 2 + step
                gradient[at] += warm[i] * (1.0 - part)
                gradient[at + 1] += warm[i] * part
    return total
