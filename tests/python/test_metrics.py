"""Metrics against numbers worked out by hand, NumPy and torchmetrics; merging, and what is degenerate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from reference_metrics import depth_errors, mean_errors
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

import torchdpt
from torchdpt.metrics import WHDR, DepthMetrics, SegmentationMetrics

RNG = np.random.default_rng(0)
NINE = list(depth_errors(np.ones(1), np.ones(1)))


def depth_of(p: list[float], z: list[float], mask: list[int] | None = None, **options: object) -> dict[str, float]:
    metrics = DepthMetrics(**options)  # type: ignore[arg-type]
    metrics.update(torch.tensor([p]), torch.tensor([z]), torch.tensor([mask or [1] * len(z)]) > 0)
    return metrics.compute()._asdict()


def images(count: int = 5) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Maps of different sizes, masks and difficulty."""
    several = []
    for i in range(count):
        size = (7 + i, 11 - i)
        target = torch.tensor(RNG.uniform(1, 9, size))
        prediction = target * torch.tensor(RNG.lognormal(0.1 * i, 0.1 * (i + 1), size))
        several.append((prediction, target, torch.tensor(RNG.random(size) < 0.3 + 0.1 * i)))
    return several


def measured(several: list[tuple[Tensor, Tensor, Tensor]], **options: object) -> DepthMetrics:
    metrics = DepthMetrics(**options)  # type: ignore[arg-type]
    for image in several:
        metrics.update(*image)
    return metrics


def test_modules_are_there_after_import_of_the_package() -> None:
    assert torchdpt.metrics.DepthMetrics is DepthMetrics
    assert torchdpt.protocols.PROTOCOLS["diw"].headline == "whdr"
    assert torchdpt.evaluate.Evaluator(torchdpt.protocols.get("diw")).protocol.name == "diw"


# --- depth ---


def test_depth_errors_worked_out_by_hand() -> None:
    found = depth_of([2.0, 4.0, 1.0, 7.0], [1.0, 4.0, 2.0, 3.0], [1, 1, 1, 0])
    spread = math.log(2) * math.sqrt(2 / 3)
    expected = {
        "abs_rel": 0.5,  # (1/1 + 0 + 1/2) / 3
        "sq_rel": 0.5,
        "rmse": math.sqrt(2 / 3),
        "rmse_log": spread,
        "log10": math.log10(2) * 2 / 3,
        "silog": 100 * spread,  # the mean of d is 0
        "delta1": 1 / 3,
        "delta2": 1 / 3,
        "delta3": 1 / 3,
    }
    assert {name: found[name] for name in NINE} == pytest.approx(expected, rel=1e-14)
    assert (found["images"], found["empty"], found["pixels"]) == (1, 0, 3)


def test_silog_is_the_deviation_of_the_log_in_percent() -> None:
    # d = ln 2 and 0: E d^2 = ln^2 2 / 2, (E d)^2 = ln^2 2 / 4. Not halved, and times 100.
    assert depth_of([2.0, 1.0], [1.0, 1.0])["silog"] == pytest.approx(100 * math.log(2) / 2, rel=1e-14)


def test_silog_of_a_wrong_scale_alone_is_zero() -> None:
    target = torch.tensor(RNG.uniform(1, 9, (30, 40)))
    for average in ("image", "pooled"):
        metrics = measured([(1e4 * target, target, target > 0)], average=average)
        # The difference of E d^2 = 85 and (E d)^2 would have an error of 1e-14, and SILog one of 1e-5.
        assert metrics.compute().silog < 1e-11


def test_a_ratio_of_exactly_125_percent_is_no_hit() -> None:
    found = depth_of([1.25, 1.0, 1.5625, 1.0], [1.0, 1.25, 1.0, 1.953125])
    assert [found[f"delta{i}"] for i in (1, 2, 3)] == [0, 0.5, 0.75]


