"""Ids and numbers: `Vocabulary` for one kind of thing, `Nodes` for everything in a graph.

Outside the package things have ids (strings, kept to the letter); inside they have numbers, the
row of a matrix. Both classes are frozen; adding ids returns a new value in which every number
that was given before still stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Reversible, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from kgrank.errors import DataError, Fault, ModelError, UnknownIdError

Ids = Iterable[str]
"""Ids as they come: a list, a pandas Series, a numpy array of strings or a pyarrow array."""

USER, ITEM = 0, 1
"""The first two type numbers of `Nodes.type_names`; entity types follow."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def string_array(ids: Ids) -> Any:
    """The ids as one `pyarrow.LargeStringArray` (n,), without a copy where that can be.

    Raises:
        DataError: something is not a string (a number, None, NaN) or not UTF-8, or one bare string
            or a set, which has no order, was passed.
    """
    if isinstance(ids, str):
        raise _not_strings(1, f"the single string {ids!r}", "a list or column of ids")
    if isinstance(ids, Set) and not isinstance(ids, Reversible):  # the keys of a dict have an order
        mend = "Make a list of it first, and what belongs to the ids in the order of that list."
        raise _refused(None, f"a {type(ids).__name__}", "ids in an order", mend)
    values: Any = ids if hasattr(ids, "__len__") else list(ids)
    try:
        array = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        array = pa.nulls(1)  # mixed types: the first that is no string is named below
    except UnicodeError:
        row, id_ = next(r for r in enumerate(map(str, values), start=1) if _SURROGATE.search(r[1]))
        mend = "Was it read with another encoding than it was written in?"
        raise _refused(row, ascii(id_), "text for UTF-8", mend) from None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if len(array) and (array.null_count or not is_text):
        if isinstance(values, pa.Array | pa.ChunkedArray):
            values = values.to_pylist()
        for row, value in enumerate(values, start=1):
            if not isinstance(value, str):
                raise _not_strings(row, f"{value!r} ({type(value).__name__})", "strings")
    return array.cast(pa.large_string())


def _not_strings(row: int, found: str, allowed: str) -> DataError:
    mend = "Write ids as strings, to the letter (the number 7 and '007' are not the same id)."
    return _refused(row, found, allowed, mend)


def _refused(row: int | None, found: str, allowed: str, mend: str) -> DataError:
    return DataError([Fault("ids", row, None, found, allowed, mend)])


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """An immutable two-way table of ids and numbers; the number is the id's place, from 0.

    Attributes:
        array: the ids in the order of their numbers, `pyarrow.LargeStringArray` (n,).
        kind: whose ids they are, such as "user", for messages.
    """

    array: Any
    kind: str = ""

    @classmethod
    def from_ids(cls, ids: Ids, kind: str = "") -> Vocabulary:
        """A vocabulary of the ids in the order given.

        Args:
            ids: strings, (n,).
            kind: whose they are, for messages.

        Raises:
            DataError: an id comes twice, or is not a string.
        """
        array = string_array(ids)
        if len(array.unique()) < len(array):
            raise DataError([_duplicate(array)])
        return cls(array, kind)

    def __len__(self) -> int:
        return len(self.array)

    def __contains__(self, id_: object) -> bool:
        return id_ in self._number_of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and bool(self.array.equals(other.array))

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} ids)"

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {id_: number for number, id_ in enumerate(self._ids)}

    @cached_property
    def _ids(self) -> list[str]:
        ids: list[str] = self.array.to_pylist()
        return ids

    def numbers(
        self, ids: Ids, missing: Literal["error", "negative"] = "error"
    ) -> NDArray[np.int32]:
        """The numbers (n,) int32 of the ids (n,).

        Args:
            missing: what an unknown id does: raise ("error") or become -1 ("negative").

        Raises:
            UnknownIdError: an id is unknown and `missing` is "error".
            DataError: something is not a string.
        """
        array = string_array(ids)
        if len(array) * 16 < len(self):  # a few ids: pyarrow would hash the whole vocabulary
            found = [self._number_of.get(id_, -1) for id_ in array.to_pylist()]
            numbers = np.array(found, dtype=np.int32)
        else:
            numbers = pc.index_in(array, value_set=self.array).fill_null(-1).to_numpy()
        if missing == "error" and (numbers < 0).any():
            raise self._unknown(array.filter(pa.array(numbers < 0)).unique().to_pylist())
        return numbers

    def number(self, id_: str) -> int:
        """The number of one id, without an array.

        Raises:
            UnknownIdError: the id is unknown.
        """
        number = self._number_of.get(id_)
        if number is None:
            raise self._unknown([id_])
        return number

    def id(self, number: int) -> str:
        """The id of one number, without an array.

        Raises:
            IndexError: the number is not below `len(self)`.
        """
        return self._ids[number]

    def _unknown(self, ids: list[str]) -> UnknownIdError:
        shown = ", ".join(repr(id_) for id_ in ids[:5]) + (", …" if len(ids) > 5 else "")
        id_, known = f"{self.kind} id".strip(), "none (the vocabulary is empty)"
        if len(self):
            known = f"the {len(self)} known {id_}s"
        return UnknownIdError(
            f"found {len(ids)} unknown {id_}{'s' * (len(ids) > 1)}: {shown}; allowed: {known}. "
            "Ids are compared to the letter: check spelling, case and leading zeros."
        )

    def ids(self, numbers: ArrayLike | None = None) -> NDArray[np.object_]:
        """The ids (n,) of the numbers (n,), or all of them in order.

        Raises:
            IndexError: a number is negative or not below `len(self)`.
        """
        if numbers is None:
            return np.asarray(self.array.to_numpy(zero_copy_only=False), dtype=object)
        taken = self.array.take(pa.array(np.asarray(numbers, dtype=np.int64)))
        return np.asarray(taken.to_numpy(zero_copy_only=False), dtype=object)

    def extended(self, ids: Ids) -> Vocabulary:
        """A vocabulary with the ids that are new appended, each once, in the order given."""
        array = string_array(ids).unique()
        new = array.filter(pc.invert(pc.is_in(array, value_set=self.array)))
        return replace(self, array=pa.concat_arrays([self.array, new])) if len(new) else self


