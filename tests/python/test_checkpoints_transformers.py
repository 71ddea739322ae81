"""Files of transformers' hybrids and of its DPTForSemanticSegmentation, in both directions."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints_family import (
    HYBRID,
    LARGE,
    METRIC,
    MLP,
    RESNET,
    SEGMENTATION,
    C,
    D,
    K,
    config_for,
    empty_model,
    images,
    make,
)
from torch import nn
from transformers import DPTConfig as PeerConfig
from transformers import DPTForDepthEstimation, DPTForSemanticSegmentation

from torchdpt import _C, DPTModel

PEER = dict(
    hidden_size=D,
    num_attention_heads=4,
    intermediate_size=MLP,
    fusion_hidden_size=C,
    layer_norm_eps=1e-6,
    image_size=64,
)
BIT = dict(
    model_type="bit",
    global_padding="same",
    layer_type="bottleneck",
    depths=[1, 2, 1],
    out_features=["stage1", "stage2", "stage3"],
    embedding_dynamic_padding=True,
)
PEER_HYBRID = PEER | dict(
    is_hybrid=True, backbone_config=BIT, reassemble_factors=[1, 1, 1, 0.5], neck_hidden_sizes=[256, 512, 10, 12]
)
PEER_PLAIN = PEER | dict(num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 10, 12, 14])
PEER_SEGMENTATION = dict(num_labels=K, use_batch_norm_in_fusion_residual=True)
PEERS = {
    "hybrid": (DPTForDepthEstimation, PEER_HYBRID),
    "segmentation": (DPTForSemanticSegmentation, PEER_PLAIN | PEER_SEGMENTATION),
    "two classes": (DPTForSemanticSegmentation, PEER_PLAIN | dict(use_auxiliary_head=False)),
    "hybrid segmentation": (DPTForSemanticSegmentation, PEER_HYBRID | PEER_SEGMENTATION),
}


def make_peer(name, dtype=torch.float64, **changes):
    kind, fields = PEERS[name]
    config = PeerConfig(**(fields | changes))
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    peer = kind(config).to(dtype).eval()
    with torch.no_grad():
        for tensor_name, tensor in peer.named_parameters():
            tensor.normal_(0, tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.2)
            if tensor.dim() == 1 and tensor_name.endswith("weight"):
                tensor.abs_().add_(0.8)
        for module in peer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return peer


def output_of(network, x):
    output = network(x)
    for name in ("predicted_depth", "depth", "logits"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    raise AssertionError("no output")


def assert_parity(ours, peer, x, tolerance):
    want = output_of(peer, x)
    assert want.std() > 0.05 * want.abs().max()
    got = output_of(ours, x)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", PEERS)
def test_output_equals_transformers_in_both_directions(tmp_path, name):
    peer = make_peer(name)
    peer.save_pretrained(tmp_path / "theirs")
    ours = DPTModel.from_pretrained(tmp_path / "theirs")
    hybrid, segmentation = "hybrid" in name, name != "hybrid"
    assert ours.config.encoder == ("hybrid" if hybrid else "vit")
    assert ours.config.weight_standardization == ("variance" if hybrid else "std")
    assert ours.config.depth_head is not segmentation
    assert ours.config.num_classes == {"hybrid": 0, "two classes": 2}.get(name, K)
    assert ours.config.auxiliary_head == ("last" if "segmentation" in name else "none")
    assert_parity(ours, peer, images(64), 1e-9)  # float64: another order of sums

    ours.save_pretrained(tmp_path / "ours", layout="transformers")
    again, report = type(peer).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {kind: list(names) for kind, names in report.items() if names} == {}
    assert_parity(ours, again.eval(), images(64), 1e-9)
    theirs, written = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours"))
    assert theirs.keys() == written.keys()
    never_run = ("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")
    assert all(torch.equal(written[n], t) for n, t in theirs.items() if not n.startswith(never_run))


@torch.no_grad()
@pytest.mark.parametrize("name", ["hybrid", "segmentation"])
def test_output_equals_transformers_at_384_in_float32(tmp_path, name):
    peer = make_peer(name, torch.float32, image_size=384)
    peer.save_pretrained(tmp_path)
    assert_parity(DPTModel.from_pretrained(tmp_path), peer, images(384, torch.float32)[:1], 1e-5)


@torch.no_grad()
def test_auxiliary_head_of_transformers_reads_the_last_map(tmp_path):
    peer = make_peer("segmentation")
    maps = []
    peer.auxiliary_head.register_forward_hook(lambda module, args, output: maps.append(output))
    peer.save_pretrained(tmp_path)
    ours = DPTModel.from_pretrained(tmp_path)
    # Batch statistics in both, and no dropout, whose random numbers differ.
    ours = DPTModel(ours.config.replace(dropout=0.0)).double().train()
    ours.load_state_dict(DPTModel.from_pretrained(tmp_path).state_dict())
    peer.train()
    for module in peer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits = peer(images(64)).logits
    output = ours(images(64))
    torch.testing.assert_close(output.logits, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.aux_logits, maps[0], rtol=1e-9, atol=1e-9)


def test_transformers_config_is_written_whole(tmp_path):
    config = config_for("hybrid segmentation", "transformers").replace(dropout=0.25)
    make(config).save_pretrained(tmp_path, layout="transformers")
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == ["DPTForSemanticSegmentation"]
    assert written["id2label"] == {str(i): f"LABEL_{i}" for i in range(K)}
    assert written["label2id"] == {f"LABEL_{i}": i for i in range(K)}
    assert written["semantic_classifier_dropout"] == 0.25
    assert written["use_auxiliary_head"] is True
    assert written["backbone_config"]["depths"] == [1, 2, 1]
    assert DPTModel.from_pretrained(tmp_path).config == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RESNET, "transformers has no DPT with a resnet as its encoder"),
        (HYBRID.replace(**METRIC, weight_standardization="variance"), "no DPT with metric depth"),
        (HYBRID, r'has weight_standardization "variance" only; make a model of config\.replace\(weight_standard'),
        (LARGE.replace(**SEGMENTATION), 'has auxiliary_head "last" only'),
        (LARGE.replace(**SEGMENTATION | dict(depth_head=True, auxiliary_head="none")), "has one head, this model has"),
        (LARGE.replace(unit_skip="relu"), 'unit_skip other than "input"'),
        (LARGE.replace(fusion_project=False), "fusion_project = false"),
        (LARGE.replace(head_align_corners=False), "head_align_corners = false"),
        (config_for("hybrid of blocks", "torchdpt").replace(weight_standardization="variance"), "other conv_levels"),
        (HYBRID.replace(readout="add", weight_standardization="variance"), 'another readout than "project"'),
    ],
)
def test_transformers_layout_is_refused_where_it_has_no_such_network(tmp_path, config, message):
    with pytest.raises(ValueError, match="save_checkpoint: .*" + message):
        _C.save_checkpoint(config.to_json(), empty_model(config), str(tmp_path / "out"), "transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(architectures=["DPTModel"]),
            'must be DPTForDepthEstimation or DPTForSemanticSegmentation, got "DPTModel"',
        ),
        (dict(readout_type="add"), 'readout_type must be "project", got "add"'),
        (dict(neck_ignore_stages=[0]), r"neck_ignore_stages must be \[0,1\], got \[0\]"),
        (dict(backbone_config=BIT | dict(depths=[3, 4, 6, 3])), r"depths must be of three stages, got \[3,4,6,3\]"),
        (dict(backbone_config=BIT | dict(depths=[3, 4, "x"])), "wanted an integer"),
        (dict(backbone_config=BIT | dict(layer_type="preactivation")), 'layer_type must be "bottleneck"'),
        (dict(backbone_config=BIT | dict(global_padding=None)), 'global_padding must be "SAME", got ""'),
        (dict(backbone_config=BIT | dict(embedding_dynamic_padding=False)), "embedding_dynamic_padding must be true"),
        (
            dict(backbone_config=BIT | dict(hidden_sizes=[8, 9, 10])),
            r"hidden_sizes must begin with 256, .* got \[8,9,10\]",
        ),
        (dict(backbone_config=BIT | dict(num_groups=16)), "num_groups must be 32, got 16"),
        (dict(backbone_config=BIT | dict(model_type="resnet")), 'model_type must be "bit", got "resnet"'),
        (dict(is_hybrid=False), "backbone_config must be null, or is_hybrid true"),
    ],
)
def test_hybrid_that_we_do_not_have_is_refused_by_its_field(tmp_path, changes, message):
    make_peer("hybrid").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        DPTModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "dpt.embeddings.backbone.bit.embedder.convolution.weight",
        "dpt.embeddings.backbone.bit.encoder.stages.1.layers.1.norm3.bias",
        "dpt.embeddings.projection.bias",
        "neck.reassemble_stage.readout_projects.2.0.weight",
        "head.head.1.running_mean",
        "auxiliary_head.head.4.weight",
    ],
)
def test_tensor_that_transformers_file_lacks_is_named(tmp_path, name):
    make_peer("hybrid segmentation").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    shape = list(tensors.pop(name).shape)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"\(transformers layout\): 1 missing \[{re.escape(name)}\], 0 unexpected"):
        DPTModel.from_pretrained(tmp_path)
    save_file(tensors | {name: torch.zeros(1, *shape)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"tensor '{re.escape(name)}' has shape"):
        DPTModel.from_pretrained(tmp_path)
