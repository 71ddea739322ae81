"""How data sets are evaluated, as data; `torchdpt.evaluate` does what they say.

Where a published number does not say how it was made, the choice is a field, and each result holds all fields.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torchdpt.annotations import is_of, name_of
from torchdpt.classes import IGNORE_INDEX

__all__ = [
    "PROTOCOLS",
    "DepthProtocol",
    "OrdinalProtocol",
    "Protocol",
    "SegmentationProtocol",
    "get",
    "kb_crop",
    "more_is_better",
    "single_scale",
    "to_json",
]

Resize = Literal["minimal", "lower_bound", "upper_bound", "exact"]
DepthError = Literal[
    "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "delta1", "delta2", "delta3", "delta1_error"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthProtocol:
    """Errors of depth: predictions are resized, quantised and pasted, aligned where ground truth counts, and measured.

    Attributes:
        name: What the protocol is called.
        dataset: What it is for.
        images: How many images the data set has; None: not known.
        headline: The number that is reported: a field of `metrics.DepthResult`, or "delta1_error", which is
            100 (1 - delta1).
        resize: Policy of `ImageProcessor` that makes the network's input.
        input_size: (height, width) that it aims at; None: that of the model's processor, for which it was trained.
        multiple_of: Its sides are multiples of this.
        prediction: What predictions are: "inverse_depth", of any scale and shift, or "depth" in metres.
        target: What the ground truth is: "depth" or "inverse_depth".
        upsample: How predictions are brought to the size of the ground truth: "bilinear" or "bicubic", both with
            half-pixel centres (align_corners=False).
        quantisation: Levels per metre of a 16-bit PNG file that the predictions went through, truncated; None: none.
        paste: "kb_crop": the network saw the part of the photograph that `kb_crop` gives, and predictions are pasted
            there; None: it saw all.
        min_target: Ground truth counts above this depth, and not at it.
        max_target: And below this one; None: all does.
        crop: (top, bottom, left, right) outside of which nothing counts, bottom and right exclusive; None: all counts.
        crop_unit: "pixel", or "fraction" of the height and width, rounded down.
        crop_frame: Of what: "full", the ground truth, or its "kb_crop" (as AdaBins, ZoeDepth and NeWCRFs do).
        alignment: How inverse depth gets its scale and shift, for each image: "least_squares" or "robust" of
            `losses.align`, in inverse depth; None: not at all, for depth in metres.
        min_depth: Predictions below count as this.
        cap: Predictions beyond count as this depth; None: no cap (and inverse depth below 1e-6
            counts as 1e-6).
        error_space: Where errors are measured: in "depth", or in "inverse_depth", which min_depth and cap then bound.
        average: "image" or "pooled"; see `metrics.DepthMetrics`.

    Raises:
        ValueError: if a field has no such choice, or they do not go together.
    """

    name: str
    dataset: str
    images: int | None = None
    headline: DepthError = "abs_rel"
    resize: Resize = "minimal"
    input_size: tuple[int, int] | None = (384, 384)
    multiple_of: int = 32
    prediction: Literal["inverse_depth", "depth"] = "inverse_depth"
    target: Literal["depth", "inverse_depth"] = "depth"
    upsample: Literal["bilinear", "bicubic"] = "bilinear"
    quantisation: float | None = None
    paste: Literal["kb_crop"] | None = None
    min_target: float = 0.0
    max_target: float | None = None
    crop: tuple[float, float, float, float] | None = None
    crop_unit: Literal["pixel", "fraction"] = "pixel"
    crop_frame: Literal["full", "kb_crop"] = "full"
    alignment: Literal["least_squares", "robust"] | None = "least_squares"
    min_depth: float = 1e-6
    cap: float | None = None
    error_space: Literal["depth", "inverse_depth"] = "depth"
    average: Literal["image", "pooled"] = "image"

    def __post_init__(self) -> None:
        _check_choices(self)
        if (self.prediction == "inverse_depth") != (self.alignment is not None):
            raise ValueError(
                f"{self.name}: prediction='inverse_depth' needs an alignment, and 'depth' in metres has none, got "
                f"{self.prediction!r} with alignment={self.alignment!r}"
            )
        if self.error_space == "depth" and self.alignment is not None and self.cap is None:
            raise ValueError(
                f"{self.name}: aligned inverse depth may be 0 or less, so that errors in depth need a cap, in "
                "units of the ground truth; pass cap= or error_space='inverse_depth'"
            )
        bounds = {"cap": (self.min_depth, self.cap), "max_target": (self.min_target, self.max_target)}
        for bound, (low, high) in bounds.items():
            if low < 0 or (high is not None and not high > low):
                raise ValueError(
                    f"{self.name}: {bound} must be None or above its lower bound, which is 0 or more, got {high} and "
                    f"{low}"
                )
        if self.crop is not None:
            top, bottom, left, right = self.crop if len(self.crop) == 4 else (0, 0, 0, 0)
            if not (0 <= top < bottom and 0 <= left < right):
                raise ValueError(
                    f"{self.name}: crop must be (top, bottom, left, right), bottom below top and right of left, none "
                    f"negative, got {self.crop}"
                )
        if self.quantisation is not None and self.alignment is not None:
            raise ValueError(f"{self.name}: quantisation is of depth in metres, and prediction is inverse depth")

    def crop_of(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) in pixels of ground truth of this size, bottom and right exclusive.

        Raises:
            ValueError: if the crop does not fit into it.
        """
        rows, columns = (0, height), (0, width)
        if self.crop_frame == "kb_crop":
            rows, columns = kb_crop(height, width)
        if self.crop is None:
            return (*rows, *columns)
        units = (1.0, 1.0) if self.crop_unit == "pixel" else (rows[1] - rows[0], columns[1] - columns[0])
        top, bottom = (rows[0] + int(edge * units[0]) for edge in self.crop[:2])
        left, right = (columns[0] + int(edge * units[1]) for edge in self.crop[2:])
        if bottom > height or right > width:
            raise ValueError(
                f"{self.name}: the crop, rows {top} to {bottom} and columns {left} to {right}, does not fit into "
                f"{height} x {width} (height x width); evaluate at the ground truth's own size"
            )
        return top, bottom, left, right


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrdinalProtocol:
    """The order of pairs of points; `metrics.WHDR` says what `relation` is, and `DepthProtocol` the rest."""

    name: str
    dataset: str
    images: int | None = None
    headline: Literal["whdr"] = "whdr"
    resize: Resize = "minimal"
    input_size: tuple[int, int] = (384, 384)
    multiple_of: int = 32
    prediction: Literal["inverse_depth", "depth"] = "inverse_depth"
    upsample: Literal["bilinear", "bicubic"] = "bilinear"
    relation: Literal["farther", "nearer"] = "farther"

    def __post_init__(self) -> None:
        _check_choices(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationProtocol:
    """Classes: how the scores of an image are made, and how labels are counted.

    Attributes:
        name: What the protocol is called.
        dataset: What it is for.
        images: How many images the data set has; None: not known.
        headline: "miou" or "pixel_accuracy".
        num_classes: K.
        ignore_index: Label of pixels without a class.
        absent: How classes that are in no image count; see `metrics.SegmentationMetrics`.
        scales: The photograph is looked at in each of these sizes, and the scores are added up.
        base_size: Its longer side at scale 1 (with crops) or the size that `resize` aims at (without).
        resize: Policy of `ImageProcessor`, without crops; None: the longer side is base_size * scale, rounded up.
        crop_size: Side of the square crops that the network sees; smaller photographs are padded with black below and
            to the right. None: no crops.
        stride: From one crop to the next; scores are averaged where crops overlap.
        flip: Whether the mirrored photograph is looked at, too.
        score: What is added up: "exp": exp(logits + mirrored logits), which is no softmax (PyTorch-Encoding);
            "logits".
        upsample: How scores are brought to the photograph's size, and the photograph to the size of crops'
            scales: "bilinear_corners" (align_corners=True) or "bicubic" (half-pixel centres).

    Raises:
        ValueError: if a field has no such choice, or they do not go together.
    """

    name: str
    dataset: str
    num_classes: int
    images: int | None = None
    headline: Literal["miou", "pixel_accuracy"] = "miou"
    ignore_index: int = IGNORE_INDEX
    absent: Literal["zero", "skip"] = "zero"
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    base_size: int = 520
    resize: Resize | None = None
    crop_size: int | None = 480
    stride: int | None = 320
    flip: bool = True
    score: Literal["exp", "logits"] = "exp"
    upsample: Literal["bilinear_corners", "bicubic"] = "bilinear_corners"

    def __post_init__(self) -> None:
        _check_choices(self)
        crops = (self.crop_size is not None, self.stride is not None)
        if crops != (self.resize is None,) * 2:
            raise ValueError(
                f"{self.name}: wanted crop_size and stride, and resize=None, or resize without these, got crop_size="
                f"{self.crop_size}, stride={self.stride}, resize={self.resize!r}"
            )
        if self.crop_size is not None and self.stride is not None and not 1 <= self.stride <= self.crop_size:
            raise ValueError(
                f"{self.name}: stride must be from 1 to crop_size, or pixels would be left out, got {self.stride} and "
                f"{self.crop_size}"
            )
        if not self.scales or min(self.scales) <= 0 or self.base_size < 1:
            raise ValueError(
                f"{self.name}: scales and base_size must be positive, and one scale there, got {self.scales} and "
                f"{self.base_size}"
            )


# Any of the three.
Protocol = DepthProtocol | OrdinalProtocol | SegmentationProtocol


def _check_choices(protocol: Protocol) -> None:
    for name, hint in get_type_hints(type(protocol)).items():
        value, choices = getattr(protocol, name), _choices(hint)
        if choices and value not in choices:
            raise ValueError(f"{protocol.name}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _choices(hint: Any) -> list[Any]:
    """Those of a field annotated as Literal, perhaps with None; of others none."""
    parts = (hint,) if get_origin(hint) is Literal else get_args(hint)
    choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
    return [*choices, None] if choices and type(None) in parts else choices


def kb_crop(height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The part of a KITTI photograph that networks see: 352 rows at the bottom, 1216 columns in the middle.

    Returns:
        (top, bottom), (left, right) in pixels, bottom and right exclusive.

    Raises:
        ValueError: if it is smaller than that.

    Reference: cleinc/bts, do_kb_crop.
    """
    if height < 352 or width < 1216:
        raise ValueError(f"kb_crop: wanted at least 352 x 1216 (height x width), got {height} x {width}")
    left = (width - 1216) // 2
    return (height - 352, height), (left, left + 1216)


def get(name: str, /, **changes: Any) -> Protocol:
    """A protocol of `PROTOCOLS`, with some fields changed.

    Args:
        name: Its name: "zero_shot_midas/nyu", say.
        **changes: Fields, and what they are instead. A list, as in YAML, counts as a tuple.

    Raises:
        ValueError: if there is no such protocol or field, or a value is of another type or none of the choices.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
        why = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"there is no protocol {name!r}{why}; there are {', '.join(PROTOCOLS)}")
    return changed(PROTOCOLS[name], changes)


def changed(protocol: Protocol, fields: Mapping[str, Any]) -> Protocol:
    """The protocol with some fields changed, as `get` does."""
    hints = get_type_hints(type(protocol))
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{protocol.name} has no field {name!r}; it has {', '.join(hints)}")
        if not _choices(hints[name]) and not is_of(value, hints[name]):
            raise ValueError(f"{protocol.name}: {name} must be {name_of(hints[name])}, got {value!r}")
    return dataclasses.replace(protocol, **values)


def to_json(protocol: Protocol) -> dict[str, Any]:
    """For json.dumps: every field, and what kind of protocol it is."""
    return {"kind": type(protocol).__name__, **dataclasses.asdict(protocol)}


def more_is_better(metric: str) -> bool:
    """Whether of a metric (a headline, say) more is better; of all others, which are errors, less is."""
    return metric in ("delta1", "delta2", "delta3", "miou", "pixel_accuracy")


def single_scale(protocol: SegmentationProtocol) -> SegmentationProtocol:
    """The protocol with the whole photograph looked at once, as isl-org/DPT run_segmentation.py does."""
    return dataclasses.replace(
        protocol,
        name=f"{protocol.name}/single_scale",
        scales=(1.0,),
        base_size=480,
        resize="minimal",
        crop_size=None,
        stride=None,
        flip=False,
        score="logits",
        upsample="bicubic",
    )


# --- the protocols ---

# MiDaS (Ranftl et al. 2020), Sec. 6, and the authors' scripts for NYU and KITTI. Ground truth beyond the cap is left
# out for Sintel (MiDaS) and NYU (its script), and counts for KITTI (its script); of ETH3D and TUM it is not known.
_ZERO_SHOT = (
    DepthProtocol(name="eth3d", dataset="ETH3D", images=454, headline="abs_rel", cap=72),
    DepthProtocol(name="sintel", dataset="Sintel", images=1064, headline="abs_rel", cap=72, max_target=72),
    DepthProtocol(name="kitti", dataset="KITTI", images=161, headline="delta1_error", cap=80),
    DepthProtocol(name="nyu", dataset="NYU", images=654, headline="delta1_error", cap=10, max_target=10),
    DepthProtocol(name="tum", dataset="TUM", images=1815, headline="delta1_error", cap=10, min_target=1e-8),
)
_DIW = OrdinalProtocol(name="diw", dataset="DIW", images=74441)

# isl-org/DPT EVALUATION.md with cleinc/bts utils/eval_with_pngs.py.
_KITTI_EIGEN = DepthProtocol(
    name="kitti_eigen",
    dataset="KITTI",
    images=652,
    resize="exact",
    input_size=(352, 1216),
    prediction="depth",
    upsample="bicubic",
    quantisation=256,
    paste="kb_crop",
    min_target=1e-3,
    max_target=80,
    crop=(0.40810811, 0.99189189, 0.03594771, 0.96405229),  # Garg et al. 2016
    crop_unit="fraction",
    alignment=None,
    min_depth=1e-3,
    cap=80,
)
_NYU_EIGEN = DepthProtocol(
    name="nyu_eigen",
    dataset="NYU",
    images=654,
    resize="exact",
    input_size=(480, 640),
    prediction="depth",
    upsample="bicubic",
    quantisation=1000,
    min_target=1e-3,
    max_target=10,
    crop=(45, 471, 41, 601),
    alignment=None,
    min_depth=1e-3,
    cap=10,
)

# zhanghang1989/PyTorch-Encoding encoding/models/sseg/base.py and utils/metrics.py.
_ADE20K = SegmentationProtocol(name="ade20k", dataset="ADE20K", num_classes=150, images=2000)
_PASCAL_CONTEXT = SegmentationProtocol(name="pascal_context", dataset="Pascal Context", num_classes=59, images=5105)

# Where there is no published protocol. In a street of `data.SceneDataset` one sees farther than 80 m.
_SCENES = DepthProtocol(name="scenes", dataset="scenes", input_size=None, max_target=80, cap=80)
# One's own folders. The bounds are those of KITTI: set both to what the sensor measures.
_OWN_DEPTH = DepthProtocol(name="own_depth", dataset="one's own", input_size=None, max_target=80, cap=80)
_OWN_METRIC = DepthProtocol(
    name="own_metric",
    dataset="one's own",
    input_size=None,
    prediction="depth",
    min_target=1e-3,
    max_target=80,
    alignment=None,
    min_depth=1e-3,
    cap=80,
)


def _ablation(name: str, dataset: str, target: Literal["depth", "inverse_depth"]) -> DepthProtocol:
    """Relative absolute deviation after alignment, Tables 6 to 8; in which space is not known."""
    return DepthProtocol(name=f"ablation/{name}", dataset=dataset, target=target, error_space="inverse_depth")


_ALL: tuple[Protocol, ...] = (
    dataclasses.replace(_DIW, name="zero_shot_midas/diw"),
    *(dataclasses.replace(protocol, name=f"zero_shot_midas/{protocol.name}") for protocol in _ZERO_SHOT),
    _KITTI_EIGEN,
    _NYU_EIGEN,
    _DIW,
    _ADE20K,
    single_scale(_ADE20K),
    _PASCAL_CONTEXT,
    single_scale(_PASCAL_CONTEXT),
    _ablation("hrwsi", "HRWSI", "inverse_depth"),
    _ablation("blendedmvs", "BlendedMVS", "depth"),
    _ablation("redweb", "ReDWeb", "inverse_depth"),
    _SCENES,
    _OWN_DEPTH,
    _OWN_METRIC,
)
# The protocols by name; `get` gives one of them with changes.
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
