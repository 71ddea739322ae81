"""Tables, pictures and the curve of an evaluation, on values worked out by hand."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
import torch

from torchdpt import Classes, protocols
from torchdpt.colormaps import apply_colormap
from torchdpt.data import Sample
from torchdpt.evaluate import EvaluationResult
from torchdpt.evaluation_files import curve_picture, depth_picture, label_picture, to_csv, worst
from torchdpt.protocols import SegmentationProtocol

RNG = np.random.default_rng(0)
METRES = protocols.get("own_metric")
LABELS = SegmentationProtocol(name="labels", dataset="", num_classes=3)
BLACK = (0, 0, 0)


def sample(depth: np.ndarray, **changes: object) -> Sample:
    """0: not known; infinite: the sky."""
    return Sample(
        image=torch.from_numpy(RNG.integers(0, 256, (*depth.shape, 3), dtype=np.uint8)),
        dataset="list",
        id="a",
        target=torch.from_numpy(depth.astype(np.float32)),
        mask=torch.from_numpy(depth > 0),
        unit="metre",
    ).replace(**changes)


def panels(picture: np.ndarray) -> list[np.ndarray]:
    assert picture.dtype == np.uint8
    return np.split(picture, 4, axis=1)


def inferno(value: float) -> tuple[int, ...]:
    return tuple(apply_colormap(np.array(value), "inferno").tolist())


def result(headline: str, values: list[float]) -> EvaluationResult:
    name = "delta1" if headline == "delta1_error" else headline
    protocol = LABELS if headline == "miou" else protocols.get("own_depth", headline=headline)
    rows = tuple({"index": i, "id": str(i), name: value} for i, value in enumerate(values))
    return EvaluationResult(protocol, {headline: math.nan}, {}, (), rows)


# --- depth ---


def test_errors_are_relative_and_truth_and_prediction_share_their_colours() -> None:
    depth = np.array([[1.0, 2, 4, 8], [1, 2, 4, 8]])
    s = sample(depth)
    prediction = torch.tensor(depth * [[1, 1, 1.25, 4], [1, 0.75, 1, 1]])
    image, truth, predicted, error = panels(depth_picture(s, prediction, METRES, {}))
    assert np.array_equal(image, s.image.numpy())
    assert np.array_equal(truth[1, [0, 2, 3]], predicted[1, [0, 2, 3]])
    assert not np.array_equal(truth[1, 1], predicted[1, 1])
    assert truth[0].sum(1).argsort().tolist() == [3, 2, 1, 0]  # near is bright
    expected = np.array([[0, 0, 0.5, 1], [0, 0.5, 0, 0]])  # of errors of 0.25, and of 3, which is beyond the scale
    assert np.array_equal(error, apply_colormap(expected, "inferno"))


def test_alignment_is_that_of_the_image() -> None:
    depth = np.array([[1.0, 2, 4, 8]])
    prediction = torch.tensor((1 / depth - 0.25) / 3)
    row = {"scale": 3.0, "shift": 0.25}
    _, truth, predicted, error = panels(depth_picture(sample(depth), prediction, protocols.get("own_depth"), row))
    assert np.array_equal(truth, predicted)
    assert {*map(tuple, error[0].tolist())} == {inferno(0)}
    inverse = protocols.get("ablation/redweb")
    _, truth, predicted, error = panels(depth_picture(sample(depth), prediction, inverse, row))
    assert np.array_equal(truth, predicted)
    assert {*map(tuple, error[0].tolist())} == {inferno(0)}


def test_what_does_not_count_is_black() -> None:
    depth = np.array([[0.0, np.inf, 2, 4, 100, 3]])
    protocol = protocols.get("own_metric", crop=(0, 1, 0, 5))
    prediction = torch.tensor([[9.0, 9, 9, 9, 9, math.nan]])
    _, truth, predicted, error = panels(depth_picture(sample(depth), prediction, protocol, {}))
    assert [tuple(colour) == BLACK for colour in truth[0].tolist()] == [True, True, False, False, False, False]
    assert tuple(predicted[0, 5]) == BLACK
    # Not known, the sky, two that count, beyond max_target, outside of the crop.
    assert [tuple(colour) == BLACK for colour in error[0].tolist()] == [True, True, False, False, True, True]


def test_a_prediction_that_is_no_number_is_the_largest_error() -> None:
    prediction = torch.tensor([[math.nan, 2.0]])
    _, _, predicted, error = panels(depth_picture(sample(np.array([[1.0, 2]])), prediction, METRES, {}))
    assert tuple(predicted[0, 0]) == BLACK
    assert tuple(error[0, 0]) == inferno(1)
    assert tuple(error[0, 1]) == inferno(0)


def test_predictions_are_brought_to_the_size_of_the_truth() -> None:
    picture = depth_picture(sample(np.full((6, 8), 3.0)), torch.full((3, 4), 3.0), METRES, {})
    assert picture.shape == (6, 32, 3)
    assert {*map(tuple, panels(picture)[3].reshape(-1, 3).tolist())} == {inferno(0)}


# --- labels ---


def test_wrong_labels_are_red_and_ignored_ones_black() -> None:
    labels = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
    s = sample(np.ones((1, 4)), labels=labels)
    classes = Classes.numbered(3)
    image, truth, predicted, error = panels(label_picture(s, torch.tensor([[0, 2, 2, 1]]), LABELS, classes))
    assert truth[0].tolist() == [*map(list, classes.palette), [0, 0, 0]]
    assert predicted[0].tolist() == [list(classes.palette[i]) for i in (0, 2, 2, 1)]
    assert error[0].tolist() == [(image[0, 0] // 2).tolist(), [255, 0, 0], (image[0, 2] // 2).tolist(), [0, 0, 0]]


# --- tables and the curve ---


@pytest.mark.parametrize(
    ("headline", "values", "expected"),
    [
        ("abs_rel", [0.1, 0.4, math.nan, 0.3], [1, 3]),
        ("rmse", [0.4, 0.4, 0.3], [0, 1]),
        ("delta1", [0.1, 0.4, 0.3], [0, 2]),
        ("delta1_error", [0.9, 0.4, 0.3], [2, 1]),
        ("miou", [0.9, 0.4, 0.3], [2, 1]),
    ],
)
def test_the_worst_are_those_of_the_headline(headline: str, values: list[float], expected: list[int]) -> None:
    assert [row["index"] for row in worst(result(headline, values), 2)] == expected


def test_tables_are_read_back() -> None:
    rows = [{"id": 'a, "b"', "x": 0.1, "n": 3}, {"id": "c", "x": math.nan, "n": None}]
    read = list(csv.DictReader(io.StringIO(to_csv(rows).decode())))
    assert read == [{"id": 'a, "b"', "x": "0.1", "n": "3"}, {"id": "c", "x": "", "n": ""}]


def test_the_curve_goes_through_its_points() -> None:
    picture = curve_picture([((480, 480), 3.0), ((240, 240), 1.0), ((360, 360), math.nan), ((320, 405), 2.5)], "x")
    assert picture.shape == (480, 640, 3)
    rows, columns = np.nonzero((picture == (0x32, 0x88, 0xBD)).all(axis=2))
    # Of axes from 216 to 504 and from 0.8 to 3.2, which go from 90 to 610 and from 420 to 40.
    for side, value in ((240, 1.0), (360, 2.5), (480, 3.0)):
        column, row = 90 + (side - 216) / 288 * 520, 420 - (value - 0.8) / 2.4 * 380
        near = np.abs(columns - column) <= 2
        assert abs(rows[near].mean() - row) <= 6
    assert columns.min() >= 90 + 24 / 288 * 520 - 6


def test_a_curve_of_equal_or_missing_values_is_drawn() -> None:
    for values in ([1.0, 1.0], [math.nan, math.nan], [0.0, 0.0]):
        points = [((384, 384), values[0]), ((480, 480), values[1])]
        drawn = (curve_picture(points, "x") == (0x32, 0x88, 0xBD)).all(axis=2).any()
        assert drawn == math.isfinite(values[0])
