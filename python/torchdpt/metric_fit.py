"""Fitting relative inverse depth to a few distances that are known in metres."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = ["MetricFit"]

Array = np.ndarray[Any, Any]

_MOST_PAIRS = 2048  # lines that are tried
_MOST_SCORED = 1024  # points that they are tried on


class MetricFit(NamedTuple):
    """How relative inverse depth became metres: 1 / depth = scale * value + shift.

    Attributes:
        scale: Positive, in 1 / m.
        shift: In 1 / m.
        residuals: float64 [N]: 1 / depth as measured, less as fitted, in 1 / m, of each point as it was given, of a map
            row by row. NaN where the prediction is not known.
        inliers: bool [N]: the points that decided scale and shift.
    """

    scale: float
    shift: float
    residuals: Array
    inliers: Array


def as_points(points: object, sparse_depth: object, height: int, width: int) -> tuple[Array, Array, Array]:
    """Rows, columns (int64 [N]) and metres (float64 [N]) of what the user measured.

    Raises:
        ValueError: if it is of another shape, outside of the image or not positive.
    """
    if (points is None) == (sparse_depth is None):
        raise ValueError("to_metric: give either points [N, 3] (x, y, metres) or sparse_depth= [H, W] in metres")
    if sparse_depth is not None:
        depth = _numbers("sparse_depth", sparse_depth)
        if depth.shape != (height, width):
            raise ValueError(
                f"to_metric: sparse_depth must be [{height}, {width}], as the prediction, got {list(depth.shape)}"
            )
        rows, columns = np.nonzero(~np.isnan(depth) & (depth != 0))
        metres = depth[rows, columns]
    else:
        array = _numbers("points", points)
        if array.ndim != 2 or array.shape[1] != 3:
            raise ValueError(f"to_metric: points must be [N, 3] (x, y, metres), got {list(array.shape)}")
        x, y, metres = array.T
        outside = ~((x >= 0) & (x < width) & (y >= 0) & (y < height))  # also for NaN
        if outside.any():
            raise ValueError(
                f"to_metric: points must be in the image, x from 0 to {width} and y from 0 to {height} pixels; "
                f"{outside.sum()} of {len(array)} are not, the first at ({x[outside][0]:g}, {y[outside][0]:g})"
            )
        rows, columns = y.astype(np.int64), x.astype(np.int64)
    wrong = ~(np.isfinite(metres) & (metres > 0))
    if wrong.any():
        raise ValueError(
            f"to_metric: distances must be positive and finite, in metres; {wrong.sum()} of {len(metres)} are not, the "
            f"first is {metres[wrong][0]:g}"
        )
    return rows, columns, metres


def _numbers(name: str, values: object) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"to_metric: {name} must be an array of numbers, got {array.dtype}")
    return array.astype(np.float64)


def fit_inverse_depth(values: Array, metres: Array, spread: float) -> MetricFit:
    """The line 1 / metres = scale * values + shift that most points agree on.

    Of the lines through two points (all pairs of a few points, else 2048 pairs spread evenly), the one with the least
    median of absolute residuals; then least squares on the points within 2.5 standard deviations of it, repeated until
    these stay the same. Of twenty points and more up to two fifths may be outliers, of five one: fewer points agree by
    chance. There is no random number in it, and but for rounding the order of the points does not matter.

    Args:
        values: Predicted inverse depth at the points, [N]; NaN or infinite where it is not known.
        metres: Measured there, positive, [N].
        spread: Largest less smallest value in the whole prediction.

    Raises:
        ValueError: if the points do not determine scale and shift.

    Reference: Rousseeuw (1984), Least median of squares regression; Rousseeuw, Leroy (1987), Sec. 5.1.
    """
    known = np.isfinite(values)
    v, w = values[known].astype(np.float64), 1 / metres[known]
    if len(v) < 2:
        raise ValueError(
            f"to_metric: two unknowns, scale and shift, need at least two points where the prediction is known, got "
            f"{len(v)} of {len(values)} points; measure more"
        )
    # Below this, values are all at one depth: a thousandth of what is in the picture, or rounding of float32.
    least = max(1e-3 * spread, 1e-6 * float(np.abs(v).max()))
    if np.ptp(v) <= least:
        raise ValueError(
            f"to_metric: all points are at nearly one predicted inverse depth, from {v.min():g} to {v.max():g} in a "
            f"prediction that spans {spread:g}, and do not tell scale from shift; measure near and far points"
        )
    scale, shift, inliers = _robust_line(v, w, least)
    error = _error_of_scale(v[inliers], w[inliers] - scale * v[inliers] - shift)
    if not scale > 3 * error:
        why = "negative" if scale < -3 * error else f"not told from zero (standard error {error:.3g})"
        raise ValueError(
            f"to_metric: the fitted scale is {scale:.3g}, {why}, by {inliers.sum()} of {len(v)} points: near is large "
            "in the prediction, and the points do not say so; are they x, y in pixels of this picture, and metres?"
        )
    residuals, used = np.full(len(values), np.nan), np.zeros(len(values), dtype=bool)
    residuals[known] = w - scale * v - shift
    used[known] = inliers
    return MetricFit(scale, shift, residuals, used)


def _robust_line(v: Array, w: Array, least: float) -> tuple[float, float, Array]:
    order = np.lexsort((w, v))
    first, second = _pairs(len(v))
    first, second = order[first], order[second]
    apart = np.abs(v[first] - v[second]) > least
    if not apart.any():  # but of points that are not tried together
        first, second, apart = order[:1], order[-1:], np.array([True])
    first, second = first[apart], second[apart]
    slopes = (w[first] - w[second]) / (v[first] - v[second])
    scored = order[np.linspace(0, len(v) - 1, min(len(v), _MOST_SCORED)).round().astype(np.int64)]
    # Of three points any two are on a line: with fewer than three in the score, every pair would be perfect.
    rank = min(max(len(scored) // 2 + 1, 3), len(scored)) - 1
    residuals = np.abs(w[scored] - w[first, None] - slopes[:, None] * (v[scored] - v[first, None]))
    scores = np.partition(residuals, rank, axis=1)[:, rank]
    best = int(np.argmin(scores))
    scale, shift = float(slopes[best]), float(w[first[best]] - slopes[best] * v[first[best]])
    # 1.4826: from the median of a normal distribution to its deviation; 5 / (N - 2) is Rousseeuw's for few points.
    deviation = 1.4826 * (1 + 5 / max(len(v) - 2, 1)) * scores[best]
    limit = max(2.5 * deviation, 1e-4 * float(np.median(w)))  # exact points are inliers whatever rounding does
    inliers = np.abs(w - scale * v - shift) <= limit
    for _ in range(20):
        scale, shift = _least_squares(v[inliers], w[inliers])
        agree = np.abs(w - scale * v - shift) <= limit
        if np.array_equal(agree, inliers) or agree.sum() < 2 or np.ptp(v[agree]) <= least:
            break
        inliers = agree
    else:  # still changing
        scale, shift = _least_squares(v[inliers], w[inliers])
    return scale, shift, inliers


def _pairs(count: int) -> tuple[Array, Array]:
    if count * (count - 1) // 2 <= _MOST_PAIRS:
        return np.triu_indices(count, 1)
    # Evenly spread over the square of all pairs: the additive recurrence of the plastic number (Roberts 2018).
    steps = np.arange(1, _MOST_PAIRS + 1)
    first, second = (np.floor(steps * 1.32471795724474602596**-power % 1 * count).astype(np.int64) for power in (1, 2))
    return first, second


def _least_squares(v: Array, w: Array) -> tuple[float, float]:
    centred = v - v.mean()
    scale = float((centred * (w - w.mean())).sum() / (centred**2).sum())
    return scale, float(w.mean() - scale * v.mean())


def _error_of_scale(v: Array, residuals: Array) -> float:
    """The standard error of a fitted scale, larger for few points as the deviation is; 0 of two, always on a line."""
    freedom = len(v) - 2
    if freedom == 0:
        return 0.0
    return float((1 + 5 / freedom) * np.sqrt((residuals**2).sum() / freedom / ((v - v.mean()) ** 2).sum()))


def metric_depth(depth: Array, scale: float, shift: float) -> Array:
    """1 / (scale * depth + shift), float32; NaN, not known, where that is not positive or beyond float32."""
    inverse = scale * depth.astype(np.float64) + shift
    smallest = 1 / float(np.finfo(np.float32).max)
    metres: Array = np.full(depth.shape, np.nan, dtype=np.float32)
    known = np.isfinite(inverse) & (inverse > smallest)
    metres[known] = 1 / inverse[known]
    return metres
