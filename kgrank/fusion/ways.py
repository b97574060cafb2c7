"""Ways found and scaled to shares: the loops of `kgrank.fusion.attribution`, by numba.

All items of a list go into one call, since a call from Python costs as much as the loop over one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kgrank.compiled import compiled
from kgrank.fusion.local_ridge import Floats, Ints, Longs, Rows
from kgrank.fusion.lookup import place_in, table_of

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
def added(ways: Found, n: int, target: int, place: int, middle: int, part: Any) -> Found:
    """The n ways and one more, in longer arrays if they are full."""
    targets, places, middles, parts = ways
    if n == len(targets):
        targets, places = _longer(targets), _longer(places)
        middles, parts = _longer(middles), _longer(parts)
    targets[n], places[n], middles[n], parts[n] = target, place, middle, part
    return targets, places, middles, parts


@compiled
def room(most: int) -> Found:
    """Room for so many ways."""
    targets, places = np.empty(most, np.int32), np.empty(most, np.int32)
    return targets, places, np.empty(most, np.int32), np.empty(most, np.float64)


@compiled
def _speaks(columns: Rows, target: int, wanted: Ints, places: Ints) -> bool:
    """Whether a wanted item weighs above 0 in column `target`."""
    for entry in range(columns.starts[target], columns.starts[target + 1]):
        item = columns.items[entry]
        if columns.values[entry] > 0.0 and item != target and place_in(places, wanted, item) >= 0:
            return True
    return False


@compiled
def met_both(wanted: Ints, targets: Ints, columns: Rows, users_of: Rows, items_of: Rows) -> Found:
    """Users with both: target, place, user, and the pull of the user's row if above 0."""
    places = table_of(wanted)
    ways, n = room(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        if not _speaks(columns, target, wanted, places):
            continue
        near = columns.items[columns.starts[target] : columns.starts[target + 1]]
        weights = columns.values[columns.starts[target] : columns.starts[target + 1]]
        of_near = table_of(near)
        for user in users_of.items[users_of.starts[target] : users_of.starts[target + 1]]:
            row = items_of.items[items_of.starts[user] : items_of.starts[user + 1]]
            rest, found = np.float32(1.0), False
            for item in row:
                other = place_in(of_near, near, item)
                if other >= 0:
                    rest -= weights[other]
                    found |= weights[other] > 0.0 and place_in(places, wanted, item) >= 0
            if rest <= 0.0 or not found:
                continue
            for item in row:
                other, place = place_in(of_near, near, item), place_in(places, wanted, item)
                if other >= 0 and place >= 0 and item != target and weights[other] > 0.0:
                    ways = added(ways, n, number, place, user, rest)
                    n += 1
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
    ahead: Floats,
) -> Found:
    """Steps that reach a target: target, place of what came before, user, the pull if above 0."""
    places = table_of(wanted)
    ways, n = room(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        if not _speaks(columns, target, wanted, places):
            continue
        near = columns.items[columns.starts[target] : columns.starts[target + 1]]
        weights = columns.values[columns.starts[target] : columns.starts[target + 1]]
        of_near = table_of(near)
        done = -1  # steps up to here have been seen
        for met in events_of.items[events_of.starts[target] : events_of.starts[target + 1]]:
            user = user_of[met]
            for step in range(max(starts[user] + 1, met - len(ahead) + 1, done + 1), met + 1):
                done = step
                begin = max(starts[user], step - len(ages))
                rest, found = np.float32(0.0), False
                for event in range(step, min(starts[user + 1], step + len(ahead))):
                    if items[event] == target:
                        rest += ahead[event - step]
                for event in range(begin, step):
                    other = place_in(of_near, near, items[event])
                    if other >= 0:
                        rest -= ages[step - event - 1] * weights[other]
                        speaks = weights[other] > 0.0 and items[event] != target
                        found |= speaks and place_in(places, wanted, items[event]) >= 0
                if rest <= 0.0 or not found:
                    continue
                for event in range(begin, step):
                    item = items[event]
                    other, place = place_in(of_near, near, item), place_in(places, wanted, item)
                    if other >= 0 and place >= 0 and item != target and weights[other] > 0.0:
                        part = rest * ages[step - event - 1]
                        ways = added(ways, n, number, place, user, part)
                        n += 1
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def _side_pulls(wanted: Ints, targets: Ints, columns: Rows, side: Rows) -> Found:
    """Side rows with both: target, place, column, and the pull if above 0."""
    ways, n = room(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        own = side.items[side.starts[target] : side.starts[target + 1]]
        if not len(own):
            continue
        features = table_of(own)
        # what the others leave unsaid of the target's entries
        rest = side.values[side.starts[target] : side.starts[target + 1]].copy()
        for near in range(columns.starts[target], columns.starts[target + 1]):
            item, weight = columns.items[near], columns.values[near]
            for entry in range(side.starts[item], side.starts[item + 1]):
                feature = place_in(features, own, side.items[entry])
                if feature >= 0:
                    rest[feature] -= weight * side.values[entry]
        ways, n = _carried(ways, n, number, wanted, target, side, features, own, rest)
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def shared(wanted: Ints, targets: Ints, left: Rows, right: Rows) -> Found:
    """Target, place, column and product of every entry that an item and the target both have."""
    ways, n = room(1024), 0
    for number in range(len(targets)):
        target = targets[number]
        own = right.items[right.starts[target] : right.starts[target + 1]]
        factors = right.values[right.starts[target] : right.starts[target + 1]]
        if len(own):
            features = table_of(own)
            ways, n = _carried(ways, n, number, wanted, target, left, features, own, factors)
    return ways[0][:n], ways[1][:n], ways[2][:n], ways[3][:n]


@compiled
def _carried(
    ways: Found,
    n: int,
    number: int,
    wanted: Ints,
    target: int,
    rows: Rows,
    features: Ints,
    own: Ints,
    factors: Floats,
) -> tuple[Found, int]:
    """The n ways and those over the items' entries in `own` columns times their factors."""
    for place in range(len(wanted)):
        item = wanted[place]
        if item == target:
            continue
        for entry in range(rows.starts[item], rows.starts[item + 1]):
            column = place_in(features, own, rows.items[entry])
            if column >= 0 and rows.values[entry] * factors[column] > 0.0:
                product = rows.values[entry] * factors[column]
                ways = added(ways, n, number, place, rows.items[entry], product)
                n += 1
    return ways, n


@compiled
def shares(
    wanted: Ints,
    targets: Ints,
    user: int,
    columns: Rows,
    penalty: Floats,
    entities: Rows,
    words: Rows,
    of_users: Found,
) -> tuple[Found, Found]:
    """The ways over users and over entities, scaled."""
    of_entities = _side_pulls(wanted, targets, columns, entities)
    of_words = _side_pulls(wanted, targets, columns, words)
    pulls = np.zeros((len(targets), len(wanted)))
    for ways in (of_users, of_entities, of_words):
        for way in range(len(ways[0])):
            pulls[ways[0][way], ways[1][way]] += ways[3][way]
    places = table_of(wanted)
    scale = np.zeros(pulls.shape)
    for number in range(len(targets)):
        target = targets[number]
        for entry in range(columns.starts[target], columns.starts[target + 1]):
            place, value = place_in(places, wanted, columns.items[entry]), columns.values[entry]
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


@compiled
def carried(
    ways: Ways, of_places: Doubles, gates: Doubles, nodes: Longs, n_nodes: int
) -> tuple[Longs, Doubles]:
    """What ways carried of scores: (target · n_places + place) · n_nodes + node, and how much.

    What carries nothing, or takes away, is no way; nor is what runs over a node -1.

    Args:
        ways: (n) ways.
        of_places: (n_places) what v(h, i) of each is multiplied by, for all targets.
        gates: (n_targets) what it is multiplied by for each target.
        nodes: the node of each middle.
        n_nodes: how many nodes there are.
    """
    targets, places, middles, parts = ways
    keys, out, n = np.empty(len(targets), np.int64), np.empty(len(targets)), 0
    for way in range(len(targets)):
        target, place, node = targets[way], places[way], nodes[middles[way]]
        part = parts[way] * of_places[place] * gates[target]
        if part > 0.0 and node >= 0:
            keys[n] = (np.int64(target) * len(of_places) + place) * n_nodes + node
            out[n] = part
            n += 1
    return keys[:n], out[:n]
