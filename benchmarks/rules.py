"""What do a shop's rules cost? Lists of 20 for 10,000 users among 10,000 items, and one why-not.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/rules.py [--items 10000] [--rounds 5]

`Recommender.recommend` without rules, and under a handful of them, each kind alone and all at once,
on the made shop of batched_scoring.py (a dense channel of 128 dimensions and 100 item–item
neighbours an item) with 200 brands, 40 categories, prices and stock. Every round runs all of them
one after the other; printed are medians of the seconds that one core worked, and of the ratio to
the run without rules of the same round. `why not` is the median over 50 users, each with an item
just below the list.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from batched_scoring import bundle as made_bundle

from kgrank.serving.bundle import Bundle
from kgrank.serving.recommender import Recommender
from kgrank.serving.rules import Rules

N = 20
SOLD_OUT: dict[str, Any] = {"action": "exclude", "items": {"in_stock": False}}
PUSHED = {"action": "boost", "by": 0.5, "items": {"brand": ["b1", "b2", "b3"]}}
LOCAL = {
    "action": "boost",
    "by": -0.5,
    "items": {"price": {"above": 90}},
    "users": {"city": ["c0", "c1"]},
}
PINNED = {"action": "pin", "place": 3, "items": {"item_id": "item-77"}}
CAPPED = {"action": "cap", "most": 3, "attribute": "brand"}
SPREAD = {"action": "diversify", "strength": 0.3, "attributes": ["brand", "category"]}
CASES: dict[str, list[dict[str, Any]]] = {
    "exclude, boosts (3 rules)": [SOLD_OUT, PUSHED, LOCAL],
    "pin, cap (2 rules)": [PINNED, CAPPED],
    "diversify": [SPREAD],
    "exclude, boosts, pin, cap (5 rules)": [SOLD_OUT, PUSHED, LOCAL, PINNED, CAPPED],
    "all six": [SOLD_OUT, PUSHED, LOCAL, PINNED, CAPPED, SPREAD],
}


def shop(n_users: int, n_items: int) -> Bundle:
    rng = np.random.default_rng(0)
    bundle = made_bundle(n_users, n_items, 128, rng)
    items = bundle.item_table.assign(
        brand=[f"b{b}" for b in rng.integers(0, 200, n_items)],
        category=[f"k{k}" for k in rng.integers(0, 40, n_items)],
        price=rng.uniform(1, 100, n_items),
        in_stock=np.where(rng.random(n_items) < 0.1, "false", "true"),
    )
    users = bundle.user_table.assign(city=[f"c{c}" for c in rng.integers(0, 5, n_users)])
    return replace(bundle, item_table=items, user_table=users)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = shop(options.users, options.items)
    users = bundle.users.ids().tolist()
    ways = {"no rules": Recommender(bundle, "cpu")}
    for name, entries in CASES.items():
        named = [{"name": str(number), **entry} for number, entry in enumerate(entries)]
        ways[name] = Recommender(bundle, "cpu", Rules.from_dict({"rule": named}, "rules"))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):  # the first one warms up
        for name, way in ways.items():
            start = time.process_time()
            lists = way.recommend(users, n=N)
            if turn:
                seconds[name].append(time.process_time() - start)
            assert len(lists) == N * len(users)
    rows = []
    for name, own in seconds.items():
        ratio = np.median(np.array(own) / np.array(seconds["no rules"]))
        rows.append((name, round(float(np.median(own)), 2), round(float(ratio), 2)))
    print(pd.DataFrame(rows, columns=["rules", "seconds", "ratio"]).to_string(index=False))
    for name in ("no rules", "all six"):
        took = []
        for user in users[:: len(users) // 50][:50]:
            item = ways["no rules"].recommend([user], n=40)["item_id"].iloc[35]
            start = time.process_time()
            ways[name].why_not(user, item, n=10)
            took.append(time.process_time() - start)
        low, high = 1e3 * np.median(took), 1e3 * np.quantile(took, 0.9)
        print(f"why not, {name}: {low:.0f} ms, 90 % within {high:.0f} ms")


if __name__ == "__main__":
    main()
