"""Smaller encoders: what each form gives, beside the whole one and beside arithmetic by hand."""

import itertools
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.numpy import load_file, save_file
from transformers import (
    AlbertConfig,
    AlbertModel,
    AutoModel,
    BertConfig,
    BertModel,
    LongformerConfig,
    LongformerModel,
)

from kgrank import extras
from kgrank.encoders import exporting
from kgrank.encoders.compression import CompressSettings, Method, compress
from kgrank.encoders.dropping import drop_layers
from kgrank.encoders.runtimes import StaticRuntime
from kgrank.encoders.static import static_table, token_shares, token_vectors
from kgrank.encoders.teaching import taught_table, token_means
from kgrank.encoders.text import TextEncoder
from kgrank.errors import ConfigError, DataError, ModelError

needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))),
    reason="kgrank[onnx] is not installed",
)
COLOURS, THINGS = ("red", "blue", "green", "the", "a"), ("usb", "cable", "charger", "lamp", "shoe")
TEXTS = [" ".join(words) for words in itertools.product(COLOURS, THINGS, ("for", "men", "lamp"))]
ONE = CompressSettings(layers=1)


def made(start: Path, out: Path, method: Method, **options: Any) -> TextEncoder:
    """The smaller encoder, loaded."""
    out.mkdir()
    compress(start, out, method, options.pop("settings", ONE), **options)
    return TextEncoder.load(out, device="cpu")


def bert(layers: int) -> BertModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}
    return BertModel(BertConfig(num_hidden_layers=layers, **shape))


# Layers


def test_the_layers_that_stay_are_those_of_the_whole_model(
    tiny_folder: Path, tmp_path: Path
) -> None:
    small = made(tiny_folder, tmp_path / "small", "layers")
    model = AutoModel.from_pretrained(tiny_folder)
    model.encoder.layer = model.encoder.layer[:1]
    ids = small.loaded[1].encode("red shoe for men").ids
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
    expected = (hidden / hidden.norm()).numpy()
    assert_allclose(small.encode(["red shoe for men"])[0], expected, atol=1e-6)
    whole = TextEncoder.load(tiny_folder, device="cpu")
    assert (small.encode(["red lamp"]) @ whole.encode(["red lamp"]).T).item() < 0.999
    assert small.fingerprint != whole.fingerprint
    assert (small.form, small.dim, small.max_tokens) == ("transformer", 16, 24)


@pytest.mark.parametrize(
    ("total", "n", "keep", "kept"),
    [
        (6, 3, "spread", (0, 3, 5)),
        (6, 4, "spread", (0, 2, 3, 5)),
        (6, 2, "spread", (0, 5)),
        (6, 1, "spread", (0,)),
        (6, 3, "first", (0, 1, 2)),
        (5, None, "spread", (0, 2, 4)),  # half, rounded up
    ],
)
def test_which_layers_stay(total: int, n: int | None, keep: str, kept: tuple[int, ...]) -> None:
    model = bert(total)
    layers = list(model.encoder.layer)
    assert drop_layers(model, n, keep) == kept
    assert [layers.index(layer) for layer in model.encoder.layer] == list(kept)
    assert model.config.num_hidden_layers == len(kept)


def test_what_has_no_list_of_layers_is_refused() -> None:
    shared = AlbertModel(
        AlbertConfig(
            vocab_size=9,
            embedding_size=4,
            hidden_size=8,
            num_attention_heads=1,
            intermediate_size=8,
            num_hidden_layers=3,
        )
    )
    with pytest.raises(ModelError, match="0 lists of 3 layers in a albert model"):
        drop_layers(shared, 1, "first")
    with pytest.raises(ModelError, match="found an encoder of a single layer; allowed: two"):
        drop_layers(bert(1), None, "spread")


# Distilling


