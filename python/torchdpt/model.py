"""The network as `torch.nn.Module`s that own its tensors. The forward pass is C++, called as operators."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self, cast, overload

import torch
from torch import Tensor, nn

from torchdpt import _C, checkpoint
from torchdpt.config import DPTConfig
from torchdpt.image import ImageProcessor
from torchdpt.predict import predict

if TYPE_CHECKING:
    from torchdpt.image import ImageLike
    from torchdpt.prediction import Prediction

_log = logging.getLogger("torchdpt")

Path = str | os.PathLike[str]


class DPTOutput(NamedTuple):
    """What a model predicts; what its network has no head for is None.

    Attributes:
        depth: [B, H, W], relative inverse depth, not negative.
        logits: [B, K, H, W], scores of K classes.
        aux_logits: [B, K, H, W], the same from the auxiliary head, in training only.
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
                "C++: each process would go on with statistics of its own; train with larger batches per process, or "
                "freeze the statistics with model.fusion.eval()"
            )
        super().add_module(name, module)

    def extra_repr(self) -> str:
        tensors = [*self._parameters.items(), *self._buffers.items()]
        return ", ".join(f"{name}{list(tensor.shape)}" for name, tensor in tensors if tensor is not None)


def _as_config(config: DPTConfig | str) -> DPTConfig:
    if isinstance(config, str):
        return DPTConfig.preset(config)
    if not isinstance(config, DPTConfig):
        raise ValueError(f"config must be a DPTConfig or the name of a preset, got {type(config).__name__}")
    return config


class _Stage(nn.Module):
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
        self.config = _as_config(config)
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
            if holder._modules.get(name) is not child or _has_hooks(child):
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


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class Encoder(_Stage):
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
            images: [B, 3, H, W], normalised as in training; H and W are multiples of the patch size.

        Returns:
            Tokens after the blocks `config.taps`, four of [B, 1+N, D] (distilled: 2+N), the readout token first.

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


