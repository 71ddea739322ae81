"""Data sets of files: finding images and the truth about them, pairing them by name, and reading them as samples."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchdpt.classes import IGNORE_INDEX, Classes
from torchdpt.data.maps import MAP_ENDINGS, read_image, read_map
from torchdpt.data.sample import Kind, Sample, Unit

Array = np.ndarray[Any, Any]


class DataError(ValueError):
    """A file that can be read, and does not hold what it should.

    Attributes:
        problem: Which it is, in two or three words.
    """

    def __init__(self, problem: str, message: str) -> None:
        super().__init__(problem, message)
        self.problem = problem

    def __str__(self) -> str:
        return str(self.args[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthFiles:
    """Where maps of depth are, and what their numbers mean.

    Attributes:
        files: A folder, with those below it, or a pattern: see `find`.
        kind: "depth", or "inverse_depth" (disparity).
        unit: "metre" or "relative". Default: metres of depth in files of floating point numbers or with a `scale`, else
            relative.
        scale: Times a number of the file it is metres (of inverse depth: inverse metres). Integers that are metres need
            one.
        invalid: Numbers of the file that mean unknown. NaN and infinity always do, and of depth all that is not
            positive; but not `sky`.
        sky: The number of the sky, which is infinitely far, and known.
        mask: Folder or pattern of masks: where these are 0 nothing is known.
        key: Which array of a .npz or HDF5 file.
    """

    files: str = "depth"
    kind: Kind = "depth"
    unit: Unit | None = None
    scale: float | None = None
    invalid: tuple[float, ...] = (0,)
    sky: float | None = None
    mask: str | None = None
    key: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """Where maps of classes are, and what their numbers mean.

    Attributes:
        files: A folder, with those below it, or a pattern: see `find`.
        first: The number of the first class. Pixels with a smaller one have no class.
        ignore: Numbers of the file that mean no class.
        classes: The classes, where they are known.
    """

    files: str = "labels"
    first: int = 0
    ignore: tuple[int, ...] = (IGNORE_INDEX,)
    classes: Classes | None = None


class Files(NamedTuple):
    """The files of a sample, relative to the folder of the data set."""

    id: str
    image: str
    depth: str | None = None
    mask: str | None = None
    labels: str | None = None


class Pairing(NamedTuple):
    """What `pair` found.

    `incomplete` names the images whose truth is missing or not complete, and says what is missing; `unused` are files
    with truth about no image.
    """

    files: list[Files]
    incomplete: list[str]
    unused: list[str]


def find(root: Path, files: str, what: str, endings: Collection[str] = MAP_ENDINGS) -> dict[str, str]:
    """The files of a data set by name, sorted.

    Args:
        root: The folder of the data set.
        files: A folder in it, or a pattern, in which `*` stands for any part of one name and `**/` for any folders. Of
            a folder, names are paths below it without the ending; of a pattern what the stars stand for, joined by "/",
            without the ending.
        what: What they are, for messages.
        endings: Those of the files that count, in lower case. Hidden files do not.

    Raises:
        ValueError: if a folder is missing or two files have one name.
    """
    pattern = files if "*" in files else f"{files.rstrip('/')}/**/*".removeprefix("./")
    base = root / pattern[: pattern.index("*")].rpartition("/")[0]
    if not base.is_dir():
        raise ValueError(f"there is no folder {base}, where the {what} should be")
    tokens = re.split(r"(\*\*/|\*)", pattern)
    expression = re.compile("".join({"**/": "(?:(.*)/)?", "*": "([^/]*)"}.get(t) or re.escape(t) for t in tokens))
    found: dict[str, str] = {}
    for path in _walk(root, base):
        ending = os.path.splitext(path)[1]
        match = expression.fullmatch(path)
        if ending.lower() not in endings or match is None:
            continue
        name = "/".join(filter(None, match.groups()))
        name = name.removesuffix(ending) if pattern.endswith("*") else name
        if name in found:
            first, second = sorted((found[name], path))
            raise ValueError(f"{root}: {first} and {second} are {what} of one name, {name!r}; move one away")
        found[name] = path
    return dict(sorted(found.items()))


def _walk(root: Path, base: Path) -> Iterator[str]:
    """Paths, relative to root, of the files below base that are not hidden."""
    for folder, folders, files in os.walk(base, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(folder, root)
        prefix = "" if below == "." else f"{below}/"
        yield from (prefix + name for name in files if not name.startswith("."))


def pair(
    root: Path,
    images: Mapping[str, str],
    depth: DepthFiles | None,
    labels: LabelFiles | None,
    *,
    keep: Iterable[str] | None = None,
) -> Pairing:
    """Find the truth about images, by name.

    Args:
        root: The folder of the data set.
        images: Path of each image by its name, as `find` gives them.
        depth: Where maps of depth are.
        labels: Where maps of classes are.
        keep: Names of those images that are wanted, in their order. Default: all.

    Raises:
        ValueError: as `find`.
    """
    places = {
        "depth": (depth.files, "depth map") if depth else None,
        "mask": (depth.mask, "mask") if depth and depth.mask else None,
        "labels": (labels.files, "label map") if labels else None,
    }
    found = {part: find(root, place[0], f"{place[1]}s") for part, place in places.items() if place and place[0]}
    files, incomplete = [], []
    for name in images if keep is None else keep:
        missing = [part for part, paths in found.items() if name not in paths]
        if missing:
            part = missing[0]
            files_of, what = places[part] or ("", "")
            incomplete.append(f"{images[name]}: there is no {what} {name!r} in {files_of}")
        else:
            files.append(Files(name, images[name], **{part: paths[name] for part, paths in found.items()}))
    unused = [path for paths in found.values() for name, path in paths.items() if name not in images]
    return Pairing(files, incomplete, unused)


def read_list(path: Path) -> list[str]:
    """The lines of a text file but for empty ones and comments (`#`).

    Raises:
        ValueError: if there is no such file, or it is not text, or empty.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: wanted a list, a text file with a line for each image ({error})") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path}: an empty list")
    return lines


