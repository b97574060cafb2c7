"""Direct search for fusion weights on the NDCG of candidate lists, compiled by numba.

A search tries thousands of weights. Each moves one channel, so a candidate's score is what the
others give it plus that channel's part, and all moves of a parameter are tried while a query's
candidates are at hand. They lie in the order of their mean score: what is behind the cut-off shows
after a few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from kgrank.compiled import compiled
from kgrank.fusion.weights import Candidates, FusionWeights, ItemSide, least

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Over = Literal["all", "warm", "cold"]

BLOCK = 64  # candidates that are counted before the cut-off is looked at
BAGS, BAG_SHARE = 8, 0.7  # searches whose weights are averaged, and the queries each sees


class Ranking(NamedTuple):
    """Candidate lists as the compiled search reads them: one query's after the other's.

    Attributes:
        starts: (n_queries + 1) int64, where each query's candidates begin.
        scores: (n_channels × n_candidates) float32.
        popularity: (n_candidates) float32.
        trend: (n_candidates) float32.
        cold: (n_candidates) bool.
        relevant_starts: (n_queries + 1) int64, where each query's relevant candidates begin.
        relevant: (n_relevant) int64, their places among all candidates.
        ideal: (n_queries) float64, the best DCG that a list can have.
        discount: (k) float64, what a hit at each place counts.
    """

    starts: Longs
    scores: Floats
    popularity: Floats
    trend: Floats
    cold: Flags
    relevant_starts: Longs
    relevant: Longs
    ideal: Doubles
    discount: Doubles

    @classmethod
    def of(cls, candidates: Candidates, side: ItemSide, k: int = 10) -> Ranking:
        """The real candidates with what the gates know of their items, lists cut at k."""
        mean = candidates.scores.sum(2).masked_fill_(~candidates.real, -torch.inf)
        order = mean.sort(dim=1, descending=True, stable=True).indices
        real = candidates.real.gather(1, order)
        items = candidates.items.gather(1, order)[real].numpy()
        relevant = candidates.relevant.gather(1, order) & real
        places = np.flatnonzero(relevant[real].numpy())
        channels = [part.gather(1, order)[real] for part in candidates.scores.unbind(2)]
        discount = 1.0 / np.log2(np.arange(2.0, k + 2.0))
        most = candidates.n_relevant.clamp(1, k).numpy()
        return cls(
            starts=np.r_[0, np.cumsum(real.sum(1).numpy())],
            scores=torch.stack(channels).numpy(),
            popularity=side.popularity[items],
            trend=side.trend[items],
            cold=side.cold[items],
            relevant_starts=np.r_[0, np.cumsum(relevant.sum(1).numpy())],
            relevant=places,
            ideal=np.cumsum(discount)[most - 1],
            discount=discount,
        )

    @classmethod
    def joined(cls, parts: Sequence[Ranking]) -> Ranking:
        """The queries of all parts, which are of the same channels and the same cut-off."""

        def together(name: str, axis: int = 0) -> Any:
            return np.concatenate([getattr(part, name) for part in parts], axis)

        before = np.cumsum([0, *(part.starts[-1] for part in parts)])
        relevant = np.cumsum([0, *(len(part.relevant) for part in parts)])
        moved = list(zip(parts, before, relevant, strict=False))
        return cls(
            starts=np.concatenate([[0], *(part.starts[1:] + by for part, by, _ in moved)]),
            scores=together("scores", 1),
            popularity=together("popularity"),
            trend=together("trend"),
            cold=together("cold"),
            relevant_starts=np.concatenate(
                [[0], *(part.relevant_starts[1:] + by for part, _, by in moved)]
            ),
            relevant=np.concatenate([part.relevant + by for part, by, _ in moved]),
            ideal=together("ideal"),
            discount=parts[0].discount,
        )

    @property
    def queries(self) -> Longs:
        """The numbers of all queries."""
        return np.arange(len(self.ideal))

    def fused(self, weights: FusionWeights) -> Floats:
        """The candidates' fused scores, (n_candidates) float32."""
        side = ItemSide(self.popularity, self.trend, self.cold)
        fused = weights.bias(side)
        for channel, scores in enumerate(self.scores):  # one at a time: there may be many
            fused += weights.of_channels([channel]).gates(side)[0] * scores
        return fused

    def ndcg(self, weights: FusionWeights) -> float:
        """Mean NDCG@k over the queries; ties count as misses."""
        return float(_ndcg(self, self.queries, self.fused(weights)))

    def cold_hits(self, scores: Floats) -> int:
        """How many relevant cold candidates are among the first k."""
        return int(_listed(self, scores)[self.cold[self.relevant]].sum())


