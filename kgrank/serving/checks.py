"""What a recommender is asked: ids, lengths, heads; one line tells what they are not."""

from __future__ import annotations

from collections.abc import Iterable

from kgrank.errors import ConfigError, ModelError
from kgrank.fusion.model import Head
from kgrank.fusion.tasks import TASKS, mend_of
from kgrank.kg.vectors import whole
from kgrank.serving.bundle import Bundle


def check_length(n: int) -> None:
    """Raises ConfigError unless n is the length of a list."""
    if (whole(n) or 0) < 1:
        mend = "Ask for at least one item."
        raise ConfigError(f"n: found {n!r}; allowed: a whole number, 1 or more. {mend}")


def check_paths(n: int) -> None:
    """Raises ConfigError unless so many paths may be asked for."""
    if whole(n) is None or n < 0:
        mend = "Ask for none or some."
        raise ConfigError(f"max_paths: found {n!r}; allowed: a whole number, 0 or more. {mend}")


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
    listed = isinstance(history, Iterable) and not isinstance(history, str)
    pairs = []
    for pair in history if listed else [history]:
        parts = [] if isinstance(pair, str) or not isinstance(pair, Iterable) else [*pair]
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise ConfigError(
                f"history: found {pair!r}; allowed: pairs of an item's id and a kind of event, "
                'such as ("090", "purchase"). Write each event so.'
            )
        pairs.append((str(parts[0]), str(parts[1])))
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
