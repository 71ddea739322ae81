"""Gradients of two processes against those of one: torchrun --nproc-per-node 2 parallel_gradients.py OUT.json

Writes, for each way of training in parallel, the largest error of a gradient relative to the largest gradient of its
tensor, or the error message.
"""

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import torchdpt


def ddp(model):
    return DistributedDataParallel(model)


def ddp_compiled(model):
    return torch.compile(DistributedDataParallel(model), backend="aot_eager", dynamic=False)


def fsdp_root(model):
    return fully_shard(model)


def fsdp_resharded(model):
    return fully_shard(model, reshard_after_forward=True)


def fsdp_stages(model):
    for stage in (model.encoder, model.reassemble, model.fusion, model.head):
        fully_shard(stage)
    return fully_shard(model)


def fsdp_blocks(model):
    for block in model.encoder.blocks.children():
        fully_shard(block)
    return fully_shard(model)


def main(out):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = torchdpt.DPTConfig(
        image_size=64,
        width=32,
        depth=4,
        heads=2,
        mlp_width=64,
        taps=(0, 1, 2, 3),
        channels=(8, 8, 16, 16),
        features=16,
        head_features=8,
    )
    alone = torchdpt.DPTModel(config, dtype=torch.float64)
    images = torch.rand(2 * world, 3, 64, 64, dtype=torch.float64)
    alone(images).depth.square().mean().backward()
    want = {name: parameter.grad for name, parameter in alone.named_parameters()}

    results = {}
    for parallel in (ddp, ddp_compiled, fsdp_root, fsdp_resharded, fsdp_stages, fsdp_blocks):
        for checkpointing in (False, True):
            model = copy.deepcopy(alone)
            model.zero_grad()
            model.activation_checkpointing = checkpointing
            try:
                wrapped = parallel(model)
                wrapped(images[2 * rank : 2 * rank + 2]).depth.square().mean().backward()  # two images each
                worst = 0.0
                for name, parameter in model.named_parameters():
                    grad = parameter.grad
                    grad = grad.full_tensor() if isinstance(grad, DTensor) else grad
                    worst = max(worst, ((grad - want[name]).abs().max() / want[name].abs().max()).item())
                results[f"{parallel.__name__} {checkpointing}"] = worst
            except ValueError as error:
                results[f"{parallel.__name__} {checkpointing}"] = str(error)
    if rank == 0:
        with open(out, "w") as file:
            json.dump(results, file)
    dist.destroy_process_group()


main(sys.argv[1])
