"""Scores at several scales, in crops and mirrored, against a slow computation from the description."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from networks import SEGMENTATION, VIT, make_model

from torchdpt import DPTModel, protocols
from torchdpt.multi_scale import predict_scores
from torchdpt.protocols import SegmentationProtocol

RNG = np.random.default_rng(0)
CROPS = SegmentationProtocol(
    name="crops",
    dataset="",
    num_classes=5,
    scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    base_size=71,
    crop_size=64,
    stride=42,
)
WHOLE = dataclasses.replace(
    CROPS,
    name="whole",
    scales=(1.0,),
    base_size=64,
    resize="minimal",
    crop_size=None,
    stride=None,
    flip=False,
    score="logits",
    upsample="bicubic",
)


@pytest.fixture(scope="module")
def model() -> DPTModel:
    """In double, so that what is left is the scores' single precision; mean and deviation differ by channel."""
    made = make_model(VIT.replace(**SEGMENTATION), torch.float64)
    made.processor = dataclasses.replace(made.processor, size=(64, 64), mean=(0.48, 0.45, 0.4), std=(0.2, 0.25, 0.3))
    return made


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- the reference ---


def aligned_corners(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """[h, w, C] to [height, width, C], the first and last pixels staying where they are, one pixel at a time."""
    rows, columns, channels = maps.shape
    result = np.zeros((height, width, channels))
    for i in range(height):
        for j in range(width):
            y = i * (rows - 1) / (height - 1) if height > 1 else 0.0
            x = j * (columns - 1) / (width - 1) if width > 1 else 0.0
            top, left = min(int(y), max(rows - 2, 0)), min(int(x), max(columns - 2, 0))
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = maps[top, left] * (1 - x + left) + maps[top, right] * (x - left)
            lower = maps[bottom, left] * (1 - x + left) + maps[bottom, right] * (x - left)
            result[i, j] = upper * (1 - y + top) + lower * (y - top)
    return result


def network(model: DPTModel, rgb: np.ndarray) -> np.ndarray:
    """Logits [h, w, K] of a picture [h, w, 3] in [0, 1]."""
    x = (rgb - np.array(model.processor.mean)) / np.array(model.processor.std)
    with torch.no_grad():
        return model(torch.from_numpy(x.transpose(2, 0, 1)[None])).logits[0].permute(1, 2, 0).numpy()


def reference(model: DPTModel, image: np.ndarray, protocol: SegmentationProtocol) -> np.ndarray:
    height, width = image.shape[:2]
    total = np.zeros((height, width, protocol.num_classes))
    crop, stride = protocol.crop_size, protocol.stride
    for scale in protocol.scales:
        long = math.ceil(protocol.base_size * scale)
        h = long if height >= width else math.floor(height * long / width + 0.5)
        w = long if width >= height else math.floor(width * long / height + 0.5)
        rgb = aligned_corners(image / 255, h, w)
        sums, counts = np.zeros((h, w, protocol.num_classes)), np.zeros((h, w, 1))
        top = 0
        while True:
            left = 0
            while True:
                black = np.zeros((crop, crop, 3))
                part = rgb[top : top + crop, left : left + crop]
                black[: part.shape[0], : part.shape[1]] = part
                logits = network(model, black)
                if protocol.flip:
                    logits = logits + network(model, black[:, ::-1])[:, ::-1]
                scores = np.exp(logits) if protocol.score == "exp" else logits
                sums[top : top + crop, left : left + crop] += scores[: part.shape[0], : part.shape[1]]
                counts[top : top + crop, left : left + crop] += 1
                if left + crop >= w:
                    break
                left += stride
            if top + crop >= h:
                break
            top += stride
        total += aligned_corners(sums / counts, height, width)
    return total.transpose(2, 0, 1)


# --- what is to be shown ---


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((37, 51), {}),  # odd, and smaller than a crop at the lower scales
        ((51, 37), {"scales": (0.75, 1.25)}),
        ((23, 97), {"scales": (1.0, 1.75)}),  # larger than a crop in one direction alone
        ((97, 23), {"scales": (1.0, 1.75)}),
        ((64, 64), {"scales": (1.0,), "base_size": 64}),  # one crop, of the picture's own size
        ((2, 61), {"scales": (0.5,)}),  # a row or two are left
        ((45, 60), {"scales": (1.5,), "flip": False}),
        ((45, 60), {"scales": (1.0, 1.5), "score": "logits"}),
        ((45, 60), {"scales": (1.5,), "stride": 64}),  # crops that do not overlap
    ],
)
def test_scores_of_crops_are_those_of_the_description(
    model: DPTModel, size: tuple[int, int], changes: dict[str, object]
) -> None:
    image, protocol = picture(*size), dataclasses.replace(CROPS, **changes)
    scores = predict_scores(model, image, protocol)
    expected = reference(model, image, protocol)
    assert scores.shape == expected.shape == (5, *size)
    assert scores.dtype == torch.float32
    # The picture and the scores are float32: 2^-24 each, over six scales; logits are of the order of 1.
    assert np.abs(scores.numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_how_many_crops_run_together_does_not_matter(model: DPTModel) -> None:
    image = picture(50, 80)
    one, many = (predict_scores(model, image, CROPS, batch_size=n) for n in (1, 32))
    assert (one - many).abs().max() <= 1e-6 * one.abs().max()


def test_single_scale_gives_the_labels_of_predict(model: DPTModel) -> None:
    image = picture(50, 83)
    scores = predict_scores(model, image, WHOLE)
    assert scores.shape == (5, 50, 83)
    assert np.array_equal(scores.argmax(0).numpy(), model.predict(image).labels)


def test_mirrored_pictures_have_mirrored_scores_where_a_crop_is_filled(model: DPTModel) -> None:
    protocol = dataclasses.replace(CROPS, scales=(1.0,), base_size=64)
    image = picture(64, 64)
    scores = predict_scores(model, image, protocol)
    mirrored = predict_scores(model, np.ascontiguousarray(image[:, ::-1]), protocol).flip(2)
    assert (scores - mirrored).abs().max() <= 1e-6 * scores.abs().max()
    unlike = predict_scores(model, image, dataclasses.replace(protocol, flip=False))
    other = predict_scores(model, np.ascontiguousarray(image[:, ::-1]), dataclasses.replace(protocol, flip=False))
    assert (unlike - other.flip(2)).abs().max() > 1e-3 * unlike.abs().max()


def test_a_training_model_is_run_in_eval_mode_and_left_in_its_own(model: DPTModel) -> None:
    image = picture(40, 40)
    expected = predict_scores(model, image, CROPS)
    model.train()
    try:
        assert torch.equal(predict_scores(model, image, CROPS), expected)
        assert model.training
    finally:
        model.eval()


@pytest.mark.parametrize("protocol", [CROPS, WHOLE], ids=["crops", "whole"])
def test_scores_of_a_frozen_model_are_those_of_its_network(model: DPTModel, protocol: SegmentationProtocol) -> None:
    image = picture(50, 83)
    expected = predict_scores(model, image, protocol)
    got = predict_scores(model.freeze(), image, protocol)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()  # sums of exp() of float32


def test_networks_that_do_not_fit_are_refused(model: DPTModel) -> None:
    image = picture(40, 40)
    with pytest.raises(ValueError, match="ade20k is of 150 classes, and this network has 5 classes"):
        predict_scores(model, image, protocols.get("ade20k"))
    with pytest.raises(ValueError, match="and this network has no head for classes"):
        predict_scores(make_model(VIT), image, CROPS)
    with pytest.raises(ValueError, match="crop_size must be a multiple of 16 for this network, got 70"):
        predict_scores(model, image, dataclasses.replace(CROPS, crop_size=70))
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1, got 0"):
        predict_scores(model, image, CROPS, batch_size=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": "minimal"}, "wanted crop_size and stride, and resize=None, or resize without these"),
        ({"stride": None}, "wanted crop_size and stride"),
        ({"crop_size": None, "stride": None}, "wanted crop_size and stride"),
        ({"stride": 65}, "stride must be from 1 to crop_size, or pixels would be left out, got 65 and 64"),
        ({"scales": ()}, "scales and base_size must be positive"),
        ({"scales": (1.0, 0.0)}, "scales and base_size must be positive"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CROPS, **changes)
