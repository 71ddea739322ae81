"""One image and the truth about it: what every data set gives, and every transform takes and gives."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

Kind = Literal["depth", "inverse_depth"]
Unit = Literal["metre", "relative"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """An image with a depth map, with classes, with both or, to predict for, with neither.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        dataset: Name of the data set.
        id: Name of the sample in it: what an error message should say.
        target: float32 [H, W]: depth or inverse depth, finite and not negative where `mask` is true, but for the sky,
            whose depth is infinite (its inverse depth 0); 0 where `mask` is false.
        mask: bool [H, W]: where the target is known. The sky is known to be far.
        kind: What the target is: "depth" along the optical axis, or "inverse_depth" (disparity).
        unit: "metre": of depth metres, of inverse depth their inverse; "relative": depth up to a scale, inverse depth
            up to a scale and a shift.
        labels: uint8 [H, W]: classes, `IGNORE_INDEX` (255) where there is none.

    Raises:
        ValueError: if a tensor has another type, or another height and width than the image.
    """

    image: Tensor
    dataset: str
    id: str
    target: Tensor | None = None
    mask: Tensor | None = None
    kind: Kind = "depth"
    unit: Unit = "relative"
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image.dtype != torch.uint8 or self.image.dim() != 3 or self.image.shape[2] != 3:
            raise ValueError(f"{self}: image must be uint8 [H, W, 3], got {_describe(self.image)}")
        if (self.target is None) != (self.mask is None):
            raise ValueError(f"{self}: target and mask go together, got one without the other")
        wanted = {"target": torch.float32, "mask": torch.bool, "labels": torch.uint8}
        for name, dtype in wanted.items():
            value = getattr(self, name)
            if value is not None and (value.dtype != dtype or value.shape != self.image.shape[:2]):
                size = list(self.image.shape[:2])
                raise ValueError(f"{self}: {name} must be {dtype} {size} as the image is, got {_describe(value)}")

    def __str__(self) -> str:
        return f"{self.dataset}/{self.id}"

    def replace(self, **changes: Any) -> Self:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def inverse_depth(self) -> Tensor:
        """float32 [H, W]: the target as inverse depth, whatever `kind` is; 0 where `mask` is false.

        Raises:
            ValueError: if there is no target.
        """
        return self._target("inverse_depth")

    def depth(self) -> Tensor:
        """float32 [H, W]: the target as depth, whatever `kind` is: infinite in the sky, 0 where `mask` is false.

        Raises:
            ValueError: if there is no target, or it is inverse depth of unknown shift, which has no depth.
        """
        if self.kind == "inverse_depth" and self.unit == "relative":
            raise ValueError(f"{self}: a relative inverse depth has an unknown shift, and so no depth")
        return self._target("depth")

    def _target(self, kind: Kind) -> Tensor:
        if self.target is None or self.mask is None:
            raise ValueError(f"{self}: has no depth map")
        return self.target if self.kind == kind else torch.where(self.mask, 1 / self.target, 0)


class Dataset(Protocol):
    """Samples by number. `torch.utils.data.DataLoader` takes it, too."""

    @property
    def name(self) -> str:
        """What its samples' `dataset` says."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample:
        """A sample, always the same for an index.

        Raises:
            ValueError: if it is damaged; the message names its file.
            OSError: if it cannot be read.
        """


class Part:
    """Some samples of a data set, evenly spaced from the first to the last.

    Args:
        dataset: Which.
        count: How many; all, if it has fewer.
    """

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.name = dataset.name
        self._dataset = dataset
        places = torch.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=torch.float64)
        self._numbers: list[int] = places.round().long().tolist()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int, /) -> Sample:
        return self._dataset[self._numbers[index]]


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
