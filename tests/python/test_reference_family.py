"""The family's other encoders, fusions and heads against slow float64 references in NumPy, stage by stage."""

import math

import numpy as np
import pytest
import torch
from reference import LEVELS, arrays, assert_parity, level_maps, random, resize
from reference_family import (
    ALL_TOKENS,
    GROUPED,
    HYBRID,
    RESNET,
    SEGMENTATION,
    BatchNorms,
    assert_all_parity,
    assert_statistics,
    before_classes,
    classes_of,
    depth_of,
    encode,
    fuse,
    heads,
    make_model,
    numpy,
    place_last_bias,
    reassemble,
)

from torchdpt import _C, DPTModel

# Encoders


@pytest.mark.parametrize("kind", ["std", "variance"])
@pytest.mark.parametrize("config", [HYBRID, ALL_TOKENS], ids=["two maps", "all tokens"])
@pytest.mark.parametrize("size", [(32, 64), (96, 64), (48, 80), (16, 16)])
def test_hybrid_encoder_equals_reference(size, config, kind):
    model = make_model(config.replace(weight_standardization=kind))
    images = random(2, 3, *size)
    got = model.encoder(images)
    h, w = size[0] // 16, size[1] // 16
    shapes = [(2, 256, 4 * h, 4 * w), (2, 512, 2 * h, 2 * w)] if config == HYBRID else [(2, 1 + h * w, 32)] * 2
    assert [tuple(tap.shape) for tap in got] == [*shapes, (2, 1 + h * w, 32), (2, 1 + h * w, 32)]
    assert_all_parity(got, encode(images.numpy(), arrays(model), model.config, None))


def test_hybrid_encoder_is_the_same_in_training():
    model = make_model(HYBRID)
    images = random(2, 3, 32, 64)
    for evaluated, trained in zip(model.encoder(images), model.train().encoder(images), strict=True):
        assert_parity(trained, evaluated.detach().numpy())


def test_standardized_weights_may_be_scaled_and_shifted():
    model = make_model(HYBRID.replace(weight_standardization="variance"))
    images = random(1, 3, 32, 64)
    want = model.encoder(images)
    with torch.no_grad():
        for name, weight in model.encoder.named_parameters():
            if weight.dim() == 4 and not name.startswith("patch_embed"):
                weight.mul_(3).add_(0.1)
    for before, after in zip(want, model.encoder(images), strict=True):
        # Not to rounding: the 1e-8 beside variances of 1e-3 and more is not scaled with them.
        assert (after - before).abs().max() <= 1e-4 * before.abs().max()


