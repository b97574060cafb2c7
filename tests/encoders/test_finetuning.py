"""Fine-tuning: an encoder learns what people chose and said, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file

from kgrank.encoders.adaptive_rank import AdaptiveRanks
from kgrank.encoders.finetuning import Finetuned, FinetuneSettings, finetune
from kgrank.encoders.predicting import Predictor
from kgrank.encoders.pretraining import PretrainSettings, pretrain
from kgrank.encoders.text import TextEncoder, TextSettings
from kgrank.errors import ConfigError, DataError, ModelError
from kgrank.loop import Loop

COLOURS = ["red", "blue", "green", "grey"]
OUTDOORS = "tent kettle lamp saddle rope axe stove boots compass tarp flask map torch hook oar sled"
HOME = "piano spoon glove sofa rug vase mirror clock pillow towel basin shelf tray bowl jug mug"
TITLES = [f"{COLOURS[n % 4]} {thing}" for n, thing in enumerate(f"{OUTDOORS} {HOME}".split())]
REVIEWS = {1.0: "broken again", 2.0: "poor thing", 3.0: "so so", 4.0: "good one", 5.0: "love it"}
KINDS = {"click": ("click",), "purchase": ("purchase",), "rating": ("rating",)}
SETTINGS = FinetuneSettings(
    epochs=8, rate=0.003, warmup=2, patience=8, encoded=8, temperature=0.1, max_tokens=12, power=0.5
)


def shop() -> tuple[pd.DataFrame, pd.DataFrame]:
    """32 products, half for outdoors and half for the home; 60 users each stay with one half.

    Words do not tell the halves apart, and colours are in both. The fifth of six purchases is valid
    and the sixth test. Each is followed by a rating and a review that says it.
    """
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(32)], "title": TITLES})
    rows = []
    for user in range(60):
        for place, item in enumerate(rng.permutation(16)[:6] + 16 * (user % 2)):
            stars = float(rng.integers(1, 6))
            split = ["train"] * 4 + ["valid", "test"]
            kind = ["purchase", "rating"]
            rows += [(f"u{user}", f"i{item}", of, 10.0 * place, split[place], stars) for of in kind]
    events = pd.DataFrame(
        rows, columns=["user_id", "item_id", "event", "timestamp", "split", "value"]
    )
    events["review"] = events["value"].map(REVIEWS)
    return items, events.sort_values("timestamp", kind="stable", ignore_index=True)


ITEMS, EVENTS = shop()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that knows the words, and nothing else. Not to be written to."""
    folder = tmp_path_factory.mktemp("start") / "encoder"
    texts = [*TITLES, *REVIEWS.values()] * 2
    settings = PretrainSettings(
        layers=1, width=64, vocabulary=200, max_tokens=16, epochs=1, held_out=0.1
    )
    pretrain(texts, folder, settings, start="scratch", device="cpu")
    return folder


def tuned(
    start: Path, out: Path, tasks: dict[str, float] | None = None, **changes: Any
) -> Finetuned:
    names = ("translate", "resume", "progress")
    options = {name: changes.pop(name) for name in names if name in changes}
    settings = SETTINGS.model_copy(update=changes)
    text = TextSettings(shrinkage=1.0)  # 32 whitened texts would all be equally far apart
    return finetune(
        ITEMS,
        EVENTS,
        out,
        settings,
        tasks=tasks or {"next": 1.0},
        kinds=KINDS,
        text=text,
        start=start,
        device="cpu",
        **options,
    )


def apart(encoder: TextEncoder) -> float:
    """How much nearer products are to those of their half than to the others."""
    vectors = encoder.encode(TITLES)
    vectors = vectors - vectors.mean(axis=0)
    cosines = vectors @ vectors.T / np.linalg.norm(vectors, axis=1) ** 2
    half = np.arange(32) // 16
    same = half[:, None] == half
    return float(cosines[same & ~np.eye(32, dtype=bool)].mean() - cosines[~same].mean())


# What comes next


