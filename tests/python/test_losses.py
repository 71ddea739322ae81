"""torchdpt.losses against the slow float64 references: values, gradients, layouts, dtypes, and the golden file."""

import itertools
import re
from pathlib import Path

import golden_losses
import numpy as np
import pytest
import reference_losses
import torch
from loss_cases import (
    ALIGNMENTS,
    DATA,
    DEFINITIONS,
    DTYPES,
    MASKS,
    REDUCTIONS,
    SMALL,
    TOLERANCE,
    VARIANTS,
    assert_equals_reference,
    assert_gradient,
    assert_result,
    assert_scale_and_shift,
    make_maps,
    run,
    tensors,
    to_numpy,
)

from torchdpt import losses

SSI = "scale_and_shift_invariant"
SIZES = [(1, 1), (1, 7), (5, 3), (17, 31), (48, 64)]
LARGE = (384, 512)
# Every mask, and every reduction with images that are dropped.
MASKED = [*zip(MASKS, itertools.cycle(REDUCTIONS)), ("mixed", "image")]


# --- values and gradients ---


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_scale_and_shift_invariant_equals_reference(device, alignment, data, definition, size):
    words = {"alignment": alignment, "data": data, "definition": definition}
    for mask, reduction in MASKED:
        arrays = make_maps(2 if mask != "mixed" else 5, *size, mask)
        assert_equals_reference(SSI, arrays, device, reduction=reduction, **words)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"definition": "published", "reduction": "batch"},
        {"alignment": "least_squares", "data": "mse", "definition": "paper"},
    ],
    ids=lambda options: "-".join(options.values()) or "defaults",
)
def test_scale_and_shift_invariant_equals_reference_on_a_large_image(device, options):
    arrays = make_maps(1, *LARGE, "dense")
    want = assert_equals_reference(SSI, arrays, device, **options)
    assert want.margin > 1e-7  # of residuals of size one: float32 knows which is the larger


@pytest.mark.parametrize("batch", [1, 2, 7, 16])
def test_scale_and_shift_invariant_equals_reference_for_any_batch(device, batch):
    for definition, reduction, alignment in itertools.product(DEFINITIONS, REDUCTIONS, ALIGNMENTS):
        arrays = make_maps(batch, 9, 11, "mixed", seed=1)
        words = {"definition": definition, "reduction": reduction, "alignment": alignment}
        assert_equals_reference(SSI, arrays, device, **words)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("trim", [0.0, 0.1, 1 / 3, 2 / 3, 0.6, 0.8, 0.9, 0.999999, 1.0])
def test_trimming_equals_reference(device, trim, definition):
    for count in range(1, 12):  # (1 - 0.9) * 10 is less than 1 in float64, (1 - 0.6) * 5 less than 2 in float32
        arrays = make_maps(2, 1, count, "dense", seed=2)
        assert_equals_reference(SSI, arrays, device, trim=trim, definition=definition)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("scales", [0, 1, 3, 5, 16])
def test_weight_and_scales_of_the_gradient_term_equal_reference(device, scales, definition):
    arrays = make_maps(4, 13, 18, "mixed")
    for alpha, reduction in itertools.product((0.0, 0.5, 3.0), REDUCTIONS):
        options = {"alpha": alpha, "scales": scales, "reduction": reduction, "definition": definition}
        assert_equals_reference(SSI, arrays, device, **options)
        if alpha == 0.5:
            del options["alpha"]
            assert_equals_reference("gradient_matching", arrays, device, **options)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("definition", DEFINITIONS)
def test_gradient_matching_equals_reference(device, definition, size):
    for mask, reduction in MASKED:
        arrays = make_maps(5, *size, mask)
        assert_equals_reference("gradient_matching", arrays, device, definition=definition, reduction=reduction)


