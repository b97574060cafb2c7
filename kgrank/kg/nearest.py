"""The vectors of a group with the largest inner products: exactly, or through an index.

Scores are inner products, summed in float64 and rounded to float32 once, for the few rows that can
be among the best: so a score depends on its two vectors alone, not on the size of a batch or the
place of a row, and equal vectors have equal scores. Equal scores order by number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from kgrank.errors import ModelError
from kgrank.kg.ann import Index, installed
from kgrank.kg.groups import Group
from kgrank.kg.segments import refusal

APPROXIMATE_ABOVE = 1_000_000
"""A group of more vectors is searched through its index, if it has one."""

QUERIES, ROWS = 256, 32_768
"""The block of the exact search: 32 MiB of scores (float32) are in memory at a time."""

PAIRS_BYTES = 64_000_000
"""How much of the vectors is copied at a time to sum scores in float64."""

_FLOAT = np.finfo(np.float32)

Found = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Rows (n_queries × n) int64 and scores (n_queries × n) float32, the best first."""


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The best of a group for each query, the best first.

    Attributes:
        ids: (n_queries × n) object array of strings.
        numbers: (n_queries × n) int64, places in `EmbeddingStore.ids`.
        scores: (n_queries × n) float32, inner products.
    """

    ids: NDArray[np.object_]
    numbers: NDArray[np.int64]
    scores: NDArray[np.float32]


def nearest(group: Group, queries: NDArray[np.float32], n: int, exact: bool | None) -> Neighbors:
    """What `EmbeddingStore.nearest` tells of, for checked queries (n_queries × dim) float32."""
    n, index = min(n, len(group)), group.index
    if exact is None:
        exact = len(group) <= APPROXIMATE_ABOVE or not index or not installed()
    _check_range(group, queries)
    if not n or not len(queries):
        rows, scores = _none(len(queries), n)
    elif exact:
        rows, scores = _exact(group, queries, n)
    elif index:
        rows, scores = _approximate(group, index, queries, n)
    else:
        mend = "Call build_index; a write to the group drops the index."
        raise ModelError(f"{group.name!r}: found no index; allowed: one of these vectors. {mend}")
    ids = group.ids(rows.ravel()).to_numpy(zero_copy_only=False)
    return Neighbors(ids.reshape(rows.shape), group.numbers(rows), scores)


def _exact(group: Group, queries: NDArray[np.float32], n: int) -> Found:
    """The n live rows with the largest inner products, all of them compared.

    Args:
        group: n vectors at least.
        queries: (n_queries × dim) float32, finite.
        n: 1 or more.
    """
    rows = np.tile(group.rows[:n], (len(queries), 1))
    scores = np.zeros(rows.shape, np.float32)
    # Every score with a query of zeros is 0, so the first rows are the best.
    asked = np.flatnonzero(queries.any(axis=1))
    step = max(1, min(QUERIES, QUERIES * ROWS // n))
    for start in range(0, len(asked), step):
        some = asked[start : start + step]
        rows[some], scores[some] = _exact_block(group, queries[some], n)
    return rows, scores


def _exact_block(group: Group, queries: NDArray[np.float32], n: int) -> Found:
    """`_exact` for one block of queries.

    A product in float32 tells whether a row can be among the best: it is off by `error` at most
    (dim roundings, and as much again, of a sum that the product of the lengths bounds).
    """
    n_queries, dim = queries.shape
    rows, scores = _none(n_queries, n)
    tensor = torch.from_numpy(queries)
    space = torch.empty(n_queries * ROWS)
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    for first, segment in zip(group.starts, group.segments, strict=False):
        alive = group.live[first : first + len(segment)]
        error = dim * (_FLOAT.eps * norms * segment.entry.max_norm + _FLOAT.tiny)
        for start in range(0, len(segment), ROWS):
            live = alive[start : start + ROWS]
            if not live.any():
                continue
            block = segment.vectors[start : start + ROWS]
            rough = space[: n_queries * len(block)].view(n_queries, len(block))
            torch.mm(tensor, torch.from_numpy(block).T, out=rough)
            _check_finite(group, first + start + np.arange(len(block)), rough[0].numpy())
            rough[:, torch.from_numpy(np.flatnonzero(~live))] = -torch.inf
            asked, places = _possible(rough, scores[:, -1] - error, error, n)
            found = _scores(block, places, queries, asked)
            _check_finite(group, first + start + places, found)
            rows, scores = _merged(rows, scores, asked, first + start + places, found)
    return rows, scores


def _possible(
    rough: torch.Tensor, least: NDArray[np.float64], error: NDArray[np.float64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The query and the column of every rough score that may stand for one of the n best.

    Args:
        rough: (n_queries × n_columns) float32, each off by `error` at most.
        least: (n_queries,) what has to be exceeded, for as good a score was met before.
        error: (n_queries,).
    """
    n_columns = rough.shape[1]
    many = 4 * n * len(rough)
    if np.isfinite(least).all():
        places = _above(rough, least)
        if len(places) <= many:
            return np.divmod(places, n_columns)
    best = rough.topk(min(n, n_columns), dim=1).values[:, -1].numpy()
    # The n-th of this block may be off upwards, and a row that is as good as it downwards.
    return np.divmod(_above(rough, np.maximum(least, best - 2 * error)), n_columns)


