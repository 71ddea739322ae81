"""Our safetensors reader and writer against the safetensors package, in both directions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from torchdpt import _C

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def random_tensors(seed: int) -> dict[str, Tensor]:
    """Any dtype, rank 0 to 4, empty ones among them, names with awkward characters."""
    draw = random.Random(seed)
    tensors = {}
    for i in range(draw.randrange(12)):
        shape = [draw.choice([0, 1, 2, 3, 7]) for _ in range(draw.randrange(5))]
        name = draw.choice(["a", "x.y", "tab\t", 'quote"', "\u00e9\u4e2d", "back\\slash"]) + str(i)
        tensors[name] = torch.randint(0, 2, shape).to(draw.choice(DTYPES))
    return tensors


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.shape == theirs[name].shape
        assert torch.equal(tensor, theirs[name])


@pytest.mark.parametrize("seed", range(20))
def test_reads_what_the_package_writes(seed: int, tmp_path: Path) -> None:
    tensors, metadata = random_tensors(seed), {"format": "pt", "\u00e9": "\u4e2d"}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", metadata)
    read_metadata, read = _C.read_safetensors(str(tmp_path / "a.safetensors"))
    assert read_metadata == metadata
    assert_same(read, tensors)


@pytest.mark.parametrize("seed", range(20))
def test_package_reads_what_we_write(seed: int, tmp_path: Path) -> None:
    tensors, metadata = random_tensors(seed), {"\u00e9": 'quote" \n'}
    _C.write_safetensors(str(tmp_path / "a.safetensors"), tensors, metadata)
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors"), tensors)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == metadata


def test_writes_strided_tensors(tmp_path: Path) -> None:
    tensor = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[:, :, ::2]
    _C.write_safetensors(str(tmp_path / "a.safetensors"), {"a": tensor}, {})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["a"], tensor)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",)

    torch.save({"a": Harmful()}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        _C.read_safetensors(str(tmp_path / "a.safetensors"))
    assert not (tmp_path / "harm").exists()
