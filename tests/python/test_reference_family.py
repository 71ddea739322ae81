"""The family's other networks against slow float64 references in NumPy, stage by stage and whole, and their gradients.

Hybrid and residual encoders, the fusion and head of MiDaS v2.1, segmentation and auxiliary heads, metric depth. What
they share with the plain network (transformer blocks, read, interpolation) is the reference of test_reference. Nothing
here shares code with the library.
"""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_reference import LEVELS, arrays, assert_parity, batch_norm, block, part, random, read, resample, resize

from torchdpt import DPTConfig, DPTModel

# Of the central differences, relative to each tensor. A larger one takes some of the 1e5 ReLUs and maxima over their
# kinks, each of which costs about 1e-5 of the slope.
STEP = 1e-8
# Rounding leaves some 1e-15 of the loss, which over STEP is 1e-7 of a slope of the loss's size.
GRADIENT_TOLERANCE = 1e-5

# The stages' channels are fixed. All other sizes are small, and different where they can be.
HYBRID = DPTConfig(
    encoder="hybrid",
    image_size=64,
    width=32,
    depth=4,
    heads=2,
    mlp_width=64,
    layer_norm_eps=1e-3,
    conv_levels=2,
    taps=(0, 1, 2, 3),
    stage_depths=(1, 2, 1, 0),
    channels=(256, 512, 7, 9),
    features=12,
    head_features=5,
    dropout=0.0,
)
ALL_TOKENS = HYBRID.replace(conv_levels=0, channels=(5, 6, 7, 9))
RESNET = DPTConfig(
    encoder="resnet",
    conv_levels=4,
    taps=(0, 1, 2, 3),
    stage_depths=(1, 2, 1, 1),
    channels=(256, 512, 1024, 2048),
    features=12,
    head_features=5,
    dropout=0.0,
)
THIN = RESNET.replace(group_width=12)
GROUPED = RESNET.replace(stage_depths=(2, 1, 1, 1), groups=4, group_width=8)
MIDAS = {"unit_skip": "relu", "fusion_project": False, "head_align_corners": False}
VIT = HYBRID.replace(encoder="vit", conv_levels=0, channels=(5, 6, 7, 9), stage_depths=(3, 4, 9, 0))
CLASSES = {"num_classes": 7, "fusion_norm": "batch"}
SEGMENTATION = {**CLASSES, "depth_head": False, "auxiliary_head": "penultimate"}
METRIC = {"metric": True, "depth_scale": 0.3, "depth_shift": 0.07}


# The reference. `w` has the float64 arrays of a whole model by name, `name` says which layer is meant.


def relu(x):
    return np.where(x > 0, x, 0)


def convolve(x, weight, bias=None, stride=1, padding=(0, 0), groups=1):
    """A sum over the kernel's places of shifted images, group by group. `padding`: zeros before and after."""
    rows, columns = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), padding, padding))
    height = (x.shape[2] - rows) // stride + 1
    width = (x.shape[3] - columns) // stride + 1
    outputs = []
    for images, kernel in zip(np.split(x, groups, 1), np.split(weight, groups, 0), strict=True):
        y = np.zeros((x.shape[0], kernel.shape[0], height, width))
        for i in range(rows):
            for j in range(columns):
                bottom, right = i + stride * (height - 1) + 1, j + stride * (width - 1) + 1
                place = images[:, :, i:bottom:stride, j:right:stride]
                y += np.tensordot(kernel[:, :, i, j], place, (1, 1)).transpose(1, 0, 2, 3)
        outputs.append(y)
    y = np.concatenate(outputs, 1)
    return y if bias is None else y + bias[:, None, None]


def layer(x, w, name, padding=(0, 0)):
    return convolve(x, w[f"{name}.weight"], w.get(f"{name}.bias"), padding=padding)


