"""The CPU runtime against the network that it was made of."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import FAMILY, HYBRID, JOINT, VIT, make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from torchdpt import DPTModel, DPTOutput, FrozenModel

EACH = pytest.mark.parametrize("name", FAMILY)
REWRITES = ("fold_project", "fold_level_project", "phases", "products_first", "winograd")


def tensors(output: DPTOutput) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in output._asdict().items() if tensor is not None}


def same_bits(one: DPTOutput, other: DPTOutput) -> bool:
    one_by_one = zip(tensors(one).values(), tensors(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in one_by_one)


def error(got: DPTOutput, want: DPTOutput) -> float:
    """The largest difference over the range of what is wanted."""
    assert tensors(got).keys() == tensors(want).keys()
    worst = 0.0
    for name, tensor in tensors(want).items():
        assert tensors(got)[name].shape == tensor.shape
        spread = tensor.max() - tensor.min()
        assert spread > 0
        worst = max(worst, float((tensors(got)[name].double() - tensor).abs().max() / spread))
    return worst


def exact(model: DPTModel, images: torch.Tensor) -> DPTOutput:
    """The network in float64."""
    wide = DPTModel(model.config, dtype=torch.float64).eval()
    wide.load_state_dict({name: t.double() if t.is_floating_point() else t for name, t in model.state_dict().items()})
    with torch.no_grad():
        return wide(images.double())


# --- numbers ---


@EACH
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 160)])
def test_float32_is_the_network(name: str, size: tuple[int, int]) -> None:
    model = make_model(FAMILY[name])
    images = torch.randn(2, 3, *size)
    assert error(model.freeze()(images), exact(model, images)) < 2e-5


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (16, 208), (112, 64)])
def test_sizes_that_are_no_multiples_of_32(size: tuple[int, int]) -> None:
    for config in (VIT, HYBRID):
        model = make_model(config)
        images = torch.randn(1, 3, *size)
        assert error(model.freeze()(images), exact(model, images)) < 2e-5


@pytest.mark.parametrize("without", [*((name,) for name in REWRITES), REWRITES])
@pytest.mark.parametrize("name", ["vit", "hybrid joint, metric", "resnet joint"])
def test_every_rewrite_can_be_left_out(name: str, without: tuple[str, ...]) -> None:
    model = make_model(FAMILY[name])
    images = torch.randn(1, 3, 64, 96)
    assert error(model.freeze(without=without)(images), exact(model, images)) < 2e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"readout": "add"},
        {"readout": "ignore"},
        {"readout": "add", "distilled": True},
        {"distilled": True},
        {"qkv_bias": False},
        {"heads": 4, "width": 48, "mlp_width": 100, "features": 24, "head_features": 3, "channels": (3, 5, 70, 9)},
        {"patch_size": 8, "image_size": 32, "strides": (4, 8, 16, 32)},
    ],
    ids=str,
)
def test_variants(changes: dict[str, object]) -> None:
    model = make_model(VIT.replace(**changes))
    images = torch.randn(2, 3, 64, 96)
    assert error(model.freeze()(images), exact(model, images)) < 2e-5


# Small images go through the network together; of large ones as many at a time as there are threads for, here 1 and 2.
@pytest.mark.parametrize(("size", "threads"), [((64, 96), None), ((384, 384), 1), ((288, 512), 4)])
def test_rows_of_a_batch_are_what_each_image_gives(size: tuple[int, int], threads: int | None) -> None:
    for config in (VIT.replace(**JOINT), HYBRID):
        frozen = make_model(config).freeze(threads=threads)
        images = torch.randn(5, 3, *size)
        together = frozen(images)
        for i in range(5):
            alone = frozen(images[i : i + 1])
            for name, tensor in tensors(alone).items():
                assert torch.equal(tensors(together)[name][i], tensor[0])


@pytest.mark.parametrize("name", ["vit", "hybrid joint, metric", "resnet joint"])
def test_pixels_are_normalised_as_the_processor_does(name: str, tmp_path: Path) -> None:
    model = make_model(FAMILY[name])
    model.processor = dataclasses.replace(model.processor, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pixels = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8)
    images = model.processor.normalize(pixels.double() / 255).permute(0, 3, 1, 2).float()
    frozen = model.freeze()
    want, given = frozen(images), pixels.clone()
    got = frozen(pixels.permute(0, 3, 1, 2))
    assert torch.equal(pixels, given)
    assert error(got, want) < 1e-5  # of images that differ by 4e-7
    assert same_bits(frozen(pixels.permute(0, 3, 1, 2).contiguous()), got)
    frozen.save(tmp_path / "frozen")
    assert same_bits(FrozenModel.load(tmp_path / "frozen")(pixels.permute(0, 3, 1, 2)), got)


def test_number_of_threads_does_not_change_a_bit() -> None:
    model = make_model(VIT.replace(**JOINT))
    images = torch.randn(1, 3, 96, 64)
    want = model.freeze(threads=1)(images)
    for threads in (2, 3, 7):
        assert same_bits(model.freeze(threads=threads)(images), want)


def test_many_threads_may_call_one_model() -> None:
    frozen = make_model(VIT.replace(**JOINT)).freeze(threads=1)
    images = [torch.randn(1, 3, 32 * (1 + i % 3), 64) for i in range(16)]
    want = [frozen(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(frozen, images * 4))
    assert all(same_bits(one, want[i % 16]) for i, one in enumerate(got))


@EACH
def test_memory_does_not_grow_with_calls(name: str) -> None:
    frozen, images = make_model(FAMILY[name]).freeze(), torch.randn(1, 3, 256, 256)

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    # A leak grows in every round; what else this process does meanwhile may add pages in one. A map of
    # 64 x 64 with 16 channels, kept each time, would be 6,554 KB a round.
    sizes = []
    for _ in range(5):
        for _ in range(25):
            frozen(images)
        sizes.append(resident())
    assert min(after - before for before, after in pairwise(sizes)) < 500  # KB, 20 a call


def test_large_images_of_a_batch_take_the_memory_of_one(saved: Path) -> None:
    program = """
