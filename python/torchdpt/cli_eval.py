"""What `torchdpt eval` does; its arguments are read by torchdpt_command."""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import torchdpt
from torchdpt import protocols
from torchdpt.cli import is_preset, load_network, say
from torchdpt.data import Dataset, open_dataset
from torchdpt.evaluate import EvaluationResult
from torchdpt.evaluate_model import evaluate_dataset, for_model, predict_sample
from torchdpt.evaluation_files import curve_picture, depth_picture, label_picture, to_csv, worst
from torchdpt.files import write_atomically
from torchdpt.prediction_files import png
from torchdpt.protocols import DepthProtocol, Protocol, SegmentationProtocol

if TYPE_CHECKING:
    from torchdpt.predict import Network

# Scenes for training are those of seeds below a million, for validation those from two millions on.
_HELD_OUT = {"first": 3_000_000, "length": 100}


# --- arguments ---


def read_fields(text: str, option: str) -> dict[str, Any]:
    """The fields of "cap=10,max_target=None,crop=(45,471,41,601)"; what is no Python literal is text.

    Raises:
        ValueError: if a part is no field.
    """
    fields = {}
    for part in re.split(r",(?![^(\[]*[)\]])", text) if text else []:  # not at commas within brackets
        name, equals, value = part.partition("=")
        if not (name.isidentifier() and equals):
            raise ValueError(f"{option}: wanted field=value, got {part!r}")
        try:
            fields[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[name] = value
    return fields


def read_protocol(text: str) -> Protocol:
    """The protocol of NAME[,field=value...].

    Raises:
        ValueError: if there is no such protocol, field or value.
    """
    name, _, changes = text.partition(",")
    return protocols.get(name, **read_fields(changes, "--protocol"))


def open_data(text: str) -> Dataset:
    """The data set of TYPE:[PATH][,option=value...], or of the folder PATH.

    Raises:
        ValueError: if there is no such data set, or an option is wrong.
    """
    kind, colon, rest = text.partition(":")
    if not colon or not kind.isidentifier() or os.path.exists(text):
        kind, rest = "folder", text
    path, _, options = rest.partition(",")
    if "=" in path:
        path, options = "", rest
    fields = read_fields(options, "--data") | ({"path": path} if path else {})
    if kind == "scenes":
        fields = _HELD_OUT | fields
    return open_dataset(kind, **fields)


# --- the command ---


def evaluate(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    out: Path | None = args.out
    if out is not None and (out / "results.json").exists():
        raise ValueError(f"{out / 'results.json'} is there already; choose another --out, or delete that folder")
    protocol = read_protocol(args.protocol)
    dataset = open_data(args.data)
    model = load_network(args)
    sizes = args.input_size or [None]
    followed = [for_model(protocol, model, size) for size in sizes]  # what does not fit is said before hours of work
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    total = min(args.limit or len(dataset), len(dataset))
    runs = []
    with tqdm(total=total * len(sizes), unit="image", disable=args.json or not sys.stderr.isatty()) as bar:

        def count(_: int) -> None:
            bar.update()

        for each in followed:
            runs.append(
                evaluate_dataset(model, dataset, each, limit=args.limit, batch_size=args.batch_size, on_sample=count)
            )
    record = {**settings_of(args, model, dataset, total), "runs": [run.to_json() for run in runs]}
    try:
        if out is not None:
            write(out, args, model, dataset, runs, record)
    finally:  # what took hours is not lost where a disk is full
        print(json.dumps(record, indent=2) if args.json else table(runs))
    failures = {failure["index"]: failure["error"] for run in runs for failure in run.failures}
    if failures and not args.json:
        say(f"{len(failures)} of {total} samples failed:")
        for index, error in failures.items():
            say(f"  number {index}: {error}")
    return 1 if failures else 0


def settings_of(args: argparse.Namespace, model: Network, dataset: Dataset, total: int) -> dict[str, Any]:
    """All but the protocol that the numbers depend on."""
    import dataclasses

    import numpy
    import PIL

    return {
        "model": {
            "source": os.path.abspath(args.model) if os.path.exists(args.model) else args.model,
            "revision": args.revision,
            "random_weights": is_preset(args.model),
            "frozen": isinstance(model, torchdpt.FrozenModel),
            "config": json.loads(model.config.to_json()),
            "processor": dataclasses.asdict(model.processor),
        },
        "data": {"source": args.data, "name": dataset.name, "samples": len(dataset), "evaluated": total},
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        "dtype": str(model.dtype).removeprefix("torch."),
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        "versions": {
            "torchdpt": torchdpt.__version__,
            "torch": torch.__version__,
            "Python": platform.python_version(),
            "NumPy": numpy.__version__,
            "Pillow": PIL.__version__,
        },
    }


def size_of(protocol: Protocol) -> tuple[int, int]:
    """(height, width) that the network's input aims at, of a protocol as `for_model` gives it."""
    if isinstance(protocol, SegmentationProtocol):
        return protocol.base_size, protocol.base_size
    assert protocol.input_size is not None
    return protocol.input_size


def name_of(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def table(runs: list[EvaluationResult]) -> str:
    """Metrics and counts, a column for each input size; the headline has a star."""
    protocol = runs[0].protocol
    lines = [[f"{protocol.name}, input size", *(name_of(size_of(run.protocol)) for run in runs)]]
    for name in runs[0].metrics:
        star = " *" if name == protocol.headline else ""
        lines.append([name + star, *(f"{run.metrics[name]:.4f}" for run in runs)])
    lines += [[name, *(f"{run.counts[name]:,}" for run in runs)] for name in runs[0].counts]
    lines.append(["failed", *(f"{len(run.failures):,}" for run in runs)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        f"{line[0]:<{widths[0]}}" + "".join(f"  {x:>{w}}" for x, w in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


# --- files ---


def write(
    out: Path,
    args: argparse.Namespace,
    model: Network,
    dataset: Dataset,
    runs: list[EvaluationResult],
    record: dict[str, Any],
) -> None:
    """Tables and pictures, and last results.json, which says that all are there."""
    several = len(runs) > 1
    sizes = [name_of(size_of(run.protocol)) for run in runs]
    rows = [
        ({"input_size": size} if several else {}) | row
        for size, run in zip(sizes, runs, strict=True)
        for row in run.per_image
    ]
    write_atomically(out / "per_image.csv", to_csv(rows))
    for size, run in zip(sizes, runs, strict=True):
        folder = out / "worst" / size if several else out / "worst"
        for rank, row in enumerate(worst(run, args.worst), 1):
            folder.mkdir(parents=True, exist_ok=True)
            name = re.sub(r"[^\w.-]+", "_", row["id"])[-100:]
            write_atomically(folder / f"{rank:03}_{name}.png", png(picture(model, dataset, run.protocol, row)))
    if several:
        write_curve(out, sizes, runs)
    write_atomically(out / "results.json", f"{json.dumps(record, indent=2)}\n".encode())


def picture(model: Network, dataset: Dataset, protocol: Protocol, row: dict[str, Any]) -> Any:
    """Image, truth, prediction and error of one sample, side by side."""
    sample = dataset[row["index"]]
    prediction = predict_sample(model, sample, protocol)
    if isinstance(protocol, DepthProtocol):
        return depth_picture(sample, prediction, protocol, row)
    assert isinstance(protocol, SegmentationProtocol)  # `for_model` refuses the rest
    classes = model.classes or torchdpt.Classes.numbered(protocol.num_classes)
    return label_picture(sample, prediction, protocol, classes)


def write_curve(out: Path, sizes: list[str], runs: list[EvaluationResult]) -> None:
    headline = runs[0].protocol.headline
    metrics = [run.to_json()["metrics"] for run in runs]
    points = [{"input_size": size, **values} for size, values in zip(sizes, metrics, strict=True)]
    curve = {"headline": headline, "points": points}
    write_atomically(out / "curve.json", f"{json.dumps(curve, indent=2)}\n".encode())
    write_atomically(out / "curve.csv", to_csv(points))
    plot = curve_picture([(size_of(run.protocol), run.headline) for run in runs], headline)
    write_atomically(out / "curve.png", png(plot))
