"""The fitted model: channels, their fusion, and the scores they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures, sizes
from kgrank.fusion.history import Decay, Histories, Spans
from kgrank.fusion.lists import top_n
from kgrank.fusion.prediction import Predictor
from kgrank.fusion.weights import FusionWeights, ItemSide

Head = Literal["new", "all", "click", "purchase", "conversion", "rating"]
Task = Literal["rank", "click", "purchase", "conversion", "rating"]
Repeats = Literal["exclude", "allow", "only"]

CELLS = 48_000_000  # users × items scored at a time: 192 MB of float32


@dataclass(frozen=True, eq=False)
class EventParts:
    """One score, split over channels and history events.

    Attributes:
        events: (n_events) event numbers, oldest first.
        parts: (n_channels × n_events) float64; their sum and the bias are the score.
        bias: the part that no event has: the item's own and, where a head predicts, the user's.
        factors: (n_channels × n_events) float64: parts = factors × v(h, i) of the channel.
        gates: (n_channels) float64: factors = gates × what events weigh in the channel.
    """

    events: npt.NDArray[np.int64]
    parts: npt.NDArray[np.float64]
    bias: float
    factors: npt.NDArray[np.float64]
    gates: npt.NDArray[np.float64]

    @property
    def score(self) -> float:
        """bias + the sum of all parts."""
        return self.bias + float(self.parts.sum())


@dataclass(frozen=True, eq=False)
class FoldedHistory:
    """One history as every channel weighs it, whatever the item.

    Attributes:
        events: (n_events) event numbers, oldest first.
        items: (n_events) item numbers.
        weights: (n_channels × n_events) float64: what an event weighs, over the history's size.
        own: the user's own part, the same for all items.
    """

    events: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float64]
    own: float

    @cached_property
    def products(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The item numbers, ascending and each once, and the place of each event's among them."""
        found, places = np.unique(self.items, return_inverse=True)
        return found, places

    @cached_property
    def of_products(self) -> npt.NDArray[np.float64]:
        """(n_channels × n_products) float64, the weights of each product's events together."""
        products, places = self.products
        return np.stack([np.bincount(places, of, len(products)) for of in self.weights])


