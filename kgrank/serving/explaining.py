"""Taking a score apart: by channel, by history event, and along the paths that carried it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count

import numpy as np

from kgrank.errors import ModelError
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.model import EventParts, FoldedHistory, FusedModel, Head
from kgrank.serving.bundle import Bundle
from kgrank.serving.explanation import TOLERANCE, EventShare, Explanation, Path, Remainder
from kgrank.serving.paths import FoundPaths, PathFinder
from kgrank.serving.wording import describe

CHECKED = 250  # explanations of which one is held against the score of a list


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
            predictor = self.model.predictors.get(of)
            if predictor is not None:
                why = replace(why, task=of, prediction=float(predictor.link(parts.score)))
            why.check()
            if next(self._count) % CHECKED == 0:
                self._check_score(why, span, item, of)
            yield replace(
                why,
                text=describe(
                    bias=why.bias if predictor is None else self._above_mean(item, of),
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

    def _above_mean(self, item: int, head: Head) -> float:
        """What the item gets from everybody beyond the mean item."""
        bias = self.model.bias(head)
        return float(bias[item] - bias.mean())

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
