"""The command line of rules: those named beside a bundle, those beside tables, and why not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kgrank.serving.options import faults_told
from kgrank.serving.printing import print_json, print_why_not

if TYPE_CHECKING:
    from kgrank.config import Config
    from kgrank.kg.tables import Tables
    from kgrank.serving.recommender import Recommender

RulesFile = Annotated[
    str | None,
    typer.Option("--rules", metavar="FILE|none", help="Rules in place of the bundle's, or none."),
]
At = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="The moment that rules are read for (ISO 8601); now."),
]


def loaded(bundle: Path, rules: str | None = None, at: str | None = None) -> Recommender:
    """A bundle at work under the rules that the command line names.

    Raises:
        typer.BadParameter: `at` is no time.
        ConfigError, BundleError: as `Recommender.load`.
    """
    from kgrank.serving.recommender import Recommender
    from kgrank.serving.rules import Rules, moment

    try:
        then = None if at is None else moment(at)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.", param_hint="--at") from None
    return Recommender.load(bundle, rules=Rules.none() if rules == "none" else rules, at=then)


def validated(
    source: str, named: Path | None, tables: Tables | None, config: Config
) -> dict[str, Any] | None:
    """What is to be said of a shop's rules: how many, `faults` and `warnings`; None without rules.

    Args:
        source: where the tables lie.
        named: the rules' file; the shop's own if None.
        tables: what was read there; where that is None or makes no graph, only the file itself is
            judged.
        config: the shop's configuration.
    """
    from kgrank.errors import ConfigError, DataError, ModelError
    from kgrank.serving.conditions import rules_path, shop_grounds
    from kgrank.serving.rules import Rules

    told: dict[str, Any] = {"rules": 0, "faults": [], "warnings": []}
    try:
        where = Path(source) if tables is None else tables.source
        path = named or rules_path(where, config.rules)
        if path is None:
            return None
        rules = Rules.read(path)
    except ConfigError as error:
        return {**told, "faults": str(error).split("\n")}
    told["rules"] = len(rules)
    if tables is not None:
        try:
            grounds = shop_grounds(tables, config)
        except (ConfigError, DataError, ModelError):
            return told  # no graph can be built, which is told of the tables
        told["faults"] = grounds.faults(rules)
        if not told["faults"]:
            told["warnings"] = grounds.warnings(rules)
    return told


def tell_why_not(
    bundle: Path,
    user: str,
    item: str,
    n: int,
    language: Literal["en", "zh"],
    rules: str | None,
    at: str | None,
    as_json: bool,
) -> None:
    """Print why a product is not on a user's list."""
    with faults_told(as_json):
        recommender = loaded(bundle, rules, at)
        why = recommender.why_not(user, item, n=n, language=language)
        names = recommender.bundle.names
    if as_json:
        print_json(asdict(why))
    else:
        print_why_not(why, names)
