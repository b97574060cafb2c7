"""Which events are learnt from, chosen on and tested on, where the table itself does not say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from kgrank.errors import DataError, Fault
from kgrank.settings import Section

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class SplitSettings(Section):
    """The `[split]` section: used where the events have no `split` column.

    Where they have one that marks no row as valid, `valid` is used on its train rows.

    Attributes:
        test: the share of the time between the first and the last event that is test, at its end.
        valid: the share just before it that is valid.
    """

    test: Share = 0.1
    valid: Share = 0.1

    @model_validator(mode="after")
    def _leaves_train(self) -> SplitSettings:
        if self.test + self.valid >= 1:
            total = f"{self.test:g} + {self.valid:g}"
            raise ValueError(f"found test + valid = {total}; allowed: below 1, so train has a part")
        return self


@dataclass(frozen=True)
class SplitCuts:
    """How a table was split, to split it (or what it has grown into) in the same way again.

    Attributes:
        valid_from: seconds UTC of the first valid moment; None where nothing is cut off by time.
        test_from: the same of test.
        by_user: the shares cut off each user's own events, where events have no time.
        of_train: only rows that a `split` column marks as train were cut; the others stay.
    """

    valid_from: float | None = None
    test_from: float | None = None
    by_user: SplitSettings | None = None
    of_train: bool = False

    def apply(self, events: pd.DataFrame) -> pd.DataFrame:
        """The events with the `split` column of these cuts.

        With neither times nor shares, a `split` column stays as it is, and without one every
        event is train.

        Args:
            events: as in `Tables.events`, each user's events from the oldest on.

        Raises:
            DataError: cuts in time, but events without a `timestamp`; or of train rows, but events
                without a `split`.
        """
        if not self.of_train:
            return self._cut(events)
        if "split" not in events:
            mend = "Give the events the column they had when the split was made."
            fault = Fault("events", None, "split", "no such column", "one that marks train", mend)
            raise DataError([fault])
        train = (events["split"] == "train").to_numpy(dtype=bool)
        split = events["split"].to_numpy(dtype=object, copy=True)
        split[train] = self._cut(events[train])["split"].to_numpy(dtype=object)
        return _with_split(events, split)

    def _cut(self, events: pd.DataFrame) -> pd.DataFrame:
        if self.by_user is not None:
            return _with_split(events, _split_by_user(events["user_id"], self.by_user))
        if self.valid_from is None and self.test_from is None:
            return events if "split" in events else events.assign(split="train")
        if "timestamp" not in events:
            mend = "Give the events the timestamps they had when the split was made."
            raise DataError([Fault("events", None, "timestamp", "no times", "times", mend)])
        times = events["timestamp"].to_numpy()
        split = np.full(len(events), "train", dtype=object)
        if self.valid_from is not None:
            split[times >= self.valid_from] = "valid"
        if self.test_from is not None:
            split[times >= self.test_from] = "test"
        return _with_split(events, split)


def split_events(events: pd.DataFrame, settings: SplitSettings) -> tuple[pd.DataFrame, SplitCuts]:
    """Give events their `split` column; one that is there already stays, if it has valid rows.

    By time: with t from the first event to the last, test begins at `1 - test` of the way and
    valid at `1 - test - valid`. Without timestamps, the last events of each user: `round(share ·
    n)`, at least one; users with fewer than three events stay in train.

    Where a column is there and marks no row as valid, its train rows are split by the same rule
    into train and valid (`test` counts as 0), and its test rows stay.

    Args:
        events: as in `Tables.events`.

    Raises:
        DataError: no event is left for train, because all have the same time.
    """
    of_train = "split" in events
    if of_train:
        if (events["split"] == "valid").any() or not settings.valid:
            return events, SplitCuts()
        settings = settings.model_copy(update={"test": 0.0})
    rows = events[events["split"] == "train"] if of_train else events
    if "timestamp" not in rows:
        cuts = SplitCuts(by_user=settings, of_train=of_train)
    else:
        first, last = float(rows["timestamp"].min()), float(rows["timestamp"].max())
        span = last - first
        cuts = SplitCuts(
            valid_from=first + (1 - settings.test - settings.valid) * span
            if settings.valid
            else None,
            test_from=first + (1 - settings.test) * span if settings.test else None,
            of_train=of_train,
        )
        if span == 0 and (settings.test or settings.valid):
            found = f"one time ({first:.15g}) in all {len(rows)} rows"
            mend = "Give the events their times, or a split column."
            if of_train:
                found += " of train"
                mend = "Give them their times, or mark some as valid in the split column."
            raise DataError([Fault("events", None, "timestamp", found, "at least two", mend)])
    return cuts.apply(events), cuts


def _with_split(events: pd.DataFrame, split: NDArray[np.object_]) -> pd.DataFrame:
    return events.assign(split=pd.Series(split, index=events.index, dtype="str"))


def _split_by_user(users: pd.Series[str], shares: SplitSettings) -> NDArray[np.object_]:
    """(n_events,) the split of each event, counted from the end of its user's events."""
    codes, ids = pd.factorize(users)
    sizes = np.bincount(codes, minlength=len(ids))  # (n_users,)
    left = sizes[codes] - 1 - users.groupby(codes).cumcount().to_numpy()  # later events of the user
    test = _part(sizes, shares.test)
    valid = np.minimum(_part(sizes, shares.valid), np.maximum(sizes - test - 1, 0))
    split = np.full(len(users), "train", dtype=object)
    split[left < (test + valid)[codes]] = "valid"
    split[left < test[codes]] = "test"
    return split


def _part(sizes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    rounded = np.maximum(np.floor(share * sizes + 0.5), 1).astype(np.int64)
    return np.where((sizes < 3) | (share == 0), 0, rounded)
