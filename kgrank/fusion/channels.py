"""Channels: ways in which a history speaks for an item, each linear in the history's events.

A channel scores s(u, i) = Σ_h w(h) · v(h, i) / size(u): w is the decay of event h, v what one event
on h's item says of item i, and size(u) the root mean square of the user's scores over all items,
which puts channels and users on one scale. Every score splits exactly over the events that made it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.folding import row_entries, row_products, size_of_products, size_of_rows
from kgrank.fusion.history import Decay
from kgrank.fusion.local_ridge import Rows
from kgrank.fusion.products import add_scaled, multiply
from kgrank.kg.entities import EntityVectors

Floats = npt.NDArray[np.float32]


class _Sparse(ABC):
    """Scores that are a product of two sparse matrices."""

    @abstractmethod
    def _factors(self, history: sp.csr_matrix) -> tuple[sp.csr_matrix, Rows]:
        """A CSR matrix and the rows of another, whose product is the scores (n × n_items)."""

    def scores(self, history: sp.csr_matrix) -> torch.Tensor:
        """Σ_h w(h) · v(h, i), (n × n_items) float32."""
        out = np.zeros(history.shape, np.float32)
        multiply(*self._factors(history), out)
        return torch.from_numpy(out)

    def scaled(self, history: sp.csr_matrix) -> tuple[torch.Tensor, Floats]:
        """The scores, (n × n_items) float32, over their sizes; and the sizes, (n) float32."""
        scores = self.scores(history)
        size = sizes(scores)
        return scores.div_(size), size[:, 0].numpy()

    @abstractmethod
    def of_targets(
        self, items: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]
    ) -> Floats:
        """v(h, i) of each item h and target i, each target once, (n_targets × n_events) float32."""

    def of_events(self, items: npt.NDArray[np.integer], target: int) -> Floats:
        """v(h, target) of each item h, (n_events) float32."""
        of_target: Floats = self.of_targets(items, np.array([target]))[0]
        return of_target

    @abstractmethod
    def size(self, items: npt.NDArray[np.integer], weights: Floats) -> float:
        """The size of one history's scores: of events on (n) items that weigh (n) float32."""

    def add_scaled(self, history: sp.csr_matrix, gate: Floats, out: torch.Tensor) -> None:
        """Add the scores over their sizes, times the gate (n_items), to `out` (n × n_items)."""
        if out.device.type == "cpu":
            add_scaled(*self._factors(history), gate, out.numpy())
        else:
            rows = self.scaled(history)[0].to(out.device)
            out.addcmul_(rows, torch.from_numpy(gate).to(out.device))


@dataclass(frozen=True, eq=False)
class ItemItem(_Sparse):
    """v(h, i) = B[h, i] with sparse weights B, (n_items × n_items) float32 CSR."""

    weights: sp.csr_matrix

    def _factors(self, history: sp.csr_matrix) -> tuple[sp.csr_matrix, Rows]:
        return history, self._rows

    def of_targets(
        self, items: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]
    ) -> Floats:
        """See `_Sparse`."""
        return row_entries(self._rows, np.asarray(items, np.int32), np.asarray(targets, np.int32))

    def size(self, items: npt.NDArray[np.integer], weights: Floats) -> float:
        """See `_Sparse`."""
        n_items = self.weights.shape[1]
        return size_of_rows(self._rows, np.asarray(items, np.int32), weights, n_items)

    @cached_property
    def _rows(self) -> Rows:
        return Rows.of(self.weights)


@dataclass(frozen=True, eq=False)
class SparseFeatures(_Sparse):
    """v(h, i) = ⟨F[h], F[i]⟩: words or entities, (n_items × n_features) CSR, rows of length 1."""

    values: sp.csr_matrix

    def _factors(self, history: sp.csr_matrix) -> tuple[sp.csr_matrix, Rows]:
        return history @ self.values, self._turned

    @cached_property
    def _turned(self) -> Rows:
        return Rows.of(self.values.T.tocsr())

    def of_targets(
        self, items: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]
    ) -> Floats:
        """See `_Sparse`."""
        events, wanted = np.asarray(items, np.int32), np.asarray(targets, np.int32)
        return row_products(self._rows, events, wanted)

    def size(self, items: npt.NDArray[np.integer], weights: Floats) -> float:
        """See `_Sparse`."""
        events = np.asarray(items, np.int32)
        return size_of_products(self._rows, self._turned, events, weights)

    @cached_property
    def _rows(self) -> Rows:
        return Rows.of(self.values)


