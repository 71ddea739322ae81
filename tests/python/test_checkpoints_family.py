"""Checkpoints of the whole family: hybrids, segmentation, MiDaS v2.1 and NYU/KITTI in every layout, encoders alone.

The lists of names and shapes are written here from the originals' code and know nothing of torchdpt's tables.
"""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from torchdpt import _C, DPTConfig, DPTModel

# As small as the layouts allow: 64 channels a head, 12 or 24 blocks, the channels of the convolutional stages.
D, MLP, C, K, GRID = 64, 24, 16, 7, 4
SMALL = dict(width=D, heads=1, mlp_width=MLP, features=C, image_size=16 * GRID)
SEGMENTATION = dict(depth_head=False, num_classes=K, fusion_norm="batch", auxiliary_head="penultimate")
HYBRID = DPTConfig.preset("dpt_hybrid").replace(stage_depths=(1, 2, 1, 0), channels=(256, 512, 10, 12), **SMALL)
LARGE = DPTConfig.preset("dpt_large").replace(channels=(8, 10, 12, 14), **SMALL)
RESNET = DPTConfig.preset("midas_resnet50").replace(stage_depths=(1, 2, 1, 1), features=C)
FAMILY = {
    "hybrid": HYBRID,
    "hybrid segmentation": HYBRID.replace(**SEGMENTATION),
    "large segmentation": LARGE.replace(**SEGMENTATION),
    "resnet": RESNET,
    "resnext": RESNET.replace(groups=4, group_width=8),
}
METRIC = dict(metric=True, depth_scale=0.25, depth_shift=0.125)


# What the originals call their tensors


