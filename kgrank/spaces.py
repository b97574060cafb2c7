"""Spaces of settings: what may be tried for each, read from `[tune.space]` or from `--space`.

fit.neighbors = [50, 100, 200]     one of these
learn.rate = "log:1e-3:3e-2"       any number between, each factor as likely as another
text.shrinkage = "lin:0.1:0.9"     any number between, each as likely; whole ones where both
                                   ends are whole
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from kgrank.errors import ConfigError
from kgrank.settings import Section

Metric = Literal["ndcg@10", "recall@10"]
Sampler = Literal["tpe", "random", "grid"]


class TuneSettings(Section):
    """The `[tune]` section: a search of settings, by `kgrank tune`.

    Attributes:
        space: what may be tried, by section and key: a list, "log:low:high" or "lin:low:high".
        trials: how many are tried, or all where there are not so many; of a grid all, if left out,
            else 20.
        sampler: "tpe" (Bergstra et al. 2011) tries near what was good, "random" anything, "grid"
            every combination of lists.
        metric: of the lists on valid, which is to be highest.
        folds: moments of time at which each trial is fitted and judged; see
            `kgrank.serving.tuning.folded`.
        seed: of what is drawn.
    """

    space: dict[str, dict[str, list[Any] | str]] = Field(default_factory=dict)
    trials: int | None = Field(default=None, ge=1)
    sampler: Sampler = "tpe"
    metric: Metric = "ndcg@10"
    folds: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


@dataclass(frozen=True)
class Dimension:
    """What may be tried for one setting: some values, or a range.

    Attributes:
        name: `section.key`.
        choices: the values; empty for a range.
        low, high: the ends of a range, both of it.
        log: whether each factor is as likely as another.
        whole: whether only whole numbers are tried.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @classmethod
    def of(cls, name: str, tried: Sequence[Any] | str) -> Dimension:
        """What TOML says of a setting.

        Raises:
            ConfigError: it is no list of one or more values and no range.
        """
        if not isinstance(tried, str):
            if not tried:
                raise _refused(name, "an empty list", "one value or more")
            return cls(name, tuple(one for n, one in enumerate(tried) if one not in tried[:n]))
        kind, _, ends = tried.partition(":")
        words = ends.split(":")
        try:
            low, high = (float(word) for word in words)
        except ValueError:
            raise _refused(name, repr(tried), "a list, log:low:high or lin:low:high") from None
        if kind not in ("log", "lin") or not (math.isfinite(low) and low < high < math.inf):
            raise _refused(name, repr(tried), "log:low:high or lin:low:high, with low < high")
        if kind == "log" and low <= 0:
            raise _refused(name, repr(tried), "ends above 0 with log")
        whole = all(word.strip().lstrip("+-").isdigit() for word in words)
        return cls(name, low=low, high=high, log=kind == "log", whole=whole)

    def size(self) -> float:
        """How many values there are."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if self.whole else math.inf

    def ends(self) -> tuple[Any, ...]:
        """All choices, or the two ends: where all of these are allowed, so is all between."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)


def read_space(
    named: Mapping[str, Mapping[str, Sequence[Any] | str]], words: Sequence[str]
) -> list[Dimension]:
    """The space of a configuration, with what the command line adds or says anew.

    Args:
        named: `tune.space`.
        words: `section.key=value,value,…` or `section.key=log:low:high` each, values as TOML writes
            them; one that is no TOML is text.

    Raises:
        ConfigError: a word is of no such form, or there is nothing to search.
    """
    tried = {f"{section}.{key}": of for section, keys in named.items() for key, of in keys.items()}
    for word in words:
        name, equals, value = (part.strip() for part in word.partition("="))
        if not (equals and name and value):
            example = "such as fit.neighbors=50,100"
            raise ConfigError(f"--space: found {word!r}; allowed: section.key=values, {example}.")
        tried[name] = value if value.startswith(("log:", "lin:")) else _values(value)
    if not tried:
        raise ConfigError(
            "tune.space: found no setting to search; allowed: one or more. Name it with --space, "
            "such as --space fit.neighbors=50,100,200."
        )
    return [Dimension.of(name, value) for name, value in tried.items()]


def _values(text: str) -> list[Any]:
    """Values with commas between, each as TOML has it, or text."""
    try:
        return list(tomllib.loads(f"values = [{text}]")["values"])
    except tomllib.TOMLDecodeError:
        return [_value(part.strip()) for part in text.split(",")]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refused(name: str, found: str, allowed: str) -> ConfigError:
    return ConfigError(f"tune.space, {name}: found {found}; allowed: {allowed}. Correct it.")
