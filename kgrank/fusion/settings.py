"""The `[fit]` and `[tasks]` sections: how a model is fitted, and what it predicts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kgrank.settings import Section


class FitSettings(Section):
    """How a model is fitted.

    Attributes:
        refit: fit the channels again on train + valid once all is chosen on valid.
        protocol: what a query on valid is. "later": a moment of the user's valid time, everything
            before it is history and everything after it relevant; "user": one query a user, all
            train rows are history and all valid rows relevant; "auto": "later" unless the split is
            not by time (valid rows stand before train rows of the same user).
        neighbors: how many items each item's weights are spread over, at most.
        seed: of the sampling of queries.
    """

    refit: bool = True
    protocol: Literal["auto", "later", "user"] = "auto"
    neighbors: int = Field(default=100, ge=1, le=1000)
    seed: int = Field(default=0, ge=0, lt=2**63)


class TaskSettings(Section):
    """Which kinds of events are predicted, by a head of their own each.

    Kinds that the events do not have count for nothing; a task without any, or with too few rows
    on valid, has no head.

    Attributes:
        click: kinds that are a look at a product: its probability is predicted.
        purchase: kinds that are a purchase: its probability is predicted, and with kinds of clicks
            how probably a purchase follows on a click (task "conversion").
        rating: kinds whose `value` is a rating: the value is predicted.
    """

    click: tuple[str, ...] = ("click", "view")
    purchase: tuple[str, ...] = ("purchase", "order", "buy")
    rating: tuple[str, ...] = ("rating", "review")
