"""The figures of `evaluate`, worked out a second time in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from kgrank.config import Config
from kgrank.errors import ConfigError, DataError
from kgrank.fusion.evidence import numbered
from kgrank.fusion.training import plain_ease
from kgrank.kg.tables import Tables, read_tables
from kgrank.serving.bundle import Bundle
from kgrank.serving.evaluating import evaluate_bundle
from kgrank.serving.recommender import Recommender
from kgrank.serving.training import train

METRICS = ("recall@10", "ndcg@10", "recall@20", "ndcg@20", "mrr")
DAY = 86_400.0


class Row(NamedTuple):
    user: str
    item: str
    time: float
    split: str


@dataclass(frozen=True)
class Query:
    user: str
    history: tuple[Row, ...]
    relevant: frozenset[str]
    excluded: frozenset[str]


Scorer = Callable[[Query], dict[str, float]]


def rows_of(tables: Tables) -> list[Row]:
    names = ("user_id", "item_id", "timestamp", "split")
    columns = [tables.events[name].tolist() for name in names]
    return [Row(*row) for row in zip(*columns, strict=True)]


def queries_of(
    rows: Sequence[Row], split: str, protocol: str, history: str, repeats: str, relevant: str
) -> list[Query]:
    """The queries, as the help of `evaluate` words them."""
    known_splits = {"train", "valid"} if split == "test" else {"train"}
    history_splits = {"train"} if history == "train" else known_splits
    if split == "valid":
        rows = [row for row in rows if row.split != "test"]
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        by_user.setdefault(row.user, []).append(row)
    queries = []
    for user, own in by_user.items():
        asked = [row for row in own if row.split == split]
        if protocol == "user" and asked:
            told = [row for row in own if row.split in history_splits]
            met = {row.item for row in own if row.split in known_splits}
            wanted = {row.item for row in asked}
            if relevant == "new":
                wanted -= met
            queries.append((user, told, wanted, met))
        for row in asked if protocol == "next" else ():
            before = [other for other in own if other.time < row.time]
            told = [o for o in before if history == "all" or o.split == "train"]
            met = {other.item for other in before}
            wanted = {row.item} - met if relevant == "new" else {row.item}
            queries.append((user, told, wanted, met - {row.item}))
    return [
        Query(
            user,
            tuple(told),
            frozenset(wanted),
            frozenset(met if repeats == "exclude" else ()),
        )
        for user, told, wanted, met in queries
        if wanted
    ]


def ranked(query: Query, scores: dict[str, float], items: Sequence[str], repeats: str) -> list[str]:
    """All that may be listed, best first; equal scores by the place in `items`."""
    listed = [item for item in items if item not in query.excluded]
    if repeats == "only":
        met = {row.item for row in query.history}
        listed = [item for item in listed if item in met]
    return sorted(listed, key=lambda item: -scores[item])  # stable


def metrics_of(ranking: Sequence[str], relevant: Iterable[str]) -> dict[str, float]:
    relevant = set(relevant)
    out = {}
    for k in (10, 20):
        hits = [place for place, item in enumerate(ranking[:k], 1) if item in relevant]
        gain = sum(1 / math.log2(place + 1) for place in hits)
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
        out[f"recall@{k}"] = len(hits) / len(relevant)
        out[f"ndcg@{k}"] = gain / ideal
    places = [place for place, item in enumerate(ranking, 1) if item in relevant]
    out["mrr"] = 1 / places[0] if places else 0.0
    return out


def mean(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: sum(value[name] for value in values) / len(values) for name in METRICS}


def judged(
    rows: Sequence[Row],
    items: Sequence[str],
    queries: Sequence[Query],
    scorer: Scorer,
    repeats: str,
) -> dict[str, Any]:
    """Metrics and slices of a scorer, in the shape of `evaluate --json`."""
    lists = [ranked(query, scorer(query), items, repeats) for query in queries]
    pairs = list(zip(lists, queries, strict=True))
    found = [metrics_of(ranking, query.relevant) for ranking, query in pairs]
    in_train = {row.item for row in rows if row.split == "train"}
    old_users = {row.user for row in rows if row.split == "train"}
    cold = [
        metrics_of(ranking, query.relevant - in_train)
        for ranking, query in pairs
        if query.relevant - in_train
    ]
    new = [
        value for value, query in zip(found, queries, strict=True) if query.user not in old_users
    ]
    top = {item for ranking in lists for item in ranking[:10]}
    slices: dict[str, Any] = {
        "cold_items": {"queries": len(cold)},
        "new_users": {"queries": len(new)},
    }
    if cold:
        slices["cold_items"] |= mean(cold)
        del slices["cold_items"]["mrr"]
    if new:
        slices["new_users"] |= mean(new)
    metrics = {**mean(found), "coverage@10": len(top) / len(items)}
    return {"metrics": metrics, "slices": slices}


def popularity_of(rows: Sequence[Row], items: Sequence[str]) -> Scorer:
    """How many users met the item in train and valid."""
    met = {(row.user, row.item) for row in rows if row.split != "test"}
    users = {item: float(sum(of == item for _, of in met)) for item in items}
    return lambda query: users


def own_history_of(items: Sequence[str]) -> Scorer:
    """Σ e^(-days / 60) over the query's events on the item, days before the newest of them."""

    def scores(query: Query) -> dict[str, float]:
        out = dict.fromkeys(items, 0.0)
        for row in query.history:
            out[row.item] += math.exp(-(query.history[-1].time - row.time) / DAY / 60)
        return out

    return scores


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """The same with every number approximate."""
    return {
        key: nested(value) if isinstance(value, dict) else pytest.approx(value, rel=1e-6, abs=1e-12)
        for key, value in values.items()
    }


