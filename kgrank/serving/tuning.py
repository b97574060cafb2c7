"""A search of the settings of a fit: the best lists on valid win. Test is never read.

Or of the fine-tuning of a text encoder: the best score on valid wins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from kgrank.config import Config
from kgrank.errors import ConfigError
from kgrank.kg.splits import SplitCuts, SplitSettings
from kgrank.kg.tables import Tables
from kgrank.progress import Progress, silent
from kgrank.serving.evaluating import valid_lists
from kgrank.serving.searching import Settings, Tuned, search
from kgrank.serving.training import train
from kgrank.spaces import Dimension

SECTIONS = ("kg", "text", "tfidf", "image", "fit", "learn")  # what a fit reads
ENCODER_SECTIONS = ("finetune", "text")  # what a fine-tuning reads
WANTED = ("finetune.scale", "finetune.label")  # say what is to be told, not how it is learned


def tune(
    tables: Tables,
    config: Config,
    space: Sequence[Dimension],
    out: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Search the settings of a fit.

    A trial is fitted on train rows alone, and judged by what each user took on valid (new items,
    `kgrank.serving.evaluating.valid_lists`). The weights of channels are chosen on valid too, in
    every trial alike; the best of many trials is a little better there than it will be elsewhere.

    Args:
        tables: a shop's.
        config: what all trials share, and in `[tune]` how it is searched.
        space: what is tried.
        out: a new folder.
        device: where the learned channel is trained.
        resume: go on with the search in `out`.
        cache: folder of text vectors; as in `kgrank.serving.training.train`.
        progress: told of each trial.

    Raises:
        ConfigError: a setting of the space is unknown, no setting of a fit, or a value of it is not
            allowed; there are no such folds; `out` holds something already, or another search.
        DataError: nothing can be learned from, or asked on valid.
        ModelError: optuna is not installed, or every trial failed.
        OSError: the folder cannot be written.
    """
    settings = config.tune
    _check_space(space, config, SECTIONS, ("fit.refit",))
    parts = folded(tables, config.split, settings.folds)

    def judge(tried: Settings, told: Progress) -> Iterator[float]:
        changed = with_settings(config, {**tried, "fit.refit": False})
        for part in parts:
            bundle = train(part, changed, cache=cache, device=device, progress=told)
            scores, _ = valid_lists(bundle, part, told)
            of = scores.ndcg if settings.metric == "ndcg@10" else scores.recall
            yield float(of[10].mean())

    return search(
        space,
        judge,
        out,
        settings,
        identity=_identity(parts, config),
        resume=resume,
        progress=progress,
    )


def tune_encoder(
    tables: Tables,
    config: Config,
    space: Sequence[Dimension],
    out: str | Path,
    *,
    tasks: Mapping[str, float],
    start: str | Path = "minilm",
    resume: bool = False,
    progress: Progress = silent,
) -> Tuned:
    """Search the settings of a fine-tuning, `[finetune]` and `[text]`.

    A trial is fine-tuned on train rows and judged by its score on valid after its best epoch
    (`kgrank.encoders.finetuning.Finetuned.score`). Its encoder is not kept: the best settings make
    it again. Where a shop is small, `tune.folds` has each trial judged at several moments.

    Args:
        tables: a shop's, with the columns of events that the settings name.
        config: what all trials share, and in `[tune]` how it is searched; its metric, which is of
            lists, is not looked at.
        space: what is tried.
        out: a new folder.
        tasks: task → weight, as of `kgrank.encoders.finetuning.finetune`.
        start: "minilm" or a folder.
        resume: go on with the search in `out`.
        progress: told of each trial.

    Raises:
        ConfigError: as `tune`; or a task is unknown.
        DataError, ModelError: the settings as they are cannot be trained with, as
            `kgrank.encoders.finetuning.finetune` tells; optuna is not installed, or every trial
            failed.
        OSError: the folder cannot be written.
    """
    from kgrank.encoders.finetuning import finetune
    from kgrank.encoders.text import TextEncoder

    settings = config.tune
    _check_space(space, config, ENCODER_SECTIONS, WANTED)
    parts = [part.with_split(config.split) for part in folded(tables, config.split, settings.folds)]
    begun = TextEncoder.load(start, config.text.device).fingerprint

    def judge(tried: Settings, told: Progress) -> Iterator[float]:
        changed = with_settings(config, tried)
        for part in parts:
            with TemporaryDirectory(prefix="kgrank-") as scratch:
                done = finetune(
                    part.items,
                    part.events,
                    Path(scratch) / "encoder",
                    changed.finetune,
                    tasks=tasks,
                    kinds=dict(changed.tasks),
                    text=changed.text,
                    start=start,
                    device=changed.text.device,
                    progress=told,
                )
            yield max(done.score[1:])

    return search(
        space,
        judge,
        out,
        settings,
        metric="score",
        identity=_identity(parts, config) + json.dumps([begun, dict(tasks)]),
        resume=resume,
        progress=progress,
    )


