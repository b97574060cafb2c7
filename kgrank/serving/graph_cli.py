"""The command line of the graph: out to other tools, back again, and in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kgrank.serving.options import Json, Sets, faults_told
from kgrank.serving.printing import print_json, print_table, progress_on_stderr

if TYPE_CHECKING:
    import pandas as pd

    from kgrank.kg.graph import KnowledgeGraph
    from kgrank.kg.node_scores import NodeScores
    from kgrank.kg.stats import GraphStats
    from kgrank.progress import Progress

app = typer.Typer(no_args_is_help=True)

USERS_AT_A_TIME = 1024
FILES = ("networkx", "pyg", "parquet")

GraphSource = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE|SOURCE",
        help="A bundle, tables, an exported graph, or neo4j://\\[user@]host[:port]\\[/database].",
    ),
]


@app.callback()
def graph() -> None:
    """The knowledge graph: exported to other tools, imported, and in numbers."""


@app.command("export")
def export(
    source: GraphSource,
    to: Annotated[
        str,
        typer.Option(
            metavar="neo4j://…|networkx|pyg|parquet",
            help="A server (neo4j:// or bolt://, +s for TLS), or a kind of file.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Where files go: a .json file of networkx, else a folder.")
    ] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="An embedding store: its vectors go to the server too."),
    ] = None,
    scores: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="From a bundle: each user's N best go to the server too, as RECOMMENDED.",
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Look at all a server holds; mend what others changed."),
    ] = False,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Write the graph for another tool; a server gets only what has changed.

    The password of a server is read from the environment variable KGRANK_NEO4J_PASSWORD.
    """
    from kgrank.kg.bolt import is_server

    if not is_server(to) and to not in FILES:
        allowed = f"neo4j://host[:port][/database], bolt://… or {', '.join(FILES)}"
        raise typer.BadParameter(f"found {to!r}; allowed: {allowed}.", param_hint="--to")
    if is_server(to) != (out is None):
        wrong = "is for files, not for a server" if out else "names where the files go; add it"
        raise typer.BadParameter(f"--out {wrong}.", param_hint="--out")
    if vectors is not None and not is_server(to):
        raise typer.BadParameter("vectors go to a server only.", param_hint="--vectors")
    if scores is not None and not is_server(to):
        raise typer.BadParameter("scores go to a server only.", param_hint="--scores")
    if repair and not is_server(to):
        raise typer.BadParameter("a server only is repaired.", param_hint="--repair")
    if scores is not None and not _is_model(Path(source)):
        message = f"found {source!r}, which has no model; allowed: a bundle or a models folder."
        raise typer.BadParameter(message, param_hint="--scores")
    with faults_told(as_json), progress_on_stderr() as progress:
        found = _graph(source, sets, progress)
        if out is None:
            lists = None if scores is None else _lists(found, Path(source), scores, progress)
            told = _to_server(found, to, vectors, lists, progress, repair)
        else:
            told = _to_files(found, to, out)
    if as_json:
        print_json(told)
    else:
        print_table(("what", "value"), told.items(), f"{source} → {out or told['to']}")


def _lists(graph: KnowledgeGraph, models: Path, n: int, progress: Progress) -> NodeScores:
    """The n best items of each user, under the bundle's rules."""
    from kgrank.kg.node_scores import NodeScores
    from kgrank.serving.bundle_folder import find_bundle
    from kgrank.serving.recommender import Recommender

    folder = find_bundle(models)
    recommender = Recommender.load(folder).fixed()
    users = recommender.bundle.users.array

    def lists() -> Iterator[pd.DataFrame]:
        for first in range(0, len(users), USERS_AT_A_TIME):
            progress("lists", first, len(users))
            some = users.slice(first, USERS_AT_A_TIME).to_pylist()
            yield recommender.recommend(some, n)
        progress("lists", len(users), len(users))

    return NodeScores.of_lists(graph, folder.resolve().name, lists())


def _to_server(
    graph: KnowledgeGraph,
    to: str,
    vectors: Path | None,
    scores: NodeScores | None,
    progress: Progress,
    repair: bool,
) -> dict[str, Any]:
    from kgrank.kg.bolt import Address, Server
    from kgrank.kg.embeddings import EmbeddingStore
    from kgrank.kg.graph_writing import write_graph
    from kgrank.kg.node_vectors import NodeVectors

    address = Address.parse(to)
    given = None if vectors is None else NodeVectors.of_store(EmbeddingStore.open(vectors))
    with Server(address) as server:
        written = asdict(write_graph(graph, server, given, scores, progress, repair=repair))
    counts = {f"with {name}": n for name, n in written.pop("vectors").items()}
    return {"to": str(address), **_sizes(graph), **written, **counts}


