"""Heads that predict: how probably a click, a purchase or a conversion follows, and a rating.

The moment is the end of train, and there is one query for each user with a history then: also for
those who did nothing afterwards, since a probability has to be right for them too. A pair (user,
item) is a hit of a task if valid holds an event of the task's kinds for it. So the probability of
"purchase" is **that the user buys this item at least once within the window**, which is as long as
valid. Where the split is not by time, it is that what was held out of the user holds a purchase of
it. The pairs are all there are or, where products are hardly ever met again, those of products
that are new to the user.

Of "conversion" the pairs are those with a click on valid, and a hit is a purchase after the first
one. So its misses are real: looked at and not bought. It is **the probability that the user buys
the item within the window, if they click it**; that of a click times it is that of both (Ma et al.,
2018). Of products that nobody like the user would click it has seen little.

The pairs of a click or a purchase are too many to fit on, and near all of them are misses, but a
miss near the top of a list says more than others. So all hits are taken, all pairs near the top of
any channel, and of the rest some drawn evenly, each of which stands for as many as it was drawn
from. With these weights the intercept is that of all pairs and needs no correction afterwards (King
and Zeng, 2001).

A head is a regularised regression on the channels' scores. Its penalty is chosen, its probabilities
are calibrated and its figures taken on users that it was not fitted on; where a mean would say as
much of them, there is no head. That nobody wanted a product nobody had met before says nothing,
since it may not have been on sale: its probability is that of any product of which no more was
known than its words, pictures and facts (`_Regressor._of_new`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.special import expit, logit

from kgrank.fusion.calibration import auc, calibrate, calibration_error, log_loss
from kgrank.fusion.channels import Channel
from kgrank.fusion.fusing import of_history
from kgrank.fusion.history import Histories
from kgrank.fusion.model import Head
from kgrank.fusion.outcomes import (
    MeanRatings,
    event_shares,
    outcomes_of,
    rating_errors,
    ratings,
    task_queries,
    window,
)
from kgrank.fusion.pairs import Pairs
from kgrank.fusion.prediction import OWN, SHRINK, Bounded, Link, Lists, Predictor, user_facts
from kgrank.fusion.queries import Queries
from kgrank.fusion.regression import Loss, regression
from kgrank.fusion.settings import TaskSettings
from kgrank.fusion.weights import FusionWeights, ItemSide

Doubles = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

TASKS: tuple[Head, ...] = ("click", "purchase", "conversion", "rating")
ENOUGH = 50  # hits or ratings on valid below which a task has no head
QUERIES = 2_000
CELLS = 50_000_000  # queries × items that are scored
PENALTIES = (300.0, 30.0, 3.0)  # of a parameter, times its column's variance
FLOOR = 1e-3  # of that variance
LISTED = 10  # pairs at the top of a list whose probabilities are looked at on their own
_NO_KINDS, _NEEDED, _NO_MORE = "no event is of its kinds", "are needed", "says no more"


@dataclass(frozen=True, eq=False)
class TaskHead:
    """A head that predicts, as it was found on valid.

    Attributes:
        weights: gates, trend, and the bias of items never seen in training.
        popularity, share: what an item's popularity, and its share of the task's events, weigh in
            `Predictor.base`; 0 for ratings.
        own: (5) weights of the user's facts.
        link: from the score to the prediction.
        kinds, lists, days, given: as in `Predictor`.
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
    given: tuple[str, ...]
    facts: dict[str, Any]

    def predictor(self, histories: Histories, side: ItemSide) -> Predictor:
        """What a model has beside the weights, of items as `histories` and `side` show them."""
        if isinstance(self.link, Bounded):
            base = MeanRatings.of(histories, self.kinds, shrink=SHRINK).of_items
        else:
            shares = event_shares(histories, self.kinds, self.given)
            known = self.popularity * side.popularity + self.share * shares
            base = np.where(side.cold, 0.0, known)
        parts = self.own, self.link, self.lists, self.days, self.given
        return Predictor(self.kinds, base.astype(np.float32), *parts)


