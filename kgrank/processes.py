"""Several processes that train as one, as `torchrun` starts them.

    torchrun --nproc-per-node 2 -m kgrank train shop/

Process 0 leads: what it decides holds for all, and it alone writes and reports. A lone process is
one that leads nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from kgrank.errors import ModelError

PATIENCE = timedelta(days=1)  # the others wait while process 0 does what it does alone


def leads() -> bool:
    """Whether this process is the one that leads, joined or not yet."""
    return _started() < 2 or os.environ["RANK"] == "0"


def rank() -> int:
    """The number of this process among those that are joined; 0 leads."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes are joined, this one counted."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the other processes that `torchrun` started, if it did; within another `joined`, stay.

    Args:
        device: "cpu" or "cuda", on which tensors are shared; each process gets a GPU of its own.

    Raises:
        ModelError: this machine has fewer GPUs than processes, or another process has ended.
    """
    if _started() < 2 or dist.is_initialized():
        yield
        return
    if device == "cuda":
        here, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if here >= gpus:
            raise ModelError(
                f"found process {here} of this machine, which has {gpus} GPU(s); allowed: as many "
                "processes as GPUs. Lower --nproc-per-node, or train with --device cpu."
            )
        torch.cuda.set_device(here)
    with _lost_told():
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def add_up(tensor: Tensor) -> None:
    """Put the sum over all processes into the tensor, in each the same to the bit.

    Raises:
        ModelError: another process has ended.
    """
    if world() > 1:
        with _lost_told():
            dist.all_reduce(tensor)


def follow(tensor: Tensor) -> None:
    """Put what process 0 has in it into the tensor.

    Raises:
        ModelError: another process has ended.
    """
    if world() > 1:
        with _lost_told():
            dist.broadcast(tensor, 0)


def agreed(value: float) -> float:
    """The value that process 0 came with.

    Raises:
        ModelError: another process has ended.
    """
    shared = torch.tensor(value, dtype=torch.float64)
    follow(shared)
    return float(shared)


def _started() -> int:
    """How many processes were started together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def _lost_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no other errors
        number = os.environ.get("RANK", "0")
        raise ModelError(
            f"process {number}: found another process of this training gone; allowed: all of them "
            "to the end. Look for its own message; start all anew, with --resume if there is a "
            f"checkpoint. ({error!s:.120})"
        ) from error