class Reassemble(_Stage):
    """Tokens to image-like features, `torch.ops.dpt.reassemble`."""

    _name = "reassemble"

    def forward(self, taps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Reassemble tokens.

        Args:
            taps: Four of [B, 1+N, D] (distilled: 2+N), for the finest level first.
            size: (height, width) of the image in pixels.

        Returns:
            Four maps [B, channels[i], H / strides[i], W / strides[i]], finest first.

        Raises:
            ValueError: if there are not four taps, or their tokens do not fit `size`.
        """
        maps = torch.ops.dpt.reassemble(list(taps), size, *self._gather(), self.config.to_json(), self.training)
        return tuple(maps)


class Fusion(_Stage):
    """The convolutional decoder, `torch.ops.dpt.fuse`."""

    _name = "fusion"

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Fuse four maps, coarse to fine.

        Args:
            maps: Four of [B, channels[i], H_i, W_i], finest first; any sizes.

        Returns:
            [B, features, 2 * H_0, 2 * W_0].

        Raises:
            ValueError: if there are not four maps of the config's channels.
        """
        return torch.ops.dpt.fuse(list(maps), *self._gather(), self.config.to_json(), self.training)  # type: ignore[no-any-return]


class Head(_Stage):
    """The output head, `torch.ops.dpt.head`."""

    _name = "head"

    def forward(self, map: Tensor) -> DPTOutput:
        """Predict from the fused map.

        Args:
            map: [B, features, H / 2, W / 2].

        Returns:
            DPTOutput with `depth` [B, H, W].
        """
        (depth,) = torch.ops.dpt.head(map, *self._gather(), self.config.to_json(), self.training)
        return DPTOutput(depth)


class DPTModel(nn.Module):
    """A Dense Prediction Transformer.

    `predict` goes from photographs to depth maps; calling the model goes from tensors to tensors. The four stages,
    `encoder`, `reassemble`, `fusion` and `head`, can each be called alone and carry hooks.

    Attributes:
        config: The network's shape.
        processor: How `predict` prepares photographs, an `ImageProcessor`; it travels with checkpoints.

    Args:
        config: A config, or the name of a preset (`list_presets`). Tensors are initialised as in the papers;
            `torch.manual_seed` decides them. The model is in train mode.
        encoder_weights: A checkpoint (folder or .safetensors file) whose encoder to start from.
        device: Where the tensors are. Default: torch's default device.
        dtype: Their floating point type. Default: torch's default dtype.

    Raises:
        ValueError: if the preset is unknown, or `encoder_weights` are of another shape.

    Reference: Ranftl, Bochkovskiy, Koltun (2021), Sec. 3.
    """

    def __init__(
        self,
        config: DPTConfig | str,
        *,
        encoder_weights: Path | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = _as_config(config)
        self.processor = ImageProcessor((self.config.image_size, self.config.image_size))
        self.encoder = Encoder(self.config, device=device, dtype=dtype)
        self.reassemble = Reassemble(self.config, device=device, dtype=dtype)
        self.fusion = Fusion(self.config, device=device, dtype=dtype)
        self.head = Head(self.config, device=device, dtype=dtype)
        if encoder_weights is not None:
            if self.encoder.pos_embed.is_meta:
                raise ValueError("encoder_weights cannot be loaded onto device='meta', which holds no values")
            tensors, unused = _C.load_encoder(self.config.to_json(), os.fspath(encoder_weights))
            self.encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in tensors.items()})
            _log.info("%s: %d tensors are not of the encoder and were not used", encoder_weights, len(unused))

    @classmethod
    def from_pretrained(
        cls,
        path: Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a checkpoint, in eval mode.

        Nothing in a file is run: .pt files are read by `torch.load(weights_only=True)` alone.

        Args:
            path: A folder, a .safetensors, .pt or .pth file, or else the id "owner/name" of a model on the hub.
                Layouts: ours, that of transformers' DPTForDepthEstimation with a plain ViT (Intel/dpt-large), and the
                two of isl-org/DPT (docs/checkpoints.md).
            device: Where to put the tensors. Default: torch's default device.
            dtype: Their floating point type. Default: that of the file.
            revision: Branch, tag or commit, of a hub id. Default: its main branch.
            cache_dir: Where hub files are kept. Default: the hub's own cache.
            local_files_only: Look for a hub id in the cache alone.

        Raises:
            ValueError: if there is no such file or model; the file is damaged or wants to run code; or tensors are
                missing, unexpected or of another shape, with their names.
            ConnectionError: if the hub cannot be reached, and its cache does not have the model.
        """
        found = checkpoint.find(path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        read = checkpoint.read(found)
        if read.ignored:
            _log.info("%s: ignored tensors that the network never runs: %s", path, ", ".join(read.ignored))
        model = cls(DPTConfig.from_json(read.config), device="meta")
        model.load_state_dict(read.tensors, assign=True)
        model.processor = ImageProcessor.from_folder(found if os.path.isdir(found) else os.path.dirname(found))
        return model.to(torch.device(device) if device is not None else torch.get_default_device(), dtype).eval()

    def save_pretrained(
        self, folder: Path, layout: Literal["torchdpt", "transformers", "isl-org"] = "torchdpt"
    ) -> list[str]:
        """Write config.json and model.safetensors, or isl-org's model.pt, into a folder, which is created.

        preprocessor_config.json is written beside them.

        Each file is written to a temporary name first, so none is ever half there.

        Args:
            folder: Where to write.
            layout: "torchdpt"; "transformers" for `DPTForDepthEstimation.from_pretrained`; or "isl-org" for the code of
                isl-org/DPT, release 1_0.

        Returns:
            Names of tensors that the layout declares and the network never runs: they are written as zeros.

        Raises:
            ValueError: if the layout has no such network, or the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for name, stage in self.named_children():
            if isinstance(stage, _Stage):
                parameters, buffers = stage._gather()
                values = [*zip(stage._parameters_at, parameters, strict=True)]
                values += zip(stage._buffers_at, buffers, strict=True)
                names = {module: prefix for prefix, module in stage.named_modules()}
                for (holder, leaf), value in values:
                    path = [name, names[holder], leaf] if names[holder] else [name, leaf]
                    tensors[".".join(path)] = value.detach()
        if layout == "isl-org":
            named, zeros = _C.named_tensors(self.config.to_json(), tensors, layout)
            checkpoint.save_state_dict(named, os.fspath(folder))
        else:
            zeros = _C.save_checkpoint(self.config.to_json(), tensors, os.fspath(folder), layout)
        self.processor.save(folder)
        return zeros

    @property
    def activation_checkpointing(self) -> bool:
        """See `Encoder.activation_checkpointing`."""
        return self.encoder.activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, on: bool) -> None:
        self.encoder.activation_checkpointing = on

    def forward(self, images: Tensor) -> DPTOutput:
        """Predict for images.

        Args:
            images: [B, 3, H, W], normalised as in training (published DPT weights: (rgb - 0.5) / 0.5 with rgb in
                [0, 1]); H and W are multiples of the patch size. At multiples of 32 the result is the published
                network's.

        Returns:
            DPTOutput with `depth` [B, H, W].

        Raises:
            ValueError: if the images have another shape or dtype, or something was attached inside the network that
                cannot take part.
        """
        stages: list[_Stage] = [self.encoder, self.reassemble, self.fusion, self.head]
        if not all(map(self._is_plain, stages, (Encoder, Reassemble, Fusion, Head))):
            # Stage by stage, the same to the bit, so that hooks and stages of the user's own take part.
            maps = self.reassemble(self.encoder(images), (images.shape[2], images.shape[3]))
            output: DPTOutput = self.head(self.fusion(maps))
            return output
        tensors: list[Tensor] = []
        buffers: list[Tensor] = []
        for stage in stages:
            stage_tensors, stage_buffers = stage._gather()
            tensors += stage_tensors
            buffers += stage_buffers
        (depth,) = torch.ops.dpt.forward(
            images, tensors, buffers, self.config.to_json(), self.training, self.encoder._checkpoint()
        )
        return DPTOutput(depth)

    @contextlib.contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Eval mode for a while; every module then has its own mode again."""
        modes = [(module, module.training) for module in self.modules()]
        if any(training for _, training in modes):
            self.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def _is_plain(self, stage: nn.Module, kind: type[_Stage]) -> bool:
        """Whether `stage` is as this model made it, so that one call stands for all four."""
        return (
            type(stage) is kind
            and "forward" not in stage.__dict__
            and stage.config.to_json() == self.config.to_json()
            and stage.training == self.training
            and not _has_hooks(stage)
        )

    @overload
    def predict(
        self,
        image: ImageLike,
        *,
        size: tuple[int, int] | None = ...,
        input_size: int | tuple[int, int] | None = ...,
        resize: str | None = ...,
        batch_size: int = ...,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        image: list[ImageLike] | tuple[ImageLike, ...],
        *,
        size: tuple[int, int] | None = ...,
        input_size: int | tuple[int, int] | None = ...,
        resize: str | None = ...,
        batch_size: int = ...,
    ) -> list[Prediction]: ...
    def predict(
        self,
        image: ImageLike | list[ImageLike] | tuple[ImageLike, ...],
        *,
        size: tuple[int, int] | None = None,
        input_size: int | tuple[int, int] | None = None,
        resize: str | None = None,
        batch_size: int = 8,
    ) -> Prediction | list[Prediction]:
        """Predict depth for a photograph or a list of them.

        Runs in eval mode, and leaves the model in the mode that it was in.

        Args:
            image: RGB. A path, the bytes of a file, a PIL image, an array [H, W, 3], a tensor [3, H, W] (`load_image`
                says what is allowed in each); or a list of such.
            size: (height, width) of the prediction in pixels. Default: the image's own.
            input_size: Side or (height, width) that the network's input aims at. Default: `processor.size`.
            resize: "minimal", "lower_bound", "upper_bound" or "exact", see `ImageProcessor`. Default: that of
                `processor`.
            batch_size: How many images of one network size run at once. Default: 8.

        Returns:
            A Prediction whose `depth` is float32 [H, W]; its `kind` and `unit` say what the numbers mean. For a list, a
            list in the same order.

        Raises:
            ValueError: if an image is damaged or none, or an option is wrong.
            OSError: if a file cannot be read.
        """
        several = isinstance(image, list | tuple)
        images = cast("Sequence[ImageLike]", image if several else [image])
        predictions = predict(self, images, size=size, input_size=input_size, resize=resize, batch_size=batch_size)
        return predictions if several else predictions[0]

    def attention(self, images: Tensor, block: int) -> Tensor:
        """The attention weights of one encoder block.

        Args:
            images: [B, 3, H, W], as in `forward`.
            block: Index of the block, counted from 0.

        Returns:
            [B, heads, 1+N, 1+N] (distilled: 2+N), the readout token first; each row sums to one.

        Raises:
            ValueError: if there is no such block.
        """
        return self.encoder.attention(images, block)
