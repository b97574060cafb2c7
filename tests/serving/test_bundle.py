"""A bundle comes back from disk as it was, or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kgrank.errors import BundleError
from kgrank.fusion.channels import Channel, DenseFeatures, Form, ItemItem, SparseFeatures
from kgrank.fusion.history import Decay
from kgrank.fusion.model import FusedModel, Repeats
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.entities import EntityVectors
from kgrank.serving.bundle import Bundle
from kgrank.serving.bundle_folder import open_bundle, write_bundle
from kgrank.serving.recommender import Recommender


def with_vectors(bundle: Bundle) -> Bundle:
    """The bundle with one more channel, of dense vectors, all channels weighed alike."""
    values = torch.linspace(-1.0, 1.0, len(bundle.items) * 4).reshape(-1, 4)
    extra = Channel("embedding", Decay(power=1.0, kinds={"purchase": 3.0}), DenseFeatures(values))
    channels = (*bundle.model.channels, extra)
    equal = FusionWeights.equal(len(channels))
    model = FusedModel(channels, bundle.model.side, {"new": equal, "all": equal})
    return replace(bundle, model=model)


def assert_same_lists(one: Bundle, other: Bundle, users: list[str]) -> None:
    kinds: tuple[Repeats, ...] = ("exclude", "allow", "only")
    for repeats in kinds:
        ours = Recommender(one, "cpu").recommend(users, 20, repeats=repeats)
        theirs = Recommender(other, "cpu").recommend(users, 20, repeats=repeats)
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_what_is_loaded_recommends_and_explains_as_what_was_saved(
    shop_bundle: Bundle, shop_models: Path
) -> None:
    loaded = Bundle.load(shop_models)
    users = [str(user) for user in shop_bundle.users.ids()]
    assert_same_lists(shop_bundle, loaded, users)
    before, after = Recommender(shop_bundle, "cpu"), Recommender(loaded, "cpu")
    assert after.explain("u-ada", "tarn-bottle") == before.explain("u-ada", "tarn-bottle")
    assert after.profile("0005") == before.profile("0005")
    pd.testing.assert_frame_equal(
        after.similar_items(["090"]), before.similar_items(["090"]), check_exact=True
    )


def test_what_is_loaded_knows_what_was_saved(shop_bundle: Bundle, shop_models: Path) -> None:
    loaded = Bundle.load(shop_models)
    assert loaded.config == shop_bundle.config
    assert loaded.graph.fingerprint() == shop_bundle.graph.fingerprint()
    assert loaded.cuts == shop_bundle.cuts
    assert loaded.source == shop_bundle.source
    assert loaded.facts == shop_bundle.facts
    assert loaded.names == shop_bundle.names
    for table in ("events", "item_table", "user_table"):
        pd.testing.assert_frame_equal(getattr(loaded, table), getattr(shop_bundle, table))
    assert [c.decay for c in loaded.model.channels] == [c.decay for c in shop_bundle.model.channels]


def test_a_loaded_bundle_saves_the_same_files(tiny_bundle: Bundle, tmp_path: Path) -> None:
    _, first = open_bundle(tiny_bundle.save(tmp_path / "first"))
    _, second = open_bundle(Bundle.load(tmp_path / "first").save(tmp_path / "second"))
    del first["created"], second["created"]
    assert first == second  # the sha256 of every file among it


def test_dense_vectors_come_back(tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_vectors(tiny_bundle)
    bundle.save(tmp_path)
    loaded = Bundle.load(tmp_path)
    assert_same_lists(bundle, loaded, ["u-ada", "u-hal"])
    assert loaded.model.channels[-1].decay == Decay(power=1.0, kinds={"purchase": 3.0})


def with_entities(bundle: Bundle, entities: EntityVectors) -> Bundle:
    """`with_vectors`, its dense channel with vectors of entities beside the items'."""
    bundle = with_vectors(bundle)
    *others, last = bundle.model.channels
    assert isinstance(last.form, DenseFeatures)
    last = replace(last, form=replace(last.form, entities=entities))
    return replace(bundle, model=replace(bundle.model, channels=(*others, last)))


@pytest.mark.parametrize("n", [2, 0])
def test_vectors_of_entities_come_back(tiny_bundle: Bundle, tmp_path: Path, n: int) -> None:
    values = np.array([[1, 2, 3, 4], [0.1, -0.2, 1e-30, 0]], np.float32)[:n]
    ids = ("brand:Alder", "茶 🍵")[:n]
    folder = with_entities(tiny_bundle, EntityVectors(ids, values)).save(tmp_path)
    form = Recommender.load(tmp_path, "cpu").model.channels[-1].form
    assert isinstance(form, DenseFeatures)
    assert form.entities is not None
    assert form.entities.ids == ids
    assert form.entities.values.shape == (n, 4)
    assert form.entities.values.tobytes() == values.tobytes()
    table = pd.read_parquet(folder / "embedding.entities.parquet")
    assert table["entity_id"].tolist() == list(ids)


