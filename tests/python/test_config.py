"""DPTConfig: what it holds, how it is written, and what it refuses."""

import copy
import dataclasses
import itertools
import json
import pickle

import pytest
from narrow import BATCH_NORM, DISTILLED, NARROW

import torchdpt
from torchdpt import _C, DPTConfig, list_presets


def test_config_cannot_be_changed():
    config = DPTConfig.preset("dpt_tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3
    other = config.replace(image_size=64)
    assert (other.image_size, config.image_size) == (64, 384)
    with pytest.raises(ValueError, match="width must be a multiple of heads 3"):
        config.replace(width=100)


def test_equal_configs_are_one_key():
    a, b = DPTConfig.preset("dpt_base"), DPTConfig()
    assert a == b
    assert hash(a) == hash(b)
    assert {a: 1}[b] == 1
    lists = DPTConfig(taps=[2, 5, 8, 11], channels=[96, 192, 384, 768], strides=[4, 8, 16, 32])
    assert lists == b
    assert hash(lists) == hash(b)
    assert lists.to_json() == b.to_json()
    assert DPTConfig(layer_norm_eps=1) == DPTConfig(layer_norm_eps=1.0)
    assert DPTConfig(layer_norm_eps=1).to_json() == DPTConfig(layer_norm_eps=1.0).to_json()
    configs = [DPTConfig.preset(name) for name in ("dpt_tiny", "dpt_base", "dpt_deit_base_distilled", "dpt_large")]
    for one, other in itertools.combinations([*configs, NARROW, DISTILLED, BATCH_NORM], 2):
        assert one != other
        assert one.to_json() != other.to_json()


@pytest.mark.parametrize(
    "config",
    [
        DPTConfig(),
        NARROW,
        DISTILLED,
        BATCH_NORM,
        NARROW.replace(layer_norm_eps=1 / 3),
        *map(DPTConfig.preset, list_presets()),
    ],
)
def test_config_round_trips_through_canonical_json(config):
    text = config.to_json()
    assert DPTConfig.from_json(text) == config
    assert DPTConfig.from_json(text).to_json() == text
    assert list(json.loads(text)) == sorted(json.loads(text))
    shuffled = json.dumps(dict(reversed(json.loads(text).items())), indent=3)
    assert DPTConfig.from_json(shuffled).to_json() == text
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config).to_json() == text
    assert eval(repr(config)) == config


def test_python_fields_are_the_fields_of_cpp():
    fields = {field.name for field in dataclasses.fields(DPTConfig)}
    values = json.loads(_C.canonical_config("{}"))
    assert {*fields, "format_version", "torchdpt_version"} == values.keys()
    assert values.pop("format_version") == 1
    assert values.pop("torchdpt_version") == torchdpt.__version__
    for name, value in values.items():
        ours = getattr(DPTConfig(), name)
        assert (list(ours) if isinstance(ours, tuple) else ours) == value
        assert type(ours) is (tuple if isinstance(value, list) else type(value))
    assert DPTConfig.from_json("{}") == DPTConfig()
    assert DPTConfig.from_json('{"width": 24, "heads": 2}') == DPTConfig(width=24, heads=2)
    for name in fields:
        assert f"        {name}: " in DPTConfig.__doc__


def test_published_facts_of_the_presets():
    base, large = DPTConfig.preset("dpt_base"), DPTConfig.preset("dpt_large")
    assert (base.width, base.depth, base.heads, base.mlp_width) == (768, 12, 12, 3072)
    assert (large.width, large.depth, large.heads, large.mlp_width) == (1024, 24, 16, 4096)
    assert base.taps == (2, 5, 8, 11)
    assert large.taps == (5, 11, 17, 23)
    assert base.channels == (96, 192, 384, 768)
    assert large.channels == (256, 512, 1024, 1024)
    for config in (base, large):
        assert (config.image_size, config.patch_size, config.features, config.head_features) == (384, 16, 256, 32)
        assert (config.readout, config.fusion_norm, config.qkv_bias) == ("project", "none", True)
        assert config.layer_norm_eps == 1e-6
        assert config.strides == (4, 8, 16, 32)
    assert DPTConfig.preset("dpt_deit_base") == base
    assert DPTConfig.preset("dpt_deit_base_distilled") == base.replace(distilled=True)


def test_metric_presets_have_the_published_scale_and_shift():
    # isl-org/DPT run_monodepth.py.
    published = {"dpt_hybrid_nyu": (0.000305, 0.1378), "dpt_hybrid_kitti": (0.00006016, 0.00579)}
    for name in list_presets():
        config = DPTConfig.preset(name)
        assert config.metric == (name in published), name
        if config.metric:
            assert (config.depth_scale, config.depth_shift) == published[name]
            scale, shift = published[name]
            assert config == DPTConfig.preset("dpt_hybrid").replace(metric=True, depth_scale=scale, depth_shift=shift)


