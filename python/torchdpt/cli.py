"""What the command `torchdpt` does; its arguments are read by torchdpt_command."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

import torchdpt
from torchdpt import results
from torchdpt.checkpoint import SHIPPED, is_frozen

if TYPE_CHECKING:
    from torchdpt.model import DPTModel
    from torchdpt.prediction import Prediction

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of --dtype
# Format -> what is appended to the name of the photograph.
FORMATS = {
    "color": "_color.png",
    "png16": "_depth.png",
    "overlay": "_overlay.png",
    "labels": "_labels.png",
    "npz": ".npz",
    "npy": ".npy",
    "pfm": ".pfm",
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- models ---


def is_preset(name: str) -> bool:
    """Whether a model is meant by the name of a preset.

    Raises:
        ValueError: if it can be neither that nor a checkpoint.
    """
    if name == SHIPPED or os.path.exists(name) or "/" in name or Path(name).suffix in {".safetensors", ".pt", ".pth"}:
        return False
    presets = torchdpt.list_presets()
    if name not in presets:
        close = difflib.get_close_matches(name, presets)
        hint = f"did you mean {' or '.join(close)}?" if close else "`torchdpt models` lists them"
        raise ValueError(f"{name}: no file or folder, and no preset of that name; {hint}")
    return True


def hub_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("revision", "cache_dir", "local_files_only")}


def place_of(device: str | None) -> torch.device:
    """The device that --device asks for; without it a GPU if there is one."""
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda, cuda:1, ..., got {device!r}")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this torch sees no GPU; `torchdpt doctor` says more")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {device}: this torch sees {torch.cuda.device_count()} GPUs, counted from 0")
    return place


def load_model(args: argparse.Namespace, device: str | None = None, dtype: str | None = None) -> DPTModel:
    """The checkpoint `args.model`, or a preset with random weights."""
    name: str = args.model
    place, kind = place_of(device), None if dtype is None else DTYPES[dtype]
    if is_preset(name):
        say(f"{name} is a preset, with RANDOM weights: the pictures show that the pipeline runs; they are not depth.")
        torch.manual_seed(0)
        return torchdpt.DPTModel(name, device=place, dtype=kind).eval()
    return torchdpt.DPTModel.from_pretrained(name, device=place, dtype=kind, **hub_options(args))


def load_network(args: argparse.Namespace) -> DPTModel | torchdpt.FrozenModel:
    """The checkpoint `args.model`, with --frozen ready to predict, or a file of a frozen model."""
    if is_frozen(args.model):
        if args.dtype is not None:
            raise ValueError(f"{args.model} is a frozen model and has its own --dtype; leave the option out")
        return torchdpt.FrozenModel.load(args.model, device=place_of(args.device))
    if not args.frozen:
        return load_model(args, args.device, args.dtype)
    place = place_of(args.device)
    return load_model(args, "cpu").freeze(DTYPES[args.dtype or "float32"], device=place)


def count_parameters(config: torchdpt.DPTConfig) -> int:
    return sum(parameter.numel() for parameter in torchdpt.DPTModel(config, device="meta").parameters())


def multiply_adds(config: torchdpt.DPTConfig, height: int, width: int) -> int:
    """Multiply-additions of the network for one image, counted by PyTorch on tensors without data."""
    from torch.utils.flop_counter import FlopCounterMode

    model = torchdpt.DPTModel(config, device="meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, height, width, device="meta"))
    return int(counter.get_total_flops()) // 2


# --- predict ---


def output_files(name: str, formats: list[str]) -> dict[str, str]:
    """The file of each format, relative to --out."""
    return {format: name + FORMATS[format] for format in formats}


def save(prediction: Prediction, out: Path, files: dict[str, str], colormap: str) -> list[str]:
    for format, file in files.items():
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        prediction.save(path, format=format, colormap=colormap if format == "color" else None)
    return [str(out / file) for file in files.values()]


def formats_of(config: torchdpt.DPTConfig, wanted: list[str]) -> list[str]:
    """The wanted formats, or the default ones, of what the network predicts."""
    from torchdpt.prediction_files import formats_for

    possible = formats_for(depth=config.depth_head, labels=config.num_classes > 0, image=True)
    for name in wanted:
        if name not in possible:
            what = "depth" if config.depth_head else "classes"
            raise ValueError(
                f"--format: this model predicts {what} alone; wanted of {', '.join(possible)}, got {name!r}"
            )
    return wanted or [name for name in ("color", "png16", "overlay", "labels") if name in possible]


def record_of(prediction: Prediction) -> dict[str, Any]:
    """What --json says of it."""
    record: dict[str, Any] = {"kind": prediction.kind, "unit": prediction.unit}
    if prediction.labels is not None:
        record["labels"] = [{"name": name, "share": round(share, 4)} for name, share in prediction.class_shares()[:5]]
    return record


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What decides the numbers and pictures of a photograph."""
    names = ("revision", "dtype", "frozen", "input_size", "resize", "colormap")
    model = os.path.abspath(args.model) if os.path.exists(args.model) else args.model
    settings = {"model": model, **{name: getattr(args, name) for name in names}}
    return cast("dict[str, Any]", json.loads(json.dumps(settings)))  # as a file gives it back: lists, no tuples


