"""How fast are lists for many users? 10,000 users × 100,000 items × 128 dimensions, top 100.

    OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=1 python benchmarks/batched_scoring.py [--threads 2]

`Recommender.recommend` (histories to user vectors, scores, items met masked, lists as a table of
ids) of a model with one dense channel, and of one with 100 item–item neighbours for each item as
well, beside what others do with ready user vectors: torch's bare matrix product in blocks, the same
with `topk`, and `implicit.cpu.topk.topk` (`pip install implicit`; left out where it is not there).
Users and items are those of item_item_large.py, vectors and weights are drawn. Every round runs all
of them one after the other; printed are medians over the rounds, and the ratio to the bare product
of the same round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from item_item_large import ITEMS_A_CLUSTER, shop

from kgrank.config import Config
from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem
from kgrank.fusion.history import Decay
from kgrank.fusion.model import FusedModel
from kgrank.fusion.weights import FusionWeights, ItemSide
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.splits import SplitCuts
from kgrank.kg.tables import checked_tables
from kgrank.kg.vocabulary import Vocabulary
from kgrank.serving.bundle import Bundle
from kgrank.serving.recommender import Recommender

EVENTS_A_USER, NEIGHBORS, BLOCK = 25, 100, 1_000


def bundle(n_users: int, n_items: int, dim: int, rng: np.random.Generator) -> Bundle:
    """A shop with a dense and a sparse channel; popularity and gates as a fit leaves them."""
    histories = shop(n_users * EVENTS_A_USER, n_items).histories
    user_ids = np.array([f"user-{number}" for number in range(n_users)])
    item_ids = np.array([f"item-{number}" for number in range(n_items)])
    events = pd.DataFrame(
        {"user_id": user_ids[histories.users()], "item_id": item_ids[histories.items]}
    )
    items = pd.DataFrame({"item_id": item_ids, "title": "", "description": ""})
    users = pd.DataFrame({"user_id": user_ids})
    tables = checked_tables({"events": events, "items": items, "users": users}).with_split()
    counts = np.bincount(histories.items, minlength=n_items)
    popularity = (np.log1p(counts) / np.log1p(counts.max())).astype(np.float32)
    fusion = FusionWeights(
        weight=np.array([1.0, 0.8], np.float32),
        slope=np.array([0.2, -0.3], np.float32),
        cold=np.array([1.5, 0.0], np.float32),
        trend=0.3,
        cold_bias=0.1,
    )
    vectors = torch.from_numpy(rng.normal(size=(n_items, dim)).astype(np.float32))
    channels = (
        Channel("text", Decay(span=20.0), DenseFeatures(vectors)),
        Channel("linear", Decay(power=0.3), ItemItem(neighbors(n_items, rng))),
    )
    return Bundle(
        config=Config(),
        model=FusedModel(
            channels,
            ItemSide(popularity, popularity, counts == 0),
            {"new": fusion, "all": fusion},
        ),
        users=Vocabulary.from_ids(user_ids),
        items=Vocabulary.from_ids(item_ids),
        events=tables.events.assign(split="train"),
        item_table=tables.items,
        user_table=tables.users,
        graph=KnowledgeGraph.from_tables(tables),
        cuts=SplitCuts(),
        source=None,
        facts={},
    )


def neighbors(n_items: int, rng: np.random.Generator) -> sp.csr_matrix:
    """Each item's weights on 100 items of its own cluster."""
    order = np.argsort(rng.random((n_items, ITEMS_A_CLUSTER)), axis=1)[:, :NEIGHBORS]
    columns = np.arange(n_items)[:, None] // ITEMS_A_CLUSTER * ITEMS_A_CLUSTER + order
    columns = np.minimum(np.sort(columns, axis=1), n_items - 1).astype(np.int32)
    values = rng.gamma(1.0, 0.02, columns.size).astype(np.float32)
    starts = np.arange(0, columns.size + 1, NEIGHBORS, dtype=np.int32)
    return sp.csr_matrix((values, columns.ravel(), starts), (n_items, n_items))


def recommend(found: Bundle, channels: int, n: int) -> Callable[[], object]:
    """Lists for all users from the first channels of the model."""
    model = found.model
    heads = {
        head: FusionWeights(
            weights.weight[:channels],
            weights.slope[:channels],
            weights.cold[:channels],
            weights.trend,
            weights.cold_bias,
        )
        for head, weights in model.heads.items()
    }
    kept = FusedModel(model.channels[:channels], model.side, heads)
    recommender = Recommender(replace(found, model=kept), device="cpu")
    ids = found.users.ids().tolist()
    return lambda: recommender.recommend(ids, n=n)


def product(users: torch.Tensor, items: torch.Tensor) -> None:
    """The scores, 1,000 users at a time into one buffer; nothing is done with them."""
    out = torch.empty(BLOCK, len(items))
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        torch.mm(block, items.T, out=out[: len(block)])


def product_topk(users: torch.Tensor, items: torch.Tensor, n: int) -> None:
    """The same with the n best items of each user; nothing is masked."""
    out = torch.empty(BLOCK, len(items))
    for start in range(0, len(users), BLOCK):
        block = users[start : start + BLOCK]
        torch.mm(block, items.T, out=out[: len(block)]).topk(n, dim=1)


def runs(found: Bundle, n: int, threads: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    form = found.model.channels[0].form
    assert isinstance(form, DenseFeatures)
    histories = found.histories
    met = histories.binary()
    items = form.values
    users = torch.from_numpy(met @ items.numpy())
    all_runs: dict[str, Callable[[], object]] = {
        "torch product": lambda: product(users, items),
        "torch product, topk": lambda: product_topk(users, items, n),
        "kgrank, dense": recommend(found, 1, n),
        "kgrank, dense + sparse": recommend(found, 2, n),
    }
    try:
        from implicit.cpu.topk import topk
    except ImportError:
        return all_runs
    vectors = items.numpy(), users.numpy()
    all_runs["implicit topk"] = lambda: topk(
        *vectors, n, filter_query_items=met, num_threads=threads
    )
    return all_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = bundle(given.users, given.items, given.dim, np.random.default_rng(0))
    timed = runs(found, given.n, given.threads)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for round_number in range(given.rounds + 1):  # the first one warms up
        for name, run in timed.items():
            start = time.perf_counter()
            run()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    bare = np.array(seconds["torch product"])
    for name, taken in seconds.items():
        rate = given.users * given.items / np.median(taken) / 1e6
        ratio = float(np.median(bare / np.array(taken)))
        print(f"{name:23} {np.median(taken):6.2f} s {rate:6.0f} M scores/s, {ratio:.2f} × product")


if __name__ == "__main__":
    main()
