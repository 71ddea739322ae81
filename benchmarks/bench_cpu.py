"""Frozen models against runtimes for the same network on the CPU, in one run, interleaved.

    python benchmarks/bench_cpu.py [--model dpt_base] [--size 384] [--batch 1] [--dtype float32] [--repetitions 15]
    python benchmarks/bench_cpu.py --without-amx ...
    python benchmarks/bench_cpu.py --curves [--model dpt_base] [--repetitions 5]

Weights are random and the same for all. The peers: transformers eager; torch.compile with freezing and max-autotune;
AOTInductor; ONNX Runtime (float32); OpenVINO, whose precision is pinned (int8 by nncf, calibrated like ours by the
images that are timed); zentorch. Those that are not installed are left out; zentorch optimises on processors with
AVX-512 alone, and installs by `pip install deprecated` and `pip install --no-deps zentorch==2.13.0.2`.

`error` is the largest difference to transformers' network in float64, over the range of its map; it is measured before
any time. `ready_s` is what it takes to freeze the model, to make a session of a file, or to compile; `first_call_ms` is
the call after that (torch.compile compiles in it). `fraction_of_peak`, of ours: floating-point operations of the
products that are executed, Winograd's as it executes them, over the time and the fastest products of this run.

`--without-amx`: on a processor with AMX all are measured as if it had none. That says nothing of AMD's processors,
where instructions for bfloat16 do twice as many products as those for float32; on Intel's they do half.

Reported, and not counted as peers: `--rewritten` gives ONNX Runtime and OpenVINO our rewritten network, `--without`
leaves out one rewrite of ours at a time; `ours, unfrozen` is the network as it trains, and `ours, image by image` what
the images of a batch take one after another. `--curves` measures ours, ONNX Runtime and OpenVINO over batches, sizes
and threads, and compares with transformers in float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import interleave, keep_freed_memory, record, refuse_tiles
from peers import PRESETS, Case, Peer, model_of, onnx_file, peers, runtimes
from rewritten import Rewritten, executed_flop
from torch import Tensor

import torchdpt

REWRITES = ("fold_project", "fold_level_project", "phases", "products_first", "winograd")
CURVE = [(1, 256), (1, 384), (1, 512), (1, 768), (2, 384), (4, 384), (8, 384)]  # batch, size


def map_of(config: torchdpt.DPTConfig, output: torchdpt.DPTOutput) -> Tensor:
    found = output.depth if config.depth_head else output.logits
    assert found is not None
    return found


def ours(
    model: torchdpt.DPTModel, images: Tensor, dtype: torch.dtype, without: tuple[str, ...] = (), each: bool = False
) -> Case:
    """Frozen and loaded from its file, as it is used; `each`: called with each image of the batch in turn."""
    with tempfile.TemporaryDirectory() as folder:
        calibration = images if dtype == torch.int8 else None
        model.freeze(dtype, without=without, calibration=calibration).save(f"{folder}/ours.frozen")
        frozen = torchdpt.FrozenModel.load(f"{folder}/ours.frozen")
    if each:
        return lambda: torch.cat([map_of(model.config, frozen(image)) for image in images.split(1)])
    return lambda: map_of(model.config, frozen(images))


def unfrozen(model: torchdpt.DPTModel, folder: str, images: Tensor, dtype: torch.dtype) -> Case:
    network = model if dtype == torch.float32 else torchdpt.DPTModel.from_pretrained(folder, dtype=dtype)
    cast = images.to(dtype)
    return lambda: map_of(model.config, network(cast))


def rewritten_file(model: torchdpt.DPTModel, images: Tensor, path: Path, without: tuple[str, ...] = ()) -> str:
    """An ONNX file of the network after our rewrites."""
    frozen = path.with_suffix(".frozen")
    model.freeze(without=without).save(frozen)
    return onnx_file(Rewritten(frozen), images, path)


def products(dtype: torch.dtype) -> dict[str, tuple[float, Case]]:
    """Products that run about as fast as this machine can: their floating-point operations, and the call."""
    found: dict[str, tuple[float, Case]] = {}
    for kind in {torch.float32, dtype} - {torch.int8}:
        side, channels, pixels = 1536, 256, 96
        a, b = torch.randn(2, side, side).to(kind)
        x = torch.randn(1, channels, pixels, pixels).to(kind).contiguous(memory_format=torch.channels_last)
        w = torch.randn(channels, channels, 3, 3).to(kind).contiguous(memory_format=torch.channels_last)
        found[f"peak: matrices, {kind}"] = (2 * side**3, lambda a=a, b=b: a @ b)
        flop = 2 * 9 * channels**2 * pixels**2
        found[f"peak: convolution, {kind}"] = (flop, lambda x=x, w=w: torch.conv2d(x, w, padding=1))
    return found


def prepared(prepare: Callable[[], Case], want: Tensor) -> tuple[Case, dict[str, Any]]:
    """The call, and what it gave and took."""
    start = time.perf_counter()
    run = prepare()
    ready = time.perf_counter()
    got = run()
    first = time.perf_counter()
    assert got.shape == want.shape
    # Random weights give a nearly constant map; the error is that of what varies.
    error = float((got.double() - want).abs().max() / (want.max() - want.min()))
    return run, {
        "error": f"{error:.1e}",
        "ready_s": round(ready - start, 2),
        "first_call_ms": round(1000 * (first - ready), 1),
    }


def rows_of(
    makers: dict[str, Callable[[], Case]], want: Tensor, dtype: torch.dtype, flop: int, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Each case's time and error, the fastest first."""
    cases, facts = {}, {}
    for name, prepare in makers.items():
        cases[name], facts[name] = prepared(prepare, want)
    peak = products(dtype)
    times = interleave(
        cases | {name: run for name, (_, run) in peak.items()}, warm_up=args.warm_up, repetitions=args.repetitions
    )
    rates = {name: count / times[name]["median_ms"] / 1e6 for name, (count, _) in peak.items()}
    counted = [times[name]["median_ms"] for name in cases if not name.startswith("ours") and "our rewrites" not in name]
    rows = []
    for name in sorted(cases, key=lambda name: times[name]["median_ms"]):
        row = {"case": name, **times[name], **facts[name]}
        if counted:
            row["fastest_peer_to_this"] = round(min(counted) / times[name]["median_ms"], 3)
        if name == "ours" and flop > 0:
            rate = flop / times[name]["median_ms"] / 1e6
            row |= {"gflop": round(flop / 1e9, 2), "gflop_per_s": round(rate, 1)}
            row |= {"peak_gflop_per_s": round(max(rates.values()), 1)}
            row |= {"fraction_of_peak": round(rate / max(rates.values()), 3)}
        rows.append(row)
    return rows


