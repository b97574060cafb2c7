"""Makes the bundled sample shop: a small invented shop in English and Chinese, with known answers.

    python kgrank/data/generate.py [DST]        (default: the folder `sample` beside this file)

Words and hand-written facts stand in vocabulary.toml. Everything is drawn from a fixed seed, so two
runs give the same files. Beside the tables of the input contract the folder holds `truth.json`:

- `splits`: {"valid_from", "test_from"}. 180 days from 2025-03-01; the last 18 are test, the 18
  before them valid.
- `tastes`: taste → {"language", "brands", "categories", "products"}. A taste likes the products of
  its brands in its categories; `products` includes the cold ones.
- `users`: user → taste. About 85 % of the events are on products of the user's taste; there,
  popularity has a long tail and the user's language is preferred. The rest is noise, and what the
  brand pairs bring.
- `cold`: item → tastes that should see it. On sale, and bought, in the test days only.
- `brand_pairs`: [{"first", "then"}], names of brands. Half of the purchases of brand `first` are
  followed within three days by one of brand `then`, which another taste likes. Also triples.
- `order`: [{"first", "then"}], item ids. Two in three purchases of `first` are followed within
  three days by one of `then`. A product with such a follower is not the first of a brand pair.
- `repeats`: [{"user", "item", "every_days"}]: bought again every 20 to 30 days, give or take one;
  these purchases have no followers.
- `case`, to check by hand: {"user", "item", "history", "paths", "hub_paths"}. Before the test days
  the user bought the three products of `history` and did nothing else; in them the user buys the
  cold `item`. `paths` are all ways of at most four edges from user to item, as node ids, through
  train and valid events, attributes (without price and image) and triples, except those through
  the hub; `hub_paths` are the ways of three edges through the hub.
- `odd`: awkward content by name. A title with quotes, commas and an emoji; two ids that are one
  number ("7", "007"); no description; no attributes; a user with one event; users without
  attributes; an entity of a single item; the hub that all items with attributes share.

Query labels: 2 the model asked for, 1 the same category, 0 another category.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kgrank.data.catalogue import (
    ITEM_COLUMNS,
    Dice,
    Product,
    Words,
    liked_by,
    make_entities,
    make_products,
    make_queries,
    make_triples,
    order_of,
    slug,
    speaks,
)
from kgrank.data.pictures import draw

START = datetime(2025, 3, 1, tzinfo=UTC)
DAYS, VALID_DAY, TEST_DAY = 180, 144, 162
USERS = 598  # beside the two written by hand
NOISE = 0.18  # share of a user's visits that do not follow the taste
Event = tuple[float, str, str, str, str]  # seconds since START, user, item, event, value


@dataclass(frozen=True)
class User:
    """A row of users, the taste, and the day of the first visit (0 = START)."""

    user_id: str
    row: dict[str, str]
    taste: str
    language: str
    joined: float


def make_users(words: Words) -> list[User]:
    """The users. Language, city and age lean to the taste's; one in forty tells nothing."""
    dice = Dice(2)
    users = []
    for n in range(1, USERS + 1):
        taste = dice.pick(words["tastes"])
        other = "zh" if taste["language"] == "en" else "en"
        language = taste["language"] if dice.chance(0.85) else other
        age = taste["age"] if dice.chance(0.5) else dice.pick(words["ages"])
        row = {"age_group": age, "city": dice.pick(words["cities"][language]), "language": language}
        if dice.chance(0.025):
            row = {}
        joined = 0.0 if dice.chance(0.7) else dice.between(0, DAYS - 4)
        user_id = f"{n:04d}" if n < 20 else f"u{n:04d}"
        users.append(User(user_id, row, taste["name"], language, joined))
    by_hand = {"age_group": "25-34", "city": "Galway", "language": "en"}
    users.append(User("u-ada", by_hand, "mountain", "en", 0.0))
    users.append(User("u-once", by_hand | {"city": "Leeds"}, "cook", "en", 0.0))
    return users


