"""torch.ops.dpt.conv2d_weight_gradient, upsample_conv2d, and layers made of them, against slow float64 references."""

import os
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from networks import HYBRID, RESNET, SEGMENTATION, VIT, make_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

LAYOUTS = [torch.contiguous_format, torch.channels_last]
MAPS = [(7, 5), (1, 1), (1, 4), (3, 1), (2, 2)]
SIZES = [  # (h, w), (H, W)
    ((3, 5), (7, 11)),
    ((6, 6), (12, 12)),
    ((4, 7), (4, 7)),
    ((7, 9), (3, 4)),
    ((1, 1), (4, 3)),
    ((2, 3), (1, 1)),
]


def weight_gradient(grad, x):
    return torch.ops.dpt.conv2d_weight_gradient(grad, x)


def upsample_conv2d(x, weight, bias, size, align_corners=True):
    return torch.ops.dpt.upsample_conv2d(x, weight, bias, *size, align_corners)


def reference_weight_gradient(grad, x):
    """Every weight meets every pixel that it is multiplied with."""
    grad, x = grad.double().numpy(), np.pad(x.double().numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = grad.shape[2:]
    result = np.zeros((grad.shape[1], x.shape[1], 3, 3))
    for i in range(3):
        for j in range(3):
            result[:, :, i, j] = np.einsum("bkhw,bchw->kc", grad, x[:, :, i : i + height, j : j + width])
    return torch.from_numpy(result)


def reference_upsample_conv2d(x, weight, bias, size, align_corners):
    def weights(inputs, outputs):
        if align_corners:
            position = np.arange(outputs) * (inputs - 1) / max(outputs - 1, 1)
        else:
            position = np.clip((np.arange(outputs) + 0.5) * inputs / outputs - 0.5, 0, inputs - 1)
        return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(inputs)))

    x, weight, bias = (t.detach().double().numpy() for t in (x, weight, bias))
    large = np.einsum("ih,bchw,jw->bcij", weights(x.shape[2], size[0]), x, weights(x.shape[3], size[1]))
    large = np.pad(large, ((0, 0), (0, 0), (1, 1), (1, 1)))
    result = np.zeros((x.shape[0], weight.shape[0], *size)) + bias[:, None, None]
    for i in range(3):
        for j in range(3):
            shifted = large[:, :, i : i + size[0], j : j + size[1]]
            result += np.einsum("kc,bchw->bkhw", weight[:, :, i, j], shifted)
    return torch.from_numpy(result)


def make(shape, dtype=torch.float64, layout=torch.contiguous_format):
    return torch.randn(shape, dtype=torch.float64).to(dtype).to(memory_format=layout)


def make_upsample(size, dtype=torch.float64, batch=2, layout=torch.contiguous_format):
    return make((batch, 4, *size), dtype, layout), make((3, 4, 3, 3), dtype), make((3,), dtype)


# --- the weight gradient ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", MAPS)
def test_weight_gradient_equals_reference(size, dtype, layout):
    grad, x = make((2, 6, *size), dtype, layout), make((2, 3, *size), dtype, layout)
    got = weight_gradient(grad, x)
    assert got.dtype == dtype
    assert got.is_contiguous()
    # Sums of at most 70 products below 10; bfloat16 is summed in float32 and rounded once.
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12, torch.bfloat16: 40 * 2.0**-8}[dtype]
    assert (got.double() - reference_weight_gradient(grad, x)).abs().max() <= tolerance


def test_weight_gradient_of_no_images_is_zero():
    assert torch.equal(weight_gradient(make((0, 6, 4, 4)), make((0, 3, 4, 4))), torch.zeros(6, 3, 3, 3).double())


@pytest.mark.parametrize("size", MAPS)
def test_weight_gradient_has_gradients_of_both_orders(size):
    grad, x = make((2, 3, *size)).requires_grad_(), make((2, 2, *size)).requires_grad_()
    assert torch.autograd.gradcheck(weight_gradient, (grad, x))
    assert torch.autograd.gradgradcheck(weight_gradient, (grad, x))


def test_weight_gradient_is_a_sound_operator():
    grad, x = make((2, 6, 5, 4)).requires_grad_(), make((2, 3, 5, 4)).requires_grad_()
    torch.library.opcheck(torch.ops.dpt.conv2d_weight_gradient, (grad, x))


def test_weight_gradient_refuses_maps_that_do_not_fit():
    with pytest.raises(ValueError, match="must have one batch size, height and width"):
        weight_gradient(make((2, 6, 5, 4)), make((2, 3, 5, 5)))
    with pytest.raises(ValueError, match="one dtype"):
        weight_gradient(make((2, 6, 5, 4)), make((2, 3, 5, 4), torch.float32))


