"""torchdpt.data.FolderDataset: what is paired with what, and what numbers become."""

from __future__ import annotations

import math
import re
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from data_files import H, W, depth_of, ids, write_image, write_npy, write_png, write_samples, write_settings

from torchdpt.classes import ADE20K
from torchdpt.data import FolderDataset

RNG = np.random.default_rng(0)


# --- without dataset.yaml ---


def test_images_depth_and_labels_of_one_name_belong_together(tmp_path: Path) -> None:
    pictures = {}
    for name in ("b", "sub/a", "sub/deeper/c"):
        pictures[name] = write_image(tmp_path / f"images/{name}.png")
        write_npy(tmp_path / f"depth/{name}.npy", np.full((H, W), len(name)))
        write_png(tmp_path / f"labels/{name}.png", np.full((H, W), len(name) + 1), np.uint8)
    (tmp_path / "images/sub/.hidden.jpg").write_bytes(b"")
    (tmp_path / "images/notes.txt").write_bytes(b"")
    dataset = FolderDataset(tmp_path)
    assert len(dataset) == 3
    assert [sample.id for sample in (dataset[i] for i in range(3))] == ["b", "sub/a", "sub/deeper/c"]
    for sample in (dataset[i] for i in range(3)):
        assert sample.dataset == tmp_path.name
        assert np.array_equal(sample.image, pictures[sample.id])
        assert sample.target is not None
        assert (sample.target == len(sample.id)).all()
        assert sample.mask is not None
        assert sample.mask.all()
        assert sample.labels is not None
        assert (sample.labels == len(sample.id) + 1).all()
        assert (sample.kind, sample.unit) == ("depth", "metre")
    with pytest.raises(IndexError):
        dataset[3]
    with pytest.raises(IndexError):
        dataset[-1]
    assert FolderDataset(tmp_path, name="mine")[0].dataset == "mine"