def test_a_student_learns_what_the_teacher_says(tiny_folder: Path, tmp_path: Path) -> None:
    settings = ONE.model_copy(update={"epochs": 6, "batch": 8, "rate": 3e-3, "held_out": 0.2})
    out = tmp_path / "student"
    out.mkdir()
    told = compress(tiny_folder, out, "distil", settings, texts=TEXTS)
    assert len(told.cosines) == 1 + settings.epochs
    assert max(told.cosines[1:]) > told.cosines[0] + 0.05
    assert told.layers == (0,)
    teacher = TextEncoder.load(tiny_folder, device="cpu")
    student = TextEncoder.load(out, device="cpu")
    untaught = made(tiny_folder, tmp_path / "untaught", "layers")
    new = ["red blue green", "usb charger for the lamp", "men"]
    cosines = [
        float((encoder.encode(new) * teacher.encode(new)).sum(1).mean())
        for encoder in (student, untaught)
    ]
    assert cosines[0] > cosines[1]


def test_a_distilling_cut_short_ends_with_the_same_weights(
    tiny_folder: Path, tmp_path: Path
) -> None:
    settings = ONE.model_copy(update={"epochs": 3, "batch": 8, "rate": 3e-3})

    read: list[str] = []

    def run(name: str, stop_at: int | None = None, resume: bool = False) -> Path:
        out = tmp_path / name
        out.mkdir(exist_ok=True)

        def progress(stage: str, done: int, total: int) -> None:
            read.append(stage)
            if stage.startswith("distilling") and done == stop_at:
                raise KeyboardInterrupt

        checkpoints = tmp_path / f".{name}"
        options: dict[str, Any] = {
            "checkpoints": checkpoints,
            "resume": resume,
            "cache": tmp_path / "cache" / name,
        }
        compress(tiny_folder, out, "distil", settings, texts=TEXTS, progress=progress, **options)
        return out

    whole = load_file(run("whole") / "model.safetensors")
    with pytest.raises(KeyboardInterrupt):
        run("short", stop_at=14)
    assert (tmp_path / ".short").is_dir()
    assert "reading texts" in read
    read.clear()
    again = load_file(run("short", resume=True) / "model.safetensors")
    assert "reading texts" not in read  # the teacher's words are kept
    assert whole.keys() == again.keys()
    for name, tensor in whole.items():
        assert (tensor == again[name]).all(), name
    assert not (tmp_path / ".short").exists()


# A static table


def test_a_text_of_a_table_is_the_sum_of_its_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    small = made(tiny_folder, tmp_path / "table", "static", settings=CompressSettings(dim=4))
    stored = load_file(tmp_path / "table" / "model.safetensors")["embeddings"]
    assert (stored.dtype, stored.shape) == (np.float16, (16, 4))
    vocabulary = small.loaded[1].get_vocab()
    rows = stored.astype(np.float32)
    total = rows[vocabulary["red"]] + 2 * rows[vocabulary["lamp"]]
    vectors = small.encode(["red lamp lamp", "lamp red lamp", "zebra", "zebra red", "red"])
    assert_allclose(vectors[0], total / np.linalg.norm(total), atol=1e-6)
    assert_allclose(vectors[1], vectors[0], atol=1e-6)
    assert not vectors[2].any()  # a word that the table does not know says nothing
    assert_allclose(vectors[3], vectors[4], atol=1e-6)
    assert (small.form, small.dim, small.device) == ("static", 4, "cpu")
    assert small.max_tokens == 1_000_000


def test_tokens_are_read_each_as_a_text_of_its_own(tiny_folder: Path) -> None:
    encoder = TextEncoder.load(tiny_folder, device="cpu")
    vectors = token_vectors(encoder)
    vocabulary = encoder.loaded[1].get_vocab()
    for word in ("red", "men"):
        row = vectors[vocabulary[word]]
        assert_allclose(row / np.linalg.norm(row), encoder.encode([word])[0], atol=1e-5)
    assert not vectors[[vocabulary[mark] for mark in ("[CLS]", "[SEP]", "[PAD]")]].any()


