"""Explanation paths as one standalone SVG: user → history → entities → product, left to right.

A node that several paths share is drawn once, in the layer of its longest way from the user (again
only where a line would run backwards); a line that skips layers keeps a lane of its own through
them, so that it crosses no node. The picture follows the reader's light or dark scheme and refers
to nothing outside itself.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, pairwise

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from kgrank.serving.explanation import Explanation, Path, PathEdge, PathNode
from kgrank.serving.wording import event_words, percent, relation_words, share

NAME_SIZE, NOTE_SIZE = 13.0, 11.0  # px
NAME_CELLS, NAME_LINES = 20, 2  # a wide (CJK) character is two cells
LINE_HEIGHT, NODE_GAP, MARGIN = 17.0, 26.0, 20.0  # px
OTHER = "another customer"
LANE = "lane"  # stands for a node where a line passes through a layer

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Key = tuple[str, ...]  # (type, id) of a node, longer if drawn again; (LANE, …) of a lane
Link = tuple[Key, Key]


@dataclass
class _Line:
    """Everything the paths carry over one pair of neighbouring nodes."""

    relations: list[str] = field(default_factory=list)
    contribution: float = 0.0


@dataclass
class _Box:
    """A node, or a lane without one, and its place. x, y: the centre, px."""

    name: str = ""
    look: str = LANE  # its class in the picture
    note: str = ""
    lines: tuple[str, ...] = ()
    width: float = 0.0
    height: float = LINE_HEIGHT
    x: float = 0.0
    y: float = 0.0

    @property
    def left(self) -> float:
        """The left end, px."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """The right end, px."""
        return self.x + self.width / 2


@dataclass(frozen=True)
class _Picture:
    """What the template draws: sizes in px, `lines` as (way, thickness, against)."""

    width: float
    height: float
    boxes: list[_Box]
    lines: list[tuple[str, float, bool]]
    labels: list[tuple[float, float, str, str]]  # x, y, relation, share


def draw_paths(explanation: Explanation) -> str:
    """Draws the paths of an explanation as SVG text (UTF-8, no declaration).

    A line is as thick as the part of the score it carried; the printed share is that part over
    |bias| + Σ |contribution|. A part that spoke against the product is dashed. Without any path
    the picture says so.
    """
    paths, texts = explanation.paths, path_texts(explanation)
    named = f"{explanation.user_id} {explanation.item_id} {paths}"
    if paths:
        picture = _picture(explanation)
        user, goal = paths[0].nodes[0], paths[0].nodes[-1]
        title = f"Why {goal.name or goal.id} for {user.name or user.id}"
        count = f"{len(paths)} path{'s' if len(paths) > 1 else ''}"
        said = " ".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
        desc = f"{count} in the graph, strongest first. {said}"
    else:
        picture = _Picture(420, 64, [], [], [])
        title = f"Why {explanation.item_id} for {explanation.user_id}"
        desc = "No path in the graph carried this score."
    return _template().render(
        mark="kgp-" + hashlib.sha256(named.encode("utf-8", "replace")).hexdigest()[:10],
        title=title,
        desc=desc,
        picture=picture,
    )


def path_texts(explanation: Explanation) -> tuple[str, ...]:
    """Each path as one line: "ann —bought→ Pan —brand→ Nordfell ←brand— Lid (12%)".

    The arrows point as the edges are stored. Another user is "another customer".
    """
    said = []
    for path in explanation.paths:
        text = path.nodes[0].name or path.nodes[0].id
        steps = zip(path.edges, path.backward(), pairwise(path.nodes), strict=True)
        for edge, back, (left, right) in steps:
            label = _relation(edge, left, right)
            arrow = f"←{label}—" if back else f"—{label}→"
            text += f" {arrow} {_called(right)}"
        part = share(path.contribution, explanation.bias, explanation.contributions)
        more = ""
        if path.others:
            together = share(path.together, explanation.bias, explanation.contributions)
            more = f"; with {path.others} more like it {percent(together)}"
        said.append(f"{text} ({percent(part)}{more})")
    return tuple(said)


def text_width(text: str, size: float) -> float:
    """An estimate of a text's width in px at font size `size`, on the generous side."""
    return _cells(text) * size * 0.56


def _cells(text: str) -> float:
    """Widths in cells: 2 a wide character (CJK), 0 a combining mark, else about 1."""
    cells = 0.0
    for char in text:
        if unicodedata.east_asian_width(char) in "WF":
            cells += 2
        elif unicodedata.category(char) not in ("Mn", "Me", "Cf"):
            cells += 1.25 if char.isupper() else 1
    return cells


def _wrapped(text: str, lines: int) -> tuple[str, ...]:
    """The text in at most `lines` lines of NAME_CELLS; what does not fit ends in "…"."""
    left = " ".join(text.split())
    wrapped: list[str] = []
    while left and len(wrapped) < lines:
        fits = max(1, sum(_cells(left[: i + 1]) <= NAME_CELLS for i in range(len(left))))
        if fits < len(left):
            last = len(wrapped) == lines - 1
            space = left.rfind(" ", 0, fits + 1)
            cut = fits - 1 if last else space if space > 0 else fits
            wrapped.append(left[:cut].rstrip() + ("…" if last else ""))
            left = left[cut:].lstrip()
        else:
            wrapped.append(left)
            left = ""
    return tuple(wrapped) or ("",)


