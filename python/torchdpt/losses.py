"""Losses of depth and segmentation, exact and safe for degenerate input; docs/losses.md has every formula.

Maps are tensors [B, H, W]: prediction and target in float32 or float64 (half types are converted to float32), mask in
bool, true where the target is valid; what is outside the mask never matters. Sums are float64 whatever autocast says.
Gradients flow to the prediction alone.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX

__all__ = [
    "Alignment",
    "LossResult",
    "align",
    "gradient_matching",
    "scale_and_shift_invariant",
    "segmentation",
    "silog",
]

AlignmentMode = Literal["robust", "least_squares"]
Reduction = Literal["image", "batch"]
Definition = Literal["recommended", "paper", "published"]


class LossResult(NamedTuple):
    """A loss of maps, and what became of each image.

    Attributes:
        loss: [], differentiable.
        per_image: [B], differentiable; each by its own number of pixels whatever `reduction` is, 0 where dropped.
        scale: [B]; scale * prediction + shift is the prediction aligned to the target. No gradient.
        shift: [B].
        dropped: [B], int64: 0 used; 1 empty, no valid pixel; 2 constant, prediction or target have no scale; 3 not
            finite, NaN or infinity at a valid pixel or in the sums of the alignment. The loss and the gradient of a
            dropped image are 0.
    """

    loss: Tensor
    per_image: Tensor
    scale: Tensor
    shift: Tensor
    dropped: Tensor


class Alignment(NamedTuple):
    """Scale and shift, [B] each, of predictions to their targets; `dropped` as in `LossResult`."""

    scale: Tensor
    shift: Tensor
    dropped: Tensor


def scale_and_shift_invariant(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    alignment: AlignmentMode = "robust",
    data: Literal["trimmed", "mae", "mse"] = "trimmed",
    trim: float = 0.2,
    alpha: float = 0.5,
    scales: int = 4,
    reduction: Reduction = "image",
    definition: Definition = "recommended",
) -> LossResult:
    """The loss of MiDaS and DPT: a data term of the residuals after alignment, plus alpha times a gradient term.

    Args:
        prediction: [B, H, W], inverse depth in any scale and shift.
        target: [B, H, W], inverse depth in any scale and shift.
        mask: [B, H, W], bool.
        alignment: `robust` takes median and mean absolute deviation out of both maps, `least_squares` fits the
            prediction to the target.
        data: Of the residuals: `trimmed`, absolute values without the largest ones; `mae`, all; `mse`, squares.
        trim: Share of the valid pixels that `trimmed` leaves out, in millionths.
        alpha: Weight of the gradient term.
        scales: Of the gradient term, each half as large as the one before; 0 leaves the term out.
        reduction: `image` is the mean over images that are not dropped; `batch` divides sums over the batch.
        definition: `paper` as the paper has it, `published` as the code does that its authors published, `recommended`
            the paper's with the gradient term's divisors of the code.

    Raises:
        ValueError: if tensors do not fit, an option is none, or the target requires a gradient.
        RuntimeError: for second derivatives and transforms of torch.func.

    Reference: Ranftl et al. (2020), "Towards Robust Monocular Depth Estimation", Sec. 5.
    """
    return LossResult(
        *torch.ops.dpt.scale_and_shift_invariant(
            prediction,
            target,
            mask,
            alignment=alignment,
            data=data,
            trim=trim,
            alpha=alpha,
            scales=scales,
            reduction=reduction,
            definition=definition,
        )
    )


def gradient_matching(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    scales: int = 4,
    reduction: Reduction = "image",
    definition: Definition = "recommended",
) -> LossResult:
    """The gradient term alone, of prediction - target as they are; in the result scale is 1 and shift is 0.

    Arguments, errors and source: see `scale_and_shift_invariant`.
    """
    return LossResult(
        *torch.ops.dpt.gradient_matching(
            prediction, target, mask, scales=scales, reduction=reduction, definition=definition
        )
    )


def silog(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    variant: Literal["eigen", "bts", "adabins", "depth_anything"] = "eigen",
    reduction: Reduction | None = None,
) -> LossResult:
    """Scale-invariant logarithmic error of metric depth; in the result scale is 1 and shift is 0.

    Args:
        prediction: [B, H, W], depth. Values below 1e-6 count as 1e-6 and get no gradient.
        target: [B, H, W], depth. An image with a valid value that is not positive is dropped (3).
        mask: [B, H, W], bool.
        variant: With d = log prediction - log target: `eigen` is E[d^2] - 0.5 E[d]^2; `bts` is 10 sqrt(E[d^2] - 0.85
            E[d]^2); `adabins` is 10 sqrt(unbiased variance + 0.15 E[d]^2); `depth_anything` is sqrt(E[d^2] - 0.5
            E[d]^2).
        reduction: `image` is the mean over images that are not dropped, `batch` takes all pixels together. Default: as
            published, `image` for `eigen` and `batch` for the others.

    Raises:
        ValueError: if tensors do not fit, an option is none, or the target requires a gradient.

    Reference: Eigen et al. (2014), Eq. 4, and the code of the projects that the other variants are named after.
    """
    return LossResult(*torch.ops.dpt.silog(prediction, target, mask, variant=variant, reduction=reduction))


def segmentation(
    logits: Tensor,
    labels: Tensor,
    auxiliary_logits: Tensor | None = None,
    *,
    auxiliary_weight: float = 0.2,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Mean cross-entropy over the labelled pixels of the batch, plus that of the auxiliary head by its weight.

    Args:
        logits: [B, K, H, W].
        labels: [B, H, W], int64, classes in [0, K) or `ignore_index`.
        auxiliary_logits: [B, K, h, w], resized to the labels' size (bilinear, half-pixel centres).
        auxiliary_weight: 0.2 in the paper.
        ignore_index: Label of pixels that do not count.

    Returns:
        [], float32, or float64 if the logits are. 0, with a graph, where no pixel is labelled.

    Raises:
        ValueError: if tensors do not fit.

    Reference: Ranftl et al. (2021), Sec. 4.2.
    """
    loss: Tensor = torch.ops.dpt.segmentation_loss(
        logits, labels, auxiliary_logits, auxiliary_weight=auxiliary_weight, ignore_index=ignore_index
    )
    return loss


def align(prediction: Tensor, target: Tensor, mask: Tensor, *, mode: AlignmentMode = "robust") -> Alignment:
    """Scale and shift of each image such that scale * prediction + shift is aligned to the target. No gradient.

    Args:
        prediction: [B, H, W].
        target: [B, H, W], in the same space: both inverse depth, say.
        mask: [B, H, W], bool.
        mode: `robust` makes medians and mean absolute deviations equal, `least_squares` the squared error least.

    Returns:
        Where a map is constant, scale 0 and the target's centre as shift; NaN where an image is empty or not finite.

    Raises:
        ValueError: if tensors do not fit, or `mode` is none.
    """
    return Alignment(*torch.ops.dpt.align(prediction, target, mask, mode=mode))
