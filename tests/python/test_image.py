"""From files to the network's input: decoding, sizes, resizing."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

from torchdpt import DPTConfig, DPTModel, ImageProcessor, load_image
from torchdpt.model import published_processor

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # no symmetry


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


# --- decoding ---


# The picture that is stored so that a viewer, turning it as the tag says, shows RGB (Exif 2.3, 4.6.4 A).
STORED = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: RGB.transpose(1, 0, 2)[::-1],
    7: RGB.transpose(1, 0, 2)[::-1, ::-1],
    8: RGB.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = png(Image.fromarray(np.ascontiguousarray(STORED[orientation])), exif=exif)
    assert np.array_equal(load_image(data), RGB)


def test_exif_orientation_of_a_jpeg_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth = np.stack(np.broadcast_arrays(np.arange(48)[:, None] * 4, np.arange(64) * 3, 99), 2).astype(np.uint8)
    file = io.BytesIO()
    turned = np.ascontiguousarray(smooth.transpose(1, 0, 2)[::-1])
    Image.fromarray(turned).save(file, "JPEG", exif=exif, quality=95)
    got = load_image(file.getvalue())
    assert got.shape == smooth.shape
    assert np.abs(got.astype(int) - smooth).max() <= 12  # lossy


def test_files_of_other_modes_are_the_photograph() -> None:
    """Files, as a camera or a drawing program leaves them; by hand, from what is stored."""
    gray, alpha = np.full((8, 8), 90, np.uint8), np.full((8, 8), 3, np.uint8)
    file = png(Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)]))
    assert np.array_equal(load_image(file), np.full((8, 8, 3), 90))
    indices = RNG.integers(0, 3, (8, 8), dtype=np.uint8)
    palette = np.array([[255, 0, 10], [20, 30, 40], [1, 2, 3]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putdata(indices.ravel())
    picture.putpalette(palette.tobytes())
    assert np.array_equal(load_image(png(picture)), palette[indices])
    assert np.array_equal(load_image(png(picture, transparency=1)), palette[indices])
    inks = [Image.new("L", (16, 16), ink) for ink in (200, 100, 0, 51)]
    cmyk = io.BytesIO()
    Image.merge("CMYK", inks).save(cmyk, "JPEG", quality=95)
    want = np.array([255 - 200, 255 - 100, 255]) * (255 - 51) / 255
    assert np.abs(load_image(cmyk.getvalue()) - want).max() <= 4  # lossy


def test_sixteen_bit_gray_keeps_its_levels(tmp_path: Path) -> None:
    levels = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(levels).save(tmp_path / "gray.png")
    Image.fromarray(levels.astype(">u2")).save(tmp_path / "gray.tif")
    for name in ("gray.png", "gray.tif"):
        image = load_image(tmp_path / name)
        assert image.dtype == np.uint16
        assert np.array_equal(image, np.stack([levels] * 3, 2))


def test_sixteen_bit_gray_is_the_same_photograph_as_eight_bit() -> None:
    gray = RNG.integers(0, 256, (64, 96), dtype=np.uint8)
    processor = ImageProcessor(64)
    eight = processor(Image.fromarray(gray))
    sixteen = processor(Image.fromarray(gray.astype(np.uint16) * 257))
    assert (eight - sixteen).abs().max() <= 1e-6


def modes() -> dict[str, tuple[Image.Image, np.ndarray]]:
    color = Image.fromarray(RGB)
    gray, alpha = Image.fromarray(RGB[:, :, 0]), Image.fromarray(RGB[:, :, 1])
    palette = color.quantize(8)
    colors = np.asarray(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)].astype(np.uint8)
    transparent = palette.copy()
    transparent.info["transparency"] = 0
    bits = Image.fromarray(RGB[:, :, 0] > 127)
    cyan = Image.merge("CMYK", [*color.split(), gray])
    key = 255 - RGB[:, :, :1].astype(int)
    return {
        "RGB": (color, RGB),
        "L": (gray, np.stack([RGB[:, :, 0]] * 3, 2)),
        "LA": (Image.merge("LA", [gray, alpha]), np.stack([RGB[:, :, 0]] * 3, 2)),
        "RGBA": (Image.merge("RGBA", [*color.split(), alpha]), RGB),
        "P": (palette, colors),
        "P with a transparent color": (transparent, colors),
        "1": (bits, np.stack([(RGB[:, :, 0] > 127) * np.uint8(255)] * 3, 2)),
        # (255 - ink) * (255 - black) / 255
        "CMYK": (cyan, (255 - RGB.astype(int)) * key / 255),
        "YCbCr": (color.convert("YCbCr"), RGB),
    }


@pytest.mark.parametrize("mode", modes())
def test_modes(mode: str) -> None:
    image, want = modes()[mode]
    got = load_image(image)
    assert got.shape == (5, 7, 3)
    assert got.dtype == np.uint8
    # CMYK and YCbCr round, the latter twice, and its matrix has entries up to 1.8.
    assert np.abs(got - np.asarray(want, dtype=float)).max() <= {"CMYK": 1, "YCbCr": 4}.get(mode, 0)


@pytest.mark.parametrize(("name", "tolerance"), [("bmp", 0), ("tif", 0), ("webp", 0), ("jpg", 12), ("avif", 12)])
def test_formats(tmp_path: Path, name: str, tolerance: int) -> None:
    smooth = np.stack(np.broadcast_arrays(np.arange(48)[:, None] * 4, np.arange(64) * 3, 99), 2).astype(np.uint8)
    path = tmp_path / f"image.{name}"
    Image.fromarray(smooth).save(path, **({"lossless": True} if name == "webp" else {"quality": 95}))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        assert np.abs(load_image(source).astype(int) - smooth).max() <= tolerance


def test_arrays_and_tensors() -> None:
    assert load_image(RGB) is not None
    want = RGB / 255
    chw = torch.from_numpy(RGB).permute(2, 0, 1)
    same = [RGB, np.dstack([RGB, RGB[:, :, 0]]), chw, RGB[::-1][::-1]]
    assert all(np.array_equal(load_image(image), RGB) for image in same)
    assert np.array_equal(load_image(want), want)
    assert load_image(want).dtype == np.float64
    assert load_image(chw.float() / 255).dtype == np.float32
    assert load_image((chw / 255).bfloat16()).dtype == np.float32
    gray = load_image(RGB[:, :, 0])
    assert np.array_equal(gray, load_image(chw[0]))
    assert gray.shape == (5, 7, 3)


# --- what is refused ---


def bomb() -> bytes:
    """A PNG that says 50000 x 50000 in its header."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50000, 50000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def truncated() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()[:1000]


