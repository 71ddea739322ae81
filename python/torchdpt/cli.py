"""The command `torchdpt`."""

from __future__ import annotations

import argparse
import dataclasses
import glob
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import torchdpt

if TYPE_CHECKING:
    from torchdpt.model import DPTModel
    from torchdpt.prediction import Prediction

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif"}
# Format -> what is appended to the name of the photograph.
FORMATS = {"color": "_color.png", "png16": "_depth.png", "npz": ".npz", "npy": ".npy", "pfm": ".pfm"}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- models ---


def is_preset(name: str) -> bool:
    return name in torchdpt.list_presets() and not os.path.exists(name)


def hub_options(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("revision", "cache_dir", "local_files_only")}


def load_model(args: argparse.Namespace, device: str | None = None, dtype: str | None = None) -> DPTModel:
    """The checkpoint `args.model`, or a preset with random weights."""
    name: str = args.model
    kind = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    try:
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"--device must be cpu, cuda, cuda:1, ..., got {device!r}") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this torch sees no GPU; `torchdpt doctor` says more")
    if is_preset(name):
        say(f"{name} is a preset, with RANDOM weights: the pictures show that the pipeline runs; they are not depth.")
        torch.manual_seed(0)
        return torchdpt.DPTModel(name, device=place, dtype=kind).eval()
    return torchdpt.DPTModel.from_pretrained(name, device=place, dtype=kind, **hub_options(args))


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


def find_images(inputs: list[str], out: Path) -> list[Path]:
    """Files, images below folders (but for those below `out`), and what globs match; each once, in order."""
    found: dict[Path, Path] = {}
    results = Path(os.path.abspath(out))
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            below = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
            files = [file for file in below if results not in Path(os.path.abspath(file)).parents]
            if not files:
                raise ValueError(
                    f"{text}: no images in this folder (wanted files ending in {', '.join(sorted(ENDINGS))})"
                )
        elif not path.exists() and glob.has_magic(text):
            files = sorted(Path(match) for match in glob.glob(text, recursive=True) if os.path.isfile(match))
            if not files:
                raise ValueError(f"{text}: matches no file")
        else:
            files = [path]  # that it may be missing is this file's error
        for file in files:
            found.setdefault(Path(os.path.abspath(file)), file)
    return list(found.values())


def output_stems(images: list[Path], out: Path) -> list[Path]:
    """Where the results of each image go, without ending: its path below the images' common folder."""
    absolute = [Path(os.path.abspath(image)) for image in images]
    common = os.path.commonpath([path.parent for path in absolute])
    stems = [out / path.relative_to(common).with_suffix("") for path in absolute]
    seen = Counter(stems)
    # a.jpg and a.png in one folder: their endings join the names.
    return [
        stem.with_name(f"{stem.name}_{path.suffix[1:]}") if seen[stem] > 1 else stem
        for stem, path in zip(stems, absolute, strict=True)
    ]


def output_paths(stem: Path, formats: list[str]) -> dict[str, Path]:
    """The file of each format."""
    return {name: stem.with_name(stem.name + FORMATS[name]) for name in formats}


def save(prediction: Prediction, stem: Path, formats: list[str], colormap: str) -> list[str]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = output_paths(stem, formats)
    for name, path in paths.items():
        prediction.save(path, format=name, colormap=colormap if name == "color" else None)
    return list(map(str, paths.values()))


