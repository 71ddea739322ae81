"""The gradient of bilinear resizing, dpt::resize_bilinear_backward, against that of torch.nn.functional.interpolate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

import torchdpt  # noqa: F401  (registers the operator)

backward = torch.ops.dpt.resize_bilinear_backward
SIZES = [((3, 4), (6, 8)), ((5, 7), (5, 7)), ((9, 6), (4, 11)), ((1, 1), (3, 5)), ((4, 5), (1, 1)), ((1, 6), (7, 1))]


@pytest.fixture(params=[False, True], ids=["fast", "deterministic"])
def _determinism(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_determinism")
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize(
    # Sums of up to 77 terms, each with weights rounded once.
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 3e-6), (torch.bfloat16, 3e-2)],
)
def test_equals_autograd_of_interpolate(
    device: str,
    dtype: torch.dtype,
    tolerance: float,
    small: tuple[int, int],
    large: tuple[int, int],
    align_corners: bool,
    format: torch.memory_format,
) -> None:
    grad = torch.randn(2, 3, *large, device=device).to(dtype).contiguous(memory_format=format)
    got = backward(grad, [2, 3, *small], align_corners)
    # The reference in float64 on the CPU, from the same rounded numbers.
    x = torch.zeros(2, 3, *small, dtype=torch.float64, requires_grad=True)
    y = F.interpolate(x, large, mode="bilinear", align_corners=align_corners)
    (want,) = torch.autograd.grad(y, x, grad.double().cpu())
    assert got.dtype == dtype
    assert got.shape == want.shape
    assert (got.double().cpu() - want).abs().max() <= tolerance * want.abs().max()


@pytest.mark.parametrize("align_corners", [False, True])
def test_gradients(device: str, align_corners: bool) -> None:
    grad = torch.randn(1, 2, 6, 5, dtype=torch.float64, device=device, requires_grad=True)
    resize = lambda g: backward(g, [1, 2, 3, 4], align_corners)  # noqa: E731
    assert torch.autograd.gradcheck(resize, grad)
    assert torch.autograd.gradgradcheck(resize, grad)


@pytest.mark.usefixtures("_determinism")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0, 1])
def test_wide_maps(device: str, dtype: torch.dtype, align_corners: bool, offset: int) -> None:
    """Sixteen channels, which a GPU reads in packs; not those that begin between two packs."""
    memory = torch.randn(2 * 17 * 13 * 16 + offset, device=device).to(dtype)
    grad = memory[offset:].view(2, 17, 13, 16).permute(0, 3, 1, 2)
    got = backward(grad, [2, 16, 8, 7], align_corners)
    x = torch.zeros(2, 16, 8, 7, dtype=torch.float64, requires_grad=True)
    y = F.interpolate(x, (17, 13), mode="bilinear", align_corners=align_corners)
    (want,) = torch.autograd.grad(y, x, grad.double().cpu())
    tolerance = 3e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert (got.double().cpu() - want).abs().max() <= tolerance * want.abs().max()


def test_takes_no_images(device: str) -> None:
    assert backward(torch.zeros(0, 3, 6, 8, device=device), [0, 3, 3, 4], True).shape == (0, 3, 3, 4)


def test_opcheck(device: str) -> None:
    grad = torch.randn(2, 3, 6, 8, device=device, requires_grad=True)
    torch.library.opcheck(backward, (grad, [2, 3, 3, 4], True))
    torch.library.opcheck(backward, (grad.to(memory_format=torch.channels_last).detach(), [2, 3, 3, 4], False))
