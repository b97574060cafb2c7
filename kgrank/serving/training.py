"""From tables to the numbers a fit sees, and to the fitted bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from kgrank.config import Config
from kgrank.devices import choose_device
from kgrank.encoders.cache import EncodeReport, VectorCache, encode_cached
from kgrank.encoders.images import ImageEncoder, ImageReport, item_pictures
from kgrank.encoders.text import TextEncoder, item_texts
from kgrank.encoders.tfidf import tfidf
from kgrank.encoders.whitening import whiten
from kgrank.errors import ConfigError, DataError, Fault, KgrankError
from kgrank.fusion.evidence import ItemFeatures, numbered
from kgrank.fusion.history import REFUSED, Histories
from kgrank.fusion.learned import Learner
from kgrank.fusion.training import askable, fit
from kgrank.fusion.training import assist as assist_fit
from kgrank.kg.exchange import entity_features
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.splits import SplitCuts, split_events
from kgrank.kg.tables import Tables
from kgrank.kg.vocabulary import Vocabulary
from kgrank.loop import Sink
from kgrank.processes import joined
from kgrank.progress import Progress, silent
from kgrank.serving.bundle import Bundle
from kgrank.serving.conditions import checked_rules
from kgrank.serving.rules import Rules
from kgrank.settings import check_columns

PICTURES_AN_AXIS = 4  # distinct pictures that a whitened axis of their vectors takes


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tables as numbers. No test event is in here.

    Attributes:
        users: numbers the users.
        items: numbers the items.
        histories: train and valid events.
        splits: (n_events) 0 = train, 1 = valid.
        graph: all facts but those of test events.
        features: what is known of the items.
        cuts: how the events were split.
        encoded: what the text encoder did; None without one.
        encoder: name and fingerprint of the text encoder; empty without one.
        pictures: what the image encoder did; None without one.
        image_encoder: name and fingerprint of the image encoder; empty without one.
    """

    users: Vocabulary
    items: Vocabulary
    histories: Histories
    splits: npt.NDArray[np.int8]
    graph: KnowledgeGraph
    features: ItemFeatures
    cuts: SplitCuts
    encoded: EncodeReport | None
    encoder: dict[str, str]
    pictures: ImageReport | None
    image_encoder: dict[str, str]


def prepare(tables: Tables, config: Config, cache: Path, progress: Progress = silent) -> Prepared:
    """Number the tables, build the graph, turn text and pictures into features.

    What it refuses of tables and settings, `refusals` tells whole.

    Args:
        tables: validated tables.
        config: the configuration.
        cache: folder where vectors of text and pictures are kept between runs.
        progress: told of each stage.

    Raises:
        ModelError: an encoder that the configuration names cannot be loaded.
        ConfigError: pictures are asked for, and the items have no such column, or the tables were
            made in memory, so that their pictures lie nowhere.
    """
    encoder = TextEncoder.from_settings(config.text)  # what cannot run is told before the work
    looker = ImageEncoder.from_settings(config.image)
    texts = item_texts(tables.items, config.text)
    named = _pictures(tables, config)
    progress("graph", 0, 1)
    events, cuts = split_events(tables.events, config.split)
    users, items, histories, splits = _numbers(tables, events)
    graph = _graph(tables, events, config)
    progress("graph", 1, 1)
    words = tfidf(texts, config.tfidf).matrix if any(map(str.strip, texts)) else None
    vectors, encoded, text_encoder = _vectors(encoder, texts, config, cache, progress)
    images, pictures, image_encoder = _images(looker, named, cache, progress)
    n_items = len(items)
    linked = graph.item_entity_matrix(items).matrix
    features = ItemFeatures(
        words=_csr(words, n_items),
        entities=entity_features(_csr(linked if linked.shape[1] else None, n_items)),
        vectors=vectors,
        images=images,
    )
    return Prepared(
        users=users,
        items=items,
        histories=histories,
        splits=splits,
        graph=graph,
        features=features,
        cuts=cuts,
        encoded=encoded,
        encoder=text_encoder,
        pictures=pictures,
        image_encoder=image_encoder,
    )


