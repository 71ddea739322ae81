"""DPTModel: its size, and how it is made and copied. Its numbers are in test_reference.py."""

import copy
import math
import pickle

import pytest
import torch
from narrow import BATCH_NORM, DISTILLED, NARROW, images, make_model, same_bits
from torch import nn
from transformers import DPTConfig as PeerConfig
from transformers import DPTForDepthEstimation

from torchdpt import DPTConfig, DPTModel, Encoder, Fusion, Head, Reassemble, list_presets

# Size


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("dpt_base", 109_696_385),
        ("dpt_deit_base", 109_696_385),
        ("dpt_deit_base_distilled", 109_696_385 + 2 * 768),  # one more token, and its position
        ("dpt_large", 341_848_257),
    ],
)
def test_preset_has_the_published_number_of_parameters(preset, parameters):
    model = DPTModel(preset, device="meta")
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert count(model) == parameters


def test_tiny_preset_has_five_million_parameters():
    assert 4_500_000 <= count(DPTModel("dpt_tiny", device="meta")) <= 6_000_000


@pytest.mark.parametrize(
    ("preset", "fields", "parameters"),
    [
        ("dpt_base", {}, 110_878_081),
        (
            "dpt_large",
            dict(
                hidden_size=1024,
                num_hidden_layers=24,
                num_attention_heads=16,
                intermediate_size=4096,
                backbone_out_indices=[5, 11, 17, 23],
                neck_hidden_sizes=[256, 512, 1024, 1024],
            ),
            343_030_465,
        ),
    ],
)
def test_transformers_counts_what_it_never_runs_too(preset, fields, parameters):
    with torch.device("meta"):
        peer = DPTForDepthEstimation(PeerConfig(**fields))
    assert count(peer) == parameters
    unused = count(peer.dpt.layernorm) + count(peer.neck.fusion_stage.layers[0].residual_layer1)
    assert count(DPTModel(preset, device="meta")) == parameters - unused


def test_presets_are_listed_by_size_and_all_build():
    names = list_presets()
    assert names[0] == "dpt_tiny"
    assert {"dpt_base", "dpt_deit_base_distilled", "dpt_hybrid", "dpt_large", "midas_resnext101_wsl"} <= set(names)
    counts = [count(DPTModel(preset, device="meta")) for preset in list_presets()]
    assert counts == sorted(counts)


# Construction


def test_modes_after_construction_and_after_loading(tmp_path):
    model = DPTModel(NARROW)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = DPTModel.from_pretrained(tmp_path)
    assert not any(module.training for module in loaded.modules())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    assert model.training


@pytest.mark.parametrize("config", [NARROW, DISTILLED, BATCH_NORM], ids=["plain", "distilled", "batch norm"])
def test_seed_decides_the_first_values(config):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(DPTModel(config).state_dict())
    assert same_bits(states[0], states[1])
    random = [name for name, tensor in states[0].items() if tensor.dim() > 1]
    assert random
    for name in random:
        assert not torch.equal(states[0][name], states[2][name]), name


def test_first_values_do_not_depend_on_the_dtype():
    states = {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(1)
        states[dtype] = DPTModel(BATCH_NORM, dtype=dtype).state_dict()
    for dtype, state in states.items():
        for name, tensor in state.items():
            want = torch.int64 if name.endswith("num_batches_tracked") else dtype
            assert tensor.dtype == want
            assert torch.equal(tensor, states[torch.float32][name].to(want)), name


def assert_sample(values, mean, std, name):
    """Mean and deviation of n values, each within six standard errors: one in 10^8 draws fails."""
    n = values.numel()
    assert abs(values.double().mean() - mean) <= 6 * std / math.sqrt(n), name
    assert abs(values.double().std() / std - 1) <= 6 / math.sqrt(2 * n), name


@pytest.fixture(scope="module")
def initial():
    torch.manual_seed(0)
    return DPTModel(DPTConfig.preset("dpt_tiny").replace(fusion_norm="none", distilled=True))


def test_encoder_starts_from_a_normal_distribution(initial):
    for name, tensor in initial.encoder.state_dict().items():
        if name.startswith("patch_embed"):
            continue
        if "norm" in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), name
        elif name.endswith("bias"):
            assert not tensor.any(), name
        else:  # linear layers, tokens, positions
            assert_sample(tensor, 0, 0.02, name)
            if tensor.numel() > 10_000:  # normal, not uniform: there are values past three deviations
                assert 0.001 < (tensor.abs() > 0.06).double().mean() < 0.005, name


