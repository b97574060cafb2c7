"""Paths merged, and the few best chosen: the loops of `kgrank.serving.paths`, by numba."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kgrank.compiled import compiled

Numbers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@compiled
def merged(
    keys: Numbers,
    order: Numbers,
    carried: Doubles,
    channels: Numbers,
    n_channels: int,
    met: npt.NDArray[np.int32],
    n_nodes: int,
    n_targets: int,
) -> tuple[Numbers, Numbers, Doubles, Doubles, Numbers]:
    """Paths to several items, ascending and each once, and what they carried.

    Args:
        keys: (n) which path each way is, as `kgrank.fusion.ways.carried` has it.
        order: (n) places of the keys, ascending.
        carried: (n) what each way carried.
        channels: (n) in which channel.
        n_channels: how many there are.
        met: (n_met) item numbers of the places.
        n_nodes: how many nodes there are.
        n_targets: how many items they lead to.

    Returns:
        (n_paths) item numbers met; (n_paths) nodes; what each path carried, (n_channels × n_paths);
        the sums over channels; and (n_targets + 1) starts: of which paths lead to which item.
    """
    newest, n = -1, -1
    items, middles = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    of_channels, sums = np.zeros((n_channels, len(keys))), np.zeros(len(keys))
    starts = np.zeros(n_targets + 1, np.int64)
    for way in order:
        if keys[way] != newest:
            newest = keys[way]
            n += 1
            row, middles[n] = newest // n_nodes, newest % n_nodes
            items[n] = met[row % len(met)]
            starts[row // len(met) + 1] = n + 1
        of_channels[channels[way], n] += carried[way]
        sums[n] += carried[way]
    n += 1
    for target in range(n_targets):
        starts[target + 1] = max(starts[target], starts[target + 1])
    return items[:n], middles[:n], of_channels[:, :n], sums[:n], starts


@compiled
def chosen(
    items: Numbers,
    middles: Numbers,
    parts: Doubles,
    told: Mask,
    over_user: Mask,
    most: int,
    notable: float,
    least: float,
) -> tuple[Numbers, Numbers, Numbers]:
    """See `PathFinder.choose`.

    Args:
        items: (n) int64 the product that each path runs over; those of one stand together.
        middles: (n) int64 the node behind it.
        parts: (n) float64 what each carried.
        told: (n) bool: whether it may be shown.
        over_user: (n) bool: whether the node is another user.
        most: so many at most.
        notable: of the strongest, from which on another product comes first.
        least: of the strongest; what carries less is not chosen.

    Returns:
        (n_chosen) int64 the paths; and the others that each stands for: (n_chosen + 1) starts in a
        list of them.
    """
    # Candidates, each a stretch of `members`: single paths, then those over users by product.
    members = np.empty(len(items), np.int64)
    starts = np.zeros(len(items) + 1, np.int64)
    strengths = np.zeros(len(items))
    n, filled = 0, 0
    for path in range(len(items)):
        if told[path] and not over_user[path]:
            members[filled], strengths[n] = path, parts[path]
            filled += 1
            n += 1
            starts[n] = filled
    n_single, newest = n, -1
    for path in range(len(items)):
        if told[path] and over_user[path]:
            if n == n_single or items[path] != newest:
                newest = items[path]
                n += 1
            members[filled] = path
            filled += 1
            strengths[n - 1] += parts[path]
            starts[n] = filled
    ranked = np.argsort(-strengths[:n], kind="mergesort")
    paths, of = np.empty(min(most, n), np.int64), np.empty(min(most, n), np.int64)
    found = 0
    for once in (True, False):
        for candidate in ranked:
            share = notable if once else least
            if found == len(paths) or strengths[candidate] < share * strengths[ranked[0]]:
                break
            group = members[starts[candidate] : starts[candidate + 1]]
            product, known = items[group[0]], False
            for earlier in range(found):
                known |= of[earlier] == candidate
                known |= once and items[paths[earlier]] == product
            if known:
                continue
            best = -1
            for path in group:
                used = False
                for earlier in range(found):
                    used |= middles[paths[earlier]] == middles[path]
                if not used and (best < 0 or parts[path] > parts[best]):
                    best = path
            if best >= 0:
                paths[found], of[found] = best, candidate
                found += 1
    order = np.argsort(-strengths[of[:found]], kind="mergesort")
    others_starts = np.zeros(found + 1, np.int64)
    others, n_others = np.empty(len(items), np.int64), 0
    for place in range(found):
        candidate = of[order[place]]
        for path in members[starts[candidate] : starts[candidate + 1]]:
            if path != paths[order[place]]:
                others[n_others] = path
                n_others += 1
        others_starts[place + 1] = n_others
    return paths[order], others_starts, others[:n_others]


@compiled
def most_often(
    starts: Numbers,
    items: npt.NDArray[np.int32],
    kinds: npt.NDArray[np.int16],
    user: int,
    item: int,
    refused: int,
    n_kinds: int,
) -> int:
    """The kind of event that a user has most often on an item; a refusal if there is nothing else.

    Args:
        starts, items, kinds: as in `Histories`.
        user: user number, who has an event on the item.
        item: item number.
        refused: number of the kind of a refusal; -1 for none.
        n_kinds: how many kinds there are.
    """
    counts = np.zeros(n_kinds, np.int64)
    for event in range(starts[user], starts[user + 1]):
        if items[event] == item:
            counts[kinds[event]] += 1
    if refused >= 0 and counts.sum() > counts[refused]:
        counts[refused] = 0
    return int(counts.argmax())