class Log:
    """Writes events down; a purchase may bring a rating and a purchase that follows it."""

    def __init__(self, words: Words, products: Sequence[Product], dice: Dice) -> None:
        self.events: list[Event] = []
        self.dice = dice
        self.order = dict(order_of(words, products))
        self.pairs = dict(words["brand_pairs"])
        self.warm = [p for p in products if not p.cold]
        self.by_id = {p.item_id: p for p in products}
        popularity = {p.item_id: max(dice.roll(), 0.02) ** -0.75 for p in self.warm}
        for first in self.order.keys() - set(self.order.values()):
            popularity[first] = 22.0  # enough purchases for the order to show
        # A product without a word in the user's language is wanted a third as much.
        self.wanted = {
            language: {
                p.item_id: popularity[p.item_id] * (1.0 if speaks(p, language) else 0.35)
                for p in self.warm
            }
            for language in ("en", "zh")
        }

    def choose(self, products: Sequence[Product], language: str) -> Product:
        """A product by popularity and by the language of its text."""
        wanted = self.wanted[language]
        return self.dice.pick(products, [wanted[p.item_id] for p in products])

    def add(self, time: float, user: str, item: str, event: str, value: str = "") -> None:
        """One event, unless the days are over. `time` is in seconds since START."""
        if time < DAYS * 86400:
            self.events.append((time, user, item, event, value))

    def visit(self, time: float, user: User, item: str, liked: bool) -> None:
        """A look at a product, which may end in a purchase."""
        self.add(time, user.user_id, item, "view")
        if self.dice.chance(0.5):
            self.add(time + 20, user.user_id, item, "click")
        if self.dice.chance(0.32):
            self.add(time + 90, user.user_id, item, "cart")
            if self.dice.chance(0.65):
                self.buy(time + 240, user, item, liked)

    def buy(self, time: float, user: User, item: str, liked: bool) -> None:
        """A purchase, perhaps its rating, and the purchase that follows it (order, brand pair)."""
        dice = self.dice
        self.add(time, user.user_id, item, "purchase")
        if dice.chance(0.35):
            stars = dice.pick(
                (5, 4, 3, 2, 1), (50, 35, 10, 3, 2) if liked else (10, 20, 35, 20, 15)
            )
            self.add(time + dice.between(3, 10) * 86400, user.user_id, item, "rating", str(stars))
        then = self.order.get(item)
        if then is not None:
            then = then if dice.chance(2 / 3) else None
        else:
            brand = self.pairs.get(self.by_id[item].cell[0])
            if brand is not None and dice.chance(0.5):
                then = self.choose(
                    [p for p in self.warm if p.cell[0] == brand], user.language
                ).item_id
        if then is not None:
            later = time + dice.between(0.4, 3) * 86400
            self.add(later - 120, user.user_id, then, "view")
            self.buy(later, user, then, liked=True)


def make_events(
    words: Words, products: Sequence[Product], users: Sequence[User]
) -> tuple[list[Event], list[dict[str, Any]]]:
    """All events in the order of time, and the planted repeats."""
    dice = Dice(3)
    log = Log(words, products, dice)
    likes = {taste["name"]: liked_by(taste, log.warm) for taste in words["tastes"]}
    repeats: list[dict[str, Any]] = []
    for user in users[:USERS]:
        days = DAYS - user.joined
        for _ in range(max(1, round((2 - 7 * math.log(1 - dice.roll())) * days / DAYS))):
            day = math.floor(dice.between(user.joined, DAYS))
            time = (day + dice.between(7, 23) / 24) * 86400
            for look in range(1 + dice.chance(0.3)):
                liked = not dice.chance(NOISE)
                item = log.choose(likes[user.taste] if liked else log.warm, user.language).item_id
                log.visit(time + look * 600, user, item, liked)
        consumables = [p for p in likes[user.taste] if p.consumable]
        if consumables and user.joined < 20 and dice.chance(0.3):
            item, every = log.choose(consumables, user.language).item_id, 20 + int(dice.roll() * 11)
            repeats.append({"user": user.user_id, "item": item, "every_days": every})
            due = user.joined + dice.between(1, every)
            while due < DAYS:
                log.add(due * 86400, user.user_id, item, "purchase")
                due += every + dice.between(-1, 1)
    for product in log.warm:  # seen once at the start, so that only the planted ones are cold
        early = [u for u in users[:USERS] if u.joined == 0]
        fans = [u for u in early if product in likes[u.taste]]
        viewer = dice.pick(fans or early).user_id
        log.add(dice.between(0, 20) * 86400, viewer, product.item_id, "view")
    for product in (p for p in products if p.cold):
        tastes = {t["name"] for t in words["tastes"] if liked_by(t, [product])}
        buyers = [u for u in users[:USERS] if u.taste in tastes and u.joined < 100]
        launch = dice.between(TEST_DAY, TEST_DAY + 4)
        for user in dice.some(buyers, 5 + int(dice.roll() * 4)):
            time = dice.between(launch, DAYS - 0.1) * 86400
            log.add(time, user.user_id, product.item_id, "view")
            log.add(time + 200, user.user_id, product.item_id, "purchase")
    for day, user_id, item_id, kind in words["events"]:
        log.add(day * 86400, user_id, item_id, kind)
    return sorted(log.events, key=lambda event: event[0]), repeats


