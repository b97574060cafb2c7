"""What does a smaller text encoder cost, and what does it save?

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/compression.py amazon-industrial

The argument is a folder of tables. Every form is made of all-MiniLM-L6-v2 (`kgrank[demo]`) by what
`kgrank compress --source` calls, and measured beside the original in one process: size of the
folder, titles a second on up to 2,000 distinct titles in one run after the model was loaded,
likeness of the vectors, and R@10 of the fused system on valid (one list a user, fitted on train
rows), with a paired bootstrap over users. No test row is read. The original is encoded anew beside
each form, so that a ratio of speeds compares two runs that follow each other. The last row has no
encoder: what TF-IDF, the graph and histories reach without one.

Prints one Markdown row a form; `--json FILE` keeps everything. `--only NAME …` leaves out the
others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kgrank.config import Config
from kgrank.encoders.compression import Method
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.compressing import Comparison, compress_encoder
from kgrank.serving.evaluating import valid_lists
from kgrank.serving.training import train

FORMS: dict[str, tuple[Method, dict[str, Any]]] = {
    "layers, 3 spread": ("layers", {"layers": 3}),
    "layers, first 3": ("layers", {"layers": 3, "keep": "first"}),
    "distil, 3 spread": ("distil", {"layers": 3}),
    "distil, 1": ("distil", {"layers": 1}),
    "static, 256": ("static", {"dim": 256}),
    "static, 128": ("static", {"dim": 128}),
    "onnx": ("onnx", {}),
    "int8": ("int8", {}),
}
COLUMNS = (
    *("form", "MB", "times smaller", "titles/s", "times as fast", "cosine", "nearest in common"),
    *("text alone, NDCG@10", "R@10", "difference of R@10 (95 %)"),
)


def run(name: str, tables: Tables, cache: Path, work: Path) -> Comparison:
    method, settings = FORMS[name]
    begun = time.perf_counter()

    def progress(stage: str, done: int, total: int) -> None:
        where = f"{name}: {time.perf_counter() - begun:5.0f} s"
        print(f"\r{where}  {stage} {done}/{total}\033[K", end="", file=sys.stderr)

    config = Config.from_dict({"compress": settings}, "compression")
    out = work / name
    found = compress_encoder(
        "minilm", out, method, tables, config, force=True, cache=cache, progress=progress
    )
    print(file=sys.stderr)
    return found


def without(tables: Tables, cache: Path) -> float:
    """R@10 on valid of the system without an encoder."""
    config = Config.from_dict({"text": {"model": "none"}, "fit": {"refit": False}}, "compression")
    scores, _ = valid_lists(train(tables, config, cache=cache), tables)
    return float(scores.recall[10].mean())


def row(name: str, found: Comparison) -> str:
    original, small = found.original, found.compressed
    low, high = found.interval or (float("nan"), float("nan"))
    change = (small.recall or 0.0) - (original.recall or 0.0)
    cells = (
        name,
        f"{small.megabytes:.1f}",
        f"{original.megabytes / small.megabytes:.1f}",
        f"{small.texts_per_second:,.0f}",
        f"{small.texts_per_second / original.texts_per_second:.1f}",
        f"{found.cosine:.4f}",
        f"{found.neighbors:.2f}",
        f"{small.alone or 0.0:.4f}",
        f"{small.recall:.4f}",
        f"{change:+.4f} ({low:+.4f} to {high:+.4f})",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tables = read_tables(given.folder)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for name in given.only:
            found = run(name, tables, work / "cache", work)
            if not kept:
                whole = found.original
                size, speed = f"{whole.megabytes:.1f}", f"{whole.texts_per_second:,.0f}"
                alone, recall = f"{whole.alone or 0.0:.4f}", f"{whole.recall:.4f}"
                print(f"| original | {size} | | {speed} | | | | {alone} | {recall} | |")
            print(row(name, found), flush=True)
            kept[name] = asdict(found)
        kept["none"] = without(tables, work / "cache")
        print(f"| no encoder | | | | | | | | {kept['none']:.4f} | |")
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
