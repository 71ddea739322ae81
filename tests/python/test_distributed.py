"""Training on several processes with PyTorch's own means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import RESNET

from torchdpt import DPTModel

SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = SCRIPTS / "train_ddp.py"


def torchrun(processes: int, script: Path, out: Path) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, script, out], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(processes: int, out: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    lines = torchrun(processes, SCRIPT, out).splitlines()
    return [float(line.split()[-1]) for line in lines], torch.load(out)


def test_script_is_short() -> None:
    lines = [line for line in SCRIPT.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 30


def test_ddp_of_two_processes_equals_one(tmp_path: Path) -> None:
    losses, alone = train(1, tmp_path / "one.pt")
    assert losses[-1] < losses[0]
    _, together = train(2, tmp_path / "two.pt")
    for name, tensor in alone.items():
        # The mean over the batch is taken in another order; six steps of SGD keep that in float32's last digits.
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float | str]:
    """Errors of the gradients of two processes, for each way of training in parallel."""
    out = tmp_path_factory.mktemp("parallel") / "errors.json"
    torchrun(2, SCRIPTS / "parallel_gradients.py", out)
    return json.loads(out.read_text())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("way", ["ddp", "ddp_compiled", "fsdp_root", "fsdp_resharded", "fsdp_stages"])
def test_gradients_of_two_processes_equal_those_of_one(
    parallel: dict[str, float | str], way: str, checkpointing: bool
) -> None:
    # float64, sums in another order; a gradient that was not reduced is off by 1e-1.
    assert parallel[f"{way} {checkpointing}"] <= 1e-12


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
def test_sharding_single_blocks_is_refused(parallel: dict[str, float | str], checkpointing: bool) -> None:
    message = str(parallel[f"fsdp_blocks {checkpointing}"])
    assert message.startswith("`encoder.blocks.0` has a hook")
    assert "model.fusion and model.head, and so does fully_shard" in message


@pytest.fixture(scope="module")
def batch_norm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("batch_norm") / "errors.json"
    torchrun(2, SCRIPTS / "synchronized_batch_norm.py", out)
    return json.loads(out.read_text())


@pytest.mark.parametrize("way", ["eager", "compiled", "uneven"])
@pytest.mark.parametrize("what", ["outputs", "gradients", "statistics"])
def test_synchronised_batch_norm_of_two_processes_equals_one(
    batch_norm: dict[str, dict[str, Any]], way: str, what: str
) -> None:
    assert batch_norm[way][what] <= 1e-9  # float64, sums in another order
    assert batch_norm["not synchronised"][what] >= 1e-3


def test_synchronised_statistics_of_one_value_stay_finite(batch_norm: dict[str, dict[str, Any]]) -> None:
    got = batch_norm["one value"]
    assert got["finite"]
    assert got["mean moved"]
    # A tenth of the way to the variance of one value, zero.
    assert got["variance"] == pytest.approx([0.9] * len(got["variance"]), abs=1e-12)


def test_synchronised_statistics_of_no_value_stay_as_they_are(batch_norm: dict[str, dict[str, Any]]) -> None:
    assert batch_norm["no value"] == {"finite": True, "mean moved": False, "variance": [1.0]}


def test_group_of_one_process_shares_nothing(batch_norm: dict[str, dict[str, Any]]) -> None:
    assert batch_norm["alone"]["group"] == ""
    assert "group must be a process group that this process is in" in batch_norm["alone"]["not a member"]


def test_synchronised_batch_norm_wants_a_process_group() -> None:
    with pytest.raises(ValueError, match="there is no process group; call torch"):
        DPTModel("dpt_tiny", device="meta").synchronize_batch_norm()


@pytest.mark.parametrize("group", [3, "nope", [0, 1]])
def test_what_is_no_process_group_is_refused(group: object) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"group must be a process group .* or None for all processes, got"):
            DPTModel("dpt_tiny", device="meta").synchronize_batch_norm(group)
    finally:
        torch.distributed.destroy_process_group()


def test_name_of_a_group_that_is_not_there_is_refused() -> None:
    model = DPTModel(RESNET.replace(batch_norm_group="nope")).train()
    with pytest.raises(ValueError, match=r"batch_norm_group: there is no process group 'nope'.*synchronize_batch_norm"):
        model(torch.rand(2, 3, 64, 64))
