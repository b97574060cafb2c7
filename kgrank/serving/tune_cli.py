"""The command line of the search of settings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from kgrank.serving.options import Folder, Json, Sets, SourcePath, faults_told
from kgrank.serving.printing import print_json, print_table, progress_on_stderr

app = typer.Typer()


@app.command()
def tune(
    source: SourcePath,
    out: Annotated[Path, Folder] = Path("tuning"),
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.KEY=VALUES",
            help="What is tried: a,b,c or log:low:high or lin:low:high; may be repeated.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many; 20, or all of a grid.")
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "grid"] | None, typer.Option(help="How they are drawn; tpe.")
    ] = None,
    metric: Annotated[
        Literal["ndcg@10", "recall@10"] | None, typer.Option(help="To be highest; ndcg@10.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=1, help="Windows of valid, backwards in time; 1.")
    ] = None,
    sets: Sets = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the learned channel is trained.")
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search in the folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search settings by how well a fit with them lists the valid rows; test is never read."""
    with faults_told(as_json):
        from kgrank.config import read_config, read_source
        from kgrank.serving.searching import BEST, JOURNAL, fragment
        from kgrank.serving.tuning import tune as find
        from kgrank.spaces import read_space

        asked = {"trials": trials, "sampler": sampler, "metric": metric, "folds": folds}
        named = [f"tune.{key}={value}" for key, value in asked.items() if value is not None]
        config = read_config(source, [*(sets or ()), *named])
        spaces = read_space(config.tune.space, space or ())
        try:
            with progress_on_stderr() as progress:
                found = find(
                    read_source(source, config),
                    config,
                    spaces,
                    out,
                    device=device,
                    resume=resume,
                    progress=progress,
                )
        except KeyboardInterrupt:
            if (out / JOURNAL).is_file():
                typer.echo(f"{out} keeps the trials that ended: --resume goes on.", err=True)
            raise
    if as_json:
        print_json(asdict(found))
        return
    names = [one.name for one in spaces]
    rows = [
        (
            trial.number,
            trial.state,
            trial.value,
            trial.seconds,
            *(str(trial.settings[name]) for name in names),
        )
        for trial in found.trials
    ]
    print_table(("trial", "state", found.metric, "seconds", *names), rows, "On valid")
    for trial in found.trials:
        if trial.error:
            typer.echo(f"Trial {trial.number} failed: {trial.error}")
    if found.best.value is not None and found.best.value <= found.before:
        typer.echo(f"No trial ranks better than the settings as they are ({found.before:.4f}).")
    typer.echo(f"Best: trial {found.best.number}. {out / BEST} holds, for a kgrank.toml:\n")
    typer.echo(fragment(found))
