"""What an evaluation asks: the rows of a split as queries, under the protocol it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kgrank.errors import DataError, Fault
from kgrank.fusion.evidence import SPLITS, numbered
from kgrank.fusion.history import REFUSED, Decay, Histories, Spans
from kgrank.fusion.queries import Queries, all_allowed, new_only, next_queries, user_queries
from kgrank.kg.tables import Tables
from kgrank.serving.bundle import Bundle


@dataclass(frozen=True, eq=False)
class Asked:
    """The queries of an evaluation, and what its slices are taken over.

    Attributes:
        queries: what is ranked for, against what.
        cold: (columns of `relevant`) bool: never in train.
        new_user: (n_queries) bool: the user has no train event.
    """

    queries: Queries
    cold: npt.NDArray[np.bool_]
    new_user: npt.NDArray[np.bool_]


def all_events(
    bundle: Bundle, tables: Tables, split: str
) -> tuple[Histories, npt.NDArray[np.int8]]:
    """All events, those of the split included, and the split of each.

    Users and items that the bundle does not know have the numbers after those it knows.

    Args:
        bundle: what is evaluated.
        tables: those it was trained on.
        split: "test", or "valid": then test events are left out.

    Returns:
        the events, and (n_events) int8: 0 = train, 1 = valid, 2 = test.

    Raises:
        DataError: the events name an item that the bundle does not know.
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
    return numbered(events, users, items)


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
    if relevant == "new":
        queries = _new(queries)
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
    return Asked(queries, train_items == 0, train_events[queries.users] == 0)


def _known_histories(queries: Queries, n_items: int) -> Queries:
    """The queries with histories of the first n_items only; the others stay among the relevant."""
    known = queries.histories.items < n_items
    counts = np.r_[0, np.cumsum(known)]
    spans = Spans(counts[queries.spans.first], counts[queries.spans.last])
    return replace(queries, histories=queries.histories.of_items(np.arange(n_items)), spans=spans)


def _new(queries: Queries) -> Queries:
    """The queries with only what the user had not met before."""
    met = queries.histories.weights(queries.spans, Decay())
    met.data[:] = 1.0
    narrowed = new_only(replace(queries, excluded=queries.excluded.maximum(met)))
    if not len(narrowed):
        mend = "Ask for all relevant rows."
        raise DataError([Fault("events", None, "item_id", "nothing new", "some new items", mend)])
    return narrowed
