"""Which folders of text encoders load, and how one that does not is told of: in one error."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    CanineConfig,
    CanineModel,
    CanineTokenizer,
    FunnelBaseModel,
    FunnelConfig,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from kgrank.encoders.cache import VectorCache, encode_cached
from kgrank.encoders.compression import compress
from kgrank.encoders.embedding import embed_items
from kgrank.encoders.text import TextEncoder, TextSettings
from kgrank.encoders.text_folder import model_limit
from kgrank.errors import ConfigError, ModelError

SMALL = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
POOLING = "sentence_transformers.models.Pooling"
TRANSFORMER = "sentence_transformers.models.Transformer"
DENSE = "sentence_transformers.models.Dense"


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "encoder"))


def with_model(tiny_folder: Path, folder: Path, model: Any) -> Path:
    """A folder with this model and the tiny encoder's tokenizer."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, folder)
    return folder


def refused(folder: Path, match: str) -> str:
    with pytest.raises(ModelError, match=match) as told:
        TextEncoder.load(folder, "cpu")
    return str(told.value)


# A tokenizer and a model that belong together


def test_a_model_without_a_row_for_each_token_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """The tiny vocabulary has the numbers 0 to 15."""
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SMALL | {"vocab_size": 12}))
    short = with_model(tiny_folder, tmp_path / "short", model)
    told = refused(short, "found token number 15 in the tokenizer and 12 rows in the model's table")
    assert "allowed: numbers below that" in told
    assert "resize_token_embeddings" in told
    with pytest.raises(ModelError, match="found token number 15"):
        compress(short, tmp_path / "small", "layers")
    assert not (tmp_path / "small").exists()
    items = {"item_id": ["a"], "title": ["red lamp"]}
    with pytest.raises(ModelError, match="found token number 15"):
        embed_items(pd.DataFrame(items), tmp_path / "v.parquet", TextSettings(model=str(short)))
    assert not (tmp_path / "v.parquet").exists()


@pytest.mark.parametrize(
    "names", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")]
)
def test_a_folder_without_a_tokenizer_is_refused(copied: Path, names: tuple[str, ...]) -> None:
    """Transformers would make up one that knows no word."""
    for name in names:
        (copied / name).unlink()
    told = refused(copied, r"holds no tokenizer: found none of tokenizer\.json, vocab\.txt")
    assert "Copy its files from the model's source" in told
    assert TextSettings(model=str(copied))
    with pytest.raises(ModelError, match="holds no tokenizer"):  # before any work, too
        TextEncoder.from_settings(TextSettings(model=str(copied)))


def test_texts_of_which_no_word_is_known_are_refused_unless_they_say_nothing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    encoder = TextEncoder.load(tiny_folder, "cpu")
    cache = VectorCache(tmp_path / "cache")
    strange = ["ж", "ю я", ""]
    with pytest.raises(ModelError, match="knows no word of the texts; allowed: one of their"):
        encode_cached(encoder, strange, cache)
    assert not (tmp_path / "cache").exists()
    assert encode_cached(encoder, ["", " "], cache)[1].empty == 2
    assert encode_cached(encoder, [*strange, "lamp"], cache)[1].empty == 1
    assert encoder.encode(["ж"]).any()  # what somebody looks for may be unknown


# Texts that say nothing


def test_white_space_and_control_characters_say_nothing_to_a_tokenizer_of_bytes(
    tmp_path: Path,
) -> None:
    bytes_ = ByteLevelBPETokenizer()
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    bytes_.train_from_iterator(["red lamp"], vocab_size=300, special_tokens=marks)
    bytes_._tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_._tokenizer, **names)
    model = BertModel(BertConfig(**SMALL | {"vocab_size": len(tokenizer), "pad_token_id": 1}))
    encoder = TextEncoder.of(model, tokenizer, tmp_path / "bytes", device="cpu")
    silent = [
        "",
        "   ",
        "\t\r\n",
        "\x00\x01",
        "\ufeff",
        "\u200b\u200d \u00a0",
        " " * 9_999,
        "\ud83d",
    ]
    vectors, cut = encoder.embed([*silent, "\x00red\ufeff", ".", "🙂"])
    assert_allclose(np.linalg.norm(vectors, axis=1), [0] * 8 + [1] * 3, atol=1e-6)
    assert not cut.any()


