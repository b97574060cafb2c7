"""Reading a shop's files into text and numbers, without losing a letter of an id.

CSV and Parquet are read by pyarrow, JSON lines by the standard library (pyarrow would turn text
that looks like a date into a time). What a value means is not judged here: see
`kgrank.kg.validation`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kgrank.errors import DataError, Fault
from kgrank.kg.delimited import (
    Columns,
    check_names,
    delimited,
    empty_file,
    read_bytes,
    text_series,
    unreadable,
)

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")

Kind = Literal["id", "text", "number", "time", "attribute"]

# The columns that the contract knows, by table. Other columns of items and users are attributes.
COLUMNS: dict[str, dict[str, Kind]] = {
    "events": {
        "user_id": "id",
        "item_id": "id",
        "event": "text",
        "timestamp": "time",
        "position": "number",
        "value": "number",
        "split": "text",
    },
    "items": {"item_id": "id", "title": "text", "description": "text"},
    "users": {"user_id": "id"},
    "triples": {"head": "id", "relation": "text", "tail": "id", "weight": "number"},
    "entities": {"entity_id": "id", "name": "text", "type": "text"},
    "queries": {"query": "text", "item_id": "id", "label": "number"},
}
WITH_ATTRIBUTES = ("items", "users")

_CHUNK = 50_000
"""Lines of JSON that are parsed together."""
_ID_TYPES = ("text or whole numbers", "Write the ids as text.")


@dataclass(frozen=True, eq=False)
class RawTable:
    """A table as its file tells it: nothing is checked yet.

    Attributes:
        frame: columns of str ("" where absent) or float64 (NaN where absent). The index is the
            data row of the file, 1 = the first.
        file: the file's name, for messages.
        unread: the file's other columns, for messages.
        whole: whether every row of the file is in the frame, its ids to the letter.
    """

    frame: pd.DataFrame
    file: str
    unread: tuple[str, ...] = ()
    whole: bool = True


def read_file(
    name: str, path: Path, also: Sequence[str] = ()
) -> tuple[RawTable | None, list[Fault]]:
    """Read the file `path` of the table `name`.

    Rows that cannot be read are left out and reported, so that the rest can be checked too.

    Args:
        name: of the table.
        path: of the file.
        also: columns to read where they are there, besides those that the contract knows.

    Returns:
        The table, or None when nothing of it can be read; and every fault found on the way.
    """
    wanted = None if name in WITH_ATTRIBUTES else (*COLUMNS[name], *also)
    try:
        if path.name.endswith(".parquet"):
            columns = _parquet(path, wanted)
        elif path.name.endswith((".csv", ".csv.gz")):
            columns = delimited(read_bytes(path), path.name, wanted=wanted)
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            columns = _json_lines(read_bytes(path), path.name, name, wanted)
        else:
            raise DataError([_unknown_format(path)])
        return _raw_table(name, columns, path.name)
    except DataError as error:
        return None, list(error.faults)
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeEncodeError) as error:
        return None, [unreadable(path.name, error)]


def read_values(
    name: str, values: Mapping[str, list[Any]], where: str
) -> tuple[RawTable, list[Fault]]:
    """Columns of Python values, as JSON or a database gives them, as the raw table `name`.

    Args:
        name: of the table.
        values: by column, None where there is nothing.
        where: what a fault names as its file.
    """
    arrays: dict[str, Any] = {}
    faults: list[Fault] = []
    for column, own in values.items():
        if COLUMNS[name].get(column) == "id" and not {str, type(None)}.issuperset(map(type, own)):
            faults += _json_id_faults(own, list(range(1, len(own) + 1)), where, column)
            own = [_letters(value) for value in own]
        arrays[column] = _json_array(own)
    table, found = _raw_table(name, Columns(pa.table(arrays), None, faults, ()), where)
    return table, found


def _raw_table(name: str, columns: Columns, file: str) -> tuple[RawTable, list[Fault]]:
    """Turn Arrow columns into the raw table `name`: text stays text, numbers become float64."""
    known = COLUMNS[name]
    faults = list(columns.faults)
    rows: Any = pd.RangeIndex(1, columns.table.num_rows + 1)
    if columns.rows is not None:
        rows = pd.Index(columns.rows)
    series: dict[str, pd.Series[Any]] = {}
    for column in columns.table.column_names:
        kind = known.get(column, "attribute")
        values, problem = _plain(columns.table.column(column), kind)
        if problem is not None:
            faults.append(_wrong_type(file, column, kind, problem))
        series[column] = values.set_axis(rows)
    frame = pd.DataFrame(series, index=rows)
    return RawTable(frame, file, columns.unread, whole=not columns.faults), faults


def _parquet(path: Path, wanted: Sequence[str] | None) -> Columns:
    with pq.ParquetFile(path) as file:
        names = [n for n in file.schema_arrow.names if not n.startswith("__index_level_")]
        check_names(names, path.name)
        taken = [n for n in names if wanted is None or n in wanted]
        table = file.read(columns=taken)
    return Columns(table, None, [], tuple(n for n in names if n not in taken))


def _json_lines(data: bytes, file: str, name: str, wanted: Sequence[str] | None) -> Columns:
    known = COLUMNS[name]
    lines = [line for line in data.splitlines() if line and not line.isspace()]
    if not lines:
        raise DataError([empty_file(file)])
    columns: dict[str, list[Any]] = {}
    rows: list[int] = []
    broken: list[tuple[int, str]] = []
    for start in range(0, len(lines), _CHUNK):
        records, found = _json_records(lines[start : start + _CHUNK], start + 1)
        broken += found
        for column in {column: None for record in records.values() for column in record}:
            values = columns.setdefault(column, [None] * len(rows))
            values.extend([record.get(column) for record in records.values()])
        rows += records
        for values in columns.values():
            values.extend([None] * (len(rows) - len(values)))
    faults = []
    if broken:
        allowed, mend = "one JSON object a line", "Write one object a line, in UTF-8."
        faults = [Fault(file, broken[0][0], None, broken[0][1], allowed, mend, len(broken))]
    if not rows:
        raise DataError(faults)
    taken = [c for c in columns if wanted is None or c in wanted]
    arrays = {}
    for column in taken:
        values = columns[column]
        if known.get(column) == "id" and not {str, type(None)}.issuperset(map(type, values)):
            faults += _json_id_faults(values, rows, file, column)
            values = [_letters(value) for value in values]
        arrays[column] = _json_array(values)
    unread = tuple(column for column in columns if column not in taken)
    return Columns(pa.table(arrays), np.array(rows, dtype=np.int64), faults, unread)


def _json_records(
    lines: list[bytes], first: int
) -> tuple[dict[int, dict[str, Any]], list[tuple[int, str]]]:
    """The objects of some lines by data row, from `first` on, and the rows that hold none."""
    try:  # all at once is three times as fast
        values = _json(b"[" + b",".join(lines) + b"]")
        if len(values) == len(lines) and all(isinstance(value, dict) for value in values):
            return dict(enumerate(values, start=first)), []
    except (ValueError, RecursionError):
        pass  # told apart below
    records: dict[int, dict[str, Any]] = {}
    broken: list[tuple[int, str]] = []
    for row, line in enumerate(lines, start=first):
        try:
            value = _json(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            broken.append((row, f"a line that is not JSON ({reason})"))
            continue
        if isinstance(value, dict):
            records[row] = value
        else:
            broken.append((row, f"the JSON value {shortened(value)}"))
    return records, broken


def _json(text: bytes) -> Any:
    # NaN and Infinity are no JSON: they stay text and are judged as such.
    return json.loads(text, parse_constant=str)


def _json_id_faults(values: list[Any], rows: list[int], file: str, column: str) -> list[Fault]:
    wrong = [i for i, value in enumerate(values) if type(value) not in (str, int, type(None))]
    if not wrong:
        return []
    found = shortened(values[wrong[0]])
    allowed, mend = _ID_TYPES
    return [Fault(file, rows[wrong[0]], column, found, allowed, mend, len(wrong))]


def _json_array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # mixed types or numbers beyond 64 bits
        return pa.array([_letters(value) for value in values], pa.string())


def _letters(value: Any) -> str | None:
    if isinstance(value, list):
        return "|".join(_letters(part) or "" for part in value if part is not None)
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _plain(array: pa.ChunkedArray, kind: Kind) -> tuple[pd.Series[Any], str | None]:
    """Arrow's many types as str or float64; and what is wrong with the type, if anything is."""
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    type_ = array.type
    types = pa.types
    if array.null_count == len(array) and (types.is_null(type_) or kind in ("id", "text")):
        return text_series(pa.chunked_array([pa.nulls(len(array), pa.string())])), None
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return text_series(array), None
    if types.is_integer(type_) and kind in ("id", "text"):
        return text_series(pc.cast(array, pa.string())), None
    if types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_):
        if kind in ("id", "text"):
            problem = f"numbers of type {type_}" if kind == "id" else None
            return text_series(pc.cast(array, pa.string())), problem
        return _numbers(array), None
    if types.is_temporal(type_) and not types.is_time(type_) and not types.is_duration(type_):
        return _moments(array, kind)
    if types.is_boolean(type_):
        return text_series(pc.cast(array, pa.string())), "truth values" if kind == "id" else None
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return _joined(array, kind)
    return text_series(
        pa.chunked_array([pa.nulls(len(array), pa.string())])
    ), f"values of type {type_}"


