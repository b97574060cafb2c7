"""The numbers that a fit sees: tables turned into histories, features and side facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from kgrank.fusion.history import DAY, Decay, Histories, Spans
from kgrank.fusion.item_item import LARGE_ITEMS, Matrix, Moments, product, side_rows
from kgrank.fusion.weights import ItemSide
from kgrank.kg.vocabulary import Vocabulary

SPLITS = ("train", "valid", "test")
WINDOW = 10  # events that a directed channel looks back over
FADE = 0.5  # the place'th event ahead counts place^-FADE
RECENT = 300  # events a user that enter the second moments of a large catalogue
TREND = 28 * DAY  # how far back the trend looks


class Steps(NamedTuple):
    """What the rows of a directed regression hold: one for each event but a user's first.

    Attributes:
        power: an event before counts (1 + age)^-power, age 0 being the newest.
        reach: so many events are what comes next, each the less the later it comes.
    """

    power: float
    reach: int = 1

    @classmethod
    def of_choice(cls, choice: Mapping[str, Any]) -> Steps | None:
        """What a bundle's facts say of a channel; None for one that is not directed."""
        if "steps" not in choice:  # a bundle of before the reach was chosen
            return None if choice.get("power") is None else cls(choice["power"])
        return cls(**choice["steps"]) if choice["steps"] else None

    @property
    def ages(self) -> npt.NDArray[np.float32]:
        """What the events before count, newest first, (WINDOW) float32."""
        return np.asarray((1.0 + np.arange(WINDOW)) ** -self.power, np.float32)

    @property
    def places(self) -> npt.NDArray[np.float32]:
        """What the events from there on count, (reach) float32."""
        return np.asarray((1.0 + np.arange(self.reach)) ** -FADE, np.float32)


@dataclass(frozen=True, eq=False)
class ItemFeatures:
    """What is known of the items besides who chose them; rows of length 1, or 0 where nothing is.

    Attributes:
        words: (n_items × n_terms) float32 CSR, TF-IDF of the text.
        entities: (n_items × n_entities) float32 CSR, IDF-weighted graph neighbours.
        vectors: (n_items × dim) float32, whitened text vectors; None without a text encoder.
        images: (n_items × dim) float32, whitened picture vectors; None without an image encoder.
    """

    words: sp.csr_matrix
    entities: sp.csr_matrix
    vectors: npt.NDArray[np.float32] | None = None
    images: npt.NDArray[np.float32] | None = None


def numbered(
    events: pd.DataFrame, users: Vocabulary, items: Vocabulary
) -> tuple[Histories, npt.NDArray[np.int8]]:
    """Events as histories, and the split of each event (a number into SPLITS; 0 without a split).

    Args:
        events: as in `Tables.events`, each user's events from the oldest on.
        users: numbers the users.
        items: numbers the items.
    """
    kinds = pd.Categorical(events["event"])
    user_numbers = users.numbers(events["user_id"])
    timed, valued = "timestamp" in events, "value" in events and bool(events["value"].notna().any())
    values = events["value"].to_numpy(np.float64, na_value=np.nan) if valued else None
    times = events["timestamp"].to_numpy() if timed else np.full(len(events), np.nan)
    histories = Histories.from_arrays(
        user_numbers,
        items.numbers(events["item_id"]),
        kinds.codes,
        times,
        kind_names=tuple(map(str, kinds.categories)),
        n_users=len(users),
        n_items=len(items),
        values=values,
    )
    if "split" not in events:
        return histories, np.zeros(len(events), np.int8)
    codes = pd.Categorical(events["split"], categories=list(SPLITS)).codes
    return histories, codes[np.argsort(user_numbers, kind="stable")]


def item_side(histories: Histories) -> ItemSide:
    """Popularity, trend and coldness from the events that a fit may see."""
    users = np.asarray(histories.binary().sum(axis=0)).ravel()
    newest = np.nanmax(histories.times) if np.isfinite(histories.times).any() else np.nan
    recent = histories.items[histories.times > newest - TREND]
    popularity = _scaled(users)
    trend = _scaled(np.bincount(recent, minlength=histories.n_items)) if len(recent) else popularity
    return ItemSide(popularity=popularity, trend=trend, cold=users == 0)


def _scaled(counts: npt.NDArray[np.number]) -> npt.NDArray[np.float32]:
    logs = np.log1p(counts.astype(np.float64))
    return np.asarray(logs / max(logs.max(), 1e-12), np.float32)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Events a fit may see, and the item features; what item–item weights are made from."""

    histories: Histories
    features: ItemFeatures

    @classmethod
    def of_events(cls, histories: Histories) -> Evidence:
        """Events alone: nothing is known of the items."""
        nothing = sp.csr_matrix((histories.n_items, 1), dtype=np.float32)
        return cls(histories, ItemFeatures(nothing, nothing))

    def linear_moments(self) -> Moments:
        """Of EASE: who chose this also chose that."""
        chosen = self.recent().binary()
        gram = product(chosen, chosen)
        return self._moments(gram, gram)

    def directed_moments(self, steps: Steps) -> Moments:
        """Of SLIT: after these, that (and what comes soon after it)."""
        inputs, outputs = self.steps(steps)
        return self._moments(product(inputs, inputs), product(inputs, outputs))

    def steps(self, steps: Steps) -> tuple[sp.csr_matrix, sp.csr_matrix]:
        """Rows of the directed regression: before each event but a user's first, and from it on.

        Returns:
            inputs and outputs, each (n_steps × n_items) float32 CSR.
        """
        histories = self.recent()
        events = np.arange(len(histories.items))
        starts = histories.starts[histories.users()]
        later = events[events > starts]
        before = Spans(np.maximum(starts[later], later - WINDOW), later)
        inputs = histories.weights(before, Decay(power=steps.power))
        ends = histories.starts[1:][histories.users()[later]]
        ahead = Spans(later, np.minimum(ends, later + steps.reach))
        row, events_ahead = ahead.events()
        outputs = histories.matrix(ahead, events_ahead, steps.places[events_ahead - later[row]])
        return inputs, outputs

    def _moments(self, gram: Matrix, cross: Matrix) -> Moments:
        features = self.features
        return Moments(gram, cross, side_rows(features.entities), side_rows(features.words))

    def recent(self) -> Histories:
        """What enters the moments: all, or each user's last events for a large catalogue."""
        histories = self.histories
        if histories.n_items <= LARGE_ITEMS:
            return histories
        from_end = np.repeat(histories.starts[1:], np.diff(histories.starts))
        return histories.where(from_end - np.arange(len(histories.items)) <= RECENT)

    def of_items(self, items: npt.NDArray[np.integer]) -> Evidence:
        """The same evidence for some of the items only, numbered anew in the order given."""
        of = self.features
        vectors, images = (
            None if table is None else table[items] for table in (of.vectors, of.images)
        )
        features = ItemFeatures(of.words[items], of.entities[items], vectors, images)
        return Evidence(self.histories.of_items(items), features)
