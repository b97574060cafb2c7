"""What the shop's rules do to one product in one user's lists, each told by leaving it out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from kgrank.fusion.history import Decay, Histories, Spans
from kgrank.fusion.model import FusedModel, Head, Repeats, exclude, only
from kgrank.serving.explanation import Explanation, RuleEffect
from kgrank.serving.rules import Rule
from kgrank.serving.ruling import Ruling

LENGTH = 10
"""Of the list in which an explanation of one product tells what pins, caps and diversity do."""


@dataclass(frozen=True)
class _Words:
    """The templates of one language."""

    exclude: str
    only: str
    more: str
    less: str
    moved: str
    put: str
    kept: str
    among: str
    gap: str


_WORDS: Mapping[str, _Words] = {
    "en": _Words(
        exclude="The shop's rule “{rule}” keeps it off every list.",
        only="The shop's rule “{rule}” lists other products only.",
        more="The shop's rule “{rule}” adds {size:.2f} to its score.",
        less="The shop's rule “{rule}” takes {size:.2f} from its score.",
        moved="The shop's rule “{rule}” moves it from place {without} to place {place}.",
        put="Only the shop's rule “{rule}” lists it, on place {place}.",
        kept="The shop's rule “{rule}” keeps it off place {without}.",
        among="The shop's rule “{rule}” is one of those that keep it off place {without} together.",
        gap=" ",
    ),
    "zh": _Words(
        exclude="店铺规则“{rule}”不让它进入任何列表。",
        only="店铺规则“{rule}”只列出别的商品。",
        more="店铺规则“{rule}”给它加了{size:.2f}分。",
        less="店铺规则“{rule}”给它减了{size:.2f}分。",
        moved="店铺规则“{rule}”把它从第{without}位移到第{place}位。",
        put="只因店铺规则“{rule}”它才列在第{place}位。",
        kept="店铺规则“{rule}”使它没有列在第{without}位。",
        among="店铺规则“{rule}”与其他规则一起使它没有列在第{without}位。",
        gap="",
    ),
}


@dataclass(frozen=True, eq=False)
class RuledLists:
    """A user's list as the rules make it, and as it were without some of them; each made once.

    Attributes:
        ruling: the rules at work.
        scores: (1 × n_items) as `list_scores` gives them for the user.
        user: the user's number.
        n, head, candidates: the list.
    """

    ruling: Ruling
    scores: torch.Tensor
    user: int
    n: int
    head: Head
    candidates: npt.NDArray[np.integer] | None

    def place(self, item: int, without: frozenset[str] = frozenset()) -> int | None:
        """The place of an item, from 1, in the list without the rules of these names."""
        if without not in self._made:
            self._made[without] = self.ruling.listed(
                self.scores, [self.user], self.n, self.head, self.candidates, without
            )[0]
        places = np.flatnonzero(self._made[without] == item)
        return int(places[0]) + 1 if len(places) else None

    @cached_property
    def _made(self) -> dict[frozenset[str], npt.NDArray[np.int64]]:
        return {}

    @cached_property
    def rules(self) -> list[tuple[Rule, npt.NDArray[np.bool_]]]:
        """The rules that hold for the user, and (n_items) the items each is about."""
        return self.ruling.of_user(self.user)


def with_rules(
    explanations: Iterable[Explanation],
    ruling: Ruling,
    repeats: Repeats | None,
    head: Head | None,
    language: str,
    n: int = LENGTH,
) -> Iterator[Explanation]:
    """Explanations with what the rules did: boosts in their scores, all in `rules` and the text.

    Args:
        explanations: of one user's scores without rules. They stay as they are where none are.
        ruling: the rules at work.
        repeats: the kind of list; None = "exclude", or "allow" for a product that was met.
        head: what the lists are weighed by; None = by what `repeats` says.
        language: of the text.
        n: how long the list is in which the rules' effects are told.
    """
    lists: dict[Repeats, RuledLists] = {}
    for explanation in explanations:
        if not len(ruling.rules):
            yield explanation
            continue
        bundle = ruling.bundle
        user, item = (
            bundle.users.number(explanation.user_id),
            bundle.items.number(explanation.item_id),
        )
        span = bundle.histories.of_users(np.array([user]))
        kind: Repeats = repeats or "exclude"
        if repeats is None and item in bundle.histories.items[span.first[0] : span.last[0]]:
            kind = "allow"
        if kind not in lists:
            of: Head = head or ("new" if kind == "exclude" else "all")
            scores = list_scores(ruling.model, bundle.histories, span, of, kind)
            lists[kind] = RuledLists(ruling, scores, user, n, of, None)
        found = effects(lists[kind], item, language)
        contributions = dict(explanation.contributions)
        if any(effect.action == "boost" for effect in found):
            contributions["rules"] = sum(effect.contribution for effect in found)
        said = [explanation.text, *(effect.text for effect in found)]
        yield replace(
            explanation,
            score=explanation.score + contributions.get("rules", 0.0),
            contributions=contributions,
            rules=found,
            text=_WORDS[language].gap.join(said),
        )


def list_scores(
    model: FusedModel, histories: Histories, spans: Spans, head: Head, repeats: Repeats
) -> torch.Tensor:
    """(n_spans × n_items) float32 scores before any rule, -inf where `repeats` leaves out."""
    scores = model.scores(histories, spans, head)
    if repeats == "allow":
        return scores
    met = histories.weights(spans, Decay())
    return exclude(scores, met) if repeats == "exclude" else only(scores, met)


def effects(lists: RuledLists, item: int, language: str) -> tuple[RuleEffect, ...]:
    """The rules that touch a product in a user's list.

    Args:
        lists: the list.
        item: the product's number.
        language: of the texts.
    """
    words, found, rules = _WORDS[language], [], lists.rules
    left_out = any((rule.action, mask[item]) in _LEAVE_OUT for rule, mask in rules)
    here = None if left_out else lists.place(item)
    for rule, mask in rules:
        contribution, there, told = 0.0, here, ""
        if (rule.action, mask[item]) in _LEAVE_OUT:
            there = lists.place(item, frozenset([rule.name]))
            told = words.exclude if rule.action == "exclude" else words.only
        elif rule.action == "boost" and mask[item]:
            contribution = float(rule.by or 0.0) * lists.ruling.unit(lists.head)
            there = here if left_out else lists.place(item, frozenset([rule.name]))
            told = words.more if contribution >= 0 else words.less
        elif rule.action in ("pin", "cap", "diversify") and not left_out:
            there = lists.place(item, frozenset([rule.name]))
            told = words.put if there is None else words.kept if here is None else words.moved
            told = "" if there == here else told
        if told:
            size = abs(contribution)
            said = told.format(rule=rule.name, size=size, place=here, without=there)
            found.append(RuleEffect(rule.name, rule.action, contribution, here, there, said))
    if here is None and not left_out and not any(effect.place_without for effect in found):
        together = [rule for rule, _ in rules if rule.action in ("pin", "cap", "diversify")]
        names = frozenset(rule.name for rule in together)
        there = lists.place(item, names) if together else None
        for rule in together if there else ():
            said = words.among.format(rule=rule.name, without=there)
            found.append(RuleEffect(rule.name, rule.action, 0.0, None, there, said))
    return tuple(found)


_LEAVE_OUT = (("exclude", True), ("only", False))