def _called(node: PathNode) -> str:
    """A node's name after the first; another user's is nobody's business."""
    return OTHER if node.type == "user" else node.name.strip() or node.id


def _relation(edge: PathEdge, left: PathNode, right: PathNode) -> str:
    """The relation as a label; an edge at a user is an event."""
    at_user = "user" in (left.type, right.type)
    return event_words(edge.relation) if at_user else relation_words(edge.relation)


def _keyed(paths: Sequence[Path]) -> list[tuple[Key, ...]]:
    """The keys of each path's nodes, such that all lines run from left to right.

    Two paths may pass two nodes in opposite order, and a product bought before may be recommended
    again: what would close a circle is drawn once more.
    """
    goal = (paths[0].nodes[-1].type, paths[0].nodes[-1].id)
    keyed: list[tuple[Key, ...]] = []
    for path in paths:
        first, *inner, _ = [(node.type, node.id) for node in path.nodes]
        keys: list[Key] = [(*key, "before") if key == goal else key for key in inner]
        with_it = [*keyed, (first, *keys, goal)]
        if _layers({link for keys in with_it for link in pairwise(keys)}) is None:
            keys = [(*key, f"path {len(keyed)}", str(i)) for i, key in enumerate(inner)]
        keyed.append((first, *keys, goal))
    return keyed


def _layers(links: Collection[Link]) -> dict[Key, int] | None:
    """The layer of each node: its longest way from the left. None when there is a circle."""
    layer = {key: 0 for link in links for key in link}
    for _ in range(len(layer) + 1):  # no way is longer than the number of nodes
        pushed = False
        for left, right in links:
            if layer[right] <= layer[left]:
                layer[right] = layer[left] + 1
                pushed = True
        if not pushed:
            return layer
    return None


def _lines(paths: Sequence[Path], keyed: Sequence[Sequence[Key]]) -> dict[Link, _Line]:
    """The lines to draw, by the pair of nodes they join; those of the first path first."""
    lines: defaultdict[Link, _Line] = defaultdict(_Line)
    for path, keys in zip(paths, keyed, strict=True):
        pairs = zip(pairwise(path.nodes), pairwise(keys), strict=True)
        steps = zip(path.edges, path.backward(), pairs, strict=True)
        for edge, back, ((left, right), link) in steps:
            lines[link].contribution += path.together
            label = ("← " if back else "") + _relation(edge, left, right)
            if label not in lines[link].relations:
                lines[link].relations.append(label)
    return dict(lines)


def _picture(explanation: Explanation) -> _Picture:
    """Lays the paths out: layers, lanes, places, and the labels where they are free."""
    paths = explanation.paths
    keyed = _keyed(paths)
    lines = _lines(paths, keyed)
    layer = _layers(lines) or {}  # without circles by now
    routes = {link: _route(link, layer) for link in lines}
    boxes = _boxes(paths, keyed, routes)
    for route in routes.values():
        layer.update((lane, layer[route[0]] + i) for i, lane in enumerate(route[1:-1], 1))
    labels = {
        link: (
            _wrapped(", ".join(line.relations), 1)[0],
            percent(share(line.contribution, explanation.bias, explanation.contributions)),
        )
        for link, line in lines.items()
    }
    width, height = _place(boxes, _columns(boxes, routes, layer), routes, labels)
    most = max(abs(line.contribution) for line in lines.values()) or 1.0
    drawn = [
        (
            _way([boxes[key] for key in routes[link]]),
            1.5 + 7.5 * abs(line.contribution) / most,
            line.contribution < 0,
        )
        for link, line in lines.items()
    ]
    nodes = [box for box in boxes.values() if box.look != LANE]
    return _Picture(width, height, nodes, drawn, _placed_labels(routes, labels, boxes))


def _route(link: Link, layer: Mapping[Key, int]) -> tuple[Key, ...]:
    """The link's ends with a lane in each layer it skips."""
    left, right = link
    lanes = ((LANE, *left, *right, str(i)) for i in range(layer[left] + 1, layer[right]))
    return (left, *lanes, right)