def max_pool(x, padding):
    """3x3, stride 2; beyond the borders is nothing."""
    x = np.pad(x, ((0, 0), (0, 0), padding, padding), constant_values=-np.inf)
    height = (x.shape[2] - 3) // 2 + 1
    width = (x.shape[3] - 3) // 2 + 1
    y = np.empty((*x.shape[:2], height, width))
    for i in range(height):
        for j in range(width):
            y[:, :, i, j] = x[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((2, 3))
    return y


def standardize(weight, kind):
    """Each output channel's weights with mean 0 and variance 1; the kinds differ in how they never divide by zero."""
    centred = weight - weight.mean((1, 2, 3), keepdims=True)
    variance = (centred**2).mean((1, 2, 3), keepdims=True)
    return centred / {"std": np.sqrt(variance) + 1e-5, "variance": np.sqrt(variance + 1e-8)}[kind]


def group_norm(x, w):
    batch, channels, height, width = x.shape
    groups = x.reshape(batch, 32, channels // 32, height, width)
    centred = groups - groups.mean((2, 3, 4), keepdims=True)
    normal = centred / np.sqrt((centred**2).mean((2, 3, 4), keepdims=True) + 1e-5)
    return normal.reshape(x.shape) * w["weight"][:, None, None] + w["bias"][:, None, None]


class BatchNorms:
    """Those of one forward pass: normalises, and in training gathers in `after` what the running statistics become."""

    def __init__(self, w, training):
        self.w = w
        self.training = training
        self.after = {}

    def __call__(self, x, name):
        y, after = batch_norm(x, part(self.w, name), self.training)
        self.after |= {f"{name}.{leaf}": value for leaf, value in after.items()}
        if self.training:
            self.after[f"{name}.num_batches_tracked"] = self.w[f"{name}.num_batches_tracked"] + 1
        return y


def hybrid_layers(w, c):
    """Its convolution and norm. TensorFlow's SAME padding of even sides: the odd zero comes after."""

    def conv(x, name, stride):
        weight = standardize(w[f"{name}.weight"], c.weight_standardization)
        padding = {(7, 2): (2, 3), (3, 1): (1, 1), (3, 2): (0, 1), (1, 1): (0, 0), (1, 2): (0, 0)}
        return convolve(x, weight, stride=stride, padding=padding[weight.shape[2], stride])

    return conv, lambda x, name: group_norm(x, part(w, name))


def resnet_layers(w, c, norms):
    def conv(x, name, stride):
        weight = w[f"{name}.weight"]
        padding = weight.shape[2] // 2
        groups = c.groups if name.endswith("conv2") else 1
        return convolve(x, weight, stride=stride, padding=(padding, padding), groups=groups)

    return conv, norms


def convolutional_stages(images, c, conv, norm):
    hybrid = c.encoder == "hybrid"
    x = relu(norm(conv(images, "encoder.stem.conv", 2), "encoder.stem.norm"))
    x = max_pool(x, (0, 1) if hybrid else (1, 1))
    maps = []
    for s in range(3 if hybrid else 4):
        for b in range(c.stage_depths[s]):
            name = f"encoder.stages.{s}.{b}"
            stride = 2 if s > 0 and b == 0 else 1
            y = relu(norm(conv(x, f"{name}.conv1", 1), f"{name}.norm1"))
            y = relu(norm(conv(y, f"{name}.conv2", stride), f"{name}.norm2"))
            y = norm(conv(y, f"{name}.conv3", 1), f"{name}.norm3")
            if b == 0:
                x = norm(conv(x, f"{name}.downsample.conv", stride), f"{name}.downsample.norm")
            x = relu(y + x)
        maps.append(x)
    return maps


def tokens_of(x, w, c):
    """A map [B, D, h, w] to tokens [B, 1+N, D] with their positions."""
    batch, _, h, wide = x.shape
    grid = c.image_size // 16
    table = w["encoder.pos_embed"]
    positions = table[:, 1:].reshape(1, grid, grid, c.width).transpose(0, 3, 1, 2)
    patches = (x + resize(positions, h, wide, align_corners=False)).transpose(0, 2, 3, 1)
    first = np.repeat(w["encoder.cls_token"] + table[:, :1], batch, 0)
    return np.concatenate([first, patches.reshape(batch, h * wide, c.width)], 1)


def encode(images, w, c, norms):
    if c.encoder == "resnet":
        return convolutional_stages(images, c, *resnet_layers(w, c, norms))
    stages = []
    if c.encoder == "hybrid":
        stages = convolutional_stages(images, c, *hybrid_layers(w, c))
        patches = layer(stages[2], w, "encoder.patch_embed")
    else:
        patches = convolve(images, w["encoder.patch_embed.weight"], w["encoder.patch_embed.bias"], stride=16)
    x = tokens_of(patches, w, c)
    blocks = []
    for i in range(c.depth):
        x = block(x, part(w, f"encoder.blocks.{i}"), c)
        blocks.append(x)
    return [stages[tap] if i < c.conv_levels else blocks[tap] for i, tap in enumerate(c.taps)]


def reassemble(taps, size, w, c):
    maps = []
    for i, tap in enumerate(taps):
        if i < c.conv_levels:
            maps.append(tap)
            continue
        patches = read(tap, part(w, f"reassemble.{i}"), c)
        grid = patches.reshape(patches.shape[0], size[0] // 16, size[1] // 16, c.width).transpose(0, 3, 1, 2)
        level = layer(grid, w, f"reassemble.{i}.project")
        maps.append(resample(level, part(w, f"reassemble.{i}.resample"), c.strides[i], 16))
    return maps


def residual_unit(x, w, c, norms, name):
    start = relu(x)
    y = layer(start, w, f"{name}.conv1", padding=(1, 1))
    if c.fusion_norm == "batch":
        y = norms(y, f"{name}.norm1")
    y = layer(relu(y), w, f"{name}.conv2", padding=(1, 1))
    if c.fusion_norm == "batch":
        y = norms(y, f"{name}.norm2")
    return y + {"input": x, "relu": start}[c.unit_skip]


def fuse(maps, w, c, norms):
    """The fused maps of all levels, finest first, each upsampled to the size of the next finer level."""
    fused = []
    for i in (3, 2, 1, 0):
        y = layer(maps[i], w, f"fusion.{i}.input", padding=(1, 1))
        if fused:
            y = fused[0] + residual_unit(y, w, c, norms, f"fusion.{i}.unit1")
        y = residual_unit(y, w, c, norms, f"fusion.{i}.unit2")
        height, width = maps[i - 1].shape[2:] if i > 0 else (2 * y.shape[2], 2 * y.shape[3])
        y = resize(y, height, width, align_corners=True)
        fused.insert(0, layer(y, w, f"fusion.{i}.project") if c.fusion_project else y)
    return fused


def before_last_relu(x, w, c):
    x = layer(x, w, "head.depth.conv1", padding=(1, 1))
    x = resize(x, 2 * x.shape[2], 2 * x.shape[3], c.head_align_corners)
    x = relu(layer(x, w, "head.depth.conv2", padding=(1, 1)))
    return layer(x, w, "head.depth.conv3")[:, 0]


def depth_of(x, w, c):
    x = relu(before_last_relu(x, w, c))
    if not c.metric:
        return x
    inverse = c.depth_scale * x + c.depth_shift
    return 1 / np.where(inverse > 1e-8, inverse, 1e-8)


def before_classes(x, w, norms, name):
    return relu(norms(layer(x, w, f"{name}.conv", padding=(1, 1)), f"{name}.norm"))


def classes_of(x, w, norms, name):
    return layer(before_classes(x, w, norms, name), w, f"{name}.classify")


def heads(fused, w, c, norms):
    depth = depth_of(fused[0], w, c) if c.depth_head else None
    logits = auxiliary = None
    if c.num_classes > 0:
        small = classes_of(fused[0], w, norms, "head.segmentation")
        logits = resize(small, 2 * small.shape[2], 2 * small.shape[3], align_corners=True)
    if norms.training and c.auxiliary_head != "none":
        place = {"penultimate": 1, "last": 0}[c.auxiliary_head]
        auxiliary = classes_of(fused[place], w, norms, "head.auxiliary")
    return depth, logits, auxiliary


def network(images, w, c, training=False):
    norms = BatchNorms(w, training)
    taps = encode(images, w, c, norms)
    maps = reassemble(taps, images.shape[2:], w, c)
    fused = fuse(maps, w, c, norms)
    outputs = heads(fused, w, c, norms)
    return SimpleNamespace(taps=taps, maps=maps, fused=fused, outputs=outputs, after=norms.after)


# Helpers


def make_model(config, seed=0):
    """In eval mode and float64, with weights that let a test fail; also the running statistics are not those of a new
    model, and standardised weights have a mean to take away."""
    model = DPTModel(config, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(3)
                continue
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("running_var"):
                values = values.abs() + 0.5
            elif "norm" in name and name.endswith("weight"):
                values = 1 + 0.3 * values
            elif tensor.dim() == 1:
                values = 0.3 * values
            elif name.endswith("weight"):
                if config.encoder == "hybrid" and ("encoder.stem" in name or "encoder.stages" in name):
                    values = values + 0.5
                values = values * math.sqrt(1.5 / tensor[0].numel())
            tensor.copy_(values)
    return model


def place_last_bias(model, fused):
    """So that of what the depth head's last ReLU gets two thirds are above zero, and none is at it, in the kink."""
    below = np.sort(before_last_relu(fused, arrays(model), model.config), axis=None)
    third = len(below) // 3
    with torch.no_grad():
        model.head.get_parameter("depth.conv3.bias").sub_(below[third : third + 2].mean())


def assert_all_parity(ours, reference):
    assert len(ours) == len(reference)
    for got, want in zip(ours, reference, strict=True):
        if want is None:
            assert got is None
        else:
            assert_parity(got, want)


def assert_statistics(model, before, after):
    """Those in `after` are what they are now, others what they were; all that are in `after` have changed."""
    now = {name: tensor.numpy() for name, tensor in model.named_buffers()}
    assert set(after) <= set(now)
    for name, value in now.items():
        if name in after:
            np.testing.assert_allclose(value, after[name], rtol=1e-9, atol=1e-12, err_msg=name)
            assert np.abs(value - before[name]).max() > 1e-3, name
        else:
            np.testing.assert_array_equal(value, before[name], err_msg=name)


@pytest.fixture
def open_shares(monkeypatch):
    """Of each ReLU of the reference that is called in the test, which share of its values is open."""
    shares = []

    def recording(x):
        shares.append((x > 0).mean())
        return np.where(x > 0, x, 0)

    monkeypatch.setattr(sys.modules[__name__], "relu", recording)
    return shares


def level_maps(config, sizes):
    return [random(2, config.channels[i], *size, seed=i) for i, size in enumerate(sizes)]


def numpy(tensors):
    return [tensor.numpy() for tensor in tensors]


# Encoders


@pytest.mark.parametrize("kind", ["std", "variance"])
@pytest.mark.parametrize("config", [HYBRID, ALL_TOKENS], ids=["two maps", "all tokens"])
@pytest.mark.parametrize("size", [(32, 64), (96, 64), (48, 80), (16, 16)])
def test_hybrid_encoder_equals_reference(size, config, kind):
    model = make_model(config.replace(weight_standardization=kind))
    images = random(2, 3, *size)
    got = model.encoder(images)
    h, w = size[0] // 16, size[1] // 16
    shapes = [(2, 256, 4 * h, 4 * w), (2, 512, 2 * h, 2 * w)] if config == HYBRID else [(2, 1 + h * w, 32)] * 2
    assert [tuple(tap.shape) for tap in got] == [*shapes, (2, 1 + h * w, 32), (2, 1 + h * w, 32)]
    assert_all_parity(got, encode(images.numpy(), arrays(model), model.config, None))


def test_hybrid_encoder_is_the_same_in_training():
    model = make_model(HYBRID)
    images = random(2, 3, 32, 64)
    for evaluated, trained in zip(model.encoder(images), model.train().encoder(images), strict=True):
        assert_parity(trained, evaluated.detach().numpy())


def test_standardized_weights_may_be_scaled_and_shifted():
    model = make_model(HYBRID.replace(weight_standardization="variance"))
    images = random(1, 3, 32, 64)
    want = model.encoder(images)
    with torch.no_grad():
        for name, weight in model.encoder.named_parameters():
            if weight.dim() == 4 and not name.startswith("patch_embed"):
                weight.mul_(3).add_(0.1)
    for before, after in zip(want, model.encoder(images), strict=True):
        # Not to rounding: the 1e-8 beside variances of 1e-3 and more is not scaled with them.
        assert (after - before).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.parametrize("config", [RESNET, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("size", [(32, 64), (96, 64)])
def test_residual_encoder_equals_reference(size, config):
    model = make_model(config)
    images = random(2, 3, *size)
    before = arrays(model)
    got = model.encoder(images)
    assert [tuple(tap.shape) for tap in got] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip((256, 512, 1024, 2048), (4, 8, 16, 32), strict=True)
    ]
    assert_all_parity(got, encode(images.numpy(), before, config, BatchNorms(before, training=False)))
    assert_statistics(model, before, {})


@pytest.mark.parametrize("config", [RESNET, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("size", [(32, 64), (96, 64)])
def test_residual_encoder_in_training_normalises_by_the_batch_and_moves_its_statistics(size, config):
    model = make_model(config).train()
    images = random(3, 3, *size)
    before = arrays(model)
    norms = BatchNorms(before, training=True)
    want = encode(images.numpy(), before, config, norms)
    assert_all_parity(model.encoder(images), want)
    # The stem's, three in each of five blocks, and one beside each of four stages, of three buffers each.
    assert len(norms.after) == 3 * (1 + 3 * sum(config.stage_depths) + 4)
    assert_statistics(model, before, norms.after)


def test_residual_encoder_has_the_tensors_of_its_stages_only():
    names = set(make_model(GROUPED).encoder.state_dict())
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    want = {"stem.conv.weight"} | {f"stem.norm.{leaf}" for leaf in leaves}
    for s, depth in enumerate(GROUPED.stage_depths):
        for b in range(depth):
            for i in (1, 2, 3):
                want |= {f"stages.{s}.{b}.conv{i}.weight"} | {f"stages.{s}.{b}.norm{i}.{leaf}" for leaf in leaves}
        want |= {f"stages.{s}.0.downsample.conv.weight"} | {f"stages.{s}.0.downsample.norm.{leaf}" for leaf in leaves}
    assert names == want


@pytest.mark.parametrize(("config", "passed"), [(HYBRID, 2), (ALL_TOKENS, 0), (RESNET, 4)])
def test_reassemble_passes_maps_on_and_reads_tokens(config, passed):
    model = make_model(config)
    taps = model.encoder(random(2, 3, 96, 64))
    maps = model.reassemble(taps, (96, 64))
    assert_all_parity(maps, reassemble(numpy(t.detach() for t in taps), (96, 64), arrays(model), config))
    for i in range(passed):
        assert torch.equal(maps[i], taps[i])
    assert {name.split(".")[0] for name in model.reassemble.state_dict()} == {str(i) for i in range(passed, 4)}


# Fusion


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("skip", ["input", "relu"])
@pytest.mark.parametrize("sizes", LEVELS[1:3])
def test_fusion_equals_reference(sizes, skip, project, norm):
    config = ALL_TOKENS.replace(unit_skip=skip, fusion_project=project, fusion_norm=norm)
    model = make_model(config)
    assert any(".project." in name for name in model.fusion.state_dict()) == project
    maps = level_maps(config, sizes)
    for training in (False, True):
        w = arrays(model)
        norms = BatchNorms(w, training)
        want = fuse(numpy(maps), w, config, norms)[0]
        assert_all_parity(model.train(training).fusion(maps), [want])
        assert_statistics(model, w, norms.after)


@pytest.mark.parametrize(("place", "level"), [("penultimate", 1), ("last", 0)])
@pytest.mark.parametrize("sizes", LEVELS[1:])
def test_fusion_in_training_also_returns_the_map_of_the_auxiliary_head(sizes, place, level):
    config = ALL_TOKENS.replace(**SEGMENTATION).replace(auxiliary_head=place)
    model = make_model(config)
    maps = level_maps(config, sizes)
    w = arrays(model)
    want = fuse(numpy(maps), w, config, BatchNorms(w, training=False))
    assert_all_parity(model.fusion(maps), [want[0]])
    want = fuse(numpy(maps), w, config, BatchNorms(w, training=True))
    got = model.train().fusion(maps)
    assert_parity(got[0], want[0])
    assert_parity(got[-1], want[level])
    height, width = sizes[0]
    assert got[-1].shape == ((2, 12, height, width) if level == 1 else (2, 12, 2 * height, 2 * width))


# Heads


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 1), (1, 4)])
def test_depth_head_equals_reference(size, align_corners):
    model = make_model(ALL_TOKENS.replace(head_align_corners=align_corners))
    x = random(3, 12, *size)
    place_last_bias(model, x.numpy())
    want = depth_of(x.numpy(), arrays(model), model.config)
    assert (want > 0).mean() >= 0.5
    got = model.head(x)
    assert_parity(got.depth, want)
    assert got.logits is None
    assert got.aux_logits is None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth_head", [False, True])
@pytest.mark.parametrize("place", ["none", "penultimate", "last"])
def test_segmentation_heads_equal_reference(place, depth_head, training):
    config = ALL_TOKENS.replace(**SEGMENTATION).replace(auxiliary_head=place, depth_head=depth_head)
    model = make_model(config)
    maps = level_maps(config, LEVELS[1])
    w = arrays(model)
    norms = BatchNorms(w, training)
    want = heads(fuse(numpy(maps), w, config, norms), w, config, norms)
    got = model.train(training).head(*model.fusion(maps))
    assert_all_parity(got, want)
    assert got.logits.shape == (2, 7, 80, 112)
    assert (got.depth is not None) == depth_head
    assert (got.aux_logits is not None) == (training and place != "none")
    if got.aux_logits is not None:
        assert got.aux_logits.shape == ((2, 7, 20, 28) if place == "penultimate" else (2, 7, 40, 56))
    assert_statistics(model, w, norms.after)


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 4)])
def test_logits_are_upsampled_with_coinciding_corners(size):
    model = make_model(ALL_TOKENS.replace(num_classes=7, depth_head=False))
    x = random(2, 12, *size)
    w = arrays(model)
    small = classes_of(x.numpy(), w, BatchNorms(w, training=False), "head.segmentation")
    logits = model.head(x).logits
    assert logits.shape == (2, 7, 2 * size[0], 2 * size[1])
    corners = (slice(None), slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
    assert_parity(logits[corners], small[corners])
    # Along a row a step between pixels is (size - 1) / (2 size - 1) of one between the map's.
    step = (size[1] - 1) / (2 * size[1] - 1)
    assert_parity(logits[:, :, 0, 1], small[:, :, 0, 0] * (1 - step) + small[:, :, 0, 1] * step)


def test_metric_depth_is_clamped_and_then_inverted():
    # The shift takes the smaller half below zero, where an inversion before the clamp would give negative depth.
    config = ALL_TOKENS.replace(metric=True, depth_scale=0.7, depth_shift=-0.2)
    model = make_model(config)
    x = random(3, 12, 8, 12).requires_grad_()
    place_last_bias(model, x.detach().numpy())
    with torch.no_grad():
        relative = make_model(config.replace(metric=False))
        relative.load_state_dict(model.state_dict())
        inverse = 0.7 * relative.head(x).depth.numpy() - 0.2
    depth = model.head(x).depth
    clamped = inverse <= 1e-8
    assert 0.05 <= clamped.mean() <= 0.95
    want = depth_of(x.detach().numpy(), arrays(model), config)
    assert_parity(depth, want)
    # The largest values are those of the clamp, and say nothing about the others.
    assert_parity(1 / depth, 1 / want)
    assert_parity(1 / depth[~torch.from_numpy(clamped)], inverse[~clamped])
    assert (depth[torch.from_numpy(clamped)] - 1e8).abs().max() <= 1e-7  # some ulps of 1e8
    assert depth.min() > 0
    depth[torch.from_numpy(clamped)].sum().backward()
    assert x.grad.abs().max() == 0


def test_metric_depth_of_zero_is_that_of_the_shift():
    model = make_model(ALL_TOKENS.replace(metric=True, depth_scale=0.000305, depth_shift=0.1378))
    with torch.no_grad():
        model.head.get_parameter("depth.conv3.bias").fill_(-1e6)
    depth = model.head(random(1, 12, 2, 3)).depth
    assert (depth - 1 / 0.1378).abs().max() <= 1e-14  # some ulps


# Dropout


def dropout_model(p):
    """Each class is one of the features, so that the auxiliary logits are what dropout left of them."""
    config = ALL_TOKENS.replace(**SEGMENTATION).replace(num_classes=12, dropout=p)
    model = make_model(config)
    with torch.no_grad():
        for name in ("segmentation", "auxiliary"):
            model.head.get_parameter(f"{name}.classify.weight").copy_(torch.eye(12)[:, :, None, None])
            model.head.get_parameter(f"{name}.classify.bias").zero_()
    return model


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_dropout_in_training_keeps_each_value_with_its_probability(p):
    model = dropout_model(p).train()
    maps = (random(4, 12, 40, 40), random(4, 12, 40, 40, seed=2))
    w = arrays(model)
    norms = BatchNorms(w, training=True)
    got = model.head(*maps)
    for name, logits, x in (("segmentation", got.logits, maps[0]), ("auxiliary", got.aux_logits, maps[1])):
        values = before_classes(x.numpy(), w, norms, f"head.{name}")
        logits = logits.detach().numpy()
        if name == "segmentation":  # of the upsampled map only the corners are values of the map
            corners = (slice(None), slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
            values, logits = values[corners], logits[corners]
        kept = logits / np.where(values > 0, values, 1)
        opened = values > 0
        assert (logits[~opened] == 0).all()
        # A value goes on, divided by the probability that it does, or vanishes.
        assert np.minimum(np.abs(kept), np.abs(kept - 1 / (1 - p)))[opened].max() <= 1e-9
        kept = kept > 0.5
        # Five standard deviations of a binomial share; a right dropout misses them once in two million seeds.
        deviation = math.sqrt(p * (1 - p) / opened.sum())
        assert abs(kept[opened].mean() - (1 - p)) <= 5 * deviation
        assert opened.sum() >= (10_000 if name == "auxiliary" else 50)
        if name == "auxiliary":  # values, not whole channels or images
            for image in range(4):
                for channel in range(12):
                    here = kept[image, channel][opened[image, channel]]
                    assert len(here) < 20 or 0 < here.mean() < 1


def test_dropout_draws_anew_and_by_the_seed():
    model = dropout_model(0.5).train()
    maps = (random(2, 12, 8, 8), random(2, 12, 8, 8))
    first, second = model.head(*maps), model.head(*maps)
    assert not torch.equal(first.logits, second.logits)
    assert not torch.equal(first.aux_logits, second.aux_logits)
    torch.manual_seed(5)
    first = model.head(*maps)
    torch.manual_seed(5)
    second = model.head(*maps)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.aux_logits, second.aux_logits)


def test_dropout_does_nothing_in_evaluation():
    model = dropout_model(0.5)
    maps = (random(2, 12, 8, 8),)
    w = arrays(model)
    small = classes_of(maps[0].numpy(), w, BatchNorms(w, training=False), "head.segmentation")
    logits = model.head(*maps).logits
    assert_parity(logits, resize(small, 16, 16, align_corners=True))
    assert torch.equal(logits, model.head(*maps).logits)


# Whole networks


NETWORKS = {
    "hybrid": HYBRID,
    "hybrid, later standardization": HYBRID.replace(weight_standardization="variance", readout="add"),
    "hybrid, all tokens": ALL_TOKENS,
    "hybrid, metric": HYBRID.replace(**METRIC),
    "hybrid, classes": HYBRID.replace(**SEGMENTATION),
    "hybrid, joint": HYBRID.replace(**CLASSES, auxiliary_head="last"),
    "midas": THIN.replace(**MIDAS),
    "midas, grouped": GROUPED.replace(**MIDAS),
    "midas, joint": THIN.replace(**MIDAS, num_classes=7),
    "residual, classes": GROUPED.replace(**SEGMENTATION),
    "vit, classes": VIT.replace(**SEGMENTATION),
    "vit, joint and metric": VIT.replace(**CLASSES, **METRIC, auxiliary_head="last"),
}
networks = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())


def prepared(config, images, training):
    """A model whose depth is neither clipped nor constant."""
    model = make_model(config)
    if config.depth_head:
        place_last_bias(model, network(images.numpy(), arrays(model), config, training).fused[0])
    return model.train(training)


@networks
@pytest.mark.parametrize(("size", "training"), [((96, 64), False), ((32, 64), True)], ids=["eval", "train"])
def test_network_equals_reference(config, size, training, open_shares):
    images = random(2, 3, *size)
    model = prepared(config, images, training)
    w = arrays(model)
    open_shares.clear()
    want = network(images.numpy(), w, config, training)
    assert len(open_shares) > 10
    # Were a ReLU open or closed everywhere, a network without it, or without what feeds it, would agree too.
    assert min(open_shares) >= 0.05
    assert max(open_shares) <= 0.95
    with torch.no_grad():
        got = model(images)
    assert_all_parity(got, want.outputs)
    assert_statistics(model, w, want.after)
    if got.depth is not None:
        assert got.depth.shape == (2, *size)
        assert np.unique(want.outputs[0]).size > want.outputs[0].size / 2
    if got.logits is not None:
        assert got.logits.shape == (2, 7, *size)


@pytest.mark.parametrize("name", ["hybrid", "hybrid, all tokens", "midas, joint", "residual, classes"])
def test_network_equals_its_stages(name):
    config = NETWORKS[name]
    images = random(2, 3, 96, 64)
    model = make_model(config)
    want = network(images.numpy(), arrays(model), config)
    with torch.no_grad():
        taps = model.encoder(images)
        maps = model.reassemble(taps, (96, 64))
        fused = model.fusion(maps)
        outputs = model.head(*fused)
        assert_all_parity([*taps, *maps, *fused], [*want.taps, *want.maps, want.fused[0]])
        for whole, staged in zip(model(images), outputs, strict=True):
            assert (whole is None and staged is None) or torch.equal(whole, staged)


@pytest.mark.parametrize("config", [NETWORKS["hybrid, joint"], NETWORKS["midas, joint"]], ids=["hybrid", "residual"])
def test_joint_network_gives_depth_and_logits_of_one_pass(config):
    images = random(2, 3, 32, 64)
    joint = prepared(config, images, training=False)
    state = joint.state_dict()
    with torch.no_grad():
        both = joint(images)
        without_classes = {"num_classes": 0, "auxiliary_head": "none"}
        for alone, output in (({"depth_head": False}, "logits"), (without_classes, "depth")):
            single = DPTModel(config.replace(**alone), dtype=torch.float64).eval()
            single.load_state_dict({name: state[name] for name in single.state_dict()})
            got = single(images)
            assert [value is not None for value in got] == [output == "depth", output == "logits", False]
            assert_parity(getattr(both, output), getattr(got, output).numpy())
        joint.train()(images)
    tracked = [value for name, value in joint.named_buffers() if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(value == 3 + 1 for value in tracked)  # one pass of the encoder and fusion serves both heads


def loss_of(outputs, probes, log):
    """A weighted sum of all outputs; of metric depth its logarithm."""
    outputs = [output for output in outputs if output is not None]
    assert len(outputs) == len(probes)
    total = 0
    for i, (output, probe) in enumerate(zip(outputs, probes, strict=True)):
        total = total + ((log(output) if i == 0 and log else output) * probe).sum()
    return total


@networks
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradient_equals_differences_of_the_reference(config, training):
    images = random(2, 3, 32, 64)
    model = prepared(config, images, training)
    w = arrays(model)
    outputs = model(images)
    probes = [random(*output.shape, seed=10 + i) for i, output in enumerate(o for o in outputs if o is not None)]
    loss_of(outputs, probes, torch.log if config.metric else None).backward()
    probes = numpy(probes)
    for seed in (20, 21) if training else (20,):
        generator = np.random.default_rng(seed)
        direction = {}
        slope = 0.0
        for name, tensor in model.named_parameters():
            size = tensor.detach().square().mean().sqrt().item()
            direction[name] = size * generator.standard_normal(tensor.shape)
            if tensor.grad is None:  # only what does not run
                assert name.startswith("head.auxiliary.")
                assert not training
            else:
                slope += (tensor.grad.numpy() * direction[name]).sum()
        losses = []
        for sign in (1, -1):
            moved = {name: value + sign * STEP * direction.get(name, 0) for name, value in w.items()}
            reference = network(images.numpy(), moved, config, training).outputs
            losses.append(loss_of(reference, probes, np.log if config.metric else None))
        difference = (losses[0] - losses[1]) / (2 * STEP)
        assert abs(slope) > 0.01 * abs(losses[0])
        assert abs(slope - difference) <= GRADIENT_TOLERANCE * abs(difference)


@pytest.mark.parametrize(
    ("name", "training", "changes"),
    [
        ("hybrid", False, {"weight_standardization": "variance"}),
        ("hybrid", False, {"unit_skip": "relu"}),
        ("hybrid", False, {"head_align_corners": False}),
        ("hybrid", False, {"readout": "ignore"}),
        ("hybrid", False, {"heads": 4}),
        ("hybrid, metric", False, {"metric": False}),
        ("hybrid, metric", False, {"depth_shift": 0.0700001}),
        ("midas, grouped", False, {"unit_skip": "input"}),
        ("midas, grouped", False, {"head_align_corners": True}),
        ("vit, classes", False, {"taps": (0, 1, 1, 3)}),
    ],
)
def test_comparison_fails_when_the_reference_is_another_network(name, training, changes):
    config = NETWORKS[name]
    images = random(2, 3, 32, 64)
    model = prepared(config, images, training)
    w = arrays(model)
    with torch.no_grad():
        got = model(images)
    assert_all_parity(got, network(images.numpy(), w, config, training).outputs)
    other = SimpleNamespace(**{**vars(config), **changes})
    with pytest.raises(AssertionError):
        assert_all_parity(got, network(images.numpy(), w, other, training).outputs)


# Sizes of the published networks


def count_conv(inputs, outputs, kernel, bias=True, groups=1):
    return outputs * (inputs // groups) * kernel**2 + outputs * bias


def count_stages(depths, first_width, groups=1):
    """Stem and stages; each convolution has no bias and is followed by a norm's weight and bias."""

    def normed(inputs, outputs, kernel, groups=1):
        return count_conv(inputs, outputs, kernel, bias=False, groups=groups) + 2 * outputs

    total = normed(3, 64, 7)
    inputs = 64
    for s, depth in enumerate(depths):
        width, outputs = first_width * 2**s, 256 * 2**s
        total += normed(inputs, outputs, 1)
        for _ in range(depth):
            total += normed(inputs, width, 1) + normed(width, width, 3, groups) + normed(width, outputs, 1)
            inputs = outputs
    return total


def count_decoder(channels, project):
    """Fusion of 256 features, whose coarsest level has no first unit, and the depth head."""
    inputs = sum(count_conv(c, 256, 3, bias=False) for c in channels)
    units = 7 * 2 * count_conv(256, 256, 3)
    projects = 4 * count_conv(256, 256, 1) * project
    return inputs + units + projects + count_conv(256, 128, 3) + count_conv(128, 32, 3) + count_conv(32, 1, 1)


def count_hybrid():
    width = 768
    embedding = count_conv(1024, width, 1) + width + (1 + 24 * 24) * width
    attention = 4 * count_conv(width, width, 1)
    mlp = count_conv(width, 4 * width, 1) + count_conv(4 * width, width, 1)
    blocks = 12 * (2 * 2 * width + attention + mlp)
    level = count_conv(2 * width, width, 1) + count_conv(width, width, 1)
    reassembled = 2 * level + count_conv(width, width, 3)
    decoder = count_decoder((256, 512, 768, 768), project=True)
    return count_stages((3, 4, 9), 64) + embedding + blocks + reassembled + decoder


def count_midas(depths, first_width, groups=1):
    return count_stages(depths, first_width, groups) + count_decoder((256, 512, 1024, 2048), project=False)


@pytest.mark.parametrize(
    ("preset", "derived", "count"),
    [
        ("dpt_hybrid", count_hybrid(), 121_196_289),
        ("midas_resnet50", count_midas((3, 4, 6, 3), 64), 40_948_481),
        ("midas_resnext101_wsl", count_midas((3, 4, 23, 3), 32 * 8, groups=32), 104_182_785),
    ],
)
def test_published_networks_have_their_number_of_parameters(preset, derived, count):
    assert derived == count
    model = DPTModel(preset, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == count
