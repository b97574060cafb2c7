"""Which fusion weights to use: several ways to find them, compared by full ranking, cross-fitted.

No way to find weights wins on every shop, so each is fitted on one half of the valid users and
judged by full rankings of the other half. The best is fitted again on all; where a single channel
is better by more than noise, that channel alone is used. Before that, the learned channel is left
out where it adds no more than noise to a softmax regression. The gate of products never seen in
training is set last, and lifting them may cost the others a little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from kgrank.fusion.channels import Channel, ItemItem, sizes
from kgrank.fusion.metrics import hits_of, list_metrics
from kgrank.fusion.model import exclude
from kgrank.fusion.queries import Queries, only_items
from kgrank.fusion.search import Ranking, bagged, coordinate_ascent, lift_cold
from kgrank.fusion.weights import (
    Candidates,
    FusionWeights,
    ItemSide,
    place_cold,
    softmax_regression,
)

CELLS = 50_000_000  # queries × items whose scores are held, for each channel
QUERIES = 4_000
RELEVANT = 40_000  # relevant items of all queries
COLD_SHARE = 0.85  # of the cold items one channel alone finds, the fused list keeps this much
COLD_ENOUGH = 50  # relevant cold items on valid below which they say too little
HIDDEN_SHARE = 0.1  # of the relevant items, hidden to learn of cold ones where there are too few
HIDDEN_DRAWS = 4  # of such tenths, all of which teach
PLACED = 500  # queries whose lists tell where cold items stand
LEARNED = "learned"  # the channel that may be left out
METHODS = ("equal", "softmax", "bagged")
BLOCK = 4_000_000  # queries × items of which copies are made at a time
TOP_WARM, TOP_COLD = 40, 15  # candidates a channel brings to each query

Gains: TypeAlias = npt.NDArray[np.float64]  # NDCG@10 of each query
Methods: TypeAlias = Mapping[str, Callable[[], FusionWeights]]


@dataclass(frozen=True, eq=False)
class Fused:
    """The weights of a head and how they were found.

    Attributes:
        weights: the fusion weights; the learned channel may weigh nothing.
        method: "equal", "softmax", "bagged" or the name of a single channel.
        ndcg: cross-fitted NDCG@10 on valid of every method and of each channel alone. Where there
            is a learned channel, "softmax without learned" stands beside them if it is kept,
            "softmax with learned" if it is left out.
    """

    weights: FusionWeights
    method: str
    ndcg: dict[str, float]


def fuse(channels: Sequence[Channel], side: ItemSide, queries: Queries, seed: int) -> Fused:
    """Fit the fusion weights of `channels` on valid queries.

    Args:
        channels: fitted on train alone.
        side: popularity, trend and coldness as of train.
        queries: valid queries with at least one relevant item each.
        seed: of the sample of queries.
    """
    n_items, n_channels = queries.histories.n_items, len(channels)
    most = RELEVANT * len(queries) // max(1, queries.relevant.nnz)
    queries = queries.sample(max(2, min(QUERIES, CELLS // n_items, most)), seed)
    scores = [scaled_scores(channel, queries) for channel in channels]
    candidates = _candidates(scores, side, queries)
    found: dict[str, Gains] = {}  # cross-fitted
    for number, channel in enumerate(channels):
        single = FusionWeights.single(n_channels, number)
        found[channel.name] = _ndcg(scores, side, queries, single)
    half = (queries.users * 2_654_435_761 >> 7) % 2  # by user, so that no user is on both sides
    halves = [(np.flatnonzero(half != n), np.flatnonzero(half == n)) for n in (0, 1)]
    if not all(map(len, halves[0])):
        halves = []

    def ways(kept: Sequence[int]) -> list[Methods]:
        """Of some of the channels, one for each half."""
        fewer = candidates.of_channels(kept)
        return [_methods(fewer.take(rest), side, seed) for rest, _ in halves]

    def judged(of_halves: Sequence[Methods], name: str, kept: Sequence[int]) -> Gains:
        """What a way reaches on the halves that it was not fitted on."""
        values = np.zeros(len(queries))
        for (_, judged_half), methods in zip(halves, of_halves, strict=True):
            weights = methods[name]().placed(kept, n_channels)
            values[judged_half] = _ndcg(scores, side, queries, weights, judged_half)
        return values

    kept = list(range(n_channels))
    of_halves = ways(kept)
    if halves and LEARNED in found:
        rest = [place for place in kept if channels[place].name != LEARNED]
        of_rest = ways(rest)
        whole, less = judged(of_halves, "softmax", kept), judged(of_rest, "softmax", rest)
        if _clearly(whole, less) or _clearly(found[LEARNED], less):
            found["softmax without learned"] = less
        else:
            found["softmax with learned"] = whole
            kept, of_halves = rest, of_rest
    for name in METHODS if halves else ():
        found[name] = judged(of_halves, name, kept)
    channels, scores = [channels[c] for c in kept], [scores[c] for c in kept]
    candidates = candidates.of_channels(kept)
    names = [channel.name for channel in channels]
    best = _best(found, names)
    if best in names:
        weights = FusionWeights.single(len(names), names.index(best))
    else:
        weights = _methods(candidates, side, seed)[best]()
    if only_items(queries.relevant, side.cold).nnz < COLD_ENOUGH:
        weights = _hidden_gate(channels, scores, side, queries, weights, seed)
    else:
        ranking = Ranking.of(candidates, side)
        if best in names:  # a single channel's weights say nothing of cold items
            start = _as_warm(channels, weights)
            weights = coordinate_ascent(ranking, start, over="cold")
        floor = COLD_SHARE * _cold_hits(scores, side, queries)
        weights = lift_cold(ranking, weights, floor)
    ndcg = {name: float(values.mean()) for name, values in found.items()}
    return Fused(weights.placed(kept, n_channels), best, ndcg)


def _clearly(one: Gains, other: Gains) -> bool:
    """Whether one ranks better by more than a standard error of the difference.

    (The rule of Breiman et al., 1984, for what a larger model must gain.)
    """
    gain = one - other
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


def _best(found: Mapping[str, Gains], singles: Sequence[str]) -> str:
    """The method that ranks best, or a single channel that is clearly better than all of them.

    The methods' figures are those of weights that half of the queries taught, while all of them
    teach the weights that are kept.
    """

    def best_of(names: Iterable[str]) -> str:
        return max(names, key=lambda name: found[name].mean())

    single = best_of(singles)
    methods = [name for name in METHODS if name in found]
    if not methods or _clearly(found[single], found[best_of(methods)]):
        return single
    return best_of(methods)


def _hidden_gate(
    channels: Sequence[Channel],
    scores: Sequence[torch.Tensor],
    side: ItemSide,
    queries: Queries,
    weights: FusionWeights,
    seed: int,
) -> FusionWeights:
    """Weights for cold items, where valid holds next to none: hidden items stand for them.

    The weights are those that rank hidden items best; items that are cold in truth are no
    candidates there, since that nobody wanted them on valid says nothing. The bias is that of
    `place_cold` for the latter, or for hidden ones where there are none.
    """
    parts = []
    for draw in range(seed, seed + HIDDEN_DRAWS):
        hidden = _drawn(queries, draw)
        with_hidden = replace(side, cold=side.cold | hidden)
        with _hiding(channels, scores, hidden):
            candidates = _candidates(scores, with_hidden, queries).without(side.cold)
        parts.append(Ranking.of(candidates, with_hidden))
    start = _as_warm(channels, weights)
    weights = coordinate_ascent(Ranking.joined(parts), start, over="cold")
    parts.clear()
    few = np.arange(min(PLACED, len(queries)))
    queries, scores = queries.take(few), [part[torch.from_numpy(few)] for part in scores]
    if not side.cold.any():
        side = with_hidden
    with _hiding(channels, scores, side.cold):
        total = _fused_scores(scores, side, weights)
    return place_cold(exclude(total, queries.excluded), side.cold, weights)


def _drawn(queries: Queries, seed: int) -> npt.NDArray[np.bool_]:
    """A tenth of the relevant items, (n_items) bool."""
    relevant = np.unique(queries.relevant.indices)
    chosen = np.random.default_rng(seed).random(len(relevant)) < HIDDEN_SHARE
    hidden = np.zeros(queries.histories.n_items, bool)
    hidden[relevant[chosen]] = True
    return hidden


@contextmanager
def _hiding(
    channels: Sequence[Channel], scores: Sequence[torch.Tensor], hidden: npt.NDArray[np.bool_]
) -> Iterator[None]:
    """Items look new inside: channels that know an item by who chose it give it 0."""
    items = torch.from_numpy(np.flatnonzero(hidden))
    blind = [part for channel, part in zip(channels, scores, strict=True) if of_history(channel)]
    kept = [part[:, items] for part in blind]
    try:
        for part in blind:
            part[:, items] = 0.0
        yield
    finally:
        for part, columns in zip(blind, kept, strict=True):
            part[:, items] = columns


def of_history(channel: Channel) -> bool:
    """Whether the channel knows an item by who chose it, not by what it is."""
    return isinstance(channel.form, ItemItem) or channel.name == LEARNED


def _as_warm(channels: Sequence[Channel], weights: FusionWeights) -> FusionWeights:
    """Cold weights to start from: what text and graph weigh for a rarely chosen product."""
    known = np.array([not of_history(channel) for channel in channels])
    cold = np.where(known, np.maximum(weights.weight, weights.weight.max() / 4), 0.0)
    return replace(weights, cold=cold.astype(np.float32), cold_bias=0.0)


def _cold_hits(
    scores: Sequence[torch.Tensor], side: ItemSide, queries: Queries, k: int = 10
) -> int:
    """How many relevant cold items the channel that finds most of them lists among its first k."""
    only = only_items(queries.relevant, side.cold)
    k = min(k, len(side.cold))
    tops: list[list[npt.NDArray[np.int64]]] = [[] for _ in scores]
    for rows, block in _blocks(scores, np.arange(len(queries))):
        excluded = queries.take(rows).excluded
        for top, part in zip(tops, block, strict=True):
            top.append(exclude(part.clone(), excluded).topk(k, dim=1).indices.numpy())
    return max(int(hits_of(np.concatenate(top), only).sum()) for top in tops)


def _methods(candidates: Candidates, side: ItemSide, seed: int) -> Methods:
    """The ways to find weights on the candidates, each worked out when it is called.

    Args:
        candidates: what is ranked.
        side: what the gates know of the items.
        seed: of the queries that a bag holds.
    """
    candidates = candidates.answered()
    equal = FusionWeights.equal(candidates.scores.shape[2])

    @cache
    def regression() -> FusionWeights:
        return softmax_regression(candidates, side, equal)

    return {
        "equal": lambda: equal,
        "softmax": regression,
        "bagged": lambda: bagged(Ranking.of(candidates, side), regression(), seed),
    }


def scaled_scores(channel: Channel, queries: Queries) -> torch.Tensor:
    """The channel's scores over size(u), (n_queries × n_items) float32."""
    history = queries.histories.weights(queries.spans, channel.decay)
    scores = channel.form.scores(history).cpu()
    return scores.div_(sizes(scores))


