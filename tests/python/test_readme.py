"""The Python of README.md, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchdpt

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
NARROW = torchdpt.DPTConfig(
    image_size=64, width=32, heads=2, mlp_width=64, channels=(8, 8, 16, 16), features=16, head_features=8
)


def test_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In the place of a published checkpoint and of DPT-Base, networks as deep and less wide.
    torchdpt.DPTModel(NARROW).save_pretrained(tmp_path / "dpt-large")
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    joint = NARROW.replace(num_classes=150, fusion_norm="batch", auxiliary_head="penultimate")
    presets = {"dpt_base": NARROW, "dpt_hybrid_joint": joint}
    monkeypatch.setattr(torchdpt.DPTConfig, "preset", presets.__getitem__)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, names)
    assert len(BLOCKS) == 7
    assert {"depth.png", "picture.png", "overlay.png", "mine", "mine.onnx"} <= {
        path.name for path in tmp_path.iterdir()
    }
    model, images = names["model"], names["images"]
    assert torch.equal(names["depth"], model(images).depth)
    assert names["attention"].shape == (1, 2, 865, 865)


def test_own_module_trains() -> None:
    (source,) = [block for block in BLOCKS if block.startswith("class Mine")]
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