OPTIONS = [
    {"split": split, "protocol": protocol, "history": history, "repeats": rep, "relevant": relevant}
    for split in ("test", "valid")
    for protocol in ("user", "next")
    for history in ("all", "train")
    for rep in ("exclude", "allow", "only")
    for relevant in ("all", "new")
    if (rep, relevant) != ("only", "new")  # nothing that is new can be listed
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()))
def test_the_hand_made_shop_in_every_way(
    tiny_tables: Tables, tiny_bundle: Bundle, options: dict[str, str]
) -> None:
    rows, items = rows_of(tiny_tables), list(tiny_tables.items["item_id"])
    queries = queries_of(rows, **options)
    asked: dict[str, Any] = {**options}
    result = evaluate_bundle(tiny_bundle, **asked)
    assert result["queries"] == len(queries)
    assert result["users"] == len({query.user for query in queries})
    assert {name: result[name] for name in options} == options
    scorers = {"popularity": popularity_of(rows, items)}
    if options["repeats"] != "exclude":
        scorers["own_history"] = own_history_of(items)
    assert set(result["baselines"]) == {*scorers, "ease"}
    for name, scorer in scorers.items():
        expected = judged(rows, items, queries, scorer, options["repeats"])
        assert result["baselines"][name] == nested(expected["metrics"]), name


def test_one_query_by_hand(tiny_tables: Tables, tiny_bundle: Bundle) -> None:
    """u-gus alone: b3 and b2 in test, of which he met b3 before.

    Users who met each item before test: a1 4 (ada, ben, cai, dot), a2 4 (ada, ben, dot, ivy),
    a3 3, a4 3, a5 2, b1 4, b2 3, b3 3, b4 3, b5 2, c1 0, v1 1. He met b1, b3, b4, b5. What is left
    by popularity: a1 a2 a3 a4 b2 a5 v1 c1; b2 is fifth.
    """
    events = tiny_tables.events
    alone = events[(events["split"] != "test") | (events["user_id"] == "u-gus")]
    rows = rows_of(replace(tiny_tables, events=alone))
    items = list(tiny_tables.items["item_id"])
    (query,) = queries_of(rows, "test", "user", "all", "exclude", "all")
    listed = ranked(query, popularity_of(rows, items)(query), items, "exclude")
    assert listed == ["a1", "a2", "a3", "a4", "b2", "a5", "v1", "c1"]
    found = metrics_of(listed, query.relevant)
    assert found["recall@10"] == 1 / 2
    assert found["mrr"] == 1 / 5
    assert found["ndcg@10"] == pytest.approx((1 / math.log2(6)) / (1 + 1 / math.log2(3)))


def ease_of(rows: Sequence[Row], items: Sequence[str], penalty: float) -> Scorer:
    """Steck's closed form over who met what in train and valid: B = I − P / diag(P)."""
    met = {(row.user, row.item) for row in rows if row.split != "test"}
    users = sorted({user for user, _ in met})
    chosen = np.array([[(user, item) in met for item in items] for user in users], float)
    inverse = np.linalg.inv(chosen.T @ chosen + penalty * np.eye(len(items)))
    weights = np.eye(len(items)) - inverse / np.diag(inverse)

    def scores(query: Query) -> dict[str, float]:
        own = {items.index(row.item) for row in query.history if (row.user, row.item) in met}
        return dict(zip(items, weights[sorted(own)].sum(axis=0).tolist(), strict=True))

    return scores


