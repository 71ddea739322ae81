"""Encoders alone, as they come from ImageNet: what starts a network, and what is refused."""

import logging
import re

import pytest
import torch
from test_checkpoints_family import (
    FAMILY,
    GRID,
    HYBRID,
    LARGE,
    RESNET,
    D,
    drawn,
    empty,
    images,
    isl_org,
    linear,
    same,
    timm,
    torchvision,
    write,
)
from torch import nn

from torchdpt import _C, DPTModel

ENCODERS = {
    "timm ViT": (LARGE, timm("", 24)),
    "DeiT distilled": (
        LARGE.replace(depth=12, taps=(2, 5, 8, 11), distilled=True),
        timm("", 12, distilled=True) | linear("fc_norm", D, D) | linear("pre_logits.fc", D, D),
    ),
    "timm hybrid": (HYBRID, timm("", 12, hybrid=HYBRID.stage_depths)),
    "torchvision ResNet": (RESNET, torchvision(RESNET) | linear("fc", 1000, 2048)),
    "torchvision ResNeXt": (FAMILY["resnext"], torchvision(FAMILY["resnext"]) | linear("fc", 1000, 2048)),
}
ALONE = pytest.mark.parametrize("name", ENCODERS)


def with_encoder(config, path):
    torch.manual_seed(3)
    model = DPTModel(config, encoder_weights=path)
    torch.manual_seed(3)
    fresh = DPTModel(config)
    for stage in ("reassemble", "fusion", "head"):
        assert same(getattr(model, stage).state_dict(), getattr(fresh, stage).state_dict())
    return model.encoder.state_dict()


def theirs(ours, torchvision):
    """The name of one of our encoder's tensors in timm or torchvision."""
    if torchvision:
        ours = ours.replace("norm", "bn").replace("stem.conv", "conv1").replace("stem.bn", "bn1")
        ours = ours.replace("downsample.conv", "downsample.0").replace("downsample.bn", "downsample.1")
        return re.sub(r"stages\.(\d)\.", lambda match: f"layer{int(match[1]) + 1}.", ours)
    ours = re.sub("^patch_embed", "patch_embed.proj", ours)
    ours = re.sub(r"^stages\.(\d)\.(\d)\.", r"stages.\1.blocks.\2.", ours)
    return re.sub("^(stem|stages)", r"patch_embed.backbone.\1", ours)


@ALONE
@pytest.mark.parametrize("file", ["weights.pth", "model.safetensors", "model.pt"])
def test_encoder_alone_starts_the_encoder_and_nothing_else(tmp_path, name, file, caplog):
    config, shapes = ENCODERS[name]
    tensors = drawn(shapes)
    content = {"model": tensors} if file == "weights.pth" else tensors  # as the authors of DeiT do
    path = write(content, tmp_path / file)
    (tmp_path / "config.json").write_text('{"architecture": "of timm", "num_classes": 1000}')
    with caplog.at_level(logging.INFO, logger="torchdpt"):
        encoder = with_encoder(config, path)
    ignored = [n for n in tensors if n.startswith(("norm.", "head", "fc", "pre_logits"))]
    assert f"{len(ignored)} tensors are not of the encoder" in caplog.text
    assert len(encoder) == len(tensors) - len(ignored)
    for ours, tensor in encoder.items():
        assert torch.equal(tensor, tensors[theirs(ours, "torchvision" in name)]), ours
    if file != "weights.pth":
        assert same(with_encoder(config, tmp_path), encoder)


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("form", ["alone", "whole .pt", "whole folder"])
def test_encoder_is_that_of_the_whole_network(tmp_path, family, form):
    config = FAMILY[family]
    tensors = drawn(isl_org(family))
    whole = DPTModel.from_pretrained(write(tensors, tmp_path / "whole.pt"))
    path = tmp_path / "whole.pt"
    if form == "whole folder":
        path = tmp_path / "folder"
        whole.save_pretrained(path, layout="isl-org")
    elif form == "alone":
        names = {"pretrained.layer1.0.": "conv1.", "pretrained.layer1.1.": "bn1.", "pretrained.layer1.4.": "layer1."}
        names |= {"pretrained.model.": "", "pretrained.layer": "layer"}
        alone = {}
        for old, tensor in tensors.items():
            prefix = next((prefix for prefix in names if old.startswith(prefix)), None)
            if prefix is not None:
                alone[names[prefix] + old.removeprefix(prefix)] = tensor
        path = write(alone, tmp_path / "alone.pt")
    other = config.replace(features=8, fusion_norm="none")
    assert same(with_encoder(other, path), whole.encoder.state_dict())


