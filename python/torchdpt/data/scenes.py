"""Procedural scenes as a data set."""

from __future__ import annotations

import torch

from torchdpt import scenes
from torchdpt.classes import Classes
from torchdpt.data.sample import Sample


class SceneDataset:
    """Pictures of procedural scenes, rendered when they are asked for (`torchdpt.scenes`), with depth and classes.

    Attributes:
        classes: What the labels mean.

    Args:
        length: How many; the default is more than a training run will see.
        first: Seed of the first one. Those of two data sets differ if their ranges of seeds do not meet.
        height: Of the pictures, in pixels.
        width: Of the pictures, in pixels.
        name: Of the data set.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(
        self, length: int = 1_000_000, *, first: int = 0, height: int = 192, width: int = 256, name: str = "scenes"
    ) -> None:
        if min(length, height, width) < 1:
            raise ValueError(
                f"SceneDataset: length, height and width must be positive, got {length}, {height}, {width}"
            )
        self.name = name
        self.classes = Classes("scenes", scenes.CLASS_NAMES)
        self.first = first
        self.height = height
        self.width = width
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Sample:
        """Scene number `index`, of the seed `first + index`."""
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name}: there is no scene {index} of {self._length}")
        scene = scenes.render(self.first + index, self.height, self.width)
        return Sample(
            image=scene.image,
            dataset=self.name,
            id=str(self.first + index),
            target=scene.depth,
            mask=torch.ones_like(scene.depth, dtype=torch.bool),
            kind="depth",
            unit="metre",
            labels=scene.labels,
        )
