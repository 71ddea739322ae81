"""Evaluating a model on a data set: predictions are made and measured as a protocol says."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX
from torchdpt.data import Dataset, Sample
from torchdpt.evaluate import EvaluationResult, Evaluator
from torchdpt.image import is_count, is_size
from torchdpt.multi_scale import check_classes, check_size, predict_scores
from torchdpt.predict import Network, check_network_size
from torchdpt.protocols import DepthProtocol, OrdinalProtocol, Protocol, SegmentationProtocol, kb_crop
from torchdpt.tally import gather, rank_and_size

__all__ = ["evaluate_dataset"]


class UnfitSample(ValueError):
    """A sample without the truth that the protocol is about."""


class _Item(NamedTuple):
    """Attributes:
    sample: With its image and truth.
    input: What the network sees, [3, h, w]; of a segmentation None, which sees the image in several ways.
    truth: What is measured against.
    mask: Where.
    """

    sample: Sample
    input: Tensor | None
    truth: Tensor
    mask: Tensor


def evaluate_dataset(
    model: Network,
    dataset: Dataset,
    protocol: Protocol,
    *,
    input_size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    on_sample: Callable[[int], None] | None = None,
    shared: bool = False,
) -> EvaluationResult:
    """Measure a model on a data set.

    Images are prepared with the mean, deviation and interpolation of `model.processor`, and the sizes of the protocol.
    Samples are read in threads while the network runs, and what cannot be read or measured does not stop the rest. The
    sky, whose depth is infinite, does not count. On a CPU the same arguments give the same bits.

    Args:
        model: A `DPTModel`, on any device, which runs in eval mode, or a `FrozenModel`. One of metric depth can be
            measured as one of inverse depth, too, and not the other way round.
        dataset: Of samples with depth, or with labels, as the protocol wants.
        protocol: Of `protocols.PROTOCOLS`, with changes from `protocols.get`, or one of one's own. Not of order: a
            `Sample` has no pairs of points; see `Evaluator`.
        input_size: Side or (height, width) that the network's input aims at, in place of `protocol.input_size`; of a
            segmentation the side, in place of `protocol.base_size`.
        limit: How many samples, the first ones. Default: all.
        batch_size: How many images (or crops of one) at most are in the network at once; the last bits of predictions
            depend on it. Twice as many are in memory.
        on_sample: Called with the number of each sample when it is done, in order.
        shared: The processes of torch.distributed, which must all call this, share the samples and get the same result.

    Returns:
        The result. Its `protocol` is the one followed, `input_size` included; its `failures` are the samples that
        could not be measured.

    Raises:
        ValueError: if the model does not predict what the protocol measures, the first sample that can be read does not
            have it, no sample could be measured, or an option is wrong.
    """
    protocol = for_model(protocol, model, input_size)
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if not is_count(value) and not (name == "limit" and value is None):
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count == 0:
        raise ValueError(f"{dataset.name}: no samples")
    rank, step = rank_and_size() if shared else (0, 1)
    evaluator = Evaluator(protocol)
    measured: list[int] = []
    failures: list[dict[str, Any]] = []
    fits = False  # a sample did
    unfit: list[UnfitSample] = []  # the first one, if none did before it
    with ThreadPoolExecutor(max_workers=min(4, batch_size)) as pool:

        def submit(start: int) -> list[tuple[int, Future[_Item]]]:
            numbers = range(start, min(start + batch_size * step, count), step)
            return [(i, pool.submit(_load, model, dataset, i, protocol)) for i in numbers]

        loading = submit(rank)
        while loading and not unfit:
            current, loading = loading, submit(loading[-1][0] + step)
            items: list[_Item | Exception] = []
            for _, future in current:
                try:
                    items.append(future.result())
                    fits = True
                except UnfitSample as error:
                    if not fits:
                        unfit.append(error)
                    items.append(error)
                except Exception as error:  # whatever a decoder raises is this sample's error
                    items.append(error)
            good = [item for item in items if isinstance(item, _Item)]
            predictions = iter(_predict(model, good, protocol, batch_size))
            for (i, _), item in zip(current, items, strict=True):
                wrong = item if isinstance(item, Exception) else _measure(evaluator, next(predictions), item)
                if wrong is None:
                    measured.append(i)
                else:
                    id = item.sample.id if isinstance(item, _Item) else None
                    failures.append({"index": i, "id": id, "error": str(wrong) or type(wrong).__name__})
                if on_sample is not None:
                    on_sample(i)
    if step > 1:
        evaluator = evaluator.all_reduce()
        parts = gather((measured, failures, unfit), None)
        measured = [i for part, _, _ in parts for i in part]
        failures = sorted((row for _, part, _ in parts for row in part), key=lambda row: int(row["index"]))
        unfit = [error for _, _, part in parts for error in part]
    if unfit:
        raise unfit[0]
    if not measured:
        raise ValueError(
            f"{dataset.name}: none of {count} samples could be measured; number {failures[0]['index']}: "
            f"{failures[0]['error']}"
        )
    result = evaluator.result()
    rows = [{"index": i, **row} for i, row in zip(measured, result.per_image, strict=True)]
    rows.sort(key=lambda row: int(row["index"]))
    return dataclasses.replace(result, per_image=tuple(rows), failures=tuple(failures))


def for_model(protocol: Protocol, model: Network, input_size: int | tuple[int, int] | None = None) -> Protocol:
    """The protocol as it is followed with this model.

    Raises:
        ValueError: if the model does not predict what it measures, or there is no such size.
    """
    size = _as_size(input_size)
    if isinstance(protocol, OrdinalProtocol):
        raise ValueError(
            f"{protocol.name} is of the order of points, and samples have no pairs of points; feed predictions and "
            "pairs to torchdpt.evaluate.Evaluator"
        )
    if isinstance(protocol, SegmentationProtocol):
        check_classes(model, protocol)
        if size is not None and size[0] != size[1]:
            raise ValueError(f"{protocol.name}: input_size must be one side, got {input_size!r}")
        return protocol if size is None else dataclasses.replace(protocol, base_size=size[0])
    if not model.config.depth_head:
        raise ValueError(f"{protocol.name} is of depth, and this network predicts classes alone")
    if protocol.prediction == "depth" and not model.config.metric:
        raise ValueError(
            f"{protocol.name} measures depth in metres, and this network predicts relative inverse depth; take one of "
            "metric depth (config.metric), or a protocol with prediction='inverse_depth', as zero_shot_midas/*"
        )
    multiple = math.lcm(protocol.multiple_of, model.config.size_multiple)
    aim = size or protocol.input_size or model.processor.size
    return dataclasses.replace(protocol, multiple_of=multiple, input_size=aim)


def _as_size(input_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if input_size is None:
        return None
    size = input_size if isinstance(input_size, Sequence) else (input_size, input_size)
    if not is_size(size):
        raise ValueError(f"input_size must be a side or (height, width) in pixels, got {input_size!r}")
    return int(size[0]), int(size[1])


def predict_sample(model: Network, sample: Sample, protocol: Protocol) -> Tensor:
    """What `evaluate_dataset` measures: depth or inverse depth [h, w] as the protocol wants it, or labels [H, W].

    Args:
        model: The network.
        sample: With the truth that the protocol wants.
        protocol: As `for_model` gives it.

    Raises:
        ValueError: if the sample does not fit the protocol.
    """
    return _predict(model, [_prepare(model, sample, protocol)], protocol, 8)[0]


def truth_of(sample: Sample, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """What `Evaluator` wants: the target and where it is known, the sky left out.

    Raises:
        UnfitSample: if the sample does not have what the protocol measures.
    """
    if isinstance(protocol, SegmentationProtocol):
        if sample.labels is None:
            raise UnfitSample(f"{sample}: {protocol.name} is of labels, and there are none")
        return sample.labels, sample.labels != IGNORE_INDEX
    if sample.target is None or sample.mask is None or not isinstance(protocol, DepthProtocol):
        raise UnfitSample(f"{sample}: {protocol.name} is of depth, and there is none")
    if protocol.prediction == "depth" and sample.unit != "metre":
        raise UnfitSample(f"{sample}: {protocol.name} measures metres, and this depth is known up to a scale alone")
    inverse = sample.inverse_depth()
    mask = sample.mask & (inverse > 0)  # without the sky
    if protocol.target == "inverse_depth":
        return inverse, mask
    try:
        return sample.depth(), mask
    except ValueError as error:
        raise UnfitSample(f"{error}, which {protocol.name} is of; ablation/redweb, say, is of inverse depth") from error


def _load(model: Network, dataset: Dataset, index: int, protocol: Protocol) -> _Item:
    return _prepare(model, dataset[index], protocol)


def _prepare(model: Network, sample: Sample, protocol: Protocol) -> _Item:
    truth, mask = truth_of(sample, protocol)
    image = sample.image.numpy()
    if isinstance(protocol, SegmentationProtocol):
        height, width = image.shape[:2]
        check_size(model, height, width, protocol)
    if not isinstance(protocol, DepthProtocol):
        return _Item(sample, None, truth, mask)
    if protocol.paste == "kb_crop":
        rows, columns = kb_crop(*image.shape[:2])
        image = image[slice(*rows), slice(*columns)]
    assert protocol.input_size is not None  # `for_model`
    processor = dataclasses.replace(
        model.processor, size=protocol.input_size, resize=protocol.resize, multiple_of=protocol.multiple_of
    )
    check_network_size(model, *processor.network_size(*image.shape[:2]))
    return _Item(sample, processor(image), truth, mask)


def _predict(model: Network, items: list[_Item], protocol: Protocol, batch_size: int) -> list[Tensor]:
    """In order; images of one network size run together."""
    if isinstance(protocol, SegmentationProtocol):
        return [_labels(predict_scores(model, i.sample.image.numpy(), protocol, batch_size=batch_size)) for i in items]
    inputs = [item.input for item in items if item.input is not None]
    predictions: dict[int, Tensor] = {}
    for shape in dict.fromkeys(x.shape for x in inputs):
        group = [i for i, x in enumerate(inputs) if x.shape == shape]
        depth = model._run(torch.stack([inputs[i] for i in group])).depth
        assert depth is not None  # `for_model`
        metric_as_inverse = model.config.metric and protocol.prediction == "inverse_depth"
        depth = 1 / depth.float() if metric_as_inverse else depth.float()
        predictions |= dict(zip(group, depth, strict=True))
    return [predictions[i] for i in range(len(inputs))]


def _labels(scores: Tensor) -> Tensor:
    """The class of the largest score, [K, H, W] to [H, W]; 255 where one is NaN."""
    return scores.argmax(0).masked_fill(scores.isnan().any(0), IGNORE_INDEX)


def _measure(evaluator: Evaluator, prediction: Tensor, item: _Item) -> ValueError | None:
    """What is wrong with the sample, if it cannot be measured."""
    device = prediction.device
    try:
        evaluator.update(prediction, item.truth.to(device), item.mask.to(device), id=item.sample.id)
    except ValueError as error:  # a crop that does not fit, say
        return error
    return None
