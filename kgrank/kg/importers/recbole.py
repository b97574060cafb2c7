"""RecBole's atomic files: tab-separated text whose header names each column and its type.

`NAME.inter` (or `NAME.train.inter`, `NAME.valid.inter`, `NAME.test.inter`), and, where they are
there, `NAME.item`, `NAME.user`, `NAME.kg` and `NAME.link`.
See https://recbole.io/docs/user_guide/data/atomic_files.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kgrank.errors import DataError, Fault
from kgrank.kg.delimited import read_text
from kgrank.kg.reading import RawTable
from kgrank.kg.validation import numbers

_TYPES = ("token", "token_seq", "float", "float_seq")
_TITLES = ("title", "movie_title", "item_title", "product_title", "item_name", "name")


def read(source: Path) -> dict[str, RawTable]:
    """Events, items, users and triples from the atomic files of one data set.

    `rating` becomes the value of events of the kind "rating"; without it they are "interaction".
    Sequences are lists. The first of the usual names for a title that an item column bears makes
    it the title. In triples, an entity that `.link` ties to an item stands under the item's id
    (once for each item, if there are several), and an untied one that bears an item's id becomes
    `entity_<id>`.

    Raises:
        DataError: no or several data sets, a file without its columns, or a broken one.
    """
    name = _name(source)
    tables = {"events": _events(source, name)}
    items, users, graph = (source / f"{name}.{end}" for end in ("item", "user", "kg"))
    if items.is_file():
        frame = _atomic(items, ("item_id",))
        title = next((column for column in _TITLES if column in frame), "title")
        tables["items"] = RawTable(frame.rename(columns={title: "title"}), items.name)
    if users.is_file():
        tables["users"] = RawTable(_atomic(users, ("user_id",)), users.name)
    if graph.is_file():
        item_ids = {*tables["events"].frame["item_id"]}
        if "items" in tables:
            item_ids.update(tables["items"].frame["item_id"])
        tables["triples"] = RawTable(_triples(graph, item_ids), graph.name)
    return tables


def _name(source: Path) -> str:
    names = {path.name.removesuffix(".inter") for path in source.glob("*.inter")}
    for part in ("train", "valid", "test"):
        names = {name.removesuffix(f".{part}") for name in names}
    if len(names) == 1:
        return names.pop()
    found = f"the data sets {', '.join(sorted(names))}" if names else "no .inter file"
    mend = "Name the folder of one data set."
    raise DataError([Fault(str(source), None, None, found, "one data set", mend)])


def _events(source: Path, name: str) -> RawTable:
    parts = {split: source / f"{name}.{split}.inter" for split in ("train", "valid", "test")}
    parts = {split: path for split, path in parts.items() if path.is_file()}
    whole = source / f"{name}.inter"
    if whole.is_file() and parts:
        found, mend = "a whole .inter file and split ones", "Remove the one that is not meant."
        raise DataError([Fault(whole.name, None, None, found, "one of the two", mend)])
    if not parts:
        return RawTable(_interactions(whole), whole.name)
    frames = [_interactions(path).assign(split=split) for split, path in parts.items()]
    return RawTable(pd.concat(frames), " or ".join(path.name for path in parts.values()))


def _interactions(path: Path) -> pd.DataFrame:
    frame = _atomic(path, ("user_id", "item_id"))
    event = "rating" if "rating" in frame else "interaction"
    frame = frame.rename(columns={"rating": "value"}).assign(event=event)
    known = ("user_id", "item_id", "event", "timestamp", "value")
    return frame[[column for column in known if column in frame]]


def _triples(path: Path, item_ids: set[str]) -> pd.DataFrame:
    columns = {"head_id": "head", "relation_id": "relation", "tail_id": "tail"}
    frame = _atomic(path, tuple(columns)).rename(columns=columns)[list(columns.values())]
    link_file = path.with_suffix(".link")
    if not link_file.is_file():
        return frame
    links = _atomic(link_file, ("item_id", "entity_id")).set_index("entity_id")["item_id"]
    for end in ("head", "tail"):
        tied = frame.join(links, on=end)
        untied = tied[end].where(~tied[end].isin(item_ids), "entity_" + tied[end])
        frame = tied.assign(**{end: tied["item_id"].fillna(untied)}).drop(columns="item_id")
    return frame


def _atomic(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    """An atomic file: tokens as text, sequences with `|` (titles with spaces), floats as float64.

    Raises:
        DataError: a column without a type, a required one missing, or text where floats belong.
    """
    frame = read_text(path, delimiter="\t")
    columns: dict[str, pd.Series[Any]] = {}
    faults: list[Fault] = []
    for header in frame:
        column, _, type_ = str(header).rpartition(":")
        values = frame[header]
        if type_ not in _TYPES or not column:
            mend = "Write the header as NAME:TYPE."
            faults.append(Fault(path.name, None, str(header), "no type", ", ".join(_TYPES), mend))
        elif type_ == "float":
            columns[column] = numbers(values)
            wrong = values[columns[column].isna() & (values != "")]
            if len(wrong):
                row, found, count = int(wrong.index[0]), repr(wrong.iloc[0]), len(wrong)
                mend = "Correct it, or leave it empty."
                faults.append(Fault(path.name, row, column, found, "a number", mend, count))
        elif type_.endswith("_seq") and column not in _TITLES:
            columns[column] = values.str.split().str.join("|")
        else:
            columns[column] = values
    for column in required:
        if column not in columns and not faults:
            found, mend = f"the columns {', '.join(columns)}", "Add the column, or rename one."
            faults.append(Fault(path.name, None, column, found, f"the column {column!r}", mend))
    if faults:
        raise DataError(faults)
    return pd.DataFrame(columns)
