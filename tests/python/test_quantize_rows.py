"""torch.ops.dpt.quantize_rows against float8 as its definition has it, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchdpt  # noqa: F401  (registers the operator)

FLOATS = [torch.float32, torch.float16, torch.bfloat16]


def values_of_e4m3fn() -> Tensor:
    """By code, 0 to 126: sign, four bits of exponent with bias 7, three of mantissa; 127 is NaN."""
    codes = range(127)
    return torch.tensor(
        [(c % 8) * 2.0**-9 if c < 8 else (8 + c % 8) * 2.0 ** (c // 8 - 10) for c in codes], dtype=torch.float64
    )


def test_values_are_those_of_torch() -> None:
    of_torch = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    assert torch.equal(values_of_e4m3fn(), of_torch)


def nearest(x: Tensor) -> Tensor:
    """The nearest value of e4m3fn, halves to the even code."""
    values = values_of_e4m3fn()
    distance = (x.abs()[..., None] - values).abs()
    best = distance.min(-1, keepdim=True).values
    even = torch.arange(127) % 2 == 0
    first = (distance == best).int()
    code = (first * (1 + even.int())).argmax(-1)  # of two that are as near, the even one
    return values[code] * x.sign()


def test_each_value_and_what_lies_between_goes_to_the_nearest(device: str) -> None:
    values = values_of_e4m3fn()
    middle = (values[1:] + values[:-1]) / 2
    around = torch.cat([values, middle, middle * (1 + 2**-20), middle * (1 - 2**-20)])
    row = torch.cat([around, -around]).float()
    assert row.max() == 448  # the scale is one
    codes, scale = torch.ops.dpt.quantize_rows(row.to(device))
    assert scale.cpu().item() == 1
    assert torch.equal(codes.cpu().double(), nearest(row.double()))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(5, 64), (2, 3, 768), (7, 33), (1, 1), (4, 1024), (3, 4096)])
def test_each_row_has_its_scale(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    sizes = torch.logspace(-6, 2, shape[-2] if len(shape) > 1 else 1)[:, None]
    x = (torch.randn(shape) * sizes).clamp(-60000, 60000).to(dtype)
    codes, scale = (tensor.cpu() for tensor in torch.ops.dpt.quantize_rows(x.to(device)))
    assert codes.dtype == torch.float8_e4m3fn
    assert codes.shape == shape
    assert scale.dtype == torch.float32
    rows = x.double().reshape(-1, shape[-1])
    assert torch.allclose(scale.double(), rows.abs().amax(1, keepdim=True) / 448, rtol=1e-6, atol=0)
    # Half a step: a sixteenth of the number, or half of the smallest; the scale is rounded, too.
    step = (rows.abs() / 16).clamp_min(2.0**-10 * scale.double())
    decoded = codes.double().reshape(-1, shape[-1]) * scale.double()
    assert ((decoded - rows).abs() <= 1.00001 * step).all()


def test_zeros_stay_and_nan_is_seen(device: str) -> None:
    x = torch.zeros(4, 32)
    x[1, 3] = torch.nan
    x[2] = 1e-38
    x[3] = torch.linspace(-1e20, 1e20, 32)
    codes, scale = (tensor.cpu() for tensor in torch.ops.dpt.quantize_rows(x.to(device)))
    assert scale.isfinite().all()
    assert (codes[0].float() == 0).all()
    assert codes[1].float().isnan().sum() == 1
    assert (codes[2].float() == 0).all()
    assert codes[3].float().abs().max() == 448


def test_product_is_that_of_the_numbers(device: str) -> None:
    x, weight = torch.randn(37, 256, dtype=torch.float64), torch.randn(48, 256, dtype=torch.float64)
    codes, scale = torch.ops.dpt.quantize_rows(x.float().to(device))
    weight_codes, weight_scale = torch.ops.dpt.quantize_rows(weight.float().to(device))
    got = (codes.double() @ weight_codes.double().T) * scale.double() * weight_scale.double().T
    want = x @ weight.T
    # Each factor is off by at most a sixteenth, on average much less, and signs vary.
    assert (got.cpu() - want).norm() <= 0.05 * want.norm()


def test_data_off_a_16_byte_boundary(device: str) -> None:
    held = torch.randn(1 + 3 * 64, device=device)
    x = held[1:].view(3, 64)
    for got, want in zip(torch.ops.dpt.quantize_rows(x), torch.ops.dpt.quantize_rows(x.clone()), strict=True):
        assert torch.equal(got.float(), want.float())


def test_takes_no_rows(device: str) -> None:
    codes, scale = torch.ops.dpt.quantize_rows(torch.zeros(0, 5, 8, device=device))
    assert codes.shape == (0, 5, 8)
    assert scale.shape == (0, 1)


def test_opcheck(device: str) -> None:
    # No comparison of values: torch compares no float8.
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.dpt.quantize_rows.default, (torch.randn(3, 32, device=device),), test_utils=tests)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 16, dtype=torch.float64), "must be float32, float16 or bfloat16"),
        (torch.zeros(16, 2).t(), "dense"),
        (torch.zeros(3, 0), r"got Float \[3, 0\]"),
    ],
)
def test_error_messages(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.dpt.quantize_rows(x)
