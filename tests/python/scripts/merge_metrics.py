"""Evaluates some images in each process, and merges: torchrun --nproc-per-node 2 merge_metrics.py OUT"""

import json
import sys

import torch
import torch.distributed as dist

from torchdpt import protocols
from torchdpt.evaluate import Evaluator

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
target, noise = torch.rand(7, 12, 16) * 8 + 1, torch.rand(7, 12, 16)
pairs = torch.stack([torch.randint(0, 12, (7, 20)) for _ in range(4)] + [torch.randint(0, 2, (7, 20)) * 2 - 1], dim=2)
images = {
    "zero_shot_midas/nyu": (1 / target + 0.1 * noise, target),
    "zero_shot_midas/diw": (1 / target, pairs),
    "ade20k": (target.long(), (target + noise).long()),
}
images["pooled"] = images["zero_shot_midas/nyu"]
results = {}
for name, (prediction, truth) in images.items():
    protocol = protocols.get("zero_shot_midas/nyu", average="pooled") if name == "pooled" else protocols.get(name)
    evaluator = Evaluator(protocol)
    for i in range(rank, 7, world):
        evaluator.update(prediction[i], truth[i], id=str(i))
    before = evaluator.result()
    result = evaluator.all_reduce().result()
    assert str(evaluator.result()) == str(before)
    results[name] = {"metrics": result.metrics, "counts": result.counts, "per_image": result.per_image}
everyone = [None] * world
dist.all_gather_object(everyone, results)
if rank == 0:
    with open(sys.argv[1], "w") as file:
        json.dump(dict(enumerate(everyone)), file)
dist.destroy_process_group()