@pytest.mark.parametrize("config", [RESNET, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("size", [(32, 64), (96, 64)])
def test_residual_encoder_equals_reference(size, config):
    model = make_model(config)
    images = random(2, 3, *size)
    before = arrays(model)
    got = model.encoder(images)
    assert [tuple(tap.shape) for tap in got] == [
        (2, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip((256, 512, 1024, 2048), (4, 8, 16, 32), strict=True)
    ]
    assert_all_parity(got, encode(images.numpy(), before, config, BatchNorms(before, training=False)))
    assert_statistics(model, before, {})


@pytest.mark.parametrize("config", [RESNET, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("size", [(32, 64), (96, 64)])
def test_residual_encoder_in_training_normalises_by_the_batch_and_moves_its_statistics(size, config):
    model = make_model(config).train()
    images = random(3, 3, *size)
    before = arrays(model)
    norms = BatchNorms(before, training=True)
    want = encode(images.numpy(), before, config, norms)
    assert_all_parity(model.encoder(images), want)
    # The stem's, three in each of five blocks, and one beside each of four stages, of three buffers each.
    assert len(norms.after) == 3 * (1 + 3 * sum(config.stage_depths) + 4)
    assert_statistics(model, before, norms.after)


def test_residual_encoder_has_the_tensors_of_its_stages_only():
    names = set(make_model(GROUPED).encoder.state_dict())
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    want = {"stem.conv.weight"} | {f"stem.norm.{leaf}" for leaf in leaves}
    for s, depth in enumerate(GROUPED.stage_depths):
        for b in range(depth):
            for i in (1, 2, 3):
                want |= {f"stages.{s}.{b}.conv{i}.weight"} | {f"stages.{s}.{b}.norm{i}.{leaf}" for leaf in leaves}
        want |= {f"stages.{s}.0.downsample.conv.weight"} | {f"stages.{s}.0.downsample.norm.{leaf}" for leaf in leaves}
    assert names == want


@pytest.mark.parametrize(("config", "passed"), [(HYBRID, 2), (ALL_TOKENS, 0), (RESNET, 4)])
def test_reassemble_passes_maps_on_and_reads_tokens(config, passed):
    model = make_model(config)
    taps = model.encoder(random(2, 3, 96, 64))
    maps = model.reassemble(taps, (96, 64))
    assert_all_parity(maps, reassemble(numpy(t.detach() for t in taps), (96, 64), arrays(model), config))
    for i in range(passed):
        assert torch.equal(maps[i], taps[i])
    assert {name.split(".")[0] for name in model.reassemble.state_dict()} == {str(i) for i in range(passed, 4)}


# Fusion


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("skip", ["input", "relu"])
@pytest.mark.parametrize("sizes", LEVELS[1:3])
def test_fusion_equals_reference(sizes, skip, project, norm):
    config = ALL_TOKENS.replace(unit_skip=skip, fusion_project=project, fusion_norm=norm)
    model = make_model(config)
    assert any(".project." in name for name in model.fusion.state_dict()) == project
    maps = level_maps(config, sizes)
    for training in (False, True):
        w = arrays(model)
        norms = BatchNorms(w, training)
        want = fuse(numpy(maps), w, config, norms)[0]
        assert_all_parity(model.train(training).fusion(maps), [want])
        assert_statistics(model, w, norms.after)


@pytest.mark.parametrize(("place", "level"), [("penultimate", 1), ("last", 0)])
@pytest.mark.parametrize("sizes", LEVELS[1:])
def test_fusion_in_training_also_returns_the_map_of_the_auxiliary_head(sizes, place, level):
    config = ALL_TOKENS.replace(**SEGMENTATION).replace(auxiliary_head=place)
    model = make_model(config)
    maps = level_maps(config, sizes)
    w = arrays(model)
    want = fuse(numpy(maps), w, config, BatchNorms(w, training=False))
    assert_all_parity(model.fusion(maps), [want[0]])
    want = fuse(numpy(maps), w, config, BatchNorms(w, training=True))
    got = model.train().fusion(maps)
    assert_parity(got[0], want[0])
    assert_parity(got[-1], want[level])
    height, width = sizes[0]
    assert got[-1].shape == ((2, 12, height, width) if level == 1 else (2, 12, 2 * height, 2 * width))


# Heads


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 1), (1, 4)])
def test_depth_head_equals_reference(size, align_corners):
    model = make_model(ALL_TOKENS.replace(head_align_corners=align_corners))
    x = random(3, 12, *size)
    place_last_bias(model, x.numpy())
    want = depth_of(x.numpy(), arrays(model), model.config)
    assert (want > 0).mean() >= 0.5
    got = model.head(x)
    assert_parity(got.depth, want)
    assert got.logits is None
    assert got.aux_logits is None


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("depth_head", [False, True])
@pytest.mark.parametrize("place", ["none", "penultimate", "last"])
def test_segmentation_heads_equal_reference(place, depth_head, training):
    config = ALL_TOKENS.replace(**SEGMENTATION).replace(auxiliary_head=place, depth_head=depth_head)
    model = make_model(config)
    maps = level_maps(config, LEVELS[1])
    w = arrays(model)
    norms = BatchNorms(w, training)
    want = heads(fuse(numpy(maps), w, config, norms), w, config, norms)
    got = model.train(training).head(*model.fusion(maps))
    assert_all_parity(got, want)
    assert got.logits.shape == (2, 7, 80, 112)
    assert (got.depth is not None) == depth_head
    assert (got.aux_logits is not None) == (training and place != "none")
    if got.aux_logits is not None:
        assert got.aux_logits.shape == ((2, 7, 20, 28) if place == "penultimate" else (2, 7, 40, 56))
    assert_statistics(model, w, norms.after)


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 4)])
def test_logits_are_upsampled_with_coinciding_corners(size):
    model = make_model(ALL_TOKENS.replace(num_classes=7, depth_head=False))
    x = random(2, 12, *size)
    w = arrays(model)
    small = classes_of(x.numpy(), w, BatchNorms(w, training=False), "head.segmentation")
    logits = model.head(x).logits
    assert logits.shape == (2, 7, 2 * size[0], 2 * size[1])
    corners = (slice(None), slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
    assert_parity(logits[corners], small[corners])
    # Along a row a step between pixels is (size - 1) / (2 size - 1) of one between the map's.
    step = (size[1] - 1) / (2 * size[1] - 1)
    assert_parity(logits[:, :, 0, 1], small[:, :, 0, 0] * (1 - step) + small[:, :, 0, 1] * step)


def test_metric_depth_is_clamped_and_then_inverted():
    # The shift takes the smaller half below zero, where an inversion before the clamp would give negative depth.
    config = ALL_TOKENS.replace(metric=True, depth_scale=0.7, depth_shift=-0.2)
    model = make_model(config)
    x = random(3, 12, 8, 12).requires_grad_()
    place_last_bias(model, x.detach().numpy())
    with torch.no_grad():
        relative = make_model(config.replace(metric=False))
        relative.load_state_dict(model.state_dict())
        inverse = 0.7 * relative.head(x).depth.numpy() - 0.2
    depth = model.head(x).depth
    clamped = inverse <= 1e-8
    assert 0.05 <= clamped.mean() <= 0.95
    want = depth_of(x.detach().numpy(), arrays(model), config)
    assert_parity(depth, want)
    # The largest values are those of the clamp, and say nothing about the others.
    assert_parity(1 / depth, 1 / want)
    assert_parity(1 / depth[~torch.from_numpy(clamped)], inverse[~clamped])
    assert (depth[torch.from_numpy(clamped)] - 1e8).abs().max() <= 1e-7  # some ulps of 1e8
    assert depth.min() > 0
    depth[torch.from_numpy(clamped)].sum().backward()
    assert x.grad.abs().max() == 0


def test_metric_depth_of_zero_is_that_of_the_shift():
    model = make_model(ALL_TOKENS.replace(metric=True, depth_scale=0.000305, depth_shift=0.1378))
    with torch.no_grad():
        model.head.get_parameter("depth.conv3.bias").fill_(-1e6)
    depth = model.head(random(1, 12, 2, 3)).depth
    assert (depth - 1 / 0.1378).abs().max() <= 1e-14  # some ulps


# Dropout


def dropout_model(p):
    """Each class is one of the features, so that the auxiliary logits are what dropout left of them."""
    config = ALL_TOKENS.replace(**SEGMENTATION).replace(num_classes=12, dropout=p)
    model = make_model(config)
    with torch.no_grad():
        for name in ("segmentation", "auxiliary"):
            model.head.get_parameter(f"{name}.classify.weight").copy_(torch.eye(12)[:, :, None, None])
            model.head.get_parameter(f"{name}.classify.bias").zero_()
    return model


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_dropout_in_training_keeps_each_value_with_its_probability(p):
    model = dropout_model(p).train()
    maps = (random(4, 12, 40, 40), random(4, 12, 40, 40, seed=2))
    w = arrays(model)
    norms = BatchNorms(w, training=True)
    got = model.head(*maps)
    for name, logits, x in (("segmentation", got.logits, maps[0]), ("auxiliary", got.aux_logits, maps[1])):
        values = before_classes(x.numpy(), w, norms, f"head.{name}")
        logits = logits.detach().numpy()
        if name == "segmentation":  # of the upsampled map only the corners are values of the map
            corners = (slice(None), slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
            values, logits = values[corners], logits[corners]
        kept = logits / np.where(values > 0, values, 1)
        opened = values > 0
        assert (logits[~opened] == 0).all()
        # A value goes on, divided by the probability that it does, or vanishes.
        assert np.minimum(np.abs(kept), np.abs(kept - 1 / (1 - p)))[opened].max() <= 1e-9
        kept = kept > 0.5
        # Five standard deviations of a binomial share; a right dropout misses them once in two million seeds.
        deviation = math.sqrt(p * (1 - p) / opened.sum())
        assert abs(kept[opened].mean() - (1 - p)) <= 5 * deviation
        assert opened.sum() >= (10_000 if name == "auxiliary" else 50)
        if name == "auxiliary":  # values, not whole channels or images
            for image in range(4):
                for channel in range(12):
                    here = kept[image, channel][opened[image, channel]]
                    assert len(here) < 20 or 0 < here.mean() < 1


def test_dropout_draws_anew_and_by_the_seed():
    model = dropout_model(0.5).train()
    maps = (random(2, 12, 8, 8), random(2, 12, 8, 8))
    first, second = model.head(*maps), model.head(*maps)
    assert not torch.equal(first.logits, second.logits)
    assert not torch.equal(first.aux_logits, second.aux_logits)
    torch.manual_seed(5)
    first = model.head(*maps)
    torch.manual_seed(5)
    second = model.head(*maps)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.aux_logits, second.aux_logits)


def test_dropout_does_nothing_in_evaluation():
    model = dropout_model(0.5)
    maps = (random(2, 12, 8, 8),)
    w = arrays(model)
    small = classes_of(maps[0].numpy(), w, BatchNorms(w, training=False), "head.segmentation")
    logits = model.head(*maps).logits
    assert_parity(logits, resize(small, 16, 16, align_corners=True))
    assert torch.equal(logits, model.head(*maps).logits)


# Sizes of the published networks


def count_conv(inputs, outputs, kernel, bias=True, groups=1):
    return outputs * (inputs // groups) * kernel**2 + outputs * bias


def count_stages(depths, first_width, groups=1):
    """Stem and stages; each convolution has no bias and is followed by a norm's weight and bias."""

    def normed(inputs, outputs, kernel, groups=1):
        return count_conv(inputs, outputs, kernel, bias=False, groups=groups) + 2 * outputs

    total = normed(3, 64, 7)
    inputs = 64
    for s, depth in enumerate(depths):
        width, outputs = first_width * 2**s, 256 * 2**s
        total += normed(inputs, outputs, 1)
        for _ in range(depth):
            total += normed(inputs, width, 1) + normed(width, width, 3, groups) + normed(width, outputs, 1)
            inputs = outputs
    return total


def count_decoder(channels, project):
    """Fusion of 256 features, whose coarsest level has no first unit, and the depth head."""
    inputs = sum(count_conv(c, 256, 3, bias=False) for c in channels)
    units = 7 * 2 * count_conv(256, 256, 3)
    projects = 4 * count_conv(256, 256, 1) * project
    return inputs + units + projects + count_conv(256, 128, 3) + count_conv(128, 32, 3) + count_conv(32, 1, 1)


def count_hybrid():
    width = 768
    embedding = count_conv(1024, width, 1) + width + (1 + 24 * 24) * width
    attention = 4 * count_conv(width, width, 1)
    mlp = count_conv(width, 4 * width, 1) + count_conv(4 * width, width, 1)
    blocks = 12 * (2 * 2 * width + attention + mlp)
    level = count_conv(2 * width, width, 1) + count_conv(width, width, 1)
    reassembled = 2 * level + count_conv(width, width, 3)
    decoder = count_decoder((256, 512, 768, 768), project=True)
    return count_stages((3, 4, 9), 64) + embedding + blocks + reassembled + decoder


def count_midas(depths, first_width, groups=1):
    return count_stages(depths, first_width, groups) + count_decoder((256, 512, 1024, 2048), project=False)


@pytest.mark.parametrize(
    ("preset", "derived", "count"),
    [
        ("dpt_hybrid", count_hybrid(), 121_196_289),
        ("midas_resnet50", count_midas((3, 4, 6, 3), 64), 40_948_481),
        ("midas_resnext101_wsl", count_midas((3, 4, 23, 3), 32 * 8, groups=32), 104_182_785),
    ],
)
def test_published_networks_have_their_number_of_parameters(preset, derived, count):
    assert derived == count
    model = DPTModel(preset, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(
    ("preset", "used", "unused"),
    [
        # Millions in Table 9 of the paper: 105, 112, 123. Never run are a residual unit of the coarsest level, and of a
        # transformer the final norm and a classifier of 1000 classes.
        ("midas_resnext101_wsl", 104_182_785, 2 * count_conv(256, 256, 3)),
        ("dpt_base", 109_696_385, 2 * count_conv(256, 256, 3) + 2 * 768 + count_conv(768, 1000, 1)),
        ("dpt_hybrid", 121_196_289, 2 * count_conv(256, 256, 3) + 2 * 768 + count_conv(768, 1000, 1)),
    ],
)
def test_published_files_store_what_the_paper_counts(preset, used, unused):
    model = DPTModel(preset, device="meta")
    tensors, zeros = _C.named_tensors(model.config.to_json(), model.state_dict(), "isl-org")
    assert sum(parameter.numel() for parameter in model.parameters()) == used
    assert sum(tensors[name].numel() for name in zeros) == unused
    stored = {"midas_resnext101_wsl": 105_362_945, "dpt_base": 111_647_081, "dpt_hybrid": 123_146_985}
    assert used + unused == stored[preset]
    if preset == "midas_resnext101_wsl":
        assert unused == 1_180_160
        assert {name.rsplit(".", 2)[0] for name in zeros} == {"scratch.refinenet4.resConfUnit1"}