def animation(format: str) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green")]
    frames[0].save(file, format, save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "the bytes: empty, no bytes; wanted JPEG, PNG"),
        (b"just text", "the bytes: not an image that can be read, it begins with b'just tex'; wanted JPEG"),
        (truncated(), "the bytes: a damaged image"),
        (
            bomb(),
            "the bytes: 50000 x 50000 pixels are more than .*decompression bomb.*raise PIL.Image.MAX_IMAGE_PIXELS",
        ),
        (animation("GIF"), "the bytes: a GIF, which is often an animation; wanted .* save one frame as PNG"),
        (animation("PNG"), "the bytes: 2 pictures in one file"),
        (pickle.dumps({"a": 1}), "the bytes: not an image"),
        (np.zeros((4, 4, 2), np.uint8), r"an image must be \[H, W\].* got \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"an image must be .* got \[0, 4, 3\]"),
        (np.zeros((4, 4, 3), np.int64), "must be uint8, uint16 or floating point, got int64"),
        (np.full((4, 4, 3), 255.0), r"must be in \[0, 1\], got values from 255.0 to 255.0; divide by 255"),
        (torch.full((3, 4, 4), torch.nan), r"must be in \[0, 1\], got values from nan to nan"),
        (torch.zeros(6, 5, 3), r"must be \[C, H, W\] of 1, 3 or 4 channels, got \[6, 5, 3\]; permute it"),
        (torch.zeros(1, 3, 4, 4), r"a tensor image must be \[C, H, W\] or \[H, W\], got \[1, 3, 4, 4\]; pass a list"),
        (17, "must be a path, bytes, a PIL image, an array or a tensor, got int"),
        (Image.fromarray(np.full((2, 2), 70000, np.int32)), "32-bit values from 70000 to 70000"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_bad_images_are_refused(image: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image(image)


def test_limit_is_that_of_pillow_without_its_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(Image.fromarray(RGB))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
        assert np.array_equal(load_image(data), RGB)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 34)
        with pytest.raises(ValueError, match=r"the bytes: 7 x 5 pixels are more than 34"):
            load_image(data)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert np.array_equal(load_image(data), RGB)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "bmp", "avif"])
