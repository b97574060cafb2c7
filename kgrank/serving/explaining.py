"""Taking a score apart: by channel, by history event, and along the graph paths that carried it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kgrank.fusion.channels import SparseFeatures
from kgrank.fusion.model import EventParts, FusedModel, Head
from kgrank.kg.vocabulary import Node
from kgrank.serving.bundle import Bundle
from kgrank.serving.explanation import EventShare, Explanation, Path, PathEdge, PathNode
from kgrank.serving.wording import describe


def explain(
    bundle: Bundle,
    model: FusedModel,
    user_id: str,
    item_id: str,
    max_paths: int,
    head: Head | None,
    language: str,
) -> Explanation:
    """See `Recommender.explain`."""
    user, item = int(bundle.users.numbers([user_id])[0]), int(bundle.items.numbers([item_id])[0])
    histories = bundle.histories
    span = histories.of_users(np.array([user]))
    if head is None:
        met = histories.items[span.first[0] : span.last[0]]
        head = "all" if item in met else "new"
    parts = model.parts(histories, span, item, head)
    contributions = {
        channel.name: float(part)
        for channel, part in zip(model.channels, parts.parts.sum(axis=1), strict=True)
    }
    events = _event_shares(bundle, parts)
    paths = tuple(graph_paths(bundle, model, user_id, item, parts, max_paths))
    predictor = model.predictors.get(head)
    text = describe(
        bias=parts.bias if predictor is None else _above_mean(model.bias(head), item),
        contributions=contributions,
        events=events,
        paths=paths,
        item_names=bundle.names,
        is_new=bool(model.side.cold[item]),
        language=language,
    )
    return Explanation(
        user_id=user_id,
        item_id=item_id,
        score=parts.score,
        bias=parts.bias,
        contributions=contributions,
        events=events,
        paths=paths,
        rules=(),
        text=text,
        task="rank" if predictor is None else head,
        prediction=None if predictor is None else float(predictor.link(parts.score)),
    )


def _above_mean(bias: np.ndarray, item: int) -> float:
    """What the item gets from everybody beyond the mean item."""
    return float(bias[item] - bias.mean())


def _event_shares(bundle: Bundle, parts: EventParts) -> tuple[EventShare, ...]:
    histories = bundle.histories
    brought = parts.parts.sum(axis=0)
    order = np.argsort(-brought, kind="stable")
    items = bundle.items.ids(histories.items[parts.events])
    kinds = histories.kinds[parts.events]
    return tuple(
        EventShare(str(items[e]), histories.kind_names[kinds[e]], float(brought[e])) for e in order
    )


def graph_paths(
    bundle: Bundle, model: FusedModel, user_id: str, item: int, parts: EventParts, n: int
) -> list[Path]:
    """The paths user → product → entity → product that carried the graph channel's part.

    Each (product, entity) pair carries factor × F[product, entity] × F[item, entity]; all of them
    sum to the channel's contribution. What is returned are at most n of them, strongest first, no
    two through the same entity, and over different products of the history where those carry at
    least a tenth of the strongest; one that carries less than a hundredth is not shown.
    """
    numbers = [n for n, channel in enumerate(model.channels) if channel.name == "graph"]
    form = model.channels[numbers[0]].form if numbers else None
    if not isinstance(form, SparseFeatures) or not len(parts.events):
        return []
    shares = path_shares(bundle, form, item, parts.factors[numbers[0]], parts.events)
    shares = shares[shares["share"] > 0.0].sort_values("share", ascending=False, kind="stable")
    if shares.empty:
        return []
    strongest = shares["share"].iloc[0]
    shares = shares[shares["share"] >= strongest / 100.0]
    notable = shares[shares["share"] >= strongest / 10.0]
    chosen: dict[int, tuple[int, float]] = {}  # entity → product, share
    for rows, once in ((notable, True), (shares, False)):
        for of, entity, share in rows.itertuples(index=False):
            used = {product for product, _ in chosen.values()} if once else ()
            if len(chosen) < n and entity not in chosen and of not in used:
                chosen[entity] = (of, share)
    ranked = sorted(chosen.items(), key=lambda entry: -entry[1][1])
    return [
        _path(bundle, user_id, of, entity, item, share, parts.events)
        for entity, (of, share) in ranked
    ]


def path_shares(
    bundle: Bundle,
    form: SparseFeatures,
    item: int,
    factors: np.ndarray,
    events: np.ndarray,
) -> pd.DataFrame:
    """Every path's share of the graph channel's contribution: `item`, `entity`, `share`.

    Args:
        bundle: for the histories.
        form: the graph channel's features.
        item: the product explained.
        factors: (n_events) what each event's product is multiplied by.
        events: (n_events) event numbers.
    """
    items = bundle.histories.items[events]
    own = form.values[item]
    rows = form.values[items][:, own.indices].tocoo()
    share = factors[rows.row] * rows.data * own.data[rows.col]
    table = pd.DataFrame({"item": items[rows.row], "entity": own.indices[rows.col], "share": share})
    return table.groupby(["item", "entity"], as_index=False, sort=True)[["share"]].sum()


def _path(
    bundle: Bundle,
    user_id: str,
    of: int,
    column: int,
    item: int,
    share: float,
    events: np.ndarray,
) -> Path:
    graph, entities = bundle.graph, bundle.item_entities
    kinds = bundle.histories.kinds[events[bundle.histories.items[events] == of]]
    kind = bundle.histories.kind_names[int(np.bincount(kinds).argmax())]
    first, last = (_path_edge(bundle, int(entities.edges_at(row, column)[0])) for row in (of, item))
    of_id, item_id = (str(i) for i in bundle.items.ids(np.array([of, item])))
    middle = graph.node(int(entities.columns[column]))
    nodes = (
        graph.node(graph.node_number("user", user_id)),
        graph.node(graph.node_number("item", of_id)),
        middle,
        graph.node(graph.node_number("item", item_id)),
    )
    edges = (PathEdge(kind, user_id, of_id), first, last)
    return Path(tuple(map(_path_node, nodes)), edges, float(share))


def _path_node(node: Node) -> PathNode:
    return PathNode(node.id, node.type, node.name)


def _path_edge(bundle: Bundle, number: int) -> PathEdge:
    edge = bundle.graph.edge(number)
    head, tail = bundle.graph.node(edge.head), bundle.graph.node(edge.tail)
    return PathEdge(edge.relation, head.id, tail.id)
