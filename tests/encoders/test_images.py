import json
import logging
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextImageProcessorPil,
    ConvNextModel,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from kgrank.data import sample_shop
from kgrank.encoders.cache import VectorCache
from kgrank.encoders.images import ImageEncoder, ImageReport, ImageSettings, item_pictures
from kgrank.errors import ConfigError, ModelError

SHOP = sample_shop()
NAMES = [f"images/{path.name}" for path in sorted((SHOP / "images").iterdir())]
LAYERS: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL = {**LAYERS, "image_size": 24, "patch_size": 8}
SQUARE = {"height": 24, "width": 24}
ViT = ViTImageProcessorPil(size=SQUARE)
CLIP = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SQUARE)


def clip_with_its_text_half() -> CLIPModel:
    text = {**LAYERS, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=12))


KINDS: dict[str, tuple[Callable[[], Any], Any, int, str]] = {  # …, width, what is pooled
    "vit": (lambda: ViTModel(ViTConfig(**SMALL)), ViT, 16, "pooler"),
    "vit without pooler": (
        lambda: ViTModel(ViTConfig(**SMALL), add_pooling_layer=False),
        *(ViT, 16, "first"),
    ),
    "clip vision": (lambda: CLIPVisionModel(CLIPVisionConfig(**SMALL)), CLIP, 16, "pooler"),
    "clip": (clip_with_its_text_half, CLIP, 12, "projection"),
    "siglip vision": (
        lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL)),
        *(SiglipImageProcessorPil(size=SQUARE), 16, "pooler"),
    ),
    "convnext": (
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[4, 8, 8, 16], depths=[1, 1, 1, 1])),
        *(ConvNextImageProcessorPil(size={"shortest_edge": 64}), 16, "pooler"),
    ),
}


