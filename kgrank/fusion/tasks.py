"""Heads that predict: how probably a click or a purchase follows, and what a rating will be.

The moment is the end of train, and there is one query for each user with a history then: also for
those who did nothing afterwards, since a probability has to be right for them too. A pair (user,
item) is a hit of a task if valid holds an event of the task's kinds for it. So the probability of
"purchase" is **that the user buys this item at least once within the window**, which is as long as
valid. Where the split is not by time, it is that what was held out of the user holds a purchase of
it. The pairs are all there are or, where products are hardly ever met again, those of products
that are new to the user.

These pairs are too many to fit on, and near all of them are misses, but a miss near the top of a
list says more than others. So all hits are taken, all pairs near the top of any channel, and of the
rest some drawn evenly, each of which stands for as many as it was drawn from. With these weights
the intercept is that of all pairs and needs no correction afterwards (King and Zeng, 2001).

A head is a regularised regression on the channels' scores. Its penalty is chosen, its probabilities
are calibrated and its figures taken on users that it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.calibration import auc, calibrate, calibration_error, log_loss
from kgrank.fusion.channels import Channel
from kgrank.fusion.history import DAY, Histories
from kgrank.fusion.model import Head
from kgrank.fusion.pairs import Pairs
from kgrank.fusion.prediction import OWN, SHRINK, Bounded, Link, Lists, Predictor, user_facts
from kgrank.fusion.queries import Queries
from kgrank.fusion.regression import Loss, regression
from kgrank.fusion.settings import TaskSettings
from kgrank.fusion.weights import FusionWeights, ItemSide

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

TASKS: tuple[Head, ...] = ("click", "purchase", "rating")
ENOUGH = 50  # hits or ratings on valid below which a task has no head
QUERIES = 2_000
CELLS = 50_000_000  # queries × items that are scored
PENALTIES = (100.0, 10.0, 1.0)  # of a parameter, times its column's variance
FLOOR = 1e-3  # of that variance
LISTED = 10  # pairs at the top of a list whose probabilities are looked at on their own


@dataclass(frozen=True, eq=False)
class TaskHead:
    """A head that predicts, as it was found on valid.

    Attributes:
        weights: gates, trend, and the bias of items never seen in training.
        popularity, share: what an item's popularity, and its share of the task's events, weigh in
            `Predictor.base`; 0 for ratings.
        own: (5) weights of the user's facts.
        link: from the score to the prediction.
        kinds, lists, days: as in `Predictor`.
        facts: how it was found and how well it does, as plain values.
    """

    weights: FusionWeights
    popularity: float
    share: float
    own: Doubles
    link: Link
    kinds: tuple[str, ...]
    lists: Lists
    days: float | None
    facts: dict[str, Any]

    def predictor(self, histories: Histories, side: ItemSide) -> Predictor:
        """What a model has beside the weights, of items as `histories` and `side` show them."""
        if isinstance(self.link, Bounded):
            base = MeanRatings.of(histories, self.kinds, shrink=SHRINK).of_items
        else:
            base = self.popularity * side.popularity + self.share * _shares(histories, self.kinds)
        parts = self.own, self.link, self.lists, self.days
        return Predictor(self.kinds, base.astype(np.float32), *parts)


@dataclass(frozen=True, eq=False)
class TaskHeads:
    """The heads that were found; and task → why it has none."""

    found: dict[Head, TaskHead] = field(default_factory=dict)
    left_out: dict[Head, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MeanRatings:
    """What ratings are on average; an item or user without any gets the mean of all.

    Attributes:
        mean: of all ratings; 0 without any.
        of_items: (n_items) float64.
        of_users: (n_users) float64.
    """

    mean: float
    of_items: Doubles
    of_users: Doubles

    @classmethod
    def of(cls, histories: Histories, kinds: Sequence[str], *, shrink: float = 0.0) -> MeanRatings:
        """The means of the events of these kinds that have a value.

        Args:
            histories: the events.
            kinds: kinds of events that rate.
            shrink: so many ratings at the mean of all are added to each item's and user's own.
        """
        rows = _ratings(histories, kinds)
        if histories.values is None or not len(rows):
            return cls(0.0, np.zeros(histories.n_items), np.zeros(histories.n_users))
        values = histories.values[rows]
        mean = float(values.mean())

        def means(of: npt.NDArray[np.integer], n: int) -> Doubles:
            total = np.bincount(of, values - mean, n)
            count = np.maximum(np.bincount(of, minlength=n) + shrink, 1e-9)
            return np.asarray(mean + total / count)

        of_items = means(histories.items[rows], histories.n_items)
        return cls(mean, of_items, means(histories.users()[rows], histories.n_users))


def learn_tasks(
    channels: Sequence[Channel],
    side: ItemSide,
    histories: Histories,
    splits: npt.NDArray[np.int8],
    settings: TaskSettings,
    *,
    lists: Lists,
    seed: int,
) -> TaskHeads:
    """Fit a head for each task that valid holds enough rows of.

    Args:
        channels: fitted on train alone.
        side: popularity, trend and coldness as of train.
        histories: train and valid events.
        splits: (n_events) 0 = train, 1 = valid.
        settings: which kinds of events belong to which task.
        lists: which pairs count: of "all" products, or of those "new" to the user.
        seed: of what is drawn.
    """
    train, valid = histories.where(splits == 0), histories.where(splits == 1)
    n = max(2, min(QUERIES, CELLS // histories.n_items))
    queries = task_queries(train, lists).sample(n, seed)
    heads = TaskHeads()
    outcomes: dict[Head, sp.csr_matrix] = {}
    kinds = {task: _present(settings, task, histories) for task in TASKS}
    for task in TASKS:
        outcome = outcomes_of(task, valid, kinds[task], queries)
        if outcome.nnz >= ENOUGH:
            outcomes[task] = outcome
        elif not kinds[task]:
            heads.left_out[task] = "no event is of its kinds"
        else:
            found = f"{outcome.nnz} pairs on valid"
            heads.left_out[task] = f"{found}, {ENOUGH} are needed"
    hits = [outcome for task, outcome in outcomes.items() if task != "rating"]
    if hits:
        pairs = Pairs.sampled(channels, queries, sum(hits).tocsr(), seed)
    for task, outcome in outcomes.items():
        regressor = _Regressor(train, side, queries, kinds[task], lists, window(train, valid))
        if task == "rating":
            rated = Pairs.at(channels, queries, outcome)
            heads.found[task] = regressor.rating_head(rated, outcome.data)
        else:
            labels = np.asarray(outcome[pairs.queries, pairs.items], np.float64).ravel()
            heads.found[task] = regressor.event_head(pairs, labels)
    return heads


def _present(settings: TaskSettings, task: Head, histories: Histories) -> tuple[str, ...]:
    named: tuple[str, ...] = getattr(settings, task)
    return tuple(kind for kind in named if kind in histories.kind_names)


def task_queries(known: Histories, lists: Lists) -> Queries:
    """One query for each user with a history, whatever follows; nothing is relevant yet."""
    users = np.flatnonzero(np.diff(known.starts))
    met = known.binary()[users]
    nothing = sp.csr_matrix(met.shape, dtype=np.float32)
    excluded = met if lists == "new" else nothing
    return Queries(known, known.of_users(users), users, nothing, excluded)


def outcomes_of(
    task: Head, later: Histories, kinds: Sequence[str], queries: Queries
) -> sp.csr_matrix:
    """What followed, (n_queries × n_items) CSR: 1 for a hit, or the value of the last rating."""
    if task != "rating":
        hits = later.where(later.of_kinds(kinds)).binary()[queries.users]
        hits = (hits - hits.multiply(queries.excluded)).tocsr()
        hits.eliminate_zeros()
        return hits
    rows = _ratings(later, kinds)[::-1]  # the last first
    users = later.users()[rows]
    _, last = np.unique(users * later.n_items + later.items[rows], return_index=True)
    rows, users = rows[last], users[last]
    values = np.zeros(0) if later.values is None else later.values[rows]
    shape = (later.n_users, later.n_items)
    return sp.csr_matrix((values, (users, later.items[rows])), shape)[queries.users]


def _ratings(histories: Histories, kinds: Sequence[str]) -> npt.NDArray[np.int64]:
    """The numbers of the events of these kinds that have a value."""
    if histories.values is None:
        return np.zeros(0, np.int64)
    return np.flatnonzero(histories.of_kinds(kinds) & np.isfinite(histories.values))


def window(known: Histories, later: Histories) -> float | None:
    """Days from the newest known event to the newest later one; None if not all are later."""
    if not len(later.times) or not (later.times >= known.newest).all():
        return None
    return (later.newest - known.newest) / DAY


def _shares(histories: Histories, kinds: Sequence[str]) -> Doubles:
    """log(users with such an event on the item + ½), 0 for the mean item; (n_items) float64."""
    users = np.asarray(histories.where(histories.of_kinds(kinds)).binary().sum(axis=0)).ravel()
    logs = np.log(users + 0.5)
    return np.asarray(logs - logs.mean())


@dataclass(frozen=True, eq=False)
class _Regressor:
    """What is common to the heads: how pairs become rows, and parameters a head."""

    train: Histories
    side: ItemSide
    queries: Queries
    kinds: tuple[str, ...]
    lists: Lists
    days: float | None

    def event_head(self, pairs: Pairs, hits: Doubles) -> TaskHead:
        """A head whose prediction is a probability."""
        facts = user_facts(self.train, self.queries.spans, self.kinds, None)
        popularity, shares = self.side.popularity, _shares(self.train, self.kinds)
        design = self._design(pairs, facts, np.stack([popularity, shares], axis=1))
        fitted = self._fitted(design, hits, pairs, "logistic", np.zeros(len(pairs)))
        weights, half = pairs.weights, self._half(pairs)
        method, link, calibrated = calibrate(fitted.held_out, hits, weights, half)
        before = 1.0 / (1.0 + np.exp(-fitted.held_out))
        listed = _listed(pairs, fitted.held_out)
        facts_of = {
            "pairs": float(weights.sum()),
            "hits": int(hits.sum()),
            "share": float(np.average(hits, weights=weights)),
            "penalty": fitted.penalty,
            "calibration": method,
            "auc": auc(fitted.held_out, hits, weights),
            "log_loss": log_loss(calibrated, hits, weights),
        }
        for name, found in (("before", before), ("after", calibrated)):
            facts_of[f"ece_{name}"] = calibration_error(found, hits, weights)
            of_listed = calibration_error(found[listed], hits[listed], weights[listed])
            facts_of[f"ece@{LISTED}_{name}"] = of_listed
        return self._head(fitted.theta, link, facts_of)

    def rating_head(self, pairs: Pairs, values: Doubles) -> TaskHead:
        """A head whose prediction is a value on the scale of the ratings."""
        rows = _ratings(self.train, self.kinds)
        known = values if self.train.values is None else np.r_[self.train.values[rows], values]
        base = MeanRatings.of(self.train, self.kinds, shrink=SHRINK).of_items
        facts = user_facts(self.train, self.queries.spans, self.kinds, base.astype(np.float32))
        design = self._design(pairs, facts, np.zeros((len(base), 2)))
        fitted = self._fitted(design, values, pairs, "squared", base[pairs.items])
        link = Bounded(float(known.min()), float(max(known.max(), known.min() + 1e-6)))
        plain = MeanRatings.of(self.train, self.kinds)
        users = self.queries.users[pairs.queries]
        means = plain.of_items[pairs.items] + plain.of_users[users] - plain.mean
        guesses = {
            "head": link(fitted.held_out),
            "global_mean": np.full(len(values), plain.mean),
            "item_and_user_means": link(means),
        }
        errors = {name: rating_errors(guess, values) for name, guess in guesses.items()}
        found = {"pairs": len(values), "penalty": fitted.penalty, **errors.pop("head")}
        return self._head(fitted.theta, link, {**found, "baselines": errors})

    def _design(self, pairs: Pairs, facts: Doubles, of_items: Doubles) -> Doubles:
        """Rows of the regression, (n_pairs × (2 · n_channels + 9)) float64.

        A gate rises or falls with popularity p from 0 to 1, and stays at least 0 between if it is
        at both ends: a gate of a · (1 − p) + b · p has two columns. An item never seen in training
        is weighed as one that is hardly known, with a bias of its own.
        """
        popularity = self.side.popularity[pairs.items, None]
        trend, cold = self.side.trend[pairs.items], self.side.cold[pairs.items]
        parts = (
            pairs.scores * (1.0 - popularity),
            pairs.scores * popularity,
            np.stack([np.where(cold, 0.0, trend), cold], axis=1),
            of_items[pairs.items],
            facts[pairs.queries],
        )
        return np.concatenate(parts, axis=1, dtype=np.float64)

    def _half(self, pairs: Pairs) -> Flags:
        """Which half the pair's user is in."""
        half = (self.queries.users * 2_654_435_761 >> 7) % 2 == 1
        return np.asarray(half[pairs.queries])

    def _fitted(
        self, design: Doubles, target: Doubles, pairs: Pairs, loss: Loss, offset: Doubles
    ) -> _Fitted:
        """The parameters, with the penalty that does best on users that were not fitted on."""
        weights, half = pairs.weights, self._half(pairs)
        free = design.shape[1] - 2 * pairs.scores.shape[1]
        lower = np.r_[np.zeros(design.shape[1] - free), np.full(free, -np.inf)]
        mean = np.average(design, axis=0, weights=weights)
        spread = np.average(design**2, axis=0, weights=weights) - mean**2
        scale = np.maximum(spread, FLOOR)
        scale[-len(OWN)] = FLOOR  # the intercept

        def fit(rows: Flags | slice, penalty: float, start: Doubles | None) -> Doubles:
            return regression(
                design[rows],
                target[rows],
                weights[rows],
                loss=loss,
                penalty=penalty * scale,
                lower=lower,
                offset=offset[rows],
                start=start,
            )

        best: _Fitted | None = None
        least = np.inf
        starts: list[Doubles | None] = [None, None]
        for penalty in PENALTIES:
            held_out = offset.copy()
            for side, judged in enumerate((half, ~half)):
                starts[side] = theta = fit(~judged, penalty, starts[side])
                held_out[judged] += design[judged] @ theta
            if loss == "logistic":
                found = log_loss(1.0 / (1.0 + np.exp(-held_out)), target, weights)
            else:
                found = float(np.mean((held_out - target) ** 2))
            if found < least:
                least, best = found, _Fitted(theta, penalty, held_out)
        if best is None:
            raise FloatingPointError("the regression gave no number")
        return _Fitted(fit(slice(None), best.penalty, best.theta), best.penalty, best.held_out)

    def _head(self, theta: Doubles, link: Link, facts: dict[str, Any]) -> TaskHead:
        n = (len(theta) - 4 - len(OWN)) // 2
        rare, popular, rest = theta[:n], theta[n : 2 * n], theta[2 * n :]
        weights = FusionWeights(
            rare.astype(np.float32),
            (popular - rare).astype(np.float32),
            rare.astype(np.float32),
            float(rest[0]),
            float(rest[1]),
        )
        about = {"kinds": list(self.kinds), "lists": self.lists, "days": self.days}
        return TaskHead(
            weights=weights,
            popularity=float(rest[2]),
            share=float(rest[3]),
            own=rest[4:],
            link=link,
            kinds=self.kinds,
            lists=self.lists,
            days=self.days,
            facts={**about, **facts},
        )


@dataclass(frozen=True, eq=False)
class _Fitted:
    """θ; the penalty that was chosen; and what was said of pairs of users not fitted on."""

    theta: Doubles
    penalty: float
    held_out: Doubles


def _listed(pairs: Pairs, scores: Doubles) -> Flags:
    """The pairs at the top of each query's list."""
    order = np.lexsort((-scores, ~pairs.leading, pairs.queries))
    queries = pairs.queries[order]
    first = np.searchsorted(queries, queries)
    listed = np.zeros(len(pairs), bool)
    listed[order] = np.arange(len(pairs)) - first < LISTED
    return listed & pairs.leading


def rating_errors(guesses: Doubles, values: Doubles) -> dict[str, float]:
    """Root of the mean square, and mean absolute error."""
    gaps = guesses - values
    return {"rmse": float(np.sqrt(np.mean(gaps**2))), "mae": float(np.abs(gaps).mean())}
