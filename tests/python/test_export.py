"""torchdpt.export: graphs that need torchdpt no more, at and away from the size that they were exported for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

import torchdpt

CONFIG = torchdpt.DPTConfig(
    image_size=64,
    width=32,
    depth=4,
    heads=2,
    mlp_width=64,
    taps=(0, 1, 2, 3),
    channels=(8, 8, 16, 16),
    features=16,
)
SHAPES = [(2, 64, 64), (1, 64, 64), (3, 96, 160), (1, 48, 80)]


@pytest.fixture(scope="module", params=["plain", "distilled", "batch norm"])
def model(request: pytest.FixtureRequest) -> torchdpt.DPTModel:
    changes = {"plain": {}, "distilled": {"distilled": True}, "batch norm": {"fusion_norm": "batch"}}[request.param]
    torch.manual_seed(0)
    return torchdpt.DPTModel(CONFIG.replace(**changes)).eval()


def test_program_runs_in_bare_torch_at_any_size(model: torchdpt.DPTModel, tmp_path: Path) -> None:
    torchdpt.export(model, tmp_path / "m.pt2")
    cases = [torch.randn(b, 3, h, w) for b, h, w in SHAPES]
    with torch.no_grad():
        torch.save([(images, model(images).depth) for images in cases], tmp_path / "cases.pt")
    code = """
import sys, torch
program = torch.export.load(sys.argv[1])
targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
# The others are Python's arithmetic on sizes.
assert {t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)} == {"aten"}
for images, depth in torch.load(sys.argv[2]):
    torch.testing.assert_close(program.module()(images)["depth"], depth, rtol=1e-4, atol=1e-5)
assert "torchdpt" not in sys.modules
"""
    command = [sys.executable, "-c", code, tmp_path / "m.pt2", tmp_path / "cases.pt"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_onnx_runs_in_onnx_runtime_at_any_size(model: torchdpt.DPTModel, tmp_path: Path) -> None:
    torchdpt.export(model, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for b, h, w in SHAPES:
        images = torch.randn(b, 3, h, w)
        (depth,) = session.run(["depth"], {"images": images.numpy()})
        with torch.no_grad():
            # Other kernels, other order of sums.
            torch.testing.assert_close(torch.from_numpy(depth), model(images).depth, rtol=1e-4, atol=1e-5)


def test_static_export_and_mode(tmp_path: Path) -> None:
    model = torchdpt.DPTModel(CONFIG)
    model.fusion.eval()
    torchdpt.export(model, tmp_path / "m.pt2", size=(64, 96), dynamic=False)
    assert model.training
    assert not model.fusion.training
    images = torch.randn(1, 3, 64, 96)
    got = torch.export.load(tmp_path / "m.pt2").module()(images)["depth"]
    torch.testing.assert_close(got, model.eval()(images).depth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("m.torchscript", None, "must end in .pt2 or .onnx"),
        ("missing/m.pt2", None, "there is no folder"),
        ("m.pt2", (64, 70), "multiples of the patch size 16"),
    ],
)
def test_bad_arguments_are_named(name: str, size: tuple[int, int] | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        torchdpt.export(torchdpt.DPTModel(CONFIG), tmp_path / name, size=size)
    assert list(tmp_path.iterdir()) == []
