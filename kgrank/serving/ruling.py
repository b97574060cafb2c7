"""A shop's rules at work: compiled once for a bundle, then applied while lists are made.

They are applied in this order, whatever their order in the file:

1. `exclude` and `only`: what they leave out can stand in no list, pinned or not.
2. `boost`: each adds `by` units to the scores of its items. A unit is how far apart scores lie: the
   standard deviation of a user's scores over all items, on average over (up to 256) users. So it
   means the same after every training, moves a product with a negative score as far as any other,
   and is a part of the score like any other.
3. The list is filled place by place (`kgrank.serving.placing`): with what is pinned there, in the
   order of the rules; else with the best item that no `cap` forbids, by score or, under the first
   `diversify` rule that holds for the user, by score and by how little it is like those before it.
   What is pinned counts under the caps, and none keeps it off.

A list ends early only where no item is left that the rules allow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch

from kgrank.errors import ConfigError
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.lists import top_n
from kgrank.fusion.model import FusedModel, Head
from kgrank.serving.bundle import Bundle
from kgrank.serving.conditions import Grounds, Mask, timed
from kgrank.serving.placing import Added, Caps, Pins, Spread, add, fill
from kgrank.serving.rules import Rule, Rules

Pick = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""From a block of scores and the number of its first row to the lists of the block."""

VISITOR = -1
"""Stands for the number of a user whom the bundle does not know."""

POOL = 40
"""A list of n is spread out over the 2 · n best items, at least over POOL."""

_SAMPLE = 256  # users whose scores tell how far apart scores lie
_PLANS = 256  # plans that are kept at a time
_LIST_ACTIONS = ("pin", "cap", "diversify")
_VECTORS = ("learned", "embedding", "image")  # whose likeness `vectors` means: the first there is


@dataclass(frozen=True, eq=False)
class Plan:
    """What all rules together ask for in the lists of one kind of user.

    Attributes:
        added: (n_items) float32: the boosts, -inf where an item may not stand.
        fills: whether lists are filled place by place.
    """

    added: npt.NDArray[np.float32]
    pins: Pins
    caps: Caps
    spread: Spread
    fills: bool


@dataclass(frozen=True, eq=False)
class _Now:
    """The rules in force at a moment: their masks, and which of them hold for which user."""

    rules: tuple[Rule, ...]
    items: tuple[Mask, ...]
    kinds: tuple[tuple[int, ...], ...]
    kind_of: npt.NDArray[np.int64]


