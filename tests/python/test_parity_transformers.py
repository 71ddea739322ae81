"""Ours against transformers' DPTForDepthEstimation: outputs, gradients, statistics, and files in both directions.

The peer's weights are drawn so that an error shows: every branch of a block adds about as much as it is given, gains of
LayerNorm and all biases are random, and the last bias is placed so that most of the output is above zero and varies.
"""

import copy
import json
import logging
import tempfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DPTConfig as PeerConfig
from transformers import DPTForDepthEstimation

from torchdpt import DPTConfig, DPTModel

# Largest difference over the largest value. Each side sums some thousand products per layer in another order, which in
# float32 (ulp 1.2e-7) leaves a few 1e-6 at the output; a wrong GELU or tap changes it by more than 1e-3.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}
DTYPES = list(TOLERANCE)

# Native side -> sides to compare at: multiples of 32, where the published network is defined.
SIZES = {64: (64, 96), 32: (32, 64), 384: (384, 64)}

NARROW = dict(
    image_size=64,
    hidden_size=60,
    num_attention_heads=5,
    intermediate_size=75,
    num_hidden_layers=6,
    backbone_out_indices=[0, 2, 3, 5],
    neck_hidden_sizes=[15, 17, 21, 27],
    fusion_hidden_size=19,
)
ODD = NARROW | dict(
    hidden_size=63,
    num_attention_heads=7,
    intermediate_size=101,
    num_hidden_layers=5,
    backbone_out_indices=[0, 1, 3, 4],
    neck_hidden_sizes=[7, 33, 5, 12],
    fusion_hidden_size=13,
)
BATCH_NORM = NARROW | dict(use_batch_norm_in_fusion_residual=True)


def peer_of(config):
    config._attn_implementation = "eager"  # plain matmul and softmax
    with torch.device("meta"):  # all values are drawn or loaded later
        peer = DPTForDepthEstimation(config)
    return peer.to_empty(device="cpu").eval()


@torch.no_grad()
def draw_weights(peer, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * std + mean)

    for module in peer.modules():
        if isinstance(module, nn.ConvTranspose2d):  # kernel = stride: one product per input channel
            normal(module.weight, module.in_channels**-0.5)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            normal(module.weight, module.weight[0].numel() ** -0.5)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm)):
            normal(module.weight, 0.3, mean=1)
        if isinstance(module, nn.BatchNorm2d):
            normal(module.running_mean, 0.5)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.num_batches_tracked.fill_(5)
        if getattr(module, "bias", None) is not None:
            normal(module.bias, 0.3)
    normal(peer.dpt.embeddings.cls_token, 1)
    normal(peer.dpt.embeddings.position_embeddings, 1)


