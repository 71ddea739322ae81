"""Every encoder with every head: one call and four, torch.compile, export, activation checkpointing."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import torch
from networks import FAMILY, HYBRID, JOINT, RESNET, VIT, make_model

from torchdpt import DPTConfig, DPTModel, DPTOutput, export

BOTH_MODES = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
EACH = pytest.mark.parametrize("name", FAMILY)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def tensors(output: DPTOutput) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in output._asdict().items() if tensor is not None}


def assert_close(got: DPTOutput, want: DPTOutput, tolerance: float) -> None:
    assert tensors(got).keys() == tensors(want).keys()
    for name, tensor in tensors(want).items():
        error = (tensors(got)[name] - tensor).abs().max()
        assert tensor.abs().max() > 0
        assert error <= tolerance * tensor.abs().max(), f"{name}: {error}"


def by_stages(model: DPTModel, images: torch.Tensor) -> DPTOutput:
    maps = model.reassemble(model.encoder(images), (images.shape[2], images.shape[3]))
    return model.head(*model.fusion(maps))


@EACH
@BOTH_MODES
def test_one_call_equals_four_stages_to_the_bit(name: str, training: bool) -> None:
    images = torch.rand(2, 3, 64, 96)
    results = []
    for call in (lambda model, images: model(images), by_stages):
        model = make_model(FAMILY[name].replace(dropout=0.0)).train(training)
        output = call(model, images)
        sum(tensor.square().sum() for tensor in tensors(output).values()).backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([*tensors(output).values(), *grads, *model.buffers()])
    for one, four in zip(*results, strict=True):
        assert torch.equal(one, four)


@EACH
def test_outputs_are_what_the_config_has_heads_for(name: str) -> None:
    config = FAMILY[name]
    model = make_model(config)
    for training in (False, True):
        output = model.train(training)(torch.rand(2, 3, 64, 96))
        assert (output.depth is not None) == config.depth_head
        assert (output.logits is not None) == (config.num_classes > 0)
        assert (output.aux_logits is not None) == (training and config.auxiliary_head != "none")
        if output.depth is not None:
            assert output.depth.shape == (2, 64, 96)
        if output.logits is not None:
            assert output.logits.shape == (2, 5, 64, 96)
        if output.aux_logits is not None:
            assert output.aux_logits.shape == (2, 5, 16, 24)


# --- torch.compile ---


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("hybrid joint, metric", False),
        ("hybrid, tokens at all levels", True),
        ("resnet", False),
        ("resnet joint", True),
    ],
)
def test_compiles_in_one_graph(name: str, training: bool) -> None:
    model = make_model(FAMILY[name].replace(dropout=0.0), torch.float64).train(training)
    other = copy.deepcopy(model)
    compiled = torch.compile(other, fullgraph=True, dynamic=False, backend="aot_eager")
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    got, want = compiled(images), model(images)
    assert_close(got, want, 1e-10)
    for output in (got, want):
        sum(tensor.square().mean() for tensor in tensors(output).values()).backward()
    for (key, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (not training and "auxiliary" in key)
        if ours.grad is None:
            continue
        # The bias before a batch normalisation has no gradient but rounding errors.
        assert (ours.grad - theirs.grad).abs().max() <= 1e-9 * max(ours.grad.abs().max(), 1e-6), key
    for ours, theirs in zip(model.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["hybrid, tokens at all levels", "hybrid joint, metric"])
def test_compiles_for_any_size(name: str) -> None:
    model = make_model(FAMILY[name], torch.float64)
    count = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        nonlocal count
        count += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for size in ((64, 96), (96, 64), (128, 160)):
            images = torch.rand(2, 3, *size, dtype=torch.float64)
            assert_close(compiled(images), model(images), 1e-10)
    assert count == 1


# --- export ---


@pytest.mark.parametrize("name", ["vit segmentation", "hybrid joint, metric", "resnet joint"])
def test_export_gives_the_same_numbers(name: str, tmp_path) -> None:
    model = make_model(FAMILY[name])
    for ending in ("pt2", "onnx"):
        export(model, tmp_path / f"model.{ending}", size=(128, 96))
    program = torch.export.load(tmp_path / "model.pt2").module()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 128, 96), (2, 3, 64, 160)):
        images = torch.rand(shape)
        with torch.no_grad():
            want = model(images)
            got = program(images)
        assert_close(DPTOutput(**got), want, 1e-5)
        names = list(tensors(want))
        assert [output.name for output in session.get_outputs()] == names
        values = map(torch.from_numpy, session.run(None, {"images": images.numpy()}))
        assert_close(DPTOutput(**dict(zip(names, values, strict=True))), want, 1e-5)


@pytest.mark.parametrize("name", ["hybrid", "resnet"])
def test_onnx_of_depth_alone_gives_the_same_numbers(name: str, tmp_path) -> None:
    model = make_model(FAMILY[name])
    export(model, tmp_path / "model.onnx", size=(128, 96), dynamic=False)  # dynamic ones are above, and take longer
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 128, 96)
    (depth,) = session.run(["depth"], {"images": images.numpy()})
    with torch.no_grad():
        want = model(images)
    assert_close(DPTOutput(torch.from_numpy(depth), None, None), want, 1e-5)


# --- activation checkpointing, attention ---


@pytest.mark.parametrize("config", [HYBRID, HYBRID.replace(**JOINT, dropout=0.0)], ids=["hybrid", "hybrid joint"])
def test_activation_checkpointing_changes_nothing(config: DPTConfig) -> None:
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    results = []
    for on in (False, True):
        model = make_model(config, torch.float64).train()
        model.activation_checkpointing = on
        output = model(images)
        sum(tensor.square().sum() for tensor in tensors(output).values()).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-9, atol=1e-12)


def test_what_a_resnet_has_not_is_refused() -> None:
    model = DPTModel(RESNET)
    model.activation_checkpointing = True
    with pytest.raises(ValueError, match="activation checkpointing is for encoders with transformer blocks"):
        model(torch.rand(2, 3, 64, 64))
    with pytest.raises(ValueError, match="this encoder has no attention"):
        model.attention(torch.rand(2, 3, 64, 64), 0)
    with pytest.raises(ValueError, match="multiples of 32, got 48 x 64"):
        model(torch.rand(2, 3, 48, 64))


def test_attention_of_a_hybrid_sums_to_one() -> None:
    weights = make_model(HYBRID).attention(torch.rand(2, 3, 48, 64), 2)
    assert weights.shape == (2, 2, 13, 13)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 13))


# --- configs ---


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (VIT, {"conv_levels": 2}, "conv_levels must be 0 of a vit, 2 or 0 of a hybrid, 4 of a resnet; got 2 of a vit"),
        (HYBRID, {"conv_levels": 1}, "got 1 of a hybrid"),
        (RESNET, {"conv_levels": 0}, "got 0 of a resnet"),
        (HYBRID, {"conv_levels": -1}, "got -1 of a hybrid"),
        (HYBRID, {"patch_size": 32}, "patch_size of a hybrid must be 16"),
        (HYBRID, {"distilled": True}, "a hybrid has no distillation token"),
        (
            HYBRID,
            {"channels": (96, 512, 16, 16)},
            "level 0 is a convolutional one .* its channels 256, got 0, 4 and 96",
        ),
        (HYBRID, {"taps": (0, 2, 2, 3)}, "so its tap must be 1"),
        (HYBRID, {"stage_depths": (1, 0, 1, 0)}, r"stage_depths must be in \[1, 1024\]"),
        (RESNET, {"groups": 0}, "groups and group_width must be positive, got 0 and 4"),
        (RESNET, {"stage_depths": (1, 1, 1, 0)}, r"stage_depths must be in \[1, 1024\]"),
        (VIT, {"depth_head": False}, "there must be a depth_head, or num_classes"),
        (VIT, {"num_classes": -1}, "num_classes must be in"),
        (VIT, {"auxiliary_head": "last"}, "an auxiliary_head is for segmentation"),
        (VIT, JOINT | {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1"),
        (VIT, JOINT | {"depth_head": False, "metric": True}, "metric is for the depth_head"),
        (VIT, {"metric": True, "depth_scale": 0.0}, "depth_scale must be positive"),
        (VIT, {"encoder": "swin"}, r"field 'encoder' must be one of \[vit, hybrid, resnet\], got 'swin'"),
    ],
)
def test_configs_that_fit_no_network_are_refused(config: DPTConfig, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.replace(**changes)


@pytest.mark.parametrize(("table", "rows"), [("taps", 5), ("readout", 3), ("backbone", 7)])
def test_ablations_of_the_paper(table: str, rows: int) -> None:
    configs = DPTConfig.ablation(table)
    assert len(set(configs.values())) == rows - (table == "backbone")  # DeiT-Base is ViT-Base, trained otherwise
    for config in configs.values():
        with torch.no_grad():
            assert DPTModel(config, device="meta")(torch.empty(1, 3, 64, 96, device="meta")).depth.shape == (1, 64, 96)


def test_there_is_no_other_ablation() -> None:
    with pytest.raises(ValueError, match="table must be 'taps', 'readout' or 'backbone', got 'heads'"):
        DPTConfig.ablation("heads")
