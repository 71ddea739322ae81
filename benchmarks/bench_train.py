"""Training step of DPTModel against transformers' DPTForDepthEstimation: the same weights, loss and optimiser, eager.

    python benchmarks/bench_train.py [--dtype bfloat16] [--size 384] [--batch 2] [--repetitions 7]

A step is forward, backward, AdamW(fused=True) and zero_grad; float32, or float32 weights under autocast to bfloat16.
All cases step in turn. The peer is timed as it comes and with weights and input in channels-last, and compared by the
faster of the two. Errors are those of the depth and of the worst parameter's gradient at one small image, against the
peer in float64, relative to the largest value; there the loss is the mean of squares, since the order of residuals, by
which the other one trims, changes with rounding. Memory is the peak of the process in its second step, each case in a
process of its own: all of it, and what the step adds to weights and optimiser.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from measure import interleave, memory_of, record, relative_error
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DPTForDepthEstimation

import torchdpt
from torchdpt import losses

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="dpt_base", choices=torchdpt.list_presets())
parser.add_argument("--size", type=int, default=384)
parser.add_argument("--batch", type=int, default=2)
parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--warm-up", type=int, default=1)
parser.add_argument("--repetitions", type=int, default=7)
parser.add_argument("--memory-of", nargs=2, metavar=("CASE", "FOLDER"), help=argparse.SUPPRESS)
args = parser.parse_args()
torch.set_num_threads(args.threads)

PEERS = ("transformers", "transformers_channels_last")
CASES = ("torchdpt", *PEERS)
ERROR_SIZE = 96


def make(case: str, folder: str) -> nn.Module:
    if case == "torchdpt":
        return torchdpt.DPTModel.from_pretrained(folder).train()
    peer = DPTForDepthEstimation.from_pretrained(folder).train()
    return peer.to(memory_format=torch.channels_last) if case == "transformers_channels_last" else peer


def depth_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16" and images.dtype == torch.float32):
        output = model(images)
    return output.depth if isinstance(model, torchdpt.DPTModel) else output.predicted_depth


def target_of(images: Tensor) -> Tensor:
    batch, _, height, width = images.shape
    return torch.rand(batch, height, width, generator=torch.Generator().manual_seed(1)).to(images.dtype)


def backward(model: nn.Module, images: Tensor) -> None:
    target = target_of(images)
    known = torch.ones_like(target, dtype=torch.bool)
    losses.scale_and_shift_invariant(depth_of(model, images), target, known).loss.backward()


def smooth_backward(model: nn.Module, images: Tensor) -> Tensor:
    """Of the mean of squares; returns the depth."""
    depth = depth_of(model, images)
    (depth - target_of(images)).square().mean().backward()
    return depth.detach()


def make_step(case: str, folder: str) -> Callable[[], None]:
    model = make(case, folder)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    images = torch.randn(args.batch, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    if case == "transformers_channels_last":
        images = images.to(memory_format=torch.channels_last)

    def step() -> None:
        backward(model, images)
        optimiser.step()
        optimiser.zero_grad()

    return step


def memory(case: str, folder: str) -> dict[str, float]:
    """Of the second step; the first makes the optimiser's state."""
    step = make_step(case, folder)
    step()
    before, peak = memory_of(step)
    return {"peak_mib": round(peak), "step_mib": round(peak - before)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """By the names of transformers' layout."""
    if not isinstance(model, torchdpt.DPTModel):
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for p in model.parameters():
            p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
        model.save_pretrained(folder, layout="transformers")
        return load_file(Path(folder) / "model.safetensors")


def errors(folder: str) -> dict[str, dict[str, float]]:
    images = torch.randn(1, 3, ERROR_SIZE, ERROR_SIZE, generator=torch.Generator().manual_seed(0))
    exact = DPTForDepthEstimation.from_pretrained(folder, dtype=torch.float64).train()
    reference = smooth_backward(exact, images.double())
    offset = reference.mean()  # random weights give a nearly constant map; the error is that of what varies
    wanted = gradients(exact)
    result = {}
    for case in ("torchdpt", "transformers"):
        model = make(case, folder)
        depth = relative_error(smooth_backward(model, images) - offset, reference - offset)
        got = gradients(model)
        # A gradient that is rounding alone (the key's bias has none) is measured against the largest of all.
        floor = 1e-3 * max(float(w.abs().max()) for w in wanted.values())
        worst = max(
            float((got[name].double() - w).abs().max()) / max(float(w.abs().max()), floor) for name, w in wanted.items()
        )
        result[case] = {"depth_error": float(f"{depth:.1e}"), "gradient_error": float(f"{worst:.1e}")}
    return result


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        torchdpt.DPTModel(args.model).save_pretrained(folder, layout="transformers")
        found = errors(folder)
        memories = {}
        for case in CASES:
            command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", case, folder]
            memories[case] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        times = interleave(
            {case: make_step(case, folder) for case in CASES}, warm_up=args.warm_up, repetitions=args.repetitions
        )
    best = min(PEERS, key=lambda case: times[case]["median_ms"])
    rows = [
        {
            "case": case,
            **times[case],
            "rate_to_best_peer": round(times[best]["median_ms"] / times[case]["median_ms"], 3),
            **memories[case],
            "peak_to_best_peer": round(memories[case]["peak_mib"] / memories[best]["peak_mib"], 3),
            "step_mib_to_best_peer": round(memories[case]["step_mib"] / memories[best]["step_mib"], 3),
            **found.get(case, {}),
        }
        for case in CASES
    ]
    record(
        f"train_{args.model}" + ("_bfloat16" if args.dtype == "bfloat16" else ""),
        rows,
        transformers=transformers.__version__,
        model=args.model,
        size=args.size,
        batch=args.batch,
        dtype=args.dtype,
        error_size=ERROR_SIZE,
        warm_up=args.warm_up,
        repetitions=args.repetitions,
    )


if args.memory_of:
    print(json.dumps(memory(*args.memory_of)))
else:
    main()
