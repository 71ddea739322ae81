"""The network of a frozen file in plain PyTorch: to be given to other runtimes, and to count the products it executes.

The tensors are those of the file; how they fit together is what csrc/dpt/runtime/run.cpp does with its kernels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchdpt import _C, DPTConfig


def resized(x: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def in_rows(weight: Tensor) -> Tensor:
    """Panels [k / 256, n / 32, 256, 32] as [n, k, 1, 1]; other tensors as they are."""
    if weight.dim() != 4 or weight.shape[2:] != (256, 32):
        return weight
    rows = weight.permute(1, 3, 0, 2)
    return rows.reshape(-1, rows.shape[2] * rows.shape[3], 1, 1)


class Product(nn.Module):
    """A convolution whose output has ceil(H / stride) x ceil(W / stride) pixels; see csrc/dpt/runtime/network.h."""

    weight: Tensor
    bias: Tensor | None
    border: Tensor | None

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        *,
        stride: int = 1,
        before: tuple[int, int] | None = None,
        groups: int = 1,
        winograd: bool = False,
    ) -> None:
        super().__init__()
        for part in ("weight", "bias", "border"):
            self.register_buffer(part, tensors.get(f"{name}.{part}"))
        self.kernel = cast("tuple[int, int]", tuple(self.weight.shape[2:]))
        self.before = before or (self.kernel[0] // 2, self.kernel[1] // 2)
        self.stride, self.groups = stride, groups
        self.winograd = winograd and self.border is None

    def sides(self, size: int, axis: int) -> tuple[int, int, list[int]]:
        """Pixels of the output, pixels of zeros behind the input, and the border's 0..3 of each output pixel."""
        kernel, before = self.kernel[axis], self.before[axis]
        count = -(-size // self.stride)
        first = [i * self.stride - before for i in range(count)]
        behind = max(first[-1] + kernel - size, 0)
        return count, behind, [(start < 0) + 2 * (start + kernel > size) for start in first]

    def border_bias(self, height: int, width: int) -> Tensor:
        """[n, H', W'] for an input of that size."""
        assert self.border is not None
        rows, columns = (torch.tensor(self.sides(size, i)[2]) for i, size in enumerate((height, width)))
        return self.border[4 * rows[:, None] + columns].permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        (above, left), below, right = self.before, self.sides(height, 0)[1], self.sides(width, 1)[1]
        padding: tuple[int, int] = (0, 0)
        if (above, left) == (below, right):
            padding = (above, left)
        else:
            x = F.pad(x, (left, right, above, below))
        out = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return out if self.border is None else out + self.border_bias(height, width)

    def after_resize(self, x: Tensor, products_first: bool, align_corners: bool) -> Tensor:
        """Of `x` resized to twice its size; 3x3."""
        height, width = 2 * x.shape[2], 2 * x.shape[3]
        if not products_first:
            return cast("Tensor", self(resized(x, (height, width), align_corners)))
        n, channels = self.weight.shape[:2]
        taps = F.conv2d(x, self.weight.permute(2, 3, 0, 1).reshape(9 * n, channels, 1, 1))
        taps = F.pad(resized(taps, (height, width), align_corners), (1, 1, 1, 1))
        out = sum(
            taps[:, n * (3 * i + j) : n * (3 * i + j + 1), i : i + height, j : j + width]
            for i in range(3)
            for j in range(3)
        )
        out = out if self.bias is None else out + self.bias.view(-1, 1, 1)
        return out if self.border is None else out + self.border_bias(height, width)


class Rewritten(nn.Module):
    """Images [B, 3, H, W] to depth [B, H, W] or logits [B, K, H, W], as the frozen file `path` says."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        metadata, tensors = _C.read_safetensors(str(path))
        self.tensors = {name: in_rows(tensor) for name, tensor in tensors.items()}
        self.config = DPTConfig.from_json(metadata["config"])
        rewrites = json.loads(metadata["rewrites"])
        self.products_first: bool = rewrites["products_first"]
        self.winograd = rewrites["winograd"] and metadata["dtype"] == "float32"
        self.products = nn.ModuleDict()
        for name in self.tensors:
            if name.endswith(".weight") and self.tensors[name].dim() == 4:
                self.products[self.key(name.removesuffix(".weight"))] = self.product(name.removesuffix(".weight"))
        for name, tensor in self.tensors.items():
            self.register_buffer(f"tensor_{self.key(name)}", tensor)
        del self.tensors
        self.eval()

    @staticmethod
    def key(name: str) -> str:
        return name.replace(".", "_")

    def product(self, name: str) -> Product:
        config, parts = self.config, name.split(".")
        kernel = self.tensors[f"{name}.weight"].shape[2]
        same = {"stride": 1, "winograd": self.winograd and kernel == 3}
        match parts:
            case ["transformer", "patch_embed"]:
                side = 1 if config.encoder == "hybrid" else config.patch_size
                return Product(self.tensors, name, stride=side, before=(0, 0))
            case ["stages", "stem", "conv"]:
                return Product(self.tensors, name, stride=2, before=self.before(kernel, 2))
            case ["stages", "stages", stage, block, layer, "conv"]:
                strided = layer in ("conv2", "downsample") and block == "0" and stage != "0"
                stride = 2 if strided else 1
                groups = config.groups if layer == "conv2" else 1
                winograd = self.winograd and kernel == 3 and stride == groups == 1
                before = self.before(kernel, stride)
                return Product(self.tensors, name, stride=stride, before=before, groups=groups, winograd=winograd)
            case ["levels", level, "phases", number]:
                scale = config.patch_size // config.strides[int(level)]
                row, column = divmod(int(number), scale)
                return Product(self.tensors, name, before=(int(row == 0), int(column == 0)))
            case ["levels", level, "down"]:
                return Product(self.tensors, name, stride=config.strides[int(level)] // config.patch_size)
            case ["depth" | "segmentation", "conv" | "conv1" | "conv2"] if self.products_first:
                return Product(self.tensors, name)
        return Product(self.tensors, name, **same)

    def before(self, kernel: int, stride: int) -> tuple[int, int]:
        """Rows and columns of zeros before the input of a convolution of a stage."""
        side = kernel // 2 if self.config.encoder == "resnet" else max(kernel - stride, 0) // 2
        return side, side

    # --- parts of the network ---

    def has(self, name: str) -> bool:
        return self.key(name) in self.products

    def at(self, name: str) -> Product:
        return cast("Product", self.products[self.key(name)])

    def tensor(self, name: str) -> Tensor:
        return cast("Tensor", getattr(self, f"tensor_{self.key(name)}"))

    def through(self, name: str, x: Tensor) -> Tensor:
        return cast("Tensor", self.at(name)(x)) if self.has(name) else x

    def linear(self, name: str, x: Tensor) -> Tensor:
        product = self.at(name)
        return F.linear(x, product.weight.flatten(1), product.bias)

    def normed(self, name: str, x: Tensor) -> Tensor:
        x = cast("Tensor", self.at(f"{name}.conv")(x))
        if self.config.encoder != "hybrid":
            return x
        return F.group_norm(x, 32, self.tensor(f"{name}.norm.weight"), self.tensor(f"{name}.norm.bias"))

    def stages(self, images: Tensor) -> list[Tensor]:
        x = self.normed("stages.stem", images).relu()
        hybrid = self.config.encoder == "hybrid"
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2) if hybrid else F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage, depth in enumerate(self.config.stage_depths):
            for number in range(depth):
                block = f"stages.stages.{stage}.{number}"
                skip = self.normed(f"{block}.downsample", x) if self.has(f"{block}.downsample.conv") else x
                x = self.normed(f"{block}.conv1", x).relu()
                x = self.normed(f"{block}.conv2", x).relu()
                x = (self.normed(f"{block}.conv3", x) + skip).relu()
            maps.append(x)
        return maps

    def tokens(self, x: Tensor) -> Tensor:
        """Images, or the map of the last stage, to [B, P + h * w, D]."""
        x = self.through("transformer.patch_embed", x)
        side = self.config.image_size // self.config.patch_size
        position = self.tensor("transformer.pos_embed").view(1, side, side, -1).permute(0, 3, 1, 2)
        if x.shape[2:] != position.shape[2:]:
            position = resized(position, (x.shape[2], x.shape[3]), align_corners=False)
        prefix = self.tensor("transformer.prefix").expand(x.shape[0], -1, -1)
        return torch.cat([prefix, (x + position).flatten(2).transpose(1, 2)], 1)

    def block(self, number: int, x: Tensor) -> Tensor:
        name, eps, (batch, tokens, width) = f"transformer.blocks.{number}", self.config.layer_norm_eps, x.shape
        qkv = self.linear(f"{name}.qkv", F.layer_norm(x, (width,), eps=eps))
        q, k, v = qkv.view(batch, tokens, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).reshape(x.shape)
        x = x + self.linear(f"{name}.proj", mixed)
        hidden = F.gelu(self.linear(f"{name}.fc1", F.layer_norm(x, (width,), eps=eps)))
        return x + self.linear(f"{name}.fc2", hidden)

    def from_tokens(self, level: str, x: Tensor, height: int, width: int) -> Tensor:
        prefix = self.tensor("transformer.prefix").shape[0]
        patches = x[:, prefix:]
        if self.has(f"{level}.read"):
            token = self.linear(f"{level}.read_token", x[:, :1])
            patches = F.gelu(self.linear(f"{level}.read", patches) + token)
        elif self.config.readout == "add":
            patches = patches + x[:, :prefix].mean(1, keepdim=True)
        x = patches.transpose(1, 2).reshape(patches.shape[0], -1, height, width)
        return self.through(f"{level}.down", self.through(f"{level}.project", x))

    def reassembled(self, level: int, x: Tensor) -> Tensor:
        name, scale = f"levels.{level}", self.config.patch_size // self.config.strides[level]
        if hasattr(self, f"tensor_{self.key(name)}_up"):
            x = F.conv_transpose2d(x, self.tensor(f"{name}.up"), self.tensor(f"{name}.up_bias"), scale)
        if self.has(f"{name}.input"):
            return self.through(f"{name}.input", x)
        phases = [self.through(f"{name}.phases.{i}", x) for i in range(scale * scale)]
        return F.pixel_shuffle(torch.stack(phases, 2).flatten(1, 2), scale)

    def unit(self, name: str, x: Tensor) -> Tensor:
        inner = self.through(f"{name}.conv1", x.relu()).relu()
        return self.through(f"{name}.conv2", inner) + (x.relu() if self.config.unit_skip == "relu" else x)

    def forward(self, images: Tensor) -> Tensor:
        config = self.config
        stages = [] if config.encoder == "vit" else self.stages(images)
        maps = [self.reassembled(i, stages[i]) for i in range(config.conv_levels)]
        if config.encoder != "resnet":
            x = self.tokens(stages[-1] if stages else images)
            h, w = images.shape[2] // config.patch_size, images.shape[3] // config.patch_size
            for number in range(config.depth):
                x = self.block(number, x)
                if number in config.taps[config.conv_levels :]:
                    level = len(maps)
                    maps.append(self.reassembled(level, self.from_tokens(f"levels.{level}", x, h, w)))
        fused = images
        for i in reversed(range(4)):
            x = maps[i]
            if self.has(f"fusion.{i}.unit1.conv1"):
                x = self.unit(f"fusion.{i}.unit1", x)
                x = x + resized(fused, (x.shape[2], x.shape[3]))
            fused = self.through(f"fusion.{i}.project", self.unit(f"fusion.{i}.unit2", x))
        return self.depth(fused) if config.depth_head else self.logits(fused)

    def depth(self, fused: Tensor) -> Tensor:
        x = self.at("depth.conv1").after_resize(fused, self.products_first, True)
        x = self.at("depth.conv2").after_resize(x, self.products_first, self.config.head_align_corners).relu()
        dot = self.tensor("depth.dot").view(1, -1, 1, 1)
        depth = F.conv2d(x, dot, self.tensor("depth.dot_bias"))[:, 0].relu()
        if self.config.metric:
            depth = 1 / (depth * self.config.depth_scale + self.config.depth_shift).clamp_min(1e-8)
        return depth

    def logits(self, fused: Tensor) -> Tensor:
        x = self.at("segmentation.conv").after_resize(fused, self.products_first, True).relu()
        scores = self.through("segmentation.classify", x)
        return resized(scores, (2 * scores.shape[2], 2 * scores.shape[3]))


def executed_flop(path: str | Path, batch: int, height: int, width: int) -> int:
    """Floating-point operations of the products that a frozen model executes, a multiply-addition being two.

    Convolutions by Winograd's F(4x4, 3x3) count with the 36 products that each tile of 4 x 4 pixels takes, those at the
    edges whole; transforms, sums, softmax and interpolation do not count.
    """
    network = Rewritten(path).to("meta")
    saved = 0

    def see(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal saved
        product = cast("Product", module)
        images, n, rows, columns = out.shape
        pairs = images * n * product.weight.shape[1]
        saved += 2 * pairs * (9 * rows * columns - 36 * -(-rows // 4) * -(-columns // 4))

    for product in network.products.values():
        if cast("Product", product).winograd:
            product.register_forward_hook(see)
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        network(torch.empty(batch, 3, height, width))
    return int(counter.get_total_flops()) - saved