import sys, torch, torchdpt
def peak():  # KB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
frozen, images = torchdpt.FrozenModel.load(sys.argv[1], threads=1), torch.randn(16, 3, 384, 384)
frozen(images[:1])
before = peak()
frozen(images)
print(peak() - before)
"""
    more = subprocess.run([sys.executable, "-c", program, saved], check=True, capture_output=True, text=True).stdout
    # The 15 other depth maps are 8,640 KB; as many maps of 384 x 384 with 16 channels would be 138,240 KB.
    assert int(more) < 40_000


def test_no_image_gives_no_map() -> None:
    output = make_model(VIT.replace(**JOINT)).freeze()(torch.zeros(0, 3, 64, 64))
    assert output.depth is not None
    assert output.depth.shape == (0, 64, 64)
    assert output.logits is not None
    assert output.logits.shape == (0, 5, 64, 64)


def test_nan_stays_nan() -> None:
    images = torch.zeros(1, 3, 64, 64)
    images[0, 0, 5, 5] = torch.nan
    depth = make_model(VIT).freeze()(images).depth
    assert depth is not None
    assert depth.isnan().any()


def test_strided_images() -> None:
    frozen = make_model(VIT).freeze()
    images = torch.randn(1, 64, 96, 3)
    assert same_bits(frozen(images.permute(0, 3, 1, 2)), frozen(images.permute(0, 3, 1, 2).contiguous()))


def test_later_changes_of_the_model_do_not_reach_it() -> None:
    model = make_model(VIT)
    frozen = model.freeze()
    images = torch.randn(1, 3, 64, 64)
    want = frozen(images)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert same_bits(frozen(images), want)
    del model
    assert same_bits(frozen(images), want)


def test_half_and_double_models_can_be_frozen() -> None:
    images = torch.randn(1, 3, 64, 64)
    for dtype in (torch.bfloat16, torch.float64):
        model = make_model(VIT, dtype)
        assert error(model.freeze()(images), exact(model, images)) < 2e-5


def test_instruction_sets_agree() -> None:
    """What this processor has; the others cannot run here."""
    program = (
        "import torch; from networks import HYBRID, JOINT, make_model; model = make_model(HYBRID.replace(**JOINT))\n"
        "output = model.freeze()(torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96))\n"
        "print(output.depth.double().flatten()[::37].tolist())"
    )
    results = []
    for isa in ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"):
        found = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"DPT_ISA": isa, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        )
        results.append(np.array(json.loads(found.stdout)))
    for result in results[1:]:
        assert np.abs(result - results[0]).max() <= 2e-5 * np.ptp(results[0])


# --- parts ---


@EACH
def test_profile_gives_the_same_bits_and_times_that_sum_to_the_call(name: str) -> None:
    config = FAMILY[name]
    frozen = make_model(config).freeze()
    images = torch.randn(1, 3, 64, 96)
    frozen(images)
    start = time.perf_counter()
    output, parts = frozen.profile(images)
    taken = 1000 * (time.perf_counter() - start)
    assert same_bits(output, frozen(images))
    encoders = {
        "vit": ["patch embedding", "attention", "MLP"],
        "hybrid": ["convolutional stages", "patch embedding", "attention", "MLP"],
        "resnet": ["convolutional stages"],
    }
    assert list(parts) == [*encoders[config.encoder], "reassemble", "fusion", "head"]
    assert min(parts.values()) > 0
    assert sum(parts.values()) < taken


def test_longer_part_takes_longer() -> None:
    images = torch.randn(1, 3, 64, 64)
    parts = []
    for depth in (4, 24):
        frozen = make_model(VIT.replace(depth=depth, taps=(0, 1, 2, depth - 1))).freeze(threads=1)
        runs = [frozen.profile(images)[1] for _ in range(9)]
        parts.append({part: min(run[part] for run in runs) for part in runs[0]})
    for part in ("attention", "MLP"):
        assert parts[1][part] > 3 * parts[0][part]  # six times as many blocks


# --- predict ---


def test_predict_is_that_of_the_model() -> None:
    model = make_model(VIT.replace(**JOINT))
    frozen = model.freeze()
    photographs = [np.random.default_rng(i).integers(0, 256, (50 + i, 70, 3), dtype=np.uint8) for i in range(3)]
    for got, want in zip(frozen.predict(photographs), model.predict(photographs), strict=True):
        assert got.kind == want.kind
        assert got.depth.shape == want.depth.shape
        assert np.abs(got.depth - want.depth).max() <= 1e-4 * np.ptp(want.depth)
        assert (got.labels == want.labels).mean() > 0.99
        assert got.classes == want.classes
    assert np.array_equal(frozen.predict(photographs[0]).depth, frozen.predict(photographs)[0].depth)


# --- files ---


def test_saved_and_loaded_gives_the_same_bits(tmp_path: Path) -> None:
    images = torch.randn(1, 3, 64, 96)
    for name in FAMILY:
        frozen = make_model(FAMILY[name]).freeze()
        frozen.save(tmp_path / "model.frozen")
        loaded = FrozenModel.load(tmp_path / "model.frozen", threads=1)
        assert same_bits(loaded(images), frozen(images))
        assert loaded.config == frozen.config
        assert loaded.processor == frozen.processor
        assert loaded.classes == frozen.classes
        loaded.save(tmp_path / "again.frozen")
        assert (tmp_path / "again.frozen").read_bytes() == (tmp_path / "model.frozen").read_bytes()


@EACH
@pytest.mark.parametrize("without", REWRITES)
def test_files_without_a_rewrite_can_be_loaded(name: str, without: str, tmp_path: Path) -> None:
    images = torch.randn(1, 3, 64, 96)
    frozen = make_model(FAMILY[name]).freeze(without=(without,))
    frozen.save(tmp_path / "model.frozen")
    assert same_bits(FrozenModel.load(tmp_path / "model.frozen")(images), frozen(images))


def test_file_of_float32_holds_panels(tmp_path: Path) -> None:
    """[k / 256, n / 32, 256, 32] of the blocks' linear layers, each from the start of a cache line on."""
    model = make_model(VIT.replace(width=256, mlp_width=512))
    files = {dtype: tmp_path / f"{dtype}.frozen" for dtype in (torch.float32, torch.bfloat16)}
    for dtype, file in files.items():
        model.freeze(dtype).save(file)
    panels, rows = (load_file(file) for file in files.values())
    assert panels.keys() == rows.keys()
    in_panels = [name for name in panels if panels[name].shape != rows[name].shape]
    assert len(in_panels) == 4 * VIT.depth
    for name, tensor in panels.items():
        if name in in_panels:
            n, k = rows[name].shape[:2]
            assert tensor.shape == (k // 256, n // 32, 256, 32)
            tensor = tensor.permute(1, 3, 0, 2).reshape(n, k, 1, 1)
        assert torch.equal(tensor, rows[name])
    content = files[torch.float32].read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert (8 + length) % 64 == 0
    header = json.loads(content[8 : 8 + length])
    assert all(header[name]["data_offsets"][0] % 64 == 0 for name in in_panels)


def test_panels_give_the_same_map_wherever_they_lie_and_on_every_instruction_set(tmp_path: Path) -> None:
    model = make_model(VIT.replace(width=256, mlp_width=512))
    images = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)
    frozen, file = model.freeze(), tmp_path / "model.frozen"
    frozen.save(file)
    assert same_bits(FrozenModel.load(file)(images), frozen(images))
    assert error(frozen(images), exact(model, images)) < 2e-5
    program = (
        "import sys, torch; from torchdpt import FrozenModel\n"
        "images = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)\n"
        "torch.save(FrozenModel.load(sys.argv[1])(images).depth, sys.argv[2])"
    )
    for isa in ("baseline", "avx2"):
        environment = os.environ | {"DPT_ISA": isa, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        subprocess.run([sys.executable, "-c", program, file, tmp_path / "depth"], check=True, env=environment)
        assert error(DPTOutput(torch.load(tmp_path / "depth")), exact(model, images)) < 2e-5


@pytest.mark.parametrize("spaces", [1, 8])
def test_tensors_of_a_file_need_not_be_aligned(spaces: int, tmp_path: Path) -> None:
    """Neither to numbers nor to cache lines, as other libraries write them."""
    frozen, file = make_model(VIT.replace(width=256, mlp_width=512)).freeze(), tmp_path / "model.frozen"
    frozen.save(file)
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    file.write_bytes((length + spaces).to_bytes(8, "little") + header + b" " * spaces + data)
    loaded, images = FrozenModel.load(file), torch.randn(1, 3, 64, 96)
    assert same_bits(loaded(images), frozen(images))
    loaded.save(file)
    assert file.read_bytes() == content


def test_loading_imports_no_module(saved: Path) -> None:
    """Those that torch makes shapes without data with take seconds."""
    program = (
        "import sys, torch; from torchdpt import FrozenModel; before = set(sys.modules)\n"
        "FrozenModel.load(sys.argv[1])(torch.zeros(1, 3, 64, 96)); print(sorted(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", program, saved], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_model(VIT).freeze().save(tmp_path / "model.frozen")
    return tmp_path / "model.frozen"


def change(file: Path, metadata: dict[str, str], tensors: dict[str, torch.Tensor | None]) -> None:
    with safe_open(file, "pt") as opened:
        kept = opened.metadata() | metadata
    values = load_file(file) | tensors
    save_file({name: tensor for name, tensor in values.items() if tensor is not None}, file, kept)


@pytest.mark.parametrize(
    ("metadata", "values", "message"),
    [
        ({"format": "another"}, {}, "is no frozen model; models are frozen and saved by freeze and save"),
        ({"format_version": "1"}, {}, "has format_version 1, and this library reads 2; freeze the model anew"),
        ({}, {"depth.dot": torch.zeros(7)}, r"tensor 'depth.dot' must be float32 \[8\], got Float \[7\]"),
        ({}, {"depth.dot": None}, r"tensor 'depth.dot' must be float32 \[8\], got none"),
        ({}, {"depth.dot": torch.zeros(8, dtype=torch.int64)}, "must be float32"),
        ({}, {"more": torch.zeros(8)}, "has 1 tensors more than its config has"),
        ({"config": "{}}"}, {}, "DPTConfig: not a JSON object"),
        ({"rewrites": "7"}, {}, "rewrites"),
        ({"dtype": "int3"}, {}, "dtype"),
        ({"processor": "{}}"}, {}, "processor"),
        ({"processor": '{"mean": [0.5, 0.5], "std": [1.0, 1.0, 1.0]}'}, {}, "mean must be three numbers"),
    ],
)
def test_other_files_are_refused(
    saved: Path, metadata: dict[str, str], values: dict[str, torch.Tensor | None], message: str
) -> None:
    change(saved, metadata, values)
    with pytest.raises(ValueError, match=message):
        FrozenModel.load(saved)


def test_checkpoint_and_no_file_are_refused(tmp_path: Path) -> None:
    make_model(VIT).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no frozen model"):
        FrozenModel.load(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no_such_file"):
        FrozenModel.load(tmp_path / "no_such_file")


def test_file_can_be_written_over_the_one_that_is_mapped(saved: Path) -> None:
    before, images = saved.read_bytes(), torch.randn(1, 3, 64, 96)
    frozen = FrozenModel.load(saved)
    frozen.save(saved)
    assert saved.read_bytes() == before
    want = frozen(images)
    make_model(VIT.replace(width=256, mlp_width=512)).freeze().save(saved)
    assert same_bits(frozen(images), want)
    frozen = FrozenModel.load(saved)
    want = frozen(images)
    make_model(VIT).freeze().save(saved)
    assert same_bits(frozen(images), want)
    saved.with_name("folder").mkdir()
    with pytest.raises(ValueError, match="folder"):
        frozen.save(saved.with_name("folder"))
    assert sorted(path.name for path in saved.parent.iterdir()) == ["folder", "model.frozen"]


# --- refusals ---


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64), r"images must be \[B, 3, H, W\], got \[3, 64, 64\]"),
        (torch.zeros(1, 3, 60, 64), "height and width must be multiples of 16, got 60 x 64"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.float64), "must be float32, normalised, or uint8 pixels, got Double"),
        (torch.zeros(1, 3, 64, 64, device="meta"), "images must be on the CPU, got meta"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(VIT).freeze()(images)


def test_options_that_do_not_exist_are_refused() -> None:
    model = make_model(VIT)
    with pytest.raises(ValueError, match="or float8_e4m3fn on a CUDA device, got Half on cpu"):
        model.freeze(torch.float16)
    with pytest.raises(ValueError, match="device must be cpu or cuda, got meta"):
        model.freeze(device="meta")
    with pytest.raises(ValueError, match="there is no rewrite 'winogard'"):
        model.freeze(without=["winogard"])
    with pytest.raises(ValueError, match="threads must be an integer of at least 1, got 0"):
        model.freeze(threads=0)
    with pytest.raises(ValueError, match="must be on the CPU, got meta"):
        DPTModel(VIT, device="meta").freeze()
