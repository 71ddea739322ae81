"""Networks that are ready to predict, and only that: the CPU runtime, and its sister on CUDA."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from torchdpt import _C
from torchdpt.classes import Classes
from torchdpt.config import DPTConfig
from torchdpt.image import ImageProcessor, is_count
from torchdpt.predict import Network
from torchdpt.stages import DPTOutput, as_output

if TYPE_CHECKING:
    from torchdpt.image import ImageLike


def calibration_images(calibration: Tensor | Sequence[ImageLike] | None, processor: ImageProcessor) -> list[Tensor]:
    """What int8 is calibrated on, as tensors [N, 3, H, W]; see `DPTModel.freeze`.

    Args:
        calibration: Images as the network takes them, a list of photographs, or None.
        processor: Prepares the photographs.

    Raises:
        ValueError: if it is something else, or one of the photographs is no image.
    """
    if calibration is None:
        return []
    if isinstance(calibration, Tensor):
        return [calibration.detach()]
    if not isinstance(calibration, list | tuple):
        raise ValueError(
            "freeze: calibration must be a list of photographs or a tensor [N, 3, H, W], got "
            f"{type(calibration).__name__}"
        )
    return [processor(image)[None] for image in calibration]


def as_threads(threads: int | None) -> int:
    """How many threads a call takes, as the runtime knows it: 0 for those of torch at the call.

    Raises:
        ValueError: if it is no number of threads.
    """
    if threads is not None and not is_count(threads):
        raise ValueError(f"threads must be an integer of at least 1, got {threads!r}")
    return threads or 0


class FrozenModel(Network):
    """A network that `DPTModel.freeze` made ready to predict, or that `load` read.

    Many threads may call it at once. On a CPU the same input gives the same bits, with any number of threads. On a GPU
    a call gives work to the current stream and does not wait for it; the first call with a shape of images captures a
    CUDA graph, and the model keeps those of the last eight shapes.

    Attributes:
        config: The network's shape.
        processor: How `predict` prepares photographs.
        classes: What the classes of segmentation are called, or None.
    """

    def __init__(self, core: _C.FrozenModel, processor: ImageProcessor, classes: Classes | None) -> None:
        self._core = core
        self.config = DPTConfig.from_json(core.config())
        self.processor = processor
        self.classes = classes

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors of products; results are float32."""
        return self._core.dtype()

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Layers that would have cost too much in int8 and are not; the worst first, named as in the file."""
        return tuple(self._core.fallbacks())

    @property
    def device(self) -> torch.device:
        """Where it predicts."""
        return self._core.device()

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, threads: int | None = None, device: torch.device | str = "cpu"
    ) -> Self:
        """Read a file that `save` wrote, on any device. Nothing in it is run.

        Args:
            path: The file.
            threads: How many threads one call takes on a CPU. Default: `torch.get_num_threads()` at the call.
            device: Where it will predict, "cpu" or a CUDA device.

        Raises:
            ValueError: if it is another file, a damaged one, or of another version of the format, or if there is no
                such device.
        """
        core = _C.load_frozen(os.fspath(path), as_threads(threads), torch.device(device))
        try:
            entries = {name: json.loads(core.metadata()[name]) for name in ("processor", "classes")}
            processor = ImageProcessor(**entries["processor"])
            classes = None if entries["classes"] is None else Classes.from_json(entries["classes"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}: its processor or classes are damaged: {error}") from error
        return cls(core, processor, classes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file with all that `load` needs, under a temporary name first.

        Raises:
            ValueError: if it cannot be written.
        """
        metadata = {
            "processor": json.dumps(dataclasses.asdict(self.processor)),
            "classes": json.dumps(None if self.classes is None else self.classes.to_json()),
        }
        self._core.save(os.fspath(path), metadata)

    def __call__(self, images: Tensor) -> DPTOutput:
        """Predict for images.

        Args:
            images: [B, 3, H, W] on its device: float32, as `DPTModel.forward` takes them, or uint8, RGB pixels, of any
                strides (an array [B, H, W, 3], permuted), which are normalised here by the mean and deviation of the
                processor that it was frozen with.

        Returns:
            DPTOutput in float32, with what `config` has heads for.

        Raises:
            ValueError: if the images have another shape, dtype or device.
        """
        return as_output(self.config, self._core.run(images.detach()))

    def profile(self, images: Tensor) -> tuple[DPTOutput, dict[str, float]]:
        """Predict, and time the parts of the network.

        Args:
            images: [B, 3, H, W] on the CPU, as a call takes them.

        Returns:
            What a call gives, and the milliseconds that each part took: "convolutional stages", "patch embedding",
            "attention" (with its normalisation, queries, keys, values and projection), "MLP", "reassemble", "fusion"
            (with the convolutions of its residual units), "head"; of those, what the network has.

        Raises:
            ValueError: if the images have another shape, dtype or device.
        """
        tensors, seconds = self._core.profile(images.detach())
        return as_output(self.config, tensors), {part: 1000 * value for part, value in seconds if value}

    def _run(self, images: Tensor) -> DPTOutput:
        return self(images.to(self.device, torch.float32))
