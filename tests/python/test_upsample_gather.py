"""torch.ops.dpt.upsample_gather and upsample_gather_dot against a resized map that is convolved in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torchdpt  # noqa: F401  (registers the operators)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = [  # (h, w), (H, W)
    ((3, 5), (6, 10)),
    ((4, 7), (11, 3)),
    ((1, 1), (2, 2)),
    ((2, 3), (1, 1)),
    ((1, 6), (5, 1)),
]
CHANNELS = [1, 3, 8, 24, 40, 136]  # on CUDA: fewer and more threads than a warp has, whole 16-byte accesses and none


class Case:
    """Products of the taps, and the convolution that they stand for."""

    def __init__(self, device: str, dtype: torch.dtype, channels: int, size: tuple[int, int], batch: int = 2) -> None:
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        self.products = torch.randn(batch, *size, 9 * channels, device=device).to(dtype)
        self.bias, self.dot = torch.randn(2, channels, device=device, dtype=sums)
        self.border = torch.randn(16, channels, device=device, dtype=sums)
        self.dot_bias = torch.randn(1, device=device, dtype=sums)
        self.channels = channels

    def reference(self, out: tuple[int, int], align_corners: bool) -> Tensor:
        """[B, H, W, n]: each tap resized, moved by padding and cropping, and added."""
        height, width = out
        batch = len(self.products)
        total = torch.zeros(batch, self.channels, height, width, dtype=torch.float64)
        taps = self.products.double().cpu().unflatten(3, (9, self.channels)).permute(3, 0, 4, 1, 2)
        for number, tap in enumerate(taps):
            large = F.interpolate(tap, out, mode="bilinear", align_corners=align_corners)
            dy, dx = number // 3, number % 3
            total += F.pad(large, (1, 1, 1, 1))[:, :, dy : dy + height, dx : dx + width]
        rows = [(y == 0) + 2 * (y == height - 1) for y in range(height)]
        columns = [(x == 0) + 2 * (x == width - 1) for x in range(width)]
        border = self.border.double().cpu().view(4, 4, -1)[rows][:, columns]
        return total.permute(0, 2, 3, 1) + self.bias.double().cpu() + border

    def reference_dot(self, out: tuple[int, int], align_corners: bool, inversion: list[float]) -> Tensor:
        x = self.reference(out, align_corners).relu()
        d = (x @ self.dot.double().cpu() + self.dot_bias.double().cpu()).relu()
        return 1 / (inversion[0] * d + inversion[1]).clamp_min(1e-8) if inversion else d


def tolerance(dtype: torch.dtype) -> float:
    # Positions are float32: on sides up to 7 off by an ulp of the side, times differences below 16, nine times. Half
    # types round the result once, at values below 16.
    return {torch.float32: 1e-4, torch.float64: 1e-12, torch.float16: 8 * 2.0**-10, torch.bfloat16: 8 * 2.0**-7}[dtype]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_map_is_the_convolution(
    device: str, size: tuple[int, int], out: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> None:
    for channels in CHANNELS:
        case = Case(device, dtype, channels, size)
        want = case.reference(out, align_corners)
        for relu in (False, True):
            got = torch.ops.dpt.upsample_gather(case.products, case.bias, case.border, *out, align_corners, relu)
            assert got.dtype == dtype
            assert got.is_contiguous()
            assert (got.double().cpu() - (want.relu() if relu else want)).abs().max() <= tolerance(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_dot_is_that_of_the_map(
    device: str, size: tuple[int, int], out: tuple[int, int], align_corners: bool, dtype: torch.dtype
) -> None:
    for channels in CHANNELS:
        case = Case(device, dtype, channels, size)
        for inversion in ([], [0.5, 2.0]):
            got = torch.ops.dpt.upsample_gather_dot(
                case.products, case.bias, case.border, case.dot, case.dot_bias, *out, align_corners, inversion
            )
            want = case.reference_dot(out, align_corners, inversion)
            assert got.shape == want.shape
            assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            # Nothing is rounded to a half type; sums have up to 136 terms, each off by float32's tolerance.
            exact = dtype == torch.float64
            assert (got.double().cpu() - want).abs().max() <= (1e-11 if exact else 2e-3)


def test_inversion_is_bounded(device: str) -> None:
    case = Case(device, torch.float32, 8, (2, 2))
    got = torch.ops.dpt.upsample_gather_dot(case.products, None, None, case.dot, case.dot_bias, 4, 4, True, [0.0, 0.0])
    assert torch.equal(got.cpu(), torch.full((2, 4, 4), 1e8))


def test_bias_and_border_may_be_left_out(device: str) -> None:
    case = Case(device, torch.float64, 8, (3, 4))
    got = torch.ops.dpt.upsample_gather(case.products, None, None, 6, 8, True, False)
    case.bias.zero_()
    case.border.zero_()
    assert (got.cpu() - case.reference((6, 8), True)).abs().max() <= 1e-12


def test_products_that_are_not_dense_or_aligned(device: str) -> None:
    case = Case(device, torch.float32, 8, (3, 4))
    want = torch.ops.dpt.upsample_gather(case.products, case.bias, case.border, 6, 8, True, True)
    strided = case.products.transpose(1, 2).contiguous().transpose(1, 2)
    moved = torch.empty(case.products.numel() + 1, device=device)[1:].view_as(case.products).copy_(case.products)
    for products in (strided, moved):
        got = torch.ops.dpt.upsample_gather(products, case.bias, case.border, 6, 8, True, True)
        assert torch.equal(got, want)


def test_nan_stays_nan(device: str) -> None:
    case = Case(device, torch.float32, 8, (3, 4), batch=1)
    case.products[0, 1, 1, 3] = torch.nan
    got = torch.ops.dpt.upsample_gather_dot(
        case.products, case.bias, case.border, case.dot, case.dot_bias, 6, 8, True, []
    )
    assert got.isnan().any()


def test_takes_empty_batch(device: str) -> None:
    case = Case(device, torch.float32, 8, (3, 4), batch=0)
    assert torch.ops.dpt.upsample_gather(case.products, case.bias, None, 6, 8, True, True).shape == (0, 6, 8, 8)
    dots = torch.ops.dpt.upsample_gather_dot(case.products, None, None, case.dot, case.dot_bias, 6, 8, True, [])
    assert dots.shape == (0, 6, 8)


def test_opcheck(device: str) -> None:
    case = Case(device, torch.float32, 8, (3, 4))
    args = (case.products, case.bias, case.border)
    torch.library.opcheck(torch.ops.dpt.upsample_gather.default, (*args, 6, 8, True, True))
    dots = (*args, case.dot, case.dot_bias, 6, 8, False, [1.0, 0.5])
    torch.library.opcheck(torch.ops.dpt.upsample_gather_dot.default, dots)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"products": torch.zeros(2, 3, 4, 70)}, r"products must be \[B, h, w, 9 \* n\], got \[2, 3, 4, 70\]"),
        ({"products": torch.zeros(2, 0, 4, 72)}, "heights and widths must be at least 1"),
        ({"products": torch.zeros(2, 3, 4, 72, dtype=torch.int64)}, "must be float32, float64, float16 or bfloat16"),
        ({"bias": torch.zeros(7)}, r"bias must be dense Float \[8\] on cpu, got Float \[7\]"),
        ({"bias": torch.zeros(8, dtype=torch.float64)}, "bias must be dense Float"),
        ({"border": torch.zeros(4, 8)}, r"border must be dense Float \[16, 8\]"),
    ],
)
def test_error_messages(change: dict[str, Tensor], message: str) -> None:
    given = {"products": torch.zeros(2, 3, 4, 72), "bias": torch.zeros(8), "border": torch.zeros(16, 8)} | change
    with pytest.raises(ValueError, match=message):
        torch.ops.dpt.upsample_gather(*given.values(), 6, 8, True, False)
