"""The network against a slow float64 reference in NumPy, stage by stage and whole."""

import math

import numpy as np
import pytest
import torch
from reference import (
    LEVELS,
    arrays,
    assert_parity,
    attention_weights,
    before_last_relu,
    block,
    embed,
    encode,
    forward,
    fuse,
    head,
    layer_norm,
    level_maps,
    part,
    patch_embed,
    pos_embed,
    random,
    read,
    reassemble,
    residual_unit,
    resize,
)

from torchdpt import DPTConfig, DPTModel

# Small and odd, so that no two sizes can be mistaken for each other.
NARROW = DPTConfig(
    image_size=64,
    width=21,
    depth=5,
    heads=3,
    mlp_width=34,
    layer_norm_eps=1e-3,
    taps=(0, 1, 3, 4),
    channels=(5, 6, 7, 9),
    features=11,
    head_features=4,
)
DISTILLED = NARROW.replace(distilled=True)


def make_model(config, seed=0):
    """In eval mode and float64, with weights that let a test fail: about as much goes out of each layer as comes in."""
    model = DPTModel(config, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                values = values.abs() + 0.5
            elif "norm" in name and name.endswith("weight"):
                values = 1 + 0.3 * values
            elif tensor.dim() == 1:
                values = 0.3 * values
            elif name.endswith("weight"):
                values = values / math.sqrt(tensor[0].numel())
            tensor.copy_(values)
    return model


def place_last_bias(model, below):
    """So that of `below`, which the last ReLU would get, two thirds are above zero."""
    with torch.no_grad():
        model.head.get_parameter("depth.conv3.bias").sub_(np.quantile(below, 1 / 3))


def set_zero(model, *suffixes):
    with torch.no_grad():
        named = [tensor for name, tensor in model.named_parameters() if any(suffix in name for suffix in suffixes)]
        assert named
        for tensor in named:
            tensor.zero_()


def set_identity(weight):
    """A linear layer or convolution that passes its input on."""
    assert weight.shape[0] == weight.shape[1]
    with torch.no_grad():
        weight.zero_()
        centre = (slice(None), slice(None), *(side // 2 for side in weight.shape[2:]))
        weight[centre] = torch.eye(weight.shape[0], dtype=weight.dtype)


# Encoder


SIZES = [(64, 64), (96, 160), (32, 48), (16, 16), (128, 32), (80, 112)]


@pytest.mark.parametrize("config", [NARROW, DISTILLED], ids=["plain", "distilled"])
@pytest.mark.parametrize("size", SIZES)
def test_position_embedding_is_resized_bilinearly(config, size):
    model = make_model(config)
    # With nothing written by the blocks and no image the tokens are tokens plus position.
    set_zero(model, "attn.proj", "mlp.fc2", "patch_embed", "cls_token", "dist_token")
    want = pos_embed(arrays(model.encoder), config, size[0] // 16, size[1] // 16)
    for tap in model.encoder(random(2, 3, *size)):
        assert_parity(tap, np.repeat(want, 2, 0))
    if size == (64, 64):  # the native size: nothing is computed
        assert torch.equal(tap[0], model.encoder.pos_embed[0])


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_patches_are_embedded_row_by_row(patch, size):
    model = make_model(NARROW.replace(patch_size=patch))
    set_zero(model, "attn.proj", "mlp.fc2", "pos_embed")
    images = random(2, 3, *size)
    w = arrays(model.encoder)
    want = np.concatenate([np.repeat(w["cls_token"], 2, 0), patch_embed(images.numpy(), w, model.config)], 1)
    assert_parity(model.encoder(images)[0], want)


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1e-1])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("config", [NARROW, DISTILLED], ids=["plain", "distilled"])
def test_encoder_equals_reference(config, qkv_bias, eps):
    model = make_model(config.replace(qkv_bias=qkv_bias, layer_norm_eps=eps))
    images = random(2, 3, 48, 80)
    taps = model.encoder(images)
    want = encode(images.numpy(), arrays(model.encoder), model.config)
    assert len(taps) == len(want) == 4
    for ours, reference in zip(taps, want, strict=True):
        assert_parity(ours, reference)


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("config", [NARROW, DISTILLED], ids=["plain", "distilled"])
def test_attention_weights_equal_reference(config, index):
    model = make_model(config)
    images = random(2, 3, 48, 80)
    w = arrays(model.encoder)
    x = embed(images.numpy(), w, config)
    for i in range(index):
        x = block(x, part(w, f"blocks.{i}"), config)
    w = part(w, f"blocks.{index}")
    want = attention_weights(layer_norm(x, part(w, "norm1"), config.layer_norm_eps), part(w, "attn"), config)
    got = model.attention(images, index)
    assert_parity(got, want)
    assert torch.equal(got, model.encoder.attention(images, index))
    assert (got.sum(-1) - 1).abs().max() <= 1e-14  # some ulps of one


# Reassemble


@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
@pytest.mark.parametrize("config", [NARROW, DISTILLED], ids=["one prefix token", "two prefix tokens"])
def test_read_equals_reference(config, readout):
    # Level 2 has the stride of the patches, so that with an identity projection its map is what was read.
    config = config.replace(readout=readout, channels=(5, 6, config.width, 9))
    model = make_model(config)
    set_identity(model.reassemble.get_parameter("2.project.weight"))
    set_zero(model, "reassemble.2.project.bias")
    taps = [random(2, 15 + 1 + config.distilled, config.width, seed=i) for i in range(4)]
    want = read(taps[2].numpy(), part(arrays(model.reassemble), "2"), config)
    got = model.reassemble(taps, (48, 80))[2]
    assert_parity(got.flatten(2).transpose(1, 2), want)
    # Row by row: token 1 + prefix lies right of token prefix.
    assert_parity(got[:, :, 1, 3], want[:, 5 + 3])


@pytest.mark.parametrize(
    ("patch", "strides"),
    [(16, (4, 8, 16, 32)), (8, (4, 8, 16, 32)), (4, (4, 8, 16, 32)), (16, (4, 16, 32, 64)), (32, (4, 8, 16, 32))],
)
def test_resample_equals_reference_at_all_strides(patch, strides):
    config = NARROW.replace(patch_size=patch, strides=strides, readout="ignore")
    model = make_model(config)
    h, w = 4, 6
    size = (h * patch, w * patch)
    taps = [random(2, h * w + 1, config.width, seed=i) for i in range(4)]
    got = model.reassemble(taps, size)
    want = reassemble([tap.numpy() for tap in taps], size, arrays(model.reassemble), config)
    for i in range(4):
        # A level coarser than the image divides into is rounded up.
        assert got[i].shape == (2, config.channels[i], -(-size[0] // strides[i]), -(-size[1] // strides[i]))
        assert_parity(got[i], want[i])


@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
@pytest.mark.parametrize("config", [NARROW, DISTILLED], ids=["plain", "distilled"])
@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 1)])
def test_reassemble_equals_reference(config, readout, grid):
    config = config.replace(readout=readout)
    model = make_model(config)
    size = (16 * grid[0], 16 * grid[1])
    taps = [random(2, grid[0] * grid[1] + 1 + config.distilled, config.width, seed=i) for i in range(4)]
    got = model.reassemble(taps, size)
    want = reassemble([tap.numpy() for tap in taps], size, arrays(model.reassemble), config)
    for ours, reference in zip(got, want, strict=True):
        assert_parity(ours, reference)


# Fusion


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("sizes", LEVELS)
def test_fusion_equals_reference(sizes, norm):
    model = make_model(NARROW.replace(fusion_norm=norm))
    maps = level_maps(model.config, sizes)
    want = fuse([x.numpy() for x in maps], arrays(model.fusion), model.config)
    assert want.shape == (2, 11, 2 * sizes[0][0], 2 * sizes[0][1])
    assert_parity(model.fusion(maps)[0], want)


@pytest.mark.parametrize("sizes", LEVELS[:2])
def test_fusion_in_training_normalises_by_the_batch_and_moves_its_statistics(sizes):
    model = make_model(NARROW.replace(fusion_norm="batch")).train()
    maps = level_maps(model.config, sizes)
    before = arrays(model.fusion)
    statistics = {}
    want = fuse([x.numpy() for x in maps], before, model.config, training=True, statistics=statistics)
    assert_parity(model.fusion(maps)[0], want)
    after = model.fusion.state_dict()
    assert len(statistics) == 7 * 2 * 2
    for name, value in statistics.items():
        assert_parity(after[name], value)
        assert np.abs(value - before[name]).max() > 1e-3, name
    for name, value in after.items():
        if name.endswith("num_batches_tracked"):
            assert value == 1, name


@pytest.mark.parametrize("sizes", LEVELS)
def test_fusion_upsamples_with_coinciding_corners_to_the_next_finer_size(sizes):
    config = NARROW.replace(channels=(11, 11, 11, 11))
    model = make_model(config)
    set_zero(model, "unit1", "unit2", "fusion.0.project.bias", "fusion.1.project.bias")
    set_zero(model, "fusion.2.project.bias", "fusion.3.project.bias")
    for name, tensor in model.fusion.named_parameters():
        if name.endswith(("input.weight", "project.weight")):
            set_identity(tensor)
    maps = level_maps(config, sizes)
    # The units now add their input to nothing, and what is left is upsampling and adding.
    want = maps[3].numpy()
    for x in (maps[2], maps[1], maps[0]):
        want = resize(want, *x.shape[2:], align_corners=True) + x.numpy()
    height, width = sizes[0]
    want = resize(want, 2 * height, 2 * width, align_corners=True)
    (got,) = model.fusion(maps)
    assert_parity(got, want)
    # Corners stay where they are.
    level = maps[3]
    level = level[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] + sum(x[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] for x in maps[:3])
    if all(min(size) > 1 for size in sizes):
        assert_parity(got[:, :, [0, 0, -1, -1], [0, -1, 0, -1]], level.numpy())


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("size", [(6, 8), (1, 1), (3, 7)])
def test_residual_unit_equals_reference(size, norm):
    config = NARROW.replace(fusion_norm=norm, channels=(11, 6, 7, 9))
    model = make_model(config)
    w = arrays(model.fusion)
    # Only the finest level's second unit is left: the levels below give nothing, and its first unit is the identity.
    set_zero(model, "fusion.1.project", "fusion.0.unit1.conv2", "fusion.0.project.bias")
    if norm == "batch":
        set_zero(model, "fusion.0.unit1.norm2")
        model.fusion.get_submodule("0.unit1.norm2").running_mean.zero_()
    set_identity(model.fusion.get_parameter("0.input.weight"))
    set_identity(model.fusion.get_parameter("0.project.weight"))
    maps = level_maps(config, [size, (3, 3), (2, 2), (1, 1)])
    want = residual_unit(maps[0].numpy(), part(w, "0.unit2"), config, False, {}, "")
    assert_parity(model.fusion(maps)[0], resize(want, 2 * size[0], 2 * size[1], align_corners=True))


# Head


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 1), (1, 4)])
def test_depth_head_equals_reference(size):
    model = make_model(NARROW)
    x = random(3, 11, *size)
    place_last_bias(model, before_last_relu(x.numpy(), arrays(model.head.depth)))
    want = head(x.numpy(), arrays(model.head.depth))
    assert want.shape == (3, 2 * size[0], 2 * size[1])
    assert (want > 0).mean() >= 0.5
    assert_parity(model.head(x).depth, want)