def test_vectors_of_entities_with_nan_are_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    entities = EntityVectors(("steel",), np.array([[1, np.nan, 3, 4]], np.float32))
    with_entities(tiny_bundle, entities).save(tmp_path)
    with pytest.raises(BundleError, match=r"embedding.entities.parquet holds numbers that are not"):
        Bundle.load(tmp_path)


def test_current_names_the_bundle_saved_last(tiny_bundle: Bundle, tmp_path: Path) -> None:
    first = tiny_bundle.save(tmp_path)
    changed = replace(tiny_bundle, facts={**tiny_bundle.facts, "of": "the second"})
    second = changed.save(tmp_path)
    assert (tmp_path / "current").read_text() == f"{second.name}\n"
    assert Bundle.load(tmp_path).facts["of"] == "the second"
    assert Bundle.load(first).facts == tiny_bundle.facts


def test_one_flipped_byte_in_any_file_is_refused_by_name(shop_models: Path, tmp_path: Path) -> None:
    found, manifest = open_bundle(shop_models)
    rows, facts = manifest["rows"], manifest["facts"]
    assert rows == {**facts["rows"], **{name: facts[name] for name in ("users", "items", "edges")}}
    for head, reached in manifest["metrics"].items():
        assert reached["valid_ndcg@10"] in facts["fusion"][head]["valid_ndcg@10"].values()
    folder = Path(shutil.copytree(found, tmp_path / "bundle"))
    assert {"weights.safetensors", "events.parquet", "graph/edges.parquet"} <= set(
        manifest["files"]
    )
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        (folder / name).write_bytes(flipped)
        with pytest.raises(BundleError, match=name):
            Bundle.load(folder)
        (folder / name).write_bytes(content)
    Bundle.load(folder)


@pytest.mark.parametrize("name", ["linear", "graph", "embedding"])
def test_a_channel_with_nan_is_refused_though_every_checksum_is_right(
    tiny_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    bundle = with_vectors(tiny_bundle)
    number = [channel.name for channel in bundle.model.channels].index(name)
    channel = bundle.model.channels[number]
    form: Form
    if isinstance(channel.form, DenseFeatures):
        form = DenseFeatures(channel.form.values.clone())
        form.values[0, 0] = torch.nan
    elif isinstance(channel.form, SparseFeatures):
        form = SparseFeatures(channel.form.values.copy())
        form.values.data[0] = np.nan
    else:
        form = ItemItem(channel.form.weights.copy())
        form.weights.data[0] = np.nan
    channels = list(bundle.model.channels)
    channels[number] = replace(channel, form=form)
    replace(bundle, model=replace(bundle.model, channels=tuple(channels))).save(tmp_path)
    with pytest.raises(BundleError, match=name):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("part", ["weight", "slope", "cold"])
def test_fusion_weights_with_nan_are_refused_though_every_checksum_is_right(
    tiny_bundle: Bundle, tmp_path: Path, part: str
) -> None:
    model = tiny_bundle.model
    values = getattr(model.heads["new"], part).copy()
    values[0] = np.nan
    broken = replace(model.heads["new"], **{part: values})
    heads = {**model.heads, "new": broken}
    replace(tiny_bundle, model=replace(model, heads=heads)).save(tmp_path)
    with pytest.raises(BundleError):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("part", ["popularity", "trend"])
def test_an_item_side_with_nan_is_refused_though_every_checksum_is_right(
    tiny_bundle: Bundle, tmp_path: Path, part: str
) -> None:
    model = tiny_bundle.model
    values = getattr(model.side, part).copy()
    values[0] = np.nan
    side = replace(model.side, **{part: values})
    replace(tiny_bundle, model=replace(model, side=side)).save(tmp_path)
    with pytest.raises(BundleError):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "events.parquet", "graph/edges.parquet"])
def test_a_file_that_cannot_be_read_is_refused_though_every_checksum_is_right(
    tiny_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    folder, manifest = open_bundle(tiny_bundle.save(tmp_path / "sound"))

    def write(target: Path) -> None:
        shutil.copytree(folder, target, dirs_exist_ok=True)
        for own in ("manifest.json", "manifest.sha256"):
            (target / own).unlink()
        (target / name).write_bytes(b"not what its name says")

    own = ("format", "kgrank", "created", "files")
    about = {key: value for key, value in manifest.items() if key not in own}
    write_bundle(tmp_path / "broken", write, about)
    with pytest.raises(BundleError):
        Bundle.load(tmp_path / "broken")
