"""Input on which a loss cannot be computed, or only just: finite values and gradients, and what is reported."""

import itertools
import math

import numpy as np
import pytest
import reference_losses
import torch
from loss_cases import (
    ALIGNMENTS,
    DATA,
    DEFINITIONS,
    DTYPES,
    REDUCTIONS,
    VARIANTS,
    assert_equals_reference,
    good_and,
    make_maps,
    run,
    tensors,
    to_numpy,
)

from torchdpt import losses

SSI = "scale_and_shift_invariant"
USED, EMPTY, CONSTANT, NOT_FINITE = range(4)
# Every definition with every reduction, and with two of the data terms.
WORDS = [
    (definition, reduction, DATA[(i + j) % 3])
    for i, definition in enumerate(DEFINITIONS)
    for j, reduction in enumerate(REDUCTIONS)
]


def empty(prediction, target, mask):
    mask[:] = False


def one_pixel(prediction, target, mask):
    mask[:] = False
    mask[2, 3] = True


def constant_prediction(prediction, target, mask):
    prediction[:] = 3


def constant_target(prediction, target, mask):
    target[:] = 0.7


def nearly_constant_prediction(prediction, target, mask):
    prediction[:] = 3e6 + np.arange(prediction.size).reshape(prediction.shape) % 2 * 0.25


def all_zero(prediction, target, mask):
    prediction[:] = target[:] = 0


def nan_prediction(prediction, target, mask):
    prediction[mask] = np.where(np.arange(mask.sum()) == 3, np.nan, prediction[mask])


def inf_prediction(prediction, target, mask):
    prediction[mask] = np.where(np.arange(mask.sum()) == 3, np.inf, prediction[mask])


def nan_target(prediction, target, mask):
    target[mask] = np.where(np.arange(mask.sum()) == 3, np.nan, target[mask])


def inf_target(prediction, target, mask):
    target[mask] = np.where(np.arange(mask.sum()) == 3, -np.inf, target[mask])


def empty_and_nan(prediction, target, mask):
    mask[:] = False
    prediction[:] = target[:] = np.nan


def nan_and_constant_target(prediction, target, mask):
    nan_prediction(prediction, target, mask)
    target[:] = 0.7


BAD = {
    empty: EMPTY,
    one_pixel: CONSTANT,
    constant_prediction: CONSTANT,
    constant_target: CONSTANT,
    nearly_constant_prediction: CONSTANT,
    all_zero: CONSTANT,
    nan_prediction: NOT_FINITE,
    inf_prediction: NOT_FINITE,
    nan_target: NOT_FINITE,
    inf_target: NOT_FINITE,
    empty_and_nan: EMPTY,
    nan_and_constant_target: NOT_FINITE,
}


def two_pixels(prediction, target, mask):
    mask[:] = False
    mask[2, 3:5] = True


def two_pixels_apart(prediction, target, mask):
    mask[:] = False
    mask[0, 0] = mask[5, 4] = True


def three_pixels(prediction, target, mask):
    two_pixels(prediction, target, mask)
    mask[4, 1] = True


def opposite(prediction, target, mask):
    prediction[:] = 16 - 8 * target


def equal(prediction, target, mask):
    prediction[:] = target


def nan_outside(prediction, target, mask):
    prediction[~mask] = np.nan
    target[~mask] = np.resize([np.inf, np.nan, -np.inf], (~mask).sum())


GOOD = [two_pixels, two_pixels_apart, three_pixels, opposite, equal, nan_outside]


def ids(value):
    return value.__name__ if callable(value) else str(value)


# --- images that are dropped ---


@pytest.mark.parametrize(("bad", "code"), BAD.items(), ids=ids)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_bad_image_is_reported_and_changes_no_other(device, alignment, bad, code):
    arrays = good_and(bad)
    others = [array[[0, 2]] for array in arrays]
    for definition, reduction, data in WORDS:
        words = {"alignment": alignment, "data": data, "definition": definition, "reduction": reduction}
        want = assert_equals_reference(SSI, arrays, device, **words)
        if definition == "published" and want.dropped[1] == USED:
            # The published median of a mask that is half empty is 0: seen from there a constant map has a spread.
            assert alignment == "robust"
            assert code == CONSTANT
            continue
        for dtype in DTYPES:
            result, gradient = run(SSI, arrays, device, dtype, **words)
            alone, gradient_alone = run(SSI, others, device, dtype, **words)
            assert result.dropped.tolist() == [USED, code, USED]
            assert torch.equal(result.per_image[[0, 2]], alone.per_image)
            assert result.per_image[1] == 0
            factor = 2 / 3 if definition == "published" and reduction == "image" else 1
            # In float32 a rounding each, of the sum and of the mean.
            torch.testing.assert_close(result.loss, factor * alone.loss, rtol=4e-7, atol=0)
            atol = 1e-6 * float(gradient_alone.abs().max())
            torch.testing.assert_close(gradient[[0, 2]], factor * gradient_alone, rtol=0, atol=atol)
            assert (gradient[1] == 0).all()


