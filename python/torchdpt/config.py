"""The description of a network: a typed view of the C++ `dpt::Config`, where the defaults and checks are."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torchdpt import _C

Levels = tuple[int, int, int, int]


def list_presets() -> list[str]:
    """Names of the published networks and of our own, smallest first."""
    return _C.preset_names()


# The C++ side has them; a field without one here would be a KeyError at import.
_DEFAULTS: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in json.loads(_C.canonical_config("{}")).items()
}


@dataclass(frozen=True)
class DPTConfig:
    """The description of a network. Defaults are those of DPT-Base as published.

    Where a field has four values they are those of the four levels, finest first.

    Attributes:
        encoder: "vit"; "hybrid", three convolutional stages and a transformer; "resnet", four convolutional stages.
        conv_levels: How many levels, finest first, are maps of convolutional stages: 0 of a vit, 2 or 0 of a hybrid, 4
            of a resnet.
        taps: Blocks (counted from 0) whose outputs feed the decoder, the last one being the last block; of a
            convolutional level its stage.
        image_size: Native side of the images in pixels. Others resize the position embedding.
        patch_size: Side of a patch in pixels.
        width: Width D of a token.
        depth: Number of transformer blocks.
        heads: Attention heads; they divide `width`.
        mlp_width: Hidden width of a block's MLP.
        qkv_bias: Whether query, key and value projections have biases.
        distilled: Whether there is a distillation token beside the readout token (DeiT).
        layer_norm_eps: Epsilon of layer normalisation.
        stage_depths: Bottlenecks in each convolutional stage; a hybrid has three stages.
        groups: Groups of a resnet's 3x3 convolutions (ResNeXt).
        group_width: Channels of a group in the first stage; doubled in each other.
        weight_standardization: Of a hybrid, (w - mean) / d: "std", d = std + 1e-5, as the released weights were trained
            (timm 0.4.5); "variance", d = sqrt(var + 1e-8), as later timm and transformers.
        readout: How the readout token is folded into the patch tokens: ignored, added, or concatenated and projected.
        strides: Strides of the four levels to the image.
        channels: Widths of the four levels before fusion.
        features: Width C of the fusion decoder.
        fusion_norm: Normalisation in the residual units of fusion.
        unit_skip: What a residual unit adds: its input, or the ReLU of it (MiDaS v2.1).
        fusion_project: Whether a level of fusion ends in a 1x1 convolution (not in MiDaS v2.1).
        depth_head: Whether the network predicts depth.
        head_features: Hidden width of the depth head.
        head_align_corners: How the depth head upsamples (not aligned in MiDaS v2.1).
        metric: Whether depth is in metres: 1 / max(depth_scale * x + depth_shift, 1e-8) for an inverse depth x.
        depth_scale: See `metric`.
        depth_shift: See `metric`.
        num_classes: Classes K of semantic segmentation; 0 for none.
        auxiliary_head: A second segmentation head in training, on the fused map of the penultimate level (the paper) or
            of the last one (transformers).
        dropout: Probability in the segmentation heads.
        batch_norm_group: Name of the process group that shares the statistics of batch normalisation in training
            (`DPTModel.synchronize_batch_norm`). Checkpoints leave it out.

    Raises:
        ValueError: if a field is out of range or two do not fit each other.
    """

    encoder: Literal["vit", "hybrid", "resnet"] = _DEFAULTS["encoder"]
    conv_levels: int = _DEFAULTS["conv_levels"]
    taps: Levels = _DEFAULTS["taps"]
    image_size: int = _DEFAULTS["image_size"]
    patch_size: int = _DEFAULTS["patch_size"]
    width: int = _DEFAULTS["width"]
    depth: int = _DEFAULTS["depth"]
    heads: int = _DEFAULTS["heads"]
    mlp_width: int = _DEFAULTS["mlp_width"]
    qkv_bias: bool = _DEFAULTS["qkv_bias"]
    distilled: bool = _DEFAULTS["distilled"]
    layer_norm_eps: float = _DEFAULTS["layer_norm_eps"]
    stage_depths: Levels = _DEFAULTS["stage_depths"]
    groups: int = _DEFAULTS["groups"]
    group_width: int = _DEFAULTS["group_width"]
    weight_standardization: Literal["std", "variance"] = _DEFAULTS["weight_standardization"]
    readout: Literal["ignore", "add", "project"] = _DEFAULTS["readout"]
    strides: Levels = _DEFAULTS["strides"]
    channels: Levels = _DEFAULTS["channels"]
    features: int = _DEFAULTS["features"]
    fusion_norm: Literal["none", "batch"] = _DEFAULTS["fusion_norm"]
    unit_skip: Literal["input", "relu"] = _DEFAULTS["unit_skip"]
    fusion_project: bool = _DEFAULTS["fusion_project"]
    depth_head: bool = _DEFAULTS["depth_head"]
    head_features: int = _DEFAULTS["head_features"]
    head_align_corners: bool = _DEFAULTS["head_align_corners"]
    metric: bool = _DEFAULTS["metric"]
    depth_scale: float = _DEFAULTS["depth_scale"]
    depth_shift: float = _DEFAULTS["depth_shift"]
    num_classes: int = _DEFAULTS["num_classes"]
    auxiliary_head: Literal["none", "penultimate", "last"] = _DEFAULTS["auxiliary_head"]
    dropout: float = _DEFAULTS["dropout"]
    batch_norm_group: str = _DEFAULTS["batch_norm_group"]

    def __post_init__(self) -> None:
        fields = dataclasses.asdict(self)
        for name, value in fields.items():
            if isinstance(value, list):  # a tuple, so that configs can be keys
                object.__setattr__(self, name, tuple(value))
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"DPTConfig: {name} must be finite, got {value}")
        object.__setattr__(self, "_json", _C.canonical_config(json.dumps(fields)))

    @classmethod
    def preset(cls, name: str) -> Self:
        """The config of a preset; `list_presets` names them."""
        return cls.from_json(_C.preset(name))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Missing fields take their defaults; unknown ones raise ValueError."""
        fields = json.loads(_C.canonical_config(text))
        del fields["format_version"], fields["torchdpt_version"]
        return cls(**fields)

    @property
    def size_multiple(self) -> int:
        """Height and width of images must be multiples of this."""
        return 32 if self.encoder == "resnet" else self.patch_size

    def to_json(self) -> str:
        """Canonical JSON: every field, `format_version` and `torchdpt_version`, sorted. Equal configs give equal text.

        The version of the library keeps graphs that torch.compile cached with one release out of the next.
        """
        text: str = self.__dict__["_json"]
        return text

    @classmethod
    def ablation(cls, table: Literal["taps", "readout", "backbone"]) -> dict[str, Self]:
        """The networks of Table 6 (taps), 7 (readout) or 8 (backbone) of the paper, by the names that they have there.

        Those of Table 6 ignore the readout token: its first row has the numbers of "Ignore" in Table 7.

        Raises:
            ValueError: if there is no such table.
        """
        path = Path(__file__).parent / "configs" / f"ablation_{table}.json"
        if not path.exists():
            raise ValueError(f"table must be 'taps', 'readout' or 'backbone', got {table!r}")
        rows: dict[str, dict[str, Any]] = json.loads(path.read_text())
        return {name: cls.preset(row.pop("preset")).replace(**row) for name, row in rows.items()}

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
