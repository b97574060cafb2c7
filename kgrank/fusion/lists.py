"""The best items of each row of scores, compiled by numba.

Of CHUNK items that follow each other only the best is looked at first. The n-th best of these
bounds from below what stands in a list of n: what is under it, and chunks whose best is, are passed
over. So a block of scores is read once, and little of it is compared, sorted or copied.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from kgrank.compiled import compiled
from kgrank.fusion.products import by_rows

Floats = npt.NDArray[np.float32]
Longs = npt.NDArray[np.int64]

CHUNK = 32  # items of which only the best is looked at first


def top_n(scores: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The n best items of each row; equal scores order by item number.

    Args:
        scores: (n_rows × n_items) float32; -inf is never listed.
        n: length of the lists, cut to n_items.

    Returns:
        item numbers, (n_rows × n) int64, -1 where a list ends early; their scores. Both on the CPU.
    """
    n = min(n, scores.shape[1])
    items = np.full((len(scores), n), -1, np.int64)
    values = np.full((len(scores), n), -np.inf, np.float32)
    if not n or not len(scores):
        return torch.from_numpy(items), torch.from_numpy(values)
    best = _best_of_chunks(scores) if scores.shape[1] // CHUNK > 4 * n else scores[:, :0]
    bounding = best if best.shape[1] else scores
    if scores.device.type == "cpu":
        least = np.partition(bounding.numpy(), -n, axis=1)[:, -n].copy()
        read = scores.contiguous().numpy(), best.contiguous().numpy(), least
        by_rows(lambda first, last: _list(first, last, *read, items, values), len(scores))
    else:
        bound = bounding.topk(n, dim=1, sorted=False).values.amin(1)
        found = may_be_listed(scores, bound)
        by_rows(lambda first, last: _list_found(first, last, *found, items, values), len(scores))
    return torch.from_numpy(items), torch.from_numpy(values)


def may_be_listed(scores: torch.Tensor, least: torch.Tensor) -> tuple[Longs, Longs, Floats]:
    """What may stand in the lists, found on the scores' device.

    Args:
        scores: (n_rows × n_items) float32.
        least: (n_rows) float32.

    Returns:
        where each row begins, (n_rows + 1); items, ascending, and scores of all rows' entries ≥
        least that are not -inf.
    """
    rows, items = ((scores >= least[:, None]) & (scores > -torch.inf)).nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(scores)).cpu().numpy()
    values = scores[rows, items].cpu().numpy()
    return np.append(0, np.cumsum(counts)), items.cpu().numpy(), values


def _best_of_chunks(scores: torch.Tensor) -> torch.Tensor:
    """The best score of each whole chunk, (n_rows × n_chunks)."""
    n_chunks = scores.shape[1] // CHUNK
    return scores[:, : n_chunks * CHUNK].reshape(len(scores), n_chunks, CHUNK).amax(2)


@compiled
def _list(
    first: int,
    last: int,
    scores: Floats,
    best: Floats,
    least: Floats,
    items: Longs,
    values: Floats,
) -> None:
    """Lists of rows first to last, from all items where there are no chunks."""
    n_items, n_chunks = scores.shape[1], best.shape[1]
    found, of_found = np.empty(n_items, np.int64), np.empty(n_items, np.float32)
    for row in range(first, last):
        of_row, bound, n = scores[row], least[row], 0
        for chunk in range(n_chunks):
            if best[row, chunk] >= bound:
                for item in range(chunk * CHUNK, (chunk + 1) * CHUNK):
                    if of_row[item] >= bound and of_row[item] > -np.inf:
                        found[n], of_found[n] = item, of_row[item]
                        n += 1
        for item in range(n_chunks * CHUNK, n_items):
            if of_row[item] >= bound and of_row[item] > -np.inf:
                found[n], of_found[n] = item, of_row[item]
                n += 1
        _order(found[:n], of_found[:n], items[row], values[row])


@compiled
def _list_found(
    first: int,
    last: int,
    starts: Longs,
    found: Longs,
    of_found: Floats,
    items: Longs,
    values: Floats,
) -> None:
    """Lists of rows first to last, from what was found for them."""
    for row in range(first, last):
        own = slice(starts[row], starts[row + 1])
        _order(found[own], of_found[own], items[row], values[row])


@compiled
def _order(found: Longs, of_found: Floats, items: Longs, values: Floats) -> None:
    """The best of what was found, in order of their items, into a row of items and values."""
    n = min(len(found), len(items))
    if n < len(found):
        cut = np.partition(of_found, len(found) - n)[len(found) - n]
        ties = n
        for value in of_found:
            ties -= value > cut
        kept = 0
        for place in range(len(found)):  # of those that tie at the cut, the first
            value = of_found[place]
            if value > cut or (value == cut and ties > 0):
                ties -= value == cut
                found[kept], of_found[kept] = found[place], value
                kept += 1
    order = np.argsort(-of_found[:n], kind="mergesort")
    for place in range(n):
        items[place], values[place] = found[order[place]], of_found[order[place]]
