"""The paths that carried a score: found, merged over channels, and the few best and different ones.

Every path is user → product of the history → entity, product or other user → product, or, where a
fact ties both products to each other, user → product of the history → product. What each channel's
paths carry is the arithmetic of `kgrank.fusion.attribution`:

| channel | its paths run over | a path's share |
|---|---|---|
| `linear`, `directed` | other users, shared entities | its row's part of the weight |
| `graph` | shared entities | the product of both features |
| `learned` | shared entities | the product of what the entity brings to both vectors |
| `learned` | a fact that ties both | `kgrank.fusion.light`: what the fact brings to both vectors |
| `learned` with hops | other users | `kgrank.fusion.light`: what went over the user |

An entity may also be an item that both products are tied to. The other channels have no paths
(shared words are no nodes), nor has `learned` unless its encoder is "light".

There are no other kinds of paths, since the model's arithmetic knows none of up to four edges:

- over a fact that ties both products to each other in other channels than `learned`: an item is not
  among its own features, so a product of features has no term of it.
- over a fact between entities, or a fact of a third item: features and side rows hold what touches
  the item itself, and no step goes from fact to fact.
- over several users: in `learned` that is over a third item, so five edges. In `linear` and
  `directed` the second order of a weight pulls down: it is what others have said already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from kgrank.fusion.attribution import Regression, SharedFacts
from kgrank.fusion.channels import Channel, DenseFeatures, ItemItem, SparseFeatures
from kgrank.fusion.evidence import Evidence, ItemFeatures, Steps, numbered
from kgrank.fusion.history import REFUSED
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.light import SharedUsers
from kgrank.fusion.model import EventParts, FoldedHistory
from kgrank.fusion.ways import Ways, carried
from kgrank.kg.vocabulary import USER
from kgrank.serving.bundle import Bundle
from kgrank.serving.cypher import query_of
from kgrank.serving.explanation import Path, PathEdge, PathNode
from kgrank.serving.learned_facts import fact_parts, shared_facts, tied_facts
from kgrank.serving.path_choice import chosen, merged, most_often

LEAST = 1 / 100  # of the strongest; what carries less is not shown
NOTABLE = 1 / 10  # of the strongest, from which on another product comes first
LEAST_INFORMATION = 0.1  # of a node; see `PathFinder.information`
KEPT = 1 << 16  # nodes as people see them that are kept, some 20 MB

Numbers = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FoundPaths:
    """All paths of one score, each once.

    Attributes:
        items: (n) int64 item numbers, the product of the history that each runs over.
        middles: (n) int64 node numbers: the entity, product or user behind it; the product of the
            history itself where a fact ties it to the item.
        parts: (n) float64 > 0, what each carried over all channels.
        of_channels: (n_channels × n) float64, what it carried in each.
    """

    items: Numbers
    middles: Numbers
    parts: Doubles
    of_channels: Doubles


class Chosen(NamedTuple):
    """The place of a path in `FoundPaths`, and those of the others that it stands for."""

    path: int
    others: list[int]


@dataclass(frozen=True, eq=False)
class PathFinder:
    """Finds the paths of scores of one bundle; what it needs it makes once, when first asked."""

    bundle: Bundle

    def find(self, parts: EventParts, history: FoldedHistory, item: int, user: int) -> FoundPaths:
        """All paths that carried a part of a score.

        Args:
            parts: the score taken apart.
            history: what it was taken apart over.
            item: item number, explained.
            user: user number.
        """
        return self.find_each([parts], history, np.array([item]), user)[0]

    def find_each(
        self,
        parts: Sequence[EventParts],
        history: FoldedHistory,
        items: npt.NDArray[np.integer],
        user: int,
    ) -> list[FoundPaths]:
        """The same for several items (n) of one user, each once; `parts` are in their order."""
        met = history.products[0]
        gates = np.stack([of_item.gates for of_item in parts])  # (n, n_channels)
        n_channels, n_nodes = gates.shape[1], len(self.informative)
        keys, sums = [np.empty(0, np.int64)], [np.empty(0)]
        channels = [np.empty(0, np.int64)]
        for number, channel in enumerate(self.bundle.model.channels):
            if not len(met) or not gates[:, number].any():
                continue
            of_met, of_items = history.of_products[number], gates[:, number].copy()
            for ways, nodes in self._ways(channel, met, items, user):
                paths, parts_of = carried(ways, of_met, of_items, nodes, n_nodes)
                keys.append(paths)
                sums.append(parts_of)
                channels.append(np.full(len(paths), number))
        joined = np.concatenate(keys)
        products, middles, of_channels, sum_of, starts = merged(
            joined,
            np.argsort(joined, kind="stable"),
            np.concatenate(sums),
            np.concatenate(channels),
            n_channels,
            met,
            n_nodes,
            len(items),
        )
        return [
            FoundPaths(products[a:b], middles[a:b], sum_of[a:b], of_channels[:, a:b])
            for a, b in pairwise(starts.tolist())
        ]

    def choose(self, found: FoundPaths, n: int) -> list[Chosen]:
        """At most n of the paths, the strongest and different, the strongest first.

        Paths over one product and other users are one to choose, as strong as all of them; the
        strongest of them is shown. No two run through the same node; a node that says too little
        (`information`) is not shown; other products of the history go first as long as they carry
        a tenth of the strongest; what carries less than a hundredth of it is not shown.
        """
        told = self.informative[found.middles]
        over_user = self._is_user[found.middles]
        paths, starts, others = chosen(
            found.items, found.middles, found.parts, told, over_user, n, NOTABLE, LEAST
        )
        cuts, rest = starts.tolist(), others.tolist()
        return [
            Chosen(path, rest[a:b])
            for path, (a, b) in zip(paths.tolist(), pairwise(cuts), strict=True)
        ]

    def shown(
        self,
        found: FoundPaths,
        chosen: Sequence[Chosen],
        user_id: str,
        item: int,
        *,
        anonymous: bool,
    ) -> tuple[Path, ...]:
        """The chosen paths as people see them.

        Args:
            found: all paths.
            chosen: which of them.
            user_id: whose.
            item: item number, explained.
            anonymous: whether other users' ids are left out.
        """
        return tuple(
            self._path(found, path, user_id, item, number if anonymous else None)
            for number, path in enumerate(chosen, 1)
        )

    @cached_property
    def information(self) -> Doubles:
        """(n_nodes) float64, how much it says that a path runs through a node, 1 at the most.

        1 − log(items that the node touches) / log(items): 0 for what all items share.
        """
        bundle = self.bundle
        degree = np.ones(len(bundle.graph.nodes))
        of_columns = np.bincount(
            bundle.item_entities.matrix.indices, minlength=len(bundle.item_entities.columns)
        )
        degree[bundle.item_entities.columns] = of_columns
        known = self.user_nodes >= 0
        degree[self.user_nodes[known]] = np.diff(bundle.histories.binary().indptr)[known]
        n_items = max(2, len(bundle.items))
        return np.asarray(1.0 - np.log(np.maximum(degree, 1.0)) / np.log(n_items))

    @cached_property
    def informative(self) -> npt.NDArray[np.bool_]:
        """(n_nodes) bool: whether a path over the node may be shown."""
        return self.information >= LEAST_INFORMATION

    @cached_property
    def _is_user(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.bundle.graph.nodes.types == USER)

    def _ways(
        self,
        channel: Channel,
        met: npt.NDArray[np.integer],
        items: npt.NDArray[np.integer],
        user: int,
    ) -> Iterator[tuple[Ways, Numbers]]:
        """The channel's ways from the products met to the items, and the node of each middle."""
        columns = self._column_nodes
        if isinstance(channel.form, ItemItem):
            regression = self._regression(channel)
            if regression is not None:
                shares = regression.shares(met, items, user)
                yield shares.users, self.user_nodes
                yield shares.entities, columns
        else:
            shared = self._shared_facts(channel)
            if shared is not None:
                yield shared.shares(met, items), columns
            direct = self._tied(channel)
            if direct is not None:
                yield direct.shares(met, items), self.item_nodes
            over_users = self._shared_users(channel)
            if over_users is not None:
                yield over_users.shares(met, items, user), self.user_nodes

    @cached_property
    def user_nodes(self) -> Numbers:
        """The node of each user number; -1 where the graph does not know the user."""
        graph = self.bundle.graph
        numbers = graph.users.numbers(self.bundle.users.array, missing="negative")
        nodes = np.append(graph.nodes.user_nodes, -1)  # the last one for -1
        return nodes[numbers].astype(np.int64)

    @cached_property
    def item_nodes(self) -> Numbers:
        """The node of each item number; -1 where the graph does not know the item."""
        graph = self.bundle.graph
        numbers = graph.items.numbers(self.bundle.items.array, missing="negative")
        return np.append(graph.nodes.item_nodes, -1)[numbers].astype(np.int64)

    @cached_property
    def _column_nodes(self) -> Numbers:
        return self.bundle.item_entities.columns.astype(np.int64)

    @cached_property
    def _made(self) -> dict[str, Regression | SharedFacts | SharedUsers | None]:
        return {}

    def _regression(self, channel: Channel) -> Regression | None:
        """The rows behind an item–item channel; None where it was not fitted as a regression."""
        if channel.name not in self._made:
            choice = self.bundle.facts.get("choices", {}).get(channel.name)
            made = None
            if isinstance(channel.form, ItemItem) and choice is not None and choice["ridge"]:
                ridge, steps = Ridge(**choice["ridge"]), Steps.of_choice(choice)
                made = Regression.of(self.evidence, ridge, steps, channel.form.weights)
            self._made[channel.name] = made
        found = self._made[channel.name]
        return found if isinstance(found, Regression) else None

    def _shared_facts(self, channel: Channel) -> SharedFacts | None:
        """What the channel says of two items by an entity that both have; None if nothing."""
        if channel.name not in self._made:
            made, form = None, channel.form
            if channel.name == "graph" and isinstance(form, SparseFeatures):
                made = SharedFacts.of(form.values, form.values)
            elif isinstance(form, DenseFeatures) and (parts := self.fact_parts(form)) is not None:
                made = shared_facts(form, *parts)
            self._made[channel.name] = made
        found = self._made[channel.name]
        return found if isinstance(found, SharedFacts) else None

    def _shared_users(self, channel: Channel) -> SharedUsers | None:
        """What the channel says of two items over users who met both; None if nothing."""
        key, form = f"{channel.name} over users", channel.form
        if key not in self._made:
            made = None
            if isinstance(form, DenseFeatures) and form.entities and form.entities.steps:
                made = SharedUsers.of(form, form.entities.steps, self.evidence.histories)
            self._made[key] = made
        found = self._made[key]
        return found if isinstance(found, SharedUsers) else None

    def fact_parts(
        self, form: DenseFeatures
    ) -> tuple[sp.csr_matrix, npt.NDArray[np.float32]] | None:
        """See `kgrank.serving.learned_facts`; made once."""
        if form not in self._parts:
            self._parts[form] = fact_parts(self.bundle, form)
        return self._parts[form]

    @cached_property
    def _parts(self) -> dict[DenseFeatures, tuple[sp.csr_matrix, npt.NDArray[np.float32]] | None]:
        return {}

    def _tied(self, channel: Channel) -> SharedFacts | None:
        """What the channel says of two items by a fact that ties them; None if nothing."""
        key, form = f"{channel.name} of tied", channel.form
        if key not in self._made:
            made = None
            if isinstance(form, DenseFeatures) and form.entities and form.entities.items:
                parts = self.fact_parts(form)
                made = parts and tied_facts(self.bundle, self.item_nodes, form, *parts)
            self._made[key] = made
        found = self._made[key]
        return found if isinstance(found, SharedFacts) else None

    @cached_property
    def evidence(self) -> Evidence:
        """What the channels were fitted on."""
        bundle = self.bundle
        histories, splits = numbered(bundle.events, bundle.users, bundle.items)
        fitted = ~histories.of_kinds((REFUSED,))
        if not bundle.config.fit.refit:
            fitted &= splits == 0
        histories = histories.where(fitted)
        forms = {c.name: c.form for c in bundle.model.channels}
        shape = len(bundle.items), max(1, len(self._column_nodes))
        nothing = sp.csr_matrix(shape, dtype=np.float32)
        words, entities = (
            form.values if isinstance(form := forms.get(name), SparseFeatures) else nothing
            for name in ("text", "graph")
        )
        return Evidence(histories, ItemFeatures(words, entities))

    def _path(
        self,
        found: FoundPaths,
        chosen: Chosen,
        user_id: str,
        item: int,
        hidden: int | None,
    ) -> Path:
        """A path as people see it; `hidden` numbers the other user instead of the id."""
        bundle, graph, path = self.bundle, self.bundle.graph, chosen.path
        product, middle = int(found.items[path]), int(found.middles[path])
        user = bundle.users.number(user_id)
        ends = (product, self._item(product)), (item, self._item(item))
        over = self._node(middle)
        edges = [PathEdge(self._kind(user, product), user_id, ends[0][1].id)]
        is_hidden = hidden is not None and over.type == "user"
        if over.type == "user":
            other = bundle.users.number(over.id)
            if is_hidden:
                over = PathNode(f"another user {hidden}", "user", "")
            edges += [PathEdge(self._kind(other, end), over.id, node.id) for end, node in ends]
        else:
            column = int(self._column_nodes.searchsorted(middle))
            direct = middle == self.item_nodes[product]
            for end, node in ends[1:] if direct else ends:
                number = bundle.item_entities.edges_at(end, column)[0]
                relation = graph.relations[graph.edge_relations[number]]
                both = (node.id, over.id) if graph.tails[number] == middle else (over.id, node.id)
                edges.append(PathEdge(relation, *both))
        between = (ends[0][1],) if over == ends[0][1] else (ends[0][1], over)
        nodes = (PathNode(user_id, "user", user_id), *between, ends[1][1])
        parts = zip(bundle.model.channels, found.of_channels[:, path].tolist(), strict=True)
        return Path(
            nodes,
            tuple(edges),
            float(found.parts[path]),
            {channel.name: part for channel, part in parts if part},
            len(chosen.others),
            float(found.parts[chosen.others].sum()) if chosen.others else 0.0,
            "" if is_hidden else query_of(nodes, edges),
        )

    @cached_property
    def _node(self) -> Callable[[int], PathNode]:
        """A node of the graph; those used last are kept."""

        def made(number: int) -> PathNode:
            node = self.bundle.graph.node(number)
            return PathNode(node.id, node.type, node.name)

        return lru_cache(KEPT)(made)

    @cached_property
    def _item(self) -> Callable[[int], PathNode]:
        """An item by its number; those used last are kept."""

        def made(number: int) -> PathNode:
            item_id = self.bundle.items.id(number)
            return PathNode(item_id, "item", self.bundle.names[item_id])

        return lru_cache(KEPT)(made)

    def _kind(self, user: int, item: int) -> str:
        """The kind of event that a user has most often on an item; that of a refusal is none."""
        histories, names = self.bundle.histories, self.bundle.histories.kind_names
        refused = names.index(REFUSED) if REFUSED in names else -1
        kind = most_often(
            histories.starts, histories.items, histories.kinds, user, item, refused, len(names)
        )
        return names[kind]
