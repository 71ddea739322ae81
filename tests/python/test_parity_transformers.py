"""Ours against transformers' DPTForDepthEstimation: outputs, gradients and statistics."""

import copy
import logging
import tempfile

import pytest
import torch
from parity import (
    BATCH_NORM,
    DTYPES,
    NARROW,
    ODD,
    assert_can_fail,
    assert_parity,
    changed,
    compare,
    images,
    load,
    make_peer,
    peer_named,
)
from torch import nn

from torchdpt import DPTConfig

# Outputs


@pytest.mark.parametrize(
    ("shape", "eps"),
    [(NARROW, 1e-12), (NARROW, 1e-3), (ODD, 1e-6)],
    ids=["w60h5-1e-12", "w60h5-1e-3", "w63h7-1e-6"],
)
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("readout", ["ignore", "add", "project"])
def test_output_equals_transformers(tmp_path, readout, qkv_bias, shape, eps):
    peer = make_peer(**shape, readout_type=readout, qkv_bias=qkv_bias, layer_norm_eps=eps)
    for dtype in (torch.float64, torch.float32):
        ours = load(peer.to(dtype), tmp_path / str(dtype))
        assert next(ours.parameters()).dtype == dtype
        assert ours.config.readout == readout
        assert ours.config.qkv_bias == qkv_bias
        assert ours.config.layer_norm_eps == eps
        compare(ours, peer, batches=(1, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_equals_transformers_below_the_native_size(tmp_path, dtype, narrow):
    x = images(32, 3, dtype)
    peer = changed(narrow).to(dtype)
    ours = load(peer, tmp_path)
    with torch.no_grad():
        assert_parity(ours(x).depth, peer(x).predicted_depth)


@pytest.mark.parametrize("dtype", DTYPES)
def test_output_equals_transformers_at_patch_8(tmp_path, dtype):
    fields = NARROW | dict(image_size=32, patch_size=8, reassemble_factors=[2, 1, 0.5, 0.25])
    peer = make_peer(**fields).to(dtype)
    ours = load(peer, tmp_path)
    assert ours.config.strides == (4, 8, 16, 32)
    compare(ours, peer, batches=(1, 3))


def test_output_equals_transformers_at_base_width(tmp_path):
    fields = dict(image_size=64, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], layer_norm_eps=1e-6)
    peer = make_peer(dtype=torch.float32, **fields)
    ours = load(peer, tmp_path)
    compare(ours, peer, batches=(1, 3))
    compare(ours.double(), peer.double(), sizes=(64,), batches=(3,))


def test_output_equals_transformers_for_the_whole_base_network():
    peer = make_peer(dtype=torch.float32, batch=1)
    with tempfile.TemporaryDirectory() as folder:  # 440 MB that should not outlive the test
        ours = load(peer, folder)
        assert ours.config == DPTConfig.preset("dpt_base").replace(layer_norm_eps=1e-12)
        compare(ours, peer)
        compare(ours.double(), peer.double(), sizes=(64,), batches=(1,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_equals_transformers_with_its_statistics(tmp_path, dtype, training):
    peer = make_peer(**BATCH_NORM).to(dtype)
    ours = load(peer, tmp_path)
    assert ours.config.fusion_norm == "batch"
    before = {name: buffer.clone() for name, buffer in peer_named(ours.named_buffers()).items()}
    peer.train(training), ours.train(training)
    with torch.no_grad():
        for seed in (1, 2):
            x = images(64, 3, dtype, seed)
            reference = peer(x).predicted_depth
            if not training:  # the last bias was placed for the running statistics
                assert_can_fail(reference)
            assert_parity(ours(x).depth, reference)
    theirs = dict(peer.named_buffers())
    after = peer_named(ours.named_buffers())
    assert len(after) == 7 * 2 * 3  # 7 units that run, 2 layers, mean, variance and count
    for name, buffer in after.items():
        if name.endswith("num_batches_tracked"):
            assert buffer == theirs[name] == 5 + 2 * training
        else:
            assert torch.equal(buffer, before[name]) is not training
            assert_parity(buffer, theirs[name])


def test_layers_after_the_last_tap_are_ignored(tmp_path, caplog):
    peer = make_peer(**(NARROW | dict(num_hidden_layers=8)))
    with caplog.at_level(logging.INFO, logger="torchdpt"):
        ours = load(peer, tmp_path)
    assert ours.config.depth == 6
    assert "dpt.encoder.layer.7.intermediate.dense.weight" in caplog.text
    assert "dpt.encoder.layer.5." not in caplog.text
    compare(ours, peer)


# The comparison finds what it should


TAPS = [1, 3, 5, 6]
MOVED_TAPS = [[0, 3, 5, 6], [1, 4, 5, 6], [1, 3, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize(
    ("dtype", "fields"),
    [
        pytest.param(torch.float32, dict(layer_norm_eps=1e-2), id="eps 1e-2"),
        pytest.param(torch.float32, dict(layer_norm_eps=1e-3), id="eps 1e-3"),
        # What separates timm from transformers' default is beyond float32, and not beyond float64.
        pytest.param(torch.float64, dict(layer_norm_eps=1e-6), id="eps 1e-6"),
        pytest.param(torch.float32, dict(hidden_act="gelu_new"), id="gelu_new"),
        pytest.param(torch.float32, dict(hidden_act="gelu_pytorch_tanh"), id="gelu_pytorch_tanh"),
        pytest.param(torch.float32, dict(hidden_act="relu"), id="relu"),
        *(pytest.param(torch.float32, dict(backbone_out_indices=taps), id=f"taps {taps}") for taps in MOVED_TAPS),
        # The level order: same shapes, other places.
        pytest.param(torch.float32, dict(head_in_index=-2), id="head on the level below"),
    ],
)
def test_comparison_fails_when_the_peer_is_another_network(tmp_path, dtype, fields):
    peer = make_peer(**(NARROW | dict(num_hidden_layers=8, backbone_out_indices=TAPS))).to(dtype)
    ours = load(peer, tmp_path)
    compare(ours, peer)
    with pytest.raises(AssertionError):
        compare(ours, changed(peer, **fields))


@pytest.mark.parametrize(
    "swap",
    [
        ("dpt.encoder.layer.0.attention.attention.query", "dpt.encoder.layer.0.attention.attention.key"),
        ("dpt.encoder.layer.5.attention.attention.key", "dpt.encoder.layer.5.attention.attention.value"),
        ("dpt.encoder.layer.2.layernorm_before", "dpt.encoder.layer.2.layernorm_after"),
        ("neck.reassemble_stage.readout_projects.0.0", "neck.reassemble_stage.readout_projects.1.0"),
        ("neck.fusion_stage.layers.2.residual_layer1", "neck.fusion_stage.layers.2.residual_layer2"),
        ("neck.fusion_stage.layers.1.projection", "neck.fusion_stage.layers.2.projection"),
    ],
)
def test_comparison_fails_when_two_layers_of_the_peer_are_swapped(tmp_path, swap, narrow):
    peer = changed(narrow).float()
    ours = load(peer, tmp_path)
    first, second = (peer.get_submodule(name) for name in swap)
    values = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in (first, second)]
    first.load_state_dict(values[1]), second.load_state_dict(values[0])
    with pytest.raises(AssertionError):
        compare(ours, peer)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_comparison_fails_on_values_that_are_not_finite(value):
    good = torch.rand(1, 8, 8) + 0.5
    bad = good.clone()
    bad[0, 3, 4] = value
    for ours, reference in ((bad, good), (good, bad), (bad, bad)):
        with pytest.raises(AssertionError):
            assert_parity(ours, reference)


@pytest.mark.parametrize("reference", [torch.ones(1, 8, 8), torch.rand(1, 8, 8) - 0.9, torch.zeros(1, 8, 8)])
def test_comparison_refuses_a_reference_that_cannot_fail(reference):
    with pytest.raises(AssertionError):
        assert_can_fail(reference.relu())


# Gradients


def gradients(network, depth_of, x):
    """Of a generic scalar of the output, with respect to the parameters that have one, and to the images."""
    x = x.clone().requires_grad_()
    depth = depth_of(network(x))
    weights = torch.randn(depth.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    # Divided by the number of pixels: gradients are of order one, so that absolute bounds mean something.
    (depth * weights.to(depth.dtype)).sum().div(depth.numel()).backward()
    named = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
    return named, x.grad


@torch.no_grad()
def images_off_the_kinks(peer, size, batch):
    """Images for which no input of a ReLU lies within rounding of zero: there two right gradients differ."""
    probe = copy.deepcopy(peer).double()  # batch normalisation would change the peer's statistics
    margins = []

    def watch(module, args):
        margins.append((args[0].abs().min() / args[0].std()).item())

    for module in probe.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(watch)
    for seed in range(50):
        margins.clear()
        x = images(size, batch, torch.float32, seed)
        probe(x.double())
        # 1e-5: several times what float32 loses up to the last layer. A pixel in 100,000 lies nearer.
        if min(margins) > 1e-5:
            assert len(margins) == 16  # two in each of seven units that run, two in the head
            return x
    raise AssertionError("no such images")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("fields", "training"),
    [
        (NARROW, False),
        (NARROW | dict(readout_type="add"), True),
        (ODD | dict(readout_type="ignore", qkv_bias=False, layer_norm_eps=1e-3), True),
        (BATCH_NORM, False),
        (BATCH_NORM, True),
    ],
    ids=["project", "add", "ignore", "batch norm, eval", "batch norm, train"],
)
def test_gradients_equal_transformers(tmp_path, dtype, fields, training):
    peer = make_peer(**fields).to(dtype)
    ours = load(peer, tmp_path)
    ours.train(training), peer.train(training)
    x = images_off_the_kinks(peer, 32, 2).to(dtype)
    named, image_gradient = gradients(ours, lambda output: output.depth, x)
    got = peer_named(named) | {"images": image_gradient}
    named, image_gradient = gradients(peer, lambda output: output.predicted_depth, x)
    want = dict(named) | {"images": image_gradient}

    assert len(named) == len(want) - 1
    assert {name for name, _ in ours.named_parameters()} == {
        n for n, p in ours.named_parameters() if p.grad is not None
    }
    assert got.keys() == want.keys()
    largest = max(gradient.abs().max() for gradient in want.values())
    for name, gradient in want.items():
        assert torch.isfinite(gradient).all(), name
        assert torch.isfinite(got[name]).all(), name
        difference = (got[name] - gradient).abs().max()
        own = gradient.abs().max()
        key_bias = name.endswith("attention.key.bias")
        if not key_bias:
            assert own > 1e-5 * largest, f"{name}: a gradient too small to compare"
        if dtype == torch.float64:
            # Softmax does not change when a key bias adds one number to a whole row: the gradient is zero, and what
            # is computed is rounding, at most some hundred ulps (2.2e-16) of terms of order one.
            bound = 1e-12 if key_bias else 1e-8 * own
            if key_bias:
                assert own <= 1e-12, name
        else:
            # 1e-4: sums over all pixels that cancel, some hundred ulps of 1.2e-7. The other bound is for gradients
            # that are zero but for rounding.
            bound = max(1e-4 * own, 1e-6 * largest)
        assert difference <= bound, f"{name}: {difference:.2e} of {own:.2e}, largest of all {largest:.2e}"
