"""How fast and how small is the knowledge graph? 5 million edges from ids, on one core.

    python benchmarks/graph_build.py [--scale 1.0]

Made-up tables of a shop (seeded): 300,000 users × 100,000 items, 4 million events of three kinds
with times and skewed popularity; 700,000 attribute values in four columns; 300,000 triples with
20,000 entities. Reading files is not timed. networkx builds a tenth of the same shop from the same
tables, as a `MultiDiGraph` with relation, weight and time on its edges.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pyarrow as pa

from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import Tables

ATTRIBUTES = {"brand": 8_000, "category": 600, "colour": 40, "material": 2_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="1.0 is 5 million edges")
    scale = parser.parse_args().scale
    os.sched_setaffinity(0, {0})  # one core for numpy, scipy and pyarrow alike
    pa.set_cpu_count(1)

    tables = shop(scale, seed=7)
    before = reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    graph = KnowledgeGraph.from_tables(tables)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"kgrank    {graph}")
    per_edge = cpu / graph.n_edges
    print(f"          {seconds:.2f} s ({cpu:.2f} s CPU, {1e6 * per_edge:.2f} s a million edges)")
    print(f"          {graph.bytes_per_edge:.2f} bytes an edge, both directions")
    print(
        f"          peak {peak():.0f} MiB resident, of which {before:.0f} MiB before (the tables)"
    )
    del graph, tables

    tables = shop(scale / 10, seed=7)
    before = reset_peak()
    start, cpu = time.perf_counter(), time.process_time()
    rival = in_networkx(tables)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    n_edges = rival.number_of_edges()
    print(f"networkx  {rival.number_of_nodes()} nodes, {n_edges} edges")
    print(
        f"          {seconds:.2f} s ({cpu:.2f} s CPU, {1e6 * cpu / n_edges:.2f} s a million edges)"
    )
    print(f"          {(peak() - before) * 2**20 / n_edges:.0f} bytes an edge (growth of the peak)")
    print(f"ratio     networkx takes {cpu / n_edges / per_edge:.1f} times the CPU time an edge")


def shop(scale: float, seed: int) -> Tables:
    """Tables of about 5 million edges × scale, unsorted as they come from a log."""
    rng = np.random.default_rng(seed)
    users = pd.Series([f"user-{n:07d}" for n in range(int(300_000 * scale))], dtype="str")
    items = pd.Series([f"B{n:09d}" for n in range(int(100_000 * scale))], dtype="str")
    entities = pd.Series([f"Q{n}" for n in range(int(20_000 * scale))], dtype="str")
    n_events, n_triples = int(4_000_000 * scale), int(300_000 * scale)
    events = pd.DataFrame(
        {
            "user_id": skewed(rng, users, n_events),
            "item_id": skewed(rng, items, n_events),
            "event": drawn(rng, pd.Series(["view", "cart", "purchase"], dtype="str"), n_events),
            "timestamp": rng.integers(1_600_000_000, 1_700_000_000, n_events).astype(np.float64),
            "value": np.nan,
            "split": "train",
        }
    )
    columns = {"item_id": items, "title": "Product " + items, "description": ""}
    for name, n_values in ATTRIBUTES.items():
        values = pd.Series([f"{name} {n}" for n in range(n_values)], dtype="str")
        columns[name] = drawn(rng, values, len(items))
    for name in ("category", "colour", "material"):  # two values in one cell
        other = columns[name].sample(frac=1, random_state=seed).reset_index(drop=True)
        columns[name] = columns[name] + "|" + other
    triples = pd.DataFrame(
        {
            "head": drawn(rng, items, n_triples),
            "relation": drawn(rng, pd.Series([f"relation_{n}" for n in range(12)]), n_triples),
            "tail": skewed(rng, entities, n_triples),
            "weight": 1.0,
        }
    )
    return Tables(
        events=events,
        items=pd.DataFrame(columns),
        users=pd.DataFrame({"user_id": users}),
        triples=triples,
        entities=pd.DataFrame({"entity_id": entities, "name": "Entity " + entities, "type": ""}),
        queries=pd.DataFrame({"query": [], "item_id": [], "label": []}),
    )


def drawn(rng: np.random.Generator, values: pd.Series, n: int) -> pd.Series:
    return values.take(rng.integers(0, len(values), n)).reset_index(drop=True)


def skewed(rng: np.random.Generator, values: pd.Series, n: int) -> pd.Series:
    """As `drawn`, the first ones far more often than the last."""
    return values.take((rng.beta(1, 4, n) * len(values)).astype(np.int64)).reset_index(drop=True)


def in_networkx(tables: Tables) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph()
    items, events, triples = tables.items, tables.events, tables.triples
    graph.add_nodes_from((("user", id_) for id_ in tables.users["user_id"]), type="user")
    graph.add_nodes_from(
        (("item", id_), {"type": "item", "name": name})
        for id_, name in zip(items["item_id"], items["title"], strict=True)
    )
    columns = (events[name].tolist() for name in ("user_id", "item_id", "event", "timestamp"))
    graph.add_edges_from(
        (("user", user), ("item", item), {"relation": kind, "weight": 1.0, "time": seconds})
        for user, item, kind, seconds in zip(*columns, strict=True)
    )
    for name in ATTRIBUTES:
        graph.add_edges_from(
            (("item", id_), (name, value), {"relation": name, "weight": 1.0, "time": 0})
            for id_, cell in zip(items["item_id"], items[name], strict=True)
            for value in cell.split("|")
        )
    graph.add_edges_from(
        (("item", head), ("entity", tail), {"relation": relation, "weight": weight, "time": 0})
        for head, relation, tail, weight in triples.itertuples(index=False)
    )
    return graph


def reset_peak() -> float:
    """Starts the peak anew (Linux); the memory resident now, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """The peak of resident memory since then, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    main()