def _above(rough: torch.Tensor, least: NDArray[np.float64]) -> NDArray[np.int64]:
    """The places, counted through, where the scores are above (n_queries,) or close to it."""
    rounded = np.nextafter(least.astype(np.float32), np.float32(-np.inf))
    return np.flatnonzero((rough > torch.from_numpy(rounded)[:, None]).numpy())


def _scores(
    vectors: NDArray[np.float32],
    places: NDArray[np.int64],
    queries: NDArray[np.float32],
    asked: NDArray[np.int64],
) -> NDArray[np.float32]:
    """(k,) float32: the inner product of vectors[places[j]] and queries[asked[j]]."""
    scores = np.empty(len(places), np.float32)
    step = max(1, PAIRS_BYTES // (16 * queries.shape[1]))
    for start in range(0, len(places), step):
        some = slice(start, start + step)
        pairs = vectors[places[some]].astype(np.float64), queries[asked[some]].astype(np.float64)
        with np.errstate(over="ignore"):  # of a damaged row, which `_check_finite` finds
            scores[some] = np.einsum("kd,kd->k", *pairs)
    return scores


def _none(n_queries: int, n: int) -> Found:
    """Lists with nothing in them: every row goes before these."""
    no_row = np.iinfo(np.int64).max
    return np.full((n_queries, n), no_row), np.full((n_queries, n), -np.inf, np.float32)


def _check_finite(group: Group, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    """Raises StoreError naming the file of the first row (k,) whose score (k,) is not finite.

    Vectors of which this could come are not written, and pairs of which it could not searched.
    """
    for row in rows[~np.isfinite(scores)][:1]:
        segment = group.segments[np.searchsorted(group.starts, row, side="right") - 1]
        raise refusal(segment.mapped.path, "a vector that is not finite", "what was written")


def _check_range(group: Group, queries: NDArray[np.float32]) -> None:
    query = float(np.linalg.norm(queries.astype(np.float64), axis=1).max(initial=0.0))
    if query * group.max_norm > float(_FLOAT.max) / 2:
        found = f"{group.name!r}: found vectors of length {query:.3g} and {group.max_norm:.3g}"
        raise ModelError(f"{found}; allowed: inner products within float32. Scale the vectors.")


def _merged(
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    asked: NDArray[np.int64],
    new_rows: NDArray[np.int64],
    new_scores: NDArray[np.float32],
) -> Found:
    """The n best of (n_queries × n) rows and of new ones, (k,) of the query `asked` each."""
    n_queries, n = rows.shape
    query = np.concatenate([np.repeat(np.arange(n_queries), n), asked])
    row = np.concatenate([rows.ravel(), new_rows])
    score = np.concatenate([scores.ravel(), new_scores])
    order = np.lexsort((row, -score, query))
    starts = np.searchsorted(query[order], np.arange(n_queries))
    best = order[starts[:, None] + np.arange(n)]
    return row[best], score[best]


def _approximate(group: Group, index: Index, queries: NDArray[np.float32], n: int) -> Found:
    """Nearly the n best: `_exact` among what the group's index proposes.

    Queries for which it proposes too few are answered exactly. Arguments are as in `_exact`.
    """
    rows = np.empty((len(queries), n), np.int64)
    scores = np.empty(rows.shape, np.float32)
    depth = min(2 * n, len(group))
    step = max(1, PAIRS_BYTES // (16 * group.dim * depth))
    for start in range(0, len(queries), step):
        some = slice(start, start + step)
        rows[some], scores[some] = _approximate_block(group, index, queries[some], n, depth)
    return rows, scores


def _approximate_block(
    group: Group, index: Index, queries: NDArray[np.float32], n: int, depth: int
) -> Found:
    lengths = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    unit = (queries / np.where(lengths == 0, 1.0, lengths)).astype(np.float32)
    numbers = index.search(unit, depth)
    short = (numbers < 0).any(axis=1) | (lengths[:, 0] == 0)
    rows, scores = _none(len(queries), n)
    rows[short], scores[short] = _exact(group, queries[short], n)
    whole = np.flatnonzero(~short)
    found = group.rows[numbers[whole]].ravel()
    asked = np.repeat(whole, depth)
    found_scores = _scores(group.vectors(found), np.arange(len(found)), queries, asked)
    _check_finite(group, found, found_scores)
    return _merged(rows, scores, asked, found, found_scores)
