"""What a training run says, and the devices and processes that it runs on."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchdpt.tally import rank_and_size
from torchdpt.training import log
from torchdpt.training.distributed import device_of, processes
from torchdpt.training.log import Pace, RunLog, progress_bar


@pytest.fixture(autouse=True)
def _no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it were not installed


def records(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_records_are_lines_of_json_without_nan(tmp_path: Path) -> None:
    run = RunLog(tmp_path, 0)
    run.record("train", 5, {"loss": 0.5, "bad": math.nan, "worse": -math.inf, "name": "a"})
    run.record("validation/a", 5, {"headline": 2})
    run.close()
    text = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert records(tmp_path) == [
        {"kind": "train", "step": 5, "loss": 0.5, "bad": None, "worse": None, "name": "a"},
        {"kind": "validation/a", "step": 5, "headline": 2},
    ]


@pytest.mark.parametrize("rest", ["", '{"kind": "train", "st', "\n", "7\n", '{"kind": "train"}\n', "\x00\x00\n"])
def test_run_that_goes_on_drops_what_came_after_its_checkpoint(tmp_path: Path, rest: str) -> None:
    run = RunLog(tmp_path, 0)
    for step in (2, 4, 6):
        run.record("train", step, {"loss": float(step)})
    run.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(rest)
    RunLog(tmp_path, 4).record("train", 5, {"loss": 5.0})
    assert [record["step"] for record in records(tmp_path)] == [2, 4, 5]


def test_run_that_begins_anew_begins_its_log(tmp_path: Path) -> None:
    RunLog(tmp_path, 0).record("validation/a", 0, {"headline": 1.0})
    RunLog(tmp_path, 0).record("validation/a", 0, {"headline": 2.0})
    assert [record["headline"] for record in records(tmp_path)] == [2.0]


def test_pictures_lie_in_rows_filled_up_with_black(tmp_path: Path) -> None:
    run = RunLog(tmp_path, 0)
    red, blue = (np.full((4, 6, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    run.picture("scenes", 30, [[red, blue], [blue[:2]]])
    with Image.open(tmp_path / "pictures/scenes_00000030.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (6, 12, 3)
    assert (sheet[:4, :6] == red).all()
    assert (sheet[:4, 6:] == blue).all()
    assert (sheet[4:, :6] == blue[:2]).all()
    assert (sheet[4:, 6:] == 0).all()


def test_tensorboard_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunLog(tmp_path, 0)
    run.record("train", 3, {"loss": 0.25, "name": "a"})
    run.record("train", 6, {"loss": 0.125})
    run.close()
    RunLog(tmp_path, 3).close()  # goes on from there
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.25)]


def test_pace_leaves_out_what_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(log.time, "perf_counter", lambda: now)
    pace = Pace()
    for _ in range(5):
        now += 0.5
        pace.loaded()
        now += 1.5
        pace.stepped()
        now += 100
        pace.skip()
    assert pace.rate == pytest.approx(0.5)
    assert pace.data_share == pytest.approx(0.25)


def test_progress_bar_begins_where_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(3, 5, enabled=True) as show:
        show(0.25, 8.0)
        show(0.125, 8.0)
    assert "5/5" in capsys.readouterr().err
    with progress_bar(0, 5, enabled=False) as show:
        show(0.25, 8.0)
    assert capsys.readouterr().err == ""


def test_one_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu"):
        assert not torch.distributed.is_initialized()
        assert rank_and_size() == (0, 1)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device must be auto"):
        device_of("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="cuda:3 is not there; use device=cpu"):
        device_of("cuda:3")
