"""The graph as PyTorch Geometric's HeteroData, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from kgrank.errors import DataError, Fault
from kgrank.kg.exchange import about_of, assembled

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

    from kgrank.kg.graph import KnowledgeGraph

LATEST = 2**32  # seconds after 1970 that a time stays below


def to_pyg(graph: KnowledgeGraph) -> HeteroData:
    """The graph for PyTorch Geometric, one edge store for each (head type, relation, tail type).

    Node stores hold `num_nodes`, `node_id` and `name` ((n,) object arrays of str, which PyG's
    `subgraph` cuts as it does tensors) and `node_number` (n,) int64, the nodes' numbers in the
    graph. Edge stores hold `edge_index` (2, n) int64 in numbers of the type's own nodes (for users
    and items: their vocabulary numbers), `edge_weight` (n,) float32, `edge_time` (n,) int64 seconds
    UTC, 0 = none, `edge_behaviour` (n,) bool. The graph itself holds `attributes` and `relations`
    as lists. `from_pyg` reads it.

    PyG's `coalesce` shortens `edge_index` alone; what it gives has to lose the other three, or to
    take them along, before anything reads it.
    """
    import torch
    from torch_geometric.data import HeteroData

    data, nodes = HeteroData(), graph.nodes
    local = np.empty(len(nodes), dtype=np.int64)
    ids, labels = (
        np.array(column.to_pylist(), dtype=object) for column in (nodes.ids, nodes.names)
    )
    for number, type_ in enumerate(nodes.type_names):
        members = np.flatnonzero(nodes.types == number)
        local[members] = np.arange(len(members))
        if len(members):
            data[type_].num_nodes = len(members)
            data[type_].node_id, data[type_].name = ids[members], labels[members]
            data[type_].node_number = torch.from_numpy(members)

    edges = graph.edge_list()
    # an event kind and a relation of the same name share a store where their ends agree
    named = np.array([graph.relations.index(name) for name in graph.relations], dtype=np.int64)
    shape = len(nodes.type_names), len(named), len(nodes.type_names)
    ends = nodes.types[edges.heads], nodes.types[edges.tails]
    kinds, kind_of = np.unique(
        np.ravel_multi_index((ends[0], named[edges.relations], ends[1]), shape), return_inverse=True
    )
    for number, kind in enumerate(kinds):
        some = edges.take(kind_of == number)
        head, relation, tail = np.unravel_index(kind, shape)
        names = nodes.type_names[head], graph.relations[relation], nodes.type_names[tail]
        store = data[names]
        store.edge_index = torch.from_numpy(np.stack([local[some.heads], local[some.tails]]))
        store.edge_weight = torch.from_numpy(some.weights)
        store.edge_time = torch.from_numpy(some.times.astype(np.int64))
        store.edge_behaviour = torch.from_numpy(graph.behaviours[some.relations])
    for name, value in about_of(graph).items():
        data[name] = value
    return data


def from_pyg(data: HeteroData) -> KnowledgeGraph:
    """The graph that `to_pyg` gave; or another one whose stores hold the same.

    Node stores need `node_id`. Without `name` a node goes by its id; edges without `edge_weight`
    weigh 1, without `edge_time` have none; without `edge_behaviour` those from users to items are
    events. Nodes come in the order of `node_number` if all stores have it, else in that of the
    stores. What else the stores hold is not read.

    Raises:
        DataError: the data is no HeteroData; a node store has no `node_id`, or something else than
            texts there, each once; an edge store has no `edge_index`, or one that leads to no
            node; there are not as many of one thing as of the other; a weight, a time or a
            behaviour is out of range.
    """
    from torch_geometric.data import HeteroData

    if not isinstance(data, HeteroData):
        found, mend = f"a {type(data).__name__}", "Data.to_heterogeneous() makes one."
        _refuse("graph", None, found, "a HeteroData, with node and edge types", mend)
    nodes: list[tuple[str, str, str]] = []
    starts, sizes, numbers = {}, {}, []
    for kind in data.node_types:
        store = _Store(f"node store {kind!r}", data[kind])
        ids = store.texts("node_id", None, "Set node_id to the ids of all its nodes, as str.")
        if int(data[kind].get("num_nodes", len(ids))) != len(ids):
            found = f"{len(ids)} ids of {data[kind].num_nodes} nodes"
            _refuse(store.where, "node_id", found, "one for each node", "Mend num_nodes.")
        starts[kind], sizes[kind] = len(nodes), len(ids)
        labels = store.texts("name", ids, "Leave name out where a node goes by its id.")
        nodes += [(kind, id_, label) for id_, label in zip(ids, labels, strict=True)]
        numbers.append(store.numbers("node_number", len(ids), None))
    parts = []
    for kind in data.edge_types:
        if not kind[1] or kind[0] not in sizes or kind[2] not in sizes:
            allowed = f"node types {', '.join(sizes)}, and a name between them"
            _refuse("graph", None, f"the edge type {kind}", allowed, "Add the node store.")
        parts.append(_edges(_Store(f"edge store {kind}", data[kind]), kind, starts, sizes))
    kinds = (np.int64, object, np.int64, np.float32, np.uint32, object)
    empty = tuple(np.empty(0, kind) for kind in kinds)
    heads, names, tails, weights, times, behaviours = (
        np.concatenate(column) for column in zip(empty, *parts, strict=True)
    )
    if nodes and all(of_store is not None for of_store in numbers):
        order = np.argsort(np.concatenate(numbers), kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        nodes = [nodes[number] for number in order]
        heads, tails = place[heads], place[tails]
    ends = heads.astype(np.int32), tails.astype(np.int32)
    about = {name: data[name] for name in ("attributes", "relations") if name in data}
    return assembled(nodes, ends[0], names, ends[1], weights, times, behaviours, about)


def _edges(
    store: _Store, kind: tuple[str, str, str], starts: dict[str, int], sizes: dict[str, int]
) -> tuple[NDArray[Any], ...]:
    """Heads, relations, tails, weights, times and behaviours of one store, (n,) each."""
    head, relation, tail = kind
    ends = store.array("edge_index")
    if ends is None:
        found = "adj_t" if "adj_t" in store.values else ", ".join(store.values.keys()) or "nothing"
        _refuse(
            store.where,
            "edge_index",
            f"{found} and no edge_index",
            "(2, n) integers",
            "Set it; leave ToSparseTensor out.",
        )
    if ends.ndim != 2 or len(ends) != 2 or not np.issubdtype(ends.dtype, np.integer):
        found = f"{ends.dtype} of shape {ends.shape}"
        _refuse(store.where, "edge_index", found, "(2, n) integers", "Heads come first.")
    for name, end, found in (("head", head, ends[0]), ("tail", tail, ends[1])):
        allowed = f"a {name} of 0 to {sizes[end] - 1}, the nodes of {end!r}"
        store.check("edge_index", found, (found >= 0) & (found < sizes[end]), allowed)
    n = ends.shape[1]
    weights = store.numbers("edge_weight", n, np.ones(n))
    times = store.numbers("edge_time", n, np.zeros(n, np.int64))
    said = store.array("edge_behaviour")
    events = (head, tail) == ("user", "item")
    if said is None:
        said = np.full(n, None, object)
        knowledge = np.full(n, not events)
    else:
        if said.shape != (n,) or said.dtype != bool:
            found = f"{said.dtype} of shape {said.shape}"
            _refuse(store.where, "edge_behaviour", found, f"({n},) bool", store.LENGTHS)
        if not events:
            allowed = "false, for only edges from users to items are behaviours"
            store.check("edge_behaviour", said, ~said, allowed)
        knowledge = ~said
    for fits, allowed in (
        (np.abs(weights) <= np.finfo(np.float32).max, "numbers between ±3.4e38"),
        ((weights > 0) | ~knowledge, "weights above 0, as knowledge has them"),
    ):
        store.check("edge_weight", weights, fits, allowed)
    dated = (times >= 0) & (times < LATEST) & (times % 1 == 0)
    store.check("edge_time", times, dated, "whole seconds UTC from 1970 to 2106, 0 = none")
    return (
        ends[0].astype(np.int64) + starts[head],
        np.full(n, relation, object),
        ends[1].astype(np.int64) + starts[tail],
        weights.astype(np.float32),
        times.astype(np.uint32),
        said.astype(object),
    )


class _Store:
    """A node or edge store of a HeteroData, read with care.

    Attributes:
        where: how errors name it.
        values: the store.
    """

    LENGTHS = "Give one for each (PyG's coalesce() shortens edge_index alone)."

    def __init__(self, where: str, values: Any) -> None:
        self.where, self.values = where, values

    def array(self, name: str) -> NDArray[Any] | None:
        """A tensor or array of the store as numpy's; None if it is not there."""
        import torch

        value = self.values.get(name)
        if value is None or isinstance(value, np.ndarray):
            return value
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            _refuse(self.where, name, f"a {type(value).__name__}", "a dense tensor", "Convert it.")
        return np.asarray(value.detach().cpu().numpy())

    def numbers(self, name: str, n: int, default: NDArray[Any] | None) -> Any:
        """(n,) integers or floats, finite; the default if they are not there."""
        found = self.array(name)
        if found is None:
            return default
        if found.shape != (n,) or found.dtype.kind not in "iuf":
            what = f"{found.dtype} of shape {found.shape}"
            _refuse(self.where, name, what, f"({n},) numbers", self.LENGTHS)
        self.check(name, found, np.isfinite(found), "finite numbers")
        return found

    def texts(self, name: str, default: list[str] | None, mend: str) -> list[str]:
        """A text for each node; the default if there are none, which is a fault if it is None."""
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, (list, tuple, np.ndarray)) or np.ndim(value) != 1:
            what = "nothing" if value is None else f"a {type(value).__name__}"
            _refuse(self.where, name, what, "a list or (n,) array of str", mend)
        if default is not None and len(value) != len(default):
            what = f"{len(value)} for {len(default)} nodes"
            _refuse(self.where, name, what, "one for each node", mend)
        for row, text in enumerate(value):
            if not isinstance(text, str) or not text:
                _refuse(self.where, name, repr(text), "a text that is not empty", mend, row + 1)
        return [str(text) for text in value]

    def check(self, name: str, found: NDArray[Any], fits: NDArray[np.bool_], allowed: str) -> None:
        """Raises DataError that names the first of (n,) values which does not fit."""
        wrong = np.flatnonzero(~fits)
        if len(wrong):
            first = int(wrong[0])
            mend = "Mend it, or leave the edge out."
            _refuse(self.where, name, f"{found[first]}", allowed, mend, first + 1, len(wrong))


def _refuse(
    where: str,
    column: str | None,
    found: str,
    allowed: str,
    mend: str,
    row: int | None = None,
    count: int = 1,
) -> NoReturn:
    raise DataError([Fault(where, row, column, found, allowed, mend, count)])