def test_averages_over_images_and_over_pixels_differ_as_in_numpy() -> None:
    several = images()
    pairs = [(p[m].numpy(), z[m].numpy()) for p, z, m in several]
    by_image, pooled = (measured(several, average=average).compute()._asdict() for average in ("image", "pooled"))
    # 1e-11: the reference subtracts squares.
    assert {name: by_image[name] for name in NINE} == pytest.approx(mean_errors(pairs), rel=1e-11)
    together = depth_errors(*(np.concatenate(maps) for maps in zip(*pairs, strict=True)))
    assert {name: pooled[name] for name in NINE} == pytest.approx(together, rel=1e-11)
    assert min(abs(by_image[name] / pooled[name] - 1) for name in NINE) > 1e-3
    assert by_image["pixels"] == pooled["pixels"] == sum(len(p) for p, _ in pairs)


def test_a_batch_is_its_images() -> None:
    p, z, m = (torch.stack([maps[i][:7, :7] for maps in images()]) for i in range(3))
    batch = DepthMetrics()
    batch.update(p, z, m, ids=list("abcde"))
    alone = measured(list(zip(p, z, m, strict=True)))
    assert batch.compute()._asdict() == pytest.approx(alone.compute()._asdict(), rel=1e-14)
    assert [id for id, _ in batch.per_image()] == list("abcde")
    assert [id for id, _ in alone.per_image()] == list("01234")
    third = batch.per_image()[2][1]._asdict()
    expected = depth_errors(p[2][m[2]].numpy(), z[2][m[2]].numpy())
    assert {name: third[name] for name in NINE} == pytest.approx(expected, rel=1e-11)
    assert third["pixels"] == m[2].sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_are_measured_in_float64(dtype: torch.dtype) -> None:
    p, z, m = images()[4]
    p, z = (p * 100).to(dtype), (z * 100).to(dtype)
    found = measured([(p, z, m)]).compute()._asdict()
    expected = depth_errors(p[m].double().numpy(), z[m].double().numpy())
    assert {name: found[name] for name in NINE} == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("average", ["image", "pooled"])
def test_merging_in_any_order_gives_the_same_bits(average: str) -> None:
    several = images(6)
    whole = measured(several, average=average)
    for order in itertools.permutations((slice(0, 1), slice(1, 3), slice(3, 6))):
        merged = DepthMetrics(average=average)
        for part in order:
            merged.merge(measured(several[part], average=average))
        assert merged.compute() == whole.compute()
    assert len(merged.per_image()) == 6


def test_merging_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"same settings can be merged, got DepthMetrics.*'image'.*'pooled'"):
        DepthMetrics().merge(DepthMetrics(average="pooled"))
    with pytest.raises(ValueError, match=r"got WHDR\(.*SegmentationMetrics\("):
        WHDR().merge(SegmentationMetrics(2))  # type: ignore[arg-type]


def test_without_a_process_group_all_reduce_is_a_copy() -> None:
    metrics = measured(images())
    copy = metrics.all_reduce()
    assert copy.compute() == metrics.compute()
    copy.update(*images(1)[0])
    assert copy.compute().images == metrics.compute().images + 1


def test_invalid_predictions_count_as_the_ends_of_the_range_and_are_reported() -> None:
    p, z = [math.nan, math.inf, -math.inf, 0.0, -1.0, 0.1, 9.0, 2.0], [2.0] * 8
    found = depth_of(p, z, min_depth=0.5, max_depth=8.0)
    expected = depth_errors(np.array([0.5, 8, 0.5, 0.5, 0.5, 0.5, 8, 2]), np.array(z))
    assert {name: found[name] for name in NINE} == pytest.approx(expected, rel=1e-12)
    assert (found["pixels"], found["invalid_predictions"]) == (8, 5)
    unbounded = depth_of(p[:2], z[:2], min_depth=0.5)
    assert unbounded["rmse"] == pytest.approx(1.5, rel=1e-14)  # infinity is 0.5, too
    masked = depth_of(p, z, [0] * 7 + [1])
    assert (masked["rmse"], masked["pixels"], masked["invalid_predictions"]) == (0, 1, 0)


