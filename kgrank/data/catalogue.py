"""The products of the sample shop, and what is known of them: items, triples, entities, queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

SEED = 20250301
PRODUCTS_A_CELL = 5  # a cell: one brand in one category
ITEM_COLUMNS = (
    "item_id", "title", "description", "brand", "category", "material", "color", "style",
    "shipping", "price", "image",
)  # fmt: skip

T = TypeVar("T")
Words = dict[str, Any]
Cell = tuple[str, str]


class Dice:
    """Seeded draws. Only `Generator.random` is used: what numpy is least likely to change."""

    def __init__(self, stream: int) -> None:
        self._rng = np.random.default_rng([SEED, stream])

    def roll(self) -> float:
        """A number in [0, 1)."""
        return float(self._rng.random())

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self.roll() < p

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.roll()

    def pick(self, things: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of things, with chances in proportion to weights (default: equal)."""
        if weights is None:
            return things[int(self.roll() * len(things))]
        sums = np.cumsum(weights)
        return things[int(np.searchsorted(sums, self.roll() * sums[-1], side="right"))]

    def some(self, things: Sequence[T], n: int) -> list[T]:
        """n different ones of things, in random order."""
        order = np.argsort(self._rng.random(len(things)), kind="stable")
        return [things[i] for i in order[:n]]


@dataclass(frozen=True)
class Product:
    """A row of items, and what the generator must know besides.

    `number` counts the products of a cell from 0; hand-written ones have -1 and no model.
    """

    item_id: str
    row: dict[str, str]
    cell: Cell
    number: int
    model: str
    consumable: bool
    cold: bool


def slug(brand: Words, category: str) -> str:
    """The file name of a cell's picture."""
    return f"{brand.get('latin', brand['name'])} {category}".lower().replace(" ", "-")


