"""Loops compiled by numba, kept on disk between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function as machine code that runs without the GIL; sums may be taken in any order."""
    options: dict[str, Any] = {"nogil": True, "fastmath": {"contract", "reassoc"}}
    try:
        made: Function = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        made = numba.njit(**options)(function)
    return made
