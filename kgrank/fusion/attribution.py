"""Whose doing a weight is: item–item weights and shared facts split over co-users and entities.

Column i of a ridge B solves its normal equations. For every item h it spans, with rows z of users
(or steps) and side rows of shared entities and words (`kgrank.fusion.item_item`),

    Λ_h · B[h, i] = Σ_rows z[row, h] · (y[row, i] − Σ_j z[row, j] · B[j, i])

y = z for EASE; for SLIT z is what came before a step and y the step. So each row pulls the weight
by what the others leave unsaid of it. Rows that hold both h and i pull up: they are ways through
the graph, from h over a user or an entity to i. Rows that hold h without i pull down, and are ways
to nothing. What pulls down is set off against what pulls up in proportion: with P the sum of all
that pulls up (over Λ_h), a row that pulls p > 0 is given

    share = B[h, i] · p / max(P, B[h, i])        where B[h, i] > 0, else 0

The sum over rows with a way is at most B[h, i]; what is left of it has no way: shared words, the
user's own rows, weights at or below 0, and where P < B[h, i] what cutting B to its largest entries
took away. Raw pulls as shares would be exact too, but carry more than the weight (by
an eighth to a quarter in the sample shop), with a negative remainder that no path explains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.evidence import Evidence, Steps
from kgrank.fusion.history import Histories
from kgrank.fusion.item_item import Ridge, side_columns
from kgrank.fusion.local_ridge import Floats, Ints, Rows
from kgrank.fusion.ways import Ways, came_before, met_both, shared, shares


class Shares(NamedTuple):
    """What of v(h, i) went over users, and what over entities."""

    users: Ways
    entities: Ways


@dataclass(frozen=True, eq=False)
class SharedFacts:
    """v(h, i) or a part of it as Σ_e left[h, e] · right[i, e].

    Attributes:
        left, right: the rows of (n_items × n_columns) float32 CSR matrices, entries >= 0.
    """

    left: Rows
    right: Rows

    @classmethod
    def of(cls, left: sp.csr_matrix, right: sp.csr_matrix) -> SharedFacts:
        """Of two CSR matrices of the same shape."""
        return cls(Rows.of(left), Rows.of(right))

    def shares(self, items: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> Ways:
        """The ways from each of `items` (n) to each of `targets`; from an item to itself is none.

        Args:
            items: (n) item numbers.
            targets: (n_targets) item numbers.
        """
        wanted, goals = np.asarray(items, np.int32), np.asarray(targets, np.int32)
        return Ways(*shared(wanted, goals, self.left, self.right))


@dataclass(frozen=True, eq=False)
class Regression:
    """Item–item weights beside the rows that they were fitted on.

    Attributes:
        weights: the columns of B, (n_items × n_items).
        penalty: (n_items) float32, Λ's diagonal.
        histories: the events that the fit saw.
        steps: what its rows hold; None for EASE.
        entities: side rows of shared entities by item, times the root of their weight.
        words: the same of shared words.
    """

    weights: Rows
    penalty: Floats
    histories: Histories
    steps: Steps | None
    entities: Rows
    words: Rows

    @classmethod
    def of(
        cls, evidence: Evidence, ridge: Ridge, steps: Steps | None, weights: sp.csr_matrix
    ) -> Regression:
        """The regression that gave these weights.

        Args:
            evidence: what the fit saw.
            ridge: its penalties and side rows.
            steps: what its rows hold; None for EASE.
            weights: (n_items × n_items) CSR.
        """
        histories, features = evidence.recent(), evidence.features
        sides = [
            _side(features.entities, ridge.entities),
            _side(features.words, ridge.words),
        ]
        penalty = np.full(histories.n_items, ridge.penalty, np.float32)
        if ridge.dropout:
            inputs = histories.binary() if steps is None else evidence.steps(steps)[0]
            diagonal = sum(
                np.asarray(rows.multiply(rows).sum(axis=axis)).ravel()
                for rows, axis in ((inputs, 0), (sides[0], 1), (sides[1], 1))
            )
            penalty += np.asarray(ridge.dropout * diagonal, np.float32)
        return cls(
            weights=Rows.of(weights.tocsc()),
            penalty=penalty,
            histories=histories,
            steps=steps,
            entities=Rows.of(sides[0]),
            words=Rows.of(sides[1]),
        )

    def shares(
        self, items: npt.NDArray[np.integer], targets: npt.NDArray[np.integer], user: int
    ) -> Shares:
        """v(h, i) of each history item and target, as far as it went over users and entities.

        Args:
            items: (n) item numbers, each once.
            targets: (n_targets) item numbers.
            user: whose history it is (-1: nobody's); the user's own rows are no way.
        """
        wanted, goals = np.asarray(items, np.int32), np.asarray(targets, np.int32)
        if self.steps is None:
            of_users = met_both(wanted, goals, self.weights, self._users_of, self._items_of)
        else:
            of_users = came_before(
                wanted,
                goals,
                self.weights,
                self._events_of,
                self._user_of,
                self.histories.starts,
                self.histories.items,
                self.steps.ages,
                self.steps.places,
            )
        users, entities = shares(
            wanted,
            goals,
            user,
            self.weights,
            self.penalty,
            self.entities,
            self.words,
            of_users,
        )
        return Shares(Ways(*users), Ways(*entities))

    @cached_property
    def _items_of(self) -> Rows:
        return Rows.of(self.histories.binary())

    @cached_property
    def _users_of(self) -> Rows:
        return Rows.of(self.histories.binary().tocsc())

    @cached_property
    def _events_of(self) -> Rows:
        """The events of each item that are a step, in order; values mean nothing."""
        histories = self.histories
        order = np.argsort(histories.items, kind="stable")
        order = order[order > histories.starts[self._user_of[order]]]
        starts = np.searchsorted(histories.items[order], np.arange(histories.n_items + 1))
        return Rows(starts.astype(np.int64), order.astype(np.int32), np.empty(0, np.float32))

    @cached_property
    def _user_of(self) -> Ints:
        return self.histories.users().astype(np.int32)


def _side(features: sp.csr_matrix, weight: float) -> sp.csr_matrix:
    """Side rows by item as the fit has them; the columns keep their numbers."""
    scaled = sp.csr_matrix(features, dtype=np.float32, copy=True)
    scaled.data *= np.float32(np.sqrt(weight))
    columns = side_columns(features)
    if not isinstance(columns, slice):
        kept = np.zeros(features.shape[1], bool)
        kept[columns] = True
        scaled.data[~kept[scaled.indices]] = 0.0
    scaled.eliminate_zeros()
    return scaled
