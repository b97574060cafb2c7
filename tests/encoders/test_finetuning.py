"""Fine-tuning: an encoder learns what people chose and said, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from kgrank.encoders.examples import Catalogue, moments, ratings, sentiments
from kgrank.encoders.finetuning import Finetuned, FinetuneSettings, finetune
from kgrank.encoders.pretraining import PretrainSettings, pretrain
from kgrank.encoders.text import TextEncoder, TextSettings
from kgrank.errors import ConfigError, DataError, ModelError
from kgrank.loop import Loop

COLOURS = ["red", "blue", "green", "grey"]
OUTDOORS = "tent kettle lamp saddle rope axe stove boots compass tarp flask map torch hook oar sled"
HOME = "piano spoon glove sofa rug vase mirror clock pillow towel basin shelf tray bowl jug mug"
TITLES = [f"{COLOURS[n % 4]} {thing}" for n, thing in enumerate(f"{OUTDOORS} {HOME}".split())]
REVIEWS = {1.0: "broken again", 2.0: "poor thing", 3.0: "so so", 4.0: "good one", 5.0: "love it"}
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


@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
def test_an_encoder_learns_what_goes_together(method: str, start: Path, tmp_path: Path) -> None:
    """A tent is nearer to the things of its half afterwards than to those of the other."""
    rate = {"full": 0.003, "lora": 0.01, "frozen": 0.05}[method]
    done = tuned(start, tmp_path / "out", method=method, rate=rate, rows=64)
    assert done.after["next"]["ndcg@10"] > done.before["next"]["ndcg@10"] + 0.05
    assert done.score[done.best_epoch] == max(done.score[1:])
    encoder = TextEncoder.load(tmp_path / "out", device="cpu")
    assert apart(encoder) > apart(TextEncoder.load(start, device="cpu")) + 0.1
    assert encoder.fingerprint != TextEncoder.load(start, device="cpu").fingerprint
    told = json.loads((tmp_path / "out" / "finetuning.json").read_text("utf-8"))
    assert told["after"] == done.after
    assert told["settings"]["method"] == method
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
