"""From photographs to predictions."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from torchdpt.image import Array, ImageProcessor, load_image
from torchdpt.prediction import Prediction

if TYPE_CHECKING:
    from torchdpt.image import ImageLike
    from torchdpt.model import DPTModel


class FileResult(NamedTuple):
    """What became of one file: `prediction`, or `error` if it is None."""

    path: str
    prediction: Prediction | None
    error: Exception | None


class _Item(NamedTuple):
    image: Array  # [H, W, 3]
    input: Tensor  # [3, h, w]


def processor_for(
    model: DPTModel, input_size: int | tuple[int, int] | None = None, resize: str | None = None
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
    size = (input_size, input_size) if isinstance(input_size, int) else input_size
    if size is not None and not _is_size(size):
        raise ValueError(f"input_size must be a side or (height, width) in pixels, got {input_size!r}")
    return dataclasses.replace(
        processor,
        size=processor.size if size is None else size,
        resize=processor.resize if resize is None else resize,
        multiple_of=math.lcm(processor.multiple_of, model.config.patch_size),
    )


def _predict_batch(
    model: DPTModel, items: Sequence[_Item], size: tuple[int, int] | None, batch_size: int
) -> list[Prediction]:
    """Predictions in order; items of one network size run together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(tuple(item.input.shape), []).append(i)
    weight = next(model.parameters())
    predictions: dict[int, Prediction] = {}
    with torch.inference_mode(), model._eval_mode():
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                batch = group[start : start + batch_size]
                images = torch.stack([items[i].input for i in batch]).to(weight.device, weight.dtype)
                depths = model(images).depth
                assert depths is not None
                for i, depth in zip(batch, depths, strict=True):
                    full = resize_depth(depth, *(size or items[i].image.shape[:2]))
                    predictions[i] = Prediction(full, image=_uint8(items[i]))
    return [predictions[i] for i in range(len(items))]


def resize_depth(depth: Tensor, height: int, width: int) -> Array:
    """A depth map [h, w] at the size of its photograph, float32 [height, width].

    Bicubic without antialiasing, as in isl-org/DPT run_monodepth.py.
    """
    full = F.interpolate(depth.float()[None, None], (height, width), mode="bicubic", align_corners=False)
    return np.ascontiguousarray(full[0, 0].cpu().numpy())


def _uint8(item: _Item) -> Array:
    image = item.image
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    return np.asarray(image * 255 + 0.5).astype(np.uint8)


def _check(size: tuple[int, int] | None, batch_size: int) -> None:
    if size is not None and not _is_size(size):
        raise ValueError(f"size must be the output's (height, width) in pixels, got {size!r}")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")


def _is_size(size: object) -> bool:
    return isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)


def predict(
    model: DPTModel,
    images: Sequence[ImageLike],
    *,
    size: tuple[int, int] | None = None,
    input_size: int | tuple[int, int] | None = None,
    resize: str | None = None,
    batch_size: int = 8,
) -> list[Prediction]:
    """Predict for a list of images; see `DPTModel.predict`."""
    _check(size, batch_size)
    processor = processor_for(model, input_size, resize)
    items = []
    for i, image in enumerate(images):
        try:
            items.append(_load(image, processor))
        except (ValueError, OSError) as error:
            error.add_note(f"image {i} of the list")
            raise
    return _predict_batch(model, items, size, batch_size)


def _load(image: ImageLike, processor: ImageProcessor) -> _Item:
    array = load_image(image)
    return _Item(array, processor(array))


def predict_files(
    model: DPTModel,
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
        batch_size: How many images at most are in memory and in the network at once.

    Returns:
        An iterator of FileResults, one for each path, in order.

    Raises:
        ValueError: if an option is wrong.
    """
    if isinstance(paths, str | bytes | os.PathLike):
        raise ValueError(f"paths must be a list of paths, got {paths!r} alone")
    _check(size, batch_size)
    processor = processor_for(model, input_size, resize)
    return _each_file(model, iter(paths), processor, size, batch_size)


def _each_file(
    model: DPTModel,
    paths: Iterator[str | os.PathLike[str]],
    processor: ImageProcessor,
    size: tuple[int, int] | None,
    batch_size: int,
) -> Iterator[FileResult]:
    with ThreadPoolExecutor(max_workers=min(4, batch_size)) as pool:

        def submit() -> list[tuple[str, Future[_Item]]]:
            return [(os.fspath(path), pool.submit(_load, path, processor)) for path in islice(paths, batch_size)]

        loading = submit()
        while loading:
            current, loading = loading, submit()
            results: dict[int, FileResult] = {}
            items: dict[int, _Item] = {}
            for i, (path, future) in enumerate(current):
                try:
                    items[i] = future.result()
                except Exception as error:  # whatever a decoder raises is this file's error
                    results[i] = FileResult(path, None, error)
            predictions = _predict_batch(model, list(items.values()), size, batch_size)
            for i, prediction in zip(items, predictions, strict=True):
                results[i] = FileResult(current[i][0], prediction, None)
            for i in range(len(current)):
                yield results[i]
