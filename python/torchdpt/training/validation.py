"""Measuring a model in the course of its training."""

from __future__ import annotations

import numpy as np
import torch

from torchdpt import protocols
from torchdpt.config import DPTConfig
from torchdpt.data import Dataset, Sample, open_dataset
from torchdpt.evaluate import EvaluationResult
from torchdpt.evaluate_model import evaluate_dataset
from torchdpt.model import DPTModel
from torchdpt.prediction import Prediction
from torchdpt.protocols import DepthProtocol, Protocol, SegmentationProtocol
from torchdpt.training.config import DataConfig
from torchdpt.training.log import Picture

# Headline numbers of which more is better.
_MORE_IS_BETTER = ("delta1", "delta2", "delta3", "miou", "pixel_accuracy")


class Validation:
    """A data set to measure on, and the protocol.

    Args:
        config: Which.
        network: What the network predicts, which decides the protocol where the config names none: relative inverse
            depth, or classes, at the size of training.

    Raises:
        ValueError: if there is no such protocol, or the data set cannot be opened.
    """

    def __init__(self, config: DataConfig, network: DPTConfig) -> None:
        dataset = open_dataset(config.type, **config.options)
        self.dataset = _Part(dataset, config.images or len(dataset))
        self.name = dataset.name
        self.protocol = protocols.get(config.protocol) if config.protocol else _default(self.name, network)
        self._own_size = config.protocol is None

    def run(self, model: DPTModel) -> EvaluationResult:
        """Measure; all processes get the same result."""
        size = model.processor.size if self._own_size else None
        if size is not None and isinstance(self.protocol, SegmentationProtocol):
            return evaluate_dataset(model, self.dataset, self.protocol, input_size=min(size), shared=True)
        return evaluate_dataset(model, self.dataset, self.protocol, input_size=size, shared=True)

    def is_better(self, one: float, other: float) -> bool:
        """Whether one headline number is better than another."""
        return one > other if self.protocol.headline in _MORE_IS_BETTER else one < other

    def pictures(self, model: DPTModel, count: int) -> list[list[Picture]]:
        """For the first samples a row each: the photograph, what is true and what is predicted, side by side."""
        rows = []
        for i in range(min(count, len(self.dataset))):
            sample = self.dataset[i]
            prediction = model.predict(sample.image.numpy())
            row = [sample.image.numpy()]
            if prediction.depth is not None and sample.target is not None and sample.mask is not None:
                truth = torch.where(sample.mask, sample.inverse_depth(), torch.nan)
                row += [Prediction(truth.numpy()).colorize(), _as_relative(prediction).colorize()]
            if prediction.labels is not None and sample.labels is not None:
                truth_labels = Prediction(labels=sample.labels.long().numpy(), classes=prediction.classes)
                row += [truth_labels.label_colors(), prediction.label_colors()]
            rows.append(row)
        return rows


class _Part:
    """Some samples of a data set, evenly spaced."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self.name = dataset.name
        self._dataset = dataset
        places = np.linspace(0, len(dataset) - 1, min(count, len(dataset)))
        self._numbers: list[int] = places.round().astype(int).tolist()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int, /) -> Sample:
        return self._dataset[self._numbers[index]]


def _default(dataset: str, network: DPTConfig) -> Protocol:
    if not network.depth_head:
        return SegmentationProtocol(
            name="validation",
            dataset=dataset,
            num_classes=network.num_classes,
            scales=(1.0,),
            resize="minimal",
            crop_size=None,
            stride=None,
            flip=False,
            score="logits",
            upsample="bicubic",
            absent="skip",
        )
    if network.metric:
        return DepthProtocol(name="validation", dataset=dataset, prediction="depth", alignment=None, min_depth=1e-3)
    return DepthProtocol(name="validation", dataset=dataset, target="inverse_depth", error_space="inverse_depth")


def _as_relative(prediction: Prediction) -> Prediction:
    """Metres as inverse depth, so that colours mean the same in all pictures."""
    if prediction.depth is None or prediction.kind != "metric_depth":
        return prediction
    return Prediction(1 / prediction.depth)
