r"""A shop's rules, as data: what may be listed, what is pushed, pinned, capped or spread out.

    [segments.students]
    users.age_group = "18-24"                    # or: file = "students.txt", or: ids = ["u-1", …]

    [[rule]]
    name = "Nothing that is sold out"
    action = "exclude"
    items.in_stock = false

    [[rule]]
    name = "Rain in November"
    action = "boost"
    by = 0.5
    items.category = ["Tents", "Rain jackets"]   # in
    items.price = { at_least = 20, below = 300 } # all of them
    linked = { to = "company:kestrelby", relation = "made_by", hops = 2 }
    segments = ["students"]
    from = 2026-11-01
    until = 2026-11-30                           # that day still

| action | what it does | its own keys |
|---|---|---|
| exclude | lists none of these items | |
| only | lists none but these items | |
| boost | adds `by` units to their scores (see `kgrank.serving.ruling`) | `by` |
| pin | puts the best `most` of these items at `place` and after | `place`, `most` |
| cap | lists at most `most` of them, in all or by each value of `attribute` | `most`, `attribute` |
| diversify | spreads a list out by what items share | `strength`, `attributes`, `vectors` |

A rule holds for the users of whom all `users` tests and one of its `segments` hold, for everybody
where it names none, from `from` until `until`; it is about the items of which all `items` and
`linked` conditions hold. Conditions are data: nothing in the file is ever run.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import Field, field_validator, model_validator

from kgrank.errors import ConfigError
from kgrank.settings import Section

S = TypeVar("S", bound=Section)

Action = Literal["exclude", "only", "boost", "pin", "cap", "diversify"]

MAX_BYTES = 64_000_000
"""The largest rules or segment file that is read."""
MAX_RULES = 1_000

_OWN_KEYS: dict[str, tuple[str, ...]] = {  # action → (keys it needs), keys it may have
    "exclude": (),
    "only": (),
    "boost": ("by",),
    "pin": ("place", "most"),
    "cap": ("most", "attribute"),
    "diversify": ("strength", "attributes", "vectors"),
}
_NEEDED = {"boost": "by", "cap": "most", "diversify": "strength"}


class Condition(Section):
    """What the value of an attribute has to be; every operator that is named has to hold.

    An item or user without the value passes no operator but `exists = false`; `not` turns the
    outcome round. An attribute with several values passes `equals` and `in` by any one of them.

    Attributes:
        equals: the value, to the letter; a number is compared as a number, `true` and `false` with
            true/false, yes/no and 1/0.
        one_of: `in`: any of these values.
        contains: a part of the text, whatever the case of its letters.
        above, at_least, below, at_most: bounds of a number.
        before, after: a date, a time (UTC where it has no zone), or "now".
        exists: whether there is a value at all.
        negate: `not`: the outcome is turned round.
    """

    equals: Any = None
    one_of: tuple[Any, ...] | None = Field(default=None, alias="in")
    contains: str | None = Field(default=None, min_length=1)
    above: float | None = Field(default=None, allow_inf_nan=False)
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    below: float | None = Field(default=None, allow_inf_nan=False)
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    before: str | None = None
    after: str | None = None
    exists: bool | None = None
    negate: bool = Field(default=False, alias="not")

    @field_validator("before", "after")
    @classmethod
    def _dated(cls, value: str | None) -> str | None:
        if value not in (None, "now"):
            moment(str(value))
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        values = [*(() if self.equals is None else (self.equals,)), *(self.one_of or ())]
        for value in values:
            if not isinstance(value, str | int | float) or value != value:
                raise ValueError(f"found {value!r}; allowed: text, a number, true or false")
        if self.one_of == ():
            raise ValueError("found an empty list under in; allowed: at least one value")
        if not self.model_fields_set - {"negate"}:
            raise ValueError("found no operator; allowed: at least one, such as equals or below")
        return self

    @property
    def values(self) -> tuple[Any, ...] | None:
        """What `equals` and `in` compare with; None where neither is named."""
        if self.equals is None:
            return self.one_of
        return (self.equals,) if self.one_of is None or self.equals in self.one_of else ()


class Linked(Section):
    """That an item and a node of the graph are linked by facts, in either direction of each.

    Attributes:
        to: the id of an entity (or item).
        relation: of the fact at that entity; any if left out.
        hops: facts between the item and the entity, at most.
    """

    to: str
    relation: str | None = None
    hops: int = Field(default=1, ge=1, le=2)


class Segment(Section):
    """A named set of users: those of whom all tests hold, or those named.

    Attributes:
        users: attribute → test.
        ids: user ids. In the file: `ids`, or `file`, which names a text with one id a line.
    """

    users: dict[str, Condition] = Field(default_factory=dict)
    ids: tuple[str, ...] | None = None


class Rule(Section):
    """One rule; the module tells what each action does with its keys."""

    name: str = Field(min_length=1, max_length=200)
    action: Action
    by: float | None = Field(default=None, ge=-1000, le=1000)
    place: int | None = Field(default=None, ge=1, le=1000)
    most: int | None = Field(default=None, ge=1, le=1000)
    attribute: str | None = None
    strength: float | None = Field(default=None, ge=0, le=1)
    attributes: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=8)
    vectors: bool | None = None
    items: dict[str, Condition] = Field(default_factory=dict)
    linked: tuple[Linked, ...] = ()
    users: dict[str, Condition] = Field(default_factory=dict)
    segments: tuple[str, ...] | None = Field(default=None, min_length=1)
    since: str | None = Field(default=None, alias="from")
    until: str | None = None

    @field_validator("since", "until")
    @classmethod
    def _dated(cls, value: str | None) -> str | None:
        if value is not None:
            moment(value)
        return value

    @model_validator(mode="after")
    def _sound(self) -> Self:
        own = _OWN_KEYS[self.action]
        every = {key for keys in _OWN_KEYS.values() for key in keys}
        for key in sorted(self.model_fields_set & (every - set(own))):
            other = ", ".join(action for action, keys in _OWN_KEYS.items() if key in keys)
            raise ValueError(
                f"found {key} in a rule whose action is {self.action}; allowed: {key} with {other}"
            )
        needed = _NEEDED.get(self.action)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"found no {needed}; allowed: {self.action} with a number for it")
        if self.action == "diversify":
            if self.items or self.linked:
                raise ValueError("found conditions on items; allowed: diversify whole lists")
            if not self.attributes and not self.vectors:
                raise ValueError("found no measure; allowed: attributes, vectors = true, or both")
        elif not (self.items or self.linked or self.attribute):
            raise ValueError("found no condition on items; allowed: at least one test or link")
        first, last = self.window
        if first >= last:
            raise ValueError(f"found from {self.since} until {self.until}; allowed: from before it")
        return self

    @property
    def window(self) -> tuple[float, float]:
        """When it holds, seconds UTC: from the first until before the second."""
        first = moment(self.since) if self.since else float("-inf")
        last = moment(self.until, end=True) if self.until else float("inf")
        return first, last


@dataclass(frozen=True)
class Rules:
    """The rules of a shop, in the order of their file.

    Attributes:
        rules: at most MAX_RULES, each with a name of its own.
        segments: named sets of users.
        content: the same as JSON can hold it, the files of segments read in: the inverse of
            `from_dict`.
        where: the file's name, for messages.
    """

    rules: tuple[Rule, ...]
    segments: Mapping[str, Segment]
    content: Mapping[str, Any]
    where: str

    def __len__(self) -> int:
        return len(self.rules)

    @classmethod
    def none(cls) -> Rules:
        """No rules."""
        return cls((), {}, {}, "no rules")

    @classmethod
    def read(cls, path: str | Path) -> Rules:
        """The rules of a TOML file; the files that segments name lie beside it.

        Raises:
            ConfigError: a file cannot be read, or something in it is at fault; the message has a
                line for each fault: file, rule, key, what was found, what is allowed, the mend.
        """
        path = Path(path)
        try:
            values = tomllib.loads(_text(path, path.name))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(
                f"{path.name}: found {error}; allowed: TOML. Correct the line."
            ) from None
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        faults: list[str] = []
        segments = plain.get("segments")
        for name, segment in segments.items() if isinstance(segments, dict) else ():
            if isinstance(segment, dict) and isinstance(segment.get("file"), str):
                where = f"{path.name}, segment {name!r}"
                named, both = segment.pop("file"), "ids" in segment
                segment["ids"] = []
                if both:
                    faults.append(
                        f"{where}: found both file and ids; allowed: one of them. Put all ids "
                        "into the file, or all here."
                    )
                    continue
                try:
                    segment["ids"] = _ids(path.parent, named, where)
                except ConfigError as error:
                    faults.append(str(error))
        return cls.from_dict(plain, path.name, faults)

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], where: str, faults: Collection[str] = ()
    ) -> Rules:
        """The rules that JSON holds; raises ConfigError as `read` does.

        Args:
            values: `rule`, a list, and `segments`.
            where: where they come from; messages begin with it.
            faults: what was found before.
        """
        found = [*faults]
        for key in values:
            if key not in ("rule", "segments"):
                found.append(_unknown(f"{where}", key, ("rule", "segments")))
        segments: dict[str, Segment] = {}
        named = values.get("segments", {})
        if not isinstance(named, dict):
            found.append(
                f"{where}: segments: found {named!r:.60}; allowed: [segments.NAME] tables."
            )
            named = {}
        for name, entry in named.items():
            place = f"{where}, segment {name!r}"
            for segment in _parsed(Segment, entry, place, found):
                segments[name] = segment
                if not segment.users and segment.ids is None:
                    found.append(f"{place}: found nothing; allowed: users tests, ids or a file.")
        entries = values.get("rule", [])
        if not isinstance(entries, list) or len(entries) > MAX_RULES:
            told = f"{len(entries)} rules" if isinstance(entries, list) else f"{entries!r:.60}"
            found.append(f"{where}: found {told}; allowed: at most {MAX_RULES} [[rule]] tables.")
            entries = []
        rules: list[Rule] = []
        for number, entry in enumerate(entries, start=1):
            name = entry.get("name") if isinstance(entry, dict) else None
            place = f"{where}, rule {name!r}" if name else f"{where}, rule {number}"
            rules += _parsed(Rule, entry, place, found)
            asked = entry.get("segments") if isinstance(entry, dict) else None
            for segment in asked if isinstance(asked, list) else ():
                if isinstance(segment, str) and segment not in named:
                    found.append(_unknown(f"{place}, segments", segment, tuple(named)))
        names = [str(entry.get("name", "")) for entry in entries if isinstance(entry, dict)]
        for name in dict.fromkeys(name for name in names if name and names.count(name) > 1):
            found.append(
                f"{where}, rule {name!r}: name: found {names.count(name)} rules of this name; "
                "allowed: each name once. Rename all but one."
            )
        if found:
            raise ConfigError("\n".join(found))
        return cls(tuple(rules), segments, dict(values), where)

    @property
    def fingerprint(self) -> str:
        """The sha256 of everything the rules say."""
        return sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()


def moment(text: str, *, end: bool = False) -> float:
    """Seconds UTC of a date or time in ISO 8601; with `end`, the end of a day named alone.

    Raises:
        ValueError: it is neither.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"found {text!r}; allowed: a date such as 2026-11-30 or a time such as "
            "2026-11-30T08:00:00Z"
        ) from None
    if end and len(text) <= len("2026-11-30") and time.time() == datetime.min.time():
        time += timedelta(days=1)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return time.timestamp()


