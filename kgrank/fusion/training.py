"""Fitting a model: features, channels, their settings and their fusion, all chosen on valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.errors import ModelError
from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.evidence import Evidence, ItemFeatures, item_side
from kgrank.fusion.fusing import LEARNED, Fused, fuse
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.learned import Learner, Start
from kgrank.fusion.model import FusedModel, Head
from kgrank.fusion.prediction import Lists
from kgrank.fusion.queries import Queries, all_allowed, later_queries, new_only, user_queries
from kgrank.fusion.selection import (
    Choice,
    Trial,
    choose_ease,
    choose_features,
    choose_ridge,
    sub_catalogue,
)
from kgrank.fusion.settings import FitSettings, TaskSettings
from kgrank.fusion.tasks import TaskHead, TaskHeads, learn_tasks
from kgrank.fusion.weights import FusionWeights
from kgrank.loop import Trained
from kgrank.processes import agreed
from kgrank.progress import Progress

MOMENTS_A_USER = 4  # valid moments of one user that become queries
REPEATS = 0.01  # from this share of repeats among what was chosen on valid, lists of all are fitted


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted model and what was found on the way.

    Attributes:
        model: the fitted model.
        choices: channel → the settings chosen on valid.
        fused: head → its fusion and every method's cross-fitted NDCG@10 on valid.
        trained: how the learned channel's training went; None without one.
        tasks: the heads that predict, and why others are not there.
    """

    model: FusedModel
    choices: dict[str, Choice]
    fused: dict[Head, Fused]
    trained: Trained | None = None
    tasks: TaskHeads = field(default_factory=TaskHeads)


def fit(
    histories: Histories,
    splits: npt.NDArray[np.int8],
    features: ItemFeatures,
    settings: FitSettings,
    progress: Progress,
    learner: Learner | None = None,
    tasks: TaskSettings | None = None,
) -> Fit:
    """Choose everything on valid, then fit the channels again on train + valid if asked.

    Where processes are joined, the others may call `assist` instead.

    Args:
        histories: train and valid events; no test event may be in there.
        splits: (n_events) 0 = train, 1 = valid.
        features: what is known of the items.
        settings: the `[fit]` section.
        progress: told of each stage.
        learner: makes the learned channel; there is none if None.
        tasks: the `[tasks]` section; no head predicts if None.

    Raises:
        ModelError: there are no train events, nothing on valid can be asked, or training diverges.
    """
    train, queries = _asked(histories, splits, features, settings)
    fresh = new_only(queries)
    asked = new_first(queries)
    choices = _choose(train, asked, settings, progress)
    channels = list(_channels(choices, train, settings, progress))
    side = item_side(train.histories)
    ordered = protocol_of(histories, splits, settings) == "later"
    trained = None
    if learner is not None:
        vectors, decay, trained = learner.learn(
            train, _start(channels, choices), ordered=ordered, queries=asked
        )
        choices[LEARNED] = choose_features(Trial.of(asked, settings.seed), vectors, decay)
        channels.append(Channel(LEARNED, choices[LEARNED].decay, vectors))
    heads: dict[Head, Queries] = {"new": asked}
    everything = all_allowed(queries)
    repeats = 1.0 - fresh.relevant.nnz / everything.relevant.nnz
    if repeats > REPEATS:
        heads["all"] = everything
        identity = ItemItem(sp.identity(histories.n_items, np.float32, format="csr"))
        trial = Trial.of(everything, settings.seed)
        progress("repeat", 0, 1)
        decay, ndcg = trial.best_decay(identity, Decay(half_life=42.0))
        choices["repeat"] = Choice(decay, None, None, ndcg)
        channels.append(Channel("repeat", decay, identity))
    fused: dict[Head, Fused] = {}
    for done, (head, of_head) in enumerate(heads.items()):
        progress("fusion", done, len(heads))
        usable = channels if head == "all" else [c for c in channels if c.name != "repeat"]
        fused[head] = fuse(usable, side, of_head, settings.seed)
    progress("fusion", len(heads), len(heads))
    channels, weights = _used(channels, fused)
    predicting = TaskHeads()
    if tasks is not None:
        progress("tasks", 0, 1)
        lists: Lists = "all" if "all" in heads else "new"
        predicting = learn_tasks(
            channels, side, histories, splits, tasks, lists=lists, seed=settings.seed
        )
        progress("tasks", 1, 1)
    seen = train.histories
    if settings.refit:
        whole, seen = Evidence(histories, features), histories
        fitted = {
            channel.name: channel for channel in _channels(choices, whole, settings, progress)
        }
        kept = LEARNED in {channel.name for channel in channels}
        if learner is not None and trained is not None and agreed(kept):
            vectors, decay, _ = learner.learn(
                whole,
                _start(list(fitted.values()), choices),
                ordered=ordered,
                queries=asked,
                epochs=trained.best_epoch,
            )
            chosen = choices[LEARNED].decay
            fitted[LEARNED] = Channel(LEARNED, decay if chosen.ages else chosen, vectors)
        channels = [fitted.get(channel.name, channel) for channel in channels]
        side = item_side(histories)
    found: Mapping[Head, TaskHead] = predicting.found
    weights |= {task: head.weights for task, head in found.items()}
    predictors = {task: head.predictor(seen, side) for task, head in found.items()}
    model = FusedModel(tuple(channels), side, weights, predictors)
    return Fit(model, choices, fused, trained, predicting)


