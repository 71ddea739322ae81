"""Checkpoints of a training run: whole or not there, whatever happens to the disk."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from torchdpt.training import checkpoints


def state(step: int) -> dict[str, Any]:
    return {"step": step, "model": {"weight": torch.arange(1000.0) + step}, "best": None, "headlines": {"a": 0.5}}


def save(folder: Path, *steps: int, keep: int = 10) -> None:
    for step in steps:
        checkpoints.save(folder, step, state(step), keep=keep)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(folder: Path) -> int:
    found = checkpoints.newest(folder)
    assert found is not None
    return int(found["step"])


def test_newest_is_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path, 3, 12)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert torch.equal(found.pop("model")["weight"], torch.arange(1000.0) + 12)
    assert found == {"step": 12, "best": None, "headlines": {"a": 0.5}}


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "nowhere") is None
    assert checkpoints.newest(tmp_path) is None


def test_newest_ones_are_kept(tmp_path: Path) -> None:
    save(tmp_path, *range(1, 8), keep=3)
    assert names(tmp_path) == ["step_00000005", "step_00000006", "step_00000007"]
    save(tmp_path, 8, keep=1)
    assert names(tmp_path) == ["step_00000008"]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_saved_is_kept_beside_a_later_one_that_is_damaged(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 10, 20)
    (tmp_path / "step_00000020" / "manifest.json").unlink()
    save(tmp_path, 15, keep=keep)
    assert newest_step(tmp_path) == 15
    assert names(tmp_path) == ["step_00000010", "step_00000015"][-keep:]


def test_saving_again_replaces(tmp_path: Path) -> None:
    save(tmp_path, 4, 5)
    checkpoints.save(tmp_path, 5, state(5) | {"best": 0.25}, keep=10)
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert found["best"] == 0.25
    assert names(tmp_path) == ["step_00000004", "step_00000005"]


# --- damage ---


def flipped(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def assert_falls_back(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "torchdpt"):
        assert newest_step(folder) == 1
    assert [record.getMessage().split(": damaged")[0] for record in caplog.records] == [str(folder / "step_00000002")]


def test_no_flipped_bit_goes_unseen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1, 2)
    rng = np.random.default_rng(0)
    path = tmp_path / "step_00000002" / "state.pt"
    for bit in rng.integers(8 * path.stat().st_size, size=50).tolist():
        flipped(path, bit)
        assert_falls_back(tmp_path, caplog)
        flipped(path, bit)
    assert newest_step(tmp_path) == 2


def test_flipped_bits_of_the_manifest_neither_hide_the_checkpoint_before_nor_stop_the_run(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "step_00000002" / "manifest.json"
    for bit in range(8 * path.stat().st_size):
        flipped(path, bit)
        assert newest_step(tmp_path) in (1, 2)  # 2 if only a space was changed, say
        flipped(path, bit)


@pytest.mark.parametrize("text", ["", "{}", "[]", "7", '{"state.pt": 7}', '{"state.pt": {}}', '{"other": {}}'])
def test_manifest_of_another_shape_is_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step_00000002" / "manifest.json").write_text(text)
    assert_falls_back(tmp_path, caplog)


@pytest.mark.parametrize("length", [0, 1, 0.5, -1])
def test_shortened_file_is_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture, length: float) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "step_00000002" / "state.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * length) if length == 0.5 else int(length)])
    assert_falls_back(tmp_path, caplog)


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_missing_file_is_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step_00000002" / name).unlink()
    assert_falls_back(tmp_path, caplog)


def test_two_damaged_checkpoints_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1, 2, 3)
    for step in (2, 3):
        flipped(tmp_path / f"step_{step:08d}" / "state.pt", 4000)
    assert newest_step(tmp_path) == 1
    assert len(caplog.records) == 2


def test_damaged_checkpoints_alone_are_no_beginning(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in tmp_path.glob("*/state.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"step_00000001: damaged \(.* 0 bytes.*\), and so is each .* to begin anew"):
        checkpoints.newest(tmp_path)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / ".dpt-0123.tmp")
    assert newest_step(tmp_path) == 1
    assert names(tmp_path) == ["step_00000001"]


# --- the disk ---


@pytest.mark.parametrize("file", [1, 2])
def test_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int) -> None:
    save(tmp_path, 1)
    synced: list[int] = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError,
        match=r"step_00000002: .*cannot be written \(No space left on device\); the checkpoint of step 1 stands",
    ):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert names(tmp_path) == ["step_00000001"]
    assert newest_step(tmp_path) == 1


def test_file_that_cannot_grow_is_an_error_that_says_why(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(OSError, match=r"\(File too large\); the checkpoint of step 1 stands"):
            checkpoints.save(tmp_path, 2, {"weight": torch.zeros(100_000)}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["step_00000001"]
    assert newest_step(tmp_path) == 1


def test_first_checkpoint_that_fails_says_that_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(OSError, match=r"Permission denied.*there is no earlier checkpoint"):
        save(tmp_path, 2)
    assert names(tmp_path) == []


def test_all_is_on_the_disk_before_the_name_and_the_name_before_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    done: list[str] = []
    rename, fsync, rmtree = os.rename, os.fsync, shutil.rmtree

    def note_fsync(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def note_rename(source: Path, target: Path) -> None:
        done.append(f"rename {source.name} {target.name}")
        rename(source, target)

    def note_rmtree(path: Path, **options: Any) -> None:
        if path.name.startswith("step"):
            done.append(f"remove {path.name}")
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    monkeypatch.setattr(shutil, "rmtree", note_rmtree)
    save(tmp_path, 2, keep=1)
    temporary = done[3].split()[1]
    assert done == [
        "sync state.pt",
        "sync manifest.json",
        f"sync {temporary}",
        f"rename {temporary} step_00000002",
        f"sync {tmp_path.name}",
        "remove step_00000001",
    ]


def test_manifest_holds_size_and_digest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    manifest = json.loads((tmp_path / "step_00000001" / "manifest.json").read_text())
    assert manifest["state.pt"]["bytes"] == (tmp_path / "step_00000001" / "state.pt").stat().st_size
    assert len(bytes.fromhex(manifest["state.pt"]["sha256"])) == 32
