"""One bundle of the sample shop and one of a hand-made shop, fitted once for all tests here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kgrank.config import Config
from kgrank.data import sample_shop
from kgrank.fusion.weights import FusionWeights
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import train

START = 1_700_000_000  # seconds UTC
DAY = 86_400

# user → day:item of train | valid | test. Two tastes, a and b. `v1` is bought from valid on and
# `c1` in test only, `u-new` has test rows only; u-ada's first two test rows are at the same time,
# and her a4 was met in valid only before she buys it again in test.
EVENTS = {
    "u-ada": "0:a1 3:a2 6:a3 | 30:a4 | 40:b1 40:a1 43:a4 44:c1",
    "u-ben": "1:a2 2:a1 9:a4 | 31:a3 | 41:a5 42:a2",
    "u-cai": "2:a3 8:a4 9:a5 | 32:a1 | 42:v1 45:c1",
    "u-dot": "4:a1 7:a5 9:a1 | 33:a2 35:a1 | 46:a3",
    "u-eva": "0:b1 3:b2 6:b3 | 30:b4 34:v1 | 41:b5 42:b4 47:b1",
    "u-fay": "1:b2 2:b1 9:b4 | 31:b3 | 41:a1",
    "u-gus": "2:b3 8:b4 9:b5 | 32:b1 | 44:b3 44.5:b2",
    "u-hal": "4:b1 7:b5 8:b2 | 33:b2 |",
    "u-ivy": "5:a2 |  |",
    "u-new": "| | 40:a1 44:b2",
}
BRANDS = {"a": "Alder", "b": "Birch", "c": "Alder", "v": "Birch"}
WORDS = {"a": "alpine tent", "b": "baking tin", "c": "alpine stove", "v": "baking bowl"}
ITEMS = ("a1", "a2", "a3", "a4", "a5", "b1", "b2", "b3", "b4", "b5", "c1", "v1")


def _config() -> Config:
    return Config.from_dict({"text": {"model": "none"}}, "the tests")


@pytest.fixture(scope="session")
def truth() -> dict[str, Any]:
    """What was planted in the sample shop; see kgrank/data/generate.py."""
    planted: dict[str, Any] = json.loads((sample_shop() / "truth.json").read_text("utf-8"))
    return planted


@pytest.fixture(scope="session")
def shop_tables() -> Tables:
    """The sample shop."""
    return read_tables(sample_shop())


@pytest.fixture(scope="session")
def shop_bundle(shop_tables: Tables) -> Bundle:
    """The sample shop fitted without a text encoder."""
    return train(shop_tables, _config())


@pytest.fixture(scope="session")
def shop_models(shop_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with that bundle; not to be written into."""
    models = tmp_path_factory.mktemp("shop") / "models"
    shop_bundle.save(models)
    return models


@pytest.fixture(scope="session")
def recommender(shop_bundle: Bundle) -> Recommender:
    """That bundle put to work."""
    return Recommender(shop_bundle, device="cpu")


@pytest.fixture(scope="session")
def even(shop_bundle: Bundle) -> Recommender:
    """The sample shop's channels, all weighed alike: each, the graph too, has a part everywhere."""
    model = shop_bundle.model
    n = len(model.channels)
    weights = replace(FusionWeights.equal(n), slope=np.full(n, 0.5, np.float32), trend=0.25)
    heads = replace(model, heads={"new": weights, "all": replace(weights, trend=0.75)})
    return Recommender(replace(shop_bundle, model=heads), device="cpu")


@pytest.fixture(scope="session")
def tiny_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the hand-made shop: ten users, twelve items, see EVENTS."""
    folder = tmp_path_factory.mktemp("tiny") / "shop"
    folder.mkdir()
    rows = [
        (user, row.split(":")[1], "purchase", START + round(float(row.split(":")[0]) * DAY), split)
        for user, text in EVENTS.items()
        for split, part in zip(("train", "valid", "test"), text.split("|"), strict=True)
        for row in part.split()
    ]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "event", "timestamp", "split"])
    events.to_csv(folder / "events.csv", index=False)
    pd.DataFrame(
        {
            "item_id": ITEMS,
            "title": [f"{WORDS[item[0]]} number {item[1]}" for item in ITEMS],
            "brand": [BRANDS[item[0]] for item in ITEMS],
        }
    ).to_csv(folder / "items.csv", index=False)
    pd.DataFrame(
        {
            "head": [f"a{n}" for n in (1, 2, 3)] + ["b1", "b2"],
            "relation": "made_of",
            "tail": ["steel", "steel", "wool", "wool", "steel"],
        }
    ).to_csv(folder / "triples.csv", index=False)
    names = {"entity_id": ["steel", "wool"], "name": ["Steel", "Wool"], "type": "material"}
    pd.DataFrame(names).to_csv(folder / "entities.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def tiny_tables(tiny_shop: Path) -> Tables:
    """The hand-made shop."""
    return read_tables(tiny_shop)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_tables: Tables) -> Bundle:
    """The hand-made shop fitted."""
    return train(tiny_tables, _config())
