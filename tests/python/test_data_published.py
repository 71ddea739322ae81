"""The readers of published data sets, on tiny files in the layouts and encodings that their authors describe."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from data_files import H, W, ids, write_image, write_png

from torchdpt.classes import ADE20K
from torchdpt.data import (
    DATASETS,
    ADE20KDataset,
    BlendedMVSDataset,
    FolderDataset,
    HRWSIDataset,
    KITTIDataset,
    KITTISelectionDataset,
    NYUDataset,
    NYUFramesDataset,
    ReDWebDataset,
    Sample,
    SceneDataset,
    open_dataset,
)

RNG = np.random.default_rng(0)


def values_of(sample: Sample) -> tuple[list[list[float]], list[list[bool]]]:
    assert sample.target is not None
    assert sample.mask is not None
    return sample.target.tolist(), sample.mask.tolist()


# --- relative depth ---


def test_redweb_is_near_at_0_and_unknown_at_255(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture = write_image(tmp_path / f"Imgs/{name}.jpg", 1, 4)
        write_png(tmp_path / f"RDs/{name}.png", [[0, 1, 254, 255]], np.uint8)
    dataset = ReDWebDataset(tmp_path)
    assert ids(dataset) == ["a", "b"]
    sample = dataset[1]
    assert values_of(sample) == ([[255, 254, 1, 0]], [[True, True, True, False]])
    assert (sample.kind, sample.unit, sample.dataset) == ("inverse_depth", "relative", "redweb")
    assert sample.image.shape == picture.shape
    (tmp_path / "validation.txt").write_text("b.jpg\n")
    assert ids(ReDWebDataset(tmp_path, files=tmp_path / "validation.txt")) == ["b"]
    write_png(tmp_path / "RDs/b.png", [[0, 1, 254, 255]], np.uint16)
    with pytest.raises(ValueError, match=r"RDs/b.png: wanted 8 bits, got uint16"):
        dataset[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_hrwsi_is_known_where_its_mask_says(dtype: type, tmp_path: Path) -> None:
    most = np.iinfo(dtype).max
    for split in ("train", "val"):
        write_image(tmp_path / f"{split}/imgs/{split}.jpg", 1, 4)
        write_png(tmp_path / f"{split}/gts/{split}.png", [[0, 0, 7, most]], dtype)
        write_png(tmp_path / f"{split}/valid_masks/{split}.png", [[255, 0, 255, 0]], np.uint8)
    dataset = HRWSIDataset(tmp_path, split="val")
    assert ids(dataset) == ["val"]
    assert values_of(dataset[0]) == ([[0, 0, 7, 0]], [[True, False, True, False]])
    assert (dataset[0].kind, dataset[0].unit) == ("inverse_depth", "relative")
    assert ids(HRWSIDataset(tmp_path)) == ["train"]
    (tmp_path / "val/valid_masks/val.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 images have no truth.*there is no mask 'val' in val/valid_masks"):
        HRWSIDataset(tmp_path, split="val")


def test_blendedmvs_leaves_masked_pictures_out_and_takes_empty_maps(tmp_path: Path) -> None:
    def write_scene(folder: Path) -> None:
        for number, depth in (("00000000", [1.5, 0, 2, 3]), ("00000001", [0.0] * 4)):
            write_image(folder / f"blended_images/{number}.jpg", 2, 2)
            write_image(folder / f"blended_images/{number}_masked.jpg", 2, 2)
            (folder / "rendered_depth_maps").mkdir(exist_ok=True)
            data = b"Pf\n2 2\n-1\n" + struct.pack("<4f", *depth)  # its bottom row first
            (folder / f"rendered_depth_maps/{number}.pfm").write_bytes(data)

    write_scene(tmp_path / "5a")
    write_scene(tmp_path / "5b/5b/5b")
    dataset = BlendedMVSDataset(tmp_path)
    assert ids(dataset) == ["5a/00000000", "5a/00000001", "5b/5b/5b/00000000", "5b/5b/5b/00000001"]
    assert values_of(dataset[0]) == ([[2, 3], [1.5, 0]], [[True, True], [True, False]])
    assert (dataset[0].kind, dataset[0].unit) == ("depth", "relative")
    assert values_of(dataset[1]) == ([[0, 0], [0, 0]], [[False, False], [False, False]])
    (tmp_path / "validation_list.txt").write_text("5b\n")
    assert ids(BlendedMVSDataset(tmp_path, split="validation")) == ids(dataset)[2:]
    with pytest.raises(ValueError, match=r"training_list.txt: wanted a list"):
        BlendedMVSDataset(tmp_path, split="training")


# --- NYU ---


@pytest.fixture
def labeled(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """The path of a .mat of four images, and these and their depth as they are seen: [N, H, W, 3], [N, H, W]."""
    images = RNG.integers(0, 256, (4, H, W, 3), dtype=np.uint8)
    depths = (RNG.random((4, H, W)) * 9 + 0.5).astype(np.float32)
    depths[:, 0, 1] = 0
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w", userblock_size=512) as file:  # as MATLAB does; columns come first there
        file["images"] = images.transpose(0, 3, 2, 1)
        file["rawDepths"] = depths.transpose(0, 2, 1)
        file["depths"] = depths.transpose(0, 2, 1) + 1
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    scipy.io.savemat(tmp_path / "splits.mat", {"trainNdxs": [[1], [4]], "testNdxs": [[2], [3]]})
    return path, images, depths


def test_nyu_is_turned_from_matlabs_order(labeled: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, images, depths = labeled
    dataset = NYUDataset(path)
    assert len(dataset) == 4
    for i in range(4):
        sample = dataset[i]
        assert sample.id == f"{i + 1:04d}"
        assert np.array_equal(sample.image, images[i])
        assert np.array_equal(sample.target, depths[i])
        assert np.array_equal(sample.mask, depths[i] > 0)
        assert sample.image.is_contiguous()
        assert sample.target is not None
        assert sample.target.is_contiguous()
        assert (sample.kind, sample.unit) == ("depth", "metre")
    assert np.array_equal(NYUDataset(path, depth="depths")[2].target, depths[2] + 1)
    with pytest.raises(IndexError):
        dataset[4]


def test_nyu_splits_are_counted_from_1(labeled: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path, images, _ = labeled
    test = NYUDataset(path, split="test")
    assert [test[i].id for i in range(len(test))] == ["0002", "0003"]
    assert np.array_equal(test[0].image, images[1])
    assert NYUDataset(path, split="train").numbers == [1, 4]
    (tmp_path / "numbers.txt").write_text("# mine\n4\n2\n")
    assert NYUDataset(path, split="test", splits=tmp_path / "numbers.txt").numbers == [4, 2]
    for text, message in (("5\n", "must be of 1 to 4"), ("0\n", "must be of 1 to 4"), ("a\n", "wanted a whole number")):
        (tmp_path / "numbers.txt").write_text(text)
        with pytest.raises(ValueError, match=message):
            NYUDataset(path, split="test", splits=tmp_path / "numbers.txt")


def test_nyu_is_read_by_workers(labeled: tuple[Path, np.ndarray, np.ndarray]) -> None:
    dataset = NYUDataset(labeled[0])
    dataset[0]
    loaded = list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2))
    assert [sample.id for sample in loaded] == ["0001", "0002", "0003", "0004"]


def test_nyu_mistakes(
    labeled: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = labeled[0]
    with pytest.raises(ValueError, match=r"none.mat: there is no such file; wanted nyu_depth_v2_labeled.mat"):
        NYUDataset(tmp_path / "none.mat")
    with pytest.raises(ValueError, match=r"splits.mat: wanted an HDF5 file with images and rawDepths"):
        NYUDataset(tmp_path / "splits.mat")
    with pytest.raises(ValueError, match=r"depth must be 'rawDepths' or 'depths', got 'raw'"):
        NYUDataset(path, depth="raw")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test', got 'val'"):
        NYUDataset(path, split="val")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"labeled.mat: wanted a MATLAB file with testNdxs"):
        NYUDataset(path, split="test", splits=path)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "scipy.io", None)
        with pytest.raises(
            ImportError, match=r"splits.mat needs scipy: pip install scipy; or pass splits, a text file"
        ):
            NYUDataset(path, split="test")
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(ValueError, match=r"there is no .*/splits.mat; pass splits"):
        NYUDataset(path, split="test")
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["images"], file["rawDepths"] = np.zeros((2, 3, 4, 5)), np.zeros((2, 5, 4))
    with pytest.raises(ValueError, match=r"other.mat: wanted images \[N, 3, W, H\] and rawDepths \[N, W, H\], got"):
        NYUDataset(tmp_path / "other.mat")


def test_nyu_frames_are_millimetres(tmp_path: Path) -> None:
    for scene in ("kitchen_0001", "office_0002"):
        write_image(tmp_path / f"{scene}/rgb_00045.jpg", 1, 3)
        write_png(tmp_path / f"{scene}/sync_depth_00045.png", [[0, 1234, 9999]])
    dataset = NYUFramesDataset(tmp_path)
    assert ids(dataset) == ["kitchen_0001/00045", "office_0002/00045"]
    assert values_of(dataset[0]) == ([[0, np.float32(1.234), np.float32(9.999)]], [[False, True, True]])
    assert (dataset[0].kind, dataset[0].unit) == ("depth", "metre")
    lines = "/office_0002/rgb_00045.jpg /office_0002/sync_depth_00045.png 518.8579\n"
    (tmp_path / "train.txt").write_text(lines + "/kitchen_0001/rgb_00045.jpg None 518.8579\n")
    listed = NYUFramesDataset(tmp_path, files=tmp_path / "train.txt")
    assert ids(listed) == ["office_0002/rgb_00045"]
    assert values_of(listed[0]) == values_of(dataset[1])


# --- KITTI ---

DRIVE = "2011_09_26_drive_0002_sync"


def raw_image(frame: int) -> str:
    return f"2011_09_26/{DRIVE}/image_02/data/{frame:010d}.png"


def truth_map(frame: int) -> str:
    return f"{DRIVE}/proj_depth/groundtruth/image_02/{frame:010d}.png"


@pytest.mark.parametrize("below", ["", "train/", "val/"])
@pytest.mark.parametrize("together", [True, False])
def test_kitti_follows_the_list_and_counts_256_to_the_metre(below: str, together: bool, tmp_path: Path) -> None:
    truth = tmp_path if together else tmp_path / "annotated"
    for frame in (5, 8, 11):
        write_image(tmp_path / raw_image(frame), 1, 4)
        write_png(truth / (below + truth_map(frame)), [[0, 1, 256, 65535 - frame]])
    lines = [f"{raw_image(frame)} {truth_map(frame)} 721.5377" for frame in (11, 5)]
    (tmp_path / "eigen.txt").write_text("\n".join([lines[0], f"{raw_image(8)} None 721.5377", lines[1]]))
    dataset = KITTIDataset(tmp_path, files=tmp_path / "eigen.txt", truth=None if together else truth)
    assert ids(dataset) == [raw_image(frame).removesuffix(".png") for frame in (11, 5)]
    sample = dataset[1]
    assert values_of(sample) == ([[0, 1 / 256, 1, 65530 / 256]], [[False, True, True, True]])
    assert (sample.kind, sample.unit) == ("depth", "metre")


def test_kitti_mistakes(tmp_path: Path) -> None:
    write_image(tmp_path / raw_image(1), 1, 2)
    write_png(tmp_path / truth_map(1), [[1, 255]], np.uint8)
    files = tmp_path / "list.txt"
    files.write_text(f"{raw_image(1)} {truth_map(1)} 1\n")
    with pytest.raises(ValueError, match=r"0000000001.png: 8 bits, wanted 16"):
        KITTIDataset(tmp_path, files=files)[0]
    files.write_text(f"{raw_image(1)} {truth_map(1)} 1\n{raw_image(1)} {truth_map(2)} 1\n")
    with pytest.raises(ValueError, match=r"1 of 2 images .* there is no depth map .*/0000000002.png"):
        KITTIDataset(tmp_path, files=files)
    files.write_text(f"{raw_image(3)} {truth_map(1)} 1\n")
    with pytest.raises(ValueError, match=r"1 of 1 images .*data/0000000003.png: there is no such file"):
        KITTIDataset(tmp_path, files=files)
    files.write_text(f"{raw_image(1)}\n")
    with pytest.raises(ValueError, match=r"list.txt: wanted an image and its depth in each line, got '2011"):
        KITTIDataset(tmp_path, files=files)


def test_kitti_selection_and_its_part_in_a_list(tmp_path: Path) -> None:
    for frame, camera in ((5, "image_02"), (5, "image_03"), (8, "image_02")):
        write_image(tmp_path / f"image/{DRIVE}_image_{frame:010d}_{camera}.png", 1, 2)
        write_png(tmp_path / f"groundtruth_depth/{DRIVE}_groundtruth_depth_{frame:010d}_{camera}.png", [[0, 512]])
    dataset = KITTISelectionDataset(tmp_path)
    drive = DRIVE.removesuffix("_sync")
    names = [f"{drive}/0000000005_image_02", f"{drive}/0000000005_image_03", f"{drive}/0000000008_image_02"]
    assert ids(dataset) == names
    assert values_of(dataset[2]) == ([[0, 2]], [[False, True]])
    files = tmp_path / "eigen.txt"
    files.write_text(f"{raw_image(8)} None 721.5\n{raw_image(9)} {truth_map(9)} 721.5\n")
    assert ids(KITTISelectionDataset(tmp_path, files=files)) == [names[2]]
    files.write_text(f"{raw_image(9)} None 721.5\n")
    with pytest.raises(ValueError, match="there are no images of this kind"):
        KITTISelectionDataset(tmp_path, files=files)
    files.write_text("image.png None 721.5\n")
    with pytest.raises(ValueError, match=r"eigen.txt: wanted <date>/<drive>/image_02/data/<frame>.png"):
        KITTISelectionDataset(tmp_path, files=files)


# --- ADE20K ---


def test_ade20k_ignores_0_and_counts_from_1(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        write_image(tmp_path / f"images/{split}/ADE_{split}_00000001.jpg", 1, 4)
        write_png(tmp_path / f"annotations/{split}/ADE_{split}_00000001.png", [[0, 1, 2, 150]], np.uint8)
    dataset = ADE20KDataset(tmp_path, split="validation")
    assert ids(dataset) == ["ADE_validation_00000001"]
    assert dataset.classes is ADE20K
    sample = dataset[0]
    assert sample.target is None
    assert sample.labels is not None
    assert sample.labels.tolist() == [[255, 0, 1, 149]]
    assert ids(ADE20KDataset(tmp_path)) == ["ADE_training_00000001"]
    write_png(tmp_path / "annotations/training/ADE_training_00000001.png", [[0, 1, 2, 151]], np.uint8)
    with pytest.raises(ValueError, match=r"label 151, and those of 150 classes are 1 to 150"):
        ADE20KDataset(tmp_path)[0]
    with pytest.raises(ValueError, match=r"there is no folder .*/images/val, where the images should be"):
        ADE20KDataset(tmp_path, split="val")  # type: ignore[arg-type]


# --- by type ---


def test_every_data_set_opens_by_its_type(labeled: tuple[Path, np.ndarray, np.ndarray]) -> None:
    dataset = open_dataset("nyu", path=str(labeled[0]), split="train", name="rooms")
    assert isinstance(dataset, NYUDataset)
    assert (dataset.name, len(dataset)) == ("rooms", 2)
    scenes = open_dataset("scenes", length=3, height=8, width=9)
    assert isinstance(scenes, SceneDataset)
    assert scenes[2].image.shape == (8, 9, 3)
    assert DATASETS["folder"] is FolderDataset


@pytest.mark.parametrize(
    ("type", "options", "message"),
    [
        ("nyuv2", {"path": "a"}, r"there is no data set of type 'nyuv2'; did you mean 'nyu'\?; wanted folder, scenes,"),
        ("zzz", {}, r"there is no data set of type 'zzz'; wanted folder, scenes"),
        ("ade20k", {"path": "a", "splitt": "training"}, r"ade20k: there is no option 'splitt'; did you mean 'split'\?"),
        ("kitti", {"path": "a"}, r"kitti: the option 'files' is missing"),
        ("folder", {"path": None}, r"folder: the option 'path' must be str \| os.PathLike\[str\], got None"),
        ("folder", {"path": "a", "split": 2024}, r"folder: the option 'split' must be str \| None, got 2024"),
        ("folder", {"path": "a", "skip_incomplete": "no"}, "the option 'skip_incomplete' must be bool, got 'no'"),
        ("hrwsi", {"path": "a", "split": "vall"}, r"the option 'split' must be Literal\['train', 'val'\], got 'vall'"),
        ("scenes", {"length": 2.5}, "scenes: the option 'length' must be int, got 2.5"),
        ("scenes", {"length": True}, "scenes: the option 'length' must be int, got True"),
    ],
)
def test_mistakes_of_type_and_options(type: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_dataset(type, **options)