def test_the_baseline_ease_is_the_closed_form_at_the_penalty_of_valid(
    shop_tables: Tables, tmp_path: Path
) -> None:
    """What users refused is no choice: it counts for neither the penalty nor the lists."""
    events, items = shop_tables.events, list(shop_tables.items["item_id"])
    met = set(zip(events["user_id"], events["item_id"], strict=True))
    first = events[events["split"] == "train"].drop_duplicates("user_id")
    refused = first.assign(item_id=first["item_id"].sample(frac=1.0, random_state=0).to_numpy())
    pairs = zip(refused["user_id"], refused["item_id"], strict=True)
    refused = refused[[pair not in met for pair in pairs]].assign(event="not_interested")
    assert len(refused) > 100
    pd.concat([events, refused]).to_parquet(tmp_path / "events.parquet")
    shop_tables.items.to_parquet(tmp_path / "items.parquet")
    tables = read_tables(tmp_path)
    plain = {"kg": {"encoder": "none"}, "text": {"model": "none"}}
    bundle = train(tables, Config.from_dict(plain, "test"))
    found = evaluate_bundle(bundle)["baselines"]["ease"]

    known = shop_tables.events[shop_tables.events["split"] != "test"]
    histories, splits = numbered(known, bundle.users, bundle.items)
    penalty = plain_ease(histories, splits, bundle.config.fit)
    queries = queries_of(rows_of(tables), "test", "user", "all", "exclude", "all")
    expected, other = (
        judged(
            rows_of(tables), items, queries, ease_of(rows_of(shop_tables), items, of), "exclude"
        )["metrics"]["ndcg@10"]
        for of in (penalty, 1.0)
    )
    assert found["ndcg@10"] == pytest.approx(expected, rel=1e-5)
    assert abs(expected - other) > 0.005