def test_what_is_no_list_of_strings_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(tiny_folder, "cpu")
    calls: list[Callable[[Any], object]] = [
        encoder.encode,
        lambda texts: encode_cached(encoder, texts, VectorCache(tmp_path)),
    ]
    for call in calls:
        with pytest.raises(ModelError, match="found one string, 'red lamp', for a list of texts"):
            call("red lamp")
        with pytest.raises(ModelError, match="found a NoneType as text number 1, from 0"):
            call(["red", None])


# A loaded model


def test_a_loaded_model_becomes_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    texts = ["red lamp", "blue usb cable"]
    encoder = TextEncoder.of(model, tokenizer, tmp_path / "mean", device="cpu", max_tokens=9)
    expected = TextEncoder.load(tiny_folder, "cpu").encode(texts)
    assert_allclose(encoder.encode(texts), expected, atol=1e-6)
    assert (encoder.folder, encoder.max_tokens) == (tmp_path / "mean", 9)
    assert list((tmp_path / "mean").glob("*.safetensors"))
    first = TextEncoder.of(model, tokenizer, tmp_path / "cls", pooling="cls", device="cpu")
    assert TextEncoder.load(tmp_path / "cls", "cpu").pooling.mode == first.pooling.mode == "cls"
    with pytest.raises(ConfigError, match="found something there already; allowed: a new folder"):
        TextEncoder.of(model, tokenizer, tmp_path / "cls")
    with pytest.raises(ModelError, match=r"found a \w+; allowed: a PreTrainedModel of tr"):
        TextEncoder.of(tokenizer, model, tmp_path / "new")
    model.resize_token_embeddings(9)
    with pytest.raises(ModelError, match=f"{tmp_path / 'new'}: found token number 15"):
        TextEncoder.of(model, tokenizer, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cls", "mean"]
    with pytest.raises(ModelError, match=r"found a BertModel; allowed: 'minilm'.* TextEncoder\.of"):
        TextEncoder.load(model)


# How long texts may be


def test_places_are_as_many_as_the_model_tells_apart() -> None:
    """XLNet's are relative; RoBERTa and its kin count from the number after the padding's."""

    def limit(kind: str, positions: int, pad: int | None) -> int:
        stated = {"model_type": kind, "max_position_embeddings": positions, "pad_token_id": pad}
        return model_limit(SimpleNamespace(**stated))

    assert limit("xlnet", -1, 5) == 1 << 20
    assert limit("roberta", 514, 1) == 512
    assert limit("xlm-roberta", 66, 0) == 65
    assert limit("camembert", 514, 1) == 512
    assert limit("bert", 512, 0) == 512
    assert limit("bert", 512, 1) == 512
    assert limit("mpnet", 514, 0) == 512  # it has its padding at 1, whatever is stated


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("kind", [(XLMRobertaModel, XLMRobertaConfig), (MPNetModel, MPNetConfig)])
def test_the_longest_text_is_read(
    kind: tuple[Any, Any], pad: int, tiny_folder: Path, tmp_path: Path
) -> None:
    config = kind[1](**SMALL, pad_token_id=pad, max_position_embeddings=12)
    encoder = TextEncoder.load(with_model(tiny_folder, tmp_path / "m", kind[0](config)), "cpu")
    vectors, cut = encoder.embed(["red lamp " * 30])
    assert np.isfinite(vectors).all()
    assert cut.all()


# What is damaged, or is no encoder


def test_models_that_are_no_encoder_of_tokens_are_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    t5 = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    refused(with_model(tiny_folder, tmp_path / "t5", T5Model(t5)), "t5 encoder-decoder")
    half = with_model(tiny_folder, tmp_path / "half", T5EncoderModel(t5))
    refused(half, "t5 encoder-decoder, or a half of one; allowed: an encoder")

    sizes = {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32}
    funnel = FunnelBaseModel(FunnelConfig(vocab_size=16, **sizes))
    folder = with_model(tiny_folder, tmp_path / "funnel", funnel)
    with pytest.raises(ModelError, match=f"{folder}: found a funnel model that fails on 1 text"):
        TextEncoder.load(folder, "cpu").encode(["red lamp " * 9, "lamp"], batch_tokens=21)

    canine = tmp_path / "canine"
    shape = SMALL | {"num_hash_buckets": 64, "local_transformer_stride": 8}
    CanineModel(CanineConfig(**shape)).save_pretrained(canine)
    CanineTokenizer().save_pretrained(canine)
    refused(canine, "holds no tokenizer.* as CANINE does")
    (canine / "vocab.txt").write_text("red\n")
    refused(canine, "found the tokenizer CanineTokenizer, which is written in Python")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", [], r"config\.json: found a list; allowed: a JSON object"),
        ("tokenizer_config.json", 3, r"tokenizer_config\.json: found a int; allowed"),
        ("modules.json", {"a": 1}, r"modules\.json: found something else than a list of modules"),
        ("modules.json", [{"path": ""}], "something else than a list of modules"),
        ("modules.json", 7, "something else than a list of modules"),
        ("modules.json", [{"path": "../x", "type": POOLING}], r"the folder '\.\./x'; allowed"),
        ("modules.json", [{"path": "0_T", "type": TRANSFORMER}], "transformer in its folder '0_T'"),
    ],
)
def test_files_of_another_kind_are_refused(
    name: str, content: object, message: str, copied: Path
) -> None:
    (copied / name).write_text(json.dumps(content))
    refused(copied, message)


