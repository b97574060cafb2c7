"""Taking a score apart: by channel, by history event, and along the paths that carried it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np

from kgrank.errors import ModelError
from kgrank.fusion.history import Histories, Spans
from kgrank.fusion.model import EventParts, FusedModel, Head
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
        own = histories.items[span.first[0] : span.last[0]]
        met, met_ids = set(own.tolist()), [bundle.items.id(item) for item in own.tolist()]
        numbers = [bundle.items.number(item_id) for item_id in item_ids]
        heads: list[Head] = [head or ("all" if item in met else "new") for item in numbers]
        split = {
            of: self._split(
                span, user, [i for i, h in zip(numbers, heads, strict=True) if h == of], of
            )
            for of in dict.fromkeys(heads)
        }
        for item_id, item, of in zip(item_ids, numbers, heads, strict=True):
            parts, found = split[of][item]
            paths = self.paths.shown(
                found, self.paths.choose(found, max_paths), user_id, item, anonymous=anonymous
            )
            why = self._explanation(
                user_id, item_id, item, of, parts, found, paths, met_ids, language
            )
            why.check()
            if next(self._count) % CHECKED == 0:
                self._check_score(why, span, item, of)
            yield why

    def _split(
        self, span: Spans, user: int, items: list[int], head: Head
    ) -> dict[int, tuple[EventParts, FoundPaths]]:
        """The scores of some items taken apart, and all their paths."""
        each = np.array(list(dict.fromkeys(items)))
        folded = self.model.folded(self.bundle.histories, span, head)
        parts = self.model.parts_of_each(folded, each, head)
        found = self.paths.find_each(parts, folded, each, user)
        return dict(zip(each.tolist(), zip(parts, found, strict=True), strict=True))

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
        item: int,
        head: Head,
        parts: EventParts,
        found: FoundPaths,
        paths: tuple[Path, ...],
        met_ids: list[str],
        language: str,
    ) -> Explanation:
        bundle, predictor = self.bundle, self.model.predictors.get(head)
        score, brought = parts.score, parts.parts.sum(axis=1).tolist()
        names = [channel.name for channel in self.model.channels]
        sums = zip(names, brought, found.of_channels.sum(axis=1).tolist(), strict=True)
        contributions = dict(zip(names, brought, strict=True))
        events = _event_shares(bundle.histories, parts, met_ids)
        return Explanation(
            user_id=user_id,
            item_id=item_id,
            score=score,
            bias=parts.bias,
            contributions=contributions,
            events=events,
            paths=paths,
            rules=(),
            text=describe(
                bias=parts.bias if predictor is None else self._above_mean(item, head),
                contributions=contributions,
                events=events,
                paths=paths,
                item_names=bundle.names,
                is_new=bool(self.model.side.cold[item]),
                language=language,
                settings=bundle.config.wording,
            ),
            task="rank" if predictor is None else head,
            prediction=None if predictor is None else float(predictor.link(score)),
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