def assist(
    histories: Histories,
    splits: npt.NDArray[np.int8],
    features: ItemFeatures,
    settings: FitSettings,
    learner: Learner,
) -> None:
    """Take a share of the training of the learned channel, while process 0 does the whole `fit`.

    Args:
        histories, splits, features, settings: as process 0 gives `fit`; no vectors are needed.
        learner: makes the same learned channel.

    Raises:
        ModelError: as `fit`, or another process has ended.
    """
    train, queries = _asked(histories, splits, features, settings)
    ordered = protocol_of(histories, splits, settings) == "later"
    _, _, trained = learner.learn(train, None, ordered=ordered, queries=queries)
    if settings.refit and agreed(False):  # process 0 says whether the channel is kept
        whole, epochs = Evidence(histories, features), trained.best_epoch
        learner.learn(whole, None, ordered=ordered, queries=queries, epochs=epochs)


def _asked(
    histories: Histories,
    splits: npt.NDArray[np.int8],
    features: ItemFeatures,
    settings: FitSettings,
) -> tuple[Evidence, Queries]:
    """What is known of train, and the queries on valid."""
    queries = askable(histories, splits, settings)
    return Evidence(histories.where(splits == 0), features), queries


def askable(histories: Histories, splits: npt.NDArray[np.int8], settings: FitSettings) -> Queries:
    """What `valid_queries` gives, where a fit can begin.

    Raises:
        ModelError: there are no train events, or nothing on valid can be asked.
    """
    if not (splits == 0).any():
        raise ModelError("found no train events; allowed: at least one. Check the split column.")
    queries = valid_queries(histories, splits, settings)
    if not len(queries):
        raise ModelError(
            "found no valid events of users with a history; allowed: at least one, since the "
            "channels' weights are chosen there. Mark rows of users who have train rows as valid "
            "in the split column, or, where it marks none or is not there, widen [split] valid."
        )
    return queries


def new_first(queries: Queries) -> Queries:
    """The queries for products not met before, where there are any."""
    fresh = new_only(queries)
    return fresh if len(fresh) else all_allowed(queries)


def _used(
    channels: Sequence[Channel], fused: Mapping[Head, Fused]
) -> tuple[list[Channel], dict[Head, FusionWeights]]:
    """The channels but for a learned one that no head weighs, and each head's weights of them."""
    n = len(channels)  # "repeat" is the last, and not in the head "new"
    weights: dict[Head, FusionWeights] = {
        head: of.weights.placed(range(len(of.weights.weight)), n) for head, of in fused.items()
    }
    kept = [
        place
        for place, channel in enumerate(channels)
        if channel.name != LEARNED or any(of.weighs(place) for of in weights.values())
    ]
    weights = {head: of.of_channels(kept) for head, of in weights.items()}
    weights.setdefault("all", weights["new"])
    return [channels[place] for place in kept], weights


def valid_queries(
    histories: Histories, splits: npt.NDArray[np.int8], settings: FitSettings
) -> Queries:
    """What the settings and weights are chosen on: queries of the users' valid time.

    "auto" asks `later` unless valid events of most users stand before some of their train events.
    """
    rows = np.flatnonzero(splits == 1)
    if protocol_of(histories, splits, settings) == "user":
        train = histories.where(splits == 0)
        return user_queries(train, histories.where(splits == 1), train).answerable()
    queries = later_queries(histories, rows, per_user=MOMENTS_A_USER)
    return queries.take(np.flatnonzero(queries.spans.last > queries.spans.first)).answerable()


