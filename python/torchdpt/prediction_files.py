"""The file formats of predictions: arrays to bytes, and back."""

from __future__ import annotations

import io
import json
import re
from typing import Any, NamedTuple

import numpy as np

from torchdpt.classes import IGNORE_INDEX, Classes

Array = np.ndarray[Any, Any]


class Format(NamedTuple):
    """The ending of its files, and the parts of a prediction that it needs."""

    ending: str
    needs: tuple[str, ...]


# The first that fits is the default of its ending.
FORMATS = {
    "png16": Format(".png", ("depth",)),
    "labels": Format(".png", ("labels",)),
    "npy": Format(".npy", ("depth",)),
    "npz": Format(".npz", ()),
    "pfm": Format(".pfm", ("depth",)),
    "color": Format(".png", ("depth",)),
    "overlay": Format(".png", ("labels", "image")),
}


def formats_for(*, depth: bool, labels: bool, image: bool) -> list[str]:
    """The formats that a prediction with these parts can be saved in."""
    there = {"depth": depth, "labels": labels, "image": image}
    return [name for name, format in FORMATS.items() if all(there[part] for part in format.needs)]


# --- to bytes ---


def png(picture: Array) -> bytes:
    """A picture, uint8 [H, W, 3]."""
    from PIL import Image

    return _to_png(Image.fromarray(picture))


def png16(depth: Array, valid: Array, kind: str | None, unit: str | None) -> bytes:
    from PIL import Image

    values = depth[valid].astype(np.float64)
    low, high = (values.min(), values.max()) if values.size else (0.0, 0.0)
    scale = (high - low) / 65534 or 1.0
    levels = np.zeros(depth.shape, dtype=np.uint16)
    levels[valid] = np.round((values - low) / scale).astype(np.uint16) + 1
    meaning = {"scale": scale, "offset": low - scale, "invalid": 0, "kind": kind, "unit": unit}
    return _to_png(Image.fromarray(levels), meaning)


def label_png(labels: Array, classes: Classes) -> bytes:
    from PIL import Image

    image = Image.fromarray(_compact(labels, classes))
    if image.mode == "L":
        image.putpalette(classes.colors_of(np.arange(256)).tobytes())  # and so the mode is P
    return _to_png(image, {**classes.to_json(), "ignore": _ignored(classes)})


def npy(depth: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, depth)
    return file.getvalue()


def npz(
    depth: Array | None,
    valid: Array | None,
    kind: str | None,
    unit: str | None,
    labels: Array | None,
    classes: Classes | None,
) -> bytes:
    arrays: dict[str, Any] = {}
    if depth is not None:
        arrays |= {"depth": depth, "valid": valid, "kind": kind, "unit": unit or ""}
    if labels is not None and classes is not None:
        arrays |= {"labels": _compact(labels, classes), "class_names": np.array(classes.names)}
        arrays |= {"classes": classes.name, "palette": np.array(classes.palette, np.uint8)}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def pfm(depth: Array) -> bytes:
    height, width = depth.shape
    # -1: little-endian. The bottom row comes first.
    return f"Pf\n{width} {height}\n-1.0\n".encode() + depth[::-1].astype("<f4").tobytes()


def _compact(labels: Array, classes: Classes) -> Array:
    return labels.astype(np.uint8 if len(classes) <= 256 else np.uint16)


def _ignored(classes: Classes) -> int | None:
    return IGNORE_INDEX if len(classes) <= IGNORE_INDEX else None


def _to_png(image: Any, meaning: dict[str, Any] | None = None) -> bytes:
    from PIL import PngImagePlugin

    text = PngImagePlugin.PngInfo()
    if meaning is not None:
        text.add_text("torchdpt", json.dumps(meaning))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3, pnginfo=text)
    return file.getvalue()


# --- and back ---


class PictureError(ValueError):
    """The file is a picture, of a photograph or for the eye."""


def decode(data: bytes) -> dict[str, Any]:
    """The fields of a Prediction in a file; `kind` and `unit` where the format has them. What it is, its first bytes
    say."""
    if data.startswith(b"Pf"):
        return {"depth": from_pfm(data).astype(np.float32)}
    if data.startswith(b"\x93NUMPY"):
        return {"depth": np.load(io.BytesIO(data), allow_pickle=False)}
    if data.startswith(b"PK"):
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return _from_npz(file)
    from PIL import Image

    if data.startswith((b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"BM")):
        raise PictureError("a picture, which holds no depth and no labels; pass a photograph to DPTModel.predict")
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        if "torchdpt" not in image.info:
            raise PictureError(
                "a picture, which holds no depth and no labels; the formats png16, labels, npz, npy and pfm do"
            )
        meaning = json.loads(image.info["torchdpt"])
        return _from_label_png(image, meaning) if "names" in meaning else _from_png16(image, meaning)


def from_pfm(data: bytes) -> Array:
    """The map in a PFM file, of whose scale the sign alone counts, float32 [H, W] in the file's byte order."""
    header = re.match(rb"(P[fF])\s+(\d+)\s+(\d+)\s+([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s", data)
    if header is None:
        raise ValueError("not a PFM file, or its header is damaged")
    if header[1] == b"PF":
        raise ValueError("a PFM file of three channels, wanted one")
    width, height, start = int(header[2]), int(header[3]), header.end()
    if len(data) - start != 4 * width * height:
        raise ValueError(f"{width} x {height} pixels are {4 * width * height} bytes, and there are {len(data) - start}")
    order = "<f4" if header[4].startswith(b"-") else ">f4"  # a negative scale: little-endian
    return np.frombuffer(data, order, offset=start).reshape(height, width)[::-1]  # the bottom row comes first


def _from_npz(file: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if "depth" in file or "labels" not in file:
        fields |= {"depth": file["depth"], "kind": str(file["kind"]), "unit": str(file["unit"]) or None}
    if "labels" in file:
        palette = tuple(map(tuple, file["palette"].tolist()))
        classes = Classes(str(file["classes"]), tuple(file["class_names"].tolist()), palette)
        fields |= {"labels": file["labels"].astype(np.int64), "classes": classes}
    return fields


def _from_png16(image: Any, meaning: dict[str, Any]) -> dict[str, Any]:
    levels = np.asarray(image)
    if not image.mode.startswith("I"):  # another program kept the text, but not the levels
        raise ValueError(f"PNG of mode {image.mode}, not of 16-bit gray")
    depth = np.where(levels == 0, np.nan, meaning["offset"] + meaning["scale"] * levels.astype(np.float64))
    if meaning["kind"] == "metric_depth":  # rounding must not bring the nearest pixel to zero, which is invalid
        depth = np.maximum(depth, np.finfo(np.float32).tiny)
    return {"depth": depth.astype(np.float32), "kind": meaning["kind"], "unit": meaning["unit"]}


def _from_label_png(image: Any, meaning: dict[str, Any]) -> dict[str, Any]:
    classes = Classes.from_json(meaning)
    labels = np.asarray(image).astype(np.int64)
    if len(classes) > 256:
        if not image.mode.startswith("I"):
            raise ValueError(f"PNG of mode {image.mode}, not of 16-bit gray")
    elif image.mode != "P":
        raise ValueError(f"PNG of mode {image.mode}, not with a palette")
    else:  # another program may have put the palette, and the labels with it, in another order
        used = np.unique(labels)
        palette = np.array(image.getpalette()).reshape(-1, 3)
        if used[-1] >= len(palette) or not np.array_equal(palette[used], classes.colors_of(used)):
            raise ValueError("the palette is not that of the classes")
    return {"labels": labels, "classes": classes}
