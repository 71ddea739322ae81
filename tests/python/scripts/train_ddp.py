"""Trains a small DPT on synthetic images: torchrun --nproc-per-node 2 train_ddp.py OUT.pt"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torchdpt

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
torch.manual_seed(0)
config = torchdpt.DPTConfig.preset("dpt_tiny").replace(image_size=64, width=48, depth=4, taps=(0, 1, 2, 3), features=16)
model = torchdpt.DPTModel(config)
ddp = DistributedDataParallel(model)
optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-2)
images = torch.randn(4, 3, 64, 64)
targets = images.mean(1) + 1
mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
for step in range(6):
    loss = (ddp(images[mine]).depth - targets[mine]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if rank == 0:
        print(f"step {step} loss {loss.item():.6f}", flush=True)
if rank == 0:
    torch.save(model.state_dict(), sys.argv[1])
dist.destroy_process_group()
