"""How good predictions are: streaming metrics of depth, order of points, and segmentation.

A metric keeps a few sums of each image, so that what was measured in parts or by several processes can be merged, in
any order, without a difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from torchdpt.segmentation_metrics import SegmentationImage, SegmentationMetrics, SegmentationResult
from torchdpt.tally import Tally, as_batch

__all__ = [
    "WHDR",
    "DepthMetrics",
    "DepthResult",
    "SegmentationImage",
    "SegmentationMetrics",
    "SegmentationResult",
    "WHDRResult",
]


# --- depth ---


class DepthResult(NamedTuple):
    """Errors of depth, of all images or of one. The nine errors are NaN where there is no pixel to measure.

    With p the prediction, z the target, d = ln p - ln z and E the mean over valid pixels:

    Attributes:
        abs_rel: E |p - z| / z.
        sq_rel: E (p - z)^2 / z, in units of depth.
        rmse: sqrt E (p - z)^2, in units of depth.
        rmse_log: sqrt E d^2.
        log10: E |log10 p - log10 z|.
        silog: 100 sqrt(E d^2 - (E d)^2), as in the KITTI benchmark and BTS; others leave out the 100 or halve (E d)^2.
        delta1: Share of pixels with max(p / z, z / p) < 1.25, from 0 to 1.
        delta2: The same with 1.25^2.
        delta3: The same with 1.25^3.
        images: Images measured.
        empty: Images without a valid pixel, which are left out.
        pixels: Valid pixels.
        invalid_predictions: Those of them whose prediction is NaN, infinite or not positive.
        invalid_targets: Pixels in the mask whose target is NaN, infinite or not positive, which are left out.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    silog: float
    delta1: float
    delta2: float
    delta3: float
    images: int
    empty: int
    pixels: int
    invalid_predictions: int
    invalid_targets: int


class _DepthSums(NamedTuple):
    """What is kept of an image: sums over its valid pixels."""

    pixels: float
    abs_rel: float
    sq_rel: float
    square: float
    log: float
    log_square: float
    log_centred_square: float  # of log - its mean: the difference of the two sums above would lose digits
    log10: float
    delta1: float
    delta2: float
    delta3: float
    invalid_predictions: float
    invalid_targets: float


class DepthMetrics(Tally):
    """Errors of depth maps; see `DepthResult` for the formulas.

    Computed in float64. A prediction outside of [min_depth, max_depth] counts as the nearer end, NaN as `min_depth`,
    and infinity as `max_depth`, or as `min_depth` where that is infinite (as in the evaluation of BTS and AdaBins);
    `invalid_predictions` says how many were NaN, infinite or not positive.

    Args:
        average: "image": each error is computed for each image, and then averaged over images, which count alike (BTS,
            MiDaS). "pooled": over the pixels of all images, which count alike.
        min_depth: The least prediction, positive, in units of depth.
        max_depth: The largest one.

    Raises:
        ValueError: if an option is unknown or out of range.
    """

    def __init__(
        self,
        *,
        average: Literal["image", "pooled"] = "image",
        min_depth: float = 1e-3,
        max_depth: float = math.inf,
    ) -> None:
        super().__init__()
        if average not in ("image", "pooled"):
            raise ValueError(f"DepthMetrics: average must be 'image' or 'pooled', got {average!r}")
        if not 0 < min_depth < max_depth or math.isinf(min_depth):
            raise ValueError(f"DepthMetrics: wanted 0 < min_depth < max_depth, got {min_depth} and {max_depth}")
        self.average: Literal["image", "pooled"] = average
        self.min_depth = min_depth
        self.max_depth = max_depth

    def _settings(self) -> dict[str, Any]:
        return {"average": self.average, "min_depth": self.min_depth, "max_depth": self.max_depth}

    def update(self, prediction: Tensor, target: Tensor, mask: Tensor, *, ids: Sequence[str] | None = None) -> None:
        """Measure one image or a batch.

        Args:
            prediction: Depth [H, W] or [B, H, W], floating point.
            target: Depth, of the same size, in the same units.
            mask: bool, of the same size: where there is a target.
            ids: Names of the images, for `per_image`. Default: their numbers.

        Raises:
            ValueError: if a tensor is of another shape, type or device.
        """
        prediction, target, mask = as_batch("DepthMetrics", prediction, target, mask)
        p, z = prediction.double(), target.double()
        known = z.isfinite() & (z > 0)
        valid = mask & known
        bad = ~(p.isfinite() & (p > 0))
        high = self.max_depth if math.isfinite(self.max_depth) else self.min_depth
        p = p.nan_to_num(self.min_depth, high, self.min_depth).clamp(self.min_depth, self.max_depth)
        z = torch.where(valid, z, 1.0)  # what is not valid must be no NaN
        p = torch.where(valid, p, 1.0)  # and so has no error, either

        def total(values: Tensor) -> Tensor:
            return values.sum((1, 2), dtype=torch.float64)

        pixels = total(valid)
        difference, log = p - z, p.log() - z.log()
        centred = log - (total(log) / pixels.clamp(min=1))[:, None, None]
        ratio = torch.maximum(p / z, z / p)
        sums = {
            "pixels": pixels,
            "abs_rel": total(difference.abs() / z),
            "sq_rel": total(difference.square() / z),
            "square": total(difference.square()),
            "log": total(log),
            "log_square": total(log.square()),
            "log_centred_square": total(centred.square() * valid),
            "log10": total(log.abs()) / math.log(10),
            "delta1": total(valid & (ratio < 1.25)),
            "delta2": total(valid & (ratio < 1.25**2)),
            "delta3": total(valid & (ratio < 1.25**3)),
            "invalid_predictions": total(valid & bad),
            "invalid_targets": total(mask & ~known),
        }
        self._add(torch.stack([sums[name] for name in _DepthSums._fields], dim=1), ids)

    def compute(self) -> DepthResult:
        """The errors of all images so far, NaN if there are none."""
        return _depth_result([_DepthSums(*row) for row in self._rows], self.average)

    def per_image(self) -> list[tuple[str, DepthResult]]:
        """Name and errors of each image, in the order of the updates."""
        rows = [_DepthSums(*row) for row in self._rows]
        return [(id, _depth_result([row], "image")) for id, row in zip(self._ids, rows, strict=True)]


