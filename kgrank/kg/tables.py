"""A shop's tables: read whole, checked whole, then never changed."""

from __future__ import annotations

import shutil
import tomllib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kgrank.errors import ROW, ConfigError, DataError, Fault
from kgrank.kg.reading import COLUMNS, SUFFIXES, RawTable, read_file
from kgrank.kg.splits import SplitSettings, split_events
from kgrank.kg.validation import check, numbers
from kgrank.settings import Section


class TablesSettings(Section):
    """The `[tables]` section: where each table lies, relative to the kgrank.toml.

    A table that is not named is looked for under its own name (`items.parquet`, `items.csv`, …).
    """

    events: Path | None = None
    items: Path | None = None
    users: Path | None = None
    triples: Path | None = None
    entities: Path | None = None
    queries: Path | None = None


class _Toml(Section):
    """What is read of a kgrank.toml here."""

    tables: TablesSettings = TablesSettings()


class _Frame:
    """A field of `Tables` that hands out copies, so that nobody changes what is kept.

    They share their memory with it until they are written to (pandas' copy-on-write).
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, tables: object | None, owner: type) -> pd.DataFrame:
        if tables is None:
            raise AttributeError("a field without a default")  # as dataclass asks for it
        frame: pd.DataFrame = vars(tables)[self._name]
        return frame.copy(deep=False)

    def __set__(self, tables: object, frame: pd.DataFrame) -> None:
        vars(tables)[self._name] = frame.copy(deep=False)


@dataclass(frozen=True, eq=False)
class Tables:
    """The validated tables of a shop. Ids are strings, kept to the letter.

    What is written to a table that was taken from here changes that copy alone (but for what is
    written into its arrays, `table["x"].array[0] = …`, of which pandas takes no copy).

    An attribute column is text, or float64 where the file itself says that it holds numbers
    (Parquet, JSON). CSV cannot say so: there `007` may be a code, and stays text.

    Attributes:
        events: one row an event in the order of time inside each user: `user_id`, `item_id`,
            `event` (str), `timestamp` (float64 seconds UTC) or `position` (int64) where the source
            has them, `value` (float64, NaN where absent), `split` ("train", "valid" or "test");
            then what further columns were asked for.
        items: `item_id`, `title`, `description` (str, "" where absent), then attribute columns.
        users: `user_id`, then attribute columns; may be empty.
        triples: `head`, `relation`, `tail` (str), `weight` (float64, 1 where absent); may be empty.
        entities: `entity_id`, `name`, `type` (str); may be empty.
        queries: `query`, `item_id` (str), `label` (float64, 1 where absent); may be empty.
        source: the folder or kgrank.toml the tables were read from.
        items_from_events: there was no items table: `items` holds the ids that events name.
        unread: columns that the file of events has besides.
        files: by table, the name of the file that it was read from, for messages.
    """

    events: _Frame = _Frame()
    items: _Frame = _Frame()
    users: _Frame = _Frame()
    triples: _Frame = _Frame()
    entities: _Frame = _Frame()
    queries: _Frame = _Frame()
    source: Path | None = None
    items_from_events: bool = False
    unread: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def numeric_attributes(self, table: Literal["items", "users"] = "items") -> tuple[str, ...]:
        """The attribute columns that hold numbers: float64, or text in which every value is one.

        At least one value must be there. `kgrank.kg.validation.numbers` makes floats of a column.
        """
        frame: pd.DataFrame = getattr(self, table)
        return tuple(name for name in _attributes(frame, table) if _all_numbers(frame[name]))

    def with_split(self, settings: SplitSettings | None = None) -> Tables:
        """These tables with a `split` column: the one they have, else by the rule of `settings`.

        A column that marks no row as valid has its train rows split by the rule. Use
        `kgrank.kg.splits.split_events` where the cut times are needed again.
        """
        return replace(self, events=split_events(self.events, settings or SplitSettings())[0])

    def without_test_items(self, settings: SplitSettings | None = None) -> Tables:
        """These tables without the items that only test rows name, where there is no items table.

        An items table is what the shop has, and stays whole. Test is as in `with_split`.
        """
        if not self.items_from_events:
            return self
        events = self.with_split(settings).events
        return replace(self, items=_items_of(events[events["split"] != "test"]))

    def without_graph(self, keep: Collection[str] = ()) -> Tables:
        """These tables without triples, entities and attributes: events, titles, descriptions.

        Args:
            keep: attributes of items that stay, because something else reads them.
        """
        facts = [name for name in _attributes(self.items, "items") if name not in keep]
        return replace(
            self,
            items=self.items.drop(columns=facts),
            users=self.users.drop(columns=_attributes(self.users, "users")),
            triples=self.triples.iloc[:0],
            entities=self.entities.iloc[:0],
        )

    def with_shuffled_graph(self, seed: int, keep: Collection[str] = ()) -> Tables:
        """These tables with as much graph, but a false one.

        Tails change places within each relation, and attribute values within each column of items
        and users, so that every degree and every value stays as frequent as it was.

        Args:
            seed: of the places.
            keep: attributes of items that stay, because something else reads them.
        """
        rng = np.random.default_rng(seed)
        triples = self.triples
        if len(triples):
            codes = pd.factorize(triples["relation"])[0]
            mixed = rng.permutation(len(triples))
            places = np.argsort(codes, kind="stable")
            order = np.empty_like(places)
            order[places] = mixed[np.argsort(codes[mixed], kind="stable")]
            triples = triples.assign(tail=triples["tail"].array[order])
        return replace(
            self,
            items=_shuffled(self.items, "items", rng, keep),
            users=_shuffled(self.users, "users", rng),
            triples=triples,
        )

    def save(self, folder: str | Path) -> None:
        """Write the tables that hold rows as Parquet into a new folder, all or nothing.

        Raises:
            DataError: the folder exists and is not empty.
        """
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            found = "a file" if folder.is_file() else "a folder that is not empty"
            mend = "Name another folder, or remove this one."
            raise DataError([Fault(str(folder), None, None, found, "a new folder", mend)])
        temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        try:
            for name in COLUMNS:
                frame: pd.DataFrame = getattr(self, name)
                if len(frame) and not (name == "items" and self.items_from_events):
                    frame.to_parquet(temporary / f"{name}.parquet", index=False)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def read_tables(
    source: str | Path,
    settings: TablesSettings | None = None,
    event_columns: Sequence[str] = (),
) -> Tables:
    """Read, check and order the tables of a shop.

    Args:
        source: a folder that holds the tables under their names (`events.parquet`, `.csv`,
            `.csv.gz`, `.jsonl` or `.jsonl.gz`; `items`, `users`, `triples`, `entities` and
            `queries` likewise), or a kgrank.toml. A folder with a kgrank.toml is read through it.
        settings: the `[tables]` section where it is known already; None reads it from the toml.
        event_columns: further columns of events to keep where they are there, such as a review;
            others are ignored. `kgrank.errors.ROW` is each event's data row in the file.

    Raises:
        DataError: something is wrong with the tables; `faults` lists everything. Or the source is
            an empty text.
        ConfigError: the toml cannot be read, or its `[tables]` section names an unknown table.
    """
    frames, faults, raw = _load(source, settings, event_columns)
    if faults:
        raise DataError(faults)
    files = {name: table.file for name, table in raw.items()}
    tables = checked_tables(frames, Path(source), event_columns)
    return replace(tables, unread=raw["events"].unread, files=files)


def validate(source: str | Path, settings: TablesSettings | None = None) -> list[Fault]:
    """Every fault in the tables of `source` (as for `read_tables`); an empty list when sound.

    Raises:
        ConfigError: the toml cannot be read, or its `[tables]` section names an unknown table.
    """
    return _load(source, settings)[1]


def checked_tables(
    frames: Mapping[str, pd.DataFrame],
    source: Path | None = None,
    event_columns: Sequence[str] = (),
) -> Tables:
    """The frames that `kgrank.kg.validation.check` found sound, completed and in order."""
    events = _events(frames["events"], event_columns)
    if "items" in frames:
        items = _filled(frames["items"], "items", title="", description="")
    else:
        items = _items_of(events)
    triples = _filled(_table(frames, "triples"), "triples", weight=1.0)
    queries = _filled(_table(frames, "queries"), "queries", label=1.0)
    return Tables(
        events=events,
        items=items,
        users=_filled(_table(frames, "users"), "users"),
        triples=triples.fillna({"weight": 1.0}),
        entities=_filled(_table(frames, "entities"), "entities", type=""),
        queries=queries.fillna({"label": 1.0}),
        source=source,
        items_from_events="items" not in frames,
    )


def _items_of(events: pd.DataFrame) -> pd.DataFrame:
    """An items table of the ids that the events name, in the order of their first event."""
    items = pd.DataFrame({"item_id": events["item_id"].unique()}, dtype="str")
    return items.assign(title="", description="").astype("str")


def _table(frames: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """The table, or one without rows that has its text columns."""
    texts = [column for column, kind in COLUMNS[name].items() if kind != "number"]
    return frames[name] if name in frames else pd.DataFrame(columns=texts, dtype="str")


def _filled(frame: pd.DataFrame, name: str, **defaults: str | float) -> pd.DataFrame:
    """The frame with the contract's columns first; those that it lacks hold their default."""
    absent: dict[str, Any] = {
        column: pd.Series(default, index=frame.index, dtype=type(default))
        for column, default in defaults.items()
        if column not in frame
    }
    frame = frame.assign(**absent).reset_index(drop=True)
    return frame[[*COLUMNS[name], *_attributes(frame, name)]]


