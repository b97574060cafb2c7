"""Why this product: a score taken apart, down to the graph paths that carried it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kgrank.errors import ModelError

TOLERANCE = 1e-4  # of everything that moved the score; within that the parts add up to it


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


def backward(nodes: Sequence[PathNode], edges: Sequence[PathEdge]) -> tuple[bool, ...]:
    """Of each edge whether it is stored against the path; an edge at a user leaves it."""
    return tuple(
        [
            right.type == "user"
            or (left.type != "user" and edge.head == right.id and edge.tail == left.id)
            for edge, left, right in zip(edges, nodes[:-1], nodes[1:], strict=True)
        ]
    )


@dataclass(frozen=True)
class Path:
    """A way from the user to the product, and the part of the score that it carried.

    Of paths that differ in nothing but the other user whom they run over, one stands for all.

    Attributes:
        contribution: what this path alone carried, over all channels.
        channels: channel → what it carried there; the sum is `contribution`.
        others: how many further paths over the same product and another user there are.
        others_contribution: what those carried together.
        cypher: a query that finds the path in the graph's Neo4j export; "" for a path whose
            users are hidden.
    """

    nodes: tuple[PathNode, ...]
    edges: tuple[PathEdge, ...]
    contribution: float
    channels: dict[str, float] = field(default_factory=dict)
    others: int = 0
    others_contribution: float = 0.0
    cypher: str = ""

    @property
    def together(self) -> float:
        """What the path and those that it stands for carried."""
        return self.contribution + self.others_contribution

    @property
    def over_user(self) -> bool:
        """Whether it runs over another user."""
        return any(node.type == "user" for node in self.nodes[1:])

    def as_dict(self) -> dict[str, Any]:
        """The path as JSON has it (`dataclasses.asdict` takes four times as long)."""
        return {
            **vars(self),
            "nodes": [vars(node) for node in self.nodes],
            "edges": [vars(edge) for edge in self.edges],
        }

    def backward(self) -> tuple[bool, ...]:
        """Of each edge whether it is stored against the path; an edge at a user leaves it."""
        return backward(self.nodes, self.edges)


@dataclass(frozen=True)
class Remainder:
    """A channel's contribution = `paths` + `without_path`.

    Attributes:
        paths: what all its paths carried, those that are not shown too.
        without_path: what has no path, up or down: shared words, what a user's own rows or the
            limits of the weights say, what entities that are not shared say of each other, and
            what products that the user refused take away.
    """

    paths: float
    without_path: float


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
        task: whose score it is: "rank", "click", "purchase", "conversion" or "rating".
        prediction: what the head makes of the score: a probability or a rating; None for "rank".
        remainder: channel → what of its contribution its paths carried, and what has none.
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
    remainder: dict[str, Remainder] = field(default_factory=dict)

    def check(self) -> None:
        """Raise unless every split adds up, to TOLERANCE of all that moved the score.

        Raises:
            ModelError: a sum is off. That is a fault in kgrank.
        """
        total = sum(self.contributions.values())
        moved = abs(self.bias) + sum(map(abs, self.contributions.values()))
        allowed = TOLERANCE * moved + 1e-9
        of_events = total - self.contributions.get("rules", 0.0)
        events = 0.0
        for event in self.events:
            events += event.contribution
        splits = [
            ("channels", "", self.bias + total, self.score),
            ("events", "", events, of_events),
        ]
        shown = dict.fromkeys(self.remainder, 0.0)
        for path in self.paths:
            for channel, part in path.channels.items():
                shown[channel] += part
        for channel, rest in self.remainder.items():
            whole = self.contributions[channel]
            splits.append(("paths of ", channel, rest.paths + rest.without_path, whole))
            most = max(shown[channel], rest.paths)
            splits.append(("shown paths of ", channel, most, rest.paths))
        for name, channel, found, wanted in splits:
            if not abs(found - wanted) <= allowed:
                raise ModelError(
                    f"internal error: why {self.item_id!r} for {self.user_id!r}: found a sum of "
                    f"{name}{channel} of {found!r}; allowed: {wanted!r}. Please report it."
                )