# Tables 6 to 8 of the paper: what each network has that is not DPT-Base's.
HYBRID = dict(encoder="hybrid", conv_levels=2, taps=(0, 1, 8, 11), channels=(256, 512, 768, 768))
RESNET = dict(
    encoder="resnet",
    conv_levels=4,
    taps=(0, 1, 2, 3),
    channels=(256, 512, 1024, 2048),
    unit_skip="relu",
    fusion_project=False,
    head_align_corners=False,
)
LARGE = dict(width=1024, depth=24, heads=16, mlp_width=4096, taps=(5, 11, 17, 23), channels=(256, 512, 1024, 1024))
ABLATIONS = {
    # Layers there are counted from one. The readout token was ignored: the first row has the numbers of "Ignore" in
    # Table 7, and only then does the text choose projection for what follows.
    "taps": {
        "base {3, 6, 9, 12}": dict(readout="ignore", taps=(2, 5, 8, 11)),
        "base {6, 8, 10, 12}": dict(readout="ignore", taps=(5, 7, 9, 11)),
        "base {9, 10, 11, 12}": dict(readout="ignore", taps=(8, 9, 10, 11)),
        "hybrid {3, 6, 9, 12}": HYBRID | dict(readout="ignore", conv_levels=0, taps=(2, 5, 8, 11)),
        "hybrid {R0, R1, 9, 12}": HYBRID | dict(readout="ignore"),
    },
    "readout": {name: dict(readout=name, taps=(2, 5, 8, 11)) for name in ("ignore", "add", "project")},
    "backbone": {
        "ResNet50": RESNET | dict(stage_depths=(3, 4, 6, 3), groups=1, group_width=64),
        "ResNeXt101-WSL": RESNET | dict(stage_depths=(3, 4, 23, 3), groups=32, group_width=8),
        "DeiT-Base": dict(readout="project"),
        "DeiT-Base-Dist": dict(readout="project", distilled=True),
        "ViT-Base": dict(readout="project"),
        "ViT-Large": LARGE | dict(readout="project"),
        "ViT-Hybrid": HYBRID | dict(readout="project", stage_depths=(3, 4, 9, 0)),
    },
}


@pytest.mark.parametrize("table", ABLATIONS)
def test_ablations_are_the_networks_of_the_tables(table):
    configs = DPTConfig.ablation(table)
    assert list(configs) == list(ABLATIONS[table])
    for row, fields in ABLATIONS[table].items():
        assert configs[row] == DPTConfig(**fields), row


def test_ablations_share_the_networks_that_the_tables_share():
    taps, readout, backbone = map(DPTConfig.ablation, ("taps", "readout", "backbone"))
    assert taps["base {3, 6, 9, 12}"] == readout["ignore"]
    assert readout["project"] == backbone["ViT-Base"] == DPTConfig.preset("dpt_base")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            ({name: value}, rf"DPTConfig: {name} must be in \[1, 65536\], got {value}$")
            for name in (
                "image_size",
                "patch_size",
                "width",
                "depth",
                "heads",
                "mlp_width",
                "features",
                "head_features",
            )
            for value in (0, -1, 65537)
        ),
        (dict(strides=(0, 8, 16, 32)), r"strides must be in \[1, 65536\], got 0"),
        (dict(channels=(96, -1, 384, 768)), r"channels must be in \[1, 65536\], got -1"),
        (dict(depth=1025), "depth must be at most 1024, got 1025"),
        (dict(image_size=385), "image_size must be a multiple of patch_size 16, got 385"),
        (dict(width=769), "width must be a multiple of heads 12, got 769"),
        (dict(features=1), "features must be at least 2, got 1; the head halves them"),
        (dict(layer_norm_eps=0), "layer_norm_eps must be positive and finite, got 0"),
        (dict(layer_norm_eps=-1e-6), "layer_norm_eps must be positive and finite, got -1e-06"),
        (dict(taps=(5, 2, 8, 11)), r"taps must be ascending 0-based block indices, got \[5, 2, 8, 11\]"),
        (dict(taps=(2, 2, 8, 11)), "taps must be ascending 0-based block indices"),
        (dict(taps=(-1, 2, 8, 11)), "taps must be ascending 0-based block indices"),
        (dict(taps=(3, 6, 9, 12)), "the last tap must be the last block, 11, got 12; set depth to 13"),
        (dict(depth=13), "the last tap must be the last block, 12, got 11; set depth to 12"),
        (dict(taps=(2, 5, 11)), "field 'taps' must be four values, finest level first, got 3"),
        (dict(channels=(1, 2, 3, 4, 5)), "field 'channels' must be four values, finest level first, got 5"),
        (dict(strides=(2, 4, 8, 16)), "the finest stride must be 4, got 2; fusion and head each upsample by two"),
        (
            dict(strides=(4, 8, 16, 24)),
            r"each stride must divide or be a multiple of patch_size 16, got \[4, 8, 16, 24\]",
        ),
        (dict(strides=(4, 16, 8, 32)), r"strides must ascend, finest level first, got \[4, 16, 8, 32\]"),
        (dict(strides=(4, 4, 8, 16)), "strides must ascend"),
        (dict(readout="mean"), r"field 'readout' must be one of \[ignore, add, project\], got 'mean'"),
        (dict(fusion_norm="layer"), r"field 'fusion_norm' must be one of \[none, batch\], got 'layer'"),
        (dict(width="768"), "field 'width': wanted an integer, got the string \"768\""),
        (dict(width=768.5), "field 'width': wanted an integer, got the number 768.5"),
        (dict(qkv_bias=1), "field 'qkv_bias': wanted true or false, got 1"),
        (dict(distilled=None), "field 'distilled': wanted true or false, got null"),
        (dict(readout=3), "field 'readout': wanted a string, got 3"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_invalid_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DPTConfig(**fields)
    with pytest.raises(ValueError, match=message):
        DPTConfig.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "DPTConfig: not a JSON object"),
        ("[]", "DPTConfig: not a JSON object: wanted an object, got an array"),
        ('{"width": 24', "DPTConfig: not a JSON object: JSON, byte 12"),
        (
            '{"widht": 24}',
            "DPTConfig: unknown field 'widht'; the fields are format_version torchdpt_version encoder conv_levels",
        ),
        ('{"format_version": 2}', "format_version must be 1, got 2; the file was written by another release"),
    ],
)
def test_text_that_is_no_config_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        DPTConfig.from_json(text)
