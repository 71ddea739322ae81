"""Which parameters are changed how fast."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from torchdpt.model import DPTModel
from torchdpt.training.config import OptimizerConfig


def make_optimizer(model: DPTModel, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Groups of the encoder, block by block with layer decay, and of the rest; vectors without weight decay.

    Groups have a `name`; `base_lr`, their learning rate where `learning_rate_factor` is 1; and `shown`, whether it is
    one of the two of the config.
    """
    depth = model.config.depth
    groups: dict[tuple[str, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        part, lr, layers = "decoder", config.decoder_lr, 0
        if name.startswith("encoder."):
            block = re.search(r"blocks\.(\d+)\.", name)
            layers = depth - (int(block[1]) + 1 if block else 0)  # above this one; of a resnet all are alike
            layers = 0 if model.config.encoder == "resnet" or config.layer_decay == 1 else layers
            part, lr = "encoder", config.encoder_lr * config.layer_decay**layers
        vector = parameter.dim() < 2 or name.endswith(("cls_token", "dist_token", "pos_embed"))
        decay = 0.0 if vector else config.weight_decay
        full = part if layers == 0 else f"{part}_{layers}"
        group = groups.setdefault(
            (full, decay),
            {"params": [], "name": full, "lr": lr, "base_lr": lr, "weight_decay": decay, "shown": layers == 0},
        )
        group["params"].append(parameter)
    made = [*groups.values()]
    if config.name == "sgd":
        return torch.optim.SGD(made, lr=0.0, momentum=config.momentum)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(made, lr=0.0, betas=config.betas, eps=config.eps, fused=True)


def learning_rate_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """What learning rates are multiplied with at a step, counted from 0, of `total`."""
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    left = 1 - step / total
    cosine, poly = 0.5 - 0.5 * math.cos(math.pi * left), math.pow(left, 0.9)
    return warmup * {"constant": 1.0, "linear": left, "cosine": cosine, "poly": poly}[config.schedule]
