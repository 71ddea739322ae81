"""Calls of the model and of its stages: what goes in, what comes out, and what is refused."""

import threading
import time

import pytest
import torch
from narrow import BATCH_NORM, DISTILLED, NARROW, by_stages, images, make_model
from torch import nn

from torchdpt import DPTConfig, DPTModel, DPTOutput, Encoder, Head


class Seven(Head):
    def forward(self, map):
        return DPTOutput(torch.full_like(super().forward(map).depth, 7))


@pytest.mark.parametrize("training", [False, True])
def test_stages_of_the_users_own_take_part(training):
    images = torch.rand(1, 3, 32, 32)
    model = make_model(NARROW)
    model.head = Seven(NARROW)
    assert (model.train(training)(images).depth == 7).all()
    model = make_model(NARROW)
    model.head.forward = lambda map: DPTOutput(map[:, 0])
    assert model.train(training)(images).depth.shape == (1, 16, 16)
    model = make_model(NARROW)
    model.head = nn.Identity()
    assert model.train(training)(images).shape[2:] == (16, 16)
    # An encoder of another config, of the same shapes.
    model, other = make_model(NARROW), NARROW.replace(heads=NARROW.heads * 2)
    model.encoder = Encoder(other)
    taps = model.encoder.train(training)(images)
    want = model.head(*model.fusion(model.reassemble(taps, (32, 32)))).depth
    assert torch.equal(model.train(training)(images).depth, want)


@pytest.mark.parametrize("config", [NARROW, DISTILLED, BATCH_NORM], ids=["plain", "distilled", "batch norm"])
@pytest.mark.parametrize("training", [False, True])
def test_one_call_equals_four_stages_to_the_bit(config, training):
    for size in ((64, 64), (64, 96), (80, 112)):
        x = images(2, *size)
        results = []
        for call in (lambda model, x: model(x), by_stages):
            model = make_model(config).train(training)
            x.requires_grad_()
            x.grad = None
            depth = call(model, x).depth
            depth.square().sum().backward()
            grads = [x.grad.clone(), *(parameter.grad for parameter in model.parameters())]
            results.append([depth, *grads, *model.buffers()])
        for one, four in zip(*results, strict=True):
            assert torch.equal(one, four)


def test_output_is_depth_alone_and_not_negative():
    model = make_model().eval()
    output = model(images())
    assert type(output) is DPTOutput
    assert output._fields == ("depth", "logits", "aux_logits")
    assert output.logits is None
    assert output.aux_logits is None
    assert output.depth.shape == (2, 64, 96)
    assert output.depth.dtype == torch.float32
    assert output.depth.min() == 0  # clipped in places
    assert output.depth.max() > 0


def test_stages_return_the_shapes_of_the_paper():
    model = make_model(DISTILLED)
    taps = model.encoder(images(2, 64, 96))
    assert [tuple(tap.shape) for tap in taps] == [(2, 2 + 4 * 6, 24)] * 4
    maps = model.reassemble(taps, (64, 96))
    assert [tuple(x.shape) for x in maps] == [(2, 6, 16, 24), (2, 8, 8, 12), (2, 10, 4, 6), (2, 12, 2, 3)]
    (fused,) = model.fusion(maps)
    assert fused.shape == (2, 14, 32, 48)
    assert model.head(fused).depth.shape == (2, 64, 96)
    assert model.attention(images(2, 64, 96), 3).shape == (2, 3, 26, 26)


@pytest.mark.parametrize("config", [NARROW, DISTILLED, BATCH_NORM], ids=["plain", "distilled", "batch norm"])
def test_empty_batch_gives_empty_output(config):
    model = make_model(config).eval()
    depth = model(images(0)).depth
    assert depth.shape == (0, 64, 96)
    depth.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("config", [NARROW, DISTILLED, BATCH_NORM], ids=["plain", "distilled", "batch norm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_image_alone_equals_image_in_a_batch(config, dtype, tolerance):
    # Tolerances: matrix products of another size may sum in another order, some tens of ulps over the largest value.
    model = make_model(config, dtype).eval()
    x = images(3, dtype=dtype)
    together = model(x).depth
    for i in range(3):
        alone = model(x[i : i + 1]).depth
        assert (alone[0] - together[i]).abs().max() <= tolerance * together.abs().max()
    swapped = model(x.flip(0)).depth.flip(0)
    assert (swapped - together).abs().max() <= tolerance * together.abs().max()


def test_images_of_any_memory_layout_give_one_result():
    model = make_model().eval()
    x = images()
    want = model(x).depth
    wide = images(2, 128, 192)
    wide[:, :, ::2, ::2] = x
    for other in (x.to(memory_format=torch.channels_last), wide[:, :, ::2, ::2]):
        # Convolutions of another layout sum in another order.
        assert (model(other).depth - want).abs().max() <= 1e-5 * want.max()
    assert torch.equal(x, images())


def test_two_threads_get_what_one_gets():
    model = make_model().eval()
    inputs = [images(seed=seed) for seed in range(4)]
    with torch.no_grad():
        want = [model(x).depth for x in inputs]
        got = {}

        def work(i):
            with torch.no_grad():
                got[i] = model(inputs[i]).depth

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(4):
        # Another number of threads may split sums differently.
        assert (got[i] - want[i]).abs().max() <= 1e-5 * want[i].max()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 64, 64), r"images must be \[B, 3, H, W\], got \[3, 64, 64\]; add the batch dimension"),
        (torch.zeros(1, 1, 3, 64, 64), r"images must be \[B, 3, H, W\], got \[1, 1, 3, 64, 64\]"),
        (torch.zeros(1, 1, 64, 64), r"got \[1, 1, 64, 64\]; .*repeat a gray channel three times"),
        (torch.zeros(1, 4, 64, 64), r"images must be \[B, 3, H, W\], got \[1, 4, 64, 64\]"),
        (torch.zeros(1, 3, 65, 64), "multiples of 16, got 65 x 64; resize or pad"),
        (torch.zeros(1, 3, 64, 40), "multiples of 16, got 64 x 40"),
        (torch.zeros(1, 3, 0, 64), "multiples of 16, got 0 x 64"),
        (torch.zeros(1, 3, 8, 8), "multiples of 16, got 8 x 8"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), "dtype of the model, Float, got Double"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "dtype of the model, Float, got Byte; normalise them"),
    ],
)
def test_wrong_images_raise(x, message):
    model = DPTModel(NARROW)
    for call in (model, model.encoder, lambda x: model.attention(x, 0)):
        with pytest.raises(ValueError, match="encode: .*" + message):
            call(x)


