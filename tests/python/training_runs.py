"""Small training runs, for tests."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX
from torchdpt.data import Batch
from torchdpt.training import TrainConfig, Trainer

# Depth and ten classes, with batch normalisation, an auxiliary head and dropout.
JOINT = {
    "image_size": 32,
    "width": 32,
    "depth": 4,
    "heads": 2,
    "mlp_width": 64,
    "taps": [0, 1, 2, 3],
    "channels": [8, 8, 16, 16],
    "features": 8,
    "head_features": 8,
    "num_classes": 10,
    "fusion_norm": "batch",
    "auxiliary_head": "penultimate",
    "dropout": 0.1,
}
DEPTH = JOINT | {"num_classes": 0, "fusion_norm": "none", "auxiliary_head": "none", "dropout": 0.0}
METRIC = DEPTH | {"metric": True, "depth_scale": 0.1, "depth_shift": 0.1}


def config_of(out: Path, fields: Mapping[str, Any] = JOINT, **changes: Any) -> TrainConfig:
    """A run of a few steps on scenes of 32 x 32 pixels."""
    values: dict[str, Any] = {
        "out": str(out),
        "train": [{"type": "scenes", "height": 32, "width": 32}],
        "model": {"fields": dict(fields)},
        "augmentation": {"size": [32, 32], "crop": [32, 32], "colors": 0.3},
        "optimizer": {"encoder_lr": 1e-3, "decoder_lr": 1e-3},
        "batch_size": 4,
        "steps": 12,
        "workers": 0,
        "threads": 1,
        "device": "cpu",
        "save_every": 0,
    }
    return TrainConfig.from_dict(values | changes)


def trainer_of(out: Path, fields: Mapping[str, Any] = JOINT, **changes: Any) -> Trainer:
    return Trainer(config_of(out, fields, **changes))


def batch_of(count: int, datasets: list[int] | None = None, *, classes: int = 10, seed: int = 0) -> Batch:
    """Random images of 32 x 32 pixels, the truth about which is uneven: some of it is not known."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 32, 32)
    mask = torch.rand(shape, generator=generator) < torch.linspace(0.2, 1, count)[:, None, None]
    known = torch.rand(shape, generator=generator) < torch.linspace(1, 0.3, count)[:, None, None]
    labels = torch.randint(classes or 1, shape, generator=generator)
    return Batch(
        images=torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8),
        inverse_depth=(0.1 + torch.rand(shape, generator=generator)) * mask,
        mask=mask,
        labels=torch.where(known, labels, IGNORE_INDEX),
        datasets=torch.tensor([0] * count if datasets is None else datasets),
        names=[f"random/{i}" for i in range(count)],
        errors=[],
    )


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """All that a step may change, as it is now."""
    return copy.deepcopy(trainer.state())


def flat(values: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict of their leaves."""
    if isinstance(values, dict | list | tuple):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        return {key: leaf for k, v in pairs for key, leaf in flat(v, f"{name}/{k}").items()}
    return {name: values}


def differences(one: Any, other: Any) -> list[str]:
    """Names of leaves that are not the same to the bit."""
    left, right = flat(one), flat(other)
    return [
        name
        for name in sorted({*left, *right})
        if name not in left or name not in right or not _same(left[name], right[name])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    return type(one) is type(other) and bool(one == other)
