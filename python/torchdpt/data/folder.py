"""A folder of one's own images and the truth about them."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path
from typing import Any

from torchdpt.classes import ADE20K, PASCAL_CONTEXT, Classes
from torchdpt.data.paired import DepthFiles, FileDataset, LabelFiles, find, listed, pair
from torchdpt.image import IMAGE_ENDINGS

SETTINGS = "dataset.yaml"


class FolderDataset(FileDataset):
    """One's own files: images with maps of depth, of classes, or of both.

    Without more being said `images/a/b.jpg` belongs to `depth/a/b.png` and `labels/a/b.png`, and one of these folders
    may be missing. Depth in files of floating point numbers (.npy, .npz, .pfm, .tiff) is in metres; 0, NaN and infinity
    mean unknown, so the sparse depth of a LiDAR is a map that is 0 almost everywhere. Depth in a 16-bit PNG is
    relative as long as no `scale` is known. Labels are 0, 1, ..., and 255 means none. All else is said in the file
    `dataset.yaml` of the folder. Each of its lines may be left out:

        name: rooms              # default: the name of the folder
        images: images           # a folder, or a pattern such as "*/rgb_*.jpg": what its stars stand for is the name
        depth:                   # or only the folder: "depth: depth_png"
          files: depth           # a folder or a pattern; belongs to the image of the same name
          kind: depth            # or inverse_depth (disparity)
          unit: metre            # or relative
          scale: 1/1000          # metres per count of an integer file: here millimetres; 1/256 in KITTI
          invalid: [0, 65535]    # counts that mean unknown (default: [0]); NaN and infinity always do
          sky: 65534             # the count of the sky, which is infinitely far, and known
          mask: valid            # folder or pattern of masks: where they are 0 nothing is known
          key: depth             # which array of a .npz or HDF5 file, if it has several
        labels:                  # or only the folder
          files: labels
          first: 1               # the number of the first class (default: 0); smaller ones mean none
          ignore: [255]          # numbers that mean none
          classes: [wall, floor] # names; or how many there are; or ADE20K, or Pascal Context
        splits:                  # lists of images; default: the file train.txt, or the sub folders train
          train: lists/train.txt
          val: lists/val.txt

    A list has an image in a line: its path, or its name (`a/b` or `a/b.jpg`). A folder or pattern may hold `{split}`
    instead: `images: "{split}/rgb"`.

    Args:
        path: The folder.
        split: Which part of it, such as "train". Default: all.
        name: Of the data set. Default: what `dataset.yaml` says.
        skip_incomplete: Leave out images whose truth is missing instead of refusing them.

    Raises:
        ValueError: if a folder is missing or empty, `dataset.yaml` has a mistake, an image has no truth, or a list
            names an image that is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        split: str | None = None,
        name: str | None = None,
        skip_incomplete: bool = False,
    ) -> None:
        root = Path(path)
        if not root.is_dir():
            raise ValueError(f"there is no folder {root}")
        settings = _read_settings(root)
        splits = settings.get("splits", {})

        def place(files: str) -> str:
            if "{split}" in files and split is None:
                raise ValueError(f"{root / SETTINGS}: {files!r} differs from split to split; say which one")
            return files.replace("{split}", str(split))

        depth, labels = settings.get("depth"), settings.get("labels")
        if depth is not None:
            depth = dataclasses.replace(depth, files=place(depth.files), mask=place(depth.mask) if depth.mask else None)
        if labels is not None:
            labels = dataclasses.replace(labels, files=place(labels.files))
        if depth is None and labels is None:
            raise ValueError(
                f"{root}: there is neither a folder depth nor a folder labels; {SETTINGS} may name another (see "
                "torchdpt.data.FolderDataset)"
            )
        files = settings.get("images", "images")
        images = find(root, place(files), "images", IMAGE_ENDINGS)
        if not images:
            wanted = ", ".join(sorted(IMAGE_ENDINGS))
            raise ValueError(f"{root}: there are no images in {place(files)}; wanted files {wanted}")
        keep = None
        if split is not None and "{split}" not in files:
            keep = _split(root, split, splits, images)
        super().__init__(
            root,
            name or settings.get("name") or root.resolve().name,
            pair(root, images, depth, labels, keep=keep),
            depth=depth,
            labels=labels,
            skip_incomplete=skip_incomplete,
        )