def _fused_scores(
    scores: Sequence[torch.Tensor], side: ItemSide, weights: FusionWeights
) -> torch.Tensor:
    total = torch.from_numpy(weights.bias(side)).repeat(len(scores[0]), 1)
    for part, gate in zip(scores, weights.gates(side), strict=True):
        if gate.any():
            total.addcmul_(part, torch.from_numpy(gate))
    return total


def _ndcg(
    scores: Sequence[torch.Tensor],
    side: ItemSide,
    queries: Queries,
    weights: FusionWeights,
    asked: npt.NDArray[np.integer] | None = None,
) -> npt.NDArray[np.float64]:
    """NDCG@10 of each query by full ranking, or of those asked."""
    asked = np.arange(len(queries)) if asked is None else asked
    found = []
    for rows, part in _blocks(scores, asked):
        total = exclude(_fused_scores(part, side, weights), queries.take(rows).excluded)
        found.append(total.topk(min(10, total.shape[1]), dim=1).indices.numpy())
    return list_metrics(np.concatenate(found), queries.relevant[asked], (10,)).ndcg[10]


def _blocks(
    scores: Sequence[torch.Tensor], asked: npt.NDArray[np.integer]
) -> Iterator[tuple[npt.NDArray[np.integer], list[torch.Tensor]]]:
    """Some queries after the other, each with their scores, which are not to be changed."""
    step = max(1, BLOCK // scores[0].shape[1])
    for rows in np.split(asked, range(step, len(asked), step)):
        together = len(rows) and rows[-1] - rows[0] + 1 == len(rows)  # a view will do
        which = slice(rows[0], rows[-1] + 1) if together else torch.from_numpy(rows)
        yield rows, [part[which] for part in scores]


def _candidates(scores: Sequence[torch.Tensor], side: ItemSide, queries: Queries) -> Candidates:
    """Every channel's top items, and those of their plain sum and of the trend."""
    found = [
        _leading(part, side, queries.take(rows))
        for rows, part in _blocks(scores, np.arange(len(queries)))
    ]
    items = torch.cat(found).sort(dim=1).values  # (n_queries, n_candidates)
    real = torch.ones_like(items, dtype=torch.bool)
    real[:, 1:] = items[:, 1:] != items[:, :-1]
    real &= ~torch.from_numpy(hits_of(items.numpy(), queries.excluded))
    width = max(1, int(real.sum(1).max()))
    order = (~real).byte().sort(dim=1, stable=True).indices[:, :width]  # the real ones first
    items, real = items.gather(1, order), real.gather(1, order)
    relevant = torch.from_numpy(hits_of(items.numpy(), queries.relevant)) & real
    return Candidates(
        scores=torch.stack([part.gather(1, items) for part in scores], dim=2),
        items=items,
        relevant=relevant,
        real=real,
        n_relevant=torch.from_numpy(np.diff(queries.relevant.indptr).astype(np.int64)),
    )


def _leading(scores: Sequence[torch.Tensor], side: ItemSide, queries: Queries) -> torch.Tensor:
    """Items at the top of any channel, of their sum or of the trend, (n_queries × n) int64."""
    trend = torch.from_numpy(side.trend + 1e-3 * side.popularity).expand(len(queries), -1)
    cold = torch.from_numpy(np.flatnonzero(side.cold))
    together = reduce(torch.add, scores)
    depth = min(TOP_WARM, len(side.cold) - len(cold))
    found = []
    for ranked in (*scores, together, trend):
        masked = exclude(ranked.clone(), queries.excluded)
        if len(cold):
            top = masked[:, cold].topk(min(TOP_COLD, len(cold)), dim=1).indices
            found.append(cold[top])
            masked[:, cold] = -torch.inf
        found.append(masked.topk(depth, dim=1).indices)
    return torch.cat(found, dim=1)
