"""Graph encoders: item vectors learned on the one graph of behaviours, attributes and triples.

Every encoder gives two vectors an item, one for the item in a history (source) and one for the item
that is ranked (target), so that "after this, that" differs from "with this, that". There is no
table of users: a user is the weighted sum of the sources of its history.

`light` is linear in the edges (LightGCN's rule; He et al., 2020), so that a score still splits over
history events and graph paths. `rgcn`, `gatv2` and `hgt` (Schlichtkrull et al., 2018; Brody et al.,
2022; Hu et al., 2020) are PyTorch Geometric's layers on the same graph; they cost more, and what
they say of an item no longer splits over paths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from kgrank.errors import ConfigError, ModelError
from kgrank.kg.entities import inverse_roots, symmetric
from kgrank.kg.exchange import entity_features
from kgrank.kg.propagation import Adjacency, LightConv, propagate, sampled

if TYPE_CHECKING:
    from torch_geometric.data import HeteroData

EncoderName = Literal["light", "rgcn", "gatv2", "hgt"]

INITIAL = 0.05  # standard deviation of new parameters
PROJECTED = 0.25  # of those that project text vectors, which keep their angles so
SHORTEST = 1e-12  # length below which a vector counts as none
HOP = 0.1  # what a behaviour's neighbourhood weighs at the start
WALKED_EDGES = 4_000_000  # behaviours beyond which each epoch walks a sample of them
FANOUT = 30  # events a user and kind in such a sample


@dataclass(frozen=True, eq=False)
class GraphInput:
    """What an encoder learns on.

    Attributes:
        known: (n_items × n_facts) CSR float32: which facts hold of an item, each row of length 1.
            A fact is a (relation, tail) pair that holds of two items or more.
        relations: (n_facts) int64, the relation of each fact.
        tails: (n_facts) int64, the entity (or item) of each fact.
        nodes: (n_tails) int64, which node of `data` each tail is, counted type after type.
        behaviours: kind of event → (n_users × n_items) CSR, how often.
        words: (n_items × n_words) CSR float32, rows of length 1; no columns without text.
        texts: (n_items × n_numbers) float32 text vectors, longer where they say more; no columns
            without an encoder.
        data: the facts for PyTorch Geometric.
    """

    known: sp.csr_matrix
    relations: npt.NDArray[np.int64]
    tails: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int64]
    behaviours: Mapping[str, sp.csr_matrix]
    words: sp.csr_matrix
    texts: Tensor
    data: HeteroData

    @property
    def n_items(self) -> int:
        """How many items get vectors."""
        return int(self.known.shape[0])

    @classmethod
    def of(
        cls,
        data: HeteroData,
        behaviours: Mapping[str, sp.csr_matrix],
        words: sp.csr_matrix,
        texts: Tensor | None = None,
    ) -> GraphInput:
        """What the graph says of its items, and what users did with them.

        The behaviours that `data` holds are not read: which events a fit may see is the caller's.

        Args:
            data: `KnowledgeGraph.to_pyg()`; its items are the items.
            behaviours: kind of event → (n_users × n_items) CSR.
            words: (n_items × n_words) CSR.
            texts: (n_items × n_numbers) float32; none if None.

        Raises:
            ModelError: behaviours, words or texts are not of the graph's items, or the behaviours
                not of the same users.
        """
        starts, n_nodes = type_starts(data)
        n_items = int(data["item"].num_nodes)
        texts = torch.zeros(n_items, 0) if texts is None else texts
        _check_shapes(n_items, behaviours, words, texts)
        rows, relations, tails, weights = [], [], [], []
        for number, (head, relation, tail) in enumerate(data.edge_types):
            if "item" not in (head, tail) or "user" in (head, tail):
                continue
            store = data[head, relation, tail]
            ends = store.edge_index.numpy()
            for own, other, place, way in ((head, tail, 0, 0), (tail, head, 1, 1)):
                if own == "item":
                    rows.append(ends[place])
                    tails.append(ends[1 - place] + starts[other])
                    relations.append(np.full(len(ends[place]), 2 * number + way))
                    weights.append(store.edge_weight.numpy())
        if not rows:
            nothing = np.empty(0, np.int64)
            known = sp.csr_matrix((n_items, 0), dtype=np.float32)
            return cls(known, nothing, nothing, nothing, behaviours, words, texts, data)
        of_fact = np.concatenate(relations) * n_nodes + np.concatenate(tails)
        facts, columns = np.unique(of_fact, return_inverse=True)
        entries = (np.concatenate(weights), (np.concatenate(rows), columns))
        known = sp.csr_matrix(entries, (n_items, len(facts)), dtype=np.float32)
        known.sum_duplicates()
        known = entity_features(known)
        said = np.unique(known.indices)  # the others are known of one item alone
        facts = facts[said]
        _, relation_numbers = np.unique(facts // n_nodes, return_inverse=True)
        nodes, tails_of = np.unique(facts % n_nodes, return_inverse=True)
        known = known[:, said].tocsr()
        return cls(known, relation_numbers, tails_of, nodes, behaviours, words, texts, data)


def _check_shapes(
    n_items: int, behaviours: Mapping[str, sp.csr_matrix], words: sp.csr_matrix, texts: Tensor
) -> None:
    n_users = {matrix.shape[0] for matrix in behaviours.values()}
    found = {
        **{f"columns of {name!r}": matrix.shape[1] for name, matrix in behaviours.items()},
        "rows of words": words.shape[0],
        "rows of texts": len(texts),
    }
    for what, n in found.items():
        if n != n_items:
            raise ModelError(
                f"found {n} {what}; allowed: {n_items}, one for each item of the graph. Make them "
                "in the order of its items."
            )
    if len(n_users) > 1:
        raise ModelError(
            f"found behaviours of {' and '.join(map(str, sorted(n_users)))} users; allowed: rows "
            "of the same users in all of them."
        )


def type_starts(data: HeteroData) -> tuple[dict[str, int], int]:
    """Where each node type begins, counted type after type, and how many nodes there are."""
    starts, n_nodes = {}, 0
    for kind in data.node_types:
        starts[kind], n_nodes = n_nodes, n_nodes + int(data[kind].num_nodes)
    return starts, n_nodes


class GraphEncoder(nn.Module, ABC):
    """Vectors of items: an own part, what the text says, and what the graph brings.

    An item that no user has met has no own part: what is known of it is its vector.

    Args:
        graph: what is learned on.
        dim: length of the vectors.
        start: (n_items × dim) sources and targets to start from; small random numbers if None.
    """

    def __init__(
        self,
        graph: GraphInput,
        dim: int,
        start: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
    ) -> None:
        super().__init__()
        met = np.zeros(graph.n_items, bool)
        for matrix in graph.behaviours.values():
            met[matrix.indices] = True
        self.met: Tensor
        self.register_buffer("met", torch.from_numpy(met)[:, None].float(), persistent=False)
        if start is None:
            self.source, self.target = table(graph.n_items, dim), table(graph.n_items, dim)
        else:
            self.source, self.target = (nn.Parameter(_sized(part)) for part in start)
        self.word = table(graph.words.shape[1], dim)
        self._words = Adjacency.of(graph.words)
        self.text = nn.Parameter(torch.randn(graph.texts.shape[1], dim) * PROJECTED)
        self.texts: Tensor
        self.register_buffer("texts", graph.texts, persistent=False)

    @abstractmethod
    def brought(self, said: Tensor | None = None) -> Tensor:
        """What the graph brings to each item, (n_items × dim); `said` as of `base`."""

    def base(self, said: Tensor | None = None) -> Tensor:
        """What each item's vector is before the graph, (n_items × dim).

        Args:
            said: what `said` gave before; worked out if None.
        """
        return self.target * self.met + (self.said() if said is None else said)

    def said(self) -> Tensor:
        """What words and text vectors bring to each item, (n_items × dim)."""
        words = propagate(self.word, self._words)
        return words + self.texts @ self.text if len(self.text) else words

    def shared(self) -> Tensor:
        """What text and graph bring to each item, (n_items × dim)."""
        said = self.said()
        return said + self.brought(said)

    def forward(
        self,
        shared: Tensor | None = None,
        sources: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sources and targets, each (n × dim) with rows of length 1 (or 0).

        Args:
            shared: what `shared` gave before; worked out if None.
            sources, targets: (n) int64, the items, each once, whose vectors are asked for; all of
                them if None.
        """
        shared = self.shared() if shared is None else shared
        return (
            _unit(self.source, self.met, shared, sources),
            _unit(self.target, self.met, shared, targets),
        )

    def sums(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Sources and targets before they are brought to length 1, each (n_items × dim).

        Args:
            shared: what `shared` gave.
        """
        return self.source * self.met + shared, self.target * self.met + shared

    def draw(self, epoch: int | None, seed: int = 0) -> None:
        """Choose the behaviours that are walked in this epoch; all of them if None.

        Args:
            epoch: which one, from 0.
            seed: of all draws; the same seed chooses the same ones in each epoch.
        """

    def to_device(self, device: str) -> GraphEncoder:
        """The encoder with its edges on `device`."""
        self._words = self._words.to(device)
        return self.to(device)


class LightEncoder(GraphEncoder):
    """Facts as learned vectors, one a (relation, tail), and light steps item → user → item.

    A fact's vector is its tail's times its relation's, element by element (DistMult's product;
    Yang et al., 2015). Each kind of behaviour has its own weight vector for each step.

    Of the behaviours it holds the matrices it is given (8 bytes an event) and both ways over what
    is walked (16 bytes an edge, on its device). Up to WALKED_EDGES events of all kinds that is all
    of them, in every epoch. Beyond, `draw` chooses FANOUT events a user and kind for an epoch, and
    all of them are walked, and held, only once `draw(None)` asks for them: for the final vectors.

    Args:
        graph: what is learned on.
        dim: length of the vectors.
        hops: steps item → user → item; 0 for facts alone.
        start: see `GraphEncoder`.

    Raises:
        ModelError: there are hops and no kind of behaviour.
    """

    def __init__(
        self,
        graph: GraphInput,
        dim: int,
        hops: int,
        start: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
    ) -> None:
        if hops:
            check_behaviours(graph, "or none and hops 0, which learns on facts alone")
        super().__init__(graph, dim, start)
        n_tails = int(graph.tails.max()) + 1 if len(graph.tails) else 0
        n_relations = int(graph.relations.max()) + 1 if len(graph.relations) else 0
        self.tail = table(n_tails, dim)
        self.relation = nn.Parameter(torch.ones(n_relations, dim))
        self.hop = nn.Parameter(torch.full((hops, len(graph.behaviours), dim), HOP))
        self._known = Adjacency.of(graph.known)
        self._fact = (
            Adjacency.of(_chosen(graph.relations, n_relations)),
            Adjacency.of(_chosen(graph.tails, n_tails)),
        )
        self._met = list(graph.behaviours.values()) if hops else []
        self._sampled = sum(matrix.nnz for matrix in self._met) > WALKED_EDGES
        self._behaviours: list[Adjacency] = []
        if not self._sampled:
            self._behaviours = [Adjacency.of(symmetric(matrix)) for matrix in self._met]
        self._step = LightConv()

    def facts(self) -> Tensor:
        """The vector of each fact, (n_facts × dim)."""
        relation, tail = self._fact
        return propagate(self.relation, relation) * propagate(self.tail, tail)

    def known(self) -> Tensor:
        """What facts bring to each item, (n_items × dim)."""
        brought: Tensor = self._step(self.facts(), self._known)
        return brought

    def brought(self, said: Tensor | None = None) -> Tensor:
        """What facts and neighbours bring, linear in the edges, (n_items × dim)."""
        known = self.known()
        if not len(self.hop):
            return known
        if not self._behaviours:
            self.draw(None)
        near, step = known, self.base(said) + known
        for weights in self.hop:
            users = _sum(self._step(step, edges) for edges in self._behaviours)
            step = _sum(
                weight * self._step(users, edges.transposed)
                for weight, edges in zip(weights, self._behaviours, strict=True)
            )
            near = near + step
        return near

    def draw(self, epoch: int | None, seed: int = 0) -> None:
        """Walk FANOUT events of each user and kind at most, where there are many events.

        Args:
            epoch: which one, from 0; all events are walked if None.
            seed: of all draws.
        """
        if not self._sampled:
            return
        self._behaviours = []  # before others take their place
        for number, matrix in enumerate(self._met):
            some = symmetric(matrix) if epoch is None else _some(matrix, (seed, epoch, number))
            self._behaviours.append(Adjacency.of(some).to(self.met.device))

    def to_device(self, device: str) -> GraphEncoder:
        """The encoder with its edges on `device`."""
        self._known = self._known.to(device)
        self._fact = self._fact[0].to(device), self._fact[1].to(device)
        self._behaviours = [edges.to(device) for edges in self._behaviours]
        return super().to_device(device)


def graph_encoder(
    name: EncoderName,
    graph: GraphInput,
    dim: int,
    hops: int,
    start: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None,
) -> GraphEncoder:
    """The encoder of this name; see the classes.

    Raises:
        ConfigError: no encoder has this name.
        ModelError: the graph has no kind of behaviour, and the encoder walks them.
    """
    if name not in get_args(EncoderName):
        allowed = ", ".join(get_args(EncoderName))
        raise ConfigError(f"found encoder {name!r}; allowed: {allowed}. Name one of them.")
    if name == "light":
        return LightEncoder(graph, dim, hops, start)
    from kgrank.kg.message_passing import MessageEncoder

    return MessageEncoder(graph, dim, max(hops, 1), name, start)


def check_behaviours(graph: GraphInput, otherwise: str) -> None:
    """Raises ModelError if there is no kind of behaviour; `otherwise` is what else is allowed."""
    if not graph.behaviours:
        raise ModelError(
            f"found no behaviours; allowed: one kind of event or more ({otherwise}). Give a matrix "
            "of users and items for each kind, an empty one where nobody has done anything."
        )


class _Unit(torch.autograd.Function):
    """own · met + shared of some items, each row over its length (0 stays 0), in few passes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, met: Tensor, shared: Tensor, items: Tensor | None) -> Tensor:
        parts = (own, met, shared) if items is None else (own[items], met[items], shared[items])
        unit = torch.addcmul(parts[2], parts[0], parts[1])
        length = torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_(min=SHORTEST)
        unit.div_(length)
        ctx.save_for_backward(unit, parts[1], length, items)
        ctx.n_items = len(own)
        return unit

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        unit, met, length, items = ctx.saved_tensors
        along = torch.linalg.vecdot(gradients[0], unit)[:, None]
        of_shared = torch.addcmul(gradients[0], unit, -along).div_(length)
        of_own = of_shared * met
        if items is not None:
            nothing = of_own.new_zeros(ctx.n_items, of_own.shape[1])
            of_own, of_shared = (nothing.index_copy(0, items, of) for of in (of_own, of_shared))
        return of_own, None, of_shared, None


