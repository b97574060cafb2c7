"""How does the learned channel's training grow with the graph? 0.5 to 8 million edges.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/growth.py [--plot growth.svg]
    python benchmarks/growth.py --shops denser --millions 0.5 1 --steps 40

A made-up shop (seeded) of E edges: 0.8 E events of users on items and 0.2 E facts of items, in
eight relations. The `wider` shop has E / 20 users, E / 20 items and E / 100 entities: it grows in
breadth alone. The `denser` one always has 50,000 users, 50,000 items and 10,000 entities. Activity
of users is log-normal; popularity of items and entities falls with their rank. Trained is the
encoder `light` by `NextItemTask` and `Loop` with the default settings; it starts from random
numbers instead of the singular vectors of item–item weights, and there are no words, so that
neither is in the figures.

An epoch of a large shop takes long, so it is not run: the first batches are, every fourth of which
walks the graph; the epoch is so many of either kind as the task says, at the median of each. A walk
is what words and graph bring to all items, forward and backward, timed alone. Seconds are CPU
seconds of one thread, since the machine may be busy. Each size has a process of its own, whose peak
memory is the highest that the system saw. Printed beside are slopes: seconds (or bytes) ~
edges^slope, by least squares of the logarithms.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from kgrank.fusion.history import Histories
from kgrank.fusion.learned import WINDOW
from kgrank.fusion.next_items import NextItems, NextItemTask, Rows
from kgrank.fusion.queries import user_queries
from kgrank.kg.building import GraphSettings
from kgrank.kg.gnn import FANOUT, WALKED_EDGES, GraphInput, graph_encoder
from kgrank.loop import Loop
from kgrank.settings import LearnSettings

MILLIONS = (0.5, 1.0, 2.0, 4.0, 8.0)
SHOPS = ("wider", "denser")
EVENTS = 0.8  # of the edges
EDGES_A_USER, ITEMS_A_USER, ENTITIES_A_USER = 20, 1, 1 / 5
DENSER_USERS = 50_000
RELATIONS, STEEPNESS = 8, 0.8  # popularity ~ rank^-STEEPNESS
EVERY = 4  # batches of which one walks
WARM = 4  # batches before the clock counts
COUNTS = ("edges", "events", "users", "items", "steps", "walks")
SECONDS = ("epoch", "step that walks", "other step", "walk")
MEMORY = ("peak", "growth of peak")


def shop(n_edges: int, n_users: int, seed: int = 0) -> tuple[HeteroData, Histories]:
    """Facts for PyTorch Geometric, and histories."""
    rng = np.random.default_rng(seed)
    n_events = int(EVENTS * n_edges)
    n_items, n_entities = int(ITEMS_A_USER * n_users), int(ENTITIES_A_USER * n_users)
    activity = rng.lognormal(size=n_users)
    histories = Histories.from_arrays(
        rng.choice(n_users, n_events, p=activity / activity.sum()),
        by_rank(rng, n_items, n_events),
        np.zeros(n_events, np.int64),
        np.full(n_events, np.nan),
        kind_names=("buy",),
        n_users=n_users,
        n_items=n_items,
    )
    data = HeteroData()
    data["item"].num_nodes, data["entity"].num_nodes = n_items, n_entities
    n_facts = (n_edges - n_events) // RELATIONS
    for number in range(RELATIONS):
        ends = np.stack([rng.integers(0, n_items, n_facts), by_rank(rng, n_entities, n_facts)])
        store = data["item", f"relation_{number}", "entity"]
        store.edge_index, store.edge_weight = torch.from_numpy(ends), torch.ones(n_facts)
    return data, histories


def by_rank(rng: np.random.Generator, n: int, size: int) -> npt.NDArray[np.int64]:
    """Numbers below n, some far more often than others."""
    share = np.arange(1, n + 1) ** -STEEPNESS
    return rng.permutation(n)[rng.choice(n, size, p=share / share.sum())]


class FirstSteps:
    """The task with the first batches of its first epoch alone.

    Args:
        task: the whole task.
        steps: how many batches.
    """

    def __init__(self, task: NextItemTask, steps: int) -> None:
        self.task, self.module = task, task.module
        epoch = task.batches(0)
        self.n_steps = len(epoch)
        self.n_walks = sum(batch.walks for batch in epoch)
        numbers = range(min(steps, self.n_steps))
        self.first = [replace(epoch[n], walks=n % EVERY == 0) for n in numbers]

    def batches(self, epoch: int) -> Sequence[Rows]:
        """The first ones, in every epoch."""
        return self.first

    def loss(self, batch: Rows, share: slice) -> Tensor:
        """As of the task."""
        return self.task.loss(batch, share)

    def judge(self) -> float:
        """As of the task."""
        return self.task.judge()

    @property
    def settled(self) -> bool:
        """As of the task."""
        return self.task.settled


class Clock:
    """CPU seconds at the beginning and after every step."""

    def __init__(self) -> None:
        self.ticks = [time.process_time()]

    def log(self, *figures: object) -> None:
        """A step is done; its figures do not matter."""
        self.ticks.append(time.process_time())

    def close(self) -> None:
        """Nothing to close."""


def measure(kind: str, n_edges: int, steps: int) -> dict[str, Any]:
    """One size, in this process."""
    n_users = DENSER_USERS if kind == "denser" else n_edges // EDGES_A_USER
    data, histories = shop(n_edges, n_users)
    before = peak()
    task = next_items(data, histories)
    first = FirstSteps(task, steps)
    clock = Clock()
    Loop(first, LearnSettings(), "growth", sinks=(clock,), stop_after=1).run()
    seconds = np.diff(clock.ticks)[WARM : len(first.first)]  # the epoch may be told of as well
    walks = np.array([batch.walks for batch in first.first])[WARM:]
    walking, other = (float(np.median(seconds[which])) for which in (walks, ~walks))
    highest = peak()
    return {
        "shop": kind,
        "edges": n_edges,
        "events": len(histories.items),
        "users": histories.n_users,
        "items": histories.n_items,
        "steps": first.n_steps,
        "walks": first.n_walks,
        "epoch": first.n_walks * walking + (first.n_steps - first.n_walks) * other,
        "step that walks": walking,
        "other step": other,
        "walk": walk_seconds(task),
        "peak": highest,
        "growth of peak": highest - before,
    }


def next_items(data: HeteroData, histories: Histories) -> NextItemTask:
    """What the learner trains, with the default settings."""
    kg, learn = GraphSettings(), LearnSettings()
    if kg.encoder != "light":
        raise SystemExit(f"found the default encoder {kg.encoder!r}; this measures 'light'")
    no_words = sp.csr_matrix((histories.n_items, 0), dtype=np.float32)
    graph = GraphInput.of(data, histories.by_kind(), no_words)
    torch.manual_seed(learn.seed)
    encoder = graph_encoder(kg.encoder, graph, kg.dim, kg.hops)
    some = histories.where(histories.users() < 100)  # to judge by, which is not done
    return NextItemTask(
        NextItems(encoder, WINDOW, len(histories.kind_names), timed=False, power=0.5),
        histories,
        ordered=True,
        judged=user_queries(histories, some, histories),
        batch=learn.batch,
        seed=learn.seed,
        device="cpu",
    )


def walk_seconds(task: NextItemTask, rounds: int = 5) -> float:
    """Median seconds of one walk over the graph, forward and backward."""
    found = []
    for _ in range(rounds + 1):
        task.module.zero_grad(set_to_none=True)
        start = time.process_time()
        shared = task.module.encoder.shared()
        shared.backward(torch.ones_like(shared))
        found.append(time.process_time() - start)
    return float(np.median(found[1:]))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def slope(results: Sequence[Mapping[str, Any]], column: str) -> float:
    edges, values = (np.log([result[name] for result in results]) for name in ("edges", column))
    return float(np.polyfit(edges, values, 1)[0])


def plot(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Seconds and memory against edges, both axes logarithmic; a row for each shop."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(result["shop"] for result in results))
    size = (10, 4 * len(kinds))
    figure, rows = pyplot.subplots(len(kinds), 2, figsize=size, layout="constrained", squeeze=False)
    for kind, row in zip(kinds, rows, strict=True):
        of_kind = [result for result in results if result["shop"] == kind]
        edges = [result["edges"] for result in of_kind]
        for side, unit, columns in zip(
            row, ("CPU seconds", "bytes"), (SECONDS, MEMORY), strict=True
        ):
            for column in columns:
                values = [result[column] for result in of_kind]
                label = f"{column}, slope {slope(of_kind, column):.2f}"
                side.loglog(edges, values, marker="o", label=label)
            side.set(title=f"the {kind} shop", xlabel="edges", ylabel=unit)
            side.grid(True, which="both", alpha=0.3)
            side.legend()
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, nargs="+", default=list(MILLIONS))
    parser.add_argument("--shops", nargs="+", choices=SHOPS, default=list(SHOPS))
    parser.add_argument("--steps", type=int, default=16, help="batches that are run of each size")
    parser.add_argument("--plot", type=Path, help="an .svg or .png")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # edges, in this process
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(measure(given.shops[0], given.one, given.steps)))
        return
    header = ["shop", *COUNTS, *(f"{name}, CPU s" for name in SECONDS)]
    header += [f"{name}, MB" for name in MEMORY]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    results = []
    for kind in given.shops:
        for millions in given.millions:
            command = [sys.executable, __file__, "--shops", kind, "--steps", str(given.steps)]
            command += ["--one", str(int(millions * 1e6))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{millions} million edges: {done.stderr.strip()}")
            result = json.loads(done.stdout.splitlines()[-1])
            results.append(result)
            cells = [kind, *(f"{result[name]:,}" for name in COUNTS)]
            cells += [f"{result[name]:,.3g}" for name in SECONDS]
            cells += [f"{result[name] / 1e6:,.0f}" for name in MEMORY]
            print(f"| {' | '.join(cells)} |", flush=True)
            if given.json:
                given.json.write_text(json.dumps(results, indent=1))
    for kind in given.shops if len(given.millions) > 1 else ():
        of_kind = [result for result in results if result["shop"] == kind]
        slopes = (f"{name} {slope(of_kind, name):.2f}" for name in (*SECONDS, *MEMORY))
        print(f"slopes of the {kind} shop: {', '.join(slopes)}")
    print(
        f"An epoch is so many steps at the median of {given.steps - WARM}. Beyond {WALKED_EDGES:,} "
        f"events it walks {FANOUT} a user at most."
    )
    if given.plot:
        plot(results, given.plot)


if __name__ == "__main__":
    main()
