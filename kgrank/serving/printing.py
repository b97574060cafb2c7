"""What the command line prints: results on stdout, progress and faults on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kgrank.errors import DataError, KgrankError

if TYPE_CHECKING:
    from kgrank.serving.explanation import Explanation
    from kgrank.serving.profiling import ItemProfile, Profile
    from kgrank.serving.why_not import WhyNot

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on."""

_PIPE_WIDTH = 160  # columns of a table that no terminal shows
_FIRST_SECONDS, _LINE_SECONDS = 10.0, 60.0  # of a stage's lines, where no terminal shows a bar


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout; a number that is not finite becomes null."""
    print(json.dumps(_plain(value), ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_error(error: KgrankError | OSError, as_json: bool) -> None:
    """Say what went wrong on stderr, and with `as_json` as {"error": …} on stdout as well."""
    faults = error.faults if isinstance(error, DataError) else ()
    for line in map(str, faults) if faults else [str(error)]:
        print(line, file=sys.stderr)
    if as_json:
        told: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
        if faults:
            told["faults"] = [asdict(fault) for fault in faults]
        print_json({"error": told})


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print a table on stdout; numbers to the right, fractions with four decimals."""
    from rich.console import Console
    from rich.table import Table

    cells = list(rows)
    table = Table(title=title or None, title_justify="left")
    for number, name in enumerate(columns):
        numeric = all(isinstance(row[number], (int, float, type(None))) for row in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*map(_shown, row))
    # Names of products are data: brackets in them are no markup, and :names: no pictures.
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(markup=False, highlight=False, emoji=False, width=width).print(table)


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "".join(char if char.isprintable() else "\ufffd" for char in str(value))


@contextmanager
def progress_on_stderr() -> Iterator[Progress]:
    """Bars where stderr is a terminal.

    Else a line as each stage begins, one after ten seconds of it, and one every minute.
    """
    if not sys.stderr.isatty():
        yield _stage_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def told(stage: str, done: int, total: int) -> None:
            name = _name_of(stage)
            if name not in tasks:
                tasks[name] = bars.add_task(stage, total=total)
            bars.update(tasks[name], completed=done, total=total, description=stage)

        yield told


def _stage_lines() -> Progress:
    last, shown = "", 0.0

    def told(stage: str, done: int, total: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if _name_of(stage) != last:
            last, shown = _name_of(stage), now - _LINE_SECONDS + _FIRST_SECONDS
            print(f"{last} …", file=sys.stderr, flush=True)
        elif now - shown >= _LINE_SECONDS:
            shown = now
            print(f"{stage}, {done} of {total} done", file=sys.stderr, flush=True)

    return told


def _name_of(stage: str) -> str:
    """The stage without what changes while it runs: "learned: loss 5.1, …" is "learned"."""
    return stage.partition(": ")[0]


def print_bundle(facts: Mapping[str, Any], folder: str) -> None:
    """Print what a fit chose and how well each channel ranks valid on its own."""
    counts = {**facts["rows"], **{name: facts[name] for name in ("users", "items", "edges")}}
    print_table(tuple(counts), [tuple(counts.values())], "Fitted on")
    if pictures := facts["image_vectors"]:
        print_table(tuple(pictures), [tuple(pictures.values())], "Pictures")
    rows = [(name, choice["valid_ndcg@10"]) for name, choice in facts["choices"].items()]
    for head, fused in facts["fusion"].items():
        found, method = fused["valid_ndcg@10"], fused["method"]
        rows.append((f"fused, {head} ({method})", found[method]))
    print_table(("channel", "NDCG@10 on valid"), rows)
    print_tasks(facts)
    print(f"Bundle: {folder}")


def print_tasks(facts: Mapping[str, Any]) -> None:
    """Print how well each head predicts users of valid that it was not fitted on."""
    rows = [
        (task, name, value)
        for task, found in facts["tasks"].items()
        for name, value in _flat(found).items()
    ]
    if rows:
        print_table(("task", "on valid", "value"), rows)
    for task, reason in facts["tasks_left_out"].items():
        print(f"No head for {task}: {reason}.")


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested figures in one table, under their path; lists as text."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name} ")
        else:
            flat[before + name] = ", ".join(value) if isinstance(value, (list, tuple)) else value
    return flat


def print_evaluation(result: Mapping[str, Any]) -> None:
    """Print the object that `evaluate_bundle` gives."""
    asked = ("protocol", "split", "history", "repeats", "relevant", "users", "queries")
    told = [f"{name} {result[name]}" for name in asked]
    told += [f"{result['met_before']} of them with an answer met before"]
    print(", ".join(told))
    if result["in_sample"]:
        print("In sample: the channels were fitted on these rows too.")
    systems = {"kgrank": result["metrics"], **result["baselines"]}
    rows = [(metric, *(of.get(metric) for of in systems.values())) for metric in result["metrics"]]
    print_table(("metric", *systems), rows)
    slices = [
        (name, metric, value)
        for name, metrics in result["slices"].items()
        for metric, value in metrics.items()
    ]
    print_table(("slice", "metric", "value"), slices)
    if predicted := result.get("prediction"):
        print_table(("prediction", "value"), _flat(predicted).items(), result["task"])
    if graphs := result.get("graph"):
        rows = [(metric, *(of[metric] for of in graphs.values())) for metric in result["metrics"]]
        print_table(("metric", *graphs), rows, "With the graph")
    for name, difference in result.get("graph_difference", {}).items():
        low, high = difference["interval"]
        verdict = "more than noise" if difference["beyond_noise"] else "no more than noise"
        gain = f"{difference['ndcg@10']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}"
        print(f"NDCG@10, true minus {name}: {gain}: {verdict}")