def predict(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    formats = args.format.split(",")
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"--format must be a comma-separated list of {', '.join(FORMATS)}, got {name!r}")
    images = find_images(args.images, args.out)
    jobs = dict(zip(images, output_stems(images, args.out), strict=True))
    if args.resume:
        done = [i for i, stem in jobs.items() if all(path.exists() for path in output_paths(stem, formats).values())]
        for image in done:
            del jobs[image]
        say(f"{len(done)} of {len(images)} are there already")
    if not jobs:
        return 0
    model = load_model(args, args.device, args.dtype)
    results = torchdpt.predict_files(
        model, list(jobs), input_size=args.input_size, resize=args.resize, batch_size=args.batch_size
    )
    errors: list[str] = []
    finished = 0
    try:
        for result in tqdm(results, total=len(jobs), unit="image", disable=args.json or not sys.stderr.isatty()):
            error: Exception | None = result.error
            record: dict[str, Any] = {"image": result.path}
            if result.prediction is not None:
                try:
                    record |= {
                        "written": save(result.prediction, jobs[Path(result.path)], formats, args.colormap),
                        "kind": result.prediction.kind,
                        "unit": result.prediction.unit,
                    }
                    finished += 1
                except OSError as failure:
                    error = failure
            if error is not None:
                errors.append(f"{result.path}: {str(error).removeprefix(f'{result.path}: ')}")
                record["error"] = errors[-1]
            if args.json:
                print(json.dumps(record), flush=True)
    except KeyboardInterrupt:
        say(f"interrupted after {finished} of {len(jobs)} images; the same command with --resume goes on")
        return 130
    say(f"{finished} of {len(jobs)} images -> {args.out}")
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
    if is_preset(args.model):
        config = torchdpt.DPTConfig.preset(args.model)
        processor = torchdpt.ImageProcessor((config.image_size, config.image_size))
        stored: dict[str, Any] = {"what it is": "a preset: the description of a network, without weights"}
    else:
        from torchdpt import checkpoint

        path = checkpoint.find(args.model, **hub_options(args))
        read = checkpoint.read(path)
        config = torchdpt.DPTConfig.from_json(read.config)
        processor = torchdpt.ImageProcessor.from_folder(path if os.path.isdir(path) else os.path.dirname(path))
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


# --- bench ---