def _depth_result(rows: list[_DepthSums], average: str) -> DepthResult:
    used = [row for row in rows if row.pixels > 0]
    several = [_depth_errors(row) for row in ([_pool(used)] if used and average == "pooled" else used)]
    return DepthResult(
        **{name: _mean([errors[name] for errors in several]) for name in DepthResult._fields[:9]},
        images=len(used),
        empty=len(rows) - len(used),
        pixels=sum(int(row.pixels) for row in rows),
        invalid_predictions=sum(int(row.invalid_predictions) for row in rows),
        invalid_targets=sum(int(row.invalid_targets) for row in rows),
    )


def _mean(values: Sequence[float]) -> float:
    """Correctly rounded, so that the order does not matter; NaN of none."""
    return math.fsum(values) / len(values) if values else math.nan


def _depth_errors(sums: _DepthSums) -> dict[str, float]:
    n = sums.pixels
    return {
        "abs_rel": sums.abs_rel / n,
        "sq_rel": sums.sq_rel / n,
        "rmse": math.sqrt(sums.square / n),
        "rmse_log": math.sqrt(sums.log_square / n),
        "log10": sums.log10 / n,
        "silog": 100 * math.sqrt(sums.log_centred_square / n),
        "delta1": sums.delta1 / n,
        "delta2": sums.delta2 / n,
        "delta3": sums.delta3 / n,
    }


def _pool(rows: list[_DepthSums]) -> _DepthSums:
    total = _DepthSums(*(math.fsum(column) for column in zip(*rows, strict=True)))
    mean = total.log / total.pixels
    # Within images, and between them (Chan, Golub, LeVeque 1983).
    between = math.fsum(row.pixels * (row.log / row.pixels - mean) ** 2 for row in rows)
    return total._replace(log_centred_square=total.log_centred_square + between)


# --- order of points ---


class WHDRResult(NamedTuple):
    """How often the order of two points is wrong.

    Attributes:
        whdr: Percent of the pairs whose order is wrong, from 0 to 100; NaN if there are none. A tie is wrong.
        images: Images with pairs.
        empty: Images without, which are left out.
        pairs: Pairs.
        invalid_predictions: Those of them with a NaN or infinite prediction at a point; they are wrong.
    """

    whdr: float
    images: int
    empty: int
    pairs: int
    invalid_predictions: int