def torch_layer(initial, name, weight):
    """The layer of torch.nn with the same shape, as torch initialises it."""
    if name.startswith("reassemble") and name.endswith("read.project"):
        return nn.Linear(weight.shape[1], weight.shape[0])
    if name.startswith("reassemble") and name.endswith("resample") and weight.shape[2] != 3:
        return nn.ConvTranspose2d(weight.shape[0], weight.shape[1], tuple(weight.shape[2:]))
    return nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]))


def test_decoder_starts_from_torch_defaults(initial):
    names = [name.removesuffix(".weight") for name, _ in initial.named_parameters() if name.endswith(".weight")]
    names = [name for name in names if not name.startswith("encoder") or name == "encoder.patch_embed"]
    # patch embedding; 4 x read and project, 3 x resample; 4 x input and project, 7 units; three layers of the head
    assert len(names) == 1 + 11 + 4 * 2 + 7 * 2 + 3
    for name in names:
        layer = initial.get_submodule(name)
        peer = torch_layer(initial, name, layer.weight)
        assert peer.weight.shape == layer.weight.shape
        # U(-b, b) has deviation b / sqrt(3). Both sides are samples of it; the peer tells b by its largest value.
        fan_in = nn.init._calculate_fan_in_and_fan_out(peer.weight)[0]
        bound = 1 / math.sqrt(fan_in)
        for leaf, tensor in layer.named_parameters():
            theirs = getattr(peer, leaf)
            if (name, leaf) == ("head.depth.conv3", "bias"):
                assert tensor == 1  # above zero, so that the last ReLU lets gradients pass
                continue
            assert tensor.abs().max() <= bound * (1 + 1e-6)  # rounding of b
            assert theirs.abs().max() <= bound * (1 + 1e-6)
            if tensor.numel() > 1000:
                assert_sample(tensor, 0, bound / math.sqrt(3), f"{name}.{leaf}")
                assert_sample(theirs, 0, bound / math.sqrt(3), f"torch's {name}.{leaf}")
                assert tensor.abs().max() >= 0.98 * bound  # of 1000 values one lies in the outer 2 %: 1 - 2e-9
            else:
                assert tensor.std() > 0.3 * bound, f"{name}.{leaf}"


def test_batch_norm_starts_as_in_torch():
    fusion = DPTModel(BATCH_NORM).fusion
    theirs = nn.BatchNorm2d(NARROW.features).state_dict()
    for unit in ("0.unit1", "0.unit2", "3.unit2"):
        for norm in ("norm1", "norm2"):
            assert same_bits(dict(fusion.get_submodule(f"{unit}.{norm}").state_dict()), dict(theirs))
    with pytest.raises(AttributeError):
        fusion.get_submodule("3.unit1")  # nothing comes from below the coarsest level


def test_dtype_and_device_arguments():
    model = DPTModel(NARROW, dtype=torch.float64, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    torch.set_default_dtype(torch.float64)
    try:
        assert {parameter.dtype for parameter in DPTModel(NARROW).parameters()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match=r"dtype must be a floating point type, got torch\.int64"):
        DPTModel(NARROW, dtype=torch.int64)


def test_default_device_takes_part():
    with torch.device("meta"):
        model = DPTModel(BATCH_NORM)
        encoder = Encoder(NARROW)
    assert all(tensor.is_meta for tensor in [*model.state_dict().values(), *encoder.state_dict().values()])
    output = model.eval()(torch.empty(2, 3, 64, 96, device="meta"))
    assert output.depth.is_meta
    assert output.depth.shape == (2, 64, 96)


def test_meta_model_takes_a_state_dict():
    model = make_model()
    other = DPTModel(NARROW, device="meta")
    other.load_state_dict(model.state_dict(), assign=True)
    x = images()
    assert torch.equal(other(x).depth, model(x).depth)


@pytest.mark.parametrize("stage", [Encoder, Reassemble, Fusion, Head])
def test_stage_can_be_built_alone(stage):
    torch.manual_seed(0)
    alone = stage("dpt_tiny", device="meta")
    whole = getattr(DPTModel("dpt_tiny", device="meta"), stage.__name__.lower())
    assert type(whole) is stage
    assert {n: t.shape for n, t in alone.state_dict().items()} == {n: t.shape for n, t in whole.state_dict().items()}
    assert alone.config == DPTConfig.preset("dpt_tiny")


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ValueError, match="unknown preset 'dpt_huge'; the presets are dpt_tiny dpt_tiny_joint"):
        DPTModel("dpt_huge")


def test_copies_do_not_share_tensors():
    model = make_model()
    x = images()
    want = model(x).depth
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x).depth, want)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        assert not other(x).depth.any()
    assert torch.equal(model(x).depth, want)
