"""The bundled sample shop: reproducible, true to the input contract, and as truth.json says."""

import gzip
import json
import struct
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from kgrank.data import sample_shop
from kgrank.data.generate import generate

HUB = "shipping:standard"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(sample_shop() / name, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def events() -> pd.DataFrame:
    return table("events.csv.gz")


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    return table("items.csv")


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((sample_shop() / "truth.json").read_text(encoding="utf-8"))
    return loaded


def files(folder: Path) -> dict[str, bytes]:
    """Content by name. Of gzip the header and the text, for DEFLATE differs between zlibs."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            found[path.relative_to(folder).as_posix()] = (
                raw[:8] + gzip.decompress(raw) if path.suffix == ".gz" else raw
            )
    return found


def test_the_generator_gives_the_bundled_files(tmp_path: Path) -> None:
    generate(tmp_path)
    made, bundled = files(tmp_path), files(sample_shop())
    assert sorted(made) == sorted(bundled)
    assert [name for name in made if made[name] != bundled[name]] == []


def test_it_is_small(events: pd.DataFrame, items: pd.DataFrame) -> None:
    size = sum(path.stat().st_size for path in sample_shop().rglob("*") if path.is_file())
    assert size < 700_000
    assert 280 <= len(items) <= 320
    assert len(table("users.csv")) == 600
    assert 12_000 <= len(events) <= 15_000


def test_columns_are_those_of_the_contract(events: pd.DataFrame, items: pd.DataFrame) -> None:
    assert list(events) == ["user_id", "item_id", "event", "timestamp", "value", "split"]
    assert list(items)[:3] == ["item_id", "title", "description"]
    attributes = ["brand", "category", "material", "color", "style", "shipping", "price", "image"]
    assert list(items)[3:] == attributes
    assert list(table("users.csv")) == ["user_id", "age_group", "city", "language"]
    assert list(table("triples.csv")) == ["head", "relation", "tail"]
    assert list(table("entities.csv")) == ["entity_id", "name", "type"]
    assert list(table("queries.csv")) == ["query", "item_id", "label"]


def test_ids_are_unique_and_every_reference_is_known(
    events: pd.DataFrame, items: pd.DataFrame
) -> None:
    users, entities, queries = table("users.csv"), table("entities.csv"), table("queries.csv")
    for ids in (items.item_id, users.user_id, entities.entity_id):
        assert ids.is_unique
    assert items.title.is_unique
    assert not set(items.item_id) & set(users.user_id)
    assert set(events.item_id) <= set(items.item_id)
    assert set(events.user_id) == set(users.user_id)
    assert set(queries.item_id) <= set(items.item_id)
    assert not queries.duplicated(["query", "item_id"]).any()
    assert set(queries.label) == {"0", "1", "2"}
    known = set(items.item_id) | set(entities.entity_id)
    for column in ("brand", "category", "material"):
        known |= {f"{column}:{value}" for value in items[column].str.split("|").explode() if value}
    triples = table("triples.csv")
    assert set(triples["head"]) | set(triples["tail"]) <= known
    assert set(triples.relation) == {
        "made_by", "owned_by", "pairs_with", "part_of", "is_a", "compatible_with",
    }  # fmt: skip


def test_events_run_in_time_and_the_split_follows_it(
    events: pd.DataFrame, truth: dict[str, Any]
) -> None:
    times = pd.to_datetime(events.timestamp, utc=True)
    assert times.is_monotonic_increasing
    days = (times.iloc[-1] - times.iloc[0]).days
    assert 175 <= days <= 180
    valid_from, test_from = (
        pd.Timestamp(truth["splits"][key]) for key in ("valid_from", "test_from")
    )
    assert (times[events.split == "train"] < valid_from).all()
    assert times[events.split == "valid"].between(valid_from, test_from, inclusive="left").all()
    assert (times[events.split == "test"] >= test_from).all()
    assert set(events.event) == {"view", "click", "cart", "purchase", "rating"}
    rated = events.event == "rating"
    assert set(events.value[rated]) == {"1", "2", "3", "4", "5"}
    assert set(events.value[~rated]) == {""}


def test_products_speak_english_chinese_and_both(items: pd.DataFrame) -> None:
    text = items.title + items.description
    chinese = text.str.contains("[\u4e00-\u9fff]")
    english = text.str.count("[A-Za-z]") > 12
    assert (english & ~chinese).mean() == pytest.approx(0.60, abs=0.05)
    assert (chinese & ~english).mean() == pytest.approx(0.25, abs=0.05)
    assert (english & chinese).mean() == pytest.approx(0.15, abs=0.05)


def test_pictures_are_sound_and_all_used(items: pd.DataFrame) -> None:
    used = set(items.image) - {""}
    assert used == {f"images/{path.name}" for path in (sample_shop() / "images").iterdir()}
    for name in used:
        raw = (sample_shop() / name).read_bytes()
        assert raw[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", raw[16:24]) == (24, 24)
        start = raw.index(b"IDAT")
        (length,) = struct.unpack(">I", raw[start - 4 : start])
        pixels = zlib.decompress(raw[start + 4 : start + 4 + length])
        assert len(pixels) == 24 * (1 + 24 * 2 // 8)


def test_users_follow_their_taste(
    events: pd.DataFrame, items: pd.DataFrame, truth: dict[str, Any]
) -> None:
    products = {name: set(taste["products"]) for name, taste in truth["tastes"].items()}
    for name, taste in truth["tastes"].items():
        expected = items.brand.isin(taste["brands"]) & items.category.isin(taste["categories"])
        assert products[name] == set(items.item_id[expected])
    taste_of = events.user_id.map(truth["users"])
    inside = pd.Series(
        [item in products[taste] for item, taste in zip(events.item_id, taste_of, strict=True)]
    )
    assert inside.mean() == pytest.approx(0.85, abs=0.03)
    assert inside.groupby(taste_of).mean().min() > 0.75
    elsewhere = pd.Series(
        {
            name: events.item_id[taste_of != name].isin(chosen).mean()
            for name, chosen in products.items()
        }
    )
    assert elsewhere.max() < 0.15


def test_cold_products_live_in_the_test_days_only(
    events: pd.DataFrame, truth: dict[str, Any]
) -> None:
    cold = truth["cold"]
    assert len(cold) == 12
    seen = events.item_id.isin(cold)
    assert set(events.split[seen]) == {"test"}
    never_in_train = set(table("items.csv").item_id) - set(events.item_id[events.split == "train"])
    assert never_in_train == set(cold)
    known = set(events.user_id[events.split != "test"])
    bought = events[seen & (events.event == "purchase")]
    assert bought.item_id.value_counts().min() >= 5
    for user, item in zip(bought.user_id, bought.item_id, strict=True):
        assert truth["users"][user] in cold[item]
    assert bought.user_id.isin(known).mean() > 0.9


def next_purchases(events: pd.DataFrame) -> pd.DataFrame:
    """Pairs of a purchase and the same user's next one: item_id, next_id."""
    bought = events[events.event == "purchase"]
    pairs = bought.assign(next_id=bought.groupby("user_id").item_id.shift(-1))
    return pairs[pairs.next_id.notna()]


def test_brand_pairs_hold_in_their_direction(
    events: pd.DataFrame, items: pd.DataFrame, truth: dict[str, Any]
) -> None:
    pairs = next_purchases(events)
    brand = items.set_index("item_id").brand
    before, after = pairs.item_id.map(brand), pairs.next_id.map(brand)
    triples = table("triples.csv")
    pairs_with = triples[triples.relation == "pairs_with"]
    assert set(zip(pairs_with["head"], pairs_with["tail"], strict=True)) == {
        (f"brand:{pair['first']}", f"brand:{pair['then']}") for pair in truth["brand_pairs"]
    }
    assert len(truth["brand_pairs"]) == 3
    for pair in truth["brand_pairs"]:
        followed = (after[before == pair["first"]] == pair["then"]).mean()
        reverse = (after[before == pair["then"]] == pair["first"]).mean()
        base = (after == pair["then"]).mean()
        assert followed > 2 * base
        assert followed > 2 * reverse


def test_planted_order_holds_in_its_direction(events: pd.DataFrame, truth: dict[str, Any]) -> None:
    pairs = next_purchases(events)
    assert len(truth["order"]) >= 8
    for step in truth["order"]:
        then = pairs.next_id[pairs.item_id == step["first"]] == step["then"]
        back = pairs.next_id[pairs.item_id == step["then"]] == step["first"]
        assert len(then) >= 10
        assert then.mean() > 0.4
        assert then.mean() > 10 * (pairs.next_id == step["then"]).mean()
        assert back.mean() < 0.2


def test_repeats_come_back_on_time(events: pd.DataFrame, truth: dict[str, Any]) -> None:
    assert len(truth["repeats"]) >= 80
    bought = events[events.event == "purchase"]
    days = pd.to_datetime(bought.timestamp, utc=True).groupby([bought.user_id, bought.item_id])
    on_time = []
    for repeat in truth["repeats"]:
        assert 20 <= repeat["every_days"] <= 30
        gaps = days.get_group((repeat["user"], repeat["item"])).diff().dropna()
        assert len(gaps) >= 4
        on_time += list((gaps.dt.total_seconds() / 86400 - repeat["every_days"]).abs() < 1.01)
    # The same product may also be bought in between, by chance.
    assert sum(on_time) / len(on_time) > 0.9


def test_ada_can_be_explained_by_hand(
    events: pd.DataFrame, items: pd.DataFrame, truth: dict[str, Any]
) -> None:
    case = truth["case"]
    ada, product = case["user"], case["item"]
    of_ada = events[events.user_id == ada]
    before = of_ada[of_ada.split != "test"]
    assert list(before.item_id) == case["history"]
    assert set(before.event) == {"purchase"}
    assert product in truth["cold"]
    assert list(of_ada.item_id[of_ada.split == "test"]) == [product]
    found = short_paths(events, items, ada, product)
    through_hub = [path for path in found if HUB in path]
    assert sorted(through_hub) == sorted(map(tuple, case["hub_paths"]))
    assert sorted(set(found) - set(through_hub)) == sorted(map(tuple, case["paths"]))


def short_paths(
    events: pd.DataFrame, items: pd.DataFrame, user: str, item: str
) -> list[tuple[str, ...]]:
    """All simple paths of at most four edges in the graph of train and valid rows."""
    neighbours: dict[str, set[str]] = defaultdict(set)

    def connect(a: str, b: str) -> None:
        neighbours[a].add(b)
        neighbours[b].add(a)

    kept = events[events.split != "test"]
    edges = list(zip(kept.user_id, kept.item_id, strict=True))
    triples = table("triples.csv")
    edges += list(zip(triples["head"], triples["tail"], strict=True))
    for frame, skipped in ((items, 3), (table("users.csv"), 1)):
        for column in [name for name in list(frame)[skipped:] if name not in ("price", "image")]:
            for node, values in zip(frame.iloc[:, 0], frame[column], strict=True):
                edges += [(node, f"{column}:{value}") for value in values.split("|") if value]
    for a, b in edges:
        connect(a, b)

    def walks(start: str) -> list[tuple[str, ...]]:
        one = [(start, a) for a in neighbours[start]]
        return [(start,), *one, *((*walk, b) for walk in one for b in neighbours[walk[1]])]

    ends: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for walk in walks(item):
        ends[walk[-1]].append(walk[::-1])
    joined = {walk + end[1:] for walk in walks(user) for end in ends[walk[-1]]}
    return [path for path in joined if len(set(path)) == len(path)]


def test_awkward_content_is_there(
    events: pd.DataFrame, items: pd.DataFrame, truth: dict[str, Any]
) -> None:
    odd = truth["odd"]
    by_id = items.set_index("item_id")
    title = by_id.title[odd["awkward_title"]]
    assert all(mark in title for mark in ('"', ",", "☕"))
    a, b = odd["ids_of_one_number"]
    assert a != b and int(a) == int(b)
    assert {a, b} <= set(items.item_id)
    assert list(items.item_id[items.description == ""]) == [odd["no_description"]]
    bare = by_id.loc[odd["no_attributes"]]
    assert set(bare.drop(["title", "description"])) == {""}
    assert bare.title and bare.description
    assert (events.user_id == odd["one_event_user"]).sum() == 1
    users = table("users.csv").set_index("user_id")
    assert set(users.index[(users == "").all(axis=1)]) == set(odd["users_without_attributes"])
    assert len(odd["users_without_attributes"]) >= 5
    column, value = odd["entity_of_one_item"].split(":")
    assert items[column].str.split("|").explode().eq(value).sum() == 1
    column, value = odd["hub"].split(":")
    assert items[column].eq(value).sum() == len(items) - 1


def test_popularity_has_a_long_tail(events: pd.DataFrame) -> None:
    counts = events.item_id[events.split == "train"].value_counts()
    assert counts.iloc[: len(counts) // 5].sum() / counts.sum() > 0.5