class Ruling:
    """Rules compiled for a bundle.

    Args:
        bundle: what the rules speak of.
        model: the bundle's model, on the device it is used on.
        rules: the rules.
        at: the moment, seconds UTC, for which lists are made; None = the moment they are made.

    Raises:
        ConfigError: a rule names an attribute, item, entity or relation that the bundle has not.
    """

    def __init__(
        self, bundle: Bundle, model: FusedModel, rules: Rules, at: float | None = None
    ) -> None:
        self.bundle, self.model, self.rules, self.at = bundle, model, rules, at
        faults = self.grounds.faults(rules) if len(rules) else []
        if any(rule.vectors for rule in rules.rules) and self._vectors.shape[1] == 0:
            faults.append(
                f"{rules.where}: found vectors = true; allowed: in bundles with one of the "
                f"channels {', '.join(_VECTORS)}. Use attributes."
            )
        if faults:
            raise ConfigError("\n".join(faults))
        self._masks: dict[str, tuple[Mask, Mask]] = {}
        self._states: dict[object, _Now] = {}
        self._plans: dict[object, Plan] = {}
        self._units: dict[Head, float] = {}

    @cached_property
    def grounds(self) -> Grounds:
        """What conditions are read against."""
        known = self.bundle
        return Grounds.of(known.item_table, known.user_table, known.items, known.users, known.graph)

    def fixed(self) -> Ruling:
        """The same rules as they are at this moment, for a job whose lists are to agree."""
        if self.at is not None:
            return self
        same = copy(self)
        same.at = time.time()
        return same

    @property
    def fingerprint(self) -> str:
        """The sha256 of what the rules say and of what they are told by."""
        tables = (self.bundle.item_table, self.bundle.user_table)
        parts = [self.rules.fingerprint, self.bundle.graph.fingerprint()]
        parts += [table.to_json(orient="split") for table in tables]
        return sha256("".join(parts).encode()).hexdigest()

    def in_force(self) -> tuple[str, ...]:
        """The names of the rules whose time it is."""
        return self._in_force(self.moment())

    def _in_force(self, now: float) -> tuple[str, ...]:
        return tuple(r.name for r in self.rules.rules if r.window[0] <= now < r.window[1])

    def unit(self, head: Head) -> float:
        """What a boost by 1 adds to a score."""
        if head not in self._units:
            histories = self.bundle.histories
            users = np.flatnonzero(np.diff(histories.starts))
            users = users[np.unique(np.linspace(0, len(users) - 1, _SAMPLE).astype(int))]
            scores = self.model.scores(histories, histories.of_users(users), head).double().numpy()
            self._units[head] = float(scores.std(axis=1).mean()) or 1.0 if len(users) else 1.0
        return self._units[head]

    def plan(self, user: int, n: int, head: Head, without: frozenset[str] = frozenset()) -> Plan:
        """What the rules ask for in a list of n for a user (number, or VISITOR).

        Args:
            without: names of rules that are left out.
        """
        now = self._now()
        return self._plan(now, int(now.kind_of[user]), n, head, without)

    def of_user(self, user: int) -> list[tuple[Rule, Mask]]:
        """The rules that hold for a user now, and (n_items) the items each is about."""
        now = self._now()
        return [(now.rules[r], now.items[r]) for r in now.kinds[int(now.kind_of[user])]]

    def pick(
        self,
        users: Sequence[int] | npt.NDArray[np.integer],
        n: int,
        head: Head,
        candidates: npt.NDArray[np.integer] | None = None,
        without: frozenset[str] = frozenset(),
        *,
        only_leave_out: bool = False,
        at: float | None = None,
    ) -> Pick | None:
        """What `FusedModel.top` makes lists with; None where no rule has a say.

        Args:
            users: the user of each history, VISITOR where it is of none.
            n: length of the lists.
            head: of the lists.
            candidates: only these items are listed; all if None.
            without: names of rules that are left out.
            only_leave_out: only `exclude` and `only` rules are applied.
            at: the moment (`moment`) where more is asked about the same lists; None = now.
        """
        if not len(self.rules):
            return None
        now = self._now(at)
        kind_of = now.kind_of[np.asarray(users, np.int64)]
        if only_leave_out:
            without |= {r.name for r in now.rules if r.action not in ("exclude", "only")}
        if not any(set(self._names(now, kind)) - without for kind in np.unique(kind_of)):
            return None
        used, rows = np.unique(kind_of, return_inverse=True)
        plans = [self._plan(now, int(kind), n, head, without) for kind in used]
        added = _added([plan.added for plan in plans])
        outside = None
        if candidates is not None:
            outside = torch.ones(self.model.n_items, dtype=torch.bool)
            outside[torch.from_numpy(np.asarray(candidates, np.int64))] = False

        def picked(scores: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
            block = rows[start : start + len(scores)]
            _add(scores, block, added, plans)
            if outside is not None:
                scores[:, outside.to(scores.device)] = -torch.inf
            return _lists(scores, block, plans, n)

        return picked

    def boosts(
        self,
        users: Sequence[int] | npt.NDArray[np.integer],
        chosen: torch.Tensor,
        n: int,
        head: Head,
        at: float | None = None,
    ) -> torch.Tensor:
        """What `pick` added to the scores of the items in its lists, (n_rows × n) float32.

        Args:
            users, n, head, at: as in `pick`.
            chosen: (n_rows × n) int64 the items' numbers, -1 where a list has ended.
        """
        now = self._now(at)
        kind_of = now.kind_of[np.asarray(users, np.int64)]
        found = np.zeros(tuple(chosen.shape), np.float32)
        for kind in np.unique(kind_of):
            rows = kind_of == kind
            added = self._plan(now, int(kind), n, head, frozenset()).added
            found[rows] = added[np.maximum(chosen.numpy()[rows], 0)]
        return torch.from_numpy(np.where(chosen.numpy() < 0, np.float32(0.0), found))

    def listed(
        self,
        scores: torch.Tensor,
        users: Sequence[int] | npt.NDArray[np.integer],
        n: int,
        head: Head,
        candidates: npt.NDArray[np.integer] | None = None,
        without: frozenset[str] = frozenset(),
    ) -> npt.NDArray[np.int64]:
        """The lists that `pick` makes of scores, (n_rows × n) item numbers, -1 where one ends.

        Args:
            scores: (n_rows × n_items) float32, -inf where an item may not be listed; kept as is.
            users, n, head, candidates, without: as in `pick`.
        """
        scores = scores.clone()
        pick = self.pick(users, n, head, candidates, without)
        if pick is None and candidates is not None:
            outside = np.setdiff1d(np.arange(scores.shape[1]), candidates)
            scores[:, torch.from_numpy(outside)] = -torch.inf
        found = top_n(scores, n) if pick is None else pick(scores, 0)
        return np.asarray(found[0])

    def moment(self) -> float:
        """The moment, seconds UTC, that lists are made for now."""
        return time.time() if self.at is None else self.at

    def _now(self, at: float | None = None) -> _Now:
        moment = self.moment() if at is None else at
        names = self._in_force(moment)
        rules = tuple(rule for rule in self.rules.rules if rule.name in names)
        changes = any(timed(rule, self.rules) for rule in rules)
        key = (names, moment if changes else None)
        if key not in self._states:
            masks = [self._mask(rule, moment) for rule in rules]
            held = np.ones((1 + len(rules), len(self.bundle.users) + 1), bool)  # the first: no rule
            for rule, (_, of_users) in enumerate(masks, start=1):
                held[rule] = of_users
            kind_of = np.zeros(held.shape[1], np.int64)
            for eight in np.packbits(held, axis=0):
                kind_of = np.unique(kind_of * 256 + eight, return_inverse=True)[1]
            kinds = held[:, np.unique(kind_of, return_index=True)[1]]
            self._plans, self._states = {}, {}
            self._states[key] = _Now(
                rules,
                tuple(of_items for of_items, _ in masks),
                tuple(tuple(np.flatnonzero(column[1:]).tolist()) for column in kinds.T),
                kind_of,
            )
        return self._states[key]

    def _mask(self, rule: Rule, moment: float) -> tuple[Mask, Mask]:
        if rule.name not in self._masks or timed(rule, self.rules):
            of_users = self.grounds.user_mask(rule, self.rules, moment)
            self._masks[rule.name] = self.grounds.item_mask(rule, moment), of_users
        return self._masks[rule.name]

    def _names(self, now: _Now, kind: int) -> list[str]:
        return [now.rules[rule].name for rule in now.kinds[kind]]

    def _plan(self, now: _Now, kind: int, n: int, head: Head, without: frozenset[str]) -> Plan:
        key = (kind, n, head, without)
        if key not in self._plans:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            rules = [
                (now.rules[r], now.items[r])
                for r in now.kinds[kind]
                if now.rules[r].name not in without
            ]
            self._plans[key] = self._made(rules, n, head)
        return self._plans[key]

    def _made(self, rules: list[tuple[Rule, Mask]], n: int, head: Head) -> Plan:
        n_items = self.model.n_items
        added = np.zeros(n_items, np.float64)
        for rule, mask in rules:
            if rule.action == "boost" and rule.by:
                added[mask] += rule.by * self.unit(head)
        for rule, mask in rules:
            if rule.action in ("exclude", "only"):
                added[mask == (rule.action == "exclude")] = -np.inf
        spread = next((rule for rule, _ in rules if rule.action == "diversify"), None)
        return Plan(
            added.astype(np.float32),
            _pins([(rule, mask) for rule, mask in rules if rule.action == "pin"]),
            self._caps([(rule, mask) for rule, mask in rules if rule.action == "cap"]),
            self._spread(spread, n),
            fills=any(rule.action in _LIST_ACTIONS for rule, _ in rules),
        )

    def _caps(self, rules: list[tuple[Rule, Mask]]) -> Caps:
        owners, groups = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        limits: list[int] = []
        for rule, mask in rules:
            if rule.attribute is None:
                of, codes, n_groups = np.flatnonzero(mask), np.zeros(int(mask.sum()), np.int64), 1
            else:
                starts, values, named = self.grounds.items.values(rule.attribute)
                of = np.repeat(np.arange(len(mask)), np.diff(starts))
                of, codes, n_groups = of[mask[of]], values[mask[of]].astype(np.int64), len(named)
            owners.append(of)
            groups.append(codes + len(limits))
            limits += [rule.most or 1] * n_groups
        owner, group = np.concatenate(owners), np.concatenate(groups)
        order = np.argsort(owner, kind="stable")
        starts = np.searchsorted(owner[order], np.arange(self.model.n_items + 1))
        return Caps(
            starts.astype(np.int64), group[order].astype(np.int32), np.array(limits, np.int32)
        )

    def _spread(self, rule: Rule | None, n: int) -> Spread:
        starts, codes, before = [], [np.empty(0, np.int32)], 0
        n_items = self.model.n_items
        single = np.empty((n_items, 0), np.int32)
        for attribute in (rule.attributes or ()) if rule else ():
            own, values, _ = self.grounds.items.values(attribute)
            counts = np.diff(own)
            if counts.max(initial=0) <= 1:
                column = np.full(n_items, -1, np.int32)
                column[counts == 1] = values
                single = np.column_stack([single, column])
            else:
                starts.append(own + before)
                codes.append(values)
                before += len(values)
        return Spread(
            float(rule.strength or 0.0) if rule else 0.0,
            max(2 * n, POOL),
            np.ascontiguousarray(single),
            np.array(starts, np.int64).reshape(len(starts), n_items + 1),
            np.concatenate(codes),
            self._vectors if rule and rule.vectors else self._vectors[:, :0].copy(),
        )

    @cached_property
    def _vectors(self) -> npt.NDArray[np.float32]:
        """The vectors that likeness is told by, (n_items × dim) float32; dim 0 where none are."""
        forms = {channel.name: channel.form for channel in self.model.channels}
        for name in _VECTORS:
            if isinstance(form := forms.get(name), DenseFeatures):
                return np.ascontiguousarray(form.values.cpu().numpy(), np.float32)
        return np.empty((self.model.n_items, 0), np.float32)


def _pins(rules: list[tuple[Rule, Mask]]) -> Pins:
    items = [np.flatnonzero(mask) for _, mask in rules]
    starts = np.cumsum([0, *map(len, items)])
    places = np.array([(rule.place or 1) - 1 for rule, _ in rules], np.int64)
    most = np.array([rule.most or 1 for rule, _ in rules], np.int64)
    pinned = np.concatenate(items) if items else np.empty(0)
    return Pins(starts.astype(np.int64), pinned.astype(np.int64), places, most)


def _added(rows: list[npt.NDArray[np.float32]]) -> Added:
    columns = [np.flatnonzero(row) for row in rows]
    starts = np.cumsum([0, *map(len, columns)]).astype(np.int64)
    values = [row[column] for row, column in zip(rows, columns, strict=True)]
    return Added(starts, np.concatenate(columns).astype(np.int64), np.concatenate(values))


def _add(
    scores: torch.Tensor, kinds: npt.NDArray[np.int64], added: Added, plans: list[Plan]
) -> None:
    if scores.device.type == "cpu":
        add(scores.numpy(), kinds, added)
        return
    for kind, plan in enumerate(plans):
        rows = torch.from_numpy(np.flatnonzero(kinds == kind)).to(scores.device)
        scores[rows] += torch.from_numpy(plan.added).to(scores.device)


def _lists(
    scores: torch.Tensor, kinds: npt.NDArray[np.int64], plans: list[Plan], n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of n from scores (n_rows × n_items) to which everything has been added."""
    n_items = scores.shape[1]
    filling = [plans[kind] for kind in np.unique(kinds) if plans[kind].fills]
    if not filling:
        return top_n(scores, n)
    spread = [plan.spread.pool for plan in filling if plan.spread.strength > 0.0]
    m = min(n_items, max([n + n // 2, *spread]))
    best, values = top_n(scores, m)
    n = min(n, n_items)
    listed, own = best[:, :n].clone(), values[:, :n].clone()
    for kind, plan in enumerate(plans):
        rows = np.flatnonzero(kinds == kind)
        if not plan.fills or not len(rows):
            continue
        found, known, taken = best[rows], values[rows], m
        while len(rows):
            some, kept = _filled(scores, rows, found, known, plan, n)
            listed[rows], own[rows] = some[0], some[1]
            rows = rows[kept & (found[:, -1] >= 0).numpy()] if taken < n_items else rows[:0]
            if len(rows):  # caps have used up what was taken: take more
                taken = min(n_items, 4 * taken)
                found, known = top_n(scores[torch.from_numpy(rows).to(scores.device)], taken)
    return listed, own


def _filled(
    scores: torch.Tensor,
    rows: npt.NDArray[np.int64],
    found: torch.Tensor,
    known: torch.Tensor,
    plan: Plan,
    n: int,
) -> tuple[tuple[torch.Tensor, torch.Tensor], Mask]:
    """The lists of some rows, and which of them the items found were too few for."""
    pinned = torch.from_numpy(plan.pins.items).to(scores.device)
    of_rows = torch.from_numpy(rows).to(scores.device)
    pin_scores = scores[of_rows[:, None], pinned[None, :]].cpu().numpy()
    listed, own = np.empty((len(rows), n), np.int64), np.empty((len(rows), n), np.float32)
    short = fill(
        np.ascontiguousarray(found.numpy()),
        np.ascontiguousarray(known.numpy()),
        plan.pins,
        np.ascontiguousarray(pin_scores),
        plan.caps,
        plan.spread,
        listed,
        own,
    )
    return (torch.from_numpy(listed), torch.from_numpy(own)), short


__all__ = ["VISITOR", "Pick", "Plan", "Ruling"]
