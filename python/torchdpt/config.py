"""The description of a network: a typed view of the C++ `dpt::Config`, where the defaults and checks are."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
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
        image_size: Native side of the images in pixels. Others resize the position embedding.
        patch_size: Side of a patch in pixels.
        width: Width D of a token.
        depth: Number of transformer blocks.
        heads: Attention heads; they divide `width`.
        mlp_width: Hidden width of a block's MLP.
        qkv_bias: Whether query, key and value projections have biases.
        distilled: Whether there is a distillation token beside the readout token (DeiT).
        layer_norm_eps: Epsilon of layer normalisation.
        taps: Blocks (counted from 0) whose outputs feed the decoder; the last one is the last block.
        readout: How the readout token is folded into the patch tokens: ignored, added, or concatenated and projected.
        strides: Strides of the four levels to the image.
        channels: Widths of the four levels before fusion.
        features: Width C of the fusion decoder.
        fusion_norm: Normalisation in the residual units of fusion.
        head_features: Hidden width of the depth head.

    Raises:
        ValueError: if a field is out of range or two do not fit each other.
    """

    image_size: int = _DEFAULTS["image_size"]
    patch_size: int = _DEFAULTS["patch_size"]
    width: int = _DEFAULTS["width"]
    depth: int = _DEFAULTS["depth"]
    heads: int = _DEFAULTS["heads"]
    mlp_width: int = _DEFAULTS["mlp_width"]
    qkv_bias: bool = _DEFAULTS["qkv_bias"]
    distilled: bool = _DEFAULTS["distilled"]
    layer_norm_eps: float = _DEFAULTS["layer_norm_eps"]
    taps: Levels = _DEFAULTS["taps"]
    readout: Literal["ignore", "add", "project"] = _DEFAULTS["readout"]
    strides: Levels = _DEFAULTS["strides"]
    channels: Levels = _DEFAULTS["channels"]
    features: int = _DEFAULTS["features"]
    fusion_norm: Literal["none", "batch"] = _DEFAULTS["fusion_norm"]
    head_features: int = _DEFAULTS["head_features"]

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

    def to_json(self) -> str:
        """Canonical JSON: every field, `format_version` and `torchdpt_version`, sorted. Equal configs give equal text.

        The version of the library keeps graphs that torch.compile cached with one release out of the next.
        """
        text: str = self.__dict__["_json"]
        return text

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
