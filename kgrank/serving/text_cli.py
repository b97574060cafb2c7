"""The command line of the text encoder: the verbs that make one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kgrank.serving.options import Json, Resume, Sets, SourcePath, Track, faults_told
from kgrank.serving.printing import print_json, print_table, progress_on_stderr

app = typer.Typer()


@app.command()
def pretrain(
    source: SourcePath,
    out: Annotated[Path, typer.Option(file_okay=False, help="A new folder, for the encoder.")],
    start: Annotated[
        str,
        typer.Option(
            "--from", metavar="FOLDER|minilm|scratch", help="The encoder that is gone on from."
        ),
    ] = "minilm",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the texts; as pretrain.epochs.")
    ] = None,
    sets: Sets = None,
    resume: Resume = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Teach a text encoder the shop's language by masked words; text.model takes its folder."""
    with faults_told(as_json):
        from kgrank.config import read_config, read_source
        from kgrank.encoders.corpus import shop_texts
        from kgrank.encoders.pretraining import pretrain as learn
        from kgrank.tracking import sink_of

        named = [] if epochs is None else [f"pretrain.epochs={epochs}"]
        config = read_config(source, [*(sets or ()), *named])
        settings = config.pretrain
        tables = read_source(source, config, settings.event_fields)
        events = tables.with_split(config.split).events
        seen = events[events["split"] != "test"]
        texts = shop_texts(tables.items, seen, settings.fields, settings.event_fields)
        with ExitStack() as tracked:
            sinks = [tracked.enter_context(sink_of(word, config.as_dict())) for word in track or ()]
            with progress_on_stderr() as progress:
                done = learn(
                    texts,
                    out,
                    settings,
                    start=start,
                    device=config.text.device,
                    resume=resume,
                    sinks=sinks,
                    progress=progress,
                )
    if as_json:
        print_json(asdict(done))
        return
    counts = ("texts", "held_out", "pieces", "long", "unknown", "vocabulary", "seconds")
    print_table(counts, [[getattr(done, name) for name in counts]], f"From {done.start}")
    print_table(("epoch", "perplexity"), list(enumerate(done.perplexity)), "Held-out masked tokens")
    typer.echo(f"Encoder: {done.folder}, as it was after epoch {done.best_epoch}. To use it:")
    typer.echo(f"kgrank train {source} --set text.model={done.folder}")
