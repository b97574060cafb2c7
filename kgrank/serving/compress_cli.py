"""The command line of smaller text encoders."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kgrank.serving.options import Json, Resume, Sets, Track, faults_told
from kgrank.serving.printing import print_json, print_table, progress_on_stderr

if TYPE_CHECKING:
    from kgrank.serving.compressing import Comparison

app = typer.Typer()

_LOSS = 0.02


@app.command()
def compress(
    model: Annotated[str, typer.Argument(metavar="FOLDER|minilm", help="The encoder.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="A new folder, for the smaller one.")],
    method: Annotated[
        Literal["layers", "distil", "static", "onnx", "int8"],
        typer.Option(help="Drop layers; train what is left; a table of tokens; ONNX; its 8 bits."),
    ],
    source: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="The shop whose rankings must not get worse."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Layers that stay; as compress.layers.")
    ] = None,
    most_loss: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of R@10 on valid that may be lost; 0.02."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Keep it whatever is lost.")] = False,
    sets: Sets = None,
    resume: Resume = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Make a text encoder smaller and tell what that costs; text.model takes its folder."""
    for given, needed, name in (
        (layers is not None, method in ("layers", "distil"), "--layers"),
        (resume, method == "distil", "--resume"),
        (bool(track), method == "distil", "--track"),
    ):
        if given and not needed:
            message = f"it says nothing to the method {method}; leave it out."
            raise typer.BadParameter(message, param_hint=name)
    if source is None:
        if method == "distil":
            message = "distil learns from a shop's texts; name its tables."
            raise typer.BadParameter(message, param_hint="--source")
        if most_loss is not None or force:
            name = "--force" if force else "--most-loss"
            message = "without --source nothing is known of the loss; leave it out, or name a shop."
            raise typer.BadParameter(message, param_hint=name)
    with faults_told(as_json):
        from kgrank.config import read_config, read_source
        from kgrank.serving.compressing import LossError, compress_encoder
        from kgrank.tracking import sinks_of

        named = [] if layers is None else [f"compress.layers={layers}"]
        config = read_config(source, [*(sets or ()), *named])
        tables = None if source is None else read_source(source, config)
        try:
            with sinks_of(track, config.as_dict()) as sinks, progress_on_stderr() as progress:
                done = compress_encoder(
                    model,
                    out,
                    method,
                    tables,
                    config,
                    most_loss=_LOSS if most_loss is None else most_loss,
                    force=force,
                    resume=resume,
                    sinks=sinks,
                    progress=progress,
                )
        except LossError as error:
            if not as_json:
                _print_figures(error.comparison)
            raise
    if as_json:
        print_json(asdict(done))
    else:
        _print_figures(done)
        typer.echo(
            f"Encoder: {done.folder}. To use it: kgrank train … --set text.model={done.folder}"
        )


def _print_figures(done: Comparison) -> None:
    made, rows = done.made, (done.original, done.compressed)
    columns = ("encoder", "form", "MB", "titles/s", "R@10 on valid", "alone, NDCG@10")
    figures = [
        (row.form, row.megabytes, row.texts_per_second, row.recall, row.alone) for row in rows
    ]
    names = (made.start, made.method)
    title = f"On {done.texts} titles, one run on this machine"
    print_table(columns, [(n, *f) for n, f in zip(names, figures, strict=True)], title)
    smaller = done.original.megabytes / done.compressed.megabytes
    faster = done.compressed.texts_per_second / done.original.texts_per_second
    typer.echo(
        f"{smaller:.2f} times smaller, {faster:.2f} times as fast; cosine {done.cosine:.4f}, "
        f"{done.neighbors:.0%} of the ten nearest titles in common."
    )
    if made.layers is not None:
        typer.echo(f"Layers kept, from 0: {', '.join(map(str, made.layers))}.")
    if made.cosines:
        path = ", ".join(f"{value:.4f}" for value in made.cosines)
        typer.echo(f"Cosine on held-out texts, before and after each epoch: {path}.")
    if done.lost is None:
        typer.echo("Accuracy is unmeasured: name a shop with --source to have it measured.")
    else:
        low, high = done.interval or (-math.inf, math.inf)
        typer.echo(f"R@10 lost: {done.lost:.1%}; difference in [{low:+.4f}, {high:+.4f}] (95 %).")