def coordinate_ascent(
    ranking: Ranking,
    start: FusionWeights,
    *,
    rounds: int = 3,
    over: Over = "all",
    queries: Longs | None = None,
) -> FusionWeights:
    """Direct search on NDCG@k (Metzler and Croft, 2007), one parameter at a time.

    Args:
        ranking: what is ranked.
        start: where the search begins.
        rounds: passes over all parameters, each with half the steps of the one before.
        over: which parameters: of items seen in training, of the others, or both.
        queries: the numbers of those that count; all if None.
    """
    n = len(start.weight)
    of_cold = np.r_[np.zeros(2 * n, bool), np.ones(n, bool), False, True]
    free = {"all": of_cold | True, "warm": ~of_cold, "cold": of_cold}[over]
    asked = ranking.queries if queries is None else queries
    return FusionWeights.from_vector(
        _ascend(ranking, asked, start.vector(), free, rounds, ranking.fused(start))
    )


def bagged(ranking: Ranking, start: FusionWeights, seed: int) -> FusionWeights:
    """The mean of weights found from `start` on several samples of the queries (Breiman, 1996).

    A direct search follows the accidents of its queries; the mean keeps what the samples share.

    Args:
        ranking: what is ranked.
        start: where each search begins.
        seed: of the samples.
    """
    rng = np.random.default_rng(seed)
    n = len(ranking.ideal)
    size = max(1, round(BAG_SHARE * n))
    bags = [np.sort(rng.permutation(n)[:size]) for _ in range(BAGS)]

    def search(bag: Longs) -> Doubles:
        weights = coordinate_ascent(ranking, start, over="warm", queries=bag)
        return weights.vector() / max(float(np.abs(weights.weight).sum()), 1e-6)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(search, bags))
    return FusionWeights.from_vector(np.mean(found, axis=0))


def lift_cold(ranking: Ranking, weights: FusionWeights, floor: float) -> FusionWeights:
    """Raise the bias of cold items until so many that are relevant are listed, no further.

    Args:
        ranking: what is ranked.
        weights: where to start; returned unchanged if they reach the floor, or if no lift can.
        floor: how many relevant cold items are to be among the first k.
    """
    scores = ranking.fused(weights)
    cold = ranking.cold.astype(np.float32)

    def reached(lift: float) -> bool:
        return ranking.cold_hits(scores + np.float32(lift) * cold) >= floor

    if reached(0.0):
        return weights
    high = float(np.abs(scores).max()) + 1.0
    if not reached(high):  # above all warm items they still miss it: no lift can reach it
        return weights
    return replace(weights, cold_bias=weights.cold_bias + least(reached, high))


@compiled
def _rank(scores: Floats, own: float, k: int) -> int:
    """How many scores but its own are at least as good; some number ≥ k if k or more are."""
    count = -1
    first = 0
    while first < len(scores) and count < k:
        block = scores[first : first + BLOCK]
        better = np.int32(0)  # as narrow as a score: many are counted at once
        for place in range(len(block)):
            better += np.int32(1) if block[place] >= own else np.int32(0)
        count += int(better)
        first += BLOCK
    return count


@compiled
def _listed(ranking: Ranking, scores: Floats) -> Flags:
    """Whether each relevant candidate is among the first k."""
    k = len(ranking.discount)
    listed = np.zeros(len(ranking.relevant), np.bool_)
    for query in range(len(ranking.ideal)):
        own = scores[ranking.starts[query] : ranking.starts[query + 1]]
        for number in range(ranking.relevant_starts[query], ranking.relevant_starts[query + 1]):
            listed[number] = _rank(own, scores[ranking.relevant[number]], k) < k
    return listed


@compiled
def _gain(ranking: Ranking, query: int, scores: Floats) -> float:
    """NDCG@k of one query from the scores of its candidates."""
    start, k = ranking.starts[query], len(ranking.discount)
    gain = 0.0
    for number in range(ranking.relevant_starts[query], ranking.relevant_starts[query + 1]):
        rank = _rank(scores, scores[ranking.relevant[number] - start], k)
        if rank < k:
            gain += ranking.discount[rank]
    of_ideal: float = gain / ranking.ideal[query]
    return of_ideal


