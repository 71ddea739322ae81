"""Evaluating a model on a data set: against a slow computation, and what is refused, left out and reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import METRIC, SEGMENTATION, VIT, make_model
from reference_metrics import bilinear, depth_errors

from torchdpt import DPTModel, ImageProcessor, protocols
from torchdpt.data import Sample, SceneDataset
from torchdpt.evaluate import EvaluationResult
from torchdpt.evaluate_model import evaluate_dataset
from torchdpt.multi_scale import predict_scores
from torchdpt.protocols import SegmentationProtocol

RNG = np.random.default_rng(0)
RELATIVE = protocols.get("own_depth", input_size=(64, 64))
METRES = protocols.get("own_metric", input_size=(64, 64))
LABELS = SegmentationProtocol(
    name="labels", dataset="", num_classes=5, scales=(1.0,), base_size=64, crop_size=64, stride=42
)


class Samples:
    """A list of samples, or of what is raised instead."""

    name = "list"

    def __init__(self, *samples: Sample | Exception) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.samples[index]
        if isinstance(sample, Exception):
            raise sample
        return sample


def sample(id: str, height: int = 40, width: int = 60, **changes: object) -> Sample:
    depth = torch.from_numpy(RNG.uniform(1, 20, (height, width)).astype(np.float32))
    mask = torch.from_numpy(RNG.random((height, width)) < 0.8)
    return Sample(
        image=torch.from_numpy(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)),
        dataset="list",
        id=id,
        target=torch.where(mask, depth, 0),
        mask=mask,
        unit="metre",
        labels=torch.from_numpy(RNG.integers(0, 5, (height, width), dtype=np.uint8)),
    ).replace(**changes)


@pytest.fixture(scope="module")
def model() -> DPTModel:
    made = make_model(VIT)
    made.processor = dataclasses.replace(made.processor, mean=(0.48, 0.45, 0.4), std=(0.2, 0.25, 0.3))
    return made


@pytest.fixture(scope="module")
def metric() -> DPTModel:
    return make_model(VIT.replace(**METRIC))


@pytest.fixture(scope="module")
def segmentation() -> DPTModel:
    return make_model(VIT.replace(**SEGMENTATION))


def raw(model: DPTModel, image: np.ndarray, resize: str = "minimal") -> np.ndarray:
    """What the network makes of a picture, at its own size."""
    processor = ImageProcessor((64, 64), resize=resize, mean=model.processor.mean, std=model.processor.std)
    with torch.no_grad():
        return model(processor(image)[None]).depth[0].double().numpy()


def mean(rows: list[dict[str, float]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


# --- against a slow computation ---


def test_relative_depth_is_aligned_and_measured_at_the_size_of_the_truth(model: DPTModel) -> None:
    samples = [sample("a"), sample("b", 60, 40), sample("c", 51, 64), sample("d")]
    result = evaluate_dataset(model, Samples(*samples), RELATIVE, batch_size=3)
    rows = []
    for s in samples:
        mask = s.mask.numpy()
        p = bilinear(raw(model, s.image.numpy()), *mask.shape)[mask]
        z = s.target.numpy().astype(np.float64)[mask]
        scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), 1 / z, rcond=None)[0]
        rows.append(depth_errors(1 / np.maximum(scale * p + shift, 1 / 80), z))
    # The network is float32.
    for name in rows[0]:
        assert result.metrics[name] == pytest.approx(mean(rows, name), rel=1e-4, abs=1e-5)
    assert [(row["index"], row["id"]) for row in result.per_image] == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]
    assert result.failures == ()
    assert result.protocol == RELATIVE


def test_metric_depth_is_measured_as_it_is(metric: DPTModel) -> None:
    samples = [sample("a"), sample("b")]
    result = evaluate_dataset(metric, Samples(*samples), METRES)
    rows = []
    for s in samples:
        mask = s.mask.numpy()
        p = np.clip(bilinear(raw(metric, s.image.numpy()), *mask.shape)[mask], 1e-3, 80)
        rows.append(depth_errors(p, s.target.numpy()[mask]))
    for name in rows[0]:
        assert result.metrics[name] == pytest.approx(mean(rows, name), rel=1e-4, abs=1e-5)


def test_metric_depth_is_measured_as_inverse_depth_too(metric: DPTModel) -> None:
    s = sample("a")
    row = evaluate_dataset(metric, Samples(s), RELATIVE).per_image[0]
    mask = s.mask.numpy()
    p = bilinear(1 / raw(metric, s.image.numpy()), *mask.shape)[mask]
    z = s.target.numpy().astype(np.float64)[mask]
    scale, shift = np.linalg.lstsq(np.stack([p, np.ones_like(p)], axis=1), 1 / z, rcond=None)[0]
    assert row["abs_rel"] == pytest.approx(depth_errors(1 / np.maximum(scale * p + shift, 1 / 80), z)["abs_rel"], 1e-4)


def test_labels_are_those_of_the_largest_scores(segmentation: DPTModel) -> None:
    samples = [sample("a"), sample("b", 51, 37)]
    samples[0].labels[:10] = 255
    result = evaluate_dataset(segmentation, Samples(*samples), LABELS)
    right = total = 0
    for s in samples:
        found = predict_scores(segmentation, s.image.numpy(), LABELS).numpy().argmax(0)
        right += ((found == s.labels.numpy()) & (s.labels.numpy() != 255)).sum()
        total += (s.labels.numpy() != 255).sum()
    assert result.metrics["pixel_accuracy"] == right / total
    assert result.counts["pixels"] == total == 30 * 60 + 51 * 37


def test_kitti_photographs_are_cropped_and_predictions_pasted(metric: DPTModel) -> None:
    s = sample("a", 375, 1242)
    protocol = protocols.get("kitti_eigen", input_size=(64, 224), quantisation=None, crop=None, upsample="bilinear")
    result = evaluate_dataset(metric, Samples(s), protocol)
    processor = ImageProcessor((64, 224), resize="exact")
    with torch.no_grad():
        small = metric(processor(s.image.numpy()[23:375, 13:1229])[None]).depth[0].numpy()
    pasted = np.full((375, 1242), 1e-3)  # where there is no prediction it counts as the least depth
    pasted[23:375, 13:1229] = bilinear(small, 352, 1216)
    mask = s.mask.numpy()
    expected = depth_errors(np.clip(pasted[mask], 1e-3, 80), s.target.numpy()[mask])
    assert result.metrics["abs_rel"] == pytest.approx(expected["abs_rel"], rel=1e-4)
    too_small = evaluate_dataset(metric, Samples(s, sample("b")), protocol)
    assert [failure["index"] for failure in too_small.failures] == [1]
    assert "wanted at least 352 x 1216" in too_small.failures[0]["error"]


# --- sizes, order, what does not count ---


def test_a_frozen_model_is_measured_as_its_network_is(
    model: DPTModel, metric: DPTModel, segmentation: DPTModel
) -> None:
    samples = Samples(sample("a"), sample("b", 51, 37))
    for network, protocol in ((model, RELATIVE), (metric, METRES), (metric, RELATIVE), (segmentation, LABELS)):
        expected = evaluate_dataset(network, samples, protocol)
        got = evaluate_dataset(network.freeze(), samples, protocol)
        assert (got.protocol, got.counts) == (expected.protocol, expected.counts)
        for name, value in expected.metrics.items():  # a pixel may change its class
            assert got.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-3)


def test_protocol_without_a_size_takes_that_of_the_model(model: DPTModel) -> None:
    data = SceneDataset(2, height=64, width=96)
    processor, model.processor = model.processor, ImageProcessor((64, 96))
    result = evaluate_dataset(model, data, protocols.get("own_depth"))
    wanted = evaluate_dataset(model, data, protocols.get("own_depth", input_size=(64, 96)))
    model.processor = processor
    assert result.protocol == wanted.protocol
    assert result.metrics == wanted.metrics


def test_input_size_takes_the_place_of_the_protocols(model: DPTModel, segmentation: DPTModel) -> None:
    data = Samples(sample("a"))
    result = evaluate_dataset(model, data, RELATIVE, input_size=96)
    assert result.protocol == dataclasses.replace(RELATIVE, input_size=(96, 96))
    assert result.metrics == evaluate_dataset(model, data, result.protocol).metrics
    assert result.metrics != evaluate_dataset(model, data, RELATIVE).metrics
    assert evaluate_dataset(model, data, RELATIVE, input_size=(64, 96)).protocol.input_size == (64, 96)
    assert evaluate_dataset(segmentation, data, LABELS, input_size=80).protocol.base_size == 80


def test_the_same_arguments_give_the_same_bits(model: DPTModel) -> None:
    data = SceneDataset(5, height=48, width=64)
    first, second = (evaluate_dataset(model, data, RELATIVE, batch_size=2) for _ in range(2))
    assert first == second


def test_the_sky_does_not_count(model: DPTModel) -> None:
    s = sample("a")
    sky = torch.zeros_like(s.mask)
    sky[:20] = True
    with_sky = s.replace(target=torch.where(sky, torch.inf, s.target), mask=s.mask | sky)
    without = s.replace(target=torch.where(sky, 0, s.target), mask=s.mask & ~sky)
    results = [evaluate_dataset(model, Samples(x), RELATIVE) for x in (with_sky, without)]
    assert results[0] == results[1]
    assert results[0].counts["invalid_targets"] == 0
    disparity = with_sky.replace(target=with_sky.inverse_depth(), kind="inverse_depth")
    assert evaluate_dataset(model, Samples(disparity), RELATIVE).metrics == pytest.approx(results[0].metrics, rel=1e-6)


def test_scenes_are_measured_at_the_size_of_the_model(model: DPTModel) -> None:
    result = evaluate_dataset(model, SceneDataset(3), protocols.get("scenes"))
    assert result.counts["images"] == 3
    assert result.counts["invalid_targets"] == 0
    assert 0 < result.headline < 5
    assert result.protocol.input_size == model.processor.size


def test_limit_takes_the_first_samples_and_each_is_announced(model: DPTModel) -> None:
    seen: list[int] = []
    data = Samples(*(sample(str(i)) for i in range(7)))
    result = evaluate_dataset(model, data, RELATIVE, limit=5, batch_size=2, on_sample=seen.append)
    assert seen == [0, 1, 2, 3, 4]
    assert [row["id"] for row in result.per_image] == ["0", "1", "2", "3", "4"]
    assert evaluate_dataset(model, data, RELATIVE, limit=50).counts["images"] == 7


def test_a_training_model_is_run_in_eval_mode_and_left_in_its_own(segmentation: DPTModel, model: DPTModel) -> None:
    for network, protocol in ((model, RELATIVE), (segmentation, LABELS)):
        data = Samples(sample("a"))
        expected = evaluate_dataset(network, data, protocol)
        network.train()
        try:
            assert evaluate_dataset(network, data, protocol) == expected
            assert network.training
        finally:
            network.eval()


@pytest.mark.cuda
def test_on_the_gpu(model: DPTModel) -> None:
    data = Samples(sample("a"), sample("b", 60, 40))
    expected = evaluate_dataset(model, data, RELATIVE).metrics
    on_gpu = make_model(VIT).to("cuda")
    on_gpu.processor = model.processor
    assert evaluate_dataset(on_gpu, data, RELATIVE).metrics == pytest.approx(expected, rel=1e-2)


# --- what is wrong ---


def test_bad_samples_are_reported_and_the_others_measured(model: DPTModel) -> None:
    damaged, missing = ValueError("c.png: a damaged image"), FileNotFoundError(2, "No such file", "e.png")
    unfit = sample("d").replace(target=None, mask=None)
    data = Samples(damaged, sample("b"), damaged, unfit, missing, sample("f"), RuntimeError())
    result = evaluate_dataset(model, data, RELATIVE, batch_size=2)
    assert [row["index"] for row in result.per_image] == [1, 5]
    assert [row["id"] for row in result.per_image] == ["b", "f"]
    assert [(failure["index"], failure["error"]) for failure in result.failures] == [
        (0, "c.png: a damaged image"),
        (2, "c.png: a damaged image"),
        (3, "list/d: own_depth is of depth, and there is none"),
        (4, "[Errno 2] No such file: 'e.png'"),
        (6, "RuntimeError"),
    ]
    alone = evaluate_dataset(model, Samples(data[1], data[5]), RELATIVE, batch_size=2)
    assert result.metrics == pytest.approx(alone.metrics, rel=1e-6)  # the last bits depend on the batch
    assert result.to_json()["failures"] == list(result.failures)
    assert "failures" not in alone.to_json()


def test_samples_that_cannot_be_measured_keep_their_name(metric: DPTModel) -> None:
    protocol = protocols.get("nyu_eigen", input_size=(64, 64))
    result = evaluate_dataset(metric, Samples(sample("a", 480, 640), sample("b")), protocol)
    assert [failure["id"] for failure in result.failures] == ["b"]
    assert "does not fit into 40 x 60" in result.failures[0]["error"]
    assert result.counts["images"] == 1


def test_images_that_the_network_cannot_take_are_failures(model: DPTModel, segmentation: DPTModel) -> None:
    single = dataclasses.replace(LABELS, resize="minimal", crop_size=None, stride=None, flip=False, upsample="bicubic")
    data = Samples(sample("a"), sample("b", 2, 90), sample("c"))
    for network, protocol in ((segmentation, single), (model, RELATIVE)):
        result = evaluate_dataset(network, data, protocol)
        assert [failure["index"] for failure in result.failures] == [1]
        assert "too narrow" in result.failures[0]["error"]
        assert result.counts["images"] == 2


RELATIVE_DISPARITY = {"kind": "inverse_depth", "unit": "relative"}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, d, s: evaluate_dataset(m, Samples(), RELATIVE), "list: no samples"),
        (
            lambda m, d, s: evaluate_dataset(m, Samples(sample("a")), METRES),
            "measures depth in metres, and this network",
        ),
        (lambda m, d, s: evaluate_dataset(s, Samples(sample("a")), RELATIVE), "this network predicts classes alone"),
        (lambda m, d, s: evaluate_dataset(m, Samples(sample("a")), LABELS), "this network has no head for classes"),
        (lambda m, d, s: evaluate_dataset(m, Samples(sample("a")), protocols.get("diw")), "order of points"),
        (
            lambda m, d, s: evaluate_dataset(d, Samples(sample("a", unit="relative")), METRES),
            "list/a: own_metric measures metres, and this depth is known up to a scale alone",
        ),
        (
            lambda m, d, s: evaluate_dataset(m, Samples(sample("a", **RELATIVE_DISPARITY)), RELATIVE),
            "list/a: a relative inverse depth has an unknown shift, and so no depth, which own_depth is of",
        ),
        (
            lambda m, d, s: evaluate_dataset(m, Samples(sample("a", target=None, mask=None)), RELATIVE),
            "list/a: own_depth is of depth, and there is none",
        ),
        (
            lambda m, d, s: evaluate_dataset(s, Samples(sample("a", labels=None)), LABELS),
            "list/a: labels is of labels, and there are none",
        ),
        (
            lambda m, d, s: evaluate_dataset(m, Samples(OSError("gone"), OSError("gone, too")), RELATIVE),
            "list: none of 2 samples could be measured; number 0: gone",
        ),
        (
            lambda m, d, s: evaluate_dataset(m, Samples(sample("a")), RELATIVE, input_size=0),
            "input_size must be a side",
        ),
        (lambda m, d, s: evaluate_dataset(s, Samples(sample("a")), LABELS, input_size=(64, 80)), "must be one side"),
        (lambda m, d, s: evaluate_dataset(m, Samples(sample("a")), RELATIVE, batch_size=0), "batch_size must be an"),
        (lambda m, d, s: evaluate_dataset(m, Samples(sample("a")), RELATIVE, limit=0), "limit must be an integer"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: DPTModel,
    metric: DPTModel,
    segmentation: DPTModel,
    run: Callable[[DPTModel, DPTModel, DPTModel], EvaluationResult],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        run(model, metric, segmentation)


def test_relative_inverse_depth_has_a_protocol_of_its_own(model: DPTModel) -> None:
    data = Samples(sample("a", **RELATIVE_DISPARITY))
    result = evaluate_dataset(model, data, protocols.get("ablation/redweb", input_size=(64, 64)))
    assert result.counts["images"] == 1
