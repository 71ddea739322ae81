"""What torchdpt.data.FolderDataset says of every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_files import H, W, depth_of, ids, write_image, write_npy, write_png, write_samples, write_settings
from PIL import Image

from torchdpt.data import FolderDataset


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depht: depth", r"dataset.yaml: unknown key 'depht'; did you mean 'depth'\?; wanted name, images, depth,"),
        ("depth: {scal: 1}", r"dataset.yaml: unknown key 'scal' in depth; did you mean 'scale'\?; wanted files, kind"),
        ("labels: {zzz: 1}", r"dataset.yaml: unknown key 'zzz' in labels; wanted files, first"),
        (
            "depth: {scale: fast}",
            r"depth: scale: wanted a positive number .*, got 'fast'|depth: scale: wanted a number",
        ),
        ("depth: {scale: 0}", r"depth: scale: wanted a positive number such as 0.001 or 1/256, got 0"),
        ("depth: {scale: 1/0}", r"depth: scale: wanted a number such as 0.001 or 1/256, got '1/0'"),
        ("depth: {scale: yes}", r"depth: scale: wanted a number .*got True"),
        ("depth: {kind: disparity}", r"depth: kind: wanted depth or inverse_depth, got 'disparity'"),
        ("depth: {unit: m}", r"depth: unit: wanted metre or relative, got 'm'"),
        ("depth: {invalid: [none]}", r"depth: invalid: wanted a number .*'none'"),
        ("depth: 7", r"depth must be lines of `key: value`, got 7"),
        ("labels: {first: 0.5}", r"labels: first: wanted a whole number, got 0.5"),
        ("labels: {classes: ADE}", r"labels: classes: wanted ADE20K or Pascal Context, got 'ADE'"),
        ("labels: {classes: []}", r"labels: classes: names must be of 1 to 65535 classes"),
        ("splits: train.txt", r"splits: wanted lines of `name: list file`, got 'train.txt'"),
        ("name: 3", r"name: wanted a text, got 3"),
        ("- a", r"dataset.yaml: the file must be lines of `key: value`, got \['a'\]"),
        ("a: b: c", r"dataset.yaml: not a YAML file"),
    ],
)
def test_mistakes_of_dataset_yaml(text: str, message: str, tmp_path: Path) -> None:
    write_samples(tmp_path, ["a"])
    write_settings(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        FolderDataset(tmp_path)


def test_an_empty_dataset_yaml_says_nothing(tmp_path: Path) -> None:
    write_samples(tmp_path, ["a"])
    write_settings(tmp_path, "")
    assert ids(FolderDataset(tmp_path)) == ["a"]


def test_missing_folders_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*/none"):
        FolderDataset(tmp_path / "none")
    with pytest.raises(ValueError, match=r"there is neither a folder depth nor a folder labels; dataset.yaml may name"):
        FolderDataset(tmp_path)
    (tmp_path / "depth").mkdir()
    with pytest.raises(ValueError, match=r"there is no folder .*/images, where the images should be"):
        FolderDataset(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"there are no images in images; wanted files .*\.jpg"):
        FolderDataset(tmp_path)
    write_settings(tmp_path, "depth: truth")
    write_image(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match=r"there is no folder .*/truth, where the depth maps should be"):
        FolderDataset(tmp_path)
    (tmp_path / "dataset.yaml").rename(tmp_path / "dataset.yml")
    with pytest.raises(ValueError, match=r"rename dataset.yml to dataset.yaml"):
        FolderDataset(tmp_path)


def test_images_without_truth_are_refused_or_skipped(tmp_path: Path) -> None:
    write_samples(tmp_path, ["a", "b", "c"])
    (tmp_path / "depth/b.npy").unlink()
    write_npy(tmp_path / "depth/d.npy", np.ones((H, W)))
    message = r"1 of 3 images have no truth, such as images/b.jpg: there is no depth map 'b' in depth; skip_incomplete"
    with pytest.raises(ValueError, match=message):
        FolderDataset(tmp_path)
    dataset = FolderDataset(tmp_path, skip_incomplete=True)
    assert ids(dataset) == ["a", "c"]
    assert dataset.unused == ["depth/d.npy"]
    (tmp_path / "train.txt").write_text("a\nc\n")
    assert ids(FolderDataset(tmp_path, split="train")) == ["a", "c"]
    for name in "ac":
        (tmp_path / f"depth/{name}.npy").unlink()
    with pytest.raises(ValueError, match="3 of 3 images have no truth"):
        FolderDataset(tmp_path, skip_incomplete=True)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    write_samples(tmp_path, ["a"])
    write_image(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match=r"images/a.jpg and images/a.png are images of one name, 'a'"):
        FolderDataset(tmp_path)


@pytest.mark.parametrize("part", ["depth", "labels", "mask"])
def test_another_size_than_the_image(part: str, tmp_path: Path) -> None:
    write_settings(tmp_path, "{depth: {mask: mask, scale: 1}, labels: labels}")
    write_image(tmp_path / "images/a.jpg")
    for name, dtype in (("depth", np.uint16), ("labels", np.uint8), ("mask", np.uint8)):
        write_png(tmp_path / f"{name}/a.png", np.ones((H, W + (name == part))), dtype)
    with pytest.raises(ValueError, match=rf"{part}/a.png is 5 x 3, and .*/images/a.jpg is 4 x 3; wanted one size"):
        FolderDataset(tmp_path)[0]


def test_an_image_that_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation of a phone held upright
    write_image(tmp_path / "images/a.jpg", exif=exif)
    write_npy(tmp_path / "depth/a.npy", np.ones((H, W)))
    with pytest.raises(ValueError, match=r"depth/a.npy is 4 x 3, .*a.jpg is 3 x 4 \(upright, as its EXIF data say\)"):
        FolderDataset(tmp_path)[0]


@pytest.mark.parametrize(
    ("settings", "dtype", "message"),
    [
        ("depth: {scale: 1/1000}", np.uint8, r"depth/a.png: 8 bits, wanted 16; if 256 steps are all"),
        ("", np.uint8, r"depth/a.png: 8 bits, wanted 16"),
        ("depth: {kind: inverse_depth, unit: metre, scale: 1}", np.uint8, r"depth/a.png: 8 bits, wanted 16"),
        ("depth: {unit: relative}", np.uint8, None),
        ("depth: {unit: metre}", np.uint16, r"depth/a.png: whole numbers are metres only with a scale"),
        ("depth: {unit: metre, scale: 1}", np.uint16, None),
    ],
)
def test_depth_in_too_few_bits_or_without_scale(
    settings: str, dtype: type, message: str | None, tmp_path: Path
) -> None:
    write_settings(tmp_path, settings)
    write_image(tmp_path / "images/a.png")
    write_png(tmp_path / "depth/a.png", np.full((H, W), 7), dtype)
    dataset = FolderDataset(tmp_path)
    if message is None:
        assert dataset[0].depth().unique().tolist() == [7]
    else:
        with pytest.raises(ValueError, match=message):
            dataset[0]


def test_negative_inverse_depth_is_refused(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {kind: inverse_depth}")
    write_image(tmp_path / "images/a.png", 1, 2)
    write_npy(tmp_path / "depth/a.npy", [[-1, 2]])
    with pytest.raises(ValueError, match=r"depth/a.npy: inverse depth below 0, from -1.0; say which are `invalid`"):
        FolderDataset(tmp_path)[0]
    write_settings(tmp_path, "depth: {kind: inverse_depth, invalid: -1}")
    assert depth_of(tmp_path)[:2] == ([[0, 2]], [[False, True]])


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_samples(tmp_path, ["a", "b"])
    (tmp_path / "images/a.jpg").write_bytes(b"\xff\xd8\xff broken")
    (tmp_path / "depth/b.npy").write_bytes(b"\x93NUMPY")
    dataset = FolderDataset(tmp_path)
    with pytest.raises(ValueError, match=r"images/a.jpg: a damaged image"):
        dataset[0]
    with pytest.raises(ValueError, match=r"depth/b.npy"):
        dataset[1]


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png")
    write_npy(tmp_path / "labels/a.npy", np.ones((H, W)))
    with pytest.raises(ValueError, match=r"labels/a.npy: labels must be whole numbers, got float32"):
        FolderDataset(tmp_path)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nnone.jpg\n", r"train.txt: there is no image 'none.jpg'; wanted names such as 'a'"),
        ("a\nimages/a.jpg\n", r"train.txt: 'images/a.jpg' is there twice"),
        ("# nothing\n", r"train.txt: an empty list"),
    ],
)
def test_mistakes_of_a_list(text: str, message: str, tmp_path: Path) -> None:
    write_samples(tmp_path, ["a", "b"])
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        FolderDataset(tmp_path, split="train")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    write_samples(tmp_path, ["a"])
    write_settings(tmp_path, "splits: {train: lists/t.txt}")
    with pytest.raises(ValueError, match=r"lists/t.txt: wanted a list"):
        FolderDataset(tmp_path, split="train")
