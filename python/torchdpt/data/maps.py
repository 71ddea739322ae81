"""Reading images and maps from files as data sets store them: depth, classes and masks, one number a pixel."""

from __future__ import annotations

import io
import os
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdpt.image import load_image
from torchdpt.prediction_files import from_pfm

Array = np.ndarray[Any, Any]


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture, upright and in RGB (`torchdpt.load_image`); 16 bits are rounded to 8.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: if it is no image or a damaged one.
        OSError: if it cannot be read.
    """
    array = load_image(path)
    if array.dtype.kind == "f":
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def read_map(path: str | os.PathLike[str], *, key: str | None = None) -> Array:
    """Read a map of one channel with the numbers that the file holds: nothing is scaled or rounded.

    Args:
        path: What it is, its ending says. .png: gray of 1 to 16 bits, or a palette, whose indices count; .tif, .tiff:
            integers or float32; .npy, .npz; .pfm, of whose scale the sign alone counts; .dpt (Sintel); .h5, .hdf5,
            which need h5py.
        key: Which array of a .npz or HDF5 file. Default: the only one.

    Returns:
        [H, W]: an integer type, uint8 if the file has 8 bits or fewer, or floating point.

    Raises:
        ValueError: if it is damaged, of more than one channel, or in another format; the message names the file.
        OSError: if it cannot be read.
        ImportError: if it needs h5py, which is not there.
    """
    name = os.fspath(path)
    ending = os.path.splitext(name)[1].lower()
    if ending not in _READERS and ending not in _KEYED:
        raise ValueError(
            f"{name}: a map must be one of {', '.join(MAP_ENDINGS)}, got {ending or 'no ending'!r}"
            + ("; JPEG changes the numbers" if ending in (".jpg", ".jpeg") else "")
        )
    if ending in (".h5", ".hdf5"):
        h5py()  # that it is missing is no fault of the file
    with open(name, "rb") as file:
        try:
            array = _KEYED[ending](file, key) if ending in _KEYED else _READERS[ending](file.read())
            return _one_channel(array)
        except MemoryError:
            raise
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        except Exception as error:  # whatever a decoder raises: it may be anything
            raise ValueError(f"{name}: a damaged file ({error})") from error


def h5py() -> ModuleType:
    """The package h5py.

    Raises:
        ImportError: if it is not there; the message says how to get it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("reading HDF5 files needs h5py: pip install h5py") from error
    module: ModuleType = h5py
    return module


def _one_channel(array: Array) -> Array:
    shape = array.shape
    if array.ndim == 3 and 1 in (shape[0], shape[2]):
        array = array[0] if shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"a map must have one number a pixel, [H, W], got {list(shape)}")
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise ValueError(f"a map must be of integer or floating point numbers, got {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _picture(data: bytes) -> Array:
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(data), formats=["PNG", "TIFF"])
    except UnidentifiedImageError:
        raise ValueError(f"not a PNG or TIFF picture: it begins with {data[:8].hex(' ')}") from None
    with opened as image:
        frames = getattr(image, "n_frames", 1)
        if frames != 1:
            raise ValueError(f"{frames} pictures in one file, wanted one")
        if image.mode not in ("1", "L", "P", "I", "F") and not image.mode.startswith("I;16"):
            raise ValueError(
                f"a picture of mode {image.mode}, wanted one channel: pictures of depth in colour are for the eye, and "
                "classes must be their numbers"
            )
        array = np.asarray(image)
        # Pillow spreads gray of 2 and 4 bits over 0 to 255. Bit depth and colour type: PNG specification, 11.2.1.
        if image.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
            array = array // (85 if data[24] == 2 else 17)
        return array


def _npy(data: bytes) -> Array:
    if not data.startswith(b"\x93NUMPY"):
        raise ValueError("not a NumPy file, which begins with 93 4e 55 4d 50 59")
    array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def _sintel(data: bytes) -> Array:
    # The MPI Sintel depth format: a tag (202021.25 as float32), width, height, rows from the top; all little-endian.
    if data[:4] != b"PIEH" or len(data) < 12:
        raise ValueError("not a Sintel depth file, which begins with PIEH")
    width, height = np.frombuffer(data, "<i4", 2, offset=4).tolist()
    if min(width, height) < 1 or len(data) - 12 != 4 * width * height:
        raise ValueError(f"{width} x {height} pixels, and {len(data) - 12} bytes of them")
    return np.frombuffer(data, "<f4", offset=12).reshape(height, width)


def _npz(file: Any, key: str | None) -> Array:
    with np.load(file, allow_pickle=False) as arrays:
        array: Array = arrays[_key_of(list(arrays), key)]
        return array


def _hdf5(file: Any, key: str | None) -> Array:
    with h5py().File(file, "r") as arrays:
        names: list[str] = []
        arrays.visititems(lambda name, item: names.append(name) if hasattr(item, "dtype") else None)
        array: Array = arrays[_key_of(names, key.strip("/") if key else None)][()]
        return array


def _key_of(names: list[str], key: str | None) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key not in names:
        raise ValueError(f"holds {', '.join(sorted(names)) or 'nothing'}; the key must name one of them, got {key!r}")
    return key


_READERS = {
    ".png": _picture,
    ".tif": _picture,
    ".tiff": _picture,
    ".npy": _npy,
    ".pfm": from_pfm,
    ".dpt": _sintel,
}
_KEYED = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5}
MAP_ENDINGS = (*_READERS, *_KEYED)
