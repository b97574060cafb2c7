"""How well does kgrank rank public data sets, with the graph true, shuffled and absent?

    python benchmarks/accuracy.py FOLDER [--sets amazon-industrial …] [--graph true|all] [--refit]

FOLDER holds one folder of tables for each set (`kgrank.data/README.md` says where the sets come
from and how to import them). One default configuration for all; nothing is tuned on test rows.
Prints one Markdown row a set and graph; `--json FILE` keeps everything that evaluate returned.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from kgrank.config import Config
from kgrank.kg.tables import read_tables
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.training import train

SETS: dict[str, dict[str, str]] = {
    "amazon-industrial": {"protocol": "next"},
    "amazon-beauty": {"protocol": "next"},
    "ml1m-kg": {"protocol": "user"},
    "ml100k-kg": {"protocol": "user", "history": "train"},
}
COLUMNS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")


def run(folder: Path, name: str, graph: str, refit: bool, cache: Path) -> dict[str, Any]:
    tables = read_tables(folder / name)
    start = time.perf_counter()

    def progress(stage: str, done: int, total: int) -> None:
        seconds = time.perf_counter() - start
        print(f"\r{name}: {seconds:5.0f} s  {stage} {done}/{total}\033[K", end="", file=sys.stderr)

    config = Config.from_dict({"fit": {"refit": refit}}, "accuracy")
    bundle = train(tables, config, cache=cache, progress=progress)
    seconds = time.perf_counter() - start
    protocol = SETS[name]
    result = evaluate_bundle(bundle, graph=graph, cache=cache, progress=progress, **protocol)
    print(file=sys.stderr)
    return {"set": name, "refit": refit, "fit_seconds": seconds, "facts": bundle.facts, **result}


def rows(result: dict[str, Any]) -> list[str]:
    name = result["set"] + (" (refitted)" if result["refit"] else "")
    lines = []
    graphs = result.get("graph", {"true": result["metrics"]})
    named = {f"kgrank, graph {graph}": metrics for graph, metrics in graphs.items()}
    for system, metrics in {**named, **result["baselines"]}.items():
        figures = " | ".join(f"{metrics[column]:.4f}" for column in COLUMNS)
        own = system.startswith("kgrank, graph true")
        cold = result["slices"]["cold_items"].get("recall@10") if own else None
        seconds = f"{result['fit_seconds']:.0f}" if own else ""
        new = "" if cold is None else f"{cold:.4f}"
        lines.append(f"| {name} | {system} | {figures} | {new} | {seconds} |")
    for other, difference in result.get("graph_difference", {}).items():
        mean, (low, high) = difference["ndcg@10"], difference["interval"]
        gain = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(f"| {name} | NDCG@10, true − {other} | {gain} | | | | | |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--graph", choices=("true", "all"), default="true")
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "kgrank" / "vectors")
    given = parser.parse_args()
    print("| set | system | R@10 | N@10 | R@20 | N@20 | cold R@10 | fit, s |")
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for name in given.sets:
        results.append(run(given.folder, name, given.graph, given.refit, given.cache))
        print("\n".join(rows(results[-1])), flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
