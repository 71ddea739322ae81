"""What a run finds: other runs in its folder, other data, damaged images, settings that do not go together."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import write_samples
from training_runs import DEPTH, batch_of, config_of, trainer_of

from torchdpt.training import Trainer, checkpoints, fit


def folder_of(path: Path, count: int) -> dict[str, Any]:
    write_samples(path, [f"{i:02d}" for i in range(count)])
    return {"type": "folder", "path": str(path)}


def records(out: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if r["kind"] == kind]


# --- the folder of the run ---


def test_another_config_does_not_take_a_folder_whose_checkpoints_are_gone(tmp_path: Path) -> None:
    fit(config_of(tmp_path, DEPTH, steps=1))
    shutil.rmtree(tmp_path / "checkpoints")
    before = (tmp_path / "final/model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"holds a run of another network: model.fields.features: 8 -> 16"):
        fit(config_of(tmp_path, DEPTH | {"features": 16}, steps=1))
    with pytest.raises(ValueError, match=r"holds a run with other settings: batch_size: 4 -> 2"):
        fit(config_of(tmp_path, DEPTH, steps=1, batch_size=2))
    assert (tmp_path / "final/model.safetensors").read_bytes() == before
    assert fit(config_of(tmp_path, DEPTH, steps=1)).finished  # the same run may begin anew


def test_run_that_failed_before_its_first_step_leaves_the_folder_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Trainer) -> None:
        raise ValueError("a label out of range")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "validate", fail)
        with pytest.raises(ValueError, match="a label out of range"):
            fit(config_of(tmp_path, DEPTH, steps=1))
    assert (tmp_path / "config.yaml").exists()
    assert fit(config_of(tmp_path, DEPTH | {"features": 16}, steps=1, batch_size=2)).finished


def hold(folder: str, ready: Any, done: Any) -> None:
    with checkpoints.alone_in(Path(folder)):
        ready.set()
        done.wait(60)


def test_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), ready, done))
    other.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match="another run is going on in this folder; set another out="):
        fit(config_of(tmp_path, DEPTH, steps=1))
    done.set()
    other.join()
    assert fit(config_of(tmp_path, DEPTH, steps=1)).finished


# --- data ---


def test_run_whose_data_changed_does_not_go_on(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", 4)
    out = tmp_path / "run"
    trainer = Trainer(config_of(out, DEPTH, train=[data], steps=4))
    trainer.step = 2
    trainer.save()
    folder_of(tmp_path / "data", 6)
    message = r"holds a run on data sets of \[4\] samples, and now they have \[6\]"
    with pytest.raises(ValueError, match=message):
        Trainer(config_of(out, DEPTH, train=[data], steps=4))
    assert Trainer(config_of(out, DEPTH, train=[data], steps=4), allow_changes=True).step == 2


def test_damaged_validation_image_is_reported_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folder_of(tmp_path / "data", 4)
    (tmp_path / "data/images/01.jpg").write_bytes(b"junk")
    with caplog.at_level(logging.WARNING, "torchdpt"):
        result = fit(config_of(tmp_path / "run", DEPTH, validation=[data], steps=1, panels=4))
    assert result.finished
    assert np.isfinite(result.validation["data"])
    assert "data: sample 1 left out" in caplog.text
    assert [r["images"] for r in records(tmp_path / "run", "validation/data")] == [3, 3]
    assert len(list((tmp_path / "run/pictures").iterdir())) == 2


def test_step_without_a_target_has_no_loss(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DEPTH)
    batch = batch_of(4)
    batch.mask[:] = False
    loss, _ = trainer.train_step(batch)
    assert math.isnan(loss)
    assert trainer.bad_steps == 1


def test_run_that_ends_with_skipped_steps_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folder_of(tmp_path / "data", 4)
    for file in (tmp_path / "data/depth").iterdir():
        np.save(file, np.zeros(np.load(file).shape))
    with caplog.at_level(logging.WARNING, "torchdpt"):
        fit(config_of(tmp_path / "run", DEPTH, train=[data], steps=2))
    assert "the last 2 of 2 steps were skipped" in caplog.text
    assert [record["loss"] for record in records(tmp_path / "run", "train")] == [None]


# --- settings ---


def test_crop_that_does_not_fit_the_patches_is_refused_at_once(tmp_path: Path) -> None:
    augmentation = {"size": [48, 48], "crop": [40, 36]}
    with pytest.raises(ValueError, match=r"augmentation.crop must be multiples of 16 for this network, got \[40, 36\]"):
        trainer_of(tmp_path, DEPTH, augmentation=augmentation)


@pytest.mark.parametrize("device", ["meta", "foo", "cuda:x"])
def test_device_that_does_not_exist_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(ValueError, match=rf"device must be auto, cpu, cuda, cuda:1, ..., got '{device}'"):
        trainer_of(tmp_path, DEPTH, device=device)