def refusals(tables: Tables, config: Config) -> tuple[list[Fault], list[str]]:
    """Everything that `train` would refuse of sound tables before it learns, encoders left aside.

    So it is with the columns that `[pretrain]`, `[finetune]` and `[compress]` name for their verbs.

    Returns:
        Faults of the tables; and lines on settings that do not fit them, and on what is missing.
    """
    faults: list[Fault] = []
    lines: list[str] = []

    @contextmanager
    def told() -> Iterator[None]:
        try:
            yield
        except DataError as error:
            faults.extend(error.faults)
        except KgrankError as error:
            lines.extend(str(error).split("\n"))

    with told():
        _pictures(tables, config)
    for section in ("text", "pretrain", "compress"):
        with told():
            fields = getattr(config, section).fields
            check_columns(f"{section}.fields", fields, "items", tables.items)
    of_events = {"pretrain.event_fields": list(config.pretrain.event_fields)}
    if config.neo4j.uri is None:  # a server is asked for them by name
        for setting, names in {**of_events, **config.finetune.event_columns()}.items():
            with told():
                check_columns(setting, names, "events", [*tables.events, *tables.unread])
    events = None
    with told():
        tables = tables.without_test_items(config.split)
        events, _ = split_events(tables.events, config.split)
    with told():
        _graph(tables, tables.events.assign(split="train") if events is None else events, config)
    if events is not None:
        with told():
            _, _, histories, splits = _numbers(tables, events)
            askable(histories, splits, config.fit)
    return faults, lines


def _numbers(
    tables: Tables, events: pd.DataFrame
) -> tuple[Vocabulary, Vocabulary, Histories, npt.NDArray[np.int8]]:
    """Users, items, and what users of train and valid chose, with the split of each event."""
    seen = events[events["split"] != "test"]
    known = pd.concat([seen["user_id"], tables.users["user_id"]])
    users = Vocabulary.from_ids(known.drop_duplicates(), "user")
    items = Vocabulary.from_ids(tables.items["item_id"], "item")
    return users, items, *numbered(_chosen(seen), users, items)


def _graph(tables: Tables, events: pd.DataFrame, config: Config) -> KnowledgeGraph:
    """The graph without test events."""
    kg, column = config.kg, config.image.column
    if config.image.model is not None and column in tables.items and column not in kg.ignore:
        kg = kg.model_copy(update={"ignore": (*kg.ignore, column)})
    seen = _chosen(events[events["split"] != "test"])
    return KnowledgeGraph.from_tables(replace(tables, events=seen), kg)


def _chosen(events: pd.DataFrame) -> pd.DataFrame:
    """The events but those that say what nobody chose: they only speak in histories."""
    return events[events["event"] != REFUSED]


def _pictures(tables: Tables, config: Config) -> tuple[list[str], Path]:
    """The pictures that are asked for, an item each, and the folder they lie in."""
    if config.image.model is None:
        return [], Path()
    names = item_pictures(tables.items, config.image)
    if tables.source is None:
        raise ConfigError(
            "image.model: found tables made in memory; allowed: tables read from a folder, in "
            "which their pictures lie. Save them beside the pictures and read them, or set "
            "image.model to none."
        )
    return names, tables.source if tables.source.is_dir() else tables.source.parent


def _csr(matrix: Any, n_items: int) -> sp.csr_matrix:
    if matrix is None:
        return sp.csr_matrix((n_items, 1), dtype=np.float32)
    return sp.csr_matrix(matrix, dtype=np.float32)


def _vectors(
    encoder: TextEncoder | None, texts: list[str], config: Config, cache: Path, progress: Progress
) -> tuple[npt.NDArray[np.float32] | None, EncodeReport | None, dict[str, str]]:
    if encoder is None or not any(map(str.strip, texts)):
        return None, None, {}
    progress("text vectors", 0, 1)
    raw, report = encode_cached(
        encoder,
        texts,
        VectorCache(cache),
        lambda done, total: progress("text vectors", done, total),
    )
    progress("text vectors", 1, 1)
    named = {"name": encoder.name, "fingerprint": encoder.fingerprint}
    return whiten(raw, shrinkage=config.text.shrinkage).apply(raw), report, named


