"""The command line of the text encoder: the verbs that use one and that make one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kgrank.serving.options import Json, Resume, Sets, SourcePath, Track, faults_told
from kgrank.serving.printing import print_json, print_table, progress_on_stderr

app = typer.Typer()

Out = Annotated[Path, typer.Option(file_okay=False, help="A new folder, for the encoder.")]
Epochs = Annotated[
    int | None,
    typer.Option(min=1, help="Passes over the texts, at most; the epochs of the section."),
]


@app.command()
def embed(
    source: SourcePath,
    out: Annotated[
        Path, typer.Option(dir_okay=False, help="The Parquet file; replaced if it is there.")
    ],
    model: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|minilm", help="The encoder; as text.model."),
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Write the vectors of all products' texts; run again, only what changed is encoded."""
    with faults_told(as_json):
        from kgrank.config import read_config, read_source
        from kgrank.encoders.embedding import embed_items

        config = read_config(source, sets or ())
        text = config.text if model is None else config.text.model_copy(update={"model": model})
        items = read_source(source, config).items
        with progress_on_stderr() as progress:
            done = embed_items(items, out, text, progress=progress)
    if as_json:
        print_json(asdict(done))
        return
    counts = ("items", "encoded", "reused", "truncated", "empty", "seconds")
    title = f"By {done.model}, {done.dim} numbers each"
    print_table(counts, [[getattr(done, name) for name in counts]], title)
    if done.truncated:
        typer.echo(f"{done.truncated} texts were cut at {done.max_tokens} tokens.")
    if done.empty:
        typer.echo(f"{done.empty} products have no text that says anything: their vectors are 0.")
    typer.echo(f"Vectors: {done.file}.")


@app.command()
def pretrain(
    source: SourcePath,
    out: Out,
    start: Annotated[
        str,
        typer.Option(
            "--from", metavar="FOLDER|minilm|scratch", help="The encoder that is gone on from."
        ),
    ] = "minilm",
    epochs: Epochs = None,
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
        from kgrank.tracking import sinks_of

        named = [] if epochs is None else [f"pretrain.epochs={epochs}"]
        config = read_config(source, [*(sets or ()), *named])
        settings = config.pretrain
        columns = {"pretrain.event_fields": settings.event_fields}
        tables = read_source(source, config, columns)
        events = tables.with_split(config.split).events
        seen = events[events["split"] != "test"]
        texts = shop_texts(tables.items, seen, settings.fields, settings.event_fields)
        with sinks_of(track, config.as_dict()) as sinks, progress_on_stderr() as progress:
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
    _tell_use(source, done.folder, done.best_epoch)


@app.command()
def finetune(
    source: SourcePath,
    out: Out,
    task: Annotated[
        list[str],
        typer.Option(
            metavar="next|click|purchase|rating|sentiment[=WEIGHT]",
            help="What is learned, with its share of an epoch; may be repeated.",
        ),
    ],
    start: Annotated[
        str, typer.Option("--from", metavar="FOLDER|minilm", help="The encoder that is trained.")
    ] = "minilm",
    epochs: Epochs = None,
    sets: Sets = None,
    resume: Resume = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Train a text encoder on what people chose and said; text.model takes its folder."""
    with faults_told(as_json):
        from kgrank.config import read_config, read_source
        from kgrank.encoders.finetuning import finetune as learn
        from kgrank.tracking import sinks_of

        named = [] if epochs is None else [f"finetune.epochs={epochs}"]
        config = read_config(source, [*(sets or ()), *named])
        settings, tasks = config.finetune, tasks_of(task)
        tables = read_source(source, config, settings.event_columns()).with_split(config.split)
        with sinks_of(track, config.as_dict()) as sinks, progress_on_stderr() as progress:
            done = learn(
                tables.items,
                tables.events,
                out,
                settings,
                tasks=tasks,
                kinds=dict(config.tasks),
                text=config.text,
                start=start,
                device=config.text.device,
                resume=resume,
                sinks=sinks,
                progress=progress,
            )
    if as_json:
        print_json(asdict(done))
        return
    counts = ("method", "texts", "cut", "learned", "seconds")
    print_table(counts, [[getattr(done, name) for name in counts]], f"From {done.start}")
    rows = [
        (name, metric, value, done.after[name][metric])
        for name, metrics in done.before.items()
        for metric, value in metrics.items()
    ]
    print_table(("task", "metric on valid", "before", "after"), rows, "The encoder alone")
    print_table(("epoch", "score on valid"), list(enumerate(done.score)))
    if done.unjudged:
        left = ", ".join(f"{count} of {name}" for name, count in done.unjudged.items())
        typer.echo(f"Valid rows of classes that train does not hold are not judged: {left}.")
    _tell_use(source, done.folder, done.best_epoch)


def _tell_use(source: str, folder: str, epoch: int) -> None:
    typer.echo(f"Encoder: {folder}, as it was after epoch {epoch}. To use it:")
    typer.echo(f"kgrank train {source} --set text.model={folder}")


def tasks_of(words: list[str]) -> dict[str, float]:
    """Task → weight, of words such as next or rating=0.3.

    Raises:
        ConfigError: a weight is no number, or a task is named twice.
    """
    from kgrank.errors import ConfigError

    found: dict[str, float] = {}
    for word in words:
        name, _, weight = word.partition("=")
        if name in found:
            raise ConfigError(
                f"--task {word}: found {name} twice; allowed: once. Drop one of them."
            )
        try:
            found[name] = float(weight) if "=" in word else 1.0
        except ValueError:
            raise ConfigError(
                f"--task {word}: found {weight!r} for a weight; allowed: a number, such as "
                f"{name}=0.3. Correct it."
            ) from None
    return found
