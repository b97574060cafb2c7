"""The `[fit]` and `[learn]` sections: how channels and their fusion are fitted and learned."""

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
    seed: int = Field(default=0, ge=0)
