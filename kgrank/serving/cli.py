"""The command line: tables in, a bundle, rankings and reasons out.

Results go to stdout, progress and faults to stderr. Exit status: 0 done, 1 a fault in the data or
the model, 2 wrong usage, 130 interrupted. What is heavy is imported by the verb that needs it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from kgrank.errors import DataError, Fault
from kgrank.serving.compress_cli import app as compress_app
from kgrank.serving.explain_cli import app as explain_app
from kgrank.serving.faithfulness_cli import measure_reasons
from kgrank.serving.graph_cli import app as graph_app
from kgrank.serving.options import (
    Anonymous,
    BundlePath,
    Folder,
    Json,
    Language,
    Repeats,
    Resume,
    Sets,
    SourcePath,
    TaskOption,
    Track,
    faults_told,
)
from kgrank.serving.printing import (
    print_bundle,
    print_evaluation,
    print_json,
    print_table,
    progress_on_stderr,
)
from kgrank.serving.rules_cli import At, RulesFile, loaded, validated
from kgrank.serving.text_cli import app as text_app
from kgrank.serving.tune_cli import app as tune_app

app = typer.Typer(
    name="kgrank",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RepeatsOption = Annotated[
    Repeats, typer.Option(help="May a list hold what the user has met? Only that?")
]


def main() -> None:
    """Run the command line (the entry point `kgrank`)."""
    if not sys.warnoptions:  # stderr is for our own words; python -W brings the warnings back
        warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app(prog_name="kgrank")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"kgrank {version('kgrank')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Knowledge-graph-augmented recommendations for shops: tables in, rankings and reasons out."""


@app.command()
def demo(
    shop: Annotated[Literal["sample", "completejourney"], typer.Option(help="Which shop.")] = (
        "sample"
    ),
    out: Annotated[Path, Folder] = Path("demo-out"),
    as_json: Json = False,
) -> None:
    """Show the whole story on a bundled shop, with a report page."""
    with faults_told(as_json), progress_on_stderr() as progress:
        from kgrank.serving.demo import run_demo

        report = run_demo(shop, out, progress)
    if as_json:
        print_json({"report": str(report)})
    else:
        typer.echo(f"Report: {report}")


