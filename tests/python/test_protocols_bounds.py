"""Predictions that are not finite, and protocols whose fields do not go together."""

from __future__ import annotations

import math

import pytest
import torch

from torchdpt import protocols
from torchdpt.evaluate import Evaluator


@pytest.mark.parametrize("alignment", ["least_squares", "robust"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_prediction_that_is_not_finite_is_wrong_and_counted(alignment: str, wrong: float) -> None:
    depth = torch.linspace(1, 9.9, 400, dtype=torch.float64).view(20, 20)
    for sign in (1, -1):
        prediction = sign / depth
        prediction[-1, -10:] = wrong  # the farthest, where a bound of the depth would be nearly right
        evaluator = Evaluator(protocols.get("zero_shot_midas/nyu", alignment=alignment))
        evaluator.update(prediction, depth)
        result = evaluator.result()
        assert result.counts["invalid_predictions"] == 10
        if sign == 1 or alignment == "least_squares":
            assert result.headline == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (-5, 9, 3, 9)}, r"crop must be \(top, bottom, left, right\), .* got \(-5, 9, 3, 9\)"),
        ({"crop": (9, 5, 3, 9)}, "crop must be"),
        ({"crop": (1, 2, 3)}, "crop must be"),
        ({"min_target": 20, "max_target": 10}, "max_target must be None or above its lower bound, .* got 10 and 20"),
        ({"cap": -1}, "cap must be None or above its lower bound"),
    ],
    ids=str,
)
def test_bounds_are_checked(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match="nyu_eigen: " + message):
        protocols.get("nyu_eigen", **changes)
