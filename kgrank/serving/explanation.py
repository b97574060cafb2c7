"""Why this product: a score taken apart, down to the graph paths that carried it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PathNode:
    """A node of a path. `type` is "user", "item" or an entity's type (an attribute's name)."""

    id: str
    type: str
    name: str


@dataclass(frozen=True)
class PathEdge:
    """An edge of the graph as it is stored: its direction may run against the path's."""

    relation: str
    head: str
    tail: str


@dataclass(frozen=True)
class Path:
    """A way from the user to the product, and the part of the score that it carried."""

    nodes: tuple[PathNode, ...]
    edges: tuple[PathEdge, ...]
    contribution: float


@dataclass(frozen=True)
class EventShare:
    """What one event of the user's history brought to the score, over all channels."""

    item_id: str
    event: str
    contribution: float


@dataclass(frozen=True)
class RuleEffect:
    """What a rule of the shop does to a product in a user's lists.

    Attributes:
        rule: its name.
        action: "exclude", "only", "boost", "pin", "cap" or "diversify".
        contribution: what it adds to the score; 0 if it is no boost.
        place: the product's place in the list; None where it is not listed.
        place_without: its place if this one rule were not; None where it were not listed then.
        text: the same in words.
    """

    rule: str
    action: str
    contribution: float
    place: int | None
    place_without: int | None
    text: str


@dataclass(frozen=True)
class Explanation:
    """One score taken apart: bias + sum(contributions.values()) = score.

    Attributes:
        contributions: what each channel brought; under "rules", what boosts added.
        events: what each event of the history brought, largest first.
        paths: the few strongest and different paths; empty when no path carried anything.
        rules: what the shop's rules did to the product in a list of ten.
        text: the reason in words.
        task: whose score it is: "rank", "click", "purchase" or "rating".
        prediction: what the head makes of the score: a probability or a rating; None for "rank".
    """

    user_id: str
    item_id: str
    score: float
    bias: float
    contributions: dict[str, float]
    events: tuple[EventShare, ...]
    paths: tuple[Path, ...]
    rules: tuple[RuleEffect, ...]
    text: str
    task: str = "rank"
    prediction: float | None = None
