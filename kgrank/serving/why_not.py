"""Why a product is not on a user's list: rule, history or score; and what would list it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kgrank.errors import ConfigError
from kgrank.fusion.history import REFUSED, Histories, Spans
from kgrank.fusion.model import Head, Repeats
from kgrank.serving.effects import RuledLists, effects, list_scores
from kgrank.serving.explanation import RuleEffect
from kgrank.serving.ruling import Ruling

Reason = Literal["listed", "not a candidate", "met", "not met", "rule", "score"]

CELLS = 4_000_000  # histories × items that are scored in search of a change
_LEAST, _MOST = 16, 512  # histories that are tried


@dataclass(frozen=True)
class Listed:
    """A product on a list: `place` from 1."""

    item_id: str
    place: int
    score: float


@dataclass(frozen=True)
class Change:
    """One event more or less, after which the product is on the list at `place`.

    Attributes:
        action: "add" (as the newest event) or "remove" (each time it happened, the newest first).
        item_id: the product of the event.
        event: the kind of event.
        place: where the product then stands.
    """

    action: Literal["add", "remove"]
    item_id: str
    event: str
    place: int


@dataclass(frozen=True)
class WhyNot:
    """Why a product is not on a list.

    Attributes:
        n, repeats: which list.
        reason: the first that applies: "listed", "not a candidate", "met" or "not met" (and the
            list is of the others only), "rule", "score".
        place: on the list; None when it is not there.
        score: with what rules add to it.
        rank: by score among the products that may be listed, from 1; None when it may not.
        of: how many products may be listed.
        lowest: the product with the lowest score on the list, what is pinned left out; None where
            there is no such.
        gap: channel, "bias" or "rules" → what `lowest` has more there. The sum is the gap of the
            scores.
        rules: what rules do to the product.
        change: the single event that would list it, best place first, found by making the list
            again; None when none does.
        tried: how many single events were tried.
        text: the same in words.
    """

    user_id: str
    item_id: str
    n: int
    repeats: str
    reason: Reason
    place: int | None
    score: float
    rank: int | None
    of: int
    lowest: Listed | None
    gap: dict[str, float]
    rules: tuple[RuleEffect, ...]
    change: Change | None
    tried: int
    text: str


def why_not(
    ruling: Ruling,
    user_id: str,
    item_id: str,
    n: int,
    candidates: npt.NDArray[np.integer] | None,
    repeats: Repeats,
    head: Head,
    language: str,
) -> WhyNot:
    """See `Recommender.why_not`; `ruling` may hold no rule, `candidates` are item numbers."""
    if language not in _WORDS:
        raise ConfigError(f"language: found {language!r}; allowed: en, zh. Choose one of them.")
    bundle, model = ruling.bundle, ruling.model
    user, item = int(bundle.users.numbers([user_id])[0]), int(bundle.items.numbers([item_id])[0])
    histories = bundle.histories
    span = histories.of_users(np.array([user]))
    added = ruling.plan(user, n, head).added
    plain = model.scores(histories, span, head)[0].numpy()
    before = list_scores(model, histories, span, head, repeats)
    open_ = np.isfinite(before[0].numpy())
    scores = before[0].numpy() + added
    if candidates is not None:
        scores[np.setdiff1d(np.arange(len(scores)), candidates)] = -np.inf
    allowed = np.isfinite(scores)
    listed = ruling.listed(before, [user], n, head, candidates)[0]
    listed = listed[listed >= 0]
    lists = RuledLists(ruling, before, user, n, head, candidates)
    told = effects(lists, item, language)
    outside = candidates is not None and item not in candidates
    place = int(np.flatnonzero(listed == item)[0]) + 1 if item in listed else None
    by_rule = any(effect.action in ("exclude", "only") for effect in told)
    kept_off = any(e.place is None and e.place_without is not None for e in told)
    reason: Reason
    if place is not None:
        reason = "listed"
    elif outside:
        reason = "not a candidate"
    elif not open_[item]:
        reason = "met" if repeats == "exclude" else "not met"
    else:
        reason = "rule" if by_rule or kept_off else "score"
    rank = None
    if allowed[item]:
        above = scores > scores[item]
        rank = 1 + int(above.sum()) + int((scores[:item] == scores[item]).sum())
    boosts = sum(effect.contribution for effect in told)
    lowest, gap = _lowest(ruling, user, listed, scores, item, boosts, head)
    change, tried = None, 0
    if place is None and not outside and not by_rule:
        change, tried = _change(ruling, user, item, n, candidates, repeats, head, lowest)
    found = WhyNot(
        user_id=user_id,
        item_id=item_id,
        n=n,
        repeats=repeats,
        reason=reason,
        place=place,
        score=float(plain[item]) + boosts,
        rank=rank,
        of=int(allowed.sum()),
        lowest=lowest,
        gap=gap,
        rules=told,
        change=change,
        tried=tried,
        text="",
    )
    text = _text(found, bundle.names, _WORDS[language])
    return WhyNot(**{**vars(found), "text": text})


def _lowest(
    ruling: Ruling,
    user: int,
    listed: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    item: int,
    boosts: float,
    head: Head,
) -> tuple[Listed | None, dict[str, float]]:
    """The lowest of the list, and what it has more than the item, part by part."""
    bundle, model = ruling.bundle, ruling.model
    pinned = [rule_items for rule, rule_items in ruling.of_user(user) if rule.action == "pin"]
    free = [place for place, i in enumerate(listed) if not any(mask[i] for mask in pinned)]
    if not free:
        return None, {}
    place = min(free, key=lambda place: (scores[listed[place]], -place))
    lowest = int(listed[place])
    span = bundle.histories.of_users(np.array([user]))
    theirs, own = (model.parts(bundle.histories, span, i, head) for i in (lowest, item))
    gap = {"bias": theirs.bias - own.bias}
    more = theirs.parts.sum(axis=1) - own.parts.sum(axis=1)
    gap |= {channel.name: float(x) for channel, x in zip(model.channels, more, strict=True)}
    plan = ruling.plan(user, len(listed), head)
    if boosts or plan.added[lowest]:
        gap["rules"] = float(plan.added[lowest]) - boosts
    id_ = str(bundle.items.ids([lowest])[0])
    return Listed(id_, place + 1, float(scores[lowest])), gap


def _change(
    ruling: Ruling,
    user: int,
    item: int,
    n: int,
    candidates: npt.NDArray[np.integer] | None,
    repeats: Repeats,
    head: Head,
    lowest: Listed | None,
) -> tuple[Change | None, int]:
    """The event that, added or removed, lists the item highest; and how many were tried."""
    bundle = ruling.bundle
    histories = bundle.histories
    span = histories.of_users(np.array([user]))
    events = np.arange(span.first[0], span.last[0])
    room = int(np.clip(CELLS // histories.n_items, _LEAST, _MOST))
    removed = events[::-1][: room // 2]
    speaks_for = ~np.isin(histories.kind_names, REFUSED)
    kinds = histories.kinds[events][speaks_for[histories.kinds[events]]]
    if not len(kinds):
        kinds = histories.kinds[speaks_for[histories.kinds]]
    kind = int(np.bincount(kinds).argmax()) if len(kinds) else 0
    against = None if lowest is None else int(bundle.items.numbers([lowest.item_id])[0])
    worth = _worth(ruling, span, item, against, kind, head)
    if repeats == "exclude":
        worth[item] = -np.inf  # it would be met then
    order = np.argsort(-worth, kind="stable")[: room - len(removed)]
    added = order[np.isfinite(worth[order])]
    if repeats == "only" and item not in added:
        added = np.append(added, item)
    variants = _variants(histories, events, removed, added, kind)
    spans = Spans(variants.starts[:-1], variants.starts[1:])
    scores = list_scores(ruling.model, variants, spans, head, repeats)
    lists = ruling.listed(scores, np.full(len(spans), user), n, head, candidates)
    rows, places = np.nonzero(lists == item)
    if not len(rows):
        return None, len(spans)
    best = int(np.lexsort((rows, places))[0])
    row, place = int(rows[best]), int(places[best]) + 1
    if row < len(removed):
        of, event = histories.items[removed[row]], histories.kinds[removed[row]]
    else:
        of, event = added[row - len(removed)], kind
    action: Literal["add", "remove"] = "remove" if row < len(removed) else "add"
    id_, name = str(bundle.items.ids([of])[0]), histories.kind_names[event]
    return Change(action, id_, name, place), len(spans)


def _worth(
    ruling: Ruling, span: Spans, item: int, against: int | None, kind: int, head: Head
) -> npt.NDArray[np.float64]:
    """(n_items) what one more event on each item would add to the item's lead, about."""
    model, histories = ruling.model, ruling.bundle.histories
    every = np.arange(model.n_items)
    one = Histories(
        starts=np.array([0, 1]),
        items=np.zeros(1, np.int32),
        kinds=np.array([kind], np.int16),
        times=np.full(1, np.nan),
        kind_names=histories.kind_names,
        n_items=histories.n_items,
    )
    gates = model.heads[head].gates(model.side)
    worth = np.zeros(model.n_items)
    for channel, gate in zip(model.channels, gates, strict=True):
        if not gate.any():
            continue
        _, size = channel.form.scaled(histories.weights(span, channel.decay))
        _, weight = one.event_weights(Spans(np.zeros(1, int), np.ones(1, int)), channel.decay)
        gain = gate[item] * channel.form.of_events(every, item)
        if against is not None:
            gain = gain - gate[against] * channel.form.of_events(every, against)
        worth += float(weight[0]) / float(size[0]) * gain
    return worth


