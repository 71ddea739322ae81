"""torch.ops.dpt.add_layer_norm_ against a sum and a normalisation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchdpt  # noqa: F401  (registers the operator)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EPS = 1e-6


def normed(x: Tensor) -> Tensor:
    x = x.double().cpu()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(2, 5, 768), (3, 1, 1024), (1, 7, 60), (5, 3), (9, 1), (2, 3, 2048), (1, 33, 130)])
def test_is_the_sum_and_its_normalisation(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = (3 * torch.randn(2, *shape, device=device) + 1).to(dtype)
    want = x + y
    out = torch.ops.dpt.add_layer_norm_(x, y, EPS)
    assert torch.equal(x, want)  # one rounding of the exact sum, or of float32's
    # Of values below 6: float32 sums of up to 2048 terms, or one rounding to a half type.
    tolerance = {
        torch.float32: 1e-5,
        torch.float64: 1e-12,
        torch.float16: 4.1 * 2.0**-11,
        torch.bfloat16: 4.1 * 2.0**-8,
    }
    assert out.dtype == dtype
    assert (out.double().cpu() - normed(want)).abs().max() <= tolerance[dtype]


def test_large_mean_is_taken_off_first(device: str) -> None:
    x = torch.randn(4, 512, device=device) + 1000
    want = normed(x + 24)
    out = torch.ops.dpt.add_layer_norm_(x, torch.full_like(x, 24), EPS)
    assert (out.double().cpu() - want).abs().max() <= 1e-3  # an ulp of 1024 is 6e-5 or 1.2e-4, of a mean of 512


def test_data_off_a_16_byte_boundary(device: str) -> None:
    held = torch.randn(1 + 3 * 64, device=device)
    x, y = held[1:].view(3, 64), torch.randn(3, 64, device=device)
    aligned = x.clone()
    assert torch.allclose(
        torch.ops.dpt.add_layer_norm_(x, y, EPS), torch.ops.dpt.add_layer_norm_(aligned, y, EPS), atol=1e-5
    )
    assert torch.equal(x, aligned)


def test_nan_stays_in_its_row(device: str) -> None:
    x = torch.randn(3, 64, device=device)
    x[1, 5] = torch.nan
    out = torch.ops.dpt.add_layer_norm_(x, torch.randn(3, 64, device=device), EPS)
    assert out.isnan().all(1).tolist() == [False, True, False]
    assert out.isnan().any(1).tolist() == [False, True, False]


def test_takes_empty_batch(device: str) -> None:
    x = torch.zeros(0, 5, 8, device=device)
    assert torch.ops.dpt.add_layer_norm_(x, x.clone(), EPS).shape == (0, 5, 8)


def test_opcheck(device: str) -> None:
    x, y = torch.randn(2, 2, 3, 16, device=device)
    torch.library.opcheck(torch.ops.dpt.add_layer_norm_.default, (x.clone(), y.clone(), EPS))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(2, 15), r"must have one shape .*got \[2, 16\] Float on cpu and \[2, 15\]"),
        (torch.zeros(2, 16, dtype=torch.float64), "must have one shape .*dtype"),
        (torch.zeros(16, 2).t(), "must be dense"),
    ],
)
def test_error_messages(y: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.dpt.add_layer_norm_(torch.zeros(2, 16), y, EPS)
