"""What a prediction is, and the files and pictures that it becomes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from torchdpt import prediction_files as formats
from torchdpt.classes import IGNORE_INDEX, Classes
from torchdpt.colormaps import apply_colormap
from torchdpt.files import write_atomically
from torchdpt.metric_fit import MetricFit, as_points, fit_inverse_depth, metric_depth

Array = np.ndarray[Any, Any]
Kind = Literal["relative_inverse_depth", "metric_depth"]


@dataclasses.dataclass(frozen=True, eq=False)
class PointCloud:
    """Points in space, with the camera at the origin.

    Attributes:
        points: float32 [N, 3], x to the right, y down, z forward, in metres where the depth was.
        colors: uint8 [N, 3], RGB, or None.

    Raises:
        ValueError: if an array is of another shape or type.
    """

    points: Array
    colors: Array | None = None

    def __post_init__(self) -> None:
        points, colors = self.points, self.colors
        if not isinstance(points, np.ndarray) or points.dtype != np.float32 or points.shape[1:] != (3,):
            raise ValueError(f"points must be a float32 array [N, 3], got {_describe(points)}")
        if colors is not None and (
            not isinstance(colors, np.ndarray) or colors.dtype != np.uint8 or colors.shape != points.shape
        ):
            raise ValueError(f"colors must be a uint8 array {list(points.shape)}, as points, got {_describe(colors)}")

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a binary PLY file.

        Raises:
            ValueError: if the path does not end in .ply, or there is no such folder.
            OSError: if it cannot be written.
        """
        if Path(path).suffix.lower() != ".ply":
            raise ValueError(f"path must end in .ply, got {str(path)!r}")
        fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
        header = "ply\nformat binary_little_endian 1.0\n" + f"element vertex {len(self.points)}\n"
        header += "".join(f"property float {name}\n" for name, _ in fields)
        if self.colors is not None:
            names = ("red", "green", "blue")
            header += "".join(f"property uchar {name}\n" for name in names)
            fields += [(name, "u1") for name in names]
        rows = np.empty(len(self.points), dtype=fields)
        for i, (name, _) in enumerate(fields):
            rows[name] = self.points[:, i] if i < 3 else self.colors[:, i - 3]  # type: ignore[index]
        return write_atomically(path, f"{header}end_header\n".encode() + rows.tobytes())


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """A depth map, a label map or both, and what their numbers mean.

    Attributes:
        depth: float32 [H, W], C-contiguous, or None. NaN and infinity mean: not known.
        kind: "relative_inverse_depth" (the default where there is a depth): near is large; scale and shift are unknown,
            so two photographs cannot be compared. "metric_depth": the distance along the optical axis; far is large.
            None without a depth.
        unit: "m" for metric depth, else None.
        image: uint8 [H', W', 3], the photograph, or None. It stands in the picture in notebooks and under `overlay`,
            and colours point clouds if it has the size of `depth`.
        labels: int64 [H, W], C-contiguous, or None: an index of `classes`. 255 means ignored or not known, where that
            is not the index of a class.
        classes: Names and colours of the labels; None without labels.

    Raises:
        ValueError: if there is neither depth nor labels, an array is of another shape or type, a label has no class, or
            `unit` does not fit `kind`.
    """

    depth: Array | None = None
    kind: Kind | None = None
    unit: Literal["m"] | None = None
    image: Array | None = dataclasses.field(default=None, repr=False)
    labels: Array | None = dataclasses.field(default=None, repr=False)
    classes: Classes | None = None

    def __post_init__(self) -> None:
        depth, image, labels = self.depth, self.image, self.labels
        if depth is None and labels is None:
            raise ValueError("a prediction must have depth, labels or both, got neither")
        if depth is not None:
            if not isinstance(depth, np.ndarray) or depth.ndim != 2 or depth.dtype != np.float32 or depth.size == 0:
                raise ValueError(
                    f"depth must be a float32 array [H, W], got {_describe(depth)}; convert it with astype(np.float32)"
                )
            object.__setattr__(self, "depth", np.ascontiguousarray(depth))
            if self.kind is None:
                object.__setattr__(self, "kind", "relative_inverse_depth")
        self._check_kind()
        if labels is not None:
            self._check_labels(labels)
            object.__setattr__(self, "labels", np.ascontiguousarray(labels))
        elif self.classes is not None:
            raise ValueError("classes are those of labels, and there are none; leave classes out")
        if image is not None and (
            not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0
        ):
            raise ValueError(f"image must be a uint8 array [H, W, 3], RGB, got {_describe(image)}")

    def _check_kind(self) -> None:
        if self.depth is None:
            if self.kind is not None or self.unit is not None:
                raise ValueError(
                    f"kind and unit are those of depth, and there is none, got {self.kind!r}, {self.unit!r}"
                )
            return
        if self.kind not in ("relative_inverse_depth", "metric_depth"):
            raise ValueError(f"kind must be 'relative_inverse_depth' or 'metric_depth', got {self.kind!r}")
        unit = "m" if self.kind == "metric_depth" else None
        if self.unit != unit:
            raise ValueError(f"unit of {self.kind} must be {unit!r}, got {self.unit!r}")

    def _check_labels(self, labels: Array) -> None:
        if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype != np.int64 or labels.size == 0:
            raise ValueError(
                f"labels must be an int64 array [H, W], got {_describe(labels)}; convert it with astype(np.int64)"
            )
        if self.depth is not None and self.depth.shape != labels.shape:
            raise ValueError(f"labels must be {list(self.depth.shape)}, as depth, got {list(labels.shape)}")
        if not isinstance(self.classes, Classes):
            raise ValueError(
                f"labels need classes, which name them, got {self.classes!r}; pass Classes.default_for(num_classes)"
            )
        wrong = (labels < 0) | (labels >= len(self.classes)) & (labels != IGNORE_INDEX)
        if wrong.any():
            raise ValueError(
                f"labels must be from 0 to {len(self.classes) - 1}, as there are classes, or {IGNORE_INDEX}, ignored; "
                f"got {labels[wrong][0]}"
            )

    def _depth_for(self, what: str) -> Array:
        if self.depth is None:
            raise ValueError(f"{what} needs depth, and this prediction has labels alone")
        return self.depth

    def _labels_for(self, what: str) -> tuple[Array, Classes]:
        if self.labels is None or self.classes is None:
            raise ValueError(f"{what} needs labels, and this prediction has depth alone")
        return self.labels, self.classes

    @property
    def _size(self) -> tuple[int, int]:
        array = self.labels if self.depth is None else self.depth
        assert array is not None
        return array.shape[0], array.shape[1]

    @property
    def valid(self) -> Array:
        """bool [H, W]: where the depth is known, that is finite, and for metric depth positive."""
        depth = self._depth_for("valid")
        finite = np.isfinite(depth)
        return finite & (depth > 0) if self.kind == "metric_depth" else finite

    def class_shares(self) -> list[tuple[str, float]]:
        """The classes in the picture, largest first: names, and shares of all pixels, from 0 to 1.

        The shares of ignored pixels are of no class, so the sum may be below 1.

        Raises:
            ValueError: if there are no labels.
        """
        labels, classes = self._labels_for("class_shares")
        counts = np.bincount(labels.ravel(), minlength=len(classes))[: len(classes)]
        order = np.argsort(-counts, kind="stable")
        return [(classes.names[i], float(counts[i] / labels.size)) for i in order if counts[i]]

    def __repr__(self) -> str:
        height, width = self._size
        parts = [f"{width} x {height} pixels"]
        if self.depth is not None:
            values = self.depth[self.valid]
            span = f"from {values.min():.4g} to {values.max():.4g}" if values.size else "none valid"
            unit = f" {self.unit}" if self.unit else ""
            parts.append(f"{self.kind} {span}{unit}")
        if self.classes is not None:
            shares = self.class_shares()
            largest = f", largest {shares[0][0]} ({shares[0][1]:.0%})" if shares else ""
            parts.append(f"{len(shares)} of {len(self.classes)} classes ({self.classes.name}){largest}")
        return f"Prediction({', '.join(parts)})"

    # --- pictures ---

    def colorize(self, colormap: str = "inferno", *, invalid: tuple[int, int, int] = (0, 0, 0)) -> Array:
        """A picture in which near is bright (or red).

        The range is that of the valid pixels, of inverse depth for both kinds. A constant map has the middle colour.

        Args:
            colormap: inferno, turbo, spectral or gray.
            invalid: RGB of pixels without a depth.

        Returns:
            uint8 [H, W, 3].

        Raises:
            ValueError: if there is no such colour map.
        """
        depth, valid = self._depth_for("colorize"), self.valid
        nearness = np.full(depth.shape, 0.5)
        if valid.any():
            values = depth[valid].astype(np.float64)
            if self.kind == "metric_depth":
                values = 1 / values
            low, high = values.min(), values.max()
            if high > low:
                nearness[valid] = (values - low) / (high - low)
        picture = apply_colormap(nearness, colormap)
        picture[~valid] = invalid
        return picture

    def label_colors(self) -> Array:
        """A picture in the colours of the classes; ignored pixels are black.

        Returns:
            uint8 [H, W, 3].

        Raises:
            ValueError: if there are no labels.
        """
        labels, classes = self._labels_for("label_colors")
        return classes.colors_of(labels)

    def overlay(self, alpha: float = 0.5) -> Array:
        """The colours of the classes over the photograph, which is resized to the labels; ignored pixels show it alone.

        Args:
            alpha: From 0, the photograph alone, to 1, the colours alone.

        Returns:
            uint8 [H, W, 3].

        Raises:
            ValueError: if there are no labels or no photograph, or alpha is out of range.

        Reference: isl-org/DPT util/io.py write_segm_img.
        """
        from PIL import Image

        labels, classes = self._labels_for("overlay")
        if self.image is None:
            raise ValueError("overlay needs the photograph, and this prediction has none; pass image= to Prediction")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
        photograph = Image.fromarray(self.image).resize((labels.shape[1], labels.shape[0]))
        picture = np.array(Image.blend(photograph, Image.fromarray(classes.colors_of(labels)), alpha))
        ignored = labels >= len(classes)
        picture[ignored] = np.asarray(photograph)[ignored]
        return picture

    def _repr_png_(self) -> bytes:
        """The picture in a notebook: what there is of photograph, depth and overlay, side by side."""
        from PIL import Image

        height, width = self._size
        pictures = [] if self.image is None else [np.asarray(Image.fromarray(self.image).resize((width, height)))]
        if self.depth is not None:
            pictures.append(self.colorize())
        if self.labels is not None:
            pictures.append(self.label_colors() if self.image is None else self.overlay())
        picture = Image.fromarray(np.concatenate(pictures, axis=1))
        picture.thumbnail((1600, 1600))
        return formats.png(np.asarray(picture))

    # --- files ---

    def save(self, path: str | os.PathLike[str], *, format: str | None = None, colormap: str | None = None) -> Path:
        """Write a file; it is never half there.

        Args:
            path: Where to write.
            format: Of depth: "png16": a 16-bit PNG. 0 means invalid; the others hold depth = offset + scale * value,
                with both numbers, kind and unit as JSON in the PNG's text chunk "torchdpt". "npy": the depth. "pfm":
                the depth, as MiDaS writes it. "color": `colorize`, 8-bit PNG. Of labels: "labels": a PNG with the
                colours as palette (of more than 256 classes: 16-bit gray), with names, colours and the ignored label
                as JSON in the text chunk. "overlay": `overlay`, 8-bit PNG. Of both: "npz": depth, valid, kind and unit;
                labels, classes, class_names and palette. Default: by the ending of `path`, which is .png (then png16,
                or labels where there is no depth), .npz, .npy or .pfm.
            colormap: Of "color", see `colorize`. Default: inferno.

        Raises:
            ValueError: if ending, format or colour map is unknown, they do not fit each other or what there is to save,
                or there is no such folder.
            OSError: if it cannot be written; what was at `path` stays.
        """
        ending = Path(path).suffix.lower()
        possible = formats.formats_for(
            depth=self.depth is not None, labels=self.labels is not None, image=self.image is not None
        )
        if format is None:
            format = next((name for name in possible if formats.FORMATS[name].ending == ending), None)
            if format is None:
                *endings, last = dict.fromkeys(formats.FORMATS[name].ending for name in possible)
                why = "; depth is not here" if self.depth is None else ""
                raise ValueError(f"path must end in {', '.join(endings)} or {last}, got {str(path)!r}{why}")
        if format not in possible:
            needs = formats.FORMATS[format].needs if format in formats.FORMATS else ()
            why = f", which needs {' and '.join(needs)}" if needs else ""
            raise ValueError(f"format must be one of {', '.join(possible)}, got {format!r}{why}")
        wanted = formats.FORMATS[format].ending
        if ending not in ("", wanted):
            raise ValueError(f"path of format {format!r} must end in {wanted}, got {str(path)!r}")
        if colormap is not None and format != "color":
            raise ValueError(f'colormap is for format="color", a picture; got {colormap!r} with format={format!r}')
        return write_atomically(path, self._encode(format, colormap or "inferno"))

    def _encode(self, format: str, colormap: str) -> bytes:
        if format == "color":
            return formats.png(self.colorize(colormap))
        if format == "overlay":
            return formats.png(self.overlay())
        if format == "labels":
            return formats.label_png(*self._labels_for(format))
        if format == "npz":
            valid = None if self.depth is None else self.valid
            return formats.npz(self.depth, valid, self.kind, self.unit, self.labels, self.classes)
        depth = self._depth_for(format)
        if format == "png16":
            return formats.png16(depth, self.valid, self.kind, self.unit)
        return formats.npy(depth) if format == "npy" else formats.pfm(depth)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, kind: Kind | None = None) -> Self:
        """Read what `save` wrote, except "color" and "overlay". What the file is, its first bytes say.

        Args:
            path: A 16-bit PNG, a PNG of labels, an NPZ, NPY or PFM file.
            kind: Of NPY and PFM, which hold numbers alone. Default: "relative_inverse_depth".

        Raises:
            ValueError: if the file is another one, or a PNG or NPZ file says that it is of another kind.
            OSError: if it cannot be read.
        """
        data = Path(path).read_bytes()
        try:
            fields = formats.decode(data)
            prediction = cls(**fields)
        except formats.PictureError as error:
            raise ValueError(f"{path}: {error}") from None
        except Exception as error:  # whatever a damaged file makes of the decoders
            raise ValueError(
                f"{path}: not a PNG of depth or labels, NPZ, NPY or PFM file that Prediction.save wrote ({error!r})"
            ) from error
        if kind is None or kind == prediction.kind:
            return prediction
        if "kind" in fields or prediction.depth is None:
            raise ValueError(f"{path} holds {prediction.kind or 'no depth'}, got kind={kind!r}; leave kind out")
        return cls(prediction.depth, kind, "m" if kind == "metric_depth" else None)

    # --- space ---

    def to_metric(
        self, points: Array | Sequence[Sequence[float]] | None = None, *, sparse_depth: Array | None = None
    ) -> tuple[Self, MetricFit]:
        """Metric depth, from relative inverse depth and a few distances that are known in metres.

        Scale and shift are fitted in inverse depth: 1 / metres = scale * value + shift. Of twenty points and more up to
        two fifths may be wrong, of five one (least median of squares, then least squares on the points that agree); no
        random number is used.

        Args:
            points: [N, 3]: x, y and metres along the optical axis. In pixels of `depth`; the centre of the first is at
                (0.5, 0.5), and the pixel that a point is in has its value.
            sparse_depth: Instead: metres, an array of the size of `depth`; 0 and NaN mean: not measured.

        Returns:
            The prediction with depth in metres, NaN where scale * value + shift is not positive; and the fit.

        Raises:
            ValueError: if depth is metric already or missing; a point is outside of the image or its distance not
                positive; or the points do not determine the fit: fewer than two, all at nearly one inverse depth, or in
                such disagreement with the prediction that the scale is negative or may be.
        """
        depth = self._depth_for("to_metric")
        if self.kind == "metric_depth":
            raise ValueError("to_metric: depth is in metres already; it is for relative inverse depth")
        rows, columns, metres = as_points(points, sparse_depth, *depth.shape)
        known = depth[self.valid].astype(np.float64)
        fit = fit_inverse_depth(depth[rows, columns], metres, float(np.ptp(known)) if known.size else 0.0)
        in_metres = metric_depth(depth, fit.scale, fit.shift)
        return dataclasses.replace(self, depth=in_metres, kind="metric_depth", unit="m"), fit

    def point_cloud(
        self,
        *,
        intrinsics: tuple[float, float, float, float] | None = None,
        fov: float | None = None,
        scale: float | None = None,
        shift: float | None = None,
    ) -> PointCloud:
        """The valid pixels as points in space, seen by a pinhole camera.

        Args:
            intrinsics: (fx, fy, cx, cy) in pixels of `depth`; the centre of the first pixel is at (0.5, 0.5).
            fov: Instead: the horizontal field of view in degrees; pixels are square and the optical axis is central.
            scale: Relative inverse depth only: depth = 1 / (scale * value + shift). Positive.
            shift: The same. Both must be known from elsewhere: the shape of the cloud depends on them.

        Returns:
            The points, row by row. Left out, too, are those behind the camera and those too far for float32.

        Raises:
            ValueError: if the camera is missing, given twice or impossible, or scale and shift do not fit `kind`.
        """
        depth = self._depth_for("point_cloud").astype(np.float64)
        height, width = depth.shape
        if (intrinsics is None) == (fov is None):
            raise ValueError("point_cloud: give either intrinsics=(fx, fy, cx, cy) in pixels or fov= in degrees")
        if fov is not None:
            if not _is_number(fov) or not 0 < fov < 180:
                raise ValueError(f"point_cloud: fov must be between 0 and 180 degrees, got {fov!r}")
            focal = width / 2 / np.tan(np.radians(fov) / 2)
            intrinsics = (focal, focal, width / 2, height / 2)
        assert intrinsics is not None
        four = (
            isinstance(intrinsics, Sequence | np.ndarray) and len(intrinsics) == 4 and all(map(_is_number, intrinsics))
        )
        if not four or not np.isfinite(intrinsics).all() or min(intrinsics[:2]) <= 0:
            raise ValueError(
                f"point_cloud: intrinsics must be finite (fx, fy, cx, cy), fx and fy positive, got {intrinsics}"
            )
        valid = self.valid
        if self.kind == "relative_inverse_depth":
            if scale is None or shift is None:
                raise ValueError(
                    "point_cloud: relative inverse depth has no scale and no shift of its own, and the shape of a "
                    "point cloud depends on both; pass scale= and shift= so that depth = 1 / (scale * value + shift)"
                )
            if not (_is_number(scale) and _is_number(shift) and np.isfinite([scale, shift]).all() and scale > 0):
                raise ValueError(
                    f"point_cloud: scale must be positive, scale and shift finite, got scale={scale}, shift={shift}"
                )
            with np.errstate(over="ignore"):  # to infinity, which is left out below
                inverse = scale * depth + shift
                valid = valid & (inverse > 0)
                depth = 1 / np.where(valid, inverse, 1)
        elif scale is not None or shift is not None:
            raise ValueError("point_cloud: metric depth needs no scale and no shift; leave them out")
        fx, fy, cx, cy = intrinsics
        rows, columns = np.nonzero(valid)
        z = depth[valid]
        with np.errstate(over="ignore", invalid="ignore"):
            points = np.stack([(columns + 0.5 - cx) / fx * z, (rows + 0.5 - cy) / fy * z, z], axis=1).astype(np.float32)
        near = np.isfinite(points).all(axis=1)
        same = self.image is not None and self.image.shape[:2] == (height, width)
        return PointCloud(points[near], self.image[valid][near] if same else None)  # type: ignore[index]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
