"""Other projects on libdpt: a C++ program and a second extension, built against the installed package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchdpt

SOURCE = Path(__file__).parents[1] / "cpp" / "downstream"
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


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downstream")
    configure = ["cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [
        f"-DCMAKE_PREFIX_PATH={torchdpt.cmake_prefix_path}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    subprocess.run(configure, check=True)
    subprocess.run(["cmake", "--build", folder], check=True)
    return folder


def run_python(code: str, path: Path) -> str:
    code = f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_program_without_python_loads_runs_and_trains(build: Path, tmp_path: Path) -> None:
    torchdpt.DPTModel(CONFIG).save_pretrained(tmp_path)
    done = subprocess.run([build / "train", tmp_path], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("depth [2, 64, 96], loss ")


@pytest.mark.parametrize("device", [[], pytest.param(["cuda"], marks=pytest.mark.cuda)])
def test_program_without_python_freezes_and_loads(device: list[str], build: Path, tmp_path: Path) -> None:
    torchdpt.DPTModel(CONFIG).save_pretrained(tmp_path)
    command = [build / "freeze", tmp_path, tmp_path / "model.frozen", *device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "depth [2, 64, 96], me\n"


def test_program_reports_a_bad_folder(build: Path, tmp_path: Path) -> None:
    done = subprocess.run([build / "train", tmp_path], capture_output=True, text=True)
    assert done.returncode != 0
    assert "has no model.safetensors" in done.stderr


@pytest.mark.parametrize("order", ["torch, torchdpt, second", "torch, second, torchdpt"])
def test_second_extension_shares_one_libdpt(build: Path, order: str) -> None:
    output = run_python(
        f"""
import {order}
import json
libraries = {{line.split()[-1] for line in open("/proc/self/maps") if "libdpt" in line}}
operators = [str(s) for s in torch._C._jit_get_all_schemas() if str(s).startswith("dpt::forward(")]
print(json.dumps([sorted(libraries), operators]))
""",
        build,
    )
    libraries, operators = json.loads(output)
    assert len(libraries) == 1
    assert len(operators) == 1


def test_gradients_flow_through_both_extensions(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(build))
    import second

    model = torchdpt.DPTModel(CONFIG, dtype=torch.float64)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    tensors = [*model.reassemble.parameters(), *model.fusion.parameters()]
    theirs = model.head(second.decode(model.encoder(images), 64, 64, tensors, CONFIG.to_json())).depth
    ours = model(images).depth
    assert torch.equal(theirs, ours)
    grads = torch.autograd.grad(theirs.sum(), list(model.parameters()))
    for ours_grad, theirs_grad in zip(torch.autograd.grad(ours.sum(), list(model.parameters())), grads, strict=True):
        assert torch.equal(ours_grad, theirs_grad)
    assert any(grad.abs().max() > 0 for grad in grads[:4])