def _to_files(graph: KnowledgeGraph, to: str, out: Path) -> dict[str, Any]:
    from kgrank.files import new_folder
    from kgrank.kg.graph_files import save_networkx, save_pyg

    if to == "networkx":
        save_networkx(graph, out)
    elif to == "pyg":
        save_pyg(graph, out)
    else:
        with new_folder(out) as folder:
            graph.save(folder)
    return {"to": to, "out": str(out), **_sizes(graph), "fingerprint": graph.fingerprint()}


@app.command("import")
def import_(
    source: GraphSource,
    out: Annotated[Path, typer.Option(file_okay=False, help="A new folder, for the graph.")],
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Read a graph back from a server or a file into Parquet files, proved by its fingerprint."""
    with faults_told(as_json), progress_on_stderr() as progress:
        told = _to_files(_graph(source, sets, progress), "parquet", out)
    if as_json:
        print_json({"from": source, **told})
    else:
        print_table(("what", "value"), told.items(), f"{source} → {out}")


@app.command("stats")
def stats(source: GraphSource, sets: Sets = None, as_json: Json = False) -> None:
    """Count what the graph holds, how it hangs together, and what in it says nothing."""
    with faults_told(as_json), progress_on_stderr() as progress:
        found = _graph(source, sets, progress)
        numbers = found.stats()
        fingerprint = found.fingerprint()
    if as_json:
        print_json({**_sizes(found), "fingerprint": fingerprint, **asdict(numbers)})
    else:
        _print_stats(numbers, f"{source}, graph {fingerprint[:12]}")


def _print_stats(stats: GraphStats, title: str) -> None:
    from kgrank.kg.stats import QUANTILES

    names = ["min", *(f"{q:.0%}" for q in QUANTILES[1:-1]), "max"]
    nodes = [
        (kind, n, *stats.degrees.get(kind, [None] * len(names))) for kind, n in stats.nodes.items()
    ]
    print_table(("nodes", "count", *(f"degree {name}" for name in names)), nodes, title)
    relations = []
    for one in stats.relations:
        kind, repeats = "event" if one.behaviour else "fact", one.edges / max(one.pairs, 1)
        relations.append((one.relation, kind, one.edges, one.heads, one.tails, repeats))
    print_table(("relation", "kind", "edges", "heads", "tails", "edges a pair"), relations)
    rows = [
        ("components", stats.components, ""),
        ("nodes of the largest component", stats.largest_component, ""),
        *(
            (name.replace("_", " "), getattr(stats, name), ", ".join(ids))
            for name, ids in stats.examples.items()
        ),
    ]
    print_table(("what", "count", "such as"), rows)


def _sizes(graph: KnowledgeGraph) -> dict[str, int]:
    counts = {"users": len(graph.users), "items": len(graph.items)}
    return {**counts, "entities": len(graph.entities), "edges": graph.n_edges}


def _is_model(path: Path) -> bool:
    """Whether a folder is a bundle or a models folder, whatever state it is in."""
    return (path / "current").is_file() or (path / "manifest.sha256").is_file()


def _graph(source: str, sets: Sequence[str] | None, progress: Progress) -> KnowledgeGraph:
    """The graph of a server, a bundle, an exported graph, or of tables without their test rows."""
    from kgrank.config import read_config, read_source
    from kgrank.kg.bolt import Address, Server, is_server
    from kgrank.kg.graph import KnowledgeGraph
    from kgrank.kg.graph_files import load_graph
    from kgrank.kg.graph_server import read_graph
    from kgrank.serving.bundle_folder import open_bundle

    if is_server(source):
        with Server(Address.parse(source)) as server:
            return read_graph(server, progress)
    path = Path(source)
    if _is_model(path):
        return KnowledgeGraph.load(open_bundle(path)[0] / "graph")
    graph = load_graph(path)
    if graph is not None:
        return graph
    config = read_config(path, sets or ())
    tables = read_source(path, config).without_test_items(config.split)
    progress("graph", 0, 1)
    return KnowledgeGraph.from_tables(tables.with_split(config.split), config.kg)
