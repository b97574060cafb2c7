"""The command line of the search of settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kgrank.serving.options import Folder, Json, Sets, SourcePath, faults_told
from kgrank.serving.printing import print_json, print_table, progress_on_stderr
from kgrank.serving.text_cli import tasks_of

if TYPE_CHECKING:
    from kgrank.encoders.finetuning import FinetuneSettings
    from kgrank.spaces import Dimension

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
    task: Annotated[
        list[str] | None,
        typer.Option(
            metavar="next|click|purchase|rating|sentiment[=WEIGHT]",
            help="Search the fine-tuning of a text encoder for it instead; may be repeated.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="FOLDER|minilm", help="The encoder that is fine-tuned; minilm."
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="Where the learned channel is trained; auto."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the search in the folder.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search settings by how well a fit with them lists the valid rows; test is never read.

    With --task those of a text encoder's fine-tuning, by its score on the valid rows.
    """
    for given, needed, name in (
        (start is not None, bool(task), "--from"),
        (device is not None, not task, "--device"),
        (metric is not None, not task, "--metric"),
    ):
        if given and not needed:
            message = f"it says nothing {'with' if task else 'without'} --task; leave it out."
            raise typer.BadParameter(message, param_hint=name)
    with faults_told(as_json):
        from kgrank.config import read_config, read_source
        from kgrank.serving.searching import BEST, JOURNAL, fragment
        from kgrank.serving.tuning import tune as find
        from kgrank.serving.tuning import tune_encoder
        from kgrank.spaces import read_space

        asked = {"trials": trials, "sampler": sampler, "metric": metric, "folds": folds}
        named = [f"tune.{key}={value}" for key, value in asked.items() if value is not None]
        config = read_config(source, [*(sets or ()), *named])
        spaces = read_space(config.tune.space, space or ())
        try:
            with progress_on_stderr() as progress:
                if task:
                    columns = _event_columns(config.finetune, spaces)
                    found = tune_encoder(
                        read_source(source, config, columns),
                        config,
                        spaces,
                        out,
                        tasks=tasks_of(task),
                        start=start or "minilm",
                        resume=resume,
                        progress=progress,
                    )
                else:
                    found = find(
                        read_source(source, config),
                        config,
                        spaces,
                        out,
                        device=device or "auto",
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
        typer.echo(f"No trial is better than the settings as they are ({found.before:.4f}).")
    typer.echo(f"Best: trial {found.best.number}. {out / BEST} holds, for a kgrank.toml:\n")
    typer.echo(fragment(found))


def _event_columns(settings: FinetuneSettings, spaces: Sequence[Dimension]) -> dict[str, list[str]]:
    """Setting → the columns of events that it names, or that are tried."""
    columns = settings.event_columns()
    for one in spaces:
        if one.name in columns:
            columns[one.name] += [name for name in one.choices if name]
    return columns