class WHDR(Tally):
    """Weighted human disagreement rate of ordinal pairs, all of weight one, as of Depth in the Wild (DIW).

    Args:
        prediction: What predictions are: "inverse_depth" (near is large) or "depth".
        relation: What +1 says of the points A and B of a pair: "farther": A is farther than B, so that z_A > z_B, as
            DIW's own code and one other read its ">" (one port reads the opposite); or "nearer".

    Raises:
        ValueError: if an option is unknown.

    Reference: Chen, Fu, Yang, Deng (2016), Single-Image Depth Perception in the Wild.
    """

    def __init__(
        self,
        *,
        prediction: Literal["inverse_depth", "depth"] = "inverse_depth",
        relation: Literal["farther", "nearer"] = "farther",
    ) -> None:
        super().__init__()
        if prediction not in ("inverse_depth", "depth"):
            raise ValueError(f"WHDR: prediction must be 'inverse_depth' or 'depth', got {prediction!r}")
        if relation not in ("farther", "nearer"):
            raise ValueError(f"WHDR: relation must be 'farther' or 'nearer', got {relation!r}")
        self.prediction: Literal["inverse_depth", "depth"] = prediction
        self.relation: Literal["farther", "nearer"] = relation

    def _settings(self) -> dict[str, Any]:
        return {"prediction": self.prediction, "relation": self.relation}

    def update(self, prediction: Tensor, pairs: Tensor, *, ids: Sequence[str] | None = None) -> None:
        """Measure one image or a batch.

        Args:
            prediction: [H, W] or [B, H, W], at the size in which the points are counted.
            pairs: Integers [N, 5] or [B, N, 5]: y_A, x_A, y_B, x_B, in pixels counted from 0 (DIW's file counts from
                1), and the relation, +1 or -1.
            ids: Names of the images, for `per_image`. Default: their numbers.

        Raises:
            ValueError: if a tensor is of another shape or type, a point outside of the image, or a relation another.
        """
        if prediction.dim() not in (2, 3) or pairs.shape[:-2] != prediction.shape[:-2] or pairs.shape[-1:] != (5,):
            raise ValueError(
                "WHDR: prediction must be [H, W] or [B, H, W] and pairs [N, 5] or [B, N, 5], got "
                f"{list(prediction.shape)} and {list(pairs.shape)}"
            )
        if pairs.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"WHDR: pairs must be int64, got {pairs.dtype}")
        height, width = prediction.shape[-2:]
        maps = prediction.detach().reshape(math.prod(prediction.shape[:-2]), height, width)
        several = pairs.to(maps.device, torch.int64).reshape(len(maps), *pairs.shape[-2:])
        points, relation = several[..., :4], several[..., 4]
        limits = torch.tensor([height, width, height, width], device=maps.device)
        outside = ((points < 0) | (points >= limits)).any(-1)
        if outside.any():
            raise ValueError(
                f"WHDR: points must be in the image, {height} x {width} (height x width), counted from 0, got the pair "
                f"{several[outside][0].tolist()}"
            )
        if not (relation.abs() == 1).all():
            raise ValueError(f"WHDR: relations must be +1 or -1, got {relation[relation.abs() != 1][0].item()}")
        batch = torch.arange(len(maps), device=maps.device)[:, None]
        a, b = maps[batch, points[..., 0], points[..., 1]], maps[batch, points[..., 2], points[..., 3]]
        known = a.isfinite() & b.isfinite()
        a_is_farther = a < b if self.prediction == "inverse_depth" else a > b
        a_is_nearer = a > b if self.prediction == "inverse_depth" else a < b
        plus, minus = (a_is_farther, a_is_nearer) if self.relation == "farther" else (a_is_nearer, a_is_farther)
        right = known & torch.where(relation == 1, plus, minus)
        rows = torch.stack([torch.full_like(right, True).sum(1), (~right).sum(1), (~known).sum(1)], dim=1)
        self._add(rows, ids)

    def compute(self) -> WHDRResult:
        """The rate over the pairs of all images so far, NaN if there are none."""
        return _whdr_result(self._rows)

    def per_image(self) -> list[tuple[str, WHDRResult]]:
        """Name and rate of each image, in the order of the updates."""
        return [(id, _whdr_result([row])) for id, row in zip(self._ids, self._rows, strict=True)]


def _whdr_result(rows: list[list[float]]) -> WHDRResult:
    pairs, wrong, invalid = (int(sum(row[i] for row in rows)) for i in range(3))
    images = sum(row[0] > 0 for row in rows)
    return WHDRResult(100 * wrong / pairs if pairs else math.nan, images, len(rows) - images, pairs, invalid)
