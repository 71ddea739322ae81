"""Networks of transformers under the names that isl-org's checkpoints have."""

import functools

import torch
from parity import make_peer
from safetensors.torch import save_file

from torchdpt import DPTConfig

# As small as the layout allows: what its shapes do not say is that of the published networks.
BASE = dict(
    image_size=64,
    hidden_size=128,
    num_attention_heads=2,
    intermediate_size=75,
    num_hidden_layers=12,
    backbone_out_indices=[2, 5, 8, 11],
    neck_hidden_sizes=[15, 17, 21, 27],
    fusion_hidden_size=19,
    layer_norm_eps=1e-6,
)
LARGE = BASE | dict(num_hidden_layers=24, backbone_out_indices=[5, 11, 17, 23])
NETWORKS = {
    "base": BASE,
    "large": LARGE,
    "ignore": BASE | dict(readout_type="ignore"),
    "batch norm": BASE | dict(use_batch_norm_in_fusion_residual=True),
    "no qkv bias": BASE | dict(qkv_bias=False),
}


@functools.cache
def peer(network):
    return make_peer(**NETWORKS[network])


def isl_org(theirs, layout):
    """The tensors of transformers' state dict under isl-org's names: convert_dpt_to_pytorch.py, backwards.

    Written out from the two projects' code, and knows nothing of torchdpt's tables.
    """
    tensors = {}
    left = dict(theirs)

    def move(old, new, leaves=("weight", "bias")):
        for leaf in leaves:
            if f"{old}.{leaf}" in left:
                tensors[f"{new}.{leaf}"] = left.pop(f"{old}.{leaf}").clone()

    tensors["pretrained.model.cls_token"] = left.pop("dpt.embeddings.cls_token")
    tensors["pretrained.model.pos_embed"] = left.pop("dpt.embeddings.position_embeddings")
    move("dpt.embeddings.patch_embeddings.projection", "pretrained.model.patch_embed.proj")
    move("dpt.layernorm", "pretrained.model.norm")
    for i in range(24):
        old, new = f"dpt.encoder.layer.{i}.", f"pretrained.model.blocks.{i}."
        for leaf in ("weight", "bias"):
            parts = [f"{old}attention.attention.{part}.{leaf}" for part in ("query", "key", "value")]
            if parts[0] in left:
                tensors[f"{new}attn.qkv.{leaf}"] = torch.cat([left.pop(part) for part in parts])
        move(old + "attention.output.dense", new + "attn.proj")
        move(old + "intermediate.dense", new + "mlp.fc1")
        move(old + "output.dense", new + "mlp.fc2")
        move(old + "layernorm_before", new + "norm1")
        move(old + "layernorm_after", new + "norm2")
    for i, n in enumerate((1, 2, 3, 4)):
        post = f"pretrained.act_postprocess{n}"
        read = f"{post}.0.project.0" if layout == "v1" else f"pretrained.readout_oper{n}.0.project.0"
        project, resize = ("3", "4") if layout == "v1" else ("0", "1")
        move(f"neck.reassemble_stage.readout_projects.{i}.0", read)
        move(f"neck.reassemble_stage.layers.{i}.projection", f"{post}.{project}")
        move(f"neck.reassemble_stage.layers.{i}.resize", f"{post}.{resize}")
        move(f"neck.convs.{i}", f"scratch.layer{n}_rn")
        old, new = f"neck.fusion_stage.layers.{4 - n}.", f"scratch.refinenet{n}."
        move(old + "projection", new + "out_conv")
        for unit in (1, 2):
            for conv in (1, 2):
                move(f"{old}residual_layer{unit}.convolution{conv}", f"{new}resConfUnit{unit}.conv{conv}")
                move(
                    f"{old}residual_layer{unit}.batch_norm{conv}",
                    f"{new}resConfUnit{unit}.bn{conv}",
                    ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
                )
    for i in (0, 2, 4):
        move(f"head.head.{i}", f"scratch.output_conv.{i}")
    assert not left
    width = tensors["pretrained.model.cls_token"].shape[-1]
    tensors["pretrained.model.head.weight"] = torch.randn(1000, width)
    tensors["pretrained.model.head.bias"] = torch.randn(1000)
    return tensors


def unused(tensors):
    prefixes = ("pretrained.model.norm.", "pretrained.model.head", "scratch.refinenet4.resConfUnit1.")
    return {name for name in tensors if name.startswith(prefixes)}


def write(tensors, path, form="plain"):
    if form == "safetensors":
        save_file(tensors, path)
    elif form == "training":
        torch.save({"optimizer": {"state": {}}, "epoch": 3, "model": tensors}, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form != "before torch 1.6")
    return path


def narrow(**changes):
    return DPTConfig(image_size=32, width=64, heads=1, mlp_width=32, channels=(8, 8, 8, 8), features=8).replace(
        **changes
    )
