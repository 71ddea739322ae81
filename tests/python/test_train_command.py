"""What the command `torchdpt train` says where the library raises."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml
from training_runs import DEPTH, config_of

import torchdpt_command
from torchdpt.data import DATASETS, Sample, SceneDataset


class Deadly(SceneDataset):
    """Kills the process that reads it."""

    def __getitem__(self, index: int, /) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_worker_that_is_killed_is_reported_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DATASETS, "deadly", Deadly)
    config = config_of(tmp_path / "run", DEPTH, train=[{"type": "deadly"}], workers=1)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert torchdpt_command.main(["train", str(tmp_path / "run.yaml")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("torchdpt: a process that reads data ended (DataLoader worker ")
    assert "workers=0" in lines[-1]
    assert not any("Traceback" in line for line in lines)
