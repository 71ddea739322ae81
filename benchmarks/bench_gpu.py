"""Frozen models against runtimes for the same network on a GPU, in one run, interleaved; and a training step.

    python benchmarks/bench_gpu.py [--model dpt_large] [--size 384] [--batch 1] [--dtype bfloat16] [--tf32] [--train]

Weights are random and the same for all. The peers: transformers eager with sdpa; torch.compile default,
reduce-overhead and max-autotune; AOTInductor; and timm's encoder alone, compiled, as a floor for whoever leaves the
encoder as it is. A peer that fails or is not installed is named with its error. Each round takes every case once:
`latency_ms` is the time on the wall of one call until its result is there, `throughput_ms` that of one of --calls calls
in a row, between CUDA events. Images lie on the GPU, normalised; nothing is copied to the host. `memory_mib` is the
peak while the case was made and first called, weights included, beyond what was there before; `first_call_s` the time
of that, compilation included. "ours, pixels" is given uint8 [B, H, W, 3], permuted, as a camera gives it, of which the
images of all others were made before; "ours, float8" has the linear layers of its blocks in float8_e4m3fn (with
--dtype bfloat16). `error` is the largest difference to the network in float64, over the range of its map.

With --train a step is forward under autocast, backward and AdamW(fused=True) on float32 weights, with the same loss;
the peers are transformers eager and compiled.

With --seconds no peer is begun after 0.6 of them, and rounds end with them, but not before five are measured: each row
says how many its `rounds` are.

--device cpu is a trial of this file: it times nothing of interest.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from measure import record
from torch import Tensor, nn
from transformers import DPTForDepthEstimation

import torchdpt
from torchdpt import losses
from torchdpt.cli import multiply_adds

PEERS = ("transformers", "compile", "reduce-overhead", "max-autotune", "aoti", "timm")
TIMM = {
    "dpt_base": "vit_base_patch16_384",
    "dpt_large": "vit_large_patch16_384",
    "dpt_hybrid": "vit_base_r50_s16_384",
}
# Dense products of an H200, TFLOP/s.
PEAK = {"bfloat16": 989.0, "float16": 989.0, "tf32": 495.0, "float32": 67.0}
LEAST_ROUNDS = 5
START = time.perf_counter()

Case = Callable[[], Tensor]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="dpt_large", choices=torchdpt.list_presets())
parser.add_argument("--size", type=int, default=384)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
parser.add_argument("--tf32", action="store_true", help="float32 products in TF32; off without it")
parser.add_argument("--train", action="store_true", help="a training step instead")
parser.add_argument("--peers", default=",".join(PEERS))
parser.add_argument("--rounds", type=int, default=30)
parser.add_argument("--calls", type=int, default=10)
parser.add_argument("--warm-up", type=int, default=5)
parser.add_argument("--seconds", type=float, help="what is left for all of it; without it there is no limit")
parser.add_argument("--device", default="cuda")
args = parser.parse_args()
unknown = set(args.peers.split(",")) - {*PEERS, ""}
if unknown:
    parser.error(f"--peers: there is no {', '.join(sorted(unknown))}; choose from {', '.join(PEERS)}")
if args.tf32 and args.dtype != "float32":
    parser.error("--tf32 is for --dtype float32")
ON_GPU = args.device != "cpu"
DTYPE = getattr(torch, args.dtype)
torch.backends.cuda.matmul.allow_tf32 = args.tf32
torch.backends.cudnn.allow_tf32 = args.tf32
torch.backends.cudnn.benchmark = True  # for the peers, too
torch._dynamo.config.recompile_limit = 64


# --- measuring ---


def past(share: float) -> bool:
    """Of the seconds that were given."""
    return args.seconds is not None and time.perf_counter() - START > share * args.seconds


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def made(make: Callable[[], Case]) -> tuple[Case, dict[str, float]]:
    """A case that was called once, and what that took."""
    gc.collect()
    before = 0
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    case = make()
    case()
    synchronize()
    first = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if ON_GPU else 0
    return case, {"first_call_s": round(first, 2), "memory_mib": round((peak - before) / 2**20)}


def calls_in_a_row(case: Case) -> float:
    """Milliseconds of one of them."""
    if not ON_GPU:
        start = time.perf_counter()
        for _ in range(args.calls):
            case()
        return 1000 * (time.perf_counter() - start) / args.calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(args.calls):
        case()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / args.calls


def one_call(case: Case) -> float:
    synchronize()
    start = time.perf_counter()
    case()
    synchronize()
    return 1000 * (time.perf_counter() - start)


def interleaved(cases: dict[str, Case]) -> dict[str, dict[str, Any]]:
    kinds = {"latency": one_call, "throughput": calls_in_a_row}
    times: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in cases}
    for i in range(args.warm_up + args.rounds):
        if i >= args.warm_up + LEAST_ROUNDS and past(1):
            break
        for name, case in cases.items():
            for kind, measure in kinds.items():
                value = measure(case)
                if i >= args.warm_up:
                    times[name][kind].append(value)
    rows: dict[str, dict[str, Any]] = {}
    for name, found in times.items():
        rows[name] = {"rounds": len(found["latency"])}
        for kind, values in found.items():
            low, median, high = statistics.quantiles(values, n=4)
            rows[name][f"{kind}_ms"] = round(median, 4)
            rows[name][f"{kind}_quartiles_ms"] = [round(low, 4), round(high, 4)]
    return rows


# --- cases ---


class Depth(nn.Module):
    """The peer with the map alone, which exporters like better."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        depth: Tensor = self.model(pixel_values=images).predicted_depth
        return depth


