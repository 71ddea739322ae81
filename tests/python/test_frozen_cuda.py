"""Frozen models on CUDA against the CPU, and what a build or a machine without CUDA says."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from networks import FAMILY, HYBRID, JOINT, VIT, make_model
from test_frozen import error, exact, same_bits

from torchdpt import DPTModel, DPTOutput, FrozenModel, _build, losses

EACH = pytest.mark.parametrize("name", FAMILY)


@pytest.fixture
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def on_cpu(output: DPTOutput) -> DPTOutput:
    return DPTOutput(*(None if tensor is None else tensor.cpu() for tensor in output))


# --- devices that are not there ---


def test_error_says_how_to_get_the_device(tmp_path: Path) -> None:
    model = make_model(VIT)
    model.freeze().save(tmp_path / "frozen")
    message = r"torch sees \d+ GPUs, counted from 0" if torch.cuda.is_available() else "torch sees no GPU"
    if _build.CUDA_VERSION is None:
        message = "this build has no CUDA, .*Install a CUDA build of torch"
    with pytest.raises(ValueError, match=message):
        model.freeze(torch.bfloat16, device="cuda:99")
    with pytest.raises(ValueError, match=message):
        FrozenModel.load(tmp_path / "frozen", device="cuda:99")


# --- numbers ---


@pytest.mark.cuda
@EACH
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 160)])
def test_float32_is_the_network(name: str, size: tuple[int, int], no_tf32: None) -> None:
    model = make_model(FAMILY[name])
    images = torch.randn(2, 3, *size)
    got = on_cpu(model.freeze(device="cuda")(images.cuda()))
    assert error(got, exact(model, images)) < 1e-4
    assert error(got, model.freeze()(images)) < 1e-4


@pytest.mark.cuda
@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_as_near_as_the_model_in_them(name: str, dtype: torch.dtype) -> None:
    model = make_model(FAMILY[name])
    images = torch.randn(2, 3, 64, 96)
    want = exact(model, images)
    with torch.no_grad():
        half = DPTModel(model.config, dtype=dtype, device="cuda").eval()
        half.load_state_dict(model.state_dict())
        models = error(on_cpu(half(images.cuda().to(dtype))), want)
    frozen = model.freeze(dtype, device="cuda")
    output = frozen(images.cuda())
    assert all(tensor is None or tensor.dtype == torch.float32 for tensor in output)
    # Roundings fall elsewhere; the largest of their sums varies by about this much.
    assert error(on_cpu(output), want) < 2 * models + 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("without", ["fold_project", "fold_level_project", "phases", "products_first"])
def test_every_rewrite_can_be_left_out(without: str, no_tf32: None) -> None:
    model = make_model(HYBRID.replace(**JOINT))
    images = torch.randn(1, 3, 64, 96)
    got = on_cpu(model.freeze(device="cuda", without=[without])(images.cuda()))
    assert error(got, exact(model, images)) < 1e-4


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["vit", "hybrid joint, metric"])
def test_float8_is_near_bfloat16(name: str, tmp_path: Path) -> None:
    model = make_model(FAMILY[name])
    images = torch.randn(2, 3, 64, 96)
    want = exact(model, images)
    frozen = model.freeze(torch.float8_e4m3fn, device="cuda")
    assert frozen.dtype == torch.float8_e4m3fn
    got = on_cpu(frozen(images.cuda()))
    # Factors are off by up to a sixteenth; maps of few, random layers by a few percent.
    assert 0 < error(got, want) < 0.2
    frozen.save(tmp_path / "frozen")
    assert same_bits(on_cpu(FrozenModel.load(tmp_path / "frozen", device="cuda")(images.cuda())), got)


# --- graphs ---


@pytest.mark.cuda
def test_replays_are_the_first_call(no_tf32: None) -> None:
    model = make_model(VIT.replace(**JOINT))
    frozen = model.freeze(device="cuda")
    wide = model.freeze()
    shapes = [(1, 64, 64), (2, 64, 64), (1, 96, 64)] * 3
    for batch, height, width in shapes:
        images = torch.randn(batch, 3, height, width)
        assert error(on_cpu(frozen(images.cuda())), wide(images)) < 1e-4


@pytest.mark.cuda
def test_more_shapes_than_are_remembered(no_tf32: None) -> None:
    model = make_model(VIT)
    frozen, wide = model.freeze(device="cuda"), model.freeze()
    for i in [*range(12), *range(12)]:
        images = torch.randn(1, 3, 32 * (1 + i % 12), 64)
        assert error(on_cpu(frozen(images.cuda())), wide(images)) < 1e-4


@pytest.mark.cuda
def test_results_stay_when_the_next_call_comes() -> None:
    frozen = make_model(VIT.replace(**JOINT)).freeze(device="cuda")
    first = frozen(torch.randn(1, 3, 64, 64, device="cuda"))
    kept = on_cpu(first)
    frozen(torch.randn(1, 3, 64, 64, device="cuda"))
    assert same_bits(on_cpu(first), kept)


@pytest.mark.cuda
def test_inference_mode_and_autocast_may_come_and_go() -> None:
    frozen = make_model(VIT).freeze(device="cuda")
    images = torch.randn(1, 3, 64, 64, device="cuda")
    with torch.inference_mode():
        want = on_cpu(frozen(images))
    assert same_bits(on_cpu(frozen(images)), want)
    with torch.autocast("cuda", torch.bfloat16):
        assert same_bits(on_cpu(frozen(images)), want)
        assert same_bits(on_cpu(make_model(VIT).freeze(device="cuda")(images)), want)
    assert not frozen(images.requires_grad_()).depth.requires_grad


@pytest.mark.cuda
def test_streams_are_in_order() -> None:
    frozen = make_model(VIT.replace(**JOINT)).freeze(device="cuda")
    images = [torch.randn(1, 3, 64, 64 + 32 * (i % 2), device="cuda") for i in range(12)]
    want = [on_cpu(frozen(image)) for image in images]
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    got = []
    for i, image in enumerate(images):
        with torch.cuda.stream(streams[i % 3]):
            torch.cuda._sleep(1_000_000 * (i % 4))
            got.append(frozen(image))
    torch.cuda.synchronize()
    assert all(same_bits(on_cpu(one), other) for one, other in zip(got, want, strict=True))


@pytest.mark.cuda
def test_many_threads_may_call_one_model() -> None:
    frozen = make_model(VIT.replace(**JOINT)).freeze(device="cuda")
    images = [torch.randn(1, 3, 32 * (1 + i % 3), 64, device="cuda") for i in range(16)]
    torch.cuda.synchronize()

    def run(image: torch.Tensor) -> DPTOutput:
        with torch.cuda.stream(torch.cuda.Stream()):
            return on_cpu(frozen(image))

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(run, images * 4))
    want = [on_cpu(frozen(image)) for image in images]
    assert all(same_bits(one, want[i % 16]) for i, one in enumerate(got))


@pytest.mark.cuda
def test_call_becomes_part_of_the_callers_graph() -> None:
    frozen = make_model(VIT).freeze(device="cuda")
    images = torch.randn(1, 3, 64, 96, device="cuda")
    want = on_cpu(frozen(images))
    held = torch.zeros_like(images)
    frozen(held)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = frozen(held)
    held.copy_(images)
    graph.replay()
    assert error(on_cpu(output), want) < 1e-3  # TF32 may be on, and an algorithm another one


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_workspaces_of_cublas_may_be_cleared(dtype: torch.dtype) -> None:
    # Few rows and long sums, which cuBLAS divides among blocks: they meet in its workspace.
    frozen = make_model(VIT.replace(width=1024, heads=16, mlp_width=4096)).freeze(dtype, device="cuda")
    images = torch.randn(1, 3, 64, 64, device="cuda")
    want = on_cpu(frozen(images))
    torch._C._cuda_clearCublasWorkspaces()  # as graphs of torch.compile do when they are made
    torch.cuda.empty_cache()
    others = [torch.full((2**22,), 7.0, device="cuda") for _ in range(32)]
    for _ in range(3):
        assert same_bits(on_cpu(frozen(images)), want)
    assert all(bool((other == 7).all()) for other in others)


@pytest.mark.cuda
def test_host_does_not_wait() -> None:
    frozen = make_model(VIT).freeze(torch.bfloat16, device="cuda")
    images = torch.randn(1, 3, 64, 64, device="cuda")
    frozen(images)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(2_000_000_000)  # about a second
        done = torch.cuda.Event()
        frozen(images)
        done.record()
        assert not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


@pytest.mark.cuda
def test_no_image_gives_no_map() -> None:
    output = make_model(VIT.replace(**JOINT)).freeze(device="cuda")(torch.zeros(0, 3, 64, 64, device="cuda"))
    assert output.depth.shape == (0, 64, 64)
    assert output.logits.shape == (0, 5, 64, 64)


@pytest.mark.cuda
def test_strided_images() -> None:
    frozen = make_model(VIT).freeze(device="cuda")
    images = torch.randn(1, 64, 96, 3, device="cuda").permute(0, 3, 1, 2)
    assert same_bits(on_cpu(frozen(images)), on_cpu(frozen(images.contiguous())))


@pytest.mark.cuda
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pixels_are_normalised_as_on_the_cpu(name: str, dtype: torch.dtype, no_tf32: None) -> None:
    model = make_model(FAMILY[name])
    model.processor = dataclasses.replace(model.processor, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    frozen = model.freeze(dtype, device="cuda")
    # Beside images of the same shape in float32, which have a graph of their own.
    for _ in range(2):
        pixels = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        images = model.processor.normalize(pixels.permute(0, 2, 3, 1).double() / 255).permute(0, 3, 1, 2).float()
        got, want = on_cpu(frozen(pixels.cuda())), on_cpu(frozen(images.cuda()))
        # Images differ by 4e-7, in half types by a rounding of a few of them.
        assert error(got, want) < {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
        if dtype == torch.float32:
            assert error(got, model.freeze()(pixels)) < 1e-4


# --- files, photographs, training ---


@pytest.mark.cuda
def test_files_pass_between_devices(tmp_path: Path, no_tf32: None) -> None:
    images = torch.randn(1, 3, 64, 96)
    for config in (VIT.replace(width=256, mlp_width=512), *FAMILY.values()):  # with panels, and without
        model = make_model(config)
        model.freeze(device="cuda").save(tmp_path / "cuda")
        model.freeze().save(tmp_path / "cpu")
        assert (tmp_path / "cuda").read_bytes() == (tmp_path / "cpu").read_bytes()
        loaded = FrozenModel.load(tmp_path / "cpu", device="cuda")
        assert loaded.device == torch.device("cuda:0")
        assert error(on_cpu(loaded(images.cuda())), FrozenModel.load(tmp_path / "cuda")(images)) < 1e-4
        loaded.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "cpu").read_bytes()
    model.freeze(torch.float16, device="cuda").save(tmp_path / "half")
    with pytest.raises(ValueError, match="float8_e4m3fn on a CUDA device, got Half on cpu"):
        FrozenModel.load(tmp_path / "half")


@pytest.mark.cuda
def test_model_on_cuda_can_be_frozen_and_predicts() -> None:
    model = make_model(VIT).cuda()
    frozen = model.freeze(device="cuda")
    photograph = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8).numpy()
    got, want = frozen.predict(photograph), model.predict(photograph)
    assert got.depth.shape == (50, 70)
    assert abs(got.depth - want.depth).max() <= 1e-2 * (want.depth.max() - want.depth.min())


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 64, 64), "images must be on cuda:0, got cpu"),
        (torch.zeros(1, 3, 60, 64), "images must be on cuda:0, got cpu"),
    ],
)
def test_images_elsewhere_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(VIT).freeze(device="cuda")(images)
    with pytest.raises(ValueError, match="images must be on the CPU, got cuda:0"):
        make_model(VIT).freeze()(images.cuda())


@EACH
def test_two_deterministic_trainings_are_equal(device: str, name: str) -> None:
    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = make_model(FAMILY[name]).to(device).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        images, depth = torch.randn(2, 3, 64, 96).to(device), torch.rand(2, 64, 96).to(device)
        labels = torch.randint(0, 5, (2, 64, 96)).to(device)
        for _ in range(3):
            with torch.autocast(device, torch.bfloat16):
                output = model(images)
            loss = torch.zeros((), device=device)
            if output.depth is not None:
                loss = loss + losses.scale_and_shift_invariant(output.depth, depth, depth > 0.1).loss
            if output.logits is not None:
                loss = loss + losses.segmentation(output.logits, labels, output.aux_logits)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().cpu() for parameter in model.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = trained(), trained()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
