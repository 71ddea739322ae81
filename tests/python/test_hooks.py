"""Hooks, replaced parts, parametrizations: what takes part in a call, and what cannot."""

import copy

import pytest
import torch
from narrow import BATCH_NORM, NARROW, STAGES, images, make_model, same_bits
from torch import nn
from torch.nn.utils import parametrize, prune

from torchdpt import DPTModel


@pytest.mark.parametrize("stages", [(name,) for name in STAGES] + [STAGES], ids=",".join)
def test_hooks_on_stages_run_and_change_nothing(stages):
    model = make_model(BATCH_NORM)
    x = images()
    want = copy.deepcopy(model)(x).depth
    seen = []
    for name in stages:
        stage = getattr(model, name)
        stage.register_forward_pre_hook(lambda module, args, name=name: seen.append(("before", name)))
        stage.register_forward_hook(lambda module, args, output, name=name: seen.append(("after", name)))
    assert torch.equal(model(x).depth, want)
    assert seen == [(when, name) for name in stages for when in ("before", "after")]


def test_hooks_can_change_a_result():
    model = make_model().eval()
    x = images()
    want = model(x).depth
    handle = model.fusion.register_forward_hook(lambda module, args, output: tuple(map * 0 for map in output))
    changed = model(x).depth
    assert not torch.equal(changed, want)
    assert torch.equal(changed, model.head(torch.zeros(2, 14, 32, 48)).depth)
    handle.remove()
    assert torch.equal(model(x).depth, want)


def test_backward_hook_on_the_head_sees_the_gradients():
    model = make_model()
    seen = []
    model.head.register_full_backward_hook(lambda module, into, out: seen.append((into, out)))
    model(images()).depth.sum().backward()
    (((into,), out),) = seen
    assert into.shape == (2, 14, 32, 48)
    assert into.any()
    assert torch.equal(out[0], torch.ones(2, 64, 96))


HOOKS = {
    "forward": lambda module: module.register_forward_hook(lambda *args: None),
    "forward pre": lambda module: module.register_forward_pre_hook(lambda *args: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *args: None),
    "backward pre": lambda module: module.register_full_backward_pre_hook(lambda *args: None),
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(
    "name",
    ["encoder.blocks", "encoder.blocks.2.attn.qkv", "reassemble.1.read", "fusion.0.unit1.conv1", "head.depth.conv2"],
)
def test_hook_inside_a_stage_is_refused_by_name(name, hook):
    model = make_model()
    x = images()
    want = model(x).depth
    handle = HOOKS[hook](model.get_submodule(name))
    with pytest.raises(ValueError, match=f"`{name}` has a hook.*hooks work on model.encoder, model.reassemble"):
        model(x)
    handle.remove()
    assert torch.equal(model(x).depth, want)


def test_replaced_submodule_is_refused():
    model = make_model()
    model.encoder.blocks[1].attn.qkv = nn.Linear(24, 72)
    with pytest.raises(ValueError, match="a submodule of `encoder` was replaced, which cannot take part"):
        model(images())
    with pytest.raises(ValueError, match="parametrize"):
        model.encoder(images())


def test_pruning_is_refused_with_the_way_out():
    model = make_model()
    prune.l1_unstructured(model.head.depth.conv1, "weight", 0.5)
    with pytest.raises(
        ValueError, match=r"`head\.depth\.conv1` has a hook \(torch.nn.utils.prune adds one\).*parametrize"
    ):
        model(images())
    prune.remove(model.head.depth.conv1, "weight")
    assert model(images()).depth.shape == (2, 64, 96)


def test_convert_sync_batchnorm_is_refused():
    with pytest.raises(ValueError, match=r"convert_sync_batchnorm cannot reach.*model\.synchronize_batch_norm\(\)"):
        nn.SyncBatchNorm.convert_sync_batchnorm(make_model(BATCH_NORM))
    model = make_model()  # without batch normalisation there is nothing to convert
    assert torch.equal(nn.SyncBatchNorm.convert_sync_batchnorm(model)(images()).depth, make_model()(images()).depth)


def test_parametrization_takes_part_and_is_saved_as_it_acts(tmp_path):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model, doubled = make_model(), make_model()
    with torch.no_grad():
        doubled.encoder.blocks[0].mlp.fc1.weight.mul_(2)
    parametrize.register_parametrization(model.encoder.blocks[0].mlp.fc1, "weight", Doubled())
    x = images()
    assert torch.equal(model(x).depth, doubled(x).depth)
    model(x).depth.sum().backward()
    assert model.encoder.blocks[0].mlp.fc1.parametrizations.weight.original.grad.any()
    model.save_pretrained(tmp_path)
    assert same_bits(DPTModel.from_pretrained(tmp_path).state_dict(), doubled.state_dict())


def test_parts_are_indexed_and_a_wrong_index_says_what_is_there():
    blocks = DPTModel(NARROW).encoder.blocks
    assert blocks[3] is blocks.get_submodule("3")
    with pytest.raises(IndexError, match=r"no part 4 here; parts are \['0', '1', '2', '3'\]"):
        blocks[4]