def peer_from(folder: str, dtype: torch.dtype) -> nn.Module:
    model = DPTForDepthEstimation.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    return Depth(model.to(args.device).eval())


def compiled(model: nn.Module, images: Tensor, mode: str) -> Case:
    run = torch.compile(model, mode=mode, dynamic=False)

    def case() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return run(images)

    return case


def ahead_of_time(model: nn.Module, images: Tensor, folder: str) -> Case:
    exported = torch.export.export(model, (images,), strict=False)
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(folder) / "model.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    return lambda: loaded(images)


def encoder_alone(images: Tensor) -> Case:
    if args.model not in TIMM:
        raise ValueError(f"timm has no encoder of {args.model}")
    import timm

    model = timm.create_model(TIMM[args.model], num_classes=0, img_size=args.size)
    encoder = torch.compile(model.to(args.device, DTYPE).eval().forward_features, mode="max-autotune", dynamic=False)

    def case() -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return encoder(images)

    return case


def makers_of(folder: str, pixels: Tensor, images: Tensor) -> dict[str, Callable[[], Case]]:
    cast = images.to(DTYPE)

    def ours(given: Tensor, dtype: torch.dtype) -> Callable[[], Case]:
        def make() -> Case:
            frozen = torchdpt.DPTModel.from_pretrained(folder).freeze(dtype, device=args.device)
            return lambda: frozen(given).depth

        return make

    def eager() -> Case:
        peer = peer_from(folder, DTYPE)
        return lambda: peer(cast)

    def mode(name: str) -> Callable[[], Case]:
        return lambda: compiled(peer_from(folder, DTYPE), cast, name)

    all_of_them: dict[str, tuple[str, Callable[[], Case]]] = {
        "transformers": ("transformers eager", eager),
        "compile": ("torch.compile", mode("default")),
        "reduce-overhead": ("torch.compile, reduce-overhead", mode("reduce-overhead")),
        "max-autotune": ("torch.compile, max-autotune", mode("max-autotune")),
        "aoti": ("AOTInductor", lambda: ahead_of_time(peer_from(folder, DTYPE), cast, folder)),
        "timm": ("encoder alone, timm compiled", lambda: encoder_alone(cast)),
    }
    wanted = args.peers.split(",")
    own = {"ours": ours(images, DTYPE), "ours, pixels": ours(pixels, DTYPE)}
    if ON_GPU and args.dtype == "bfloat16":
        own["ours, float8"] = ours(images, torch.float8_e4m3fn)
    return own | {case: make for peer, (case, make) in all_of_them.items() if peer in wanted}


# --- the two tables ---