@app.command()
def validate(
    source: SourcePath,
    rules: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Rules to judge in place of the shop's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Report every fault of tables, settings and rules: where, what was found, what is allowed.

    And everything else that train would refuse before it learns, but for encoders, which are not
    loaded.
    """
    faults: Sequence[Fault] = ()
    tables = None
    rows: dict[str, int] = {}
    with faults_told(as_json):
        from kgrank.config import Config, read_source, sound_config

        config, refused = sound_config(source)
        if config is not None:
            try:
                tables = read_source(source, config)
            except DataError as error:
                faults = error.faults
            else:
                from kgrank.serving.training import refusals

                rows = {name: len(getattr(tables, name)) for name in _TABLES}
                faults, lines = refusals(tables, config)
                refused += lines
        judged = validated(source, rules, tables, config or Config())
    wrong = [*map(str, faults), *refused, *(judged["faults"] if judged else ())]
    if as_json:
        told = {"faults": [asdict(fault) for fault in faults], "refused": refused, "tables": rows}
        print_json(told if judged is None else {**told, "rules": judged})
    else:
        for line in (*wrong, *(f"Warning: {said}" for said in (judged or {}).get("warnings", ()))):
            typer.echo(line)
        if not wrong:
            counts = rows if judged is None else {**rows, "rules": judged["rules"]}
            print_table(("table", "rows"), counts.items(), "Sound")
    if wrong:
        raise typer.Exit(1)


_TABLES = ("events", "items", "users", "triples", "entities", "queries")


@app.command("import")
def import_(
    format: Annotated[str, typer.Argument(help="completejourney, kgat, movielens or recbole.")],
    src: Annotated[Path, typer.Argument(help="The unpacked data; 'installed' for its package.")],
    dst: Annotated[Path, typer.Argument(help="A new folder for the tables.")],
    as_json: Json = False,
) -> None:
    """Write a published data set or format as the tables that kgrank reads."""
    with faults_told(as_json):
        from pyarrow.parquet import read_metadata

        from kgrank.kg.importers import FORMATS, import_tables

        if format not in FORMATS:
            known = ", ".join(FORMATS)
            raise typer.BadParameter(f"found {format!r}; allowed: {known}.", param_hint="FORMAT")
        import_tables(format, src, dst)
        paths = sorted(dst.glob("*.parquet"))
        rows = {path.stem: int(read_metadata(path).num_rows) for path in paths}
    if as_json:
        print_json({"format": format, "folder": str(dst), "tables": rows})
    else:
        print_table(("table", "rows"), rows.items(), str(dst))


@app.command()
def train(
    source: SourcePath,
    out: Annotated[Path, Folder] = Path("models"),
    sets: Sets = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where the learned channel is trained.")
    ] = "auto",
    resume: Resume = False,
    track: Track = None,
    as_json: Json = False,
) -> None:
    """Fit a bundle on the train and valid rows, and make it the current one of a models folder.

    Under torchrun (torchrun --nproc-per-node 2 -m kgrank train SOURCE) the processes share the
    training of the learned channel, and the first of them does the rest.
    """
    if (out / "manifest.json").exists():  # said before the work, not after it
        hint = "--out"
        raise typer.BadParameter(f"{out} is a bundle; name a models folder.", param_hint=hint)
    from kgrank.processes import leads

    with faults_told(as_json and leads()):
        from kgrank.config import read_config, read_source
        from kgrank.devices import choose_device
        from kgrank.serving.training import assist
        from kgrank.serving.training import train as fit
        from kgrank.tracking import sinks_of

        config, checkpoints = read_config(source, sets or ()), out / ".training"
        found = choose_device(device)  # a device that is not there is told before tables are read
        if not leads():
            tables = read_source(source, config)
            assist(tables, config, device=found, checkpoints=checkpoints, resume=resume)
            return
        with sinks_of(track, config.as_dict()) as sinks, progress_on_stderr() as progress:
            bundle = fit(
                read_source(source, config),
                config,
                progress=progress,
                device=found,
                checkpoints=checkpoints,
                resume=resume,
                sinks=sinks,
            )
            folder = str(bundle.save(out))
    if as_json:
        print_json({"bundle": folder, **bundle.facts})
    else:
        print_bundle(bundle.facts, folder)


@app.command()
def evaluate(
    bundle: BundlePath,
    split: Annotated[
        Literal["test", "valid"],
        typer.Option(help="What is predicted; for valid train with fit.refit=false."),
    ] = "test",
    protocol: Annotated[
        Literal["user", "next"],
        typer.Option(
            help="One list a user, or one an event; its own item may be listed though met before."
        ),
    ] = "user",
    history: Annotated[
        Literal["all", "train"], typer.Option(help="Rows that lists are made from.")
    ] = "all",
    repeats: RepeatsOption = "exclude",
    relevant: Annotated[
        Literal["all", "new"], typer.Option(help="All rows of the split, or items not yet met.")
    ] = "all",
    graph: Annotated[
        Literal["true", "shuffled", "none", "all"],
        typer.Option(help="The bundle as it is, or fitted again with another graph."),
    ] = "true",
    source: Annotated[
        Path | None, typer.Option(help="The tables, if they are not where they were.")
    ] = None,
    explanations: Annotated[
        bool, typer.Option("--explanations", help="Measure the reasons instead of the lists.")
    ] = False,
    sample: Annotated[int, typer.Option(min=1, help="Users whose reasons are measured.")] = 200,
    seeds: Annotated[
        int, typer.Option(min=0, help="Fits with other seeds that the reasons are compared with.")
    ] = 0,
    task: TaskOption = "rank",
    as_json: Json = False,
) -> None:
    """Measure the lists on rows that the bundle has not seen, beside popularity and EASE."""
    if explanations and task != "rank":
        message = "--explanations measures the reasons of rank only; leave --task out."
        raise typer.BadParameter(message, param_hint="--task")
    if seeds and not explanations:
        raise typer.BadParameter("goes with --explanations.", param_hint="--seeds")
    if explanations:
        measure_reasons(bundle, sample, seeds, source, as_json)
        return
    with faults_told(as_json), progress_on_stderr() as progress:
        from kgrank.serving.bundle import Bundle
        from kgrank.serving.evaluating import evaluate_bundle

        result = evaluate_bundle(
            Bundle.load(bundle),
            source=source,
            split=split,
            protocol=protocol,
            history=history,
            repeats=repeats,
            relevant=relevant,
            graph=graph,
            task=task,
            progress=progress,
        )
    if as_json:
        print_json(result)
    else:
        print_evaluation(result)


@app.command()
def rank(
    bundle: BundlePath,
    out: Annotated[Path, Folder],
    n: Annotated[int, typer.Option("-n", min=1, help="Length of each list.")] = 20,
    users: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="For whom: one id a line, or a table with user_id; all users if left out.",
        ),
    ] = None,
    repeats: RepeatsOption = "exclude",
    task: TaskOption = "rank",
    unknown: Annotated[
        Literal["error", "skip"], typer.Option(help="What a user unknown to the bundle does.")
    ] = "error",
    resume: Annotated[bool, typer.Option("--resume", help="Go on after a killed job.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Write why beside each row: text, and paths as JSON.")
    ] = False,
    paths: Annotated[int, typer.Option(min=0, help="At most so many paths a row.")] = 3,
    language: Language = "en",
    anonymous: Anonymous = False,
    rules: RulesFile = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Write the lists of many users as Parquet parts and a manifest."""
    with faults_told(as_json), progress_on_stderr() as progress:
        from kgrank.serving.ranking import rank_users, read_user_ids
        from kgrank.serving.reasons import Reasons

        user_ids = None if users is None else read_user_ids(users)
        manifest = rank_users(
            loaded(bundle, rules, at),
            out,
            n=n,
            user_ids=user_ids,
            repeats=repeats,
            task=task,
            unknown=unknown,
            resume=resume,
            reasons=Reasons(paths, language, anonymous) if explain else None,
            progress=progress,
        )
    if as_json:
        print_json(manifest)
    else:
        counts = {name: manifest[name] for name in ("users", "skipped_users", "rows")}
        print_table(tuple(counts), [tuple(counts.values())], str(out))


@app.command()
def vectors(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option(file_okay=False, help="The embedding store's folder.")],
    users: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Whose vectors too: one id a line, or a table with user_id; nobody's if left out.",
        ),
    ] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="All users' vectors too.")] = False,
    repeats: RepeatsOption = "exclude",
    as_json: Json = False,
) -> None:
    """Keep the vectors of items, entities and users in a store; written again, what changed."""
    if users is not None and all_users:
        message = "--users and --all-users exclude each other; leave one out."
        raise typer.BadParameter(message, param_hint="--users")
    with faults_told(as_json):
        from kgrank.serving.checks import head_of
        from kgrank.serving.ranking import read_user_ids

        recommender = loaded(bundle)
        named = None if users is None else read_user_ids(users)
        store = recommender.write_vectors(out, "all" if all_users else named, repeats)
        inside = recommender.model.dense_channels(head_of(repeats))
        outside = recommender.model.other_channels(head_of(repeats))
    sizes = {name: {"vectors": n, "dim": store.dims[name]} for name, n in store.groups.items()}
    if as_json:
        about = {"store": str(out), "generation": store.generation, "groups": sizes}
        print_json({**about, "channels": inside, "channels_without_vectors": outside})
    else:
        rows = [(name, size["vectors"], size["dim"]) for name, size in sizes.items()]
        print_table(("group", "vectors", "dim"), rows, f"{out}, generation {store.generation}")
        dense, rest = " + ".join([*inside, "bias"]), ", ".join(outside) or "nothing"
        told = f"In user · item: {dense}. Not in it: {rest}."
        typer.echo(told if inside else "No dense channel weighs in these lists: no item vectors.")


app.add_typer(explain_app)
app.add_typer(text_app)
app.add_typer(compress_app)
app.add_typer(tune_app)
app.add_typer(graph_app, name="graph")
