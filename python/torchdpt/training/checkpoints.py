"""Checkpoints of a training run: whole or not there, checked when they are read, the newest good one found.

checkpoints/step_00001000/state.pt        what `Trainer.state` gives
checkpoints/step_00001000/manifest.json   size and SHA-256 of it
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from torchdpt.tally import rank_and_size

_log = logging.getLogger("torchdpt")


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """One run at a time in a folder; of several processes the first one sees to it.

    Raises:
        ValueError: if there is another one.
    """
    if rank_and_size()[0] != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:  # the lock ends with the process, whatever ends it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another run is going on in this folder; set another out=") from None
        except OSError as error:  # a file system without locks
            _log.warning("%s: cannot be locked (%s); see that no other run uses it", folder, error.strerror)
        yield


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Raises:
        OSError: if it cannot be written; those that are there stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{step:08d}"
    temporary = folder / f".dpt-{uuid.uuid4().hex}.tmp"
    try:
        temporary.mkdir()
        path = temporary / "state.pt"
        with open(path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        with open(temporary / "manifest.json", "w") as file:
            json.dump({path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}}, file)
            file.flush()
            os.fsync(file.fileno())
        _sync(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        _sync(folder)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter where a disk is full
        kept = _steps(folder)
        stands = f"the checkpoint of step {kept[-1]} stands" if kept else "there is no earlier checkpoint"
        cause = error if isinstance(error, OSError) else error.__context__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or error
        raise OSError(f"{final}: the checkpoint cannot be written ({reason}); {stands}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    written = _steps(folder)
    kept = [other for other in written if other <= step][-keep:]  # a later one was damaged, or taken instead
    for old in set(written).difference(kept):
        shutil.rmtree(folder / f"step_{old:08d}")
    return final


def newest(folder: Path) -> dict[str, Any] | None:
    """The state in the newest checkpoint that is whole; None if there is no checkpoint. Damaged ones are reported.

    Raises:
        ValueError: if there are checkpoints, and all are damaged: a run that began anew would take their place.
    """
    for temporary in folder.glob(".dpt-*.tmp"):  # of a process that was killed
        shutil.rmtree(temporary, ignore_errors=True)
    steps = _steps(folder)
    for step in reversed(steps):
        path = folder / f"step_{step:08d}"
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            if step == steps[0]:
                raise ValueError(
                    f"{path}: damaged ({error}), and so is each checkpoint after it; to begin anew set another out=, "
                    f"or remove {folder}"
                ) from error
            _log.warning("%s: damaged, so the one before it is taken (%s)", path, error)
    return None


def _read(path: Path) -> dict[str, Any]:
    file = path / "state.pt"
    wanted = json.loads((path / "manifest.json").read_text())[file.name]
    if file.stat().st_size != wanted["bytes"]:
        raise ValueError(f"{file.name} has {file.stat().st_size} bytes, and {wanted['bytes']} were written")
    if _digest(file) != wanted["sha256"]:
        raise ValueError(f"{file.name} is not what was written: its SHA-256 differs")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _steps(folder: Path) -> list[int]:
    names = (path.name.removeprefix("step_") for path in folder.glob("step_*"))
    return sorted(int(name) for name in names if name.isdecimal())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
