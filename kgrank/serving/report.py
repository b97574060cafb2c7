"""The report: one HTML file that tells what was trained, how good it is, and why it recommends.

The page needs no network and no script. Numbers stand in tables; bars only repeat them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from kgrank.files import replacing
from kgrank.serving.drawing import draw_paths, path_texts
from kgrank.serving.explanation import Explanation
from kgrank.serving.wording import channel_words, event_words, percent, relation_words

EVENTS_SHOWN = 8


@dataclass(frozen=True)
class ShopFacts:
    """The shop that was learned from.

    Attributes:
        source: where the data come from.
        licence: under what terms they may be used.
        counts: how many rows, users, items, entities, edges, relations; by that word.
        period: the time the events span, in words.
        events: rows by event kind.
        splits: rows by split.
    """

    name: str
    source: str
    licence: str
    counts: Mapping[str, int]
    period: str
    events: Mapping[str, int]
    splits: Mapping[str, int]


@dataclass(frozen=True)
class TaskResult:
    """One question put to several systems; higher is better in every metric.

    Attributes:
        title: the question, e.g. "Only what the household never bought".
        metrics: value by metric, then by system. The first metric is the headline.
        note: how it was measured.
    """

    title: str
    metrics: Mapping[str, Mapping[str, float]]
    note: str = ""


@dataclass(frozen=True)
class ChannelUse:
    """A channel's part in the top lists, and the settings that fusion chose for it.

    Attributes:
        share: its part of the absolute contributions over the top lists, 0 … 1.
        weight: its fusion weight; None where it has none.
        gate: the weight of log popularity × channel; None where it has none.
    """

    name: str
    share: float
    weight: float | None = None
    gate: float | None = None


@dataclass(frozen=True)
class Example:
    """A recommendation to explain. `item_names`: names by item id, the id where one is missing."""

    explanation: Explanation
    item_names: Mapping[str, str]


@dataclass(frozen=True)
class Stage:
    """One step of the run. `peak_mb`: the process's peak memory at its end, MB."""

    name: str
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class ReportData:
    """Everything the report prints.

    Attributes:
        cold_items: the tasks' slice of products never seen in training, where there is one.
        settings: what was chosen on valid.
        machine: one line: Python, processors, date.
        notes: what a reader should be warned of.
        system: the name in `metrics` of the system that the report is about.
    """

    title: str
    shop: ShopFacts
    tasks: tuple[TaskResult, ...]
    channels: tuple[ChannelUse, ...]
    examples: tuple[Example, ...]
    stages: tuple[Stage, ...]
    settings: Mapping[str, str | int | float | bool]
    machine: str
    notes: tuple[str, ...] = ()
    cold_items: TaskResult | None = None
    system: str = "kgrank"


@dataclass(frozen=True)
class Bar:
    """A table row with a bar. `start` and `length` are percentages of the bar's track."""

    label: str
    value: float
    start: float
    length: float
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class _ExamplePart:
    """What the template prints of one example."""

    explanation: Explanation
    item: str
    parts: Sequence[Bar]
    events: Sequence[Bar]
    drawing: str
    path_texts: Sequence[str]


