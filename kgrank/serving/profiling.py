"""What the engine knows of a user, line by line with the events behind it; and of a product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kgrank.fusion.channels import SparseFeatures
from kgrank.fusion.history import REFUSED, Decay
from kgrank.serving.bundle import Bundle
from kgrank.serving.conditions import Attributes

PRICE = "price"
"""The item attribute that price bands are of."""


@dataclass(frozen=True)
class EntityInterest:
    """An entity of a user's products: one line of a profile.

    Every event "not_interested" on one of `item_ids` takes from it; it goes when each of them was
    refused as often as it was chosen.

    Attributes:
        share: of everything known of the user's products; sums to 1 over all entities.
        item_ids: the products behind it.
        relation: what links them to it.
        events: kind of event on them → how many.
        last: seconds UTC of the newest of these; None where events have no time.
    """

    id: str
    type: str
    name: str
    share: float
    item_ids: tuple[str, ...]
    relation: str
    events: dict[str, int]
    last: float | None


@dataclass(frozen=True)
class PriceBand:
    """Prices of what a user bought, or chose: the 10, 50 and 90 % quantiles of `events` events."""

    low: float
    median: float
    high: float
    events: int


@dataclass(frozen=True)
class Profile:
    """What the engine knows of a user.

    Attributes:
        events: kind of event → how many.
        first, last: seconds UTC of the oldest and newest event; None where events have no time.
        items: the newest distinct items that were not refused, newest first.
        entities: what the items have in common, strongest first.
        price: None without a numeric attribute `price`, or without events on items that have one.
    """

    user_id: str
    events: dict[str, int]
    first: float | None
    last: float | None
    items: tuple[str, ...]
    entities: tuple[EntityInterest, ...]
    price: PriceBand | None


@dataclass(frozen=True)
class Fact:
    """A fact of a product: the relation and the entity (or product) at its other end."""

    relation: str
    id: str
    type: str
    name: str


@dataclass(frozen=True)
class Drawn:
    """A value of a user attribute among those who chose a product, and among all who chose any.

    Attributes:
        users: who chose the product and have the value.
        share: of those who chose the product.
        share_of_all: of all users with events.
    """

    attribute: str
    value: str
    users: int
    share: float
    share_of_all: float


@dataclass(frozen=True)
class ItemProfile:
    """What the engine knows of a product.

    Attributes:
        title: "" where it has none.
        events: kind of event → how many.
        users: how many chose it.
        facts: what the graph says of it.
        similar: the products that a history of it alone speaks for, and their scores.
        drawn: which users it draws: attribute values that are more frequent among them than among
            all, by the difference of the shares, largest first; of at least two users each.
    """

    item_id: str
    title: str
    events: dict[str, int]
    users: int
    facts: tuple[Fact, ...]
    similar: tuple[tuple[str, float], ...]
    drawn: tuple[Drawn, ...]


def profile(bundle: Bundle, user_id: str, *, n_items: int = 10, n_entities: int = 10) -> Profile:
    """See `Recommender.profile`."""
    histories = bundle.histories
    span = histories.of_users(bundle.users.numbers([user_id]))
    events = np.arange(span.first[0], span.last[0])
    signs = histories.event_weights(span, Decay())[1]
    times = histories.times[events]
    timed = len(times) > 0 and bool(np.isfinite(times).all())
    items = histories.items[events]
    refused = set(items[signs < 0].tolist())
    newest = [item for item in dict.fromkeys(items[::-1].tolist()) if item not in refused]
    return Profile(
        user_id=user_id,
        events=_kinds(bundle, events),
        first=float(times.min()) if timed else None,
        last=float(times.max()) if timed else None,
        items=tuple(str(i) for i in bundle.items.ids(np.array(newest[:n_items], np.int64))),
        entities=_interests(bundle, events, signs, n_entities),
        price=_price(bundle, events[signs > 0]),
    )


def _kinds(bundle: Bundle, events: npt.NDArray[np.int64]) -> dict[str, int]:
    names = bundle.histories.kind_names
    counts = np.bincount(bundle.histories.kinds[events], minlength=len(names))
    return {kind: int(n) for kind, n in zip(names, counts, strict=True) if n}


def _interests(
    bundle: Bundle, events: npt.NDArray[np.int64], signs: npt.NDArray[np.float32], n: int
) -> tuple[EntityInterest, ...]:
    graph_channel = [c.form for c in bundle.model.channels if c.name == "graph"]
    if not graph_channel or not isinstance(graph_channel[0], SparseFeatures) or not len(events):
        return ()
    items = bundle.histories.items[events]
    rows = graph_channel[0].values[items].tocoo()
    weights = np.bincount(rows.col, rows.data * signs[rows.row], minlength=rows.shape[1])
    weights[weights < 1e-6] = 0.0
    total = weights.sum() or 1.0
    interests = []
    for column in np.argsort(-weights, kind="stable")[:n]:
        if weights[column] > 0.0:
            node = bundle.graph.node(int(bundle.item_entities.columns[column]))
            behind = np.unique(rows.row[(rows.col == column) & (signs[rows.row] > 0)])
            of = np.unique(items[behind])
            edge = bundle.item_entities.edges_at(int(of[0]), int(column))[0]
            times = bundle.histories.times[events[behind]]
            interests.append(
                EntityInterest(
                    node.id,
                    node.type,
                    node.name,
                    float(weights[column] / total),
                    tuple(str(i) for i in bundle.items.ids(of)),
                    bundle.graph.edge(int(edge)).relation,
                    _kinds(bundle, events[behind]),
                    float(times.max()) if np.isfinite(times).all() else None,
                )
            )
    return tuple(interests)


def _price(bundle: Bundle, events: npt.NDArray[np.int64]) -> PriceBand | None:
    """The prices of the items of events: of purchases (`tasks.purchase`), of all without any."""
    histories = bundle.histories
    if PRICE not in bundle.item_table or not len(events):
        return None
    purchases = np.isin(histories.kind_names, bundle.config.tasks.purchase)
    bought = purchases[histories.kinds[events]]
    items = histories.items[events[bought] if bought.any() else events]
    prices = Attributes(bundle.item_table, bundle.items, "item_id").numbers(PRICE)[items]
    prices = prices[np.isfinite(prices)]
    if not len(prices):
        return None
    low, median, high = (float(q) for q in np.quantile(prices, (0.1, 0.5, 0.9)))
    return PriceBand(low, median, high, len(prices))


def item_profile(
    bundle: Bundle, item_id: str, similar: Sequence[tuple[str, float]], *, n: int = 10
) -> ItemProfile:
    """See `Recommender.profile_item`; `similar` are its neighbours."""
    item = int(bundle.items.numbers([item_id])[0])
    histories = bundle.histories
    events = np.flatnonzero(histories.items == item)
    kept = histories.kinds[events] != (
        histories.kind_names.index(REFUSED) if REFUSED in histories.kind_names else -1
    )
    users = np.unique(np.searchsorted(histories.starts, events[kept], side="right") - 1)
    known = bundle.item_entities
    start, end = known.matrix.indptr[item], known.matrix.indptr[item + 1]
    facts = []
    for column in known.matrix.indices[start:end]:
        node = bundle.graph.node(int(known.columns[column]))
        for number in known.edges_at(item, int(column)):
            relation = bundle.graph.edge(int(number)).relation
            facts.append(Fact(relation, node.id, node.type, node.name))
    return ItemProfile(
        item_id=item_id,
        title=bundle.names[item_id] if bundle.names[item_id] != item_id else "",
        events=_kinds(bundle, events),
        users=len(users),
        facts=tuple(dict.fromkeys(facts)),
        similar=tuple(similar),
        drawn=_drawn(bundle, users, n),
    )


def _drawn(bundle: Bundle, users: npt.NDArray[np.int64], n: int) -> tuple[Drawn, ...]:
    table = Attributes(bundle.user_table, bundle.users, "user_id")
    active = np.flatnonzero(np.diff(bundle.histories.starts))
    found = []
    for name in table.names:
        if name == "user_id" or not len(users):
            continue
        starts, codes, values = table.values(name)
        of_all, own = (
            Counter(code for user in group for code in codes[starts[user] : starts[user + 1]])
            for group in (active, users)
        )
        for code, count in own.items():
            share, usual = count / len(users), of_all[code] / len(active)
            if count > 1 and share > usual:
                found.append(Drawn(name, values[code], count, share, usual))
    found.sort(key=lambda d: (d.share_of_all - d.share, d.attribute, d.value))
    return tuple(found[:n])
