"""The verbs of the graph: to files of other tools and back, and in numbers."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kgrank.kg.bolt import PASSWORD_VARIABLE, Server
from kgrank.kg.embeddings import EmbeddingStore
from kgrank.kg.graph import KnowledgeGraph
from kgrank.kg.graph_files import load_pyg
from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app
from kgrank.serving.recommender import Recommender


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def answer(*words: object) -> Any:
    """What a verb prints with --json."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("to", ["networkx", "pyg", "parquet"])
def test_a_graph_comes_back_from_each_kind_of_file(
    to: str, tiny_shop: Path, tmp_path: Path
) -> None:
    out = tmp_path / ("graph.json" if to == "networkx" else "graph")
    told = answer("graph", "export", tiny_shop, "--to", to, "--out", out)
    assert (told["users"], told["items"]) == (9, 12)  # u-new is of the test split
    back = answer("graph", "import", out, "--out", tmp_path / "back")
    assert back["fingerprint"] == told["fingerprint"]
    assert KnowledgeGraph.load(tmp_path / "back").fingerprint() == told["fingerprint"]
    assert (
        answer("graph", "stats", tmp_path / "back")["edges"]
        == answer(*("graph", "stats", tiny_shop))["edges"]
    )


def test_the_graph_of_a_bundle_is_its_own(tiny_bundle: Bundle, tmp_path: Path) -> None:
    models = tmp_path / "models"
    tiny_bundle.save(models)
    told = answer("graph", "export", models, "--to", "pyg", "--out", tmp_path / "pyg")
    assert told["fingerprint"] == tiny_bundle.graph.fingerprint()
    data = load_pyg(tmp_path / "pyg")
    assert data["user"].node_id.tolist() == tiny_bundle.graph.users.array.to_pylist()
    assert {tail for _, _, tail in data.edge_types} >= {"item", "brand"}


def test_other_tools_read_the_networkx_file(tiny_shop: Path, tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    answer("graph", "export", tiny_shop, "--to", "networkx", "--out", path)
    links = networkx.node_link_graph(
        json.loads(path.read_text("utf-8")), name="node", edges="edges"
    )
    assert links.nodes["item", "a1"]["name"].startswith("alpine")
    assert links.has_edge(("item", "a1"), ("brand", "brand:Alder"))


def test_stats_tell_what_says_nothing(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "events.csv").write_text("user_id,item_id,timestamp\n" + "u,a,1\n" * 2 + "v,b,2\n")
    (shop / "items.csv").write_text(
        "item_id,title,brand,country\na,A,x,se\nb,B,y,se\nc,C,,se\nd,D,,\n"
    )
    (shop / "triples.csv").write_text("head,relation,tail\nx1,in,x2\n")
    found = answer("graph", "stats", shop, "--set", "split.valid=0", "--set", "split.test=0")
    assert found["nodes"] == {**{"user": 2, "item": 4, "brand": 2, "country": 1, "entity": 2}}
    # u-a-se-b-v-c with their brands; d; x1-x2
    assert (found["components"], found["largest_component"]) == (3, 8)
    assert found["examples"] == {
        "isolated_items": ["d"],
        "items_without_knowledge": ["d"],
        "entities_of_no_item": ["x1", "x2"],
        "entities_of_one_item": ["brand:x", "brand:y"],
        "entities_of_all_items": [],
    }
    bought = next(one for one in found["relations"] if one["relation"] == "interaction")
    assert bought == {
        **{"relation": "interaction", "behaviour": True, "edges": 3},
        **{"heads": 2, "tails": 2, "pairs": 2},
    }
    assert found["degrees"]["country"] == [3.0] * 7
    shown = run("graph", "stats", shop)
    assert shown.exit_code == 0
    assert "brand:x, brand:y" in shown.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "gexf", "--out", "x"), "allowed: neo4j://host"),
        (("--to", "pyg"), "--out names where the files go"),
        (("--to", "neo4j://x", "--out", "x"), "--out is for files"),
        (("--to", "pyg", "--out", "x", "--vectors", "v"), "vectors go to a server"),
        (("--to", "pyg", "--out", "x", "--scores", "3"), "scores go to a server"),
        (("--to", "pyg", "--out", "x", "--repair"), "a server only is repaired"),
        (("--to", "neo4j://x", "--scores", "3"), "which has no model; allowed: a bundle"),
    ],
)
def test_wrong_usage_is_told(tiny_shop: Path, words: tuple[str, ...], said: str) -> None:
    result = run("graph", "export", tiny_shop, *words)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())


def test_nothing_is_written_over_and_damage_is_named(tiny_shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "graph"
    answer("graph", "export", tiny_shop, "--to", "pyg", "--out", out)
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    again = run("graph", "export", tiny_shop, "--to", "pyg", "--out", out)
    assert again.exit_code == 1
    assert "found something there already; allowed: a new folder" in again.stderr
    tensors = out / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-9])
    broken = run("graph", "stats", out)
    assert broken.exit_code == 1
    assert "found no graph for PyTorch Geometric" in broken.stderr
    (tmp_path / "x.json").write_text("{}")
    for name, said in (("x.json", "something there already"), ("graph.txt", "end in .json")):
        refused = run("graph", "export", tiny_shop, "--to", "networkx", "--out", tmp_path / name)
        assert refused.exit_code == 1
        assert said in refused.stderr
    assert (tmp_path / "x.json").read_text() == "{}"
    assert not (tmp_path / "graph.txt").exists()
    other = run("graph", "import", tmp_path / "x.json", "--out", tmp_path / "back")
    assert other.exit_code == 1
    assert "found no node-link JSON" in other.stderr
    assert not (tmp_path / "back").exists()


