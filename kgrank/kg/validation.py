"""Judging tables: every fault with its file, row, column and mend, not only the first.

pandera evaluates the rules, each over a whole column. Numbers and times are parsed first, so the
frames that pass are the ones that become `kgrank.kg.tables.Tables`.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kgrank.errors import Fault
from kgrank.kg.reading import COLUMNS, RawTable, shortened

if TYPE_CHECKING:
    import pandera.pandas as pandera

REQUIRED = {
    "events": ("user_id", "item_id"),
    "items": ("item_id",),
    "users": ("user_id",),
    "triples": ("head", "relation", "tail"),
    "entities": ("entity_id", "name"),
    "queries": ("query", "item_id"),
}
UNIQUE = {"items": "item_id", "users": "user_id", "entities": "entity_id"}
SPLITS = ("train", "valid", "test")

DAY = 86_400.0
"""Seconds in a day."""
LARGEST = float(np.finfo(np.float32).max)
"""The largest value of an event, and weight of a triple."""
ISO_8601 = (
    "YYYY-MM-DD, which a time HH:MM, HH:MM:SS or HH:MM:SS.ffffff (00:00 to 23:59:59.999999) may "
    "follow after T or a space, and the time a zone Z or ±HH:MM (without one: UTC)"
)
"""The forms of ISO 8601 that are read as times."""
_NOTHING = float(np.finfo(np.float32).smallest_subnormal) / 2.0  # what float32 rounds to 0
_YEAR_1990 = 631_152_000.0
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?$|^[+-]?inf(inity)?$"


def check(raw: Mapping[str, RawTable]) -> tuple[dict[str, pd.DataFrame], list[Fault]]:
    """Parse the numbers and times of raw tables and judge every column.

    Returns:
        By table: the frame with number and time columns as float64 (seconds UTC); its index is
        still the data row. And the faults.
    """
    items = raw.get("items")
    listed = items.frame.get("item_id") if items is not None and items.whole else None
    frames: dict[str, pd.DataFrame] = {}
    faults: list[Fault] = []
    for name, table in raw.items():
        frames[name] = _parsed(name, table.frame)
        faults += _faults(name, table, frames[name], listed)
    return frames, faults


def numbers(values: pd.Series[Any]) -> pd.Series[Any]:
    """Text or numbers as float64; NaN where there is no number ("" or other text)."""
    if pd.api.types.is_numeric_dtype(values):
        return values.astype("float64")
    array = pa.array(values, from_pandas=True)
    like_numbers = pc.match_substring_regex(array, _NUMBER, ignore_case=True)
    array = pc.if_else(like_numbers, array, pa.scalar(None, array.type))
    parsed = pc.cast(array, pa.float64()).to_numpy(zero_copy_only=False)
    return pd.Series(parsed, index=values.index)


def seconds(values: pd.Series[Any]) -> pd.Series[Any]:
    """Seconds UTC as text or numbers, or dates and times as `ISO_8601` says, as float64 seconds.

    NaN where neither can be read. What can be read as a number is one, so a date needs its hyphens
    (2026-01-31).
    """
    parsed = numbers(values)
    dated = parsed.isna() & ~_absent(values)
    if dated.any():
        moments = pd.to_datetime(values[dated], format="ISO8601", utc=True, errors="coerce")
        start = pd.Timestamp(0, unit="s", tz="UTC")  # in nanoseconds, years would end in 2262
        since = (moments - start).dt.total_seconds()
        parsed = parsed.copy()
        parsed[dated] = since.to_numpy()
    return parsed


def _absent(values: pd.Series[Any]) -> pd.Series[Any]:
    return values.isna() if pd.api.types.is_numeric_dtype(values) else values == ""


def _parsed(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    parsers = {"number": numbers, "time": seconds}
    kinds = {column: kind for column, kind in COLUMNS[name].items() if column in frame}
    return frame.assign(**{c: parsers[k](frame[c]) for c, k in kinds.items() if k in parsers})


def _faults(
    name: str, table: RawTable, frame: pd.DataFrame, listed: pd.Series[Any] | None
) -> list[Fault]:
    from pandera.errors import SchemaErrors

    try:
        _schema(name, table.frame, listed).validate(frame, lazy=True)
    except SchemaErrors as errors:
        return [_fault(table, error) for error in errors.schema_errors]
    return []


def _fault(table: RawTable, error: Any) -> Fault:
    """A pandera `SchemaError` as a fault: the first row at fault, and how many there are."""
    if error.reason_code.name == "COLUMN_NOT_IN_DATAFRAME":
        return _missing(table, str(error.failure_cases))
    if error.reason_code.name != "DATAFRAME_CHECK":
        raise error
    check, column, holds = error.check, error.schema.name, error.check_output
    if not isinstance(holds, pd.Series):  # a rule about the table or the column as a whole
        found = f"no {check.title.removeprefix('at least one ')}"
        return Fault(table.file, None, column, found, check.title, check.description)
    places = np.flatnonzero(~holds.to_numpy(dtype=bool))
    value = table.frame[column].iloc[places[0]]
    absent = value == "" or value != value
    return Fault(
        file=table.file,
        row=int(table.frame.index[places[0]]),
        column=column,
        found="nothing" if absent else shortened(value),
        allowed=check.title,
        mend=(check.name == "present" and _unit(value)) or check.description,
        count=len(places),
    )


def _missing(table: RawTable, column: str) -> Fault:
    names = [*map(str, table.frame.columns), *table.unread]
    shown = ", ".join(map(repr, names[:12])) + (", …" if len(names) > 12 else "")
    near = difflib.get_close_matches(column, names, n=1)
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        mend = "Put commas between the columns."
    elif near:
        mend = f"Rename {near[0]!r} to {column!r}."
    else:
        mend = f"Add the column {column!r}."
    return Fault(
        file=table.file,
        row=None,
        column=column,
        found=f"the columns {shown}",
        allowed=f"a table with the column {column!r}",
        mend=mend,
    )


def _unit(value: object) -> str:
    """What to do with a time in the future that is a plausible one in a finer unit."""
    time_ = seconds(pd.Series([value])).iloc[0]
    for unit, factor in (("milli", 1e3), ("micro", 1e6), ("nano", 1e9)):
        if _YEAR_1990 <= time_ / factor <= time.time() + DAY:
            return f"These are {unit}seconds: divide them by {factor:,.0f}."
    return ""


def _schema(name: str, raw: pd.DataFrame, listed: pd.Series[Any] | None) -> pandera.DataFrameSchema:
    """The rules of the table `name`; `raw` is its frame before parsing."""
    import pandera.pandas as pandera

    def check(rule: Rule) -> pandera.Check:
        return pandera.Check(
            rule.holds,
            name=rule.name,
            title=rule.allowed,
            description=rule.mend,
            ignore_na=False,
        )

    columns = {}
    for column in dict.fromkeys([*REQUIRED[name], *map(str, raw.columns)]):
        rules = _rules(name, column, raw[column]) if column in raw else []
        if column == "item_id" and name in ("events", "queries") and listed is not None:
            rules.append(_listed(listed))
        columns[column] = pandera.Column(
            checks=[check(rule) for rule in rules],
            required=column in REQUIRED[name],
            nullable=True,
        )
    return pandera.DataFrameSchema(columns, checks=check(_SOME_ROWS))


@dataclass(frozen=True)
class Rule:
    """A statement about a column: true or false for each row, or once for the whole.

    Attributes:
        holds: from the parsed column (n,) to (n,) bool, or to one bool.
    """

    name: str
    holds: Callable[[Any], Any]
    allowed: str
    mend: str


_SOME_ROWS = Rule(
    "rows",
    lambda frame: len(frame) > 0,
    "at least one row",
    "Fill the table, or remove its file where the table is optional.",
)
_NOT_EMPTY = Rule(
    "not empty",
    lambda values: values.str.strip() != "",
    "text that is not empty",
    "Fill it in, or drop the row.",
)
_ONCE = Rule(
    "once",
    lambda values: ~values.duplicated() | (values == ""),
    "each id once",
    "Keep one row for each id.",
)
_FINITE = Rule(
    "finite",
    lambda values: ~np.isinf(values),
    "a finite number",
    "Correct the number, or leave it empty.",
)
_SINGLE = Rule(
    "single precision",
    lambda values: ~(values.abs() > LARGEST) | np.isinf(values),
    "a number from -3.4e38 to 3.4e38",
    "Correct the number.",
)
_WHOLE = Rule(
    "whole",
    lambda values: values.isna() | (values % 1 == 0),
    "a whole number",
    "Number each user's events 0, 1, 2, … from the oldest.",
)
_POSITIVE = Rule(
    "positive",
    lambda values: ~(values <= _NOTHING),
    "a number above 0 (from 1.4e-45 on, in single precision)",
    "Drop the row when it says nothing; leave the weight empty for 1.",
)
_KNOWN_SPLIT = Rule(
    "split",
    lambda values: values.isin(SPLITS),
    "train, valid or test",
    "Correct the name, or drop the column to split by time.",
)
_SOME_TRAIN = Rule(
    "train rows",
    lambda values: len(values) == 0 or bool((values == "train").any()),
    "at least one train row",
    "Mark the rows to learn from as train, or drop the column to split by time.",
)
_SINCE_1970 = Rule(
    "since 1970",
    lambda values: ~(values < 0),
    "a time since 1970",
    "Correct the time.",
)


def _listed(item_ids: pd.Series[Any]) -> Rule:
    return Rule(
        "listed",
        lambda values: values.isin(item_ids) | (values == ""),
        "an item_id of the items table",
        "Add the item to the items table, or correct the id.",
    )


def _not_future() -> Rule:
    return Rule(
        "present",
        lambda values: ~(values > time.time() + DAY),
        "a time up to now",
        "Correct the time: it is more than a day ahead.",
    )


def _readable(raw: pd.Series[Any], allowed: str, mend: str) -> Rule:
    return Rule("readable", lambda values: values.notna() | _absent(raw), allowed, mend)


def _complete(raw: pd.Series[Any], what: str) -> Rule:
    allowed, mend = f"a {what} in every row", f"Fill in the {what}, or drop the whole column."
    return Rule("complete", lambda values: ~_absent(raw), allowed, mend)


def _rules(name: str, column: str, raw: pd.Series[Any]) -> list[Rule]:
    """The rules of one column; `raw` is the column before parsing."""
    kind = COLUMNS[name].get(column, "attribute")
    rules: list[Rule] = []
    if kind == "id" or column in ("relation", "query"):
        rules.append(_NOT_EMPTY)
    if UNIQUE.get(name) == column:
        rules.append(_ONCE)
    if kind == "number":
        mend = "Write it as a plain number such as 12.5, or leave it empty."
        rules += [_readable(raw, "a finite number", mend), _FINITE]
    if kind == "attribute" and pd.api.types.is_numeric_dtype(raw):
        rules.append(_FINITE)
    if kind == "time":
        allowed, mend = f"seconds since 1970 (UTC), or {ISO_8601}", "Write 2026-01-31T12:00:00Z."
        rules += [_readable(raw, allowed, mend), _complete(raw, "time")]
        rules += [_SINCE_1970, _not_future()]
    if column == "position" and name == "events":
        rules += [_complete(raw, "position"), _WHOLE]
    if (name, column) in (("events", "value"), ("triples", "weight")):
        rules.append(_SINGLE)
    if column == "weight" and name == "triples":
        rules.append(_POSITIVE)
    if column == "split" and name == "events":
        rules += [_KNOWN_SPLIT, _SOME_TRAIN]
    return rules
