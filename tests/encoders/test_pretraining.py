"""Masked language modelling: an encoder learns a shop's words, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kgrank.encoders.corpus import shop_texts, split_texts
from kgrank.encoders.folders import draw_epochs
from kgrank.encoders.masking import Marks, MaskedModel, MaskedWordTask, cut_texts, mask_words
from kgrank.encoders.pretraining import Pretrained, PretrainSettings, pretrain
from kgrank.encoders.text import TextEncoder
from kgrank.encoders.vocabulary import learn_wordpiece
from kgrank.errors import ConfigError, DataError, ModelError
from kgrank.loop import Loop

BRANDS = ["alder", "birch", "cedar", "dogwood", "elder", "fir"]
THINGS = ["tent", "kettle", "lamp", "saddle", "piano", "rope"]
# A brand tells its thing, and the other way round; colour and size are anybody's guess.
LANGUAGE = [
    f"{BRANDS[kind]} {THINGS[kind]} in {colour} size {size}"
    for kind, colour, size in product(range(6), ["red", "blue", "green", "grey"], range(10))
]
SETTINGS = PretrainSettings(
    layers=1, width=64, vocabulary=200, max_tokens=24, epochs=4, rate=0.003, warmup=5, batch=16
)


@dataclass(frozen=True)
class Learned:
    folder: Path
    done: Pretrained


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """An encoder of the language, from scratch. Not to be written to."""
    folder = tmp_path_factory.mktemp("scratch") / "encoder"
    return Learned(folder, pretrain(LANGUAGE, folder, SETTINGS, start="scratch", device="cpu"))


@pytest.fixture
def copied(scratch: Learned, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(scratch.folder, tmp_path / "copied"))


def hand_made() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of ten entries."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "usb", "char", "##ger", "##s"]
    numbers = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": entry for name, entry in names.items()}
    )


# What is masked


def test_texts_become_pieces_with_the_words_of_their_tokens() -> None:
    """ "red chargers" is [CLS] red char ##ger ##s [SEP]; 7 tokens hold five beside the marks."""
    tokenizer = hand_made()
    tokenizer.backend_tokenizer.enable_truncation(3)
    texts = ["red chargers", "red neon usb", "", "neon", "red usb chargers usb"]
    pieces = cut_texts(tokenizer, texts, 7)
    rows = [
        (pieces.tokens[a:b].tolist(), pieces.words[a:b].tolist())
        for a, b in zip(pieces.starts[:-1], pieces.starts[1:], strict=True)
    ]
    assert rows == [
        ([2, 5, 7, 8, 9, 3], [-1, 0, 1, 1, 1, -1]),
        ([2, 5, 1, 6, 3], [-1, 0, -1, 2, -1]),  # what the vocabulary does not know is not masked
        ([2, 5, 6, 7, 8, 9, 3], [-1, 0, 1, 2, 2, 2, -1]),
        ([2, 6, 3], [-1, 3, -1]),
    ]
    assert pieces.long == 1
    assert pieces.unknown == pytest.approx(2 / 14)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 3


def test_all_tokens_of_a_word_are_masked_or_none() -> None:
    """Of "red usb chargers", one word of three; of "red usb", one of two: at least one."""
    pieces = cut_texts(hand_made(), ["red usb chargers", "red usb"], 16)
    marks = Marks.of(hand_made())
    assert marks.plain.tolist() == [5, 6, 7, 8, 9]
    rng = np.random.default_rng(0)
    asked, fates = [], []
    for _ in range(600):
        batch = mask_words(pieces, np.array([0, 1]), marks, 0.3, rng)
        places = [np.flatnonzero(row).tolist() for row in batch.wanted >= 0]
        assert places[0] in ([1], [2], [3, 4, 5])  # red, usb, char ##ger ##s
        assert places[1] in ([1], [2])
        stood = {1: [5], 2: [6], 3: [7, 8, 9]}[places[0][0]]
        assert batch.wanted[0, places[0]].tolist() == stood
        assert batch.real.sum(axis=1).tolist() == [7, 4]
        assert batch.tokens[1, 4:].tolist() == [0, 0, 0]
        asked.append(places[0][0])
        became = batch.tokens[0, places[0]]
        fates.append("mask" if (became == 4).all() else "mixed" if (became == 4).any() else "word")
    assert [asked.count(place) for place in (1, 2, 3)] == pytest.approx([200] * 3, abs=40)
    assert fates.count("mixed") == 0
    assert fates.count("mask") == pytest.approx(480, abs=40)
    plain = mask_words(pieces, np.array([0, 1]), marks, 0.99, rng, plainly=True)
    assert plain.tokens.tolist() == [[2, 4, 4, 4, 4, 4, 3], [2, 4, 4, 3, 0, 0, 0]]