@dataclass(frozen=True, eq=False)
class TaskHeads:
    """The heads that were found; and task → why it has none."""

    found: dict[Head, TaskHead] = field(default_factory=dict)
    left_out: dict[Head, str] = field(default_factory=dict)


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
    given = {task: kinds["click"] if task == "conversion" else () for task in TASKS}
    for task in TASKS:
        outcome = outcomes_of(task, valid, kinds[task], queries, given[task])
        if not kinds[task] or (task == "conversion" and not given[task]):
            heads.left_out[task] = _NO_KINDS
        elif few := _too_few(task, outcome, side.cold):
            heads.left_out[task] = few
        else:
            outcomes[task] = outcome
    hits = [outcomes[task] for task in ("click", "purchase") if task in outcomes]
    if hits:
        pairs = Pairs.sampled(channels, queries, sum(hits).tocsr(), seed)
    for task, outcome in outcomes.items():
        regressor = _Regressor(
            channels,
            train,
            side,
            queries,
            kinds[task],
            lists,
            window(train, valid),
            given[task],
        )
        if task == "conversion":
            head = regressor.event_head(Pairs.at(channels, queries, outcome), outcome.data)
        elif task == "rating":
            head = regressor.rating_head(Pairs.at(channels, queries, outcome), outcome.data)
        else:
            labels = np.asarray(outcome[pairs.queries, pairs.items], np.float64).ravel()
            head = regressor.event_head(pairs, labels)
        if head is None:
            mean = f", {outcome.data.mean():.3g}" if task in ("conversion", "rating") else ""
            heads.left_out[task] = (
                f"of {outcome.nnz} pairs on valid it {_NO_MORE} than their mean{mean}"
            )
        else:
            heads.found[task] = head
    return heads


def mend_of(reason: str) -> str:
    """What may be done where a task has no head for a reason that `TaskHeads.left_out` gives."""
    if _NO_MORE in reason:
        return "Leave the task, or train on events and facts that tell its products apart."
    if _NEEDED in reason:
        return "Train on more of its events, or on a longer valid."
    return "Name its kinds of events under [tasks], and train anew."


def _present(settings: TaskSettings, task: Head, histories: Histories) -> tuple[str, ...]:
    section = "purchase" if task == "conversion" else task
    named: tuple[str, ...] = getattr(settings, section)
    return tuple(kind for kind in named if kind in histories.kind_names)


def _too_few(task: Head, outcome: sp.csr_matrix, cold: Flags) -> str:
    """Why there is too little on valid to fit a head on; empty if there is enough."""
    if task == "conversion":  # fitted on what was clicked, of items that were met before
        hits = outcome.data[~cold[outcome.indices]] > 0.0
        bought = int(hits.sum())
        if min(bought, len(hits) - bought) < ENOUGH:
            found = f"{bought} of {len(hits)} clicked pairs on valid were bought"
            return f"{found}, {ENOUGH} that were and {ENOUGH} that were not {_NEEDED}"
    elif outcome.nnz < ENOUGH:
        return f"{outcome.nnz} pairs on valid, {ENOUGH} {_NEEDED}"
    return ""


