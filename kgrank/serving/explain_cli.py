"""`kgrank explain`, `similar` and `profile`: what the engine knows, and why it lists a product."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from kgrank.serving.options import (
    Anonymous,
    BundlePath,
    Json,
    Language,
    Repeats,
    TaskOption,
    faults_told,
)
from kgrank.serving.printing import (
    explanation_page,
    print_explanation,
    print_item_profile,
    print_json,
    print_profile,
    print_table,
)
from kgrank.serving.rules_cli import At, RulesFile, loaded, tell_why_not

app = typer.Typer()

User = Annotated[str, typer.Option("--user", help="A user id, to the letter.")]
Item = Annotated[str, typer.Option("--item", help="An item id, to the letter.")]


@app.command()
def explain(
    bundle: BundlePath,
    user: User,
    item: Annotated[str | None, typer.Option(help="An item id, to the letter.")] = None,
    why_not: Annotated[
        str | None, typer.Option(metavar="ITEM", help="Tell why this item is not on the list.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Length of that list.")] = 10,
    paths: Annotated[int, typer.Option(min=0, help="At most so many paths.")] = 3,
    format: Annotated[
        Literal["text", "json", "html", "svg"], typer.Option(help="What to print.")
    ] = "text",
    repeats: Annotated[
        Repeats | None,
        typer.Option(
            help="The kind of list whose score it is; exclude, or allow for what the user has met."
        ),
    ] = None,
    language: Language = "en",
    anonymous: Anonymous = False,
    task: TaskOption = "rank",
    rules: RulesFile = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Take one score apart, by channel, event and path; or tell what keeps a product off a list."""
    as_json = as_json or format == "json"
    if format in ("html", "svg") and (as_json or why_not is not None):
        other = "--json prints JSON" if as_json else "--why-not prints text or JSON"
        message = f"{other}, --format {format} does not; choose one of them."
        raise typer.BadParameter(message, param_hint="--format")
    if why_not is not None and repeats is not None:
        message = "--why-not tells of lists of new products only; leave --repeats out."
        raise typer.BadParameter(message, param_hint="--repeats")
    if why_not is not None and task != "rank":
        message = "--why-not tells of the lists of rank only; leave --task out."
        raise typer.BadParameter(message, param_hint="--task")
    if item is None and why_not is not None:
        tell_why_not(bundle, user, why_not, n, language, rules, at, as_json)
        return
    if item is None or why_not is not None:
        raise typer.BadParameter("name either --item or --why-not.", param_hint="--item")
    with faults_told(as_json):
        recommender = loaded(bundle, rules, at)
        why = recommender.explain(
            user,
            item,
            max_paths=paths,
            repeats=repeats,
            language=language,
            anonymous=anonymous,
            task=task,
        )
        names = recommender.bundle.names
    if as_json:
        print_json(asdict(why))
    elif format == "svg":
        from kgrank.serving.drawing import draw_paths

        typer.echo(draw_paths(why))
    elif format == "html":
        typer.echo(explanation_page(why, names, language))
    else:
        print_explanation(why, names)


@app.command()
def similar(
    bundle: BundlePath,
    item: Item,
    n: Annotated[int, typer.Option("-n", min=1, help="How many.")] = 10,
    as_json: Json = False,
) -> None:
    """List the products that a history of one product alone speaks for."""
    with faults_told(as_json):
        recommender = loaded(bundle)
        table = recommender.similar_items([item], n)
        names = recommender.bundle.names
    columns = ("rank", "item_id", "title", "score")
    rows = [
        (int(rank), id_, names[id_], float(score))
        for rank, id_, score in zip(table["rank"], table["similar_id"], table["score"], strict=True)
    ]
    if as_json:
        found = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"item_id": item, "similar": found})
    else:
        print_table(columns, rows, f"Like {item} {names[item]}")


@app.command()
def profile(
    bundle: BundlePath,
    user: Annotated[str | None, typer.Option(help="A user id, to the letter.")] = None,
    item: Annotated[str | None, typer.Option(help="An item id, to the letter.")] = None,
    as_json: Json = False,
) -> None:
    """Show what the engine knows of a user, or of a product."""
    if (user is None) == (item is None):
        raise typer.BadParameter("name either --user or --item.", param_hint="--user")
    with faults_told(as_json):
        recommender = loaded(bundle)
        names = recommender.bundle.names
        known = recommender.profile(user) if user is not None else None
        of_item = recommender.profile_item(item) if item is not None else None
    if as_json:
        print_json(asdict(known) if known else asdict(of_item) if of_item else {})
    elif known:
        print_profile(known, names)
    elif of_item:
        print_item_profile(of_item, names)
