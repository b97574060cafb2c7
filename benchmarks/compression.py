"""What does a smaller text encoder cost, and what does it save?

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/compression.py amazon-industrial

The argument is a folder of tables. Every form is made of all-MiniLM-L6-v2 (`kgrank[demo]`) as
`kgrank compress --source` makes it, and measured beside the original in one process: size of the
folder, titles a second on up to `--texts` distinct titles in one run after the model was loaded,
and likeness of the vectors. The original is encoded anew beside each form, so that a ratio of
speeds compares two runs that follow each other.

For the forms of `--ranked` (all, if left out) R@10 is that of one list a user on valid, with a
paired bootstrap over users, by a system without a learned channel that is fitted on train rows; no
test row is read. The other channels do not hang on the encoder. So they are fitted once, and with
each form the channel of its vectors and the fusion weights are found anew: what a whole fit would
give. The last row has no encoder: what TF-IDF, the graph and histories reach without one.

Distilling and the table learn from titles alone here, distilling in two passes. Prints one Markdown
row a form; `--json FILE` keeps everything, and `--only FORM …` leaves out the others.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgrank.config import Config
from kgrank.encoders.cache import VectorCache, encode_cached
from kgrank.encoders.compression import Method, compress
from kgrank.encoders.text import TextEncoder, item_texts
from kgrank.encoders.whitening import whiten
from kgrank.files import new_folder
from kgrank.fusion.channels import Channel, DenseFeatures
from kgrank.fusion.evidence import numbered
from kgrank.fusion.fusing import fuse
from kgrank.fusion.queries import all_allowed, new_only
from kgrank.fusion.selection import Trial, choose_features
from kgrank.fusion.training import valid_queries
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.compressing import Comparison, Ranked, measure, with_ranks
from kgrank.serving.evaluating import valid_lists
from kgrank.serving.training import train

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


class System:
    """What is fitted without an encoder, to be fused with the vectors of any."""

    def __init__(self, tables: Tables, cache: Path) -> None:
        settings = {"fit": {"refit": False}, "text": {"model": "none"}, "kg": {"encoder": "none"}}
        self.config = Config.from_dict(settings, "compression")
        self.tables, self.cache = tables, VectorCache(cache)
        self.texts = item_texts(
            tables.without_test_items(self.config.split).items, self.config.text
        )
        self.bundle = train(tables, self.config, progress=Told("system"))
        histories, splits = numbered(self.bundle.events, self.bundle.users, self.bundle.items)
        queries = valid_queries(histories, splits, self.config.fit)
        fresh = new_only(queries)
        self.asked = fresh if len(fresh) else all_allowed(queries)

    def ranked(self, model: str | Path, told: Told) -> Ranked:
        """How it ranks new products with an encoder, or with none."""
        fitted, seed, alone = self.bundle.model, self.config.fit.seed, None
        channels = [channel for channel in fitted.channels if channel.name != "repeat"]
        if model != "none":
            encoder = TextEncoder.load(model, "cpu", self.config.text.max_tokens)
            raw, _ = encode_cached(
                encoder, self.texts, self.cache, lambda done, total: told("vectors", done, total)
            )
            vectors = whiten(raw, shrinkage=self.config.text.shrinkage).apply(raw)
            form = DenseFeatures(torch.from_numpy(vectors))
            choice = choose_features(Trial.of(self.asked, seed), form)
            channels.append(Channel("embedding", choice.decay, form))
            alone = choice.ndcg
        told("fusion", 0, 1)
        weights = fuse(channels, fitted.side, self.asked, seed).weights
        changed = replace(fitted, channels=tuple(channels), heads={"new": weights}, predictors={})
        scores, users = valid_lists(replace(self.bundle, model=changed), self.tables, told)
        return Ranked(np.asarray(scores.recall[10]), users, alone)


def made(name: str, tables: Tables, work: Path, cache: Path, most: int) -> tuple[Path, Comparison]:
    """A form of the encoder, and its size, speed and likeness."""
    method, settings = FORMS[name]
    config, told = Config.from_dict({"compress": settings}, "compression"), Told(name)
    titles = list(dict.fromkeys(filter(str.strip, item_texts(tables.items, config.text))))
    with new_folder(work / name) as folder:
        learned = () if name.endswith("no texts") else titles
        about = compress(
            START, folder, method, config.compress, texts=learned, cache=cache, progress=told
        )
    found = measure(START, work / name, name, about, titles, config, told, most)
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
    parser.add_argument("--texts", type=int, default=2_000, help="titles that speed is told of")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "kgrank" / "vectors")
    given = parser.parse_args()
    tables = read_tables(given.folder)
    asked = [*given.only, "none"] if given.ranked is None else given.ranked
    kept: dict[str, Any] = {}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        system = System(tables, given.cache) if asked else None
        whole = None if system is None else system.ranked(START, Told("original"))
        for name in given.only:
            folder, found = made(name, tables, work, given.cache, given.texts)
            if system is not None and whole is not None and name in asked:
                found = with_ranks(found, whole, system.ranked(folder, Told(name)))
            print(row(name, found), flush=True)
            kept[name] = asdict(found)
        first = next(iter(kept.values()))["original"]
        line = f"| original | {first['megabytes']:.1f} | | {first['texts_per_second']:,.0f} | | | |"
        if whole is not None:
            line += f" {whole.alone:.4f} | {whole.recall.mean():.4f} | |"
        print(line, flush=True)
        if system is not None and "none" in asked:
            none = system.ranked("none", Told("no encoder"))
            kept["none"] = float(none.recall.mean())
            print(f"| no encoder | | | | | | | | {kept['none']:.4f} | |")
    if given.json:
        given.json.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
