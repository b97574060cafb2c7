"""The fitted model: channels, their fusion, and the scores they add up to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Channel, sizes
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.weights import FusionWeights, ItemSide

Head = Literal["new", "all"]


@dataclass(frozen=True, eq=False)
class EventParts:
    """One score, split over channels and history events.

    Attributes:
        events: (n_events) event numbers, oldest first.
        parts: (n_channels × n_events) float64; their sum and the bias are the score.
        bias: the part that is the item's own.
        factors: (n_channels × n_events) float64: parts = factors × v(h, i) of the channel.
    """

    events: npt.NDArray[np.int64]
    parts: npt.NDArray[np.float64]
    bias: float
    factors: npt.NDArray[np.float64]

    @property
    def score(self) -> float:
        """bias + the sum of all parts."""
        return self.bias + float(self.parts.sum())


@dataclass(frozen=True, eq=False)
class FusedModel:
    """What scores: score(u, i) = bias_i + Σ_c g_c(i) · s_c(u, i).

    Attributes:
        channels: the channels, in a fixed order.
        side: what the gates know of each item.
        heads: fusion weights for lists of "new" products only and for lists of "all" products.
    """

    channels: tuple[Channel, ...]
    side: ItemSide
    heads: dict[Head, FusionWeights]

    @property
    def n_items(self) -> int:
        """How many items are scored."""
        return len(self.side.cold)

    def to(self, device: str) -> FusedModel:
        """The same model with its dense parts on `device`."""
        return replace(self, channels=tuple(channel.to(device) for channel in self.channels))

    def scores(self, histories: Histories, spans: Spans, head: Head) -> torch.Tensor:
        """Scores of all items for each history, (n_spans × n_items) float32 on the CPU."""
        total = torch.from_numpy(self.heads[head].bias(self.side)).repeat(len(spans), 1)
        for _, part in self.channel_scores(histories, spans, head):
            total += part
        return total

    def channel_scores(
        self, histories: Histories, spans: Spans, head: Head
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """What each channel adds: its name and g_c(i) · s_c(u, i), (n_spans × n_items) float32."""
        gates = self.heads[head].gates(self.side)
        for channel, gate in zip(self.channels, gates, strict=True):
            if gate.any():
                part = channel.form.scores(histories.weights(spans, channel.decay))
                size = sizes(part)
                yield (
                    channel.name,
                    part.mul_(torch.from_numpy(gate).to(part.device)).div_(size).cpu(),
                )

    def parts(self, histories: Histories, span: Spans, item: int, head: Head) -> EventParts:
        """One score taken apart.

        Args:
            histories: where the events are.
            span: one stretch of it, the user's history.
            item: item number.
            head: which list the score is for.
        """
        weights = self.heads[head]
        gates = weights.gates(self.side)[:, item]
        events = np.arange(span.first[0], span.last[0])
        factors = np.zeros((len(self.channels), len(events)))
        parts = np.zeros_like(factors)
        for number, (channel, gate) in enumerate(zip(self.channels, gates, strict=True)):
            if gate and len(events):
                _, decayed = histories.event_weights(span, channel.decay)
                size = sizes(channel.form.scores(histories.weights(span, channel.decay)))
                factors[number] = decayed.astype(np.float64) * float(gate) / float(size)
                values = channel.form.of_events(histories.items[events], item)
                parts[number] = factors[number] * values
        bias = float(weights.bias(self.side)[item])
        return EventParts(events=events, parts=parts, bias=bias, factors=factors)


def exclude(scores: torch.Tensor, items: sp.csr_matrix) -> torch.Tensor:
    """Set the scores of `items` (same shape, CSR; stored entries count) to -inf, in place."""
    rows = np.repeat(np.arange(items.shape[0]), np.diff(items.indptr))
    scores[torch.from_numpy(rows), torch.from_numpy(items.indices.astype(np.int64))] = -torch.inf
    return scores


def top_n(scores: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n best items of each row; equal scores order by item number.

    Args:
        scores: (n_rows × n_items) float32; -inf is never listed.
        n: length of the lists, cut to n_items.

    Returns:
        item numbers, (n_rows × n) int64, -1 where a list ends early; their scores.
    """
    n = min(n, scores.shape[1])
    values, items = scores.topk(n, dim=1)
    # topk takes any of the items that tie for the last place: take the first ones instead.
    last = values[:, -1:]
    at_least = (scores >= last).sum(1)
    for row in torch.nonzero((at_least > n) & torch.isfinite(last[:, 0]))[:, 0].tolist():
        above = torch.nonzero(scores[row] > last[row])[:, 0]
        ties = torch.nonzero(scores[row] == last[row])[: n - len(above), 0]
        items[row] = torch.cat([above, ties])
    items = items.sort(dim=1).values
    values = scores.gather(1, items)
    order = values.sort(dim=1, descending=True, stable=True).indices
    items, values = items.gather(1, order), values.gather(1, order)
    return items.masked_fill(torch.isneginf(values), -1), values
