"""Two processes train as one does: gradients, weights of data sets, statistics, and what is skipped."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from training_runs import DEPTH, JOINT, batch_of, finish, gradients, launch

from torchdpt.classes import IGNORE_INDEX
from torchdpt.data import Batch

THREE = [{"type": "scenes", "name": name, "height": 32, "width": 32} for name in "abc"]
# Sums in another order.
DTYPES = {torch.float64: 1e-9, torch.float32: 1e-5}
# The shortest combination of gradients that oppose each other is smaller than they are, and has their rounding, the
# more the smaller the parts are whose gradients are added.
PARTS_OF_PARETO = {torch.float64: 1e-9, torch.float32: 3e-5}
ON_ONE_ONLY = [0, 0, 1, 0, 1, 2, 0, 1]  # of the third data set the first process has nothing


def uneven(datasets: list[int]) -> Batch:
    """The first process has a tenth of the targets that the other has, and one image without any."""
    batch = batch_of(8, datasets)
    batch.mask[0] = False
    batch.labels[0] = IGNORE_INDEX
    batch.mask[1:4, 4:] = False
    batch.labels[1:4, :, 4:] = IGNORE_INDEX
    return batch


def empty_first() -> Batch:
    batch = batch_of(8, [0] * 4 + [1] * 4)
    batch.mask[:4] = False
    batch.labels[:4] = IGNORE_INDEX
    return batch


def spoiled() -> Batch:
    batch = batch_of(8, [0] * 8)
    batch.mask[:] = False
    batch.labels[:] = IGNORE_INDEX
    return batch


def make_cases() -> dict[str, dict[str, Any]]:
    joint = JOINT | {"dropout": 0.0}
    pareto = {"method": "pareto"}
    cases: dict[str, tuple[dict[str, Any], dict[str, Any], Batch]] = {
        "naive": (joint, {}, uneven([0] * 8)),
        "pareto": (joint, {"mixing": pareto}, uneven(ON_ONE_ONLY)),
        "pareto, some parameters": (joint, {"mixing": pareto | {"parameters": ["fusion.*"]}}, uneven(ON_ONE_ONLY)),
        "parts": (DEPTH, {"accumulate": 2}, uneven([0] * 8)),
        "parts, pareto": (DEPTH, {"accumulate": 4, "mixing": pareto}, uneven(ON_ONE_ONLY)),
        "nothing on the first": (joint, {"mixing": pareto}, empty_first()),
        "clipped": (DEPTH, {"optimizer": {"clip_norm": 1e-2}}, uneven([0] * 8)),
        "checkpointing": (joint, {"mixing": pareto, "activation_checkpointing": True}, uneven(ON_ONE_ONLY)),
        "nothing": (joint, {"mixing": pareto}, spoiled()),
    }
    return {
        name: {"fields": fields, "config": {"train": THREE, "batch_size": 8} | config, "batch": batch}
        for name, (fields, config, batch) in cases.items()
    }


CASES = make_cases()
SMOOTH = {"alignment": "least_squares", "data": "mse", "alpha": 0}


class Step(NamedTuple):
    alone: dict[str, Any]
    first: dict[str, Any]
    second: dict[str, Any]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, torch.dtype], Step]:
    found = {}
    for dtype in DTYPES:
        folder = tmp_path_factory.mktemp("steps")
        # Medians, trimming and absolute values depend on the order of numbers, which rounding to float32 changes.
        loss = SMOOTH if dtype == torch.float32 else {}
        cases = {name: case | {"config": case["config"] | {"loss": loss}} for name, case in CASES.items()}
        alone = {
            # One process takes the parts of two at once.
            name: case | {"config": case["config"] | {"accumulate": 1}}
            for name, case in cases.items()
        }
        running = launch(1, gradients, str(folder), alone, dtype), launch(2, gradients, str(folder), cases, dtype)
        for processes in running:
            finish(processes)
        for name in CASES:
            files = [f"{name} {part}.pt" for part in ("0 of 1", "0 of 2", "1 of 2")]
            found[name, dtype] = Step(*(torch.load(folder / file) for file in files))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [name for name in CASES if name != "nothing"])
def test_gradient_of_two_processes_is_that_of_one(
    steps: dict[tuple[str, torch.dtype], Step], case: str, dtype: torch.dtype
) -> None:
    step = steps[case, dtype]
    wanted = step.alone["gradients"]
    largest = max(tensor.abs().max().item() for tensor in wanted.values())
    assert largest > 0
    tolerance = (PARTS_OF_PARETO if case == "parts, pareto" else DTYPES)[dtype]
    for name, tensor in wanted.items():
        assert tensor.dtype == dtype
        error = (step.first["gradients"][name] - tensor).abs().max().item()
        assert error <= tolerance * largest, name
    for key in ("loss", "norm"):
        assert step.first[key] == pytest.approx(step.alone[key], rel=1e-5)  # losses are float32
        assert step.first[key] == step.second[key]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_processes_stay_the_same_to_the_bit(
    steps: dict[tuple[str, torch.dtype], Step], case: str, dtype: torch.dtype
) -> None:
    step = steps[case, dtype]
    for what in ("parameters", "gradients", "buffers"):
        for name, tensor in step.first[what].items():
            assert (tensor is None and step.second[what][name] is None) or torch.equal(tensor, step.second[what][name])
    assert torch.equal(step.first["weights"], step.second["weights"])


@pytest.mark.parametrize("case", [name for name in CASES if "pareto" in name or name == "checkpointing"])
def test_weights_of_data_sets_are_those_of_one_process(steps: dict[tuple[str, torch.dtype], Step], case: str) -> None:
    step = steps[case, torch.float64]
    torch.testing.assert_close(step.first["weights"], step.alone["weights"], rtol=1e-7, atol=1e-9)
    assert step.first["weights"].sum().item() == pytest.approx(1)
    assert step.first["weights"].max() < 1


@pytest.mark.parametrize("case", ["naive", "pareto"])
def test_batch_normalisation_takes_the_whole_batch(steps: dict[tuple[str, torch.dtype], Step], case: str) -> None:
    step = steps[case, torch.float64]
    assert len(step.alone["buffers"]) > 10
    for name, tensor in step.alone["buffers"].items():
        torch.testing.assert_close(step.first["buffers"][name], tensor, rtol=1e-9, atol=1e-12)
        assert name.endswith("tracked") or tensor.unique().numel() > 1


def test_batch_without_targets_is_skipped_by_all(steps: dict[tuple[str, torch.dtype], Step]) -> None:
    step = steps["nothing", torch.float32]
    assert [found["bad_steps"] for found in step] == [1, 1, 1]
    before = steps["naive", torch.float32].alone["parameters"]
    moved = [name for name, tensor in before.items() if not torch.equal(step.alone["parameters"][name], tensor)]
    assert moved  # the other case made a step from the same start
    for name, tensor in step.first["buffers"].items():
        assert not name.endswith("num_batches_tracked") or tensor == 0