@dataclass(frozen=True, eq=False)
class _Regressor:
    """What is common to the heads: how pairs become rows, and parameters a head."""

    channels: Sequence[Channel]
    train: Histories
    side: ItemSide
    queries: Queries
    kinds: tuple[str, ...]
    lists: Lists
    days: float | None
    given: tuple[str, ...]

    def event_head(self, pairs: Pairs, hits: Doubles) -> TaskHead | None:
        """A head whose prediction is a probability; None if one for all pairs is as good."""
        cold = self.side.cold[pairs.items]
        new, of_new = pairs.take(cold), hits[cold]
        pairs, hits = pairs.take(~cold), hits[~cold]
        spans, given = self.queries.spans, bool(self.given)
        user = user_facts(self.train, spans, self.kinds, None, given=given)
        shares = event_shares(self.train, self.kinds, self.given)
        of_items = np.stack([self.side.popularity, shares], axis=1)
        design = self._design(pairs, user, of_items)
        fitted = self._fitted(design, hits, pairs, "logistic", np.zeros(len(pairs)))
        share = float(np.average(hits, weights=pairs.weights))
        guess = _lost(np.full(len(hits), float(logit(share))), hits, "logistic")
        lost = _lost(fitted.held_out, hits, "logistic")
        if not _clearly_less(pairs.weights * lost, pairs.weights * guess):
            return None
        as_new = (new, of_new) if of_new.sum() >= ENOUGH else (pairs, hits)
        weights = self._of_new(*as_new, user, fitted)
        method, link, calibrated = calibrate(
            fitted.held_out, hits, pairs.weights, self._half(pairs)
        )
        parts = {"": np.ones(len(pairs), bool)}
        if not self.given:  # a list holds more than what was clicked
            parts[f"@{LISTED}"] = _listed(pairs, fitted.held_out)
        facts = {
            "pairs": float(pairs.weights.sum()),
            "hits": int(hits.sum()),
            "penalty": fitted.penalty,
            "calibration": method,
            "auc": auc(fitted.held_out, hits, pairs.weights),
            "log_loss": log_loss(calibrated, hits, pairs.weights),
        }
        for suffix, of in parts.items():
            facts[f"share{suffix}"] = float(np.average(hits[of], weights=pairs.weights[of]))
            for name, found in (("before", expit(fitted.held_out)), ("after", calibrated)):
                error = calibration_error(found[of], hits[of], pairs.weights[of])
                facts[f"ece{suffix}_{name}"] = error
        facts["hits_of_new_products"] = int(of_new.sum())
        return self._head(fitted.theta, weights, link, facts)

    def rating_head(self, pairs: Pairs, values: Doubles) -> TaskHead | None:
        """A head whose prediction is a rating; None if means of ratings are as good."""
        known = values
        if self.train.values is not None:
            known = np.r_[self.train.values[ratings(self.train, self.kinds)], values]
        base = MeanRatings.of(self.train, self.kinds, shrink=SHRINK).of_items
        user = user_facts(self.train, self.queries.spans, self.kinds, base.astype(np.float32))
        design = self._design(pairs, user, np.zeros((len(base), 2)))
        fitted = self._fitted(design, values, pairs, "squared", base[pairs.items])
        link = Bounded(float(known.min()), float(max(known.max(), known.min() + 1e-6)))
        plain = MeanRatings.of(self.train, self.kinds)
        guesses = plain.guesses(self.queries.users[pairs.queries], pairs.items, link)
        lost = [(guess - values) ** 2 for guess in guesses.values()]
        if not all(_clearly_less((link(fitted.held_out) - values) ** 2, of) for of in lost):
            return None
        facts = {
            "pairs": len(values),
            "penalty": fitted.penalty,
            **rating_errors(link(fitted.held_out), values),
            "baselines": {name: rating_errors(of, values) for name, of in guesses.items()},
        }
        new = np.where(self._known_of_new(), fitted.theta[: len(self.channels)], 0.0), 0.0
        return self._head(fitted.theta, new, link, facts)

    def _design(self, pairs: Pairs, user: Doubles, of_items: Doubles) -> Doubles:
        """Rows of the regression, (n_pairs × (2 · n_channels + 8)) float64.

        A gate rises or falls with popularity p from 0 to 1, and stays at least 0 between if it is
        at both ends: a gate of a · (1 − p) + b · p has two columns.
        """
        popularity = self.side.popularity[pairs.items, None]
        parts = (
            pairs.scores * (1.0 - popularity),
            pairs.scores * popularity,
            self.side.trend[pairs.items, None],
            of_items[pairs.items],
            user[pairs.queries],
        )
        return np.concatenate(parts, axis=1, dtype=np.float64)

    def _half(self, pairs: Pairs) -> Flags:
        """Which half the pair's user is in."""
        half = (self.queries.users * 2_654_435_761 >> 7) % 2 == 1
        return np.asarray(half[pairs.queries])

    def _fitted(
        self, design: Doubles, target: Doubles, pairs: Pairs, loss: Loss, offset: Doubles
    ) -> _Fitted:
        """The parameters, with a penalty chosen on users that were not fitted on.

        That is the largest that does no worse than the best by more than a standard error (Breiman
        et al., 1984).
        """
        weights, half = pairs.weights, self._half(pairs)
        n_gates = 2 * len(self.channels)
        lower = np.r_[np.zeros(n_gates), np.full(design.shape[1] - n_gates, -np.inf)]
        scale = _scale(design, weights)
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

        found: list[tuple[_Fitted, Doubles]] = []
        starts: list[Doubles | None] = [None, None]
        for penalty in PENALTIES:
            held_out = offset.copy()
            for number, judged in enumerate((half, ~half)):
                starts[number] = theta = fit(~judged, penalty, starts[number])
                held_out[judged] += design[judged] @ theta
            lost = weights * _lost(held_out, target, loss)
            found.append((_Fitted(theta, penalty, held_out), lost))
        _, least = min(found, key=lambda one: float(one[1].sum()))
        chosen = next(fitted for fitted, lost in found if not _clearly_less(least, lost))
        return replace(chosen, theta=fit(slice(None), chosen.penalty, chosen.theta))

    def _of_new(
        self, pairs: Pairs, hits: Doubles, user: Doubles, fitted: _Fitted
    ) -> tuple[Doubles, float]:
        """What channels and the bias weigh for items never seen in training.

        What the user's facts weigh stays. The pairs are those of such items or, where too few were
        hits to learn from, those of all others, of which nothing is looked at but what would be
        known if they were new: that nobody wanted what is not on sale yet says nothing.
        """
        known = self._known_of_new()
        ones = np.ones((len(pairs), 1))
        design = np.concatenate([pairs.scores[:, known], ones], axis=1, dtype=np.float64)
        theta = regression(
            design,
            hits,
            pairs.weights,
            loss="logistic",
            penalty=fitted.penalty * np.r_[_scale(design[:, :-1], pairs.weights), FLOOR],
            lower=np.r_[np.zeros(known.sum()), -np.inf],
            offset=user[pairs.queries] @ fitted.theta[-len(OWN) :],
        )
        gates = np.zeros(len(known))
        gates[known] = theta[:-1]
        return gates, float(theta[-1])

    def _known_of_new(self) -> Flags:
        """The channels that know an item by what it is, (n_channels) bool."""
        return np.array([not of_history(channel) for channel in self.channels], bool)

    def _head(
        self, theta: Doubles, new: tuple[Doubles, float], link: Link, facts: dict[str, Any]
    ) -> TaskHead:
        n = len(self.channels)
        rare, popular, rest = theta[:n], theta[n : 2 * n], theta[2 * n :]
        weight, slope, cold = (part.astype(np.float32) for part in (rare, popular - rare, new[0]))
        about: dict[str, Any] = {"kinds": list(self.kinds), "lists": self.lists, "days": self.days}
        about |= {"given": list(self.given)} if self.given else {}
        return TaskHead(
            weights=FusionWeights(weight, slope, cold, float(rest[0]), new[1]),
            popularity=float(rest[1]),
            share=float(rest[2]),
            own=rest[3:],
            link=link,
            kinds=self.kinds,
            lists=self.lists,
            days=self.days,
            given=self.given,
            facts={**about, **facts},
        )


