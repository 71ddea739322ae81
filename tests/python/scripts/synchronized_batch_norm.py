"""Batch statistics shared by two processes: torchrun --nproc-per-node 2 synchronized_batch_norm.py OUT.json

Writes the largest error, against one process with the whole batch, of outputs, gradients and running statistics,
eager and compiled; and how far off they are without synchronisation.
"""

import copy
import json
import pathlib
import sys

import torch
import torch.distributed as dist

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from networks import JOINT, RESNET, make_model


def outcome(model, images):
    output = model(images)
    sum(tensor.square().sum() for tensor in output).backward()
    return output


def main(out):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    alone = make_model(RESNET.replace(**JOINT, dropout=0.0), torch.float64).train()
    start = copy.deepcopy(alone)
    images = torch.rand(2 * world, 3, 64, 64, dtype=torch.float64)
    want = outcome(alone, images)
    mine = slice(2 * rank, 2 * rank + 2)

    results = {}
    for way in ("eager", "compiled", "not synchronised"):
        model = copy.deepcopy(start)
        if way != "not synchronised":
            model.synchronize_batch_norm()
        run = torch.compile(model, backend="aot_eager", dynamic=False) if way == "compiled" else model
        got = outcome(run, images[mine])
        errors = {"outputs": 0.0, "gradients": 0.0, "statistics": 0.0}
        for ours, theirs in zip(got, want, strict=True):
            errors["outputs"] = max(errors["outputs"], ((ours - theirs[mine]).abs().max() / theirs.abs().max()).item())
        largest = max(parameter.grad.abs().max().item() for parameter in alone.parameters())
        for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
            grad = ours.grad.clone()
            dist.all_reduce(grad)  # the loss is a sum over images
            # A gradient that is zero but for rounding errors is compared with the others.
            scale = max(theirs.grad.abs().max().item(), 1e-3 * largest)
            errors["gradients"] = max(errors["gradients"], ((grad - theirs.grad).abs().max() / scale).item())
        for ours, theirs in zip(model.buffers(), alone.buffers(), strict=True):
            error = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()
            errors["statistics"] = max(errors["statistics"], error.item())
        results[way] = errors
    if rank == 0:
        with open(out, "w") as file:
            json.dump(results, file)
    dist.destroy_process_group()


main(sys.argv[1])
