"""Settings chosen on valid: penalties and side rows, how histories fade, what each event weighs.

One axis at a time, each by NDCG@10 of full rankings on a sample of the valid queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.channels import Form, ItemItem
from kgrank.fusion.evidence import Evidence, Steps
from kgrank.fusion.history import Decay, Spans
from kgrank.fusion.item_item import Moments, Ridge
from kgrank.fusion.metrics import list_metrics
from kgrank.fusion.model import exclude
from kgrank.fusion.products import multiply_dense
from kgrank.fusion.queries import Queries

INF = float("inf")
POWERS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
SPANS = (3.5, 7.0, 14.0, INF)  # events
HALF_LIVES = (7.0, 14.0, 28.0, 42.0, 90.0, 180.0, INF)  # days
KIND_WEIGHTS = (0.0, 0.3, 3.0)
PENALTIES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
DROPOUTS = (0.0, 0.2, 0.5)
SIDE_WEIGHTS = (0.0, 1.0, 3.0, 10.0, 30.0)
DIRECTED_POWERS = (0.5, 1.0)
REACHES = (1, 5, 20)  # events ahead
WHOLE_ITEMS = 12_500  # a larger catalogue is searched on its most popular products alone
SEARCH_ITEMS = 6_000  # so many of them
SEARCH_CELLS = 20_000_000  # queries × items that one setting is tried on
SEARCH_EVENTS = 400_000  # and events in their histories
SEARCH_QUERIES = 2_000


@dataclass(frozen=True)
class Choice:
    """What was chosen for a channel, and how well it does alone on the sample of valid."""

    decay: Decay
    ridge: Ridge | None
    steps: Steps | None
    ndcg: float


class Scoring(Protocol):
    """What a trial asks of a channel's form."""

    def scores(self, history: sp.csr_matrix) -> torch.Tensor:
        """Σ_h w(h) · v(h, i), (n × n_items) float32."""


@dataclass(frozen=True, eq=False)
class _Uncut:
    """Item–item weights of which none is left out, (n_items × n_items) float32."""

    weights: npt.NDArray[np.float32]

    def scores(self, history: sp.csr_matrix) -> torch.Tensor:
        """See `Scoring`."""
        out = np.zeros(history.shape, np.float32)
        multiply_dense(history, self.weights, out)
        return torch.from_numpy(out)


@dataclass(frozen=True, eq=False)
class Trial:
    """Valid queries on which settings are compared."""

    queries: Queries

    @classmethod
    def of(cls, queries: Queries, seed: int) -> Trial:
        """A sample of the queries, small enough to rank in full many times."""
        mean_length = max(1.0, float((queries.spans.last - queries.spans.first).mean()))
        by_size = SEARCH_CELLS // queries.histories.n_items
        n = min(SEARCH_QUERIES, max(1, by_size), max(1, int(SEARCH_EVENTS / mean_length)))
        return cls(queries.sample(n, seed))

    def ndcg(self, form: Scoring, decay: Decay) -> float:
        """NDCG@10 of the channel alone, by full ranking."""
        queries = self.queries
        scores = form.scores(queries.histories.weights(queries.spans, decay)).cpu()
        k = min(10, scores.shape[1])
        top = exclude(scores, queries.excluded).topk(k, dim=1).indices.numpy()
        return float(list_metrics(top, queries.relevant, (10,)).ndcg[10].mean())

    def best_decay(
        self, form: Scoring, start: Decay, *, with_kinds: bool = True
    ) -> tuple[Decay, float]:
        """The decay that ranks best, from `start`: age first, then days, then kinds of events."""
        histories = self.queries.histories
        tried: list[tuple[Decay, float]] = []

        def ndcg(decay: Decay) -> float:
            """Of each decay once, since the walks cross."""
            for known, value in tried:
                if known == decay:
                    return value
            tried.append((decay, self.ndcg(form, decay)))
            return tried[-1][1]

        steady = replace(start, power=0.0, span=INF)
        found = [_climbed(ndcg, start, "power", POWERS), _climbed(ndcg, steady, "span", SPANS)]
        best = max(found, key=lambda pair: pair[1])
        if np.isfinite(histories.times).any():
            found = [
                best,
                _climbed(ndcg, best[0], "half_life", HALF_LIVES),
                _climbed(ndcg, replace(steady, half_life=42.0), "half_life", HALF_LIVES),
            ]
            best = max(found, key=lambda pair: pair[1])
        if with_kinds and len(histories.kind_names) > 1:
            for kind in histories.kind_names:
                kinds: Mapping[str, float] = best[0].kinds or {}
                for weight in KIND_WEIGHTS:
                    decay = replace(best[0], kinds={**kinds, kind: weight})
                    best = max(best, (decay, ndcg(decay)), key=lambda pair: pair[1])
        return best