# The whole network


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (NARROW, (256, 416)),
        (NARROW, (480, 640)),
        (DISTILLED, (256, 416)),
        (DISTILLED, (480, 640)),
        (NARROW.replace(readout="add", qkv_bias=False), (80, 112)),
        (DISTILLED.replace(readout="add"), (80, 112)),
        (NARROW.replace(readout="ignore", fusion_norm="batch"), (48, 16)),
        (NARROW.replace(patch_size=8), (96, 40)),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_network_equals_reference(config, size):
    model = make_model(config)
    images = random(1 if size[0] > 96 else 2, 3, *size)
    with torch.no_grad():
        w = arrays(model)
        taps = encode(images.numpy(), part(w, "encoder"), config)
        maps = reassemble(taps, size, part(w, "reassemble"), config)
        fused = fuse(maps, part(w, "fusion"), config)
        place_last_bias(model, before_last_relu(fused, part(w, "head.depth")))
        want = head(fused, arrays(model.head.depth))
        # A clipped or constant output would agree too easily.
        assert (want > 0).mean() >= 0.5
        assert want.std() >= 0.1 * want.max()
        assert_parity(model(images).depth, want)
        got_taps = model.encoder(images)
        got_maps = model.reassemble(got_taps, size)
        for ours, reference in zip([*got_taps, *got_maps], [*taps, *maps], strict=True):
            assert_parity(ours, reference)
        assert_parity(model.fusion(got_maps)[0], fused)


def test_comparison_fails_when_the_reference_is_another_network():
    model = make_model(NARROW)
    images = random(1, 3, 48, 80)
    with torch.no_grad():
        w = arrays(model)
        w["head.depth.conv3.bias"] += 1
        model.head.depth.conv3.bias.add_(1)
        ours = model(images).depth
    assert_parity(ours, forward(images.numpy(), w, NARROW))
    for other in (
        NARROW.replace(layer_norm_eps=1.0001e-3),
        NARROW.replace(taps=(0, 2, 3, 4)),
        NARROW.replace(readout="ignore"),
        NARROW.replace(heads=7),
    ):
        with pytest.raises(AssertionError):
            assert_parity(ours, forward(images.numpy(), w, other))
    for name in w:
        if name == "head.depth.conv3.bias" or name.endswith("qkv.bias"):
            continue
        changed = dict(w)
        changed[name] = w[name] * (1 + 1e-3)
        with pytest.raises(AssertionError):
            assert_parity(ours, forward(images.numpy(), changed, NARROW))
