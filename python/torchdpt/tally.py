"""What every metric keeps: a row of numbers for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Value = TypeVar("Value")


class Tally:
    """One row of numbers for each image, its name, and how the rows of several are brought together."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._rows: list[list[float]] = []

    def _settings(self) -> dict[str, Any]:
        """The arguments that make another one like this."""
        raise NotImplementedError

    def _add(self, rows: Tensor, ids: Sequence[str] | None) -> None:
        names = [str(len(self._ids) + i) for i in range(len(rows))] if ids is None else [str(id) for id in ids]
        if isinstance(ids, str) or len(names) != len(rows):
            raise ValueError(f"ids must be a list of {len(rows)} names, one for each image, got {ids!r}")
        self._ids += names
        self._rows += rows.tolist()

    def merge(self, other: Self) -> None:
        """Add what another metric of this kind has measured, after one's own; it stays as it is.

        Raises:
            ValueError: if it has other settings.
        """
        if type(other) is not type(self) or other._settings() != self._settings():
            one, two = (f"{type(metric).__name__}({metric._settings()})" for metric in (self, other))
            raise ValueError(f"only metrics with the same settings can be merged, got {one} and {two}")
        self._ids += other._ids
        self._rows += other._rows

    def all_reduce(self, process_group: dist.ProcessGroup | None = None) -> Self:
        """A metric of what all processes have measured, in order of rank; this one stays as it is.

        All processes of the group must call it. Without a process group it is a copy.

        Args:
            process_group: Of torch.distributed. Default: the default group, if there is one.
        """
        together = type(self)(**self._settings())
        for metric in gather(self, process_group):
            together.merge(metric)
        return together


def rank_and_size() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    there = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if there else (0, 1)


def gather(value: Value, process_group: dist.ProcessGroup | None) -> list[Value]:
    """What each process has, in order of rank; of the default group, if there is one, or of this process alone."""
    if process_group is None and not (dist.is_available() and dist.is_initialized()):
        return [value]
    values = [value] * dist.get_world_size(process_group)
    dist.all_gather_object(values, value, group=process_group)
    return values


def check_one_device(name: str, prediction: Tensor, target: Tensor, mask: Tensor) -> None:
    if not prediction.device == target.device == mask.device:
        raise ValueError(
            f"{name}: prediction, target and mask must be on one device, got {prediction.device}, {target.device}, "
            f"{mask.device}"
        )


def as_batch(name: str, prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """All three as [B, H, W], on one device; without a mask one of True."""
    if mask is None:
        mask = torch.ones_like(target, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"{name}: mask must be bool, got {mask.dtype}; pass mask > 0")
    if prediction.dim() not in (2, 3) or prediction.shape != target.shape or prediction.shape != mask.shape:
        raise ValueError(
            f"{name}: prediction, target and mask must be [H, W] or [B, H, W] of one size, got "
            f"{list(prediction.shape)}, {list(target.shape)}, {list(mask.shape)}; resize the prediction to the target"
        )
    check_one_device(name, prediction, target, mask)
    height, width = prediction.shape[-2:]
    shape = (math.prod(prediction.shape[:-2]), height, width)
    return prediction.detach().reshape(shape), target.detach().reshape(shape), mask.reshape(shape)
