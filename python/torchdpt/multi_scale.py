"""Scores of classes for a photograph, as a protocol says: at several scales, in crops that overlap, and mirrored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchdpt.image import Array, is_count, load_image
from torchdpt.predict import Network, check_network_size, processor_for
from torchdpt.protocols import SegmentationProtocol

if TYPE_CHECKING:
    from torchdpt.image import ImageLike


def predict_scores(model: Network, image: ImageLike, protocol: SegmentationProtocol, *, batch_size: int = 8) -> Tensor:
    """The scores of all classes at each pixel of a photograph.

    Args:
        model: A network with `protocol.num_classes` classes. It runs in eval mode.
        image: RGB, as `load_image` takes it.
        protocol: How.
        batch_size: How many crops at most are in the network at once.

    Returns:
        float32 [K, H, W], on the model's device: the label of a pixel is that of its largest score. All are in memory
        at once, 7 GB for 150 classes of 12 megapixels.

    Raises:
        ValueError: if the image is damaged, none or, without crops, too narrow or too large; the network has other
            classes; or crops do not fit its patches.

    Reference: PyTorch-Encoding, encoding/models/sseg/base.py; isl-org/DPT, run_segmentation.py.
    """
    check_classes(model, protocol)
    if not is_count(batch_size):
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    array = load_image(image)
    height, width = array.shape[:2]
    check_size(model, height, width, protocol)
    total = torch.zeros(protocol.num_classes, height, width, device=model.device)
    for scale in protocol.scales:
        side = _side(protocol, scale)
        if protocol.crop_size is None or protocol.stride is None:
            scores = _of_whole(model, array, side, protocol)
        else:
            scores = _of_crops(model, array, side, protocol.crop_size, protocol.stride, protocol, batch_size)
        total += _resize(scores, height, width, protocol.upsample)
    return total


def check_classes(model: Network, protocol: SegmentationProtocol) -> None:
    """ValueError if the network has other classes than the protocol, or crops do not fit its patches."""
    if model.config.num_classes != protocol.num_classes:
        has = f"{model.config.num_classes} classes" if model.config.num_classes else "no head for classes"
        raise ValueError(f"{protocol.name} is of {protocol.num_classes} classes, and this network has {has}")
    multiple = model.config.size_multiple
    if protocol.crop_size is not None and protocol.crop_size % multiple:
        raise ValueError(
            f"{protocol.name}: crop_size must be a multiple of {multiple} for this network, got {protocol.crop_size}"
        )


def check_size(model: Network, height: int, width: int, protocol: SegmentationProtocol) -> None:
    """ValueError if photographs of this size are too narrow or too large without crops."""
    for scale in protocol.scales if protocol.crop_size is None else ():
        processor = processor_for(model, _side(protocol, scale), protocol.resize)
        check_network_size(model, *processor.network_size(height, width))


def _side(protocol: SegmentationProtocol, scale: float) -> int:
    return math.ceil(protocol.base_size * scale)


def _of_whole(model: Network, image: Array, side: int, protocol: SegmentationProtocol) -> Tensor:
    """[K, h, w], at the size of the network's input."""
    return _scores(model, processor_for(model, side, protocol.resize)(image)[None], protocol)[0]


def _of_crops(
    model: Network, image: Array, side: int, crop: int, stride: int, protocol: SegmentationProtocol, batch_size: int
) -> Tensor:
    """[K, h, w], of the photograph with a longer side of `side`."""
    full = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    rgb = torch.from_numpy(image.astype(np.float32) / full).permute(2, 0, 1).to(model.device)
    height, width = (max(1, int(side * length / max(image.shape[:2]) + 0.5)) for length in image.shape[:2])
    rgb = _resize(rgb, height, width, protocol.upsample)
    tops, lefts = (range(0, max(length - crop, 0) + stride, stride) for length in (height, width))
    # Black, and normalised like the rest of it: the last crops begin at a multiple of the stride, too, and reach over.
    rgb = F.pad(rgb, (0, lefts[-1] + crop - width, 0, tops[-1] + crop - height))
    x = model.processor.normalize(rgb.permute(1, 2, 0)).permute(2, 0, 1)
    corners = [(top, left) for top in tops for left in lefts]
    total = torch.zeros(protocol.num_classes, *x.shape[1:], device=model.device)
    count = torch.zeros(x.shape[1:], device=model.device)
    for start in range(0, len(corners), batch_size):
        batch = corners[start : start + batch_size]
        crops = torch.stack([x[:, top : top + crop, left : left + crop] for top, left in batch])
        for (top, left), scores in zip(batch, _scores(model, crops, protocol), strict=True):
            total[:, top : top + crop, left : left + crop] += scores
            count[top : top + crop, left : left + crop] += 1
    return (total / count)[:, :height, :width]


def _scores(model: Network, images: Tensor, protocol: SegmentationProtocol) -> Tensor:
    """[B, K, h, w] of images [B, 3, h, w], normalised."""
    logits = _logits(model, images)
    if protocol.flip:
        logits = logits + _logits(model, images.flip(3)).flip(3)
    return logits.exp() if protocol.score == "exp" else logits


def _logits(model: Network, images: Tensor) -> Tensor:
    logits = model._run(images).logits
    assert logits is not None  # `check_classes`
    return logits.float()


def _resize(maps: Tensor, height: int, width: int, mode: str) -> Tensor:
    """[C, h, w] to [C, height, width]."""
    if mode == "bicubic":
        return F.interpolate(maps[None], (height, width), mode="bicubic", align_corners=False)[0]
    return F.interpolate(maps[None], (height, width), mode="bilinear", align_corners=True)[0]
