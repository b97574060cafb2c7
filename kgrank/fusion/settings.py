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


class LearnSettings(Section):
    """The `[learn]` section: how learned parts are trained.

    Attributes:
        epochs: passes over the training data, at most; the schedule is laid out for them.
        patience: epochs without a better result on valid after which training stops.
        batch: rows a step, at least: an epoch has at most 500 steps.
        rate: highest learning rate; it rises over the first steps and falls linearly.
        decay: AdamW's decoupled weight decay (Loshchilov and Hutter, 2019).
        warmup: steps over which the rate rises.
        clip: largest norm of the gradient; a longer one is scaled down to it.
        checkpoint_seconds: how often a checkpoint is written, at most; there is one each epoch.
        seed: of everything that is drawn.
    """

    epochs: int = Field(default=8, ge=1)
    patience: int = Field(default=2, ge=1)
    batch: int = Field(default=512, ge=1)
    rate: float = Field(default=0.003, gt=0)
    decay: float = Field(default=0.01, ge=0)
    warmup: int = Field(default=20, ge=0)
    clip: float = Field(default=1.0, gt=0)
    checkpoint_seconds: float = Field(default=60.0, ge=0)
    seed: int = Field(default=0, ge=0)