def choose_features(trial: Trial, form: Form, learned: Decay | None = None) -> Choice:
    """The decay of a channel whose weights are given: `learned`, if it ranks best."""
    found = [trial.best_decay(form, Decay(power=1.0))]
    if learned is not None:
        found.append((learned, trial.ndcg(form, learned)))
    decay, ndcg = max(found, key=lambda pair: pair[1])
    return Choice(decay, None, None, ndcg)


def _tried(moments: Moments, ridge: Ridge, neighbors: int) -> Scoring:
    """The weights that a setting gives; exact ones uncut, since that would take longest."""
    if moments.small:
        return _Uncut(moments.exact(ridge, torch.float32).numpy())
    return ItemItem(moments.weights(ridge, neighbors=neighbors))


def choose_ridge(trial: Trial, evidence: Evidence, *, directed: bool, neighbors: int) -> Choice:
    """Penalty, dropout, side rows and decay of an item–item channel."""

    @lru_cache(maxsize=2)
    def moments(steps: Steps) -> Moments:
        return evidence.directed_moments(steps) if directed else evidence.linear_moments()

    @lru_cache(maxsize=4)
    def form(ridge: Ridge, steps: Steps) -> Scoring:
        return _tried(moments(steps), ridge, neighbors)

    has_entities = evidence.features.entities.nnz > 0
    has_words = evidence.features.words.nnz > 0
    ridge = Ridge(100.0, 0.0, 3.0 * has_entities, 3.0 * has_words)
    steps = Steps(DIRECTED_POWERS[0])
    decay, ndcg = trial.best_decay(form(ridge, steps), Decay(power=0.5), with_kinds=False)
    if directed:

        def of_steps(power: float, reach: float) -> float:
            return trial.ndcg(form(ridge, Steps(power, int(reach))), decay)

        power, ndcg = _climb(DIRECTED_POWERS, steps.power, ndcg, lambda power: of_steps(power, 1))
        reach, ndcg = _climb(REACHES, 1, ndcg, lambda reach: of_steps(power, reach))
        steps = Steps(power, int(reach))
        if reach > 1:  # what fades slower then
            decay, ndcg = trial.best_decay(form(ridge, steps), decay, with_kinds=False)
    axes: dict[str, tuple[float, ...]] = {"penalty": PENALTIES}
    if has_entities:
        axes["entities"] = SIDE_WEIGHTS
    if has_words:
        axes["words"] = SIDE_WEIGHTS
    axes["dropout"] = DROPOUTS
    for name, values in axes.items():

        def score(value: float, name: str = name, start: Ridge = ridge) -> float:
            return trial.ndcg(form(replace(start, **{name: value}), steps), decay)

        value, ndcg = _climb(values, getattr(ridge, name), ndcg, score)
        ridge = replace(ridge, **{name: value})
    decay, ndcg = trial.best_decay(form(ridge, steps), decay)
    return Choice(decay, ridge, steps if directed else None, ndcg)


def choose_ease(trial: Trial, evidence: Evidence, *, neighbors: int) -> float:
    """λ of plain EASE, the baseline: binary histories, no side rows."""
    moments = Evidence.of_events(evidence.histories).linear_moments()

    def score(penalty: float) -> float:
        return trial.ndcg(_tried(moments, Ridge(penalty), neighbors), Decay())

    return _climb(PENALTIES, 100.0, score(100.0), score)[0]


def _climbed(
    ndcg: Callable[[Decay], float], start: Decay, name: str, values: Sequence[float]
) -> tuple[Decay, float]:
    """The best decay along one of its numbers, by walking from where it stands."""

    def moved(value: float) -> Decay:
        changed: dict[str, Any] = {name: value}
        return replace(start, **changed)

    def score(value: float) -> float:
        return ndcg(moved(value))

    value, reached = _climb(values, getattr(start, name), ndcg(start), score)
    return moved(value), reached


def _climb(
    values: Sequence[float], start: float, reached: float, score: Callable[[float], float]
) -> tuple[float, float]:
    """The best of `values` by walking from `start`, upwards first, while it gets better."""
    place = values.index(start)
    for step in (1, -1):
        before = place
        while 0 <= place + step < len(values):
            found = score(values[place + step])
            if found <= reached:
                break
            place, reached = place + step, found
        if place != before:
            break
    return values[place], reached


def sub_catalogue(evidence: Evidence, queries: Queries) -> tuple[Evidence, Queries]:
    """The evidence and queries over the most popular items, where there are too many of them."""
    n_items = evidence.histories.n_items
    if n_items <= WHOLE_ITEMS:
        return evidence, queries
    popularity = np.bincount(evidence.histories.items, minlength=n_items)
    items = np.sort(np.argsort(-popularity, kind="stable")[:SEARCH_ITEMS])
    before = np.r_[0, np.cumsum(np.isin(queries.histories.items, items))]
    spans = Spans(before[queries.spans.first], before[queries.spans.last])
    narrowed = Queries(
        queries.histories.of_items(items),
        spans,
        queries.users,
        queries.relevant[:, items].tocsr(),
        queries.excluded[:, items].tocsr(),
    )
    return evidence.of_items(items), narrowed.answerable()