def listed(path: Path, images: Mapping[str, str]) -> list[str]:
    """Names of the images in a list, which gives of each its path, its name, or its name and ending.

    Raises:
        ValueError: if there is no such image, or it is there twice; or as `read_list`.
    """
    by_path = {file: name for name, file in images.items()}
    names: dict[str, None] = {}
    for line in read_list(path):
        candidates = [by_path.get(line, line), os.path.splitext(line)[0]]
        name = next((name for name in candidates if name in images), None)
        if name is None:
            raise ValueError(f"{path}: there is no image {line!r}; wanted names such as {next(iter(images))!r}")
        if name in names:
            raise ValueError(f"{path}: {line!r} is there twice")
        names[name] = None
    return list(names)


class FileDataset:
    """Samples that lie in files. Those are read when a sample is asked for.

    Args:
        root: The folder that paths are relative to.
        name: Of the data set.
        pairing: The files of the samples.
        depth: What the numbers in maps of depth mean.
        labels: What the numbers in maps of classes mean.
        skip_incomplete: Leave out images without truth instead of refusing them.

    Attributes:
        unit: "metre" or "relative", of depth.
        classes: Those of the labels, where they are known.

    Raises:
        ValueError: if an image has no truth, or there are no images.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str,
        pairing: Pairing,
        *,
        depth: DepthFiles | None = None,
        labels: LabelFiles | None = None,
        skip_incomplete: bool = False,
    ) -> None:
        self.root = Path(root)
        self.name = name
        self.depth = depth
        self.labels = labels
        self.classes = labels.classes if labels else None
        self.files, self.incomplete, self.unused = pairing
        if self.incomplete and not (skip_incomplete and self.files):
            count = len(self.files) + len(self.incomplete)
            raise ValueError(
                f"{self.root}: {len(self.incomplete)} of {count} images have no truth, such as {self.incomplete[0]}"
                + ("; skip_incomplete=True (in a config skip_incomplete: true) leaves them out" if self.files else "")
            )
        if not self.files:
            raise ValueError(f"{self.root}: there are no images of this kind")
        self.unit = _unit(depth, self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Sample:
        """The sample of `files[index]`.

        Raises:
            ValueError: if a file is damaged or does not fit; the message names it.
            OSError: if a file cannot be read.
        """
        if not 0 <= index < len(self.files):
            raise IndexError(f"{self.name}: there is no sample {index} of {len(self.files)}")
        files = self.files[index]
        image = read_image(self.root / files.image)
        truth: dict[str, Any] = {}
        if self.depth is not None and files.depth is not None:
            target, mask = self._depth(self.depth, files, image)
            truth |= {"target": target, "mask": mask, "kind": self.depth.kind, "unit": self.unit}
        if self.labels is not None and files.labels is not None:
            truth["labels"] = self._labels(self.labels, files.labels, files, image)
        return Sample(image=image, dataset=self.name, id=files.id, **truth)

    def read_depth(self, path: Path) -> Array:
        """The numbers of a map of depth, before `depth` says what they mean."""
        return read_map(path, key=self.depth.key if self.depth else None)

    def _depth(self, depth: DepthFiles, files: Files, image: Tensor) -> tuple[Tensor, Tensor]:
        path = self.root / str(files.depth)
        numbers = self.read_depth(path)
        self._check_size(numbers, path, files, image)
        if numbers.dtype == np.uint8 and (self.unit == "metre" or (depth.kind == "depth" and depth.unit is None)):
            raise DataError(
                "8-bit depth", f"{path}: 8 bits, wanted 16; if 256 steps are all there are, say unit: relative"
            )
        if numbers.dtype.kind != "f" and self.unit == "metre" and depth.scale is None:
            raise DataError(
                "no scale",
                f"{path}: whole numbers are metres only with a scale (millimetres: 1/1000); or say unit: relative",
            )
        known = np.isfinite(numbers)
        for value in depth.invalid:
            known &= numbers != value
        sky = np.zeros_like(known) if depth.sky is None else numbers == depth.sky
        known |= sky
        if files.mask is not None:
            mask = read_map(self.root / files.mask)
            self._check_size(mask, self.root / files.mask, files, image)
            known &= mask != 0
        if depth.kind == "depth":
            known &= sky | (numbers > 0)
        values = np.where(known & ~sky, numbers, 0).astype(np.float64) * (depth.scale or 1)
        if values.min() < 0:
            raise DataError(
                "negative values", f"{path}: inverse depth below 0, from {values.min()}; say which are `invalid`"
            )
        if depth.kind == "depth":
            values[sky & known] = math.inf
        return torch.from_numpy(values.astype(np.float32)), torch.from_numpy(known)

    def _labels(self, labels: LabelFiles, file: str, files: Files, image: Tensor) -> Tensor:
        path = self.root / file
        numbers = read_map(path)
        self._check_size(numbers, path, files, image)
        if numbers.dtype.kind == "f":
            raise DataError("label out of range", f"{path}: labels must be whole numbers, got {numbers.dtype}")
        found = numbers.astype(np.int64) - labels.first
        none = (found < 0) | np.isin(numbers, labels.ignore)
        found[none] = IGNORE_INDEX
        count = len(labels.classes) if labels.classes else IGNORE_INDEX
        if found[~none].max(initial=0) >= count:
            wrong = int(numbers[~none].max())
            raise DataError(
                "label out of range",
                f"{path}: label {wrong}, and those of {count} classes are {labels.first} to {labels.first + count - 1}",
            )
        return torch.from_numpy(found.astype(np.uint8))

    def _check_size(self, numbers: Array, path: Path, files: Files, image: Tensor) -> None:
        (height, width), (rows, columns) = numbers.shape, image.shape[:2]
        if (height, width) != (rows, columns):
            turned = " (upright, as its EXIF data say)" if (height, width) == (columns, rows) else ""
            raise DataError(
                "other size than the image",
                f"{path} is {width} x {height}, and {self.root / files.image} is {columns} x {rows}{turned}; "
                "wanted one size",
            )


def _unit(depth: DepthFiles | None, files: list[Files]) -> Unit:
    if depth is None:
        return "relative"
    if depth.unit is not None:
        return depth.unit
    measured = depth.scale is not None or not any(str(f.depth).lower().endswith(".png") for f in files)
    return "metre" if measured and depth.kind == "depth" else "relative"