def _attributes(frame: pd.DataFrame, name: str) -> list[str]:
    return [str(column) for column in frame if column not in COLUMNS[name]]


def _events(frame: pd.DataFrame, also: Sequence[str]) -> pd.DataFrame:
    """Events in the order of time (else of position); ties stay in the order of the file."""
    if "event" in frame:
        event = frame["event"].where(frame["event"] != "", "interaction")
    else:
        event = pd.Series("interaction", index=frame.index, dtype="str")
    frame = frame.assign(event=event)
    if ROW in also:
        frame = frame.assign(**{ROW: frame.index})
    if "value" not in frame:
        frame = frame.assign(value=np.nan)
    if "position" in frame:
        frame = frame.assign(position=frame["position"].astype("int64"))
    elif "timestamp" not in frame:
        frame = frame.assign(position=np.arange(len(frame), dtype=np.int64))
    keys = [column for column in ("timestamp", "position") if column in frame]
    if len(keys) > 1 or not frame[keys[0]].is_monotonic_increasing:
        order = np.lexsort([frame[key].to_numpy() for key in reversed(keys)])
        frame = frame.iloc[order]
    wanted = dict.fromkeys([*COLUMNS["events"], *also])
    return frame[[c for c in wanted if c in frame]].reset_index(drop=True)


