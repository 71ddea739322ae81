"""From photographs to predictions."""

from __future__ import annotations

import dataclasses
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX, Classes
from torchdpt.image import Array, ImageProcessor, is_count, is_size, load_image
from torchdpt.prediction import Kind, Prediction

if TYPE_CHECKING:
    from torchdpt.config import DPTConfig
    from torchdpt.image import ImageLike
    from torchdpt.stages import DPTOutput


class Network(ABC):
    """What predicts: a `DPTModel` or a `FrozenModel`.

    Attributes:
        config: The network's shape.
        processor: How `predict` prepares photographs.
        classes: What the classes of segmentation are called, or None.
    """

    config: DPTConfig
    processor: ImageProcessor
    classes: Classes | None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it runs, and its results are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the factors of its products."""

    @abstractmethod
    def _run(self, images: Tensor) -> DPTOutput:
        """Predict for prepared images [B, 3, H, W] on any device, in eval mode and without gradients."""

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
        size = _check(size, batch_size)
        processor = processor_for(self, input_size, resize)
        items = []
        for i, each in enumerate(images):
            try:
                items.append(_load(self, each, processor))
            except (ValueError, OSError) as error:
                if len(images) > 1:
                    error.add_note(f"image {i} of the list")
                raise
        predictions = _predict_batch(self, items, size, batch_size)
        return predictions if several else predictions[0]


class FileResult(NamedTuple):
    """What became of one file: `prediction`, or `error` if it is None."""

    path: str
    prediction: Prediction | None
    error: Exception | None


class _Item(NamedTuple):
    image: Array  # [H, W, 3]
    input: Tensor  # [3, h, w]


def processor_for(
    model: Network, input_size: int | tuple[int, int] | None = None, resize: str | None = None
) -> ImageProcessor:
    """The model's processor with another size or policy, to multiples of the patch size.

    Args:
        model: Whose.
        input_size: Side or (height, width) that the network's input aims at.
        resize: A policy of `ImageProcessor`.

    Raises:
        ValueError: if there is no such policy or size.
    """
    if input_size is None and resize is None:
        return model.processor
    processor = model.processor
    size = (input_size, input_size) if isinstance(input_size, int | np.integer) else input_size
    if size is not None:
        if not is_size(size):
            raise ValueError(f"input_size must be a side or (height, width) in pixels, got {input_size!r}")
        check_network_size(model, *size)
    return dataclasses.replace(
        processor,
        size=processor.size if size is None else size,
        resize=processor.resize if resize is None else resize,
        multiple_of=math.lcm(processor.multiple_of, model.config.size_multiple),
    )


def _predict_batch(
    model: Network, items: Sequence[_Item], size: tuple[int, int] | None, batch_size: int
) -> list[Prediction]:
    """Predictions in order; items of one network size run together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(tuple(item.input.shape), []).append(i)
    predictions: dict[int, Prediction] = {}
    for group in groups.values():
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            output = model._run(torch.stack([items[i].input for i in batch]))
            for row, i in enumerate(batch):
                predictions[i] = prediction_of(model, output, row, items[i].image, size)
    return [predictions[i] for i in range(len(items))]


def prediction_of(
    model: Network, output: DPTOutput, row: int, image: Array, size: tuple[int, int] | None = None
) -> Prediction:
    """The prediction for one photograph of the batch that gave `output`.

    Args:
        model: Whose.
        output: What the network made of the batch.
        row: Which of the batch.
        image: The photograph, as `load_image` gives it.
        size: (height, width) of the prediction. Default: the photograph's.

    Raises:
        ValueError: if `model.classes` are not the classes of the network.
    """
    height, width = size or image.shape[:2]
    depth = None if output.depth is None else resize_depth(output.depth[row], height, width)
    if output.logits is None:
        labels, classes = None, None
    else:
        labels, classes = resize_labels(output.logits[row], height, width), model.classes
        num_classes = output.logits.shape[1]
        if classes is None or len(classes) != num_classes:
            raise ValueError(
                f"model.classes must name the {num_classes} classes of the network, got "
                f"{classes if classes is None else len(classes)}; Classes.default_for({num_classes}) does"
            )
    kind: Kind | None = None
    if depth is not None:
        kind = "metric_depth" if model.config.metric else "relative_inverse_depth"
    return Prediction(depth, kind, "m" if kind == "metric_depth" else None, _uint8(image), labels, classes)


def resize_depth(depth: Tensor, height: int, width: int) -> Array:
    """A depth map [h, w] at the size of its photograph, float32 [height, width].

    Bicubic without antialiasing, of the map as the network gives it (metres, if metric): isl-org/DPT run_monodepth.py.
    """
    full = F.interpolate(depth.float()[None, None], (height, width), mode="bicubic", align_corners=False)
    return np.ascontiguousarray(full[0, 0].cpu().numpy())