@dataclass(frozen=True, eq=False)
class _Fitted:
    """θ; the penalty that was chosen; and what was said of pairs of users not fitted on."""

    theta: Doubles
    penalty: float
    held_out: Doubles


def _lost(line: Doubles, target: Doubles, loss: Loss) -> Doubles:
    """The loss of each row, (n_rows)."""
    if loss == "logistic":
        return np.asarray(np.logaddexp(0.0, line) - target * line)
    return (line - target) ** 2


def _clearly_less(one: Doubles, other: Doubles) -> bool:
    """Whether the rows of one lose less than those of the other by more than a standard error."""
    gain = other - one
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


def _scale(design: Doubles, weights: Doubles) -> Doubles:
    """The variance of each column, at least FLOOR."""
    mean = np.average(design, axis=0, weights=weights)
    return np.maximum(np.average(design**2, axis=0, weights=weights) - mean**2, FLOOR)


def _listed(pairs: Pairs, scores: Doubles) -> Flags:
    """The pairs at the top of each query's list."""
    order = np.lexsort((-scores, ~pairs.leading, pairs.queries))
    queries = pairs.queries[order]
    first = np.searchsorted(queries, queries)
    listed = np.zeros(len(pairs), bool)
    listed[order] = np.arange(len(pairs)) - first < LISTED
    return listed & pairs.leading
