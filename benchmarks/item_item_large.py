"""Do item–item weights of a large catalogue fit? 1 million events × 100,000 products.

    python benchmarks/item_item_large.py [--events 1000000] [--items 100000]

A made-up shop (seeded) of one user for 25 events and one cluster for 200 products. Activity of
users is log-normal; popularity of clusters, and of products in a cluster, falls with the rank.
Every user keeps to three clusters but for one event in ten, which goes anywhere. Five words a
product from a long-tailed vocabulary make the side rows. Prints seconds, entries and the peak
memory reached by the end of each step.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.evidence import Evidence, ItemFeatures, unit_rows
from kgrank.fusion.history import Histories
from kgrank.fusion.item_item import Matrix, Moments, Ridge

EVENTS_A_USER, ITEMS_A_CLUSTER, WORDS_AN_ITEM = 25, 200, 5
CLUSTERS_A_USER, ANYWHERE = 3, 0.1


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


def report(step: str, start: float, matrix: Matrix) -> None:
    entries = matrix.size if isinstance(matrix, np.ndarray) else matrix.nnz
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - start
    print(f"{step:17} {seconds:6.1f} s, {entries:11,} entries, peak {peak:.2f} GiB", flush=True)


def measure(name: str, evidence: Evidence) -> None:
    start = time.perf_counter()
    moments: Moments = (
        evidence.linear_moments() if name == "linear" else evidence.directed_moments(0.5)
    )
    report(f"{name} moments", start, moments.gram)
    start = time.perf_counter()
    weights = moments.weights(Ridge(100.0, 0.0, 3.0, 3.0), neighbors=100)
    report(f"{name} weights", start, weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=100_000)
    given = parser.parse_args()
    begin = time.perf_counter()
    evidence = shop(given.events, given.items)
    report("shop (words)", begin, evidence.features.words)
    begin = time.perf_counter()
    for name in ("linear", "directed"):
        measure(name, evidence)
    print(f"both {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