def nearest(name: str, known: Collection[str]) -> str:
    """What to do about a name that is not known: the nearest known, if one is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"Is {near[0]!r} meant?" if near else "Correct or remove it."


def _unknown(place: str, name: str, known: Collection[str]) -> str:
    allowed = ", ".join(list(known)[:20]) or "none (there are none)"
    return f"{place}: found {name!r}; allowed: {allowed}. {nearest(name, known)}"


def _parsed(kind: type[S], entry: object, place: str, found: list[str]) -> Iterator[S]:
    """The entry as a rule or segment, if it is sound; its faults are added to `found`."""
    if not isinstance(entry, dict):
        found.append(f"{place}: found {entry!r:.60}; allowed: a table.")
        return
    before, values = len(found), dict(entry)
    action = values.get("action")
    if kind is Rule and action not in get_args(Action):
        if isinstance(action, str):
            found.append(_unknown(f"{place}, action", action, get_args(Action)))
        else:
            found.append(f"{place}, action: found {action!r}; allowed: {', '.join(_OWN_KEYS)}.")
        values["action"] = "exclude"
        values = {
            k: v for k, v in values.items() if not any(k in own for own in _OWN_KEYS.values())
        }
    # What is at fault inside is told once, and stands as something sound for the checks outside.
    for key in ("items", "users") if kind is Rule else ("users",):
        tests = values.get(key, {})
        if not isinstance(tests, dict):
            found.append(f"{place}, {key}: found {tests!r:.60}; allowed: {key}.ATTRIBUTE = TEST.")
            tests = {"": True}
        for name, test in tests.items():
            made = _section(Condition, _test(test), f"{place}, {key}.{name}", found)
            made = made or Condition(exists=True)
            plain = made.model_dump(by_alias=True, exclude_unset=True, mode="json")
            values[key] = {**values[key], name: plain} if name else {}
    if kind is Rule and "linked" in values:
        links = values["linked"] if isinstance(values["linked"], list) else [values["linked"]]
        linked = [_section(Linked, link, f"{place}, linked", found) for link in links]
        values["linked"] = [(link or Linked(to="")).as_dict() for link in linked]
    whole = _section(kind, values, place, found)
    if whole is not None and len(found) == before:
        yield whole


def _test(value: object) -> object:
    """`x = 1` stands for equals, `x = [1, 2]` for in."""
    if isinstance(value, dict):
        return value
    return {"in": value} if isinstance(value, list) else {"equals": value}


def _section(kind: type[S], values: object, place: str, found: list[str]) -> S | None:
    try:
        if not isinstance(values, dict):
            raise ConfigError(f"{place}: found {values!r:.60}; allowed: a table.")
        return kind.from_dict(values, place)
    except ConfigError as error:
        found += str(error).split("\n")
        return None


def _ids(folder: Path, name: str, where: str) -> list[str]:
    """The user ids of a segment's file: one a line."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{where}, file: found {name!r}; allowed: a file in the folder of the rules."
        )
    lines = _text(path, f"{where}, file {name!r}").split("\n")
    return [line.removesuffix("\r") for line in lines if line.strip()]


def _text(path: Path, where: str) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{where}: found more than {MAX_BYTES:,} bytes; allowed: fewer.")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        found = error.strerror
    except UnicodeDecodeError:
        found = "bytes that are not UTF-8"
    raise ConfigError(f"{where}: found {found}; allowed: a UTF-8 text. Correct the path or file.")
