"""What does a smaller text encoder cost, and what does it save?

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/compression.py amazon-industrial

The argument is a folder of tables. Every form is made of all-MiniLM-L6-v2 (`kgrank[demo]`) as
`kgrank compress --source` makes it, and measured beside the original in one process: size of the
folder, titles a second on up to 2,000 distinct titles in one run after the model was loaded, and
likeness of the vectors. The original is encoded anew beside each form, so that a ratio of speeds
compares two runs that follow each other.

For the forms of `--ranked` (all, if left out) a system is fitted on train rows with each, and R@10
is that of one list a user on valid, with a paired bootstrap over users; no test row is read. The
last row has no encoder: what TF-IDF, the graph and histories reach without one.

Distilling and the table learn from titles alone here, distilling in two passes. Prints one Markdown
row a form; `--json FILE` keeps everything, and `--only FORM …` leaves out the others.
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
from kgrank.encoders.compression import Method, compress
from kgrank.encoders.text import item_texts
from kgrank.files import new_folder
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.compressing import Comparison, measure, ranked, with_ranks

START = "minilm"
FORMS: dict[str, tuple[Method, dict[str, Any]]] = {
    "onnx": ("onnx", {}),
    "int8": ("int8", {}),
    "layers, 3 spread": ("layers", {"layers": 3}),
    "layers, first 3": ("layers", {"layers": 3, "keep": "first"}),
    "distil, 3 spread": ("distil", {"layers": 3, "epochs": 2}),
    "static, 256": ("static", {"dim": 256}),
    "static, 256, no texts": ("static", {"dim": 256}),
}
COLUMNS = (
    *("form", "MB", "times smaller", "titles/s", "times as fast", "cosine", "nearest in common"),
    *("text alone, NDCG@10", "R@10", "difference of R@10 (95 %)"),
)


class Told:
    """One line on stderr."""

    def __init__(self, name: str) -> None:
        self.name, self.begun = name, time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell of a stage."""
        where = f"{self.name}: {time.perf_counter() - self.begun:5.0f} s"
        print(f"\r{where}  {stage} {done}/{total}\033[K", end="", file=sys.stderr)


def made(name: str, tables: Tables, work: Path) -> tuple[Path, Comparison]:
    """A form of the encoder, and its size, speed and likeness."""
    method, settings = FORMS[name]
    config, told = Config.from_dict({"compress": settings}, "compression"), Told(name)
    titles = list(dict.fromkeys(filter(str.strip, item_texts(tables.items, config.text))))
    with new_folder(work / name) as folder:
        learned = () if name.endswith("no texts") else titles
        about = compress(START, folder, method, config.compress, texts=learned, progress=told)
    found = measure(START, work / name, name, about, titles, config, told)
    print(file=sys.stderr)
    return work / name, found


def row(name: str, found: Comparison) -> str:
    original, small = found.original, found.compressed
    change = ""
    if found.interval is not None and small.recall is not None and original.recall is not None:
        low, high = found.interval
        change = f"{small.recall - original.recall:+.4f} ({low:+.4f} to {high:+.4f})"
    cells = (
        name,
        f"{small.megabytes:.1f}",
        f"{original.megabytes / small.megabytes:.1f}",
        f"{small.texts_per_second:,.0f}",
        f"{small.texts_per_second / original.texts_per_second:.1f}",
        f"{found.cosine:.4f}",
        f"{found.neighbors:.2f}",
        *("" if value is None else f"{value:.4f}" for value in (small.alone, small.recall)),
        change,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--ranked", nargs="*", choices=[*FORMS, "none"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    tables, config = read_tables(given.folder), Config()
    asked = [*given.only, "none"] if given.ranked is None else given.ranked
    kept: dict[str, Any] = {}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        cache = work / "cache"
        whole = ranked(START, tables, config, cache, Told("original")) if asked else None
        for name in given.only:
            folder, found = made(name, tables, work)
            if whole is not None and name in asked:
                small = ranked(folder, tables, config, cache, Told(name))
                found = with_ranks(found, whole, small)
            print(row(name, found), flush=True)
            kept[name] = asdict(found)
        first = next(iter(kept.values()))["original"]
        line = f"| original | {first['megabytes']:.1f} | | {first['texts_per_second']:,.0f} | | | |"
        if whole is not None:
            line += f" {whole.alone:.4f} | {whole.recall.mean():.4f} | |"
        print(line, flush=True)
        if "none" in asked:
            none = ranked("none", tables, config, cache, Told("no encoder"))
            kept["none"] = float(none.recall.mean())
            print(f"| no encoder | | | | | | | | {kept['none']:.4f} | |")
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