def reason_of(error: Exception, path: str) -> str:
    """In one line, without the path, which stands before it."""
    if isinstance(error, OSError) and error.strerror:
        other = f": {error.filename}" if error.filename and str(error.filename) != path else ""
        return f"{error.strerror}{other}"
    lines = str(error).removeprefix(f"{path}: ").splitlines()  # torch's errors bring C++ frames
    return lines[0] if lines else type(error).__name__


def print_line(text: str) -> None:
    """To stdout as long as someone reads it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        say("nobody reads the output any more; going on without it")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def predict(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    out: Path = args.out
    wanted = [] if args.format is None else args.format.split(",")
    for format in wanted:
        if format not in FORMATS:
            raise ValueError(f"--format must be a comma-separated list of {', '.join(FORMATS)}, got {format!r}")
    photographs = results.find_photographs(args.images, out)
    entries = results.prepare(out)
    names = results.name_results(photographs, entries)
    model = load_network(args)
    formats = formats_of(model.config, wanted)
    settings = settings_of(args)
    jobs = list(zip(photographs, names, strict=True))
    if args.resume:
        jobs = [
            (photograph, name)
            for photograph, name in jobs
            if not results.is_done(out, entries.get(name), settings, list(output_files(name, formats).values()))
        ]
        say(f"{len(photographs) - len(jobs)} of {len(photographs)} are there already")
    if not jobs:
        return 0
    predictions = torchdpt.predict_files(
        model,
        [photograph.path for photograph, _ in jobs],
        input_size=args.input_size,
        resize=args.resize,
        batch_size=args.batch_size,
    )
    results.forget(out, entries, {name: list(output_files(name, formats).values()) for _, name in jobs}, settings)
    bar = tqdm(predictions, total=len(jobs), unit="image", disable=args.json or not sys.stderr.isatty())
    errors: list[str] = []
    finished, interrupted, remember_at = 0, False, time.monotonic() + 1
    try:
        for result, (photograph, name) in zip(bar, jobs, strict=True):
            error: Exception | None = result.error
            record: dict[str, Any] = {"image": result.path}
            if result.prediction is not None:
                files = output_files(name, formats)
                try:
                    written = save(result.prediction, out, files, args.colormap)
                    record |= {"written": written, **record_of(result.prediction)}
                    results.note(entries, name, photograph, settings, list(files.values()))
                    finished += 1
                except OSError as failure:
                    error = failure
            if error is not None:
                errors.append(f"{result.path}: {reason_of(error, result.path)}")
                record["error"] = errors[-1]
            if args.json:
                print_line(json.dumps(record))
            if time.monotonic() > remember_at:
                began = time.monotonic()
                results.remember(out, entries)
                remember_at = time.monotonic() + max(1, 20 * (time.monotonic() - began))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if finished:
            results.remember(out, entries)
    if interrupted:
        say(f"interrupted after {finished} of {len(jobs)} images; the same command with --resume goes on")
        return 130
    say(f"{finished} of {len(jobs)} images -> {out}")
    if errors and not args.json:
        say(f"{len(errors)} failed:")
        for line in errors:
            say(f"  {line}")
    return 1 if errors else 0


# --- what is known ---


def show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values, indent=2))
        return
    width = max(map(len, values))
    for name, value in values.items():
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif type(value) is int:
            value = f"{value:,}"
        print(f"{name:<{width}}  {value}")


def info(args: argparse.Namespace) -> int:
    from torchdpt.model import processor_of, published_processor

    if is_preset(args.model):
        config = torchdpt.DPTConfig.preset(args.model)
        processor = published_processor(config)
        stored: dict[str, Any] = {"what it is": "a preset: the description of a network, without weights"}
    else:
        from torchdpt import checkpoint

        path = checkpoint.find(args.model, **hub_options(args))
        read = checkpoint.read(path)
        config = torchdpt.DPTConfig.from_json(read.config)
        processor = processor_of(path, config)
        stored = {
            "what it is": f"a checkpoint in the layout of {read.layout}",
            "path": path,
            "dtype": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in read.tensors.values()})),
            "ignored": list(read.ignored) or "none",
            "ignored parameters": sum(tensor.numel() for tensor in read.ignored.values()),
        }
    height, width = processor.network_size(480, 640)
    show(
        {
            "model": args.model,
            **stored,
            **json.loads(config.to_json()),
            "preprocessing": dataclasses.asdict(processor),
            "parameters": count_parameters(config),
            "network input of a 640 x 480 photograph": f"{width} x {height}",
            "multiply-additions at that size": multiply_adds(config, height, width),
        },
        args.json,
    )
    return 0


def models(args: argparse.Namespace) -> int:
    rows = {}
    for name in torchdpt.list_presets():
        config = torchdpt.DPTConfig.preset(name)
        rows[name] = {
            "parameters": count_parameters(config),
            "multiply-additions": multiply_adds(config, config.image_size, config.image_size),
            "size": config.image_size,
        }
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"{'preset':<26}{'parameters':>12}{'multiply-adds':>16}  at")
    for name, row in rows.items():
        size = row["size"]
        print(
            f"{name:<26}{row['parameters'] / 1e6:>10.1f} M{row['multiply-additions'] / 1e9:>14.1f} G  {size} x {size}"
        )
    return 0


def doctor(args: argparse.Namespace) -> int:
    import platform

    import numpy
    import PIL

    from torchdpt import _build

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    wanted = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16", "amx_bf16": "AMX"}
    problems = []
    if torch.cuda.is_available() and _build.CUDA_VERSION is None:
        problems.append(
            "there is a GPU, and torchdpt was built without CUDA kernels: rebuild where nvcc is (README, Install)"
        )
    if torch.version.cuda and not torch.cuda.is_available():
        problems.append("torch has CUDA and sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES")
    depth = torchdpt.DPTModel("dpt_tiny").eval()(torch.zeros(1, 3, 64, 64)).depth
    if depth is None or not bool(depth.isfinite().all()):
        problems.append("a forward pass of dpt_tiny gave no finite numbers")
    show(
        {
            "torchdpt": torchdpt.__version__,
            "built with torch": _build.TORCH_VERSION,
            "runs with torch": torch.__version__,
            "C++11 ABI": torch.compiled_with_cxx11_abi(),
            "CUDA of the kernels": _build.CUDA_VERSION or "none",
            "CUDA of torch": torch.version.cuda or "none",
            "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "Python": platform.python_version(),
            "NumPy": numpy.__version__,
            "Pillow": PIL.__version__,
            "CPU": [name for flag, name in wanted.items() if flag in flags],
            "threads": torch.get_num_threads(),
            "libdpt": str(Path(torchdpt._C.__file__).parent / "lib"),
            "problems": problems or "none",
        },
        args.json,
    )
    return 1 if problems else 0


# --- files ---


def convert(args: argparse.Namespace) -> int:
    model = torchdpt.DPTModel.from_pretrained(args.model, device="cpu", **hub_options(args))
    zeros = model.save_pretrained(args.out, layout=args.layout)
    say(f"{args.model} -> {args.out} ({args.layout})")
    if zeros:
        say(f"written as zeros, since the network never runs them: {', '.join(zeros)}")
    return 0


def export(args: argparse.Namespace) -> int:
    model = load_model(args, "cpu")
    torchdpt.export(model, args.out, size=args.size, dynamic=not args.static)
    say(f"{args.model} -> {args.out} ({os.path.getsize(args.out) / 1e6:.0f} MB)")
    return 0