def write_report(path: Path, data: ReportData) -> None:
    """Writes the report as one HTML file; an earlier report stays whole until the new one is.

    Raises:
        OSError: the file cannot be written.
    """
    environment = Environment(
        loader=PackageLoader("kgrank.serving"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "percent": percent, "words": relation_words}
    html = environment.get_template("report.html.jinja").render(
        data=data,
        tasks=[(task, _panels(task), _verdict(task, data.system)) for task in data.tasks],
        cold=data.cold_items and _panels(data.cold_items),
        cold_verdict=data.cold_items and _verdict(data.cold_items, data.system),
        headlines=[h for task in data.tasks if (h := _headline(task, data.system))],
        channels=list(
            zip(data.channels, bars([(c.name, c.share) for c in data.channels]), strict=True)
        ),
        channel_words=channel_words,
        examples=[_example(example) for example in data.examples],
        stages=list(
            zip(data.stages, bars([(s.name, s.seconds) for s in data.stages]), strict=True)
        ),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace")


def bars(
    rows: Sequence[tuple[str, float]], notes: Sequence[str] = (), *, mark_best: bool = False
) -> list[Bar]:
    """Bars on one common scale that holds zero; negative values run to the left of it."""
    finite = [value for _, value in rows if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    span = (high - low) or 1.0
    drawn = []
    for i, (label, value) in enumerate(rows):
        shown = value if math.isfinite(value) else 0.0
        start, length = 100 * (min(shown, 0.0) - low) / span, 100 * abs(shown) / span
        best = mark_best and bool(finite) and value == max(finite)
        drawn.append(Bar(label, value, start, length, notes[i] if notes else "", best))
    return drawn


def _number(value: float | bool | str | None, digits: int | None = None, plus: bool = False) -> str:
    """A number for people: thousands apart, `digits` decimals, a true minus; "–" for none."""
    if isinstance(value, (bool, str)):
        return str(value)
    if value is None or not math.isfinite(value):
        return "–"
    if digits is not None:
        text = f"{value:+,.{digits}f}" if plus else f"{value:,.{digits}f}"
    elif float(value).is_integer():
        text = f"{int(value):,}"
    else:
        text = f"{value:.10g}"
    return f"−{text[1:]}" if text.startswith("-") else text


def _panels(task: TaskResult) -> list[tuple[str, list[Bar]]]:
    """The bars of each metric."""
    return [
        (metric, bars(list(values.items()), mark_best=True))
        for metric, values in task.metrics.items()
    ]


def _rival(values: Mapping[str, float], system: str) -> tuple[str, float] | None:
    """The best of the other systems, where `system` was measured too."""
    others = {s: v for s, v in values.items() if s != system and math.isfinite(v)}
    if not others or not math.isfinite(values.get(system, math.nan)):
        return None
    best = max(others, key=lambda s: others[s])
    return best, others[best]


def _headline(task: TaskResult, system: str) -> tuple[str, str, float, str, bool] | None:
    """(task, metric, value, comparison, ahead) of the first metric; None where nothing compares."""
    metric, values = next(iter(task.metrics.items()), ("", {}))
    rival = _rival(values, system)
    if rival is None:
        return None
    (name, other), own = rival, values[system]
    said = f"{name}: {_number(other, 4)}"
    if other > 0 and own != other:
        said = f"{percent(abs(own / other - 1))} {'above' if own > other else 'below'} {name}"
    return task.title, metric, own, said, own > other


def _verdict(task: TaskResult, system: str) -> str:
    """On how many metrics the system leads, and who leads on the others."""
    rivals = {m: r for m, v in task.metrics.items() if (r := _rival(v, system))}
    if not rivals:
        return ""
    behind = {m: r for m, r in rivals.items() if r[1] > task.metrics[m][system]}
    even = [m for m, r in rivals.items() if r[1] == task.metrics[m][system]]
    leads = len(rivals) - len(behind) - len(even)
    said = [f"{system} leads on {leads} of {len(rivals)} metrics"]
    said += [f"{', '.join(even)}: a tie"] if even else []
    said += [
        f"{metric}: {name} leads, {_number(value, 4)} against "
        f"{_number(task.metrics[metric][system], 4)}"
        for metric, (name, value) in behind.items()
    ]
    return "; ".join(said) + "."


def _example(example: Example) -> _ExamplePart:
    """The bars and pictures of one explained recommendation."""
    explanation, names = example.explanation, example.item_names
    moved = ((name, part) for name, part in explanation.contributions.items() if part != 0)
    channels = sorted(moved, key=lambda item: -abs(item[1]))
    notes = ["what everybody gets: popularity", *(channel_words(name) for name, _ in channels)]
    shown = explanation.events[:EVENTS_SHOWN]
    rows = [(names.get(e.item_id) or e.item_id, e.contribution) for e in shown]
    said = [event_words(e.event) for e in shown]
    if left := explanation.events[EVENTS_SHOWN:]:
        rows.append((f"{len(left)} more", sum(e.contribution for e in left)))
        said.append("")
    return _ExamplePart(
        explanation=explanation,
        item=names.get(explanation.item_id) or explanation.item_id,
        parts=bars([("bias", explanation.bias), *channels], notes),
        events=bars(rows, said),
        drawing=draw_paths(explanation),
        path_texts=path_texts(explanation),
    )