def test_targets_without_depth_are_left_out_and_reported() -> None:
    bad = [math.nan, math.inf, 0.0, -1.0]
    found = depth_of([1.0, math.nan, 1.0, 1.0, 3.0], [*bad, 2.0])
    assert (found["abs_rel"], found["pixels"], found["invalid_targets"]) == (0.5, 1, 4)
    assert found["invalid_predictions"] == 0  # of valid pixels
    outside = depth_of([1.0] * 4 + [3.0], [*bad, 2.0], [0] * 4 + [1])
    assert (outside["abs_rel"], outside["invalid_targets"]) == (0.5, 0)


def test_empty_images_are_counted_and_not_averaged() -> None:
    p, z, m = images(1)[0]
    metrics = measured([(p, z, m), (p, z, torch.zeros_like(m)), (p[:0], z[:0], m[:0])])
    result = metrics.compute()
    assert (result.images, result.empty) == (1, 2)
    assert result[:9] == measured([(p, z, m)]).compute()[:9]
    assert math.isnan(metrics.per_image()[1][1].abs_rel)


@pytest.mark.parametrize("average", ["image", "pooled"])
def test_nothing_measured_is_nan(average: str) -> None:
    for metrics in (DepthMetrics(average=average), measured([(torch.ones(0, 3, 4),) * 2 + (torch.ones(0, 3, 4) > 0,)])):
        result = metrics.compute()
        assert all(math.isnan(value) for value in result[:9])
        assert result[9:] == (0, 0, 0, 0, 0)


def test_bad_arguments_of_depth_are_refused() -> None:
    p, m = torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool)
    metrics = DepthMetrics()
    with pytest.raises(ValueError, match=r"DepthMetrics: mask must be bool, got torch.uint8; pass mask > 0"):
        metrics.update(p, p, m.byte())
    with pytest.raises(ValueError, match=r"of one size, got \[2, 4\], \[2, 3\], \[2, 3\]; resize the prediction"):
        metrics.update(torch.ones(2, 4), p, m)
    with pytest.raises(ValueError, match=r"must be \[H, W\] or \[B, H, W\]"):
        metrics.update(p[None, None], p[None, None], m[None, None])
    with pytest.raises(ValueError, match="on one device, got cpu, meta, cpu"):
        metrics.update(p, p.to("meta"), m)
    for ids in (["a"], "ab"):
        with pytest.raises(ValueError, match="ids must be a list of 2 names"):
            metrics.update(p[None].expand(2, 2, 3), p[None].expand(2, 2, 3), m[None].expand(2, 2, 3), ids=ids)
    assert metrics.compute().images == 0
    with pytest.raises(ValueError, match="average must be 'image' or 'pooled', got 'batch'"):
        DepthMetrics(average="batch")  # type: ignore[arg-type]
    for low, high in ((0, 1), (2, 1), (math.inf, math.inf), (math.nan, 1)):
        with pytest.raises(ValueError, match="wanted 0 < min_depth < max_depth"):
            DepthMetrics(min_depth=low, max_depth=high)


# --- order of points ---

# Inverse depth, 2 rows and 3 columns: row 0 is 5 4 3, row 1 is 2 1 1.
ORDER = torch.tensor([[5.0, 4, 3], [2, 1, 1]])
# y, x of A; y, x of B; relation: with "farther", +1 says that A has the smaller inverse depth.
PAIRS = torch.tensor(
    [
        [1, 0, 0, 2, 1],  # 2 < 3: right
        [0, 2, 1, 0, 1],  # 3 > 2: wrong
        [0, 1, 1, 1, -1],  # 4 > 1: right (at x, y it would be 2 > 1)
        [1, 1, 0, 0, -1],  # 1 < 5: wrong
        [1, 1, 1, 2, 1],  # equal: wrong
        [1, 1, 1, 2, -1],  # equal: wrong
    ]
)


def test_whdr_worked_out_by_hand() -> None:
    metrics = WHDR()
    metrics.update(ORDER, PAIRS)
    assert metrics.compute() == (pytest.approx(100 * 4 / 6), 1, 0, 6, 0)


@pytest.mark.parametrize("kind", ["inverse_depth", "depth"])
@pytest.mark.parametrize("relation", ["farther", "nearer"])
def test_whdr_turns_round_with_its_conventions(kind: str, relation: str) -> None:
    metrics = WHDR(prediction=kind, relation=relation)  # type: ignore[arg-type]
    metrics.update(ORDER, torch.tensor([[1, 0, 0, 2, 1]]))  # 2 before 3
    assert metrics.compute().whdr == (
        0 if (kind, relation) in {("inverse_depth", "farther"), ("depth", "nearer")} else 100
    )


