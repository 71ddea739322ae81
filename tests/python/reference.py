"""A slow float64 reference of the network in NumPy.

It is written from the papers (Dosovitskiy et al. 2021; Touvron et al. 2021; Ranftl et al. 2021) and shares no code
with the library: it uses sums, products, exp and math.erf only.
"""

import math

import numpy as np
import torch

# Both sides are float64 (ulp 2.2e-16); sums of some thousand terms through all layers leave about 1e-14.
TOLERANCE = 1e-9


# The reference. Arrays are float64; `w` is a dictionary of them by name, `part` picks those of one layer.


def part(w, prefix):
    return {name.removeprefix(prefix + "."): value for name, value in w.items() if name.startswith(prefix + ".")}


def linear(x, w):
    y = x @ w["weight"].T
    return y + w["bias"] if "bias" in w else y


def layer_norm(x, w, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * w["weight"] + w["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def relu(x):
    return np.where(x > 0, x, 0)


def conv(x, w, stride=1, padding=0):
    """A sum over the kernel's places of shifted images: [B, in, H, W] -> [B, out, H', W']."""
    weight = w["weight"]
    rows, columns = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height = (x.shape[2] - rows) // stride + 1
    width = (x.shape[3] - columns) // stride + 1
    y = np.zeros((x.shape[0], weight.shape[0], height, width))
    for i in range(rows):
        for j in range(columns):
            shifted = x[:, :, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
            y += np.tensordot(weight[:, :, i, j], shifted, (1, 1)).transpose(1, 0, 2, 3)
    return y + w["bias"][:, None, None] if "bias" in w else y


def conv_transpose(x, w):
    """Kernel = stride: each pixel becomes a block of its own. weight [in, out, k, k]."""
    k = w["weight"].shape[2]
    y = np.zeros((x.shape[0], w["weight"].shape[1], k * x.shape[2], k * x.shape[3]))
    for i in range(k):
        for j in range(k):
            y[:, :, i::k, j::k] = np.einsum("co,bchw->bohw", w["weight"][:, :, i, j], x)
    return y + w["bias"][:, None, None]


def interpolation(size, out, align_corners):
    """The matrix [out, size] of linear interpolation along one axis."""
    matrix = np.zeros((out, size))
    for i in range(out):
        if align_corners:  # first and last pixels coincide
            position = i * (size - 1) / (out - 1) if out > 1 else 0.0
        else:  # the images' edges coincide; beyond the outermost centres the value is theirs
            position = min(max((i + 0.5) * size / out - 0.5, 0), size - 1)
        low = min(int(position), size - 1)
        high = min(low + 1, size - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, high] += position - low
    return matrix


def resize(x, height, width, align_corners):
    rows = interpolation(x.shape[2], height, align_corners)
    columns = interpolation(x.shape[3], width, align_corners)
    return np.einsum("ih,bchj->bcij", rows, np.einsum("jw,bchw->bchj", columns, x))


def pos_embed(w, c, h, w_grid):
    prefix = 2 if c.distilled else 1
    grid = c.image_size // c.patch_size
    table = w["pos_embed"]
    patches = table[:, prefix:].reshape(1, grid, grid, c.width).transpose(0, 3, 1, 2)
    patches = resize(patches, h, w_grid, align_corners=False).transpose(0, 2, 3, 1).reshape(1, h * w_grid, c.width)
    return np.concatenate([table[:, :prefix], patches], 1)


def patch_embed(images, w, c):
    """Cuts the image into patches and projects each, row by row: [B, N, D]."""
    batch, _, height, width = images.shape
    p = c.patch_size
    kernel = w["patch_embed.weight"].reshape(c.width, -1)
    tokens = [
        images[:, :, i : i + p, j : j + p].reshape(batch, -1) @ kernel.T + w["patch_embed.bias"]
        for i in range(0, height, p)
        for j in range(0, width, p)
    ]
    return np.stack(tokens, 1)


def embed(images, w, c):
    batch, _, height, width = images.shape
    tokens = [np.repeat(w["cls_token"], batch, 0)]
    if c.distilled:
        tokens.append(np.repeat(w["dist_token"], batch, 0))
    tokens.append(patch_embed(images, w, c))
    return np.concatenate(tokens, 1) + pos_embed(w, c, height // c.patch_size, width // c.patch_size)


def query_key_value(x, w, c):
    """Each [B, heads, L, d]; the rows of the fused projection are all queries, all keys, all values, head by head."""
    batch, length, width = x.shape
    packed = linear(x, w)
    parts = [packed[..., i * width : (i + 1) * width] for i in range(3)]
    return [p.reshape(batch, length, c.heads, width // c.heads).transpose(0, 2, 1, 3) for p in parts]


def attention_weights(x, w, c):
    query, key, _ = query_key_value(x, part(w, "qkv"), c)
    return softmax(np.einsum("bhld,bhmd->bhlm", query, key) / math.sqrt(c.width // c.heads))


def attention(x, w, c):
    _, _, value = query_key_value(x, part(w, "qkv"), c)
    mixed = attention_weights(x, w, c) @ value
    return linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), part(w, "proj"))


def block(x, w, c):
    x = x + attention(layer_norm(x, part(w, "norm1"), c.layer_norm_eps), part(w, "attn"), c)
    hidden = gelu(linear(layer_norm(x, part(w, "norm2"), c.layer_norm_eps), part(w, "mlp.fc1")))
    return x + linear(hidden, part(w, "mlp.fc2"))


def encode(images, w, c):
    x = embed(images, w, c)
    taps = []
    for i in range(c.depth):
        x = block(x, part(w, f"blocks.{i}"), c)
        if i in c.taps:
            taps.append(x)
    return taps


def read(tokens, w, c):
    prefix = 2 if c.distilled else 1
    patches = tokens[:, prefix:]
    if c.readout == "ignore":
        return patches
    if c.readout == "add":  # of two prefix tokens the mean
        return patches + sum(tokens[:, i : i + 1] for i in range(prefix)) / prefix
    readout = np.broadcast_to(tokens[:, :1], patches.shape)  # of two prefix tokens the first
    return gelu(linear(np.concatenate([patches, readout], -1), part(w, "read.project")))


def resample(x, w, stride, patch):
    if stride < patch:
        return conv_transpose(x, w)
    if stride > patch:
        return conv(x, w, stride=stride // patch, padding=1)
    return x


def reassemble(taps, size, w, c):
    h, wide = size[0] // c.patch_size, size[1] // c.patch_size
    maps = []
    for i, tokens in enumerate(taps):
        level = part(w, str(i))
        patches = read(tokens, level, c)
        grid = patches.reshape(patches.shape[0], h, wide, c.width).transpose(0, 3, 1, 2)
        maps.append(resample(conv(grid, part(level, "project")), part(level, "resample"), c.strides[i], c.patch_size))
    return maps


def batch_norm(x, w, training):
    """With the running statistics, or with the batch's, and then also what the running ones become."""
    if not training:
        mean, variance = w["running_mean"], w["running_var"]
        after = {}
    else:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        mean = x.sum((0, 2, 3)) / count
        squares = ((x - mean[:, None, None]) ** 2).sum((0, 2, 3))
        variance = squares / count
        after = {
            "running_mean": 0.9 * w["running_mean"] + 0.1 * mean,
            "running_var": 0.9 * w["running_var"] + 0.1 * squares / (count - 1),
        }
    scale = w["weight"] / np.sqrt(variance + 1e-5)
    return (x - mean[:, None, None]) * scale[:, None, None] + w["bias"][:, None, None], after


def residual_unit(x, w, c, training, statistics, name):
    y = x
    for i in (1, 2):
        y = conv(relu(y), part(w, f"conv{i}"), padding=1)
        if c.fusion_norm == "batch":
            y, after = batch_norm(y, part(w, f"norm{i}"), training)
            statistics |= {f"{name}.norm{i}.{leaf}": value for leaf, value in after.items()}
    return y + x


def fuse(maps, w, c, training=False, statistics=None):
    """In the order of the paper: each level is upsampled, then projected, then given to the finer one."""
    statistics = {} if statistics is None else statistics
    x = None
    for i in reversed(range(4)):
        level = part(w, str(i))
        y = conv(maps[i], part(level, "input"), padding=1)
        if x is not None:
            y = x + residual_unit(y, part(level, "unit1"), c, training, statistics, f"{i}.unit1")
        y = residual_unit(y, part(level, "unit2"), c, training, statistics, f"{i}.unit2")
        height, width = maps[i - 1].shape[2:] if i > 0 else (2 * y.shape[2], 2 * y.shape[3])
        x = conv(resize(y, height, width, align_corners=True), part(level, "project"))
    return x


def before_last_relu(x, w):
    x = conv(x, part(w, "conv1"), padding=1)
    x = resize(x, 2 * x.shape[2], 2 * x.shape[3], align_corners=True)
    x = relu(conv(x, part(w, "conv2"), padding=1))
    return conv(x, part(w, "conv3"))[:, 0]


def head(x, w):
    return relu(before_last_relu(x, w))


def forward(images, w, c):
    taps = encode(images, part(w, "encoder"), c)
    maps = reassemble(taps, images.shape[2:], part(w, "reassemble"), c)
    return head(fuse(maps, part(w, "fusion"), c), part(w, "head.depth"))


# Helpers


def arrays(module):
    return {name: tensor.double().numpy().copy() for name, tensor in module.state_dict().items()}


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_parity(ours, reference):
    ours = ours.detach().numpy()
    assert ours.shape == reference.shape
    assert ours.dtype == np.float64
    assert np.isfinite(reference).all()
    assert np.isfinite(ours).all()
    assert reference.std() > 0
    assert np.abs(ours - reference).max() <= TOLERANCE * np.abs(reference).max()


# Sizes of the four levels, finest first: of an image whose sides are multiples of 32; of two with sides of 16 * odd,
# where the coarsest level is rounded up; and any.
LEVELS = [
    [(16, 24), (8, 12), (4, 6), (2, 3)],
    [(20, 28), (10, 14), (5, 7), (3, 4)],
    [(12, 4), (6, 2), (3, 1), (2, 1)],
    [(9, 5), (4, 7), (5, 3), (1, 2)],
]


def level_maps(config, sizes):
    return [random(2, config.channels[i], *size, seed=i) for i, size in enumerate(sizes)]