@ALONE
def test_from_pretrained_of_an_encoder_alone_names_the_call(tmp_path, name):
    for file in ("model.pt", "model.safetensors"):
        path = write(drawn(ENCODERS[name][1]), tmp_path / file)
        who = "torchvision" if "torchvision" in name else "timm"
        with pytest.raises(
            ValueError, match=rf"an encoder alone, as {who} .* DPTModel\(config, encoder_weights=path\)"
        ):
            DPTModel.from_pretrained(path)


@ALONE
def test_what_is_missing_or_unknown_in_an_encoder_alone_is_named(name):
    config, shapes = ENCODERS[name]
    tensors = empty(shapes)
    used = [n for n in shapes if not n.startswith(("norm.", "head", "fc", "pre_logits"))]
    for missing in used:
        others = {n: tensor for n, tensor in tensors.items() if n != missing}
        if missing.endswith("num_batches_tracked"):
            _C.encoder_of(config.to_json(), others, "x.pth")
            continue
        telling = {"dist_token": "one token, got 17 patches", "blocks.0.attn.qkv.bias": "an encoder with qkv_bias"}
        with pytest.raises(ValueError, match=telling.get(missing, re.escape(missing))):
            _C.encoder_of(config.to_json(), others, "x.pth")
    with pytest.raises(ValueError, match=r"1 unexpected \[reg_token\]"):
        _C.encoder_of(config.to_json(), tensors | {"reg_token": torch.zeros(1)}, "x.pth")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("timm ViT", dict(depth=12, taps=(2, 5, 8, 11)), "an encoder with depth = 24, this model has 12"),
        ("timm ViT", dict(heads=2), "and the model's 2 have 32 channels each, .* set heads to 1"),
        ("timm ViT", dict(qkv_bias=False), "an encoder with qkv_bias = true, this model has false"),
        ("timm ViT", dict(distilled=True), "an encoder with distilled = false, this model has true"),
        (
            "timm ViT",
            dict(width=128, heads=2),
            r"tensor 'cls_token' has shape \[1, 1, 64\], the config wants \[1, 1, 128\]",
        ),
        ("timm ViT", dict(patch_size=32, strides=(4, 8, 16, 32)), r"tensor 'patch_embed\.proj\.weight' has shape"),
        ("timm hybrid", dict(stage_depths=(3, 4, 9, 0)), r"an encoder with stage_depths = \[1,2,1,0\], this"),
        ("torchvision ResNet", dict(groups=4, group_width=8), "an encoder with groups = 1, this model has 4"),
        ("torchvision ResNet", dict(stage_depths=(1, 1, 1, 1)), r"an encoder with stage_depths = \[1,2,1,1\]"),
    ],
)
def test_encoder_of_another_network_is_refused(name, changes, message):
    config, shapes = ENCODERS[name]
    with pytest.raises(ValueError, match="encoder_weights: 'x.pth'.*" + message):
        _C.encoder_of(config.replace(**changes).to_json(), empty(shapes), "x.pth")


def test_encoder_of_another_kind_is_refused():
    with pytest.raises(ValueError, match='an encoder with encoder = "vit", this model has "hybrid"'):
        _C.encoder_of(HYBRID.to_json(), empty(timm("", 12)), "x.pth")
    with pytest.raises(ValueError, match='an encoder with encoder = "resnet", this model has "vit"'):
        _C.encoder_of(LARGE.to_json(), empty(torchvision(RESNET)), "x.pth")


