"""How fast are texts of mixed length embedded, and how much memory do a million titles take?

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/embedding_texts.py FOLDER
    python benchmarks/embedding_texts.py FOLDER --memory 1_000_000 --texts 0

FOLDER is a folder of tables. Rates: `--texts` of its titles and descriptions, mixed, are encoded by
all-MiniLM-L6-v2 (`kgrank[demo]`) as `TextEncoder.encode` does it, and beside it in batches of as
many tokens, padding included, in the order given. Both are told in texts a second, and in tokens
that the model computed, padding included; the vectors must be the same.

Memory: so many made-up titles of six words (seeded) are embedded and written to a file as `kgrank
embed` does it, in a process of its own, by MiniLM's first layer, since the whole of it would take
hours; its batches are as large and its vectors as long, or `--dim` numbers, by a dense layer of
random weights behind it. Printed is by how much the process's peak exceeds what it held before,
with the encoder loaded and the titles there.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from kgrank.encoders.compression import CompressSettings, compress
from kgrank.encoders.embedding import embed_items
from kgrank.encoders.pooling import write_projection
from kgrank.encoders.text import TextEncoder, TextSettings, column_texts
from kgrank.kg.tables import read_tables

BUDGET = 4_096  # tokens a batch, as TextEncoder.encode takes on a CPU
LIMIT = 256


def mixed(folder: Path, most: int) -> list[str]:
    """Titles and descriptions of a shop in random order."""
    items = read_tables(folder).items
    columns = [column_texts(items[name]) for name in ("title", "description")]
    texts = list(dict.fromkeys(text for column in columns for text in column if text.strip()))
    return [texts[row] for row in np.random.default_rng(0).permutation(len(texts))[:most]]


def in_order(encoder: TextEncoder, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """Vectors of texts in batches as they come, and the tokens that were computed."""
    ids, _ = encoder.tokenise(texts)
    found, tokens, start = [], 0, 0
    while start < len(ids):
        end, width = start, 0
        while end < len(ids) and max(width, len(ids[end])) * (end + 1 - start) <= BUDGET:
            width, end = max(width, len(ids[end])), end + 1
        found.append(encoder.loaded[0](ids[start:end]))
        tokens += width * (end - start)
        start = end
    vectors = np.concatenate(found)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), tokens


def rates(folder: Path, most: int) -> dict[str, Any]:
    """Texts a second both ways."""
    texts, encoder = mixed(folder, most), TextEncoder.load("minilm", "cpu", LIMIT)
    encoder.encode(texts[:8])
    widths: list[int] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda model, args, given: widths.append(given["input_ids"].numel()), with_kwargs=True
    )
    start = time.process_time()
    vectors = encoder.encode(texts)
    sorted_seconds = time.process_time() - start
    hook.remove()
    start = time.process_time()
    others, tokens = in_order(encoder, texts)
    seconds = time.process_time() - start
    np.testing.assert_allclose(vectors, others, atol=1e-4)
    lengths = np.array([len(ids) for ids in encoder.tokenise(texts)[0]])
    return {
        "texts": len(texts),
        "tokens of a text, median and mean": [float(np.median(lengths)), float(lengths.mean())],
        "texts a CPU second": round(len(texts) / sorted_seconds, 1),
        "in the order given": round(len(texts) / seconds, 1),
        "times as fast": round(seconds / sorted_seconds, 2),
        "tokens computed": sum(widths),
        "tokens computed in the order given": tokens,
    }


def memory(n_titles: int, dim: int | None) -> dict[str, Any]:
    """Peak of a process that embeds so many titles, beyond what it held before."""
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        compress("minilm", model, "layers", CompressSettings(layers=1, keep="first"))
        if dim is not None:
            torch.manual_seed(0)
            width = TextEncoder.load(model, "cpu").dim
            write_projection(model, torch.nn.Linear(width, dim), "mean")
        words = [sys.executable, __file__, "--child", str(n_titles), str(model), scratch]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def child(n_titles: int, model: Path, scratch: Path) -> None:
    encoder = TextEncoder.load(model, "cpu")
    vocabulary = [word for word in encoder.loaded[1].get_vocab() if word.isalpha()]
    rng = np.random.default_rng(0)
    titles = [
        " ".join(vocabulary[n] for n in numbers)
        for numbers in rng.integers(len(vocabulary), size=(n_titles, 6))
    ]
    items = pd.DataFrame({"item_id": [str(n) for n in range(n_titles)], "title": titles})
    settings = TextSettings(model=str(model), device="cpu", fields=("title",))
    del titles, encoder
    gc.collect()
    before = _held("VmRSS")
    start = time.process_time()
    done = embed_items(items, scratch / "vectors.parquet", settings, cache=scratch / "cache")
    seconds = time.process_time() - start
    peak = _held("VmHWM")
    told = {"titles": n_titles, "encoded": done.encoded, "dim": done.dim}
    sizes = {"vectors_gb": 4e-9 * n_titles * done.dim, "beyond_gb": (peak - before) / 1e9}
    print(json.dumps({**told, **sizes, "cpu_seconds": seconds}))


def _held(what: str) -> int:
    """Bytes that this process holds now (VmRSS), or held at most (VmHWM).

    Not by getrusage, whose peak begins with that of the process this one was started from.
    """
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), *map(Path, sys.argv[3:]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=1_000, help="that rates are told of; 0: none")
    parser.add_argument("--memory", type=int, default=0, help="titles that memory is told of")
    parser.add_argument("--dim", type=int, help="numbers of their vectors; MiniLM's if not given")
    given = parser.parse_args()
    if given.texts:
        print(json.dumps(rates(given.folder, given.texts), indent=1), flush=True)
    if given.memory:
        print(json.dumps(memory(given.memory, given.dim), indent=1))


if __name__ == "__main__":
    main()
