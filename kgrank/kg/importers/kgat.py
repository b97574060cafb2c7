"""KGAT's format (Wang et al., KDD 2019), in which most knowledge-graph benchmarks are published.

`train.txt` and `test.txt` hold a user a line, `user item item …`; `kg_final.txt` holds `head
relation tail`. Items are the entities with the lowest numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kgrank.errors import DataError, Fault
from kgrank.kg.delimited import read_bytes, read_text
from kgrank.kg.reading import RawTable


def read(source: Path) -> dict[str, RawTable]:
    """Events, items, triples and, where `entity_list.txt` names them, entities.

    The published split stays: train and test, no valid, which `kgrank.kg.splits.split_events` cuts
    off train. `position` counts a user's items in the order of the files. Relation r is
    `relation_<r>`, entity n `entity_<n>`. Items keep their numbers as ids; with `item_list.txt`
    they have their original ids (`org_id`) instead. Triples that stand there twice count once.

    Raises:
        DataError: a file is missing, or a line is not of the format.
    """
    lines = {split: _interactions(source / f"{split}.txt") for split in ("train", "test")}
    events = pd.concat([frame.assign(split=split) for split, frame in lines.items()])
    events["position"] = events.groupby("user_id").cumcount().astype("float64")
    triples = read_text(
        source / "kg_final.txt", delimiter=" ", header=("head", "relation", "tail")
    ).drop_duplicates()
    _check_numbers(triples, "kg_final.txt")
    original = _numbered(source / "item_list.txt")
    n_items = 1 + max([*events["item_id"].astype(int), *map(int, original)])
    ids = {str(number): original.get(str(number), str(number)) for number in range(n_items)}
    events["item_id"] = events["item_id"].map(ids)

    def entity_id(numbers: pd.Series[Any]) -> pd.Series[Any]:
        known = {n: ids.get(n, f"entity_{n}") for n in numbers.unique()}
        return numbers.map(known)

    triples = triples.assign(
        head=entity_id(triples["head"]),
        relation="relation_" + triples["relation"],
        tail=entity_id(triples["tail"]),
    )
    tables = {
        "events": RawTable(events, "train.txt and test.txt"),
        "items": _table({"item_id": list(ids.values())}, "item_list.txt"),
        "triples": RawTable(triples, "kg_final.txt"),
    }
    names = {f"entity_{n}": name for n, name in _numbered(source / "entity_list.txt").items()}
    names = {entity: name for entity, name in names.items() if entity[7:] not in ids}
    if names:
        columns = {"entity_id": list(names), "name": list(names.values())}
        tables["entities"] = _table(columns, "entity_list.txt")
    return tables


def _table(columns: dict[str, list[str]], file: str) -> RawTable:
    return RawTable(pd.DataFrame(columns, dtype="str"), file)


def _interactions(path: Path) -> pd.DataFrame:
    """`user_id` and `item_id` of every pair, in order; the index is the line."""
    try:
        text = read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        found, allowed = f"a file that cannot be read ({error})", "lines of `user item item …`"
        raise DataError(
            [Fault(path.name, None, None, found, allowed, "Put the whole file there.")]
        ) from None
    users: list[str] = []
    items: list[str] = []
    rows: list[int] = []
    for row, line in enumerate(text.splitlines(), start=1):
        user, *liked = line.split() or [""]
        users += [user] * len(liked)
        items += liked
        rows += [row] * len(liked)
    frame = pd.DataFrame({"user_id": users, "item_id": items}, index=rows, dtype="str")
    _check_numbers(frame, path.name)
    return frame


def _check_numbers(frame: pd.DataFrame, file: str) -> None:
    faults = []
    for column in frame:
        wrong = frame[column][~frame[column].str.fullmatch("[0-9]+")]
        if len(wrong):
            found, mend = repr(wrong.iloc[0]), "Correct the line."
            row, column = int(wrong.index[0]), str(column)
            faults.append(Fault(file, row, column, found, "a whole number", mend, len(wrong)))
    if faults:
        raise DataError(faults)


def _numbered(path: Path) -> dict[str, str]:
    """From the numbers (`remap_id`) of an optional list file to the original ids (`org_id`)."""
    if not path.is_file():
        return {}
    frame = read_text(path, delimiter=" ")
    for column in ("org_id", "remap_id"):
        if column not in frame:
            found = f"the columns {', '.join(map(str, frame))}"
            mend = "Put the published file there, or remove it."
            raise DataError([Fault(path.name, None, column, found, "org_id and remap_id", mend)])
    _check_numbers(frame[["remap_id"]], path.name)
    return dict(zip(frame["remap_id"], frame["org_id"], strict=True))
