"""How the channels add up: one weight a channel, and a gate on the item's side.

    score(u, i) = bias_i + Σ_c g_c(i) · s_c(u, i)

    g_c(i) = max(0, weight_c + slope_c · popularity_i)     for an item that was seen in training
             cold_c                                        for one that was not
    bias_i = trend · trend_i                               for an item that was seen in training
             cold_bias                                     for one that was not

A product without history is handed wholly to its own weights, on which only cold products vote, so
that it is neither lifted nor sunk by what popular products need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ItemSide:
    """What the gate knows of each item.

    Attributes:
        popularity: (n_items) float32 in [0, 1]: log(1 + users) over its largest value.
        trend: (n_items) float32 in [0, 1]: the same over the most recent weeks.
        cold: (n_items) bool: never seen in training.
    """

    popularity: Floats
    trend: Floats
    cold: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class FusionWeights:
    """The fusion's parameters; all arrays are (n_channels) float32.

    Attributes:
        weight: weight at popularity 0.
        slope: what a popularity of 1 adds to it.
        cold: weight for items never seen in training.
        trend: weight of the trend in the bias.
        cold_bias: the bias of items never seen in training.
    """

    weight: Floats
    slope: Floats
    cold: Floats
    trend: float
    cold_bias: float

    @classmethod
    def equal(cls, n_channels: int) -> FusionWeights:
        """Every channel counts the same, everywhere."""
        ones = np.ones(n_channels, np.float32)
        return cls(ones, np.zeros_like(ones), ones.copy(), 0.0, 0.0)

    @classmethod
    def single(cls, n_channels: int, channel: int) -> FusionWeights:
        """One channel alone."""
        one = np.zeros(n_channels, np.float32)
        one[channel] = 1.0
        return cls(one, np.zeros_like(one), one.copy(), 0.0, 0.0)

    def placed(self, places: Sequence[int], n_channels: int) -> FusionWeights:
        """The same weights for the channels at `places` of n_channels; 0 for the others."""
        weight, slope, cold = (
            np.zeros(n_channels, np.float32) for _ in (self.weight, self.slope, self.cold)
        )
        weight[places], slope[places], cold[places] = self.weight, self.slope, self.cold
        return FusionWeights(weight, slope, cold, self.trend, self.cold_bias)

    def of_channels(self, kept: Sequence[int]) -> FusionWeights:
        """The weights of some of the channels alone."""
        places = list(kept)
        weight, slope, cold = self.weight[places], self.slope[places], self.cold[places]
        return FusionWeights(weight, slope, cold, self.trend, self.cold_bias)

    def weighs(self, channel: int) -> bool:
        """Whether the channel counts for any item."""
        of_channel = (self.weight[channel], self.slope[channel], self.cold[channel])
        return any(map(bool, of_channel))

    def gates(self, side: ItemSide) -> Floats:
        """g_c(i), (n_channels × n_items) float32."""
        warm = np.maximum(self.weight[:, None] + self.slope[:, None] * side.popularity, 0.0)
        return np.where(side.cold, self.cold[:, None], warm).astype(np.float32)

    def bias(self, side: ItemSide) -> Floats:
        """bias_i, (n_items) float32."""
        return np.where(side.cold, self.cold_bias, self.trend * side.trend).astype(np.float32)

    def vector(self) -> npt.NDArray[np.float64]:
        """All parameters in one vector: weight, slope, cold, trend, cold_bias."""
        last = np.array([self.trend, self.cold_bias])
        return np.concatenate([self.weight, self.slope, self.cold, last]).astype(np.float64)

    @classmethod
    def from_vector(cls, vector: npt.NDArray[np.float64]) -> FusionWeights:
        """The inverse of `vector`."""
        n = (len(vector) - 2) // 3
        parts = vector.astype(np.float32)
        return cls(
            parts[:n], parts[n : 2 * n], parts[2 * n : 3 * n], float(vector[-2]), float(vector[-1])
        )


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items among which the weights are searched, per query; padded places are not `real`.

    They hold every channel's top items, warm and cold apart, so that whatever weights put on top
    is among them (but for items that no channel has near its top).

    Attributes:
        scores: (n_queries × n_candidates × n_channels) float32.
        items: (n_queries × n_candidates) int64 item numbers.
        relevant: (n_queries × n_candidates) bool.
        real: (n_queries × n_candidates) bool.
        n_relevant: (n_queries) int64, over all items, not only the candidates.
    """

    scores: torch.Tensor
    items: torch.Tensor
    relevant: torch.Tensor
    real: torch.Tensor
    n_relevant: torch.Tensor

    def __len__(self) -> int:
        return len(self.items)

    def take(self, which: npt.NDArray[np.integer]) -> Candidates:
        """The candidates of some of the queries."""
        rows = torch.from_numpy(np.asarray(which, np.int64))
        return Candidates(
            self.scores[rows],
            self.items[rows],
            self.relevant[rows],
            self.real[rows],
            self.n_relevant[rows],
        )

    def of_channels(self, channels: Sequence[int]) -> Candidates:
        """The same candidates, scored by some of the channels."""
        return replace(self, scores=self.scores[:, :, list(channels)])

    def without(self, left_out: npt.NDArray[np.bool_]) -> Candidates:
        """The same candidates but for the items left out, (n_items) bool."""
        real = self.real & ~torch.from_numpy(left_out)[self.items]
        return replace(self, relevant=self.relevant & real, real=real)

    def answered(self) -> Candidates:
        """The queries with a relevant candidate; weights make no difference to the others."""
        return self.take(torch.nonzero(self.relevant.any(1))[:, 0].numpy())


