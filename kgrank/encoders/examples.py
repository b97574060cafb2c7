"""What a text encoder is fine-tuned on: moments of histories, and texts with labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from kgrank.encoders.text import column_texts
from kgrank.errors import ROW, ConfigError, DataError, Fault

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

MET = 50  # events before a moment whose products are no candidates of it
CLASSES = ("negative", "neutral", "positive")  # of a rating, where no column names classes


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The distinct texts of products.

    Attributes:
        texts: those that say something.
        of_item: (n_items) int64 number of each product's text; -1 = it says nothing.
    """

    texts: tuple[str, ...]
    of_item: Ints

    @classmethod
    def of(cls, texts: Sequence[str]) -> Catalogue:
        """Of one text a product.

        Raises:
            DataError: fewer than two distinct texts say something.
        """
        whole = [" ".join(text.split()) for text in texts]
        distinct = [text for text in dict.fromkeys(whole) if text]
        if len(distinct) < 2:
            found = f"{len(distinct)} distinct text(s) among {len(texts)} products"
            mend = "Fill in titles, or name other columns in [text] fields."
            raise DataError([Fault("items", None, None, found, "two or more", mend)])
        place = {text: number for number, text in enumerate(distinct)}
        return cls(tuple(distinct), np.array([place.get(text, -1) for text in whole], np.int64))


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of users' time: what was met before, and what came.

    Attributes:
        met: (n × MET) int64 products of the events before, newest first; -1 = there is none.
        targets: (n) int64 the product that came.
        users: (n) int64.
    """

    met: Ints
    targets: Ints
    users: Ints

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: npt.NDArray[np.integer]) -> Moments:
        """Some of them."""
        return Moments(self.met[rows], self.targets[rows], self.users[rows])

    def kept(self, window: int) -> Ints:
        """The products that speak for the user, (n × window): -1 for none and for the target."""
        history = self.met[:, :window]
        return np.where(history == self.targets[:, None], -1, history)


def moments(
    events: pd.DataFrame,
    items: pd.DataFrame,
    catalogue: Catalogue,
    split: str,
    kinds: Collection[str] | None = None,
) -> Moments:
    """The moments of a split, each with some earlier event on another product.

    A product counts where the user first has an event on it, or one of the kinds. Products that
    say nothing are left out.

    Args:
        events: as in `Tables.events`, with a split, each user's events from the oldest on. Of
            valid moments valid events are earlier ones too.
        items: as in `Tables.items`.
        catalogue: of the items.
        split: "train" or "valid".
        kinds: the kinds of events that are targets; None = all.
    """
    seen = events[events["split"].isin({"train", split})]
    numbers = pd.Index(items["item_id"]).get_indexer(pd.Index(seen["item_id"]))
    speaks = (numbers >= 0) & (catalogue.of_item[numbers] >= 0)
    users, _ = pd.factorize(seen["user_id"])
    order = np.flatnonzero(speaks)
    order = order[np.argsort(users[order], kind="stable")]
    users, numbers = users[order].astype(np.int64), numbers[order].astype(np.int64)
    of_kind = np.ones(len(order), bool)
    if kinds is not None:
        of_kind = seen["event"].isin(kinds).to_numpy()[order]
    counted = np.flatnonzero(of_kind)
    first_time = np.unique(users[counted] * len(items) + numbers[counted], return_index=True)[1]
    rows = np.sort(counted[first_time])
    rows = rows[(seen["split"].to_numpy() == split)[order][rows]]
    begins = np.r_[0, np.cumsum(np.bincount(users, minlength=users.max(initial=-1) + 1))]
    places = rows[:, None] - 1 - np.arange(MET)
    real = places >= begins[users[rows]][:, None]
    met = np.where(real, numbers[np.where(real, places, 0)], -1)
    found = Moments(met, numbers[rows], users[rows])
    others = (met >= 0) & (met != found.targets[:, None])
    return found.take(np.flatnonzero(others.any(axis=1)))


@dataclass(frozen=True, eq=False)
class Labelled:
    """Texts with labels.

    Attributes:
        texts: n strings.
        labels: (n) float32 ratings, or class numbers.
    """

    texts: tuple[str, ...]
    labels: Floats

    def __len__(self) -> int:
        return len(self.labels)


def labelled(
    events: pd.DataFrame,
    texts: Sequence[str],
    labels: npt.NDArray[np.float32],
    split: str,
) -> Labelled:
    """The rows of a split that have a text and a label (one that is not NaN)."""
    kept = (events["split"] == split).to_numpy() & np.isfinite(labels)
    whole = [" ".join(text.split()) for text in texts]
    rows = [row for row in np.flatnonzero(kept) if whole[row]]
    return Labelled(tuple(whole[row] for row in rows), labels[rows])


def event_texts(
    events: pd.DataFrame, field: str | None, items: pd.DataFrame, catalogue: Catalogue
) -> list[str]:
    """One text an event: the column `field`, such as a review, or else the product's text.

    Raises:
        ConfigError: there is no such column.
    """
    if field is None:
        numbers = pd.Index(items["item_id"]).get_indexer(pd.Index(events["item_id"]))
        of = np.where(numbers >= 0, catalogue.of_item[numbers], -1)
        return ["" if number < 0 else catalogue.texts[number] for number in of]
    return column_texts(_column(events, "finetune.event_field", field))


def _column(events: pd.DataFrame, setting: str, name: str) -> pd.Series[Any]:
    if name not in events.columns:
        there = ", ".join(str(column) for column in events if column != ROW)
        raise ConfigError(
            f"{setting}: found {name!r}; allowed: the columns of events, {there}. "
            "Name one of them, or add the column."
        )
    return events[name]


def ratings(
    events: pd.DataFrame, kinds: Collection[str], scale: tuple[float, float]
) -> npt.NDArray[np.float32]:
    """The rating of each event, NaN where it is none of the kinds or has none.

    Raises:
        DataError: a rating is not on the scale.
    """
    of_kind = events["event"].isin(kinds).to_numpy()
    values = np.where(of_kind, events["value"].to_numpy(np.float64), np.nan)
    low, high = scale
    outside = np.flatnonzero((values < low) | (values > high))
    if len(outside):
        wrong = events.iloc[outside]
        first, row = wrong.iloc[0], None
        if ROW in events:
            first = wrong.iloc[wrong[ROW].argmin()]
            row = int(first[ROW])
        found = f"the rating {first['value']:g} (of user {first['user_id']!r} for item "
        found += f"{first['item_id']!r})"
        mend = "Correct the values, or set finetune.scale."
        where = f"{low:g} to {high:g}"
        raise DataError([Fault("events", row, "value", found, where, mend, len(outside))])
    return values.astype(np.float32)


def sentiments(
    events: pd.DataFrame,
    column: str | None,
    kinds: Collection[str],
    scale: tuple[float, float],
) -> tuple[npt.NDArray[np.float32], tuple[str, ...]]:
    """The class of each event, NaN where it has none, and the classes' names.

    A column gives its own classes, in the order of the alphabet. Without one a rating below the
    middle of the scale is negative, on it neutral, above it positive.

    Raises:
        ConfigError: there is no such column.
        DataError: as `ratings`.
    """
    if column is None:
        values, middle = ratings(events, kinds, scale), sum(scale) / 2
        classes = np.where(np.isnan(values), np.nan, 1 + np.sign(values - middle))
        return classes.astype(np.float32), CLASSES
    words = column_texts(_column(events, "finetune.label", column))
    names = tuple(sorted({word for word in words if word}))
    place = {name: float(number) for number, name in enumerate(names)}
    return np.array([place.get(word, np.nan) for word in words], np.float32), names