def test_lengths_that_are_no_numbers_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"max_position_embeddings": "x"}))
    refused(copied, "found a length of texts that is no number .* max_position_embeddings")
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "sentence_bert_config.json").write_text('{"max_seq_length": [3]}')
    refused(copied, "found a length of texts that is no number")


def test_a_model_of_texts_and_pictures_is_refused(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "clip"}')
    refused(copied, "found None as hidden_size in config.json; allowed: the width of a token's")


def test_code_in_a_folder_is_not_run(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    custom = {"model_type": "mine", "auto_map": {"AutoConfig": "m.C", "AutoModel": "m.M"}}
    (copied / "config.json").write_text(json.dumps(config | custom))
    (copied / "m.py").write_text(f"open({str(copied / 'run')!r}, 'w')\n")
    assert "trust_remote_code" not in refused(copied, "kgrank runs no code from a folder")
    assert not (copied / "run").exists()


# The folders that modules.json names


def with_dense(folder: Path, name: str) -> None:
    """Give the encoder a projection to 4 numbers, in a folder of this name."""
    where = folder / name
    where.mkdir(parents=True)
    sizes = {"in_features": 16, "out_features": 4, "bias": True}
    identity = {"activation_function": "torch.nn.modules.linear.Identity"}
    (where / "config.json").write_text(json.dumps(sizes | identity))
    torch.manual_seed(1)
    tensors = {"linear.weight": torch.randn(4, 16), "linear.bias": torch.zeros(4)}
    save_file(tensors, where / "model.safetensors")
    modules = [
        {"idx": place, "path": path, "type": kind}
        for place, (path, kind) in enumerate([("", TRANSFORMER), ("pool", POOLING), (name, DENSE)])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("name", ["2_Dense", "proj", "deep/proj"])
def test_folders_of_any_name_are_read_hashed_and_copied(
    name: str, copied: Path, tmp_path: Path
) -> None:
    (copied / "pool").mkdir()
    (copied / "pool" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with_dense(copied, name)
    encoder = TextEncoder.load(copied, "cpu")
    assert (encoder.pooling.mode, encoder.dim) == ("cls", 4)
    small = tmp_path / "small"
    compress(copied, small, "layers")
    dropped = TextEncoder.load(small, "cpu")
    assert (dropped.pooling.mode, dropped.dim) == ("cls", 4)
    path = copied / name / "model.safetensors"
    save_file({key: value + 1 for key, value in load_file(path).items()}, path)
    assert TextEncoder.load(copied, "cpu").fingerprint != encoder.fingerprint


def test_a_pickled_projection_is_refused_until_the_command_converts_it(copied: Path) -> None:
    with_dense(copied, "2_Dense")
    path = copied / "2_Dense" / "model.safetensors"
    before = TextEncoder.load(copied, "cpu").encode(["red lamp"])
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    told = refused(copied, r"2_Dense holds pytorch_model\.bin; allowed: model\.safetensors")
    python, *rest = shlex.split(told.partition("convert it once: ")[2])
    assert python == "python"
    subprocess.run([sys.executable, *rest], check=True, capture_output=True)
    assert_allclose(TextEncoder.load(copied, "cpu").encode(["red lamp"]), before, atol=1e-6)