def time_stages(model: DPTModel, data: bytes, *, warm_up: int, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each stage, run by run, from the bytes of a photograph to a 16-bit PNG of its size."""
    import tempfile

    from torchdpt.predict import resize_depth

    weight = next(model.parameters())
    times: dict[str, list[float]] = {"decode": [], "prepare": [], "network": [], "resize and write": []}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for run in range(warm_up + runs):
            marks = [time.perf_counter()]
            image = torchdpt.load_image(data)
            marks.append(time.perf_counter())
            x = model.processor(image)[None].to(weight.device, weight.dtype)
            marks.append(time.perf_counter())
            depth = model(x).depth
            if weight.is_cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            prediction = torchdpt.Prediction(resize_depth(depth[0], *image.shape[:2]))
            prediction.save(Path(folder) / "depth.png", format="png16")
            marks.append(time.perf_counter())
            if run >= warm_up:
                for name, begin, end in zip(times, marks, marks[1:], strict=False):
                    times[name].append(1000 * (end - begin))
    return times


def bench(args: argparse.Namespace) -> int:
    import io
    import statistics

    import numpy as np
    from PIL import Image

    model = load_model(args, args.device, args.dtype)
    if args.image:
        data = Path(args.image).read_bytes()
    else:
        picture = np.add.outer(np.arange(480), np.arange(640))[:, :, None] * np.array([1, 2, 3]) % 256
        file = io.BytesIO()
        Image.fromarray(picture.astype(np.uint8)).save(file, "JPEG", quality=90)
        data = file.getvalue()
    times = time_stages(model, data, warm_up=args.warm_up, runs=args.runs)
    total = statistics.median(map(sum, zip(*times.values(), strict=True)))
    stages = {name: round(statistics.median(values), 3) for name, values in times.items()}
    around = sum(stages.values()) - stages["network"]
    height, width = torchdpt.load_image(data).shape[:2]
    rows, columns = model.processor.network_size(height, width)
    weight = next(model.parameters())
    result = {
        "model": args.model,
        "image": f"{width} x {height}",
        "network input": f"{columns} x {rows}",
        "device": str(weight.device),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "runs": args.runs,
        **{f"{name} (ms, median)": value for name, value in stages.items()},
        "total (ms, median)": round(total, 3),
        "all but the network (% of the total)": round(100 * around / total, 1),
    }
    show(result, args.json)
    return 0


# --- the command line ---


def size(text: str) -> int | tuple[int, int]:
    """384 or 384x512 (height x width)."""
    try:
        sides = tuple(int(part) for part in text.split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"wanted pixels, N or HEIGHTxWIDTH, got {text!r}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def two_sides(text: str) -> tuple[int, int]:
    sides = size(text)
    return (sides, sides) if isinstance(sides, int) else sides


def build_parser() -> argparse.ArgumentParser:
    import shtab

    parser = argparse.ArgumentParser(
        prog="torchdpt", description="Depth from photographs with Dense Prediction Transformers."
    )
    parser.add_argument("--version", action="version", version=torchdpt.__version__)
    shtab.add_argument_to(parser, "--print-completion", help="print the completion script of a shell: bash, zsh, tcsh")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    def add_model(sub: argparse.ArgumentParser, name: str, *, preset: str = "", **options: Any) -> None:
        sub.add_argument(name, help=f"checkpoint (folder, file or hub id){preset}", **options)
        hub = sub.add_argument_group("models on the hub")
        hub.add_argument("--revision", help="branch, tag or commit")
        hub.add_argument("--cache-dir", help="where its files are kept")
        hub.add_argument("--local-files-only", action="store_true", help="look in the cache alone")

    or_random = ", or a preset for random weights"

    def add_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print JSON, for programs")

    def add_where(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
        sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the file")

    sub = command(
        "predict",
        predict,
        "depth of photographs",
        "torchdpt predict photos/ holiday.jpg --model dpt-large/ --out depth",
    )
    sub.add_argument("images", nargs="+", help="files, folders (with those below them) or quoted globs").complete = (  # type: ignore[attr-defined]
        shtab.FILE
    )
    add_model(sub, "--model", preset=or_random, required=True)
    sub.add_argument("--out", type=Path, default=Path("depth"), help="folder of the results (default: depth)")
    sub.add_argument(
        "--format", default="color,png16", help=f"comma-separated, of {', '.join(FORMATS)} (default: color,png16)"
    )
    sub.add_argument("--colormap", default="inferno", choices=["inferno", "turbo", "spectral", "gray"])
    sub.add_argument("--input-size", type=size, metavar="N|HxW", help="side(s) that the network's input aims at")
    sub.add_argument("--resize", choices=["minimal", "lower_bound", "upper_bound", "exact"], help="how it gets there")
    sub.add_argument("--batch-size", type=int, default=8, help="default: 8")
    sub.add_argument("--resume", action="store_true", help="leave out images whose results are there")
    add_where(sub)
    add_json(sub)

    sub = command("info", info, "what a checkpoint holds", "torchdpt info dpt-large/")
    add_model(sub, "model", preset=", or a preset")
    add_json(sub)

    sub = command(
        "convert", convert, "write a checkpoint in another layout", "torchdpt convert dpt-large/ mine --layout torchdpt"
    )
    add_model(sub, "model")
    sub.add_argument("out", help="folder to write")
    sub.add_argument("--layout", default="torchdpt", choices=LAYOUTS, help="default: torchdpt")

    sub = command("export", export, "write ONNX or a torch.export program", "torchdpt export dpt-large/ dpt-large.onnx")
    add_model(sub, "model", preset=or_random)
    sub.add_argument("out", help="*.onnx or *.pt2")
    sub.add_argument("--size", type=two_sides, metavar="N|HxW", help="to export for (default: the native size)")
    sub.add_argument("--static", action="store_true", help="fix batch 1 and this size")

    sub = command("models", models, "the presets", "torchdpt models --json")
    add_json(sub)

    sub = command("doctor", doctor, "versions, processor, GPU, and what is wrong", "torchdpt doctor")
    add_json(sub)

    sub = command("bench", bench, "time from file to file, by stage", "torchdpt bench dpt_base --runs 20")
    add_model(sub, "model", preset=f"{or_random} (default: dpt_base)", nargs="?", default="dpt_base")
    sub.add_argument("--image", help="photograph (default: a synthetic one of 640 x 480)")
    sub.add_argument("--runs", type=int, default=20, help="default: 20")
    sub.add_argument("--warm-up", type=int, default=3, help="default: 3")
    add_where(sub)
    add_json(sub)
    return parser


LAYOUTS = ["torchdpt", "transformers", "isl-org"]


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        say(f"torchdpt: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
