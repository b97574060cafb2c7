"""Run by peers.py in RecBole's own environment: fit one model and write its lists.

    python peers_recbole.py FOLDER MODEL

Reads events/events.{train,valid}.inter and queries.parquet in FOLDER; writes MODEL.parquet
(`query`, `item_id`, `rank`) and MODEL.json (`fit_seconds`, with RecBole's own rounds on valid).
Settings are RecBole's defaults for the model. Test rows are not there: RecBole is given valid in
their place.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import ModelType, get_model, get_trainer, init_seed

N, BLOCK = 20, 500


def config(folder, model, sequential):
    settings = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "benchmark_filename": ["train", "valid", "valid"],
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "load_col": {"inter": ["user_id", "item_id"]},
    }
    if sequential:
        settings["load_col"] = {"inter": ["user_id", "item_id_list", "item_id"]}
        settings["alias_of_item_id"] = ["item_id_list"]
        settings["train_neg_sample_args"] = None  # its loss is over all items
    return Config(model=model, dataset="events", config_dict=settings)


def main():
    folder, name = Path(sys.argv[1]), sys.argv[2]
    sequential = name == "SASRec"
    torch.set_num_threads(1)
    settings = config(folder, name, sequential)
    init_seed(settings["seed"], settings["reproducibility"])
    dataset = create_dataset(settings)
    train, valid, _ = data_preparation(settings, dataset)
    start = time.perf_counter()
    init_seed(settings["seed"], settings["reproducibility"])
    model = get_model(name)(settings, train._dataset)
    trainer = get_trainer(settings["MODEL_TYPE"], name)(settings, model)
    trainer.fit(train, valid, saved=True, show_progress=False)
    seconds = time.perf_counter() - start
    if settings["MODEL_TYPE"] != ModelType.TRADITIONAL:  # the best epoch on valid
        best = torch.load(trainer.saved_model_file, weights_only=False)
        model.load_state_dict(best["state_dict"])
        model.load_other_parameter(best.get("other_parameter"))
    model.eval()
    queries = pd.read_parquet(folder / "queries.parquet")
    lists = [
        ranked(model, dataset, queries.iloc[first : first + BLOCK], sequential)
        for first in range(0, len(queries), BLOCK)
    ]
    pd.concat(lists, ignore_index=True).to_parquet(folder / f"{name}.parquet", index=False)
    (folder / f"{name}.json").write_text(json.dumps({"fit_seconds": seconds}))


@torch.no_grad()
def ranked(model, dataset, queries, sequential):
    """Lists of 20 without what is excluded; users and items that are not in train or valid have
    none and are in none."""
    users, items = (dataset.field2token_id[field] for field in ("user_id", "item_id"))
    known = [[items[i] for i in history if i in items] for history in queries["history"]]
    able = np.array([bool(h) for h in known] if sequential else queries["user_id"].isin(users))
    queries = queries[able]
    if sequential:
        histories = [history for history, one in zip(known, able, strict=True) if one]
        window = dataset.max_item_list_len
        of = torch.zeros(len(histories), window, dtype=torch.int64)
        for row, history in enumerate(histories):
            of[row, : len(history[-window:])] = torch.tensor(history[-window:])
        lengths = torch.tensor([min(len(history), window) for history in histories])
        asked = Interaction({"item_id_list": of, dataset.item_list_length_field: lengths})
    else:
        asked = Interaction({"user_id": torch.tensor([users[u] for u in queries["user_id"]])})
    scores = model.full_sort_predict(asked).view(len(queries), dataset.item_num).float()
    scores[:, 0] = -torch.inf  # padding
    for row, hidden in enumerate(queries["excluded"]):
        scores[row, [items[i] for i in hidden if i in items]] = -torch.inf
    values, top = scores.topk(N, dim=1)
    rows, places = np.nonzero(torch.isfinite(values).numpy())
    listed = dataset.field2id_token["item_id"][top.numpy()[rows, places]]
    numbers = queries.index.to_numpy()[rows]
    return pd.DataFrame({"query": numbers, "item_id": listed, "rank": places + 1})


if __name__ == "__main__":
    main()
