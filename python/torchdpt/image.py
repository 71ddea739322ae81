"""From a file to the network's input: decoding, resizing, normalising."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from torchdpt.files import write_atomically

if TYPE_CHECKING:
    from PIL import Image

    ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any] | Tensor

Array = np.ndarray[Any, Any]

# What Pillow may open. Others have decoders with a history, or are no photographs (GIF).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF")
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif"})


def is_count(value: object) -> bool:
    """An integer of at least one; NumPy's are, True is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) > 0


def is_size(value: object) -> bool:
    """(height, width) in pixels."""
    return isinstance(value, Sequence) and len(value) == 2 and all(map(is_count, value))


# --- decoding ---


def load_image(image: ImageLike) -> Array:
    """Load a picture as it is meant to be seen: upright, in RGB.

    Args:
        image: A path or the bytes of a file (JPEG, PNG, WebP, TIFF, BMP, AVIF); a PIL image; an array [H, W],
            [H, W, 1], [H, W, 3] or [H, W, 4]; a tensor [C, H, W] or [H, W]. Arrays and tensors are RGB: uint8, uint16,
            or floating point in [0, 1]. Alpha is left out, gray is repeated.

    Returns:
        [H, W, 3], RGB: uint8, uint16 (16-bit gray keeps its levels), or float32 or float64 in [0, 1].

    Raises:
        ValueError: if it is no image, a damaged one, an animation, or one of more pixels than Pillow allows.
        OSError: if the file cannot be read.
    """
    from PIL import Image

    if isinstance(image, Tensor):
        if image.dim() not in (2, 3):
            raise ValueError(
                f"a tensor image must be [C, H, W] or [H, W], got {list(image.shape)}; pass a list of images"
            )
        if image.dim() == 3 and image.shape[0] not in (1, 3, 4):
            raise ValueError(
                f"a tensor image must be [C, H, W] of 1, 3 or 4 channels, got {list(image.shape)}; permute it, or pass "
                "an array [H, W, C]"
            )
        array = image.detach().cpu()
        array = array.float() if array.dtype in (torch.float16, torch.bfloat16) else array
        return _from_array((array.permute(1, 2, 0) if array.dim() == 3 else array).numpy())
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_pil(image, "the PIL image")
    if isinstance(image, bytes):
        return _decode(io.BytesIO(image), "the bytes", image[:8])
    if not isinstance(image, str | os.PathLike):
        raise ValueError(
            f"an image must be a path, bytes, a PIL image, an array or a tensor, got {type(image).__name__}"
        )
    path = os.fspath(image)
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; pass its files")
    with open(path, "rb") as file:
        start = file.read(8)
        file.seek(0)
        return _decode(file, path, start)


def _decode(file: Any, name: str, start: bytes) -> Array:
    from PIL import Image

    wanted = "wanted JPEG, PNG, WebP, TIFF, BMP or AVIF"
    if not start:
        raise ValueError(f"{name}: empty, no bytes; {wanted}")
    if start.startswith(b"GIF8"):
        raise ValueError(f"{name}: a GIF, which is often an animation; {wanted}: save one frame as PNG")
    try:
        opened = _open(file, name)
    except Exception as error:
        raise _damaged(name, error) from error
    if opened is None:
        raise ValueError(f"{name}: not an image that can be read, it begins with {start!r}; {wanted}")
    with opened:
        most = Image.MAX_IMAGE_PIXELS
        if most is not None and opened.width * opened.height > most:
            raise ValueError(
                f"{name}: {opened.width} x {opened.height} pixels are more than {most}, and may be a decompression "
                "bomb; if the picture is really so large, raise PIL.Image.MAX_IMAGE_PIXELS"
            )
        return _from_pil(opened, name)


def _open(file: Any, name: str) -> Image.Image | None:
    """As Image.open, which warns above MAX_IMAGE_PIXELS, and refuses only what is twice as large.

    Warnings cannot be caught in threads without changing those of all the others.
    """
    from PIL import Image

    Image.init()
    start = file.read(16)
    for format in FORMATS:
        if format in Image.OPEN:
            factory, accept = Image.OPEN[format]
            if accept is None or accept(start) is True:
                file.seek(0)
                return factory(file, name)
    return None


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name}: a damaged image ({error})")