def test_whdr_pools_pairs_and_counts_images() -> None:
    metrics, other = WHDR(), WHDR()
    metrics.update(torch.stack([ORDER, -ORDER]), torch.stack([PAIRS[:3], PAIRS[:3]]), ids=["a", "b"])
    other.update(ORDER, PAIRS[:0])
    other.update(ORDER, PAIRS[:1])
    metrics.merge(other)
    assert metrics.compute() == (pytest.approx(100 * 3 / 7), 3, 1, 7, 0)
    assert [id for id, _ in metrics.per_image()] == ["a", "b", "0", "1"]
    rates = [result.whdr for _, result in metrics.per_image()]
    assert rates[:2] == [pytest.approx(100 / 3), pytest.approx(200 / 3)]
    assert math.isnan(rates[2])
    assert math.isnan(WHDR().compute().whdr)


def test_whdr_of_nan_and_infinity_is_wrong_and_reported() -> None:
    for value in (math.nan, math.inf, -math.inf):
        metrics = WHDR()
        metrics.update(torch.tensor([[1.0, value]]), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 1, -1]]))
        assert metrics.compute() == (100, 1, 0, 2, 2)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([[0, 0, 2, 0, 1]], r"must be in the image, 2 x 3 \(height x width\), counted from 0, got the pair \[0, 0, 2,"),
        ([[0, 3, 0, 0, 1]], "must be in the image"),
        ([[0, 0, 0, -1, 1]], "must be in the image"),
        ([[0, 0, 1, 1, 0]], r"relations must be \+1 or -1, got 0"),
        ([[0, 0, 1, 1]], r"pairs \[N, 5\] or \[B, N, 5\], got \[2, 3\] and \[1, 4\]"),
        ([[[0, 0, 1, 1, 1]]], r"got \[2, 3\] and \[1, 1, 5\]"),
        ([[0.0, 0, 1, 1, 1]], r"pairs must be int64, got torch.float32"),
    ],
)
def test_bad_pairs_are_refused(pairs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WHDR().update(ORDER, torch.tensor(pairs))


def test_bad_options_of_whdr_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction must be 'inverse_depth' or 'depth', got 'disparity'"):
        WHDR(prediction="disparity")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="relation must be 'farther' or 'nearer', got '>'"):
        WHDR(relation=">")  # type: ignore[arg-type]


# --- segmentation ---


def test_segmentation_worked_out_by_hand() -> None:
    target = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    prediction = torch.tensor([[0, 0, 1, 1], [1, 2, 0, 3]])
    zero, skip = SegmentationMetrics(5), SegmentationMetrics(5, absent="skip")
    for metrics in (zero, skip):
        metrics.update(prediction, target)
    result = zero.compute()
    assert result.pixel_accuracy == pytest.approx(4 / 6)
    # Class 2 is predicted, once, at a labelled pixel: 0 of 1. 3 is predicted at an ignored one; 4 never.
    assert result.iou[:3] == pytest.approx((2 / 3, 2 / 4, 0))
    assert all(math.isnan(value) for value in result.iou[3:])
    assert result.miou == pytest.approx((2 / 3 + 1 / 2) / 5)
    assert skip.compute().miou == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert result[3:] == (1, 0, 6, 2, 0)
    assert skip.per_image() == [("0", (pytest.approx(4 / 6), pytest.approx((2 / 3 + 1 / 2) / 3), 6, 0))]


