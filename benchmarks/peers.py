"""How well do other libraries rank the same splits, judged by the same code?

    pip install implicit==0.7.3
    python benchmarks/peers.py FOLDER [--sets ml100k-kg amazon-industrial] [--recbole ENVIRONMENT]

FOLDER, sets and protocols are those of accuracy.py: each peer is fitted on train alone, gets the
same histories and may not list what kgrank may not. Its lists of 20 go to `--lists FOLDER` as
parquet and are judged by `kgrank.evaluate` against the test rows, which no peer sees.

implicit runs in this process, on one thread: ALS, BM25 and cosine, with the one of four numbers of
factors or neighbours that is best on valid (NDCG@10) and else its defaults. A history is folded
into ALS by its own `recalculate_user`.

RecBole 1.2.1 needs older numpy and pandas: its environment is made in the folder that `--recbole`
names, if it is not there, and peers_recbole.py runs in it with RecBole's defaults. Its general
models (EASE, SLIM, LightGCN, BPR, ItemKNN) rank for the users they were trained on and know of a
history only what train says, so they run where the protocol makes lists from train alone. Where
every test row is a query of its own (`next`) its SASRec runs, trained on every event of train with
up to 50 before it. Trained models stop early on valid (MRR@10). Seconds to fit are those of one
model, with RecBole's rounds on valid in them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch
from accuracy import COLUMNS, SETS, row

import kgrank as kr
from kgrank.fusion.evidence import SPLITS, numbered
from kgrank.fusion.history import Decay, Histories
from kgrank.fusion.lists import top_n
from kgrank.fusion.model import exclude
from kgrank.fusion.queries import Queries, next_queries, user_queries
from kgrank.kg.splits import SplitSettings, split_events
from kgrank.kg.vocabulary import Vocabulary

N = 20  # length of a list
BLOCK = 2_000  # queries scored at a time
WINDOW = 50  # events of a history that SASRec sees, RecBole's default
GENERAL = ("EASE", "SLIMElastic", "LightGCN", "BPR", "ItemKNN")
SEQUENTIAL = ("SASRec",)
PACKAGES = (
    "torch==2.13.0",
    "recbole==1.2.1",
    "numpy==1.26.4",
    "scipy==1.11.4",
    "pandas==2.2.3",
    "pyarrow==20.0.0",
    "setuptools<81",
)

Scorer = Callable[[sp.csr_matrix], npt.NDArray[np.float32]]  # histories to scores of all items


@dataclass(frozen=True, eq=False)
class Split:
    """A set as `kgrank evaluate` asks of it.

    Attributes:
        histories: all events; those of test are read for the queries' histories alone.
        splits: (n_events) number into SPLITS.
        users, items: their ids.
        protocol, history: as in accuracy.py.
    """

    histories: Histories
    splits: npt.NDArray[np.int8]
    users: npt.NDArray[np.str_]
    items: npt.NDArray[np.str_]
    protocol: str
    history: str

    @classmethod
    def read(cls, folder: Path, protocol: str, history: str = "all") -> Split:
        """The tables, numbered and split as in a fit."""
        tables = kr.read_tables(folder)
        events, _ = split_events(tables.events, SplitSettings())
        users = Vocabulary.from_ids(events["user_id"].drop_duplicates())
        items = Vocabulary.from_ids(tables.items["item_id"])
        numbers = numbered(events, users, items)
        return cls(*numbers, np.asarray(users.ids()), np.asarray(items.ids()), protocol, history)

    def of(self, name: str) -> Histories:
        """The events of one split."""
        return self.histories.where(self.splits == SPLITS.index(name))

    def queries(self, name: str) -> Queries:
        """What is asked on a split ("valid" or "test"): all before it is known."""
        asked = self.splits == SPLITS.index(name)
        if self.protocol == "next":
            return next_queries(self.histories, np.flatnonzero(asked))
        known = self.splits < SPLITS.index(name)
        before = self.splits == 0 if self.history == "train" else known
        return user_queries(*map(self.histories.where, (before, asked, known)))


def judged(split: Split, queries: Queries, lists: pd.DataFrame) -> dict[str, float]:
    """Metrics of lists (`query`, `item_id`, `rank`)."""
    wanted = queries.relevant.tocoo()
    relevant = pd.DataFrame({"user_id": wanted.row, "item_id": split.items[wanted.col]})
    found = kr.evaluate(lists.rename(columns={"query": "user_id"}), relevant, (10, N))
    return {column: float(found[column].iloc[0]) for column in COLUMNS}


def with_implicit(split: Split, queries: Queries) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Name, seconds to fit, and lists of each model."""
    try:
        from implicit.als import AlternatingLeastSquares
        from implicit.nearest_neighbours import BM25Recommender, CosineRecommender
    except ImportError:
        print("implicit is not there and left out: pip install implicit==0.7.3", file=sys.stderr)
        return

    warnings.filterwarnings("ignore", message="Method expects CSR input")  # its own matrices

    def als(size: int) -> Any:
        return AlternatingLeastSquares(factors=size, random_state=0, num_threads=1)

    def neighbours(kind: Any) -> Callable[[int], Any]:
        return lambda size: kind(K=size, num_threads=1)

    train, valid = split.of("train").binary(), split.queries("valid")
    for name, make, sizes, scorer in (
        ("implicit ALS", als, (32, 64, 100, 128), by_factors),
        ("implicit BM25", neighbours(BM25Recommender), (20, 50, 100, 200), by_neighbours),
        ("implicit cosine", neighbours(CosineRecommender), (20, 50, 100, 200), by_neighbours),
    ):
        fits = []
        for size in sizes:
            model = make(size)
            start = time.perf_counter()
            model.fit(train, show_progress=False)
            seconds = time.perf_counter() - start
            worth = judged(split, valid, ranked(split, valid, scorer(model)))["ndcg@10"]
            fits.append((worth, -size, seconds, model))
        _, size, seconds, model = max(fits, key=lambda fit: fit[:2])
        yield f"{name} {-size}", seconds, ranked(split, queries, scorer(model))