def _from_pil(image: Image.Image, name: str) -> Array:
    from PIL import ImageOps

    wide = ("I;16", "I;16L", "I;16B", "I;16N", "I")
    try:  # whatever a decoder raises: it may be anything
        frames = getattr(image, "n_frames", 1)
        if frames == 1 or image.format == "MPO":  # a JPEG of a phone with two lenses: the first picture counts
            frames = 1
            image = ImageOps.exif_transpose(image)
            if image.mode not in ("RGB", "F", *wide):
                image = image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")
            array = np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(name, error) from error
    if frames != 1:
        raise ValueError(f"{name}: {frames} pictures in one file; save the one that you want by itself")
    if image.mode in wide:
        # convert("RGB") would clip everything above 255.
        if array.min() < 0 or array.max() > 65535:
            raise ValueError(
                f"{name}: 32-bit values from {array.min()} to {array.max()}; wanted 8 or 16 bits per channel"
            )
        return _from_array(array.astype(np.uint16))
    return _from_array(array) if image.mode == "F" else array


def _from_array(array: Array) -> Array:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"an image must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (a tensor [C, H, W]), got {list(array.shape)}"
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32, copy=False)
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # also for NaN
            raise ValueError(
                f"a floating point image must be in [0, 1], got values from {low} to {high}; divide by 255, say"
            )
    elif array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"an image must be uint8, uint16 or floating point, got {array.dtype}")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])  # flipped arrays have strides that torch refuses


# --- resizing ---


def _resize_antialiased(image: Array, height: int, width: int, method: str) -> Array:
    """Pillow's resize: in uint8, as transformers does it; other types channel by channel in float32."""
    from PIL import Image

    resample = Image.Resampling.BILINEAR if method == "bilinear" else Image.Resampling.BICUBIC
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).resize((width, height), resample))
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)) for c in range(3)]
    resized = np.stack([np.asarray(channel.resize((width, height), resample)) for channel in channels], axis=2)
    return resized.clip(0, 1 if image.dtype.kind == "f" else np.iinfo(image.dtype).max)  # as in uint8


