"""Inputs for the tests of torchdpt.losses, and the comparison with reference_losses.py."""

import numpy as np
import reference_losses
import torch

from torchdpt import losses

ALIGNMENTS = ("robust", "least_squares")
DATA = ("trimmed", "mae", "mse")
REDUCTIONS = ("image", "batch")
DEFINITIONS = ("recommended", "paper", "published")
VARIANTS = ("eigen", "bts", "adabins", "depth_anything")
MASKS = ("dense", "half", "sparse", "rows", "empty", "mixed")
DTYPES = (torch.float32, torch.float64)

# What the library promises: sums of up to 2e5 terms are kept in float64 (1e-16 each, errors of both signs), and a
# result in float32 is rounded once or a few times (6e-8 each).
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

# Where two maps agree, a loss is what rounding leaves of normalised numbers of size one, and is compared with these.
SMALL = 0.1


def make_mask(kind, batch, height, width, rng):
    masks = {
        "dense": np.ones((batch, height, width), bool),
        "half": rng.random((batch, height, width)) < 0.5,
        "sparse": rng.random((batch, height, width)) < 0.01,
        "rows": np.broadcast_to((np.arange(height) // 2 % 2 == 0)[:, None], (batch, height, width)).copy(),
        "empty": np.zeros((batch, height, width), bool),
    }
    if kind == "mixed":
        kinds = ("half", "empty", "rows", "dense", "sparse")
        return np.stack([masks[kinds[b % len(kinds)]][b] for b in range(batch)])
    return masks[kind]


def make_maps(batch, height, width, mask="dense", seed=0):
    """prediction, target (float64 numbers that float32 holds) and mask; positive, as depths are."""
    rng = np.random.default_rng([seed, batch, height, width])
    prediction = (5 + 10 * rng.random((batch, height, width))).astype(np.float32).astype(np.float64)
    target = (0.2 + rng.random((batch, height, width))).astype(np.float32).astype(np.float64)
    return prediction, target, make_mask(mask, batch, height, width, rng)


def good_and(other, height=6, width=5):
    """Images 0 and 2 are good ones, image 1 is `other`, a function (prediction, target, mask) that changes them."""
    prediction, target, mask = make_maps(3, height, width, "half", seed=3)
    other(prediction[1], target[1], mask[1])
    return prediction, target, mask


# --- the library's side ---


def tensors(arrays, device="cpu", dtype=torch.float32):
    return [
        torch.tensor(array, device=device, dtype=None if array.dtype in (bool, np.int64) else dtype) for array in arrays
    ]


def run(function, arrays, device="cpu", dtype=torch.float32, weights=None, **options):
    """The library's result and the gradient, of `loss` or of a weighted sum of `per_image`."""
    prediction, target, mask = tensors(arrays, device, dtype)
    prediction.requires_grad_()
    result = getattr(losses, function)(prediction, target, mask, **options)
    of = result.loss if weights is None else (result.per_image * torch.tensor(weights).to(result.per_image)).sum()
    (gradient,) = torch.autograd.grad(of, prediction)
    return result, gradient


def to_numpy(x):
    return x.detach().double().cpu().numpy()


# --- comparison ---


def assert_result(result, want, arrays, dtype, reported=torch.float32):
    tolerance = TOLERANCE[dtype]
    assert result._fields == ("loss", "per_image", "scale", "shift", "dropped")
    assert result.loss.shape == ()
    assert result.loss.dtype == result.per_image.dtype == result.scale.dtype == result.shift.dtype == reported
    assert result.dropped.dtype == torch.int64
    assert result.dropped.tolist() == want.dropped.tolist()
    assert [x.requires_grad for x in result[2:]] == [False] * 3
    assert abs(result.loss.item() - want.loss) <= tolerance * max(abs(want.loss), SMALL)
    per_image = to_numpy(result.per_image)
    assert per_image.shape == want.per_image.shape
    assert (per_image[want.dropped != 0] == 0).all()
    assert (np.abs(per_image - want.per_image) <= tolerance * np.maximum(np.abs(want.per_image), SMALL)).all()
    assert_scale_and_shift(result, want, arrays[0], arrays[2], tolerance)


def assert_scale_and_shift(result, want, prediction, mask, tolerance):
    for got, expected in ((to_numpy(result.scale), want.scale), (to_numpy(result.shift), want.shift)):
        assert got.shape == expected.shape
        assert (np.isnan(got) == np.isnan(expected)).all()
    largest = np.abs(np.where(mask & np.isfinite(prediction), prediction, 0)).max((1, 2), initial=0)
    known = ~np.isnan(want.scale)
    # The shift is a difference of numbers of the size of scale * prediction.
    for got, expected, size in (
        (to_numpy(result.scale), want.scale, np.abs(want.scale)),
        (to_numpy(result.shift), want.shift, np.abs(want.shift) + np.abs(want.scale) * largest),
    ):
        assert (np.abs(got - expected)[known] <= tolerance * size[known]).all()


def assert_gradient(gradient, want, arrays, tolerance):
    """Image by image, relative to the largest entry.

    Where all entries cancel (two valid pixels, say, which every alignment makes equal) relative to what the mean of
    the residuals has at one pixel.
    """
    prediction, _, mask = arrays
    gradient = to_numpy(gradient)
    assert gradient.shape == want.shape
    assert np.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    for b in range(len(want)):
        valid = prediction[b][mask[b]]
        if valid.size == 0 or not np.isfinite(valid).all():
            assert (gradient[b] == 0).all()
            continue
        one_pixel = 1 / (2 * valid.size * max(np.ptp(valid), 1e-30)) if np.ptp(valid) else 0
        assert np.abs(gradient[b] - want[b]).max() <= tolerance * max(np.abs(want[b]).max(), one_pixel)


def assert_equals_reference(function, arrays, device, dtypes=DTYPES, **options):
    """Value and gradient in each of `dtypes`; `arrays` must be what the narrowest of them holds."""
    want = getattr(reference_losses, function)(*arrays, **options)
    gradient = want.gradient()
    for dtype in dtypes:
        result, got = run(function, arrays, device, dtype, **options)
        assert_result(result, want, arrays, dtype, dtype)
        assert got.dtype == dtype
        assert_gradient(got, gradient, arrays, TOLERANCE[dtype])
    return want