def by_factors(model: Any) -> Scorer:
    """Every history becomes a user of its own."""

    def scores(history: sp.csr_matrix) -> npt.NDArray[np.float32]:
        users = model.recalculate_user(np.arange(history.shape[0]), history)
        return np.asarray(users @ model.item_factors.T, np.float32)

    return scores


def by_neighbours(model: Any) -> Scorer:
    """Each item's score is the sum of what it has in common with the history's."""
    return lambda history: np.asarray((history @ model.similarity).toarray(), np.float32)


def ranked(split: Split, queries: Queries, scorer: Scorer) -> pd.DataFrame:
    """The lists of all queries; equal scores order by item number."""
    lists = []
    for start in range(0, len(queries), BLOCK):
        block = queries.take(np.arange(start, min(start + BLOCK, len(queries))))
        history = block.histories.weights(block.spans, Decay())
        history.data[:] = 1.0
        scores = exclude(torch.from_numpy(scorer(history)), block.excluded)
        top = top_n(scores, N)[0].numpy()
        lists.append(as_table(top, split.items, start))
    return pd.concat(lists, ignore_index=True)


def as_table(top: npt.NDArray[np.int64], items: npt.NDArray[np.str_], first: int) -> pd.DataFrame:
    rows, places = np.nonzero(top >= 0)
    listed = items[top[rows, places]]
    return pd.DataFrame({"query": first + rows, "item_id": listed, "rank": places + 1})


