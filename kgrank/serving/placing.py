"""Filling a list place by place: what is pinned there, else the best that no cap forbids.

Where a list is spread out, "best" is maximal marginal relevance (Carbonell and Goldstein, 1998):
of the `pool` best items the one with the largest

    (1 - strength) · score, from 0 for the last of the pool to 1 for its first
    - strength · the largest likeness to an item that is listed already

The list goes on by score alone where the pool has no item left. Equal ones stand in the order of
their scores, then of their numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kgrank.compiled import compiled

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class Pins(NamedTuple):
    """Which items are pinned; in the order of the rules.

    `items[starts[r]:starts[r + 1]]` (ascending) are the items of rule r: the best `most[r]` of them
    stand at `places[r]` (from 0) and after, where no rule before it has taken the place.
    """

    starts: Longs
    items: Longs
    places: Longs
    most: Longs


class Caps(NamedTuple):
    """At most `limits[g]` items of group g; item i is of the groups[starts[i]:starts[i + 1]]."""

    starts: Longs
    groups: Ints
    limits: Ints


class Spread(NamedTuple):
    """How alike two items are: the mean of their measures, each from 0 to 1.

    An attribute's measure is what the values of both have in common over all of them (Jaccard).
    Attributes of which no item has two values: item i has the value single[i, a], -1 for none. The
    others: it has codes[starts[a, i]:starts[a, i + 1]], ascending. The vectors' measure is their
    cosine, 0 where it is negative; (n_items × 0) where they do not count.
    """

    strength: float
    pool: int
    single: Ints
    starts: Longs
    codes: Ints
    vectors: Floats


class Added(NamedTuple):
    """What is added to the scores of one kind of user: values[p] to the score of columns[p]."""

    starts: Longs
    columns: Longs
    values: Floats


@compiled
def add(scores: Floats, kinds: Longs, added: Added) -> None:
    """Add to each row of `scores` (n × n_items) what is added for its kind (n)."""
    for row in range(len(scores)):
        for place in range(added.starts[kinds[row]], added.starts[kinds[row] + 1]):
            scores[row, added.columns[place]] += added.values[place]


@compiled
def fill(
    items: Longs,
    values: Floats,
    pins: Pins,
    pin_scores: Floats,
    caps: Caps,
    spread: Spread,
    listed: Longs,
    scores: Floats,
) -> Flags:
    """Fill lists of n places.

    Args:
        items: (n_rows × m) the best items of each row, best first; -1 where there are no more.
        values: (n_rows × m) their scores.
        pins, caps, spread: what the rules ask for.
        pin_scores: (n_rows × len(pins.items)) scores; -inf is never listed.
        listed: (n_rows × n) filled with item numbers, -1 where a list ends early.
        scores: (n_rows × n) filled with their scores, -inf where it ends.

    Returns:
        (n_rows) whether the items given were too few to fill the list.
    """
    n_rows, m = items.shape
    n = listed.shape[1]
    counts = np.zeros(len(caps.limits), np.int32)
    used, near, gains = np.zeros(m, np.bool_), np.zeros(m), np.zeros(m)
    n_single = spread.single.shape[1]
    near_by = np.empty((m, n_single), np.int32)
    several = spread.starts.shape[0] + spread.vectors.shape[1] > 0
    measures = n_single + spread.starts.shape[0] + min(spread.vectors.shape[1], 1)
    forced, forced_scores = np.empty(n, np.int64), np.empty(n, np.float32)
    short = np.zeros(n_rows, np.bool_)
    for row in range(n_rows):
        _pin(pins, pin_scores[row], forced, forced_scores)
        used[:] = False
        near[:] = 0.0
        for place in range(n):
            if forced[place] >= 0:
                _count(forced[place], caps, counts, 1)
                for j in range(m):
                    used[j] |= items[row, j] == forced[place]
        length = 0
        while length < m and items[row, length] >= 0:
            length += 1
        pool = min(spread.pool, length) if spread.strength > 0.0 else 0
        low = values[row, pool - 1] if pool else np.float32(0.0)
        span = values[row, 0] - low if pool else np.float32(0.0)
        for j in range(pool):
            relevance = (values[row, j] - low) / span if span > 0.0 else np.float32(0.0)
            gains[j] = (1.0 - spread.strength) * relevance
            for a in range(n_single):
                near_by[j, a] = spread.single[items[row, j], a]
        after, filled = 0, 0
        for place in range(n):
            if forced[place] >= 0:
                item, score = forced[place], forced_scores[place]
            else:
                best = _best(gains, near, used, pool, spread.strength)
                while best >= 0 and _full(items[row, best], caps, counts):
                    used[best] = True
                    best = _best(gains, near, used, pool, spread.strength)
                if best < 0:
                    while after < length and (
                        used[after] or _full(items[row, after], caps, counts)
                    ):
                        after += 1
                    if after == length:
                        short[row] = True
                        continue
                    best = after
                used[best] = True
                item, score = items[row, best], values[row, best]
                _count(item, caps, counts, 1)
            listed[row, filled], scores[row, filled] = item, score
            filled += 1
            for j in range(pool):
                alike = 0.0
                for a in range(n_single):
                    value = spread.single[item, a]
                    alike += 1.0 if value >= 0 and value == near_by[j, a] else 0.0
                if several and not used[j]:
                    alike += _alike(item, items[row, j], spread)
                near[j] = max(near[j], alike / measures)
        for place in range(filled):
            _count(listed[row, place], caps, counts, -1)
        listed[row, filled:] = -1
        scores[row, filled:] = -np.inf
    return short


@compiled
def _pin(pins: Pins, scores: Floats, forced: Longs, forced_scores: Floats) -> None:
    n = len(forced)
    forced[:] = -1
    for rule in range(len(pins.most)):
        place = pins.places[rule]
        for _ in range(pins.most[rule]):
            while place < n and forced[place] >= 0:
                place += 1
            if place >= n:
                break
            best = -1
            for k in range(pins.starts[rule], pins.starts[rule + 1]):
                if scores[k] == -np.inf or (best >= 0 and scores[k] <= scores[best]):
                    continue
                taken = False
                for other in range(n):
                    taken |= forced[other] == pins.items[k]
                if not taken:
                    best = k
            if best < 0:
                break
            forced[place], forced_scores[place] = pins.items[best], scores[best]


@compiled
def _count(item: int, caps: Caps, counts: Ints, by: int) -> None:
    for k in range(caps.starts[item], caps.starts[item + 1]):
        counts[caps.groups[k]] += by


@compiled
def _full(item: int, caps: Caps, counts: Ints) -> bool:
    for k in range(caps.starts[item], caps.starts[item + 1]):
        if counts[caps.groups[k]] >= caps.limits[caps.groups[k]]:
            return True
    return False


@compiled
def _best(gains: Doubles, near: Doubles, used: Flags, pool: int, strength: float) -> int:
    """Which of the pool has the largest marginal relevance; -1 where all are used."""
    best, most = -1, -np.inf
    for j in range(pool):
        gain = gains[j] - strength * near[j]
        if gain > most and not used[j]:
            best, most = j, gain
    return best


@compiled
def _alike(one: int, other: int, spread: Spread) -> float:
    """The sum of the measures but those of attributes with single values."""
    total = 0.0
    n_attributes, dim = spread.starts.shape[0], spread.vectors.shape[1]
    for a in range(n_attributes):
        i, i_end = spread.starts[a, one], spread.starts[a, one + 1]
        j, j_end = spread.starts[a, other], spread.starts[a, other + 1]
        both, every = 0, (i_end - i) + (j_end - j)
        while i < i_end and j < j_end:
            if spread.codes[i] == spread.codes[j]:
                both += 1
                i += 1
                j += 1
            elif spread.codes[i] < spread.codes[j]:
                i += 1
            else:
                j += 1
        if both:
            total += both / (every - both)
    if dim:
        dot, left, right = 0.0, 0.0, 0.0
        for k in range(dim):
            x, y = spread.vectors[one, k], spread.vectors[other, k]
            dot += x * y
            left += x * x
            right += y * y
        if dot > 0.0:
            total += dot / np.sqrt(left * right)
    return total
