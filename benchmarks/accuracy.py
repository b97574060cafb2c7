"""How well does kgrank rank public data sets, with the graph true, shuffled and absent?

    python benchmarks/accuracy.py FOLDER [--sets amazon-industrial …] [--graph true|all] [--refit]
    python benchmarks/accuracy.py FOLDER --sets ml100k-kg --encoder light rgcn gatv2 hgt none

FOLDER holds one folder of tables for each set (`kgrank.data/README.md` says where the sets come
from and how to import them). One default configuration for all but for the encoder of the learned
channel; nothing is tuned on test rows. Prints one Markdown row a set, encoder and graph, and what
the learned channel alone reaches on valid; `--json FILE` keeps everything that evaluate returned.
On stderr it tells the seconds of the fit's stages, and the peak memory up to its end.
"""

from __future__ import annotations

import argparse
import json
import resource
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
ENCODERS = ("light", "rgcn", "gatv2", "hgt", "none")


def run(
    folder: Path, name: str, encoder: str, graph: str, refit: bool, cache: Path
) -> dict[str, Any]:
    tables = read_tables(folder / name)
    start = time.perf_counter()
    begun: dict[str, float] = {}

    def progress(stage: str, done: int, total: int) -> None:
        seconds = time.perf_counter() - start
        begun.setdefault(stage.partition(":")[0], seconds)
        where = f"{name}, {encoder}: {seconds:5.0f} s"
        print(f"\r{where}  {stage} {done}/{total}\033[K", end="", file=sys.stderr)

    settings = {"fit": {"refit": refit}, "kg": {"encoder": encoder}}
    config = Config.from_dict(settings, "accuracy")
    bundle = train(tables, config, cache=cache, progress=progress)
    seconds = time.perf_counter() - start
    ends = [*begun.values(), seconds][1:]
    stages = {stage: end - begun[stage] for stage, end in zip(begun, ends, strict=True)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # of the process so far
    told = ", ".join(f"{stage} {of_stage:.1f}" for stage, of_stage in stages.items())
    print(f"\nfitted in {seconds:.0f} s, peak {peak:.0f} MB; {told}", file=sys.stderr)
    protocol = SETS[name]
    result = evaluate_bundle(bundle, graph=graph, cache=cache, progress=progress, **protocol)
    print(file=sys.stderr)
    about: dict[str, Any] = {
        "set": name,
        "encoder": encoder,
        "refit": refit,
        "fit_seconds": seconds,
    }
    about |= {"stage_seconds": stages, "peak_mb": peak}
    return {**about, "facts": bundle.facts, **result}


def rows(result: dict[str, Any], baselines: bool) -> list[str]:
    """The lines of one encoder, and of the baselines, which no encoder changes."""
    name = result["set"] + (" (refitted)" if result["refit"] else "")
    lines = []
    graphs = result.get("graph", {"true": result["metrics"]})
    for graph, metrics in graphs.items():
        cells = of_fit(result) if graph == "true" else [""] * 4
        lines.append(row(name, f"kgrank, {result['encoder']}, graph {graph}", metrics, cells))
    for other, difference in result.get("graph_difference", {}).items():
        mean, (low, high) = difference["ndcg@10"], difference["interval"]
        gain = f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(f"| {name} | NDCG@10, true − {other} | {gain} | | | | | | | |")
    if baselines:
        lines += [row(name, *of, [""] * 4) for of in result["baselines"].items()]
    return lines


def of_fit(result: dict[str, Any]) -> list[str]:
    """Recall of new products, the learned channel alone on valid, and seconds."""
    learned, fused = result["facts"]["learned"], result["facts"]["fusion"]["new"]
    alone = fused["valid_ndcg@10"].get("learned")
    return [
        shown(result["slices"]["cold_items"].get("recall@10"), 4),
        shown(alone, 4),
        shown(learned and learned["seconds"], 0),
        shown(result["fit_seconds"], 0),
    ]


def row(name: str, system: str, metrics: dict[str, float], cells: list[str]) -> str:
    figures = [shown(metrics[column], 4) for column in COLUMNS]
    return f"| {' | '.join([name, system, *figures, *cells])} |"


def shown(figure: float | None, digits: int) -> str:
    return "" if figure is None else f"{figure:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--encoder", nargs="+", choices=ENCODERS, default=["light"])
    parser.add_argument("--graph", choices=("true", "all"), default="true")
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "kgrank" / "vectors")
    given = parser.parse_args()
    header = ["set", "system", "R@10", "N@10", "R@20", "N@20", "cold R@10"]
    header += ["learned alone, valid N@10", "learned, s", "fit, s"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    results = []
    for name in given.sets:
        for encoder in given.encoder:
            result = run(given.folder, name, encoder, given.graph, given.refit, given.cache)
            results.append(result)
            last = encoder == given.encoder[-1]
            print("\n".join(rows(result, baselines=last)), flush=True)
            if given.json:  # what is done is kept, should a later fit not end
                given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
