"""Taking a score apart: by channel, by history event, and along the paths that carried it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import numpy as np

from kgrank.errors import ModelError
from kgrank.fusion.channels import SparseFeatures
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.model import EventParts, FoldedHistory, FusedModel, Head
from kgrank.serving.bundle import Bundle
from kgrank.serving.explanation import TOLERANCE, EventShare, Explanation, Path, Remainder
from kgrank.serving.paths import FoundPaths, PathFinder
from kgrank.serving.wording import describe

CHECKED = 250  # explanations of which one is held against the score of a list


@dataclass(frozen=True)
class EntityInterest:
    """An entity of a user's products; `share` sums to 1 over all entities."""

    id: str
    type: str
    name: str
    share: float
    item_ids: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """What the engine knows of a user.

    Attributes:
        events: kind of event → how many.
        first, last: seconds UTC of the oldest and newest event; None where events have no time.
        items: the newest distinct items, newest first.
        entities: what the items have in common, strongest first.
    """

    user_id: str
    events: dict[str, int]
    first: float | None
    last: float | None
    items: tuple[str, ...]
    entities: tuple[EntityInterest, ...]


@dataclass(frozen=True, eq=False)
class Explainer:
    """Takes scores of one model apart; what that needs is made once, when first asked for."""

    bundle: Bundle
    model: FusedModel

    def explain(
        self,
        user_id: str,
        item_ids: Sequence[str],
        *,
        max_paths: int = 3,
        head: Head | None = None,
        language: str = "en",
        anonymous: bool = False,
    ) -> Iterator[Explanation]:
        """See `Recommender.explain`; for several items of one user, whose history is folded once.

        Raises:
            ModelError: a split does not add up, or, of every CHECKED-th score, the sum is not what
                lists are made of. That is a fault in kgrank.
        """
        bundle, histories = self.bundle, self.bundle.histories
        user = bundle.users.number(user_id)
        span = histories.of_users(np.array([user]))
        met = set(histories.items[span.first[0] : span.last[0]].tolist())
        met_ids = bundle.items.ids(histories.items[span.first[0] : span.last[0]]).tolist()
        folded: dict[Head, FoldedHistory] = {}
        for item_id, item in [(item_id, bundle.items.number(item_id)) for item_id in item_ids]:
            of: Head = head or ("all" if item in met else "new")
            if of not in folded:
                folded[of] = self.model.folded(histories, span, of)
            parts = self.model.parts_of(folded[of], item, of)
            found = self.paths.find(parts, folded[of], item, user)
            paths = self.paths.shown(
                found, self.paths.choose(found, max_paths), user_id, item, anonymous=anonymous
            )
            why = self._explanation(user_id, item_id, parts, found, paths, met_ids)
            why.check()
            if next(self._count) % CHECKED == 0:
                self._check_score(why, span, item, of)
            yield replace(
                why,
                text=describe(
                    bias=why.bias,
                    contributions=why.contributions,
                    events=why.events,
                    paths=why.paths,
                    item_names=bundle.names,
                    is_new=bool(self.model.side.cold[item]),
                    language=language,
                    settings=bundle.config.wording,
                ),
            )

    @cached_property
    def paths(self) -> PathFinder:
        """What finds the paths."""
        return PathFinder(self.bundle)

    @cached_property
    def _count(self) -> Iterator[int]:
        return count()

    def _explanation(
        self,
        user_id: str,
        item_id: str,
        parts: EventParts,
        found: FoundPaths,
        paths: tuple[Path, ...],
        met_ids: list[str],
    ) -> Explanation:
        brought, by_paths = parts.parts.sum(axis=1), found.of_channels.sum(axis=1)
        names = [channel.name for channel in self.model.channels]
        sums = zip(names, brought.tolist(), by_paths.tolist(), strict=True)
        return Explanation(
            user_id=user_id,
            item_id=item_id,
            score=parts.score,
            bias=parts.bias,
            contributions=dict(zip(names, brought.tolist(), strict=True)),
            events=_event_shares(self.bundle.histories, parts, met_ids),
            paths=paths,
            rules=(),
            text="",
            remainder={name: Remainder(of, whole - of) for name, whole, of in sums},
        )

    def _check_score(self, why: Explanation, span: Spans, item: int, head: Head) -> None:
        """Raise unless the score is the one that lists are made of, to TOLERANCE."""
        score = float(self.model.scores(self.bundle.histories, span, head)[0, item])
        moved = abs(why.bias) + sum(map(abs, why.contributions.values()))
        if not abs(score - why.score) <= TOLERANCE * moved + 1e-6:
            raise ModelError(
                f"internal error: why {why.item_id!r} for {why.user_id!r}: found parts that sum to "
                f"{why.score!r}; allowed: the score {score!r}. Please report it."
            )


def _event_shares(
    histories: Histories, parts: EventParts, item_ids: list[str]
) -> tuple[EventShare, ...]:
    brought = parts.parts.sum(axis=0)
    order = np.argsort(-brought, kind="stable").tolist()
    kinds, shares = histories.kinds[parts.events].tolist(), brought.tolist()
    return tuple(
        EventShare(item_ids[event], histories.kind_names[kinds[event]], shares[event])
        for event in order
    )


def profile(bundle: Bundle, user_id: str, *, n_items: int = 10, n_entities: int = 10) -> Profile:
    """See `Recommender.profile`."""
    histories = bundle.histories
    span = histories.of_users(bundle.users.numbers([user_id]))
    events = np.arange(span.first[0], span.last[0])
    items = histories.items[events]
    kinds = np.bincount(histories.kinds[events], minlength=len(histories.kind_names))
    times = histories.times[events]
    timed = len(times) > 0 and bool(np.isfinite(times).all())
    newest = list(dict.fromkeys(items[::-1].tolist()))[:n_items]
    return Profile(
        user_id=user_id,
        events={k: int(n) for k, n in zip(histories.kind_names, kinds, strict=True) if n},
        first=float(times.min()) if timed else None,
        last=float(times.max()) if timed else None,
        items=tuple(str(i) for i in bundle.items.ids(np.array(newest, np.int64))),
        entities=_interests(bundle, items, n_entities),
    )


def _interests(bundle: Bundle, items: np.ndarray, n: int) -> tuple[EntityInterest, ...]:
    graph_channel = [c.form for c in bundle.model.channels if c.name == "graph"]
    if not graph_channel or not isinstance(graph_channel[0], SparseFeatures) or not len(items):
        return ()
    rows = graph_channel[0].values[items].tocoo()
    weights = np.bincount(rows.col, rows.data, minlength=rows.shape[1])
    total = weights.sum() or 1.0
    interests = []
    for column in np.argsort(-weights, kind="stable")[:n]:
        if weights[column] > 0.0:
            node = bundle.graph.node(int(bundle.item_entities.columns[column]))
            of = np.unique(items[rows.row[rows.col == column]])
            ids = tuple(str(i) for i in bundle.items.ids(of))
            share = float(weights[column] / total)
            interests.append(EntityInterest(node.id, node.type, node.name, share, ids))
    return tuple(interests)
