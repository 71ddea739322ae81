"""What the losses do not change under, and how they behave under autograd, autocast and torch.compile."""

import itertools

import numpy as np
import pytest
import reference_losses
import torch
from loss_cases import (
    ALIGNMENTS,
    DATA,
    DEFINITIONS,
    REDUCTIONS,
    TOLERANCE,
    VARIANTS,
    make_maps,
    run,
    tensors,
    to_numpy,
)
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from torchdpt import losses

SSI = "scale_and_shift_invariant"

# Every public function with options that take another path: (function, options).
CALLS = [
    (SSI, {}),
    (SSI, {"definition": "published", "reduction": "batch"}),
    (SSI, {"alignment": "least_squares", "data": "mse", "definition": "paper"}),
    (SSI, {"alignment": "least_squares", "data": "mae", "scales": 0}),
    ("gradient_matching", {"reduction": "batch"}),
    *[("silog", {"variant": variant}) for variant in VARIANTS],
    ("align", {"mode": "robust"}),
    ("align", {"mode": "least_squares"}),
    ("segmentation", {}),
    ("segmentation", {"auxiliary": (3, 2)}),
]
LOSSES = [call for call in CALLS if call[0] != "align"]


def name(value):
    return "-".join(map(str, value.values())) if isinstance(value, dict) else None


def inputs(function, options, device, dtype=torch.float64, mask="mixed", seed=0):
    """The maps (first a leaf with a gradient, if the function has one) and the options of a call."""
    options = dict(options)
    if function != "segmentation":
        maps = tensors(make_maps(5, 9, 11, mask, seed), device, dtype)
        return [maps[0].requires_grad_(function != "align"), *maps[1:]], options
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (2, 6, 7), generator=generator)
    maps = [torch.randn(2, 5, 6, 7, generator=generator), labels.masked_fill(labels == 4, 255)]
    if "auxiliary" in options:
        maps.append(torch.randn(2, 5, *options.pop("auxiliary"), generator=generator))
    maps = [x.to(device, dtype if x.is_floating_point() else None) for x in maps]
    return [x.requires_grad_(x.is_floating_point()) for x in maps], options


def loss_of(result):
    return result if isinstance(result, torch.Tensor) else result.loss


# --- invariances ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("data", DATA)
def test_robust_loss_is_invariant_to_positive_scale_and_shift_of_both_maps(device, data, definition, dtype):
    # The published median knows the value 0, and so shifts: there all pixels are valid.
    prediction, target, mask = make_maps(3, 9, 11, "dense" if definition == "published" else "half", seed=1)
    # Numbers that float32 holds after the change, too.
    prediction, target = np.round(prediction * 1024) / 1024, np.round(target * 1024) / 1024
    words = {"data": data, "definition": definition}
    first, gradient = run(SSI, (prediction, target, mask), device, dtype, **words)
    for scale, shift, target_scale, target_shift in ((4, 0, 1, 0), (0.125, -16, 1, 0), (1, 0, 8, 4), (2, 32, 0.5, -1)):
        maps = scale * prediction + shift, target_scale * target + target_shift, mask
        result, other = run(SSI, maps, device, dtype, **words)
        # Twice the tolerance: each of the two results has its own error.
        torch.testing.assert_close(result.loss, first.loss, rtol=2 * TOLERANCE[dtype], atol=0)
        torch.testing.assert_close(result.per_image, first.per_image, rtol=2 * TOLERANCE[dtype], atol=0)
        largest = gradient.abs().max().item()
        torch.testing.assert_close(scale * other, gradient, rtol=0, atol=2 * TOLERANCE[dtype] * largest)


