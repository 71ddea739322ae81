"""The processes of a run: one, or those that torchrun starts."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator

import torch
import torch.distributed as dist


def device_of(name: str) -> torch.device:
    """The device of this process; "auto" is a GPU where there is one, and "cuda" that of the process's number.

    Raises:
        ValueError: if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:1, ..., got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: {name} is not there; use device=cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


@contextlib.contextmanager
def processes(device: str) -> Iterator[None]:
    """Joins the processes that torchrun started, and leaves them at the end; without torchrun, nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    gpu = device_of(device).type == "cuda"
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
    try:
        with warnings.catch_warnings():
            # Of weights of 1x1 convolutions, whose gradients come with channels last: the same memory.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            # Its successor is not in all versions of torch that are supported.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            yield
    finally:
        dist.destroy_process_group()