def make_truth(
    words: Words, products: Sequence[Product], users: Sequence[User], repeats: list[dict[str, Any]]
) -> dict[str, Any]:
    """The planted facts, as the module's docstring lists them."""
    order = order_of(words, products)
    return {
        "splits": {"valid_from": stamp(VALID_DAY * 86400), "test_from": stamp(TEST_DAY * 86400)},
        "tastes": {
            taste["name"]: {key: taste[key] for key in ("language", "brands", "categories")}
            | {"products": [p.item_id for p in liked_by(taste, products)]}
            for taste in words["tastes"]
        },
        "users": {user.user_id: user.taste for user in users},
        "cold": {
            p.item_id: [t["name"] for t in words["tastes"] if liked_by(t, [p])]
            for p in products
            if p.cold
        },
        "brand_pairs": [{"first": a, "then": b} for a, b in words["brand_pairs"]],
        "order": [{"first": a, "then": b} for a, b in order],
        "repeats": repeats,
        "case": words["case"],
        "odd": words["odd"]
        | {"users_without_attributes": [user.user_id for user in users if not user.row]},
    }


def stamp(seconds: float) -> str:
    """ISO 8601 in UTC, to the second, of a time in seconds since START."""
    return (START + timedelta(seconds=int(seconds))).strftime("%Y-%m-%dT%H:%M:%SZ")


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file in UTF-8 with Unix line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def generate(dst: Path) -> None:
    """Write the shop's files into the folder dst (made if missing); files of the same name go."""
    words = tomllib.loads(Path(__file__).with_name("vocabulary.toml").read_text(encoding="utf-8"))
    products = make_products(words)
    users = make_users(words)
    events, repeats = make_events(words, products, users)

    def split(time: float) -> str:
        day = time / 86400
        return "train" if day < VALID_DAY else "valid" if day < TEST_DAY else "test"

    event_rows = [(u, i, kind, stamp(t), value, split(t)) for t, u, i, kind, value in events]
    event_header = ("user_id", "item_id", "event", "timestamp", "value", "split")
    user_header = ("user_id", "age_group", "city", "language")
    user_rows = [(u.user_id, *(u.row.get(c, "") for c in user_header[1:])) for u in users]
    item_rows = [
        [p.row[c] for c in ITEM_COLUMNS] for p in sorted(products, key=lambda p: p.item_id)
    ]
    truth = make_truth(words, products, users, repeats)
    files = {
        "events.csv.gz": gzip.compress(csv_bytes(event_header, event_rows), mtime=0),
        "items.csv": csv_bytes(ITEM_COLUMNS, item_rows),
        "users.csv": csv_bytes(user_header, user_rows),
        "triples.csv": csv_bytes(("head", "relation", "tail"), make_triples(words, products)),
        "entities.csv": csv_bytes(("entity_id", "name", "type"), make_entities(words)),
        "queries.csv": csv_bytes(("query", "item_id", "label"), make_queries(words, products)),
        "truth.json": (json.dumps(truth, ensure_ascii=False, indent=1) + "\n").encode(),
    }
    numbers = {kind["name"]: n for n, kind in enumerate(words["categories"])}
    brands = {brand["name"]: brand for brand in words["brands"]}
    for brand, category in dict.fromkeys(p.cell for p in products if p.cell[0]):
        name = f"images/{slug(brands[brand], category)}.png"
        files[name] = draw(numbers[category], brands[brand]["color"])
    for name, content in files.items():
        (dst / name).parent.mkdir(parents=True, exist_ok=True)
        (dst / name).write_bytes(content)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("sample"))
