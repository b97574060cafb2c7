"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total) as work goes on."""

Count = Callable[[int, int], None]
"""The same within one stage: called with (done, total)."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress of those who do not want to be told."""
