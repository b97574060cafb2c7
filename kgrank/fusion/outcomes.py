"""What followed on what was known: hits and ratings, to fit heads on and to judge them by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.history import DAY, Histories
from kgrank.fusion.model import Head
from kgrank.fusion.prediction import SHRINK, Bounded, Lists
from kgrank.fusion.queries import Queries

Doubles = npt.NDArray[np.float64]


def task_queries(known: Histories, lists: Lists) -> Queries:
    """One query for each user with a history, whatever follows; nothing is relevant yet."""
    users = np.flatnonzero(np.diff(known.starts))
    met = known.binary()[users]
    nothing = sp.csr_matrix(met.shape, dtype=np.float32)
    excluded = met if lists == "new" else nothing
    return Queries(known, known.of_users(users), users, nothing, excluded)


def outcomes_of(
    task: Head,
    later: Histories,
    kinds: Sequence[str],
    queries: Queries,
    given: Sequence[str] = (),
) -> sp.csr_matrix:
    """What followed, (n_queries × n_items) CSR: 1 for a hit, or the value of the last rating.

    Of a conversion all pairs are stored that had an event of the kinds `given`: 1 if one of the
    `kinds` came after it, and else 0.
    """
    if task == "conversion":
        users, items, hit = followed(later, given, kinds)
        shape = (later.n_users, later.n_items)
        known = sp.csr_matrix((1.0 + hit, (users, items)), shape)[queries.users]
        known = (known - known.multiply(queries.excluded)).tocsr()
        known.eliminate_zeros()
        known.data -= 1.0
        return known
    if task != "rating":
        hits = later.where(later.of_kinds(kinds)).binary()[queries.users]
        hits = (hits - hits.multiply(queries.excluded)).tocsr()
        hits.eliminate_zeros()
        return hits
    rows = ratings(later, kinds)[::-1]  # the last first
    users = later.users()[rows]
    _, last = np.unique(users * later.n_items + later.items[rows], return_index=True)
    rows, users = rows[last], users[last]
    values = np.zeros(0) if later.values is None else later.values[rows]
    shape = (later.n_users, later.n_items)
    return sp.csr_matrix((values, (users, later.items[rows])), shape)[queries.users]


def ratings(histories: Histories, kinds: Sequence[str]) -> npt.NDArray[np.int64]:
    """The numbers of the events of these kinds that have a value."""
    if histories.values is None:
        return np.zeros(0, np.int64)
    return np.flatnonzero(histories.of_kinds(kinds) & np.isfinite(histories.values))


def window(known: Histories, later: Histories) -> float | None:
    """Days from the newest known event to the newest later one; None if not all are later."""
    if not len(later.times) or not (later.times >= known.newest).all():
        return None
    return (later.newest - known.newest) / DAY


def followed(
    histories: Histories, first: Sequence[str], then: Sequence[str]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The pairs of a user and an item with an event of the kinds `first`.

    Returns:
        users and items, (n_pairs) int64 each, and whether an event of the kinds `then` came after
        the pair's first one, (n_pairs) bool.
    """
    cells = histories.users() * histories.n_items + histories.items
    opening = np.flatnonzero(histories.of_kinds(first))
    pairs, earliest = np.unique(cells[opening], return_index=True)
    later = np.flatnonzero(histories.of_kinds(then))
    later = later[np.isin(cells[later], pairs)]
    latest = np.full(len(pairs), -1)
    np.maximum.at(latest, np.searchsorted(pairs, cells[later]), later)
    hit = latest > opening[earliest]
    return pairs // histories.n_items, pairs % histories.n_items, hit


def event_shares(histories: Histories, kinds: Sequence[str], given: Sequence[str] = ()) -> Doubles:
    """How often an item meets such events, as a logarithm, (n_items) float64.

    log(users with such an event on the item + ½), 0 for the mean item. With kinds that are `given`,
    log of the share of the users with one of those who went on to one of `kinds`, over that of all
    items: 0 for an item without any. The share counts SHRINK more users who did as all do.
    """
    if given:
        _, items, hit = followed(histories, given, kinds)
        if not hit.any():
            return np.zeros(histories.n_items)
        share = hit.mean()
        users, hits = (np.bincount(items, of, histories.n_items) for of in (None, hit))
        return np.asarray(np.log((hits + SHRINK * share) / (users + SHRINK) / share))
    users = np.asarray(histories.where(histories.of_kinds(kinds)).binary().sum(axis=0)).ravel()
    logs = np.log(users + 0.5)
    return np.asarray(logs - logs.mean())


@dataclass(frozen=True, eq=False)
class MeanRatings:
    """What ratings are on average; an item or user without any gets the mean of all.

    Attributes:
        mean: of all ratings; 0 without any.
        of_items: (n_items) float64.
        of_users: (n_users) float64.
    """

    mean: float
    of_items: Doubles
    of_users: Doubles

    @classmethod
    def of(cls, histories: Histories, kinds: Sequence[str], *, shrink: float = 0.0) -> MeanRatings:
        """The means of the events of these kinds that have a value.

        Args:
            histories: the events.
            kinds: kinds of events that rate.
            shrink: so many ratings at the mean of all are added to each item's and user's own.
        """
        rows = ratings(histories, kinds)
        if histories.values is None or not len(rows):
            return cls(0.0, np.zeros(histories.n_items), np.zeros(histories.n_users))
        values = histories.values[rows]
        mean = float(values.mean())

        def means(of: npt.NDArray[np.integer], n: int) -> Doubles:
            total = np.bincount(of, values - mean, n)
            count = np.maximum(np.bincount(of, minlength=n) + shrink, 1e-9)
            return np.asarray(mean + total / count)

        of_items = means(histories.items[rows], histories.n_items)
        return cls(mean, of_items, means(histories.users()[rows], histories.n_users))

    def guesses(
        self, users: npt.NDArray[np.integer], items: npt.NDArray[np.integer], link: Bounded
    ) -> dict[str, Doubles]:
        """What is said of pairs without any learning; each (n_pairs) float64 on the scale."""
        both = self.of_items[items] + self.of_users[users] - self.mean
        return {
            "global_mean": np.full(len(items), self.mean),
            "item_and_user_means": link(both),
        }


def rating_errors(guesses: Doubles, values: Doubles) -> dict[str, float]:
    """Root of the mean square, and mean absolute error."""
    gaps = guesses - values
    return {"rmse": float(np.sqrt(np.mean(gaps**2))), "mae": float(np.abs(gaps).mean())}