def _check_space(
    space: Sequence[Dimension], config: Config, sections: Sequence[str], but: Sequence[str]
) -> None:
    """See that all of a space may be set.

    Raises:
        ConfigError: a setting is unknown or of another section, or a value is not allowed.
    """
    for dimension in space:
        section = dimension.name.partition(".")[0]
        if section not in sections or dimension.name in but:
            raise ConfigError(
                f"tune.space: found {dimension.name}; allowed: settings of "
                f"{', '.join(sections)} other than {' and '.join(but)}. Search another one."
            )
        for value in dimension.ends():
            with_settings(config, {dimension.name: value})


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The configuration with some settings, by `section.key`, set anew.

    Raises:
        ConfigError: one is unknown, or its value is not allowed.
    """
    values = config.as_dict()
    for name, value in settings.items():
        section, _, key = name.partition(".")
        values.setdefault(section, {})[key] = value
    return Config.from_dict(values, "--space")


def folded(tables: Tables, split: SplitSettings, n: int) -> list[Tables]:
    """The tables as they were at n moments: train, and valid right after it; the newest first.

    One window of valid is few events in a small shop. More of them are taken backwards in time:
    the train rows of one fold are train and valid of the next. Nothing is ever fitted on what came
    after what it is judged by, as it would be if users or rows were dealt to folds at random: what
    others took later would tell what a user takes next (Ji et al. 2023, "A Critical Study on Data
    Leakage in Recommender System Offline Evaluation").

    A window is as long as the shop's own: as many seconds where valid begins at one moment for
    all, else the same share of each user's events.

    Args:
        tables: a shop's; its test rows are dropped.
        split: the rule, where the events have no split of their own.
        n: how many.

    Raises:
        ConfigError: the split is not by time, or not so many windows fit in.
    """
    tables = tables.without_test_items(split)
    events = tables.with_split(split).events
    events = events[events["split"] != "test"].reset_index(drop=True)
    parts = [replace(tables, events=events)]
    if n == 1:
        return parts
    valid = events["split"] == "valid"
    place = events.groupby("user_id").cumcount()
    last_train = place.where(~valid).groupby(events["user_id"]).transform("max")
    if 2 * (place < last_train)[valid].sum() > valid.sum():
        raise ConfigError(
            f"tune.folds: found {n} with valid rows that stand before train rows of their users; "
            "allowed: 1 for a split that is not by time. Leave it out."
        )
    cut, length, share = math.nan, math.nan, float(valid.mean())
    if "timestamp" in events:
        times = events["timestamp"]
        cut = float(times[valid].min())
        length = float(times.max()) - cut
        if times[~valid].max() >= cut:  # each user's valid rows begin at another moment
            cut = math.nan
    while len(parts) < n:
        rest = events[events["split"] == "train"].drop(columns="split").reset_index(drop=True)
        if math.isnan(cut):
            cuts = SplitCuts(by_user=SplitSettings(test=0.0, valid=share))
        else:
            cut -= length
            cuts = SplitCuts(valid_from=cut)
        events = cuts.apply(rest)
        if events["split"].nunique() < 2:
            raise ConfigError(
                f"tune.folds: found {n}; allowed: {len(parts)} or fewer, since no more windows of "
                "valid fit in before train begins. Take fewer."
            )
        parts.append(replace(tables, events=events))
    return parts


def _identity(parts: Sequence[Tables], config: Config) -> str:
    """What a search must have been about to go on: its rows, and the settings all trials share."""
    digest = sha256(json.dumps({**config.as_dict(), "tune": None}, sort_keys=True).encode())
    for part in parts:
        for frame in (part.events, part.items, part.users, part.triples):
            text = frame.astype("str")
            digest.update(pd.util.hash_pandas_object(text, index=False).to_numpy().tobytes())
    return digest.hexdigest()