@pytest.mark.parametrize("absent", [False, True], ids=["all present", "some absent"])
def test_segmentation_equals_torchmetrics(absent: bool) -> None:
    classes, used = 9, 5 if absent else 9
    macro = MulticlassJaccardIndex(classes, ignore_index=255)
    each = MulticlassJaccardIndex(classes, ignore_index=255, average="none")
    accuracy = MulticlassAccuracy(classes, ignore_index=255, average="micro")
    skip, zero = SegmentationMetrics(classes, absent="skip"), SegmentationMetrics(classes, absent="zero")
    for i in range(4):
        target = torch.tensor(RNG.integers(0, used - (i == 0), (2, 13, 17)))
        prediction = torch.where(torch.tensor(RNG.random((2, 13, 17)) < 0.6), target, (target + 1 + i) % used)
        target[torch.tensor(RNG.random((2, 13, 17)) < 0.2)] = 255
        if absent:
            prediction[target == 255] = classes - 1  # which makes no class present
        for metric in (macro, each, accuracy, skip, zero):
            metric.update(prediction, target)
    result = skip.compute()
    # torchmetrics divides in float32.
    assert result.miou == pytest.approx(macro.compute().item(), rel=1e-6)
    assert result.pixel_accuracy == pytest.approx(accuracy.compute().item(), rel=1e-6)
    expected = each.compute()  # 0 of absent classes, as PyTorch-Encoding has it
    assert torch.tensor(result.iou).nan_to_num(0).allclose(expected, rtol=1e-6)
    assert zero.compute().miou == pytest.approx(expected.mean().item(), rel=1e-6)
    assert result.absent == (4 if absent else 0)
    assert (zero.compute().miou == result.miou) is not absent


def test_iou_is_of_all_images_at_once() -> None:
    metrics, other = SegmentationMetrics(2), SegmentationMetrics(2)
    metrics.update(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 0, 0]]))  # alone: 3/4, 0/1
    other.update(torch.tensor([[1, 1]]), torch.tensor([[1, 0]]))  # alone: 0/1, 1/2
    alone = other.compute()
    metrics.merge(other)
    assert metrics.compute().iou == pytest.approx((3 / 5, 1 / 3))
    assert [image.miou for _, image in metrics.per_image()] == [3 / 8, 1 / 4]
    assert other.compute() == alone


def test_a_mask_and_a_prediction_without_a_class() -> None:
    metrics = SegmentationMetrics(2, ignore_index=None)
    prediction, target = torch.tensor([[255, -1, 0, 1]]), torch.tensor([[0, 0, 0, 7]])
    metrics.update(prediction, target, torch.tensor([[True, True, True, False]]))
    result = metrics.compute()
    assert (result.pixel_accuracy, result.iou[0], result.pixels, result.invalid_predictions) == (1 / 3, 1 / 3, 3, 2)
    with pytest.raises(ValueError, match="targets must be from 0 to 1 or None, ignored; got 7"):
        metrics.update(prediction, target)


def test_images_without_labels_are_counted_and_none_is_nan() -> None:
    metrics = SegmentationMetrics(2)
    assert math.isnan(metrics.compute().miou)
    metrics.update(torch.zeros(2, 1, 3, dtype=torch.uint8), torch.tensor([[[255, 255, 255]], [[0, 1, 255]]]))
    result = metrics.compute()
    assert (result.images, result.empty, result.pixels, result.pixel_accuracy) == (1, 1, 2, 0.5)
    assert math.isnan(metrics.per_image()[0][1].pixel_accuracy)
    assert math.isnan(metrics.per_image()[0][1].miou)


def test_bad_arguments_of_segmentation_are_refused() -> None:
    labels = torch.zeros(2, 2, dtype=torch.int64)
    for target, got in ((labels + 3, 3), (labels - 1, -1)):
        with pytest.raises(ValueError, match=f"targets must be from 0 to 2 or 255, ignored; got {got}"):
            SegmentationMetrics(3).update(labels, target)
    with pytest.raises(ValueError, match=r"prediction must be labels, integers, got torch.float32"):
        SegmentationMetrics(3).update(labels.float(), labels)
    with pytest.raises(ValueError, match=r"of one size, got \[1, 2\]"):
        SegmentationMetrics(3).update(labels[:1], labels)
    with pytest.raises(ValueError, match="ignore_index must not be one of the 256 classes, got 255; pass None"):
        SegmentationMetrics(256)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        SegmentationMetrics(0)
    with pytest.raises(ValueError, match="absent must be 'zero' or 'skip', got 'nan'"):
        SegmentationMetrics(3, absent="nan")  # type: ignore[arg-type]
