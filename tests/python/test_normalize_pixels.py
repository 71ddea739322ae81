"""torch.ops.dpt.normalize_pixels and normalize_patches against the normalisation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchdpt  # noqa: F401  (registers the operator)

# Of half an ulp of values below 4; float32 has two more roundings, of the scale and of the shift.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def normalized(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    wide = images.cpu().double() / 255
    return torch.stack([(wide[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


def strided(kind: str, device: str) -> Tensor:
    """[2, 3, 5, 7]"""
    if kind == "planes":
        return pixels(2, 3, 5, 7).to(device)
    if kind == "photographs":
        return pixels(2, 5, 7, 3).to(device).permute(0, 3, 1, 2)
    if kind == "alpha left out":
        return pixels(2, 5, 7, 4).to(device).permute(0, 3, 1, 2)[:, :3]
    if kind == "every second":
        return pixels(4, 3, 10, 14).to(device)[::2, :, 1::2, ::2]
    if kind == "turned":
        return pixels(2, 3, 7, 5).to(device).transpose(2, 3)
    assert kind == "gray"
    return pixels(2, 1, 5, 7).to(device).expand(2, 3, 5, 7)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["planes", "photographs", "alpha left out", "every second", "turned", "gray"])
def test_is_the_normalisation(device: str, kind: str, channels_last: bool, dtype: torch.dtype) -> None:
    images = strided(kind, device)
    got = torch.ops.dpt.normalize_pixels(images, *IMAGENET, dtype, channels_last)
    assert got.dtype == dtype
    format = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=format)
    assert (got.cpu().double() - normalized(images, *IMAGENET)).abs().max() <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("kind", ["planes", "photographs", "alpha left out"])
def test_patches_are_the_normalisation_as_a_patch_embedding_reads_it(
    device: str, kind: str, patch: int, dtype: torch.dtype
) -> None:
    images = strided(kind, device)[:, :, :4, :4] if patch > 1 else strided(kind, device)
    got = torch.ops.dpt.normalize_patches(images, *IMAGENET, dtype, patch)
    want = torch.nn.functional.unfold(normalized(images, *IMAGENET), patch, stride=patch).transpose(1, 2)
    assert got.dtype == dtype
    assert got.is_contiguous()
    assert got.shape == (2, images.shape[2] // patch, images.shape[3] // patch, 3 * patch * patch)
    assert (got.cpu().double().flatten(1, 2) - want).abs().max() <= TOLERANCES[dtype]
    torch.library.opcheck(torch.ops.dpt.normalize_patches.default, (images, *IMAGENET, dtype, patch))


def test_patches_refuse_what_does_not_divide() -> None:
    with pytest.raises(ValueError, match=r"multiples of the patch, got images \[1, 3, 5, 7\] and a patch of 2"):
        torch.ops.dpt.normalize_patches(pixels(1, 3, 5, 7), *IMAGENET, torch.float32, 2)
    with pytest.raises(ValueError, match="a patch of 0"):
        torch.ops.dpt.normalize_patches(pixels(1, 3, 5, 7), *IMAGENET, torch.float32, 0)


def test_every_level_of_every_channel(device: str) -> None:
    images = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256).to(device)
    mean, std = [0.0, 0.5, 1.0], [1.0, 0.5, 0.25]
    got = torch.ops.dpt.normalize_pixels(images, mean, std, torch.float32)
    assert (got.cpu().double() - normalized(images, mean, std)).abs().max() <= 1e-6
    assert got.cpu()[0, 0, 0, 0] == 0
    assert got.cpu()[0, 1, 0].min() == -1


def test_rows_of_many_threads(device: str) -> None:
    images = pixels(3, 3, 129, 300).to(device)
    got = torch.ops.dpt.normalize_pixels(images, *IMAGENET, torch.float32)
    assert (got.cpu().double() - normalized(images, *IMAGENET)).abs().max() <= 1e-6


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_takes_empty_images(device: str, shape: tuple[int, ...]) -> None:
    got = torch.ops.dpt.normalize_pixels(pixels(*shape).to(device), *IMAGENET, torch.bfloat16)
    assert got.shape == shape


def test_opcheck(device: str) -> None:
    images = pixels(2, 4, 5, 3).to(device).permute(0, 3, 1, 2)
    for channels_last in (True, False):
        torch.library.opcheck(
            torch.ops.dpt.normalize_pixels.default, (images, *IMAGENET, torch.bfloat16, channels_last)
        )


@pytest.mark.parametrize(
    ("images", "mean", "std", "dtype", "message"),
    [
        (torch.zeros(1, 3, 4, 4), *IMAGENET, torch.float32, r"must be uint8 \[B, 3, H, W\], got Float \[1, 3, 4, 4\]"),
        (pixels(4, 4, 3), *IMAGENET, torch.float32, r"got Byte \[4, 4, 3\]; permute"),
        (pixels(1, 4, 4, 3), *IMAGENET, torch.float32, "permute"),
        (pixels(1, 3, 4, 4), [0.5], [0.5], torch.float32, "three numbers each"),
        (pixels(1, 3, 4, 4), [0.0] * 3, [1.0, 0.0, 1.0], torch.float32, "std positive"),
        (pixels(1, 3, 4, 4), [0.0, float("nan"), 0.0], [1.0] * 3, torch.float32, "three numbers each"),
        (pixels(1, 3, 4, 4), *IMAGENET, torch.float64, "dtype must be float32, bfloat16 or float16, got Double"),
    ],
)
def test_error_messages(images: Tensor, mean: list[float], std: list[float], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch.ops.dpt.normalize_pixels(images, mean, std, dtype)
    if "Double" not in message:
        with pytest.raises(ValueError, match=message):
            torch.ops.dpt.normalize_pixels(images.to("meta"), mean, std, dtype)
