"""Rules and why not on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from kgrank.serving.bundle import Bundle
from kgrank.serving.cli import app

RULES = """
[[rule]]
name = "No tents 3"
action = "exclude"
items.item_id = "a3"

[[rule]]
name = "Birch"
action = "boost"
by = 2.5
items.brand = "Birch"
until = 2026-05-31
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def answer(*words: object) -> Any:
    """What a verb prints with --json."""
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def models(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules") / "models"
    tiny_bundle.save(folder)
    return folder


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "rules.toml"


def test_validate_judges_rules_with_the_tables(tiny_shop: Path, rules: Path) -> None:
    assert "rules" not in answer("validate", tiny_shop)
    told = answer("validate", tiny_shop, "--rules", rules)
    assert told["faults"] == []
    assert (told["rules"]["rules"], told["rules"]["faults"]) == (2, [])
    [warned] = told["rules"]["warnings"]
    assert warned == "rules.toml, rule 'Birch': was over at 2026-05-31."
    rules.write_text(RULES.replace('"a3"', '"a33"').replace("items.brand", "items.brnd"))
    result = run("validate", tiny_shop, "--rules", rules)
    assert result.exit_code == 1
    assert "rule 'No tents 3', items.item_id: found the item 'a33'" in result.stdout
    assert "rule 'Birch', items.brnd" in result.stdout
    assert "Is 'brand' meant?" in result.stdout
    rules.write_text(RULES.replace("exclude", "exlude"))
    result = run("validate", tiny_shop, "--rules", rules, "--json")
    assert result.exit_code == 1
    [fault] = json.loads(result.stdout)["rules"]["faults"]
    assert "Is 'exclude' meant?" in fault


def test_a_shop_that_names_its_rules_has_to_have_them(tiny_shop: Path, tmp_path: Path) -> None:
    for name in ("events.csv", "items.csv"):
        (tmp_path / name).write_bytes((tiny_shop / name).read_bytes())
    toml = tmp_path / "kgrank.toml"
    toml.write_text('[rules]\nfile = "shop-rules.toml"\n')
    result = run("validate", tmp_path, "--json")
    assert result.exit_code == 1
    assert "shop-rules.toml" in json.loads(result.stdout)["rules"]["faults"][0]
    (tmp_path / "shop-rules.toml").write_text(RULES)
    assert answer("validate", tmp_path)["rules"]["rules"] == 2


def test_rank_under_rules_and_at_a_time(models: Path, rules: Path, tmp_path: Path) -> None:
    def ranked(name: str, *more: object) -> pd.DataFrame:
        words = ("--out", tmp_path / name, "-n", 3, "--repeats", "allow")
        assert run("rank", models, *words, *more).exit_code == 0
        return pd.read_parquet(tmp_path / name / "part-00000.parquet")

    plain = ranked("plain")
    assert "a3" in set(plain["item_id"])
    under = ranked("under", "--rules", rules)
    assert "a3" not in set(under["item_id"])
    manifest = json.loads((tmp_path / "under" / "manifest.json").read_text())
    assert manifest["rules"] == ["No tents 3"]
    then = ranked("then", "--rules", rules, "--at", "2026-05-31T20:00:00Z")
    birch = then["item_id"].str.startswith(("b", "v"))
    assert birch.mean() > under["item_id"].str.startswith(("b", "v")).mean()
    assert run("rank", models, "--out", tmp_path / "x", "--at", "noon").exit_code == 2
    missing = run("rank", models, "--out", tmp_path / "x", "--rules", tmp_path / "none.toml")
    assert missing.exit_code == 1
    assert "none.toml: found No such file" in missing.stderr
    assert not (tmp_path / "x").exists()


def test_explain_tells_rules(models: Path, rules: Path) -> None:
    asked = ("explain", models, "--user", "u-ada", "--item", "b2")
    at = ("--rules", rules, "--at", "2026-05-01")
    plain, why = answer(*asked), answer(*asked, *at)
    assert plain["rules"] == []
    [told] = why["rules"]
    assert (told["rule"], told["action"], told["place"]) == ("Birch", "boost", 1)
    assert why["contributions"]["rules"] == told["contribution"] > 0
    assert why["score"] == pytest.approx(plain["score"] + told["contribution"])
    assert why["bias"] + sum(why["contributions"].values()) == pytest.approx(why["score"])
    assert "“Birch”" in why["text"]
    assert "“Birch”" in run(*asked, *at).stdout
    assert answer(*asked, "--rules", "none") == plain


def test_why_not_in_text_and_json(models: Path, rules: Path) -> None:
    asked = ("explain", models, "--user", "u-ada", "--why-not")
    why = answer(*asked, "v1", "--n", 3)
    assert (why["reason"], why["n"], why["place"]) == ("score", 3, None)
    assert why["text"] in run(*asked, "v1", "-n", 3).stdout
    chinese = run(*asked, "v1", "--n", 3, "--language", "zh").stdout
    assert "由于得分" in chinese
    kept = answer("explain", models, "--user", "u-ben", "--why-not", "v1", "--rules", rules)
    assert kept["reason"] == "listed"
    assert run(*asked, "v1", "--item", "v1").exit_code == 2
    assert run("explain", models, "--user", "u-ada").exit_code == 2
    assert run(*asked, "v1", "--format", "html").exit_code == 2
    assert run(*asked, "nothing").exit_code == 1