def test_labels_alone_and_255_is_no_class(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.jpg")
    write_png(tmp_path / "labels/a.png", [[0, 1, 254, 255]] * H, np.uint8)
    sample = FolderDataset(tmp_path)[0]
    assert sample.target is None
    assert sample.labels is not None
    assert sample.labels[0].tolist() == [0, 1, 254, 255]


def test_16_bit_png_without_scale_is_relative_and_exact(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write_png(tmp_path / "depth/a.png", [[0, 1, 256, 65535], [2, 3, 4, 5], [0, 0, 0, 0]])
    target, mask, sample = depth_of(tmp_path)
    assert target == [[0, 1, 256, 65535], [2, 3, 4, 5], [0, 0, 0, 0]]
    assert mask == [[False, True, True, True], [True] * 4, [False] * 4]
    assert (sample.kind, sample.unit) == ("depth", "relative")


def test_floats_are_metres_and_what_is_no_depth_is_unknown(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png", 1, 6)
    write_npy(tmp_path / "depth/a.npy", [[0, math.nan, math.inf, -math.inf, -1, 0.1]])
    target, mask, sample = depth_of(tmp_path)
    assert target == [[0, 0, 0, 0, 0, np.float32(0.1)]]
    assert mask == [[False] * 5 + [True]]
    assert sample.unit == "metre"


# --- dataset.yaml ---


def test_the_example_of_the_docstring(tmp_path: Path) -> None:
    text = textwrap.dedent(re.search(r"\n\n( +name: rooms.*?)\n\n", FolderDataset.__doc__ or "", re.DOTALL)[1])  # type: ignore[index]
    settings = yaml.safe_load(text)
    assert settings.keys() == {"name", "images", "depth", "labels", "splits"}
    settings["depth"]["files"] = "depth/*.npz"
    write_settings(tmp_path, yaml.safe_dump(settings))
    for name in "ab":
        write_image(tmp_path / f"images/{name}.png", 1, 5)
        (tmp_path / "depth").mkdir(exist_ok=True)
        np.savez(tmp_path / f"depth/{name}.npz", depth=np.array([[0, 65535, 65534, 1, 2500]], np.uint16), x=0)
        write_png(tmp_path / f"valid/{name}.png", [[1, 1, 1, 0, 255]], np.uint8)
        write_png(tmp_path / f"labels/{name}.png", [[0, 1, 2, 255, 1]], np.uint8)
    for split, name in (("train", "a"), ("val", "b")):
        (tmp_path / "lists").mkdir(exist_ok=True)
        (tmp_path / f"lists/{split}.txt").write_text(f"{name}\n")
        dataset = FolderDataset(tmp_path, split=split)
        assert (dataset.name, len(dataset), dataset[0].id) == ("rooms", 1, name)
        assert dataset.classes is not None
        assert dataset.classes.names == ("wall", "floor")
        sample = dataset[0]
        assert sample.target is not None
        assert sample.mask is not None
        assert sample.labels is not None
        assert sample.target.tolist() == [[0, 0, math.inf, 0, 2.5]]
        assert sample.mask.tolist() == [[False, False, True, False, True]]
        assert sample.labels.tolist() == [[255, 0, 1, 255, 0]]
        assert sample.unit == "metre"


@pytest.mark.parametrize(
    ("scale", "value"), [("0.001", 0.001), ("1/256", 1 / 256), ("1e-3", 0.001), ("2", 2), ("'1/5000'", 1 / 5000)]
)
def test_scale_is_metres_per_count(scale: str, value: float, tmp_path: Path) -> None:
    write_settings(tmp_path, f"depth: {{scale: {scale}}}")
    write_image(tmp_path / "images/a.png", 1, 3)
    write_png(tmp_path / "depth/a.png", [[0, 777, 65535]])
    target, _, sample = depth_of(tmp_path)
    assert target == [[0, np.float32(777 * value), np.float32(65535 * value)]]
    assert sample.unit == "metre"


def test_sparse_lidar_is_known_where_it_is_not_0(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {scale: 1/256}")
    write_image(tmp_path / "images/a.png", 50, 60)
    points = np.zeros((50, 60), np.uint16)
    points[RNG.integers(0, 50, 30), RNG.integers(0, 60, 30)] = 2560
    write_png(tmp_path / "depth/a.png", points)
    sample = FolderDataset(tmp_path)[0]
    assert sample.target is not None
    assert sample.mask is not None
    assert np.array_equal(sample.mask, points > 0)
    assert sample.target.unique().tolist() == [0, 10]


def test_inverse_depth_8_bits_with_its_sky_at_0(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {kind: inverse_depth, invalid: [255], sky: 0}")
    write_image(tmp_path / "images/a.png", 1, 4)
    write_png(tmp_path / "depth/a.png", [[0, 1, 254, 255]], np.uint8)
    target, mask, sample = depth_of(tmp_path)
    assert target == [[0, 1, 254, 0]]
    assert mask == [[True, True, True, False]]
    assert (sample.kind, sample.unit) == ("inverse_depth", "relative")


def test_metric_disparity_and_its_sky(tmp_path: Path) -> None:
    # A focal length of 320 pixels and a baseline of 0.25 m: disparity / 80 is 1 / depth.
    write_settings(tmp_path, "depth: {kind: inverse_depth, unit: metre, scale: 1/80, sky: 1000}")
    write_image(tmp_path / "images/a.png", 1, 4)
    write_npy(tmp_path / "depth/a.npy", [[0, 8, 40, 1000]])
    target, mask, sample = depth_of(tmp_path)
    assert target == [[0, np.float32(0.1), 0.5, 0]]
    assert mask == [[False, True, True, True]]
    assert sample.depth().tolist() == [[0, 10, 2, math.inf]]


def test_depth_whose_sky_is_0(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {scale: 1/1000, invalid: [65535], sky: 0}")
    write_image(tmp_path / "images/a.png", 1, 3)
    write_png(tmp_path / "depth/a.png", [[0, 2000, 65535]], np.uint16)
    target, mask, _ = depth_of(tmp_path)
    assert target == [[math.inf, 2, 0]]
    assert mask == [[True, True, False]]


def test_infinity_can_be_sky(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {sky: .inf}")
    write_image(tmp_path / "images/a.png", 1, 3)
    write_npy(tmp_path / "depth/a.npy", [[math.inf, 2, math.nan]])
    target, mask, _ = depth_of(tmp_path)
    assert target == [[math.inf, 2, 0]]
    assert mask == [[True, True, False]]


def test_hdf5_with_a_key(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {key: gt/depth}")
    write_image(tmp_path / "images/a.png", 1, 2)
    (tmp_path / "depth").mkdir()
    with h5py.File(tmp_path / "depth/a.h5", "w") as file:
        file["gt/depth"], file["gt/other"] = np.array([[1.5, 0]]), 1
    assert depth_of(tmp_path)[0] == [[1.5, 0]]


def test_patterns_pair_by_what_their_stars_stand_for(tmp_path: Path) -> None:
    write_settings(
        tmp_path,
        """
        images: "**/color/*_c.png"
        depth: {files: "**/depth_filled/*_depth_filled.png", scale: 1/1000}
        """,
    )
    for i, name in enumerate(("HR/hall/{}/1", "{}/1", "LR/hall [2]/{}/2")):
        write_image(tmp_path / f"{name.format('color')}_c.png")
        write_image(tmp_path / f"{name.format('color')}_other.png")
        write_png(tmp_path / f"{name.format('depth_filled')}_depth_filled.png", np.full((H, W), 1000 + i))
    dataset = FolderDataset(tmp_path)
    assert [files.id for files in dataset.files] == ["1", "HR/hall/1", "LR/hall [2]/2"]
    found = [float(dataset[i].depth()[0, 0]) for i in range(3)]
    assert found == [np.float32(1.001), 1.0, np.float32(1.002)]


def test_a_star_at_the_end_leaves_the_ending_out(tmp_path: Path) -> None:
    write_settings(tmp_path, "{images: 'rgb/*/*', depth: 'd/*/*'}")
    write_image(tmp_path / "rgb/x/a.b.jpg")
    write_npy(tmp_path / "d/x/a.b.npy", np.ones((H, W)))
    assert FolderDataset(tmp_path)[0].id == "x/a.b"


@pytest.mark.parametrize(("classes", "names"), [("3", 3), ("[a, b, c]", 3), ("ADE20K", 150), ("Pascal Context", 59)])
def test_classes(classes: str, names: int, tmp_path: Path) -> None:
    write_settings(tmp_path, f"labels: {{files: labels, first: 1, ignore: [], classes: {classes}}}")
    write_image(tmp_path / "images/a.png", 1, 3)
    write_png(tmp_path / "labels/a.png", [[0, 1, names]], np.uint8)
    dataset = FolderDataset(tmp_path)
    assert dataset.classes is not None
    assert len(dataset.classes) == names
    assert (dataset.classes == ADE20K) == (classes == "ADE20K")
    labels = dataset[0].labels
    assert labels is not None
    assert labels.tolist() == [[255, 0, names - 1]]
    write_png(tmp_path / "labels/a.png", [[0, 1, names + 1]], np.uint8)
    message = rf"labels/a.png: label {names + 1}, and those of {names} classes are 1 to {names}"
    with pytest.raises(ValueError, match=message):
        dataset[0]


# --- splits ---


def test_list_files_give_the_samples_of_a_split(tmp_path: Path) -> None:
    write_samples(tmp_path, ["a", "sub/b.x", "c"])
    (tmp_path / "train.txt").write_text("# the best\n\nsub/b.x\nimages/c.jpg\n")
    (tmp_path / "val.txt").write_text("a.jpg\n")
    assert ids(FolderDataset(tmp_path, split="train")) == ["sub/b.x", "c"]
    assert ids(FolderDataset(tmp_path, split="val")) == ["a"]
    assert ids(FolderDataset(tmp_path)) == ["a", "c", "sub/b.x"]


def test_sub_folders_give_the_samples_of_a_split(tmp_path: Path) -> None:
    write_samples(tmp_path, ["train/a", "val/b", "training/c"])
    assert ids(FolderDataset(tmp_path, split="train")) == ["train/a"]
    with pytest.raises(ValueError, match=r"there is no split 'vale': .*; did you mean 'val'\?"):
        FolderDataset(tmp_path, split="vale")


def test_folders_named_for_a_split(tmp_path: Path) -> None:
    write_settings(tmp_path, "{images: '{split}/rgb', depth: {files: '{split}/z', mask: '{split}/m'}}")
    for split in ("train", "test"):
        write_image(tmp_path / f"{split}/rgb/{split}.jpg")
        write_npy(tmp_path / f"{split}/z/{split}.npy", np.ones((H, W)))
        write_png(tmp_path / f"{split}/m/{split}.png", np.ones((H, W)), np.uint8)
    assert ids(FolderDataset(tmp_path, split="test")) == ["test"]
    with pytest.raises(ValueError, match=r"'\{split\}/\w+' differs from split to split; say which one"):
        FolderDataset(tmp_path)


# --- as a data set ---


def test_workers_give_the_same_samples(tmp_path: Path) -> None:
    write_samples(tmp_path, [f"{i}" for i in range(6)])
    dataset = FolderDataset(tmp_path)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    for i, sample in enumerate(loader):
        assert sample.id == dataset[i].id
        assert torch.equal(sample.image, dataset[i].image)


def test_many_files_are_listed_without_being_read(tmp_path: Path) -> None:
    for part, ending in (("images", "jpg"), ("depth", "npy")):
        for folder in range(20):
            (tmp_path / part / f"{folder}").mkdir(parents=True)
            for i in range(250):
                (tmp_path / part / f"{folder}" / f"{i}.{ending}").touch()  # empty: reading one would fail
    began = time.process_time()
    assert len(FolderDataset(tmp_path)) == 5000
    assert time.process_time() - began < 2  # takes 0.1 s
