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

from kgrank.compiled import compiled
from kgrank.fusion.evidence import Evidence, Steps
from kgrank.fusion.history import Histories
from kgrank.fusion.item_item import Ridge, side_columns
from kgrank.fusion.local_ridge import Floats, Ints, Longs, Rows

Doubles = npt.NDArray[np.float64]


class Ways(NamedTuple):
    """Ways from items of a history to one item, over one node each.

    Attributes:
        places: (n) int32, which item of the history.
        middles: (n) int32, which user or column of features; may come several times a place.
        parts: (n) float64 > 0, the part of v(h, i) that the way carries.
    """

    places: Ints
    middles: Ints
    parts: Doubles


class Shares(NamedTuple):
    """What of v(h, i) went over users, and what over entities."""

    users: Ways
    entities: Ways


@dataclass(frozen=True, eq=False)
class SharedFacts:
    """v(h, i) or a part of it as Σ_e left[h, e] · right[i, e].

    Attributes:
        left, right: the rows of (n_items × n_columns) float32 CSR matrices, entries >= 0.
        n_columns: how many there are.
    """

    left: Rows
    right: Rows
    n_columns: int

    @classmethod
    def of(cls, left: sp.csr_matrix, right: sp.csr_matrix) -> SharedFacts:
        """Of two CSR matrices of the same shape."""
        return cls(Rows.of(left), Rows.of(right), left.shape[1])

    def shares(self, items: npt.NDArray[np.integer], target: int) -> Ways:
        """The ways from each of `items` (n) to `target`; from the target to itself there is none.

        Args:
            items: (n) item numbers.
            target: item number.
        """
        wanted = np.asarray(items, np.int32)
        return Ways(*_shared(wanted, target, self.left, self.right, self.n_columns))


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
        n_columns: how many columns the two have.
    """

    weights: Rows
    penalty: Floats
    histories: Histories
    steps: Steps | None
    entities: Rows
    words: Rows
    n_columns: tuple[int, int]

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
            n_columns=(sides[0].shape[1], sides[1].shape[1]),
        )

    def shares(self, items: npt.NDArray[np.integer], target: int, user: int) -> Shares:
        """v(h, target) of each history item, as far as it went over other users and entities.

        Args:
            items: (n) item numbers, each once.
            target: item number.
            user: whose history it is (-1: nobody's); the user's own rows are no way.
        """
        wanted = np.asarray(items, np.int32)
        start, end = self.weights.starts[target], self.weights.starts[target + 1]
        near, column = self.weights.items[start:end], self.weights.values[start:end]
        weights = np.zeros(self.histories.n_items, np.float32)
        weights[near] = column
        if self.steps is None:
            of_users = Ways(*_met_both(wanted, target, weights, self._users_of, self._items_of))
        else:
            of_users = Ways(
                *_came_before(
                    wanted,
                    target,
                    weights,
                    self._events_of,
                    self._user_of,
                    self.histories.starts,
                    self.histories.items,
                    self.steps.ages,
                    self.steps.places,
                )
            )
        sides, value, penalty = (self.entities, self.words), weights[wanted], self.penalty[wanted]
        users, entities = _shares(
            wanted, target, user, near, column, sides, self.n_columns, value, penalty, of_users
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


@compiled
def _scale(
    value: Floats, penalty: Floats, of_users: Ways, of_entities: Ways, of_words: Ways
) -> Doubles:
    """What a pull on each weight (n) is multiplied by to be its share."""
    pulls = np.zeros(len(value))
    for ways in (of_users, of_entities, of_words):
        for way in range(len(ways.places)):
            pulls[ways.places[way]] += ways.parts[way]
    scale = np.zeros(len(value))
    for place in range(len(value)):
        if value[place] > 0.0:
            most = max(pulls[place] / penalty[place], value[place])
            scale[place] = value[place] / most / penalty[place]
    return scale


@compiled
def _scaled(ways: Ways, scale: Doubles, left_out: int) -> tuple[Ints, Ints, Doubles]:
    """The ways times the scale (n) of their places, but for one middle and what carries nothing."""
    places, middles, parts = ways.places.copy(), ways.middles.copy(), ways.parts.copy()
    n = 0
    for way in range(len(places)):
        part = ways.parts[way] * scale[ways.places[way]]
        if part > 0.0 and ways.middles[way] != left_out:
            places[n], middles[n], parts[n] = ways.places[way], ways.middles[way], part
            n += 1
    return places[:n], middles[:n], parts[:n]


@compiled
def _met_both(
    wanted: Ints, target: int, weights: Floats, users_of: Rows, items_of: Rows
) -> tuple[Ints, Ints, Doubles]:
    """Users with both: place, user, and the pull of the user's row if above 0."""
    users = users_of.items[users_of.starts[target] : users_of.starts[target + 1]]
    left = np.zeros(len(items_of.starts) - 1, np.float32)  # by user; 0 = not met, or not > 0
    for user in users:
        rest = np.float32(1.0)
        for entry in range(items_of.starts[user], items_of.starts[user + 1]):
            rest -= weights[np.uint32(items_of.items[entry])]
        left[user] = max(rest, np.float32(0.0))
    most = 0
    for item in wanted:
        most += min(len(users), users_of.starts[item + 1] - users_of.starts[item])
    places, middles = np.empty(most, np.int32), np.empty(most, np.int32)
    parts = np.empty(most, np.float64)
    n = 0
    for place in range(len(wanted)):
        item = wanted[place]
        if item == target or weights[item] <= 0.0:
            continue
        for entry in range(users_of.starts[item], users_of.starts[item + 1]):
            user = users_of.items[entry]
            if left[user] > 0.0:
                places[n], middles[n], parts[n] = place, user, left[user]
                n += 1
    return places[:n], middles[:n], parts[:n]


@compiled
def _came_before(
    wanted: Ints,
    target: int,
    weights: Floats,
    events_of: Rows,
    user_of: Ints,
    starts: Longs,
    items: Ints,
    ages: Floats,
    ahead: Floats,
) -> tuple[Ints, Ints, Doubles]:
    """Steps that reach the target: place of what came before, user, and the pull if above 0."""
    place_of = np.full(len(weights), -1, np.int32)
    for place in range(len(wanted)):
        if wanted[place] != target and weights[wanted[place]] > 0.0:
            place_of[wanted[place]] = place
    first, last = events_of.starts[target], events_of.starts[target + 1]
    most = len(ages) * len(ahead) * (last - first)
    places, middles = np.empty(most, np.int32), np.empty(most, np.int32)
    parts = np.empty(most, np.float64)
    n = 0
    done = -1  # steps up to here have been seen
    for met in events_of.items[first:last]:
        user = user_of[met]
        for step in range(max(starts[user] + 1, met - len(ahead) + 1, done + 1), met + 1):
            done = step
            begin = max(starts[user], step - len(ages))
            rest, found = np.float32(0.0), False
            for event in range(step, min(starts[user + 1], step + len(ahead))):
                if items[event] == target:
                    rest += ahead[event - step]
            for event in range(begin, step):
                rest -= ages[step - event - 1] * weights[items[event]]
                found |= place_of[items[event]] >= 0
            if rest <= 0.0 or not found:
                continue
            for event in range(begin, step):
                place = place_of[items[event]]
                if place >= 0:
                    places[n], middles[n] = place, user
                    parts[n] = rest * ages[step - event - 1]
                    n += 1
    return places[:n], middles[:n], parts[:n]


@compiled
def _side_pulls(
    wanted: Ints, target: int, near: Ints, column: Floats, side: Rows, n_columns: int
) -> tuple[Ints, Ints, Doubles]:
    """Side rows with both: place, column, and the pull if above 0."""
    left = np.zeros(n_columns, np.float32)  # what the others leave unsaid of the target's entry
    for entry in range(side.starts[target], side.starts[target + 1]):
        left[side.items[entry]] = side.values[entry]
    rest = left.copy()
    for place in range(len(near)):
        weight = column[place]
        for entry in range(side.starts[near[place]], side.starts[near[place] + 1]):
            feature = side.items[entry]
            if left[feature] != 0.0:
                rest[feature] -= weight * side.values[entry]
    for feature in range(n_columns):
        if left[feature] == 0.0:
            rest[feature] = 0.0
    return _carried(wanted, target, side, rest)


@compiled
def _shared(
    wanted: Ints, target: int, left: Rows, right: Rows, n_columns: int
) -> tuple[Ints, Ints, Doubles]:
    """Place, column and product of every entry that an item and the target both have."""
    own = np.zeros(n_columns, np.float32)
    for entry in range(right.starts[target], right.starts[target + 1]):
        own[right.items[entry]] = right.values[entry]
    return _carried(wanted, target, left, own)


@compiled
def _carried(wanted: Ints, target: int, rows: Rows, factors: Floats) -> tuple[Ints, Ints, Doubles]:
    """Place, column and product above 0 of the items' entries with the columns' factors."""
    most = 0
    for item in wanted:
        most += rows.starts[item + 1] - rows.starts[item]
    places, middles = np.empty(most, np.int32), np.empty(most, np.int32)
    parts = np.empty(most, np.float64)
    n = 0
    for place in range(len(wanted)):
        item = wanted[place]
        if item == target:
            continue
        for entry in range(rows.starts[item], rows.starts[item + 1]):
            product = rows.values[entry] * factors[rows.items[entry]]
            if product > 0.0:
                places[n], middles[n], parts[n] = place, rows.items[entry], product
                n += 1
    return places[:n], middles[:n], parts[:n]


@compiled
def _shares(
    wanted: Ints,
    target: int,
    user: int,
    near: Ints,
    column: Floats,
    sides: tuple[Rows, Rows],
    n_columns: tuple[int, int],
    value: Floats,
    penalty: Floats,
    of_users: Ways,
) -> tuple[tuple[Ints, Ints, Doubles], tuple[Ints, Ints, Doubles]]:
    """The ways over users and over entities, scaled; one call, since calls from Python cost."""
    places, middles, parts = _side_pulls(wanted, target, near, column, sides[0], n_columns[0])
    of_entities = Ways(places, middles, parts)
    places, middles, parts = _side_pulls(wanted, target, near, column, sides[1], n_columns[1])
    scale = _scale(value, penalty, of_users, of_entities, Ways(places, middles, parts))
    return _scaled(of_users, scale, user), _scaled(of_entities, scale, -1)
