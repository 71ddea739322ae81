"""Slow float64 references in NumPy of the family's other networks: hybrid and residual encoders, the fusion and head of
MiDaS v2.1, segmentation and auxiliary heads, metric depth.

What they share with the plain network (transformer blocks, read, interpolation) is in reference.py. Nothing here
shares code with the library.
"""

import math
from types import SimpleNamespace

import numpy as np
import torch
from reference import arrays, assert_parity, batch_norm, block, part, read, resample, resize

from torchdpt import DPTConfig, DPTModel

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


def numpy(tensors):
    return [tensor.numpy() for tensor in tensors]
