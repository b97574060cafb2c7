"""The bundled sample shop."""

from __future__ import annotations

from pathlib import Path


def sample_shop() -> Path:
    """The folder of the bundled shop: the tables, `images/`, and `truth.json` (what was planted).

    `generate.py` beside this file made it, and says what the truth means.
    """
    return Path(__file__).parent / "sample"