@pytest.mark.parametrize("size", [*SIZES, LARGE], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_silog_equals_reference(device, variant, size):
    large = size == LARGE
    for mask, reduction in itertools.product(("half",) if large else MASKS, (None, *REDUCTIONS)):
        arrays = make_maps(1 if large else 5, *size, mask)
        assert_equals_reference("silog", arrays, device, variant=variant, reduction=reduction)


def test_silog_reduces_as_published_by_default():
    arrays = make_maps(3, 5, 6, "mixed")
    for variant in VARIANTS:
        result, _ = run("silog", arrays, variant=variant)
        reduction = "image" if variant == "eigen" else "batch"
        same, _ = run("silog", arrays, variant=variant, reduction=reduction)
        assert torch.equal(result.loss, same.loss)


@pytest.mark.parametrize("size", [*SIZES, LARGE], ids=str)
@pytest.mark.parametrize("mode", ALIGNMENTS)
def test_align_equals_reference(device, mode, size):
    for mask, dtype in itertools.product(("half",) if size == LARGE else MASKS, DTYPES):
        arrays = make_maps(1 if size == LARGE else 5, *size, mask)
        got = losses.align(*tensors(arrays, device, dtype), mode=mode)
        assert got._fields == ("scale", "shift", "dropped")
        assert got.scale.dtype == got.shift.dtype == dtype
        want = losses.Alignment(*reference_losses.align(*arrays, mode=mode))
        assert got.dropped.tolist() == want.dropped.tolist()
        assert_scale_and_shift(got, want, arrays[0], arrays[2], TOLERANCE[dtype])


def test_align_is_the_alignment_of_the_loss(device):
    arrays = tensors(make_maps(5, 9, 11, "mixed"), device)
    arrays[0].requires_grad_()
    for mode in ALIGNMENTS:
        alone, loss = losses.align(*arrays, mode=mode), losses.scale_and_shift_invariant(*arrays, alignment=mode)
        assert [x.requires_grad for x in alone] == [False] * 3
        for name in ("scale", "shift", "dropped"):
            torch.testing.assert_close(getattr(alone, name), getattr(loss, name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("function", [SSI, "gradient_matching", "silog"])
def test_gradient_of_per_image_equals_reference(device, function):
    arrays = make_maps(5, 9, 11, "mixed", seed=4)
    weights = [0.5, -2.0, 0.0, 3.0, 1.0]
    for reduction in REDUCTIONS:  # per_image does not depend on it
        want = getattr(reference_losses, function)(*arrays, reduction=reduction)
        for dtype in DTYPES:
            _, gradient = run(function, arrays, device, dtype, weights=weights, reduction=reduction)
            assert_gradient(gradient, want.gradient(weights), arrays, TOLERANCE[dtype])


def test_gradients_of_loss_and_per_image_add_up(device):
    arrays = make_maps(3, 9, 11, "half", seed=5)
    want = reference_losses.scale_and_shift_invariant(*arrays)
    prediction, target, mask = tensors(arrays, device, torch.float64)
    prediction.requires_grad_()
    result = losses.scale_and_shift_invariant(prediction, target, mask)
    (2 * result.loss - result.per_image[1]).backward()
    expected = 2 * want.gradient() - want.gradient([0, 1, 0])
    assert_gradient(prediction.grad, expected, arrays, TOLERANCE[torch.float64])


# --- classes ---


def make_classes(batch, classes, height, width, ignored=0.2, seed=0):
    rng = np.random.default_rng([seed, batch, classes, height, width])
    logits = (3 * rng.standard_normal((batch, classes, height, width))).astype(np.float32).astype(np.float64)
    labels = rng.integers(0, classes, (batch, height, width))
    labels[rng.random(labels.shape) < ignored] = 255
    return logits, labels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("auxiliary", [None, "same size", (3, 2), (1, 1), (40, 37)], ids=str)
@pytest.mark.parametrize(
    ("batch", "classes", "size"), [(1, 1, (1, 1)), (2, 4, (5, 3)), (16, 3, (1, 7)), (3, 19, (17, 31))]
)
def test_segmentation_equals_reference(device, batch, classes, size, auxiliary, dtype):
    logits, labels = make_classes(batch, classes, *size)
    maps = [logits]
    if auxiliary is not None:
        maps.append(make_classes(batch, classes, *(size if auxiliary == "same size" else auxiliary), seed=1)[0])
    for options in ({}, {"auxiliary_weight": 0.7}, {"ignore_index": 0}, {"ignore_index": -1}):
        if options.get("ignore_index") in (0, -1):
            labels = np.where(labels == 255, options["ignore_index"], labels)
        loss, *want = reference_losses.segmentation(logits, labels, *maps[1:], **options)
        leaves = [x.requires_grad_() for x in tensors(maps, device, dtype)]
        labels_tensor = torch.tensor(labels, device=device)
        got = losses.segmentation(leaves[0], labels_tensor, *leaves[1:], **options)
        assert got.shape == ()
        assert got.dtype == dtype
        assert abs(got.item() - loss) <= TOLERANCE[dtype] * max(loss, SMALL)
        for gradient, expected in zip(torch.autograd.grad(got, leaves), want, strict=False):
            assert gradient.dtype == dtype
            # An entry is at most 1 / labelled pixels; that of one class is zero.
            size_of_one = max(np.abs(expected).max(), 1 / labels.size)
            # Positions of the resizing are float32, on sides up to 40, each off by an ulp.
            tolerance = 1e-5 if dtype == torch.float32 and auxiliary is not None else TOLERANCE[dtype]
            assert np.abs(to_numpy(gradient) - expected).max() <= tolerance * size_of_one


# --- layouts and types ---


def as_transposed(array):
    return array.swapaxes(1, 2), lambda leaf: leaf.transpose(1, 2)


def as_sliced(array):
    return np.stack([np.full_like(array, 1), array], -1).reshape(*array.shape[:2], -1), lambda leaf: leaf[..., 1::2]


def as_interleaved(array):
    return array.transpose(1, 2, 0), lambda leaf: leaf.permute(2, 0, 1)


@pytest.mark.parametrize("layout", [as_transposed, as_sliced, as_interleaved])
@pytest.mark.parametrize("function", [SSI, "gradient_matching", "silog"])
def test_takes_any_strides(device, function, layout):
    arrays = make_maps(3, 9, 14, "half", seed=6)
    want = getattr(reference_losses, function)(*arrays)
    for strided in ((0,), (1,), (2,), (0, 1, 2)):
        leaf, *others = tensors(arrays, device, torch.float64)
        maps = [leaf.requires_grad_(), *others]
        for i in strided:
            stored, view = layout(arrays[i])
            (stored,) = tensors([np.ascontiguousarray(stored)], device, torch.float64)
            if i == 0:
                leaf = stored.requires_grad_()
            maps[i] = view(stored)
            assert not maps[i].is_contiguous()
        result = getattr(losses, function)(*maps)
        assert_result(result, want, arrays, torch.float64, torch.float64)
        (gradient,) = torch.autograd.grad(result.loss, maps[0], retain_graph=True)
        assert_gradient(gradient, want.gradient(), arrays, TOLERANCE[torch.float64])
        (gradient,) = torch.autograd.grad(result.loss, leaf)
        if 0 in strided:
            gradient = view(gradient) if layout is not as_sliced else gradient[..., 1::2]
        assert_gradient(gradient, want.gradient(), arrays, TOLERANCE[torch.float64])


def test_takes_expanded_maps(device):
    one = make_maps(1, 9, 14, "half", seed=7)
    arrays = [np.repeat(array, 4, 0) for array in one]
    want = reference_losses.scale_and_shift_invariant(*arrays)
    leaf, target, mask = tensors(one, device, torch.float64)
    leaf.requires_grad_()
    result = losses.scale_and_shift_invariant(*(x.expand(4, -1, -1) for x in (leaf, target, mask)))
    assert_result(result, want, arrays, torch.float64, torch.float64)
    (gradient,) = torch.autograd.grad(result.loss, leaf)
    assert_gradient(gradient, want.gradient().sum(0, keepdims=True), one, TOLERANCE[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [SSI, "gradient_matching", "silog"])
def test_half_types_are_computed_as_float32(device, function, dtype):
    half = [x.to(dtype) if x.is_floating_point() else x for x in tensors(make_maps(3, 6, 7, "half", seed=8))]
    arrays = [x.double().numpy() if x.is_floating_point() else x.numpy() for x in half]
    want = getattr(reference_losses, function)(*arrays)
    result, gradient = run(function, arrays, device, dtype)
    assert_result(result, want, arrays, torch.float32)
    assert gradient.dtype == dtype
    # The gradient is rounded once: 2^-11 or 2^-8 of an entry (and 2^-25 near zero, in float16).
    assert_gradient(gradient, want.gradient(), arrays, {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype] * 1.01)


def test_wider_of_two_types_is_reported(device):
    arrays = make_maps(2, 6, 7, "half")
    want = reference_losses.scale_and_shift_invariant(*arrays)
    for one, other in ((torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float16, torch.float32)):
        prediction, target, mask = tensors(arrays, device)
        prediction, target = prediction.to(one).requires_grad_(), target.to(other)
        result = losses.scale_and_shift_invariant(prediction, target, mask)
        wide = torch.float64 if torch.float64 in (one, other) else torch.float32
        assert result.loss.dtype == wide
        (gradient,) = torch.autograd.grad(result.loss, prediction)
        assert gradient.dtype == one
        if one != torch.float16:
            assert_result(result, want, arrays, wide, wide)
            assert_gradient(gradient, want.gradient(), arrays, TOLERANCE[one])


# --- the golden file ---

GOLDEN = golden_losses.read()


def close(got, want, size=1.0):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    # 15 digits are written. Numbers of size one: near zero, what rounding leaves.
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * size)


def parse(text):
    return [float(number) for number in text.split()]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['case']}-{row['function']}-{row['options']}")
def test_golden_file_holds(device, row):
    built, options = golden_losses.arrays(row), golden_losses.parse_options(row["options"])
    function = getattr(losses, row["function"])
    names = [name for name in ("prediction", "target", "mask", "auxiliary") if name in built]
    maps = tensors([built[name] for name in names], device, torch.float64)
    maps[0].requires_grad_()
    result = function(*maps, **options)
    loss = result if row["function"] == "segmentation" else getattr(result, "loss", None)
    if row["function"] != "segmentation":
        values = parse(row["shift"]), parse(row["scale"])
        close(to_numpy(result.shift), values[0], size=1e4 if row["case"] == "offset" else 1.0)
        close(to_numpy(result.scale), values[1])
        close(result.dropped.tolist(), parse(row["dropped"]))
    if loss is not None:
        close([loss.item()], parse(row["loss"]))
        (gradient,) = torch.autograd.grad(loss, maps[0])
        summary = golden_losses.gradient_summary(to_numpy(gradient))
        # A gradient's entries may cancel in the sum; the norm is their size.
        size = max(summary["gradient_norm"], 1.0)
        for name, value in summary.items():
            close([value], parse(row[name]), size=size)


def test_golden_file_is_what_its_script_writes():
    # sin and cos of another C library may differ in the last of 16 digits.
    for row, again in itertools.zip_longest(GOLDEN, golden_losses.rows()):
        for column in golden_losses.COLUMNS:
            if column in golden_losses.RESULT:
                close(parse(row[column]), parse(again[column]), size=1e4 if row["case"] == "offset" else 1.0)
            else:
                assert row[column] == again[column], (
                    "golden_losses.csv is old; run: python tests/python/reference_losses.py"
                )


def test_example_of_the_documentation_runs():
    (block,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/losses.md").read_text(), re.DOTALL)
    names = {}
    exec(block, names)
    assert names["skipped"] == 0
    assert names["prediction"].grad.abs().max() > 0
    assert names["aligned"].shape == (2, 48, 64)


def test_numbers_of_the_documentation_are_those_of_the_file():
    table = (Path(__file__).parents[2] / "docs/losses.md").read_text().split("image 2 empty:")[1]
    quoted = [float(number) for number in re.findall(r"\| (\d\.\d+) \|", table)]
    prediction, target, mask = (golden_losses.arrays(GOLDEN[0])[name] for name in ("prediction", "target", "mask"))
    for number, options in zip(quoted, ({}, {"reduction": "batch"}, {"definition": "paper"}), strict=True):
        loss = reference_losses.scale_and_shift_invariant(prediction, target, mask, **options).loss
        assert abs(number - loss) <= 1e-12
