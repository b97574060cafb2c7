"""What does the embedding store cost? 1,000,000 vectors of 128 numbers.

    python benchmarks/embedding_store.py [--rows 1000000] [--dim 128] [--queries 256] [--no-index]

Made-up vectors (seeded): a cluster for 500 of them, lengths log-normal (σ = 0.3), queries of the
same kind. Writes a store into a temporary folder, appends and replaces 1 %, opens it in a new
process, and looks for the 20 nearest of the queries: exactly, in turn with a bare
`torch.topk(Q @ V.T)` over vectors in memory, and through an index. Prints seconds (the median of
five), queries a second, the share of the exact nearest that the index finds, and the peak memory
of a process that opens the store and searches (file pages that the system can drop count in it).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kgrank.kg.embeddings import EmbeddingStore

N, TIMES, ROWS_A_CLUSTER = 20, 5, 500


def vectors(n: int, dim: int, centres: np.ndarray, seed: int) -> np.ndarray:
    """(n × dim) float32."""
    rng = np.random.default_rng(seed)
    found = 0.7 * rng.standard_normal((n, dim), np.float32)
    found += centres[rng.integers(0, len(centres), n)]
    found *= rng.lognormal(0, 0.3, (n, 1)).astype(np.float32)
    return found


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def memory() -> str:
    """Peak memory, and what is now in memory and in no file."""
    status = Path("/proc/self/status").read_text()
    own = int(status.split("RssAnon:")[1].split()[0]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"peak {peak:.2f} GiB, {own:.2f} GiB of it now in no file"


def open_and_search(folder: Path, queries: np.ndarray) -> None:
    """In a process of its own, which has done nothing else."""
    took = seconds(lambda: EmbeddingStore.open(folder))
    print(f"open                     {1e3 * took:9.2f} ms, in a new process", flush=True)
    store = EmbeddingStore.open(folder)
    print(f"first look-up of an id   {1e3 * seconds(lambda: store.vectors('item', ['7'])):9.2f} ms")
    ids = store.ids("item")
    some = np.random.default_rng(0).choice(ids, min(100_000, len(ids)), replace=False)
    took = seconds(lambda: store.vectors("item", some))
    print(f"look-up of {len(some):,}      {took:9.2f} s")
    print(f"memory so far                {memory()}")
    store.nearest("item", queries, n=N, exact=True)
    print(f"memory after exact search    {memory()}", flush=True)


def compare_exact(store: EmbeddingStore, queries: np.ndarray) -> None:
    whole = torch.from_numpy(store.vectors("item", store.ids("item")))
    asked = torch.from_numpy(queries)
    ours, bare = [], []
    for _ in range(TIMES):
        ours.append(seconds(lambda: store.nearest("item", queries, n=N, exact=True)))
        bare.append(seconds(lambda: torch.topk(asked @ whole.T, N)))
    for name, took in (("nearest, exact", ours), ("bare matmul and topk", bare)):
        middle = float(np.median(took))
        print(f"{name:24} {middle:9.2f} s, {len(queries) / middle:,.0f} queries/s")
    ratio = np.array(bare) / np.array(ours)
    span = f"{ratio.min():.2f} to {ratio.max():.2f}"
    print(f"exact is {np.median(ratio):.2f} times as fast as bare ({span})")
    ours = [seconds(lambda: store.nearest("item", queries[:1], N, True)) for _ in range(TIMES)]
    bare = [seconds(lambda: torch.topk(asked[:1] @ whole.T, N)) for _ in range(TIMES)]
    alone = f"bare {1e3 * np.median(bare):.1f} ms"
    print(f"one query, exact         {1e3 * np.median(ours):9.1f} ms, {alone}", flush=True)


def compare_approximate(store: EmbeddingStore, queries: np.ndarray) -> None:
    start = time.perf_counter()
    store = store.build_index("item")
    took, size = time.perf_counter() - start, next(store.path.glob("*.faiss")).stat().st_size
    print(f"index built              {took:9.1f} s, {size / 2**20:,.0f} MiB")
    took = seconds(lambda: store.nearest("item", queries[:1], n=N, exact=False))
    print(f"first query (checks sum) {took:9.2f} s", flush=True)
    exact = store.nearest("item", queries, n=N, exact=True)
    found = store.nearest("item", queries, n=N, exact=False)
    pairs = zip(exact.numbers, found.numbers, strict=True)
    recall = np.mean([len({*a} & {*b}) / N for a, b in pairs])
    search = lambda how: store.nearest("item", queries, n=N, exact=how)  # noqa: E731
    times = [(seconds(lambda: search(False)), seconds(lambda: search(True))) for _ in range(TIMES)]
    near, all_ = np.median(times, axis=0)
    print(f"nearest, approximate     {near:9.3f} s, {len(queries) / near:,.0f} queries/s")
    print(
        f"approximate is {all_ / near:.1f} times as fast as exact; recall@{N} {recall:.4f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--no-index", action="store_true")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    centres = np.random.default_rng(0).standard_normal(
        (max(1, given.rows // ROWS_A_CLUSTER), given.dim), np.float32
    )
    queries = vectors(given.queries, given.dim, centres, seed=2)
    if given.open:
        return open_and_search(given.open, queries)
    print(
        f"{given.rows:,} × {given.dim}, {given.queries} queries, {torch.get_num_threads()} threads"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        ids = [str(number) for number in range(given.rows)]
        whole = vectors(given.rows, given.dim, centres, seed=1)
        store = EmbeddingStore.create(folder, given.dim)
        few = max(1, given.rows // 100)
        for what, some, values in (
            ("write", ids, whole),
            ("append 1 %", [f"new-{id_}" for id_ in ids[:few]], whole[:few]),
            ("replace 1 %", ids[:few], whole[few : 2 * few]),
        ):
            start = time.perf_counter()
            store = store.write("item", some, values)
            print(f"{what:24} {time.perf_counter() - start:9.2f} s", flush=True)
        command = [sys.executable, __file__, *sys.argv[1:], "--open", str(folder)]
        subprocess.run(command, check=True)
        print(f"verify                   {seconds(store.verify):9.2f} s")
        start = time.perf_counter()
        store = store.compact()
        print(f"compact                  {time.perf_counter() - start:9.2f} s", flush=True)
        del whole, ids
        compare_exact(store, queries)
        if not given.no_index:
            compare_approximate(store, queries)


if __name__ == "__main__":
    main()