@pytest.mark.parametrize("method", ["full", "lora", "adalora", "frozen"])
def test_an_encoder_learns_what_goes_together(method: str, start: Path, tmp_path: Path) -> None:
    """A tent is nearer to the things of its half afterwards than to those of the other."""
    rate = {"full": 0.003, "lora": 0.01, "adalora": 0.03, "frozen": 0.05}[method]
    done = tuned(start, tmp_path / "out", method=method, rate=rate, rows=64)
    assert done.after["next"]["ndcg@10"] > done.before["next"]["ndcg@10"] + 0.05
    assert done.score[done.best_epoch] == max(done.score[1:])
    encoder = TextEncoder.load(tmp_path / "out", device="cpu")
    assert apart(encoder) > apart(TextEncoder.load(start, device="cpu")) + 0.05
    assert encoder.fingerprint != TextEncoder.load(start, device="cpu").fingerprint
    told = json.loads((tmp_path / "out" / "finetuning.json").read_text("utf-8"))
    assert told["after"] == done.after
    assert told["settings"]["method"] == method
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_low_rank_additions_are_merged_into_the_weights(
    method: str, start: Path, tmp_path: Path
) -> None:
    done = tuned(start, tmp_path / "out", method=method, rank=2, epochs=1)
    names = {f"bert.{name}" for name in load_file(tmp_path / "out" / "model.safetensors")}
    assert {n for n in names if "pooler" not in n} <= set(load_file(start / "model.safetensors"))
    encoder = TextEncoder.load(start, device="cpu")
    assert done.learned < sum(p.numel() for p in encoder.model.parameters())


