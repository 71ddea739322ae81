"""DPTModel and DPTConfig: what a user may rely on besides the numbers, which test_reference.py has."""

import copy
import dataclasses
import itertools
import json
import math
import pickle
import shutil
import threading
import time

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers import DPTConfig as PeerConfig
from transformers import DPTForDepthEstimation

import torchdpt
from torchdpt import _C, DPTConfig, DPTModel, DPTOutput, Encoder, Fusion, Head, Reassemble, list_presets

FILES = {"config.json", "model.safetensors", "preprocessor_config.json"}
NARROW = DPTConfig(
    image_size=64,
    width=24,
    depth=4,
    heads=3,
    mlp_width=40,
    taps=(0, 1, 2, 3),
    channels=(6, 8, 10, 12),
    features=14,
    head_features=5,
)
DISTILLED = NARROW.replace(distilled=True)
BATCH_NORM = NARROW.replace(fusion_norm="batch")
STAGES = ("encoder", "reassemble", "fusion", "head")


def images(batch=2, height=64, width=96, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


def make_model(config=NARROW, dtype=torch.float32, seed=0):
    """A model whose output is above zero in places and differs between images."""
    torch.manual_seed(seed)
    model = DPTModel(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.encoder.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.2)
        for parameter in model.fusion.parameters():
            parameter.mul_(2)
        x = images(dtype=dtype)
        # Half of what the last ReLU gets is above zero.
        model.head.get_parameter("depth.conv3.bias").fill_(100)
        before = model.eval()(x).depth - 100
        model.head.get_parameter("depth.conv3.bias").fill_(-before.double().median())
    depth = model(x).depth
    assert (depth > 0).double().mean() > 0.3
    assert (depth[0] - depth[1]).abs().max() > 0.01 * depth.max()
    return model.train()


def by_stages(model, x):
    maps = model.reassemble(model.encoder(x), (x.shape[2], x.shape[3]))
    return model.head(*model.fusion(maps))


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


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


# Files


@pytest.mark.parametrize("config", [NARROW, DISTILLED, BATCH_NORM], ids=["plain", "distilled", "batch norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_save_and_load_are_bit_equal(tmp_path, config, dtype):
    model = DPTModel(config, dtype=dtype)
    assert model.save_pretrained(tmp_path / "new" / "folder") == []
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "new" / "folder" / "model.safetensors", tmp_path / "alone" / "any.safetensors")
    for path in (tmp_path / "new" / "folder", tmp_path / "alone" / "any.safetensors"):
        for spelled in (path, str(path)):
            loaded = DPTModel.from_pretrained(spelled)
            assert loaded.config == model.config
            assert same_bits(loaded.state_dict(), model.state_dict())
            assert list(loaded.state_dict()) == list(model.state_dict())


def test_loading_takes_dtype_and_device(tmp_path):
    DPTModel(BATCH_NORM).save_pretrained(tmp_path)
    loaded = DPTModel.from_pretrained(tmp_path, dtype=torch.float64, device="cpu")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float64}
    assert loaded.state_dict()["fusion.0.unit1.norm1.num_batches_tracked"].dtype == torch.int64
    assert loaded(images(dtype=torch.float64)).depth.dtype == torch.float64
    assert all(t.is_meta for t in DPTModel.from_pretrained(tmp_path, device="meta").state_dict().values())


def test_overwriting_replaces_the_file_and_leaves_a_loaded_model_alone(tmp_path):
    first, second = make_model(seed=1), make_model(DISTILLED, seed=2)
    first.save_pretrained(tmp_path)
    loaded = DPTModel.from_pretrained(tmp_path)  # its tensors are mapped from the file
    second.save_pretrained(tmp_path)
    assert same_bits(loaded.state_dict(), first.state_dict())
    again = DPTModel.from_pretrained(tmp_path)
    assert again.config == DISTILLED
    assert same_bits(again.state_dict(), second.state_dict())
    again.save_pretrained(tmp_path)  # over the file that it is mapped from
    assert same_bits(DPTModel.from_pretrained(tmp_path).state_dict(), second.state_dict())
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_loaded_tensors_can_be_changed_without_changing_the_file(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = DPTModel.from_pretrained(tmp_path)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert same_bits(DPTModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


def test_tensors_of_any_layout_are_saved(tmp_path):
    model = make_model()
    want = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.to(memory_format=torch.channels_last).save_pretrained(tmp_path)
    assert same_bits(DPTModel.from_pretrained(tmp_path).state_dict(), want)


def test_saved_config_is_canonical(tmp_path):
    DPTModel(NARROW).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert DPTConfig.from_json(text) == NARROW
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert json.loads(text) == json.loads(NARROW.to_json())


def test_file_and_config_that_do_not_belong_together(tmp_path):
    DPTModel(NARROW).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(NARROW.replace(features=16).to_json())
    with pytest.raises(ValueError, match=r"has shape \[\d+, .*the config wants \[16, .*do not belong together"):
        DPTModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(DISTILLED.to_json())
    with pytest.raises(ValueError, match=r"has shape|1 missing \[encoder\.dist_token\]"):
        DPTModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "'.*nowhere' does not exist; pass a folder with config.json"),
        (lambda folder: folder, "has no model.safetensors; pass the folder that save_pretrained wrote"),
        (lambda folder: folder / "weights.bin", "wanted a folder or a .safetensors file, got '.*weights.bin'"),
        (
            lambda folder: folder / "text.safetensors",
            "header: wanted a length of at most .*the file is damaged",
        ),
        (
            lambda folder: folder / "empty.safetensors",
            "wanted at least 8 bytes, .*got a file of 0; the file is damaged",
        ),
    ],
)
def test_bad_path_raises(tmp_path, make, message):
    (tmp_path / "weights.bin").touch()
    (tmp_path / "text.safetensors").write_text("This is no file of tensors.")
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(ValueError, match=message):
        DPTModel.from_pretrained(make(tmp_path))


