"""What only some verbs need, and how it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from kgrank.errors import ModelError


def needs(module: str, extra: str, what: str) -> None:
    """See that a module of an extra is installed.

    Raises:
        ModelError: it is not; the message names the command that installs it.
    """
    if find_spec(module) is None:
        raise ModelError(
            f"{what} needs {module}, which is not installed; run `pip install kgrank[{extra}]`"
        )
