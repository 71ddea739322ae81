"""Transforms of an image and its truth together.

Images are resampled with antialiasing; depth, masks and classes take the nearest pixel, so that no value arises that
was not measured. A change of size leaves depth as it is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX
from torchdpt.data.sample import Sample
from torchdpt.image import ImageProcessor

Resize = Literal["none", "lower_bound", "upper_bound", "minimal", "exact"]


def resize(sample: Sample, height: int, width: int) -> Sample:
    """Resize to (height, width): the image bilinearly with antialiasing, the truth to the nearest pixel.

    Raises:
        ValueError: if height or width is not positive.
    """
    if min(height, width) < 1:
        raise ValueError(f"resize: height and width must be positive, got {height} and {width}")
    old = sample.image.shape[:2]
    if old == (height, width):
        return sample
    planes = sample.image.permute(2, 0, 1)[None]
    image = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False, antialias=True)
    # The pixel whose square holds the centre of the new one.
    rows, columns = (
        torch.div((2 * torch.arange(new) + 1) * side, 2 * new, rounding_mode="floor")
        for side, new in zip(old, (height, width), strict=True)
    )
    return _apply(sample, image[0].permute(1, 2, 0), lambda map, _: map[rows[:, None], columns])


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The part of (height, width) pixels with this upper left corner. What lies outside is black and not known.

    Raises:
        ValueError: if the corner is not in the image, or height or width is not positive.
    """
    rows, columns = sample.image.shape[:2]
    if not (0 <= top < rows and 0 <= left < columns and height > 0 and width > 0):
        raise ValueError(
            f"crop: {height} x {width} at ({top}, {left}) does not begin inside of {rows} x {columns} (height x width)"
        )

    def part(map: Tensor, value: int) -> Tensor:
        inside = map[top : top + height, left : left + width]
        missing = (height - inside.shape[0], width - inside.shape[1])
        if missing == (0, 0):
            return inside
        whole = inside.new_full((height, width, *map.shape[2:]), value)
        whole[: inside.shape[0], : inside.shape[1]] = inside
        return whole

    return _apply(sample, part(sample.image, 0), part)


def flip(sample: Sample) -> Sample:
    """Mirror left and right."""
    return _apply(sample, sample.image.flip(1), lambda map, _: map.flip(1))


