"""torchdpt.data.maps: files written by other programs, or byte by byte, are read with the numbers that they hold."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from torchdpt.data.maps import read_image, read_map

RNG = np.random.default_rng(0)


def png(rows: list[bytes], width: int, bits: int, colour: int = 0, palette: bytes = b"") -> bytes:
    """A PNG file of packed rows, by the PNG specification."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"PLTE", palette) if palette else b""]
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_16_bit_png_keeps_its_16_bits(tmp_path: Path) -> None:
    want = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / "cv2.png"), want)
    (tmp_path / "hand.png").write_bytes(png([row.astype(">u2").tobytes() for row in want], 256, 16))
    for name in ("cv2.png", "hand.png"):
        found = read_map(tmp_path / name)
        assert found.dtype == np.uint16
        assert np.array_equal(found, want)


def test_8_bit_png_and_palette_give_their_numbers(tmp_path: Path) -> None:
    want = np.arange(256, dtype=np.uint8).reshape(8, 32)
    cv2.imwrite(str(tmp_path / "gray.png"), want)
    palette = RNG.integers(0, 256, 768, dtype=np.uint8).tobytes()
    (tmp_path / "palette.png").write_bytes(png([row.tobytes() for row in want], 32, 8, 3, palette))
    for name in ("gray.png", "palette.png"):
        found = read_map(tmp_path / name)
        assert found.dtype == np.uint8
        assert np.array_equal(found, want)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("palette", [b"", bytes(range(48))])
def test_png_of_fewer_bits_gives_its_numbers(bits: int, palette: bytes, tmp_path: Path) -> None:
    want = RNG.integers(0, 2**bits, (5, 16), dtype=np.uint8)
    rows = [int("".join(f"{v:0{bits}b}" for v in row), 2).to_bytes(2 * bits, "big") for row in want]
    (tmp_path / "a.png").write_bytes(png(rows, 16, bits, 3 if palette else 0, palette[: 3 * 2**bits]))
    found = read_map(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert np.array_equal(found, want)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_tiff(dtype: type, compression: str | None, tmp_path: Path) -> None:
    want = (RNG.random((7, 9)) * 250).astype(dtype)
    if compression is None:
        tifffile.imwrite(tmp_path / "a.tiff", want)
    else:
        cv2.imwrite(str(tmp_path / "a.tiff"), want)  # LZW is what it writes
    found = read_map(tmp_path / "a.tiff")
    assert found.dtype == dtype
    assert np.array_equal(found, want)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<u2", ">u2", "|b1"])
def test_npy_and_npz(dtype: str, tmp_path: Path) -> None:
    want = (RNG.random((4, 5)) * 9).astype(dtype)
    np.save(tmp_path / "a.npy", want)
    np.savez(tmp_path / "one.npz", depth=want)
    np.savez_compressed(tmp_path / "two.npz", depth=want, other=want + want)
    for found in (
        read_map(tmp_path / "a.npy"),
        read_map(tmp_path / "one.npz"),
        read_map(tmp_path / "two.npz", key="depth"),
    ):
        assert found.dtype == (np.uint8 if dtype == "|b1" else np.dtype(dtype).newbyteorder("="))
        assert np.array_equal(found, want)
    with pytest.raises(ValueError, match=r"two.npz: holds depth, other; the key must name one of them, got None"):
        read_map(tmp_path / "two.npz")


@pytest.mark.parametrize("shape", [(1, 4, 5), (4, 5, 1)])
def test_an_axis_of_one_channel_is_left_out(shape: tuple[int, ...], tmp_path: Path) -> None:
    want = RNG.random((4, 5))
    np.save(tmp_path / "a.npy", want.reshape(shape))
    assert np.array_equal(read_map(tmp_path / "a.npy"), want)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("scale", ["1.0", "1", "0.00392157", "1e-3"])
def test_pfm_has_its_bottom_row_first(order: str, scale: str, tmp_path: Path) -> None:
    # The first byte of the data may be white space.
    want = np.array([[1, 2, 3], [4, 5, struct.unpack(f"{order}f", b"\n\n\n\n")[0]]], np.float32)
    rows = b"".join(struct.pack(f"{order}3f", *row[::step]) for row, step in ((want[1], 1), (want[0], 1)))
    sign = "-" if order == "<" else ""
    (tmp_path / "a.pfm").write_bytes(f"Pf\n3 2\n{sign}{scale}\n".encode() + rows)
    found = read_map(tmp_path / "a.pfm")
    assert found.dtype == np.float32
    assert found.dtype.isnative
    assert np.array_equal(found, want)


def test_pfm_of_opencv(tmp_path: Path) -> None:
    want = RNG.random((6, 4)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "a.pfm"), want)
    assert np.array_equal(read_map(tmp_path / "a.pfm"), want)


