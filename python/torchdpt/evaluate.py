"""Following a protocol: from pairs of prediction and ground truth to a result that says how it was made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

from torchdpt import protocols
from torchdpt.losses import align
from torchdpt.metrics import WHDR, DepthMetrics, SegmentationMetrics
from torchdpt.protocols import DepthProtocol, OrdinalProtocol, Protocol, SegmentationProtocol, kb_crop
from torchdpt.tally import check_one_device, gather

__all__ = ["EvaluationResult", "Evaluator"]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation gave.

    Attributes:
        protocol: How it was made.
        metrics: The numbers, NaN where nothing was measured: fields of `metrics.DepthResult` (and "delta1_error",
            100 (1 - delta1)), `metrics.WHDRResult` or `metrics.SegmentationResult`.
        counts: The whole numbers among these fields; of aligned depth also "constant", images whose prediction or
            ground truth is constant (scale 0), and "negative_scales".
        iou: Of a segmentation: intersection over union of each class, NaN of absent ones.
        per_image: Of each image its "id", metrics and counts, of aligned depth its "scale" and "shift", and from
            `evaluate_dataset` its "index" in the data set.
        failures: Of each sample that `evaluate_dataset` could not measure its "index" in the data set, its "id", None
            if it did not get as far as the network, and the "error".
    """

    protocol: Protocol
    metrics: dict[str, float]
    counts: dict[str, int]
    iou: tuple[float, ...] = ()
    per_image: tuple[dict[str, Any], ...] = dataclasses.field(default=(), repr=False)
    failures: tuple[dict[str, Any], ...] = ()

    @property
    def headline(self) -> float:
        """The number that the protocol reports."""
        return self.metrics[self.protocol.headline]

    def to_json(self) -> dict[str, Any]:
        """For json.dumps, but for `per_image`: every setting of the protocol, too. NaN and infinity become None."""
        return {
            "protocol": protocols.to_json(self.protocol),
            "headline": {"name": self.protocol.headline, "value": _number(self.headline)},
            "metrics": {name: _number(value) for name, value in self.metrics.items()},
            "counts": self.counts,
            **({"iou": [_number(value) for value in self.iou]} if self.iou else {}),
            **({"failures": list(self.failures)} if self.failures else {}),
        }


