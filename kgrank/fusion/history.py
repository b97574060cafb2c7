"""What each user did, in order, and the weights that turn a history into a vector.

A user is never a parameter: it is the weighted sum of its events, so a visitor nobody has seen,
one event more or an erased user need no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

DAY = 86_400.0  # seconds
REFUSED = "not_interested"
"""The kind of event that speaks against its product, and against what is like it."""


@dataclass(frozen=True)
class Decay:
    """How much an event counts; one of the kind REFUSED counts against, by as much.

    kind × (1 + age)^-power × 2^(-age / span) × 2^(-days / half_life) × ages[age] × gaps[gap]

    Attributes:
        power: exponent on the age in events (0 = age does not count).
        span: events after which an event counts half; infinite = it does not fade so.
        half_life: days after which an event counts half; infinite = it does not fade so.
        kinds: weight of each kind of event; a kind that is not named weighs 1.
        ages: weight by the age in events, newest first; beyond it 0. None = 1 for all.
        gaps: weight by ⌊log2(1 + seconds before the newest event)⌋, the last for all beyond; the
            first without times. None = 1 for all.
    """

    power: float = 0.0
    span: float = float("inf")
    half_life: float = float("inf")
    kinds: Mapping[str, float] | None = None
    ages: tuple[float, ...] | None = None
    gaps: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Histories:
    """All users' events, one user after the other, each in order of time.

    Attributes:
        starts: (n_users + 1) int64; the events of user u are starts[u]:starts[u + 1].
        items: (n_events) int32, item numbers.
        kinds: (n_events) int16, numbers into `kind_names`.
        times: (n_events) float64 seconds UTC; NaN where the source has no time.
        kind_names: the kinds of events, sorted.
        n_items: how many items there are to be numbered.
        values: (n_events) float64, a rating or quantity, NaN where an event has none; None where
            no event has one.
    """

    starts: npt.NDArray[np.int64]
    items: npt.NDArray[np.int32]
    kinds: npt.NDArray[np.int16]
    times: npt.NDArray[np.float64]
    kind_names: tuple[str, ...]
    n_items: int
    values: npt.NDArray[np.float64] | None = None

    @classmethod
    def from_arrays(
        cls,
        users: npt.NDArray[np.integer],
        items: npt.NDArray[np.integer],
        kinds: npt.NDArray[np.integer],
        times: npt.NDArray[np.float64],
        *,
        kind_names: tuple[str, ...],
        n_users: int,
        n_items: int,
        values: npt.NDArray[np.float64] | None = None,
    ) -> Histories:
        """Group events by user. Events of one user must already stand in order of time."""
        order = np.argsort(users, kind="stable")
        starts = np.zeros(n_users + 1, np.int64)
        np.cumsum(np.bincount(users, minlength=n_users), out=starts[1:])
        return cls(
            starts=starts,
            items=items[order].astype(np.int32),
            kinds=kinds[order].astype(np.int16),
            times=times[order].astype(np.float64),
            kind_names=kind_names,
            n_items=n_items,
            values=None if values is None else values[order].astype(np.float64),
        )

    @property
    def n_users(self) -> int:
        """How many users there are, with or without events."""
        return len(self.starts) - 1

    def users(self) -> npt.NDArray[np.int64]:
        """The user number of every event, (n_events) int64."""
        return np.repeat(np.arange(self.n_users), np.diff(self.starts))

    @cached_property
    def newest(self) -> float:
        """The time of the newest event of all; NaN where there are no times."""
        timed = self.times[np.isfinite(self.times)]
        return float(timed.max()) if len(timed) else float("nan")

    def of_kinds(self, kinds: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether each event is of one of the kinds, (n_events) bool."""
        return np.isin(self.kind_names, kinds)[self.kinds]

    def where(self, keep: npt.NDArray[np.bool_]) -> Histories:
        """The histories of the events for which `keep` (n_events) is true."""
        return Histories.from_arrays(
            self.users()[keep],
            self.items[keep],
            self.kinds[keep],
            self.times[keep],
            kind_names=self.kind_names,
            n_users=self.n_users,
            n_items=self.n_items,
            values=None if self.values is None else self.values[keep],
        )

    def of_items(self, items: npt.NDArray[np.integer]) -> Histories:
        """The events on some of the items only, which are numbered anew in the order given."""
        place = np.full(self.n_items, -1, np.int64)
        place[items] = np.arange(len(items))
        kept = self.where(place[self.items] >= 0)
        return replace(kept, items=place[kept.items].astype(np.int32), n_items=len(items))

    def binary(self) -> sp.csr_matrix:
        """User × item, 1 where the user has any event on the item; float32 CSR."""
        ones = np.ones(len(self.items), np.float32)
        matrix = sp.csr_matrix(
            (ones, self.items, self.starts), (self.n_users, self.n_items), copy=True
        )
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix

    def by_kind(self) -> dict[str, sp.csr_matrix]:
        """Kind of event → (n_users × n_items) float32 CSR: how often (if ever)."""
        shape, users, found = (self.n_users, self.n_items), self.users(), {}
        for number, kind in enumerate(self.kind_names):
            of_kind = self.kinds == number
            ones = np.ones(int(of_kind.sum()), np.float32)
            if len(ones):
                found[kind] = sp.csr_matrix((ones, (users[of_kind], self.items[of_kind])), shape)
        return found

    def of_users(self, users: npt.NDArray[np.integer]) -> Spans:
        """The whole history of each of `users`."""
        return Spans(self.starts[users], self.starts[np.asarray(users) + 1])

    def weights(self, spans: Spans, decay: Decay) -> sp.csr_matrix:
        """History weights, (n_spans × n_items) float32 CSR; an item met twice adds up."""
        return self.matrix(spans, *self.event_weights(spans, decay))

    def matrix(
        self, spans: Spans, flat: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]
    ) -> sp.csr_matrix:
        """What `event_weights` gave as (n_spans × n_items) float32 CSR."""
        entries = (weights.copy(), self.items[flat], spans.starts())
        matrix = sp.csr_matrix(entries, (len(spans), self.n_items))
        matrix.sum_duplicates()
        return matrix

    def event_weights(
        self, spans: Spans, decay: Decay
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Event numbers of all spans one after the other, and the weight of each (float32)."""
        span, flat = spans.events()
        weights = np.ones(len(flat), np.float64)
        age = spans.last[span] - 1 - flat
        if decay.power:
            weights *= (1.0 + age) ** -decay.power
        if np.isfinite(decay.span):
            weights *= np.exp2(-age / decay.span)
        if decay.ages is not None:
            weights *= np.array([*decay.ages, 0.0])[np.minimum(age, len(decay.ages))]
        newest = np.maximum(spans.last - 1, 0)[span]
        if np.isfinite(decay.half_life):
            days = (self.times[newest] - self.times[flat]) / DAY
            weights *= np.exp2(-np.nan_to_num(days) / decay.half_life)
        if decay.gaps is not None:
            gaps = self.gaps(newest, flat)
            weights *= np.array(decay.gaps)[np.minimum(gaps, len(decay.gaps) - 1)]
        if decay.kinds:
            of_kind = np.array([decay.kinds.get(kind, 1.0) for kind in self.kind_names])
            weights *= of_kind[self.kinds[flat]]
        if REFUSED in self.kind_names:
            weights[self.kinds[flat] == self.kind_names.index(REFUSED)] *= -1.0
        return flat, weights.astype(np.float32)

    def gaps(
        self, newest: npt.NDArray[np.integer], events: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int64]:
        """⌊log2(1 + seconds from an event to the newest one)⌋, int64; 0 without times.

        Args:
            newest, events: event numbers, of shapes that go together.
        """
        seconds = np.nan_to_num(self.times[newest] - self.times[events])
        return np.asarray(np.log2(1.0 + np.maximum(seconds, 0.0)), np.int64)


@dataclass(frozen=True, eq=False)
class Spans:
    """Stretches of `Histories`: the events first[q]:last[q] are the history of query q.

    Attributes:
        first: (n_spans) int64.
        last: (n_spans) int64, exclusive.
    """

    first: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, which: slice | npt.NDArray[np.integer]) -> Spans:
        return Spans(self.first[which], self.last[which])

    def starts(self) -> npt.NDArray[np.int64]:
        """Where the events of each span begin among those of all, (n_spans + 1) int64."""
        return np.concatenate([[0], np.cumsum(self.last - self.first)])

    def events(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The span and the number of every event, span after span, (n_events) int64 each."""
        starts = self.starts()
        span = np.repeat(np.arange(len(self)), np.diff(starts))
        return span, np.arange(starts[-1]) + (self.first - starts[:-1])[span]