def test_a_table_keeps_the_widest_axis_and_weighs_rare_tokens_more() -> None:
    """Three tokens on a line along (3, 4) / 5, at −5, 0 and 5 from their mean (1, 2).

    One axis holds them all. With a = 0.1 and the shares 0.1, 0.3 and 0.9 the weights are 1/2, 1/4
    and 1/10.
    """
    vectors = np.array([[0, 0], [-2, -2], [1, 2], [4, 6]], np.float32)
    table = static_table(vectors, 1, np.array([0.5, 0.1, 0.3, 0.9]), 0.1)
    assert_allclose(table, [[0], [-5 / 2], [0], [5 / 10]], atol=1e-6)


def test_shares_are_counted_or_by_zipfs_law(tiny_folder: Path) -> None:
    """Of 16 entries, each begins at 1; "red red lamp" adds 2 and 1: 3 / 19, 2 / 19 and 1 / 19."""
    encoder = TextEncoder.load(tiny_folder, device="cpu")
    vocabulary = encoder.loaded[1].get_vocab()
    shares = token_shares(encoder, 16, ["red red lamp"])
    assert_allclose(shares[[vocabulary[w] for w in ("red", "lamp", "men")]], np.r_[3, 2, 1] / 19)
    assert_allclose(shares.sum(), 1)
    laws = token_shares(encoder, 3, [])
    assert_allclose(laws, np.array([1 / 2, 1 / 3, 1 / 4]) / (13 / 12))


def test_a_table_is_fitted_to_what_the_encoder_says_of_texts(
    tiny_folder: Path, tmp_path: Path
) -> None:
    settings = CompressSettings(dim=16, held_out=0.2)
    fitted, plain = tmp_path / "fitted", tmp_path / "plain"
    fitted.mkdir()
    told = compress(tiny_folder, fitted, "static", settings, texts=TEXTS)
    assert told.cosines[1] > told.cosines[0] + 0.02
    whole = TextEncoder.load(tiny_folder, device="cpu").encode(TEXTS)
    cosines = []
    for small in (TextEncoder.load(fitted), made(tiny_folder, plain, "static", settings=settings)):
        left, _, right = np.linalg.svd(small.encode(TEXTS).T @ whole)
        cosines.append(float((small.encode(TEXTS) @ (left @ right) * whole).sum(axis=1).mean()))
    assert cosines[0] > cosines[1] + 0.02


@pytest.mark.parametrize("method", ["static", "distil"])
def test_texts_that_the_encoder_cannot_read_are_refused(
    method: Method, tiny_folder: Path, tmp_path: Path
) -> None:
    for texts in (["", " "], ["one alone"]):
        with pytest.raises(DataError, match=r"columns in \[compress\] fields"):
            compress(tiny_folder, tmp_path, method, ONE, texts=texts)
    with pytest.raises(DataError, match="with no word that it knows"):
        strange = ["☂ ☃", "☄ ★", "☂ ★"]
        compress(tiny_folder, tmp_path / "out", method, ONE, texts=strange, cache=tmp_path / "c")


@pytest.mark.parametrize("method", ["static", "distil"])
def test_half_an_emoji_is_learned_from(method: Method, tiny_folder: Path, tmp_path: Path) -> None:
    texts = [*TEXTS, "red lamp \ud83d"]
    settings = CompressSettings(layers=1, epochs=1)
    assert made(tiny_folder, tmp_path / "out", method, settings=settings, texts=texts).dim == 16


def test_a_fitted_table_by_hand() -> None:
    """One text of two tokens, half of each: rows 0 and 0, wanted 1, strength 1/2.

    Each row r minimises (r − 1)² + 2 · r² / 2, so r = 1 / 2. Without a strength it would be 1.
    """
    means = token_means([[0, 1], []], 3)
    assert means.toarray().tolist() == [[0.5, 0.5, 0], [0, 0, 0]]
    table, wanted = np.zeros((3, 1), np.float32), np.array([[1], [0]], np.float32)
    assert_allclose(taught_table(table, means, wanted, 0.5), [[0.5], [0.5], [0]], atol=1e-6)
    assert_allclose(taught_table(table, means, wanted, 1e-6), [[1], [1], [0]], atol=1e-4)