# --- convolution of an upsampled map ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_upsample_conv2d_equals_reference(size, out, align_corners, dtype, layout):
    x, weight, bias = make_upsample(size, dtype, layout=layout)
    got = upsample_conv2d(x, weight, bias, out, align_corners)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    # float32: positions on sides up to 12, off by an ulp of the side, in sums of 37 products below 10.
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-12}[dtype]
    assert (got.double() - reference_upsample_conv2d(x, weight, bias, out, align_corners)).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_upsample_conv2d_in_half_types_and_its_gradients_equal_float64(dtype):
    half = [t.to(dtype).requires_grad_() for t in make_upsample((5, 7), batch=3)]
    double = [t.detach().double().requires_grad_() for t in half]
    grad = make((3, 3, 10, 14), dtype)
    upsampled, exact = upsample_conv2d(*half, (10, 14)), upsample_conv2d(*double, (10, 14))
    got = (upsampled, *torch.autograd.grad(upsampled, half, grad))
    want = (exact, *torch.autograd.grad(exact, double, grad.double()))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        # The upsampled map and the result are rounded, and so is the gradient between them.
        assert (a.double() - b).abs().max() <= 4 * torch.finfo(dtype).eps * b.abs().max()


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "out"), [*SIZES[2:], ((2, 3), (4, 6))])
def test_upsample_conv2d_has_gradients_of_both_orders(size, out, align_corners):
    arguments = [t.requires_grad_() for t in make_upsample(size, batch=1)]

    def run(x, weight, bias):
        return upsample_conv2d(x, weight, bias, out, align_corners)

    assert torch.autograd.gradcheck(run, arguments)
    assert torch.autograd.gradgradcheck(run, arguments)


def test_upsample_conv2d_takes_empty_batch():
    arguments = [t.requires_grad_() for t in make_upsample((2, 3), batch=0)]
    result = upsample_conv2d(*arguments, (4, 6))
    assert result.shape == (0, 3, 4, 6)
    result.sum().backward()
    assert not arguments[1].grad.any()


def test_upsample_conv2d_is_a_sound_operator():
    arguments = [t.requires_grad_() for t in make_upsample((3, 4))]
    torch.library.opcheck(torch.ops.dpt.upsample_conv2d, (*arguments, 6, 8, True))


def test_upsample_conv2d_gradient_does_not_depend_on_threads():
    arguments = [t.requires_grad_() for t in make_upsample((17, 19), torch.float32)]
    grad = make((2, 3, 34, 38), torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(torch.autograd.grad(upsample_conv2d(*arguments, (34, 38)), arguments[0], grad)[0])
    finally:
        torch.set_num_threads(before)
    assert (results[0] - results[1]).abs().max() <= 1e-5 * results[0].abs().max()


def test_upsample_conv2d_refuses_other_kernels():
    x, _, bias = make_upsample((3, 4))
    with pytest.raises(ValueError, match=r"needs weight \[K, C, 3, 3\]"):
        upsample_conv2d(x, make((3, 4, 1, 1)), bias, (6, 8))


# --- what the network makes of them ---


class Passthrough(TorchDispatchMode):
    """Changes nothing, but makes every operation take its ATen form."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def gradients(model, images, *, aten=False):
    def run():
        output = model(images)
        (output.depth if output.depth is not None else output.logits).square().mean().backward()

    if aten:
        with Passthrough():
            run()
    else:
        run()
    result = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


@pytest.mark.parametrize("config", [VIT, VIT.replace(qkv_bias=False), VIT.replace(**SEGMENTATION)])
def test_gradients_equal_those_of_the_aten_form(config):
    model = make_model(config)
    images = torch.randn(2, 3, 64, 96)
    own, aten = gradients(model, images), gradients(model, images, aten=True)
    assert own.keys() == aten.keys()
    largest = max(g.abs().max() for g in aten.values())
    for name, gradient in aten.items():
        # The same sums in another order.
        assert (own[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6 * largest, name


@pytest.mark.parametrize("config", [VIT, HYBRID], ids=["vit", "hybrid"])
def test_gradients_of_large_maps_are_near_to_those_of_float64(config):
    """Winograd's convolutions make them, which are off by 6e-6 of the largest value where others are by 2e-7."""
    model, exact = make_model(config), make_model(config, torch.float64)
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    images = torch.randn(2, 3, 192, 224)
    want = gradients(exact, images.double())
    own, aten = gradients(model, images), gradients(model, images, aten=True)
    differ = [name for name in own if not torch.equal(own[name], aten[name])]
    assert any(name.startswith("fusion.0.unit1") for name in differ)  # another computation
    for name, gradient in want.items():
        error, usual = ((found[name] - gradient).abs().max() for found in (own, aten))
        assert error <= usual + 2e-5 * gradient.abs().max(), name


def test_gradients_under_autocast_equal_those_of_the_aten_form():
    model = make_model(VIT)
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        own, aten = gradients(model, images), gradients(model, images, aten=True)
    largest = max(g.abs().max() for g in aten.values())
    for name, gradient in aten.items():
        assert own[name].dtype == torch.float32
        # bfloat16 has 8 bits; roundings differ where sums are in another order.
        assert (own[name] - gradient).abs().max() <= 2e-2 * largest, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_attention_in_half_types_are_as_near_to_float64_as_those_of_aten(dtype):
    config = VIT.replace(width=64, heads=2, depth=4)
    model, exact = make_model(config).to(dtype), make_model(config, torch.float64)
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    images = torch.randn(1, 3, 96, 96, dtype=dtype)
    names = [f"encoder.blocks.{i}.attn.qkv.weight" for i in range(4)]

    def error(found, want):
        return sum(float((found[name].double() - want[name]).norm() / want[name].norm()) for name in names)

    want = gradients(exact, images.double())
    own, aten = gradients(model, images), gradients(model, images, aten=True)
    assert any(not torch.equal(own[name], aten[name]) for name in names)  # another computation
    assert error(own, want) <= 1.02 * error(aten, want)


# ATen's batch normalisation has no such gradient under autocast.
@pytest.mark.parametrize(("config", "autocast"), [(VIT, False), (VIT, True), (RESNET, False)])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_of_several_outputs_at_once(config, autocast):
    model = make_model(config)
    images = torch.randn(1, 3, 32, 64, requires_grad=True)
    weights = torch.randn(3, 1, 32, 64)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        depth = model(images).depth

    def gradient(weight):
        return torch.autograd.grad(depth, images, weight.to(depth.dtype), retain_graph=True)[0]

    want = torch.stack([gradient(weight) for weight in weights])
    got = torch.vmap(gradient)(weights)
    assert (got - want).abs().max() <= (5e-2 if autocast else 1e-5) * want.abs().max()


def second_derivatives(model, images, *, aten=False, autocast=False):
    """Of the parameters, of the squares of the loss's gradients."""
    parameters = list(model.parameters())
    with Passthrough() if aten else nullcontext():
        # The fused attention has none.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(images).depth.to(parameters[0].dtype).square().mean()
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), parameters)


