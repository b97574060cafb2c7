"""What a shop says, as texts to learn from and texts held out."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import pandas as pd

from kgrank.encoders.text import column_texts
from kgrank.errors import DataError, Fault
from kgrank.settings import check_columns


def shop_texts(
    items: pd.DataFrame,
    events: pd.DataFrame,
    fields: Sequence[str],
    event_fields: Sequence[str] = (),
    section: str = "pretrain",
) -> list[str]:
    """The values of some columns, each a text of its own, column by column.

    Args:
        items: a shop's items.
        events: those of its events that may be learned from.
        fields: columns of items.
        event_fields: columns of events.
        section: of the configuration that names the columns; messages say it.

    Raises:
        ConfigError: a column is not there.
    """
    texts: list[str] = []
    for table, frame, names in (
        ("items", items, fields),
        ("events", events, event_fields),
    ):
        setting = "fields" if table == "items" else "event_fields"
        check_columns(f"{section}.{setting}", names, table, frame.columns)
        for name in names:
            texts += column_texts(frame[name])
    return texts


def split_texts(
    texts: Sequence[str], share: float, section: str = "pretrain"
) -> tuple[list[str], list[str]]:
    """The distinct texts that say something, and those of them that are held out.

    A text's hash decides, so that it stays on its side when others come or go. Texts that differ
    in case or in spaces alone are on one side. At least one is held out. Messages say the
    `section` that names the columns.

    Returns:
        What is learned from, and what is held out, each in the order given.

    Raises:
        DataError: fewer than two texts say something.
    """
    whole = dict.fromkeys(" ".join(text.split()) for text in texts)
    whole.pop("", None)
    places = {text: _hash(text.casefold()) for text in whole}
    if len(set(places.values())) < 2:
        found = f"{len(whole)} text(s) that say something, of {len(texts)}"
        mend = f"Fill in titles or descriptions, or name other columns in [{section}] fields."
        raise DataError([Fault("items", None, None, found, "two or more", mend)])
    lowest, highest = min(places.values()), max(places.values())
    limit = min(max(lowest, share), highest)  # one on each side, at least
    held = {text for text, place in places.items() if place <= lowest or place < limit}
    return [t for t in whole if t not in held], [t for t in whole if t in held]


def _hash(text: str) -> float:
    """A number in [0, 1) for each text."""
    return int(sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:13], 16) / 2**52