def conv(name, out, inputs, kernel, bias=True):
    return {f"{name}.weight": (out, inputs, kernel, kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def linear(name, out, inputs):
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


def norm(name, channels):  # of layers or groups
    return {f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias")}


def batch_norm(name, channels):
    statistics = {f"{name}.running_mean": (channels,), f"{name}.running_var": (channels,)}
    return norm(name, channels) | statistics | {f"{name}.num_batches_tracked": ()}


def stages(prefixes, depths, group_width, groups, normed, norm_name, downsample):
    """Bottlenecks; `prefixes`: what comes before the number of a block, for each stage."""
    shapes, inputs = {}, 64
    for s, prefix in enumerate(prefixes):
        hidden, out = (groups * group_width) << s, 256 << s
        for b in range(depths[s]):
            at = f"{prefix}{b}."
            shapes |= conv(f"{at}conv1", hidden, inputs, 1, bias=False)
            shapes |= conv(f"{at}conv2", hidden, hidden // groups, 3, bias=False)
            shapes |= conv(f"{at}conv3", out, hidden, 1, bias=False)
            for i, channels in enumerate((hidden, hidden, out), 1):
                shapes |= normed(f"{at}{norm_name}{i}", channels)
            if b == 0:
                shapes |= conv(f"{at}downsample.{downsample[0]}", out, inputs, 1, bias=False)
                shapes |= normed(f"{at}downsample.{downsample[1]}", out)
            inputs = out
    return shapes


def timm(prefix, depth, hybrid=None, distilled=False, grid=GRID):
    """timm's VisionTransformer with its norm and classifiers; `hybrid`: the depths of ResNetV2's stages."""
    tokens = 1 + distilled
    shapes = {f"{prefix}cls_token": (1, 1, D), f"{prefix}pos_embed": (1, tokens + grid**2, D)}
    if distilled:
        shapes |= {f"{prefix}dist_token": (1, 1, D)} | linear(f"{prefix}head_dist", 1000, D)
    if hybrid:
        backbone = f"{prefix}patch_embed.backbone."
        shapes |= conv(f"{backbone}stem.conv", 64, 3, 7, bias=False) | norm(f"{backbone}stem.norm", 64)
        names = [f"{backbone}stages.{s}.blocks." for s in range(3)]
        shapes |= stages(names, hybrid, 64, 1, norm, "norm", ("conv", "norm"))
    shapes |= conv(f"{prefix}patch_embed.proj", D, 1024 if hybrid else 3, 1 if hybrid else 16)
    for i in range(depth):
        at = f"{prefix}blocks.{i}."
        shapes |= norm(f"{at}norm1", D) | norm(f"{at}norm2", D)
        shapes |= linear(f"{at}attn.qkv", 3 * D, D) | linear(f"{at}attn.proj", D, D)
        shapes |= linear(f"{at}mlp.fc1", MLP, D) | linear(f"{at}mlp.fc2", D, MLP)
    return shapes | norm(f"{prefix}norm", D) | linear(f"{prefix}head", 1000, D)


def torchvision(config, stem=("conv1", "bn1"), first="layer1."):
    shapes = conv(stem[0], 64, 3, 7, bias=False) | batch_norm(stem[1], 64)
    prefix = "pretrained." if stem[0].startswith("pretrained") else ""
    names = [first, *(f"{prefix}layer{n}." for n in (2, 3, 4))]
    return shapes | stages(names, config.stage_depths, config.group_width, config.groups, batch_norm, "bn", ("0", "1"))


def isl_org(family, layout="v1"):
    """Every name and shape of the file of one network."""
    config = FAMILY[family]
    midas, segmentation = config.encoder == "resnet", config.num_classes > 0
    if midas:
        shapes = torchvision(config, ("pretrained.layer1.0", "pretrained.layer1.1"), "pretrained.layer1.4.")
    else:
        hybrid = config.stage_depths[:3] if config.encoder == "hybrid" else None
        shapes = timm("pretrained.model.", config.depth, hybrid)
    # Transposed convolutions have the shape of convolutions.
    resample = {0: 4, 1: 2, 3: 3}
    for i in range(config.conv_levels, 4):
        post, channels = f"pretrained.act_postprocess{i + 1}", config.channels[i]
        read = f"{post}.0.project.0" if layout == "v1" else f"pretrained.readout_oper{i + 1}.0.project.0"
        shapes |= linear(read, D, 2 * D)
        shapes |= conv(f"{post}.{'3' if layout == 'v1' else '0'}", channels, D, 1)
        if i in resample:
            shapes |= conv(f"{post}.{'4' if layout == 'v1' else '1'}", channels, channels, resample[i])
    for n in (1, 2, 3, 4):
        shapes |= conv(f"scratch.layer{n}_rn", C, config.channels[n - 1], 3, bias=False)
        for unit in (1, 2):
            for i in (1, 2):
                at = f"scratch.refinenet{n}.resConfUnit{unit}."
                shapes |= conv(f"{at}conv{i}", C, C, 3, bias=not segmentation)
                shapes |= batch_norm(f"{at}bn{i}", C) if segmentation else {}
        shapes |= {} if midas else conv(f"scratch.refinenet{n}.out_conv", C, C, 1)
    if segmentation:
        for head in ("scratch.output_conv", "auxlayer"):
            shapes |= conv(f"{head}.0", C, C, 3, bias=False) | batch_norm(f"{head}.1", C) | conv(f"{head}.4", K, C, 1)
        return shapes
    shapes |= conv("scratch.output_conv.0", C // 2, C, 3) | conv("scratch.output_conv.2", 32, C // 2, 3)
    return shapes | conv("scratch.output_conv.4", 1, 32, 1)


NEVER_RUN = ("pretrained.model.norm.", "pretrained.model.head", "scratch.refinenet4.resConfUnit1.")


def drawn(shapes):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(5) if name.endswith("num_batches_tracked") else torch.rand(shape, generator=generator) - 0.5
        for name, shape in shapes.items()
    }


def empty(shapes):
    """Tensors of these shapes that take no memory."""
    number = torch.zeros(())
    return {
        name: number.long() if name.endswith("num_batches_tracked") else number.expand(shape)
        for name, shape in shapes.items()
    }


def empty_model(config):
    parts = ("encoder", "reassemble", "fusion", "head")
    return empty({f"{part}.{name}": shape for part in parts for name, shape, _, _ in _C.spec(config.to_json(), part)})


def named(config):
    """The empty network under isl-org's names."""
    return _C.named_tensors(config.to_json(), empty_model(config), "isl-org")[0]


def recognized(tensors, config=None):
    return DPTConfig.from_json(_C.recognize(tensors, "x.pt", None if config is None else config.to_json())[1])


def write(tensors, path):
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def make(config, seed=0):
    """A model whose every tensor is drawn, in eval mode; no output is constant."""
    model = DPTModel(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(5)
                continue
            std = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.2
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std)
            if tensor.dim() == 1 and name.endswith(("weight", "running_var")):
                tensor.abs_().add_(0.8)
        if config.depth_head:
            model.get_parameter("head.depth.conv3.bias").fill_(1)
    return model


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def images(size, dtype=torch.float64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


# isl-org


@pytest.mark.parametrize("layout", ["v1", "scriptable"])
@pytest.mark.parametrize("family", FAMILY)
def test_names_of_the_original_are_read_and_written(tmp_path, family, layout):
    tensors = drawn(isl_org(family, layout))
    never_run = {name for name in tensors if name.startswith(NEVER_RUN)}
    path = write(tensors, tmp_path / "model.pt")
    kind, text, _, ignored = _C.recognize(torch.load(path), "model.pt")
    # A convolutional MiDaS has one layout only.
    own = "isl-org-scriptable" if layout == "scriptable" and FAMILY[family].encoder != "resnet" else "isl-org"
    assert kind == own
    assert DPTConfig.from_json(text) == FAMILY[family]
    assert ignored.keys() == never_run
    model = DPTModel.from_pretrained(path)
    if FAMILY[family].num_classes:  # two heads of the same shapes
        for ours, theirs in {"segmentation": "scratch.output_conv", "auxiliary": "auxlayer"}.items():
            for layer, i in {"conv": 0, "norm": 1, "classify": 4}.items():
                got = model.get_parameter(f"head.{ours}.{layer}.weight")
                assert torch.equal(got, tensors[f"{theirs}.{i}.weight"])
    zeros = model.save_pretrained(tmp_path / "out", layout=own)
    assert set(zeros) == never_run
    again = torch.load(tmp_path / "out" / "model.pt")
    assert {name: t.shape for name, t in again.items()} == {name: t.shape for name, t in tensors.items()}
    assert all(torch.equal(again[name], tensors[name]) for name in tensors if name not in never_run)
    assert same(DPTModel.from_pretrained(tmp_path / "out").state_dict(), model.state_dict())


# The tensors by which networks are told apart. Without one the file looks like another network, of which others miss.
TELLING = re.compile(
    r"blocks\.0\.attn\.qkv\.bias|act_postprocess3\.0\.weight|(act_postprocess4\.0|readout_oper4\.0)\.project\.0\.weight"
    r"|refinenet1\.resConfUnit2\.bn1\.weight"
)


@pytest.mark.parametrize("layout", ["v1", "scriptable"])
@pytest.mark.parametrize("family", FAMILY)
def test_every_missing_or_misshapen_tensor_is_an_error(family, layout):
    shapes = isl_org(family, layout)
    tensors = empty(shapes)
    run = [name for name in shapes if not name.startswith(NEVER_RUN)]
    assert len(run) > 90
    assert recognized({name: tensors[name] for name in run}) == FAMILY[family]
    for name in run:
        others = {other: tensor for other, tensor in tensors.items() if other != name}
        if name.endswith("num_batches_tracked"):  # of files of torch before 0.4.1
            assert recognized(others) == FAMILY[family]
            continue
        with pytest.raises(ValueError, match="x" if TELLING.search(name) else rf"missing \[{re.escape(name)}[\],]"):
            recognized(others)
        with pytest.raises(ValueError, match=r"x\.pt"):
            recognized(others | {name: torch.zeros(()).expand((shapes[name][0] + 1, *shapes[name][1:]))})
    with pytest.raises(ValueError, match=r"0 missing \[\], 1 unexpected \[scratch\.extra\]"):
        recognized(tensors | {"scratch.extra": torch.zeros(2)})
    name = [name for name in run if name.endswith(("conv3.weight", "mlp.fc2.weight"))][-1]
    got, wanted = [2, *shapes[name][1:]], list(shapes[name])
    message = re.escape(f"tensor '{name}' has shape {got}, the config wants {wanted}")
    with pytest.raises(ValueError, match=message):
        recognized(tensors | {name: torch.zeros(()).expand(got)})


PUBLISHED = [
    *("dpt_base", "dpt_deit_base_distilled", "dpt_large", "dpt_hybrid", "dpt_large_ade", "dpt_hybrid_ade"),
    *("dpt_hybrid_pascal", "midas_resnet50", "midas_resnext101_wsl"),
]


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_network_is_recognised(preset):
    config = DPTConfig.preset(preset)
    tensors = named(config)
    assert recognized(tensors) == config
    assert recognized(tensors, config) == config


def test_convolutional_midas_has_no_scriptable_layout(tmp_path):
    resnet = next(config for config in FAMILY.values() if config.encoder == "resnet")
    with pytest.raises(ValueError, match="has no scriptable layout; use 'isl-org'"):
        make(resnet).save_pretrained(tmp_path, layout="isl-org-scriptable")


@pytest.mark.parametrize("preset", ["dpt_hybrid_nyu", "dpt_hybrid_kitti"])
def test_metric_network_is_named_by_its_config(preset):
    config = DPTConfig.preset(preset)
    tensors = named(config)
    assert recognized(tensors) == DPTConfig.preset("dpt_hybrid")
    assert recognized(tensors, config) == config


@torch.no_grad()
def test_config_says_what_a_file_does_not(tmp_path):
    model = make(HYBRID)
    model.save_pretrained(tmp_path, layout="isl-org")
    relative = DPTModel.from_pretrained(tmp_path)
    assert relative.config == HYBRID
    for config in (HYBRID.replace(**METRIC), HYBRID.replace(weight_standardization="variance", layer_norm_eps=1e-5)):
        given = DPTModel.from_pretrained(tmp_path, config=config)
        assert given.config == config
        assert same(given.state_dict(), model.state_dict())
    x = images(64)
    metric = DPTModel.from_pretrained(tmp_path / "model.pt", config=HYBRID.replace(**METRIC))
    depth = relative(x).depth
    assert depth.std() > 0
    torch.testing.assert_close(metric(x).depth, 1 / (0.25 * depth + 0.125))
    # Written again, it is the file it was.
    metric.save_pretrained(tmp_path / "again", layout="isl-org")
    assert same(torch.load(tmp_path / "again" / "model.pt"), torch.load(tmp_path / "model.pt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(features=32), "has features = 16 by the shapes of its tensors, the given config has 32"),
        (dict(channels=(256, 512, 10, 13)), r"has channels = \[256,512,10,12\] by the shapes"),
        (dict(stage_depths=(3, 4, 9, 0)), r"has stage_depths = \[1,2,1,0\] by the shapes"),
        (dict(conv_levels=0, taps=(2, 5, 8, 11)), "has conv_levels = 2 by the shapes"),
        (dict(**SEGMENTATION), 'has auxiliary_head = "none" by the shapes'),
        (dict(readout="add"), 'has readout = "project" by the shapes'),
        (dict(encoder="vit", conv_levels=0, taps=(2, 5, 8, 11)), 'has encoder = "hybrid", the given config has "vit"'),
    ],
)
def test_config_that_contradicts_the_shapes_is_refused_by_its_field(changes, message):
    with pytest.raises(ValueError, match="load_checkpoint: 'x.pt' " + message):
        recognized(empty(isl_org("hybrid")), HYBRID.replace(**changes))


def test_config_of_a_file_that_has_one_must_be_its_own(tmp_path):
    make(HYBRID).save_pretrained(tmp_path)
    assert DPTModel.from_pretrained(tmp_path, config=HYBRID).config == HYBRID
    with pytest.raises(ValueError, match=r"a config of its own, in which metric is false, and the given one has true"):
        DPTModel.from_pretrained(tmp_path, config=HYBRID.replace(metric=True))
    with pytest.raises(ValueError, match="a config of its own, in which channels is"):
        DPTModel.from_pretrained(tmp_path / "model.safetensors", config="dpt_hybrid")
    with pytest.raises(ValueError, match="unknown preset 'nyu'"):
        DPTModel.from_pretrained(tmp_path, config="nyu")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        # Published networks have other numbers of blocks, channels a head, or blocks that feed the decoder.
        ("large segmentation", dict(depth=8, taps=(1, 3, 5, 7), heads=4)),
        ("hybrid", dict(depth=6, taps=(0, 1, 3, 5))),
        ("hybrid", dict(conv_levels=0, taps=(2, 5, 8, 11), channels=(8, 9, 10, 11))),
    ],
)
def test_unpublished_network_is_read_with_its_config_alone(family, changes):
    config = FAMILY[family].replace(**changes)
    like = config.replace(heads=1, depth=12, taps=(2, 5, 8, 11) if config.conv_levels == 0 else (0, 1, 8, 11))
    if like.conv_levels == 0 and config.encoder == "hybrid":
        with pytest.raises(ValueError, match="of which 4 feed the decoder, and only for two of 12 is it known which"):
            named(config)
        return
    tensors = named(like)
    tensors = {
        n: t for n, t in tensors.items() if int((re.findall(r"model\.blocks\.(\d+)", n) or [0])[0]) < config.depth
    }
    with pytest.raises(ValueError, match=f"with {config.depth} blocks|the encoder has {config.depth} blocks"):
        recognized(tensors)
    assert recognized(tensors, config) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DPTConfig.preset("dpt_tiny_joint"), "a network of isl-org has one head, this model has one for depth and one"),
        (HYBRID.replace(weight_standardization="variance"), 'take weight_standardization for "std", where this model'),
        (LARGE.replace(**SEGMENTATION | dict(auxiliary_head="last")), 'take auxiliary_head for "penultimate"'),
        (LARGE.replace(**SEGMENTATION | dict(dropout=0.5)), "take dropout for 0.1"),
        (RESNET.replace(unit_skip="input"), 'take unit_skip for "relu"'),
        (RESNET.replace(head_align_corners=True), "take head_align_corners for false"),
        (RESNET.replace(fusion_project=True), "take fusion_project for false"),
        (LARGE.replace(fusion_project=False), "take fusion_project for true"),
    ],
)
def test_isl_org_layout_is_refused_where_a_reader_would_take_another_network(config, message):
    with pytest.raises(ValueError, match="save_checkpoint: .*" + message):
        named(config)


