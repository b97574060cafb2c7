"""A graph server read as tables: nodes and relationships of whatever labels become a shop's rows.

The defaults are the labels and properties that `kgrank graph export` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from kgrank.errors import ROW, ConfigError, DataError, Fault
from kgrank.kg.bolt import Address, Server, quoted
from kgrank.kg.graph_server import read_mark, refusal
from kgrank.kg.node_scores import MODEL_PROPERTY
from kgrank.kg.parts import KINDS
from kgrank.kg.reading import COLUMNS, RawTable, read_values
from kgrank.kg.tables import Tables, checked_tables
from kgrank.kg.validation import REQUIRED, check
from kgrank.progress import Progress, silent
from kgrank.settings import Section


class Neo4jSettings(Section):
    """The `[neo4j]` section: a graph server that is read as tables, and what in it means what.

    The password is read from the environment variable KGRANK_NEO4J_PASSWORD.

    Attributes:
        uri: `neo4j://host[:port][/database]` or another scheme of the driver; None = no server.
        user: who signs in.
        user_label, item_label: the labels of users and items.
        entity_labels: the labels of what else relations may lead to. The ids of an entity of
            another label than `Entity` get it in front ("Brand:7"), and it is their type.
        user_id, item_id, entity_id: the property that is the id of each.
        title, description: properties of items.
        name, type: properties of entities.
        events: relationship types from users to items that are events; empty = those whose
            property `behaviour` is true, as an export marks them.
        relations: the other relationship types that are read; empty = all, but from users to items
            none that `events` does not name.
        time, value: properties of events.
        weight: a property of the other relationships.
        attributes: properties of items and users that are attributes of the tables.
    """

    uri: str | None = None
    user: str = "neo4j"
    user_label: str = "User"
    item_label: str = "Item"
    entity_labels: tuple[str, ...] = ("Entity",)
    user_id: str = "id"
    item_id: str = "id"
    entity_id: str = "id"
    title: str = "name"
    description: str = "description"
    name: str = "name"
    type: str = "type"
    events: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    time: str = "time"
    value: str = "weight"
    weight: str = "weight"
    attributes: tuple[str, ...] = ()


def read_server_tables(
    settings: Neo4jSettings, event_columns: Sequence[str] = (), progress: Progress = silent
) -> Tables:
    """The tables that a server's nodes and relationships make.

    Args:
        settings: where the server is, and what in it means what.
        event_columns: further properties of events to keep as columns where they are there, such
            as a review.
        progress: called with (stage, done, total).

    Raises:
        ConfigError: no server is named, or nothing there is an event by these settings.
        DataError: what is there makes no sound tables; a fault's file is a label or relationship
            type, its row the place among those read.
        StoreError: the server cannot be reached or refuses, or an export is under way in it.
    """
    if settings.uri is None:
        raise ConfigError("neo4j.uri: found none; allowed: neo4j://host[:port][/database]. Set it.")
    address = Address.parse(settings.uri, settings.user)
    with Server(address) as server:
        mark = read_mark(server)
        if mark is not None and not mark["fingerprint"]:
            mend = "Run the export again: it goes on where it stopped"
            raise refusal(server, "a graph that is not wholly written", "a whole one", mend)
        return _Reading(server, settings, event_columns, progress).tables()


class _Reading:
    """One reading of a server."""

    def __init__(
        self,
        server: Server,
        settings: Neo4jSettings,
        event_columns: Sequence[str],
        progress: Progress,
    ) -> None:
        self.server, self.settings, self.progress = server, settings, progress
        self.also = [name for name in event_columns if name not in (*COLUMNS["events"], ROW)]
        self.faults: list[Fault] = []

    def tables(self) -> Tables:
        """All of them, checked."""
        settings, labels = self.settings, self._labels()
        self.progress("server", 0, len(labels) ** 2)
        same = {name: name for name in settings.attributes}
        told = {"title": settings.title, "description": settings.description, **same}
        items = self._nodes(settings.item_label, settings.item_id, told)
        items["title"] = [
            None if title == id_ else title  # an export gives the id where there is no title
            for title, id_ in zip(items["title"], items["id"], strict=True)
        ]
        users = self._nodes(settings.user_label, settings.user_id, same)
        events, triples = self._relations(labels)
        raw = {
            "items": self._table("items", _named(items, item_id="id"), settings.item_label),
            "users": self._table("users", _named(users, user_id="id"), settings.user_label),
            "entities": self._table("entities", self._entities(), "entities"),
            "events": self._table("events", events, "events"),
            "triples": self._table("triples", triples, "triples"),
        }
        frames, faults = check({name: table for name, table in raw.items() if table is not None})
        if self.faults or faults:
            raise DataError([*self.faults, *faults])
        # in an order that is not the server's
        ordered = {n: f.sort_values(list(f.columns), ignore_index=True) for n, f in frames.items()}
        return checked_tables(ordered, event_columns=self.also)

    def _labels(self) -> dict[str, str]:
        """Label → the property that is the id."""
        settings = self.settings
        entities = dict.fromkeys(settings.entity_labels, settings.entity_id)
        own = {settings.user_label: settings.user_id, settings.item_label: settings.item_id}
        both = set(entities) & set(own)
        if settings.user_label == settings.item_label:
            both.add(settings.user_label)
        if both:
            raise ConfigError(
                f"neo4j: found one label for two kinds ({', '.join(sorted(both))}); "
                "allowed: labels of users, items and entities that differ. Correct user_label, "
                "item_label or entity_labels."
            )
        return {**own, **entities}

    def _nodes(self, label: str, id_: str, told: Mapping[str, str]) -> dict[str, list[Any]]:
        """The ids and other properties of all nodes of a label, by id."""
        wanted = {"id": id_, **told}
        shown = ", ".join(f"n.{quoted(name)} AS c{n}" for n, name in enumerate(wanted.values()))
        query = f"MATCH (n:{quoted(label)}) RETURN {shown}"
        columns = self.server.columns(query, len(wanted))
        return {n: [_plain(cell) for cell in c] for n, c in zip(wanted, columns, strict=True)}

    def _entities(self) -> dict[str, list[Any]]:
        settings = self.settings
        found: dict[str, list[Any]] = {"entity_id": [], "name": [], "type": []}
        for label in settings.entity_labels:
            told = {"name": settings.name, "type": settings.type}
            nodes = self._nodes(label, settings.entity_id, told)
            found["entity_id"] += [self._id(label, id_) for id_ in nodes["id"]]
            found["name"] += nodes["name"]
            default = None if label == KINDS[-1] else label
            found["type"] += [default if type_ is None else type_ for type_ in nodes["type"]]
        found["name"] = [
            id_ if name is None else name
            for name, id_ in zip(found["name"], found["entity_id"], strict=True)
        ]
        return found

    def _id(self, label: str, id_: Any) -> Any:
        """Entities of two labels may share an id."""
        if id_ is None or label not in self.settings.entity_labels or label == KINDS[-1]:
            return id_
        return f"{label}:{id_}"

    def _relations(
        self, labels: Mapping[str, str]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Events and triples."""
        settings = self.settings
        events: dict[str, list[Any]] = {
            name: [] for name in ("user_id", "item_id", "event", "timestamp", "value", *self.also)
        }
        triples: dict[str, list[Any]] = {n: [] for n in ("head", "relation", "tail", "weight")}
        others: set[str] = set()  # types from users to items that are no events
        known = bool(settings.events and settings.relations)  # nothing else is asked for
        pairs = [(head, tail) for head in labels for tail in labels]
        for place, (head, tail) in enumerate(pairs):
            self.progress("server", place, len(pairs))
            between = (head, tail) == (settings.user_label, settings.item_label)
            also = [f", r.{quoted(name)} AS also{n}" for n, name in enumerate(self.also)]
            heads, types, tails, *about = self.server.columns(
                f"MATCH (h:{quoted(head)})-[r]->(t:{quoted(tail)}) "
                f"WHERE r.{MODEL_PROPERTY} IS NULL AND ($types IS NULL OR type(r) IN $types) "
                f"RETURN h.{quoted(labels[head])} AS h, type(r) AS type, "
                f"t.{quoted(labels[tail])} AS t, r.{quoted(settings.time)} AS time, "
                f"r.{quoted(settings.value)} AS value, r.{quoted(settings.weight)} AS weight, "
                f"r.behaviour AS behaviour{''.join(also)}",
                7 + len(also),
                types=[*settings.events, *settings.relations] if known else None,
            )
            for h, type_, t, time, value, weight, marked, *rest in zip(
                heads, types, tails, *about, strict=True
            ):
                is_event = type_ in settings.events if settings.events else marked is True
                if between and is_event:
                    row = (h, t, type_, _moment(time), value, *map(_plain, rest))
                    for column, cell in zip(events.values(), row, strict=True):
                        column.append(cell)
                elif type_ in settings.relations or (
                    not settings.relations and not (between and settings.events)
                ):
                    told = (self._id(head, h), type_, self._id(tail, t), weight)
                    for column, cell in zip(triples.values(), told, strict=True):
                        column.append(cell)
                if between and not is_event:
                    others.add(type_)
        self.progress("server", len(pairs), len(pairs))
        self._refuse_no_events(set(events["event"]), others)
        if all(time in (None, 0) for time in events["timestamp"]):
            del events["timestamp"]
        return events, triples

    def _refuse_no_events(self, found: set[str], others: set[str]) -> None:
        settings = self.settings
        missing = sorted(set(settings.events) - found)
        if found and not missing:
            return
        link = f"(:{settings.user_label})-[…]->(:{settings.item_label})"
        there = ", ".join(sorted(found | others)) or "none at all"
        if missing:
            asked = ", ".join(missing)
            said = f"neo4j.events: found no {link} of type {asked}; there are: {there}"
        else:
            said = f"neo4j.events: found no {link} that is marked as an event; there are: {there}"
        raise ConfigError(f"{said}. Name the types that are events, or correct the labels.")

    def _table(self, name: str, values: dict[str, list[Any]], where: str) -> RawTable | None:
        """The raw table; None where there are no rows and none are needed."""
        if name not in ("events", "items") and not next(iter(values.values())):
            return None
        kept = (*REQUIRED[name], "title")
        needed = {n: v for n, v in values.items() if n in kept or any(x is not None for x in v)}
        table, faults = read_values(name, needed, f"{self.server.address} {where}")
        self.faults += faults
        return table


def _named(values: dict[str, list[Any]], **names: str) -> dict[str, list[Any]]:
    """The columns with new names: new = old."""
    old = {before: new for new, before in names.items()}
    return {old.get(name, name): column for name, column in values.items()}


def _plain(value: Any) -> Any:
    """A property as JSON could hold it: a date or place as text."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _moment(time: Any) -> Any:
    """A date or time of Neo4j as seconds UTC (without a zone: UTC); a number or text as it is."""
    if not hasattr(time, "to_native"):
        return time
    native = time.to_native()
    if not isinstance(native, datetime):
        if not isinstance(native, date):
            return str(time)
        native = datetime(native.year, native.month, native.day)
    return (native if native.tzinfo else native.replace(tzinfo=UTC)).timestamp()
