"""Small worlds with known answers, as events tables: what comes next is known by construction."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from kgrank.kg.bolt import Address, Server

sys.path.append(str(Path(__file__).parent))  # for what is no test: bolt_server.py
import bolt_server

DAY = 86_400.0  # seconds


def _events(items: npt.NDArray[np.int64], n_valid: int) -> pd.DataFrame:
    """One event a day: row u of `items` is what user u chose, the last `n_valid` of it on valid."""
    n_users, length = items.shape
    days = np.tile(np.arange(length), n_users)
    return pd.DataFrame(
        {
            "user_id": [f"u{user}" for user in np.repeat(np.arange(n_users), length)],
            "item_id": [f"i{item}" for item in items.ravel()],
            "event": "purchase",
            "timestamp": 1.7e9 + DAY * days,
            "split": np.where(days < length - n_valid, "train", "valid"),
        }
    )


@pytest.fixture
def even_events() -> pd.DataFrame:
    """Even users like even items: 60 users choose 6 of the 10 items of their side, 2 on valid."""
    rng = np.random.default_rng(0)
    return _events(np.array([2 * rng.permutation(10)[:6] + user % 2 for user in range(60)]), 2)


@pytest.fixture
def step_events() -> pd.DataFrame:
    """After n comes n + 1: 120 users take four such steps round a ring of 20 items.

    The steps of a user start at different places; the last event is on valid. Who met n met n + 1
    as often as n - 1: order alone tells.
    """
    rng = np.random.default_rng(0)
    starts = np.array([2 * rng.permutation(10)[:4] + user % 2 for user in range(120)])
    return _events(np.stack([starts, starts + 1], axis=2).reshape(120, 8) % 20, 1)


@pytest.fixture
def repeat_events() -> pd.DataFrame:
    """60 users buy four different items of 20 on train, and the first two of them again on valid.

    Nobody repeats on train. Every fifth user buys something new on valid first.
    """
    rng = np.random.default_rng(0)
    own = np.array([rng.permutation(20)[:5] for _ in range(60)])
    items = own[:, [0, 1, 2, 3, 0, 1]]
    items[::5, 4] = own[::5, 4]
    return _events(items, 2)


@pytest.fixture(scope="session")
def vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved ViT of 16 numbers that looks at 24 × 24 pixels. Not to be written to."""
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=24,
        patch_size=8,
        initializer_range=0.5,  # wide enough that different pictures get different vectors
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bolt_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that speaks Bolt, its password in the environment: a real one, started here.

    KGRANK_NEO4J_URI (`neo4j://user@host/database`, with KGRANK_NEO4J_PASSWORD) names another, such
    as a Neo4j 5, whose database the tests empty again and again.
    """
    if given := os.environ.get("KGRANK_NEO4J_URI"):
        yield given
        return
    if not bolt_server.installed():
        pytest.skip("arcadedb-embedded, the Bolt server of the tests, has no wheel here")
    server = bolt_server.BoltServer(tmp_path_factory.mktemp("bolt"))
    server.start()
    before = os.environ.get("KGRANK_NEO4J_PASSWORD")
    os.environ["KGRANK_NEO4J_PASSWORD"] = bolt_server.PASSWORD
    try:
        yield server.uri
    finally:
        os.environ.pop("KGRANK_NEO4J_PASSWORD")
        if before is not None:
            os.environ["KGRANK_NEO4J_PASSWORD"] = before
        server.stop()


@pytest.fixture
def bolt(bolt_uri: str) -> Iterator[Server]:
    """A connection to that server, its database empty."""
    with Server(Address.parse(bolt_uri), retry_seconds=5) as server:
        server.write(lambda tx: tx.run("MATCH (n) DETACH DELETE n").consume())
        yield server
