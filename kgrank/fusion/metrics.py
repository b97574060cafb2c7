"""How good ranked lists are: recall, NDCG, reciprocal rank and coverage.

recall@k = |hits| / |relevant|. NDCG@k (Järvelin and Kekäläinen, 2002) has binary gains, discount
1 / log2(rank + 1) and the ideal over min(k, |relevant|). mrr = 1 / rank of the first hit, or 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from scipy.stats import bootstrap

from kgrank.errors import ConfigError, DataError, Fault
from kgrank.kg.vectors import whole


@dataclass(frozen=True, eq=False)
class ListMetrics:
    """Metrics of many ranked lists, one value a list.

    Attributes:
        recall: cut-off k → (n_lists) float64.
        ndcg: cut-off k → (n_lists) float64.
        reciprocal_rank: (n_lists) float64, 0 where the list holds no relevant item.
    """

    recall: dict[int, npt.NDArray[np.float64]]
    ndcg: dict[int, npt.NDArray[np.float64]]
    reciprocal_rank: npt.NDArray[np.float64]

    def means(self, which: npt.NDArray[np.bool_] | None = None) -> dict[str, float]:
        """The mean of each metric over the lists (those for which `which` is true)."""
        rows = slice(None) if which is None else which
        out: dict[str, float] = {}
        for k in self.recall:
            out[f"recall@{k}"] = float(self.recall[k][rows].mean())
            out[f"ndcg@{k}"] = float(self.ndcg[k][rows].mean())
        out["mrr"] = float(self.reciprocal_rank[rows].mean())
        return out


@dataclass(frozen=True)
class Difference:
    """A mean difference of two systems on the same lists.

    Attributes:
        mean: ours minus the other's, over lists.
        low, high: of its 95 % interval.
    """

    mean: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0.0 or self.high < 0.0


def paired_bootstrap(
    ours: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
    users: npt.NDArray[np.integer],
    *,
    rounds: int = 2_000,
    seed: int = 0,
) -> Difference:
    """The difference of two systems, and how far it would move with other users.

    Users are drawn with replacement, each with all their lists, since the lists of one user are
    not independent (percentile interval of `scipy.stats.bootstrap`; Efron and Tibshirani, 1993).

    Args:
        ours, other: (n_lists) float64, a metric of each list.
        users: (n_lists) user numbers.
        rounds: samples of the users.
        seed: of the samples.

    Returns:
        the difference; of a single user, with an interval without ends.
    """
    mean = float((ours - other).mean())
    _, of = np.unique(users, return_inverse=True)
    gains, lists = np.bincount(of, ours - other), np.bincount(of)
    if len(lists) < 2:  # a single user tells nothing of others
        return Difference(mean, -np.inf, np.inf)
    drawn = bootstrap(
        (gains, lists),
        lambda gains, lists, axis: gains.sum(axis) / lists.sum(axis),
        n_resamples=rounds,
        batch=100,
        vectorized=True,
        paired=True,
        method="percentile",
        rng=seed,
    ).confidence_interval
    return Difference(mean, float(drawn.low), float(drawn.high))


def hits_of(top: npt.NDArray[np.integer], relevant: sp.csr_matrix) -> npt.NDArray[np.bool_]:
    """Which places of the lists hold a relevant item.

    Args:
        top: (n_lists × k) item numbers, best first; -1 where a list is shorter.
        relevant: (n_lists × n_items) CSR; stored entries are relevant.

    Returns:
        (n_lists × k) bool.
    """
    n_items = relevant.shape[1]
    rows = np.arange(len(top), dtype=np.int64)[:, None]
    keys = np.where(top >= 0, rows * n_items + top, -1)
    of = np.repeat(np.arange(len(top), dtype=np.int64), np.diff(relevant.indptr))
    wanted = np.sort(of * n_items + relevant.indices)
    if not len(wanted):
        return np.zeros(top.shape, bool)
    place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    return np.asarray(wanted[place] == keys)


def list_metrics(
    top: npt.NDArray[np.integer], relevant: sp.csr_matrix, k: Sequence[int] = (10, 20)
) -> ListMetrics:
    """Metrics of ranked lists against what was relevant.

    Args:
        top: (n_lists × n) item numbers, best first, n ≥ max(k) where there are that many items.
        relevant: (n_lists × n_items) CSR; every list has at least one relevant item.
        k: cut-offs.
    """
    hits = hits_of(top, relevant)
    n_relevant = np.diff(relevant.indptr)
    discount = 1.0 / np.log2(np.arange(2, max(k) + 2))
    ideal = np.cumsum(discount)
    recall, ndcg = {}, {}
    for cut in k:
        shown = hits[:, :cut]
        recall[cut] = shown.sum(axis=1) / n_relevant
        gain = (shown * discount[: shown.shape[1]]).sum(axis=1)
        ndcg[cut] = gain / ideal[np.minimum(n_relevant, cut) - 1]
    first = hits.argmax(axis=1)
    found = hits.any(axis=1)
    return ListMetrics(recall, ndcg, np.where(found, 1.0 / (first + 1), 0.0))


def evaluate(
    recommended: pd.DataFrame, relevant: pd.DataFrame, k: int | Sequence[int] = (10, 20)
) -> pd.DataFrame:
    """Score any system's lists: tables in, table out.

    Args:
        recommended: `user_id`, `item_id` and `rank` (1 = best) or `score` (highest = best), which
            are numbers; equal ones keep the order of the rows. With both, `rank` counts.
        relevant: `user_id`, `item_id`; a pair that stands there twice counts once. The users in
            this table are the ones evaluated: one without a list scores 0. In both tables ids are
            compared as text: 1 and "1" are one id.
        k: a cut-off, or several, each 1 or more.

    Returns:
        One row: `users`, `recall@k`, `ndcg@k` for each k, and `mrr`.

    Raises:
        ConfigError: `k` is empty, or not of whole numbers of at least 1.
        DataError: a column is missing, `relevant` is empty, a list holds an item twice, or a rank
            or score is no number.
    """
    cuts = _cut_offs(k)
    _need_columns(recommended, "recommended", ("user_id", "item_id"))
    _need_columns(relevant, "relevant", ("user_id", "item_id"))
    if "rank" not in recommended and "score" not in recommended:
        _refuse("recommended", "rank", "neither `rank` nor `score`", "one of the two", "Add one.")
    if relevant.empty:
        _refuse("relevant", None, "no rows", "at least one row", "Pass what the users chose.")
    ids: dict[str, Any] = {"user_id": str, "item_id": str}
    recommended, relevant = recommended.astype(ids), relevant.astype(ids)
    if recommended.duplicated(list(ids)).any():
        _refuse("recommended", "item_id", "an item twice in one list", "once", "Drop the second.")
    users = pd.Index(relevant["user_id"].unique())
    items = pd.Index(pd.concat([recommended["item_id"], relevant["item_id"]]).unique())
    wanted = sp.csr_matrix(
        (
            np.ones(len(relevant), np.float32),
            (users.get_indexer(relevant["user_id"]), items.get_indexer(relevant["item_id"])),
        ),
        (len(users), len(items)),
    )
    wanted.sum_duplicates()
    by = "rank" if "rank" in recommended else "score"
    _need_numbers(recommended[by], by)
    lists = recommended.sort_values(by, ascending=by == "rank", kind="stable")
    user = users.get_indexer(lists["user_id"])
    lists, user = lists[user >= 0], user[user >= 0]
    place = pd.Series(user).groupby(user).cumcount().to_numpy()
    width = max(max(cuts), int(place.max()) + 1 if len(place) else 1)
    top = np.full((len(users), width), -1, np.int64)
    top[user, place] = items.get_indexer(lists["item_id"])
    return pd.DataFrame([{"users": len(users), **list_metrics(top, wanted, cuts).means()}])


def _cut_offs(k: int | Sequence[int]) -> tuple[int, ...]:
    given: Any = np.atleast_1d(np.asarray(k, dtype=object))
    cuts = tuple(whole(cut) or 0 for cut in given)
    if not cuts or min(cuts) < 1:
        allowed = "whole numbers of at least 1, such as (10, 20)"
        raise ConfigError(f"k: found {k!r}; allowed: {allowed}. Pass one or more of them.")
    return cuts


def _need_numbers(values: pd.Series[Any], column: str) -> None:
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    wrong = values.isna() if numeric else pd.Series(True, index=values.index)
    if not wrong.any():
        return
    place = int(np.flatnonzero(wrong)[0])
    mend = "Make numbers of the column, such as with pandas.to_numeric, and fill what is absent."
    if not numeric:
        found, count = f"{values.iloc[place]!r} in a column of {values.dtype}", len(values)
    else:
        found, count = "no number", int(wrong.sum())
    fault = Fault("recommended", place + 1, column, found, "numbers", mend, count)
    raise DataError([fault])


def _need_columns(frame: pd.DataFrame, name: str, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in frame:
            found = ", ".join(map(str, frame.columns)) or "no columns"
            _refuse(name, column, f"only {found}", f"a column {column!r}", "Add or rename it.")


def _refuse(file: str, column: str | None, found: str, allowed: str, mend: str) -> None:
    raise DataError([Fault(file, None, column, found, allowed, mend)])