def make_peer(dtype=torch.float64, seed=0, batch=3, **fields):
    """The peer in eval mode with weights that let a test fail on batches up to `batch`."""
    peer = peer_of(PeerConfig(**fields)).to(dtype)
    draw_weights(peer, seed)
    with torch.no_grad():
        below = []
        handle = peer.head.head[4].register_forward_hook(lambda module, args, output: below.extend(output))
        for size in SIZES[peer.config.image_size]:
            peer(images(size, batch, dtype))
        handle.remove()
        peer.head.head[4].bias -= min(
            image.flatten()[:: max(1, image.numel() // 10000)].quantile(0.3) for image in below
        )
    return peer


def changed(peer, **fields):
    """The same weights under a config with other fields."""
    other = peer_of(PeerConfig(**(peer.config.to_dict() | fields))).to(peer.dtype)
    other.load_state_dict(peer.state_dict())
    return other


def images(size, batch, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def assert_parity(ours, reference):
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    assert torch.isfinite(reference).all()
    assert torch.isfinite(ours).all()
    assert (ours - reference).abs().max() <= TOLERANCE[reference.dtype] * reference.abs().max()


def assert_can_fail(reference):
    """A constant or mostly clipped output would agree with almost anything."""
    assert (reference > 0).double().mean() >= 0.5
    assert reference.std() >= 0.1 * reference.max()


@torch.no_grad()
def compare(ours, peer, sizes=None, batches=(1,)):
    for size in sizes or SIZES[peer.config.image_size]:
        for batch in batches:
            x = images(size, batch, peer.dtype)
            reference = peer(x).predicted_depth
            assert_can_fail(reference)
            assert_parity(ours(x).depth, reference)


def load(peer, folder):
    peer.save_pretrained(folder)
    return DPTModel.from_pretrained(folder)


@pytest.fixture(scope="module")
def narrow():
    """Shared by tests that do not change it."""
    return make_peer(**NARROW)


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


def peer_names(name):
    """transformers' names of one of our tensors; three names are three equal groups of rows: query, key, value."""
    in_block = {
        "norm1": "layernorm_before",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    match name.split("."):
        case ["encoder", "cls_token"]:
            return ["dpt.embeddings.cls_token"]
        case ["encoder", "pos_embed"]:
            return ["dpt.embeddings.position_embeddings"]
        case ["encoder", "patch_embed", leaf]:
            return [f"dpt.embeddings.patch_embeddings.projection.{leaf}"]
        case ["encoder", "blocks", i, "attn", "qkv", leaf]:
            return [f"dpt.encoder.layer.{i}.attention.attention.{part}.{leaf}" for part in ("query", "key", "value")]
        case ["encoder", "blocks", i, *layer, leaf]:
            return [f"dpt.encoder.layer.{i}.{in_block['.'.join(layer)]}.{leaf}"]
        case ["reassemble", i, "read", "project", leaf]:
            return [f"neck.reassemble_stage.readout_projects.{i}.0.{leaf}"]
        case ["reassemble", i, "project", leaf]:
            return [f"neck.reassemble_stage.layers.{i}.projection.{leaf}"]
        case ["reassemble", i, "resample", leaf]:
            return [f"neck.reassemble_stage.layers.{i}.resize.{leaf}"]
        case ["fusion", i, "input", leaf]:
            return [f"neck.convs.{i}.{leaf}"]
        case ["fusion", i, "project", leaf]:  # theirs are counted from the coarsest level
            return [f"neck.fusion_stage.layers.{3 - int(i)}.projection.{leaf}"]
        case ["fusion", i, unit, layer, leaf]:
            kind = {"conv": "convolution", "norm": "batch_norm"}[layer[:-1]]
            return [f"neck.fusion_stage.layers.{3 - int(i)}.residual_layer{unit[-1]}.{kind}{layer[-1]}.{leaf}"]
        case ["head", "depth", layer, leaf]:
            return [f"head.head.{2 * int(layer[-1]) - 2}.{leaf}"]
    raise AssertionError(f"no name for {name}")


def peer_named(tensors, names_of=peer_names):
    """(our name, tensor) pairs -> tensors by transformers' names."""
    result = {}
    for name, tensor in tensors:
        names = names_of(name)
        parts = tensor.chunk(len(names)) if len(names) > 1 else [tensor]
        result |= zip(names, parts, strict=True)
    return result


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


# Files


def unused_names(config):
    """What transformers declares and never runs: the last norm, and the unit of the coarsest level for what comes from
    below it."""
    unit = "neck.fusion_stage.layers.0.residual_layer1."
    layers = [f"{unit}convolution{i}" for i in (1, 2)]
    names = ["dpt.layernorm.weight", "dpt.layernorm.bias"]
    if config.fusion_norm == "batch":
        leaves = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
        return {*names, *(f"{name}.weight" for name in layers)} | {
            f"{unit}batch_norm{i}.{leaf}" for i in (1, 2) for leaf in leaves
        }
    return {*names, *(f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias"))}


SAVED = pytest.mark.parametrize(
    "fields",
    [
        NARROW,
        ODD | dict(readout_type="add", qkv_bias=False, layer_norm_eps=1e-6),
        NARROW | dict(readout_type="ignore", image_size=32, patch_size=8, reassemble_factors=[2, 1, 0.5, 0.25]),
        BATCH_NORM,
    ],
    ids=["project", "add", "ignore, patch 8", "batch norm"],
)


@SAVED
@pytest.mark.parametrize("dtype", DTYPES)
def test_transformers_loads_what_we_save(tmp_path, fields, dtype):
    ours = load(make_peer(**fields).to(dtype), tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", layout="transformers")
    peer, report = DPTForDepthEstimation.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {kind: list(names) for kind, names in report.items() if names} == {}
    assert peer.dtype == dtype
    compare(ours, peer.eval(), sizes=(64,), batches=(1, 3))


@SAVED
def test_tensors_that_never_run_are_written_as_zeros_and_listed(tmp_path, fields, caplog):
    ours = load(make_peer(**fields), tmp_path / "theirs")
    zeros = ours.save_pretrained(tmp_path / "ours", layout="transformers")
    want = unused_names(ours.config)
    assert set(zeros) == want
    assert len(zeros) == len(want)
    with safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert set(file.metadata()["torchdpt.written_as_zeros"].split(",")) == want
        assert file.metadata()["format"] == "pt"
        for name in want:
            assert not file.get_tensor(name).any(), name
    written = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert written.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert written[name].dtype == tensor.dtype
        assert written[name].shape == tensor.shape
        assert name in want or torch.equal(written[name], tensor), name
    with caplog.at_level(logging.INFO, logger="torchdpt"):
        DPTModel.from_pretrained(tmp_path / "ours")
    for name in want:
        assert name in caplog.text


@SAVED
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16, torch.float16])
def test_round_trip_through_transformers_is_bit_equal(tmp_path, fields, dtype):
    ours = load(make_peer(**fields), tmp_path / "0").to(dtype)
    ours.save_pretrained(tmp_path / "1", layout="transformers")
    peer = DPTForDepthEstimation.from_pretrained(tmp_path / "1")
    peer.save_pretrained(tmp_path / "2")
    again = DPTModel.from_pretrained(tmp_path / "2")
    assert again.config == ours.config
    assert again.state_dict().keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert again.state_dict()[name].dtype == tensor.dtype, name
        assert torch.equal(again.state_dict()[name], tensor), name


def test_initial_weights_of_ours_load_in_transformers(tmp_path):
    torch.manual_seed(0)
    ours = DPTModel("dpt_tiny").eval()
    ours.save_pretrained(tmp_path, layout="transformers")
    peer, report = DPTForDepthEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert peer.config.layer_norm_eps == 1e-6
    x = images(64, 1, torch.float32)
    with torch.no_grad():
        assert_parity(ours(x).depth, peer.eval()(x).predicted_depth)


def test_file_with_its_config_beside_it_loads(tmp_path, narrow):
    ours = load(narrow, tmp_path)
    compare(DPTModel.from_pretrained(tmp_path / "model.safetensors"), narrow)
    assert DPTModel.from_pretrained(str(tmp_path / "model.safetensors")).config == ours.config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(distilled=True), "transformers has no DPT with a distillation token; use layout 'torchdpt'"),
        (dict(head_features=16), "32 hidden features, this model has 16; use layout 'torchdpt'"),
    ],
)
def test_layout_transformers_is_refused_where_it_has_no_such_network(tmp_path, changes, message):
    model = DPTModel(DPTConfig.preset("dpt_tiny").replace(**changes))
    with pytest.raises(ValueError, match="save_checkpoint: .*" + message):
        model.save_pretrained(tmp_path / "out", layout="transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A hybrid is read (test_parity_family.py), but not with the rest of a ViT's config.
        (dict(is_hybrid=True), r"neck_ignore_stages must be \[0,1\], got \[\]"),
        (dict(backbone_config={"model_type": "swinv2"}), "backbone_config must be null"),
        (dict(hidden_act="gelu_new"), 'hidden_act must be "gelu", got "gelu_new"'),
        (dict(hidden_act="gelu_pytorch_tanh"), "hidden_act must be"),
        (dict(hidden_dropout_prob=0.1), "hidden_dropout_prob must be 0.0, got 0.1"),
        (dict(attention_probs_dropout_prob=0.5), "attention_probs_dropout_prob must be 0.0, got 0.5"),
        (dict(add_projection=True), "add_projection must be false, got true"),
        (dict(use_bias_in_fusion_residual=False), "use_bias_in_fusion_residual must be true, got false"),
        (
            dict(use_batch_norm_in_fusion_residual=True, use_bias_in_fusion_residual=True),
            "use_bias_in_fusion_residual must be false, got true",
        ),
        (dict(num_channels=1), "num_channels must be 3, got 1"),
        (dict(head_in_index=0), "head_in_index must be -1, got 0"),
        (dict(readout_type="mean"), "readout_type must be 'ignore', 'add' or 'project', got 'mean'"),
        (dict(backbone_out_indices=[1, 2, 3]), "field 'backbone_out_indices': wanted four values, got 3"),
        (dict(hidden_size="60"), "field 'hidden_size': wanted an integer"),
        (dict(num_hidden_layers=5), r"num_hidden_layers must be in \[6, 1024\], .*got 5"),
        (dict(reassemble_factors=[3, 2, 1, 0.5]), "reassemble_factors must divide patch_size 16, got 3"),
        (dict(reassemble_factors=[4, 2, 1, 0]), "reassemble_factors must divide patch_size 16, got 0"),
        (dict(num_attention_heads=7), "width must be a multiple of heads 7, got 60"),
        (dict(model_type="vit"), 'of model_type "vit"'),
    ],
    ids=lambda value: None if isinstance(value, str) else ", ".join(value),
)
def test_config_that_we_do_not_have_is_refused_by_its_field(tmp_path, changes, message, narrow):
    narrow.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        DPTModel.from_pretrained(tmp_path)


def test_file_without_config_says_so(tmp_path, narrow):
    narrow.save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"names no config, and there is no config\.json beside it"):
        DPTModel.from_pretrained(tmp_path)


