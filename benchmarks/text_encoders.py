"""What does a text encoder that learned from the shop's events add to the fused ranking?

    python benchmarks/text_encoders.py FOLDER WORK [--sets amazon-industrial]
    python benchmarks/text_encoders.py FOLDER WORK --encoders minilm frozen --no-learned \
        --set finetune.temperature=0.1 --set text.shrinkage=0.5

FOLDER holds one folder of tables for each set, as for `accuracy.py`; WORK is where encoders are
made, and taken from if they are there already: remove one to make it anew. Channels are fitted on
train alone; encoders learn from train events, and stop by valid. Prints one Markdown row an
encoder: NDCG@10 of the `embedding` channel alone and of the fused list on valid (cross-fitted: it
is what choices are to be made by), then the lists of test, then seconds of the processor, which
hang little on what runs beside. Settings hold for all encoders of a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from kgrank.config import Config, read_config
from kgrank.encoders.corpus import shop_texts
from kgrank.encoders.finetuning import finetune
from kgrank.encoders.pretraining import pretrain
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.training import train

SETS = ("amazon-industrial", "amazon-beauty")
ENCODERS = ("tfidf", "minilm", "mlm", "full", "lora", "prompt", "frozen")
METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20")


def encoder(name: str, tables: Tables, config: Config, work: Path) -> tuple[str, dict[str, Any]]:
    """What text.model takes, and how it was made."""
    if name in ("tfidf", "minilm"):
        return ("none" if name == "tfidf" else name), {}
    folder = work / name
    about = folder.with_suffix(".json")
    if not about.exists():
        tables = tables.with_split(config.split)
        start, device = time.process_time(), config.text.device
        if name == "mlm":
            seen = tables.events[tables.events["split"] != "test"]
            settings = config.pretrain
            texts = shop_texts(tables.items, seen, settings.fields, settings.event_fields)
            learned = pretrain(texts, folder, settings, device=device, progress=told(name))
            score = list(learned.perplexity)
        else:
            settings = config.finetune.model_copy(update={"method": name})
            done = finetune(
                tables.items,
                tables.events,
                folder,
                settings,
                tasks={"next": 1.0},
                text=config.text,
                device=device,
                progress=told(name),
            )
            score = list(done.score)
        made = {"seconds": time.process_time() - start, "score": score}
        about.write_text(json.dumps(made), "utf-8")
    return str(folder), json.loads(about.read_text("utf-8"))


def told(name: str) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        print(f"\r{name}  {stage} {done}/{total}\033[K", end="", file=sys.stderr)

    return progress


def run(folder: Path, name: str, tables: Tables, sets: list[str], given: Any) -> dict[str, Any]:
    work = given.work / folder.name
    work.mkdir(parents=True, exist_ok=True)
    sets = ["fit.refit=false", *sets, *(["kg.encoder=none"] if given.no_learned else [])]
    sets.append(f"text.device={given.device}")
    model, made = encoder(name, tables, read_config(None, sets), work)
    config = read_config(None, [*sets, f"text.model={model}"])
    start = time.process_time()
    bundle = train(tables, config, cache=given.cache, device=given.device, progress=told(name))
    seconds = time.process_time() - start
    options = {"protocol": "next", "cache": given.cache, "progress": told(name)}
    result = {} if given.no_test else evaluate_bundle(bundle, **options)
    print(file=sys.stderr)
    about = {"set": folder.name, "encoder": name, "made": made, "fit_seconds": seconds}
    return {**about, "settings": sets, "facts": bundle.facts, **result}


def row(result: dict[str, Any]) -> str:
    facts, made = result["facts"], result["made"]
    fused = facts["fusion"]["new"]
    found = fused["valid_ndcg@10"]
    cells = [found.get("embedding"), found.get("text"), found[fused["method"]]]
    if "metrics" in result:
        cells += [result["metrics"][name] for name in METRICS]
        cells.append(result["slices"]["cold_items"].get("recall@10"))
    else:
        cells += [None] * 5
    shown = ["" if cell is None else f"{cell:.4f}" for cell in cells]
    times = [f"{made['seconds']:.0f}" if made else "", f"{result['fit_seconds']:.0f}"]
    return f"| {' | '.join([result['set'], result['encoder'], *shown, *times])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["amazon-industrial"])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--no-learned", action="store_true", help="without the learned channel")
    parser.add_argument("--no-test", action="store_true", help="while settings are chosen")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="cpu", help="where all is trained"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "kgrank" / "vectors")
    given = parser.parse_args()
    header = ["set", "encoder", "alone, valid N@10", "TF-IDF alone", "fused, valid N@10"]
    header += ["R@10", "N@10", "R@20", "N@20", "cold R@10", "encoder, s", "fit, s"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|", flush=True)
    results = []
    for name in given.sets:
        tables = read_tables(given.folder / name)
        for one in given.encoders:
            results.append(run(given.folder / name, one, tables, given.changes, given))
            print(row(results[-1]), flush=True)
            if given.json:  # what is done is kept, should a later fit not end
                given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
