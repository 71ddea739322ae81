"""What a run starts from: the network and its first parameters, and whether all fits together."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import torch
import yaml
from torch import Tensor

from torchdpt import checkpoint, losses
from torchdpt.classes import Classes
from torchdpt.data import Dataset
from torchdpt.data.sample import Part
from torchdpt.image import ImageProcessor
from torchdpt.model import DPTModel
from torchdpt.training.config import TrainConfig, changed

_log = logging.getLogger("torchdpt")

# Settings that change how a run is carried out, and but for rounding not what comes out: a run may go on with others.
FREE = (
    "out", "device", "workers", "threads", "log_every", "save_every", "keep", "panels", "max_bad_steps", "compile",
)  # fmt: skip


def starting_model(config: TrainConfig, datasets: Sequence[Dataset], device: torch.device) -> DPTModel:
    """The network before its first step.

    Raises:
        ValueError: if it cannot be made, or `fit_metric` finds nothing to fit.
    """
    wanted = config.model
    if wanted.weights is None:
        encoder = None if wanted.encoder_weights is None else checkpoint.find(wanted.encoder_weights)
        model = DPTModel(wanted.network(), encoder_weights=encoder, device=device)
    else:
        model = DPTModel.from_pretrained(wanted.weights, device=device, dtype=torch.float32)
        if wanted.fields:
            model = _with_other_heads(model, wanted.fields, device)
    if wanted.fit_metric:
        model = _in_metres(model, config, datasets)
    return model


def make_processor(config: TrainConfig, model: DPTModel) -> ImageProcessor:
    """How photographs are prepared for the trained model: at the size of training, normalised as the model's are."""
    size = config.model.size or config.augmentation.crop or config.augmentation.size
    multiple = max(32, model.config.size_multiple)
    own = model.processor
    return ImageProcessor(size, resize=config.model.resize, multiple_of=multiple, mean=own.mean, std=own.std)


def network_input(images: Tensor, processor: ImageProcessor) -> Tensor:
    """uint8 [B, H, W, 3] to what the network takes: float32 [B, 3, H, W], channels last in memory."""
    return processor.normalize(images / 255).permute(0, 3, 1, 2)


def _with_other_heads(model: DPTModel, fields: dict[str, object], device: torch.device) -> DPTModel:
    other = DPTModel(changed(model.config, fields), device=device)
    mine, theirs = other.state_dict(), model.state_dict()
    fitting = {name: t for name, t in theirs.items() if name in mine and mine[name].shape == t.shape}
    fresh = [name for name in mine if name not in fitting]
    if any(not name.startswith("head.") for name in fresh):
        outside = ", ".join(name for name in fresh if not name.startswith("head."))
        raise ValueError(
            f"model.fields change more than the heads of model.weights: there are no values for {outside}; train that "
            "network with encoder_weights, or leave these fields out"
        )
    other.load_state_dict(fitting, strict=False)
    _log.info("tensors that start at random: %s", ", ".join(fresh) or "none")
    other.processor, other.classes = model.processor, other.classes or model.classes
    return other


def _in_metres(model: DPTModel, config: TrainConfig, datasets: Sequence[Dataset]) -> DPTModel:
    """The network with the scale and shift that put its inverse depth into 1 / metres, on average over images.

    Reference: Ranftl, Bochkovskiy, Koltun (2021), Sec. 4.1, fine-tuning.
    """
    if model.config.metric or not model.config.depth_head:
        raise ValueError("model.fit_metric wants a network of relative depth, and this one is not")
    if config.model.weights is None:
        raise ValueError("model.fit_metric aligns what a trained network predicts; set model.weights")
    model.processor = make_processor(config, model)
    found: list[Tensor] = []
    for dataset in datasets:
        part = Part(dataset, max(1, config.model.fit_metric_images // len(datasets)))
        for sample in map(part.__getitem__, range(len(part))):
            if sample.unit != "metre" or sample.target is None:
                raise ValueError(f"{sample}: model.fit_metric wants depth in metres, and this has none")
            prediction = torch.from_numpy(model.predict(sample.image.numpy()).depth)[None]
            target = sample.inverse_depth()[None]
            known = (target > 0) & target.isfinite()  # the sky has no depth in metres
            alignment = losses.align(prediction, target, known, mode="robust")
            if int(alignment.dropped) == 0:
                found.append(torch.stack([alignment.scale, alignment.shift]).flatten().double())
    if not found:
        raise ValueError("model.fit_metric: in no image are both prediction and truth other than constant")
    scale, shift = torch.stack(found).mean(0).tolist()
    _log.info("metric depth from %d images: 1 / (%.6g x + %.6g)", len(found), scale, shift)
    other = DPTModel(model.config.replace(metric=True, depth_scale=scale, depth_shift=shift), device="meta")
    other.load_state_dict(model.state_dict(), assign=True)
    other.processor, other.classes = model.processor, model.classes
    return other


def classes_of(datasets: Sequence[Dataset], num_classes: int) -> Classes | None:
    """What the data sets call the classes, if one of them does."""
    named = [(dataset.name, classes) for dataset in datasets if (classes := getattr(dataset, "classes", None))]
    for name, classes in named:
        if len(classes) != num_classes:
            raise ValueError(
                f"{name} has {len(classes)} classes, and the network {num_classes}; set "
                f"model.fields.num_classes={len(classes)}, or 0 to train depth alone"
            )
    return named[0][1] if named else None


def check_names(section: str, names: Sequence[str]) -> None:
    """What the log tells data sets apart by."""
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"{section}: two data sets are called {double!r}; give each a name of its own, name=...")


def check_crop(config: TrainConfig, model: DPTModel) -> None:
    crop, multiple = config.augmentation.crop, model.config.size_multiple
    if crop is not None and any(side % multiple for side in crop):
        raise ValueError(f"augmentation.crop must be multiples of {multiple} for this network, got {list(crop)}")


def check_batch(config: TrainConfig, world_size: int) -> None:
    """That the samples that a process reads for a step do not take all memory of the machine."""
    height, width = config.augmentation.crop or config.augmentation.size
    count = config.batch_size // world_size
    needed = 16 * height * width * count  # bytes of a pixel of `Batch`: 3 of the image, 4 of depth, 1, 8 of labels
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise ValueError(
            f"batch_size {config.batch_size}: {count} images of {height} x {width} and their truth take "
            f"{needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f} GB of memory; set a smaller batch_size"
        )


def check_unused(config: TrainConfig, allow_changes: bool) -> None:
    """That the folder, which has no checkpoint, does not hold the network of another run."""
    file = config.out / "config.yaml"
    if file.exists() and any((config.out / name).exists() for name in ("best", "final")):
        check_same(config, yaml.safe_load(file.read_text(encoding="utf-8")), allow_changes)


def check_same(config: TrainConfig, earlier: dict[str, Any], allow_changes: bool) -> None:
    changes = [line for line in config.differences(earlier) if line.split(":")[0].split(".")[0] not in FREE]
    network = [line for line in changes if re.match(r"model\.(?!size|resize)", line)]
    if network:
        lines = "; ".join(network)
        raise ValueError(f"{config.out} holds a run of another network: {lines}. Set another out=, or take them back")
    if changes and not allow_changes:
        raise ValueError(
            f"{config.out} holds a run with other settings: {'; '.join(changes)}. Set another out=, take the settings "
            "back, or go on with the new ones by --allow-changes (allow_changes=True)"
        )
    if changes:
        _log.warning("going on with other settings: %s", "; ".join(changes))