def softmax_regression(
    candidates: Candidates, side: ItemSide, start: FusionWeights, *, steps: int = 40
) -> FusionWeights:
    """Weights that make the relevant items likely under a softmax over the candidates (L-BFGS).

    The gates' floor at 0 is left out while fitting, so that the loss is convex.
    """
    design = _design(candidates, side)  # (n_parameters, n_queries · n_candidates)
    n = len(start.weight)
    share = candidates.relevant.float()
    share /= share.sum(1, keepdim=True).clamp(min=1.0) * max(len(candidates), 1)
    of_query = share.sum(1, keepdim=True)
    vector = torch.tensor(start.vector(), dtype=torch.float32)
    optimizer = torch.optim.LBFGS([vector], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> float:
        scores = (vector @ design).view_as(share).masked_fill_(~candidates.real, -torch.inf)
        log_total = scores.logsumexp(1, keepdim=True)
        residual = torch.exp(scores - log_total) * of_query - share
        vector.grad = design @ residual.flatten() + 2e-4 * vector
        fit = (share * (log_total - scores.masked_fill(~candidates.real, 0.0))).sum()
        return float(fit + 1e-4 * vector.square().sum())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    found = vector.numpy().astype(np.float64)
    found[2 * n : 3 * n] = np.maximum(found[2 * n : 3 * n], 0.0)
    return FusionWeights.from_vector(found)


def _design(candidates: Candidates, side: ItemSide) -> torch.Tensor:
    """What each parameter multiplies, (n_parameters × n_queries · n_candidates) float32."""
    popularity, trend, cold = (
        torch.from_numpy(values)[candidates.items].flatten()
        for values in (side.popularity, side.trend, side.cold)
    )
    scores = candidates.scores.flatten(0, 1).T
    warm_scores = scores * ~cold
    biases = torch.stack([trend * ~cold, cold.float()])
    return torch.cat([warm_scores, warm_scores * popularity, scores * cold, biases])


def place_cold(
    scores: torch.Tensor, cold: npt.NDArray[np.bool_], weights: FusionWeights, *, k: int = 10
) -> FusionWeights:
    """Raise the bias of cold items until they stand where little-known items should.

    How much they are wanted is not known. So their mean place in the full lists is the middle, and
    what their words and the graph say moves them up or down from there; and they are among the
    first k at least half as often as the average item.

    Args:
        scores: (n_queries × n_items) float32, fused with these weights; −inf where an item may not
            be listed.
        cold: (n_items) bool: what is raised.
        weights: where to start; returned unchanged if the cold items stand high enough, or if no
            lift brings them there.
        k: length of a list that somebody reads.
    """
    is_cold = torch.from_numpy(cold)
    k = min(k, len(cold))
    others = scores[:, ~is_cold].sort(dim=1).values
    raised = scores[:, is_cold]
    n_others = torch.isfinite(others).sum(1, keepdim=True).clamp(min=1)
    listed = torch.isfinite(raised)

    def high_enough(lift: float) -> bool:
        above = others.shape[1] - torch.searchsorted(others, raised + lift, right=True)
        if float((above / n_others)[listed].double().mean()) > 0.5:
            return False
        top = torch.where(is_cold, scores + lift, scores).topk(k, dim=1).indices
        return float(is_cold[top].double().mean()) >= 0.5 * float(cold.mean())

    if not listed.any() or high_enough(0.0):
        return weights
    finite = scores[torch.isfinite(scores)]
    high = float(finite.max() - finite.min()) + 1.0
    if not high_enough(high):  # most lists may not hold them
        return weights
    return replace(weights, cold_bias=weights.cold_bias + least(high_enough, high))


def least(reached: Callable[[float], bool], high: float) -> float:
    """The least value from which on it is `reached`, which it is at `high`; by bisection."""
    low = 0.0
    for _ in range(20):
        middle = (low + high) / 2.0
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