def _variants(
    histories: Histories,
    events: npt.NDArray[np.int64],
    removed: npt.NDArray[np.int64],
    added: npt.NDArray[np.integer],
    kind: int,
) -> Histories:
    """One history for each change: an event less, then an item more."""
    shorter = [np.delete(events, event - events[0]) for event in removed]
    newest = histories.times[events[-1]] if len(events) else np.nan
    items = [histories.items[own] for own in shorter]
    items += [np.append(histories.items[events], item) for item in added]
    kinds = [histories.kinds[own] for own in shorter]
    kinds += [np.append(histories.kinds[events], kind)] * len(added)
    times = [histories.times[own] for own in shorter]
    times += [np.append(histories.times[events], newest)] * len(added)
    return Histories(
        starts=np.cumsum([0, *map(len, items)]),
        items=np.concatenate([np.empty(0), *items]).astype(np.int32),
        kinds=np.concatenate([np.empty(0), *kinds]).astype(np.int16),
        times=np.concatenate([np.empty(0), *times]),
        kind_names=histories.kind_names,
        n_items=histories.n_items,
    )


@dataclass(frozen=True)
class _Words:
    """The templates of one language. `{x}` is the product, `{y}` the lowest of the list."""

    listed: str
    reasons: Mapping[str, str]
    rank: str
    lowest: str
    ahead: str
    parts: Mapping[str, str]
    add: str
    remove: str
    no_change: str
    comma: str
    gap: str


