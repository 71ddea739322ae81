"""Runs that are killed, or told to stop, go on to the same bits as those that are left alone."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import config_of, differences, finish, kill, launch, train, trainer_of

from torchdpt.training import checkpoints, fit

STEPS = 12


def values_of(out: Path, **changes: Any) -> dict[str, Any]:
    two = [{"type": "scenes", "height": 32, "width": 32, "name": name} for name in "ab"]
    options = {"ema": 0.9, "save_every": 2, "train": two, "mixing": {"method": "pareto", "every": 2}}
    return config_of(out, **options | changes).to_dict()


def outcome(out: Path) -> dict[str, Any]:
    state = checkpoints.newest(out / "checkpoints")
    assert state is not None
    assert state["step"] == STEPS
    files = {path.name: path.read_bytes() for path in sorted((out / "final").iterdir())}
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    log = [{key: r[key] for key in ("step", "loss", "gradient_norm", "weight_a", "bad_steps")} for r in records]
    del state["config"]["out"], state["config"]["workers"]
    return {"state": state, "files": files, "log": log}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What one process and two come to if they are left alone."""
    found = {}
    for count in (1, 2):
        out = tmp_path_factory.mktemp("alone")
        finish(launch(count, train, values_of(out)))
        found[count] = outcome(out)
    assert set(found[1]["state"]) >= {"model", "averaged", "optimizer", "data_weights", "step"}
    assert any(name.endswith("running_var") for name in found[1]["state"]["averaged"])
    assert found[1]["files"]["model.safetensors"]
    return found


def alive(processes: list[BaseProcess]) -> bool:
    return all(process.exitcode is None for process in processes)


def train_with_kills(out: Path, count: int, kills: int, rng: np.random.Generator) -> int:
    """Train to the end, killed at most so many times; every other time in the middle of writing. Returns how often."""
    done = 0
    folder = out / "checkpoints"
    while True:
        processes = launch(count, train, values_of(out))
        if done < kills:
            while alive(processes) and not any(folder.glob("step_*")):
                time.sleep(0.002)
            if done % 2:
                pause = time.monotonic() + rng.uniform(0, 0.5)
                while alive(processes) and (time.monotonic() < pause or not any(folder.glob(".dpt-*.tmp"))):
                    time.sleep(0.0005)
            else:
                time.sleep(rng.uniform(0, 1))
            if alive(processes):
                kill(processes)
                assert {process.exitcode for process in processes} == {-signal.SIGKILL}
                done += 1
                continue
        finish(processes)
        return done


def assert_kills_change_nothing(folder: Path, alone: dict[str, Any], count: int, kills: int) -> None:
    rng = np.random.default_rng(count)
    done = 0
    for number in range(10 * kills):
        out = folder / str(number)
        done += train_with_kills(out, count, min(5, kills - done), rng)
        assert differences(outcome(out), alone) == []
        if done >= kills:
            break
    assert done == kills


@pytest.mark.parametrize("count", [1, 2], ids=["one process", "two processes"])
def test_killed_run_comes_to_the_same_bits(tmp_path: Path, alone: dict[int, dict[str, Any]], count: int) -> None:
    assert_kills_change_nothing(tmp_path, alone[count], count, kills=5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2], ids=["one process", "two processes"])
def test_run_killed_fifty_times_comes_to_the_same_bits(
    tmp_path: Path, alone: dict[int, dict[str, Any]], count: int
) -> None:
    assert_kills_change_nothing(tmp_path, alone[count], count, kills=50)


@pytest.mark.parametrize(
    ("number", "count", "workers"),
    [
        (signal.SIGTERM, 1, 0),
        (signal.SIGINT, 1, 0),
        (signal.SIGTERM, 1, 1),
        (signal.SIGINT, 1, 1),
        (signal.SIGTERM, 2, 0),
    ],
)
def test_signal_saves_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, alone: dict[int, dict[str, Any]], number: signal.Signals, count: int, workers: int
) -> None:
    result = tmp_path / "result.json"
    # At a step that is not saved otherwise, to the last process alone; its workers, if it has some, get it as well.
    stop = (int(number), 4, count - 1)
    values = values_of(tmp_path / "run", workers=workers)
    finish(launch(count, train, values, stop, workers > 0, str(result)))
    assert json.loads(result.read_text()) == {"step": 5, "finished": False}
    assert (tmp_path / "run/checkpoints/step_00000005").is_dir()
    assert not (tmp_path / "run/final").exists()
    finish(launch(count, train, values, None, False, str(result)))
    assert json.loads(result.read_text()) == {"step": STEPS, "finished": True}
    assert differences(outcome(tmp_path / "run"), alone[count]) == []


def test_damaged_checkpoint_costs_steps_and_no_bits(tmp_path: Path, alone: dict[int, dict[str, Any]]) -> None:
    out = tmp_path / "run"
    finish(launch(1, train, values_of(out), (int(signal.SIGTERM), 6, 0)))
    newest = out / "checkpoints/step_00000007/state.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    finish(launch(1, train, values_of(out)))
    assert differences(outcome(out), alone[1]) == []


# --- signals, in this process ---


def test_second_interrupt_ends_the_run_at_once_and_handlers_come_back(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with trainer._signals():
        signal.raise_signal(signal.SIGINT)
        assert trainer._signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_run_in_another_thread_goes_without_signals(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        result = pool.submit(fit, config_of(tmp_path, steps=2)).result()
    assert (result.step, result.finished) == (2, True)
