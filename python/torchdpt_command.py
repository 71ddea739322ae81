"""The command `torchdpt`: its arguments. What it does is torchdpt.cli, imported when it is run.

Outside of the package, whose import takes seconds (torch) and fails where torch is of another release.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYOUTS = ["torchdpt", "transformers", "isl-org", "isl-org-scriptable"]


def runner(name: str, module: str = "cli") -> Callable[[argparse.Namespace], int]:
    def run(args: argparse.Namespace) -> int:
        return int(getattr(importlib.import_module(f"torchdpt.{module}"), name)(args))

    return run


def doctor(args: argparse.Namespace) -> int:
    """That of torchdpt.cli, or why torchdpt cannot be imported."""
    try:
        run = runner("doctor")
        import torchdpt  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a library of torch's is missing
        values = {"torchdpt": version("torchdpt"), "torch": version("torch"), "Python": platform.python_version()}
        if args.json:
            print(json.dumps({**values, "problems": [str(error)]}, indent=2))
        else:
            print(*(f"{name:<10}{value}" for name, value in {**values, "problems": error}.items()), sep="\n")
        return 1
    return run(args)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed by pip"


class Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version("torchdpt"))
        parser.exit()


def size(text: str) -> int | tuple[int, int]:
    """384 or 384x512 (height x width)."""
    try:
        sides = tuple(int(part) for part in text.split("x"))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"wanted pixels, N or HEIGHTxWIDTH, got {text!r}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def sizes(text: str) -> list[int | tuple[int, int]]:
    """384,480x640: several of `size`."""
    return [size(part) for part in text.split(",")]


def two_sides(text: str) -> tuple[int, int]:
    sides = size(text)
    return (sides, sides) if isinstance(sides, int) else sides


def not_negative(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted a whole number, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number of at least 1, got {text!r}")
    return int(text)


def option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"wanted NAME=VALUE, got {text!r}")
    return name, value


def build_parser() -> argparse.ArgumentParser:
    import shtab

    parser = argparse.ArgumentParser(
        prog="torchdpt", description="Depth and classes from photographs with Dense Prediction Transformers."
    )
    parser.add_argument("--version", action=Version, nargs=0, help="print the version")
    shtab.add_argument_to(parser, "--print-completion", help="print the completion script of a shell")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, example: str, parent: Any = commands) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = parent.add_parser(
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
    or_frozen = ", frozen model (file)" + or_random

    def add_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print JSON, for programs")

    def add_where(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
        sub.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: that of the file")

    def add_frozen(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--frozen", action="store_true", help="make the network ready to predict first: faster")

    sub = command(
        "predict",
        runner("predict"),
        "depth and classes of photographs",
        "torchdpt predict photos/ holiday.jpg --model dpt-large/ --out depth",
    )
    sub.add_argument("images", nargs="+", help="files, folders (with those below them) or quoted globs").complete = (  # type: ignore[attr-defined]
        shtab.FILE
    )
    add_model(sub, "--model", preset=or_frozen, required=True)
    sub.add_argument("--out", type=Path, default=Path("depth"), help="folder of the results (default: depth)")
    sub.add_argument(
        "--format",
        help="comma-separated, of color, png16, overlay, labels, npz, npy, pfm (default: color,png16 of depth, "
        "overlay,labels of classes)",
    )
    sub.add_argument("--colormap", default="inferno", choices=["inferno", "turbo", "spectral", "gray"])
    sub.add_argument("--input-size", type=size, metavar="N|HxW", help="side(s) that the network's input aims at")
    sub.add_argument("--resize", choices=["minimal", "lower_bound", "upper_bound", "exact"], help="how it gets there")
    sub.add_argument("--batch-size", type=positive, default=8, help="default: 8")
    sub.add_argument("--resume", action="store_true", help="leave out images whose results are there")
    add_frozen(sub)
    add_where(sub)
    add_json(sub)

    sub = command(
        "eval",
        runner("evaluate", "cli_eval"),
        "measure a model on a data set, as a protocol says",
        "torchdpt eval --model dpt-large/ --protocol zero_shot_midas/nyu --data nyu:data/nyu --out nyu",
    )
    add_model(sub, "--model", preset=or_frozen, required=True)
    sub.add_argument(
        "--protocol",
        required=True,
        metavar="NAME[,FIELD=VALUE...]",
        help="how to measure (docs/evaluation.md has the names), and what to change in it",
    )
    sub.add_argument(
        "--data",
        required=True,
        metavar="TYPE:PATH|PATH",
        help="data set, or a folder of one's own; scenes: needs no path",
    )
    sub.add_argument(
        "--input-size",
        type=sizes,
        metavar="N|HxW,...",
        help="side(s) that the network's input aims at; several: a curve",
    )
    sub.add_argument("--limit", type=positive, help="measure so many samples, the first ones (default: all)")
    sub.add_argument("--out", type=Path, help="folder of results.json, per_image.csv and pictures (default: none)")
    sub.add_argument("--worst", type=not_negative, default=10, help="how many of the worst to draw (default: 10)")
    sub.add_argument("--batch-size", type=positive, default=8, help="default: 8")
    add_frozen(sub)
    add_where(sub)
    add_json(sub)

    sub = command("info", runner("info"), "what a checkpoint holds", "torchdpt info dpt-large/")
    add_model(sub, "model", preset=", or a preset")
    add_json(sub)

    sub = command(
        "convert",
        runner("convert"),
        "write a checkpoint in another layout",
        "torchdpt convert dpt-large/ mine --layout torchdpt",
    )
    add_model(sub, "model")
    sub.add_argument("out", help="folder to write")
    sub.add_argument("--layout", default="torchdpt", choices=LAYOUTS, help="default: torchdpt")

    sub = command(
        "export", runner("export"), "write ONNX or a torch.export program", "torchdpt export dpt-large/ dpt-large.onnx"
    )
    add_model(sub, "model", preset=or_random)
    sub.add_argument("out", help="*.onnx or *.pt2")
    sub.add_argument("--size", type=two_sides, metavar="N|HxW", help="to export for (default: the native size)")
    sub.add_argument("--static", action="store_true", help="fix batch 1 and this size")

    sub = command("models", runner("models"), "the presets", "torchdpt models --json")
    add_json(sub)

    sub = command("doctor", doctor, "versions, processor, GPU, and what is wrong", "torchdpt doctor")
    add_json(sub)

    sub = command(
        "bench",
        runner("bench", "cli_bench"),
        "time from file to file, by stage, the network alone being one",
        "torchdpt bench dpt_hybrid --runs 400\n\n"
        "The example is Table 9 of the paper: the network at 384 x 384, mean over 400 runs. --frozen shows the parts "
        "of the network, too.",
    )
    add_model(sub, "model", preset=f"{or_random} (default: dpt_base)", nargs="?", default="dpt_base")
    sub.add_argument(
        "--image",
        help="photograph (default: a synthetic one of the network's own input size, 384 x 384 for depth as published)",
    )
    sub.add_argument("--runs", type=positive, default=20, help="default: 20")
    sub.add_argument("--warm-up", type=not_negative, default=3, help="default: 3")
    add_frozen(sub)
    add_where(sub)
    add_json(sub)

    sub = command(
        "train",
        runner("train", "cli_train"),
        "train a network, or go on with a run",
        "torchdpt train my_depth train.0.path=photos steps=2000\n\n"
        "Ctrl-C saves a checkpoint, and the same command goes on from there. On several GPUs:\n"
        "torchrun --nproc-per-node 8 -m torchdpt_command train mix6",
    )
    sub.add_argument("config", help="YAML file, or the name of a recipe: demo, my_depth, my_segmentation, mix6, ...")
    sub.add_argument("changes", nargs="*", metavar="key=value", help="settings in place of the file's")
    sub.add_argument("--print", action="store_true", help="print all settings as YAML instead of training")
    sub.add_argument("--allow-changes", action="store_true", help="go on with other settings than the run began with")
    sub = commands.add_parser("data", help="data sets to train on", description="Data sets to train on.")
    data = sub.add_subparsers(title="commands", required=True, metavar="COMMAND")
    sub = command(
        "check",
        runner("check", "cli_data"),
        "read every sample of a data set, and tell what is in them and what is wrong",
        "torchdpt data check rooms/\n\n"
        "The exit status is 1 if something is wrong. torchdpt.data.FolderDataset says what a folder of one's own\n"
        "should look like.",
        data,
    )
    sub.add_argument("folder", help="folder (or file) of the data set")
    sub.add_argument("--type", default="folder", help="of torchdpt.data.DATASETS: nyu, kitti, ... (default: folder)")
    sub.add_argument(
        "--option",
        type=option,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of its class, such as split=train; may be repeated",
    )
    add_json(sub)
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """As argparse does, but that `key=value` may stand behind and between options, too."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if rest:
        if "changes" not in args or any(item.startswith("-") or "=" not in item for item in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        args.changes += rest
    return args


def main(arguments: list[str] | None = None) -> int:
    try:
        args = parse(arguments)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"torchdpt: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
