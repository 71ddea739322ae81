"""The dataset.yaml files of docs/reproduce.md, on folders of a few files in the layouts that they are for."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image

from torchdpt.data import FolderDataset
from torchdpt.protocols import PROTOCOLS
from torchdpt.training import TrainConfig

TEXT = (Path(__file__).parents[2] / "docs/reproduce.md").read_text()
SETTINGS = {yaml.safe_load(block)["name"]: block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)}

# 2 x 3 pixels: the first unknown, the second the nearest (a disparity of 0 that is known: the farthest).
DISPARITY = np.array([[0, 4, 2], [1, 1, 1]], np.uint16)
DEPTH = np.array([[0, 1, 2], [4, 4, 4]], np.uint16)
MASK = np.array([[0, 255, 255], [255, 255, 255]], np.uint8)
FILES = {
    "diml": {"HR/room/color/a_c.png": None, "HR/room/depth_filled/a_depth_filled.png": DEPTH},
    "movies": {"images/m/a.png": None, "disparity/m/a.png": DISPARITY, "masks/m/a.png": MASK},
    "megadepth": {"0001/dense0/imgs/a.jpg": None, "0001/dense0/depths/a.h5": DEPTH.astype(np.float32)},
    "wsvd": {"images/a.png": None, "disparity/a.png": DISPARITY, "masks/a.png": MASK},
    "apolloscape": {
        "stereo_train_001/camera_5/a.jpg": None,
        "stereo_train_001/camera_6/b.jpg": None,
        "stereo_train_001/disparity/a.png": DISPARITY,
    },
    "irs": {
        "Home/r/l_1.png": None,
        "Home/r/r_1.png": None,
        "Home/r/d_1.npy": DISPARITY.astype(np.float32),
    },
    "tartanair": {
        "sea/Easy/P001/image_left/000000_left.png": None,
        "sea/Easy/P001/depth_left/000000_left_depth.npy": DEPTH.astype(np.float32),
    },
    "sintel": {"final/alley/frame_0001.png": None, "depth/alley/frame_0001.dpt": DEPTH.astype(np.float32)},
    "eth3d": {
        "pipes/images/dslr_images/a.JPG": None,
        "pipes/ground_truth_depth/dslr_images/a.JPG": None,
        "pipes/ground_truth_depth/dslr_images/a.npy": np.where(DEPTH > 0, DEPTH, np.inf).astype(np.float32),
    },
    "tum": {"images/a.png": None, "depth/a.npy": DEPTH.astype(np.float32)},
}
LISTS = {"megadepth": "0001/0/a", "tartanair": "sea/Easy/P001/image_left/000000_left.png"}


def write(path: Path, numbers: np.ndarray | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if numbers is None:
        Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save(path)
    elif path.suffix == ".npy":
        np.save(path, numbers)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["depth"] = numbers
    elif path.suffix == ".dpt":
        path.write_bytes(b"PIEH" + np.array([3, 2], "<i4").tobytes() + numbers.astype("<f4").tobytes())
    else:
        Image.fromarray(numbers).save(path)


@pytest.mark.parametrize("name", FILES)
def test_settings_read_the_layout(name: str, tmp_path: Path) -> None:
    for file, numbers in FILES[name].items():
        write(tmp_path / file, numbers)
    (tmp_path / "dataset.yaml").write_text(SETTINGS[name])
    if name in LISTS:
        (tmp_path / "train.txt").write_text(LISTS[name])
    dataset = FolderDataset(tmp_path, split="train" if name in LISTS else None)
    assert dataset.name == name
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample.unit == ("metre" if name in ("sintel", "eth3d", "tum") else "relative")
    # All samples are of one scene: inverse depth 4 : 2 : 1, the first pixel unknown.
    assert sample.mask.tolist() == [[False, True, True], [True, True, True]]
    inverse = sample.inverse_depth()
    assert (inverse / inverse.max()).tolist() == [[0, 1, 0.5], [0.25, 0.25, 0.25]]


def test_settings_of_pascal_context(tmp_path: Path) -> None:
    write(tmp_path / "images/a.jpg", None)
    write(tmp_path / "labels/a.png", np.array([[0, 1, 2], [59, 59, 59]], np.uint8))
    (tmp_path / "dataset.yaml").write_text(SETTINGS["pascal_context"])
    (tmp_path / "val.txt").write_text("a.jpg\n")
    dataset = FolderDataset(tmp_path, split="val")
    assert dataset[0].labels.tolist() == [[255, 0, 1], [58, 58, 58]]
    assert len(dataset.classes) == 59


def test_every_folder_of_the_recipes_has_settings() -> None:
    assert SETTINGS.keys() == FILES.keys() | {"pascal_context"}
    mixed = {data.options["name"] for data in TrainConfig.load("mix6").train if data.type == "folder"}
    assert mixed == {"diml", "movies", "megadepth", "wsvd", "apolloscape", "irs", "tartanair"}


def test_every_protocol_and_test_that_is_named_exists() -> None:
    named = re.findall(r"--protocol (\S+)", TEXT)
    assert {name for name in named if name != "P"} <= PROTOCOLS.keys()
    tests = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    for name in re.findall(r"`(test_\w+)(\*?)`", TEXT):
        assert any(test == name[0] or (name[1] and test.startswith(name[0])) for test in tests), name
