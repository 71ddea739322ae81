"""The files of an evaluation: tables, pictures of single images, and the curve over input sizes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX, Classes
from torchdpt.colormaps import apply_colormap
from torchdpt.data import Sample
from torchdpt.evaluate import EvaluationResult, at_full_size, counting, in_error_space
from torchdpt.evaluate_model import truth_of
from torchdpt.image import Array
from torchdpt.protocols import DepthProtocol, SegmentationProtocol, more_is_better

# Relative error with the brightest colour.
_LARGEST_ERROR = 0.5


def to_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """A table with the columns of the first row; NaN and None are empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if v is None or (isinstance(v, float) and math.isnan(v)) else v for k, v in row.items()})
    return file.getvalue().encode()


def worst(result: EvaluationResult, count: int) -> list[dict[str, Any]]:
    """Rows of the images with the worst headline, the worst first; among equals the first. Images without one are none.

    `delta1_error` is 100 (1 - delta1), and so its order is that of delta1.
    """
    name = "delta1" if result.protocol.headline == "delta1_error" else result.protocol.headline
    rows = [row for row in result.per_image if not math.isnan(row[name])]
    return sorted(rows, key=lambda row: row[name] if more_is_better(name) else -row[name])[:count]


# --- pictures ---


def depth_picture(sample: Sample, prediction: Tensor, protocol: DepthProtocol, row: dict[str, Any]) -> Array:
    """Image, truth, prediction and error, side by side.

    Truth and prediction are inverse depth in one scale of colours (near is bright), that of the truth from its 2nd to
    its 98th percentile. The error is relative, where pixels count: black is 0, and the brightest 0.5 or more.

    Args:
        sample: The image and its truth [H, W].
        prediction: What `predict_sample` gave for it.
        protocol: Which was followed.
        row: The image's of `EvaluationResult.per_image`.

    Returns:
        uint8 [H, 4 W, 3].
    """
    target, mask = truth_of(sample, protocol)
    full = at_full_size(protocol, prediction.double().cpu(), *target.shape)
    p = in_error_space(protocol, full, row.get("scale", 1.0), row.get("shift", 0.0)).numpy()
    counts = counting(protocol, target, mask).numpy()
    nearest, farthest = protocol.min_depth, protocol.cap or math.inf
    with np.errstate(divide="ignore", invalid="ignore"):
        w = 1 / target.double().numpy() if protocol.target == "depth" else target.double().numpy()
        if protocol.error_space == "depth":
            p = p.clip(nearest, farthest)
            error = np.abs(p - 1 / w) * w
            p = 1 / p
        else:
            p = p.clip(1 / farthest, 1 / nearest)
            error = np.abs(p - w) / w
    known = mask.numpy() & np.isfinite(w)
    counts &= known
    start, end = np.percentile(w[known], (2, 98)) if known.any() else (0.0, 1.0)

    def colours(values: Array, valid: Array) -> Array:
        valid = valid & np.isfinite(values)
        scaled = np.where(valid, (values - start) / ((end - start) or 1.0), 0).clip(0, 1)
        return np.where(valid[:, :, None], apply_colormap(scaled, "inferno"), 0).astype(np.uint8)

    wrong = np.where(counts, np.nan_to_num(error / _LARGEST_ERROR, nan=1, posinf=1), 0).clip(0, 1)
    errors = np.where(counts[:, :, None], apply_colormap(wrong, "inferno"), 0).astype(np.uint8)
    pictures = [sample.image.numpy(), colours(w, known), colours(p, np.ones_like(known)), errors]
    return np.concatenate(pictures, axis=1)


def label_picture(sample: Sample, prediction: Tensor, protocol: SegmentationProtocol, classes: Classes) -> Array:
    """Image, truth and prediction in the classes' colours, and where they differ (red), side by side.

    Args:
        sample: The image and its labels [H, W].
        prediction: Labels [H, W].
        protocol: Which was followed.
        classes: Whose colours.

    Returns:
        uint8 [H, 4 W, 3].
    """
    labels, mask = truth_of(sample, protocol)
    truth, found = labels.numpy().astype(np.int64), prediction.cpu().numpy()
    counts = mask.numpy() & (truth != protocol.ignore_index)
    image = sample.image.numpy()
    errors = np.where(counts[:, :, None], image // 2, 0)
    errors[counts & (truth != found)] = (255, 0, 0)
    colours = [classes.colors_of(np.where(counts, truth, IGNORE_INDEX)), classes.colors_of(found)]
    return np.concatenate([image, *colours, errors], axis=1).astype(np.uint8)


# --- the curve ---


def curve_picture(points: Sequence[tuple[tuple[int, int], float]], name: str) -> Array:
    """A plot of a metric against the side of the network's input.

    Args:
        points: Of each (height, width) the metric. The axis is the side of a square with as many pixels.
        name: Of the metric.

    Returns:
        uint8 [480, 640, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    left, top, right, bottom = 90, 40, 610, 420
    xs = [math.sqrt(height * width) for (height, width), _ in points]
    ys = [value for _, value in points]
    x_range, y_range = _with_margin(xs), _with_margin([y for y in ys if math.isfinite(y)] or [0.0])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    image = Image.new("RGB", (640, 480), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for i in range(5):
        y = y_range[0] + (y_range[1] - y_range[0]) * i / 4
        _, row = at(0, y)
        draw.line([(left, row), (right, row)], fill="#dddddd")
        draw.text((left - 8, row), f"{y:.4g}", fill="black", font=font, anchor="rm")
    for x, ((height, width), _) in zip(xs, points, strict=True):
        column, _ = at(x, y_range[0])
        draw.line([(column, bottom), (column, bottom + 5)], fill="black")
        text = str(height) if height == width else f"{height}x{width}"
        draw.text((column, bottom + 8), text, fill="black", font=font, anchor="mt")
    draw.rectangle([left, top, right, bottom], outline="black")
    draw.text((left, top - 10), name, fill="black", font=font, anchor="ls")
    draw.text(((left + right) / 2, 460), "input size (pixels)", fill="black", font=font, anchor="ms")
    line = [at(x, y) for x, y in sorted(zip(xs, ys, strict=True)) if math.isfinite(y)]
    draw.line(line, fill="#3288bd", width=3)
    for column, row in line:
        draw.ellipse([column - 5, row - 5, column + 5, row + 5], fill="#3288bd")
    return np.asarray(image)


def _with_margin(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin
