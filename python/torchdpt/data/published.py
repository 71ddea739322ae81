"""Data sets in the layouts that their authors, or those who prepared them, published.

What is marked "unverified" is taken from descriptions and the code of others, and was not seen in the data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from torchdpt.classes import ADE20K
from torchdpt.data.maps import Array, h5py
from torchdpt.data.paired import DepthFiles, FileDataset, Files, LabelFiles, Pairing, find, listed, pair, read_list
from torchdpt.data.sample import Sample
from torchdpt.image import IMAGE_ENDINGS

PathLike = str | os.PathLike[str]

# --- relative depth ---


class ReDWebDataset(FileDataset):
    """ReDWeb (Xian et al. 2018): `Imgs/*.jpg` and `RDs/*.png`, 8 bits, near 0, far 254, and 255 where nothing is known.

    Given as relative inverse depth, 255 - value. That the values are disparity, not depth, is unverified: the author of
    MiDaS calls it likely (isl-org/MiDaS issue 16).

    Args:
        path: The folder ReDWeb_V1.
        files: List of the images that are wanted, a name in a line; there is no published one. Default: all 3600.
        name: Of the data set.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Raises:
        ValueError: if the folder is not of this layout, or the list does not fit.
    """

    def __init__(
        self, path: PathLike, *, files: PathLike | None = None, name: str = "redweb", skip_incomplete: bool = False
    ) -> None:
        root = Path(path)
        images = find(root, "Imgs", "images", IMAGE_ENDINGS)
        keep = listed(Path(files), images) if files is not None else None
        depth = DepthFiles(files="RDs", kind="inverse_depth", unit="relative")  # 0 is what 255 becomes below
        pairing = pair(root, images, depth, None, keep=keep)
        super().__init__(root, name, pairing, depth=depth, skip_incomplete=skip_incomplete)

    def read_depth(self, path: Path) -> Array:
        """255 - the numbers of the file: 255 near, 1 far, 0 unknown."""
        numbers = super().read_depth(path)
        if numbers.dtype != np.uint8:
            raise ValueError(f"{path}: wanted 8 bits, got {numbers.dtype}")
        return 255 - numbers


class HRWSIDataset(FileDataset):
    """HR-WSI (Xian et al. 2020): `{train,val}/imgs/*.jpg`, `gts/*.png` with disparity, and `valid_masks/*.png`.

    What the masks leave counts, 0 too: as infinitely far. The bit depth of the disparity is unverified; 8 and 16 are
    read. The sky may be near in places, as in other sets made from stereo pictures.

    Args:
        path: The folder of `train` and `val`.
        split: "train" (20,378 images) or "val" (400).
        name: Of the data set.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Raises:
        ValueError: if the folder is not of this layout.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        split: Literal["train", "val"] = "train",
        name: str = "hrwsi",
        skip_incomplete: bool = False,
    ) -> None:
        root = Path(path)
        depth = DepthFiles(
            files=f"{split}/gts", kind="inverse_depth", unit="relative", invalid=(), mask=f"{split}/valid_masks"
        )
        pairing = pair(root, find(root, f"{split}/imgs", "images", IMAGE_ENDINGS), depth, None)
        super().__init__(root, name, pairing, depth=depth, skip_incomplete=skip_incomplete)