@pytest.mark.parametrize(
    ("repeats", "relevant"),
    [("exclude", "all"), ("exclude", "new"), ("allow", "all"), ("only", "all")],
)
def test_the_models_figures_are_those_of_its_lists(
    shop_tables: Tables, recommender: Recommender, repeats: str, relevant: str
) -> None:
    """Protocol user on the sample shop: whole rankings from `rank` and `recommend`, and slices."""
    rows, items = rows_of(shop_tables), list(shop_tables.items["item_id"])
    queries = queries_of(rows, "test", "user", "all", repeats, relevant)

    def scores(query: Query) -> dict[str, float]:
        if repeats == "exclude":
            table = recommender.rank(query.user, items)
        else:
            table = recommender.recommend([query.user], n=len(items), repeats="allow")
        return dict(zip(table["item_id"], table["score"].astype(float), strict=True))

    expected = judged(rows, items, queries, scores, repeats)
    result = evaluate_bundle(recommender.bundle, repeats=repeats, relevant=relevant)
    assert result["queries"] == result["users"] == len(queries)
    assert result["slices"]["cold_items"]["queries"] > 50
    assert result["slices"]["new_users"]["queries"] > 10
    # Batches round otherwise than single users: two scores may change places somewhere.
    for name, value in expected["metrics"].items():
        assert result["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    for name, values in expected["slices"].items():
        assert result["slices"][name] == {
            key: pytest.approx(value, rel=1e-3, abs=1e-5) for key, value in values.items()
        }
    popular = judged(rows, items, queries, popularity_of(rows, items), repeats)
    assert result["baselines"]["popularity"] == nested(popular["metrics"])


def test_on_the_sample_shop_next_by_popularity(shop_tables: Tables, shop_bundle: Bundle) -> None:
    rows, items = rows_of(shop_tables), list(shop_tables.items["item_id"])
    queries = queries_of(rows, "test", "next", "all", "exclude", "all")
    expected = judged(rows, items, queries, popularity_of(rows, items), "exclude")
    result = evaluate_bundle(shop_bundle, protocol="next")
    assert result["queries"] == len(queries) == sum(row.split == "test" for row in rows)
    assert result["baselines"]["popularity"] == nested(expected["metrics"])


def test_the_model_beats_popularity_on_what_was_planted(shop_bundle: Bundle) -> None:
    fresh = evaluate_bundle(shop_bundle, relevant="new")
    everything = evaluate_bundle(shop_bundle, repeats="allow")
    for result in (fresh, everything):
        ours, popular = result["metrics"], result["baselines"]["popularity"]
        assert ours["ndcg@10"] > 2 * popular["ndcg@10"]
        assert ours["coverage@10"] > popular["coverage@10"]


def test_what_happens_at_the_same_time_is_not_before(
    tiny_tables: Tables, tiny_bundle: Bundle
) -> None:
    """u-ada buys b1 and a1 at once after four purchases; then a4, then c1.

    Were b1 in the history of a1, "only" would list it above a1, which she last bought long ago.
    """
    rows, items = rows_of(tiny_tables), list(tiny_tables.items["item_id"])
    queries = queries_of(rows, "test", "next", "all", "only", "all")
    of_ada = [query for query in queries if query.user == "u-ada"]
    assert [len(query.history) for query in of_ada] == [4, 4, 6, 7]
    result = evaluate_bundle(tiny_bundle, protocol="next", repeats="only")
    expected = judged(rows, items, queries, own_history_of(items), "only")
    assert result["baselines"]["own_history"] == nested(expected["metrics"])


def test_cold_items_and_new_users_are_counted(tiny_bundle: Bundle) -> None:
    """c1 and v1 are never in train: u-ada and u-cai want c1, u-cai v1 too. u-new is new."""
    by_user = evaluate_bundle(tiny_bundle)["slices"]
    assert by_user["cold_items"]["queries"] == 2
    assert by_user["new_users"]["queries"] == 1
    by_row = evaluate_bundle(tiny_bundle, protocol="next")["slices"]
    assert by_row["cold_items"]["queries"] == 3
    assert by_row["new_users"]["queries"] == 2


def test_a_slice_of_nothing_holds_no_figures(tiny_bundle: Bundle) -> None:
    slices = evaluate_bundle(tiny_bundle, repeats="only", split="valid")["slices"]
    assert slices["new_users"] == {"queries": 0}


# The tables


def saved(tables: Tables, events: pd.DataFrame, folder: Path) -> Path:
    replace(tables, events=events).save(folder)
    return folder


@pytest.mark.parametrize("protocol", ["user", "next"])
def test_an_empty_split_is_one_fault(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path, protocol: str
) -> None:
    events = tiny_tables.events
    source = saved(tiny_tables, events[events["split"] != "test"], tmp_path / "shop")
    with pytest.raises(DataError, match="test") as caught:
        evaluate_bundle(tiny_bundle, source=source, protocol=protocol)
    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].column == "split"


