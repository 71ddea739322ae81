"""Forward pass of DPTModel against transformers' DPTForDepthEstimation, the same weights, eager, on the CPU.

python benchmarks/bench_forward.py [--model dpt_base] [--size 384] [--batch 1] [--repetitions 15]

The error column is the largest difference to the peer in float64, over its largest value.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from measure import interleave, record, relative_error
from transformers import DPTForDepthEstimation

import torchdpt

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="dpt_base", choices=torchdpt.list_presets())
parser.add_argument("--size", type=int, default=384)
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--warm-up", type=int, default=3)
parser.add_argument("--repetitions", type=int, default=15)
args = parser.parse_args()

torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    model = torchdpt.DPTModel(args.model).eval()
    model.save_pretrained(folder, layout="transformers")
    peer = DPTForDepthEstimation.from_pretrained(folder).eval()
    exact = DPTForDepthEstimation.from_pretrained(folder, dtype=torch.float64).eval()
images = torch.randn(args.batch, 3, args.size, args.size)

with torch.inference_mode():
    reference = exact(images.double()).predicted_depth
    # Random weights give a nearly constant map; the error is that of what varies.
    offset = reference.mean()
    errors = {
        "torchdpt": relative_error(model(images).depth - offset, reference - offset),
        "transformers": relative_error(peer(images).predicted_depth - offset, reference - offset),
    }
    cases = {"torchdpt": lambda: model(images), "transformers": lambda: peer(images)}
    times = interleave(cases, warm_up=args.warm_up, repetitions=args.repetitions)

peer_median = times["transformers"]["median_ms"]
rows = [
    {
        "case": name,
        **times[name],
        "ratio": round(times[name]["median_ms"] / peer_median, 3),
        "error": f"{errors[name]:.1e}",
    }
    for name in cases
]
record(
    f"forward_{args.model}_{args.size}_b{args.batch}",
    rows,
    model=args.model,
    size=args.size,
    batch=args.batch,
    dtype="float32",
    warm_up=args.warm_up,
    repetitions=args.repetitions,
)