class BlendedMVSDataset(FileDataset):
    """BlendedMVS (Yao et al. 2020): `<scene>/blended_images/*.jpg` and `<scene>/rendered_depth_maps/*.pfm`.

    Depth is known up to a scale; 0 is unknown, and some maps are unknown everywhere. The images `*_masked.jpg` are left
    out. Scenes may be folders in folders.

    Args:
        path: The folder of the scenes.
        split: "training" or "validation": the scenes in training_list.txt or validation_list.txt of this folder, which
            the low-resolution set is said to have (unverified). Default: all.
        name: Of the data set.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Raises:
        ValueError: if the folder is not of this layout, or the list is missing.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        split: Literal["training", "validation"] | None = None,
        name: str = "blendedmvs",
        skip_incomplete: bool = False,
    ) -> None:
        root = Path(path)
        images = find(root, "**/blended_images/*.jpg", "images", IMAGE_ENDINGS)
        keep = [name for name in images if not name.endswith("_masked")]
        if split is not None:
            scenes = set(read_list(root / f"{split}_list.txt"))
            keep = [name for name in keep if scenes & set(name.split("/")[:-1])]
        depth = DepthFiles(files="**/rendered_depth_maps/*.pfm", unit="relative")
        pairing = pair(root, images, depth, None, keep=keep)
        super().__init__(root, name, pairing, depth=depth, skip_incomplete=skip_incomplete)


# --- metres ---


class NYUDataset:
    """NYU Depth v2, labeled part (Silberman et al. 2012): 1449 images of 640 x 480 with depth in metres.

    Needs h5py, and scipy for splits.mat. The images have a white border of a few pixels.

    Args:
        path: nyu_depth_v2_labeled.mat.
        split: "train" (795 images) or "test" (654). Default: all.
        splits: splits.mat, or a text file with the numbers of the images of this split, counted from 1, one in a line.
            Default: splits.mat in the same folder.
        depth: "rawDepths": as measured, 0 where nothing was; "depths": filled in by colour.
        name: Of the data set.

    Raises:
        ValueError: if a file is not what it should be.
        ImportError: if h5py or scipy is needed, and not there.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        split: Literal["train", "test"] | None = None,
        splits: PathLike | None = None,
        depth: Literal["rawDepths", "depths"] = "rawDepths",
        name: str = "nyu",
    ) -> None:
        self.path = Path(path)
        self.name = name
        if depth not in ("rawDepths", "depths"):
            raise ValueError(f"NYUDataset: depth must be 'rawDepths' or 'depths', got {depth!r}")
        if not self.path.is_file():
            raise ValueError(f"{self.path}: there is no such file; wanted nyu_depth_v2_labeled.mat")
        self._depth = depth
        try:
            with h5py().File(self.path, "r") as file:
                shapes = file["images"].shape, file[depth].shape
        except (OSError, KeyError) as error:
            raise ValueError(f"{self.path}: wanted an HDF5 file with images and {depth} ({error})") from error
        (count, *image), found = shapes
        if len(image) != 3 or image[0] != 3 or found != (count, *image[1:]):
            raise ValueError(f"{self.path}: wanted images [N, 3, W, H] and {depth} [N, W, H], got {shapes}")
        self.numbers = list(range(1, count + 1))
        if split is not None:
            self.numbers = _nyu_split(Path(splits) if splits else self.path.with_name("splits.mat"), split)
            if not self.numbers or min(self.numbers) < 1 or max(self.numbers) > count:
                raise ValueError(f"NYUDataset: the numbers of a split must be of 1 to {count}, got {self.numbers}")

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> Sample:
        """Image number `numbers[index]`, counted from 1; its `id` is that number."""
        if not 0 <= index < len(self.numbers):
            raise IndexError(f"{self.name}: there is no sample {index} of {len(self.numbers)}")
        number = self.numbers[index]
        # Opened each time: a file that is open does not survive the fork of a worker.
        with h5py().File(self.path, "r") as file:
            image: Array = np.ascontiguousarray(file["images"][number - 1].transpose(2, 1, 0))  # of MATLAB: [3, W, H]
            depth: Array = np.ascontiguousarray(file[self._depth][number - 1].T, np.float32)
        known = np.isfinite(depth) & (depth > 0)
        return Sample(
            image=torch.from_numpy(image),
            dataset=self.name,
            id=f"{number:04d}",
            target=torch.from_numpy(np.where(known, depth, np.float32(0))),
            mask=torch.from_numpy(known),
            kind="depth",
            unit="metre",
        )


class NYUFramesDataset(FileDataset):
    """Frames of NYU Depth v2 as prepared for BTS (Lee et al. 2019): `<scene>/rgb_*.jpg` and `sync_depth_*.png`.

    Depth in 16 bits of millimetres; 0 is unknown.

    Args:
        path: The folder of the scenes.
        files: List of the frames that are wanted: in a line the image, its depth (None: left out), and more, which does
            not count. BTS has nyudepthv2_train_files_with_gt.txt (24,231 frames). Default: all.
        name: Of the data set.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Raises:
        ValueError: if the folder is not of this layout, or the list does not fit.
    """

    def __init__(
        self, path: PathLike, *, files: PathLike | None = None, name: str = "nyu_frames", skip_incomplete: bool = False
    ) -> None:
        root = Path(path)
        depth = DepthFiles(files="**/sync_depth_*.png", unit="metre", scale=1 / 1000)
        if files is None:
            pairing = pair(root, find(root, "**/rgb_*.jpg", "images", IMAGE_ENDINGS), depth, None)
        else:
            pairing = _listed_pairs(Path(files), root, [root])
        super().__init__(root, name, pairing, depth=depth, skip_incomplete=skip_incomplete)


_KITTI = DepthFiles(unit="metre", scale=1 / 256)


