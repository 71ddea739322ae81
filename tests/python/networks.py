"""Small networks of every kind that the library has, for tests."""

from __future__ import annotations

import torch

from torchdpt import DPTConfig, DPTModel

VIT = DPTConfig(
    image_size=64,
    width=32,
    depth=4,
    heads=2,
    mlp_width=64,
    taps=(0, 1, 2, 3),
    channels=(8, 8, 16, 16),
    features=16,
    head_features=8,
)
HYBRID = VIT.replace(encoder="hybrid", conv_levels=2, stage_depths=(1, 1, 1, 0), channels=(256, 512, 16, 16))
RESNET = VIT.replace(
    encoder="resnet",
    conv_levels=4,
    stage_depths=(1, 1, 1, 1),
    groups=4,
    group_width=4,
    channels=(256, 512, 1024, 2048),
    unit_skip="relu",
    fusion_project=False,
    head_align_corners=False,
)
SEGMENTATION = {"depth_head": False, "num_classes": 5, "fusion_norm": "batch", "auxiliary_head": "penultimate"}
JOINT = SEGMENTATION | {"depth_head": True}
METRIC = {"metric": True, "depth_scale": 0.01, "depth_shift": 0.1}

FAMILY = {
    "vit": VIT,
    "hybrid": HYBRID,
    "hybrid, tokens at all levels": HYBRID.replace(
        conv_levels=0, channels=(8, 8, 16, 16), weight_standardization="variance"
    ),
    "resnet": RESNET,
    "vit segmentation": VIT.replace(**SEGMENTATION),
    "hybrid joint, metric": HYBRID.replace(**JOINT, **METRIC),
    "resnet joint": RESNET.replace(**JOINT),
}


def make_model(config: DPTConfig, dtype: torch.dtype = torch.float32) -> DPTModel:
    """A model in eval mode whose outputs say something: depth above zero, statistics that are not 0 and 1."""
    torch.manual_seed(0)
    model = DPTModel(config, dtype=dtype).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.3)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif "norm" in name and tensor.dim() == 1:
                tensor.add_(torch.empty_like(tensor).normal_(0, 0.2))
    return model