def test_a_split_without_anything_new_is_one_fault(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    events = tiny_tables.events
    again = events[events["split"] == "train"].assign(split="test")
    again["timestamp"] += 100 * DAY
    kept = pd.concat([events[events["split"] != "test"], again])
    source = saved(tiny_tables, kept, tmp_path / "shop")
    with pytest.raises(DataError) as caught:
        evaluate_bundle(tiny_bundle, source=source, relevant="new")
    assert len(caught.value.faults) == 1


def test_an_item_the_bundle_does_not_know_is_one_fault(
    tiny_tables: Tables, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    events = tiny_tables.events.copy()
    events.loc[events["item_id"] == "c1", "item_id"] = "z9"
    items = tiny_tables.items.copy()
    items.loc[items["item_id"] == "c1", "item_id"] = "z9"
    other = replace(tiny_tables, items=items)
    source = saved(other, events, tmp_path / "shop")
    with pytest.raises(DataError, match="'z9'") as caught:
        evaluate_bundle(tiny_bundle, source=source)
    assert caught.value.faults[0].count == 2


@pytest.fixture(scope="session")
def bare_tables(tiny_tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The events alone. c1, and z5 in the middle of u-eva's test rows, are in test rows only."""
    events = tiny_tables.events.copy()
    events.loc[(events["item_id"] == "b5") & (events["split"] == "test"), "item_id"] = "z5"
    folder = tmp_path_factory.mktemp("bare")
    events.to_csv(folder / "events.csv", index=False)
    return read_tables(folder)


@pytest.fixture(scope="session")
def bare_bundle(bare_tables: Tables) -> Bundle:
    return train(bare_tables, Config.from_dict({"text": {"model": "none"}}, "the tests"))


@pytest.mark.parametrize("repeats", ["exclude", "allow", "only"])
@pytest.mark.parametrize("history", ["all", "train"])
@pytest.mark.parametrize("protocol", ["user", "next"])
def test_without_an_items_table_what_only_test_rows_name_is_relevant_and_never_listed(
    bare_tables: Tables, bare_bundle: Bundle, protocol: str, history: str, repeats: str
) -> None:
    rows, items = rows_of(bare_tables), list(bare_bundle.items.ids())
    assert {row.item for row in rows} - set(items) == {"c1", "z5"}
    queries = [
        replace(query, history=tuple(row for row in query.history if row.item in items))
        for query in queries_of(rows, "test", protocol, history, repeats, "all")
    ]
    result = evaluate_bundle(bare_bundle, protocol=protocol, history=history, repeats=repeats)
    assert result["queries"] == len(queries)
    scorers = {"popularity": popularity_of(rows, items)}
    if repeats != "exclude":
        scorers["own_history"] = own_history_of(items)
    for name, scorer in scorers.items():
        expected = judged(rows, items, queries, scorer, repeats)
        assert result["baselines"][name] == nested(expected["metrics"]), name
    assert result["slices"]["cold_items"]["queries"] == expected["slices"]["cold_items"]["queries"]


def test_without_an_items_table_a_strange_item_in_train_is_still_a_fault(
    bare_tables: Tables, bare_bundle: Bundle, tmp_path: Path
) -> None:
    events = bare_tables.events.copy()
    events.loc[events.index[events["split"] == "train"][0], "item_id"] = "z9"
    source = saved(bare_tables, events, tmp_path / "shop")
    with pytest.raises(DataError, match="'z9'"):
        evaluate_bundle(bare_bundle, source=source)


def test_a_bundle_of_tables_made_in_memory_needs_a_source(
    tiny_shop: Path, tiny_bundle: Bundle
) -> None:
    homeless = replace(tiny_bundle, source=None)
    with pytest.raises(ConfigError, match="--source"):
        evaluate_bundle(homeless)
    assert evaluate_bundle(homeless, source=tiny_shop) == evaluate_bundle(tiny_bundle)


@pytest.mark.parametrize("option", ["split", "protocol", "history", "repeats", "relevant", "graph"])
def test_an_unknown_option_is_refused(tiny_bundle: Bundle, option: str) -> None:
    wrong: dict[str, Any] = {option: "both"}
    with pytest.raises(ConfigError, match=f"{option}: found 'both'; allowed: "):
        evaluate_bundle(tiny_bundle, **wrong)


# Without its graph


def test_a_fit_without_the_graph_is_judged_on_the_same_queries(tiny_bundle: Bundle) -> None:
    with_graph = evaluate_bundle(tiny_bundle)
    without = evaluate_bundle(tiny_bundle, graph="none")
    assert set(without["graph"]) == {"none"}
    assert without["graph"]["none"] == without["metrics"]
    assert without["queries"] == with_graph["queries"]
    assert without["baselines"]["popularity"] == with_graph["baselines"]["popularity"]
    assert "graph" not in with_graph


def test_without_the_graph_an_attribute_that_is_read_as_text_stays_text(
    tiny_tables: Tables,
) -> None:
    sections = {
        "text": {"model": "none", "fields": ["title", "brand"]},
        "kg": {"encoder": "none", "ignore": ["sku"]},
    }
    items = tiny_tables.items.assign(sku=tiny_tables.items["item_id"])
    bundle = train(replace(tiny_tables, items=items), Config.from_dict(sections, "the tests"))
    without = evaluate_bundle(bundle, graph="none")
    assert without["queries"] == evaluate_bundle(bundle)["queries"]


def test_true_shuffled_and_no_graph_side_by_side(tiny_bundle: Bundle) -> None:
    result = evaluate_bundle(tiny_bundle, graph="all")
    assert set(result["graph"]) == {"true", "shuffled", "none"}
    assert result["metrics"] == result["graph"]["true"] == evaluate_bundle(tiny_bundle)["metrics"]
    for other in ("shuffled", "none"):
        difference = result["graph_difference"][other]
        by_means = result["graph"]["true"]["ndcg@10"] - result["graph"][other]["ndcg@10"]
        assert difference["ndcg@10"] == pytest.approx(by_means, abs=1e-9)
        low, high = difference["interval"]
        assert low <= difference["ndcg@10"] <= high
        assert difference["beyond_noise"] == (low > 0.0 or high < 0.0)
