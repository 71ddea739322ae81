"""What tests of data sets share: tiny files."""

from __future__ import annotations

import textwrap
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from torchdpt.data import FolderDataset, Sample

RNG = np.random.default_rng(0)
H, W = 3, 4


def write_image(path: Path, height: int = H, width: int = W, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(picture).save(path, **options)
    return picture


def write_png(path: Path, values: object, dtype: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.array(values, dtype))


def write_npy(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(values, np.float32))


def write_settings(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text(textwrap.dedent(text))


def depth_of(folder: Path) -> tuple[list[list[float]], list[list[bool]], Sample]:
    sample = FolderDataset(folder)[0]
    assert sample.target is not None
    assert sample.mask is not None
    return sample.target.tolist(), sample.mask.tolist(), sample


def write_samples(folder: Path, names: list[str]) -> None:
    for name in names:
        write_image(folder / f"images/{name}.jpg")
        write_npy(folder / f"depth/{name}.npy", np.ones((H, W)))


def ids(dataset: FolderDataset) -> list[str]:
    return [files.id for files in dataset.files]
