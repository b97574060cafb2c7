"""`kgrank evaluate --explanations`: whether the reasons are why, on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kgrank.serving.options import faults_told
from kgrank.serving.printing import print_json, print_table, progress_on_stderr


def measure_reasons(
    path: Path, sample: int, seeds: int, source: Path | None, as_json: bool
) -> None:
    """Measure the explanations of a sample of users, and print what `measure_explanations` gives.

    Args:
        path: a bundle's folder, or a models folder.
        sample: how many users.
        seeds: how many times it is fitted again, with another seed each.
        source: the tables that are then needed; where they were if None.
        as_json: one JSON object instead of tables.
    """
    with faults_told(as_json), progress_on_stderr() as progress:
        from kgrank.serving.bundle import Bundle
        from kgrank.serving.evaluating import refitted, source_tables
        from kgrank.serving.faithfulness import measure_explanations

        bundle = Bundle.load(path)
        refits = []
        if seeds:
            tables = source_tables(bundle, source)
            first = max(bundle.config.learn.seed, bundle.config.fit.seed) + 1
            for seed in range(first, first + seeds):
                refits.append(refitted(bundle, tables, seed, progress=progress))
        result = measure_explanations(bundle, sample=sample, refits=refits, progress=progress)
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: Mapping[str, Any]) -> None:
    keys = ("pairs", "shown", "random", "difference")
    drops = [
        (name, *(found[key] for key in keys), *found["interval"])
        for name in ("drop", "drop_beyond_user")
        if (found := result[name]) is not None
    ]
    columns = ("removed", *keys, "low", "high")
    title = f"Fall of the score without edges, of all that moved it ({result['users']} users)"
    print_table(columns, drops, title)
    covered = [(f"covered, {name}", value) for name, value in result["covered"].items()]
    if (found := result["stability_seeds"]) is not None:
        told = f"{found['refits']} fits with other seeds"
        covered += [(f"stability of {of}, {told}", found[of]) for of in ("paths", "edges")]
    others = ("with_path", "stability", "edges", "lir", "sep", "etd")
    print_table(("measure", "value"), [*covered, *((name, result[name]) for name in others)])