@dataclass(frozen=True, eq=False)
class DenseFeatures:
    """v(h, i) = ⟨S[h], V[i]⟩: an encoder's vectors, (n_items × dim) float32 on any device.

    Attributes:
        values: V, what an item is as a product to be ranked.
        sources: S, what it is in a history; None where that is the same.
        entities: what the graph's entities are beside the items; no score needs them.
        lengths: (2 × n_items) float32, of the rows of S and V before they were brought to length
            1, where they are sums that entities' vectors are parts of; no score needs them.
    """

    values: torch.Tensor
    sources: torch.Tensor | None = None
    entities: EntityVectors | None = None
    lengths: Floats | None = None

    @property
    def of_history(self) -> torch.Tensor:
        """S, (n_items × dim)."""
        return self.values if self.sources is None else self.sources

    def scores(self, history: sp.csr_matrix) -> torch.Tensor:
        """Σ_h w(h) · v(h, i), (n × n_items) float32 on the vectors' device."""
        return self._users(history) @ self.values.T

    def scaled(self, history: sp.csr_matrix) -> tuple[torch.Tensor, Floats]:
        """Vectors u, (n × dim) float32 on the device, over their sizes; and the sizes, (n) float32.

        ‖V u‖² = uᵀ (Vᵀ V) u needs no score of any item.
        """
        users = self._users(history)
        size = self._sizes(users)
        return users / size.float()[:, None], np.asarray(size.cpu(), np.float32)

    def size(self, items: npt.NDArray[np.integer], weights: Floats) -> float:
        """The size of one history's scores: of events on (n) items that weigh (n) float32."""
        user = (weights @ _taken(self.of_history, items)).astype(np.float64)
        squares = float(user @ self._gram_here @ user)
        return math.sqrt(squares / len(self.values)) if squares > 0.0 else 1.0

    @cached_property
    def _gram_here(self) -> npt.NDArray[np.float64]:
        return self._gram.cpu().numpy()

    def _sizes(self, users: torch.Tensor) -> torch.Tensor:
        squares = ((users.double() @ self._gram) * users).sum(1).clamp(min=0.0)
        return _nonzero(torch.sqrt(squares / len(self.values)))

    @cached_property
    def _gram(self) -> torch.Tensor:
        """Vᵀ V, (dim × dim) float64: in float32 a short u along a weak direction would be lost."""
        dim = self.values.shape[1]
        gram = torch.zeros(dim, dim, dtype=torch.float64, device=self.values.device)
        for start in range(0, len(self.values), 8_192):
            block = self.values[start : start + 8_192].double()
            gram.addmm_(block.T, block)
        return gram

    def _users(self, history: sp.csr_matrix) -> torch.Tensor:
        device = self.values.device
        return torch.nn.functional.embedding_bag(
            torch.from_numpy(history.indices.astype(np.int64)).to(device),
            self.of_history,
            torch.from_numpy(history.indptr[:-1].astype(np.int64)).to(device),
            mode="sum",
            per_sample_weights=torch.from_numpy(history.data).to(device),
        )

    def of_events(self, items: npt.NDArray[np.integer], target: int) -> Floats:
        """v(h, target) of each item h, (n_events) float32."""
        of_target: Floats = self.of_targets(items, np.array([target]))[0]
        return of_target

    def of_targets(
        self, items: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]
    ) -> Floats:
        """v(h, i) of each item h and target i, (n_targets × n_events) float32."""
        sources = _taken(self.of_history, items)
        # one at a time: a product of matrices may round otherwise for one target than for many
        said = [sources @ target for target in _taken(self.values, targets)]
        return np.stack(said) if said else np.empty((0, len(sources)), np.float32)


def _taken(vectors: torch.Tensor, items: npt.NDArray[np.integer]) -> Floats:
    """The vectors of some items; of a few, torch's calls would cost more than the work."""
    if vectors.device.type == "cpu":
        return np.asarray(vectors.numpy()[items], np.float32)
    places = torch.from_numpy(np.asarray(items, np.int64)).to(vectors.device)
    return np.asarray(vectors[places].cpu(), np.float32)


Form = ItemItem | SparseFeatures | DenseFeatures


@dataclass(frozen=True, eq=False)
class Channel:
    """A named way to score, with the decay its histories are weighted by."""

    name: str
    decay: Decay
    form: Form

    def to(self, device: str) -> Channel:
        """The same channel with its dense part on `device`."""
        if isinstance(self.form, DenseFeatures):
            form, sources = self.form, self.form.sources
            moved = None if sources is None else sources.to(device)
            form = replace(form, values=form.values.to(device), sources=moved)
            return replace(self, form=form)
        return self


def sizes(scores: torch.Tensor) -> torch.Tensor:
    """Root mean square of each row, (n × 1) float32; 1 where a row is all zero."""
    return _nonzero(torch.linalg.vector_norm(scores, dim=1, keepdim=True) / scores.shape[1] ** 0.5)


def _nonzero(size: torch.Tensor) -> torch.Tensor:
    return torch.where(size > 0.0, size, torch.ones_like(size))
