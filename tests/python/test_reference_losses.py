"""The slow references of the losses themselves: published numbers, numbers found by hand, and central differences."""

import math
from functools import partial

import golden_losses
import numpy as np
import pytest
import reference_losses
from loss_cases import ALIGNMENTS, DATA, DEFINITIONS, REDUCTIONS, VARIANTS, make_maps
from reference_losses import align, gradient_matching, scale_and_shift_invariant, segmentation, silog


def central_differences(function, x, step=1e-6):
    """Of a function that returns an array: derivatives [places, *x.shape]."""
    columns = []
    for place in np.ndindex(x.shape):
        values = []
        for sign in (1, -1):
            moved = x.copy()
            moved[place] += sign * step
            values.append(np.asarray(function(moved)))
        columns.append((values[0] - values[1]) / (2 * step))
    return np.stack(columns, -1).reshape(-1, *x.shape)


def assert_gradients(function, x, *gradients):
    size = max(1, np.abs(function(x)).max())
    for gradient, want in zip(gradients, central_differences(function, x), strict=True):
        # Third derivatives times 1e-12; some 1e-15 of the value, by a step of 1e-6.
        assert np.abs(gradient - want).max() <= 1e-7 * np.abs(want).max() + 2e-9 * size


def assert_gradients_of_result(function, x):
    """Of the loss and of per_image; two images."""
    result = function(x)
    assert result.margin > 1e-5  # ten steps off a kink
    gradients = result.gradient(), result.gradient([1, 0]), result.gradient([0, 1])

    def loss_and_per_image(moved):
        moved = function(moved)
        return [moved.loss, *moved.per_image]

    assert_gradients(loss_and_per_image, x, *gradients)


def waves():
    row = next(row for row in golden_losses.read() if row["case"] == "waves")
    built = golden_losses.arrays(row)
    return built["prediction"], built["target"], built["mask"]


def test_two_numbers_known_from_elsewhere():
    assert abs(scale_and_shift_invariant(*waves(), reduction="batch").loss - 4.507074962) <= 1e-9
    assert abs(scale_and_shift_invariant(*waves(), definition="paper").loss - 1.991244) <= 1e-6


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_gradient_equals_central_differences(alignment, data, definition):
    prediction, target, mask = make_maps(2, 3, 5, "half", seed=20)
    options = {"alignment": alignment, "data": data, "definition": definition, "reduction": "batch"}
    assert_gradients_of_result(lambda x: scale_and_shift_invariant(x, target, mask, **options), prediction)


def test_gradients_of_the_other_losses_equal_central_differences():
    prediction, target, mask = make_maps(2, 3, 5, "half", seed=20)
    for reduction in REDUCTIONS:
        for definition in DEFINITIONS:
            options = {"definition": definition, "reduction": reduction}
            assert_gradients_of_result(partial(gradient_matching, target=target, mask=mask, **options), prediction)
        for variant in VARIANTS:
            options = {"variant": variant, "reduction": reduction}
            assert_gradients_of_result(partial(silog, target=target, mask=mask, **options), prediction)
    rng = np.random.default_rng(0)
    logits, auxiliary = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 2, 3))
    labels = np.where(rng.random((2, 4, 5)) < 0.2, 255, rng.integers(0, 3, (2, 4, 5)))
    _, first, second = segmentation(logits, labels, auxiliary)
    assert_gradients(lambda x: segmentation(x, labels, auxiliary)[0], logits, first)
    assert_gradients(lambda x: segmentation(logits, labels, x)[0], auxiliary, second)


def test_robust_loss_of_four_pixels_by_hand():
    # Lower median 2, deviations 1 0 2 5: spread 2. Of the target: lower median 0, deviations 0 4 0 8: spread 3.
    prediction, target = np.array([[[1.0, 2], [4, 7]]]), np.array([[[0.0, 4], [0, 8]]])
    residual = np.array([[-1 / 2, -4 / 3], [1, 5 / 2 - 8 / 3]])
    mask = np.ones((1, 2, 2), bool)
    result = scale_and_shift_invariant(prediction, target, mask, trim=0.25)
    smallest = 1 / 6 + 1 / 2 + 1
    pairs = abs(np.diff(residual, axis=0)).sum() + abs(np.diff(residual, axis=1)).sum()
    assert abs(result.loss - (smallest / 8 + 0.5 * pairs / 4)) <= 1e-15
    assert (result.scale[0], result.shift[0]) == (1.5, -3)


def test_least_squares_of_three_pixels_by_hand():
    prediction, target = np.array([[[0.0, 1, 2]]]), np.array([[[1.0, 1, 4]]])
    mask = np.ones((1, 1, 3), bool)
    result = scale_and_shift_invariant(prediction, target, mask, alignment="least_squares", data="mse", alpha=0)
    # The line 0.5 + 1.5 x misses by -0.5, 1, -0.5.
    assert abs(result.loss - 1.5 / 6) <= 1e-15
    assert (result.scale[0], result.shift[0]) == (1.5, 0.5)
    assert [x.tolist() for x in align(prediction, target, mask, mode="least_squares")] == [[1.5], [0.5], [0]]