def with_recbole(
    split: Split, queries: Queries, environment: Path, models: tuple[str, ...]
) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Name, seconds to fit, and lists of each model."""
    python = recbole_python(environment)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        hand_over(split, queries, folder)
        for model in models:
            script = Path(__file__).with_name("peers_recbole.py")
            command = [str(python), str(script), str(folder), model]
            done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
            if done.returncode:
                print(f"RecBole {model} failed: {done.stderr[-2000:]}", file=sys.stderr)
                continue
            lists = pd.read_parquet(folder / f"{model}.parquet")
            seconds = json.loads((folder / f"{model}.json").read_text())["fit_seconds"]
            yield f"RecBole {model}", seconds, lists


def recbole_python(environment: Path) -> Path:
    """The interpreter of RecBole's environment, which is made if it is not there."""
    python = environment / "bin" / "python"
    done = environment / "packages"
    if not done.exists():
        print(f"making {environment} for RecBole", file=sys.stderr)
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        done.write_text("\n".join(PACKAGES))
    return python


def hand_over(split: Split, queries: Queries, folder: Path) -> None:
    """RecBole's files of train and valid, and the queries without what is relevant."""
    to = folder / "events"
    to.mkdir()
    for name in ("train", "valid"):
        if split.protocol == "next":
            events = moments(split, name)
        else:
            of = split.of(name)
            events = pd.DataFrame(
                {"user_id:token": split.users[of.users()], "item_id:token": split.items[of.items]}
            )
        events.to_csv(to / f"events.{name}.inter", sep="\t", index=False)
    spans = zip(queries.spans.first, queries.spans.last, strict=True)
    histories = [split.items[queries.histories.items[max(a, b - WINDOW) : b]] for a, b in spans]
    hidden = queries.excluded
    pairs = zip(hidden.indptr[:-1], hidden.indptr[1:], strict=True)
    table = {
        "user_id": split.users[queries.users],
        "history": [list(history) for history in histories],
        "excluded": [list(split.items[hidden.indices[a:b]]) for a, b in pairs],
    }
    pd.DataFrame(table).to_parquet(folder / "queries.parquet")


def moments(split: Split, name: str) -> pd.DataFrame:
    """Every event of a split that has some before it, oldest first, for RecBole's sequences."""
    histories = split.histories
    users = histories.users()
    events = np.flatnonzero(split.splits == SPLITS.index(name))
    first = histories.starts[users[events]]
    events, first = events[events > first], first[events > first]
    items = split.items[histories.items]
    before = [
        " ".join(items[max(start, event - WINDOW) : event])
        for start, event in zip(first, events, strict=True)
    ]
    return pd.DataFrame(
        {
            "user_id:token": split.users[users[events]],
            "item_id_list:token_seq": before,
            "item_id:token": items[events],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--recbole", type=Path, help="its environment; without it, no RecBole")
    parser.add_argument("--models", nargs="+", choices=GENERAL + SEQUENTIAL, help="of RecBole")
    parser.add_argument("--lists", type=Path, help="folder where the lists go")
    given = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if os.environ.get(name) != "1":
            print(f"{name} is not 1: seconds are of more threads than one", file=sys.stderr)
    print("| set | system | R@10 | N@10 | R@20 | N@20 | fit, s |\n|---|---|---|---|---|---|---|")
    for name in given.sets:
        split = Split.read(given.folder / name, **SETS[name])
        queries = split.queries("test")
        able: tuple[str, ...] = ()  # where histories hold more than train, none
        if split.protocol == "next":
            able = SEQUENTIAL
        elif split.history == "train":
            able = GENERAL
        models = tuple(model for model in able if model in (given.models or able))
        peers = [with_implicit(split, queries)]
        if given.recbole and models:
            peers.append(with_recbole(split, queries, given.recbole.resolve(), models))
        for system, seconds, lists in (found for peer in peers for found in peer):
            if given.lists:
                given.lists.mkdir(parents=True, exist_ok=True)
                lists.to_parquet(given.lists / f"{name} {system}.parquet", index=False)
            figures = judged(split, queries, lists)
            print(row(name, system, figures, [f"{seconds:.1f}"]), flush=True)


if __name__ == "__main__":
    main()