@pytest.mark.parametrize(("bad", "code"), BAD.items(), ids=ids)
@pytest.mark.parametrize("mode", ALIGNMENTS)
def test_alignment_of_a_bad_image(device, mode, bad, code):
    prediction, target, mask = good_and(bad)
    got = losses.align(*tensors((prediction, target, mask), device, torch.float64), mode=mode)
    assert got.dropped.tolist() == [USED, code, USED]
    if code != CONSTANT:
        assert got.scale[1].isnan()
        assert got.shift[1].isnan()
    else:
        valid = np.sort(target[1][mask[1]])
        want = valid[(len(valid) - 1) // 2] if mode == "robust" else valid.mean()
        assert got.scale[1] == 0
        assert abs(got.shift[1].item() - want) <= 1e-15


def test_every_reason_in_one_batch(device):
    parts = [[array[1] for array in good_and(bad)] for bad in BAD]
    arrays = [np.stack(maps) for maps in zip(*parts, strict=True)]
    result, _ = run(SSI, arrays, device)
    assert result.dropped.tolist() == list(BAD.values())
    result, _ = run("gradient_matching", arrays, device)  # aligns nothing, so that nothing is too constant
    assert result.dropped.tolist() == [USED if code == CONSTANT else code for code in BAD.values()]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bad", BAD, ids=ids)
@pytest.mark.parametrize("function", [SSI, "gradient_matching", "silog"])
def test_batch_of_which_nothing_is_left_keeps_its_graph(device, function, bad, reduction):
    arrays = [array[[1, 1]] for array in good_and(bad)]
    prediction, target, mask = tensors(arrays, device)
    weight = torch.ones((), device=device, requires_grad=True)
    leaf = prediction.requires_grad_()
    result = getattr(losses, function)(leaf * weight, target, mask, reduction=reduction)
    assert result.loss.requires_grad
    assert result.loss.isfinite()
    result.loss.backward()
    assert leaf.grad is not None
    assert leaf.grad[mask & leaf.isfinite()].isfinite().all()
    if function == SSI:
        assert result.loss == 0
        assert result.dropped.tolist() == [BAD[bad]] * 2


@pytest.mark.parametrize("function", [SSI, "gradient_matching", "silog"])
def test_empty_batch(device, function):
    for reduction in REDUCTIONS:
        arrays = make_maps(0, 6, 5)
        result, gradient = run(function, arrays, device, reduction=reduction)
        assert result.loss == 0
        assert gradient.shape == (0, 6, 5)
        assert [len(x) for x in result[1:]] == [0, 0, 0, 0]
    found = losses.align(*tensors(make_maps(0, 6, 5), device), mode="robust")
    assert [len(x) for x in found] == [0, 0, 0]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_constant_means_1e7_times_less_spread_than_level(device, alignment):
    target = torch.rand(1, 6, 5, dtype=torch.float64, device=device)
    mask = torch.ones_like(target, dtype=torch.bool)
    # 0, 0, 1, 1, ...: of -1, 1, -1, 1 about the mean the deviation is half; about the lower median, too.
    steps = (torch.arange(30, device=device) % 2).double().view(1, 6, 5)
    for level, code in ((0.99 * 0.5e7, USED), (1.01 * 0.5e7, CONSTANT), (-1.01 * 0.5e7, CONSTANT)):
        for maps in ((level + steps, target), (target, level + steps)):
            result = losses.scale_and_shift_invariant(*maps, mask, alignment=alignment)
            assert result.dropped.tolist() == [code]
    for size, code in ((1e-28, USED), (1e-31, CONSTANT)):
        result = losses.scale_and_shift_invariant(size * (steps - 1), target, mask, alignment=alignment)
        # The lower median of -1 and 0 is -1: its level is far more than its spread is below 1e-7 of.
        assert result.dropped.tolist() == [code]


# --- images that are not dropped ---


@pytest.mark.parametrize("other", GOOD, ids=ids)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_rare_image_equals_reference(device, alignment, other):
    arrays = good_and(other)
    for definition, reduction, data in WORDS:
        words = {"alignment": alignment, "data": data, "definition": definition, "reduction": reduction}
        if other is equal or (other is opposite and alignment == "least_squares"):
            result, gradient = run(SSI, arrays, device, torch.float64, **words)
            want = reference_losses.scale_and_shift_invariant(*arrays, **words)
            assert result.dropped.tolist() == [USED] * 3
            # Residuals are what rounding leaves, and their signs are anything.
            assert result.per_image[1] <= 1e-13
            assert gradient.isfinite().all()
            np.testing.assert_allclose(to_numpy(result.scale), want.scale, rtol=1e-12)
            continue
        want = assert_equals_reference(SSI, arrays, device, **words)
        assert want.dropped.tolist() == [USED] * 3


def test_equal_maps_have_no_gradient(device):
    for dtype in DTYPES:
        result, gradient = run(SSI, good_and(equal), device, dtype)
        assert result.per_image[1] == 0
        assert (gradient[1] == 0).all()
        assert result.scale[1] == 1


def test_negative_scale_is_allowed_in_least_squares(device):
    result, _ = run(SSI, good_and(opposite), device, torch.float64, alignment="least_squares")
    assert abs(result.scale[1].item() + 1 / 8) <= 1e-13
    assert abs(result.shift[1].item() - 2) <= 1e-12
    robust, _ = run(SSI, good_and(opposite), device, torch.float64)
    assert robust.scale[1] > 0
    assert robust.per_image[1] > 0.5


@pytest.mark.parametrize("function", [SSI, "gradient_matching", "silog"])
def test_what_lies_outside_the_mask_does_not_matter(device, function):
    prediction, target, mask = make_maps(3, 6, 5, "half", seed=9)
    first, gradient = run(function, (prediction, target, mask), device)
    for value in (0.0, math.nan, math.inf, -math.inf, 3e38):
        maps = np.where(mask, prediction, value), np.where(mask, target, -value), mask
        result, other = run(function, maps, device)
        for got, want in zip((*result, other), (*first, gradient), strict=True):
            assert torch.equal(got, want)
        published = {"definition": "published"} if function != "silog" else {}
        one, _ = run(function, maps, device, **published)
        two, _ = run(function, (prediction, target, mask), device, **published)
        assert torch.equal(one.loss, two.loss)


def test_ties_share_their_gradient(device):
    # Pairs of values that come again: ties in both medians, at the threshold of trimming, and between neighbours. No
    # two different pairs have equal residuals, which rounding would part.
    k = np.arange(3 * 6 * 10).reshape(3, 6, 10) % 10
    prediction, target, mask = k**2 % 11 / 8, (3 * k + 3) % 10 / 4, k < 8
    for trim, definition, reduction in itertools.product((0, 0.2, 0.55, 0.9), DEFINITIONS, REDUCTIONS):
        words = {"trim": trim, "definition": definition, "reduction": reduction}
        assert_equals_reference(SSI, (prediction, target, mask), device, **words)
        _, gradient = run(SSI, (prediction, target, mask), device, torch.float64, scales=0, **words)
        for column in range(8):  # pixels with the same values have the same gradient
            assert (gradient[:, :, column] - gradient[0, 0, column]).abs().max() <= 1e-15
            assert (gradient[:, :, 8:] == 0).all()


def test_published_median_counts_invalid_pixels_as_zero(device):
    arrays = make_maps(2, 6, 10, "half", seed=11)
    arrays[2][:] = np.arange(10) < 4
    result, gradient = run(SSI, arrays, device, torch.float64, definition="published")
    spread = [np.abs(x[arrays[2]].reshape(2, -1)).mean(1) for x in arrays[:2]]
    np.testing.assert_allclose(to_numpy(result.scale), spread[1] / spread[0], rtol=1e-14)
    assert result.shift.tolist() == [0, 0]
    # A median of 0 does not move: only the spread depends on all pixels, and along the prediction nothing changes.
    along = (to_numpy(gradient) * arrays[0]).sum((1, 2))
    assert np.abs(along).max() <= 1e-15
    assert_equals_reference(SSI, arrays, device, definition="published")
    arrays[0][:, ::2, 1] = 0  # valid pixels, which move the median as little as each of the invalid ones would
    assert_equals_reference(SSI, arrays, device, definition="published")
    arrays[1][:, ::2, 2] = -0.0
    assert_equals_reference(SSI, arrays, device, definition="published")


# --- metric depth and classes ---


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_silog_of_a_perfect_prediction_is_zero_with_zero_gradient(device, variant, reduction):
    prediction, _, mask = make_maps(2, 6, 5, "half")
    for dtype in (*DTYPES, torch.float16):
        half = tensors([prediction], dtype=dtype)[0].double().numpy()
        result, gradient = run("silog", (half, half, mask), device, dtype, variant=variant, reduction=reduction)
        assert result.loss == 0
        assert (result.per_image == 0).all()
        assert (gradient == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_silog_of_one_pixel(device, variant):
    prediction, target, mask = make_maps(2, 6, 5)
    mask[:] = False
    mask[:, 2, 3] = True
    for reduction in REDUCTIONS:
        want = assert_equals_reference(
            "silog", (prediction, target, mask), device, variant=variant, reduction=reduction
        )
        single = [array[:1] for array in (prediction, target, mask)]
        assert_equals_reference("silog", single, device, variant=variant, reduction=reduction)
    delta = abs(math.log(prediction[0, 2, 3] / target[0, 2, 3]))
    factor = {"eigen": 0.5 * delta, "bts": 10 * 0.15**0.5, "adabins": 10 * 0.15**0.5, "depth_anything": 0.5**0.5}
    assert abs(want.per_image[0] - factor[variant] * delta) <= 1e-14 * want.per_image[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_silog_clamps_predictions_and_drops_targets_that_are_not_positive(device, variant):
    prediction, target, mask = make_maps(5, 6, 5, "dense", seed=12)
    prediction[0, 1] = [-1, 0, -0.0, 1e-7, -3e38]
    target[1, 2, 3] = 0
    target[2, 2, 3] = -1
    target[3, 2, 3] = -1
    mask[3, 2, 3] = False
    arrays = [x.astype(np.float32).astype(np.float64) if x.dtype != bool else x for x in (prediction, target, mask)]
    for reduction in REDUCTIONS:
        want = assert_equals_reference("silog", arrays, device, variant=variant, reduction=reduction)
        assert want.dropped.tolist() == [USED, NOT_FINITE, NOT_FINITE, USED, USED]
        _, gradient = run("silog", arrays, device, variant=variant, reduction=reduction)
        assert (gradient[0, 1] == 0).all()
        assert (gradient[0, 0] != 0).all()


@pytest.mark.parametrize("bad", BAD, ids=ids)
@pytest.mark.parametrize("function", ["silog", "gradient_matching"])
def test_losses_without_alignment_equal_reference_next_to_a_bad_image(device, function, bad):
    arrays = good_and(bad)
    for reduction in REDUCTIONS:
        want = assert_equals_reference(function, arrays, device, reduction=reduction)
        # A constant map is no reason here. Only a target of zero depth is none.
        code = BAD[bad] if BAD[bad] != CONSTANT else NOT_FINITE if (function, bad) == ("silog", all_zero) else USED
        assert want.dropped.tolist() == [USED, code, USED]
        assert want.scale.tolist() == [1, 1, 1]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_segmentation_without_labels_is_zero_with_a_graph(device, auxiliary):
    for batch in (0, 2):
        leaves = [torch.randn(batch, 4, 6, 5, device=device, requires_grad=True) for _ in range(1 + auxiliary)]
        labels = torch.full((batch, 6, 5), 255, device=device)
        loss = losses.segmentation(leaves[0], labels, *leaves[1:])
        assert loss == 0
        for gradient in torch.autograd.grad(loss, leaves):
            assert (gradient == 0).all()


def test_segmentation_is_finite_for_large_logits_and_blind_where_there_is_no_label(device):
    logits = 1e4 * torch.randn(2, 4, 6, 5, device=device)
    labels = torch.randint(0, 4, (2, 6, 5), device=device)
    labels[:, 2] = 255
    values = []
    for outside in (0.0, -3e4, 3e4):
        logits[:, :, 2] = outside
        leaf = logits.clone().requires_grad_()
        loss = losses.segmentation(leaf, labels)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert (gradient[:, :, 2] == 0).all()
        values.append((loss, gradient))
    assert all(torch.equal(a, b) for value in values for a, b in zip(value, values[0], strict=True))


@pytest.mark.parametrize(("alignment", "size"), [("least_squares", 1e160), ("least_squares", 1e200), ("robust", 1e308)])
def test_overflow_of_the_alignment_is_reported(device, alignment, size):
    prediction, target, mask = make_maps(2, 9, 9, "dense")
    prediction[1] = size * np.cos(np.arange(81)).reshape(9, 9)
    for data in DATA:
        result, gradient = run(SSI, (prediction, target, mask), device, torch.float64, alignment=alignment, data=data)
        assert result.dropped.tolist() == [USED, NOT_FINITE]
        assert result.loss.isfinite()
        assert result.scale[1].isnan()
        assert (gradient[1] == 0).all()
        assert (gradient[0] != 0).any()
