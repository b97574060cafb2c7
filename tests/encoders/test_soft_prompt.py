"""A soft prompt: vectors before every text learn, and nothing else; any reader serves them."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoTokenizer

from kgrank.encoders.compression import compress
from kgrank.encoders.finetuning import Finetuned, FinetuneSettings, finetune
from kgrank.encoders.runtimes import special_tokens
from kgrank.encoders.soft_prompt import prompted
from kgrank.encoders.static import token_vectors
from kgrank.encoders.text import TextEncoder
from kgrank.errors import ConfigError, ModelError

TABLE = "embeddings.word_embeddings.weight"
WORDS = 16  # entries of the vocabulary, so that the first token of a prompt is number 16
RED, CABLE, LAMP = 4, 8, 10
TITLES = [f"{a} {b}" for a in ("red", "blue", "green") for b in ("usb cable", "lamp", "shoe")]
ITEMS = pd.DataFrame({"item_id": [f"i{n}" for n in range(9)], "title": TITLES})


def events() -> pd.DataFrame:
    """Ten users a colour buy its three products, the last of which is valid."""
    rows = [
        (f"u{user}", f"i{3 * (user % 3) + (place + user) % 3}", 10.0 * place, split)
        for user in range(30)
        for place, split in enumerate(("train", "train", "valid"))
    ]
    columns = ["user_id", "item_id", "timestamp", "split"]
    return pd.DataFrame(rows, columns=columns).assign(event="purchase")


def tuned(start: Path, out: Path, **changes: Any) -> Finetuned:
    given: dict[str, Any] = {"method": "prompt", "rank": 3, "epochs": 4, "rate": 0.05, **changes}
    settings = FinetuneSettings(temperature=0.1, warmup=2, encoded=4, max_tokens=8, **given)
    tasks = {"next": 1.0}
    return finetune(ITEMS, events(), out, settings, tasks=tasks, start=start, device="cpu")


@pytest.fixture(scope="module")
def learned(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finetuned]:
    """The folder of an encoder with a prompt of three. Not to be written to."""
    out = tmp_path_factory.mktemp("prompt") / "out"
    return out, tuned(tiny_folder, out)


def test_three_rows_are_learned_and_all_else_stays_to_the_bit(
    tiny_folder: Path, learned: tuple[Path, Finetuned]
) -> None:
    out, done = learned
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_folder, out))
    assert before.keys() == after.keys()
    assert [n for n in before if not torch.equal(before[n], after[n][: len(before[n])])] == []
    assert [n for n in before if before[n].shape != after[n].shape] == [TABLE]
    assert after[TABLE].shape == (WORDS + 3, 16)
    assert done.learned == 3 * 16
    assert done.loss[-1] < done.loss[0]
    # They began as the vectors of the words met most often; of equal ones, the first.
    moved = (after[TABLE][WORDS:] - before[TABLE][[RED, RED + 1, RED + 2]]).abs().amax(dim=1)
    assert (moved > 0.05).all()


def test_what_is_served_is_what_was_trained(
    learned: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    """Judged again as it is loaded, it ranks valid as it did at the end of its training."""
    out, done = learned
    again = tuned(out, tmp_path / "again", method="full", epochs=1)
    assert again.before == done.after


def test_a_plain_reader_gives_the_same_vectors(learned: tuple[Path, Finetuned]) -> None:
    """The mean over [CLS], three tokens of the prompt, "red", "lamp" and [SEP]."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(learned[0]))
    model: Any = AutoModel.from_pretrained(str(learned[0]))
    read = tokenizer("red lamp", return_tensors="pt")
    assert read["input_ids"].tolist() == [[2, 16, 17, 18, RED, LAMP, 3]]
    with torch.no_grad():
        mean = model.eval()(**read).last_hidden_state.mean(dim=1)
    expected = torch.nn.functional.normalize(mean, dim=1).numpy()
    encoder = TextEncoder.load(learned[0], "cpu")
    assert_allclose(encoder.encode(["red lamp"]), expected, atol=1e-6)
    assert not encoder.encode([" "]).any()


