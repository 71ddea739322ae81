"""The family's other networks, whole, against slow float64 references in NumPy, and their gradients."""

from types import SimpleNamespace

import numpy as np
import pytest
import reference_family
import torch
from reference import arrays, assert_parity, random
from reference_family import (
    ALL_TOKENS,
    CLASSES,
    GROUPED,
    HYBRID,
    METRIC,
    MIDAS,
    SEGMENTATION,
    THIN,
    VIT,
    assert_all_parity,
    assert_statistics,
    make_model,
    network,
    numpy,
    place_last_bias,
)

from torchdpt import DPTModel

# Of the central differences, relative to each tensor. A larger one takes some of the 1e5 ReLUs and maxima over their
# kinks, each of which costs about 1e-5 of the slope.
STEP = 1e-8
# Rounding leaves some 1e-15 of the loss, which over STEP is 1e-7 of a slope of the loss's size.
GRADIENT_TOLERANCE = 1e-5


@pytest.fixture
def open_shares(monkeypatch):
    """Of each ReLU of the reference that is called in the test, which share of its values is open."""
    shares = []

    def recording(x):
        shares.append((x > 0).mean())
        return np.where(x > 0, x, 0)

    monkeypatch.setattr(reference_family, "relu", recording)
    return shares


NETWORKS = {
    "hybrid": HYBRID,
    "hybrid, later standardization": HYBRID.replace(weight_standardization="variance", readout="add"),
    "hybrid, all tokens": ALL_TOKENS,
    "hybrid, metric": HYBRID.replace(**METRIC),
    "hybrid, classes": HYBRID.replace(**SEGMENTATION),
    "hybrid, joint": HYBRID.replace(**CLASSES, auxiliary_head="last"),
    "midas": THIN.replace(**MIDAS),
    "midas, grouped": GROUPED.replace(**MIDAS),
    "midas, joint": THIN.replace(**MIDAS, num_classes=7),
    "residual, classes": GROUPED.replace(**SEGMENTATION),
    "vit, classes": VIT.replace(**SEGMENTATION),
    "vit, joint and metric": VIT.replace(**CLASSES, **METRIC, auxiliary_head="last"),
}
networks = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS.keys())


def prepared(config, images, training):
    """A model whose depth is neither clipped nor constant."""
    model = make_model(config)
    if config.depth_head:
        place_last_bias(model, network(images.numpy(), arrays(model), config, training).fused[0])
    return model.train(training)


@networks
@pytest.mark.parametrize(("size", "training"), [((96, 64), False), ((32, 64), True)], ids=["eval", "train"])
def test_network_equals_reference(config, size, training, open_shares):
    images = random(2, 3, *size)
    model = prepared(config, images, training)
    w = arrays(model)
    open_shares.clear()
    want = network(images.numpy(), w, config, training)
    assert len(open_shares) > 10
    # Were a ReLU open or closed everywhere, a network without it, or without what feeds it, would agree too.
    assert min(open_shares) >= 0.05
    assert max(open_shares) <= 0.95
    with torch.no_grad():
        got = model(images)
    assert_all_parity(got, want.outputs)
    assert_statistics(model, w, want.after)
    if got.depth is not None:
        assert got.depth.shape == (2, *size)
        assert np.unique(want.outputs[0]).size > want.outputs[0].size / 2
    if got.logits is not None:
        assert got.logits.shape == (2, 7, *size)


@pytest.mark.parametrize("name", ["hybrid", "hybrid, all tokens", "midas, joint", "residual, classes"])
def test_network_equals_its_stages(name):
    config = NETWORKS[name]
    images = random(2, 3, 96, 64)
    model = make_model(config)
    want = network(images.numpy(), arrays(model), config)
    with torch.no_grad():
        taps = model.encoder(images)
        maps = model.reassemble(taps, (96, 64))
        fused = model.fusion(maps)
        outputs = model.head(*fused)
        assert_all_parity([*taps, *maps, *fused], [*want.taps, *want.maps, want.fused[0]])
        for whole, staged in zip(model(images), outputs, strict=True):
            assert (whole is None and staged is None) or torch.equal(whole, staged)