def _duplicate(array: Any) -> Fault:
    first: dict[str, int] = {}
    for row, id_ in enumerate(array.to_pylist(), start=1):
        if id_ in first:
            found = f"{id_!r} again (first in row {first[id_]})"
            return Fault("ids", row, None, found, "each id once", "Remove or rename one of them.")
        first[id_] = row
    raise ValueError("no id comes twice")


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, closed for writing."""
    array.setflags(write=False)
    return array


class Node(NamedTuple):
    """A node as people see it. `type` is "user", "item" or an entity's type."""

    type: str
    id: str
    name: str


@dataclass(frozen=True, eq=False)
class Nodes:
    """The typed nodes of a graph, numbered from 0 over all types.

    Users, items and entities are three vocabularies. A node's place among its own kind is its
    number there; new nodes go to the end, so users and items may alternate in later graphs:

        node      0     1     2     3       4       5     6
        types     user  user  item  item    brand   user  item
        number    0     1     0     1       0       2     2       (in users, items or entities)

    Attributes:
        type_names: "user", "item", then the entity types.
        types: (n_nodes,) int16, position in `type_names`.
        names: (n_nodes,) `pyarrow.LargeStringArray`: an item's title, an entity's name; a node
            without a name of its own goes by its id.
        users, items, entities: the ids of each kind. Entity ids are unique over entity types.
    """

    type_names: tuple[str, ...]
    types: NDArray[np.int16]
    names: Any
    users: Vocabulary
    items: Vocabulary
    entities: Vocabulary

    @classmethod
    def empty(cls) -> Nodes:
        """No nodes at all."""
        none = Vocabulary(pa.array([], pa.large_string()))
        return cls(("user", "item"), np.empty(0, np.int16), none.array, none, none, none)

    def __len__(self) -> int:
        return len(self.types)

    @cached_property
    def user_nodes(self) -> NDArray[np.int32]:
        """(n_users,) int32: the node number of each user number."""
        return read_only(np.flatnonzero(self.types == USER).astype(np.int32))

    @cached_property
    def item_nodes(self) -> NDArray[np.int32]:
        """(n_items,) int32: the node number of each item number."""
        return read_only(np.flatnonzero(self.types == ITEM).astype(np.int32))

    @cached_property
    def entity_nodes(self) -> NDArray[np.int32]:
        """(n_entities,) int32: the node number of each entity number."""
        return read_only(np.flatnonzero(self.types > ITEM).astype(np.int32))

    @cached_property
    def numbers(self) -> NDArray[np.int32]:
        """(n_nodes,) int32: each node's number in `users`, `items` or `entities`."""
        numbers = np.empty(len(self), dtype=np.int32)
        for nodes in (self.user_nodes, self.item_nodes, self.entity_nodes):
            numbers[nodes] = np.arange(len(nodes), dtype=np.int32)
        return read_only(numbers)

    @cached_property
    def ids(self) -> Any:
        """(n_nodes,) `pyarrow.LargeStringArray`: each node's id."""
        ids = pa.concat_arrays([self.users.array, self.items.array, self.entities.array])
        nodes = np.concatenate([self.user_nodes, self.item_nodes, self.entity_nodes])
        return ids.take(pa.array(np.argsort(nodes)))

    def node(self, number: int) -> Node:
        """Type, id and name of a node.

        Raises:
            UnknownIdError: no node has this number.
        """
        self.check(number)
        kind = int(self.types[number])
        vocabulary = (self.users, self.items, self.entities)[min(kind, 2)]
        id_ = vocabulary.id(int(self.numbers[number]))
        return Node(self.type_names[kind], id_, self.names[number].as_py())

    def check(self, number: int) -> None:
        """Raises UnknownIdError unless 0 <= number < n_nodes (numpy would count from the end)."""
        if not 0 <= number < len(self):
            raise UnknownIdError(
                f"found node number {number}; allowed: 0 to {len(self) - 1}. "
                "Look numbers up with node_number(type, id)."
            )

    def node_number(self, type_: str, id_: str) -> int:
        """The number of the node of this type and id.

        Raises:
            UnknownIdError: there is no such node.
        """
        kinds = {"user": (self.users, self.user_nodes), "item": (self.items, self.item_nodes)}
        vocabulary, nodes = kinds.get(type_, (self.entities, self.entity_nodes))
        number = int(vocabulary.numbers([id_], missing="negative")[0])
        node = int(nodes[number]) if number >= 0 else -1
        if node < 0 or self.type_names[int(self.types[node])] != type_:
            raise UnknownIdError(
                f"found no node of type {type_!r} with id {id_!r}; allowed: ids of the types "
                f"{', '.join(self.type_names)}, to the letter. Check the type and the spelling."
            )
        return node

    def resolved(self, ids: Ids) -> NDArray[np.int32]:
        """(n,) int32 node numbers of ids of any type: the item's, else the user's or entity's.

        An id that is none of these gets -1.
        """
        array = string_array(ids)
        nodes = np.full(len(array), -1, dtype=np.int32)
        for vocabulary, numbered in (
            (self.entities, self.entity_nodes),
            (self.users, self.user_nodes),
            (self.items, self.item_nodes),
        ):
            numbers = vocabulary.numbers(array, missing="negative")
            nodes[numbers >= 0] = numbered[numbers[numbers >= 0]]
        return nodes

    def with_users(self, ids: Ids) -> Nodes:
        """The nodes with the users that are new appended; raises DataError if an id comes twice."""
        array = string_array(ids)
        return self._appended("users", array, np.full(len(array), USER, np.int16), array)

    def with_items(self, ids: Ids, names: Ids | None = None) -> Nodes:
        """The nodes with the items that are new appended; known ones keep their names.

        Raises:
            DataError: an id comes twice.
        """
        array = string_array(ids)
        labels = array if names is None else string_array(names)
        return self._appended("items", array, np.full(len(array), ITEM, np.int16), labels)

    def with_entities(self, ids: Ids, types: Sequence[str], names: Ids) -> Nodes:
        """The nodes with the entities that are new appended; known ones keep type and name.

        Args:
            ids: (n,) entity ids.
            types: (n,) the type of each, not "user" or "item".
            names: (n,) the name of each, "" where it has none.

        Raises:
            DataError: an id comes twice.
            ModelError: there are more than 32,767 types.
        """
        type_names = self.type_names + tuple(sorted(set(types) - set(self.type_names)))
        if len(type_names) > np.iinfo(np.int16).max:
            raise ModelError(
                f"found {len(type_names)} node types; allowed: 32767. Is `type` of the entities "
                "table a free text?"
            )
        number_of = {name: number for number, name in enumerate(type_names)}
        numbers = np.array([number_of[name] for name in types], dtype=np.int16)
        grown = replace(self, type_names=type_names)
        return grown._appended("entities", string_array(ids), numbers, string_array(names))

    def _appended(
        self,
        kind: Literal["users", "items", "entities"],
        ids: Any,
        types: NDArray[np.int16],
        names: Any,
    ) -> Nodes:
        """Ids, types and names (n,) of one kind; those already known are left out."""
        vocabulary: Vocabulary = getattr(self, kind)
        new = vocabulary.numbers(ids, missing="negative") < 0
        if not new.any():
            return self
        ids, names = ids.filter(pa.array(new)), names.filter(pa.array(new))
        names = pc.if_else(pc.equal(names, ""), ids, names)
        extended: dict[str, Any] = {
            kind: Vocabulary.from_ids(pa.concat_arrays([vocabulary.array, ids]))
        }
        return replace(
            self,
            types=read_only(np.concatenate([self.types, types[new]])),
            names=pa.concat_arrays([self.names, names]),
            **extended,
        )
