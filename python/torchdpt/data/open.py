"""Data sets by the name of their type, for configs and the command line."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

from torchdpt.annotations import is_of, name_of
from torchdpt.data.folder import FolderDataset, nearest
from torchdpt.data.published import (
    ADE20KDataset,
    BlendedMVSDataset,
    HRWSIDataset,
    KITTIDataset,
    KITTISelectionDataset,
    NYUDataset,
    NYUFramesDataset,
    ReDWebDataset,
)
from torchdpt.data.sample import Dataset
from torchdpt.data.scenes import SceneDataset

# One's own class may be added.
DATASETS: dict[str, type[Any]] = {
    "folder": FolderDataset,
    "scenes": SceneDataset,
    "ade20k": ADE20KDataset,
    "blendedmvs": BlendedMVSDataset,
    "hrwsi": HRWSIDataset,
    "kitti": KITTIDataset,
    "kitti_selection": KITTISelectionDataset,
    "nyu": NYUDataset,
    "nyu_frames": NYUFramesDataset,
    "redweb": ReDWebDataset,
}


def open_dataset(type: str, /, **options: Any) -> Dataset:
    """Open a data set by its type: `open_dataset("nyu", path="nyu_depth_v2_labeled.mat", split="train")`.

    Args:
        type: A key of `DATASETS`.
        **options: Arguments of its class, all by name.

    Raises:
        ValueError: if there is no such type, or an option is unknown, missing or of another type than the class says;
            or what the class raises.
    """
    if type not in DATASETS:
        raise ValueError(
            f"there is no data set of type {type!r}{nearest(type, DATASETS)}; wanted {', '.join(DATASETS)}"
        )
    parameters = inspect.signature(DATASETS[type]).parameters
    for name in options:
        if name not in parameters:
            raise ValueError(
                f"{type}: there is no option {name!r}{nearest(name, parameters)}; wanted {', '.join(parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"{type}: the option {name!r} is missing")
    hints = get_type_hints(DATASETS[type].__init__)
    for name, value in options.items():
        if name in hints and not is_of(value, hints[name]):
            raise ValueError(f"{type}: the option {name!r} must be {name_of(hints[name])}, got {value!r}")
    dataset: Dataset = DATASETS[type](**options)
    return dataset
