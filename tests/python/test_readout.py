"""torch.ops.dpt.readout against the sum and the GELU in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torchdpt  # noqa: F401  (registers the operator)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [  # B, P, N, D
    (2, 1, 9, 768),
    (3, 2, 7, 33),
    (1, 1, 1, 1),
    (2, 0, 5, 60),
    (1, 1, 37, 4096),
    (5, 3, 2, 130),
    (4, 1, 577, 8),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    batch, prefix, patches, width = shape
    tokens = 2 * torch.randn(batch, prefix + patches, width)
    return tokens.to(device, dtype), torch.randn(batch, width).to(device, dtype)


def wanted(tokens: Tensor, token: Tensor, prefix: int) -> Any:
    wide, more = (x.cpu().double().numpy() for x in (tokens, token))
    x = wide[:, prefix:] + more[:, None]
    cdf = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in x.ravel()])
    return x * cdf.reshape(x.shape)


def error(got: Tensor, want: Any) -> float:
    """The largest one; that of half types beyond the one rounding of the result."""
    assert got.shape == want.shape
    difference = np.abs(got.cpu().double().numpy() - want)
    if got.dtype in (torch.float16, torch.bfloat16):
        info = torch.finfo(got.dtype)
        difference -= np.maximum(np.abs(want) * info.eps, info.smallest_normal * info.eps) / 2
    return float(difference.max(initial=0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_gelu_of_the_sum(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens, token = inputs(shape, dtype, device)
    given = tokens.clone(), token.clone()
    got = torch.ops.dpt.readout(tokens, token, shape[1])
    assert torch.equal(tokens, given[0])
    assert torch.equal(token, given[1])
    assert got.dtype == dtype
    assert got.is_contiguous()
    want = wanted(tokens, token, shape[1])
    # Of numbers below 16: some roundings in the type of the sums, each half an ulp.
    assert np.abs(want).max() < 16
    assert error(got, want) <= (1e-14 if dtype == torch.float64 else 4e-6)


def test_far_from_zero_is_the_sum_or_zero(device: str) -> None:
    tokens = torch.tensor([-1e4, -40.0, -0.0, 0.0, 40.0, 1e4], device=device).view(1, 1, 6)
    got = torch.ops.dpt.readout(tokens, torch.zeros(1, 6, device=device), 0)
    assert got.flatten().tolist() == [0, 0, 0, 0, 40, 1e4]


def test_nan_goes_where_it_is_read(device: str) -> None:
    tokens, token = inputs((3, 2, 5, 64), torch.float32, device)
    tokens[0, 1, 3] = torch.nan  # of the prefix
    tokens[1, 4, 7] = torch.nan
    token[2, 9] = torch.nan
    got = torch.ops.dpt.readout(tokens, token, 2)
    assert got.isnan().nonzero().tolist() == [[1, 2, 7], *([2, patch, 9] for patch in range(5))]


def test_data_off_a_16_byte_boundary(device: str) -> None:
    tokens, token = inputs((2, 1, 5, 64), torch.float32, device)
    want = torch.ops.dpt.readout(tokens, token, 1)

    def moved(x: Tensor) -> Tensor:
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

    assert torch.equal(torch.ops.dpt.readout(moved(tokens), token, 1), want)
    assert torch.equal(torch.ops.dpt.readout(tokens, moved(token), 1), want)


@pytest.mark.parametrize("shape", [(0, 1, 4, 8), (2, 1, 0, 8), (2, 0, 0, 8), (2, 1, 4, 0)])
def test_takes_empty_tokens(device: str, shape: tuple[int, ...]) -> None:
    tokens, token = inputs(shape, torch.bfloat16, device)
    assert torch.ops.dpt.readout(tokens, token, shape[1]).shape == (shape[0], *shape[2:])


def test_opcheck(device: str) -> None:
    torch.library.opcheck(torch.ops.dpt.readout.default, (*inputs((2, 1, 6, 16), torch.float32, device), 1))


@pytest.mark.parametrize(
    ("tokens", "token", "prefix", "message"),
    [
        (torch.zeros(2, 16), torch.zeros(2, 16), 1, r"\[B, P \+ N, D\], dense, got Float \[2, 16\]"),
        (torch.zeros(2, 5, 16).int(), torch.zeros(2, 16).int(), 1, "must be float32, float64, float16 or bfloat16"),
        (torch.zeros(2, 16, 5).mT, torch.zeros(2, 16), 1, r"dense, got Float \[2, 5, 16\] with strides \[80, 1, 5\]"),
        (torch.zeros(2, 5, 16), torch.zeros(2, 1, 16), 1, r"token must be Float \[2, 16\], .*, got Float \[2, 1, 16\]"),
        (torch.zeros(2, 5, 16), torch.zeros(1, 16), 1, r"token must be Float \[2, 16\], .*, got Float \[1, 16\]"),
        (torch.zeros(2, 5, 16), torch.zeros(2, 8), 1, r"token must be Float \[2, 16\], .*, got Float \[2, 8\]"),
        (torch.zeros(2, 5, 16), torch.zeros(2, 16).double(), 1, "token must be Float .* got Double"),
        (torch.zeros(2, 5, 16), torch.zeros(16, 2).t(), 1, r"dense, on cpu, got .* with strides \[1, 2\]"),
        (torch.zeros(2, 5, 16), torch.zeros(2, 16, device="meta"), 1, "on cpu, got .* on meta"),
        (torch.zeros(2, 5, 16), torch.zeros(2, 16), 6, "prefix must be 0 to 5, the number of tokens, got 6"),
        (torch.zeros(2, 5, 16), torch.zeros(2, 16), -1, "prefix must be 0 to 5, the number of tokens, got -1"),
    ],
)
def test_error_messages(tokens: Tensor, token: Tensor, prefix: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.dpt.readout(tokens, token, prefix)
