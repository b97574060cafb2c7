"""Ways found and scaled to shares: the loops of `kgrank.fusion.attribution`, by numba.

All items of a list go into one call, since a call from Python costs as much as the loop over one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kgrank.compiled import compiled
from kgrank.fusion.local_ridge import Floats, Ints, Longs, Rows

Doubles = npt.NDArray[np.float64]
Found = tuple[Ints, Ints, Ints, Doubles]  # the columns of `Ways`


class Ways(NamedTuple):
    """Ways from items of a history to some items, over one node each.

    Attributes:
        targets: (n) int32, which of the items each leads to.
        places: (n) int32, which item of the history.
        middles: (n) int32, which user or column of features; may come several times a place.
        parts: (n) float64 > 0, the part of v(h, i) that the way carries.
    """

    targets: Ints
    places: Ints
    middles: Ints
    parts: Doubles


@compiled
def _longer(array: Any) -> Any:
    """The array (n) at twice its length; the second half is anything."""
    longer = np.empty(2 * len(array), array.dtype)
    longer[: len(array)] = array
    return longer


@compiled
def _added(ways: Found, n: int, target: int, place: int, middle: int, part: Any) -> Found:
    """The n ways and one more, in longer arrays if they are full."""
    targets, places, middles, parts = ways
    if n == len(targets):
        targets, places = _longer(targets), _longer(places)
        middles, parts = _longer(middles), _longer(parts)
    targets[n], places[n], middles[n], parts[n] = target, place, middle, part
    return targets, places, middles, parts


@compiled
def _none(most: int) -> Found:
    """Room for so many ways."""
    targets, places = np.empty(most, np.int32), np.empty(most, np.int32)
    return targets, places, np.empty(most, np.int32), np.empty(most, np.float64)


@compiled
def _places(wanted: Ints, n_items: int) -> Ints:
    """(n_items) int32, the place of each item among the wanted ones; -1 for the others."""
    place_of = np.full(n_items, -1, np.int32)
    for place in range(len(wanted)):
        place_of[wanted[place]] = place
    return place_of


@compiled
def _unpacked(columns: Rows, target: int, place_of: Ints, weights: Floats) -> bool:
    """Column `target` into `weights` (n_items); whether a wanted item weighs above 0 in it."""
    speaks = False
    for entry in range(columns.starts[target], columns.starts[target + 1]):
        item, weight = columns.items[entry], columns.values[entry]
        weights[item] = weight
        speaks |= item != target and weight > 0.0 and place_of[item] >= 0
    return speaks


@compiled
def _clear(columns: Rows, target: int, weights: Floats) -> None:
    for entry in range(columns.starts[target], columns.starts[target + 1]):
        weights[columns.items[entry]] = 0.0


@compiled
def met_both(wanted: Ints, targets: Ints, columns: Rows, users_of: Rows, items_of: Rows) -> Found:
    """Users with both: target, place, user, and the pull of the user's row if above 0."""
    n_items = len(columns.starts) - 1
    place_of = _places(wanted, n_items)
    weights = np.zeros(n_items, np.float32)
    ways, n = _none(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        if _unpacked(columns, target, place_of, weights):
            for user in users_of.items[users_of.starts[target] : users_of.starts[target + 1]]:
                row = items_of.items[items_of.starts[user] : items_of.starts[user + 1]]
                rest, found = np.float32(1.0), False
                for item in row:
                    rest -= weights[item]
                    found |= place_of[item] >= 0
                if rest <= 0.0 or not found:
                    continue
                for item in row:
                    place = place_of[item]
                    if place >= 0 and item != target and weights[item] > 0.0:
                        ways = _added(ways, n, number, place, user, rest)
                        n += 1
        _clear(columns, target, weights)
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def came_before(
    wanted: Ints,
    targets: Ints,
    columns: Rows,
    events_of: Rows,
    user_of: Ints,
    starts: Longs,
    items: Ints,
    ages: Floats,
) -> Found:
    """Steps to a target: target, place of what came before, user, and the pull if above 0."""
    n_items = len(columns.starts) - 1
    place_of = _places(wanted, n_items)
    weights = np.zeros(n_items, np.float32)
    ways, n = _none(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        if _unpacked(columns, target, place_of, weights):
            for step in events_of.items[events_of.starts[target] : events_of.starts[target + 1]]:
                user = user_of[step]
                begin = max(starts[user], step - len(ages))
                rest, found = np.float32(1.0), False
                for event in range(begin, step):
                    rest -= ages[step - event - 1] * weights[items[event]]
                    found |= place_of[items[event]] >= 0
                if rest <= 0.0 or not found:
                    continue
                for event in range(begin, step):
                    item = items[event]
                    if place_of[item] >= 0 and item != target and weights[item] > 0.0:
                        part = rest * ages[step - event - 1]
                        ways = _added(ways, n, number, place_of[item], user, part)
                        n += 1
        _clear(columns, target, weights)
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def _side_pulls(wanted: Ints, targets: Ints, columns: Rows, side: Rows, n_columns: int) -> Found:
    """Side rows with both: target, place, column, and the pull if above 0."""
    own = np.zeros(n_columns, np.float32)
    rest = np.zeros(n_columns, np.float32)  # what the others leave unsaid of the target's entry
    ways, n = _none(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        first, last = side.starts[target], side.starts[target + 1]
        for entry in range(first, last):
            own[side.items[entry]] = rest[side.items[entry]] = side.values[entry]
        begin = columns.starts[target] if last > first else columns.starts[target + 1]
        for near in range(begin, columns.starts[target + 1]):
            item, weight = columns.items[near], columns.values[near]
            for entry in range(side.starts[item], side.starts[item + 1]):
                feature = side.items[entry]
                if own[feature] != 0.0:
                    rest[feature] -= weight * side.values[entry]
        if last > first:
            ways, n = _carried(ways, n, number, wanted, target, side, rest)
        for entry in range(first, last):
            own[side.items[entry]] = rest[side.items[entry]] = 0.0
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def shared(wanted: Ints, targets: Ints, left: Rows, right: Rows, n_columns: int) -> Found:
    """Target, place, column and product of every entry that an item and the target both have."""
    own = np.zeros(n_columns, np.float32)
    ways, n = _none(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        first, last = right.starts[target], right.starts[target + 1]
        for entry in range(first, last):
            own[right.items[entry]] = right.values[entry]
        if last > first:
            ways, n = _carried(ways, n, number, wanted, target, left, own)
        for entry in range(first, last):
            own[right.items[entry]] = 0.0
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def _carried(
    ways: Found, n: int, number: int, wanted: Ints, target: int, rows: Rows, factors: Floats
) -> tuple[Found, int]:
    """The n ways and those over the items' entries with the columns' factors, if above 0."""
    for place in range(len(wanted)):
        item = wanted[place]
        if item == target:
            continue
        for entry in range(rows.starts[item], rows.starts[item + 1]):
            product = rows.values[entry] * factors[rows.items[entry]]
            if product > 0.0:
                ways = _added(ways, n, number, place, rows.items[entry], product)
                n += 1
    return ways, n


@compiled
def shares(
    wanted: Ints,
    targets: Ints,
    user: int,
    columns: Rows,
    penalty: Floats,
    sides: tuple[Rows, Rows],
    n_columns: tuple[int, int],
    of_users: Found,
) -> tuple[Found, Found]:
    """The ways over users and over entities, scaled."""
    of_entities = _side_pulls(wanted, targets, columns, sides[0], n_columns[0])
    of_words = _side_pulls(wanted, targets, columns, sides[1], n_columns[1])
    pulls = np.zeros((len(targets), len(wanted)))
    for ways in (of_users, of_entities, of_words):
        for way in range(len(ways[0])):
            pulls[ways[0][way], ways[1][way]] += ways[3][way]
    place_of = _places(wanted, len(columns.starts) - 1)
    scale = np.zeros(pulls.shape)
    for number in range(len(targets)):
        target = targets[number]
        for entry in range(columns.starts[target], columns.starts[target + 1]):
            place, value = place_of[columns.items[entry]], columns.values[entry]
            if place >= 0 and value > 0.0:
                of_item = penalty[wanted[place]]
                most = max(pulls[number, place] / of_item, value)
                scale[number, place] = value / most / of_item
    return _scaled(of_users, scale, user), _scaled(of_entities, scale, -1)


@compiled
def _scaled(ways: Found, scale: Any, left_out: int) -> Found:
    """The ways times their scales (n_targets × n_items), but for one middle and what has none."""
    targets, places, middles, parts = ways
    n = 0
    for way in range(len(targets)):
        part = parts[way] * scale[targets[way], places[way]]
        if part > 0.0 and middles[way] != left_out:
            targets[n], places[n], middles[n], parts[n] = (
                targets[way],
                places[way],
                middles[way],
                part,
            )
            n += 1
    return targets[:n], places[:n], middles[:n], parts[:n]