def protocol_of(
    histories: Histories, splits: npt.NDArray[np.int8], settings: FitSettings
) -> Literal["later", "user"]:
    """How valid asks: as the settings say, or "auto" as `valid_queries` tells."""
    if settings.protocol != "auto":
        return settings.protocol
    rows, train_rows = np.flatnonzero(splits == 1), np.flatnonzero(splits == 0)
    users = histories.users()
    last_train = np.full(histories.n_users, -1, np.int64)
    last_train[users[train_rows]] = train_rows  # ascending: the last one stays
    early = rows < last_train[users[rows]]
    return "user" if 2 * early.sum() > len(rows) else "later"


def _start(channels: Sequence[Channel], choices: Mapping[str, Choice]) -> Start:
    """The item–item weights that ranked better on valid, and what text vectors reach of that."""
    forms = {c.name: c.form.weights for c in channels if isinstance(c.form, ItemItem)}
    best = max(("linear", "directed"), key=lambda name: choices[name].ndcg)
    text = choices["embedding"].ndcg if "embedding" in choices else 0.0
    return Start(forms[best], min(1.0, text / max(choices[best].ndcg, 1e-9)))


def _choose(
    evidence: Evidence, queries: Queries, settings: FitSettings, progress: Progress
) -> dict[str, Choice]:
    """The settings of every channel, in the channels' order."""
    smaller, narrowed = sub_catalogue(evidence, queries)
    trial, small_trial = Trial.of(queries, settings.seed), Trial.of(narrowed, settings.seed)
    choices: dict[str, Choice] = {}
    forms = _feature_forms(evidence.features)
    total = 2 + len(forms)
    for directed, name in ((False, "linear"), (True, "directed")):
        progress("choosing settings", len(choices), total)
        choices[name] = choose_ridge(
            small_trial, smaller, directed=directed, neighbors=settings.neighbors
        )
    for name, form in forms.items():
        progress("choosing settings", len(choices), total)
        choices[name] = choose_features(trial, form)
    progress("choosing settings", total, total)
    return choices


def plain_ease(histories: Histories, splits: npt.NDArray[np.int8], settings: FitSettings) -> float:
    """λ of plain EASE, chosen on valid as a fit's channels are: the baseline beside a model.

    Args:
        histories, splits, settings: as `fit` takes them.

    Raises:
        ModelError: as `fit`.
    """
    nothing = Evidence.of_events(histories).features
    train, queries = _asked(histories, splits, nothing, settings)
    smaller, narrowed = sub_catalogue(train, new_first(queries))
    return choose_ease(Trial.of(narrowed, settings.seed), smaller, neighbors=settings.neighbors)


def _feature_forms(features: ItemFeatures) -> dict[str, SparseFeatures | DenseFeatures]:
    forms: dict[str, SparseFeatures | DenseFeatures] = {}
    if features.entities.nnz:
        forms["graph"] = SparseFeatures(features.entities)
    if features.words.nnz:
        forms["text"] = SparseFeatures(features.words)
    for name, vectors in (("embedding", features.vectors), ("image", features.images)):
        if vectors is not None and vectors.any():
            forms[name] = DenseFeatures(torch.from_numpy(vectors))
    return forms


def _channels(
    choices: Mapping[str, Choice], evidence: Evidence, settings: FitSettings, progress: Progress
) -> tuple[Channel, ...]:
    """The chosen channels fitted on all of `evidence`."""
    channels: list[Channel] = []
    forms = _feature_forms(evidence.features)
    for name, choice in choices.items():
        progress("fitting channels", len(channels), len(choices))
        if choice.ridge is not None:
            moments = (
                evidence.linear_moments()
                if choice.steps is None
                else evidence.directed_moments(choice.steps)
            )
            weights = moments.weights(choice.ridge, neighbors=settings.neighbors)
            channels.append(Channel(name, choice.decay, ItemItem(weights)))
        elif name in forms:
            channels.append(Channel(name, choice.decay, forms[name]))
    progress("fitting channels", len(choices), len(choices))
    return tuple(channels)
