"""Pictures of products as a channel: fitted, saved, explained, printed, and out of the graph."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kgrank.config import Config, read_config
from kgrank.data import sample_shop
from kgrank.errors import ConfigError
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.printing import print_bundle
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import train

TASTES = {"a": "red", "b": "blue", "c": "red", "v": "blue"}  # as in the hand-made shop


def config(model: Path | None, **image: str) -> Config:
    sections: dict[str, Any] = {"text": {"model": "none"}, "kg": {"encoder": "none"}}
    if model is not None:
        sections["image"] = {"model": str(model), "device": "cpu", **image}
    return Config.from_dict(sections, "the tests")


@pytest.fixture(scope="module")
def pictured(
    tiny_shop: Path, vit_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Config]:
    """The hand-made shop with a picture of its taste's color for each item but a5, b4 and b5."""
    folder = Path(shutil.copytree(tiny_shop, tmp_path_factory.mktemp("pictured") / "shop"))
    items = pd.read_csv(folder / "items.csv")
    (folder / "photos").mkdir()
    for item in items["item_id"]:
        Image.new("RGB", (40, 30), TASTES[item[0]]).save(folder / "photos" / f"{item}.png")
    items["photo"] = "photos/" + items["item_id"] + ".png"
    items.loc[items["item_id"] == "a5", "photo"] = ""
    items.loc[items["item_id"] == "b4", "photo"] = "../secret.png"
    (folder / "photos" / "b5.png").write_text("no picture")
    items.to_csv(folder / "items.csv", index=False)
    return folder, config(vit_folder, column="photo")


@pytest.fixture(scope="module")
def tiny(pictured: tuple[Path, Config], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That shop fitted with a vision model."""
    folder, of_pictures = pictured
    return train(read_tables(folder), of_pictures, cache=tmp_path_factory.mktemp("cache"))


def weighed(bundle: Bundle) -> Bundle:
    """The same bundle with every channel of the same weight."""
    equal = FusionWeights.equal(len(bundle.model.channels))
    return replace(
        bundle, model=replace(bundle.model, heads={"new": equal, "all": equal}, predictors={})
    )


def vectors_of(bundle: Bundle) -> np.ndarray:
    form = next(c.form for c in bundle.model.channels if c.name == "image")
    assert isinstance(form, DenseFeatures)
    return form.values.numpy()


def test_the_sample_shop_gets_a_channel_of_its_pictures(
    shop_tables: Tables, vit_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(vit_folder)
    settings = settings.model_copy(update={"fit": settings.fit.model_copy(update={"refit": False})})
    users = set(shop_tables.users["user_id"][:300])  # enough to fit on, and quicker
    events = shop_tables.events
    some = replace(shop_tables, events=events[events["user_id"].isin(users)])
    bundle = train(some, settings, cache=tmp_path / "cache")
    unnamed = int((shop_tables.items["image"] == "").sum())
    assert unnamed > 10
    assert bundle.facts["image_vectors"] == {
        **{"encoded": 57, "reused": 0, "unnamed": unnamed},
        **dict.fromkeys(("missing", "broken", "refused", "animated"), 0),
    }
    assert bundle.facts["image_encoder"]["name"] == str(vit_folder)
    assert set(bundle.facts["choices"]["image"]) >= {"decay", "valid_ndcg@10"}
    vectors = vectors_of(bundle)
    assert int((~vectors.any(axis=1)).sum()) == unnamed
    lengths = np.linalg.norm(vectors[vectors.any(axis=1)], axis=1)
    assert np.allclose(lengths, 1, atol=1e-5)

    print_bundle(bundle.facts, "models/x")
    printed = capsys.readouterr().out
    assert "Pictures" in printed
    assert "unnamed" in printed
    rec = Recommender(Bundle.load(weighed(bundle).save(tmp_path / "models")), device="cpu")
    for user in bundle.users.ids()[:5]:
        listed = rec.recommend([user], n=3)
        for item, score in zip(listed["item_id"], listed["score"], strict=True):
            why = rec.explain(user, item)
            assert "image" in why.contributions
            assert why.bias + sum(why.contributions.values()) == pytest.approx(why.score, rel=1e-4)
            assert why.score == pytest.approx(score, rel=1e-4)


def test_a_product_nobody_bought_is_known_by_its_picture(tiny: Bundle) -> None:
    """c1 is in test rows only: who buys red finds it, and who buys blue does not."""
    assert tiny.items.ids(np.flatnonzero(tiny.model.side.cold)).tolist() == ["c1"]
    rec = Recommender(weighed(tiny), device="cpu")
    red, blue = (rec.explain(user, "c1").contributions for user in ("u-ada", "u-hal"))
    assert red["image"] > 0 > blue["image"]
    place = [channel.name for channel in tiny.model.channels].index("image")
    assert tiny.model.heads["new"].cold[place] > 0


def test_what_cannot_be_seen_is_counted_and_has_no_part(tiny: Bundle) -> None:
    report = tiny.facts["image_vectors"]
    assert report["encoded"] == 2
    assert [report[kind] for kind in ("unnamed", "refused", "broken", "missing")] == [1, 1, 1, 0]
    blank = tiny.items.ids(np.flatnonzero(~vectors_of(tiny).any(axis=1)))
    assert sorted(blank) == ["a5", "b4", "b5"]
    rec = Recommender(weighed(tiny), device="cpu")
    assert rec.explain("u-ada", "a5").contributions["image"] == 0


def test_file_names_are_no_facts_of_the_graph(tiny: Bundle, tiny_bundle: Bundle) -> None:
    assert tiny.graph.stats().edges == tiny_bundle.graph.stats().edges


def test_the_graph_is_judged_with_the_same_pictures(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate --graph` fits again without the graph, and with a false one: pictures stay."""
    refits: list[Bundle] = []

    def kept(*args: Any, **options: Any) -> Bundle:
        refits.append(train(*args, **options))
        return refits[-1]

    monkeypatch.setattr("kgrank.serving.evaluating.train", kept)
    evaluate_bundle(tiny, graph="all", cache=tmp_path)
    assert len(refits) == 2
    for refit in refits:
        assert np.allclose(vectors_of(refit), vectors_of(tiny), atol=1e-5)


def test_without_a_model_nothing_changes(
    pictured: tuple[Path, Config], tiny_tables: Tables
) -> None:
    """The `[image]` section alone looks at nothing, and asks for no column."""
    bundle = train(tiny_tables, config(None))
    assert "image" not in {channel.name for channel in bundle.model.channels}
    assert bundle.facts["image_vectors"] is None
    assert bundle.facts["image_encoder"] == {}
    assert read_config(sample_shop(), ["image.model=none"]) == read_config(sample_shop())


def test_tables_without_a_folder_or_a_column_are_refused(
    pictured: tuple[Path, Config], tiny_tables: Tables, tmp_path: Path
) -> None:
    folder, of_pictures = pictured
    in_memory = replace(read_tables(folder), source=None)
    with pytest.raises(ConfigError, match=r"image\.model: found tables made in memory"):
        train(in_memory, of_pictures, cache=tmp_path)
    with pytest.raises(ConfigError, match=r"image\.column: found 'photo'"):
        train(tiny_tables, of_pictures, cache=tmp_path)
