"""Do item–item weights of a large catalogue fit? 1 million events × 100,000 products.

    python benchmarks/item_item_large.py [--events 1000000] [--items 100000] [--threads 1]
    python benchmarks/item_item_large.py --events 200000 --items 12000    # a middling catalogue

A made-up shop (seeded) of one user for 25 events and one cluster for 200 products. Activity of
users is log-normal; popularity of clusters, and of products in a cluster, falls with the rank.
Every user keeps to three clusters but for one event in ten, which goes anywhere. Five words a
product from a long-tailed vocabulary make the side rows. Prints seconds, entries and the peak
memory (all of the process) reached by the end of each step; then how long it takes to look up
every pair of neighbours of a few columns in the summed sparse matrix instead, and to solve them
with torch. numba has compiled before the clock starts.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from kgrank.fusion.evidence import Evidence, ItemFeatures, Steps
from kgrank.fusion.history import Histories
from kgrank.fusion.item_item import EXACT_ITEMS, Moments, Ridge
from kgrank.kg.exchange import unit_rows

EVENTS_A_USER, ITEMS_A_CLUSTER, WORDS_AN_ITEM = 25, 200, 5
CLUSTERS_A_USER, ANYWHERE = 3, 0.1
NEIGHBORS = 100


def shop(n_events: int, n_items: int, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    n_users, n_clusters = max(1, n_events // EVENTS_A_USER), max(1, n_items // ITEMS_A_CLUSTER)
    activity = rng.lognormal(size=n_users)
    users = rng.choice(n_users, n_events, p=activity / activity.sum())
    tastes = _by_rank(rng, n_clusters, 0.5, (n_users, CLUSTERS_A_USER))
    cluster = tastes[users, rng.integers(0, CLUSTERS_A_USER, n_events)]
    size = n_items // n_clusters
    items = cluster * size + _by_rank(rng, size, 1.0, (n_events,))
    anywhere = rng.random(n_events) < ANYWHERE
    items[anywhere] = rng.integers(0, n_items, anywhere.sum())
    histories = Histories.from_arrays(
        users,
        items,
        np.zeros(n_events, np.int64),
        np.full(n_events, np.nan),
        kind_names=("buy",),
        n_users=n_users,
        n_items=n_items,
    )
    n_words = max(1, n_items // 4)
    words = _by_rank(rng, n_words, 0.8, (n_items * WORDS_AN_ITEM,))
    rows = np.repeat(np.arange(n_items), WORDS_AN_ITEM)
    counts = sp.csr_matrix((np.ones(len(words), np.float32), (rows, words)), (n_items, n_words))
    nothing = sp.csr_matrix((n_items, 1), dtype=np.float32)
    return Evidence(histories, ItemFeatures(unit_rows(counts), nothing, None))


def _by_rank(
    rng: np.random.Generator, n: int, exponent: float, shape: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Numbers below n, of which r is drawn with a probability ∝ (r + 1)^-exponent."""
    share = np.arange(1, n + 1) ** -exponent
    return rng.choice(n, shape, p=share / share.sum())


def report(step: str, start: float, matrix: sp.csr_matrix) -> None:
    entries = matrix.size if isinstance(matrix, np.ndarray) else matrix.nnz
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - start
    print(f"{step:17} {seconds:6.1f} s, {entries:11,} entries, peak {peak:13,} bytes", flush=True)


def measure(name: str, evidence: Evidence, ridge: Ridge) -> tuple[Moments, sp.csr_matrix, float]:
    start = time.perf_counter()
    moments = (
        evidence.linear_moments() if name == "linear" else evidence.directed_moments(Steps(0.5))
    )
    report(f"{name} moments", start, moments.gram)
    start = time.perf_counter()
    weights = moments.weights(ridge, neighbors=NEIGHBORS)
    report(f"{name} weights", start, weights)
    return moments, weights, time.perf_counter() - start


def by_lookups(moments: Moments, weights: sp.csr_matrix, ridge: Ridge, n_columns: int) -> float:
    """Seconds a column when every pair of its neighbours is looked up; the same weights come out.

    Summing the matrices and choosing the neighbours are not timed. scipy searches by halves only
    where it is asked for more than a tenth of the entries: take columns enough.
    """
    shared = np.float32(ridge.words) * (moments.words @ moments.words.T)
    gram, cross = (moments.gram + shared).tocsr(), (moments.cross + shared).tocsc()
    gram.sum_duplicates()
    found = weights.tocsc()
    rng = np.random.default_rng(1)
    full = np.flatnonzero(np.diff(found.indptr) == NEIGHBORS)
    columns = rng.choice(full, min(n_columns, len(full)), replace=False)
    near = np.stack([found.indices[found.indptr[j] : found.indptr[j + 1]] for j in columns])
    wanted = np.stack([cross[near[i], [j]] for i, j in enumerate(columns)]).reshape(near.shape)
    expected = np.stack([found.data[found.indptr[j] : found.indptr[j + 1]] for j in columns])
    start = time.perf_counter()
    shape = (*near.shape, NEIGHBORS)
    rows, others = (np.broadcast_to(i, shape) for i in (near[:, :, None], near[:, None, :]))
    systems = torch.from_numpy(np.asarray(gram[rows.ravel(), others.ravel()]).reshape(shape))
    systems.diagonal(dim1=1, dim2=2).add_(ridge.penalty)
    factor = torch.linalg.cholesky(systems)
    right = torch.from_numpy(np.asarray(wanted, np.float32))[:, :, None]
    solved = torch.cholesky_solve(right, factor)[:, :, 0].numpy()
    seconds = (time.perf_counter() - start) / len(columns)
    if not np.allclose(solved, expected, atol=1e-5):
        raise SystemExit(f"found weights that differ by {np.abs(solved - expected).max()}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--threads", type=int, help="torch's own number if it is not given")
    parser.add_argument("--lookups", type=int, default=500, help="columns; 0 leaves that out")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    start = time.perf_counter()
    shop(200_000, EXACT_ITEMS + 1).linear_moments().weights(Ridge(), neighbors=1)
    print(f"numba compiled or loaded, {time.perf_counter() - start:.1f} s", flush=True)
    begin = time.perf_counter()
    evidence = shop(given.events, given.items)
    report("shop (words)", begin, evidence.features.words)
    begin = time.perf_counter()
    ridge = Ridge(100.0, words=3.0)
    done = {name: measure(name, evidence, ridge) for name in ("linear", "directed")}
    print(f"both {time.perf_counter() - begin:.1f} s on {torch.get_num_threads()} threads")
    if given.lookups:
        for name, (moments, weights, seconds) in done.items():
            a_column = by_lookups(moments, weights, ridge, given.lookups)
            ratio = a_column * given.items / seconds
            print(f"{name} by lookups  {1e3 * a_column:.2f} ms a column, {ratio:.0f} times as long")


if __name__ == "__main__":
    main()
