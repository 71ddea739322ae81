"""Prediction: its files."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from predictions import RNG, joint, metric, relative, segmented

from torchdpt import Prediction
from torchdpt.classes import ADE20K

pytestmark = pytest.mark.usefixtures("no_numpy_warnings")


def test_png16_holds_depth_and_its_meaning(tmp_path: Path) -> None:
    prediction = metric()
    prediction.save(tmp_path / "depth.png")
    with Image.open(tmp_path / "depth.png") as image:
        levels = np.asarray(image)
        meaning = json.loads(image.text["torchdpt"])
    assert levels.dtype == np.uint16
    assert ((levels == 0) == ~prediction.valid).all()
    assert (levels[prediction.valid].min(), levels.max()) == (1, 65535)
    assert (meaning["kind"], meaning["unit"], meaning["invalid"]) == ("metric_depth", "m", 0)
    depth = meaning["offset"] + meaning["scale"] * levels[prediction.valid].astype(np.float64)
    assert np.abs(depth - prediction.depth[prediction.valid]).max() <= 0.51 * meaning["scale"]


@pytest.mark.parametrize("format", ["png16", "npz", "npy", "pfm"])
@pytest.mark.parametrize("make", [relative, metric])
def test_load_reads_what_save_wrote(make, format: str, tmp_path: Path) -> None:
    prediction = make()
    path = prediction.save(tmp_path / "depth", format=format)  # no ending: the first bytes say what it is
    back = Prediction.load(path, kind=prediction.kind if format in ("npy", "pfm") else None)
    assert (back.kind, back.unit) == (prediction.kind, prediction.unit)
    assert np.array_equal(back.valid, prediction.valid)
    got, want = back.depth[back.valid], prediction.depth[prediction.valid]
    assert np.abs(got - want).max() <= (0.51 * np.ptp(want) / 65534 + 1e-6 if format == "png16" else 0)


def test_load_takes_the_kind_where_the_file_has_none(tmp_path: Path) -> None:
    for ending in ("npy", "pfm"):
        path = metric().save(tmp_path / f"depth.{ending}")
        assert (Prediction.load(path).kind, Prediction.load(path).unit) == ("relative_inverse_depth", None)
        with pytest.raises(ValueError, match=r"kind must be .* got 'depth'"):
            Prediction.load(path, kind="depth")
    path = metric().save(tmp_path / "depth.npz")
    with pytest.raises(ValueError, match="holds metric_depth, got kind='relative_inverse_depth'; leave kind out"):
        Prediction.load(path, kind="relative_inverse_depth")


def test_load_reads_pfm_of_others(tmp_path: Path) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    for header, order in ((b"Pf\n3 2\n-1.000000\n", "<"), (b"Pf 3 2 1.0\n", ">")):
        (tmp_path / "depth.pfm").write_bytes(header + struct.pack(f"{order}6f", *values))
        assert Prediction.load(tmp_path / "depth.pfm").depth.tolist() == [[4, 5, 6], [1, 2, 3]]


def test_png16_keeps_the_nearest_metric_pixel_valid(tmp_path: Path) -> None:
    # offset + scale is 0 in float64: 1e-30 is lost beside a step of 1e-4.
    prediction = Prediction(np.array([[1e-30, 10, np.nan]], np.float32), "metric_depth", "m")
    back = Prediction.load(prediction.save(tmp_path / "depth.png"))
    assert back.valid.tolist() == [[True, True, False]]


def test_npy_and_npz(tmp_path: Path) -> None:
    prediction = metric()
    prediction.save(tmp_path / "depth.npy")
    assert np.array_equal(np.load(tmp_path / "depth.npy"), prediction.depth, equal_nan=True)
    prediction.save(tmp_path / "depth.npz")
    with np.load(tmp_path / "depth.npz") as file:
        assert np.array_equal(file["depth"], prediction.depth, equal_nan=True)
        assert np.array_equal(file["valid"], prediction.valid)
        assert (str(file["kind"]), str(file["unit"])) == ("metric_depth", "m")


def test_pfm_has_the_bottom_row_first(tmp_path: Path) -> None:
    prediction = relative()
    data = prediction.save(tmp_path / "depth.pfm").read_bytes()
    header = b"Pf\n7 5\n-1.0\n"
    assert data.startswith(header)
    values = struct.unpack("<35f", data[len(header) :])
    assert np.array_equal(np.reshape(values, (5, 7)), prediction.depth[::-1])


@pytest.mark.parametrize("format", ["labels", "npz"])
@pytest.mark.parametrize("num_classes", [1, 2, 150, 255, 256, 257, 1000])
def test_load_reads_labels_and_classes(format: str, num_classes: int, tmp_path: Path) -> None:
    prediction = segmented(num_classes)
    back = Prediction.load(prediction.save(tmp_path / "labels", format=format))
    assert back.depth is None
    assert back.labels.dtype == np.int64
    assert np.array_equal(back.labels, prediction.labels)
    assert back.classes == prediction.classes
    with pytest.raises(ValueError, match="holds no depth, got kind='metric_depth'; leave kind out"):
        Prediction.load(tmp_path / "labels", kind="metric_depth")


def test_npz_holds_both(tmp_path: Path) -> None:
    prediction = joint()
    back = Prediction.load(prediction.save(tmp_path / "both.npz"))
    assert (back.kind, back.unit, back.classes) == ("metric_depth", "m", ADE20K)
    assert np.array_equal(back.depth, prediction.depth, equal_nan=True)
    assert np.array_equal(back.labels, prediction.labels)
    with np.load(tmp_path / "both.npz") as file:
        assert set(file) == {"depth", "valid", "kind", "unit", "labels", "classes", "class_names", "palette"}
        assert file["class_names"][0] == "wall"
    assert Prediction.load(prediction.save(tmp_path / "depth.png")).labels is None
    assert Prediction.load(prediction.save(tmp_path / "labels.png", format="labels")).depth is None


def test_label_file_is_a_png_with_a_palette(tmp_path: Path) -> None:
    prediction = segmented()
    prediction.save(tmp_path / "labels.png")  # the default of a .png without depth
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), prediction.labels)
        assert np.array_equal(np.asarray(image.convert("RGB")), prediction.label_colors())
        meaning = json.loads(image.text["torchdpt"])
    assert meaning == {**ADE20K.to_json(), "ignore": 255}
    segmented(257).save(tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as image:
        assert np.asarray(image).dtype == np.uint16
        assert json.loads(image.text["torchdpt"])["ignore"] is None


def test_overlay_file_is_the_picture(tmp_path: Path) -> None:
    prediction = segmented()
    prediction.save(tmp_path / "overlay.png", format="overlay")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "overlay.png")), prediction.overlay())


def test_label_files_that_others_changed_are_refused(tmp_path: Path) -> None:
    segmented().save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        text = PngImagePlugin.PngInfo()
        text.add_text("torchdpt", image.text["torchdpt"])
        image.convert("RGB").save(tmp_path / "rgb.png", pnginfo=text)
        image.remap_palette([*range(1, 256), 0]).save(tmp_path / "sorted.png", pnginfo=text)
        image.convert("L").save(tmp_path / "gray.png", pnginfo=text)
    for name, reason in (("rgb", "PNG of mode RGB"), ("gray", "PNG of mode L"), ("sorted", "the palette is not that")):
        with pytest.raises(ValueError, match=reason):
            Prediction.load(tmp_path / f"{name}.png")


@pytest.mark.parametrize(
    ("make", "name", "format", "message"),
    [
        (segmented, "x.png", "png16", "must be one of labels, npz, overlay, got 'png16', which needs depth"),
        (segmented, "x.png", "color", "got 'color', which needs depth"),
        (segmented, "x.npy", None, "must end in .png or .npz, got '.*x.npy'; depth is not here"),
        (segmented, "x.jpg", None, "must end in .png or .npz, got '.*x.jpg'"),
        (
            lambda: segmented(image=None),
            "x.png",
            "overlay",
            "one of labels, npz, got 'overlay', which needs labels and",
        ),
        (metric, "x.png", "labels", "one of png16, npy, npz, pfm, color, got 'labels', which needs labels"),
        (metric, "x.png", "overlay", "got 'overlay', which needs labels and image"),
    ],
)
def test_formats_of_what_is_not_there_are_refused(make, name: str, format: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make().save(tmp_path / name, format=format)
    assert not list(tmp_path.iterdir())


def test_color_file_is_the_picture(tmp_path: Path) -> None:
    prediction = relative()
    prediction.save(tmp_path / "depth.png", format="color", colormap="spectral")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "depth.png")), prediction.colorize("spectral"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("depth.jpg", {}, r"path must end in .png, .npy, .npz or .pfm, got '.*depth.jpg'"),
        ("depth.jpg", {"format": "color"}, r"path of format 'color' must end in .png, got '.*depth.jpg'"),
        ("depth.png", {"colormap": "turbo"}, r"colormap is for format=\"color\", a picture; got 'turbo' with"),
        ("depth.npy", {"format": "npz"}, r"path of format 'npz' must end in .npz, got '.*depth.npy'"),
        ("depth", {}, "path must end in"),
        ("depth.png", {"format": "exr"}, "format must be one of png16, npy, npz, pfm, color, got 'exr'"),
        ("depth.png", {"format": "color", "colormap": "jet"}, "colormap must be one of"),
        ("nowhere/depth.png", {}, r"there is no folder '.*nowhere'; create it first"),
    ],
)
def test_bad_paths_and_formats_are_refused(tmp_path: Path, name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        relative().save(tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["png16", "color", "npy", "npz", "pfm", "labels", "overlay"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch, format: str) -> None:
    path = tmp_path / "depth"
    path.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*depth'"):
        joint().save(path, format=format)
    assert [file.name for file in tmp_path.iterdir()] == ["depth"]
    assert path.read_text() == "old"


def test_failed_rename_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "cloud.ply"
    path.write_text("old")

    def full(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", source, None, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: .*cloud.ply'"):
        metric().point_cloud(fov=60).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["cloud.ply"]
    assert path.read_text() == "old"


def test_disk_that_fills_while_writing_leaves_nothing(tmp_path: Path) -> None:
    # The kernel refuses to go on after 1000 bytes, in the middle of the file.
    prediction = Prediction(RNG.random((99, 99), dtype=np.float32))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*depth.npy'"):
            prediction.save(tmp_path / "depth.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_pictures_hold_no_depth(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.bmp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    relative().save(tmp_path / "color.png", format="color")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path.name}: a picture, which holds no depth and no labels"):
            Prediction.load(path)


def test_other_files_are_not_loaded(tmp_path: Path) -> None:
    with Image.open(relative().save(tmp_path / "eight.png")) as image:  # its text kept, its levels not
        text = PngImagePlugin.PngInfo()
        text.add_text("torchdpt", image.text["torchdpt"])
    Image.new("L", (4, 4)).save(tmp_path / "eight.png", pnginfo=text)
    cut = relative().save(tmp_path / "cut.pfm")
    cut.write_bytes(cut.read_bytes()[:-1])
    (tmp_path / "header.pfm").write_bytes(b"Pf\n3\n")
    np.save(tmp_path / "double.npy", np.zeros((2, 2)))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.npz").write_text("text")
    np.savez(tmp_path / "objects.npz", depth=np.array([{}], dtype=object))
    for path in list(tmp_path.iterdir()):
        message = rf"{path.name}: not a PNG of depth or labels, NPZ, NPY or PFM file that Prediction.save wrote"
        with pytest.raises(ValueError, match=message):
            Prediction.load(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        Prediction.load(tmp_path / "missing.png")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        Prediction.load(tmp_path)