def change_colors(image: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Random brightness, contrast, saturation, tint and gamma, sometimes gray: uint8 [H, W, 3] to the same.

    Args:
        image: RGB.
        strength: 0 changes nothing, 1 a lot: a contrast, say, between 0.5 and 2.
        rng: Where the random numbers come from.
    """
    brightness, contrast, saturation, gamma, *tint = np.exp2(strength * rng.uniform(-1, 1, 7))
    x = image.float() / 255
    if rng.random() < 0.2 * strength:
        saturation = 0.0
    weights = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
    gray = (x @ weights)[:, :, None]
    x = gray + float(saturation) * (x - gray)
    x = x * torch.tensor(np.sqrt(tint), dtype=torch.float32) * float(np.sqrt(brightness))
    mean = x.mean()
    x = mean + float(contrast) * (x - mean)
    return (255 * x.clamp(0, 1) ** float(gamma)).round().to(torch.uint8)


def blur(image: Tensor, factor: float) -> Tensor:
    """What is left of uint8 [H, W, 3] at a size that is smaller by this factor, at its own size."""
    height, width = image.shape[:2]
    planes = image.permute(2, 0, 1)[None]
    small = (max(1, round(height / factor)), max(1, round(width / factor)))
    planes = F.interpolate(planes, small, mode="bilinear", align_corners=False, antialias=True)
    planes = F.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    return planes[0].permute(1, 2, 0)


def add_noise(image: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    """uint8 [H, W, 3] with Gaussian noise; the deviation is in units of the full range."""
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    return (image + 255 * deviation * noise).round().clamp(0, 255).to(torch.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What training does to a sample: resize, rescale, random crop and flip, random colours, blur and noise.

    The defaults are those of DPT's depth. Two statements of the paper, a longer side of 384 and square crops of 384,
    contradict each other for images that are not square; as in MiDaS, the shorter side decides. ("upper_bound" takes
    the paper at its word, and fills up with black.)

    Attributes:
        size: (height, width) in pixels that the resize aims at.
        resize: Policy of `ImageProcessor`; "none" leaves images as they are.
        rescale: (low, high): `size` is multiplied with a random number between them.
        crop: (height, width) of the random part that is left, filled up with black where the image is smaller. None:
            all; then the resize must give all images one size.
        flip: Whether half of the samples are mirrored.
        colors: Strength of random colours, from 0 (none) to 1.
        blur: Half of the images are blurred by a random factor up to this one; 1 for none.
        noise: Half of the images get noise of a random deviation up to this one, of the full range; 0 for none.

    Raises:
        ValueError: if a field is out of range.
    """

    size: tuple[int, int] = (384, 384)
    resize: Resize = "lower_bound"
    rescale: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = (384, 384)
    flip: bool = True
    colors: float = 0.0
    blur: float = 1.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.rescale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"Augmentation: rescale must be (low, high) with 0 < low <= high, got {self.rescale}")
        if not (0 <= self.colors <= 1 and 0 <= self.noise <= 1 and 1 <= self.blur < math.inf):
            got = f"{self.colors}, {self.noise} and {self.blur}"
            raise ValueError(f"Augmentation: colors and noise must be from 0 to 1, and blur 1 or more, got {got}")
        if min(*self.size, *(self.crop or (1, 1))) < 1:
            raise ValueError(f"Augmentation: size and crop must be positive, got {self.size} and {self.crop}")
        if self.resize not in ("none", *_POLICIES):
            raise ValueError(f"Augmentation: resize must be one of none, {', '.join(_POLICIES)}, got {self.resize!r}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample changed at random.

        Args:
            sample: Any.
            rng: Where the random numbers come from: the same ones give the same sample.
        """
        factor = rng.uniform(*self.rescale)
        place = rng.random(2)
        mirrored = rng.random() < 0.5
        if self.resize != "none":
            size = (max(1, round(self.size[0] * factor)), max(1, round(self.size[1] * factor)))
            policy = ImageProcessor(size, resize=self.resize, multiple_of=1)
            sample = resize(sample, *policy.network_size(*sample.image.shape[:2]))
        elif factor != 1:
            sample = resize(sample, *(max(1, round(side * factor)) for side in sample.image.shape[:2]))
        if self.crop is not None:
            room = [max(0, side - kept) for side, kept in zip(sample.image.shape, self.crop, strict=False)]
            top, left = (int(at * (free + 1)) for at, free in zip(place, room, strict=True))
            sample = crop(sample, top, left, *self.crop)
        if self.flip and mirrored:
            sample = flip(sample)
        image = change_colors(sample.image, self.colors, rng) if self.colors else sample.image
        if self.blur > 1 and rng.random() < 0.5:
            image = blur(image, rng.uniform(1, self.blur))
        if self.noise and rng.random() < 0.5:
            image = add_noise(image, rng.uniform(0, self.noise), rng)
        return sample.replace(image=image)


_POLICIES = ("lower_bound", "upper_bound", "minimal", "exact")


def _apply(sample: Sample, image: Tensor, change: Callable[[Tensor, int], Tensor]) -> Sample:
    """The sample with this image and the maps of the truth changed; `change` also gets the value of unknown pixels."""
    unknown = {"target": 0, "mask": 0, "labels": IGNORE_INDEX}
    maps = {name: getattr(sample, name) for name in unknown}
    changed = {name: change(map, unknown[name]) for name, map in maps.items() if map is not None}
    return sample.replace(image=image, **changed)
