"""What training minimises, against the slow float64 references of the losses, image by image."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import reference_losses
import torch
from training_runs import JOINT, METRIC, batch_of

from torchdpt import DPTConfig, losses
from torchdpt.classes import IGNORE_INDEX
from torchdpt.data import Batch
from torchdpt.stages import DPTOutput
from torchdpt.training.config import LossConfig
from torchdpt.training.objective import Objective

NETWORK = DPTConfig(**JOINT)
TOLERANCE = 2e-5  # the losses are float32 of predictions that are


def make(network: DPTConfig = NETWORK, **changes: Any) -> Objective:
    return Objective(LossConfig(**changes), network)


def output_of(count: int, seed: int = 1) -> DPTOutput:
    generator = torch.Generator().manual_seed(seed)
    depth = 0.2 + torch.rand(count, 32, 32, generator=generator)
    logits = 2 * torch.randn(count, 10, 32, 32, generator=generator)
    auxiliary = 2 * torch.randn(count, 10, 8, 8, generator=generator)
    return DPTOutput(depth.requires_grad_(), logits.requires_grad_(), auxiliary.requires_grad_())


def array(tensor: torch.Tensor) -> np.ndarray:
    kind = tensor.detach()
    return kind.double().numpy() if kind.is_floating_point() else kind.numpy()


def part_of(output: DPTOutput, rows: slice) -> DPTOutput:
    return DPTOutput(*(map if map is None else map[rows] for map in output))


# --- values ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alignment": "least_squares", "data": "mse"},
        {"data": "mae", "alpha": 0.1, "scales": 2},
        {"trim": 0.5, "alpha": 0.0},
    ],
)
def test_relative_depth_is_the_reference_image_by_image(options: dict[str, Any]) -> None:
    batch, output = batch_of(3), output_of(3)
    want = reference_losses.scale_and_shift_invariant(
        *(array(tensor) for tensor in (output.depth, batch.inverse_depth, batch.mask)), **options
    ).per_image
    got = make(**options)(output, batch)
    np.testing.assert_allclose(array(got.losses[:, 0]), want, rtol=TOLERANCE)
    assert got.finite.all()


@pytest.mark.parametrize("variant", ["eigen", "depth_anything"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_metric_depth_is_the_reference_image_by_image(variant: Any, alpha: float) -> None:
    batch, output = batch_of(3), output_of(3)
    batch.inverse_depth[:, :4] = 0  # sky, where it is known
    mask = array(batch.mask & (batch.inverse_depth > 0))
    target = np.where(mask, 1 / np.where(mask, array(batch.inverse_depth), 1), 1)
    want = reference_losses.silog(array(output.depth), target, mask, variant=variant).per_image
    if alpha:
        logs = np.log(array(output.depth)), np.log(target)
        want = want + alpha * reference_losses.gradient_matching(*logs, mask, scales=3).per_image
    objective = make(DPTConfig(**METRIC), depth="silog", silog=variant, alpha=alpha, scales=3)
    got = objective(part_of(output, slice(None))._replace(logits=None, aux_logits=None), batch)
    np.testing.assert_allclose(array(got.losses[:, 0]), want, rtol=TOLERANCE)
    assert (got.losses[:, 1] == 0).all()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_classes_are_sums_over_pixels_of_the_reference(weight: float) -> None:
    batch, output = batch_of(3), output_of(3)
    want = []
    for i in range(3):
        maps = (array(tensor[i : i + 1]) for tensor in (output.logits, batch.labels, output.aux_logits))
        mean, _, _ = reference_losses.segmentation(*maps, auxiliary_weight=0.4)
        want.append(weight * mean * int((batch.labels[i] != IGNORE_INDEX).sum()))
    got = make(segmentation=weight, auxiliary=0.4)(output, batch)
    np.testing.assert_allclose(array(got.losses[:, 1]), want, rtol=TOLERANCE)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_parts_add_up_to_the_loss_of_the_batch(cut: int) -> None:
    batch, output = batch_of(4), output_of(4)
    batch.mask[1] = False
    batch.inverse_depth[1] = 0
    objective = make()
    parts = [slice(0, cut), slice(cut, 4)]
    counts = objective.counts(batch)
    assert torch.equal(counts, torch.cat([objective.counts(batch[part]) for part in parts]))
    terms = torch.cat([objective(part_of(output, part), batch[part]).losses for part in parts])
    depth, classes = (terms.double().sum(0) / counts.sum(0)).tolist()
    whole = losses.scale_and_shift_invariant(output.depth, batch.inverse_depth, batch.mask).loss
    assert depth == pytest.approx(whole.item(), rel=TOLERANCE)
    assert classes == pytest.approx(
        losses.segmentation(output.logits, batch.labels, output.aux_logits).item(), rel=TOLERANCE
    )


# --- what counts ---


def test_counts_are_usable_images_and_labelled_pixels() -> None:
    batch = batch_of(5)
    batch.mask[0] = False
    batch.inverse_depth[0] = 0
    batch.inverse_depth[1] = 0.25 * batch.mask[1]
    batch.inverse_depth[2] = 0  # nothing but sky
    batch.mask[3] = False
    batch.mask[3, 0, :2] = True
    batch.inverse_depth[3, 0, :2] = torch.tensor([0.2, 0.5])
    batch.labels[1] = IGNORE_INDEX
    pixels = (batch.labels != IGNORE_INDEX).sum((1, 2)).tolist()
    assert pixels[1] == 0
    assert make().counts(batch).T.tolist() == [[0, 0, 0, 1, 1], pixels]
    metric = make(DPTConfig(**METRIC), depth="silog")
    assert metric.counts(batch).T.tolist() == [[0, 1, 0, 1, 1], [0] * 5]
    assert make(depth=None).counts(batch).T.tolist() == [[0] * 5, pixels]
    assert make(segmentation=0).counts(batch).T.tolist() == [[0, 0, 0, 1, 1], [0] * 5]


def test_image_that_does_not_count_has_neither_loss_nor_gradient() -> None:
    batch, output = batch_of(4), output_of(4)
    batch.mask[0] = False
    batch.inverse_depth[1] = 0.25 * batch.mask[1]
    batch.labels[:2] = IGNORE_INDEX
    terms = make()(output, batch)
    assert (terms.losses[:2] == 0).all()
    assert (terms.losses[2:] > 0).all()
    terms.losses.sum().backward()
    for map in output:
        assert map is not None
        assert map.grad is not None
        assert (map.grad[:2] == 0).all()
        assert (map.grad[2:] != 0).any()


def test_what_is_not_known_does_not_matter() -> None:
    batch, output = batch_of(3), output_of(3)
    other = dataclasses.replace(batch, inverse_depth=torch.where(batch.mask, batch.inverse_depth, 7.0))
    objective = make()
    assert torch.equal(objective(output, batch).losses, objective(output, other).losses)
    assert torch.equal(objective.counts(batch), objective.counts(other))


def test_label_out_of_range_names_the_sample() -> None:
    batch = batch_of(3)
    batch.labels[1, 5, 5] = 10
    message = r"random/1: label 10 is none of the network's 10 classes, 0 to 9, nor 255 \(ignored\)"
    with pytest.raises(ValueError, match=message):
        make().counts(batch)
    make(segmentation=0).counts(batch)  # where classes do not matter


# --- what is not finite ---


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("map", ["depth", "logits", "aux_logits"])
@pytest.mark.parametrize("known", [True, False])
def test_prediction_that_is_not_finite_is_seen(map: str, value: float, known: bool) -> None:
    batch, output = batch_of(3), output_of(3)
    if not known:
        batch.mask[:] = False
        batch.labels[:] = IGNORE_INDEX
    with torch.no_grad():
        getattr(output, map)[1].view(-1)[7] = value
    terms = make()(output, batch)
    assert terms.finite.tolist() == [True, False, True]
    assert not terms.losses[1].isfinite().all()
    assert terms.losses[[0, 2]].isfinite().all()


# --- what fits ---


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (JOINT, {"depth": "silog"}, "network predicts relative inverse depth; set model.fit_metric=true"),
        (METRIC, {}, "network predicts metres; set loss.depth=silog"),
        (JOINT, {"depth": None, "segmentation": 0}, "nothing to train"),
        (METRIC, {"depth": None}, "nothing to train"),
        (JOINT | {"depth_head": False}, {"segmentation": 0}, "nothing to train"),
    ],
)
def test_loss_that_does_not_fit_the_network_is_refused(
    network: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(DPTConfig(**network), **options)


def test_batch_without_usable_targets_counts_nothing() -> None:
    batch: Batch = batch_of(2)
    batch.mask[:] = False
    batch.labels[:] = IGNORE_INDEX
    assert not make().counts(batch).any()
    terms = make()(output_of(2), batch)
    assert terms.finite.all()
    assert not terms.losses.any()