class KITTIDataset(FileDataset):
    """KITTI raw images with the accumulated LiDAR depth of the depth benchmark (Uhrig et al. 2017), by a list.

    Depth in 16 bits of 1/256 metre; 0 is unknown.

    Args:
        path: The folder of the raw data: `<date>/<drive>/image_02/data/*.png`.
        files: The list: in a line an image, its depth (None: left out), and the focal length, which does not count. BTS
            has those of Eigen et al.: eigen_train_files_with_gt.txt (23,158 images) and eigen_test_files_with_gt.txt
            (697 lines, 652 of them with depth).
        truth: The folder of the depth, `<drive>/proj_depth/groundtruth/image_02/*.png`, or of `train` and `val` that
            hold it, as published. Default: `path`.
        name: Of the data set.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Raises:
        ValueError: if the list does not fit the folders.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        files: PathLike,
        truth: PathLike | None = None,
        name: str = "kitti",
        skip_incomplete: bool = False,
    ) -> None:
        root, base = Path(path), Path(truth if truth is not None else path).absolute()
        pairing = _listed_pairs(Path(files), root, [base, base / "train", base / "val"])
        super().__init__(root, name, pairing, depth=_KITTI, skip_incomplete=skip_incomplete)


class KITTISelectionDataset(FileDataset):
    """The cropped validation images of KITTI's depth benchmark: 1216 x 352, depth in 16 bits of 1/256 metre.

    Args:
        path: The folder depth_selection/val_selection_cropped, with `image` and `groundtruth_depth`.
        files: A list as of `KITTIDataset`: only images in it, with depth there or not. With that of the Eigen test
            images these are said to be the 161 of MiDaS, of which no list was published (unverified). Default: all.
        name: Of the data set.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Raises:
        ValueError: if the folder is not of this layout, or has no image of the list.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        files: PathLike | None = None,
        name: str = "kitti_selection",
        skip_incomplete: bool = False,
    ) -> None:
        root = Path(path)
        images = find(root, "image/*_sync_image_*.png", "images", IMAGE_ENDINGS)  # <drive>/<frame>_image_02
        keep = list(images)
        if files is not None:
            wanted = set()
            for line in read_list(Path(files)):
                parts = os.path.splitext(line.split()[0])[0].strip("/").split("/")
                if len(parts) != 5:
                    raise ValueError(f"{files}: wanted <date>/<drive>/image_02/data/<frame>.png ..., got {line!r}")
                _, drive, camera, _, frame = parts
                wanted.add(f"{drive.removesuffix('_sync')}/{frame}_{camera}")
            keep = [name for name in keep if name in wanted]
        depth = DepthFiles(files="groundtruth_depth/*_sync_groundtruth_depth_*.png", unit="metre", scale=_KITTI.scale)
        pairing = pair(root, images, depth, None, keep=keep)
        super().__init__(root, name, pairing, depth=depth, skip_incomplete=skip_incomplete)


# --- classes ---


class ADE20KDataset(FileDataset):
    """ADE20K's scene parsing benchmark (Zhou et al. 2017): `images/<split>/*.jpg` and `annotations/<split>/*.png`.

    In the files 0 is anything else, which is ignored, and 1 to 150 are the classes `torchdpt.classes.ADE20K`, here 0 to
    149.

    Args:
        path: The folder ADEChallengeData2016.
        split: "training" (20,210 images) or "validation" (2,000).
        name: Of the data set.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Raises:
        ValueError: if the folder is not of this layout.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        split: Literal["training", "validation"] = "training",
        name: str = "ade20k",
        skip_incomplete: bool = False,
    ) -> None:
        root = Path(path)
        labels = LabelFiles(files=f"annotations/{split}", first=1, ignore=(), classes=ADE20K)
        pairing = pair(root, find(root, f"images/{split}", "images", IMAGE_ENDINGS), None, labels)
        super().__init__(root, name, pairing, labels=labels, skip_incomplete=skip_incomplete)


def _listed_pairs(file: Path, root: Path, truth: list[Path]) -> Pairing:
    """The pairs of a list: in a line an image and its depth, "None" where it has none. Depth is looked for in each of
    the folders `truth`."""
    pairing = Pairing([], [], [])
    for line in read_list(file):
        image, *rest = line.split()
        image = image.lstrip("/")
        if not rest:
            raise ValueError(f"{file}: wanted an image and its depth in each line, got {line!r}")
        if rest[0] == "None":
            continue
        found = next((path for path in (base / rest[0].lstrip("/") for base in truth) if path.is_file()), None)
        if not (root / image).is_file():
            pairing.incomplete.append(f"{image}: there is no such file")
        elif found is None:
            pairing.incomplete.append(f"{image}: there is no depth map {truth[0] / rest[0].lstrip('/')}")
        else:
            inside = truth[0] == root
            pairing.files.append(
                Files(os.path.splitext(image)[0], image, str(found.relative_to(root) if inside else found))
            )
    return pairing


def _nyu_split(file: Path, split: str) -> list[int]:
    if split not in ("train", "test"):
        raise ValueError(f"NYUDataset: split must be 'train' or 'test', got {split!r}")
    if file.suffix != ".mat":
        try:
            return [int(line) for line in read_list(file)]
        except ValueError as error:
            raise ValueError(f"{file}: wanted a whole number in each line ({error})") from error
    if not file.is_file():
        raise ValueError(f"there is no {file}; pass splits, a .mat file or a text file with the numbers of the images")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            f"reading {file} needs scipy: pip install scipy; or pass splits, a text file with the numbers of the images"
        ) from error
    try:
        numbers: Array = loadmat(file)[f"{split}Ndxs"]
    except Exception as error:  # whatever it raises for a file that is no .mat
        raise ValueError(f"{file}: wanted a MATLAB file with {split}Ndxs ({error})") from error
    return [int(number) for number in numbers.ravel()]
