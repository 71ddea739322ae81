"""The example of README.md, "features of your own", as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import torchdpt

README = Path(__file__).parents[2] / "README.md"


def test_readme_example_trains() -> None:
    (source,) = re.findall(r"```python\n(class Mine.*?)```", README.read_text(), re.DOTALL)
    names = {"torch": torch, "torchdpt": torchdpt}
    exec(source, names)
    model = names["Mine"]()
    images, target = torch.randn(2, 3, 64, 96), torch.rand(2, 64, 96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(10):
        loss = (model(images) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for own in (model.patches, model.blocks):  # gradients reach the user's part through all of ours
        assert all(parameter.grad.abs().max() > 0 for parameter in own.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