def edited(peer, folder, edit):
    peer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.pop("neck.convs.2.weight"),
            r"\(transformers layout\): 1 missing \[neck\.convs\.2\.weight\], 0 unexpected",
        ),
        (
            lambda t: t.pop("dpt.encoder.layer.3.attention.attention.key.weight"),
            r"1 missing \[dpt\.encoder\.layer\.3\.attention\.attention\.key\.weight\], 0 unexpected",
        ),
        (
            lambda t: t.update({"neck.extra.weight": torch.zeros(2)}),
            r"0 missing \[\], 1 unexpected \[neck\.extra\.weight\]",
        ),
        (
            # Beyond num_hidden_layers: not one of the layers that are known to be unused.
            lambda t: t.update({"dpt.encoder.layer.6.layernorm_after.bias": torch.zeros(2)}),
            r"1 unexpected \[dpt\.encoder\.layer\.6\.layernorm_after\.bias\]",
        ),
        (
            lambda t: (t.pop("head.head.4.bias"), t.update(odd=torch.zeros(2))),
            r"1 missing \[head\.head\.4\.bias\], 1 unexpected \[odd\]",
        ),
        (
            lambda t: t.update({"head.head.2.weight": torch.zeros(32, 10, 3, 3)}),
            r"tensor 'head\.head\.2\.weight' has shape \[32, 10, 3, 3\], the config wants \[32, 9, 3, 3\]",
        ),
        (
            lambda t: t.update({"dpt.encoder.layer.0.attention.attention.value.bias": torch.zeros(59)}),
            r"query\.bias \+ .*key\.bias \+ .*value\.bias must have one shape, got \[60\] and \[59\]",
        ),
        (
            lambda t: t.update(
                {
                    f"dpt.encoder.layer.0.attention.attention.{part}.bias": torch.zeros(61)
                    for part in ("query", "key", "value")
                }
            ),
            r"query\.bias \+ .*has shape \[183\], the config wants \[180\]",
        ),
        (
            lambda t: t.update({"head.head.4.bias": torch.zeros(1, dtype=torch.int64)}),
            r"tensor 'head\.head\.4\.bias' has dtype Long, wanted a floating point one",
        ),
    ],
    ids=[
        "missing",
        "missing key",
        "unexpected",
        "unexpected layer",
        "both",
        "shape",
        "parts differ",
        "parts too wide",
        "dtype",
    ],
)
def test_loading_reports_what_does_not_fit(tmp_path, edit, message, narrow):
    with pytest.raises(ValueError, match="load_checkpoint: .*" + message):
        DPTModel.from_pretrained(edited(narrow, tmp_path, edit))


def test_tensors_that_never_run_may_be_missing_or_of_any_shape(tmp_path, narrow):
    def edit(tensors):
        del tensors["dpt.layernorm.weight"]
        tensors["neck.fusion_stage.layers.0.residual_layer1.convolution1.weight"] = torch.zeros(3)

    compare(DPTModel.from_pretrained(edited(narrow, tmp_path, edit)), narrow)
