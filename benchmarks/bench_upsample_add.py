"""dpt::upsample_add against its ATen composition, at the sizes of the fusion decoder.

    python benchmarks/bench_upsample_add.py [--device cuda]

Errors are against the composition in float64, relative to its largest value.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from measure import interleave, record, relative_error

import torchdpt  # noqa: F401  (registers the operator)

CHANNELS = 256
SIDES = (24, 48, 96)  # each to twice its side
LAYOUTS = (torch.channels_last, torch.contiguous_format)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ROUNDS = {"warm_up": 5, "repetitions": 31}


def aten(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=True) + skip


def own(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    return torch.ops.dpt.upsample_add(x, skip)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
device = parser.parse_args().device

torch.manual_seed(0)
rows = []
with torch.inference_mode():
    for dtype in DTYPES:
        for layout in LAYOUTS:
            for side in SIDES:
                x, skip = (
                    torch.randn(1, CHANNELS, n, n, device=device).to(dtype).to(memory_format=layout)
                    for n in (side, 2 * side)
                )
                times = interleave(
                    {"own": lambda x=x, s=skip: own(x, s), "aten": lambda x=x, s=skip: aten(x, s)}, **ROUNDS
                )
                want = aten(x.double(), skip.double())
                rows.append(
                    {
                        "dtype": str(dtype)[6:],
                        "layout": str(layout)[6:],
                        "sides": [side, 2 * side],
                        "own": times["own"],
                        "aten": times["aten"],
                        "speedup": round(times["aten"]["median_ms"] / times["own"]["median_ms"], 2),
                        "own_error": float(f"{relative_error(own(x, skip), want):.2e}"),
                        "aten_error": float(f"{relative_error(aten(x, skip), want):.2e}"),
                    }
                )
record(f"upsample_add_{device}", rows, channels=CHANNELS, **ROUNDS)
