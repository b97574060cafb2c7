"""Pairs (query, item) with their channels' scores: what a head that predicts is fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Channel
from kgrank.fusion.fusing import scaled_scores
from kgrank.fusion.model import exclude
from kgrank.fusion.queries import Queries

Numbers = npt.NDArray[np.int64]

BLOCK = 4_000_000  # queries × items whose scores are held at a time, for each channel
TOP = 10  # items of each channel that are all taken, and twice as many of the channels' sum
DRAWN = 50  # items of a query that are drawn from the rest


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of a query and an item; a sample of them speaks for all by its weights.

    Attributes:
        queries: (n_pairs) int64, which query.
        items: (n_pairs) int64, item numbers.
        scores: (n_pairs × n_channels) float32, over size(u).
        weights: (n_pairs) float64, how many pairs each stands for.
        leading: (n_pairs) bool: near the top of a channel, or a hit, so that its weight is 1.
    """

    queries: Numbers
    items: Numbers
    scores: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float64]
    leading: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.items)

    def take(self, which: npt.NDArray[np.bool_]) -> Self:
        """The pairs for which `which` (n_pairs) is true."""
        return type(self)(*(getattr(self, column.name)[which] for column in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The pairs of all parts."""
        columns = (column.name for column in fields(cls))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))

    @classmethod
    def sampled(
        cls, channels: Sequence[Channel], queries: Queries, hits: sp.csr_matrix, seed: int
    ) -> Self:
        """All hits, all pairs near the top of a channel, and some of the rest, drawn evenly.

        Args:
            channels: what scores.
            queries: the queries; pairs they exclude are left out.
            hits: (n_queries × n_items) CSR, stored entries count.
            seed: of what is drawn.
        """
        rng = np.random.default_rng(seed)
        found = []
        for rows, block, scores in _blocks(channels, queries):
            allowed = ~exclude(torch.zeros(scores[0].shape), block.excluded).isneginf()
            leading = exclude(torch.zeros(scores[0].shape), hits[rows]).isneginf()
            for ranked, depth in (*((part, TOP) for part in scores), (sum(scores), 2 * TOP)):
                top = torch.where(allowed, ranked, -torch.inf)
                n = min(depth, top.shape[1])
                leading.scatter_(1, top.topk(n, dim=1).indices, True)
            taken = leading.clone()
            drawn = torch.from_numpy(rng.integers(allowed.shape[1], size=(len(rows), DRAWN)))
            taken.scatter_(1, drawn, True)
            leading &= allowed
            taken &= allowed
            certain = leading.sum(1)
            rest = (allowed.sum(1) - certain).double() / (taken.sum(1) - certain).clamp(min=1)
            query, item = torch.nonzero(taken, as_tuple=True)
            surely = leading[query, item]
            weights = torch.where(surely, 1.0, rest[query])
            found.append(cls._of(rows, query, item, scores, weights, surely))
        return cls.joined(found)

    @classmethod
    def at(cls, channels: Sequence[Channel], queries: Queries, entries: sp.csr_matrix) -> Self:
        """The pairs that `entries`, (n_queries × n_items) CSR, stores, in its order."""
        found = []
        for rows, _, scores in _blocks(channels, queries):
            part = entries[rows]
            query = torch.from_numpy(np.repeat(np.arange(len(rows)), np.diff(part.indptr)))
            item = torch.from_numpy(part.indices.astype(np.int64))
            ones = torch.ones(len(item), dtype=torch.float64)
            found.append(cls._of(rows, query, item, scores, ones, ones > 0.0))
        return cls.joined(found)

    @classmethod
    def _of(
        cls,
        rows: Numbers,
        query: torch.Tensor,
        item: torch.Tensor,
        scores: Sequence[torch.Tensor],
        weights: torch.Tensor,
        leading: torch.Tensor,
    ) -> Self:
        of_channels = torch.stack([part[query, item] for part in scores], dim=1)
        parts = (of_channels, weights, leading)
        return cls(rows[query.numpy()], item.numpy(), *(part.numpy() for part in parts))


def _blocks(
    channels: Sequence[Channel], queries: Queries
) -> Iterator[tuple[Numbers, Queries, list[torch.Tensor]]]:
    """Some queries after the other, with the scores of all items."""
    step = max(1, BLOCK // queries.histories.n_items)
    for start in range(0, len(queries), step):
        rows = np.arange(start, min(start + step, len(queries)))
        block = queries.take(rows)
        yield rows, block, [scaled_scores(channel, block) for channel in channels]