_WORDS: Mapping[str, _Words] = {
    "en": _Words(
        listed="“{x}” is on the list of {n}, on place {place}.",
        reasons={
            "not a candidate": "“{x}” is not among the candidates of this list.",
            "met": "“{x}” is in the history already, and this list is of new products only.",
            "not met": "“{x}” is not in the history, and this list is of products from it only.",
            "rule": "“{x}” is not on the list of {n} because of the shop's rules.",
            "score": "“{x}” is not on the list of {n} because of its score.",
        },
        rank="By score it is number {rank} of {of} ({score:.3f}).",
        lowest="“{y}”, the lowest of the list, has {score:.3f}.",
        ahead="What that one has more: {parts}.",
        parts={
            "bias": "popularity",
            "linear": "what people bought along with the history",
            "directed": "what is bought next",
            "learned": "what people with such a history chose next",
            "text": "similar words",
            "embedding": "a similar description",
            "image": "a similar picture",
            "graph": "shared attributes",
            "repeat": "earlier purchases",
            "rules": "the shop's rules",
        },
        add="With one more event, “{event}” on “{z}”, it would be on place {place}.",
        remove="Without the event “{event}” on “{z}” it would be on place {place}.",
        no_change="None of {tried} single events, added or removed, would list it.",
        comma=", ",
        gap=" ",
    ),
    "zh": _Words(
        listed="“{x}”在前{n}名的列表中，位列第{place}。",
        reasons={
            "not a candidate": "“{x}”不在这份列表的候选商品中。",
            "met": "“{x}”已在历史记录中，而这份列表只列新商品。",
            "not met": "“{x}”不在历史记录中，而这份列表只列其中的商品。",
            "rule": "由于店铺规则，“{x}”不在前{n}名的列表中。",
            "score": "由于得分，“{x}”不在前{n}名的列表中。",
        },
        rank="按得分它在{of}件商品中排第{rank}（{score:.3f}）。",
        lowest="列表中得分最低的“{y}”有{score:.3f}分。",
        ahead="它多出的部分：{parts}。",
        parts={
            "bias": "人气",
            "linear": "人们与历史商品一起购买的",
            "directed": "人们接着购买的",
            "learned": "历史记录相近的人接着选的",
            "text": "相近的用词",
            "embedding": "相近的描述",
            "image": "相近的图片",
            "graph": "共同的属性",
            "repeat": "以前的购买",
            "rules": "店铺规则",
        },
        add="再多一次对“{z}”的“{event}”，它就会排在第{place}位。",
        remove="少了对“{z}”的“{event}”，它就会排在第{place}位。",
        no_change="试过的{tried}个单一事件，无论增加还是去掉，都不能让它进入列表。",
        comma="、",
        gap="",
    ),
}


def _text(found: WhyNot, names: Mapping[str, str], words: _Words) -> str:
    x = names.get(found.item_id, found.item_id)
    if found.place is not None:
        said = [words.listed.format(x=x, n=found.n, place=found.place)]
        return words.gap.join([*said, *(effect.text for effect in found.rules)])
    said = [words.reasons[found.reason].format(x=x, n=found.n)]
    said += [effect.text for effect in found.rules]
    if found.rank is not None:
        said.append(words.rank.format(rank=found.rank, of=found.of, score=found.score))
    if found.reason == "score" and found.lowest is not None:
        y = names.get(found.lowest.item_id, found.lowest.item_id)
        said.append(words.lowest.format(y=y, score=found.lowest.score))
        ahead = sorted(
            ((p, more) for p, more in found.gap.items() if more > 0), key=lambda p: -p[1]
        )
        told = [f"{words.parts.get(part, part)} (+{more:.3f})" for part, more in ahead[:3]]
        if told:
            said.append(words.ahead.format(parts=words.comma.join(told)))
    if found.change is not None:
        change = words.add if found.change.action == "add" else words.remove
        z = names.get(found.change.item_id, found.change.item_id)
        said.append(change.format(z=z, event=found.change.event, place=found.change.place))
    elif found.tried:
        said.append(words.no_change.format(tried=found.tried))
    return words.gap.join(said)