def _numbers(array: pa.ChunkedArray) -> pd.Series[Any]:
    return pd.Series(pc.cast(array, pa.float64(), safe=False).to_numpy())


def _moments(array: pa.ChunkedArray, kind: Kind) -> tuple[pd.Series[Any], str | None]:
    """Dates and times: seconds UTC where a time is asked for, else ISO 8601 text."""
    if kind != "time":
        return text_series(pc.cast(array, pa.string())), "dates" if kind == "id" else None
    microseconds = pc.cast(pc.cast(array, pa.timestamp("us"), safe=False), pa.int64())
    return _numbers(microseconds) / 1e6, None


def _joined(array: pa.ChunkedArray, kind: Kind) -> tuple[pd.Series[Any], str | None]:
    """A list as its parts with `|` between them, as lists stand in CSV."""
    lists = array.to_pylist()
    series = pd.Series([_letters(parts) or "" for parts in lists], dtype="str")
    if kind == "id":
        return series, "lists"
    inner = kind == "attribute" and any(
        isinstance(part, str) and "|" in part for parts in lists for part in parts or ()
    )
    return series, "a list with '|' inside one of its values" if inner else None


def shortened(value: object) -> str:
    """`value` as it is shown in a message: as Python writes it, at most 60 characters."""
    shown = repr(value.item() if isinstance(value, np.generic) else value)
    return shown if len(shown) <= 60 else shown[:57] + "…"


def _wrong_type(file: str, column: str, kind: Kind, problem: str) -> Fault:
    allowed, mend = "text, numbers, or lists of text without '|'", "Write it as one of these."
    if kind == "id":
        allowed, mend = _ID_TYPES
    return Fault(file, None, column, problem, allowed, mend)


def _unknown_format(path: Path) -> Fault:
    found = f"a file named {path.name}"
    allowed = "a name that ends in " + ", ".join(SUFFIXES)
    return Fault(path.name, None, None, found, allowed, "Convert or rename the file.")
