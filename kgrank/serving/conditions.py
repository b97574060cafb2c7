"""Which items and users a rule's conditions hold of, as masks; and what is wrong with them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kgrank.config import Config
from kgrank.errors import ConfigError
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.tables import Tables
from kgrank.kg.validation import numbers, seconds
from kgrank.kg.vocabulary import USER, Vocabulary, string_array
from kgrank.serving.rules import Condition, Linked, Rule, Rules, moment, nearest
from kgrank.settings import RulesSettings

Mask = npt.NDArray[np.bool_]

_BOOLEANS = {True: ("true", "yes", "1", "1.0"), False: ("false", "no", "0", "0.0")}


class Attributes:
    """The columns of items or users, one row for each id of a vocabulary, in its order.

    Args:
        table: with a column of ids; an id without a row has no values.
        ids: whose rows.
        key: the name of the id's column.
    """

    def __init__(self, table: pd.DataFrame, ids: Vocabulary, key: str) -> None:
        self.key, self.ids = key, ids
        rows = pd.Series(np.arange(len(table)), index=table[key].to_numpy(dtype=object))
        self._rows = rows.reindex(ids.ids()).fillna(-1).to_numpy(dtype=np.int64)
        self._table = table
        self._texts: dict[str, Any] = {}
        self._values: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def names(self) -> list[str]:
        """The columns that conditions may name."""
        return list(map(str, self._table.columns))

    def texts(self, name: str) -> Any:
        """`pyarrow.LargeStringArray` (n,): "" where there is no value; 7.0 reads "7"."""
        if name not in self._texts:
            column = self._table[name]
            if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():
                column = column.astype("Int64")
            array = string_array(column.astype("str").replace("<NA>", "").fillna(""))
            array = pa.concat_arrays([array, string_array([""])])  # the last is for no row
            self._texts[name] = array.take(pa.array(self._rows % len(array)))
        return self._texts[name]

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """(n,) float64, NaN where there is no number."""
        return numbers(pd.Series(self.texts(name), dtype="str")).to_numpy(dtype=np.float64)

    def seconds(self, name: str) -> npt.NDArray[np.float64]:
        """(n,) float64 seconds UTC, NaN where there is no time."""
        return seconds(pd.Series(self.texts(name), dtype="str")).to_numpy(dtype=np.float64)

    def values(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], list[str]]:
        """What each row holds, as CSR: starts (n + 1), numbers into the values, the values.

        Several values of a row are separated by `|`, each is there once, in ascending numbers.
        """
        if name not in self._values:
            lists = pc.split_pattern(self.texts(name), "|")
            rows = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
            flat = pc.utf8_trim_whitespace(pc.list_flatten(lists))
            filled = pc.not_equal(flat, "").to_numpy(zero_copy_only=False)
            encoded = flat.filter(pa.array(filled)).dictionary_encode()
            codes = encoded.indices.to_numpy().astype(np.int64)
            n = max(len(encoded.dictionary), 1)
            pairs = np.unique(rows[filled] * n + codes)
            starts = np.searchsorted(pairs, np.arange(len(self) + 1) * n)
            named = encoded.dictionary.to_pylist()
            self._values[name] = (starts, (pairs % n).astype(np.int32), named)
        found: tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], list[str]] = self._values[name]
        return found

    def holds(self, name: str, test: Condition, now: float) -> Mask:
        """(n,) bool: of which rows the test holds at a time, seconds UTC."""
        texts = self.texts(name)
        there = pc.not_equal(texts, "").to_numpy(zero_copy_only=False)
        mask = there.copy() if test.exists is not False else ~there
        if test.values is not None:
            mask &= self._any_of(name, test.values)
        if test.contains is not None:
            like = pc.match_substring(texts, test.contains, ignore_case=True)
            mask &= like.to_numpy(zero_copy_only=False)
        bounds = (test.above, test.at_least, test.below, test.at_most)
        if any(bound is not None for bound in bounds):
            mask &= _within(self.numbers(name), *bounds)
        dates = [None if at is None else now if at == "now" else moment(at) for at in _dates(test)]
        if any(at is not None for at in dates):
            mask &= _within(self.seconds(name), dates[1], None, dates[0], None)
        return np.asarray(mask != test.negate, bool)

    def _any_of(self, name: str, wanted: Collection[Any]) -> Mask:
        starts, codes, named = self.values(name)
        mask = np.zeros(len(self), bool)
        letters = {value for value in wanted if isinstance(value, str)}
        for value in wanted:
            if isinstance(value, bool):
                letters |= {n for n in named if n.strip().lower() in _BOOLEANS[value]}
        if letters:
            hit = np.array([value in letters for value in named], bool)[codes]
            counts = np.concatenate([[0], np.cumsum(hit)])
            mask |= counts[starts[1:]] > counts[starts[:-1]]
        like = [v for v in wanted if isinstance(v, int | float) and not isinstance(v, bool)]
        if like:
            mask |= np.isin(self.numbers(name), like)
        return mask

    def faults(self, name: str, test: Condition) -> Iterator[str]:
        """What is wrong with a test of an attribute: found, allowed, mend."""
        if name not in self.names:
            allowed = ", ".join(self.names[:30])
            yield f"found the attribute {name!r}; allowed: {allowed}. {nearest(name, self.names)}"
            return
        if name == self.key == "item_id":
            for value in test.values or ():
                if str(value) not in self.ids:
                    near = nearest(str(value), self.ids.ids().tolist())
                    yield f"found the item {str(value)!r}; allowed: ids of items. {near}"
        if not pc.any(pc.not_equal(self.texts(name), "")).as_py():
            return
        bounds = (test.above, test.at_least, test.below, test.at_most)
        if any(b is not None for b in bounds) and np.isnan(self.numbers(name)).all():
            yield "found an attribute of text; allowed: comparisons of numbers. Use equals."
        if any(at is not None for at in _dates(test)) and np.isnan(self.seconds(name)).all():
            yield "found an attribute without dates; allowed: dates such as 2026-11-30."


@dataclass(frozen=True, eq=False)
class Grounds:
    """What conditions are read against: the items, the users and the graph of a shop."""

    items: Attributes
    users: Attributes
    graph: KnowledgeGraph

    @classmethod
    def of(
        cls,
        items: pd.DataFrame,
        users: pd.DataFrame,
        item_ids: Vocabulary,
        user_ids: Vocabulary,
        graph: KnowledgeGraph,
    ) -> Grounds:
        """The grounds that tables and a graph give.

        Args:
            items: with `item_id`. users: with `user_id`.
            item_ids, user_ids: which of them, in which order, masks are for.
            graph: what is known of them.
        """
        return cls(
            Attributes(items, item_ids, "item_id"), Attributes(users, user_ids, "user_id"), graph
        )

    def item_mask(self, rule: Rule, now: float) -> Mask:
        """(n_items) bool: the items that a rule is about."""
        mask = np.ones(len(self.items), bool)
        for name, test in rule.items.items():
            mask &= self.items.holds(name, test, now)
        for link in rule.linked:
            mask &= self._linked(link)
        return mask

    def user_mask(self, rule: Rule, rules: Rules, now: float) -> Mask:
        """(n_users + 1) bool: the users a rule holds for; the last is a visitor nobody knows."""
        mask = self._tested(rule.users, now)
        if rule.segments is not None:
            inside = np.zeros_like(mask)
            for name in rule.segments:
                segment = rules.segments[name]
                members = np.zeros_like(mask)
                if segment.ids is not None:
                    known = self.users.ids.numbers(list(segment.ids), missing="negative")
                    members[known[known >= 0]] = True
                if segment.users:
                    members |= self._tested(segment.users, now)
                inside |= members
            mask &= inside
        return mask

    def _tested(self, tests: Mapping[str, Condition], now: float) -> Mask:
        mask = np.ones(len(self.users) + 1, bool)
        for name, test in tests.items():
            mask[:-1] &= self.users.holds(name, test, now)
            unknown = test.exists is False and not _asks_more(test)
            mask[-1] &= unknown != test.negate
        return mask

    def _linked(self, link: Linked) -> Mask:
        graph = self.graph
        nodes, edges = len(graph.nodes), self._facts
        target = int(graph.nodes.resolved([link.to])[0])
        of = np.ones(len(edges.heads), bool)
        if link.relation is not None:
            of = np.array([r == link.relation for r in graph.relations], bool)[edges.relations]
        reached = np.zeros(nodes, bool)
        reached[edges.heads[of & (edges.tails == target)]] = True
        reached[edges.tails[of & (edges.heads == target)]] = True
        reached[graph.nodes.types == USER] = False
        if link.hops == 2:
            further = reached.copy()
            further[edges.heads[reached[edges.tails]]] = True
            further[edges.tails[reached[edges.heads]]] = True
            reached = further
        reached[target] = False
        numbers_ = graph.items.numbers(self.items.ids.array, missing="negative")
        mask = reached[graph.nodes.item_nodes[numbers_]]
        return np.asarray(mask & (numbers_ >= 0), bool)

    @cached_property
    def _facts(self) -> Any:
        every = self.graph.edge_list()
        return every.take(~self.graph.behaviours[every.relations])

    def faults(self, rules: Rules) -> list[str]:
        """Everything that rules name and the shop has not: file, rule, key, found, allowed, mend.

        What only a fitted bundle knows (vectors) is told when rules are compiled for one.
        """
        found = []
        for name, segment in rules.segments.items():
            for key, test in segment.users.items():
                place = f"{rules.where}, segment {name!r}, users.{key}"
                found += [f"{place}: {fault}" for fault in self.users.faults(key, test)]
        for rule in rules.rules:
            place = f"{rules.where}, rule {rule.name!r}"
            for key, test in rule.items.items():
                found += [f"{place}, items.{key}: {f}" for f in self.items.faults(key, test)]
            for key, test in rule.users.items():
                found += [f"{place}, users.{key}: {f}" for f in self.users.faults(key, test)]
            for key in (*(rule.attributes or ()), *([rule.attribute] if rule.attribute else ())):
                where = "attributes" if rule.attributes else "attribute"
                faults = self.items.faults(key, Condition(exists=True))
                found += [f"{place}, {where}: {fault}" for fault in faults]
            found += [f"{place}, linked: {f}" for link in rule.linked for f in self._unlinked(link)]
        return found

    def _unlinked(self, link: Linked) -> Iterator[str]:
        nodes = self.graph.nodes
        if int(nodes.resolved([link.to])[0]) < 0:
            near = nearest(link.to, [*nodes.entities.ids().tolist(), *nodes.items.ids().tolist()])
            yield f"found the entity {link.to!r}; allowed: ids of entities and items. {near}"
        facts = [
            name
            for name, acts in zip(self.graph.relations, self.graph.behaviours, strict=True)
            if not acts
        ]
        if link.relation is not None and link.relation not in facts:
            near = nearest(link.relation, facts)
            yield f"found the relation {link.relation!r}; allowed: {', '.join(facts)}. {near}"

    def warnings(self, rules: Rules, at: float | None = None) -> list[str]:
        """Rules that do nothing now, or less than they seem to; call it when none is at fault."""
        told, now = [], time.time() if at is None else at
        for name, segment in rules.segments.items():
            ids = list(segment.ids or ())
            lost = [i for i in ids if i not in self.users.ids]
            if lost:
                few = ", ".join(map(repr, lost[:3]))
                told.append(
                    f"{rules.where}, segment {name!r}: {len(lost)} of {len(ids)} ids are of no "
                    f"known user: {few}."
                )
        for rule in rules.rules:
            place = f"{rules.where}, rule {rule.name!r}"
            n_items = int(self.item_mask(rule, now).sum())
            if not n_items:
                so = " Lists are empty." if rule.action == "only" else ""
                told.append(f"{place}: matches no item.{so}{self._strange(rule)}")
            elif rule.action == "exclude" and n_items == len(self.items):
                told.append(f"{place}: matches every item. Lists are empty.")
            elif strange := self._strange(rule):
                told.append(f"{place}:{strange}")
            elif rule.action == "pin" and n_items > (rule.most or 1):
                told.append(f"{place}: matches {n_items} items and pins at most {rule.most or 1}.")
            if not self.user_mask(rule, rules, now).any():
                told.append(f"{place}: holds for no user.")
            if rule.window[1] <= now:
                told.append(f"{place}: was over at {rule.until}.")
        return told

    def _strange(self, rule: Rule) -> str:
        """The value of a test that no item has, with the nearest that one has."""
        for name, test in rule.items.items():
            named = self.items.values(name)[2]
            for value in test.values or ():
                if isinstance(value, str) and value not in named:
                    return f" No item has {name} = {value!r}. {nearest(value, named)}"
        return ""


def rules_path(source: Path | None, settings: RulesSettings) -> Path | None:
    """The file of a shop's rules, if it has one.

    Args:
        source: the tables' folder or kgrank.toml; None for tables that lie in no folder.
        settings: the `[rules]` section.

    Raises:
        ConfigError: the section names a file that is not there.
    """
    if source is None and settings.file is None:
        return None
    folder = Path() if source is None else source if source.is_dir() else source.parent
    path = folder / (settings.file or "rules.toml")
    if path.is_file():
        return path
    if settings.file is None:
        return None
    raise ConfigError(
        f"rules.file: found no file {path}; allowed: a file beside the kgrank.toml. Correct it."
    )


def shop_grounds(tables: Tables, config: Config) -> Grounds:
    """What rules are read against before anything is trained: all users and items of the tables."""
    users = pd.concat([tables.users["user_id"], tables.events["user_id"]]).drop_duplicates()
    return Grounds.of(
        tables.items,
        tables.users,
        Vocabulary.from_ids(tables.items["item_id"]),
        Vocabulary.from_ids(users),
        KnowledgeGraph.from_tables(tables, config.kg),
    )


def checked_rules(
    tables: Tables, config: Config, graph: KnowledgeGraph, items: Vocabulary, users: Vocabulary
) -> Rules:
    """The rules that lie beside the tables, all they name found in the tables and the graph.

    Raises:
        ConfigError: the rules are at fault; a line for each fault.
    """
    path = rules_path(tables.source, config.rules)
    if path is None:
        return Rules.none()
    rules = Rules.read(path)
    if faults := Grounds.of(tables.items, tables.users, items, users, graph).faults(rules):
        raise ConfigError("\n".join(faults))
    return rules


def _dates(test: Condition) -> tuple[str | None, str | None]:
    return test.before, test.after


def timed(rule: Rule, rules: Rules) -> bool:
    """Whether what the rule's conditions hold of changes with the time of day."""
    tests = [*rule.items.values(), *rule.users.values()]
    for name in rule.segments or ():
        tests += rules.segments[name].users.values()
    return any("now" in _dates(test) for test in tests)


def _asks_more(test: Condition) -> bool:
    """Whether a test asks for more than that there is a value, or none."""
    return bool(test.model_fields_set - {"exists", "negate"})


def _within(
    values: npt.NDArray[np.float64],
    above: float | None,
    at_least: float | None,
    below: float | None,
    at_most: float | None,
) -> Mask:
    """(n,) bool; NaN is within no bounds."""
    mask = ~np.isnan(values)
    if above is not None:
        mask &= values > above
    if at_least is not None:
        mask &= values >= at_least
    if below is not None:
        mask &= values < below
    if at_most is not None:
        mask &= values <= at_most
    return mask