def random_pixels() -> Tensor:
    """uint8 [B, 3, H, W], channels next to each other."""
    shape = (args.batch, args.size, args.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return pixels.to(args.device).permute(0, 3, 1, 2)


def normalized(pixels: Tensor) -> Tensor:
    return ((pixels / 255 - 0.5) / 0.5).contiguous()


def roofline(rows: list[dict[str, Any]]) -> None:
    """The share of the peak of an H200 that the network's products, before any rewrite, take at the time of a row."""
    peak = PEAK["tf32" if args.tf32 else args.dtype]
    flops = 2 * multiply_adds(torchdpt.DPTConfig.preset(args.model), args.size, args.size) * args.batch
    for row in rows:
        if "throughput_ms" in row and not row["case"].startswith("encoder"):
            row["share_of_peak"] = round(flops / (row["throughput_ms"] * 1e-3) / (peak * 1e12), 3)


def prepare(
    makers: dict[str, Callable[[], Case]], check: Callable[[str, Case], dict[str, float]]
) -> tuple[dict[str, Case], dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The cases, what is known of each before it is timed, and rows of those that failed; "ours" may not."""
    cases: dict[str, Case] = {}
    facts: dict[str, dict[str, Any]] = {}
    failed: list[dict[str, Any]] = []
    for name, make in makers.items():
        if past(0.6) and not name.startswith("ours"):
            failed.append({"case": name, "failed": "no time left"})
            continue
        try:
            case, found = made(make)
            found |= check(name, case)
        except Exception as error:
            if name == "ours":
                raise
            failed.append({"case": name, "failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
            continue
        cases[name], facts[name] = case, found
    return cases, facts, failed


def compare(cases: dict[str, Case], facts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    times = interleaved(cases)
    peers = [name for name in cases if not name.startswith(("ours", "encoder"))]
    rows = []
    for name in cases:
        row = {"case": name, **times[name], "images_per_s": round(1000 * args.batch / times[name]["throughput_ms"], 1)}
        for kind in ("latency", "throughput"):
            if peers:
                fastest = min(times[peer][f"{kind}_ms"] for peer in peers)
                row[f"{kind}_to_fastest_peer"] = round(times[name][f"{kind}_ms"] / fastest, 3)
        rows.append(row | facts[name])
    return rows


@torch.no_grad()
def inference() -> list[dict[str, Any]]:
    pixels = random_pixels()
    images = normalized(pixels)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        torchdpt.DPTModel(args.model).save_pretrained(folder, layout="transformers")
        # Image by image: float64 takes memory.
        wide = peer_from(folder, torch.float64)
        exact = torch.cat([wide(image[None].double()) for image in images])
        del wide
        spread = exact.max() - exact.min()  # random weights give a nearly constant map

        def error_of(name: str, case: Case) -> dict[str, float]:
            if name.startswith("encoder"):
                return {}
            return {"error": float(f"{float((case().double() - exact).abs().max() / spread):.1e}")}

        cases, facts, failed = prepare(makers_of(folder, pixels, images), error_of)
        rows = compare(cases, facts)
    roofline(rows)
    return rows + failed


def training() -> list[dict[str, Any]]:
    images = normalized(random_pixels())
    target = torch.rand(args.batch, args.size, args.size, generator=torch.Generator().manual_seed(1)).to(args.device)
    known = torch.ones_like(target, dtype=torch.bool)

    def step_of(model: nn.Module, depth_of: Callable[[Tensor], Tensor]) -> Case:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
        autocast = torch.autocast(args.device, DTYPE) if args.dtype != "float32" else contextlib.nullcontext()

        def step() -> Tensor:
            with autocast:
                depth = depth_of(images)
            loss = losses.scale_and_shift_invariant(depth.float(), target, known).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        torchdpt.DPTModel(args.model).save_pretrained(folder, layout="transformers")

        def ours() -> Case:
            model = torchdpt.DPTModel.from_pretrained(folder).to(args.device).train()
            return step_of(model, lambda x: model(x).depth)

        def eager() -> Case:
            peer = peer_from(folder, torch.float32).train()
            return step_of(peer, peer)

        def with_compile() -> Case:
            peer = peer_from(folder, torch.float32).train()
            return step_of(peer, torch.compile(peer, dynamic=False))

        makers = {"ours": ours}
        if "transformers" in args.peers.split(","):
            makers["transformers eager"] = eager
        if "compile" in args.peers.split(","):
            makers["torch.compile"] = with_compile
        cases, facts, failed = prepare(makers, lambda _, case: {"loss_of_second_step": round(float(case()), 6)})
        return compare(cases, facts) + failed


precision = "tf32" if args.tf32 else args.dtype
kind = "train" if args.train else "gpu"
record(
    f"{kind}_{args.model}_{args.size}_b{args.batch}_{precision}" + ("" if ON_GPU else "_trial"),
    training() if args.train else inference(),
    transformers=transformers.__version__,
    cuda=torch.version.cuda,
    cudnn=torch.backends.cudnn.version() if ON_GPU else None,
    model=args.model,
    size=args.size,
    batch=args.batch,
    dtype=precision,
    warm_up=args.warm_up,
    rounds=args.rounds,
    calls=args.calls,
)