def test_damaged_files_are_named(format: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, format)
    whole = file.getvalue()
    path = tmp_path / "photo"
    rng = np.random.default_rng(1)
    messages = []
    for trial in range(150):
        data = bytearray(whole[: rng.integers(20, len(whole))] if trial % 3 == 0 else whole)
        for at in rng.integers(4, min(len(data), 200), 4):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            load_image(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert [message for message in messages if not message.startswith(f"{path}: ")] == []


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, KeyError, struct.error, SyntaxError])
def test_any_exception_of_a_decoder_is_a_damaged_image(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error("decoder")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(ValueError, match="the bytes: a damaged image"):
        load_image(png(Image.fromarray(RGB)))


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder; pass its files"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        load_image(tmp_path / "missing.jpg")
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(ValueError, match=r"text.png: not an image that can be read"):
        load_image(tmp_path / "text.png")


def test_formats_that_are_not_listed_are_not_decoded(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "image.ppm")
    with pytest.raises(ValueError, match="not an image that can be read"):
        load_image(tmp_path / "image.ppm")


# --- sizes ---

# (width, height) of the network's input by isl-org/DPT dpt/transforms.py at 384 and multiples of 32, worked out by
# hand; None: a side of 0 pixels.
SIZES = {
    (640, 480): {"minimal": (512, 384), "lower_bound": (512, 384), "upper_bound": (384, 288)},
    (500, 375): {"minimal": (512, 384), "lower_bound": (512, 384), "upper_bound": (384, 288)},
    (600, 400): {"minimal": (576, 384), "lower_bound": (576, 384), "upper_bound": (384, 256)},
    (1242, 375): {"minimal": (1280, 384), "lower_bound": (1280, 384), "upper_bound": (384, 128)},
    (375, 1242): {"minimal": (384, 1280), "lower_bound": (384, 1280), "upper_bound": (128, 384)},
    (33, 4000): {"minimal": None, "lower_bound": (384, 46560), "upper_bound": None},
    (1, 5000): {"minimal": None, "upper_bound": None},
    (528, 384): {"minimal": (512, 384)},  # 16.5 * 32: halves to the even one
    (1, 1): {"minimal": (384, 384)},
}


@pytest.mark.parametrize(
    ("image", "resize", "want"), [(image, *case) for image, cases in SIZES.items() for case in cases.items()]
)
def test_network_sizes(image: tuple[int, int], resize: str, want: tuple[int, int] | None) -> None:
    processor, (width, height) = ImageProcessor(resize=resize), image
    if want is None:
        with pytest.raises(
            ValueError, match=f"{width} x {height} pixels is too narrow: resize='{resize}' to 384 x 384"
        ):
            processor.network_size(height, width)
    else:
        assert processor.network_size(height, width) == want[::-1]


def test_exact_size_is_the_size() -> None:
    assert ImageProcessor((96, 160), resize="exact").network_size(480, 640) == (96, 160)


HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# (height, width) aimed at, how, mean and deviation, and (height, width) of the input for a photograph of 640 x 480:
# isl-org/DPT run_monodepth.py and run_segmentation.py, isl-org/MiDaS run.py of v2.1.
PUBLISHED = {
    "dpt_base": ((384, 384), "minimal", HALF, (384, 512)),
    "dpt_deit_base_distilled": ((384, 384), "minimal", HALF, (384, 512)),
    "dpt_large": ((384, 384), "minimal", HALF, (384, 512)),
    "dpt_large_joint": ((384, 384), "minimal", HALF, (384, 512)),
    "dpt_hybrid": ((384, 384), "minimal", HALF, (384, 512)),
    "dpt_hybrid_nyu": ((480, 640), "minimal", HALF, (480, 640)),
    "dpt_hybrid_kitti": ((352, 1216), "minimal", HALF, (352, 480)),
    "dpt_hybrid_ade": ((480, 480), "minimal", HALF, (480, 640)),
    "dpt_hybrid_pascal": ((480, 480), "minimal", HALF, (480, 640)),
    "dpt_large_ade": ((480, 480), "minimal", HALF, (480, 640)),
    "midas_resnet50": ((384, 384), "upper_bound", IMAGENET, (288, 384)),
    "midas_resnext101_wsl": ((384, 384), "upper_bound", IMAGENET, (288, 384)),
}


@pytest.mark.parametrize(("preset", "want"), PUBLISHED.items())
def test_published_networks_have_their_processor(preset: str, want: tuple) -> None:
    size, resize, (mean, std), network_size = want
    processor = published_processor(DPTConfig.preset(preset))
    assert processor == ImageProcessor(size, resize, 32, "cubic", mean, std)
    assert processor == DPTModel(preset, device="meta").processor
    assert processor.network_size(480, 640) == network_size


def test_metric_network_of_other_constants_has_its_native_size() -> None:
    config = DPTConfig.preset("dpt_hybrid_nyu").replace(depth_shift=0.2)
    assert published_processor(config) == ImageProcessor((384, 384))


@pytest.mark.parametrize("multiple", [1, 14, 32])
def test_network_sizes_equal_those_of_transformers(multiple: int) -> None:
    peer = DPTImageProcessorPil(size={"height": 98, "width": 98}, keep_aspect_ratio=True, ensure_multiple_of=multiple)
    processor = ImageProcessor(98, multiple_of=multiple)
    for height, width in RNG.integers(60, 300, (20, 2)).tolist():
        values = peer(np.zeros((height, width, 3), np.uint8), return_tensors="np").pixel_values
        assert processor.network_size(height, width) == values.shape[2:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (384,)}, r"size must be \(height, width\) in pixels, got \(384,\)"),
        ({"size": 0}, "size must be"),
        ({"resize": "stretch"}, "resize must be one of minimal, lower_bound, upper_bound, exact, got 'stretch'"),
        ({"interpolation": "cubed"}, "interpolation must be one of cubic, .* got 'cubed'"),
        ({"multiple_of": 0}, "multiple_of must be a positive integer, got 0"),
        ({"std": (1, 1, 0)}, "std positive, got"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageProcessor(**options)


# --- resizing ---

RESIZES = [
    ((480, 640), (384, 512)),
    ((375, 500), (384, 512)),
    ((400, 600), (384, 576)),
    ((100, 75), (512, 384)),
    ((1000, 700), (64, 32)),
    ((33, 57), (64, 96)),
    ((7, 5), (3, 11)),
    ((1, 1), (32, 32)),
    ((64, 96), (64, 96)),
    ((3, 200), (96, 32)),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize(("size", "new"), RESIZES)
def test_cubic_equals_opencv(size: tuple[int, int], new: tuple[int, int], dtype: type) -> None:
    full = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    image = (RNG.random((*size, 3)) * full).astype(dtype)
    want = cv2.resize(image / np.float64(full), new[::-1], interpolation=cv2.INTER_CUBIC)
    got = torch.ops.dpt.resize_cubic(torch.tensor(image), *new).numpy() / full
    assert np.abs(got - want).max() <= 1e-6


def test_cubic_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match=r"must be \[H, W, C\] and not empty, got \[4, 4\]"):
        torch.ops.dpt.resize_cubic(torch.zeros(4, 4), 2, 2)
    with pytest.raises(ValueError, match="height and width must be positive, got 0 x 2"):
        torch.ops.dpt.resize_cubic(torch.zeros(4, 4, 3), 0, 2)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (200, 133)])
