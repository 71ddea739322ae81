"""What training minimises, image by image, so that any parts of a batch add up to the whole."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchdpt import losses
from torchdpt.classes import IGNORE_INDEX
from torchdpt.config import DPTConfig
from torchdpt.data import Batch
from torchdpt.stages import DPTOutput
from torchdpt.training.config import LossConfig


class Terms(NamedTuple):
    """Losses of each image: [B, 2], float32, of depth and of classes, of the latter the sum over labelled pixels.

    `finite` is bool [B]: whether the predictions and the losses of an image are.
    """

    losses: Tensor
    finite: Tensor


class Objective:
    """The losses of a run.

    Args:
        config: Which.
        network: The network's config: it says which heads there are.

    Raises:
        ValueError: if the network has no head for a loss, or predicts something else than the loss compares.
    """

    def __init__(self, config: LossConfig, network: DPTConfig) -> None:
        self.config = config
        self.depth = config.depth if network.depth_head else None
        self.num_classes = network.num_classes if config.segmentation else 0
        if self.depth is None and self.num_classes == 0:
            raise ValueError("nothing to train: set loss.depth for a depth head, or loss.segmentation for classes")
        if self.depth == "silog" and not network.metric:
            raise ValueError(
                "loss.depth = silog compares depth in metres, and the network predicts relative inverse depth; set "
                "model.fit_metric=true, or loss.depth=scale_and_shift_invariant"
            )
        if self.depth == "scale_and_shift_invariant" and network.metric:
            raise ValueError(
                "loss.depth = scale_and_shift_invariant compares relative inverse depth, and the network predicts "
                "metres; set loss.depth=silog"
            )

    def counts(self, batch: Batch) -> Tensor:
        """By what losses are divided, [B, 2] float64: 1 for an image with usable depth, and its labelled pixels.

        Relative depth is usable if what is known of it is not constant, depth in metres if something is known but sky.

        Raises:
            ValueError: if a label is no class of the network; the message names the sample.
        """
        known = torch.where(batch.mask, batch.inverse_depth, torch.nan).flatten(1)
        low = known.nan_to_num(nan=torch.inf).amin(1)
        high = known.nan_to_num(nan=-torch.inf).amax(1)
        usable = high.isfinite() & (high > (0 if self.depth == "silog" else low)) & bool(self.depth)
        labelled = batch.labels != IGNORE_INDEX
        if self.num_classes:
            wrong = (labelled & (batch.labels >= self.num_classes)).flatten(1)
            for i in wrong.any(1).nonzero().flatten().tolist():
                raise ValueError(
                    f"{batch.names[i]}: label {int(batch.labels[i].flatten()[wrong[i]][0])} is none of the network's "
                    f"{self.num_classes} classes, 0 to {self.num_classes - 1}, nor {IGNORE_INDEX} (ignored)"
                )
        pixels = labelled.flatten(1).sum(1) * bool(self.num_classes)
        return torch.stack([usable, pixels], dim=1).double()

    def __call__(self, output: DPTOutput, batch: Batch) -> Terms:
        """The losses of each image.

        Args:
            output: Of the network.
            batch: With the truth, on the same device.
        """
        zero = torch.zeros(len(batch), device=batch.images.device)
        finite = torch.ones_like(zero, dtype=torch.bool)
        for map in output:
            if map is not None:
                finite &= map.detach().isfinite().flatten(1).all(1)
        depth = classes = zero
        if self.depth is not None and output.depth is not None:
            depth = self._depth(output.depth.float(), batch)
        if self.num_classes and output.logits is not None:
            logits, auxiliary = output.logits.float(), output.aux_logits
            pixels = (batch.labels != IGNORE_INDEX).flatten(1).sum(1)
            means = [
                losses.segmentation(
                    logits[i : i + 1],
                    batch.labels[i : i + 1],
                    None if auxiliary is None else auxiliary[i : i + 1].float(),
                    auxiliary_weight=self.config.auxiliary,
                )
                for i in range(len(batch))
            ]
            classes = self.config.segmentation * torch.stack(means) * pixels
        # Every output takes part in the gradient, so that no process waits for one that is missing, and no infinity
        # goes unseen: the losses leave such images out.
        touch = sum(0 * map.float().flatten(1).sum(1) for map in output if map is not None)
        terms = torch.stack([depth + touch, classes], dim=1)
        return Terms(terms, finite & terms.detach().isfinite().all(1))

    def _depth(self, prediction: Tensor, batch: Batch) -> Tensor:
        config = self.config
        if self.depth == "scale_and_shift_invariant":
            return losses.scale_and_shift_invariant(
                prediction,
                batch.inverse_depth.to(prediction.dtype),
                batch.mask,
                alignment=config.alignment,
                data=config.data,
                trim=config.trim,
                alpha=config.alpha,
                scales=config.scales,
            ).per_image
        mask = batch.mask & (batch.inverse_depth > 0)  # the sky has no depth in metres
        target = torch.where(mask, 1 / batch.inverse_depth, 1).to(prediction.dtype)
        loss = losses.silog(prediction, target, mask, variant=config.silog).per_image
        if config.alpha:
            logs = prediction.clamp(min=1e-6).log(), target.log()
            loss = loss + config.alpha * losses.gradient_matching(*logs, mask, scales=config.scales).per_image
        return loss
