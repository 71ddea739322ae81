"""Predictions of every kind, for tests."""

from __future__ import annotations

import dataclasses

import numpy as np

from torchdpt import Prediction
from torchdpt.classes import ADE20K, Classes

RNG = np.random.default_rng(0)


def relative() -> Prediction:
    return Prediction(RNG.random((5, 7), dtype=np.float32) * 30 + 2)


def metric() -> Prediction:
    depth = RNG.random((5, 7), dtype=np.float32) * 9 + 1
    depth[1, 2], depth[3, 3], depth[0, 0] = np.nan, np.inf, 0
    return Prediction(depth, "metric_depth", "m", RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8))


PHOTOGRAPH = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def segmented(num_classes: int = 150, image: np.ndarray | None = PHOTOGRAPH) -> Prediction:
    labels = RNG.integers(0, num_classes, (5, 7))
    labels[0, 0] = num_classes - 1
    if num_classes < 256:
        labels[2, 3] = 255
    return Prediction(labels=labels, classes=Classes.default_for(num_classes), image=image)


def joint() -> Prediction:
    return dataclasses.replace(metric(), labels=segmented().labels, classes=ADE20K)
