"""What a head predicts: a probability or a rating, from a score that sums over channels.

    score(u, i)      = bias_i + base_i + own(u) + Σ_c g_c(i) · s_c(u, i)
    prediction(u, i) = link(score(u, i))

In lists the channels have one size for every user, and what is the same for all items does not
count. A probability also hangs on how much the user does at all, and a rating on how the user
rates: that is own(u), a weighted sum of facts of the history. It changes no list, nor does the
link, which never falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from kgrank.fusion.history import DAY, Decay, Histories, Spans

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Lists = Literal["new", "all"]

SHRINK = 5.0  # ratings that say as much as knowing nothing: a mean of n counts n / (n + SHRINK)
OWN = ("always", "events", "events of the kinds", "days since", "rates above")
"""The facts of a history that own(u) weighs; see `user_facts`."""


@dataclass(frozen=True)
class Logistic:
    """A probability from a score that is its log-odds, calibrated.

    sigmoid(slope · score + shift) is Platt's map (1999). With knots the score first goes through
    them: (score, calibrated log-odds), both rising, a line between two of them, and beyond the
    first and last as steep as the score itself.
    """

    slope: float = 1.0
    shift: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        steps = np.diff(np.array(self.knots).reshape(-1, 2), axis=0)
        if not self.slope > 0.0 or (steps[:, 0] <= 0.0).any() or (steps[:, 1] < 0.0).any():
            raise ValueError("found a calibration that falls somewhere; allowed: one that rises")

    def __call__(self, scores: npt.ArrayLike) -> Doubles:
        """The probabilities, float64, of the scores' shape."""
        odds = np.asarray(scores, np.float64)
        if self.knots:
            x, y = np.array(self.knots).T
            beyond = np.minimum(odds - x[0], 0.0) + np.maximum(odds - x[-1], 0.0)
            odds = np.interp(odds, x, y) + beyond
        return np.asarray(expit(self.slope * odds + self.shift), np.float64)


@dataclass(frozen=True)
class Bounded:
    """A value on a scale: the score itself, but no lower or higher than the scale goes."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"found a scale from {self.low} to {self.high}; allowed: one that rises"
            )

    def __call__(self, scores: npt.ArrayLike) -> Doubles:
        """The values, float64, of the scores' shape."""
        return np.clip(np.asarray(scores, np.float64), self.low, self.high)


Link = Logistic | Bounded


@dataclass(frozen=True, eq=False)
class Predictor:
    """What a head has beside its fusion weights to predict rather than to rank.

    Attributes:
        kinds: the kinds of events that are predicted.
        base: (n_items) float32, the item's part beside `FusionWeights.bias`: how often the item
            meets these events, or its mean rating.
        own: (5) float64, what each fact of `user_facts` weighs.
        link: from the score to the prediction.
        lists: the pairs it was learned on: "all" products, or those "new" to the user.
        days: the window of a probability, from the newest event that is known on; None where the
            split is not by time. Then what is predicted is what was held out of each user.
        given: the kinds of events that a probability takes for granted, on the same item and
            before; empty where it takes nothing for granted.
    """

    kinds: tuple[str, ...]
    base: Floats
    own: Doubles
    link: Link
    lists: Lists
    days: float | None = None
    given: tuple[str, ...] = ()

    def of_users(self, histories: Histories, spans: Spans) -> Doubles:
        """own(u) of each history, (n_spans) float64."""
        base = self.base if isinstance(self.link, Bounded) else None
        facts = user_facts(histories, spans, self.kinds, base, given=bool(self.given))
        return np.asarray(facts @ self.own)

    def as_json(self) -> dict[str, Any]:
        """All but `base`, as values that JSON can hold."""
        return {
            "kinds": list(self.kinds),
            "own": self.own.tolist(),
            "link": asdict(self.link),
            "lists": self.lists,
            "days": self.days,
            "given": list(self.given),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], base: Floats) -> Predictor:
        """The inverse of `as_json`.

        Raises:
            KeyError, TypeError, ValueError: the values are not such.
        """
        link = dict(values["link"])
        if "knots" in link:
            link["knots"] = tuple((float(x), float(y)) for x, y in link["knots"])
        own = np.array(values["own"], np.float64)
        if own.shape != (len(OWN),) or values["lists"] not in ("new", "all"):
            raise ValueError("found a predictor of another kind")
        return cls(
            kinds=tuple(map(str, values["kinds"])),
            base=base,
            own=own,
            link=Bounded(**link) if "low" in link else Logistic(**link),
            lists=values["lists"],
            days=None if values["days"] is None else float(values["days"]),
            given=tuple(map(str, values.get("given", ()))),  # not in older bundles
        )


def user_facts(
    histories: Histories,
    spans: Spans,
    kinds: Sequence[str],
    base: Floats | None,
    *,
    given: bool = False,
) -> Doubles:
    """What own(u) weighs, (n_spans × 5) float64.

    1; log(1 + events); log(1 + events of the kinds); log(1 + days from the history's newest event
    to the newest of anybody), 0 without times; and how far the user's values lie above `base`:
    Σ (value − base_i) / (n + SHRINK) over the n events of the kinds that have a value.

    Args:
        histories: where the events are.
        spans: the histories.
        kinds: kinds of events.
        base: (n_items) what each item's value is expected to be; None = the last fact is 0.
        given: whether the prediction takes an event for granted. How many there were says nothing
            then; the share of the kinds does: the second fact is 0 and the third less by what it
            was, log((1 + events of the kinds) / (1 + events)).
    """
    events, _ = histories.event_weights(spans, Decay())
    lengths = spans.last - spans.first
    span = np.repeat(np.arange(len(spans)), lengths)
    of_kinds = histories.of_kinds(kinds)[events]
    facts = np.zeros((len(spans), len(OWN)))
    facts[:, 0] = 1.0
    facts[:, 1] = np.log1p(lengths)
    facts[:, 2] = np.log1p(np.bincount(span, of_kinds, len(spans)))
    if given:
        facts[:, 2] -= facts[:, 1]
        facts[:, 1] = 0.0
    newest = np.full(len(spans), np.nan)
    some = lengths > 0
    newest[some] = histories.times[spans.last[some] - 1]
    facts[:, 3] = np.log1p(np.maximum(np.nan_to_num(histories.newest - newest), 0.0) / DAY)
    if base is not None and histories.values is not None:
        above = histories.values[events] - base[histories.items[events]]
        known = of_kinds & np.isfinite(above)
        total = np.bincount(span[known], above[known], len(spans))
        facts[:, 4] = total / (np.bincount(span[known], minlength=len(spans)) + SHRINK)
    return facts