@torch.no_grad()
def test_position_embedding_of_another_grid_is_resized_as_the_network_does(tmp_path, caplog):
    tensors = drawn(timm("", 24, grid=3))
    path = write(tensors, tmp_path / "weights.pth")
    native = DPTModel(LARGE.replace(image_size=48), encoder_weights=path).eval()
    with caplog.at_level(logging.INFO, logger="torchdpt"):
        resized = DPTModel(LARGE, encoder_weights=path).eval()
    assert "resized the position embedding, whose grid was 3, to 4" in caplog.text
    old, new = tensors["pos_embed"], resized.encoder.get_parameter("pos_embed")
    assert torch.equal(new[:, :1], old[:, :1])
    patches = old[:, 1:].reshape(1, 3, 3, D).permute(0, 3, 1, 2)
    want = nn.functional.interpolate(patches, size=(GRID, GRID), mode="bilinear").flatten(2).transpose(1, 2)
    torch.testing.assert_close(new[:, 1:], want)
    x = images(64, torch.float32)
    for a, b in zip(resized.encoder(x), native.encoder(x), strict=True):
        assert torch.equal(a, b)
    # The same from a whole network.
    native.save_pretrained(tmp_path / "whole")
    again = DPTModel(LARGE, encoder_weights=tmp_path / "whole")
    assert torch.equal(again.encoder.get_parameter("pos_embed"), new)


def test_encoder_weights_name_a_file_that_is_none(tmp_path):
    for file, message in {
        "none.pth": "encoder_weights: .*none.pth' does not exist",
        "none.safetensors": "encoder_weights: .*none.safetensors' does not exist",
    }.items():
        with pytest.raises(ValueError, match=message):
            DPTModel(LARGE, encoder_weights=tmp_path / file)
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"encoder_weights: .* is empty"):
        DPTModel(LARGE, encoder_weights=tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("blocks.0.attn.q_bias", "a BEiT"),
        ("layers.0.blocks.0.attn.relative_position_bias_table", "a Swin transformer"),
        ("attn_pool.latent", "a SigLIP"),
        ("blocks.0.ls1.gamma", r"a ViT with layer scale \(DeiT-III, DINOv2\)"),
        ("blocks.0.gamma_1", r"a ViT with layer scale \(DeiT-III\)"),
    ],
)
def test_encoder_that_is_not_here_is_named(name, what):
    tensors = empty(timm("", 24)) | {name: torch.zeros(1)}
    if name.startswith("layers."):
        tensors = {n.replace("blocks.", "layers.0.blocks."): tensor for n, tensor in tensors.items()}
    message = (
        rf"encoder_weights: 'x.pth' is {what}, which torchdpt does not have; the encoders .* ViT, DeiT, ViT-Hybrid"
    )
    with pytest.raises(ValueError, match=message):
        _C.encoder_of(LARGE.to_json(), tensors, "x.pth")


@pytest.mark.parametrize("file", ["weights.pth", "model.safetensors"])
def test_prefix_of_data_parallel_training_is_left_out(tmp_path, file):
    tensors = drawn(timm("", 24))
    path = write({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / file)
    encoder = with_encoder(LARGE, path)
    assert all(torch.equal(tensor, tensors[theirs(name, False)]) for name, tensor in encoder.items())
    whole = drawn(isl_org("hybrid"))
    path = write({f"module.{name}": tensor for name, tensor in whole.items()}, tmp_path / file)
    assert same(
        DPTModel.from_pretrained(path).state_dict(),
        DPTModel.from_pretrained(write(whole, tmp_path / "plain.pt")).state_dict(),
    )
    # Of some names only, it is one of them.
    path = write(tensors | {"module.cls_token": torch.zeros(1)}, tmp_path / file)
    with pytest.raises(ValueError, match=r"1 unexpected \[module\.cls_token\]"):
        DPTModel(LARGE, encoder_weights=path)