def saved(folder: Path, model: Any, processor: Any) -> Path:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def plain_vectors(folder: Path, names: list[str], pooled: str) -> np.ndarray:
    """Each picture through transformers alone: no batch, no thread."""
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModel.from_pretrained(folder)
    vectors = []
    for name in names:
        inputs = processor(Image.open(SHOP / name).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            if pooled == "projection":
                vector = model.get_image_features(**inputs).pooler_output[0]
            elif pooled == "first":
                vector = model(**inputs).last_hidden_state[0, 0]
            else:
                vector = model(**inputs).pooler_output[0]
        vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


@pytest.fixture(scope="module")
def vit(vit_folder: Path) -> ImageEncoder:
    return ImageEncoder.load(vit_folder, device="cpu")


@pytest.fixture
def copied(vit_folder: Path, tmp_path: Path) -> Path:
    """A copy of the ViT that a test may damage."""
    return Path(shutil.copytree(vit_folder, tmp_path / "encoder"))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with pictures that a test may change."""
    return Path(shutil.copytree(SHOP / "images", tmp_path / "shop"))


# What the vectors are


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_is_the_models_own_of_length_one(kind: str, tmp_path: Path) -> None:
    make, processor, dim, pooled = KINDS[kind]
    torch.manual_seed(0)
    folder = saved(tmp_path / "model", make(), processor)
    encoder = ImageEncoder.load(folder, device="cpu")
    vectors, report = encoder.encode(NAMES, SHOP)
    assert encoder.dim == dim
    assert vectors.shape == (57, dim)
    assert vectors.dtype == np.float32
    assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert_allclose(vectors[::7], plain_vectors(folder, NAMES[::7], pooled), atol=1e-5)
    assert report == ImageReport(57, 0, 0, 0, 0, 0, 0)


def test_other_pictures_get_other_vectors_and_order_is_kept(vit: ImageEncoder) -> None:
    vectors, _ = vit.encode(NAMES, SHOP)
    assert len(np.unique(vectors.round(4), axis=0)) == 57
    order = [5, 3, 3, 50, 0]
    again, report = vit.encode([NAMES[n] for n in order], SHOP)
    assert_allclose(again, vectors[order], atol=1e-5)
    assert report.encoded == 4


def test_each_picture_reaches_the_model_once_and_in_batches(vit: ImageEncoder) -> None:
    shapes: list[tuple[int, ...]] = []

    def record(model: torch.nn.Module, args: Any, inputs: dict[str, torch.Tensor]) -> None:
        shapes.append(tuple(inputs["pixel_values"].shape))

    hook = vit._loaded[0].register_forward_pre_hook(record, with_kwargs=True)
    seen: list[tuple[int, int]] = []
    vit.encode(NAMES * 2, SHOP, progress=lambda done, total: seen.append((done, total)))
    hook.remove()
    assert shapes == [(32, 3, 24, 24), (25, 3, 24, 24)]
    assert seen == [(32, 57), (57, 57)]


def test_a_file_that_changes_while_it_is_read_gets_no_vector_of_the_other(
    vit: ImageEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [(SHOP / name).read_bytes() for name in NAMES[:2]]
    (tmp_path / "a.png").write_bytes(contents[0])
    monkeypatch.setattr("kgrank.encoders.images.read_bytes", lambda path: contents.pop())
    vectors, report = vit.encode(["a.png"], tmp_path)
    assert (report.broken, report.encoded) == (1, 0)
    assert not vectors.any()


def test_an_item_without_a_readable_picture_gets_zeros_and_is_counted(
    vit: ImageEncoder, shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, other = sorted(path.name for path in shop.iterdir())[:2]
    (shop / "broken.png").write_bytes((shop / good).read_bytes()[:200])
    (shop / "text.jpg").write_text("Not found")
    Image.new("L", (9, 2_000)).save(shop / "strip.png")
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "blue")]
    frames[0].save(shop / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(shop / "still.png")
    Image.new("RGB", (1, 1), "red").save(shop / "dot.png")
    named = [
        *(good, "", "gone.png", "broken.png", "text.jpg", "strip.png", "../shop/" + good),
        *("moving.gif", "still.png", other, "broken.png", "", "dot.png", "moving.gif"),
    ]
    with caplog.at_level(logging.WARNING, logger="kgrank.encoders.images"):
        vectors, report = vit.encode(named, shop)
    assert report == ImageReport(
        encoded=5, reused=0, unnamed=2, missing=1, broken=3, refused=2, animated=2
    )
    assert np.flatnonzero(vectors.any(axis=1)).tolist() == [0, 7, 8, 9, 12, 13]
    assert_allclose(vectors[7], vectors[8], atol=1e-6)  # the first frame is red
    assert_allclose(vectors[[0, 9]], vit.encode([good, other], shop)[0], atol=1e-5)
    assert [message.split(";")[0] for message in caplog.messages] == [
        *("1 picture files missing", "2 picture files broken", "2 picture files refused"),
    ]
    assert "'broken.png'" in caplog.text


def test_no_picture_at_all(vit: ImageEncoder, tmp_path: Path) -> None:
    vectors, report = vit.encode([], tmp_path)
    assert vectors.shape == (0, 16)
    vectors, report = vit.encode(["", "gone.png"], tmp_path, cache=VectorCache(tmp_path / "cache"))
    assert vectors.shape == (2, 16)
    assert not vectors.any()
    assert (report.unnamed, report.missing, report.encoded, report.reused) == (1, 1, 0, 0)


def test_pictures_of_many_sizes_go_to_a_model_that_takes_any_size(tmp_path: Path) -> None:
    """ConvNeXt's own preprocessing is told not to resize here: inputs differ in shape."""
    make, *_ = KINDS["convnext"]
    processor = ConvNextImageProcessorPil(do_resize=False)
    encoder = ImageEncoder.load(saved(tmp_path / "model", make(), processor), device="cpu")
    rng = np.random.default_rng(0)
    for n in range(40):
        pixels = rng.integers(0, 255, (32 + 16 * (n % 3), 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
    names = [f"{n}.png" for n in range(40)]
    together, report = encoder.encode(names, tmp_path)
    alone = np.concatenate([encoder.encode([name], tmp_path)[0] for name in names])
    assert report.encoded == 40
    assert_allclose(together, alone, atol=1e-4)


# The cache


def test_the_second_run_encodes_nothing_and_loads_no_model(
    vit: ImageEncoder, vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = VectorCache(tmp_path / "cache")
    names = [*NAMES, "", "gone.png"]
    first, report = vit.encode(names, SHOP, cache=cache)
    assert (report.encoded, report.reused, report.missing) == (57, 0, 1)
    monkeypatch.setattr("kgrank.encoders.images.load_transformer", None)
    fresh = ImageEncoder.from_settings(ImageSettings(model=str(vit_folder), device="cpu"))
    assert fresh is not None
    second, report = fresh.encode(names, SHOP, cache=cache)
    assert (report.encoded, report.reused, report.missing) == (0, 57, 1)
    assert (second == first).all()


def test_a_changed_picture_alone_is_encoded_again(
    vit: ImageEncoder, shop: Path, tmp_path: Path
) -> None:
    cache = VectorCache(tmp_path / "cache", part_rows=10)
    names = sorted(path.name for path in shop.iterdir())
    before, _ = vit.encode(names, shop, cache=cache)
    Image.new("RGB", (40, 40), "green").save(shop / names[4])
    shutil.move(shop / names[7], shop / "renamed.png")  # the same bytes under another name
    names[7] = "renamed.png"
    seen: list[tuple[int, int]] = []
    after, report = vit.encode(
        names, shop, cache=cache, progress=lambda done, total: seen.append((done, total))
    )
    assert (report.encoded, report.reused) == (1, 56)
    assert seen == [(1, 1)]
    assert np.flatnonzero((before != after).any(axis=1)).tolist() == [4]


def test_what_is_broken_is_not_kept_and_what_moves_is_counted_again(
    vit: ImageEncoder, tmp_path: Path
) -> None:
    cache = VectorCache(tmp_path / "cache")
    frames = [Image.new("RGB", (30, 30), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "broken.png").write_bytes(b"broken")
    for encoded in (1, 0):
        _, report = vit.encode(["moving.gif", "broken.png"], tmp_path, cache=cache)
        assert (report.encoded, report.reused) == (encoded, 1 - encoded)
        assert (report.broken, report.animated) == (1, 1)


def test_other_weights_or_another_preprocessing_share_nothing(copied: Path) -> None:
    def fingerprint() -> str:
        return ImageEncoder._found(copied, "cpu").fingerprint

    first = fingerprint()
    settings = json.loads((copied / "preprocessor_config.json").read_text("utf-8"))
    changed = {**settings, "image_mean": [0.1, 0.2, 0.3]}
    (copied / "preprocessor_config.json").write_text(json.dumps(changed))
    second = fingerprint()
    ViTModel(ViTConfig(**SMALL), add_pooling_layer=False).save_pretrained(copied)
    assert len({first, second, fingerprint()}) == 3


# What is refused


def test_a_bin_file_is_refused_with_the_command_that_converts_it(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*pickle(.|\n)*save_pretrained"):
        ImageEncoder.load(copied)


@pytest.mark.parametrize("lacking", ["config.json", "preprocessor_config.json", "everything"])
def test_an_incomplete_folder_is_named(copied: Path, lacking: str) -> None:
    if lacking == "everything":
        shutil.rmtree(copied)
    else:
        (copied / lacking).unlink()
    with pytest.raises(ModelError, match=r"no image encoder at .*encoder; .*Nothing is downloaded"):
        ImageEncoder.load(copied)


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    bert = BertModel(BertConfig(**LAYERS, vocab_size=50))
    with pytest.raises(ModelError, match="gives pictures no vectors"):
        ImageEncoder.load(saved(tmp_path / "bert", bert, ViT), device="cpu")
    torch.manual_seed(0)
    masked = ViTMAEModel(ViTMAEConfig(**SMALL, initializer_range=0.5))  # hides patches at random
    with pytest.raises(ModelError, match="gives one picture different vectors"):
        ImageEncoder.load(saved(tmp_path / "mae", masked, ViT), device="cpu")


def test_lost_weights_are_refused(copied: Path) -> None:
    ViTModel(ViTConfig(**{**SMALL, "num_hidden_layers": 1})).save_pretrained(copied / "small")
    shutil.copy(copied / "small" / "model.safetensors", copied)
    with pytest.raises(ModelError, match=r"lack \d+ tensors that config.json asks for"):
        ImageEncoder.load(copied, device="cpu")


def test_the_code_of_a_folder_is_never_run(copied: Path) -> None:
    (copied / "own.py").write_text("raise SystemExit('ran')\n")
    for name, key in (("config.json", "AutoModel"), ("config.json", "AutoConfig")):
        settings = json.loads((copied / name).read_text("utf-8"))
        settings["auto_map"] = {key: "own.Model"}
        settings["model_type"] = "own"
        (copied / name).write_text(json.dumps(settings))
        with pytest.raises(ModelError, match="cannot load the image encoder"):
            ImageEncoder.load(copied, device="cpu")


def test_nothing_is_fetched(
    vit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    encoder = ImageEncoder.load(vit_folder, device="cpu")
    vectors, report = encoder.encode(["https://example.com/a.png", "http://127.0.0.1/"], tmp_path)
    assert report.refused == 2
    assert not vectors.any()


def test_without_pillow_the_extra_is_named(vit_folder: Path) -> None:
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from kgrank.encoders.images import ImageEncoder, ImageSettings\n"
        f"settings = ImageSettings(model={str(vit_folder)!r})\n"
        "assert ImageEncoder.from_settings(ImageSettings()) is None\n"
        "ImageEncoder.from_settings(settings)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install kgrank[image]" in done.stderr.splitlines()[-1]


# The settings


def test_without_a_folder_there_is_no_encoder() -> None:
    assert ImageSettings().model is None
    assert ImageSettings.from_dict({"model": "none"}, "toml").model is None
    assert ImageEncoder.from_settings(ImageSettings()) is None


def test_names_are_read_from_the_column() -> None:
    values = ["a.png", " b.png |c.png", "", None, ["d.png", "e.png"], []]
    items = pd.DataFrame({"item_id": list("123456"), "photo": pd.Series(values, dtype=object)})
    assert item_pictures(items, ImageSettings(column="photo")) == [
        *("a.png", "b.png", "", "", "d.png", ""),
    ]
    with pytest.raises(ConfigError, match=r"image\.column: found 'image'; allowed: .*photo"):
        item_pictures(items, ImageSettings())
