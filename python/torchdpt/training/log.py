"""What a training run says: a line of JSON for each record, TensorBoard where it is installed, pictures."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchdpt.files import open_atomically, write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger("torchdpt")

Picture = np.ndarray[Any, np.dtype[np.uint8]]


class RunLog:
    """Records of a run in `log.jsonl` and TensorBoard, pictures in `pictures/`.

    Args:
        folder: Of the run.
        step: Steps that were made: later records, of a run that was killed, are dropped; all if there are none.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self._path = folder / "log.jsonl"
        last = step or -1  # what was measured before the first step is measured again
        if self._path.exists():
            lines = [line for line in self._path.read_text().splitlines() if _is_before(line, last)]
            write_atomically(self._path, "".join(f"{line}\n" for line in lines).encode())
        self._writer: SummaryWriter | None = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            _log.info("TensorBoard is not installed: records are in %s alone", self._path)
        else:
            self._writer = SummaryWriter(folder / "tensorboard", purge_step=last + 1)

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write a record: numbers, texts, lists; NaN and infinity become null."""
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        with open(self._path, "a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._writer.add_scalar(f"{kind}/{name}", value, step)
            self._writer.flush()

    def picture(self, name: str, step: int, rows: Sequence[Sequence[Picture]]) -> None:
        """Save pictures [H, W, 3] in rows, each of one height, as one file; none without rows."""
        from PIL import Image

        strips = [np.concatenate(row, axis=1) for row in rows]
        if not strips:
            return
        width = max(strip.shape[1] for strip in strips)
        sheet = np.concatenate([np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0))) for s in strips])
        (self.folder / "pictures").mkdir(exist_ok=True)
        with open_atomically(self.folder / "pictures" / f"{name}_{step:08d}.png") as file:
            Image.fromarray(sheet).save(file, format="PNG")
        if self._writer is not None:
            self._writer.add_image(name, sheet, step, dataformats="HWC")

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Pace:
    """How fast steps are, and which part of their time is waiting for data: both as running averages."""

    def __init__(self) -> None:
        self._time = time.perf_counter()
        self._waited = 0.0
        self._step_seconds = self._wait_seconds = 0.0

    def loaded(self) -> None:
        """Called when a batch is there."""
        self._waited = time.perf_counter() - self._time

    def stepped(self) -> None:
        """Called after the step."""
        now = time.perf_counter()
        seconds, self._time = now - self._time, now
        keep = 0.9 if self._step_seconds else 0.0
        self._step_seconds = keep * self._step_seconds + (1 - keep) * seconds
        self._wait_seconds = keep * self._wait_seconds + (1 - keep) * self._waited

    def skip(self) -> None:
        """Called after what is no step: a validation, a checkpoint."""
        self._time = time.perf_counter()

    @property
    def rate(self) -> float:
        """Steps in a second."""
        return 1 / self._step_seconds

    @property
    def data_share(self) -> float:
        """Of the time, from 0 to 1."""
        return self._wait_seconds / self._step_seconds


@contextlib.contextmanager
def progress_bar(step: int, total: int, *, enabled: bool) -> Iterator[Callable[[float, float], None]]:
    """A bar on stderr; what it gives is called after each step, with the loss and images per second."""
    from tqdm import tqdm

    with tqdm(total=total, initial=step, unit="step", disable=not enabled, dynamic_ncols=True) as bar:

        def show(loss: float, rate: float) -> None:
            bar.set_postfix_str(f"loss {loss:.4f}, {rate:.1f} images/s", refresh=False)
            bar.update()

        yield show


def _is_before(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
        return False
