"""What a prediction is, and the files and pictures that it becomes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from torchdpt.colormaps import apply_colormap
from torchdpt.files import write_atomically

Array = np.ndarray[Any, Any]
Kind = Literal["relative_inverse_depth", "metric_depth"]

# Format -> ending. The first format of an ending is its default.
_FORMATS = {"png16": ".png", "npy": ".npy", "npz": ".npz", "pfm": ".pfm", "color": ".png"}


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
    """A depth map and what its numbers mean.

    Attributes:
        depth: float32 [H, W], C-contiguous. NaN and infinity mean: not known.
        kind: "relative_inverse_depth": near is large; scale and shift are unknown, so two photographs cannot be
            compared. "metric_depth": the distance along the optical axis; far is large.
        unit: "m" for metric depth, None for relative.
        image: uint8 [H', W', 3], the photograph, or None. It stands in the picture in notebooks, and colours point
            clouds if it has the size of `depth`.

    Raises:
        ValueError: if `depth` or `image` is of another shape or type, or `unit` does not fit `kind`.
    """

    depth: Array
    kind: Kind = "relative_inverse_depth"
    unit: Literal["m"] | None = None
    image: Array | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        depth, image = self.depth, self.image
        if not isinstance(depth, np.ndarray) or depth.ndim != 2 or depth.dtype != np.float32 or depth.size == 0:
            raise ValueError(
                f"depth must be a float32 array [H, W], got {_describe(depth)}; convert it with astype(np.float32)"
            )
        if image is not None and (
            not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or image.size == 0
        ):
            raise ValueError(f"image must be a uint8 array [H, W, 3], RGB, got {_describe(image)}")
        if self.kind not in ("relative_inverse_depth", "metric_depth"):
            raise ValueError(f"kind must be 'relative_inverse_depth' or 'metric_depth', got {self.kind!r}")
        unit = "m" if self.kind == "metric_depth" else None
        if self.unit != unit:
            raise ValueError(f"unit of {self.kind} must be {unit!r}, got {self.unit!r}")
        object.__setattr__(self, "depth", np.ascontiguousarray(depth))

    @property
    def valid(self) -> Array:
        """bool [H, W]: where the depth is known, that is finite, and for metric depth positive."""
        finite = np.isfinite(self.depth)
        return finite & (self.depth > 0) if self.kind == "metric_depth" else finite

    def __repr__(self) -> str:
        height, width = self.depth.shape
        values = self.depth[self.valid]
        span = f"from {values.min():.4g} to {values.max():.4g}" if values.size else "none valid"
        unit = f" {self.unit}" if self.unit else ""
        return f"Prediction({width} x {height} pixels, {self.kind} {span}{unit})"

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
        valid = self.valid
        nearness = np.full(self.depth.shape, 0.5)
        if valid.any():
            values = self.depth[valid].astype(np.float64)
            if self.kind == "metric_depth":
                values = 1 / values
            low, high = values.min(), values.max()
            if high > low:
                nearness[valid] = (values - low) / (high - low)
        picture = apply_colormap(nearness, colormap)
        picture[~valid] = invalid
        return picture

    def _repr_png_(self) -> bytes:
        """The picture in a notebook: the photograph, if there is one, beside the depth."""
        from PIL import Image

        colors = Image.fromarray(self.colorize())
        picture = colors
        if self.image is not None:
            picture = Image.new("RGB", (2 * colors.width, colors.height))
            picture.paste(Image.fromarray(self.image).resize(colors.size), (0, 0))
            picture.paste(colors, (colors.width, 0))
        picture.thumbnail((1600, 1600))
        return _png(picture)

    # --- files ---

    def save(self, path: str | os.PathLike[str], *, format: str | None = None, colormap: str | None = None) -> Path:
        """Write a file; it is never half there.

        Args:
            path: Where to write.
            format: "png16": a 16-bit PNG. 0 means invalid; the others hold depth = offset + scale * value, with both
                numbers, kind and unit as JSON in the PNG's text chunk "torchdpt". "npz": depth, valid, kind, unit.
                "npy": the depth. "pfm": the depth, as MiDaS writes it. "color": `colorize`, 8-bit PNG. Default: by the
                ending of `path`, which is .png (then png16), .npz, .npy or .pfm.
            colormap: Of "color", see `colorize`. Default: inferno.

        Raises:
            ValueError: if ending, format or colour map is unknown, they do not fit, or there is no such folder.
            OSError: if it cannot be written; what was at `path` stays.
        """
        ending = Path(path).suffix.lower()
        if format is None:
            format = next((name for name, theirs in _FORMATS.items() if theirs == ending), None)
            if format is None:
                raise ValueError(f"path must end in .png, .npy, .npz or .pfm, got {str(path)!r}")
        if format not in _FORMATS:
            raise ValueError(f"format must be one of {', '.join(_FORMATS)}, got {format!r}")
        if ending not in ("", _FORMATS[format]):
            raise ValueError(f"path of format {format!r} must end in {_FORMATS[format]}, got {str(path)!r}")
        if colormap is not None and format != "color":
            raise ValueError(f'colormap is for format="color", a picture; got {colormap!r} with format={format!r}')
        return write_atomically(path, self._encode(format, colormap or "inferno"))

    def _encode(self, format: str, colormap: str) -> bytes:
        file = io.BytesIO()
        if format == "png16":
            return self._png16()
        if format == "npy":
            np.save(file, self.depth)
        elif format == "npz":
            np.savez_compressed(file, depth=self.depth, valid=self.valid, kind=self.kind, unit=self.unit or "")
        elif format == "pfm":
            height, width = self.depth.shape
            file.write(f"Pf\n{width} {height}\n-1.0\n".encode())  # -1: little-endian
            file.write(self.depth[::-1].astype("<f4").tobytes())  # the bottom row first
        else:
            from PIL import Image

            return _png(Image.fromarray(self.colorize(colormap)))
        return file.getvalue()

    def _png16(self) -> bytes:
        from PIL import Image, PngImagePlugin

        valid = self.valid
        values = self.depth[valid].astype(np.float64)
        low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
        scale = (high - low) / 65534 or 1.0
        levels = np.zeros(self.depth.shape, dtype=np.uint16)
        levels[valid] = np.round((values - low) / scale).astype(np.uint16) + 1
        text = PngImagePlugin.PngInfo()
        meaning = {"scale": scale, "offset": low - scale, "invalid": 0, "kind": self.kind, "unit": self.unit}
        text.add_text("torchdpt", json.dumps(meaning))
        return _png(Image.fromarray(levels), pnginfo=text)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, kind: Kind | None = None) -> Self:
        """Read what `save` wrote, except "color". What the file is, its first bytes say.

        Args:
            path: A 16-bit PNG, NPZ, NPY or PFM file.
            kind: Of NPY and PFM, which hold numbers alone. Default: "relative_inverse_depth".

        Raises:
            ValueError: if the file is another one, or a PNG or NPZ file says that it is of another kind.
            OSError: if it cannot be read.
        """
        data = Path(path).read_bytes()
        try:
            depth, meaning = _decode(data)
            prediction = cls(depth, *meaning)
        except Exception as error:  # whatever a damaged file makes of the decoders
            raise ValueError(
                f"{path}: not a 16-bit PNG, NPZ, NPY or PFM file that Prediction.save wrote ({error!r})"
            ) from error
        if kind is None or kind == prediction.kind:
            return prediction
        if meaning:
            raise ValueError(f"{path} holds {prediction.kind}, got kind={kind!r}; leave kind out")
        return cls(depth, kind, "m" if kind == "metric_depth" else None)

    # --- space ---

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
        height, width = self.depth.shape
        if (intrinsics is None) == (fov is None):
            raise ValueError("point_cloud: give either intrinsics=(fx, fy, cx, cy) in pixels or fov= in degrees")
        if fov is not None:
            if not 0 < fov < 180:
                raise ValueError(f"point_cloud: fov must be between 0 and 180 degrees, got {fov}")
            focal = width / 2 / np.tan(np.radians(fov) / 2)
            intrinsics = (focal, focal, width / 2, height / 2)
        assert intrinsics is not None
        if len(intrinsics) != 4 or not np.isfinite(intrinsics).all() or min(intrinsics[:2]) <= 0:
            raise ValueError(
                f"point_cloud: intrinsics must be finite (fx, fy, cx, cy), fx and fy positive, got {intrinsics}"
            )
        depth, valid = self.depth.astype(np.float64), self.valid
        if self.kind == "relative_inverse_depth":
            if scale is None or shift is None:
                raise ValueError(
                    "point_cloud: relative inverse depth has no scale and no shift of its own, and the shape of a "
                    "point cloud depends on both; pass scale= and shift= so that depth = 1 / (scale * value + shift)"
                )
            if not (np.isfinite([scale, shift]).all() and scale > 0):
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
        same = self.image is not None and self.image.shape[:2] == self.depth.shape
        return PointCloud(points[near], self.image[valid][near] if same else None)  # type: ignore[index]


def _decode(data: bytes) -> tuple[Array, tuple[Any, ...]]:
    """The depth in a file, and its (kind, unit), or () where the format does not say."""
    if data.startswith(b"Pf"):
        header = re.match(rb"Pf\s(\d+)\s(\d+)\s(-?)[\d.]+\s", data)
        if header is None:
            raise ValueError("damaged PFM header")
        order = "<f4" if header[3] else ">f4"  # a negative scale: little-endian
        rows = np.frombuffer(data, order, offset=header.end()).reshape(int(header[2]), int(header[1]))
        return rows[::-1].astype(np.float32), ()
    if data.startswith(b"\x93NUMPY"):
        return np.load(io.BytesIO(data), allow_pickle=False), ()
    if data.startswith(b"PK"):
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return file["depth"], (str(file["kind"]), str(file["unit"]) or None)
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        meaning = json.loads(image.info["torchdpt"])
        levels = np.asarray(image)
        if not image.mode.startswith("I"):  # another program kept the text, but not the levels
            raise ValueError(f"PNG of mode {image.mode}, not of 16-bit gray")
    depth = np.where(levels == 0, np.nan, meaning["offset"] + meaning["scale"] * levels.astype(np.float64))
    if meaning["kind"] == "metric_depth":  # rounding must not bring the nearest pixel to zero, which is invalid
        depth = np.maximum(depth, np.finfo(np.float32).tiny)
    return depth.astype(np.float32), (meaning["kind"], meaning["unit"])


def _describe(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _png(image: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3, **options)
    return file.getvalue()