@pytest.mark.parametrize("config", [NETWORKS["hybrid, joint"], NETWORKS["midas, joint"]], ids=["hybrid", "residual"])
def test_joint_network_gives_depth_and_logits_of_one_pass(config):
    images = random(2, 3, 32, 64)
    joint = prepared(config, images, training=False)
    state = joint.state_dict()
    with torch.no_grad():
        both = joint(images)
        without_classes = {"num_classes": 0, "auxiliary_head": "none"}
        for alone, output in (({"depth_head": False}, "logits"), (without_classes, "depth")):
            single = DPTModel(config.replace(**alone), dtype=torch.float64).eval()
            single.load_state_dict({name: state[name] for name in single.state_dict()})
            got = single(images)
            assert [value is not None for value in got] == [output == "depth", output == "logits", False]
            assert_parity(getattr(both, output), getattr(got, output).numpy())
        joint.train()(images)
    tracked = [value for name, value in joint.named_buffers() if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(value == 3 + 1 for value in tracked)  # one pass of the encoder and fusion serves both heads


def loss_of(outputs, probes, log):
    """A weighted sum of all outputs; of metric depth its logarithm."""
    outputs = [output for output in outputs if output is not None]
    assert len(outputs) == len(probes)
    total = 0
    for i, (output, probe) in enumerate(zip(outputs, probes, strict=True)):
        total = total + ((log(output) if i == 0 and log else output) * probe).sum()
    return total


@networks
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_gradient_equals_differences_of_the_reference(config, training):
    images = random(2, 3, 32, 64)
    model = prepared(config, images, training)
    w = arrays(model)
    outputs = model(images)
    probes = [random(*output.shape, seed=10 + i) for i, output in enumerate(o for o in outputs if o is not None)]
    loss_of(outputs, probes, torch.log if config.metric else None).backward()
    probes = numpy(probes)
    for seed in (20, 21) if training else (20,):
        generator = np.random.default_rng(seed)
        direction = {}
        slope = 0.0
        for name, tensor in model.named_parameters():
            size = tensor.detach().square().mean().sqrt().item()
            direction[name] = size * generator.standard_normal(tensor.shape)
            if tensor.grad is None:  # only what does not run
                assert name.startswith("head.auxiliary.")
                assert not training
            else:
                slope += (tensor.grad.numpy() * direction[name]).sum()
        losses = []
        for sign in (1, -1):
            moved = {name: value + sign * STEP * direction.get(name, 0) for name, value in w.items()}
            reference = network(images.numpy(), moved, config, training).outputs
            losses.append(loss_of(reference, probes, np.log if config.metric else None))
        difference = (losses[0] - losses[1]) / (2 * STEP)
        assert abs(slope) > 0.01 * abs(losses[0])
        assert abs(slope - difference) <= GRADIENT_TOLERANCE * abs(difference)


@pytest.mark.parametrize(
    ("name", "training", "changes"),
    [
        ("hybrid", False, {"weight_standardization": "variance"}),
        ("hybrid", False, {"unit_skip": "relu"}),
        ("hybrid", False, {"head_align_corners": False}),
        ("hybrid", False, {"readout": "ignore"}),
        ("hybrid", False, {"heads": 4}),
        ("hybrid, metric", False, {"metric": False}),
        ("hybrid, metric", False, {"depth_shift": 0.0700001}),
        ("midas, grouped", False, {"unit_skip": "input"}),
        ("midas, grouped", False, {"head_align_corners": True}),
        ("vit, classes", False, {"taps": (0, 1, 1, 3)}),
    ],
)
def test_comparison_fails_when_the_reference_is_another_network(name, training, changes):
    config = NETWORKS[name]
    images = random(2, 3, 32, 64)
    model = prepared(config, images, training)
    w = arrays(model)
    with torch.no_grad():
        got = model(images)
    assert_all_parity(got, network(images.numpy(), w, config, training).outputs)
    other = SimpleNamespace(**{**vars(config), **changes})
    with pytest.raises(AssertionError):
        assert_all_parity(got, network(images.numpy(), w, other, training).outputs)