def test_the_graph_goes_to_a_server_and_comes_back(
    tiny_shop: Path, bolt: Server, bolt_uri: str, tmp_path: Path
) -> None:
    told = answer("graph", "export", tiny_shop, "--to", bolt_uri)
    assert (told["generation"], told["edges_written"]) == (1, told["edges"])
    assert PASSWORD_VARIABLE not in os.environ or os.environ[PASSWORD_VARIABLE] not in str(told)
    assert answer("graph", "export", tiny_shop, "--to", bolt_uri)["parts_written"] == 0
    back = answer("graph", "import", bolt_uri, "--out", tmp_path / "back")
    assert back["fingerprint"] == told["fingerprint"]
    shown = run("graph", "stats", bolt_uri)
    assert shown.exit_code == 0
    assert "degree 50%" in shown.stdout
    bolt.write(lambda tx: tx.run("MATCH (i:Item {id: 'a1'}) SET i.name = 'other'").consume())
    changed = run("graph", "import", bolt_uri, "--out", tmp_path / "changed")
    assert changed.exit_code == 1
    assert "--repair" in changed.stderr
    answer("graph", "export", tiny_shop, "--to", bolt_uri, "--repair")
    again = answer("graph", "import", bolt_uri, "--out", tmp_path / "changed")
    assert again["fingerprint"] == told["fingerprint"]
    store = EmbeddingStore.create(tmp_path / "store").write(
        "item", ["a1"], np.ones((1, 4), np.float32)
    )
    assert store.groups == {"item": 1}
    vectors = ("--vectors", tmp_path / "store")
    assert answer("graph", "export", tiny_shop, "--to", bolt_uri, *vectors)["with vector_item"] == 1


def test_the_lists_of_a_bundle_go_to_the_server(
    tiny_bundle: Bundle, bolt: Server, bolt_uri: str, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    name = tiny_bundle.save(models).name
    told = answer("graph", "export", models, "--to", bolt_uri, "--scores", 3)
    users = tiny_bundle.users.array.to_pylist()
    lists = Recommender(tiny_bundle).recommend(users, 3)
    assert told["scores"] == told["scores_written"] == len(lists) > 0
    query = (
        "MATCH (u:User)-[r:RECOMMENDED {kgrank_model: $model}]->(i:Item) "
        "RETURN u.id, i.id, r.score, r.rank ORDER BY u.id, r.rank"
    )
    assert bolt.read(query, model=name) == [
        [user, item, pytest.approx(score), rank]
        for user, item, score, rank in sorted(
            lists.itertuples(index=False, name=None), key=lambda row: (row[0], row[3])
        )
    ]
    back = answer("graph", "import", bolt_uri, "--out", tmp_path / "back")
    assert back["fingerprint"] == told["fingerprint"] == tiny_bundle.graph.fingerprint()
    again = answer("graph", "export", models, "--to", bolt_uri, "--scores", 3)
    assert again["parts_written"] == 0
    assert answer("graph", "export", models, "--to", bolt_uri)["scores_removed"] == len(lists)


def test_a_model_is_trained_from_a_server(
    tiny_shop: Path, bolt: Server, bolt_uri: str, tmp_path: Path
) -> None:
    answer("graph", "export", tiny_shop, "--to", bolt_uri)
    models = tmp_path / "models"
    toml = tmp_path / "kgrank.toml"
    toml.write_text(
        f'neo4j.uri = "{bolt_uri}"\nneo4j.events = ["purchase"]\n'
        'text.model = "none"\nkg.encoder = "none"\n'
    )
    counts = answer("validate", bolt_uri)["tables"]
    assert (counts["users"], counts["items"], counts["queries"]) == (9, 12, 0)
    told = answer("train", toml, "--out", models)
    assert (told["users"], told["items"]) == (9, 12)
    assert answer("evaluate", models, "--split", "valid")["queries"] > 0
    assert answer("similar", models, "--item", "a1", "-n", 1)["similar"]
    straight = ("--set", "text.model=none", "--set", "kg.encoder=none")
    other = answer("train", bolt_uri, "--out", tmp_path / "other", *straight)
    assert (other["rows"], other["edges"]) == (told["rows"], told["edges"])


def test_a_server_that_is_not_there_is_told(tiny_shop: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"bolt://127.0.0.1:{taken.getsockname()[1]}/shop"
        for words in (
            ("graph", "export", tiny_shop, "--to", uri),
            ("train", uri, "--out", tmp_path / "models"),
            ("validate", uri),
        ):
            result = run(*words)
            assert result.exit_code == 1
            assert f"{uri}: found no answer" in result.stderr
    assert not (tmp_path / "models").exists()
    wrong = run("train", "bolt://me:hush@host")
    assert wrong.exit_code == 1
    assert "found a password in the address" in wrong.stderr
    assert "hush" not in wrong.stderr