def test_unknown_layout_raises(tmp_path):
    with pytest.raises(ValueError, match="layout must be 'torchdpt', 'transformers' or 'isl-org', got 'timm'"):
        DPTModel(NARROW).save_pretrained(tmp_path / "out", layout="timm")
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"save_checkpoint: could not create the folder '.*file/out'"):
        DPTModel(NARROW).save_pretrained(tmp_path / "file" / "out")


def transformers_model(**changes):
    # transformers' head has 32 hidden features.
    return make_model(NARROW.replace(head_features=32, **changes), seed=7)


@pytest.mark.parametrize("layout", ["torchdpt", "transformers"])
def test_encoder_weights_start_the_encoder_alone(tmp_path, layout):
    source = transformers_model(fusion_norm="batch")
    source.save_pretrained(tmp_path, layout=layout)
    # Another decoder: only the encoder's shapes have to agree.
    config = NARROW.replace(features=10, channels=(3, 4, 5, 6), readout="add")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        torch.manual_seed(3)
        model = DPTModel(config, encoder_weights=path)
        torch.manual_seed(3)
        fresh = DPTModel(config)
        assert model.training
        assert same_bits(model.encoder.state_dict(), source.encoder.state_dict())
        for stage in ("reassemble", "fusion", "head"):
            assert same_bits(getattr(model, stage).state_dict(), getattr(fresh, stage).state_dict())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    double = DPTModel(config, encoder_weights=tmp_path, dtype=torch.float64)
    assert torch.equal(double.encoder.cls_token, source.encoder.cls_token.double())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(width=48), r"tensor 'encoder\.cls_token' has shape \[1, 1, 24\], the config wants \[1, 1, 48\]"),
        (dict(depth=5, taps=(0, 1, 2, 4)), "has an encoder with depth = 4, this model has 5"),
        (dict(distilled=True), "has an encoder with distilled = false, this model has true"),
        # What no shape shows.
        (dict(heads=4), r"has an encoder with heads = \d, this model has 4; change the config of one"),
        (dict(qkv_bias=False), "has an encoder with qkv_bias = true, this model has false"),
        (dict(layer_norm_eps=1e-5), "has an encoder with layer_norm_eps ="),
        (dict(depth=5, taps=(0, 1, 2, 4), width=48), "has an encoder with depth"),
    ],
)
def test_encoder_weights_of_another_shape_are_refused(tmp_path, changes, message):
    DPTModel(NARROW).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        DPTModel(NARROW.replace(**changes), encoder_weights=tmp_path)


def test_encoder_weights_need_a_device_with_values(tmp_path):
    DPTModel(NARROW).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder_weights cannot be loaded onto device='meta'"):
        DPTModel(NARROW, encoder_weights=tmp_path, device="meta")


# Calls


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


# Hooks and what cannot take part


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


# Training


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


# DPTConfig


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
