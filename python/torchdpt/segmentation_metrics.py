"""How well classes are told apart: pixel accuracy and intersection over union."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX
from torchdpt.tally import Tally, as_batch


class SegmentationResult(NamedTuple):
    """How well classes are told apart. NaN where there is no labelled pixel.

    Attributes:
        pixel_accuracy: Share of labelled pixels with the right class, from 0 to 1.
        miou: Mean over classes of intersection over union, from 0 to 1, over all images at once.
        iou: That of each class; NaN of an absent one, which is in no target and, at labelled pixels, no prediction.
        images: Images with a labelled pixel.
        empty: Images without, which are left out.
        pixels: Labelled pixels.
        absent: Absent classes.
        invalid_predictions: Labelled pixels whose prediction is no class (255, say); they are wrong.
    """

    pixel_accuracy: float
    miou: float
    iou: tuple[float, ...]
    images: int
    empty: int
    pixels: int
    absent: int
    invalid_predictions: int


class SegmentationImage(NamedTuple):
    """One image's part of a `SegmentationResult`; its `miou` is the mean over classes that are in it."""

    pixel_accuracy: float
    miou: float
    pixels: int
    invalid_predictions: int


class SegmentationMetrics(Tally):
    """Pixel accuracy and mean intersection over union, from a confusion matrix over all images.

    Attributes:
        confusion: int64 [K, K + 1]: pixels by class of the target and of the prediction; the last column is no class.

    Args:
        num_classes: K.
        ignore_index: The target's label of pixels without a class. None: all have one.
        absent: How absent classes count in the mean: "zero": as 0, over all classes (PyTorch-Encoding);
            "skip": they are left out (torchmetrics).

    Raises:
        ValueError: if an option is unknown, or `ignore_index` is the index of a class.
    """

    def __init__(
        self, num_classes: int, *, ignore_index: int | None = IGNORE_INDEX, absent: Literal["zero", "skip"] = "zero"
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"SegmentationMetrics: num_classes must be at least 1, got {num_classes}")
        if absent not in ("zero", "skip"):
            raise ValueError(f"SegmentationMetrics: absent must be 'zero' or 'skip', got {absent!r}")
        if ignore_index is not None and 0 <= ignore_index < num_classes:
            raise ValueError(
                f"SegmentationMetrics: ignore_index must not be one of the {num_classes} classes, got {ignore_index}; "
                "pass None if each pixel has a class"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.absent: Literal["zero", "skip"] = absent
        self.confusion = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)

    def _settings(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes, "ignore_index": self.ignore_index, "absent": self.absent}

    def merge(self, other: Self) -> None:
        """Add what another metric of this kind has measured, after one's own; it stays as it is.

        Raises:
            ValueError: if it has other settings.
        """
        super().merge(other)
        self.confusion += other.confusion

    def update(
        self, prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, ids: Sequence[str] | None = None
    ) -> None:
        """Measure one image or a batch.

        Args:
            prediction: Labels, integers [H, W] or [B, H, W]. What is no class is wrong.
            target: Labels, of the same size.
            mask: bool, of the same size: where to look. Default: everywhere but at `ignore_index`.
            ids: Names of the images, for `per_image`. Default: their numbers.

        Raises:
            ValueError: if a tensor is of another shape, type or device, or a target neither a class nor ignored.
        """
        prediction, target, mask = as_batch("SegmentationMetrics", prediction, target, mask)
        for name, labels in (("prediction", prediction), ("target", target)):
            if labels.is_floating_point() or labels.dtype == torch.bool:
                raise ValueError(f"SegmentationMetrics: {name} must be labels, integers, got {labels.dtype}")
        p, t, count = prediction.long(), target.long(), self.num_classes
        valid = mask if self.ignore_index is None else mask & (t != self.ignore_index)
        wrong = valid & ((t < 0) | (t >= count))
        if wrong.any():
            raise ValueError(
                f"SegmentationMetrics: targets must be from 0 to {count - 1} or {self.ignore_index}, ignored; got "
                f"{t[wrong][0].item()}"
            )
        p = torch.where((p < 0) | (p >= count), count, p)
        cells = (torch.arange(len(p), device=p.device)[:, None, None] * count + t) * (count + 1) + p
        size = len(p) * count * (count + 1)
        confusion = cells[valid].bincount(minlength=size).reshape(len(p), count, count + 1).cpu()
        correct, union = _overlap(confusion)
        miou = (correct.double() / union.clamp(min=1)).sum(1) / (union > 0).sum(1)
        columns = [confusion.sum((1, 2)), correct.sum(1), miou, confusion[..., -1].sum(1)]
        self._add(torch.stack([column.double() for column in columns], dim=1), ids)
        self.confusion += confusion.sum(0)

    def compute(self) -> SegmentationResult:
        """The result over all images so far, NaN if they have no labelled pixel."""
        correct, union = _overlap(self.confusion)
        pixels, images = int(self.confusion.sum()), sum(row[0] > 0 for row in self._rows)
        iou = (correct.double() / union).tolist()  # NaN where both are 0
        present = [value for value in iou if not math.isnan(value)]
        counted = self.num_classes if self.absent == "zero" else len(present)
        return SegmentationResult(
            int(correct.sum()) / pixels if pixels else math.nan,
            math.fsum(present) / counted if pixels else math.nan,
            tuple(iou),
            images,
            len(self._rows) - images,
            pixels,
            self.num_classes - len(present),
            int(self.confusion[:, -1].sum()),
        )

    def per_image(self) -> list[tuple[str, SegmentationImage]]:
        """Name and result of each image, in the order of the updates."""
        results = []
        for id, (pixels, correct, miou, invalid) in zip(self._ids, self._rows, strict=True):
            accuracy = correct / pixels if pixels else math.nan
            results.append((id, SegmentationImage(accuracy, miou, int(pixels), int(invalid))))
        return results


def _overlap(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union [..., K] of a confusion matrix [..., K, K + 1]."""
    correct = confusion[..., :-1].diagonal(dim1=-2, dim2=-1)
    return correct, confusion.sum(-1) + confusion[..., :-1].sum(-2) - correct