def test_fields_that_nothing_reads_are_no_obstacle(tmp_path):
    config = RESNET.replace(width=96, heads=3, image_size=224, dropout=0.5, batch_norm_group="cuda:0")
    tensors = named(config)
    assert recognized(tensors) == RESNET


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            "pretrained.layer1.3.0.conv_pw.weight",
            "is a convolutional MiDaS on EfficientNet-Lite3, which torchdpt does not",
        ),
        ("pretrained.model.layers.0.x", "is a DPT on a Swin transformer, which"),
        ("pretrained.model.stages.0.x", "is a DPT on a convolutional or mixed encoder"),
    ],
)
def test_network_that_we_do_not_have_is_named(edit, message):
    with pytest.raises(ValueError, match=message):
        recognized(empty(isl_org("resnet")) | {edit: torch.zeros(1)})


# All layouts


WRITTEN = [
    *((family, layout) for family in FAMILY for layout in ("torchdpt", "isl-org")),
    *((family, "transformers") for family in FAMILY if "res" not in family),
    *((family, "torchdpt") for family in ("joint", "resnet joint", "hybrid joint", "metric", "hybrid of blocks")),
]


def config_for(family, layout):
    if family in FAMILY:
        config = FAMILY[family]
        if layout != "transformers":
            return config
        config = config.replace(auxiliary_head="last") if config.num_classes else config
        return config.replace(weight_standardization="variance") if config.encoder == "hybrid" else config
    both = SEGMENTATION | dict(depth_head=True)
    return {
        "joint": LARGE.replace(**both),
        "resnet joint": RESNET.replace(**both),
        "hybrid joint": HYBRID.replace(**both),
        "metric": HYBRID.replace(**METRIC),
        "hybrid of blocks": HYBRID.replace(conv_levels=0, taps=(2, 5, 8, 11), channels=(8, 10, 12, 14)),
    }[family]


@torch.no_grad()
@pytest.mark.parametrize(("family", "layout"), WRITTEN)
def test_round_trip(tmp_path, family, layout):
    config = config_for(family, layout)
    model = make(config).float()
    model.save_pretrained(tmp_path, layout=layout)
    again = DPTModel.from_pretrained(tmp_path)
    assert again.config == config
    assert same(again.state_dict(), model.state_dict())
    x = images(64, torch.float32)
    for ours, theirs in zip(again(x), model(x), strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or (torch.equal(ours, theirs) and ours.std() > 0)


def test_process_group_stays_out_of_files(tmp_path):
    config = DPTConfig.preset("dpt_tiny").replace(fusion_norm="batch")
    for layout in ("torchdpt", "transformers"):
        DPTModel(config.replace(batch_norm_group="ranks")).save_pretrained(tmp_path / layout, layout=layout)
        assert DPTModel.from_pretrained(tmp_path / layout, device="meta").config == config
    assert json.loads((tmp_path / "torchdpt" / "config.json").read_text())["batch_norm_group"] == ""
    metadata, _ = _C.read_safetensors(str(tmp_path / "torchdpt" / "model.safetensors"))
    assert json.loads(metadata["torchdpt.config"])["batch_norm_group"] == ""