def spaceless() -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind, to which a run without spaces is one word."""
    pieces = ["▁", "手机", "红色", "充电", "器", "壳", "usb", "▁usb", "的", "s", "▁red"]
    entries = [(mark, 0.0) for mark in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    tokenizer = Tokenizer(models.Unigram([*entries, *((p, -3.0) for p in pieces)], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"unk": "<unk>", "pad": "<pad>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": entry for name, entry in names.items()}
    )


def test_chinese_is_masked_by_tokens_where_spaces_make_words() -> None:
    """ "红色手机壳的usbs充电器 usbs" is ▁ 红色 手机 壳 的 usb s 充电 器 ▁usb s between marks."""
    tokenizer = spaceless()
    pieces = cut_texts(tokenizer, ["红色手机壳的usbs充电器 usbs", "red usbs"], 16)
    first, second = np.split(pieces.words, pieces.starts[1:2])
    assert first.tolist() == [-1, 0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 7, -1]
    assert second.tolist() == [-1, 0, 1, 1, -1]
    rng = np.random.default_rng(0)
    texts = [
        "".join(rng.choice(["手机", "红色", "充电", "器", "壳", "的"], 20)) for _ in range(200)
    ]
    pieces = cut_texts(tokenizer, texts, 32)
    masked = mask_words(pieces, np.arange(200), Marks.of(tokenizer), 0.15, rng)
    shares = (masked.wanted >= 0).sum(axis=1) / (masked.real.sum(axis=1) - 2)
    assert shares.max() < 0.2
    assert shares.mean() == pytest.approx(0.15, abs=0.02)


def test_bytes_of_one_chinese_character_are_masked_together() -> None:
    """Each of two characters is three bytes, and each byte a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert cut_texts(tokenizer, ["手机ab"], 16).words.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "kind", ["Bert", "Roberta", "DistilBert", "MPNet", "Electra", "ModernBert"]
)
def test_a_head_that_sees_the_masked_tokens_alone_says_the_same(kind: str) -> None:
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "max_position_embeddings": 20, "pad_token_id": 0}
    if kind == "DistilBert":
        sizes |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    if kind == "Electra":
        sizes |= {"embedding_size": 16}
    if kind == "ModernBert":
        sizes |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    tokens = torch.tensor([[2, 7, 8, 9, 3], [2, 6, 3, 0, 0]])
    asked = torch.tensor([[0, 1, 0, 1, 0], [0, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        whole = model(input_ids=tokens, attention_mask=(tokens != 0).long()).logits
        found = MaskedModel(model)(tokens, tokens != 0, asked)
    torch.testing.assert_close(found, whole[asked])


def test_draws_depend_on_seed_epoch_and_step_alone() -> None:
    tokenizer = learn_wordpiece(LANGUAGE, 200, 24)
    pieces = cut_texts(tokenizer, LANGUAGE, 24)

    def drawn(seed: int, epoch: int) -> list[list[list[int]]]:
        task = MaskedWordTask(
            _small(len(tokenizer)),
            pieces,
            pieces,
            Marks.of(tokenizer),
            share=0.15,
            batch=16,
            seed=seed,
            device="cpu",
        )
        return [batch.tokens.tolist() for batch in task.batches(epoch)]

    first = drawn(0, 0)
    assert len(first) == 15
    assert drawn(0, 0) == first
    assert all(drawn(*other) != first for other in ((0, 1), (1, 0)))


def _small(vocabulary: int) -> transformers.BertForMaskedLM:
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    return transformers.BertForMaskedLM(config)


# What is read, and in which vocabulary


def test_a_text_stays_on_its_side_and_on_no_other() -> None:
    train, held = split_texts([*LANGUAGE, *LANGUAGE[:9], "", " \n"], 0.2)
    assert sorted([*train, *held]) == sorted(LANGUAGE)
    assert 24 <= len(held) <= 72
    more, held_of_more = split_texts([f"new {text}" for text in LANGUAGE] + LANGUAGE[::-1], 0.2)
    assert set(held) <= set(held_of_more)
    assert set(train) <= set(more)
    loud = [text.upper() + "  " for text in LANGUAGE]
    both = split_texts([*LANGUAGE, *loud], 0.2)
    assert {text.lower() for text in both[0]} == set(train)
    for few in (["red", "blue"], ["red", "blue", "RED"]):
        assert all(split_texts(few, share) for share in (0.01, 0.99))
        assert all(min(map(len, split_texts(few, share))) == 1 for share in (0.001, 0.999))


def test_texts_are_the_columns_that_are_named() -> None:
    items = pd.DataFrame({"title": ["Lamp", ""], "tags": ["warm|led", "cold"]})
    events = pd.DataFrame({"review": ["Bright!", None]})
    assert shop_texts(items, events, ("title", "tags"), ("review",)) == [
        *("Lamp", "", "warm, led", "cold", "Bright!", ""),
    ]
    with pytest.raises(ConfigError, match=r"pretrain.fields: found 'name'; allowed: .*title, tags"):
        shop_texts(items, events, ("name",))
    with pytest.raises(ConfigError, match=r"pretrain.event_fields: found 'title'"):
        shop_texts(items, events, (), ("title",))


def test_a_vocabulary_holds_frequent_pieces_and_chinese_by_characters() -> None:
    texts = ["Chargers for phones", "charger for a phone", "红色手机壳", "蓝色手机充电器"] * 3
    tokenizer = learn_wordpiece(texts, 150, 24)
    tokens = tokenizer.tokenize("Charger 手机壳")
    assert tokens == ["charger", "手", "机", "壳"]
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    ]
    pieces = cut_texts(tokenizer, ["红色 charger"], 24)
    assert pieces.words.tolist() == [-1, 0, 1, 2, -1]  # each character a word
    assert tokenizer.model_max_length == 24


def test_the_same_texts_give_the_same_vocabulary() -> None:
    texts = [f"{text} {word}" for text in LANGUAGE for word in ("camping", "cooking", "climbing")]
    learned = [learn_wordpiece(texts, 120, 24).get_vocab() for _ in range(4)]
    assert all(other == learned[0] for other in learned)


MANY_CHARACTERS = """
from kgrank.encoders.vocabulary import learn_wordpiece
rare = "".join(chr(0x4E00 + number) for number in range(200))
vocabulary = learn_wordpiece(["red lamps, red lamp"] * 9 + [rare], 100, 24).get_vocab()
print(*(f"{number} {piece}" for number, piece in sorted((n, p) for p, n in vocabulary.items())))
"""


def test_more_characters_than_fit_give_every_process_the_same_vocabulary() -> None:
    """Of 200 that are met once those of the lowest code points stay: 50 pieces are characters."""
    said = [
        subprocess.run(
            [sys.executable, "-c", MANY_CHARACTERS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    ]
    assert said[0] == said[1] == said[2]
    pieces = said[0].split()[1::2]
    single = [piece for piece in pieces if len(piece.removeprefix("##")) == 1]
    chinese = [piece for piece in single if piece >= "\u4e00"]
    assert len(single) == 50
    # a d e l m p r s and the comma; within words a d e m p s too
    assert chinese == [chr(0x4E00 + number) for number in range(35)]
    assert {"lamp", "red"} <= set(pieces)


# What is learned


def test_perplexity_falls_and_the_folder_says_so(scratch: Learned) -> None:
    """A brand or a thing is told by the other, so that a masked word leaves few guesses."""
    done = scratch.done
    assert len(done.perplexity) == 5
    assert done.perplexity[done.best_epoch] == min(done.perplexity[1:])
    assert min(done.perplexity) < done.perplexity[0] / 3
    assert (done.texts + done.held_out, done.pieces, done.long, done.unknown) == (
        *(len(LANGUAGE), done.texts, 0, 0.0),
    )
    told = json.loads((scratch.folder / "pretraining.json").read_text("utf-8"))
    assert told["perplexity"] == list(done.perplexity)
    assert told["settings"] == SETTINGS.as_dict()
    assert (scratch.folder / "pretraining.svg").read_text("utf-8").count("<svg") == 1
    assert [path.name for path in scratch.folder.parent.iterdir()] == ["encoder"]  # nothing else
    assert len({path.stat().st_mode for path in scratch.folder.iterdir()}) == 1


def test_an_encoder_of_the_folder_tells_kinds_apart(scratch: Learned) -> None:
    encoder = TextEncoder.load(scratch.folder, device="cpu")
    assert (encoder.dim, encoder.max_tokens) == (64, 24)
    vectors = encoder.encode(["alder", "tent", "birch", "kettle"])
    assert vectors.shape == (4, 64)
    assert np.isfinite(vectors).all()


def test_going_on_begins_with_what_was_learned(scratch: Learned, tmp_path: Path) -> None:
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    start = Path(shutil.copytree(scratch.folder, tmp_path / "start"))
    (start / "1_Pooling").mkdir()
    (start / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (start / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is new enough
    settings = SETTINGS.model_copy(update={"epochs": 1, "rate": 0.001})
    done = pretrain(LANGUAGE, out, settings, start=start, device="cpu")
    before, after = scratch.done, done
    assert after.perplexity[0] == pytest.approx(min(before.perplexity[1:]), rel=1e-4)
    old, new = (TextEncoder.load(folder, device="cpu") for folder in (start, out))
    assert (new.pooling.mode, new.max_tokens) == ("cls", 16)
    assert new.fingerprint != old.fingerprint
    assert np.abs(new.encode(["alder tent"]) - old.encode(["alder tent"])).max() > 1e-3
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (start / name).read_bytes()


def test_an_encoder_without_a_head_gets_one(copied: Path, tmp_path: Path) -> None:
    """As sentence-transformers saves it; the head begins with how frequent each token is."""
    transformers.BertModel.from_pretrained(copied).save_pretrained(copied)
    settings = SETTINGS.model_copy(update={"epochs": 2})
    done = pretrain(LANGUAGE, tmp_path / "out", settings, start=copied, device="cpu")
    assert done.perplexity[0] < done.vocabulary / 2  # as good as guessing by frequency
    assert min(done.perplexity[1:]) < done.perplexity[0] / 2


def test_long_texts_are_read_whole(tmp_path: Path) -> None:
    long = [" ".join(LANGUAGE[start : start + 20]) for start in range(0, 240, 20)]
    settings = SETTINGS.model_copy(update={"epochs": 1})
    done = pretrain(long, tmp_path / "out", settings, start="scratch", device="cpu")
    assert done.long == done.texts
    assert done.pieces > 4 * done.texts


# Whatever happens on the way


def _cut(stop: int) -> Callable[[str, int, int], None]:
    def report(stage: str, done: int, total: int) -> None:
        if stage.startswith("pretraining") and done > stop:
            raise KeyboardInterrupt

    return report


def test_a_training_cut_short_ends_with_the_same_weights_to_the_bit(
    scratch: Learned, tmp_path: Path
) -> None:
    out = tmp_path / "encoder"
    with pytest.raises(KeyboardInterrupt):
        pretrain(LANGUAGE, out, SETTINGS, start="scratch", device="cpu", progress=_cut(40))
    assert [path.name for path in tmp_path.iterdir()] == [".encoder.training"]
    told: list[int] = []
    done = pretrain(
        LANGUAGE,
        out,
        SETTINGS,
        start="scratch",
        device="cpu",
        resume=True,
        progress=lambda stage, done, total: told.append(done),
    )
    assert 1 < min(done for done in told if done > 1) <= 41  # it did not begin anew
    assert done.perplexity == scratch.done.perplexity
    weights = load_file(out / "model.safetensors")
    for name, tensor in load_file(scratch.folder / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: object, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(transformers.BertForMaskedLM, "save_pretrained", full)
    settings = SETTINGS.model_copy(update={"epochs": 1})
    with pytest.raises(OSError, match="No space"):
        pretrain(LANGUAGE[:40], tmp_path / "out", settings, start="scratch", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_perplexity_is_drawn_with_nothing_else_installed(tmp_path: Path) -> None:
    """From 300 over 150 to 0: levels 0, 100, 200 and 300 stand between the heights 300 and 44."""
    path = tmp_path / "drawing.svg"
    draw_epochs(path, [300.0, 150.0, 0.0], "perplexity", "Words <held out>")
    drawing = ElementTree.parse(path).getroot()
    names = {"svg": "http://www.w3.org/2000/svg"}
    line = drawing.find("svg:polyline", names)
    assert line is not None
    assert line.get("points") == "70.0,44.0 325.0,172.0 580.0,300.0"
    texts = [text.text for text in drawing.iterfind("svg:text", names)]
    assert texts == [
        *("Words <held out>", "epochs", "perplexity"),
        *("0", "100", "200", "300"),
        *("0", "1", "2"),
    ]
    assert len(drawing.findall("svg:circle", names)) == 3


@pytest.mark.parametrize("highest", [0.0, 0.0301, 1.0, 1.01, 9.99, 12.0, 20.0, 51.0, 1e5])
def test_a_drawing_has_a_few_levels_that_hold_all(highest: float, tmp_path: Path) -> None:
    path = tmp_path / "drawing.svg"
    draw_epochs(path, [highest] * 40, "perplexity", "title")
    texts = [text.text for text in ElementTree.parse(path).iter() if text.get("text-anchor")]
    levels = [float(str(text)) for text in texts[3:-14]]
    assert 2 <= len(levels) <= 7
    assert levels[-1] >= highest
    assert texts[-14:] == [str(3 * n) for n in range(14)]


# What is refused


def test_what_cannot_be_pretrained_is_told(
    copied: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(kind: type[Exception], match: str, texts: list[str], **options: object) -> None:
        with pytest.raises(kind, match=match):
            pretrain(texts, tmp_path / "out", SETTINGS, device="cpu", **options)
        assert not (tmp_path / "out").exists()

    monkeypatch.setattr(Loop, "run", lambda self: pytest.fail("trained"))  # all of it is said first
    refused(ModelError, f"no text encoder at {tmp_path}/none", LANGUAGE, start=tmp_path / "none")
    refused(ModelError, "without a mask token", LANGUAGE, start=tiny_folder)
    refused(ModelError, "knows no word of the texts to", ["ж" * 5, "ю" * 5], start=copied)
    found = r"items: found 1 text\(s\) that say something, of 3; allowed: two or more"
    refused(DataError, found, ["lamp", "", " lamp "], start="scratch")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    weights = load_file(copied / "model.safetensors")
    small = {n: t[:20] if len(t) == config["vocab_size"] else t for n, t in weights.items()}
    _save(small, copied)
    mismatch = r"found token number \d+ in the tokenizer and 20 rows"
    refused(ModelError, mismatch, LANGUAGE, start=copied)
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    refused(ModelError, r"pytorch_model\.bin.*safetensors", LANGUAGE, start=copied)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(ConfigError, match="taken: found something there already"):
        pretrain(LANGUAGE, tmp_path / "taken", SETTINGS, start="scratch", device="cpu")


def _save(weights: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
