"""Where tensors are worked on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kgrank.errors import ModelError

if TYPE_CHECKING:
    import torch


def choose_device(device: str) -> str:
    """ "cpu" or "cuda": what is asked for, "auto" meaning cuda where there is one.

    Raises:
        ModelError: there is no such device here.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" or (device == "cuda" and torch.cuda.is_available()):
        return device
    raise ModelError(
        f"found device {device!r}; allowed here: 'auto', 'cpu'"
        + (", 'cuda'" if torch.cuda.is_available() else " (this machine shows no GPU to torch)")
    )


def half_precision(device: str) -> torch.autocast:
    """Within it a model on "cuda" computes in bfloat16; one on "cpu" as ever.

    Weights, and the gradients that come of it, stay float32. A CPU without bfloat16 units of its
    own would be a hundred times slower.
    """
    import torch

    return torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")
