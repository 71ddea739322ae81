"""Small training runs, for tests."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX
from torchdpt.data import Batch
from torchdpt.training import TrainConfig, Trainer, fit

# Depth and ten classes, with batch normalisation, an auxiliary head and dropout.
JOINT = {
    "image_size": 32,
    "width": 32,
    "depth": 4,
    "heads": 2,
    "mlp_width": 64,
    "taps": [0, 1, 2, 3],
    "channels": [8, 8, 16, 16],
    "features": 8,
    "head_features": 8,
    "num_classes": 10,
    "fusion_norm": "batch",
    "auxiliary_head": "penultimate",
    "dropout": 0.1,
}
DEPTH = JOINT | {"num_classes": 0, "fusion_norm": "none", "auxiliary_head": "none", "dropout": 0.0}
METRIC = DEPTH | {"metric": True, "depth_scale": 0.1, "depth_shift": 0.1}


def config_of(out: Path, fields: Mapping[str, Any] = JOINT, **changes: Any) -> TrainConfig:
    """A run of a few steps on scenes of 32 x 32 pixels."""
    values: dict[str, Any] = {
        "out": str(out),
        "train": [{"type": "scenes", "height": 32, "width": 32}],
        "model": {"fields": dict(fields)},
        "augmentation": {"size": [32, 32], "crop": [32, 32], "colors": 0.3},
        "optimizer": {"encoder_lr": 1e-3, "decoder_lr": 1e-3},
        "batch_size": 4,
        "steps": 12,
        "workers": 0,
        "threads": 1,
        "device": "cpu",
        "save_every": 0,
    }
    return TrainConfig.from_dict(values | changes)


def trainer_of(out: Path, fields: Mapping[str, Any] = JOINT, **changes: Any) -> Trainer:
    return Trainer(config_of(out, fields, **changes))


def batch_of(count: int, datasets: list[int] | None = None, *, classes: int = 10, seed: int = 0) -> Batch:
    """Random images of 32 x 32 pixels, the truth about which is uneven: some of it is not known."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 32, 32)
    mask = torch.rand(shape, generator=generator) < torch.linspace(0.2, 1, count)[:, None, None]
    known = torch.rand(shape, generator=generator) < torch.linspace(1, 0.3, count)[:, None, None]
    labels = torch.randint(classes or 1, shape, generator=generator)
    return Batch(
        images=torch.randint(256, (*shape, 3), generator=generator, dtype=torch.uint8),
        inverse_depth=(0.1 + torch.rand(shape, generator=generator)) * mask,
        mask=mask,
        labels=torch.where(known, labels, IGNORE_INDEX),
        datasets=torch.tensor([0] * count if datasets is None else datasets),
        names=[f"random/{i}" for i in range(count)],
        errors=[],
    )


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """All that a step may change, as it is now."""
    return copy.deepcopy(trainer.state())


def flat(values: Any, name: str = "") -> dict[str, Any]:
    """Nested dicts and lists as one dict of their leaves."""
    if isinstance(values, dict | list | tuple):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        return {key: leaf for k, v in pairs for key, leaf in flat(v, f"{name}/{k}").items()}
    return {name: values}


def differences(one: Any, other: Any) -> list[str]:
    """Names of leaves that are not the same to the bit."""
    left, right = flat(one), flat(other)
    return [
        name
        for name in sorted({*left, *right})
        if name not in left or name not in right or not _same(left[name], right[name])
    ]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    return type(one) is type(other) and bool(one == other)


# --- processes ---

# Processes are copies of one that has imported everything.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torchdpt.training", "training_runs"])


def launch(count: int, function: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Start a function in processes that find each other as those of torchrun do, each a group of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    started: list[BaseProcess] = []
    for rank in range(count):
        variables = address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = _CONTEXT.Process(target=_with, args=(variables, function, arguments))
        process.start()
        started.append(process)
    return started


def finish(processes: list[BaseProcess]) -> None:
    """Wait for processes, which must end well."""
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    kill(processes)
    assert codes == [0] * len(processes)


def kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _with(variables: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    os.setpgrp()
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]  # as if it were not installed: it is slow
    function(*arguments)


def train(
    values: dict[str, Any], stop: tuple[int, int, int] | None = None, whole_group: bool = False, result: str = ""
) -> None:
    """Train, in a process of `launch`.

    Args:
        values: Of the config.
        stop: (signal, step, rank): this process gets this signal while it makes this step.
        whole_group: Whether its workers get it, too.
        result: File for what `fit` says.
    """
    made = Trainer.train_step

    def train_step(self: Trainer, batch: Batch) -> tuple[float, float]:
        if stop is not None and (self.step, self.rank) == stop[1:]:
            if whole_group:
                os.killpg(0, stop[0])
            else:
                signal.raise_signal(stop[0])
        return made(self, batch)

    Trainer.train_step = train_step  # type: ignore[method-assign]
    outcome = fit(TrainConfig.from_dict(values))
    if result and os.environ["RANK"] == "0":
        Path(result).write_text(json.dumps({"step": outcome.step, "finished": outcome.finished}))


def gradients(folder: str, cases: dict[str, dict[str, Any]], dtype: torch.dtype) -> None:
    """For each case one step, in a process of `launch`: what came out, of each process a file."""
    from torchdpt.training.distributed import processes

    torch.set_default_dtype(dtype)
    with processes("cpu"):
        for name, case in cases.items():
            trainer = trainer_of(Path(folder), case["fields"], **case["config"])
            batch: Batch = case["batch"]
            size = len(batch) // trainer.world_size
            loss, norm = trainer.train_step(batch[trainer.rank * size : (trainer.rank + 1) * size])
            found = {
                "loss": loss,
                "norm": norm,
                "bad_steps": trainer.bad_steps,
                "weights": trainer.data_weights,
                "gradients": {name: p.grad for name, p in trainer.model.named_parameters()},
                "buffers": dict(trainer.model.named_buffers()),
                "parameters": {name: p.detach() for name, p in trainer.model.named_parameters()},
            }
            torch.save(found, f"{folder}/{name} {trainer.rank} of {trainer.world_size}.pt")


def gradients_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert len(found) == len([*trainer.model.parameters()])
    return found


def assert_close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], tolerance: float) -> None:
    """Up to a share of the largest entry of all."""
    largest = max(tensor.abs().max().item() for tensor in want.values())
    assert largest > 0
    for name, tensor in want.items():
        assert (got[name] - tensor).abs().max().item() <= tolerance * largest, name