def test_tables_of_model2vec_load_with_weights_and_shared_rows(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    made(tiny_folder, folder, "static", settings=CompressSettings(dim=4))
    rows = np.arange(8, dtype=np.float32).reshape(2, 4) + 1
    mapping = np.arange(16) % 2
    weights = np.linspace(1, 2, 16).astype(np.float32)
    tensors = {"embeddings": rows, "mapping": mapping, "weights": weights}
    save_file(tensors, folder / "model.safetensors")
    encoder = TextEncoder.load(folder, device="cpu")
    vocabulary = encoder.loaded[1].get_vocab()
    red, lamp = (vocabulary[word] for word in ("red", "lamp"))
    total = rows[red % 2] * weights[red] + rows[lamp % 2] * weights[lamp]
    assert_allclose(encoder.encode(["red lamp"])[0], total / np.linalg.norm(total), atol=1e-6)
    assert not encoder.encode(["zebra"]).any()  # though its row holds something


def test_sums_of_tokens_by_hand() -> None:
    table = np.array([[1, 0], [0, 2], [3, 3]], np.float32)
    assert StaticRuntime(table)([[0, 1], [2], [1, 1, 0]]).tolist() == [[1, 2], [3, 3], [1, 4]]


def test_a_table_is_read_without_torch_and_transformers(tiny_folder: Path, tmp_path: Path) -> None:
    made(tiny_folder, tmp_path / "table", "static")
    code = (
        "import sys; from kgrank.encoders.text import TextEncoder; "
        f"print(TextEncoder.load({str(tmp_path / 'table')!r}).encode(['red lamp']).any()); "
        "print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.split() == ["True"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"embeddings": np.ones((3, 4), np.float32)},
            "token number 15 in the tokenizer and 3",
        ),
        ({"vectors": np.ones((16, 4), np.float32)}, "no static table that can be read"),
    ],
)
def test_a_damaged_table_is_refused(
    tensors: dict[str, np.ndarray], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "table"
    made(tiny_folder, folder, "static")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        TextEncoder.load(folder)


# ONNX


@pytest.fixture(scope="module")
def graph(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder as an ONNX graph, exported once, for seconds. Not to be written to."""
    out = tmp_path_factory.mktemp("graph") / "encoder"
    made(tiny_folder, out, "onnx")
    return out


@needs_onnx
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_onnx_gives_the_vectors_of_torch(
    pooling: str, graph: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    encoders = []
    for number, folder in enumerate((tiny_folder, graph)):
        copy = Path(shutil.copytree(folder, tmp_path / str(number)))
        (copy / "1_Pooling").mkdir()
        (copy / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": pooling}))
        encoders.append(TextEncoder.load(copy, device="cpu"))
    whole, small = encoders
    texts = ["red", "usb cable for the lamp", "", "blue shoe for men " * 9, "🙂"]
    for batch_tokens in (1, 1_000):
        vectors, cut = small.embed(texts, batch_tokens=batch_tokens)
        assert_allclose(vectors, whole.encode(texts), atol=1e-5)
        assert cut.tolist() == [False, False, False, True, False]
    assert (small.form, small.pooling.mode) == ("onnx", pooling)
    assert not list(graph.rglob("*.safetensors"))


@needs_onnx
def test_8_bits_are_smaller_and_nearly_the_same(
    graph: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(model: object, path: Path) -> None:  # what took seconds is not done again
        shutil.copyfile(graph / "onnx" / "model.onnx", path)

    monkeypatch.setattr(exporting, "export_graph", export)
    small = made(tiny_folder, tmp_path / "small", "int8")
    whole = TextEncoder.load(graph)
    cosines = (whole.encode(TEXTS) * small.encode(TEXTS)).sum(axis=1)
    assert 0.98 < cosines.mean() < 0.999_999  # rounded, but not by much
    assert small.fingerprint != whole.fingerprint
    assert [path.name for path in (tmp_path / "small" / "onnx").iterdir()] == ["model.onnx"]


@needs_onnx
def test_a_graph_is_read_without_torch_and_its_bytes_are_its_name(
    graph: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from kgrank.encoders.text import TextEncoder; "
        f"print(TextEncoder.load({str(graph)!r}).encode(['red lamp']).any()); "
        "print(*{'torch', 'transformers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.split() == ["True"]
    folder = Path(shutil.copytree(graph, tmp_path / "damaged"))
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot load .*model\.onnx"):
        TextEncoder.load(folder)
    before = TextEncoder.load(graph).fingerprint
    assert TextEncoder._found(folder, "cpu", None).fingerprint != before


@pytest.mark.parametrize("method", ["onnx", "int8"])
def test_what_is_not_installed_is_named_with_its_command(
    method: Method, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"run `pip install kgrank\[onnx\]`"):
        compress(tiny_folder, tmp_path, method)
    assert not list(tmp_path.iterdir())


# What is refused


def test_too_many_layers_no_encoder_and_a_small_one_are_refused(
    tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"compress\.layers: found 2; allowed: 1 to 1"):
        compress(tiny_folder, tmp_path, "layers", CompressSettings(layers=2))
    with pytest.raises(ModelError, match="no text encoder at nowhere"):
        compress("nowhere", tmp_path, "layers")
    made(tiny_folder, tmp_path / "table", "static")
    with pytest.raises(ModelError, match="found an encoder of the form static"):
        compress(tmp_path / "table", tmp_path / "out", "layers")
    with pytest.raises(ConfigError, match="table: found something there already"):
        compress(tiny_folder, tmp_path / "table", "layers")


@pytest.mark.parametrize("method", ["layers", pytest.param("int8", marks=needs_onnx)])
def test_a_model_that_a_method_is_not_for_is_refused_and_nothing_is_written(
    method: Method, tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Longformer has a window for each layer, and a graph that depends on a text's length."""
    start = tmp_path / "start"
    shape = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 32}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "attention_window": [8, 8]}
    config = LongformerConfig(**shape, **heads, max_position_embeddings=66)
    LongformerModel(config).save_pretrained(start)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, start)
    capfd.readouterr()
    match = f"found a longformer model, of which the method {method} makes no encoder.* allowed"
    with pytest.raises(ModelError, match=match) as told:
        compress(start, tmp_path / "out", method)
    assert "\n" not in str(told.value)
    assert "\x1b" not in str(told.value)
    assert list(tmp_path.iterdir()) == [start]
    said = capfd.readouterr()
    assert len((said.out + said.err).splitlines()) <= 1  # transformers may say that it pads


@needs_onnx
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 32, "found vectors of 16 numbers, where 32 are stated; allowed: as many"),
        ("vocab_size", 12, "found token number 15 in the tokenizer and 12 rows"),
    ],
)
def test_a_graph_beside_another_models_config_is_refused(
    key: str, value: int, message: str, graph: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(graph, tmp_path / "graph"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=message):
        TextEncoder.load(folder)


@needs_onnx
def test_a_graph_without_a_row_for_each_token_is_refused(graph: Path, tmp_path: Path) -> None:
    """Where config.json does not say how many there are."""
    folder = Path(shutil.copytree(graph, tmp_path / "graph"))
    config = json.loads((folder / "config.json").read_text())
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    assert TextEncoder.load(folder).encode(["red"]).any()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["velvet"] = 16
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=f"{folder}: found a bert model that fails on 1 text"):
        TextEncoder.load(folder)


def test_a_table_does_not_run_on_a_gpu(tiny_folder: Path, tmp_path: Path) -> None:
    made(tiny_folder, tmp_path / "table", "static")
    with pytest.raises(ModelError, match="found the device cuda for an encoder of the form static"):
        TextEncoder.load(tmp_path / "table", device="cuda")