@pytest.mark.parametrize("block", [-1, 4, 100])
def test_attention_of_a_block_that_is_not_there_raises(block):
    with pytest.raises(
        ValueError, match=rf"attention: block must be in \[0, 4\), got {block}; blocks are counted from 0"
    ):
        DPTModel(NARROW).attention(images(), block)


def taps_of(*tokens, width=24):
    return [torch.zeros(1, n, width) for n in tokens]


@pytest.mark.parametrize(
    ("taps", "size", "message"),
    [
        (taps_of(17, 17, 17), (64, 64), "reassemble: needs 4 taps, finest level first, got 3"),
        (taps_of(*[17] * 5), (64, 64), "reassemble: needs 4 taps, finest level first, got 5"),
        ([], (64, 64), "needs 4 taps, finest level first, got 0"),
        (
            taps_of(*[17] * 4),
            (64, 96),
            r"tap 0 must be \[B, 25, D\] for an image of 64 x 96 pixels and patches of 16, got \[1, 17, 24\]",
        ),
        (taps_of(*[17] * 4), (4, 4), r"size is the \(height, width\) of the image, not of the patch grid"),
        (taps_of(17, 17, 18, 17), (64, 64), r"tap 2 must be \[B, 17, D\]"),
        ([torch.zeros(1, 24, 4, 4)] * 4, (64, 64), r"tap 0 must be \[B, 17, D\].*got \[1, 24, 4, 4\]"),
        (taps_of(*[17] * 4), (64,), r"size must be the image's \(height, width\), got 1 numbers"),
    ],
)
def test_wrong_taps_raise(taps, size, message):
    with pytest.raises(ValueError, match=message):
        DPTModel(NARROW).reassemble(taps, size)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 6, 4, 4)] * 3, "fuse: needs 4 maps, finest level first, got 3"),
        (
            [(1, 6, 4, 4), (1, 8, 4, 4), (1, 11, 4, 4), (1, 12, 4, 4)],
            r"fuse: map 2 must be \[B, 10, H, W\], got \[1, 11, 4, 4\]; the config's `channels`",
        ),
        ([(6, 4, 4), (8, 4, 4), (10, 4, 4), (12, 4, 4)], r"fuse: map 0 must be \[B, 6, H, W\], got \[6, 4, 4\]"),
        ([(1, 12, 2, 2), (1, 10, 4, 4), (1, 8, 8, 8), (1, 6, 16, 16)], r"map 0 must be \[B, 6, H, W\]"),
    ],
)
def test_wrong_maps_raise(shapes, message):
    with pytest.raises(ValueError, match=message):
        DPTModel(NARROW).fusion([torch.zeros(shape) for shape in shapes])


def test_wrong_fused_map_raises():
    with pytest.raises(ValueError, match=r"head: a fused map must be \[B, C, H/2, W/2\], got \[14, 32, 32\]"):
        DPTModel(NARROW).head(torch.zeros(14, 32, 32))


def test_other_threads_run_during_a_forward_pass():
    model = DPTModel(DPTConfig.preset("dpt_tiny")).eval()
    images = torch.rand(1, 3, 384, 384)
    times = []

    def run():
        times.append(time.monotonic())
        with torch.inference_mode():
            model(images)
        times.append(time.monotonic())

    thread = threading.Thread(target=run)
    ticks = []
    thread.start()
    while thread.is_alive():
        ticks.append(time.monotonic())
        time.sleep(0.001)
    # With the lock held there would be at most one, before the call.
    assert sum(times[0] < tick < times[1] for tick in ticks) >= 10