@torch.no_grad()
def measure(batch: int, size: int, args: argparse.Namespace, threads: list[int]) -> list[list[dict[str, Any]]]:
    """The rows for each number of threads."""
    model = model_of(args.model, size)
    dtype = getattr(torch, args.dtype)
    names = args.peers.split(",")
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, layout="transformers")
        exact = torch.float32 if args.curves else torch.float64
        want = Peer(folder, model.config, exact)(images.to(exact)).double()
        flop = 0
        if dtype != torch.int8:
            model.freeze(dtype).save(f"{folder}/ours.frozen")
            flop = executed_flop(f"{folder}/ours.frozen", batch, size, size)
        makers: dict[str, Callable[[], Case]] = {"ours": lambda: ours(model, images, dtype)}
        if dtype == torch.int8:
            makers["ours, bfloat16"] = lambda: ours(model, images, torch.bfloat16)
        if batch > 1:
            makers["ours, image by image"] = lambda: ours(model, images, dtype, each=True)
        if args.without:
            for name in REWRITES:
                makers[f"ours without {name}"] = lambda name=name: ours(model, images, dtype, (name,))
        if "transformers" in names and dtype != torch.int8:
            makers["ours, unfrozen"] = lambda: unfrozen(model, folder, images, dtype)
        makers |= peers(names, folder, model.config, images, dtype)
        if args.rewritten:
            for i, without in enumerate(((), ("products_first",))):
                path = rewritten_file(model, images, Path(folder) / f"rewritten{i}.onnx", without)
                what = ", our rewrites" + "".join(f" without {name}" for name in without)
                makers |= runtimes(names, path, images, dtype, what)
        for count in threads:
            torch.set_num_threads(count)
            results.append(rows_of(makers, want, dtype, flop, args))
    return results


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="dpt_base", choices=PRESETS)
parser.add_argument("--size", type=int, default=384)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "int8"))
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--warm-up", type=int, default=2)
parser.add_argument("--repetitions", type=int, default=15)
parser.add_argument("--peers", help="default: all; with --curves onnxruntime,openvino")
parser.add_argument("--without-amx", action="store_true")
parser.add_argument("--rewritten", action="store_true", help="peers given our rewritten network, too")
parser.add_argument("--without", action="store_true", help="ours without each rewrite, too")
parser.add_argument("--curves", action="store_true", help="batches, sizes, and 1 to --threads threads")
args = parser.parse_args()
if args.without_amx:
    refuse_tiles()
keep_freed_memory()
every = "transformers,compile,autotune,aoti,onnxruntime,openvino,zentorch"
args.peers = args.peers or ("onnxruntime,openvino" if args.curves else every)
settings = {"model": args.model, "dtype": args.dtype, "repetitions": args.repetitions}
if args.curves:
    points = []
    counts = list(range(1, args.threads + 1))
    for batch, size in CURVE:
        for threads, rows in zip(counts, measure(batch, size, args, counts), strict=True):
            points += [{"batch": batch, "size": size, "threads": threads, **row} for row in rows]
    record(f"cpu_curves_{args.model}_{args.dtype}", points, **settings)
else:
    torch.set_num_threads(args.threads)
    (rows,) = measure(args.batch, args.size, args, [args.threads])
    name = f"cpu_{args.model}_{args.size}_b{args.batch}_{args.dtype}_t{args.threads}"
    tiles = args.dtype != "float32" and torch.cpu._init_amx()
    name += "_without_amx" * args.without_amx + "_amx" * tiles
    record(name, rows, size=args.size, batch=args.batch, **settings)
