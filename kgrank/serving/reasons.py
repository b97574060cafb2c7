"""Reasons beside the rows of many lists, on all cores.

Words and paths are put together in Python, where one thread works at a time. So each core has a
process of its own (where the system can fork, and the model does not lie on a GPU): a copy of this
one, made when what finding paths needs is there, that shares its memory and ends with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from multiprocessing import get_context
from operator import itemgetter
from typing import Literal, NamedTuple, TypeAlias

import pandas as pd
import torch

from kgrank.errors import ModelError
from kgrank.fusion.model import Repeats, Task
from kgrank.serving.checks import task_head
from kgrank.serving.effects import with_rules
from kgrank.serving.recommender import Recommender

USERS = 8  # whose lists a process takes at a time
TO_JSON = json.JSONEncoder(ensure_ascii=False)
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux

OneList: TypeAlias = tuple[str, list[str]]  # a user's id, and the ids of the items listed
Said = list[tuple[str, str]]  # text and paths of each row


@dataclass(frozen=True)
class Reasons:
    """What is written beside each row of a list.

    Attributes:
        paths: at most so many paths.
        language: of the text.
        anonymous: whether the ids of other users are left out of the paths.
    """

    paths: int = 3
    language: Literal["en", "zh"] = "en"
    anonymous: bool = False


class Asked(NamedTuple):
    """Whose reasons are asked for, and which.

    Attributes:
        recommender: a bundle at work.
        n: length of the lists.
        repeats, task: of the lists.
        reasons: what is written.
    """

    recommender: Recommender
    n: int
    repeats: Repeats
    task: Task
    reasons: Reasons

    def said(self, lists: Sequence[OneList]) -> Said:
        """Text and paths (as JSON) of every row, list after list."""
        recommender, wanted = self.recommender, self.reasons
        head = task_head(recommender.bundle, self.task, self.repeats)
        said = Said()
        for user_id, item_ids in lists:
            whys = recommender.explainer.explain(
                user_id,
                item_ids,
                max_paths=wanted.paths,
                head=head,
                language=wanted.language,
                anonymous=wanted.anonymous,
            )
            of_rules = recommender.ruling, self.repeats, head, wanted.language, self.n
            for why in with_rules(whys, *of_rules):
                paths = [path.as_dict() for path in why.paths]
                said.append((why.text, TO_JSON.encode(paths)))
        return said

    def beside(self, lists: pd.DataFrame) -> pd.DataFrame:
        """The rows of lists with `text` and `paths`, worked out in this process."""
        return _beside(lists, self.said(_of_users(lists)))


@contextmanager
def on_all_cores(asked: Asked) -> Iterator[Callable[[pd.DataFrame], pd.DataFrame]]:
    """`Asked.beside` with as many processes as torch has threads.

    They begin after the first list that is given, and end with the block.

    Raises:
        ModelError: in the call, where one of them has ended.
    """
    processes = torch.get_num_threads()
    on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    forks = sys.platform == "linux" and processes > 1 and not on_gpu
    pool: ProcessPoolExecutor | None = None

    def put(lists: pd.DataFrame) -> pd.DataFrame:
        nonlocal pool
        said, of_users = Said(), _of_users(lists)
        if pool is None:
            said, of_users = asked.said(of_users[:1]), of_users[1:]
            fork = get_context("fork")
            pool = ProcessPoolExecutor(processes, fork, _begin, (asked, os.getpid()))
        tasks = [of_users[first : first + USERS] for first in range(0, len(of_users), USERS)]
        try:
            with warnings.catch_warnings():  # torch's threads idle, and the copies start none
                warnings.filterwarnings("ignore", "This process.*multi-threaded")
                for part in pool.map(_said, tasks):
                    said += part
        except BrokenProcessPool:
            raise ModelError(
                "found a process that worked out reasons ended from outside; perhaps memory was "
                "short. Go on with resume, with fewer threads (OMP_NUM_THREADS=1)."
            ) from None
        return _beside(lists, said)

    try:
        yield put if forks else asked.beside
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _of_users(lists: pd.DataFrame) -> list[OneList]:
    pairs = zip(lists["user_id"].tolist(), lists["item_id"].tolist(), strict=True)
    return [(id_, [item_id for _, item_id in rows]) for id_, rows in groupby(pairs, itemgetter(0))]


def _beside(lists: pd.DataFrame, said: Said) -> pd.DataFrame:
    columns = {"text": [text for text, _ in said], "paths": [paths for _, paths in said]}
    return lists.assign(**{name: pd.Series(of, dtype="str") for name, of in columns.items()})


_asked: Asked  # of a process that was forked


def _begin(asked: Asked, parent: int) -> None:
    """In a new process: it ends with its parent, however that ends, and works on one core."""
    global _asked
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends the work
    torch.set_num_threads(1)
    _asked = asked


def _said(lists: Sequence[OneList]) -> Said:
    return _asked.said(lists)
