"""What an evaluation asks: the rows of a split as queries, under the protocol it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from kgrank.errors import DataError, Fault
from kgrank.fusion.evidence import SPLITS, numbered
from kgrank.fusion.history import REFUSED, Decay, Histories, Spans
from kgrank.fusion.queries import Queries, all_allowed, new_only, next_queries, user_queries
from kgrank.kg.tables import Tables
from kgrank.serving.bundle import Bundle

BLOCK = 65_536  # queries whose histories are looked through at a time


@dataclass(frozen=True, eq=False)
class Asked:
    """The queries of an evaluation, and what its slices are taken over.

    Attributes:
        queries: what is ranked for, against what.
        cold: (columns of `relevant`) bool: never in train.
        new_user: (n_queries) bool: the user has no train event.
        met_before: how many queries have something relevant that the user had met.
    """

    queries: Queries
    cold: npt.NDArray[np.bool_]
    new_user: npt.NDArray[np.bool_]
    met_before: int


def all_events(
    bundle: Bundle, tables: Tables, split: str
) -> tuple[Histories, npt.NDArray[np.int8]]:
    """All events, those of the split included, and the split of each.

    Users and items that the bundle does not know have the numbers after those it knows. Test rows
    may be any; train and valid rows must be those of the bundle, in any order where they have
    times. Refusals may have come since: nothing is learned from them.

    Args:
        bundle: what is evaluated.
        tables: those it was trained on.
        split: "test", or "valid": then test events are left out.

    Returns:
        the events, and (n_events) int8: 0 = train, 1 = valid, 2 = test.

    Raises:
        DataError: the events name an item that the bundle does not know, or their train and valid
            rows (user, item, kind, time and split) are not those of the bundle.
    """
    events = bundle.cuts.apply(tables.events)
    unknown = ~events["item_id"].isin(bundle.item_table["item_id"])
    if tables.items_from_events:  # what only test rows name is no fault: the bundle cannot list it
        unknown &= events["split"] != "test"
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        found = f"item {events['item_id'].iloc[row]!r}, which the bundle does not know"
        mend = "Evaluate on the tables the bundle was trained on, or train it again."
        allowed = "items of the bundle"
        raise DataError(
            [Fault("events", None, "item_id", found, allowed, mend, int(unknown.sum()))]
        )
    if split == "valid":
        events = events[events["split"] != "test"]
    new = events.loc[~events["user_id"].isin(bundle.users.ids()), "user_id"].unique()
    users = bundle.users.extended(new)
    items = bundle.items.extended(events["item_id"])
    full, splits = numbered(events, users, items)
    _refuse_other_rows(_row_keys(full, splits), _row_keys(*bundle.numbered_events))
    return full, splits


def _row_keys(histories: Histories, splits: npt.NDArray[np.int8]) -> npt.NDArray[np.uint64]:
    """(n_rows) what stands in each row that a fit may see, hashed and sorted; no refusals.

    An event without a time has its place among those of its user.
    """
    kept = np.flatnonzero((splits < SPLITS.index("test")) & ~histories.of_kinds((REFUSED,)))
    users, items, when = histories.users()[kept], histories.items[kept], histories.times[kept]
    if not np.isfinite(when).any():
        when = (np.arange(len(kept)) - np.searchsorted(users, users)).astype(np.float64)
    kinds = pd.util.hash_array(np.array(histories.kind_names, dtype=object))[histories.kinds[kept]]
    what = (users.astype(np.uint64) << np.uint64(32)) + items.astype(np.uint64)
    rows = pd.DataFrame({"what": what, "how": kinds + splits[kept].astype(np.uint64), "when": when})
    return np.sort(pd.util.hash_pandas_object(rows, index=False).to_numpy(np.uint64))


def _refuse_other_rows(found: npt.NDArray[np.uint64], wanted: npt.NDArray[np.uint64]) -> None:
    """See that the train and valid rows are those of the bundle, whatever their order."""
    if np.array_equal(found, wanted):
        return
    _, of = np.unique(np.concatenate([found, wanted]), return_inverse=True)
    more = np.bincount(of[: len(found)], minlength=len(of)) - np.bincount(
        of[len(found) :], minlength=len(of)
    )
    added, missing = int(more[more > 0].sum()), -int(more[more < 0].sum())
    told = f"{added} train and valid rows that are not the bundle's, and {missing} of its missing"
    allowed = f"the {len(wanted)} that it was trained on, each with its user, item, event and time"
    mend = "Name the tables it was trained on with --source, or train it again on these."
    raise DataError([Fault("events", None, None, told, allowed, mend)])


def ask(
    bundle: Bundle,
    full: Histories,
    splits: npt.NDArray[np.int8],
    split: str,
    protocol: str,
    history: str,
    repeats: str,
    relevant: str,
    kinds: Sequence[str],
) -> Asked:
    """The queries of a split, asked for events of some kinds.

    Args:
        bundle: what is evaluated.
        full, splits: as `all_events` gives them.
        split, protocol, history, repeats, relevant: as `evaluate_bundle` takes them.
        kinds: the kinds of events that are relevant.

    Raises:
        DataError: the split holds no such rows, or nothing new is asked for.
    """
    asked = (splits == SPLITS.index(split)) & full.of_kinds(kinds)
    asked &= ~np.isin(full.kind_names, REFUSED)[full.kinds]
    if not asked.any():
        mend = "Give rows of the split, or widen [split]."
        raise DataError([Fault("events", None, "split", f"no {split} users", "some", mend)])
    in_train = splits == 0
    before = in_train if history == "train" or split == "valid" else splits < 2
    if protocol == "user":
        queries = user_queries(full.where(before), full.where(asked), full.where(splits < 2))
        if split == "valid":
            queries = replace(queries, excluded=full.where(before).binary()[queries.users])
    else:
        queries = next_queries(full, np.flatnonzero(asked))
    met_before = _met_before(queries)
    if relevant == "new":
        queries, met_before = _new(queries), 0
    if protocol == "next" and history == "train":
        counts = np.r_[0, np.cumsum(in_train)]
        spans = Spans(counts[queries.spans.first], counts[queries.spans.last])
        queries = replace(queries, histories=full.where(in_train), spans=spans)
    if repeats != "exclude":
        queries = all_allowed(queries)
    if full.n_items > len(bundle.items):
        queries = _known_histories(queries, len(bundle.items))
    train_items = np.bincount(full.items[in_train], minlength=full.n_items)
    train_events = np.bincount(full.users()[in_train], minlength=full.n_users)
    return Asked(queries, train_items == 0, train_events[queries.users] == 0, met_before)


def _known_histories(queries: Queries, n_items: int) -> Queries:
    """The queries with histories of the first n_items only; the others stay among the relevant."""
    known = queries.histories.items < n_items
    counts = np.r_[0, np.cumsum(known)]
    spans = Spans(counts[queries.spans.first], counts[queries.spans.last])
    return replace(queries, histories=queries.histories.of_items(np.arange(n_items)), spans=spans)


def _met(queries: Queries) -> sp.csr_matrix:
    """(n_queries × n_items) ones: what the user had met, listed again or not."""
    met = queries.histories.weights(queries.spans, Decay())
    met.data[:] = 1.0
    return queries.excluded.maximum(met)


def _met_before(queries: Queries) -> int:
    """How many of the queries have something relevant that the user had met."""
    count = 0
    for start in range(0, len(queries), BLOCK):
        block = queries.take(np.arange(start, min(start + BLOCK, len(queries))))
        count += int(np.count_nonzero(np.diff(block.relevant.multiply(_met(block)).tocsr().indptr)))
    return count


def _new(queries: Queries) -> Queries:
    """The queries with only what the user had not met before."""
    narrowed = new_only(replace(queries, excluded=_met(queries)))
    if not len(narrowed):
        mend = "Ask for all relevant rows."
        raise DataError([Fault("events", None, "item_id", "nothing new", "some new items", mend)])
    return narrowed