def test_a_plain_reader_cuts_where_kgrank_does(tiny_folder: Path, tmp_path: Path) -> None:
    """What the folder states, 8 tokens, becomes 11 by a prompt of three."""
    start = Path(shutil.copytree(tiny_folder, tmp_path / "start"))
    for name, stated in (
        ("tokenizer_config", {"model_max_length": 8}),
        ("sentence_bert_config", {"max_seq_length": 9}),
    ):
        path = start / f"{name}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **stated}))
    tuned(start, tmp_path / "out", epochs=1)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    read = tokenizer("lamp " * 30, truncation=True)["input_ids"]
    assert read == [2, 16, 17, 18, *[LAMP] * 6, 3]
    assert TextEncoder.load(tmp_path / "out", "cpu").tokenise(["lamp " * 30])[0] == [read]
    stated = json.loads((tmp_path / "out" / "sentence_bert_config.json").read_text())
    assert stated["max_seq_length"] == 12


def test_a_projection_stays_as_it_was(tiny_folder: Path, tmp_path: Path) -> None:
    tuned(tiny_folder, tmp_path / "frozen", method="frozen", epochs=1)
    done = tuned(tmp_path / "frozen", tmp_path / "out", epochs=1)
    assert done.learned == 3 * 16
    before, after = (
        load_file(tmp_path / name / "2_Dense" / "model.safetensors") for name in ("frozen", "out")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_class_that_makes_its_own_template_is_not_named(
    tiny_folder: Path, tmp_path: Path
) -> None:
    """BERT's tokenizer class puts [CLS] and [SEP] alone around a text, whatever the file says."""
    start = Path(shutil.copytree(tiny_folder, tmp_path / "start"))
    about = json.loads((start / "tokenizer_config.json").read_text())
    about["tokenizer_class"] = "BertTokenizer"
    (start / "tokenizer_config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="found token number 16 in the tokenizer and 16 rows"):
        TextEncoder.load(start, "cpu")  # the class adds [MASK]
    model: Any = AutoModel.from_pretrained(str(start))
    model.resize_token_embeddings(WORDS + 1)
    model.save_pretrained(start)
    assert type(TextEncoder.load(start, "cpu").tokenizer).__name__ == "BertTokenizer"
    tuned(start, tmp_path / "out", epochs=1)
    encoder = TextEncoder.load(tmp_path / "out", "cpu")
    assert encoder.tokenise(["red lamp"])[0] == [[2, 17, 18, 19, RED, LAMP, 3]]
    assert (encoder.tokenizer.unk_token, encoder.tokenizer.mask_token_id) == ("[UNK]", 16)


def test_no_text_is_read_as_the_prompt(learned: tuple[Path, Finetuned]) -> None:
    encoder = TextEncoder.load(learned[0], "cpu")
    (ids,), _ = encoder.tokenise(["[PROMPT] red [PROMPT] \ue000"])
    assert [place for place, token in enumerate(ids) if token >= WORDS] == [1, 2, 3]
    assert max(encoder.tokenizer.get_vocab().values()) < WORDS
    assert special_tokens(encoder.loaded[1]) == {0, 1, 2, 3, 16, 17, 18}


def test_a_token_added_behind_a_prompt_is_refused(
    learned: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    """It would take the number of the prompt's first."""
    folder = Path(shutil.copytree(learned[0], tmp_path / "more"))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(["velvet"])
    tokenizer.save_pretrained(str(folder))
    told = r"token number 16 .* 16 rows in .*, but for its prompt.* add it first"
    with pytest.raises(ModelError, match=told):
        TextEncoder.load(folder, "cpu")
    model: Any = AutoModel.from_pretrained(str(folder))
    model.resize_token_embeddings(len(tokenizer))  # which takes two rows of the prompt away
    model.save_pretrained(str(folder))
    with pytest.raises(ModelError, match=r"token number 16 .* 14 rows"):
        TextEncoder.load(folder, "cpu")


def test_a_text_keeps_its_length_where_the_model_has_room(
    tiny_folder: Path, learned: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    """Of 8 tokens two are marks; the model reads 24, of which a prompt of three takes its own."""
    long = ["lamp " * 30]
    for limit, read, of_text in ((8, 11, 6), (22, 24, 19), (None, 24, 19)):
        encoder = TextEncoder.load(learned[0], "cpu", limit)
        (ids,), cut = encoder.tokenise(long)
        assert encoder.max_tokens == len(ids) == read
        assert (ids.count(LAMP), cut) == (of_text, [True])
    with pytest.raises(ConfigError, match=r"a prompt of 22 tokens .* has room for 22 besides"):
        tuned(tiny_folder, tmp_path / "out", rank=22)
    tuned(tiny_folder, tmp_path / "out", rank=21, epochs=1)  # a word is left


def test_a_second_prompt_stands_behind_the_first(
    learned: tuple[Path, Finetuned], tmp_path: Path
) -> None:
    tuned(learned[0], tmp_path / "out", rank=2, epochs=1)
    encoder = TextEncoder.load(tmp_path / "out", "cpu", 8)
    assert encoder.tokenise(["red"])[0] == [[2, 16, 17, 18, 19, 20, RED, 3]]
    assert encoder.max_tokens == 8 + 5
    before, after = (
        load_file(f / "model.safetensors")[TABLE] for f in (learned[0], tmp_path / "out")
    )
    assert torch.equal(before, after[: WORDS + 3])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["prompt_tokens"] == 5


@pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))),
    reason="kgrank[onnx] is not installed",
)
def test_smaller_forms_keep_the_prompt(learned: tuple[Path, Finetuned], tmp_path: Path) -> None:
    encoder = TextEncoder.load(learned[0], "cpu")
    for method in ("onnx", "layers", "static"):
        (tmp_path / method).mkdir()
        compress(learned[0], tmp_path / method, method, device="cpu")  # type: ignore[arg-type]
    ids = Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json")).encode("red").ids
    assert [ids] == encoder.tokenise(["red"])[0]
    assert json.loads((tmp_path / "onnx" / "config.json").read_text())["prompt_tokens"] == 3
    backend = Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json"))
    backend.add_tokens(["velvet"])
    backend.save(str(tmp_path / "onnx" / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"found token number 16 .* but for its prompt"):
        TextEncoder.load(tmp_path / "onnx", "cpu")
    smaller = TextEncoder.load(tmp_path / "layers", "cpu")
    assert smaller.tokenise(TITLES) == encoder.tokenise(TITLES)
    # A static table's tokens are read behind the prompt, and then its texts without it.
    red = token_vectors(encoder)[RED]
    assert_allclose(red / np.linalg.norm(red), encoder.encode(["red"])[0], atol=1e-6)
    assert TextEncoder.load(tmp_path / "static", "cpu").tokenise(["red"])[0] == [[RED]]


def test_tokenizers_of_other_kinds(tiny_folder: Path) -> None:
    """RoBERTa's own post-processor becomes a template; where there is none, it is said."""
    template = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    in_a_row: Any = processors.Sequence([processors.ByteLevel(), template])
    for processor, expected in (
        (processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)), [2, 16, 17, RED, 3]),
        (processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), [2, 16, 17, RED, 3]),
        (in_a_row, [16, 17, RED, 3]),
    ):
        encoder = TextEncoder.load(tiny_folder, "cpu")
        encoder.loaded[1].post_processor = processor
        longer = prompted(encoder, [[CABLE, LAMP, LAMP]], 2)
        assert longer.tokenise(["red"])[0] == [expected]
        table = longer.model.get_input_embeddings().weight  # type: ignore[operator]
        assert torch.equal(table[WORDS:], table[[LAMP, CABLE]])
    encoder = TextEncoder.load(tiny_folder, "cpu")
    encoder.loaded[1].post_processor = processors.ByteLevel()
    with pytest.raises(ModelError, match="without a template"):
        prompted(encoder, [[RED]], 1)