def test_published_definition_by_hand():
    # Four of seven pixels are invalid, so that the median over all pixels of mask * x is 0.
    prediction, target = np.array([[[2.0, 4, 6, 9, 9, 9, 9]]]), np.array([[[1.0, 1, 4, 9, 9, 9, 9]]])
    mask = np.array([[[True, True, True, False, False, False, False]]])
    result = scale_and_shift_invariant(prediction, target, mask, definition="published", data="mae", scales=1)
    residual = np.array([1 / 2 - 1 / 2, 1 - 1 / 2, 3 / 2 - 2])
    assert abs(result.loss - (abs(residual).sum() / 6 + 0.5 * abs(np.diff(residual)).sum() / 3)) <= 1e-15
    # Two images, one of which is trimmed less than the other: three of ten, and all three are in image 1.
    target = np.array([[0.0, 1, 2, 3, 4], [0.0, 1, 2, 3, 4]])[:, None]
    prediction = target + np.array([[0, 0.001, 0, 0, 0], [0, 1, -1, 1, 0]])[:, None]
    words = {"alpha": 0, "trim": 0.3, "alignment": "least_squares"}
    mask = np.ones(target.shape, bool)
    pooled = scale_and_shift_invariant(prediction, target, mask, definition="published", **words)
    each = scale_and_shift_invariant(prediction, target, mask, data="mae", alpha=0, alignment="least_squares")
    assert abs(pooled.per_image[0] - each.per_image[0]) <= 1e-16
    assert pooled.per_image[1] < 0.5 * each.per_image[1]


def test_divisors_by_hand():
    # Residuals 0, 1, 0, 1, ... in a row of 9: 8 differences of 1, and none at coarser scales.
    prediction = (np.arange(9.0) % 2)[None, None]
    mask = np.ones((1, 1, 9), bool)
    target = np.zeros_like(prediction)
    assert gradient_matching(prediction, target, mask).loss == 8 / 9
    target[0, 0, 4] = 6  # at scales 1 and 2 twice a difference of 6; at scale 3 the pixel is not there
    recommended, paper = (
        gradient_matching(prediction, target, mask, definition=definition).loss
        for definition in ("recommended", "paper")
    )
    assert abs(recommended - ((6 + 7 + 7) / 9 + 12 / 5 + 12 / 3 + 0 / 2)) <= 1e-15
    assert abs(paper - (20 + 12 + 12) / 9) <= 1e-15


def test_silog_by_hand():
    prediction, target = np.array([[[math.e, math.e**3]]]), np.array([[[1.0, 1.0]]])  # differences 1, 3
    mask = np.ones((1, 1, 2), bool)
    want = {"eigen": 5 - 0.5 * 4, "bts": 10 * 1.6**0.5, "adabins": 10 * 2.6**0.5, "depth_anything": 3**0.5}
    for variant in VARIANTS:
        assert abs(silog(prediction, target, mask, variant=variant).loss - want[variant]) <= 1e-14


def test_cross_entropy_by_hand():
    logits, labels = np.zeros((1, 4, 2, 2)), np.array([[[0, 3], [255, 255]]])
    loss, gradient, _ = segmentation(logits, labels)
    assert abs(loss - math.log(4)) <= 1e-15
    assert gradient[0, :, 0, 1].tolist() == [0.125, 0.125, 0.125, -0.375]
    assert (gradient[:, :, 1] == 0).all()
    assert abs(segmentation(logits, labels, np.zeros((1, 4, 1, 1)))[0] - 1.2 * math.log(4)) <= 1e-15


def test_ties_share_by_hand():
    # Two of three equal residuals count: each two thirds. The median 1 is that of two pixels, which move it by halves.
    prediction, mask = np.array([[[0.0, 1, 1, 3]]]), np.ones((1, 1, 4), bool)
    tape = reference_losses.Tape()
    x = tape.node(prediction[mask])
    assert tape.gradient(x.lower_median(), x).tolist() == [0, 0.5, 0.5, 0]
    assert tape.gradient(x.lower_median(zeros=3), x).tolist() == [0.25, 0, 0, 0]
    assert reference_losses.kept(tape, [x], 2)[0].tolist() == [1, 0.5, 0.5, 0]
    assert reference_losses.kept(tape, [x, x], 3)[0].tolist() == [1, 0.25, 0.25, 0]
    assert reference_losses.kept(tape, [x], 0)[0].tolist() == [0, 0, 0, 0]


def test_golden_inputs_are_away_from_near_ties():
    """Else another order of the same sums would give other gradients."""
    for row in golden_losses.read():
        if row["function"] not in ("scale_and_shift_invariant", "gradient_matching"):
            continue
        if row["case"] in ("two_pixels", "three_pixels"):
            continue  # alignment makes residuals equal whatever the values, and so are their gradients
        built, options = golden_losses.arrays(row), golden_losses.parse_options(row["options"])
        function = getattr(reference_losses, row["function"])
        assert function(built["prediction"], built["target"], built["mask"], **options).margin > 1e-6