class Evaluator:
    """Measures predictions one by one, as a protocol says.

    Args:
        protocol: Which: of `protocols.PROTOCOLS`, with changes from `protocols.get`, or one of one's own.
    """

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self._alignments: list[tuple[float, float, int]] = []  # scale, shift, dropped, of each image
        self._metrics: DepthMetrics | WHDR | SegmentationMetrics
        if isinstance(protocol, SegmentationProtocol):
            self._metrics = SegmentationMetrics(
                protocol.num_classes, ignore_index=protocol.ignore_index, absent=protocol.absent
            )
        elif isinstance(protocol, OrdinalProtocol):
            self._metrics = WHDR(prediction=protocol.prediction, relation=protocol.relation)
        else:
            low, high = protocol.min_depth, math.inf if protocol.cap is None else protocol.cap
            if protocol.error_space == "inverse_depth":
                low, high = (1e-6 if math.isinf(high) else 1 / high), 1 / low
            self._metrics = DepthMetrics(average=protocol.average, min_depth=low, max_depth=high)

    def update(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor | None = None,
        *,
        id: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Measure one image.

        Args:
            prediction: Depth or order: [h, w], of any size, floating point, what `protocol.prediction` says.
                Segmentation: labels, integers [H, W].
            target: Depth: [H, W], what `protocol.target` says. Order: pairs [N, 5] as `metrics.WHDR` wants them.
                Segmentation: labels [H, W].
            mask: bool [H, W]: where there is ground truth. Default, of depth: where it is finite and positive; of a
                segmentation: everywhere but at the ignored label. Not for order.
            id: The image's name. Default: its number.
            size: Of order: (H, W), in which points are counted. Default: the prediction's.

        Raises:
            ValueError: if a tensor is of another shape, type or device, or a crop does not fit.
        """
        ids = None if id is None else [id]
        if prediction.dim() != 2:
            raise ValueError(
                f"{self.protocol.name}: prediction must be of one image, [h, w], got {list(prediction.shape)}"
            )
        if isinstance(self._metrics, SegmentationMetrics):
            self._metrics.update(prediction, target, mask, ids=ids)
        elif isinstance(self.protocol, OrdinalProtocol) and isinstance(self._metrics, WHDR):
            resized = _resize(prediction, size or tuple(prediction.shape), self.protocol.upsample)
            self._metrics.update(resized, target, ids=ids)
        elif isinstance(self.protocol, DepthProtocol) and isinstance(self._metrics, DepthMetrics):
            self._update_depth(self.protocol, self._metrics, prediction, target, mask, ids)

    def _update_depth(
        self,
        protocol: DepthProtocol,
        metrics: DepthMetrics,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor | None,
        ids: list[str] | None,
    ) -> None:
        known = target.isfinite() & (target > 0)
        mask = known if mask is None else mask
        if target.dim() != 2 or mask.shape != target.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{protocol.name}: target must be [H, W] and mask bool of its size, got {list(target.shape)} and "
                f"{mask.dtype} {list(mask.shape)}"
            )
        check_one_device(protocol.name, prediction, target, mask)
        height, width = target.shape
        full = at_full_size(protocol, prediction, height, width)
        wanted = counting(protocol, target, mask)
        z, p, valid = target[wanted].double(), full[wanted].double(), known[wanted]
        z = z if protocol.target == "depth" else 1 / z
        scale, shift = 1.0, 0.0
        if protocol.alignment is not None:
            usable = valid & p.isfinite()
            a = align(p[None, None], 1 / z[None, None], usable[None, None], mode=protocol.alignment)
            scale, shift = a.scale.item(), a.shift.item()
            self._alignments.append((scale, shift, int(a.dropped.item())))
        p = in_error_space(protocol, p, scale, shift)
        z = z if protocol.error_space == "depth" else 1 / z
        metrics.update(p[None], z[None], torch.ones_like(valid)[None], ids=ids)

    def merge(self, other: Self) -> None:
        """Add what another evaluator of this protocol has measured, after one's own; it stays as it is.

        Raises:
            ValueError: if it has another protocol.
        """
        if other.protocol != self.protocol:
            raise ValueError(f"only evaluators of one protocol can be merged, got {self.protocol} and {other.protocol}")
        self._metrics.merge(other._metrics)  # type: ignore[arg-type]  # the same kind, by the protocol
        self._alignments += other._alignments

    def all_reduce(self, process_group: dist.ProcessGroup | None = None) -> Self:
        """An evaluator of what all processes have measured, in order of rank; this one stays as it is.

        All processes of the group must call it. Without a process group it is a copy. A sampler that repeats images
        to fill up the last batch makes them count twice: `counts["images"]` and `counts["empty"]` say how many it were.

        Args:
            process_group: Of torch.distributed. Default: the default group, if there is one.
        """
        together = type(self)(self.protocol)
        for evaluator in gather(self, process_group):
            together.merge(evaluator)
        return together

    def result(self) -> EvaluationResult:
        """Of all images so far."""
        found = self._metrics.compute()._asdict()
        iou = found.pop("iou", ())
        numbers = {name: value for name, value in found.items() if isinstance(value, float)}
        counts = {name: value for name, value in found.items() if isinstance(value, int)}
        if "delta1" in numbers:
            numbers["delta1_error"] = 100 * (1 - numbers["delta1"])
        rows = [{"id": id, **values._asdict()} for id, values in self._metrics.per_image()]
        if self._alignments:
            counts["constant"] = sum(dropped == 2 for _, _, dropped in self._alignments)
            counts["negative_scales"] = sum(scale < 0 for scale, _, _ in self._alignments)
            for row, (scale, shift, _) in zip(rows, self._alignments, strict=True):
                row |= {"scale": scale, "shift": shift}
        return EvaluationResult(self.protocol, numbers, counts, iou, tuple(rows))


def counting(protocol: DepthProtocol, target: Tensor, mask: Tensor) -> Tensor:
    """bool [H, W]: the pixels of `mask` that count; those whose target is not known among them, to be reported."""
    height, width = target.shape
    top, bottom, left, right = protocol.crop_of(height, width)
    inside = torch.zeros_like(mask)
    inside[top:bottom, left:right] = True
    depth = target.double() if protocol.target == "depth" else 1 / target.double()
    beyond = (depth <= protocol.min_target) | (depth >= (protocol.max_target or math.inf))
    return mask & inside & ~(target.isfinite() & (target > 0) & beyond)


def in_error_space(protocol: DepthProtocol, prediction: Tensor, scale: float, shift: float) -> Tensor:
    """Predictions, any shape, as what errors are measured of; scale and shift are those of an alignment."""
    if protocol.alignment is None:
        return prediction if protocol.error_space == "depth" else 1 / prediction
    # Infinities would end at a bound of the depth.
    aligned = torch.where(prediction.isfinite(), scale * prediction + shift, math.nan)
    if protocol.error_space == "inverse_depth":
        return aligned
    return 1 / aligned.clamp(min=1 / protocol.cap) if protocol.cap else 1 / aligned


def at_full_size(protocol: DepthProtocol, prediction: Tensor, height: int, width: int) -> Tensor:
    """The prediction at the size of the ground truth; NaN where it was not made."""
    rows, columns = kb_crop(height, width) if protocol.paste else ((0, height), (0, width))
    part = _resize(prediction, (rows[1] - rows[0], columns[1] - columns[0]), protocol.upsample)
    if protocol.quantisation is not None:  # what is not finite becomes 0, not known
        part = (part * protocol.quantisation).nan_to_num(0, 0, 0).clamp(0, 65535).floor() / protocol.quantisation
    full = part.new_full((height, width), math.nan)
    full[slice(*rows), slice(*columns)] = part
    return full


def _resize(map: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    map = map.detach()
    map = map if map.dtype == torch.float64 else map.float()
    if map.shape == size:  # would be exact, but for NaN, which 0 * NaN spreads
        return map
    return F.interpolate(map[None, None], size, mode=mode, align_corners=False)[0, 0]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
