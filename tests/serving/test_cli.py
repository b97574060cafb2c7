"""The command line: exit status, one JSON object on stdout, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from kgrank.data import sample_shop
from kgrank.serving.cli import app


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def answer(*words: object) -> Any:
    """What a verb prints with --json."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_validate_counts_the_rows_of_a_sound_shop() -> None:
    found = answer("validate", sample_shop())
    assert found["faults"] == []
    assert found["tables"]["items"] == 299


def test_every_fault_is_told_and_nothing_is_left_behind(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "events.csv").write_text("user_id,item_id,timestamp\na,x,-5\n,x,soon\n")
    told = run("validate", shop, "--json")
    assert told.exit_code == 1
    places = {(f["file"], f["row"], f["column"]) for f in json.loads(told.stdout)["faults"]}
    assert places == {
        ("events.csv", 1, "timestamp"),
        ("events.csv", 2, "timestamp"),
        ("events.csv", 2, "user_id"),
    }
    trained = run("train", shop, "--out", tmp_path / "models")
    assert trained.exit_code == 1
    assert "events.csv, row 2, column 'user_id'" in trained.stderr
    assert not (tmp_path / "models").exists()


def test_train_evaluate_and_an_unknown_setting(tiny_shop: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    settings = ("--set", "text.model=none")
    assert run("train", tiny_shop, "--out", models, *settings).exit_code == 0
    assert (models / "current").is_file()
    figures = answer("evaluate", models, "--protocol", "next")
    assert {"protocol", "split", "users", "queries", "metrics", "slices", "baselines"} <= set(
        figures
    )
    assert {"recall@10", "ndcg@10", "recall@20", "ndcg@20", "mrr", "coverage@10"} == set(
        figures["metrics"]
    )
    assert {"popularity", "ease"} <= set(figures["baselines"])
    wrong = run("train", tiny_shop, "--out", tmp_path / "other", "--set", "fit.neighbours=5")
    assert wrong.exit_code == 1
    assert "Is 'neighbors' meant?" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_an_explanation_adds_up_in_every_format(shop_models: Path) -> None:
    asked = ("explain", shop_models, "--user", "u-ada", "--item", "tarn-bottle")
    why = answer(*asked, "--format", "json")
    assert why["bias"] + sum(why["contributions"].values()) == pytest.approx(why["score"], rel=1e-4)
    assert why["paths"][0]["nodes"][0] == {"id": "u-ada", "type": "user", "name": "u-ada"}
    assert why["text"][:40] in run(*asked).stdout
    assert run(*asked, "--format", "svg").stdout.lstrip().startswith("<svg")
    assert "<html" in run(*asked, "--format", "html").stdout


def test_similar_and_profile(shop_models: Path) -> None:
    alike = answer("similar", shop_models, "--item", "brook-bottle", "-n", 3)["similar"]
    assert [row["rank"] for row in alike] == [1, 2, 3]
    assert alike[0]["item_id"] == "242"  # another insulated bottle of the brand
    assert answer("profile", shop_models, "--user", "u-ada")["events"] == {"purchase": 3}


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("frobnicate",), 2),
        (("explain", "MODELS", "--user", "u-ada"), 2),
        (("explain", "MODELS", "--user", "nobody", "--item", "tarn-bottle"), 1),
        (("evaluate", "NOWHERE"), 1),
    ],
)
def test_exit_status(words: tuple[str, ...], status: int, shop_models: Path) -> None:
    """2 for wrong usage, 1 for a fault in data or model."""
    named = [str(shop_models) if word == "MODELS" else word for word in words]
    result = run(*named)
    assert result.exit_code == status
    assert "Traceback" not in result.stderr


def test_rank_writes_every_user_once_and_names_an_unknown_one(
    shop_models: Path, tmp_path: Path
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("u-ada\n0001\nnobody\n")
    refused = run("rank", shop_models, "--out", tmp_path / "a", "--users", users)
    assert refused.exit_code == 1
    assert "nobody" in refused.stderr
    assert not (tmp_path / "a").exists()
    told = answer(
        "rank", shop_models, "--out", tmp_path / "b", "-n", 5, "--users", users, "--unknown", "skip"
    )
    assert told["skipped_users"] == 1
    lists = pd.concat(map(pd.read_parquet, sorted((tmp_path / "b").glob("part-*.parquet"))))
    assert list(lists.columns) == ["user_id", "item_id", "score", "rank"]
    assert lists.groupby("user_id")["rank"].apply(list).to_dict() == {
        "0001": [1, 2, 3, 4, 5],
        "u-ada": [1, 2, 3, 4, 5],
    }
    again = run("rank", shop_models, "--out", tmp_path / "b", "--users", users)
    assert again.exit_code == 1


def test_the_installed_command_says_its_version() -> None:
    command = [sys.executable, "-c", "from kgrank.serving.cli import main; main()", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kgrank 0.")
