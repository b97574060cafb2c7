"""What every section of the configuration shares: frozen, typed, and strict about names."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from kgrank.errors import ConfigError


class Section(BaseModel):
    """A group of settings that live beside the code that reads them.

    A change gives a new value (`section.model_copy(update=…)`); an unknown name is an error.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> Self:
        """The settings that TOML or JSON holds; what is not named has its default.

        Types are not bent: `"5"` is no number, and 1 is not `true`.

        Args:
            values: what `tomllib` or `json` read, or `as_dict` gave.
            where: where the values come from; messages begin with it.

        Raises:
            ConfigError: names or values are at fault; the message has a line for each of them.
        """
        try:
            # As JSON, because strict checking takes a list for a tuple and text for a path there.
            return cls.model_validate_json(json.dumps(values, default=str), strict=True)
        except ValidationError as error:
            lines = [f"{where}: {_fault(cls, one)}" for one in error.errors()]
            raise ConfigError("\n".join(lines)) from None

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values that JSON can hold: the inverse of `from_dict`."""
        return self.model_dump(mode="json")


def check_columns(setting: str, names: Iterable[str], table: str, there: Iterable[object]) -> None:
    """See that a setting names columns of a table.

    Args:
        setting: the setting, as messages name it.
        names: what it names.
        table: the table's name.
        there: the columns that it has.

    Raises:
        ConfigError: it lacks some; the message has a line for each.
    """
    columns = [str(column) for column in there]
    lines = [
        f"{setting}: found {name!r}; allowed: the columns of {table}, {', '.join(columns)}. "
        "Name one of them, or add the column."
        for name in names
        if name not in columns
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def _fault(kind: type[Section], error: Any) -> str:
    """One entry of `ValidationError.errors()` (a TypedDict) in the words of the TOML file."""
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return _unknown(kind, [str(part) for part in error["loc"]], error["input"])
    if error["type"] == "value_error":  # our own validators say what was found and is allowed
        said = f"{error['ctx']['error']}. Correct it."
        return f"{place}: {said}" if place else said
    if error["type"] == "missing":
        return f"found no {place}; allowed: one. Add it."
    allowed = "a section" if error["type"] == "model_type" else str(error["msg"])
    allowed = re.sub(r"^(Input should be |\w+ should have )", "", allowed)
    allowed = allowed.partition(" after validation")[0]
    return f"{place}: found {_shown(error['input'])}; allowed: {allowed}. Correct it."


def _unknown(kind: type[Section], loc: list[str], value: object) -> str:
    """The fault of a name that `kind`, or the section in it that `loc` leads to, does not know."""
    *outer, name = loc
    for part in outer:
        inner = kind.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, Section)):
            break
        kind = inner
    known = [field.alias or name for name, field in kind.model_fields.items()]
    near = difflib.get_close_matches(name, known, n=1)
    mend = f"Is {near[0]!r} meant?" if near else "Remove it, or correct its name."
    found = f"found {name!r} = {_shown(value)}"
    if "password" in f"{name} {json.dumps(value)}".lower():  # a message may end up in a log
        found = f"found {name!r}"
        mend += " A graph server's password comes from the environment: KGRANK_NEO4J_PASSWORD."
    if outer:
        found += f" in [{'.'.join(outer)}]"
    return f"{found}; allowed: {', '.join(known)}. {mend}"


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:79] + "…"


class WordingSettings(Section):
    """The `[wording]` section: a shop's own words for the relations in reasons.

    Attributes:
        en, zh: relation → what is said in that language of a product that is tied to `{name}`,
            and if that differs of two products: `brand = ["is made by {name}", "are made by
            {name}"]`.
    """

    en: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    zh: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @field_validator("en", "zh")
    @classmethod
    def _one_or_two(cls, said: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for relation, templates in said.items():
            whole = all(text.count("{name}") == 1 for text in templates)
            if len(templates) not in (1, 2) or not whole:
                raise ValueError(
                    f"found {relation} = {list(templates)!r}; allowed: one or two texts, each with "
                    "{name} once"
                )
        return said


class RulesSettings(Section):
    """The `[rules]` section: where the shop's rules lie (`kgrank.serving.rules`).

    Attributes:
        file: relative to the kgrank.toml or the tables' folder (where they lie in none, to the
            working folder); None = the `rules.toml` of that folder, if any.
    """

    file: Path | None = None


class LearnSettings(Section):
    """The `[learn]` section: how learned parts are trained.

    Attributes:
        epochs: passes over the training data, at most; the schedule is laid out for them.
        patience: epochs without a better result on valid after which training stops.
        batch: rows a step, at least: an epoch has at most 500 steps.
        rate: highest learning rate; it rises over the first steps and falls linearly.
        decay: AdamW's decoupled weight decay (Loshchilov and Hutter, 2019).
        warmup: steps over which the rate rises.
        clip: largest norm of the gradient; a longer one is scaled down to it.
        checkpoint_seconds: how often a checkpoint is written, at most; there is one each epoch.
        seed: of everything that is drawn.
    """

    epochs: int = Field(default=8, ge=1)
    patience: int = Field(default=2, ge=1)
    batch: int = Field(default=512, ge=1)
    rate: float = Field(default=0.003, gt=0)
    decay: float = Field(default=0.01, ge=0)
    warmup: int = Field(default=20, ge=0)
    clip: float = Field(default=1.0, gt=0)
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