def test_normalised_as_isl_org_does(height: int, width: int) -> None:
    image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = ImageProcessor(64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    new = processor.network_size(height, width)
    want = cv2.resize(image / 255.0, new[::-1], interpolation=cv2.INTER_CUBIC)
    want = ((want - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)
    got = processor(image)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert np.abs(got.numpy() - want).max() <= 1e-5 / 0.224


@pytest.mark.parametrize("settings", [{"resample": 2}, {"resample": 3}, {"resample": 2, "keep_aspect_ratio": True}])
def test_antialiased_input_equals_that_of_transformers(tmp_path: Path, settings: dict[str, object]) -> None:
    peer = DPTImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3, ensure_multiple_of=16, **settings
    )
    peer.save_pretrained(tmp_path)
    processor = ImageProcessor.from_folder(tmp_path)
    for height, width in ((200, 133), (48, 64)):
        image = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
        want = peer(image, return_tensors="pt").pixel_values[0]
        assert (processor(image) - want).abs().max() <= 1e-6
        # A photograph in 16 bits: Pillow rounds uint8 to 1/255 after each of its two passes, and clips what overshoots.
        image = RNG.integers(64, 192, (height, width, 3), dtype=np.uint8)
        want = peer(image, return_tensors="pt").pixel_values[0]
        assert (processor(image.astype(np.uint16) * 257) - want).abs().max() <= 2 * 1.2 / 255


# --- files ---


def test_settings_travel(tmp_path: Path) -> None:
    processor = ImageProcessor((96, 128), "upper_bound", 16, "bilinear_antialiased", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    processor.save(tmp_path)
    assert ImageProcessor.from_folder(tmp_path) == processor
    peer = DPTImageProcessorPil.from_pretrained(tmp_path)
    assert (peer.size["height"], peer.size["width"], peer.ensure_multiple_of, peer.resample) == (96, 128, 16, 2)
    assert os.listdir(tmp_path) == ["preprocessor_config.json"]


def test_settings_of_the_originals_are_the_default(tmp_path: Path) -> None:
    assert ImageProcessor.from_folder(tmp_path) == ImageProcessor(384, "minimal", 32, "cubic", (0.5,) * 3, (0.5,) * 3)


def test_published_settings_are_read(tmp_path: Path) -> None:
    # Intel/dpt-large: squashed to 384 x 384, bilinear with antialiasing.
    (tmp_path / "preprocessor_config.json").write_text(
        '{"do_normalize": true, "do_resize": true, "ensure_multiple_of": 1, "feature_extractor_type": '
        '"DPTFeatureExtractor", "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "keep_aspect_ratio": false'
        ', "resample": 2, "size": 384}'
    )
    want = ImageProcessor(384, "exact", 1, "bilinear_antialiased")
    assert ImageProcessor.from_folder(tmp_path) == want


@pytest.mark.parametrize("text", ["", "[]", '{"size": {}}', '{"resample": 1}', '{"torchdpt": {"sise": 3}}'])
def test_bad_settings_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"preprocessor_config.json: not settings of an image processor"):
        ImageProcessor.from_folder(tmp_path)


@pytest.mark.parametrize(
    "setting", ['"do_rescale": false', '"do_resize": false', '"do_pad": true', '"rescale_factor": 1.0']
)
def test_settings_that_cannot_be_honoured_are_refused(setting: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(f"{{{setting}}}")
    with pytest.raises(ValueError, match=f"preprocessor_config.json: not settings of .*{setting.split(chr(34))[1]}"):
        ImageProcessor.from_folder(tmp_path)


def test_exact_size_that_is_too_small_is_named() -> None:
    with pytest.raises(ValueError, match=r"the size 4 x 4 is too small: .* use at least 32 x 32"):
        ImageProcessor(4, "exact").network_size(480, 640)
