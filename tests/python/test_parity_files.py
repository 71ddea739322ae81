"""Files of transformers' DPTForDepthEstimation, in both directions."""

import json
import logging

import pytest
import torch
from parity import BATCH_NORM, DTYPES, NARROW, ODD, assert_parity, compare, images, load, make_peer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DPTForDepthEstimation

from torchdpt import DPTConfig, DPTModel


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
