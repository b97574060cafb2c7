"""What does a GPU do for training, and do lower precision and torch.compile pay there?

    python benchmarks/gpu.py FOLDER [--sets ml1m-kg amazon-beauty] [--device cuda]

FOLDER holds one folder of tables for each set, as for `accuracy.py`. The learned channel is trained
with the default settings from item–item weights of one fixed penalty: as the package does it
(float32), again with the same seed, with products of matrices in TF32, and with what brings text
and graph to the items compiled. Prints seconds of the training with its judging on valid, the best
NDCG@10 there, and whether the second training gave the same vectors to the bit.

Then come steps of masked language modelling by a BERT of MiniLM's size that begins with random
numbers, on random tokens of random widths: in float32, as the package does it on a GPU (bfloat16
by autocast, attention without cuDNN), and with cuDNN's attention.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from kgrank.config import Config
from kgrank.devices import half_precision
from kgrank.fusion.channels import DenseFeatures
from kgrank.fusion.evidence import Evidence
from kgrank.fusion.item_item import Ridge
from kgrank.fusion.learned import Learner, Start
from kgrank.fusion.training import new_first, protocol_of, valid_queries
from kgrank.kg.gnn import LightEncoder
from kgrank.kg.tables import read_tables
from kgrank.loop import Trained
from kgrank.serving.training import prepare

CACHE = Path.home() / ".cache" / "kgrank" / "vectors"
RIDGE = Ridge(100.0, 0.2, 3.0, 3.0)
WIDTHS, WARM, STEPS, TOKENS, ASKED = (8, 64), 20, 60, 30_000, 6


def channel(folder: Path, device: str) -> bool:
    """Whether two trainings gave the same vectors to the bit."""
    config = Config.from_dict({"fit": {"refit": False}}, "gpu")
    tables = read_tables(folder).without_test_items(config.split)
    prepared = prepare(tables, config, CACHE)
    train = Evidence(prepared.histories.where(prepared.splits == 0), prepared.features)
    queries = valid_queries(prepared.histories, prepared.splits, config.fit)
    asked = new_first(queries)
    start = Start(train.linear_moments().weights(RIDGE, neighbors=100), 0.8)
    ordered = protocol_of(prepared.histories, prepared.splits, config.fit) == "later"

    def trained(epochs: int) -> tuple[DenseFeatures, Trained]:
        settings = config.learn.model_copy(update={"epochs": epochs})
        learner = Learner(prepared.graph.to_pyg(), config.kg, settings, device=device)
        vectors, _, done = learner.learn(train, start, ordered=ordered, queries=asked)
        return vectors, done

    def told(label: str) -> DenseFeatures:
        vectors, done = trained(config.learn.epochs)
        cells = [folder.name, label, f"{done.seconds:.1f}", f"{max(done.valid):.5f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
        return vectors

    trained(1)  # kernels are loaded
    first = told("float32")
    again = told("float32 again")
    torch.set_float32_matmul_precision("high")
    told("TF32")
    torch.set_float32_matmul_precision("highest")
    plain = LightEncoder.shared
    LightEncoder.shared = torch.compile(plain)  # type: ignore[method-assign]
    told("compiled, with compiling")
    told("compiled")
    LightEncoder.shared = plain  # type: ignore[method-assign]
    return torch.equal(first.values, again.values)


def masked_words(
    label: str, precision: Callable[[], AbstractContextManager[object]], batch: int, device: str
) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1_536}
    model = BertForMaskedLM(BertConfig(num_hidden_layers=6, **size)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    rng = np.random.default_rng(0)
    for step in range(WARM + STEPS):
        if step == WARM:
            begun = time.perf_counter()
        width = int(rng.integers(*WIDTHS))
        tokens = torch.from_numpy(rng.integers(0, TOKENS, (batch, width))).to(device)
        mask = torch.ones_like(tokens)
        mask[:, -1] = 0
        n_asked = width // ASKED + 1
        with precision():
            hidden = model.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
            scores = model.cls(hidden[:, :n_asked])
        wanted = tokens[:, :n_asked].flatten()
        loss = nn.functional.cross_entropy(scores.flatten(0, 1).float(), wanted)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.stack((loss.detach(), norm)).tolist()  # waits for the device
    rate = STEPS / (time.perf_counter() - begun)
    print(f"| masked words, {batch} a step | {label} | {rate:.1f} steps/s | |", flush=True)


def cudnn() -> torch.autocast:
    return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", default=["ml1m-kg", "amazon-beauty"])
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| what | how | s | valid N@10 |\n|---|---|---|---|")
    same = {name: channel(given.folder / name, given.device) for name in given.sets}
    for batch in (64, 512):
        masked_words("float32", nullcontext, batch, given.device)
        masked_words("bfloat16", lambda: half_precision(given.device), batch, given.device)
        masked_words("bfloat16, cuDNN's attention", cudnn, batch, given.device)
    for name, of_set in same.items():
        print(f"\n{name}: the second training gave {'the same' if of_set else 'other'} vectors")


if __name__ == "__main__":
    main()