@dataclass(frozen=True, eq=False)
class FusedModel:
    """What scores: score(u, i) = bias_i + Σ_c g_c(i) · s_c(u, i).

    A head is what one question weighs the channels by. Two rank: lists of "new" products only, and
    lists of "all" products. Others also predict: how probably a "click" or "purchase" follows, or
    a purchase on a click ("conversion"), or what the "rating" will be.

    Attributes:
        channels: the channels, in a fixed order.
        side: what the gates know of each item.
        heads: each head's fusion weights.
        predictors: what the heads that predict have beside those.
    """

    channels: tuple[Channel, ...]
    side: ItemSide
    heads: dict[Head, FusionWeights]
    predictors: dict[Head, Predictor] = field(default_factory=dict)

    @property
    def n_items(self) -> int:
        """How many items are scored."""
        return len(self.side.cold)

    def to(self, device: str) -> FusedModel:
        """The same model with its dense parts on `device`."""
        return replace(self, channels=tuple(channel.to(device) for channel in self.channels))

    def scores(self, histories: Histories, spans: Spans, head: Head) -> torch.Tensor:
        """Scores of all items for each history, (n_spans × n_items) float32 on the CPU."""
        items = self._items(head)
        out = torch.empty(len(spans), self.n_items, device=items.dense.device)
        scores = items.scores(histories, spans, out).cpu()
        return self._with_own(scores, histories, spans, head)

    def top(
        self,
        histories: Histories,
        spans: Spans,
        head: Head,
        n: int,
        *,
        repeats: Repeats = "allow",
        candidates: npt.NDArray[np.integer] | None = None,
        bias: bool = True,
        pick: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The n best items for each history; equal scores order by item number.

        No more than CELLS scores are held at a time (one history's, where there are more items).

        Args:
            histories: where the events are.
            spans: the histories that are ranked for.
            head: which fusion weights.
            n: length of the lists, cut to the number of items that may be listed.
            repeats: "exclude" lists only what is not in the history, "allow" everything, "only"
                what is in it.
            candidates: only these item numbers are listed; all if None.
            bias: whether the part counts that no event has.
            pick: makes the lists of a block of histories in place of `top_n`: called with their
                scores, (n_rows × n_items) on the device, -inf where `repeats` leaves an item out,
                and the number of the first of them. It minds `candidates` itself.

        Returns:
            item numbers, (n_spans × n) int64, -1 where a list ends early; their scores, float32.
            Both on the CPU.
        """
        items = self._items(head)
        listed = None
        if candidates is not None:
            listed = torch.from_numpy(np.unique(candidates).astype(np.int64))
        size = max(1, CELLS // self.n_items)
        out = torch.empty(min(size, len(spans)), self.n_items, device=items.dense.device)
        found = []
        for start in range(0, len(spans), size):
            block = spans[start : start + size]
            scores = items.scores(histories, block, out[: len(block)], bias=bias)
            if repeats != "allow":
                met = histories.weights(block, Decay())
                scores = exclude(scores, met) if repeats == "exclude" else only(scores, met)
            if pick is not None:
                best, values = pick(scores, start)
            elif listed is None:
                best, values = top_n(scores, n)
            else:
                best, values = top_n(scores[:, listed.to(scores.device)], n)
                best = torch.where(best < 0, best, listed[best])
            if bias:
                values = self._with_own(values, histories, block, head)
            found.append((best, values))
        if not found:
            return torch.empty(0, 0, dtype=torch.int64), torch.empty(0, 0)
        return torch.cat([best for best, _ in found]), torch.cat([values for _, values in found])

    def bias(self, head: Head) -> npt.NDArray[np.float32]:
        """Each item's own part of its scores, (n_items) float32."""
        bias = self.heads[head].bias(self.side)
        return bias + self.predictors[head].base if head in self.predictors else bias

    def own_parts(self, histories: Histories, spans: Spans, head: Head) -> npt.NDArray[np.float32]:
        """Each user's own part, the same for all items, (n_spans) float32; 0 if a head ranks."""
        if head not in self.predictors:
            return np.zeros(len(spans), np.float32)
        return self.predictors[head].of_users(histories, spans).astype(np.float32)

    def _with_own(
        self, scores: torch.Tensor, histories: Histories, spans: Spans, head: Head
    ) -> torch.Tensor:
        if head not in self.predictors:
            return scores
        return scores.add_(torch.from_numpy(self.own_parts(histories, spans, head))[:, None])

    def _items(self, head: Head) -> _GatedItems:
        if head not in self._gated:
            self._gated[head] = _GatedItems.of(self, head)
        return self._gated[head]

    @cached_property
    def _gated(self) -> dict[Head, _GatedItems]:
        return {}

    def item_vectors(self, head: Head) -> torch.Tensor:
        """The dense channels' part of the items, (n_items × dim) float32 on their device.

        Its product with `user_vectors` is the share of `scores` that the dense channels and the
        items' bias have. The last column is that bias; before it are those of `dense_channels`.
        """
        return self._items(head).dense

    def user_vectors(self, histories: Histories, spans: Spans, head: Head) -> torch.Tensor:
        """What `item_vectors` is multiplied with, (n_spans × dim) float32 on the same device."""
        return self._items(head).users(histories, spans)

    def dense_channels(self, head: Head) -> dict[str, int]:
        """The channels in `item_vectors`, in order, and how many columns each has."""
        return {c.name: form.values.shape[1] for c, form in self._items(head).channels}

    def other_channels(self, head: Head) -> tuple[str, ...]:
        """The channels that have a share in `scores` and none in `item_vectors`."""
        return tuple(channel.name for channel, *_ in self._items(head).others)

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
        return self.parts_of(self.folded(histories, span, head), item, head)

    def folded(self, histories: Histories, span: Spans, head: Head) -> FoldedHistory:
        """One history, ready for the parts of any number of items' scores.

        Args:
            histories, span, head: as in `parts`.
        """
        events = np.arange(span.first[0], span.last[0])
        items = histories.items[span.first[0] : span.last[0]]
        weights = np.zeros((len(self.channels), len(events)))
        decays: list[Decay] = []  # of several channels with the same decay, one
        decayed: list[npt.NDArray[np.float32]] = []
        for number, channel in enumerate(self.channels):
            if len(events) and self.heads[head].weighs(number):
                if channel.decay not in decays:
                    decays.append(channel.decay)
                    decayed.append(histories.event_weights(span, channel.decay)[1])
                of_events = decayed[decays.index(channel.decay)]
                weights[number] = of_events / channel.form.size(items, of_events)
        own = float(self.own_parts(histories, span, head)[0])
        return FoldedHistory(events, items, weights, own)

    def parts_of(self, history: FoldedHistory, item: int, head: Head) -> EventParts:
        """The score of an item taken apart, for a history that was folded for this head."""
        return self.parts_of_each(history, np.array([item]), head)[0]

    def parts_of_each(
        self, history: FoldedHistory, items: npt.NDArray[np.integer], head: Head
    ) -> list[EventParts]:
        """The scores of some items taken apart, for a history that was folded for this head.

        Args:
            history: see `folded`.
            items: (n) item numbers, each once.
            head: of the scores.
        """
        gates, biases = self._sided(head)
        of_items = gates[:, items].T.astype(np.float64)  # (n, n_channels)
        factors = of_items[:, :, None] * history.weights  # (n, n_channels, n_events)
        parts = np.zeros_like(factors)
        for number, channel in enumerate(self.channels):
            if len(history.events) and of_items[:, number].any():
                said = channel.form.of_targets(history.items, items)
                np.multiply(factors[:, number], said, out=parts[:, number])
        bias = (biases[items].astype(np.float64) + history.own).tolist()
        return [
            EventParts(history.events, *of_item)
            for of_item in zip(parts, bias, factors, of_items, strict=True)
        ]

    def _sided(self, head: Head) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Gates (n_channels × n_items) and biases (n_items)."""
        if head not in self._sides:
            self._sides[head] = self.heads[head].gates(self.side), self.bias(head)
        return self._sides[head]

    @cached_property
    def _sides(self) -> dict[Head, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        return {}


@dataclass(frozen=True, eq=False)
class _GatedItems:
    """The items as one head sees them, ready for one matrix product with any number of users.

        scores = [u_1 / size_1 | u_2 / size_2 | … | 1] · [g_1 V_1 | g_2 V_2 | … | bias]ᵀ + others

    Attributes:
        channels: the dense channels with a gate, in the order of their columns.
        dense: (n_items × (their dims + 1)) float32 on the device of their vectors.
        others: the other channels with a gate, each with g_c(i), (n_items) float32.
    """

    channels: tuple[tuple[Channel, DenseFeatures], ...]
    dense: torch.Tensor
    others: tuple[tuple[Channel, ItemItem | SparseFeatures, npt.NDArray[np.float32]], ...]

    @classmethod
    def of(cls, model: FusedModel, head: Head) -> _GatedItems:
        weights = model.heads[head]
        channels, columns, others = [], [], []
        bias = torch.from_numpy(model.bias(head))[:, None]
        for channel, gate in zip(model.channels, weights.gates(model.side), strict=True):
            form = channel.form
            if not gate.any():
                continue
            if isinstance(form, DenseFeatures):
                scale = torch.from_numpy(gate).to(form.values.device)
                channels.append((channel, form))
                columns.append(form.values * scale[:, None])
            else:
                others.append((channel, form, gate))
        device = columns[0].device if columns else bias.device
        dense = torch.cat([*columns, bias.to(device)], dim=1)
        return cls(tuple(channels), dense, tuple(others))

    def users(self, histories: Histories, spans: Spans, *, bias: bool = True) -> torch.Tensor:
        """[u_1 / size_1 | u_2 / size_2 | … | 1], or 0 last without the bias, float32."""
        columns = [
            form.scaled(histories.weights(spans, channel.decay))[0]
            for channel, form in self.channels
        ]
        last = torch.full((len(spans), 1), float(bias), device=self.dense.device)
        return torch.cat([*columns, last], dim=1)

    def scores(
        self, histories: Histories, spans: Spans, out: torch.Tensor, *, bias: bool = True
    ) -> torch.Tensor:
        """`out`, (n_spans × n_items) float32, filled with the scores."""
        torch.mm(self.users(histories, spans, bias=bias), self.dense.T, out=out)
        for channel, form, gate in self.others:
            form.add_scaled(histories.weights(spans, channel.decay), gate, out)
        return out


def exclude(scores: torch.Tensor, items: sp.csr_matrix) -> torch.Tensor:
    """Set the scores of `items` (same shape, CSR; stored entries count) to -inf, in place."""
    scores[_places(items, scores)] = -torch.inf
    return scores


def only(scores: torch.Tensor, items: sp.csr_matrix) -> torch.Tensor:
    """Set the scores of all but `items` (same shape, CSR; stored entries count) to -inf."""
    places = _places(items, scores)
    kept = scores[places]
    scores.fill_(-torch.inf)[places] = kept
    return scores


def _places(items: sp.csr_matrix, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.repeat(np.arange(items.shape[0]), np.diff(items.indptr))
    columns = items.indices.astype(np.int64)
    return torch.from_numpy(rows).to(scores.device), torch.from_numpy(columns).to(scores.device)