# --- the processor ---


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """From RGB images to the network's input.

    Attributes:
        size: (height, width) that the network's input aims at.
        resize: How an image of another shape is brought there. "minimal": keep its aspect ratio and change it as little
            as possible, by that side whose factor is nearer to one (isl-org/DPT); "lower_bound": no side smaller than
            `size`; "upper_bound": no side larger; "exact": `size` whatever the aspect ratio.
        multiple_of: Both sides are rounded to a multiple of this, halves to the even one.
        interpolation: "cubic": OpenCV's INTER_CUBIC, no antialiasing (isl-org/DPT); "bilinear_antialiased" and
            "cubic_antialiased": Pillow's, on uint8 (transformers).
        mean: Of each channel, subtracted from RGB in [0, 1].
        std: Of each channel, a divisor then.
    """

    size: tuple[int, int] = (384, 384)
    resize: str = "minimal"
    multiple_of: int = 32
    interpolation: str = "cubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int | np.integer) else self.size
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if not is_size(size):
            raise ValueError(f"ImageProcessor: size must be (height, width) in pixels, got {self.size!r}")
        object.__setattr__(self, "size", tuple(map(int, size)))
        for name, options in _OPTIONS.items():
            if getattr(self, name) not in options:
                raise ValueError(
                    f"ImageProcessor: {name} must be one of {', '.join(options)}, got {getattr(self, name)!r}"
                )
        if not is_count(self.multiple_of):
            raise ValueError(f"ImageProcessor: multiple_of must be a positive integer, got {self.multiple_of!r}")
        object.__setattr__(self, "multiple_of", int(self.multiple_of))
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ValueError(
                f"ImageProcessor: mean and std must be three numbers, std positive, got {self.mean}, {self.std}"
            )

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the network's input for an image of this height and width.

        Raises:
            ValueError: if the image is so narrow that nothing would be left of a side.
        """
        scales = (self.size[0] / height, self.size[1] / width)
        if self.resize == "minimal":
            # A tie goes to the height, as in isl-org/DPT dpt/transforms.py.
            scales = (scales[1],) * 2 if abs(1 - scales[1]) < abs(1 - scales[0]) else (scales[0],) * 2
        elif self.resize == "lower_bound":
            scales = (max(scales),) * 2
        elif self.resize == "upper_bound":
            scales = (min(scales),) * 2
        sides = []
        for scale, side, wanted in zip(scales, (height, width), self.size, strict=True):
            exact = scale * side / self.multiple_of
            new = round(exact) * self.multiple_of
            if self.resize == "lower_bound" and new < wanted:
                new = math.ceil(exact) * self.multiple_of
            elif self.resize == "upper_bound" and new > wanted:
                new = math.floor(exact) * self.multiple_of
            sides.append(new)
        if min(sides) == 0:
            if self.resize == "exact":
                raise ValueError(
                    f"the size {self.size[1]} x {self.size[0]} is too small: the next multiple of {self.multiple_of} "
                    f"is {sides[1]} x {sides[0]}; use at least {self.multiple_of} x {self.multiple_of}"
                )
            raise ValueError(
                f"an image of {width} x {height} pixels is too narrow: resize={self.resize!r} to {self.size[1]} x "
                f"{self.size[0]} would leave {sides[1]} x {sides[0]}; crop it, use a larger size, or resize='exact'"
            )
        return sides[0], sides[1]

    def __call__(self, image: ImageLike) -> Tensor:
        """Prepare an image (see `load_image`) for the network.

        Returns:
            [3, h, w], float32, with (h, w) = `network_size(H, W)`.
        """
        array = load_image(image)
        height, width = self.network_size(*array.shape[:2])
        if self.interpolation == "cubic":
            x = torch.ops.dpt.resize_cubic(torch.tensor(array), height, width)
        else:
            method = self.interpolation.removesuffix("_antialiased")
            x = torch.from_numpy(_resize_antialiased(array, height, width, method).astype(np.float64))
        full = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
        return self.normalize(x / full).permute(2, 0, 1).float().contiguous()

    def normalize(self, images: Tensor) -> Tensor:
        """RGB in [0, 1], in the last dimension: the mean taken off, divided by the deviation."""
        mean, std = (torch.tensor(values, dtype=images.dtype, device=images.device) for values in (self.mean, self.std))
        return (images - mean) / std

    # --- files ---

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """The settings in a checkpoint folder: of preprocessor_config.json, ours or transformers'.

        Without that file: those of isl-org/DPT, the defaults.

        Raises:
            ValueError: if the file holds something else.
        """
        path = Path(folder) / "preprocessor_config.json"
        if not path.exists():
            return cls()
        try:
            values = json.loads(path.read_text())
            if not isinstance(values, dict):
                raise ValueError("not an object")
            return cls(**(values["torchdpt"] if "torchdpt" in values else _from_transformers(values)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: not settings of an image processor: {error}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write preprocessor_config.json. transformers reads it, too, but always resizes with antialiasing."""
        values = {
            "image_processor_type": "DPTImageProcessor",
            "do_resize": True,
            "size": {"height": self.size[0], "width": self.size[1]},
            "keep_aspect_ratio": self.resize != "exact",
            "ensure_multiple_of": self.multiple_of,
            "resample": 2 if self.interpolation == "bilinear_antialiased" else 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": self.mean,
            "image_std": self.std,
            "torchdpt": dataclasses.asdict(self),
        }
        write_atomically(Path(folder) / "preprocessor_config.json", f"{json.dumps(values, indent=2)}\n".encode())


_OPTIONS = {
    "resize": ("minimal", "lower_bound", "upper_bound", "exact"),
    "interpolation": ("cubic", "bilinear_antialiased", "cubic_antialiased"),
}


def _from_transformers(values: dict[str, Any]) -> dict[str, Any]:
    size = values.get("size", 384)  # {"height", "width"}, or one number in old files
    resamplings = {2: "bilinear_antialiased", 3: "cubic_antialiased"}
    resample = values.get("resample", 3)
    if resample not in resamplings:
        raise ValueError(f"resample must be 2 (bilinear) or 3 (bicubic), got {resample!r}")
    if not values.get("do_rescale", True) or not values.get("do_resize", True) or values.get("do_pad"):
        raise ValueError("do_rescale and do_resize must be true and do_pad false: predict always does the former")
    if abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-4:
        raise ValueError(f"rescale_factor must be 1 / 255, got {values['rescale_factor']!r}")
    normalize = values.get("do_normalize", True)
    return {
        "size": (size["height"], size["width"]) if isinstance(size, dict) else (size, size),
        "resize": "minimal" if values.get("keep_aspect_ratio", False) else "exact",
        "multiple_of": values.get("ensure_multiple_of", 1),
        "interpolation": resamplings[resample],
        "mean": values.get("image_mean", (0.5, 0.5, 0.5)) if normalize else (0.0, 0.0, 0.0),
        "std": values.get("image_std", (0.5, 0.5, 0.5)) if normalize else (1.0, 1.0, 1.0),
    }