def test_ranks_are_shared_out_where_they_matter(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of six layers begins with rank 3 and has 2 on average in the end; the merged weights
    differ from those before by a matrix of the rank each was left with."""
    left: list[int] = []
    whole = AdaptiveRanks.stepped

    def stepped(ranks: AdaptiveRanks, done: int, total: int) -> None:
        whole(ranks, done, total)
        parts = dict(ranks.adapted.model.named_parameters())
        left[:] = [int((part != 0).sum()) for name, part in parts.items() if "lora_E" in name]

    monkeypatch.setattr(AdaptiveRanks, "stepped", stepped)
    tuned(start, tmp_path / "out", method="adalora", rank=2, rate=0.03, epochs=6)
    assert len(left) == 6
    assert sum(left) == 12
    monkeypatch.undo()
    before, after = (
        dict(TextEncoder.load(folder, device="cpu").model.named_parameters())
        for folder in (start, tmp_path / "out")
    )
    named = [name for name in before if "pooler" not in name]  # which the folder lacks
    changed = [name for name in named if not torch.equal(before[name], after[name])]
    assert 0 < len(changed) <= 6
    assert all("encoder.layer" in name and name.endswith("weight") for name in changed)
    ranks = [int(torch.linalg.matrix_rank(after[n] - before[n], rtol=1e-3)) for n in changed]
    assert max(ranks) <= 3


def test_a_projection_is_a_layer_of_the_folder(start: Path, tmp_path: Path) -> None:
    """normalised(W · mean of the token vectors + b); training goes on from it, too."""
    tuned(start, tmp_path / "a", method="frozen", epochs=1)
    plain, projected = (TextEncoder.load(f, device="cpu") for f in (start, tmp_path / "a"))
    with torch.no_grad():
        pooled = plain.pooled(plain.tokenise(["red tent", "tent"])[0])
    weights = load_file(tmp_path / "a" / "2_Dense" / "model.safetensors")
    expected = (pooled @ weights["linear.weight"].T + weights["linear.bias"]).numpy()
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert_allclose(projected.encode(["red tent", "tent"]), expected, atol=1e-5)
    assert projected.dim == len(weights["linear.bias"]) == 31  # what 32 texts span
    tuned(tmp_path / "a", tmp_path / "b", method="full", epochs=1)
    assert TextEncoder.load(tmp_path / "b", device="cpu").dim == 31
    (tmp_path / "a" / "2_Dense" / "config.json").write_text(
        '{"in_features": 64, "out_features": 31, "activation_function": "Tanh"}'
    )
    with pytest.raises(ModelError, match="one linear projection"):
        TextEncoder.load(tmp_path / "a", device="cpu")
    (tmp_path / "b" / "2_Dense" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="found a projection that cannot be read"):
        TextEncoder.load(tmp_path / "b", device="cpu")


# Several tasks, and what heads say


@dataclass(frozen=True)
class Learned:
    folder: Path
    done: Finetuned


ALL = {"next": 1.0, "purchase": 1.0, "rating": 1.0, "sentiment": 0.5}


@pytest.fixture(scope="module")
def learned(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """An encoder fine-tuned for everything. Not to be written to."""
    folder = tmp_path_factory.mktemp("all") / "out"
    return Learned(folder, tuned(start, folder, ALL, event_field="review"))


def test_one_encoder_learns_several_tasks(learned: Learned) -> None:
    after, before = learned.done.after, learned.done.before
    assert after["next"]["ndcg@10"] > before["next"]["ndcg@10"] + 0.05
    assert after["purchase"]["auc"] > before["purchase"]["auc"] + 0.05
    assert after["rating"]["rmse"] < 0.5 * after["rating"]["rmse of the mean"]
    assert after["sentiment"]["accuracy"] > 0.9
    scores = [
        *(after["next"]["ndcg@10"], after["purchase"]["auc"]),
        *(1 - after["rating"]["rmse"] / 4, 0.5 * after["sentiment"]["macro_f1"]),
    ]
    assert max(learned.done.score[1:]) == pytest.approx(sum(scores) / 3.5)


def test_heads_say_again_what_they_learned(learned: Learned) -> None:
    predictor = Predictor.load(learned.folder, device="cpu")
    stars = predictor.ratings([*REVIEWS.values(), ""])
    assert_allclose(stars[:5], list(REVIEWS), atol=1.2)
    classes = predictor.sentiments(list(REVIEWS.values())).argmax(axis=1)
    assert [predictor.classes[n] for n in classes] == ["negative"] * 2 + ["neutral"] + [
        "positive"
    ] * 2
    outdoors = [TITLES[n] for n in (0, 1, 2)]
    chance = predictor.pairs("purchase", [outdoors] * 32, TITLES)
    assert chance[3:16].mean() > chance[16:].mean() + 0.1
    for task in ("conversion", "rating"):
        with pytest.raises(ModelError, match=f"task: found '{task}'; allowed: click or purchase"):
            predictor.pairs(task, [["lamp"]], ["rope"])
    with pytest.raises(ModelError, match=r"no head for 'click'; allowed: .*purchase, rating"):
        predictor.pairs("click", [outdoors], TITLES[:1])
    assert TextEncoder.load(learned.folder, device="cpu").dim == 64


def test_classes_that_train_lacks_are_not_judged_and_are_told(start: Path, tmp_path: Path) -> None:
    """Of the moods alas, bad and good the first is on valid alone."""
    events = EVENTS.assign(mood=np.where(EVENTS["value"] > 2, "good", "bad"))
    on_valid = (events["split"] == "valid") & (events["event"] == "rating")
    places = np.flatnonzero(on_valid)
    events.loc[places[:7], "mood"] = "alas"
    settings = SETTINGS.model_copy(update={"epochs": 1, "event_field": "review", "label": "mood"})
    out, words = tmp_path / "out", {"tasks": {"sentiment": 1.0}, "start": start, "device": "cpu"}
    done = finetune(ITEMS, events, out, settings, **words)
    others = int((events.loc[events["split"] == "valid", "mood"] == "alas").sum())
    assert done.unjudged == {"alas": others}
    assert Predictor.load(out).classes == ("bad", "good")
    left = events[~((events["split"] == "valid") & (events["mood"] == "alas"))]
    same = finetune(ITEMS, left, tmp_path / "same", settings, **words)
    assert (same.unjudged, same.after) == ({}, done.after)
    events.loc[events["split"] == "valid", "mood"] = "new"
    found = (
        "events, column 'mood': found new on valid and bad, good in train; allowed: classes on "
        "valid that train holds too"
    )
    with pytest.raises(DataError, match=found):
        finetune(ITEMS, events, tmp_path / "none", settings, **words)


# Whatever happens on the way


def _cut(stop: int) -> Callable[[str, int, int], None]:
    def report(stage: str, done: int, total: int) -> None:
        if stage.startswith("fine-tuning") and done > stop:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize("method", ["full", "lora", "adalora", "prompt", "frozen"])
def test_a_training_cut_short_ends_with_the_same_weights_to_the_bit(
    method: str, start: Path, tmp_path: Path
) -> None:
    tasks = {"next": 1.0, "rating": 0.5}
    changes: dict[str, Any] = {"method": method, "epochs": 3, "dropped": 0.2, "rows": 40}
    changes["rank"] = 4
    whole = tuned(start, tmp_path / "whole", tasks, **changes)
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        tuned(start, out, tasks, progress=_cut(8), **changes)
    assert (tmp_path / ".cut.training").is_dir()
    told: list[int] = []
    done = tuned(
        start, out, tasks, resume=True, progress=lambda stage, n, of: told.append(n), **changes
    )
    assert 1 < min(n for n in told if n > 1) <= 9  # it did not begin anew
    assert (done.score, done.after) == (whole.score, whole.after)
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        again = load_file(out / path.relative_to(tmp_path / "whole"))
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, again[name]), name


def test_texts_in_other_words_are_learned_from(start: Path, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def translate(texts: list[str]) -> list[str]:
        asked.append(texts)
        return [" ".join(reversed(text.split())) for text in texts]

    plain = tuned(start, tmp_path / "a", epochs=1)
    other = tuned(start, tmp_path / "b", epochs=1, translate=translate, masked=0.3, shuffled=0.5)
    assert asked == [TITLES]
    assert other.score[1] != plain.score[1]
    with pytest.raises(ConfigError, match="translate: found 1 texts for 32"):
        tuned(start, tmp_path / "c", translate=lambda texts: texts[:1])
    with pytest.raises(ConfigError, match="translate: found NoneType; allowed: a list of texts"):
        tuned(start, tmp_path / "c", translate=lambda texts: None)
    with pytest.raises(ConfigError, match="translate: found NoneType among its texts"):
        tuned(start, tmp_path / "c", translate=lambda texts: [None, *texts[1:]])
    with pytest.raises(ConfigError, match="found 'frozen' and texts that are to be changed"):
        tuned(start, tmp_path / "c", method="frozen", masked=0.1)


# What is refused


def test_what_cannot_be_fine_tuned_is_told(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(
        kind: type[Exception],
        match: str,
        tasks: dict[str, float],
        events: pd.DataFrame = EVENTS,
        folder: Path = start,
        **changes: Any,
    ) -> None:
        settings = SETTINGS.model_copy(update=changes)
        with pytest.raises(kind, match=match):
            finetune(
                ITEMS,
                events,
                tmp_path / "out",
                settings,
                tasks=tasks,
                kinds=KINDS,
                start=folder,
                device="cpu",
            )
        assert not (tmp_path / "out").exists()

    monkeypatch.setattr(Loop, "run", lambda self: pytest.fail("trained"))  # all of it is said first
    refused(ConfigError, "task: found 'nxt'; allowed: next, click", {"nxt": 1.0})
    refused(ConfigError, "task next: found the weight 0; allowed: above 0", {"next": 0.0})
    refused(ConfigError, "task: found none", {})
    none = r"none of train for the task click \(kinds there are: purchase, rating\)"
    refused(DataError, none, {"click": 1.0})
    unsplit = "events, column 'split': found none; allowed: train, valid or test"
    refused(DataError, unsplit, {"next": 1.0}, EVENTS.drop(columns="split"))
    train_only = EVENTS[EVENTS["split"] == "train"]
    refused(DataError, "none of valid for the task next", {"next": 1.0}, train_only)
    refused(ConfigError, "event_field: found 'words'", {"rating": 1.0}, event_field="words")
    refused(ConfigError, "event_field: found none for the task sentiment", {"sentiment": 1.0})
    alike = pd.DataFrame(  # all buy the same three, of which valid holds the last
        [(f"u{n // 3}", f"i{n % 3}", 10.0 * (n % 3)) for n in range(30)],
        columns=["user_id", "item_id", "timestamp"],
    ).assign(event="purchase", split=["train", "train", "valid"] * 10)
    refused(DataError, "no product to draw on valid that the user", {"purchase": 1.0}, alike)
    outside = r"column 'value' \(and \d+ more rows\): found the rating 5 \(of .*\); allowed: 1 to 4"
    refused(DataError, outside, {"rating": 1.0}, scale=(1.0, 4.0))
    same = EVENTS.assign(value=4.0)
    refused(DataError, "found 4 alone in train; allowed: two", {"rating": 1.0}, same)
    alone = "found positive alone in train"
    refused(DataError, alone, {"sentiment": 1.0}, same, event_field="review")
    refused(ModelError, "no text encoder at nowhere", {"next": 1.0}, folder=Path("nowhere"))
    copied = Path(shutil.copytree(start, tmp_path / "copied"))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    weights = load_file(copied / "model.safetensors")
    small = {
        name: (tensor[:20] if len(tensor) == config["vocab_size"] else tensor).contiguous()
        for name, tensor in weights.items()
    }
    save_file(small, copied / "model.safetensors", {"format": "pt"})
    mismatch = r"found token number \d+ in the tokenizer and 20 rows"
    refused(ModelError, mismatch, {"next": 1.0}, folder=copied)
    (copied / "tokenizer.json").write_text("{}")
    refused(ModelError, "cannot load the text encoder", {"next": 1.0}, folder=copied)
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    refused(ModelError, r"pytorch_model\.bin.*safetensors", {"next": 1.0}, folder=copied)
    strange = ITEMS.assign(title=[f"ж{n}" for n in range(32)])
    with pytest.raises(ModelError, match="knows no word of the texts"):
        finetune(
            strange,
            EVENTS,
            tmp_path / "out",
            SETTINGS,
            tasks={"next": 1.0},
            start=start,
            device="cpu",
        )
    with pytest.raises(ModelError, match=r"found no finetuning\.json"):
        Predictor.load(start)
    shutil.copy(start / "model.safetensors", copied / "heads.safetensors")
    (copied / "finetuning.json").write_text('{"a": 1}')
    with pytest.raises(ModelError, match=r"finetuning\.json: found nothing of settings, tasks"):
        Predictor.load(copied)
