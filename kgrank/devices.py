"""Where tensors are worked on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def half_precision(device: str) -> Iterator[None]:
    """Within it a transformer on "cuda" computes in bfloat16; one on "cpu" as ever.

    Weights, and the gradients that come of it, stay float32. A CPU without bfloat16 units of its
    own would be a hundred times slower. cuDNN's attention is left out: it makes a plan for every
    width of a batch of texts, which takes longer than the batch.
    """
    if device != "cuda":
        yield
        return
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with torch.autocast("cuda", torch.bfloat16), sdpa_kernel(kernels):
        yield
