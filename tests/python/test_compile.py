"""torch.compile and torch.library.opcheck on the real network."""

import pytest
import torch
from torch import nn

from torchdpt import DPTConfig, DPTModel

TINY = DPTConfig(
    image_size=64,
    width=32,
    depth=4,
    heads=2,
    mlp_width=64,
    taps=(0, 1, 2, 3),
    channels=(8, 8, 16, 16),
    features=16,
    head_features=8,
)
BATCH_NORM = TINY.replace(fusion_norm="batch")

# float64, in which a right graph and eager mode differ by some 1e-14 of the largest value, and a wrong one by 1e-2.
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()


class CountGraphs:
    """A backend that traces forward and backward with AOTAutograd, runs the ATen graph, and counts."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


def make_model(config=TINY, dtype=torch.float64):
    model = DPTModel(config, dtype=dtype)
    nn.init.constant_(model.head.conv3.bias, 1)  # depth lies well above zero, so that the last ReLU is open everywhere
    return model


def depth_and_gradients(function, model, images):
    images = images.clone().requires_grad_()
    depth = function(images).depth
    return [depth, *torch.autograd.grad(depth.square().mean(), [images, *model.parameters()])]


def assert_equal_to_eager(compiled, model, images, tolerance=TOLERANCE):
    got, want = (depth_and_gradients(function, model, images) for function in (compiled, model))
    for a, b in zip(got, want, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= tolerance * b.abs().max()


# --- forward and backward ---


@pytest.mark.parametrize("checkpointing", [False, True])
def test_static_graph_equals_eager(checkpointing):
    model = make_model()
    model.activation_checkpointing = checkpointing
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_equal_to_eager(compiled, model, torch.rand(2, 3, 64, 96, dtype=torch.float64))


def test_one_dynamic_graph_serves_all_sizes():
    model, backend = make_model(), CountGraphs()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((2, 3, 64, 96), (4, 3, 96, 64), (5, 3, 128, 64)):
        assert_equal_to_eager(compiled, model, torch.rand(shape, dtype=torch.float64))
    assert backend.count == 1


def test_one_graph_per_mode():
    model, backend = make_model(BATCH_NORM), CountGraphs()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for training in (True, False, True, False):
            compiled.train(training)
            compiled(images)
    assert backend.count == 2


def test_stages_compile_alone():
    model = make_model()
    images = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        taps = model.encoder(images)
        maps = model.reassemble(taps, (64, 96))
        fused = model.fusion(maps)
        for stage, args in (
            (model.encoder, (images,)),
            (model.reassemble, (taps, (64, 96))),
            (model.fusion, (maps,)),
            (model.head, (fused,)),
        ):
            want = stage(*args)
            got = torch.compile(stage, fullgraph=True, backend="aot_eager")(*args)
            assert type(got) is type(want)
            torch.testing.assert_close(got, want, rtol=TOLERANCE, atol=TOLERANCE)


def test_autocast_compiles():
    model = make_model(dtype=torch.float32)
    images = torch.rand(1, 3, 64, 96)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want, got = model(images).depth, compiled(images).depth
    assert got.dtype == want.dtype == torch.bfloat16
    # The fused upsampling rounds once where its ATen form rounds twice, and the head rounds on: a few ulps, 2^-8 each.
    assert (got.float() - want.float()).abs().max() <= 4 * 2.0**-8 * want.max()
