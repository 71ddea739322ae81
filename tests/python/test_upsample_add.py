"""torch.ops.dpt.upsample_add against a slow float64 reference."""

import numpy as np
import pytest
import torch

import torchdpt  # noqa: F401  (registers the operator)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [  # (h, w), (H, W)
    ((3, 5), (7, 11)),
    ((12, 12), (24, 24)),
    ((4, 7), (4, 7)),
    ((7, 9), (3, 4)),
    ((1, 1), (4, 3)),
    ((2, 3), (1, 1)),
    ((1, 5), (6, 1)),
]


def upsample_add(x, skip):
    return torch.ops.dpt.upsample_add(x, skip)


def reference(x, skip):
    """Corners coincide: output i lies at i * (in - 1) / (out - 1); weights are hats around the inputs."""

    def weights(size, out):
        position = np.arange(out) * (size - 1) / max(out - 1, 1)
        return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))

    x, skip = x.detach().double().cpu().numpy(), skip.detach().double().cpu().numpy()
    rows, columns = weights(x.shape[2], skip.shape[2]), weights(x.shape[3], skip.shape[3])
    return torch.from_numpy(np.einsum("ih,bchw,jw->bcij", rows, x, columns) + skip)


def tolerance(dtype):
    # float32: positions on sides up to 12, off by an ulp of the side, times neighbours' differences below 16.
    # Half types: positions are float32, the result is rounded once, at values below 16.
    return {
        torch.float32: 3e-5,
        torch.float64: 1e-13,
        torch.float16: 8 * 2.0**-10,
        torch.bfloat16: 8 * 2.0**-7,
    }[dtype]


def make(size, out, device, dtype=torch.float32, layout=torch.contiguous_format, batch=2, channels=6):
    x = torch.randn(batch, channels, *size, device=device).to(dtype).to(memory_format=layout)
    skip = torch.randn(batch, channels, *out, device=device).to(dtype).to(memory_format=layout)
    return x, skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_equals_reference(device, size, out, dtype, layout):
    for channels in (6, 16):  # 16: whole 16-byte accesses on CUDA
        x, skip = make(size, out, device, dtype, layout, channels=channels)
        result = upsample_add(x, skip)
        assert result.dtype == dtype
        assert result.is_contiguous(memory_format=layout)
        assert (result.double().cpu() - reference(x, skip)).abs().max() <= tolerance(dtype)


def test_output_has_layout_of_skip(device):
    x, skip = make((3, 5), (7, 11), device)
    skip = skip.to(memory_format=torch.channels_last)
    result = upsample_add(x, skip)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert (result.double().cpu() - reference(x, skip)).abs().max() <= tolerance(torch.float32)


def test_takes_tensors_that_are_not_dense(device):
    x, skip = make((8, 6), (9, 13), device)
    x, skip = x[:, :, ::2], skip.transpose(2, 3)[:, :, 1:].transpose(2, 3)
    assert not x.is_contiguous()
    assert not skip.is_contiguous()
    result = upsample_add(x, skip)
    assert (result.double().cpu() - reference(x, skip)).abs().max() <= tolerance(torch.float32)


def test_takes_data_off_a_16_byte_boundary(device):
    skip = torch.randn(1 + 2 * 8 * 6 * 8, device=device)[1:].view(2, 8, 6, 8)
    x = torch.randn(2, 8, 3, 4, device=device)
    result = upsample_add(x, skip)
    assert (result.double().cpu() - reference(x, skip)).abs().max() <= tolerance(torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_takes_empty_batch(device, layout):
    x, skip = make((3, 5), (7, 11), device, layout=layout, batch=0)
    assert upsample_add(x, skip).shape == skip.shape


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("size", "out"), SIZES)
def test_gradients_of_both_orders(device, size, out, deterministic):
    x, skip = make(size, out, device, torch.float64, channels=2)
    x.requires_grad_(), skip.requires_grad_()
    torch.use_deterministic_algorithms(deterministic)
    try:
        assert torch.autograd.gradcheck(upsample_add, (x, skip))
        assert torch.autograd.gradgradcheck(upsample_add, (x, skip))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", FLOATS)
def test_deterministic_gradient_equals_default(device, dtype):
    x, skip = make((5, 6), (9, 13), device, dtype)
    x.requires_grad_()
    grad = torch.randn_like(skip)
    (want,) = torch.autograd.grad(upsample_add(x, skip), x, grad)
    torch.use_deterministic_algorithms(True)
    try:
        got, again = (torch.autograd.grad(upsample_add(x, skip), x, grad)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got, again)
    assert got.dtype == dtype
    # ATen's kernel may sum about 9 terms in the half type itself, each rounded at values below 8.
    assert (got - want).abs().max() <= 4 * tolerance(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("grad", [False, True])
def test_opcheck(device, layout, batch, grad):
    x, skip = make((3, 5), (7, 11), device, layout=layout, batch=batch)
    args = (x.requires_grad_(grad), skip.requires_grad_(grad))
    torch.library.opcheck(torch.ops.dpt.upsample_add.default, args)


def test_opcheck_mixed_layouts_and_one_gradient(device):
    x, skip = make((3, 5), (7, 11), device)
    args = (x.requires_grad_(), skip.to(memory_format=torch.channels_last))
    torch.library.opcheck(torch.ops.dpt.upsample_add.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(device, dynamic):
    compiled = torch.compile(upsample_add, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size, out in (((3, 5), (7, 11)), ((4, 6), (8, 12))):
        x, skip = make(size, out, device)
        grads = []
        for function in (upsample_add, compiled):
            a, b = x.clone().requires_grad_(), skip.clone().requires_grad_()
            result = function(a, b)
            grads.append((result, *torch.autograd.grad(result.square().sum(), (a, b))))
        for eager, graph in zip(*grads, strict=True):
            torch.testing.assert_close(graph, eager)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x, s: (x[0], s),
            r"must have 4 dimensions, got x \[6, 3, 5\] and skip \[2, 6, 7, 11\]; add a batch",
        ),
        (lambda x, s: (x, s.double()), "must have one dtype, got x Float and skip Double; convert"),
        (
            lambda x, s: (x.long(), s.long()),
            "must be float32, float64, float16 or bfloat16, got Long; convert",
        ),
        (
            lambda x, s: (x, s[:1]),
            r"same batch size and channels, got x \[2, 6, 3, 5\] and skip \[1, 6, 7, 11\]",
        ),
        (lambda x, s: (x[:, :4], s), r"same batch size and channels, got x \[2, 4, 3, 5\]"),
        (lambda x, s: (x[:, :, :0], s), r"must be at least 1, got x \[2, 6, 0, 5\]"),
    ],
)
def test_error_messages(device, change, message):
    x, skip = make((3, 5), (7, 11), device)
    for target in (device, "meta"):
        with pytest.raises(ValueError, match="upsample_add: .*" + message):
            upsample_add(*change(x.to(target), skip.to(target)))
