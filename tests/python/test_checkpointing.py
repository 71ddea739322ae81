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
    # Blocks keep no normalised or activated tokens in either case: 10 D for each token against D.
    assert bytes_kept(model, images, True) < 0.5 * bytes_kept(model, images, False)


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


def test_frozen_encoder_works() -> None:
    model, images = torchdpt.DPTModel(CONFIG), torch.randn(1, 3, 64, 64)
    model.encoder.requires_grad_(False)
    want = torch.autograd.grad(model(images).depth.sum(), list(model.head.parameters()))
    model.activation_checkpointing = True
    got = torch.autograd.grad(model(images).depth.sum(), list(model.head.parameters()))
    assert all(map(torch.equal, got, want))
    assert not any(tap.requires_grad for tap in model.encoder(images))


def test_frozen_network_gives_gradients_of_images() -> None:
    model, images = torchdpt.DPTModel(CONFIG).requires_grad_(False), torch.randn(1, 3, 64, 64, requires_grad=True)
    (want,) = torch.autograd.grad(model(images).depth.sum(), images)
    model.activation_checkpointing = True
    (got,) = torch.autograd.grad(model(images).depth.sum(), images)
    assert want.abs().max() > 0
    # Residual branches summed in another order, float32.
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_backward_may_run_outside_autocast() -> None:
    # The recomputation is under the autocast of the forward pass: else the gradients are those of another network.
    model, images = torchdpt.DPTModel(CONFIG), torch.randn(2, 3, 64, 64)
    gradients_of = []
    for checkpoint in (False, True):
        model.activation_checkpointing = checkpoint
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(images).depth.float().square().mean()
        loss.backward()
        gradients_of.append([parameter.grad.clone() for parameter in model.parameters()])
        assert not torch.is_autocast_enabled("cpu")
    largest = max(grad.abs().max() for grad in gradients_of[0])
    for a, b in zip(*gradients_of, strict=True):
        # bfloat16: sums of residual branches in another order, 2^-8 each.
        assert (a - b).abs().max() <= 2e-2 * largest


def test_retained_graph_gives_the_same_gradients_twice() -> None:
    model = torchdpt.DPTModel(CONFIG)
    model.activation_checkpointing = True
    loss = model(torch.randn(1, 3, 64, 64)).depth.sum()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, list(model.parameters()))))


def test_off_under_no_grad() -> None:
    model, images = torchdpt.DPTModel(CONFIG), torch.randn(1, 3, 64, 64)
    want = model(images).depth
    model.activation_checkpointing = True
    assert model.encoder._checkpoint()
    with torch.no_grad():
        assert not model.encoder._checkpoint()
        assert torch.equal(model(images).depth, want)


def test_meta_tensors_have_shapes() -> None:
    model = torchdpt.DPTModel(CONFIG, device="meta")
    model.activation_checkpointing = True
    model(torch.empty(2, 3, 64, 96, device="meta")).depth.sum().backward()
    assert model.encoder.blocks[0].attn.qkv.weight.grad.shape == (96, 32)


def test_torch_func_grad() -> None:
    model, images = torchdpt.DPTModel(CONFIG), torch.randn(1, 3, 64, 64)
    model.activation_checkpointing = True
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    got = torch.func.grad(lambda p: torch.func.functional_call(model, p, (images,)).depth.sum())(parameters)
    want = torch.autograd.grad(model(images).depth.sum(), list(model.parameters()))
    largest = max(grad.abs().max() for grad in want)
    for a, b in zip(got.values(), want, strict=True):
        assert (a - b).abs().max() <= 1e-5 * largest  # float32, sums in another order
