"""Queries: a history to rank from, and what turned out to be relevant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.history import Decay, Histories, Spans

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Queries:
    """What to rank for, against what.

    Attributes:
        histories: where the events are.
        spans: (n_queries) stretches of `histories`, the events known at the moment of the query.
        users: (n_queries) int64 user numbers.
        relevant: (n_queries × n_items) float32 CSR of ones.
        excluded: (n_queries × n_items) float32 CSR of ones: items that may not be listed.
    """

    histories: Histories
    spans: Spans
    users: Numbers
    relevant: sp.csr_matrix
    excluded: sp.csr_matrix

    def __len__(self) -> int:
        return len(self.users)

    def take(self, which: npt.NDArray[np.integer]) -> Queries:
        """Some of the queries, by position."""
        return Queries(
            self.histories,
            self.spans[which],
            self.users[which],
            self.relevant[which],
            self.excluded[which],
        )

    def sample(self, n: int, seed: int) -> Queries:
        """At most n of the queries, drawn without replacement, in their order."""
        if len(self) <= n:
            return self
        chosen = np.random.default_rng(seed).choice(len(self), n, replace=False)
        return self.take(np.sort(chosen))

    def answerable(self) -> Queries:
        """The queries with something relevant."""
        return self.take(np.flatnonzero(np.diff(self.relevant.indptr) > 0))


def user_queries(histories: Histories, held_out: Histories, known: Histories) -> Queries:
    """One query a user with held-out rows: protocol `user`.

    Args:
        histories: what lists are made from.
        held_out: the rows of the split that is tested; what is in there is relevant.
        known: rows that are not recommended again (`histories`, or more than that).
    """
    users = np.flatnonzero(np.diff(held_out.starts))
    return Queries(
        histories,
        histories.of_users(users),
        users,
        held_out.binary()[users],
        known.binary()[users],
    )


def next_queries(histories: Histories, rows: Numbers) -> Queries:
    """Every one of the given events is a query, what came before it its history: protocol `next`.

    Events at the same time are not before. The event's own item may be listed though the user has
    met it.

    Args:
        histories: all events, those of the tested split included.
        rows: (n_queries) event numbers.
    """
    users = histories.users()[rows]
    first = histories.starts[users]
    spans = Spans(first, _first_at_same_time(histories, rows, first))
    ones = np.ones(len(rows), np.float32)
    shape = (len(rows), histories.n_items)
    starts = np.arange(len(rows) + 1)
    relevant = sp.csr_matrix((ones, histories.items[rows], starts), shape)
    met = _met(histories, spans)
    excluded = (met - met.multiply(relevant)).tocsr()
    excluded.eliminate_zeros()
    return Queries(histories, spans, users, relevant, excluded)


def later_queries(histories: Histories, rows: Numbers, *, per_user: int) -> Queries:
    """Moments of the users' held-out time: all before is history, all from there on is relevant.

    A moment is never inside a basket: events at the same time are all before it or all after.

    Args:
        histories: all events up to and including the tested split.
        rows: (n) ascending event numbers of the tested split.
        per_user: at most so many moments a user, evenly spread.
    """
    users = histories.users()[rows]
    order = np.arange(len(rows))
    is_first = np.r_[True, users[1:] != users[:-1]]
    group = np.cumsum(is_first) - 1
    group_starts = np.flatnonzero(is_first)
    group_ends = np.r_[group_starts[1:], len(rows)]
    sizes = (group_ends - group_starts)[group]
    step = -(-sizes // per_user)
    taken = order[(order - group_starts[group]) % step == 0]
    first = rows[group_starts[group[taken]]]
    taken = np.unique(np.searchsorted(rows, _first_at_same_time(histories, rows[taken], first)))
    lengths = group_ends[group[taken]] - taken
    starts = np.r_[0, np.cumsum(lengths)]
    flat = np.arange(starts[-1]) + np.repeat(taken - starts[:-1], lengths)
    spans = Spans(histories.starts[users[taken]], rows[taken])
    relevant = sp.csr_matrix(
        (np.ones(len(flat), np.float32), histories.items[rows[flat]], starts),
        (len(taken), histories.n_items),
    )
    relevant.sum_duplicates()
    relevant.data[:] = 1.0
    return Queries(histories, spans, users[taken], relevant, _met(histories, spans))


def new_only(queries: Queries) -> Queries:
    """The queries with only those relevant items that the user has not met before."""
    fresh = (queries.relevant - queries.relevant.multiply(queries.excluded)).tocsr()
    fresh.eliminate_zeros()
    kept = Queries(queries.histories, queries.spans, queries.users, fresh, queries.excluded)
    return kept.answerable()


def all_allowed(queries: Queries) -> Queries:
    """The same queries with nothing excluded."""
    nothing = sp.csr_matrix(queries.excluded.shape, dtype=np.float32)
    return Queries(queries.histories, queries.spans, queries.users, queries.relevant, nothing)


def _first_at_same_time(histories: Histories, rows: Numbers, first: Numbers) -> Numbers:
    """The first event from `first` on at the time of `rows`; `rows` where there are no times."""
    found = rows.copy()
    while True:
        before = np.maximum(found - 1, 0)
        tied = (found > first) & (histories.times[before] == histories.times[rows])
        if not tied.any():
            return found
        found[tied] -= 1


def only_items(relevant: sp.csr_matrix, kept: npt.NDArray[np.bool_]) -> sp.csr_matrix:
    """The entries of those columns for which `kept` (n_items) is true; same shape."""
    entries = relevant.tocoo()
    of = kept[entries.col]
    return sp.csr_matrix((entries.data[of], (entries.row[of], entries.col[of])), relevant.shape)


def _met(histories: Histories, spans: Spans) -> sp.csr_matrix:
    """Which items each history holds, (n_spans × n_items) ones."""
    met = histories.weights(spans, Decay())
    met.data[:] = 1.0
    return met
