"""The tasks of a fine-tuning: from tables to the examples, the objective and the head of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from torch import nn

from kgrank.encoders.examples import (
    Catalogue,
    Labelled,
    Moments,
    event_texts,
    labelled,
    moments,
    ratings,
    sentiments,
)
from kgrank.encoders.finetuning import FinetuneSettings
from kgrank.encoders.labels import Rating, Sentiment
from kgrank.encoders.next_product import HistoryRule, NextProduct
from kgrank.encoders.objectives import Objective
from kgrank.encoders.pairs import PairHead, Pairs
from kgrank.encoders.tuned import TunedText
from kgrank.errors import ConfigError, DataError, Fault

SPLITS = ("train", "valid")


@dataclass(frozen=True, eq=False)
class Examples:
    """What the tasks learn from and are judged on.

    Attributes:
        moments: task → those of train and of valid.
        labelled: task → those of train and of valid.
        classes: the names of the sentiments that train holds.
        unjudged: other sentiment → how many rows of valid have it; these are left out.
    """

    moments: dict[str, tuple[Moments, Moments]] = field(default_factory=dict)
    labelled: dict[str, tuple[Labelled, Labelled]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    unjudged: dict[str, int] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """All labelled texts."""
        return [text for pair in self.labelled.values() for part in pair for text in part.texts]


def read_examples(
    tasks: Mapping[str, float],
    kinds: Mapping[str, Collection[str]],
    items: pd.DataFrame,
    events: pd.DataFrame,
    catalogue: Catalogue,
    settings: FinetuneSettings,
) -> Examples:
    """The examples of every task.

    Raises:
        ConfigError: a column is not there, or sentiment has no review to read.
        DataError: there is nothing of a task's kind in train or valid, a label is not allowed, all
            labels are of one class, or none of valid is of a class that train holds.
    """
    found = Examples()
    rated = kinds.get("rating", ())
    for task in tasks:
        if task in ("next", "click", "purchase"):
            of = None if task == "next" else kinds.get(task, ())
            train, valid = (moments(events, items, catalogue, split, of) for split in SPLITS)
            wanted = "events" if of is None else f"events {' or '.join(of)}"
            what = f"{wanted} on a product with a text, after one on another"
            _check(task, what, events, len(train), len(valid))
            found.moments[task] = (train, valid)
            continue
        classes: tuple[str, ...] = ()
        if task == "rating":
            labels = ratings(events, rated, settings.scale)
        else:
            if settings.event_field is None:
                raise ConfigError(
                    "finetune.event_field: found none for the task sentiment; allowed: the column "
                    "of events that holds reviews. Name it."
                )
            labels, classes = sentiments(events, settings.label, rated, settings.scale)
        texts = event_texts(events, settings.event_field, items, catalogue)
        parts = [labelled(events, texts, labels, split) for split in SPLITS]
        what = f"events {' or '.join(rated)} with a rating and a text"
        if settings.label is not None and task == "sentiment":
            what = f"events with a text and a {settings.label}"
        _check(task, what, events, *map(len, parts))
        met = np.unique(parts[0].labels)
        column = settings.label if task == "sentiment" and settings.label else "value"
        if len(met) < 2:
            name = classes[int(met[0])] if classes else f"{met[0]:g}"
            mend = "Give train events of other labels, or leave the task out."
            fault = Fault("events", None, column, f"{name} alone in train", "two or more", mend)
            raise DataError([fault])
        found.labelled[task] = (parts[0], parts[1])
        if classes:
            pair, classes, unjudged = _of_train(parts[0], parts[1], classes, column)
            found.labelled[task] = pair
            found = Examples(found.moments, found.labelled, classes, unjudged)
    return found


def _of_train(
    train: Labelled, valid: Labelled, classes: tuple[str, ...], column: str
) -> tuple[tuple[Labelled, Labelled], tuple[str, ...], dict[str, int]]:
    """What is of the classes that train holds; these; and how many of valid are of each other.

    Raises:
        DataError: nothing of valid is.
    """
    met = np.unique(train.labels)
    known = np.isin(valid.labels, met)
    names = tuple(classes[int(number)] for number in met)
    others = Counter(classes[int(number)] for number in valid.labels[~known])
    if not known.any():
        found = f"{', '.join(sorted(others))} on valid and {', '.join(names)} in train"
        mend = "Correct the labels, give train events of these classes, or leave the task out."
        allowed = "classes on valid that train holds too"
        raise DataError([Fault("events", None, column, found, allowed, mend)])
    kept = tuple(text for text, is_known in zip(valid.texts, known, strict=True) if is_known)
    pair = (
        Labelled(train.texts, np.searchsorted(met, train.labels).astype(np.float32)),
        Labelled(kept, np.searchsorted(met, valid.labels[known]).astype(np.float32)),
    )
    return pair, names, dict(sorted(others.items()))


def _check(task: str, what: str, events: pd.DataFrame, *counts: int) -> None:
    for split, count in zip(SPLITS, counts, strict=True):
        if not count:
            kinds = ", ".join(map(str, sorted(events["event"].unique()))) or "none"
            found = f"none of {split} for the task {task} (kinds there are: {kinds})"
            mend = "Name the kinds in [tasks], give such events, or leave the task out."
            raise DataError([Fault("events", None, None, found, what, mend)])


def objectives_of(
    tasks: Mapping[str, float],
    model: TunedText,
    catalogue: Catalogue,
    examples: Examples,
    settings: FinetuneSettings,
    shrinkage: float,
) -> tuple[dict[str, tuple[float, Objective]], nn.ModuleDict]:
    """Task → its weight and objective; and the heads of those that have one."""
    rule = HistoryRule(settings.history, settings.power, settings.dropped, settings.joined)
    heads = heads_of(tasks, model.dim, settings.negatives, len(examples.classes))
    found: dict[str, tuple[float, Objective]] = {}
    encoded, rows = settings.encoded, settings.rows
    for task, weight in tasks.items():
        objective: Objective
        if task in examples.moments:
            train, valid = examples.moments[task]
        if task == "next":
            objective = NextProduct(
                model,
                catalogue,
                train,
                valid,
                rule,
                temperature=settings.temperature,
                popularity=settings.popularity,
                encoded=encoded,
                most_rows=rows,
                shrinkage=shrinkage,
                seed=settings.seed,
            )
        elif task in ("click", "purchase"):
            head = heads[task]
            assert isinstance(head, PairHead)
            objective = Pairs(
                model,
                head,
                catalogue,
                train,
                valid,
                rule,
                negatives=settings.negatives,
                encoded=encoded,
                most_rows=rows,
                seed=settings.seed,
            )
            if objective.valid_real.sum() == len(objective.valid_real):
                what = "no product to draw on valid that the user had not met"
                mend = f"Give more products with such events, or leave the task {task} out."
                raise DataError([Fault("events", None, None, what, "one or more", mend)])
        else:
            linear = heads[task]
            assert isinstance(linear, nn.Linear)
            pair = examples.labelled[task]
            if task == "rating":
                objective = Rating(model, linear, *pair, encoded=encoded, scale=settings.scale)
            else:
                objective = Sentiment(model, linear, *pair, encoded)
        found[task] = (weight, objective)
    return found, heads


def heads_of(tasks: Mapping[str, float], dim: int, negatives: int, n_classes: int) -> nn.ModuleDict:
    """New heads of the tasks that have one."""
    heads = nn.ModuleDict()
    for task in tasks:
        if task in ("click", "purchase"):
            heads[task] = PairHead(dim, negatives)
        elif task in ("rating", "sentiment"):
            heads[task] = nn.Linear(dim, 1 if task == "rating" else n_classes)
    return heads
