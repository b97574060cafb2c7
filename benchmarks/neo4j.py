"""How fast does a graph go into a server that speaks Bolt, and come back?

    python benchmarks/neo4j.py [--edges 100000]
    python benchmarks/neo4j.py --edges 1000000
    KGRANK_NEO4J_PASSWORD=… python benchmarks/neo4j.py --uri neo4j://user@host/database

Without `--uri` it starts the server of the tests (ArcadeDB 26.10.2, one gigabyte of heap) on this
machine, which then shares the processors with it. The graph is made up (seeded): events of users
with items, log-normal activity, popularity that falls with the rank; five facts an item. Prints
seconds and edges a second of the first export, of one that has nothing to do, of one of a thousand
new events, and of reading back; that the fingerprint is the same; the peak memory of this process;
and the seconds of processor, which tell more than the clock where others use the machine too.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kgrank.kg.bolt import PASSWORD_VARIABLE, Address, Server
from kgrank.kg.building import Edges
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_server import read_graph
from kgrank.kg.graph_writing import write_graph
from kgrank.kg.storage import nodes_of_columns

# in the place of this folder, in which this very file would be taken for the driver
sys.path[0] = str(Path(__file__).parents[1] / "tests")
import bolt_server  # noqa: E402

T = TypeVar("T")

FACTS_AN_ITEM, EVENTS_A_USER = 5, 25
HEAP = ("-Xmx1g", "-XX:+UseSerialGC")


def graph(n_edges: int, seed: int = 0) -> KnowledgeGraph:
    rng = np.random.default_rng(seed)
    n_items = max(10, n_edges // 50)
    n_facts = n_items * FACTS_AN_ITEM
    n_events = n_edges - n_facts
    n_users, n_entities = max(1, n_events // EVENTS_A_USER), max(5, n_items // 4)
    kinds = [("user", n_users), ("item", n_items), ("brand", n_entities)]
    ids = [f"{kind}-{number:07d}" for kind, n in kinds for number in range(n)]
    types = [kind for kind, n in kinds for _ in range(n)]
    nodes = nodes_of_columns(*(pa.array(c, pa.large_string()) for c in (types, ids, ids)))
    activity = rng.lognormal(size=n_users)
    users = rng.choice(n_users, n_events, p=activity / activity.sum())
    bought = n_users + by_rank(rng, n_items, n_events)
    items = n_users + np.repeat(np.arange(n_items), FACTS_AN_ITEM)
    entities = n_users + n_items + by_rank(rng, n_entities, n_facts)
    edges = Edges(
        np.concatenate([users, items]).astype(np.int32),
        np.concatenate([rng.integers(0, 2, n_events), rng.integers(2, 5, n_facts)]).astype(
            np.int16
        ),
        np.concatenate([bought, entities]).astype(np.int32),
        np.ones(n_edges, np.float32),
        np.concatenate(
            [rng.integers(1_600_000_000, 1_700_000_000, n_events), np.zeros(n_facts)]
        ).astype(np.uint32),
    )
    relations = ("buy", "view", "brand", "category", "colour")
    behaviours = np.array([True, True, False, False, False])
    return KnowledgeGraph.from_edges(nodes, relations, behaviours, (), edges)


def by_rank(rng: np.random.Generator, n: int, size: int) -> npt.NDArray[np.int64]:
    share = (np.arange(n) + 10.0) ** -0.8
    return rng.choice(n, size, p=share / share.sum())


def peak() -> float:
    """The most memory this process has had, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor(pid: int | None) -> tuple[float, float]:
    """Seconds of processor that this process and the server have had."""
    if pid is None:
        return time.process_time(), float("nan")
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time(), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(server: Server, n_edges: int, pid: int | None = None) -> None:
    made = graph(n_edges)
    n = made.n_edges
    counts = f"{n:,} edges, {len(made.nodes):,} nodes"
    print(f"{counts}; peak memory {peak():.0f} MB, with the graph")

    def timed(what: str, edges: int, work: Callable[[], T]) -> T:
        own, its = processor(pid)
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        own, its = processor(pid)[0] - own, processor(pid)[1] - its
        print(
            f"{what:<20}{seconds:8.1f} s {edges / seconds:10,.0f} edges/s {peak():8.0f} MB "
            f"(processor: {own:.1f} s here, {its:.1f} s the server)"
        )
        return result

    assert timed("first export", n, lambda: write_graph(made, server)).edges_written == n
    assert timed("export of the same", n, lambda: write_graph(made, server)).parts_written == 0
    back = timed("read back", n, lambda: read_graph(server))
    assert back.fingerprint() == made.fingerprint()

    import pandas as pd

    rng = np.random.default_rng(1)
    some = {"user_id": made.users.ids(rng.integers(0, len(made.users), 1000))}
    some["item_id"] = made.items.ids(rng.integers(0, len(made.items), 1000))
    grown = made.with_events(pd.DataFrame(some).assign(event="buy", timestamp=1.8e9))
    told = timed("1,000 new events", 1000, lambda: write_graph(grown, server))
    print(f"{told.edges_written:,} edges written in {told.parts_written} of {told.parts} parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--edges", type=int, default=100_000)
    parser.add_argument("--uri", help="a server whose database is empty; else one is started")
    asked = parser.parse_args()
    if asked.uri:
        with Server(Address.parse(asked.uri)) as server:
            run(server, asked.edges)
        return
    with tempfile.TemporaryDirectory() as folder:
        own = bolt_server.BoltServer(Path(folder), HEAP)
        start = time.perf_counter()
        own.start()
        print(f"the server starts in {time.perf_counter() - start:.1f} s")
        os.environ[PASSWORD_VARIABLE] = bolt_server.PASSWORD
        try:
            with Server(Address.parse(own.uri)) as server:
                run(server, asked.edges, own.pid)
        finally:
            own.kill()


if __name__ == "__main__":
    main()
