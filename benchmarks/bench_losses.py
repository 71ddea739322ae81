"""The scale- and shift-invariant loss, forward and backward, against the same maths composed in PyTorch.

    python benchmarks/bench_losses.py [--device cuda]

The composition is vectorised over the batch: `nanmedian` of the valid pixels, and trimming by the `kthvalue` of each
image or by one `sort`, whichever is given; eager, and under torch.compile. Errors are those of the gradient against
the composition in float64, relative to its largest value. Memory is the peak of one forward and backward pass beyond
what was there before, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import torch
from measure import interleave, memory_of, record, relative_error

from torchdpt import losses

ROUNDS = {"warm_up": 3, "repetitions": 15}
Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def normalised(x: torch.Tensor, mask: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    centre = torch.where(mask, x, torch.nan).flatten(1).nanmedian(1).values
    x = torch.where(mask, x - centre.view(-1, 1, 1), 0)
    return x / (x.abs().sum((1, 2)) / count).view(-1, 1, 1)


def composition(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, sort: bool) -> torch.Tensor:
    """`losses.scale_and_shift_invariant` with its defaults, for maps that are not degenerate."""
    count = mask.sum((1, 2))
    residual = normalised(prediction, mask, count) - normalised(target, mask, count)
    kept = count * 4 // 5
    absolute = torch.where(mask, residual.abs(), torch.inf).flatten(1)
    if sort:
        in_order = absolute.sort(1).values
        rank = torch.arange(absolute.shape[1], device=absolute.device)
        data = torch.where(rank < kept.view(-1, 1), in_order, 0).sum(1)
    else:
        data = torch.stack(
            [
                torch.where(a <= a.detach().kthvalue(int(k)).values, a, 0).sum()
                for a, k in zip(absolute, kept, strict=True)
            ]
        )
    loss = data / (2 * count)
    for k in range(4):
        r, m = residual[:, :: 2**k, :: 2**k], mask[:, :: 2**k, :: 2**k]
        across = torch.where(m[:, :, 1:] & m[:, :, :-1], r[:, :, 1:] - r[:, :, :-1], 0).abs().sum((1, 2))
        down = torch.where(m[:, 1:] & m[:, :-1], r[:, 1:] - r[:, :-1], 0).abs().sum((1, 2))
        loss = loss + 0.5 * (across + down) / m.sum((1, 2))
    return loss.mean()


def make_maps(shape: tuple[int, int, int], device: str) -> Maps:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator)
    prediction = 3 * target + 0.3 * torch.randn(shape, generator=generator) + 5
    mask = torch.rand(shape, generator=generator) < 0.9
    return prediction.to(device), target.to(device), mask.to(device)


def gradient(loss: Callable[..., torch.Tensor], maps: Maps) -> torch.Tensor:
    prediction = maps[0].detach().requires_grad_()
    loss(prediction, *maps[1:]).backward()
    assert prediction.grad is not None
    return prediction.grad


CASES: dict[str, Callable[..., torch.Tensor]] = {
    "own": lambda *maps: losses.scale_and_shift_invariant(*maps).loss,
    "eager_kthvalue": lambda *maps: composition(*maps, sort=False),
    "eager_sort": lambda *maps: composition(*maps, sort=True),
    "compiled_sort": torch.compile(lambda *maps: composition(*maps, sort=True)),
}


def peak_mib(name: str, maps: Maps) -> float:
    """Of one pass, beyond what was there before; the first pass loads and compiles."""
    if maps[0].is_cuda:
        gradient(CASES[name], maps)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradient(CASES[name], maps)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gradient(CASES[name], maps)
    before, peak = memory_of(lambda: gradient(CASES[name], maps))
    return peak - before


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--side", type=int, default=384)
parser.add_argument("--memory-of", choices=CASES, help=argparse.SUPPRESS)
args = parser.parse_args()
maps = make_maps((args.batch, args.side, args.side), args.device)
if args.memory_of:
    print(json.dumps(peak_mib(args.memory_of, maps)))
    sys.exit()

want = gradient(CASES["eager_sort"], (maps[0].double(), maps[1].double(), maps[2]))
times = interleave({name: lambda loss=loss: gradient(loss, maps) for name, loss in CASES.items()}, **ROUNDS)
rows = []
for name, loss in CASES.items():
    memory = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--memory-of", name], capture_output=True, text=True, check=True
    )
    rows.append(
        {
            "case": name,
            **times[name],
            "own_is_faster_by": round(times[name]["median_ms"] / times["own"]["median_ms"], 2),
            "peak_mib": round(json.loads(memory.stdout), 1),
            "error": float(f"{relative_error(gradient(loss, maps), want):.2e}"),
        }
    )
record(f"losses_{args.device}", rows, shape=[args.batch, args.side, args.side], **ROUNDS)