def _all_numbers(values: pd.Series[Any]) -> bool:
    absent = values.isna() | (values == "")
    return not absent.all() and bool(np.isfinite(numbers(values[~absent])).all())


def _shuffled(
    frame: pd.DataFrame, name: str, rng: np.random.Generator, keep: Collection[str] = ()
) -> pd.DataFrame:
    columns: dict[str, Any] = {
        column: frame[column].array[rng.permutation(len(frame))]
        for column in _attributes(frame, name)
        if column not in keep
    }
    return frame.assign(**columns)


def _load(
    source: str | Path, settings: TablesSettings | None, event_columns: Sequence[str] = ()
) -> tuple[dict[str, pd.DataFrame], list[Fault], dict[str, RawTable]]:
    """The typed frames of `source`, every fault found, and the tables as their files tell them."""
    paths, faults = _locate(Path(source), settings) if str(source) else ({}, [_no_name()])
    raw: dict[str, RawTable] = {}
    for name, path in paths.items():
        table, found = read_file(name, path, event_columns if name == "events" else ())
        faults += found
        if table is not None:
            raw[name] = table
    frames, found = check(raw)
    return frames, faults + found, raw


def _locate(source: Path, settings: TablesSettings | None) -> tuple[dict[str, Path], list[Fault]]:
    """The file of each table that there is, and what stands in the way of the others."""
    if source.is_dir():
        folder, toml = source, source / "kgrank.toml"
    elif source.is_file() and source.suffix == ".toml":
        folder, toml = source.parent, source
    else:
        found = "a file" if source.exists() else "nothing of this name"
        allowed = "a folder of tables, or a kgrank.toml"
        return {}, [Fault(str(source), None, None, found, allowed, "Correct the path.")]
    if settings is None:
        settings = _section(toml) if toml.is_file() else TablesSettings()
    paths: dict[str, Path] = {}
    faults: list[Fault] = []
    for name, named in settings:
        candidates = [folder / (name + suffix) for suffix in SUFFIXES]
        there = [folder / named] if named else [path for path in candidates if path.is_file()]
        if len(there) > 1:
            faults.append(_two_files(name, there))
        elif there and not there[0].is_file():
            faults.append(_no_file(name, there[0]))
        elif there:
            paths[name] = there[0]
        elif name == "events":
            faults.append(_no_events(folder))
    return paths, faults


def _section(toml: Path) -> TablesSettings:
    try:
        values = tomllib.loads(toml.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{toml}: found {error}; allowed: TOML in UTF-8. Correct it.") from None
    only = {name: value for name, value in values.items() if name == "tables"}
    return _Toml.from_dict(only, str(toml)).tables


def _no_name() -> Fault:
    mend = "Name it; '.' is the working folder."
    return Fault(
        "source", None, None, "an empty name", "a folder of tables, or a kgrank.toml", mend
    )


def _two_files(name: str, paths: Sequence[Path]) -> Fault:
    found = "the files " + " and ".join(path.name for path in paths)
    return Fault(name, None, None, found, "one file for each table", "Keep one of them.")


def _no_file(name: str, path: Path) -> Fault:
    found = f"no file {path}"
    allowed = f"the file that [tables] names for {name}"
    return Fault(name, None, None, found, allowed, "Correct the path in kgrank.toml.")


def _no_events(folder: Path) -> Fault:
    names = sorted(path.name for path in folder.iterdir())
    found = f"the files {', '.join(names[:12])}" if names else "an empty folder"
    allowed = "events" + " or events".join(SUFFIXES)
    return Fault("events", None, None, found, allowed, "Add the events, or name their file.")