def _boxes(
    paths: Sequence[Path],
    keyed: Sequence[Sequence[Key]],
    routes: Mapping[Link, tuple[Key, ...]],
) -> dict[Key, _Box]:
    """A box for each node and lane, not yet placed; four looks of entities, then again."""
    boxes: dict[Key, _Box] = {}
    looks = {"user": "user", "item": "item"}
    nodes = ((path, place, node) for path in paths for place, node in enumerate(path.nodes))
    for key, (path, place, node) in zip(chain.from_iterable(keyed), nodes, strict=True):
        look = looks.setdefault(node.type, f"e{(len(looks) - 2) % 4}")
        note = "product" if node.type == "item" else _wrapped(relation_words(node.type), 1)[0]
        if key == keyed[0][-1]:
            look, note = "goal", "recommended"
        name = _called(node) if place else node.name.strip() or node.id
        if place and node.type == "user" and path.others:
            name = f"{path.others + 1} other customers"
        lines = _wrapped(name, NAME_LINES)
        width = max(text_width(line, NAME_SIZE) for line in lines)
        width = max(90.0, max(width, text_width(note, NOTE_SIZE)) + 38)
        height = len(lines) * LINE_HEIGHT + NOTE_SIZE + 20
        boxes.setdefault(key, _Box(name, look, note, lines, width, height))
    boxes.update((lane, _Box()) for route in routes.values() for lane in route[1:-1])
    return boxes


def _columns(
    boxes: Mapping[Key, _Box],
    routes: Mapping[Link, tuple[Key, ...]],
    layer: Mapping[Key, int],
) -> list[list[Key]]:
    """The boxes of each layer from top to bottom, near those they are joined to."""
    columns: list[list[Key]] = [[] for _ in range(max(layer.values()) + 1)]
    for key in boxes:
        columns[layer[key]].append(key)
    joined: defaultdict[Key, list[Key]] = defaultdict(list)
    for route in routes.values():
        for left, right in pairwise(route):
            joined[left].append(right)
            joined[right].append(left)
    place = {key: i - len(c) / 2 for c in columns for i, key in enumerate(c)}
    for side in (-1, 1, -1):  # sweeps: look left, right, left
        for column in columns[::-side]:
            near = {
                key: [place[k] for k in joined[key] if (layer[k] - layer[key]) * side > 0]
                for key in column
            }
            mean = {key: sum(v) / len(v) if v else place[key] for key, v in near.items()}
            column.sort(key=lambda key: mean[key])
            place.update((key, i - (len(column) - 1) / 2) for i, key in enumerate(column))
    return columns


def _label_width(label: tuple[str, str]) -> float:
    return text_width(" ".join(label), NOTE_SIZE) + 10


def _place(
    boxes: Mapping[Key, _Box],
    columns: Sequence[Sequence[Key]],
    routes: Mapping[Link, tuple[Key, ...]],
    labels: Mapping[Link, tuple[str, str]],
) -> tuple[float, float]:
    """Gives every box its centre; returns the picture's width and height."""
    heights = [sum(boxes[k].height + NODE_GAP for k in column) - NODE_GAP for column in columns]
    x = MARGIN
    for column, height in zip(columns, heights, strict=True):
        width = max((boxes[key].width for key in column), default=0.0)
        y = MARGIN + (max(heights) - height) / 2
        for key in column:
            box = boxes[key]
            if box.look == LANE:
                box.width = width  # a lane runs straight through its layer
            box.x, box.y = x + width / 2, y + box.height / 2
            y += box.height + NODE_GAP
        starting = [_label_width(labels[link]) for link in routes if link[0] in column]
        x += width + max(starting, default=0.0) + 46
    return max(box.right for box in boxes.values()) + MARGIN, max(heights) + 2 * MARGIN


def _way(route: Sequence[_Box]) -> str:
    """The line's way through its boxes."""
    way = f"M{route[0].right:.1f} {route[0].y:.1f}"
    for box, to in pairwise(route):
        middle = (box.right + to.left) / 2
        way += f"C{middle:.1f} {box.y:.1f} {middle:.1f} {to.y:.1f} {to.left:.1f} {to.y:.1f}"
        way += f"H{to.right:.1f}" if to.look == LANE else ""
    return way


def _placed_labels(
    routes: Mapping[Link, tuple[Key, ...]],
    labels: Mapping[Link, tuple[str, str]],
    boxes: Mapping[Key, _Box],
) -> list[tuple[float, float, str, str]]:
    """The labels on their lines, slid along them so that none lies on another."""
    taken: list[tuple[float, float, float]] = []  # x, y, width
    placed = []
    for link, label in labels.items():
        width = _label_width(label)
        start, end = boxes[link[0]], boxes[routes[link][1]]
        spots = [
            (
                start.right + (end.left - start.right) * (1.5 * t * (1 - t) + t**3),
                start.y + (end.y - start.y) * (3 - 2 * t) * t * t,
            )
            for t in (0.5, 0.42, 0.58, 0.35, 0.65, 0.28, 0.72)
        ]
        free = (
            (x, y)
            for x, y in spots
            if all(abs(x - a) >= (width + w) / 2 or abs(y - b) >= 15 for a, b, w in taken)
        )
        x, y = next(free, spots[0])
        taken.append((x, y, width))
        placed.append((x, y, *label))
    return placed


def _clean(value: object) -> object:
    """A text without the characters that XML does not allow."""
    return _NOT_XML.sub("\ufffd", value) if isinstance(value, str) else value


@cache
def _template() -> Template:
    loader = PackageLoader("kgrank.serving")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_clean
    )
    return environment.get_template("paths.svg.jinja")