@compiled
def _ndcg(ranking: Ranking, queries: Longs, scores: Floats) -> float:
    total = 0.0
    for query in queries:
        total += _gain(ranking, query, scores[ranking.starts[query] : ranking.starts[query + 1]])
    return total / max(len(queries), 1)


@compiled
def _ascend(
    ranking: Ranking, queries: Longs, vector: Doubles, free: Flags, rounds: int, total: Floats
) -> Doubles:
    """`coordinate_ascent`; `vector` and `total`, the scores it gives, are changed in place."""
    n = len(ranking.scores)
    size = max(np.abs(vector[:n]).max(), 1e-3)
    best = _ndcg(ranking, queries, total)
    values = np.empty(7)
    step = 0.5
    for _ in range(rounds):
        before = best
        for place in range(len(vector)):
            if not free[place]:
                continue
            old = vector[place]
            signed = n <= place < 2 * n or place >= 3 * n
            moves = np.array(
                [
                    old * (1.0 + step),
                    old / (1.0 + step),
                    0.0,
                    old + step * size,
                    old - step * size,
                    old + 0.2 * step * size,
                    old - 0.2 * step * size,
                ]
            )
            if not signed:
                moves = moves[moves >= 0.0]
            moves = np.unique(moves[moves != old])
            _try(ranking, queries, vector, place, moves, total, values)
            chosen = old
            for number in range(len(moves)):
                if values[number] > best + 1e-7:
                    best, chosen = values[number], moves[number]
            if chosen != old:
                for query in queries:
                    first, last = ranking.starts[query], ranking.starts[query + 1]
                    scores = total[first:last]
                    _add(ranking, vector, place, chosen, first, scores, scores)
                vector[place] = chosen
        step /= 2.0
        if best - before < 1e-5:
            break
    return vector


@compiled
def _try(
    ranking: Ranking,
    queries: Longs,
    vector: Doubles,
    place: int,
    moves: Doubles,
    total: Floats,
    values: Doubles,
) -> None:
    """NDCG@k of each move of the parameter at `place`, into `values`."""
    longest = 0
    for query in queries:
        longest = max(longest, ranking.starts[query + 1] - ranking.starts[query])
    buffer = np.empty(longest, np.float32)
    values[:] = 0.0
    for query in queries:
        first, last = ranking.starts[query], ranking.starts[query + 1]
        scores = buffer[: last - first]
        for number in range(len(moves)):
            _add(ranking, vector, place, moves[number], first, total[first:last], scores)
            values[number] += _gain(ranking, query, scores)
    values /= max(len(queries), 1)


@compiled
def _add(
    ranking: Ranking,
    vector: Doubles,
    place: int,
    moved: float,
    first: int,
    total: Floats,
    out: Floats,
) -> None:
    """Scores `out` when the parameter at `place` has moved, from the `total` before.

    Args:
        ranking: what is ranked.
        vector: the parameters before.
        place: of the parameter.
        moved: its new value.
        first: where these candidates begin.
        total: their scores before.
        out: their scores after; may be `total`.
    """
    n = len(ranking.scores)
    n_scores = len(total)
    cold = ranking.cold[first : first + n_scores]
    by = np.float32(moved - vector[place])
    if place >= 3 * n:
        trend = ranking.trend[first : first + n_scores]
        of_cold = place == 3 * n + 1
        for i in range(n_scores):
            part = np.float32(1.0) if of_cold else trend[i]
            out[i] = total[i] + (by * part if cold[i] == of_cold else np.float32(0.0))
        return
    channel = place % n
    scores = ranking.scores[channel, first : first + n_scores]
    if place >= 2 * n:
        for i in range(n_scores):
            out[i] = total[i] + (by * scores[i] if cold[i] else np.float32(0.0))
        return
    popularity = ranking.popularity[first : first + n_scores]
    weight, slope = np.float32(vector[channel]), np.float32(vector[n + channel])
    new_weight = np.float32(moved) if place < n else weight
    new_slope = slope if place < n else np.float32(moved)
    zero = np.float32(0.0)
    for i in range(n_scores):  # without branches, so that many are worked out at once
        before, after = weight + slope * popularity[i], new_weight + new_slope * popularity[i]
        before = before if before > zero else zero
        after = after if after > zero else zero
        out[i] = total[i] + (after - before) * (zero if cold[i] else scores[i])
