"""Protocols: what they say, and that evaluation follows them, on arrays and files worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reference_metrics import bilinear, depth_errors
from test_distributed import torchrun
from torch import Tensor

from torchdpt import ImageProcessor, protocols
from torchdpt.evaluate import EvaluationResult, Evaluator
from torchdpt.protocols import PROTOCOLS, DepthProtocol, Protocol, kb_crop

RNG = np.random.default_rng(0)
NAN = math.nan


def evaluate(protocol: Protocol, *images: tuple) -> EvaluationResult:
    evaluator = Evaluator(protocol)
    for image in images:
        evaluator.update(*image)
    return evaluator.result()


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- what they say ---


def test_zero_shot_is_that_of_midas() -> None:
    table = {  # images, what is reported, cap in metres
        "eth3d": (454, "abs_rel", 72),
        "sintel": (1064, "abs_rel", 72),
        "kitti": (161, "delta1_error", 80),
        "nyu": (654, "delta1_error", 10),
        "tum": (1815, "delta1_error", 10),
    }
    for name, expected in table.items():
        protocol = protocols.get(f"zero_shot_midas/{name}")
        assert isinstance(protocol, DepthProtocol)
        assert (protocol.images, protocol.headline, protocol.cap) == expected
        assert (protocol.alignment, protocol.upsample, protocol.error_space) == ("least_squares", "bilinear", "depth")
        assert (protocol.crop, protocol.paste, protocol.quantisation, protocol.average) == (None, None, None, "image")
    diw = protocols.get("zero_shot_midas/diw", name="diw")
    assert diw == PROTOCOLS["diw"]
    assert (diw.images, diw.headline) == (74441, "whdr")


@pytest.mark.parametrize(
    ("name", "size", "midas", "minimal"),
    [  # height and width of the photographs, and of the network's input in MiDaS and with DPT's scripts
        ("eth3d", (4032, 6048), (256, 384), (384, 576)),
        ("sintel", (436, 1024), (160, 384), (384, 896)),
        ("kitti", (352, 1216), (384, 1312), (384, 1312)),
        ("nyu", (480, 640), (288, 384), (384, 512)),
        ("tum", (384, 512), (288, 384), (384, 512)),
    ],
)
def test_resize_policies_give_the_published_input_sizes(
    name: str, size: tuple[int, int], midas: tuple[int, int], minimal: tuple[int, int]
) -> None:
    def input_size(protocol: Protocol) -> tuple[int, int]:
        fields = {field: getattr(protocol, field) for field in ("resize", "multiple_of")}
        return ImageProcessor(size=protocol.input_size, **fields).network_size(*size)  # type: ignore[union-attr]

    assert input_size(protocols.get(f"zero_shot_midas/{name}")) == minimal
    policy = "lower_bound" if name == "kitti" else "upper_bound"
    assert input_size(protocols.get(f"zero_shot_midas/{name}", resize=policy)) == midas


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_setting_is_in_the_record(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    record = evaluate(protocol).to_json()
    text = json.dumps(record, allow_nan=False)  # although nothing was measured
    settings = json.loads(text)["protocol"]
    kind = getattr(protocols, settings.pop("kind"))
    lists = {key: tuple(value) for key, value in settings.items() if isinstance(value, list)}
    assert kind(**(settings | lists)) == protocol
    assert settings.keys() == {field.name for field in dataclasses.fields(protocol)}
    assert record["headline"] == {"name": protocol.headline, "value": None}


def test_changes_are_in_the_record_and_leave_the_protocol_alone() -> None:
    changed = protocols.get("kitti_eigen", quantisation=None, crop_frame="kb_crop")
    record = evaluate(changed).to_json()["protocol"]
    assert (record["quantisation"], record["crop_frame"], record["cap"]) == (None, "kb_crop", 80)
    original = protocols.get("kitti_eigen")
    assert isinstance(original, DepthProtocol)
    assert (original.quantisation, original.crop_frame) == (256, "full")
    with pytest.raises(dataclasses.FrozenInstanceError):
        original.cap = 100  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "kiti_eigen",
            {},
            r"no protocol 'kiti_eigen' \(did you mean 'kitti_eigen'\?\); there are zero_shot_midas/diw,",
        ),
        ("ablation", {}, r"did you mean 'ablation/"),
        ("xyz", {}, "no protocol 'xyz'; there are"),
        ("diw", {"crop": None}, "diw has no field 'crop'; it has name, dataset, images,"),
        (
            "nyu_eigen",
            {"upsample": "nearest"},
            "nyu_eigen: upsample must be one of 'bilinear', 'bicubic', got 'nearest'",
        ),
        ("nyu_eigen", {"cap": "far"}, r"nyu_eigen: cap must be float \| None, got 'far'"),
        ("nyu_eigen", {"cap": True}, r"nyu_eigen: cap must be float \| None, got True"),
        (
            "nyu_eigen",
            {"crop": [1, 2, 3]},
            r"crop must be tuple\[float, .*\] \| None, got \(1, 2, 3\)",
        ),
        ("ade20k", {"flip": 1}, "ade20k: flip must be bool, got 1"),
        ("nyu_eigen", {"paste": "garg"}, "paste must be one of 'kb_crop', None, got 'garg'"),
        ("nyu_eigen", {"headline": "whdr"}, "headline must be one of 'abs_rel', .* got 'whdr'"),
        ("diw", {"headline": "abs_rel"}, "headline must be one of 'whdr', got 'abs_rel'"),
        ("ade20k", {"absent": "nan"}, "absent must be one of 'zero', 'skip', got 'nan'"),
        ("nyu_eigen", {"alignment": "robust"}, "prediction='inverse_depth' needs an alignment, .* got 'depth' with"),
        ("zero_shot_midas/nyu", {"alignment": None}, "got 'inverse_depth' with alignment=None"),
        ("zero_shot_midas/nyu", {"cap": None}, "errors in depth need a cap"),
        ("zero_shot_midas/nyu", {"quantisation": 256}, "quantisation is of depth in metres"),
    ],
)
def test_what_there_is_not_is_refused(name: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protocols.get(name, **changes)


def test_lists_count_as_tuples() -> None:
    assert protocols.get("nyu_eigen", crop=[1, 9, 1, 9]) == protocols.get("nyu_eigen", crop=(1, 9, 1, 9))
    assert protocols.get("ade20k", scales=[1, 2]) == protocols.get("ade20k", scales=(1, 2))


# --- zero-shot ---

# Inverse depth 1 1 2 4 against 0 1 2 3: least squares gives scale 1 and shift 1/2, so that it is .5 1.5 2.5 3.5.
FOUR = (rows([0, 1, 2, 3]), rows([1, 1, 0.5, 0.25]))
# z = 2, 2/3, .4, 2/7.
FOUR_ABS_REL = (1 + 1 / 3 + 1 / 5 + 1 / 7) / 4


def test_zero_shot_worked_out_by_hand() -> None:
    result = evaluate(protocols.get("zero_shot_midas/eth3d"), FOUR)
    assert result.headline == pytest.approx(FOUR_ABS_REL, rel=1e-12)
    image = result.per_image[0]
    assert (image["scale"], image["shift"]) == pytest.approx((1, 0.5), rel=1e-12)
    assert image["id"] == "0"
    # A cap of 1.5 m brings the first from 2 m to 1.5 m.
    capped = evaluate(protocols.get("zero_shot_midas/eth3d", cap=1.5), FOUR)
    assert capped.headline == pytest.approx(FOUR_ABS_REL - 0.5 / 4, rel=1e-12)


def test_inverse_depth_below_zero_is_at_the_cap() -> None:
    protocol = protocols.get("zero_shot_midas/eth3d")
    image = evaluate(protocol, (rows([0, 1, 2, 3]), 1 / rows([1e-3, 2, 1, 8]))).per_image[0]
    a = [image["shift"] + i * image["scale"] for i in range(4)]
    assert a[0] < -0.5
    expected = (1000 - 72) / 1000, *(abs(1 / x - z) / z for x, z in zip(a[1:], (0.5, 1, 0.125), strict=True))
    assert image["abs_rel"] == pytest.approx(sum(expected) / 4, rel=1e-12)


def test_images_count_alike_or_pixels_do() -> None:
    perfect = (rows([1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2]), 1 / rows([1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2]))
    for average, weight in (("image", 1 / 2), ("pooled", 4 / 16)):
        result = evaluate(protocols.get("zero_shot_midas/eth3d", average=average), FOUR, perfect)
        assert result.headline == pytest.approx(FOUR_ABS_REL * weight, rel=1e-12)


def test_percent_of_pixels_off_by_a_quarter() -> None:
    result = evaluate(protocols.get("zero_shot_midas/tum", cap=1.2), FOUR)
    # Ratios 1.2 (capped), 1.5, 1.25 - which is not below 1.25 but for rounding - and 8/7.
    z = 1 / np.array([1 / 1.2, 1.5, 2.5, 3.5])
    assert result.headline == pytest.approx(100 * (1 - depth_errors(z, FOUR[1].numpy())["delta1"]))
    assert result.headline in (25, 50)
    assert result.metrics["delta1_error"] == 100 * (1 - result.metrics["delta1"])


def test_zero_shot_is_the_mean_over_images_of_upsampled_and_aligned_maps() -> None:
    protocol, images, expected = protocols.get("zero_shot_midas/nyu"), [], []
    for i in range(3):
        target = RNG.uniform(0.5, 12, (9, 13))
        target[RNG.random((9, 13)) < 0.3] = 0
        prediction = (RNG.random((4, 5 + i)) * 40 - 10).astype(np.float32)
        images.append((torch.tensor(prediction), torch.tensor(target)))
        valid = (target > 0) & (target < 10)
        d, inverse = bilinear(prediction.astype(np.float64), 9, 13)[valid], 1 / target[valid]
        scale, shift = np.linalg.lstsq(np.stack([d, np.ones_like(d)], 1), inverse, rcond=None)[0]
        expected.append(depth_errors(1 / np.maximum(scale * d + shift, 1 / 10), target[valid]))
    result = evaluate(protocol, *images)
    for name in expected[0]:
        # The maps are resized in float32.
        assert result.metrics[name] == pytest.approx(np.mean([error[name] for error in expected]), rel=1e-5), name
        assert result.per_image[1][name] == pytest.approx(expected[1][name], rel=1e-5)
    assert result.counts["pixels"] == sum(int(((z > 0) & (z < 10)).sum()) for _, z in images)


def test_inverse_depth_that_is_affine_in_the_truth_is_perfect() -> None:
    target = torch.tensor(RNG.uniform(0.5, 9, (20, 30)))
    for name in ("zero_shot_midas/nyu", "ablation/blendedmvs"):
        for alignment in ("least_squares", "robust"):
            result = evaluate(protocols.get(name, alignment=alignment), (7 / target + 100, target))
            assert result.metrics["abs_rel"] < 1e-6  # robust scales are those of a median and a mean deviation
            assert result.metrics["delta1"] == 1


def test_ground_truth_beyond_the_cap_is_left_out_of_sintel_and_nyu_and_not_of_kitti() -> None:
    target = rows([1, 1, 0.5, 0.25, 500])
    prediction = rows([0, 1, 2, 3, 50])
    for name, pixels in (("sintel", 4), ("nyu", 4), ("kitti", 5), ("eth3d", 5), ("tum", 5)):
        result = evaluate(protocols.get(f"zero_shot_midas/{name}"), (prediction, target))
        assert result.counts["pixels"] == pixels
    sintel = protocols.get("zero_shot_midas/sintel")
    assert evaluate(sintel, (prediction, target)).headline == pytest.approx(FOUR_ABS_REL, rel=1e-12)
    # A frame of sky alone, of which Sintel has 19, and ground truth at exactly 72 m.
    result = evaluate(sintel, FOUR, (prediction, torch.full((1, 5), 100.0)), (prediction, torch.full((1, 5), 72.0)))
    assert result.headline == pytest.approx(FOUR_ABS_REL, rel=1e-12)
    assert (result.counts["images"], result.counts["empty"]) == (1, 2)


def test_a_mask_decides_and_what_is_no_depth_in_it_is_reported() -> None:
    prediction, target = rows([0, 1, 2, 3, 9, 9, 9]), rows([1, 1, 0.5, 0.25, NAN, 0, 3])
    mask = torch.tensor([[True] * 6 + [False]])
    result = evaluate(protocols.get("zero_shot_midas/eth3d"), (prediction, target, mask))
    assert result.headline == pytest.approx(FOUR_ABS_REL, rel=1e-12)
    assert (result.counts["pixels"], result.counts["invalid_targets"]) == (4, 2)
    infinite = rows([1, 1, 0.5, 0.25, NAN, 0, math.inf])  # as ETH3D has it; without a mask that is no error
    result = evaluate(protocols.get("zero_shot_midas/eth3d"), (prediction, infinite))
    assert result.headline == pytest.approx(FOUR_ABS_REL, rel=1e-12)
    assert (result.counts["pixels"], result.counts["invalid_targets"]) == (4, 0)


def test_predictions_that_are_not_finite_do_not_align_and_count_as_wrong() -> None:
    prediction, target = rows([0, 1, 2, 3, NAN, math.inf]), rows([1, 1, 0.5, 0.25, 1, 1])
    result = evaluate(protocols.get("zero_shot_midas/eth3d"), (prediction, target))
    assert (result.per_image[0]["scale"], result.per_image[0]["shift"]) == pytest.approx((1, 0.5), rel=1e-12)
    # NaN counts as 1e-6 m; infinite inverse depth is depth 0, which counts the same.
    assert result.headline == pytest.approx((4 * FOUR_ABS_REL + 2 * (1 - 1e-6)) / 6, rel=1e-12)
    assert (result.counts["pixels"], result.counts["invalid_predictions"]) == (6, 2)
    lost = evaluate(protocols.get("zero_shot_midas/eth3d"), (rows([NAN, NAN]), rows([1, 2])))
    assert lost.headline == pytest.approx(1, rel=1e-5)
    assert lost.counts["invalid_predictions"] == 2


def test_constant_predictions_become_the_mean_and_negative_scales_are_counted() -> None:
    protocol = protocols.get("zero_shot_midas/eth3d")
    target = rows([1, 1, 0.5, 0.25])
    result = evaluate(protocol, (torch.full((1, 4), 3.0), target), (-FOUR[0], FOUR[1]))
    assert (result.counts["constant"], result.counts["negative_scales"]) == (1, 1)
    assert (result.per_image[0]["scale"], result.per_image[0]["shift"]) == (0, 2)
    assert result.per_image[0]["abs_rel"] == pytest.approx((0.5 + 0.5 + 0 + 1) / 4)  # 1 / 2 m everywhere
    assert result.per_image[1]["scale"] == pytest.approx(-1)
    assert result.per_image[1]["abs_rel"] == pytest.approx(FOUR_ABS_REL)


# --- KITTI and NYU in metres ---


def test_kb_crop_is_at_the_bottom_and_in_the_middle() -> None:
    assert kb_crop(375, 1242) == ((23, 375), (13, 1229))
    assert kb_crop(376, 1241) == ((24, 376), (12, 1228))
    assert kb_crop(352, 1216) == ((0, 352), (0, 1216))
    with pytest.raises(ValueError, match=r"wanted at least 352 x 1216 \(height x width\), got 351 x 1242"):
        kb_crop(351, 1242)


@pytest.mark.parametrize(
    ("changes", "size", "expected"),
    [
        ({}, (375, 1242), (153, 371, 44, 1197)),
        ({"crop_frame": "kb_crop"}, (375, 1242), (166, 372, 56, 1185)),
        ({}, (370, 1226), (151, 366, 44, 1181)),
        ({"crop": (0.3324324, 0.91351351, 0.0359477, 0.96405229)}, (375, 1242), (124, 342, 44, 1197)),  # Eigen's
        ({"crop": None}, (375, 1242), (0, 375, 0, 1242)),
        ({"crop": None, "crop_frame": "kb_crop"}, (375, 1242), (23, 375, 13, 1229)),
    ],
)
def test_crops_of_kitti(changes: dict, size: tuple[int, int], expected: tuple[int, ...]) -> None:
    protocol = protocols.get("kitti_eigen", **changes)
    assert isinstance(protocol, DepthProtocol)
    assert protocol.crop_of(*size) == expected
    # The same by evaluation: only what is in the crop is measured, to the row and column.
    top, bottom, left, right = expected
    good = torch.full((352, 1216), 10.0)
    for inside, points in (
        (True, [(top, left), (top, right - 1), (bottom - 1, left), (bottom - 1, right - 1)]),
        (False, [(top - 1, left), (top, left - 1), (bottom, right - 1), (bottom - 1, right)]),
    ):
        for y, x in points:
            target = torch.zeros(size)
            if 0 <= y < size[0] and 0 <= x < size[1]:
                target[y, x] = 20.0
            result = evaluate(protocol, (good, target))
            assert result.counts["pixels"] == inside


def test_kitti_from_a_file_worked_out_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "0000000005.png"
    levels = np.zeros((375, 1242), np.uint16)
    # Two points in the crop; one above and one beside it; one at 80 m and one at 1/256 m more than 1e-3 m.
    levels[200, 600], levels[370, 44], levels[152, 600], levels[200, 43] = 20 * 256, 4 * 256, 512, 512
    levels[201, 600], levels[202, 600] = 80 * 256, 1
    Image.fromarray(levels).save(path)
    target = torch.tensor(np.asarray(Image.open(path)).astype(np.float32)) / 256
    prediction = torch.full((352, 1216), 1.0)
    prediction[200 - 23, 600 - 13] = 25.0
    prediction[370 - 23, 44 - 13] = 3.001  # 768.256 levels: 3 m in a file
    prediction[202 - 23, 600 - 13] = 0.0001  # no level at all: 1e-3 m
    result = evaluate(protocols.get("kitti_eigen"), (prediction, target))
    assert result.counts["pixels"] == 3
    assert result.headline == pytest.approx((5 / 20 + 1 / 4 + (1 - 0.256)) / 3, rel=1e-6)
    assert result.metrics["delta1"] == 0
    assert result.counts["invalid_predictions"] == 1
    exact = evaluate(protocols.get("kitti_eigen", quantisation=None), (prediction, target))
    assert exact.headline == pytest.approx((5 / 20 + 0.999 / 4 + (1 - 0.256)) / 3, rel=1e-6)
    assert exact.counts["invalid_predictions"] == 0


def test_outside_of_what_the_network_saw_nothing_is_known() -> None:
    target = torch.zeros(375, 1242)
    target[22, 600], target[23, 600] = 10.0, 10.0
    protocol = protocols.get("kitti_eigen", crop=None)
    result = evaluate(protocol, (torch.full((352, 1216), 10.0), target))
    assert (result.counts["pixels"], result.counts["invalid_predictions"]) == (2, 1)
    whole = evaluate(protocols.get("kitti_eigen", crop=None, paste=None), (torch.full((375, 1242), 10.0), target))
    assert (whole.counts["pixels"], whole.headline) == (2, 0)


def test_quantisation_truncates_and_has_an_end() -> None:
    prediction, target = rows([1.9999, 300, 2, NAN]), rows([2, 70, 2, 2])
    protocol = dataclasses.replace(protocols.get("kitti_eigen"), crop=None, paste=None, cap=400)
    result = evaluate(protocol, (prediction, target))
    level, most = 511 / 256, 65535 / 256
    expected = (1 - level / 2 + (most - 70) / 70 + 0 + 1 - 1e-3 / 2) / 4
    assert result.headline == pytest.approx(expected, rel=1e-6)


def test_nyu_from_a_file_worked_out_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "sync_depth_00045.png"
    levels = np.zeros((480, 640), np.uint16)
    inside, outside = [(45, 41), (45, 600), (470, 41), (470, 600)], [(44, 41), (45, 40), (471, 600), (470, 601)]
    for place, value in (*((p, 2000) for p in inside), *((p, 5000) for p in outside), ((100, 100), 10000)):
        levels[place] = value
    Image.fromarray(levels).save(path)
    target = torch.tensor(np.asarray(Image.open(path)).astype(np.float32)) / 1000
    prediction = torch.full((480, 640), 1.5017)  # 1501 levels
    prediction[470, 600] = 12.0  # capped at 10 m
    result = evaluate(protocols.get("nyu_eigen"), (prediction, target))
    assert result.counts["pixels"] == 4
    assert result.headline == pytest.approx((3 * 0.499 / 2 + 4) / 4, rel=1e-6)
    assert result.metrics["rmse"] == pytest.approx(math.sqrt((3 * 0.499**2 + 64) / 4), rel=1e-6)
    with pytest.raises(ValueError, match=r"rows 45 to 471 and columns 41 to 601, does not fit into 240 x 320"):
        evaluate(protocols.get("nyu_eigen"), (prediction, target[::2, ::2]))


def test_metric_maps_are_resized_bicubically() -> None:
    small = torch.tensor(RNG.uniform(1, 9, (6, 8)), dtype=torch.float32)
    full = torch.nn.functional.interpolate(small[None, None], (480, 640), mode="bicubic", align_corners=False)[0, 0]
    exact = protocols.get("nyu_eigen", quantisation=None)
    assert evaluate(exact, (small, full.clamp(1e-3, 10))).headline < 1e-6
    assert evaluate(protocols.get("nyu_eigen", quantisation=None, upsample="bilinear"), (small, full)).headline > 1e-3


# --- ablation, order, segmentation ---


def test_ablation_measures_in_inverse_depth_or_depth() -> None:
    inverse = (FOUR[0], 1 / FOUR[1])
    in_inverse = evaluate(protocols.get("ablation/hrwsi"), inverse)
    # .5 1.5 2.5 3.5 against 1 1 2 4.
    assert in_inverse.headline == pytest.approx((1 / 2 + 1 / 2 + 1 / 4 + 1 / 8) / 4, rel=1e-12)
    in_depth = evaluate(protocols.get("ablation/hrwsi", error_space="depth", cap=1000), inverse)
    assert in_depth.headline == pytest.approx(FOUR_ABS_REL, rel=1e-12)
    of_depth = evaluate(protocols.get("ablation/blendedmvs"), FOUR)
    assert of_depth.headline == pytest.approx(in_inverse.headline, rel=1e-12)


def test_inverse_depth_below_the_cap_counts_as_the_cap() -> None:
    prediction, target = rows([0, 1, 2, 3]), rows([1e-3, 2, 1, 8])  # slope 2.3, shift -0.7 (and 1e-3 / 5)
    free = evaluate(protocols.get("ablation/redweb"), (prediction, target))
    scale, shift = free.per_image[0]["scale"], free.per_image[0]["shift"]
    assert shift < 0
    others = [abs(scale * i + shift - t) / t for i, t in ((1, 2), (2, 1), (3, 8))]
    assert free.headline == pytest.approx((1 - 1e-3 + sum(others)) / 4, rel=1e-12)
    assert free.counts["invalid_predictions"] == 1
    capped = evaluate(protocols.get("ablation/redweb", cap=100), (prediction, target))
    assert capped.headline == pytest.approx((9 + sum(others)) / 4, rel=1e-12)  # 1 / 100 for 1e-3


def test_metric_depth_can_be_measured_in_inverse_depth() -> None:
    protocol = DepthProtocol(
        name="mine", dataset="mine", prediction="depth", alignment=None, error_space="inverse_depth"
    )
    result = evaluate(protocol, (rows([2, 4]), rows([1, 5])))
    assert result.headline == pytest.approx((0.5 + 0.25) / 2)
    assert "scale" not in result.per_image[0]


def test_diw_reads_points_at_the_size_of_the_photograph() -> None:
    evaluator = Evaluator(protocols.get("diw"))
    prediction = torch.tensor([[1.0, 2.0, 3.0]])  # near is on the right
    for relation in (1, -1):
        pairs = torch.tensor([[9, 2, 0, 599, relation]])  # y, x; y, x: A is farther
        evaluator.update(prediction, pairs, size=(10, 600), id=f"image {relation}")
    result = evaluator.result()
    assert result.headline == 50
    assert [(image["id"], image["whdr"]) for image in result.per_image] == [("image 1", 0), ("image -1", 100)]
    assert result.counts["pairs"] == 2
    with pytest.raises(ValueError, match=r"points must be in the image, 1 x 3"):
        evaluator.update(prediction, pairs)
    other = Evaluator(protocols.get("diw", relation="nearer", prediction="depth"))
    other.update(prediction, pairs, size=(10, 600))  # -1: A is farther, and large is far
    assert other.result().headline == 100


def test_segmentations_count_as_their_protocol_says() -> None:
    target = torch.tensor([[0, 0, 1, 255]])
    prediction = torch.tensor([[0, 1, 1, 0]])
    for name, classes in (("ade20k", 150), ("pascal_context/single_scale", 59)):
        result = evaluate(protocols.get(name), (prediction, target))
        assert result.headline == pytest.approx((1 / 2 + 1 / 2) / classes)
        assert result.metrics["pixel_accuracy"] == pytest.approx(2 / 3)
        assert (result.counts["absent"], len(result.iou)) == (classes - 2, classes)
        assert result.to_json()["iou"][:3] == [0.5, 0.5, None]
        skipping = evaluate(protocols.get(name, absent="skip"), (prediction, target))
        assert skipping.headline == pytest.approx(0.5)


# --- several parts and processes ---


def test_parts_are_merged_with_their_alignments() -> None:
    protocol = protocols.get("zero_shot_midas/eth3d")
    whole, first, second = (Evaluator(protocol) for _ in range(3))
    others = (torch.tensor(RNG.random((3, 4))), torch.tensor(RNG.uniform(1, 5, (3, 4))))
    for evaluator, image, id in ((first, FOUR, "a"), (second, others, "b"), (second, FOUR, "c")):
        for one in (evaluator, whole):
            one.update(*image, id=id)
    first.merge(second)
    assert first.result() == whole.result()
    assert first.all_reduce().result() == whole.result()
    with pytest.raises(ValueError, match="only evaluators of one protocol can be merged"):
        first.merge(Evaluator(protocols.get("zero_shot_midas/sintel")))


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    script = Path(__file__).parent / "scripts" / "merge_metrics.py"
    for processes in (1, 2):
        torchrun(processes, script, tmp_path / f"{processes}.json")
    alone, together = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert len(alone["0"]) == 4
    assert together["0"] == together["1"]  # both processes know it all
    for name, result in alone["0"].items():
        ids = [image.pop("id") for image in together["0"][name]["per_image"]]
        assert ids == ["0", "2", "4", "6", "1", "3", "5"]  # in order of rank
        order = sorted(range(len(ids)), key=lambda i, ids=ids: ids[i])
        together["0"][name]["per_image"] = [together["0"][name]["per_image"][i] for i in order]
        for image in result["per_image"]:
            image.pop("id")
        assert together["0"][name] == result  # to the last bit
        assert result["counts"]["images"] == 7


def test_bad_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"nyu_eigen: prediction must be of one image, \[h, w\], got \[1, 2, 3\]"):
        Evaluator(protocols.get("nyu_eigen")).update(torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    with pytest.raises(
        ValueError, match=r"target must be \[H, W\] and mask bool of its size, got \[2, 3\] and torch.u"
    ):
        Evaluator(protocols.get("nyu_eigen")).update(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3).byte())
    with pytest.raises(ValueError, match=r"nyu_eigen: .* must be on one device, got cpu, meta, meta"):
        Evaluator(protocols.get("nyu_eigen")).update(torch.ones(2, 3), torch.ones(2, 3, device="meta"))