def wording(
    words: Words, brand: Words, kind: Words, number: int, lists: dict[str, list[str]], dice: Dice
) -> dict[str, str]:
    """Title and description of a brand's product, in Chinese, in English, or in both."""
    en, zh = kind["models"][number % 4]
    series = (number + number // 4) % 3  # no series and model twice in a cell of up to six
    style = words["styles"][lists["style"][0]]
    facts = [*dice.some(kind["features"], 2), dice.pick(kind["uses"]), style]
    text = brand["text"][number % len(brand["text"])]
    titles, descriptions = [], []
    if text != "en":
        colors = [words["colors"][color] for color in lists["color"]]
        materials = [words["materials"][material] for material in lists["material"]]
        titles.append(" ".join([brand["name"], brand["series_zh"][series], zh, *colors[:1]]))
        made_of = f"材质：{'、'.join(materials)}。" if materials else ""
        descriptions.append("".join(fact[1] for fact in facts) + made_of)
    if text != "zh":
        name = brand.get("latin", brand["name"])
        color = "".join(f", {color.title()}" for color in lists["color"][:1])
        titles.append(f"{name} {brand['series'][series]} {en}{color}")
        made_of = f" Made of {' and '.join(lists['material'])}." if lists["material"] else ""
        descriptions.append(" ".join(fact[0] for fact in facts) + made_of)
    return {"title": " ".join(titles), "description": " ".join(descriptions)}


def make_products(words: Words) -> list[Product]:
    """All products: five a cell, one more in the cells with a cold one, and the hand-written."""
    dice = Dice(1)
    kinds = {kind["name"]: kind for kind in words["categories"]}
    brands = {brand["name"]: brand for brand in words["brands"]}
    cold = {tuple(cell) for cell in words["cold"]}
    plan = [
        (brand, category, number)
        for brand in words["brands"]
        for category in brand["categories"]
        for number in range(PRODUCTS_A_CELL + ((brand["name"], category) in cold))
    ]
    ids = dice.some([f"{n:03d}" for n in range(1, len(plan) + 1)], len(plan))
    products = []
    for item_id, (brand, category, number) in zip(ids, plan, strict=True):
        kind = kinds[category]
        lists = {
            "material": dice.some(kind["materials"], 1 + dice.chance(0.4)),
            "color": dice.some(kind["colors"], 1 + dice.chance(0.25)),
            "style": dice.some(kind["styles"], 1 + dice.chance(0.3)),
        }
        low, high = kind["price"]
        row = wording(words, brand, kind, number, lists, dice) | {
            "item_id": item_id,
            "brand": brand["name"],
            "category": category,
            **{column: "|".join(values) for column, values in lists.items()},
            "shipping": "standard",
            "price": f"{math.floor(low + (high - low) * dice.roll() ** 1.5) + 0.9:.2f}",
            "image": f"images/{slug(brand, category)}.png" if dice.chance(0.85) else "",
        }
        model, consumable = kind["models"][number % 4][0], kind.get("consumable", False)
        is_cold = number == PRODUCTS_A_CELL
        cell = (brand["name"], category)
        products.append(Product(item_id, row, cell, number, model, consumable, is_cold))
    for special in words["special"]:
        row = {column: special.get(column, "") for column in ITEM_COLUMNS}
        if row["brand"]:
            row["shipping"] = "standard"
            row["image"] = f"images/{slug(brands[row['brand']], row['category'])}.png"
        cell = (row["brand"], row["category"])
        is_cold = special.get("cold", False)
        products.append(Product(row["item_id"], row, cell, -1, "", False, is_cold))
    return products


def speaks(product: Product, language: str) -> bool:
    """Whether title or description has words in the language ("en" or "zh")."""
    text = product.row["title"] + product.row["description"]
    if language == "zh":
        return any("\u4e00" <= letter <= "\u9fff" for letter in text)
    return sum(letter.isascii() and letter.isalpha() for letter in text) > 12


def order_of(words: Words, products: Sequence[Product]) -> list[tuple[str, str]]:
    """The planted (first, then) pairs of item ids."""
    ids = {(*p.cell, p.number): p.item_id for p in products}
    chains = [[ids[tuple(key)] for key in chain] for chain in words["order"]]
    pairs = [pair for chain in chains for pair in pairwise(chain)]
    return list(dict.fromkeys(pairs))


def liked_by(taste: Words, products: Iterable[Product]) -> list[Product]:
    """The products of the taste's brands in its categories."""
    return [
        p for p in products if p.cell[0] in taste["brands"] and p.cell[1] in taste["categories"]
    ]


def make_triples(words: Words, products: Sequence[Product]) -> list[tuple[str, str, str]]:
    """What is known of brands, companies, categories, materials, and products that fit."""
    triples = [
        (f"brand:{b['name']}", "made_by", f"company:{b['company']}") for b in words["brands"]
    ]
    triples += [(f"company:{a}", "owned_by", f"company:{b}") for a, b in words["owned_by"]]
    triples += [(f"brand:{a}", "pairs_with", f"brand:{b}") for a, b in words["brand_pairs"]]
    triples += [
        (f"category:{kind['name']}", "part_of", f"category:{kind['department'][0]}")
        for kind in words["categories"]
    ]
    triples += [(f"material:{a}", "is_a", f"material:{b}") for a, b in words["is_a"]]
    cells: dict[Cell, list[str]] = {}
    for product in products:
        if product.number >= 0:
            cells.setdefault(product.cell, []).append(product.item_id)
    for first, second in words["compatible"]:
        others = cells[tuple(second)]
        for i, item in enumerate(cells[tuple(first)]):
            for other in (others[i % len(others)], others[(i + 1) % len(others)]):
                triples.append((item, "compatible_with", other))
    return triples


def make_entities(words: Words) -> list[tuple[str, str, str]]:
    """Names of the entities whose id does not tell it, and those that no item mentions."""
    rows = [
        (f"brand:{b['name']}", f"{b['name']} {b['latin']}", "brand")
        for b in words["brands"]
        if "latin" in b
    ]
    rows += [
        (f"category:{kind['name']}", f"{kind['name']} {kind['zh']}", "category")
        for kind in words["categories"]
    ]
    departments = dict(kind["department"] for kind in words["categories"])
    rows += [(f"category:{name}", f"{name} {zh}", "category") for name, zh in departments.items()]
    classes = dict.fromkeys(b for _, b in words["is_a"])
    rows += [(f"material:{name}", name, "material") for name in classes]
    rows += [(f"company:{key}", name, "company") for key, name in words["companies"].items()]
    return rows


def make_queries(words: Words, products: Sequence[Product]) -> list[tuple[str, str, int]]:
    """One query a model, English and Chinese in turn, with labels 2, 1 and 0."""
    dice = Dice(4)
    rows = []
    for kind in words["categories"]:
        inside = [p for p in products if p.cell[1] == kind["name"]]
        outside = [p for p in products if p.cell[1] != kind["name"]]
        for number, (en, zh) in enumerate(kind["models"]):
            query = zh if number % 2 else en.lower().replace(",", "")
            rows += [(query, p.item_id, 2) for p in inside if p.model == en]
            near = [p for p in inside if p.model != en]
            rows += [(query, p.item_id, 1) for p in dice.some(near, 3)]
            rows += [(query, p.item_id, 0) for p in dice.some(outside, 2)]
    return rows