def _split(root: Path, split: str, splits: dict[str, str], images: dict[str, str]) -> list[str]:
    """Names of the images of a split."""
    file = root / splits.get(split, f"{split}.txt")
    if split not in splits and not file.is_file():
        below = [name for name in images if name.startswith(f"{split}/")]
        if not below:
            known = [*splits, *sorted({name.split("/")[0] for name in images if "/" in name})]
            raise ValueError(
                f"{root}: there is no split {split!r}: no list {file.name}, no line in {SETTINGS}, and no images in a "
                f"sub folder {split}{nearest(split, known)}"
            )
        return below
    return listed(file, images)


# --- dataset.yaml ---


def _read_settings(root: Path) -> dict[str, Any]:
    """The settings of a folder: those of its dataset.yaml and the defaults, `depth` and `labels` as dataclasses."""
    path = root / SETTINGS
    values: Any = {}
    if path.is_file():
        import yaml

        try:
            values = yaml.safe_load(path.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not a YAML file: {error}") from error
    elif (root / "dataset.yml").is_file():
        raise ValueError(f"{root}: rename dataset.yml to {SETTINGS}")
    try:
        settings = _checked(values, _SETTINGS, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "depth" not in settings and (root / "depth").is_dir():
        settings["depth"] = DepthFiles()
    if "labels" not in settings and (root / "labels").is_dir():
        settings["labels"] = LabelFiles()
    return settings


def _checked(values: Any, fields: dict[str, Callable[[Any], Any]], where: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'the file'} must be lines of `key: value`, got {values!r}")
    checked = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(
                f"unknown key {key!r}{f' in {where}' if where else ''}{nearest(str(key), fields)}; "
                f"wanted {', '.join(fields)}"
            )
        try:
            checked[key] = fields[key](value)
        except ValueError as error:
            raise ValueError(str(error) if str(error).startswith("unknown key") else f"{key}: {error}") from error
    return checked


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error message: what is known and was most likely meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"wanted a text, got {value!r}")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"wanted a whole number, got {value!r}")
    return value


def _number(value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
    except (ValueError, TypeError, ZeroDivisionError):
        raise ValueError(f"wanted a number such as 0.001 or 1/256, got {value!r}") from None


def _scale(value: Any) -> float:
    number = _number(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"wanted a positive number such as 0.001 or 1/256, got {value!r}")
    return number


def _one_of(*options: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in options:
            raise ValueError(f"wanted {' or '.join(options)}, got {value!r}")
        return str(value)

    return check


def _list_of(check: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(map(check, value if isinstance(value, list) else [value]))


def _classes(value: Any) -> Classes:
    known = {classes.name: classes for classes in (ADE20K, PASCAL_CONTEXT)}
    if isinstance(value, str):
        _one_of(*known)(value)
        return known[value]
    return Classes(SETTINGS, tuple(value)) if isinstance(value, list) else Classes.numbered(_whole(value))


def _splits(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"wanted lines of `name: list file`, got {value!r}")
    return {_text(name): _text(file) for name, file in value.items()}


def _section(kind: type, fields: dict[str, Callable[[Any], Any]], where: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        return kind(**_checked({"files": value} if isinstance(value, str) else value, fields, where))

    return check


_DEPTH: dict[str, Callable[[Any], Any]] = {
    "files": _text,
    "kind": _one_of("depth", "inverse_depth"),
    "unit": _one_of("metre", "relative"),
    "scale": _scale,
    "invalid": _list_of(_number),
    "sky": _number,
    "mask": _text,
    "key": _text,
}
_LABELS: dict[str, Callable[[Any], Any]] = {
    "files": _text,
    "first": _whole,
    "ignore": _list_of(_whole),
    "classes": _classes,
}
_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "images": _text,
    "depth": _section(DepthFiles, _DEPTH, "depth"),
    "labels": _section(LabelFiles, _LABELS, "labels"),
    "splits": _splits,
}
