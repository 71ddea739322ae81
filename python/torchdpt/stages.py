"""The stages of the network as `torch.nn.Module`s, which own its tensors and call C++ operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from torchdpt import _C
from torchdpt.config import DPTConfig


class DPTOutput(NamedTuple):
    """What a model predicts; what its network has no head for is None.

    Attributes:
        depth: [B, H, W], relative inverse depth, not negative; metres if `config.metric`.
        logits: [B, K, H, W], scores of K classes.
        aux_logits: [B, K, h, w], the same from the auxiliary head, at the size of the map that it reads; in training
            only.
    """

    depth: Tensor | None = None
    logits: Tensor | None = None
    aux_logits: Tensor | None = None


class Weights(nn.Module):
    """Tensors of the network under their names, with no forward pass of their own: that is C++, and reads them by name.

    So what acts on a module's forward pass cannot act here, and is refused when the network is called: another module
    put in its place, hooks, `torch.nn.utils.prune`. What acts on a tensor works: `torch.nn.utils.parametrize`.
    """

    def __getitem__(self, index: int) -> nn.Module:
        try:
            return self._modules[str(index)]  # type: ignore[return-value]
        except KeyError:
            raise IndexError(f"no part {index} here; parts are {list(self._modules)}") from None

    def add_module(self, name: str, module: nn.Module | None) -> None:
        # torch.nn.SyncBatchNorm.convert_sync_batchnorm puts each child back by this name.
        if module is not None and "running_mean" in module._buffers:
            raise ValueError(
                "convert_sync_batchnorm cannot reach the batch normalisation of this network, whose forward pass is "
                "C++: each process would go on with statistics of its own; call model.synchronize_batch_norm() instead"
            )
        super().add_module(name, module)

    def extra_repr(self) -> str:
        tensors = [*self._parameters.items(), *self._buffers.items()]
        return ", ".join(f"{name}{list(tensor.shape)}" for name, tensor in tensors if tensor is not None)


def as_config(config: DPTConfig | str) -> DPTConfig:
    if isinstance(config, str):
        return DPTConfig.preset(config)
    if not isinstance(config, DPTConfig):
        raise ValueError(f"config must be a DPTConfig or the name of a preset, got {type(config).__name__}")
    return config


class Stage(nn.Module):
    """A stage of the network: owns the tensors that `_C.spec` lists for it and calls its operator."""

    _name: ClassVar[str]

    def __init__(
        self,
        config: DPTConfig | str,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = as_config(config)
        device = torch.device(device) if device is not None else torch.get_default_device()
        dtype = dtype or torch.get_default_dtype()
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating point type, got {dtype}")
        text = self.config.to_json()
        spec = _C.spec(text, self._name)
        # Parents and children, and where each tensor is, in the operator's order.
        self._links: list[tuple[nn.Module, str, nn.Module]] = []
        self._parameters_at: list[tuple[nn.Module, str]] = []
        self._buffers_at: list[tuple[nn.Module, str]] = []
        values = None if device.type == "meta" else _C.initial_tensors(text, self._name)
        for i, (path, shape, default_dtype, is_buffer) in enumerate(spec):
            tensor_dtype = dtype if default_dtype.is_floating_point else default_dtype
            if values is None:
                value = torch.empty(shape, dtype=tensor_dtype, device=device)
            else:
                value = values[i].to(device, tensor_dtype)
            self._place(path.split("."), value, is_buffer)

    def _place(self, path: list[str], value: Tensor, is_buffer: bool) -> None:
        holder: nn.Module = self
        for part in path[:-1]:
            if part not in holder._modules:
                child = Weights()
                self._links.append((holder, part, child))
                holder.add_module(part, child)
            holder = holder._modules[part]  # type: ignore[assignment]
        if is_buffer:
            holder.register_buffer(path[-1], value)
            self._buffers_at.append((holder, path[-1]))
        else:
            holder.register_parameter(path[-1], nn.Parameter(value))
            self._parameters_at.append((holder, path[-1]))

    def _gather(self) -> tuple[list[Tensor], list[Tensor]]:
        """The stage's parameters and buffers, read by attribute, so that parametrizations take part."""
        for holder, name, child in self._links:
            if holder._modules.get(name) is not child or has_hooks(child):
                self._refuse(child)
        return [getattr(*at) for at in self._parameters_at], [getattr(*at) for at in self._buffers_at]

    def _refuse(self, child: nn.Module) -> None:
        name = next((name for name, module in self.named_modules() if module is child), None)
        if name is None:
            what = f"a submodule of `{self._name}` was replaced"
        else:
            what = f"`{self._name}.{name}` has a hook (torch.nn.utils.prune adds one)"
        raise ValueError(
            f"{what}, which cannot take part: the forward pass is C++ and reads tensors, not modules. To change a "
            "weight (LoRA, pruning masks, constraints) use torch.nn.utils.parametrize.register_parametrization on it; "
            "hooks work on model.encoder, model.reassemble, model.fusion and model.head, and so does fully_shard"
        )


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def as_output(config: DPTConfig, tensors: list[Tensor]) -> DPTOutput:
    """The tensors that the operators return: those of depth, logits and aux_logits that the network has."""
    rest = iter(tensors)
    depth = next(rest) if config.depth_head else None
    return DPTOutput(depth, *rest)


