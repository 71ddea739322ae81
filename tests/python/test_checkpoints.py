"""Checkpoints of isl-org, in and out, in both of their layouts."""

import errno
import logging
import os

import pytest
import torch
from checkpoints import NETWORKS, isl_org, narrow, peer, unused, write
from parity import images
from safetensors.torch import load_file

from torchdpt import DPTConfig, DPTModel

LAYOUTS = ["v1", "scriptable"]
# Of the largest value. The weights are the same, in float64: what is left is the order of sums, far below this.
TOLERANCE = 1e-6


# Reading


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_output_is_that_of_the_same_weights_in_transformers(tmp_path, network, layout):
    file = write(isl_org(peer(network).state_dict(), layout), tmp_path / "model.pt")
    ours = DPTModel.from_pretrained(file)
    for size in (64, 96):
        x = images(size, 2, torch.float64)
        want = peer(network)(x).predicted_depth
        assert want.std() > 0.1 * want.max()
        assert (ours(x).depth - want).abs().max() <= TOLERANCE * want.max()
    peer(network).save_pretrained(tmp_path / "theirs")
    theirs = DPTModel.from_pretrained(tmp_path / "theirs")
    assert theirs.config == ours.config
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("name", ["model.pt", "model.pth"])
@pytest.mark.parametrize("form", ["plain", "training", "before torch 1.6"])
def test_forms_of_pt_files(tmp_path, base, name, form, recwarn):
    model = DPTModel.from_pretrained(write(base, tmp_path / name, form))
    assert torch.equal(model.get_parameter("head.depth.conv1.weight"), base["scratch.output_conv.0.weight"])
    assert not model.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert not recwarn.list


def test_safetensors_file_without_config_is_recognised(tmp_path, base):
    file = write(base, tmp_path / "model.safetensors", "safetensors")
    want = DPTModel.from_pretrained(write(base, tmp_path / "x.pt"))
    for path in (file, tmp_path):
        model = DPTModel.from_pretrained(path)
        assert model.config == want.config
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in want.state_dict().items())


def test_encoder_weights_come_from_such_a_file_too(tmp_path, base):
    file = write(base, tmp_path / "model.safetensors", "safetensors")
    config = DPTModel.from_pretrained(file).config.replace(features=8)
    model = DPTModel(config, encoder_weights=file, dtype=torch.float64)
    assert torch.equal(model.get_parameter("encoder.pos_embed"), base["pretrained.model.pos_embed"])


def test_changing_loaded_tensors_leaves_the_file_alone(tmp_path, base):
    file = write(base, tmp_path / "model.pt")
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in DPTModel.from_pretrained(file).parameters():
            parameter.zero_()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("preset", "readout"), [("dpt_base", "project"), ("dpt_deit_base_distilled", "project"), ("dpt_large", "ignore")]
)
def test_published_sizes_are_recognised(tmp_path, preset, readout):
    config = DPTConfig.preset(preset).replace(readout=readout)
    model = DPTModel(config, device="meta", dtype=torch.bfloat16)
    model = model.to_empty(device="cpu")
    zeros = model.save_pretrained(tmp_path, layout="isl-org")
    assert ("pretrained.model.head_dist.weight" in zeros) == config.distilled
    assert DPTModel.from_pretrained(tmp_path, device="meta").config == config


def test_ignored_tensors_are_reported_by_name(tmp_path, base, caplog):
    with caplog.at_level(logging.INFO, logger="torchdpt"):
        DPTModel.from_pretrained(write(base, tmp_path / "model.pt"))
    assert set(caplog.messages[0].split(": ")[-1].split(", ")) == unused(base)
    assert len(unused(base)) == 2 + 2 + 4


def test_ignored_tensors_may_be_missing_or_of_any_shape(tmp_path, base):
    tensors = {name: tensor for name, tensor in base.items() if not name.startswith("pretrained.model.norm")}
    tensors["pretrained.model.head.weight"] = torch.zeros(3)
    DPTModel.from_pretrained(write(tensors, tmp_path / "model.pt"))


# Writing


@pytest.mark.parametrize("network", NETWORKS)
def test_round_trip_keeps_every_tensor_that_is_run(tmp_path, network):
    first = isl_org(peer(network).state_dict(), "v1")
    model = DPTModel.from_pretrained(write(first, tmp_path / "first.pt"))
    zeros = model.save_pretrained(tmp_path / "out", layout="isl-org")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.pt", "preprocessor_config.json"}
    again = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert again.keys() == first.keys()
    assert set(zeros) == unused(first)
    for name, tensor in first.items():
        assert again[name].shape == tensor.shape, name
        if name in zeros:
            assert not again[name].any(), name
        else:
            assert torch.equal(again[name], tensor), name
            assert again[name].dtype == tensor.dtype
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in again.values())
    assert DPTModel.from_pretrained(tmp_path / "out").config == model.config


@pytest.mark.parametrize("network", ["base", "batch norm"])
def test_transformers_to_isl_org_and_back(tmp_path, network):
    peer(network).save_pretrained(tmp_path / "0")
    DPTModel.from_pretrained(tmp_path / "0").save_pretrained(tmp_path / "1", layout="isl-org")
    DPTModel.from_pretrained(tmp_path / "1").save_pretrained(tmp_path / "2", layout="transformers")
    first, last = (load_file(tmp_path / n / "model.safetensors") for n in "02")
    assert first.keys() == last.keys()
    run = [n for n in first if "dpt.layernorm" not in n and "layers.0.residual_layer1" not in n]
    assert len(run) > 150
    assert all(torch.equal(first[name], last[name]) for name in run)


def test_epsilon_of_transformers_config_is_no_obstacle(tmp_path):
    model = DPTModel(narrow(layer_norm_eps=1e-12))
    model.save_pretrained(tmp_path, layout="isl-org")
    assert DPTModel.from_pretrained(tmp_path).config.layer_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(heads=2), "a reader would take heads for 1, where this model has 2; use layout 'torchdpt'"),
        (dict(readout="add"), 'take readout for "ignore", where this model has "add"'),
        (dict(layer_norm_eps=1e-5), "take layer_norm_eps for 1e-06?, where this model has 1e-05?"),
        (dict(taps=(1, 5, 8, 11)), "take taps for"),
        (dict(depth=8, taps=(1, 3, 5, 7)), "the encoder has 8 blocks, and only for 12"),
        (dict(width=96), "width must be a multiple of 64"),
    ],
)
def test_what_a_reader_would_misread_is_refused(tmp_path, changes, message):
    model = DPTModel(narrow(**changes))
    with pytest.raises(ValueError, match="save_checkpoint: layout 'isl-org'.*" + message):
        model.save_pretrained(tmp_path / "out", layout="isl-org")
    assert not (tmp_path / "out").exists()


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    model = DPTModel(narrow())
    model.save_pretrained(tmp_path, layout="isl-org")
    before = (tmp_path / "model.pt").read_bytes()

    def full(tensors, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ValueError, match=r"could not write '.*model\.pt' .*No space left on device"):
        model.save_pretrained(tmp_path, layout="isl-org")
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "preprocessor_config.json"}
    assert (tmp_path / "model.pt").read_bytes() == before


def test_saving_beside_a_file_that_would_win_is_refused(tmp_path):
    model = DPTModel(narrow())
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a model\.safetensors, which from_pretrained would read instead"):
        model.save_pretrained(tmp_path, layout="isl-org")