def _unit(own: Tensor, met: Tensor, shared: Tensor, items: Tensor | None) -> Tensor:
    return cast(Tensor, _Unit.apply(own, met, shared, items))  # type: ignore[no-untyped-call]


def table(rows: int, dim: int) -> nn.Parameter:
    """New parameters, (rows × dim): small random numbers."""
    return nn.Parameter(torch.randn(rows, dim) * INITIAL)


def _sized(vectors: npt.NDArray[np.float32]) -> Tensor:
    """The vectors on the scale of new parameters."""
    rows = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    length = rows.norm(dim=1)
    mean = float(length[length > 0].mean()) if bool((length > 0).any()) else 1.0
    scale = INITIAL * rows.shape[1] ** 0.5 / mean
    return torch.mul(rows, scale)


def _chosen(columns: npt.NDArray[np.int64], n_columns: int) -> sp.csr_matrix:
    """(n × n_columns) with a one in each row, at its column."""
    n = len(columns)
    return sp.csr_matrix((np.ones(n, np.float32), columns, np.arange(n + 1)), (n, n_columns))


def _some(matrix: sp.csr_matrix, seed: tuple[int, ...]) -> sp.csr_matrix:
    """FANOUT entries of a row at most, which weigh as in `symmetric`, scaled to the row's sum."""
    of_users, of_items = inverse_roots(matrix)
    drawn = sampled(matrix, FANOUT, seed)
    scale = (of_users * np.maximum(np.diff(matrix.indptr) / FANOUT, 1.0)).astype(np.float32)
    weights = np.repeat(scale, np.diff(drawn.indptr)) * of_items[drawn.indices]
    return sp.csr_matrix((weights, drawn.indices, drawn.indptr), matrix.shape)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)  # without a copy of all of them
