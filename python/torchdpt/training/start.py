"""What a run starts from: the network and its first parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from torchdpt import checkpoint, losses
from torchdpt.data import Dataset
from torchdpt.image import ImageProcessor
from torchdpt.model import DPTModel
from torchdpt.training.config import TrainConfig, changed

_log = logging.getLogger("torchdpt")


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
    mean = torch.tensor(processor.mean, device=images.device)
    std = torch.tensor(processor.std, device=images.device)
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


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
        count = min(len(dataset), max(1, config.model.fit_metric_images // len(datasets)))
        for i in torch.linspace(0, len(dataset) - 1, count).round().long().tolist():
            sample = dataset[i]
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
