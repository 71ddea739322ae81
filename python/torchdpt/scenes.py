"""Procedural scenes with exact depth, normals and labels: data to train on where there is none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CLASS_NAMES", "RenderedScene", "render"]

# What the labels of a scene mean.
CLASS_NAMES = ("floor", "wall", "ceiling", "sky", "box", "ball", "cylinder", "table", "shelf", "tree")


class RenderedScene(NamedTuple):
    """A picture of a scene, and the truth about it.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        depth: float32 [H, W], metres along the optical axis; infinite in the sky.
        normals: float32 [H, W, 3], of the surfaces, towards the camera, in its axes: x to the right, y down, z forward.
            Zero in the sky.
        labels: uint8 [H, W], numbers of `CLASS_NAMES`.
        focal: Of the camera, in pixels, in both directions; the optical axis goes through the picture's centre.
    """

    image: Tensor
    depth: Tensor
    normals: Tensor
    labels: Tensor
    focal: float


def render(seed: int, height: int, width: int) -> RenderedScene:
    """A room, a table top or a street of boxes, balls, cylinders and furniture, with textures, lamps and shadows.

    Nothing is within 25 cm of the camera.

    Args:
        seed: The scene, from -2^63 to 2^63 - 1. Scenes of a seed are the same at any size, but for the noise of the
            camera.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.

    Raises:
        ValueError: if height or width is not positive.
    """
    return RenderedScene(*torch.ops.dpt.render_scene(seed, height, width))