@pytest.mark.parametrize(
    # The same sums in another order; bfloat16 twice.
    ("dtype", "autocast", "tolerance"),
    [(torch.float64, False, 1e-9), (torch.float32, False, 1e-3), (torch.float32, True, 5e-2)],
)
def test_second_derivatives_equal_those_of_the_aten_form(dtype, autocast, tolerance):
    model = make_model(VIT, dtype)
    images = torch.randn(1, 3, 32, 64, dtype=dtype)
    own, aten = (second_derivatives(model, images, aten=aten, autocast=autocast) for aten in (False, True))
    largest = max(g.abs().max() for g in aten)
    assert largest > 0
    for a, b in zip(own, aten, strict=True):
        assert (a - b).abs().max() <= tolerance * largest


def test_gradients_are_those_of_processors_without_avx512_too():
    """There 3x3 convolutions take the weight gradient that is made of matrix products."""
    program = (
        "import torch, test_conv2d as t\n"
        "with torch.profiler.profile() as profile: t.test_gradients_equal_those_of_the_aten_form(t.VIT)\n"
        "t.test_gradients_under_autocast_equal_those_of_the_aten_form()\n"
        "t.test_second_derivatives_equal_those_of_the_aten_form(torch.float32, False, 1e-3)\n"
        "print('dpt::conv2d_weight_gradient' in {event.key for event in profile.key_averages()})"
    )
    environment = {"ATEN_CPU_CAPABILITY": "avx2", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    assert found.stdout.splitlines()[-1] == "True"


def test_blocks_keep_neither_normalised_nor_activated_tokens():
    config = VIT.replace(mlp_width=128)
    model = make_model(config)
    images = torch.randn(1, 3, 64, 64)
    weights = {p.data_ptr() for p in model.parameters()}

    def kept():
        sizes: dict[int, int] = {}

        def pack(tensor):
            if tensor.data_ptr() not in weights:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes() // 4
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            taps = model.encoder(images)
        assert taps[0].requires_grad
        return sum(sizes.values())

    # A block keeps its input, q, k and v, the attention's result, its second residual and 4 D of the MLP: 10 D for each
    # token, and one number for each head; it would keep 16 D with what is recomputed.
    tokens = 1 + (64 // config.patch_size) ** 2
    block = tokens * (10 * config.width + config.heads)
    assert kept() <= config.depth * block + 4 * tokens * config.width + images.numel()
