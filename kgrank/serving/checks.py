"""What a recommender is asked: ids, lengths, heads; one line tells what they are not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np

from kgrank.errors import ConfigError, ModelError
from kgrank.fusion.model import Head
from kgrank.fusion.tasks import TASKS, mend_of
from kgrank.serving.bundle import Bundle


def check_length(n: int) -> None:
    """Raises ConfigError unless n is the length of a list."""
    if not whole(n, 1):
        raise ConfigError(f"n: found {n!r}; allowed: 1 or more. Ask for at least one item.")


def whole(value: object, least: int) -> bool:
    """Whether the value is a whole number, at least so large."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and int(cast(int, value)) >= least


def id_list(name: str, ids: Iterable[str]) -> list[str]:
    """The ids as a list.

    Raises:
        ConfigError: they are none; one id alone would be read letter by letter.
    """
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        mend = f"Write [{ids!r}]." if isinstance(ids, str) else "Pass one."
        raise ConfigError(f"{name}: found {ids!r}; allowed: a list of ids. {mend}")
    return list(ids)


def event_pairs(history: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """A visitor's events as a list of (item id, kind of event).

    Raises:
        ConfigError: something among them is no such pair.
    """
    pairs = [history] if isinstance(history, str) else list(history)
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and [type(part) for part in pair] == [str, str]):
            raise ConfigError(
                f"history: found {pair!r}; allowed: pairs of an item's id and a kind of event, "
                'such as ("090", "purchase"). Write each event so.'
            )
    return pairs


def head_of(repeats: str) -> Head:
    """The head that ranks lists that treat repeats so.

    Raises:
        ConfigError: `repeats` is none of the three.
    """
    if repeats not in ("exclude", "allow", "only"):
        raise ConfigError(
            f"repeats: found {repeats!r}; allowed: exclude, allow, only. Pass one of them."
        )
    return "new" if repeats == "exclude" else "all"


def task_head(bundle: Bundle, task: str, repeats: str) -> Head:
    """The bundle's head for a task: of "rank" the one for lists that treat repeats so.

    Raises:
        ConfigError: `repeats` or `task` is none of the allowed ones.
        ModelError: the bundle has no head for the task.
    """
    ranks = head_of(repeats)
    if task == "rank":
        return ranks
    there = ", ".join(("rank", *bundle.model.predictors))
    for head in TASKS:
        if head == task and head in bundle.model.predictors:
            return head
        if head == task:
            reason = bundle.facts.get("tasks_left_out", {}).get(head, "it was trained without")
            raise ModelError(
                f"task: found {task!r}, which this bundle has no head for ({reason}); allowed: "
                f"{there}. {mend_of(reason)}"
            )
    allowed = ", ".join(("rank", *TASKS))
    raise ConfigError(f"task: found {task!r}; allowed: {allowed}. Pass one of them.")
