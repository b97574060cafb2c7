"""How fast are reasons? One explanation, and a batch of lists with reasons, on 5 million edges.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/explaining.py
    python benchmarks/explaining.py 0.1 --bundle /tmp/shop    a tenth, kept

The shop is that of `graph_build.py` (seeded): 300,000 users, 100,000 items, 4 million events, the
rest facts. The bundle is not trained, since speed does not depend on what is learned: `linear` and
`directed` are fitted with fixed settings and side rows of entities, `graph` and `text` are what
they always are, and `learned` has random vectors whose entity parts are known, so that its paths
are searched too. All channels weigh the same.

Timed is one explanation with three paths of the best new product of a drawn user (p50, p99), and
the same for the twenty best of each (explanations a second of one core; and of two processes, as
`kgrank rank --explain` makes them, on the clock). The first, which makes the tables of co-users, is
told apart. Other seconds are CPU seconds of one thread, since the machine may be busy. Beside them
is what a loop of plain Python takes, to compare machines. Every 250th explanation is checked
against the score of a full list, which is in the figures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from graph_build import shop

from kgrank.config import Config
from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.evidence import Evidence, Steps, item_side
from kgrank.fusion.history import Decay
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.model import FusedModel
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.entities import EntityVectors, LightSteps
from kgrank.serving.bundle import Bundle
from kgrank.serving.reasons import Asked, Reasons, on_all_cores
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import prepare

RIDGE = Ridge(100.0, 0.0, 3.0, 0.0)
DIM = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scale", type=float, nargs="?", default=1.0)
    parser.add_argument("--bundle", type=Path, help="models folder to keep the bundle in")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=20, help="listed for each user of the batch")
    args = parser.parse_args()
    if args.bundle is not None and args.bundle.exists():
        bundle = Bundle.load(args.bundle)
    else:
        bundle = made(args.scale)
        if args.bundle is not None:
            bundle.save(args.bundle)
    print(bundle.graph)
    start = time.process_time()
    sum(number for number in range(5_000_000))
    print(f"machine   {time.process_time() - start:.2f} s to sum 5,000,000 numbers in plain Python")
    recommender = Recommender(bundle, "cpu")
    rng = np.random.default_rng(0)
    active = np.flatnonzero(np.diff(bundle.histories.starts))
    users = bundle.users.ids(rng.choice(active, min(args.users, len(active)), replace=False))
    lists = recommender.recommend(users.tolist(), n=args.items)
    first = lists[lists["rank"] == 1]
    pairs = list(zip(first["user_id"].tolist(), first["item_id"].tolist(), strict=True))

    start = time.process_time()
    recommender.explain(*pairs[0])
    print(f"first     {time.process_time() - start:.2f} s, with the tables of co-users")
    for pair in pairs[:50]:
        recommender.explain(*pair)
    seconds, shown = [], 0
    for pair in pairs:
        start = time.process_time()
        shown += len(recommender.explain(*pair).paths)
        seconds.append(time.process_time() - start)
    p50, p99 = 1e3 * np.quantile(seconds, (0.5, 0.99))
    print(f"one       p50 {p50:.2f} ms, p99 {p99:.2f} ms; {shown / len(pairs):.2f} paths each")

    start, n = time.process_time(), 0
    for user_id, items in lists.groupby("user_id", sort=False)["item_id"]:
        n += sum(1 for _ in recommender.explainer.explain(str(user_id), items.tolist(), head="new"))
    took = time.process_time() - start
    print(f"batch     {n / took:.0f} explanations a second, one core ({n} in {took:.1f} s)")

    torch.set_num_threads(2)
    with on_all_cores(Asked(recommender, args.items, "exclude", "rank", Reasons())) as put:
        put(lists[:1])  # the processes begin with the next
        begun = time.perf_counter()
        put(lists)
        took = time.perf_counter() - begun
    print(f"two cores {len(lists) / took:.0f} a second, words and JSON with them, on the clock")


def made(scale: float) -> Bundle:
    """A bundle of the made-up shop that is fitted but not trained."""
    tables = shop(scale, seed=7)
    config = Config.from_dict({"text": {"model": "none"}, "kg": {"encoder": "none"}}, "benchmark")
    start = time.process_time()
    prepared = prepare(tables, config, Path())
    evidence = Evidence(prepared.histories, prepared.features)
    decay, n_items = Decay(power=0.5), len(prepared.items)
    linear = evidence.linear_moments().weights(RIDGE, neighbors=100)
    directed = evidence.directed_moments(Steps(0.5)).weights(RIDGE, neighbors=100)
    channels = (
        Channel("linear", decay, ItemItem(linear)),
        Channel("directed", decay, ItemItem(directed)),
        Channel("graph", decay, SparseFeatures(prepared.features.entities)),
        Channel("text", decay, SparseFeatures(prepared.features.words)),
        Channel("learned", decay, learned(n_items, prepared.graph.entities.ids().tolist())),
    )
    weights = FusionWeights.equal(len(channels))
    model = FusedModel(channels, item_side(prepared.histories), {"new": weights, "all": weights})
    ridge = {"penalty": 100.0, "dropout": 0.0, "entities": 3.0, "words": 0.0}
    choices = {
        "linear": {"ridge": ridge, "steps": None},
        "directed": {"ridge": ridge, "steps": Steps(0.5)._asdict()},
    }
    print(f"fitted in {time.process_time() - start:.0f} s; {sp.csr_matrix(linear).nnz} weights")
    return Bundle(
        config=config,
        model=model,
        users=prepared.users,
        items=prepared.items,
        events=tables.events,
        item_table=tables.items,
        user_table=tables.users,
        graph=prepared.graph,
        cuts=prepared.cuts,
        source=None,
        facts={"choices": choices},
    )


def learned(n_items: int, entities: list[str]) -> DenseFeatures:
    """Random vectors; a tenth of each is said to be brought by entities, a tenth by users."""
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.standard_normal((2, n_items, DIM)).astype(np.float32))
    vectors = torch.nn.functional.normalize(vectors, dim=2)
    of_entities = 0.1 * rng.standard_normal((len(entities), DIM)).astype(np.float32) / DIM**0.5
    lengths = np.ones((2, n_items), np.float32)
    weights = np.full((1, 3, DIM), 0.1, np.float32)  # one step over three kinds of events
    steps = LightSteps(0.9 * vectors[0].numpy(), weights)
    beside = EntityVectors(tuple(entities), of_entities, steps)
    return DenseFeatures(vectors[0], vectors[1], beside, lengths)


if __name__ == "__main__":
    main()