def resize_labels(logits: Tensor, height: int, width: int) -> Array:
    """The class of each pixel at the size of the photograph, of scores [K, h, w]; the lowest label wins ties.

    Bicubic without antialiasing, then the largest: isl-org/DPT run_segmentation.py, which has all K maps of the
    photograph's size in memory at once (7 GB for 150 classes of 12 megapixels). Here it is one, and the largest so far.

    Returns:
        int64 [height, width]; 255 where a score is NaN.
    """
    best = torch.full((height, width), -torch.inf, device=logits.device)
    labels = torch.zeros((height, width), dtype=torch.int32, device=logits.device)
    better = torch.empty((height, width), dtype=torch.bool, device=logits.device)
    for label, scores in enumerate(logits):
        full = F.interpolate(scores.float()[None, None], (height, width), mode="bicubic", align_corners=False)[0, 0]
        torch.gt(full, best, out=better)
        torch.maximum(best, full, out=best)  # keeps NaN
        labels.masked_fill_(better, label)
    labels.masked_fill_(best.isnan(), IGNORE_INDEX)
    return labels.cpu().numpy().astype(np.int64)


def _uint8(image: Array) -> Array:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    return np.asarray(image * 255 + 0.5).astype(np.uint8)


def _check(size: tuple[int, int] | None, batch_size: int) -> tuple[int, int] | None:
    if size is not None and not is_size(size):
        raise ValueError(f"size must be the output's (height, width) in pixels, got {size!r}")
    if not is_count(batch_size):
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")
    return None if size is None else (int(size[0]), int(size[1]))  # torch takes no NumPy integers


def check_network_size(model: Network, height: int, width: int) -> None:
    """Memory and time grow with the area, and attention's with its square."""
    native = model.config.image_size
    if height * width > 64 * native**2:
        raise ValueError(
            f"the network's input would be {width} x {height} pixels, more than 64 times its native "
            f"{native} x {native}; pass a smaller input_size, or resize='upper_bound' or 'exact'"
        )


def _load(model: Network, image: ImageLike, processor: ImageProcessor) -> _Item:
    array = load_image(image)
    check_network_size(model, *processor.network_size(*array.shape[:2]))
    return _Item(array, processor(array))


def predict_files(
    model: Network,
    paths: Iterable[str | os.PathLike[str]],
    *,
    size: tuple[int, int] | None = None,
    input_size: int | tuple[int, int] | None = None,
    resize: str | None = None,
    batch_size: int = 8,
) -> Iterator[FileResult]:
    """Predict for many files, a few at a time; a bad one does not stop the others.

    Files are decoded in threads while the network runs.

    Args:
        model: The network.
        paths: Image files.
        size: (height, width) of the predictions. Default: each image's own.
        input_size: Side or (height, width) that the network's input aims at. Default: the model's processor's.
        resize: Policy of `ImageProcessor`. Default: the model's processor's.
        batch_size: How many images at most are in the network at once. Twice as many, decoded and resized, are in
            memory, with the predictions of one batch. If the network fails on a batch (out of memory, say), its
            images are tried one by one, and what it then raises is that file's error.

    Returns:
        An iterator of FileResults, one for each path, in order.

    Raises:
        ValueError: if an option is wrong.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise ValueError(f"paths must be a list of paths, got {paths!r} alone")
    size = _check(size, batch_size)
    processor = processor_for(model, input_size, resize)
    return _each_file(model, iter(paths), processor, size, batch_size)


def _each_file(
    model: Network,
    paths: Iterator[str | os.PathLike[str]],
    processor: ImageProcessor,
    size: tuple[int, int] | None,
    batch_size: int,
) -> Iterator[FileResult]:
    with ThreadPoolExecutor(max_workers=min(4, batch_size)) as pool:

        def submit() -> list[tuple[str, Future[_Item]]]:
            return [
                (_name(path), pool.submit(_load_file, model, path, processor)) for path in islice(paths, batch_size)
            ]

        loading = submit()
        while loading:
            current, loading = loading, submit()
            items: list[_Item | Exception] = []
            for _, future in current:
                try:
                    items.append(future.result())
                except Exception as error:  # whatever a decoder raises is this file's error
                    items.append(error)
            good = [item for item in items if isinstance(item, _Item)]
            predictions = iter(_predict_each(model, good, size, batch_size))
            for (path, _), item in zip(current, items, strict=True):
                result = next(predictions) if isinstance(item, _Item) else item
                if isinstance(result, Prediction):
                    yield FileResult(path, result, None)
                else:
                    yield FileResult(path, None, result)


def _name(path: object) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else repr(path)


def _load_file(model: Network, path: str | os.PathLike[str], processor: ImageProcessor) -> _Item:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"not a path, but {type(path).__name__}; predict takes other images")
    return _load(model, path, processor)


def _predict_each(
    model: Network, items: list[_Item], size: tuple[int, int] | None, batch_size: int
) -> list[Prediction | Exception]:
    """The predictions; where the network fails (out of memory, say), one by one, and what it then raises."""
    try:
        return [*_predict_batch(model, items, size, batch_size)]
    except Exception as error:
        if len(items) == 1:
            return [error]
    # Outside of the except block, whose traceback keeps the failed batch's memory.
    return [result for item in items for result in _predict_each(model, [item], size, 1)]
