"""The network as a `torch.nn.Module`: loading, saving, predicting. The forward pass is C++, called as operators."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor, nn

from torchdpt import _C, checkpoint
from torchdpt.classes import Classes
from torchdpt.config import DPTConfig
from torchdpt.frozen import FrozenModel, as_threads, calibration_images
from torchdpt.image import ImageProcessor
from torchdpt.predict import Network
from torchdpt.stages import DPTOutput, Encoder, Fusion, Head, Reassemble, Stage, as_config, as_output, has_hooks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from torchdpt.image import ImageLike

_log = logging.getLogger("torchdpt")
_mode_lock = threading.Lock()  # not of a model, which could then be neither copied nor pickled

Path = str | os.PathLike[str]


def published_processor(config: DPTConfig) -> ImageProcessor:
    """How photographs were prepared for the published networks: isl-org/DPT run_*.py, isl-org/MiDaS run.py of v2.1."""
    native = (config.image_size, config.image_size)
    if config.encoder == "resnet":
        # Mean and deviation of ImageNet.
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return ImageProcessor(native, resize="upper_bound", mean=mean, std=std)
    if not config.depth_head:
        return ImageProcessor((480, 480))
    sizes = {(0.000305, 0.1378): (480, 640), (0.00006016, 0.00579): (352, 1216)}  # NYU, KITTI
    if config.metric and (config.depth_scale, config.depth_shift) in sizes:
        return ImageProcessor(sizes[config.depth_scale, config.depth_shift])
    return ImageProcessor(native)


def processor_of(checkpoint_path: str, config: DPTConfig) -> ImageProcessor:
    """What lies beside the checkpoint, or else how photographs were prepared for the published networks."""
    folder = checkpoint_path if os.path.isdir(checkpoint_path) else os.path.dirname(checkpoint_path)
    own = os.path.exists(os.path.join(folder, "preprocessor_config.json"))
    return ImageProcessor.from_folder(folder) if own else published_processor(config)


class DPTModel(nn.Module, Network):  # in this order FSDP can give it another class
    """A Dense Prediction Transformer.

    `predict` goes from photographs to depth maps; calling the model goes from tensors to tensors. The four stages,
    `encoder`, `reassemble`, `fusion` and `head`, can each be called alone and carry hooks.

    Attributes:
        config: The network's shape.
        processor: How `predict` prepares photographs, an `ImageProcessor`; it travels with checkpoints.
        classes: What the classes of segmentation are called, `Classes` or None; they travel with checkpoints.

    Args:
        config: A config, or the name of a preset (`list_presets`). Tensors are initialised as in the papers;
            `torch.manual_seed` decides them. The model is in train mode.
        encoder_weights: A folder, .safetensors, .pt or .pth file whose encoder to start from: any that
            `from_pretrained` reads, or an encoder alone (timm's ViT, DeiT and ViT-Hybrid, torchvision's ResNet and
            ResNeXt). A position embedding of another grid is resized bilinearly, as for images of another size.
        device: Where the tensors are. Default: torch's default device.
        dtype: Their floating point type. Default: torch's default dtype.

    Raises:
        ValueError: if the preset is unknown, or `encoder_weights` are those of another encoder.

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
        self.config = as_config(config)
        self.processor = published_processor(self.config)
        self.classes = Classes.default_for(self.config.num_classes) if self.config.num_classes else None
        self.encoder = Encoder(self.config, device=device, dtype=dtype)
        self.reassemble = Reassemble(self.config, device=device, dtype=dtype)
        self.fusion = Fusion(self.config, device=device, dtype=dtype)
        self.head = Head(self.config, device=device, dtype=dtype)
        if encoder_weights is not None:
            if next(self.encoder.parameters()).is_meta:
                raise ValueError("encoder_weights cannot be loaded onto device='meta', which holds no values")
            read = checkpoint.read_encoder(encoder_weights, self.config.to_json())
            self.encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in read.tensors.items()})
            _log.info("%s: %d tensors are not of the encoder and were not used", encoder_weights, len(read.unused))
            if read.resized_from:
                grids = (read.resized_from, self.config.image_size // self.config.patch_size)
                _log.info("%s: resized the position embedding, whose grid was %d, to %d", encoder_weights, *grids)

    @classmethod
    def from_pretrained(
        cls,
        path: Path,
        *,
        config: DPTConfig | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        cache_dir: Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a checkpoint, in eval mode.

        Nothing in a file is run: .pt files are read by `torch.load(weights_only=True)` alone.

        Args:
            path: A folder, a .safetensors, .pt or .pth file, or else the id "owner/name" of a model on the hub; or
                "demo", a small network of relative depth that comes with this package (a folder of that name is
                "./demo").
                Layouts: ours, that of transformers' DPTForDepthEstimation and DPTForSemanticSegmentation, and those
                of isl-org/DPT and MiDaS v2.1 (docs/checkpoints.md).
            config: A config, or the name of a preset, that says what an isl-org file does not: "dpt_hybrid_nyu" and
                "dpt_hybrid_kitti" for these two, whose files are like that of "dpt_hybrid". It must agree with the
                shapes in the file, and be the file's own where it has one. Default: as published, relative depth.
            device: Where to put the tensors. Default: torch's default device.
            dtype: Their floating point type. Default: that of the file, and float32 of "demo".
            revision: Branch, tag or commit, of a hub id. Default: its main branch.
            cache_dir: Where hub files are kept. Default: the hub's own cache.
            local_files_only: Look for a hub id in the cache alone.

        Raises:
            ValueError: if there is no such file or model; the file is damaged or wants to run code; or tensors are
                missing, unexpected or of another shape, with their names; or `config` contradicts the file; or the
                folder names other than `config.num_classes` classes.
            ConnectionError: if the hub cannot be reached, and its cache does not have the model.
        """
        found = checkpoint.find(path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)
        read = checkpoint.read(found, None if config is None else as_config(config).to_json())
        if read.ignored:
            _log.info("%s: ignored tensors that the network never runs: %s", path, ", ".join(read.ignored))
        model = cls(DPTConfig.from_json(read.config), device="meta")
        model.load_state_dict(read.tensors, assign=True)
        if path == checkpoint.SHIPPED and dtype is None:  # float16 to be small
            dtype = torch.float32
        model.processor = processor_of(found, model.config)
        if model.config.num_classes:
            folder = found if os.path.isdir(found) else os.path.dirname(found)
            model.classes = Classes.from_folder(folder) or model.classes
            model._check_classes(f"from_pretrained: {folder!r} names", "mend or delete its classes.json")
        return model.to(torch.device(device) if device is not None else torch.get_default_device(), dtype).eval()

    def save_pretrained(
        self, folder: Path, layout: Literal["torchdpt", "transformers", "isl-org", "isl-org-scriptable"] = "torchdpt"
    ) -> list[str]:
        """Write config.json and model.safetensors, or isl-org's model.pt, into a folder, which is created.

        preprocessor_config.json is written beside them, and classes.json if `classes` are named.

        Each file is written to a temporary name first, so none is ever half there.

        Args:
            folder: Where to write.
            layout: "torchdpt"; "transformers" for `DPTForDepthEstimation.from_pretrained` or
                `DPTForSemanticSegmentation.from_pretrained`; or "isl-org" for the code of isl-org/DPT, release 1_0,
                or of MiDaS v2.1, whose files do not say that depth is metric; "isl-org-scriptable" for its branch
                dpt_scriptable.

        Returns:
            Names of tensors that the layout declares and the network never runs: they are written as zeros.

        Raises:
            ValueError: if the layout has no such network, `classes` are not `config.num_classes`, or the folder
                cannot be written.
        """
        self._check_classes("save_pretrained: model.classes are", "set model.classes to as many, or to None")
        tensors: dict[str, Tensor] = {}
        for name, stage in self.named_children():
            if isinstance(stage, Stage):
                parameters, buffers = stage._gather()
                values = [*zip(stage._parameters_at, parameters, strict=True)]
                values += zip(stage._buffers_at, buffers, strict=True)
                names = {module: prefix for prefix, module in stage.named_modules()}
                for (holder, leaf), value in values:
                    path = [name, names[holder], leaf] if names[holder] else [name, leaf]
                    tensors[".".join(path)] = value.detach()
        if layout.startswith("isl-org"):
            named, zeros = _C.named_tensors(self.config.to_json(), tensors, layout)
            checkpoint.save_state_dict(named, os.fspath(folder))
        else:
            zeros = _C.save_checkpoint(self.config.to_json(), tensors, os.fspath(folder), layout)
        self.processor.save(folder)
        if self.classes is not None:
            self.classes.save(folder)
        else:  # those of a model that was here before
            pathlib.Path(folder, "classes.json").unlink(missing_ok=True)
        return zeros

    def _check_classes(self, whose: str, advice: str) -> None:
        if self.classes is not None and len(self.classes) != self.config.num_classes:
            raise ValueError(
                f"{whose} {len(self.classes)} classes, and the network has num_classes = {self.config.num_classes}; "
                f"{advice}"
            )

    def synchronize_batch_norm(self, group: ProcessGroup | None = None) -> Self:
        """Share the statistics of batch normalisation among the processes of a group, in training.

        In place of `torch.nn.SyncBatchNorm`. Every process of the group must run the same steps. Without batch
        normalisation in the network, or with one process alone in the group, it changes nothing.

        Args:
            group: Default: all processes (`torch.distributed.init_process_group` comes first).

        Returns:
            This model.

        Raises:
            ValueError: if torch.distributed is not initialised, or `group` is no group that this process is in.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise ValueError(
                "synchronize_batch_norm: there is no process group; call torch.distributed.init_process_group first, "
                "and start the script with torchrun"
            )
        chosen = torch.distributed.group.WORLD if group is None else group
        if not isinstance(chosen, torch.distributed.ProcessGroup):
            raise ValueError(
                "synchronize_batch_norm: group must be a process group that this process is in, as "
                f"torch.distributed.new_group gives, or None for all processes, got {chosen!r}"
            )
        shared = chosen.size() > 1
        self.config = self.config.replace(batch_norm_group=chosen.group_name if shared else "")
        for stage in self.children():
            if isinstance(stage, Stage):
                stage.config = self.config
        return self

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
                [0, 1]); H and W are multiples of the patch size (of 32 for a resnet). At multiples of 32 the result is
                the published network's.

        Returns:
            DPTOutput with what `config` has heads for.

        Raises:
            ValueError: if the images have another shape or dtype, or something was attached inside the network that
                cannot take part.
        """
        stages: list[Stage] = [self.encoder, self.reassemble, self.fusion, self.head]
        if not all(map(self._is_plain, stages, (Encoder, Reassemble, Fusion, Head))):
            # Stage by stage, the same to the bit, so that hooks and stages of the user's own take part.
            maps = self.reassemble(self.encoder(images), (images.shape[2], images.shape[3]))
            output: DPTOutput = self.head(*self.fusion(maps))
            return output
        tensors: list[Tensor] = []
        buffers: list[Tensor] = []
        for stage in stages:
            stage_tensors, stage_buffers = stage._gather()
            tensors += stage_tensors
            buffers += stage_buffers
        outputs = torch.ops.dpt.forward(
            images, tensors, buffers, self.config.to_json(), self.training, self.encoder._checkpoint()
        )
        return as_output(self.config, outputs)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Their floating point type."""
        return next(self.parameters()).dtype

    def _run(self, images: Tensor) -> DPTOutput:
        with torch.inference_mode(), self._eval_mode():
            output: DPTOutput = self(images.to(self.device, self.dtype))
            return output

    def freeze(
        self,
        dtype: torch.dtype = torch.float32,
        *,
        calibration: Tensor | Sequence[ImageLike] | None = None,
        device: torch.device | str = "cpu",
        threads: int | None = None,
        without: Sequence[str] = (),
    ) -> FrozenModel:
        """Make the model ready to predict, and only that, on a CPU or a GPU.

        Its tensors are folded by exact rewrites and packed for this processor; later changes of the model do not reach
        the frozen one.

        Args:
            dtype: Of the factors of products: float32, bfloat16, on a GPU also float16, on a CPU also int8 in layers
                where it pays and does little harm (`FrozenModel.fallbacks` names those where it does more), with
                float32 in the others, or bfloat16 on processors with AMX. Results are float32. On a GPU maps are of
                this type, too, and float32 follows PyTorch's switches of TF32; float8_e4m3fn is for the linear layers
                of a transformer's blocks, with bfloat16 for all else.
            calibration: For int8, and only for it: photographs like those to predict for, eight, say. On them the mean
                error of int8 against float32 is at most 0.5 % of an output's range; layers fall back until it is.
                A list of what `predict` takes, or float32 [N, 3, H, W] on the CPU, as `forward` takes them.
            device: Where it will predict, "cpu" or a CUDA device, wherever the model is.
            threads: How many threads one call takes on a CPU. Default: `torch.get_num_threads()` at the call.
            without: Rewrites to leave out, for measurements: "fold_project", "fold_level_project", "phases",
                "products_first", "winograd" (docs/runtime.md).

        Raises:
            ValueError: for another dtype, device, number of threads or rewrite, if `calibration` is missing, not wanted
                or holds no images, or if torchdpt was built without CUDA and `device` wants it.
        """
        tensors = {name: tensor if tensor.is_meta else tensor.cpu() for name, tensor in self.state_dict().items()}
        images = calibration_images(calibration, self.processor)
        core = _C.freeze(
            self.config.to_json(),
            tensors,
            dtype,
            images,
            torch.device(device),
            as_threads(threads),
            list(without),
            self.processor.mean,
            self.processor.std,
        )
        return FrozenModel(core, self.processor, self.classes)

    _in_eval_mode = 0  # how many threads want it
    _modes: list[tuple[nn.Module, bool]]  # from before the first of them

    @contextlib.contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Eval mode for a while; when the last thread is through, every module has its own mode again."""
        with _mode_lock:
            if not self._in_eval_mode:
                self._modes = [(module, module.training) for module in self.modules()]
                if any(training for _, training in self._modes):
                    self.eval()
            self._in_eval_mode += 1
        try:
            yield
        finally:
            with _mode_lock:
                self._in_eval_mode -= 1
                if not self._in_eval_mode:
                    for module, training in self._modes:
                        module.training = training
                    self._modes = []

    def _is_plain(self, stage: nn.Module, kind: type[Stage]) -> bool:
        """Whether `stage` is as this model made it, so that one call stands for all four."""
        return (
            type(stage) is kind
            and "forward" not in stage.__dict__
            and stage.config.to_json() == self.config.to_json()
            and stage.training == self.training
            and not has_hooks(stage)
        )

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
