"""Slow and obvious metrics in NumPy float64."""

from __future__ import annotations

import numpy as np


def depth_errors(prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Of the valid pixels alone, [N]; with the textbook formula for SILog."""
    p, z = np.asarray(prediction, np.float64).ravel(), np.asarray(target, np.float64).ravel()
    d = np.log(p) - np.log(z)
    ratio = np.max([p / z, z / p], axis=0)
    return {
        "abs_rel": np.mean(np.abs(p - z) / z),
        "sq_rel": np.mean((p - z) ** 2 / z),
        "rmse": np.sqrt(np.mean((p - z) ** 2)),
        "rmse_log": np.sqrt(np.mean(d**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(z))),
        "silog": 100 * np.sqrt(np.mean(d**2) - np.mean(d) ** 2),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
    }


def mean_errors(images: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    errors = [depth_errors(*image) for image in images]
    return {name: float(np.mean([error[name] for error in errors])) for name in errors[0]}


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """With half-pixel centres and repeated borders, one pixel at a time."""
    rows, columns = image.shape
    result = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
            result[i, j] = upper * (1 - y + top) + lower * (y - top)
    return result