def _images(
    encoder: ImageEncoder | None, files: tuple[list[str], Path], cache: Path, progress: Progress
) -> tuple[npt.NDArray[np.float32] | None, ImageReport | None, dict[str, str]]:
    if encoder is None:
        return None, None, {}
    names, folder = files
    progress("image vectors", 0, 1)
    raw, report = encoder.encode(
        names,
        folder,
        cache=VectorCache(cache),
        progress=lambda done, total: progress("image vectors", done, total),
    )
    progress("image vectors", 1, 1)
    named = {"name": encoder.name, "fingerprint": encoder.fingerprint}
    # Along more axes than that all pictures would be about as far from each other.
    axes = max(1, (report.encoded + report.reused) // PICTURES_AN_AXIS)
    return whiten(raw, dim=axes).apply(raw), report, named


def train(
    tables: Tables,
    config: Config | None = None,
    *,
    cache: Path | None = None,
    progress: Progress = silent,
    device: str = "auto",
    checkpoints: Path | None = None,
    resume: bool = False,
    sinks: Sequence[Sink] = (),
    rules: Rules | None = None,
) -> Bundle:
    """Fit a bundle on the train and valid rows of the tables. Test rows are never read.

    Without an items table, the items of those rows are all there are to be listed. Under `torchrun`
    process 0 calls this, and the others call `assist`.

    Args:
        tables: validated tables.
        config: the configuration; its defaults if None.
        cache: folder of vectors of text and pictures; `~/.cache/kgrank/vectors` if None.
        progress: called with (stage, done, total).
        device: where the learned channel is trained: "auto" (cuda where there is one), "cpu" or
            "cuda".
        checkpoints: folder where training leaves what it needs to be resumed; none if None.
        resume: go on from the checkpoint in that folder, if it is of the same data and settings;
            else begin anew and say so (a warning is logged).
        sinks: where the figures of training go (`kgrank.loop.Sink`).
        rules: the shop's, as they are; those that lie beside the tables if None.

    Raises:
        ModelError: there is nothing to fit on, an encoder cannot be loaded, training
            diverges, or another process has ended.
        DataError: the events cannot be split by the rule.
        ConfigError: the pictures that are asked for lie nowhere, or the shop's rules are at fault.
    """
    config = config or Config()
    tables = tables.without_test_items(config.split)
    folder = cache or Path.home() / ".cache" / "kgrank" / "vectors"
    device = choose_device(device)
    with joined(device):
        prepared = prepare(tables, config, folder, progress)
        if rules is None:
            rules = checked_rules(tables, config, prepared.graph, prepared.items, prepared.users)
        learner = None
        if config.kg.encoder != "none":
            learner = Learner(
                prepared.graph.to_pyg(),
                config.kg,
                config.learn,
                device=device,
                checkpoints=checkpoints,
                resume=resume,
                sinks=sinks,
                report=progress,
            )
        fitted = fit(
            prepared.histories,
            prepared.splits,
            prepared.features,
            config.fit,
            progress,
            learner,
            config.tasks,
        )
    return Bundle.of(tables, config, prepared, fitted, rules)


def assist(
    tables: Tables,
    config: Config | None = None,
    *,
    device: str = "auto",
    checkpoints: Path | None = None,
    resume: bool = False,
) -> None:
    """Take a share of the learned channel's training, while process 0 of `torchrun` does `train`.

    What process 0 needs alone is not done here: no text or picture is encoded, nothing is chosen
    or written.

    Args:
        tables, config, device, checkpoints, resume: as process 0 gives `train`.

    Raises:
        ModelError, DataError: as `train`; or another process has ended.
    """
    config = config or Config()
    device = choose_device(device)
    with joined(device):
        if config.kg.encoder == "none":
            return
        none = {"model": None}
        text, image = config.text.model_copy(update=none), config.image.model_copy(update=none)
        config = config.model_copy(update={"text": text, "image": image})
        prepared = prepare(tables.without_test_items(config.split), config, Path())
        data = prepared.graph.to_pyg()
        learner = Learner(
            data, config.kg, config.learn, device=device, checkpoints=checkpoints, resume=resume
        )
        assist_fit(prepared.histories, prepared.splits, prepared.features, config.fit, learner)