class Encoder(Stage):
    """The encoder alone, `torch.ops.dpt.encode`.

    Attributes:
        activation_checkpointing: In training keep only the inputs of the blocks for the backward pass, which computes
            the rest again: less memory for about a third more time.
    """

    _name = "encoder"
    activation_checkpointing: bool = False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            images: [B, 3, H, W], normalised as in training; H and W are multiples of the patch size (of 32 for a
                resnet).

        Returns:
            Four taps, finest level first: tokens after the blocks `config.taps`, [B, 1+N, D] (distilled: 2+N), the
            readout token first; of the first `config.conv_levels` levels maps, [B, channels[i], H / strides[i],
            W / strides[i]].

        Raises:
            ValueError: if the images have another shape or dtype.
        """
        taps = torch.ops.dpt.encode(images, *self._gather(), self.config.to_json(), self.training, self._checkpoint())
        return tuple(taps)  # torch runs full backward hooks on tensors and tuples, not on lists

    def attention(self, images: Tensor, block: int) -> Tensor:
        """The attention weights of one block (counted from 0), [B, heads, 1+N, 1+N]; each row sums to one."""
        return torch.ops.dpt.attention(images, *self._gather(), self.config.to_json(), block)  # type: ignore[no-any-return]

    def _checkpoint(self) -> bool:
        return self.activation_checkpointing and torch.is_grad_enabled()


class Reassemble(Stage):
    """Tokens to image-like features, `torch.ops.dpt.reassemble`."""

    _name = "reassemble"

    def forward(self, taps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Reassemble tokens.

        Args:
            taps: What the encoder returns.
            size: (height, width) of the image in pixels.

        Returns:
            Four maps [B, channels[i], H / strides[i], W / strides[i]], finest first.

        Raises:
            ValueError: if there are not four taps, or they do not fit `size`.
        """
        maps = torch.ops.dpt.reassemble(list(taps), size, *self._gather(), self.config.to_json(), self.training)
        return tuple(maps)


class Fusion(Stage):
    """The convolutional decoder, `torch.ops.dpt.fuse`."""

    _name = "fusion"

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fuse four maps, coarse to fine.

        Args:
            maps: Four of [B, channels[i], H_i, W_i], finest first; any sizes.

        Returns:
            The fused map, [B, features, 2 * H_0, 2 * W_0]; and in training with an auxiliary head on the penultimate
            level the one that it reads, [B, features, H_0, W_0].

        Raises:
            ValueError: if there are not four maps of the config's channels.
        """
        return tuple(torch.ops.dpt.fuse(list(maps), *self._gather(), self.config.to_json(), self.training))


class Head(Stage):
    """The output heads, `torch.ops.dpt.head`."""

    _name = "head"

    def forward(self, map: Tensor, auxiliary_map: Tensor | None = None) -> DPTOutput:
        """Predict from the fused map.

        Args:
            map: [B, features, H / 2, W / 2], the first that fusion returns.
            auxiliary_map: The second, if it returns one: for the auxiliary head.

        Returns:
            DPTOutput with what `config` has heads for.

        Raises:
            ValueError: if a map has other dimensions, or the auxiliary one is missing or too many.
        """
        maps = [map] if auxiliary_map is None else [map, auxiliary_map]
        tensors = torch.ops.dpt.head(maps, *self._gather(), self.config.to_json(), self.training)
        return as_output(self.config, tensors)
