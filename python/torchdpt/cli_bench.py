"""What `torchdpt bench` does."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

import torchdpt
from torchdpt import cli
from torchdpt.frozen import FrozenModel
from torchdpt.model import DPTModel

# From the bytes of a photograph to a PNG of depth or labels.
STAGES = ("decode", "prepare", "network", "resize and write")


def time_stages(
    model: DPTModel | FrozenModel, data: bytes, *, warm_up: int, runs: int, progress: bool = False
) -> dict[str, list[float]]:
    """Milliseconds of each stage, run by run; of a frozen network those of its parts, too ("network: head")."""
    import tempfile

    from tqdm import tqdm

    from torchdpt.predict import prediction_of

    dtype = torch.float32 if isinstance(model, FrozenModel) else model.dtype
    times: dict[str, list[float]] = {name: [] for name in STAGES}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for run in tqdm(range(warm_up + runs), unit="run", disable=not progress):
            marks = [time.perf_counter()]
            image = torchdpt.load_image(data)
            marks.append(time.perf_counter())
            x = model.processor(image)[None].to(model.device, dtype)
            marks.append(time.perf_counter())
            parts: dict[str, float] = {}
            if isinstance(model, FrozenModel) and model.device.type == "cpu":
                output, parts = model.profile(x)
            else:
                output = model._run(x)
            if x.is_cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            prediction_of(model, output, 0, image).save(Path(folder) / "result.png")
            marks.append(time.perf_counter())
            if run >= warm_up:
                for name, begin, end in zip(STAGES, marks, marks[1:], strict=False):
                    times[name].append(1000 * (end - begin))
                for part, milliseconds in parts.items():
                    times.setdefault(f"network: {part}", []).append(milliseconds)
    return times


def synthetic_photograph(height: int, width: int) -> bytes:
    """A JPEG file."""
    import io

    import numpy as np
    from PIL import Image

    picture = np.add.outer(np.arange(height), np.arange(width))[:, :, None] * np.array([1, 2, 3]) % 256
    file = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def bench(args: argparse.Namespace) -> int:
    model = cli.load_network(args)
    # Of the size that the network's input aims at: it then has this size, 384 x 384 for depth as published.
    data = Path(args.image).read_bytes() if args.image else synthetic_photograph(*model.processor.size)
    try:
        height, width = torchdpt.load_image(data).shape[:2]
    except ValueError as error:
        raise ValueError(str(error).replace("the bytes", args.image, 1)) from error
    rows, columns = model.processor.network_size(height, width)
    progress = not args.json and sys.stderr.isatty()
    times = time_stages(model, data, warm_up=args.warm_up, runs=args.runs, progress=progress)
    times["total"] = [sum(stages) for stages in zip(*(times[name] for name in STAGES), strict=True)]
    means = {name: statistics.fmean(values) for name, values in times.items()}
    result = {
        "model": args.model,
        "image": f"{width} x {height}",
        "network input": f"{columns} x {rows}",
        "device": f"{model.device}, frozen" if isinstance(model, FrozenModel) else str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "runs": args.runs,
        **{
            f"{name} (ms)": {"mean": round(means[name], 3), "median": round(statistics.median(values), 3)}
            for name, values in times.items()
        },
        "all but the network (% of the total)": round(100 * (1 - means["network"] / means["total"]), 1),
    }
    cli.show(result, args.json)
    return 0
