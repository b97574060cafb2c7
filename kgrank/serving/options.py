"""What several verbs of the command line take, and how they end when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from kgrank.errors import KgrankError
from kgrank.serving.printing import print_error

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
SourcePath = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of tables, a kgrank.toml, or neo4j://\\[user@]host[:port]\\[/database].",
    ),
]
BundlePath = Annotated[
    Path,
    typer.Argument(metavar="BUNDLE", help="A bundle's folder, or a models folder (its current)."),
]
TaskOption = Annotated[
    Literal["rank", "click", "purchase", "conversion", "rating"],
    typer.Option("--task", help="Whose head: rank, or one that predicts; see \\[tasks]."),
]
Folder = typer.Option(file_okay=False, help="The folder to write into.")
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A setting; may be repeated."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the checkpoint of a training cut short; begin anew if it is of another.",
    ),
]
Track = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WORD",
        help="Where figures of the training go: tensorboard:DIR, mlflow[:URI] or "
        "wandb[:PROJECT]; may be repeated.",
    ),
]
Repeats = Literal["exclude", "allow", "only"]
Language = Annotated[Literal["en", "zh"], typer.Option(help="Of the text.")]
Anonymous = Annotated[
    bool, typer.Option("--anonymous", help="Leave other users' ids out of the paths.")
]


@contextmanager
def faults_told(as_json: bool) -> Iterator[None]:
    """Turn what may go wrong into words and an exit status; anything else is a bug, and shows."""
    try:
        yield
    except KgrankError as error:
        print_error(error, as_json)
        raise typer.Exit(1) from None
    except OSError as error:
        if error.filename is None:  # no file's fault; a closed pipe is left to typer
            raise
        print_error(error, as_json)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("Interrupted. Nothing is half-written.", file=sys.stderr)
        raise typer.Exit(130) from None
