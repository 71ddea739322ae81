"""Batch statistics shared by two processes: torchrun --nproc-per-node 2 synchronized_batch_norm.py OUT.json

Writes the largest error, against one process with the whole batch, of outputs, gradients and running statistics,
eager, compiled, and with one image here and three there; how far off they are without synchronisation; and what becomes
of the running statistics where the processes have one value in all, or none.
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
    images = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    want = outcome(alone, images)
    halves = [slice(0, 2), slice(2, 4)]

    results = {}
    for way, slices in {
        "eager": halves,
        "compiled": halves,
        "uneven": [slice(0, 1), slice(1, 4)],
        "not synchronised": halves,
    }.items():
        mine = slices[rank]
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
        worst = torch.tensor(list(errors.values()))
        dist.all_reduce(worst, dist.ReduceOp.MAX)  # of both processes
        results[way] = dict(zip(errors, worst.tolist(), strict=True))

    # An image of 32 x 32 is one value per channel at the end of the encoder.
    last = "encoder.stages.3.0.norm3.running_"
    before = {name: start.state_dict()[last + name] for name in ("mean", "var")}
    for way, counts in {"one value": [1, 0], "no value": [0, 0]}.items():
        model = copy.deepcopy(start).synchronize_batch_norm()
        outcome(model.encoder, torch.rand(counts[rank], 3, 32, 32, dtype=torch.float64))
        after = {name: model.state_dict()[last + name] for name in before}
        results[way] = {
            "finite": all(bool(buffer.isfinite().all()) for buffer in model.buffers()),
            "mean moved": not torch.equal(after["mean"], before["mean"]),
            "variance": (after["var"] / before["var"]).unique().tolist(),
        }
    # In a group of one process there is nobody to share with.
    own = [dist.new_group([other]) for other in range(world)]
    model = copy.deepcopy(start).synchronize_batch_norm(own[rank])
    results["alone"] = {"group": model.config.batch_norm_group}
    try:
        model.synchronize_batch_norm(own[1 - rank])
    except ValueError as error:
        results["alone"]["not a member"] = str(error)
    if rank == 0:
        with open(out, "w") as file:
            json.dump(results, file)
    dist.destroy_process_group()


main(sys.argv[1])
