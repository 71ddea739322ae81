"""torch.ops.dpt.group_norm against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchdpt  # noqa: F401  (registers the operator)

EPS = 1e-5


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor]:
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    x = (2 * torch.randn(shape) + 0.5).to(device, dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(2, shape[1]).to(device, sums)
    return x, weight, bias


def normed(x: Tensor, groups: int, weight: Tensor, bias: Tensor, relu: bool, add: float | Tensor = 0.0) -> Tensor:
    x, weight, bias = (tensor.double().cpu() for tensor in (x, weight, bias))
    parts = x.unflatten(1, (groups, -1))
    centred = parts - parts.mean((2, 3, 4), keepdim=True)
    scaled = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + EPS).sqrt()).flatten(1, 2)
    y = scaled * weight[:, None, None] + bias[:, None, None] + add
    return y.clamp_min(0) if relu else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((2, 64, 9, 7), 32),
        ((3, 48, 5, 3), 6),
        ((1, 6, 1, 2), 2),
        ((2, 5, 4, 4), 5),
        ((1, 32, 60, 70), 32),  # several parts on a GPU
        ((2, 1024, 3, 3), 32),
    ],
)
def test_is_the_definition(
    device: str, shape: tuple[int, ...], groups: int, adds: bool, relu: bool, dtype: torch.dtype
) -> None:
    x, weight, bias = inputs(shape, dtype, device)
    given = x.clone()
    add = torch.randn_like(x) if adds else None
    got = torch.ops.dpt.group_norm(x, groups, weight, bias, EPS, add, relu)
    assert torch.equal(x, given)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    want = normed(x, groups, weight, bias, relu, 0.0 if add is None else add.double().cpu())
    # Of numbers below 16: some roundings in float32, or one to a half type.
    tolerance = {
        torch.float32: 3e-5,
        torch.float64: 1e-11,
        torch.float16: 16 * 2.0**-11,
        torch.bfloat16: 16 * 2.0**-8,
    }[dtype]
    assert want.abs().max() < 16
    assert (got.double().cpu() - want).abs().max() <= tolerance


def test_large_mean_is_taken_off_first(device: str) -> None:
    x, weight, bias = inputs((1, 16, 40, 50), torch.float32, device)
    x = x + 1000
    got = torch.ops.dpt.group_norm(x, 4, weight, bias, EPS, None, False)
    # An ulp of 1000 is 6e-5, in numbers of deviation 2 that are multiplied by up to 3.
    assert (got.double().cpu() - normed(x, 4, weight, bias, relu=False)).abs().max() <= 5e-4


def test_constant_group_gives_the_bias(device: str) -> None:
    _, weight, bias = inputs((1, 8, 4, 4), torch.float32, device)
    x = torch.full((1, 8, 4, 4), 3.7, device=device).contiguous(memory_format=torch.channels_last)
    got = torch.ops.dpt.group_norm(x, 2, weight, bias, EPS, None, False)
    assert torch.allclose(got, bias[None, :, None, None].expand_as(got), atol=1e-6)


def test_nan_stays_in_its_group(device: str) -> None:
    x, weight, bias = inputs((2, 8, 4, 4), torch.float32, device)
    x[1, 5, 2, 2] = torch.nan
    got = torch.ops.dpt.group_norm(x, 4, weight, bias, EPS, None, True)
    assert got.isnan().all((2, 3)).nonzero().tolist() == [[1, 4], [1, 5]]
    assert got.isnan().sum() == 2 * 16


def test_data_off_a_16_byte_boundary(device: str) -> None:
    _, weight, bias = inputs((1, 8, 3, 5), torch.float32, device)
    x = torch.randn(1 + 120, device=device)[1:].view(1, 3, 5, 8).permute(0, 3, 1, 2)
    got = torch.ops.dpt.group_norm(x, 2, weight, bias, EPS, None, False)
    assert (got.double().cpu() - normed(x, 2, weight, bias, relu=False)).abs().max() <= 3e-5


def test_takes_more_images_than_a_grid_has_rows(device: str) -> None:
    x, weight, bias = inputs((65537, 4, 1, 2), torch.float32, device)
    got = torch.ops.dpt.group_norm(x, 2, weight, bias, EPS, None, False)
    assert (got.double().cpu() - normed(x, 2, weight, bias, relu=False)).abs().max() <= 3e-5


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)])
def test_takes_empty_maps(device: str, shape: tuple[int, ...]) -> None:
    x, weight, bias = inputs(shape, torch.float32, device)
    assert torch.ops.dpt.group_norm(x, 2, weight, bias, EPS, None, False).shape == shape


def test_opcheck(device: str) -> None:
    x, weight, bias = inputs((2, 8, 4, 5), torch.float32, device)
    for add in (None, torch.randn_like(x)):
        torch.library.opcheck(torch.ops.dpt.group_norm.default, (x, 4, weight, bias, EPS, add, True))


def test_error_messages() -> None:
    x, weight, bias = inputs((2, 8, 4, 5), torch.float32, "cpu")
    norm = torch.ops.dpt.group_norm
    for call, message in (
        (lambda: norm(x.contiguous(), 4, weight, bias, EPS, None, True), "channels that lie next to each other"),
        (lambda: norm(x.int(), 4, weight, bias, EPS, None, True), "must be float32"),
        (lambda: norm(x, 3, weight, bias, EPS, None, True), "8 channels cannot be divided into 3 groups"),
        (lambda: norm(x, 0, weight, bias, EPS, None, True), "into 0 groups"),
        (lambda: norm(x, 4, weight[:4], bias, EPS, None, True), r"must be Float \[8\] on cpu, got Float \[4\]"),
        (lambda: norm(x, 4, weight, bias.double(), EPS, None, True), r"got Double \[8\]"),
        (lambda: norm(x, 4, weight, bias, EPS, x.contiguous(), True), "add must be as x is"),
        (lambda: norm(x, 4, weight, bias, EPS, x[:1], True), r"add must be as x is, got Float \[1, 8, 4, 5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