def test_sintel_depth(tmp_path: Path) -> None:
    want = [[1.5, 2.0, 1e6], [0.25, 3.0, 4.0]]
    data = struct.pack("<fii", 202021.25, 3, 2) + struct.pack("<6f", *want[0], *want[1])
    (tmp_path / "a.dpt").write_bytes(data)
    assert read_map(tmp_path / "a.dpt").tolist() == want
    (tmp_path / "b.dpt").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"b.dpt: 3 x 2 pixels, and 23 bytes of them"):
        read_map(tmp_path / "b.dpt")
    (tmp_path / "c.dpt").write_bytes(b"what")
    with pytest.raises(ValueError, match=r"c.dpt: not a Sintel depth file"):
        read_map(tmp_path / "c.dpt")


def test_hdf5(tmp_path: Path) -> None:
    want = RNG.random((4, 5)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["depth"] = want
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["gt/depth"], file["gt/image"] = want, want + 1
    assert np.array_equal(read_map(tmp_path / "a.h5"), want)
    assert np.array_equal(read_map(tmp_path / "b.hdf5", key="/gt/depth"), want)
    with pytest.raises(ValueError, match=r"b.hdf5: holds gt/depth, gt/image; the key .* got 'depth'"):
        read_map(tmp_path / "b.hdf5", key="depth")
    (tmp_path / "c.h5").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"c.h5: a damaged file"):
        read_map(tmp_path / "c.h5")


def test_without_h5py_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        read_map(tmp_path / "a.h5")


def encoded(mode: str, ending: str, size: tuple[int, int] = (4, 3)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, ending)
    return file.getvalue()


def array(values: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jpg", encoded("L", "JPEG"), r"a.jpg: a map must be one of .png, .*got '.jpg'; JPEG changes the numbers"),
        ("a", b"", r"a: a map must be one of .*got 'no ending'"),
        ("a.png", encoded("RGB", "PNG"), r"a.png: a picture of mode RGB, wanted one channel: .* for the eye"),
        ("a.png", encoded("LA", "PNG"), r"a.png: a picture of mode LA, wanted one channel"),
        ("a.png", b"text", r"a.png: not a PNG or TIFF picture: it begins with 74 65 78 74"),
        ("a.png", encoded("L", "PNG", (90, 90))[:60], r"a.png: a damaged file"),
        ("a.npy", b"text", r"a.npy: not a NumPy file"),
        ("a.npy", array([1, 2]), r"a.npy: a map must have one number a pixel, \[H, W\], got \[2\]"),
        ("a.npy", array(np.zeros((3, 4, 3))), r"a.npy: .*got \[3, 4, 3\]"),
        ("a.npy", array(np.zeros((0, 4))), r"a.npy: .*got \[0, 4\]"),
        ("a.npy", array([["a"]]), r"a.npy: a map must be of integer or floating point numbers, got <U1"),
        ("a.npy", array([[1j]]), r"a.npy: a map must be of integer .*complex128"),
        ("a.pfm", b"PF\n1 1\n-1\n" + bytes(12), r"a.pfm: a PFM file of three channels, wanted one"),
        ("a.pfm", b"Pf\n2 1\n-1\n" + bytes(7), r"a.pfm: 2 x 1 pixels are 8 bytes, and there are 7"),
        ("a.pfm", b"Pf\n2 one", r"a.pfm: not a PFM file, or its header is damaged"),
    ],
)
def test_what_is_no_map_is_refused(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_map(tmp_path / name)


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_map(tmp_path / "a.png")


def test_images_are_8_bit_rgb(tmp_path: Path) -> None:
    colours = RNG.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), colours)
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / "b.png"), levels)
    found = read_image(tmp_path / "b.png")
    assert found.dtype == torch.uint8
    want = np.round(levels / 65535 * 255).astype(np.uint8)
    assert np.array_equal(found, np.repeat(want[:, :, None], 3, axis=2))
    tifffile.imwrite(tmp_path / "c.tiff", np.array([[0, 0.5, 1]], np.float32))
    assert read_image(tmp_path / "c.tiff")[0].tolist() == [[0] * 3, [128] * 3, [255] * 3]
