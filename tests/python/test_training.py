"""Training: statistics, gradients, activation checkpointing."""

import pytest
import torch
from narrow import BATCH_NORM, DISTILLED, NARROW, by_stages, images, make_model


@pytest.mark.parametrize("frozen", [False, True])
def test_fusion_in_eval_mode_keeps_its_running_statistics(frozen):
    model = make_model(BATCH_NORM)
    if frozen:
        model.fusion.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    depth = model(images()).depth
    assert len(before) == 7 * 2 * 3
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) is frozen, name
    if frozen:
        assert torch.equal(depth, model.eval()(images()).depth)


def test_every_parameter_gets_a_gradient():
    for config in (NARROW, DISTILLED.replace(readout="add"), BATCH_NORM):
        model = make_model(config, torch.float64)
        (model(images(dtype=torch.float64)).depth * images(1, dtype=torch.float64, seed=5)[0, :1]).sum().backward()
        for name, parameter in model.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("config", [NARROW, BATCH_NORM], ids=["plain", "batch norm"])
@pytest.mark.parametrize("by", ["one call", "stages"])
def test_activation_checkpointing_gives_the_same_loss_and_gradients(config, by):
    results = []
    for on in (False, True):
        model = make_model(config)
        assert model.activation_checkpointing is False
        model.activation_checkpointing = on
        assert model.encoder.activation_checkpointing is on
        x = images().requires_grad_()
        loss = (model(x) if by == "one call" else by_stages(model, x)).depth.square().mean()
        loss.backward()
        results.append([loss, x.grad, *(parameter.grad for parameter in model.parameters()), *model.buffers()])
    for plain, checkpointed in zip(*results, strict=True):
        # The same operations on the same values: only the order in which gradients of one tensor meet may differ.
        assert (plain - checkpointed).abs().max() <= 1e-6 * plain.abs().max()


def test_activation_checkpointing_keeps_less():
    def saved(on):
        model = make_model()
        model.activation_checkpointing = on
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model.encoder(images())
        return sum(sizes)

    # Weights are counted too, in both.
    assert saved(True) < 0.7 * saved(False)


def test_activation_checkpointing_without_gradients_changes_nothing():
    model = make_model()
    want = model(images()).depth
    model.activation_checkpointing = True
    with torch.no_grad():
        assert torch.equal(model(images()).depth, want)


def test_second_derivative_through_activation_checkpointing_is_refused():
    model = make_model()
    model.activation_checkpointing = True
    x = images().requires_grad_()
    with pytest.raises(RuntimeError, match=r"second derivative .* not supported; switch activation checkpointing off"):
        torch.autograd.grad(model(x).depth.sum(), x, create_graph=True)


def test_some_steps_of_training_lower_a_loss():
    model = make_model()
    x, target = images(), images(1, seed=9)[:, 0].abs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (model(x).depth - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
