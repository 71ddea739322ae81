"""Layers of a network under autocast: exact as ATen's, and no copies of the weights kept for the backward pass."""

import os
import subprocess
import sys

import pytest
import torch
from networks import HYBRID, RESNET, SEGMENTATION, VIT, make_model
from test_conv2d import gradients

CONFIG = VIT.replace(width=48, heads=3, mlp_width=80)
HALVES = [torch.bfloat16, torch.float16]


def linear_weights(model):
    return {name: p for name, p in model.named_parameters() if p.dim() == 2}


# Transposed, and of the upsampled map: these are ATen's and an operator's.
OTHER = {"reassemble.0.resample.weight", "reassemble.1.resample.weight", "head.depth.conv2.weight"}


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_are_as_near_to_float64_as_those_of_aten(dtype):
    model = make_model(CONFIG)
    exact = make_model(CONFIG, torch.float64)
    images = torch.randn(2, 3, 64, 96)
    want = gradients(exact, images.double())
    with torch.autocast("cpu", dtype):
        own, aten = gradients(model, images), gradients(model, images, aten=True)

    def error(found):
        return sum(float((found[n].double() - want[n]).norm() / want[n].norm()) for n in linear_weights(model))

    assert any(not torch.equal(own[name], aten[name]) for name in linear_weights(model))  # another computation
    assert all(own[name].dtype == torch.float32 for name in own)
    assert error(own) <= 1.1 * error(aten)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("config", [VIT.replace(**SEGMENTATION), HYBRID, RESNET], ids=["vit", "hybrid", "resnet"])
def test_gradients_of_convolutions_are_as_near_to_float64_as_those_of_aten(config, dtype):
    config = config.replace(dropout=0.0) if config.num_classes else config
    model, exact = make_model(config), make_model(config, torch.float64)
    images = torch.randn(2, 3, 64, 96)
    want = gradients(exact, images.double())
    with torch.autocast("cpu", dtype):
        own, aten = gradients(model, images), gradients(model, images, aten=True)
    assert own.keys() == aten.keys()
    names = [name for name in own if own[name].dim() == 4]

    def error(found):
        return sum(float((found[n].double() - want[n]).norm() / want[n].norm()) for n in names)

    assert error(own) <= 1.1 * error(aten)


@pytest.mark.parametrize("dtype", HALVES)
def test_graph_keeps_weights_and_no_copies(dtype):
    model = make_model(CONFIG)
    weights = {name: p for name, p in model.named_parameters() if p.dim() in (2, 4) and name not in OTHER}
    assert len(weights) > 40
    shapes = {p.shape for p in weights.values()} | {p.transpose(0, 1).shape for p in weights.values()}
    places = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in places and tensor.shape in shapes:
            kept.append(tensor.shape)
        return tensor

    images = torch.randn(2, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", dtype):
        model(images).depth.sum().backward()
    assert not kept
    assert all(p.grad is not None for p in weights.values())


def test_weights_that_are_frozen_get_no_gradient_and_others_the_same():
    model = make_model(CONFIG)
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        every = gradients(model, images)
        frozen = [n for i, n in enumerate(linear_weights(model)) if i % 2 == 0]
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        some = gradients(model, images)
    assert not set(frozen) & set(some)
    largest = max(g.abs().max() for g in every.values())
    for name, gradient in some.items():
        assert (gradient - every[name]).abs().max() <= 2e-2 * largest, name  # bfloat16 has 8 bits


def test_double_weights_stay_double_under_autocast():
    model = make_model(CONFIG, torch.float64)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(model, images)
    outside = gradients(model, images)
    for name, gradient in outside.items():
        assert torch.equal(inside[name], gradient), name


def test_processors_without_tiles_take_products_of_aten():
    program = (
        "import torch, test_conv2d, test_linear as t\n"
        "t.test_gradients_are_as_near_to_float64_as_those_of_aten(torch.bfloat16)\n"
        "t.test_graph_keeps_weights_and_no_copies(torch.bfloat16)\n"
        "test_conv2d.test_second_derivatives_equal_those_of_the_aten_form(torch.float32, True, 5e-2)\n"
    )
    environment = {"DPT_ISA": "avx512", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | environment)
