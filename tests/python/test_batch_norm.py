"""Batch normalisation in training where there is little to normalise by (of several processes: test_distributed.py)."""

from __future__ import annotations

import pytest
import torch
from networks import FAMILY, JOINT, RESNET, VIT, make_model

from torchdpt import DPTConfig, DPTModel

# At 32 x 32 the coarsest level is one pixel: in the last stage of a ResNet, in fusion of a ViT.
ONE_PIXEL = {"resnet": RESNET, "fusion": VIT.replace(fusion_norm="batch")}
EACH = pytest.mark.parametrize("config", ONE_PIXEL.values(), ids=ONE_PIXEL)


@EACH
def test_one_value_per_channel_is_refused(config: DPTConfig) -> None:
    model = make_model(config).train()
    image = torch.rand(1, 3, 32, 32)
    message = (
        r"needs more than one value per channel, got a map \[1, \d+, 1, 1\]; pass more images or larger ones, or .*eval"
    )
    for call in (model, lambda x: model.head(*model.fusion(model.reassemble(model.encoder(x), (32, 32))))):
        with pytest.raises(ValueError, match=message):
            call(image)
    assert all(bool(buffer.isfinite().all()) for buffer in model.buffers())
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.nn.BatchNorm2d(8).train()(torch.rand(1, 8, 1, 1))  # as torch does
    assert model.eval()(image).depth.isfinite().all()


@EACH
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 3, 32, 64)])
def test_two_values_per_channel_are_enough(config: DPTConfig, shape: tuple[int, ...]) -> None:
    model = make_model(config).train()
    model(torch.rand(shape)).depth.sum().backward()
    for name, tensor in model.named_buffers():
        assert tensor.isfinite().all(), name
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_no_image_changes_no_statistics() -> None:
    model = make_model(RESNET).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}
    assert model.encoder(torch.rand(0, 3, 32, 32))[-1].shape == (0, 2048, 1, 1)
    for name, buffer in model.named_buffers():
        assert "running" not in name or torch.equal(buffer, before[name]), name


# --- symbolic sizes ---


def graph_counter(compiled: list[int]) -> object:
    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled.append(1)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    return backend


def test_one_graph_trains_at_any_size_and_batch() -> None:
    torch.compiler.reset()
    model = make_model(FAMILY["vit segmentation"].replace(dropout=0.0), torch.float64).train()
    graphs: list[int] = []
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graph_counter(graphs))
    for batch, height, width in ((2, 64, 96), (3, 96, 64), (5, 64, 64)):
        logits = compiled(torch.rand(batch, 3, height, width, dtype=torch.float64)).logits
        assert logits.shape == (batch, 5, height, width)
    assert len(graphs) == 1


@pytest.mark.parametrize("config", [RESNET.replace(**JOINT), ONE_PIXEL["fusion"]], ids=["resnet joint", "fusion"])
def test_network_in_training_is_exported_for_any_batch_and_size(config: DPTConfig) -> None:
    model = make_model(config.replace(dropout=0.0), torch.float64).train()
    sizes = {
        0: torch.export.Dim("batch", min=2),
        2: 32 * torch.export.Dim("rows", min=2),
        3: 32 * torch.export.Dim("columns", min=2),
    }
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    program = torch.export.export(model, (images,), dynamic_shapes=(sizes,), strict=False).module()
    for shape in ((2, 3, 64, 64), (3, 3, 96, 128)):
        images = torch.rand(shape, dtype=torch.float64)
        want = make_model(config.replace(dropout=0.0), torch.float64).train()(images)
        torch.testing.assert_close(program(images).depth, want.depth, rtol=1e-9, atol=1e-12)


def test_meta_tensors_are_refused_as_others() -> None:
    model = DPTModel(RESNET, device="meta").train()
    with pytest.raises(ValueError, match="more than one value per channel"):
        model(torch.empty(1, 3, 32, 32, device="meta"))
