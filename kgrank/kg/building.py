"""From tables to edges: what a behaviour, an attribute and a triple become in the graph.

Each reader below takes the nodes so far and one table, and returns the nodes (with those that the
table adds) and the edges it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import sparse

from kgrank.errors import ConfigError, DataError, Fault
from kgrank.kg.reading import COLUMNS
from kgrank.kg.tables import Tables
from kgrank.kg.validation import LARGEST, numbers
from kgrank.kg.vocabulary import Nodes, Vocabulary, string_array
from kgrank.settings import Section


class GraphSettings(Section):
    """The `[kg]` section: which attribute columns become relations, and what learns on the graph.

    Attributes:
        bins: number columns that become a relation, and into how many quantile bins
            (`{"price": 10}`). Other number columns say nothing to the graph.
        ignore: columns that stay out of the graph; "image" need not be there.
        categorical: columns of numbers that are names all the same (a year, a postcode): each
            value becomes an entity.
        encoder: what learns item vectors on the graph (`kgrank.kg.gnn`); "none" leaves the learned
            channel out.
        dim: length of the vectors.
        hops: steps item → user → item (of "light"), or layers (of the others, at least one).
    """

    bins: dict[str, Annotated[int, Field(ge=2, le=1000)]] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ("image",)
    categorical: tuple[str, ...] = ()
    encoder: Literal["light", "rgcn", "gatv2", "hgt", "none"] = "light"
    dim: int = Field(default=128, ge=2, le=4096)
    hops: int = Field(default=1, ge=0, le=8)

    @model_validator(mode="after")
    def _one_use_a_column(self) -> GraphSettings:
        named = [*self.bins, *self.ignore, *self.categorical]
        twice = sorted({column for column in named if named.count(column) > 1})
        if twice:
            raise ValueError(
                f"found {', '.join(twice)} under two of bins, ignore and categorical; allowed: "
                "each column under one of them"
            )
        return self


@dataclass(frozen=True, eq=False)
class Edges:
    """Edges as five parallel arrays, in any order.

    Attributes:
        heads, tails: (n_edges,) int32 node numbers.
        relations: (n_edges,) uint8 or int16 (int32 before the graph's own numbers are known), a
            place in the list of relations that goes with them.
        weights: (n_edges,) float32.
        times: (n_edges,) uint32 seconds UTC, 0 where there is no time.
    """

    heads: NDArray[np.int32]
    relations: NDArray[np.integer[Any]]
    tails: NDArray[np.int32]
    weights: NDArray[np.float32]
    times: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.heads)

    @staticmethod
    def empty() -> Edges:
        """No edges."""
        ends = np.empty(0, dtype=np.int32)
        weights, times = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.uint32)
        return Edges(ends, np.empty(0, dtype=np.int16), ends, weights, times)

    def take(self, order: NDArray[Any]) -> Edges:
        """The edges at these places, or where this mask is true."""
        return Edges(*(getattr(self, field.name)[order] for field in fields(self)))

    @staticmethod
    def concatenated(parts: Sequence[Edges]) -> Edges:
        """The edges of all parts, in the order of the parts (at least one)."""
        columns = (field.name for field in fields(Edges))
        return Edges(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


@dataclass(frozen=True)
class Facts:
    """Edges read from one table, with relation numbers of their own.

    Attributes:
        names: the relations' names; `edges.relations` counts in these.
        behaviour: whether these are events of users (else: knowledge).
    """

    names: tuple[str, ...]
    behaviour: bool
    edges: Edges


def behaviour_facts(nodes: Nodes, events: pd.DataFrame) -> tuple[Nodes, Facts]:
    """Every event that is not of the test split as an edge user –kind→ item.

    Args:
        events: as in `Tables.events`; `timestamp`, `value` and `split` may be absent.

    Raises:
        DataError: a time lies outside 1970 to 2106, or a value outside ±3.4e38.
    """
    weights, times = _weights(events, "events", "value"), _times(events)
    if "split" in events:
        seen = (events["split"] != "test").to_numpy(dtype=bool)
        if not seen.all():
            events, weights, times = events[seen], weights[seen], times[seen]
    users, user_ids = _encoded(events["user_id"])
    items, item_ids = _encoded(events["item_id"])
    kinds, names = _encoded(events["event"])
    nodes = nodes.with_users(_sorted_unknown(nodes.users, user_ids))
    nodes = nodes.with_items(_sorted_unknown(nodes.items, item_ids))
    heads = nodes.user_nodes[nodes.users.numbers(user_ids)][users]
    tails = nodes.item_nodes[nodes.items.numbers(item_ids)][items]
    edges = Edges(heads, kinds, tails, weights, times)
    return nodes, Facts(tuple(names.to_pylist()), behaviour=True, edges=edges)


def attribute_columns(
    tables: Tables, of: Literal["items", "users"], settings: GraphSettings
) -> dict[str, Any]:
    """The attributes of items or users that become relations, each with its values as text.

    Returns:
        column → `pyarrow.LargeStringArray` (n,): the text of the cell, several values separated
        by `|`, or the label of its bin; "" where there is none.

    Raises:
        ConfigError: `bins` names a column that holds text.
        DataError: a column is called "user" or "item", which would be its entities' type.
    """
    frame: pd.DataFrame = getattr(tables, of)
    numeric = tables.numeric_attributes(of)
    columns: dict[str, Any] = {}
    texts = [column for column in settings.bins if column in frame and column not in numeric]
    if texts:
        raise ConfigError(
            "\n".join(
                f"[kg] bins names {column!r} of {of}: found text, or no value at all; allowed: "
                "columns of which every value is a number. Remove it from bins."
                for column in texts
            )
        )
    for column in frame.columns:
        if column in COLUMNS[of] or column in settings.ignore:
            continue
        if column in settings.bins:
            columns[column] = _binned(numbers(frame[column]), settings.bins[column])
        elif column not in numeric or column in settings.categorical:
            columns[column] = _as_text(frame[column])
    for column in {"user", "item"} & set(columns):
        mend = "Rename the column, or name it in [kg] ignore."
        raise DataError([_reserved(tables.files.get(of, of), None, column, column, mend)])
    return columns


def attribute_facts(
    nodes: Nodes, owners: NDArray[np.int32], column: str, values: Any
) -> tuple[Nodes, Facts]:
    """Every value of one attribute as an edge owner –column→ entity "column:value".

    Args:
        owners: (n,) int32, the node each row describes.
        values: (n,) as `attribute_columns` gives them.
    """
    lists = pc.split_pattern(values, "|")
    rows = pc.list_parent_indices(lists).to_numpy()
    flat = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    filled = pc.not_equal(flat, "")
    codes, labels = _encoded(flat.filter(filled))
    ids = string_array([f"{column}:{label}" for label in labels.to_pylist()])
    new = _sorted_unknown(nodes.entities, ids)
    names = [id_[len(column) + 1 :] for id_ in new.to_pylist()]
    nodes = nodes.with_entities(new, [column] * len(new), names)
    heads = owners[rows[filled.to_numpy(zero_copy_only=False)]]
    tails = nodes.entity_nodes[nodes.entities.numbers(ids)][codes]
    n = len(heads)
    ones, none = np.ones(n, dtype=np.float32), np.zeros(n, dtype=np.uint32)
    edges = Edges(heads, np.zeros(n, dtype=np.int32), tails, ones, none)
    return nodes, Facts((column,), behaviour=False, edges=edges)


def with_entity_table(nodes: Nodes, tables: Tables, attributes: Sequence[str]) -> Nodes:
    """The nodes with those of the entities table that are no items or users.

    Args:
        attributes: the names of the attribute columns.

    Raises:
        DataError: an entity's type is "user" or "item" and no such user or item is known.
    """
    entities = tables.entities
    rows = np.flatnonzero(nodes.resolved(entities["entity_id"]) < 0)
    ids, types, names = (
        entities[column].fillna("").iloc[rows].tolist() for column in ("entity_id", "type", "name")
    )
    wrong = [place for place, type_ in enumerate(types) if type_ in ("user", "item")]
    if wrong:
        file, row, type_ = tables.files.get("entities", "entities"), rows[wrong[0]], types[wrong[0]]
        mend = "Give it another type, or add it to the items or users table."
        fault = _reserved(file, int(row) + 1, "type", type_, mend)
        raise DataError([replace(fault, count=len(wrong))])
    told = [_described(id_, attributes) for id_ in ids]
    return nodes.with_entities(
        ids,
        [type_ or told_type for type_, (told_type, _) in zip(types, told, strict=True)],
        [name or told_name for name, (_, told_name) in zip(names, told, strict=True)],
    )


def triple_facts(
    nodes: Nodes, triples: pd.DataFrame, attributes: Sequence[str]
) -> tuple[Nodes, Facts]:
    """Every given triple as an edge; an id that is no item, user or entity becomes an entity.

    A new entity whose id begins with an attribute's name and ":" belongs to that attribute's
    entities; any other is of type "entity".

    Args:
        triples: as in `Tables.triples`; `weight` may be absent.
        attributes: the names of the attribute columns.

    Raises:
        DataError: a weight lies outside ±3.4e38.
    """
    heads, head_ids = _encoded(triples["head"])
    tails, tail_ids = _encoded(triples["tail"])
    kinds, names = _encoded(triples["relation"])
    ids = pa.concat_arrays([head_ids, tail_ids]).unique()
    unknown = ids.filter(pa.array(nodes.resolved(ids) < 0))
    new = unknown.take(pc.array_sort_indices(unknown))
    told = [_described(id_, attributes) for id_ in new.to_pylist()]
    nodes = nodes.with_entities(new, [type_ for type_, _ in told], [name for _, name in told])
    edges = Edges(
        heads=nodes.resolved(head_ids)[heads],
        relations=kinds,
        tails=nodes.resolved(tail_ids)[tails],
        weights=_weights(triples, "triples", "weight"),
        times=np.zeros(len(triples), dtype=np.uint32),
    )
    return nodes, Facts(tuple(names.to_pylist()), behaviour=False, edges=edges)


def _described(id_: str, attributes: Sequence[str]) -> tuple[str, str]:
    """Type and name of an entity of which only the id is known."""
    prefix, colon, rest = id_.partition(":")
    return (prefix, rest) if colon and prefix in attributes else ("entity", id_)


def sorted_edges(edges: Edges, n_nodes: int, behaviours: NDArray[np.bool_]) -> Edges:
    """The edges by (head, relation, tail, time, weight), knowledge that is said twice kept once.

    Args:
        n_nodes: how many nodes there are.
        behaviours: (n_relations,) bool: the relations of which every event counts.
    """
    order = np.arange(len(edges), dtype=np.int32)
    for keys, n in (
        (edges.tails, n_nodes),
        (edges.relations, len(behaviours)),
        (edges.heads, n_nodes),
    ):
        order = _counting_sorted(order, keys, n)
    edges = edges.take(order)
    same = np.ones(max(len(edges) - 1, 0), dtype=bool)
    for keys in (edges.heads, edges.relations, edges.tails):
        same &= keys[1:] == keys[:-1]
    if not same.any():
        return edges
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    run = np.cumsum(np.append(False, ~same))[tied]
    within = tied[np.lexsort((edges.weights[tied], edges.times[tied], run))]
    edges.weights[tied], edges.times[tied] = edges.weights[within], edges.times[within]
    twice = same & (edges.weights[1:] == edges.weights[:-1]) & ~behaviours[edges.relations[1:]]
    return edges.take(np.append(True, ~twice)) if twice.any() else edges


def _counting_sorted(order: NDArray[np.int32], keys: NDArray[Any], n: int) -> NDArray[np.int32]:
    """`order` sorted stably by its keys (0 to n - 1), in linear time.

    A matrix with one entry a row, turned from rows to columns, is a counting sort: for millions
    of edges in any order it is about as fast as numpy's argsort of one packed 64-bit key, and
    three in a row have no bound on nodes × relations × nodes.
    """
    rows = np.arange(len(order) + 1, dtype=np.int32)
    by_row = sparse.csr_array((order, keys[order].astype(np.int32), rows), shape=(len(order), n))
    sorted_: NDArray[np.int32] = by_row.tocsc().data
    return sorted_


def _reserved(file: str, row: int | None, column: str, type_: str, mend: str) -> Fault:
    return Fault(file, row, column, f"the entity type {type_!r}", "any other name", mend)


def _encoded(column: Any) -> tuple[NDArray[np.int32], Any]:
    """Strings (n,) as numbers (n,) int32 into the distinct ones (pyarrow, order of appearance)."""
    encoded = string_array(column).dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary


def _sorted_unknown(vocabulary: Vocabulary, ids: Any) -> Any:
    """The ids that the vocabulary lacks, sorted: the order of the rows leaves no trace."""
    unknown = ids.filter(pa.array(vocabulary.numbers(ids, missing="negative") < 0))
    return unknown.take(pc.array_sort_indices(unknown))


def _weights(frame: pd.DataFrame, file: str, column: str) -> NDArray[np.float32]:
    """(n,) float32: the column, 1 where it says nothing."""
    if column not in frame:
        return np.ones(len(frame), dtype=np.float32)
    weights = frame[column].to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    weights[np.isnan(weights)] = 1.0
    for row in np.flatnonzero(np.abs(weights) > LARGEST)[:1]:
        found, allowed = f"{weights[row]:g}", "numbers between -3.4e38 and 3.4e38"
        raise DataError([Fault(file, int(row) + 1, column, found, allowed, "Correct it.")])
    return weights.astype(np.float32)


def _times(events: pd.DataFrame) -> NDArray[np.uint32]:
    """(n,) uint32 whole seconds UTC, 0 where there is no time."""
    if "timestamp" not in events:
        return np.zeros(len(events), dtype=np.uint32)
    seconds = events["timestamp"].to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    seconds[np.isnan(seconds)] = 0.0
    for row in np.flatnonzero((seconds < 0) | (seconds >= 2**32))[:1]:
        found, allowed = f"{seconds[row]:.15g}", "seconds UTC from 1970 to 2106 (0 to 4294967295)"
        mend = "Divide milliseconds by 1000."
        raise DataError([Fault("events", int(row) + 1, "timestamp", found, allowed, mend)])
    return seconds.astype(np.uint32)


def _as_text(values: pd.Series[Any]) -> Any:
    """(n,) `pyarrow.LargeStringArray`, "" for empty cells; whole numbers without a point."""
    if pd.api.types.is_float_dtype(values) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")
    return string_array(values.astype("str").fillna(""))


def _binned(column: pd.Series[Any], bins: int) -> Any:
    """(n,) labels "[low, high)" of quantile bins ("[low, high]" the last), "" for NaN.

    The k-th of `bins` begins at the value with place ceil(k · n / bins) among the n sorted
    values, so that equal values never part; where that makes two bins the same they are one.
    """
    known = column.notna().to_numpy()
    values = column.to_numpy(dtype=np.float64)[known]
    ordered = np.sort(values)
    places = np.ceil(np.arange(1, bins) * len(ordered) / bins).astype(np.int64)
    cuts = np.unique(ordered[np.minimum(places, len(ordered) - 1)])
    ends = [np.format_float_positional(x, trim="-") for x in (ordered[0], *cuts, ordered[-1])]
    names = [f"[{low}, {high})" for low, high in pairwise(ends[:-1])]
    names.append(f"[{ends[-2]}, {ends[-1]}]")
    labels = np.full(len(column), "", dtype=object)
    labels[known] = np.array(names, dtype=object)[np.searchsorted(cuts, values, "right")]
    return string_array(labels)
