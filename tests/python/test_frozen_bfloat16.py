"""Frozen models in bfloat16, over the whole family and on a photograph."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import skimage
import torch
from networks import FAMILY, HYBRID, JOINT, VIT, make_model
from test_frozen import EACH, error, exact, same_bits, tensors

from torchdpt import DPTModel, DPTOutput, FrozenModel


def eager(model: DPTModel, images: torch.Tensor) -> DPTOutput:
    """The network with tensors and activations in bfloat16."""
    with torch.no_grad():
        output: DPTOutput = copy.deepcopy(model).to(torch.bfloat16)(images.to(torch.bfloat16))
        return output


@EACH
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_error_is_half_of_the_eager_networks_at_most(name: str, size: tuple[int, int]) -> None:
    # Eager rounds activations, too, between all operations; frozen, only the factors of products.
    model = make_model(FAMILY[name])
    images = torch.randn(2, 3, *size)
    want = exact(model, images)
    assert error(model.freeze(torch.bfloat16)(images), want) <= 0.5 * error(eager(model, images), want)


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (16, 208), (112, 64)])
def test_sizes_that_are_no_multiples_of_32(size: tuple[int, int]) -> None:
    for config in (VIT, HYBRID):
        model = make_model(config)
        images = torch.randn(1, 3, *size)
        want = exact(model, images)
        assert error(model.freeze(torch.bfloat16)(images), want) <= 0.5 * error(eager(model, images), want)


@pytest.mark.parametrize("name", ["coffee", "astronaut"])
def test_photograph_is_within_a_fiftieth_of_the_range(name: str) -> None:
    model = DPTModel.from_pretrained("demo")
    images = model.processor(getattr(skimage.data, name)())[None]
    assert error(model.freeze(torch.bfloat16)(images), exact(model, images)) < 2e-2


@EACH
def test_threads_batches_and_files_do_not_change_a_bit(name: str, tmp_path: Path) -> None:
    model = make_model(FAMILY[name])
    frozen = model.freeze(torch.bfloat16, threads=1)
    images = torch.randn(3, 3, 64, 96)
    want = frozen(images)
    assert same_bits(model.freeze(torch.bfloat16, threads=5)(images), want)
    for i in range(3):
        alone = frozen(images[i : i + 1])
        assert all(torch.equal(tensors(want)[key][i], tensor[0]) for key, tensor in tensors(alone).items())
    frozen.save(tmp_path / "model.frozen")
    loaded = FrozenModel.load(tmp_path / "model.frozen", threads=2)
    assert loaded.dtype == torch.bfloat16
    assert same_bits(loaded(images), want)


def test_many_threads_may_call_one_model() -> None:
    frozen = make_model(VIT.replace(**JOINT)).freeze(torch.bfloat16, threads=1)
    images = [torch.randn(1, 3, 32 * (1 + i % 3), 64) for i in range(8)]
    want = [frozen(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(frozen, images * 4))
    assert all(same_bits(one, want[i % 8]) for i, one in enumerate(got))
