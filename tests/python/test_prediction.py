"""Prediction: its files, pictures and points."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import resource
import struct
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from torchdpt import PointCloud, Prediction
from torchdpt.classes import ADE20K, Classes
from torchdpt.colormaps import apply_colormap

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_numpy_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a division by zero, say
        yield


def relative() -> Prediction:
    return Prediction(RNG.random((5, 7), dtype=np.float32) * 30 + 2)


def metric() -> Prediction:
    depth = RNG.random((5, 7), dtype=np.float32) * 9 + 1
    depth[1, 2], depth[3, 3], depth[0, 0] = np.nan, np.inf, 0
    return Prediction(depth, "metric_depth", "m", RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8))


PHOTOGRAPH = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def segmented(num_classes: int = 150, image: np.ndarray | None = PHOTOGRAPH) -> Prediction:
    labels = RNG.integers(0, num_classes, (5, 7))
    labels[0, 0] = num_classes - 1
    if num_classes < 256:
        labels[2, 3] = 255
    return Prediction(labels=labels, classes=Classes.default_for(num_classes), image=image)


def joint() -> Prediction:
    return dataclasses.replace(metric(), labels=segmented().labels, classes=ADE20K)


# Maps without contrast or without a valid pixel.
DEGENERATE = {
    "constant": np.full((3, 4), 2.5, np.float32),
    "zero": np.zeros((3, 4), np.float32),
    "nan": np.full((3, 4), np.nan, np.float32),
    "inf": np.full((3, 4), np.inf, np.float32),
    "one pixel": np.ones((1, 1), np.float32),
    "huge": np.array([[3e38, -3e38]], np.float32),
    "tiny": np.array([[1e-45, 0]], np.float32),
}


# --- what it is ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 2)),), r"must be a float32 array \[H, W\], got float64 \[2, 2\]; convert it"),
        ((np.zeros((1, 2, 2), np.float32),), r"got float32 \[1, 2, 2\]"),
        ((np.zeros((0, 2), np.float32),), r"got float32 \[0, 2\]"),
        (([[1.0]],), "got list"),
        (
            (np.zeros((2, 2), np.float32), "depth"),
            "kind must be 'relative_inverse_depth' or 'metric_depth', got 'depth'",
        ),
        ((np.zeros((2, 2), np.float32), "metric_depth"), "unit of metric_depth must be 'm', got None"),
        ((np.zeros((2, 2), np.float32), "relative_inverse_depth", "m"), "must be None, got 'm'"),
        (
            (np.zeros((2, 2), np.float32), "metric_depth", "m", np.zeros((2, 2, 3))),
            r"image must be a uint8 array \[H, W, 3\], RGB, got float64 \[2, 2, 3\]",
        ),
        ((np.zeros((2, 2), np.float32), "metric_depth", "m", np.zeros((2, 2), np.uint8)), r"got uint8 \[2, 2\]"),
        ((np.zeros((2, 2), np.float32), "metric_depth", "m", "photo.jpg"), "image must be .* got str"),
    ],
)
def test_bad_arguments_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prediction(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "must have depth, labels or both, got neither"),
        ({"image": PHOTOGRAPH}, "got neither"),
        ({"labels": np.zeros((2, 2), np.int64)}, r"labels need classes, .* got None; pass Classes.default_for"),
        ({"labels": np.zeros((2, 2), np.int64), "classes": ("wall",)}, r"labels need classes"),
        ({"depth": np.zeros((2, 2), np.float32), "classes": ADE20K}, "classes are those of labels, and there are none"),
        (
            {"labels": np.zeros((2, 2), np.uint8), "classes": ADE20K},
            r"int64 array \[H, W\], got uint8 \[2, 2\]; convert",
        ),
        ({"labels": np.zeros((2, 0), np.int64), "classes": ADE20K}, r"got int64 \[2, 0\]"),
        (
            {"labels": np.array([[150]]), "classes": ADE20K},
            "must be from 0 to 149, as there are classes, or 255, .* 150",
        ),
        ({"labels": np.array([[0, -1]]), "classes": ADE20K}, "got -1"),
        ({"labels": np.array([[300]]), "classes": Classes.numbered(300)}, "from 0 to 299"),
        (
            {"depth": np.zeros((2, 2), np.float32), "labels": np.zeros((2, 3), np.int64), "classes": ADE20K},
            r"labels must be \[2, 2\], as depth, got \[2, 3\]",
        ),
        (
            {"labels": np.zeros((2, 2), np.int64), "classes": ADE20K, "kind": "metric_depth", "unit": "m"},
            "kind and unit are those of depth, and there is none, got 'metric_depth', 'm'",
        ),
    ],
)
def test_bad_labels_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prediction(**fields)


def test_what_is_not_predicted_is_refused() -> None:
    only_labels, only_depth = segmented(), metric()
    assert (only_labels.depth, only_labels.kind, only_labels.unit) == (None, None, None)
    for ask in (lambda p: p.valid, Prediction.colorize, lambda p: p.point_cloud(fov=60)):
        with pytest.raises(ValueError, match="needs depth, and this prediction has labels alone"):
            ask(only_labels)
    for ask in (Prediction.label_colors, Prediction.overlay, Prediction.class_shares):
        with pytest.raises(ValueError, match="needs labels, and this prediction has depth alone"):
            ask(only_depth)


def test_class_shares_are_of_all_pixels_and_largest_first() -> None:
    labels = np.array([[2, 2, 2, 0], [0, 1, 255, 255]])
    prediction = Prediction(labels=labels, classes=Classes("three", ("a", "b", "c")))
    assert prediction.class_shares() == [("c", 3 / 8), ("a", 2 / 8), ("b", 1 / 8)]
    nothing = Prediction(labels=np.full((2, 2), 255), classes=ADE20K)
    assert nothing.class_shares() == []
    last = Prediction(labels=np.full((2, 2), 255), classes=Classes.numbered(256))  # there, 255 is a class
    assert last.class_shares() == [("class 255", 1.0)]


def test_depth_is_contiguous() -> None:
    depth = np.asfortranarray(RNG.random((4, 6), dtype=np.float32))
    prediction = Prediction(depth)
    assert prediction.depth.flags.c_contiguous
    assert np.array_equal(prediction.depth, depth)


def test_valid_pixels() -> None:
    assert relative().valid.all()
    want = np.ones((5, 7), bool)
    want[1, 2] = want[3, 3] = want[0, 0] = False
    assert np.array_equal(metric().valid, want)
    assert Prediction(np.zeros((2, 2), np.float32)).valid.all()  # far away, but known


# --- pictures ---


@pytest.mark.parametrize(("name", "peer"), [("inferno", "inferno"), ("turbo", "turbo"), ("spectral", "Spectral_r")])
def test_colormaps_are_those_of_matplotlib(name: str, peer: str) -> None:
    # At matplotlib's own 256 entries.
    want = matplotlib.colormaps[peer](np.arange(256))[:, :3] * 255
    got = apply_colormap(np.arange(256) / 255, name)
    assert got.dtype == np.uint8
    assert np.abs(got - want).max() <= 2


def test_near_is_bright() -> None:
    ramp = np.linspace(1, 9, 64, dtype=np.float32)[None]
    relative = Prediction(ramp).colorize("gray")[0, :, 0]
    assert (relative[0], relative[-1]) == (0, 255)
    assert (np.diff(relative.astype(int)) >= 0).all()
    metric = Prediction(ramp, "metric_depth", "m").colorize("gray")[0, :, 0].astype(float)
    want = 255 * (1 / ramp[0] - 1 / 9) / (1 - 1 / 9)  # inverse depth
    assert np.abs(metric - want).max() <= 0.6


def test_invalid_pixels_have_their_color_and_change_no_other() -> None:
    prediction = metric()
    picture = prediction.colorize("turbo", invalid=(1, 2, 3))
    assert (picture[~prediction.valid] == (1, 2, 3)).all()
    row = Prediction(prediction.depth[prediction.valid][None], "metric_depth", "m")
    assert np.array_equal(picture[prediction.valid], row.colorize("turbo")[0])


def test_unknown_colormap_is_refused() -> None:
    with pytest.raises(ValueError, match="colormap must be one of inferno, turbo, spectral, gray, got 'jet'"):
        relative().colorize("jet")


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_maps_have_pictures_and_files(name: str, tmp_path: Path) -> None:
    prediction = Prediction(DEGENERATE[name])
    picture = prediction.colorize("gray")
    if name in ("constant", "zero", "one pixel"):
        assert (np.abs(picture.astype(int) - 127) <= 1).all()
    elif name in ("nan", "inf"):
        assert not picture.any()
    else:
        assert (picture.min(), picture.max()) == (0, 255)
    assert prediction._repr_png_().startswith(b"\x89PNG")
    for format in ("png16", "npz", "npy", "pfm", "color"):
        prediction.save(tmp_path / format, format=format)
    back = Prediction.load(prediction.save(tmp_path / "back.png"))
    assert np.array_equal(back.valid, prediction.valid)
    if prediction.valid.any():
        values = prediction.depth[prediction.valid].astype(np.float64)
        error = np.abs(back.depth[prediction.valid] - values).max()
        assert error <= np.ptp(values) / 65534 * 0.51 + 1e-7 * np.abs(values).max()


def test_notebooks_show_the_photograph_beside_the_depth() -> None:
    prediction = metric()
    with Image.open(io.BytesIO(prediction._repr_png_())) as picture:
        assert picture.size == (14, 5)
        assert np.array_equal(np.asarray(picture)[:, :7], prediction.image)
        assert np.array_equal(np.asarray(picture)[:, 7:], prediction.colorize())
    with Image.open(io.BytesIO(relative()._repr_png_())) as picture:
        assert picture.size == (7, 5)


def test_notebooks_show_all_that_is_there() -> None:
    both, labels, bare = joint(), segmented(), segmented(image=None)
    for prediction, want in (
        (both, [both.image, both.colorize(), both.overlay()]),
        (labels, [labels.image, labels.overlay()]),
        (bare, [bare.label_colors()]),
    ):
        with Image.open(io.BytesIO(prediction._repr_png_())) as picture:
            assert np.array_equal(np.asarray(picture), np.concatenate(want, axis=1))


def test_overlay_is_that_of_isl_org_and_leaves_ignored_pixels() -> None:
    prediction = segmented()
    known = prediction.labels != 255
    for alpha in (0.0, 0.3, 0.5, 1.0):
        blend = Image.blend(Image.fromarray(PHOTOGRAPH), Image.fromarray(prediction.label_colors()), alpha)
        picture = prediction.overlay(alpha)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture[known], np.asarray(blend)[known])
        assert np.array_equal(picture[~known], PHOTOGRAPH[~known])
    assert np.array_equal(prediction.overlay(), prediction.overlay(0.5))
    assert not prediction.label_colors()[~known].any()
    assert np.array_equal(prediction.label_colors()[known], np.array(ADE20K.palette)[prediction.labels[known]])


def test_overlay_needs_a_photograph_and_resizes_it() -> None:
    with pytest.raises(ValueError, match="overlay needs the photograph, and this prediction has none"):
        segmented(image=None).overlay()
    with pytest.raises(ValueError, match="alpha must be from 0 to 1, got 2"):
        segmented().overlay(2)
    assert segmented(image=np.zeros((50, 20, 3), np.uint8)).overlay().shape == (5, 7, 3)


# --- files ---


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


def test_repr_is_one_line() -> None:
    depth = np.array([[1, 2, np.nan]], dtype=np.float32)
    assert repr(Prediction(depth)) == "Prediction(3 x 1 pixels, relative_inverse_depth from 1 to 2)"
    assert repr(Prediction(depth, "metric_depth", "m")) == "Prediction(3 x 1 pixels, metric_depth from 1 to 2 m)"
    assert repr(Prediction(depth[:, 2:])) == "Prediction(1 x 1 pixels, relative_inverse_depth none valid)"
    labels = np.array([[2, 2, 0]])
    want = "2 of 150 classes (ADE20K), largest sky (67%))"
    assert repr(Prediction(labels=labels, classes=ADE20K)) == f"Prediction(3 x 1 pixels, {want}"
    both = Prediction(depth, labels=labels, classes=ADE20K)
    assert repr(both) == f"Prediction(3 x 1 pixels, relative_inverse_depth from 1 to 2, {want}"
    nothing = Prediction(labels=np.array([[255]]), classes=ADE20K)
    assert repr(nothing) == "Prediction(1 x 1 pixels, 0 of 150 classes (ADE20K))"


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


# --- points ---


def read_ply(path: Path) -> tuple[list[str], np.ndarray]:
    header, body = path.read_bytes().split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    kinds = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], kinds[line.split()[1]]) for line in lines if line.startswith("property")]
    return lines, np.frombuffer(body, dtype=fields)


def test_points_project_onto_their_pixels(tmp_path: Path) -> None:
    prediction = metric()
    cloud = prediction.point_cloud(intrinsics=(10, 12, 3.2, 2.4))
    assert cloud.points.shape == (prediction.valid.sum(), 3)
    x, y, z = cloud.points.T.astype(np.float64)
    rows, columns = np.nonzero(prediction.valid)
    assert np.allclose(10 * x / z + 3.2, columns + 0.5, atol=1e-5)
    assert np.allclose(12 * y / z + 2.4, rows + 0.5, atol=1e-5)
    assert np.array_equal(cloud.points[:, 2], prediction.depth[prediction.valid])
    assert np.array_equal(cloud.colors, prediction.image[prediction.valid])
    lines, vertices = read_ply(cloud.save(tmp_path / "cloud.ply"))
    assert lines[:3] == ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud.points)}"]
    assert np.array_equal(np.stack([vertices[name] for name in "xyz"], 1), cloud.points)
    assert np.array_equal(np.stack([vertices[name] for name in ("red", "green", "blue")], 1), cloud.colors)


def test_field_of_view_is_horizontal() -> None:
    cloud = Prediction(np.ones((3, 200), np.float32), "metric_depth", "m").point_cloud(fov=90)
    assert cloud.colors is None
    left, right = cloud.points[:, 0].min(), cloud.points[:, 0].max()
    # At 45 degrees to each side, x = z; the centres of the outer pixels are half a pixel inside.
    assert np.allclose((left, right), (-199 / 200, 199 / 200), atol=1e-6)


def test_relative_depth_needs_scale_and_shift() -> None:
    prediction = Prediction(np.array([[0, 1, 3]], np.float32))
    cloud = prediction.point_cloud(fov=60, scale=0.5, shift=0)
    assert cloud.points[:, 2].tolist() == [2, np.float32(1 / 1.5)]  # 1 / 0 is no point
    with pytest.raises(ValueError, match=r"no scale and no shift of its own.*pass scale= and shift="):
        prediction.point_cloud(fov=60)
    for scale, shift in ((0, 1), (-1, 9), (np.nan, 0), (1, np.inf)):
        with pytest.raises(ValueError, match=r"scale must be positive, scale and shift finite, got scale="):
            prediction.point_cloud(fov=60, scale=scale, shift=shift)


def test_points_too_far_for_float32_and_maps_without_depth_give_no_points() -> None:
    far = Prediction(np.array([[3e38, 1, 3e38]], np.float32), "metric_depth", "m", np.eye(3, dtype=np.uint8)[None])
    cloud = far.point_cloud(fov=179)
    assert cloud.points.tolist() == [[0, 0, 1]]
    assert cloud.colors.tolist() == [[0, 1, 0]]
    assert len(Prediction(np.ones((1, 3), np.float32)).point_cloud(fov=60, scale=1e-60, shift=0).points) == 0
    assert len(Prediction(np.full((2, 2), np.nan, np.float32), "metric_depth", "m").point_cloud(fov=60).points) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)),), r"points must be a float32 array \[N, 3\], got float64 \[2, 3\]"),
        ((np.zeros((2, 2), np.float32),), r"got float32 \[2, 2\]"),
        (([[0, 0, 1]],), "got list"),
        ((np.zeros((), np.float32),), r"got float32 \[\]"),
        (
            (np.zeros((2, 3), np.float32), np.zeros((1, 3), np.uint8)),
            r"uint8 array \[2, 3\], as points, got uint8 \[1, 3\]",
        ),
        ((np.zeros((2, 3), np.float32), np.zeros((2, 3))), r"got float64 \[2, 3\]"),
    ],
)
def test_bad_points_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointCloud(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either intrinsics"),
        ({"fov": 60, "intrinsics": (1, 1, 1, 1)}, "give either intrinsics"),
        ({"fov": 180}, "fov must be between 0 and 180 degrees, got 180"),
        ({"intrinsics": (0, 1, 1, 1)}, "fx and fy positive"),
        ({"intrinsics": (1, 1, np.nan, 1)}, "must be finite"),
        ({"intrinsics": np.eye(3)}, r"must be finite \(fx, fy, cx, cy\)"),
        ({"fov": "60"}, "fov must be between 0 and 180 degrees, got '60'"),
        ({"intrinsics": 500}, r"must be finite \(fx, fy, cx, cy\).* got 500"),
        ({"intrinsics": "1234"}, "must be finite"),
        ({"fov": 60, "scale": 1.0}, "metric depth needs no scale"),
    ],
)
def test_bad_cameras_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric().point_cloud(**options)


def test_ply_ending_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path must end in .ply"):
        PointCloud(np.zeros((1, 3), np.float32)).save(tmp_path / "cloud.obj")
    path = PointCloud(np.zeros((0, 3), np.float32)).save(tmp_path / "empty.PLY")
    assert b"element vertex 0" in path.read_bytes()
