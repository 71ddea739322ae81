"""What tests of the command share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from networks import VIT
from PIL import Image

from torchdpt import results

CONFIG = VIT.replace(head_features=32)  # as in transformers

RNG = np.random.default_rng(0)


def write_photograph(path: Path, height: int = 40, width: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def files(folder: Path) -> set[str]:
    """The results in a folder."""
    paths = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return paths - {results.MANIFEST}