def test_robust_loss_is_invariant_to_scales_near_the_ends_of_float32(device):
    prediction, target, mask = make_maps(3, 9, 11, "half", seed=1)
    first, gradient = run(SSI, (prediction, target, mask), device)
    for scale in (2.0**-60, 2.0**60, 2.0**120):
        result, other = run(SSI, (scale * prediction, scale * target, mask), device)
        torch.testing.assert_close(result.loss, first.loss, rtol=2 * TOLERANCE[torch.float32], atol=0)
        if scale < 2.0**100:  # beyond it the gradient is less than float32 holds to its last bit
            torch.testing.assert_close(scale * other, gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("data", DATA)
def test_least_squares_loss_is_invariant_to_affine_maps_of_the_prediction(device, data, definition):
    prediction, target, mask = make_maps(3, 9, 11, "half", seed=2)
    words = {"alignment": "least_squares", "data": data, "definition": definition}
    first, gradient = run(SSI, (prediction, target, mask), device, torch.float64, **words)
    for scale, shift in ((3.0, 0), (0.1, -7), (-1.0, 0), (-2.5, 100)):
        result, other = run(SSI, (scale * prediction + shift, target, mask), device, torch.float64, **words)
        # The map rounds prediction: 1e-16 of values up to 130, of which differences of 0.1 matter.
        torch.testing.assert_close(result.loss, first.loss, rtol=1e-11, atol=0)
        torch.testing.assert_close(scale * other, gradient, rtol=0, atol=1e-10 * gradient.abs().max().item())
        torch.testing.assert_close(result.scale * scale, first.scale, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(("data", "power"), [("mse", 2), ("mae", 1), ("trimmed", 1)])
def test_least_squares_loss_scales_with_the_target(device, data, power):
    prediction, target, mask = make_maps(3, 9, 11, "half", seed=3)
    for alpha in (0.0, 0.5) if power == 1 else (0.0,):  # the gradient term grows with the first power
        words = {"alignment": "least_squares", "data": data, "alpha": alpha}
        first, _ = run(SSI, (prediction, target, mask), device, torch.float64, **words)
        for a in (3.0, 0.2):
            result, _ = run(SSI, (prediction, a * target, mask), device, torch.float64, **words)
            torch.testing.assert_close(result.loss, a**power * first.loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("function", "options"), LOSSES[:9], ids=name)
def test_permutation_of_the_batch_permutes_the_results(device, function, options):
    arrays = make_maps(5, 9, 11, "mixed", seed=4)
    order = [3, 0, 4, 2, 1]
    first, gradient = run(function, arrays, device, torch.float64, **options)
    result, other = run(function, [array[order] for array in arrays], device, torch.float64, **options)
    torch.testing.assert_close(result.loss, first.loss, rtol=1e-14, atol=0)  # the order of a sum
    for field in ("per_image", "scale", "shift", "dropped"):
        got, want = getattr(result, field), getattr(first, field)[order]
        torch.testing.assert_close(got, want, rtol=1e-14, atol=0, equal_nan=True)
    torch.testing.assert_close(other, gradient[order], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_loss_falls_as_more_is_trimmed(device, alignment, definition):
    arrays = make_maps(5, 9, 11, "mixed", seed=5)
    words = {"alignment": alignment, "definition": definition, "alpha": 0.0}
    values = [run(SSI, arrays, device, trim=trim, **words)[0].loss.item() for trim in np.linspace(0, 1, 21)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0
    assert values[0] == run(SSI, arrays, device, data="mae", **words)[0].loss.item()


@pytest.mark.parametrize("mode", ALIGNMENTS)
@pytest.mark.parametrize("offset", [0, 100, 1000, 10000])
def test_scale_is_recovered_behind_a_large_offset(device, offset, mode):
    generator = torch.Generator().manual_seed(0)
    prediction = (offset + torch.rand(2, 120, 160, generator=generator)).to(device)
    # The numbers that float32 holds are an exact affine map of the target's, to 1e-7.
    target = ((prediction.double() - offset) * 0.5 + 0.25).float()
    found = losses.align(prediction, target, torch.ones_like(prediction, dtype=torch.bool), mode=mode)
    assert (found.scale - 0.5).abs().max() <= 1e-4 * 0.5
    residual = found.scale.double()[:, None, None] * prediction + found.shift[:, None, None] - target
    # scale * prediction + shift, of two float32 numbers: half an ulp (6e-8) of 0.5 * offset each.
    assert residual.abs().max() <= 2 * 6e-8 * (0.5 * offset + 1) + 1e-6


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_small_steps_against_the_gradient_lower_the_loss(device, alignment, reduction):
    prediction, target, mask = make_maps(3, 9, 11, "half", seed=6)
    first, gradient = run(
        SSI, (prediction, target, mask), device, torch.float64, alignment=alignment, reduction=reduction
    )
    step = 1e-7 / gradient.abs().max().item()
    moved = prediction - step * to_numpy(gradient)
    second, _ = run(SSI, (moved, target, mask), device, torch.float64, alignment=alignment, reduction=reduction)
    expected = -step * (gradient**2).sum().item()
    # So short a step meets hardly a kink, and 1e-16 of the loss is 1e-8 of the fall.
    assert abs((second.loss - first.loss).item() - expected) <= 1e-3 * abs(expected)


# --- autograd ---


@pytest.mark.parametrize(
    ("function", "words"),
    [
        *[
            (SSI, {"alignment": a, "data": d, "definition": e, "reduction": r})
            for a, d, e, r in itertools.product(ALIGNMENTS, DATA, DEFINITIONS, REDUCTIONS)
        ],
        *[
            ("gradient_matching", {"definition": e, "reduction": r})
            for e, r in itertools.product(DEFINITIONS, REDUCTIONS)
        ],
        *[("silog", {"variant": v, "reduction": r}) for v, r in itertools.product(VARIANTS, REDUCTIONS)],
    ],
    ids=name,
)
def test_gradcheck(device, function, words):
    arrays = make_maps(2, 4, 5, "half", seed=20)
    # A step of 1e-6 must not meet a kink: normalised by a spread of about 2, residuals move by less than 1e-5.
    assert getattr(reference_losses, function)(*arrays, **words).margin > 1e-5
    prediction, target, mask = tensors(arrays, device, torch.float64)

    def loss_and_per_image(x):
        return getattr(losses, function)(x, target, mask, **words)[:2]

    assert torch.autograd.gradcheck(loss_and_per_image, prediction.requires_grad_())


@pytest.mark.parametrize("auxiliary", [None, (6, 7), (3, 2)], ids=str)
def test_gradcheck_of_segmentation(device, auxiliary):
    options = {} if auxiliary is None else {"auxiliary": auxiliary}
    (logits, labels, *rest), _ = inputs("segmentation", options, device)
    loss = lambda x, *more: losses.segmentation(x, labels, *more)  # noqa: E731
    # On CUDA the gradient of resizing adds atomically, in any order.
    assert torch.autograd.gradcheck(loss, (logits, *rest), fast_mode=True, nondet_tol=1e-12 * (device == "cuda"))


@pytest.mark.parametrize(("function", "options"), LOSSES, ids=name)
def test_second_derivatives_are_right_or_refused(device, function, options):
    maps, options = inputs(function, options, device)
    loss = loss_of(getattr(losses, function)(*maps, **options))
    if function in ("silog", "segmentation"):
        others = maps[1:]
        assert torch.autograd.gradgradcheck(
            lambda x: loss_of(getattr(losses, function)(x, *others, **options)), (maps[0],), fast_mode=True
        )
        return
    (gradient,) = torch.autograd.grad(loss, maps[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.square().sum().backward()


@pytest.mark.parametrize(("function", "options"), LOSSES, ids=name)
def test_deterministic_algorithms_have_each(device, function, options):
    maps, options = inputs(function, options, device, torch.float32)

    def loss_and_gradient():
        loss = loss_of(getattr(losses, function)(*maps, **options))
        return [loss, *torch.autograd.grad(loss, [x for x in maps if x.requires_grad])]

    torch.use_deterministic_algorithms(True)  # an operation without such an algorithm raises
    try:
        first, second = loss_and_gradient(), loss_and_gradient()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("function", "options"), LOSSES, ids=name)
def test_no_graph_without_gradients(device, function, options):
    maps, options = inputs(function, options, device)
    with torch.no_grad():
        quiet = loss_of(getattr(losses, function)(*maps, **options))
    assert not quiet.requires_grad
    constant = loss_of(getattr(losses, function)(*(x.detach() for x in maps), **options))
    assert not constant.requires_grad
    loss = loss_of(getattr(losses, function)(*maps, **options))
    assert loss.requires_grad
    assert torch.equal(quiet, loss)
    assert torch.equal(constant, loss)


@pytest.mark.parametrize(("function", "options"), CALLS, ids=name)
def test_inputs_are_left_as_they_are(device, function, options):
    maps, options = inputs(function, options, device)
    before = [x.detach().clone() for x in maps]
    result = getattr(losses, function)(*maps, **options)
    if function != "align":
        loss_of(result).backward()
    for x, y in zip(maps, before, strict=True):
        torch.testing.assert_close(x.detach(), y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("function", "options"), LOSSES, ids=name)
def test_same_bits_again(function, options):
    """On the CPU; with CUDA sums may be in another order."""
    maps, options = inputs(function, options, "cpu", torch.float32)
    results = []
    for _ in range(2):
        loss = loss_of(getattr(losses, function)(*maps, **options))
        results.append((loss, *torch.autograd.grad(loss, maps[0])))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


# --- autocast, operators, torch.compile ---


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("function", "options"), CALLS, ids=name)
def test_autocast_changes_nothing(device, function, options, half):
    for dtype in (torch.float32, torch.float64, half):
        maps, words = inputs(function, options, device, dtype)
        results = []
        for enabled in (False, True):
            with torch.autocast(device, half, enabled=enabled):
                result = getattr(losses, function)(*maps, **words)
                results.append([result] if isinstance(result, torch.Tensor) else list(result))
                if function != "align":
                    results[-1] += torch.autograd.grad(loss_of(result), maps[0])
        for off, on in zip(*results, strict=True):
            assert on.dtype == off.dtype
            # CUDA: the order of sums.
            torch.testing.assert_close(on, off, rtol=0 if device == "cpu" else 1e-6, atol=0, equal_nan=True)


class Operators(TorchFunctionMode):
    """Remembers the calls of operators dpt::, as Python makes them."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        overload = getattr(function, "default", function)
        if str(getattr(overload, "name", str)()).startswith("dpt::"):
            self.calls.append((overload, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


class OperatorsBelowAutograd(TorchDispatchMode):
    """Remembers the calls of operators dpt:: below autograd: what they get there needs no gradient."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().startswith("dpt::"):
            args = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args)
            self.calls.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(("function", "options"), CALLS, ids=name)
def test_opcheck(device, function, options, grad):
    """Of each operator that the function calls, forward and backward, with the arguments of that call."""
    maps, options = inputs(function, options, device)
    if function != "segmentation":
        maps[2] = torch.ones_like(maps[2])  # residuals outside of a mask are NaN: for opcheck not equal to themselves
    maps = [x.detach().requires_grad_(grad and x.requires_grad) for x in maps]
    with Operators() as called, OperatorsBelowAutograd() as below:
        result = getattr(losses, function)(*maps, **options)
        if grad and function != "align":
            loss_of(result).backward()
    assert called.calls, "no operator of ours was called"
    for operator, args, kwargs in called.calls + below.calls:
        torch.library.opcheck(operator, args, kwargs)


class Step(nn.Module):
    """A network of one layer, and its loss."""

    def __init__(self, function, options, channels):
        super().__init__()
        self.conv = nn.Conv2d(2, channels, 3, padding=1)
        self.function, self.options = function, options

    def forward(self, images, *targets):
        maps = self.conv(images)
        maps = maps if self.function == "segmentation" else maps[:, 0].exp()
        result = getattr(losses, self.function)(maps, *targets, **self.options)
        return (result, result) if isinstance(result, torch.Tensor) else (result.loss, result.dropped)


def assert_compiled_step_equals_eager(function, options, device, **compiler):
    torch.compiler.reset()
    (maps, *targets), options = inputs(function, options, device)
    if "segmentation" in function:
        targets = targets[:1]  # no auxiliary map
    torch.manual_seed(0)
    step = Step(function, options, maps.shape[1] if function == "segmentation" else 1).to(device, maps.dtype)
    compiled = torch.compile(step, fullgraph=True, **compiler)
    images = torch.randn(maps.shape[0], 2, *maps.shape[-2:], dtype=maps.dtype).to(device)
    results = []
    for model in (step, compiled):
        loss, dropped = model(images, *targets)
        results.append([loss, dropped, *torch.autograd.grad(loss, step.parameters())])
    for got, want in zip(results[1], results[0], strict=True):
        # float64; the compiled convolution sums in another order.
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)
    assert results[0][2].abs().max() > 0


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("function", "options"), LOSSES[:-1], ids=name)
def test_training_step_compiles_as_one_graph(device, function, options, dynamic):
    assert_compiled_step_equals_eager(function, options, device, dynamic=dynamic, backend="aot_eager")


def test_training_step_compiles_with_inductor(device):
    assert_compiled_step_equals_eager(SSI, {}, device)
