"""Where tensors are worked on."""

from __future__ import annotations

from kgrank.errors import ModelError


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
