"""A shop's tables: read whole, checked whole, then never changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd


@dataclass(frozen=True, eq=False)
class Tables:
    """The validated tables of a shop. Ids are strings, kept to the letter.

    Attributes:
        events: one row an event in the order of time inside each user: `user_id`, `item_id`,
            `event` (str), `timestamp` (float64 seconds UTC) or `position` (int64) where the source
            has them, `value` (float64, NaN where absent), `split` ("train", "valid" or "test").
        items: `item_id`, `title`, `description` (str, "" where absent), then attribute columns.
        users: `user_id`, then attribute columns; may be empty.
        triples: `head`, `relation`, `tail` (str), `weight` (float64, 1 where absent); may be empty.
        entities: `entity_id`, `name`, `type` (str); may be empty.
        queries: `query`, `item_id` (str), `label` (float64); may be empty.
        source: the folder or kgrank.toml the tables were read from.
    """

    events: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    triples: pd.DataFrame
    entities: pd.DataFrame
    queries: pd.DataFrame
    source: Path | None = None
