"""Prediction: what it holds, its pictures and points."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from predictions import PHOTOGRAPH, RNG, joint, metric, relative, segmented

from torchdpt import PointCloud, Prediction
from torchdpt.classes import ADE20K, Classes
from torchdpt.colormaps import apply_colormap

pytestmark = pytest.mark.usefixtures("no_numpy_warnings")


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