def print_explanation(explanation: Explanation, names: Mapping[str, str]) -> None:
    """Print an explanation as text."""
    from kgrank.serving.drawing import path_texts

    title = names.get(explanation.item_id, explanation.item_id)
    print(_shown(f"{explanation.item_id} {title} for {explanation.user_id}"))
    print(_shown(explanation.text))
    rest = explanation.remainder
    parts = [
        (name, part, rest[name].paths, rest[name].without_path)
        if name in rest
        else (name, part, None, None)
        for name, part in (("bias", explanation.bias), *explanation.contributions.items())
    ]
    rows = [*parts, ("score", explanation.score, None, None)]
    if explanation.prediction is not None:
        predicted = "rating" if explanation.task == "rating" else "probability"
        rows.append((f"{predicted} ({explanation.task})", explanation.prediction, None, None))
    print_table(("channel", "contribution", "over paths", "without a path"), rows)
    events = [
        (event.item_id, names.get(event.item_id, ""), event.event, event.contribution)
        for event in explanation.events[:10]
    ]
    print_table(("item_id", "title", "event", "contribution"), events)
    for text in path_texts(explanation) or ("No path in the graph carried this score.",):
        print(_shown(text))


def print_why_not(why: WhyNot, names: Mapping[str, str]) -> None:
    """Print why a product is not on a list as text."""
    print(_shown(why.text))
    if why.lowest is not None and why.place is None:
        rows = [*why.gap.items(), ("score", sum(why.gap.values()))]
        title = f"What {why.lowest.item_id} {names.get(why.lowest.item_id, '')} has more"
        print_table(("channel", "more"), rows, _shown(title))


def explanation_page(explanation: Explanation, names: Mapping[str, str], language: str) -> str:
    """An explanation as one HTML page that refers to nothing outside itself."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from kgrank.serving.drawing import draw_paths
    from kgrank.serving.report import bars
    from kgrank.serving.wording import channel_words, event_words

    parts = [("bias", explanation.bias), *explanation.contributions.items()]
    events = explanation.events[:10]
    environment = Environment(
        loader=PackageLoader("kgrank.serving"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("explanation.html.jinja").render(
        why=explanation,
        item=names.get(explanation.item_id, explanation.item_id),
        language=language,
        drawing=draw_paths(explanation),
        channels=bars(parts, [channel_words(name) for name, _ in parts]),
        events=bars(
            [(names.get(event.item_id, event.item_id), event.contribution) for event in events],
            [event_words(event.event) for event in events],
        ),
    )


def print_profile(profile: Profile, names: Mapping[str, str]) -> None:
    """Print a profile as text."""
    print(_shown(f"User {profile.user_id}"))
    if profile.first is not None and profile.last is not None:
        days = [f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d}" for t in (profile.first, profile.last)]
        print(f"From {days[0]} to {days[1]}")
    print_table(("event", "count"), profile.events.items())
    items = [(item, names.get(item, "")) for item in profile.items]
    print_table(("item_id", "title"), items, "Newest products")
    if profile.price is not None:
        price = profile.price
        row = (price.low, price.median, price.high, price.events)
        print_table(("10 %", "median", "90 %", "events"), [row], "Prices")
    entities = [
        (
            entity.relation,
            entity.name,
            entity.share,
            ", ".join(f"{n} {kind}" for kind, n in entity.events.items()),
            "" if entity.last is None else f"{datetime.fromtimestamp(entity.last, UTC):%Y-%m-%d}",
            " ".join(entity.item_ids[:5]) + (" …" if len(entity.item_ids) > 5 else ""),
        )
        for entity in profile.entities
    ]
    columns = ("relation", "name", "share", "events", "last", "products")
    print_table(columns, entities, "In common")
    if entities:
        print('An event "not_interested" on its products takes a line away.')


def print_item_profile(profile: ItemProfile, names: Mapping[str, str]) -> None:
    """Print a product's profile as text."""
    print(_shown(f"Product {profile.item_id} {profile.title}"))
    print_table(("event", "count"), [*profile.events.items(), ("users", profile.users)])
    print_table(("relation", "name"), [(fact.relation, fact.name) for fact in profile.facts])
    similar = [(item, names.get(item, ""), score) for item, score in profile.similar]
    print_table(("item_id", "title", "score"), similar, "Like it")
    drawn = [(d.attribute, d.value, d.users, d.share, d.share_of_all) for d in profile.drawn]
    if drawn:
        print_table(("attribute", "value", "users", "share", "of all"), drawn, "Whom it draws")
