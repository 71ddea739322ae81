"""Frozen models against runtimes for the same network on the CPU, in one run, interleaved.

    python benchmarks/bench_cpu.py [--model dpt_base] [--size 384] [--batch 1] [--dtype float32] [--repetitions 15]

Weights are random and the same for all. The peers: transformers eager; torch.compile with freezing and max-autotune;
AOTInductor; ONNX Runtime; OpenVINO, whose precision is pinned. Those that are not installed, or do not have the
precision, are left out. `error` is the largest difference to the network in float64, over the range of its map. `ours
without X` is the frozen model with one rewrite left out; `ours, unfrozen` is the network as it trains.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import interleave, record
from torch import Tensor, nn
from transformers import DPTForDepthEstimation

import torchdpt

REWRITES = ("fold_project", "fold_level_project", "phases", "products_first", "winograd")
Case = Callable[[], Tensor]


class Depth(nn.Module):
    """The peer with the map alone, which exporters like better."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        depth: Tensor = self.model(pixel_values=images).predicted_depth
        return depth


def onnx_file(model: nn.Module, images: Tensor, folder: str) -> str:
    path = str(Path(folder) / "model.onnx")
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
    return path


def onnx_runtime(path: str, images: Tensor) -> Case:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the others' cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def openvino(path: str, images: Tensor, precision: str) -> Case:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda: torch.from_numpy(compiled([images.numpy()])[0].copy())


def inductor(model: nn.Module, images: Tensor, **options: Any) -> Case:
    compiled = torch.compile(model, options={"freezing": True, **options}, fullgraph=True)
    return lambda: compiled(images)


def ahead_of_time(model: nn.Module, images: Tensor, folder: str) -> Case:
    exported = torch.export.export(model, (images,), strict=False)
    package = torch._inductor.aoti_compile_and_package(
        exported, package_path=str(Path(folder) / "model.pt2"), inductor_configs={"freezing": True}
    )
    loaded = torch._inductor.aoti_load_package(package)
    return lambda: loaded(images)


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="dpt_base", choices=torchdpt.list_presets())
parser.add_argument("--size", type=int, default=384)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
parser.add_argument("--threads", type=int, default=torch.get_num_threads())
parser.add_argument("--warm-up", type=int, default=2)
parser.add_argument("--repetitions", type=int, default=15)
parser.add_argument("--peers", default="transformers,compile,autotune,aoti,onnxruntime,openvino")
parser.add_argument("--without", action="store_true", help="ours without each rewrite, too")
args = parser.parse_args()
torch.set_num_threads(args.threads)
dtype = getattr(torch, args.dtype)
images = torch.randn(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
peers = args.peers.split(",")

with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
    torch.manual_seed(0)
    model = torchdpt.DPTModel(args.model).eval()
    model.save_pretrained(folder, layout="transformers")
    exact = Depth(DPTForDepthEstimation.from_pretrained(folder, dtype=torch.float64).eval())(images.double())
    peer = Depth(DPTForDepthEstimation.from_pretrained(folder, dtype=dtype).eval())
    cast = images.to(dtype)

    frozen = model.freeze(dtype)
    cases: dict[str, Case] = {"ours": lambda: frozen(images).depth}
    if args.without:
        for rewrite in REWRITES:
            partial = model.freeze(dtype, without=[rewrite])
            cases[f"ours without {rewrite}"] = lambda partial=partial: partial(images).depth
    if "transformers" in peers:
        cases["transformers"] = lambda: peer(cast)
        unfrozen = model if dtype == torch.float32 else torchdpt.DPTModel.from_pretrained(folder, dtype=dtype)
        cases["ours, unfrozen"] = lambda: unfrozen(cast).depth
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    if "compile" in peers:
        cases["torch.compile, freezing"] = inductor(peer, cast)
        cases["torch.compile, freezing"]()
    if "autotune" in peers:
        cases["torch.compile, max-autotune"] = inductor(peer, cast, max_autotune=True)
        cases["torch.compile, max-autotune"]()
    if "aoti" in peers:
        cases["AOTInductor"] = ahead_of_time(peer, cast, folder)
    if {"onnxruntime", "openvino"} & set(peers):
        wide = peer if dtype == torch.float32 else Depth(peer.model.float())
        path = onnx_file(wide, images, folder)
        if "onnxruntime" in peers and dtype == torch.float32:
            cases["ONNX Runtime"] = onnx_runtime(path, images)
        if "openvino" in peers and importlib.util.find_spec("openvino"):
            cases["OpenVINO"] = openvino(path, images, {"float32": "f32", "bfloat16": "bf16"}[args.dtype])

    # Random weights give a nearly constant map; the error is that of what varies.
    spread = exact.max() - exact.min()
    errors = {name: float((run().double() - exact).abs().max() / spread) for name, run in cases.items()}
    times = interleave(cases, warm_up=args.warm_up, repetitions=args.repetitions)

fastest = min(times[name]["median_ms"] for name in cases if not name.startswith("ours"))
rows = [
    {
        "case": name,
        **times[name],
        "fastest_peer_to_this": round(fastest / times[name]["median_ms"], 3),
        "error": f"{errors[name]:.1e}",
    }
    for name in sorted(cases, key=lambda name: times[name]["median_ms"])
]
record(
    f"cpu_{args.model}_{args.size}_b{args.batch}_{args.dtype}_t{args.threads}",
    rows,
    model=args.model,
    size=args.size,
    batch=args.batch,
    dtype=args.dtype,
    repetitions=args.repetitions,
)
