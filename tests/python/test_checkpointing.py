"""Activation checkpointing of the encoder's blocks."""

from __future__ import annotations

import pytest
import torch

import torchdpt

CONFIG = torchdpt.DPTConfig(
    image_size=64,
    width=32,
    depth=4,
    heads=2,
    mlp_width=64,
    taps=(0, 1, 2, 3),
    channels=(8, 8, 16, 16),
    features=16,
)


def gradients(
    model: torchdpt.DPTModel, images: torch.Tensor, checkpoint: bool
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.activation_checkpointing = checkpoint
    loss = model(images).depth.square().mean()
    return loss, list(torch.autograd.grad(loss, list(model.parameters())))


def bytes_kept(model: torchdpt.DPTModel, images: torch.Tensor, checkpoint: bool) -> int:
    """What the encoder keeps for its backward pass, besides its parameters."""
    model.activation_checkpointing = checkpoint
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.nbytes * (tensor.untyped_storage().data_ptr() not in parameters)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.encoder(images)
    return kept


@pytest.mark.parametrize("autocast", [False, True])
def test_same_gradients(autocast: bool) -> None:
    model, images = torchdpt.DPTModel(CONFIG), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, want = gradients(model, images, False)
        checkpointed_loss, got = gradients(model, images, True)
    assert torch.equal(loss, checkpointed_loss)
    largest = max(grad.abs().max() for grad in want)
    for a, b in zip(want, got, strict=True):
        # Sums of residual branches in another order; under autocast in bfloat16.
        assert (a - b).abs().max() <= (2e-2 if autocast else 1e-6) * largest


def test_less_is_kept() -> None:
    model, images = torchdpt.DPTModel(CONFIG), torch.randn(1, 3, 256, 256)
    assert bytes_kept(model, images, True) < 0.4 * bytes_kept(model, images, False)


def test_frozen_blocks_and_image_gradients_work() -> None:
    model = torchdpt.DPTModel(CONFIG)
    model.encoder.blocks[1].requires_grad_(False)
    model.activation_checkpointing = True
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    model(images).depth.sum().backward()
    assert images.grad is not None
    assert model.encoder.blocks[1].attn.qkv.weight.grad is None
    assert model.encoder.blocks[0].attn.qkv.weight.grad.abs().max() > 0


def test_second_derivative_is_refused() -> None:
    model = torchdpt.DPTModel(CONFIG)
    model.activation_checkpointing = True
    loss = model(torch.randn(1, 3, 64, 64)).depth.sum()
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(loss, model.encoder.cls_token, create_graph=True)
