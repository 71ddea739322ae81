"""Measuring a model in the course of its training."""

from __future__ import annotations

import dataclasses

import torch

from torchdpt import protocols
from torchdpt.data import open_dataset
from torchdpt.data.sample import Part
from torchdpt.evaluate import EvaluationResult
from torchdpt.evaluate_model import evaluate_dataset, for_model
from torchdpt.model import DPTModel
from torchdpt.prediction import Prediction
from torchdpt.protocols import DepthProtocol, Protocol, SegmentationProtocol
from torchdpt.training.config import DataConfig
from torchdpt.training.log import Picture


class Validation:
    """A data set to measure on, and the protocol.

    Args:
        config: Which.
        model: What will be measured: its heads, and its processor's size, decide what the config leaves open.

    Raises:
        ValueError: if there is no such protocol or field, the model does not predict what it measures, or the data set
            cannot be opened.
    """

    def __init__(self, config: DataConfig, model: DPTModel) -> None:
        dataset = open_dataset(config.type, **config.options)
        self.dataset = Part(dataset, config.images or len(dataset))
        self.name = dataset.name
        own = "depth" if model.config.depth_head else "classes"
        protocol = _protocol(config.protocol or own, self.name, model)
        self.protocol = protocols.changed(protocol, config.protocol_fields)
        for_model(self.protocol, model)  # what does not fit is said before hours of work

    def run(self, model: DPTModel) -> EvaluationResult:
        """Measure; all processes get the same result."""
        return evaluate_dataset(model, self.dataset, self.protocol, shared=True)

    def is_better(self, one: float, other: float) -> bool:
        """Whether one headline number is better than another."""
        return one > other if protocols.more_is_better(self.protocol.headline) else one < other

    def pictures(self, model: DPTModel, count: int) -> list[list[Picture]]:
        """For the first samples a row each: the photograph, what is true and what is predicted, side by side."""
        rows = []
        for i in range(min(count, len(self.dataset))):
            try:
                sample = self.dataset[i]
            except (ValueError, OSError):  # `run` reports it
                continue
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


def _protocol(name: str, dataset: str, model: DPTModel) -> Protocol:
    if name == "classes":
        count = model.config.num_classes
        if not count:
            raise ValueError(
                f"{dataset}: protocol 'classes' is of a network with a head for classes; set model.fields.num_classes"
            )
        protocol = SegmentationProtocol(name="validation", dataset=dataset, num_classes=count, absent="skip")
        return dataclasses.replace(protocols.single_scale(protocol), base_size=min(model.processor.size))
    if name != "depth":
        return protocols.get(name)
    if model.config.metric:
        return DepthProtocol(
            name="validation", dataset=dataset, input_size=None, prediction="depth", alignment=None, min_depth=1e-3
        )
    return DepthProtocol(
        name="validation", dataset=dataset, input_size=None, target="inverse_depth", error_space="inverse_depth"
    )


def _as_relative(prediction: Prediction) -> Prediction:
    """Metres as inverse depth, so that colours mean the same in all pictures."""
    if prediction.depth is None or prediction.kind != "metric_depth":
        return prediction
    return Prediction(1 / prediction.depth)
