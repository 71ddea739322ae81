"""torchdpt.export: the file needs torchdpt no more, and gives the same numbers at other sizes and batches."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import VIT
from torch import nn

from torchdpt import DPTModel, export

VARIANT = VIT.replace(distilled=True, fusion_norm="batch", readout="add")
SHAPES = [(2, 3, 64, 64), (1, 3, 64, 64), (3, 3, 128, 96), (1, 3, 48, 160)]

# float32: sums in another order through some 20 layers, measured 6e-8 to 4e-7 of the largest depth.
TOLERANCE = 2e-6


def make_model(config=VIT):
    torch.manual_seed(0)
    model = DPTModel(config)
    nn.init.constant_(model.head.depth.conv3.bias, 1)  # depth lies well above zero
    with torch.no_grad():
        model.eval()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


def assert_close(got, want):
    assert got.shape == want.shape
    assert (torch.as_tensor(got) - want).abs().max() <= TOLERANCE * want.abs().max()


@pytest.fixture(scope="module", params=[VIT, VARIANT], ids=["plain", "distilled, batch norm"])
def exported(request, tmp_path_factory):
    """A model and the folder with its dynamic exports, model.pt2 and model.onnx."""
    folder = tmp_path_factory.mktemp("exported")
    model = make_model(request.param)
    export(model, folder / "model.pt2")
    export(model, folder / "model.onnx")
    return model, folder


# --- torch.export ---

IN_BARE_TORCH = """
import sys
import torch
program = torch.export.load(sys.argv[1] + "/model.pt2").module()
images = torch.load(sys.argv[1] + "/images.pt")
torch.save([program(image)["depth"] for image in images], sys.argv[1] + "/depths.pt")
assert not [name for name in sys.modules if name.startswith("torchdpt")]
assert not hasattr(torch.ops.dpt, "forward")
"""


def test_program_runs_in_bare_torch_at_other_sizes_and_batches(exported):
    model, folder = exported
    images = [torch.rand(shape) for shape in SHAPES]
    torch.save(images, folder / "images.pt")
    # -I: no PYTHONPATH, so that torchdpt could not even be found by it.
    subprocess.run([sys.executable, "-I", "-c", IN_BARE_TORCH, str(folder)], check=True)
    for image, depth in zip(images, torch.load(folder / "depths.pt"), strict=True):
        assert_close(depth, model(image).depth.detach())


def test_program_has_aten_operators_alone(exported):
    program = torch.export.load(exported[1] / "model.pt2")
    operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
    operators = {
        operator for operator in operators if isinstance(operator, torch._ops.OpOverload)
    }  # others: arithmetic
    assert {operator.namespace for operator in operators} == {"aten"}
    assert torch.ops.aten.upsample_bilinear2d.vec in operators  # whole, not as index arithmetic
    assert torch.ops.aten.scaled_dot_product_attention.default in operators


def test_program_refuses_what_it_was_not_exported_for(exported):
    program = torch.export.load(exported[1] / "model.pt2").module()
    for shape in ((1, 3, 64, 72), (1, 3, 32, 64), (1, 1, 64, 64)):
        with pytest.raises((AssertionError, RuntimeError)):
            program(torch.rand(shape))


# --- ONNX ---


def test_onnx_runs_at_other_sizes_and_batches(exported):
    model, folder = exported
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert [value.name for value in session.get_inputs()] == ["images"]
    assert [value.name for value in session.get_outputs()] == ["depth"]
    for shape in SHAPES:
        images = torch.rand(shape)
        (depth,) = session.run(None, {"images": images.numpy()})
        assert_close(depth, model(images).depth.detach())


def test_onnx_has_standard_operators_alone(exported):
    model = onnx.load(exported[1] / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert [node.op_type for node in model.graph.node].count("Resize") == 6


def test_small_model_is_one_file(exported):
    assert {path.name for path in exported[1].iterdir()} >= {"model.onnx", "model.pt2"}
    assert not [path for path in exported[1].iterdir() if path.suffix not in {".onnx", ".pt2", ".pt"}]


def test_large_model_keeps_its_weights_in_a_second_file(tmp_path, monkeypatch):
    # A protobuf file ends at 2 GB; torch.onnx writes two files from this number of bytes on.
    monkeypatch.setattr(torch.onnx._internal.exporter._onnx_program, "_LARGE_MODEL_THRESHOLD", 1000)
    model = make_model()
    (tmp_path / "new").mkdir()
    for _ in range(2):  # the second time over existing files
        export(model, tmp_path / "new" / "model.onnx", dynamic=False)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model.onnx", "model.onnx.data"]
    (tmp_path / "new").rename(tmp_path / "moved")
    session = onnxruntime.InferenceSession(tmp_path / "moved" / "model.onnx")
    images = torch.rand(1, 3, 64, 64)
    assert_close(session.run(None, {"images": images.numpy()})[0], model(images).depth.detach())


# --- static ---


def test_static_export_has_the_size_asked_for(tmp_path):
    model = make_model()
    images = torch.rand(1, 3, 32, 96)  # a coarsest level of one row: only static graphs have it
    want = model(images).depth.detach()
    for suffix in ("pt2", "onnx"):
        export(model, tmp_path / f"model.{suffix}", size=(32, 96), dynamic=False)
    program = torch.export.load(tmp_path / "model.pt2").module()
    assert_close(program(images)["depth"].detach(), want)
    with pytest.raises(AssertionError):
        program(torch.rand(1, 3, 64, 64))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].shape == [1, 3, 32, 96]
    assert_close(session.run(None, {"images": images.numpy()})[0], want)


def test_half_precision_exports(tmp_path):
    model = make_model().half()
    export(model, tmp_path / "model.onnx", dynamic=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = torch.rand(1, 3, 64, 64)
    (depth,) = session.run(None, {"images": images.half().numpy()})
    assert depth.dtype == np.float16
    want = make_model()(images).depth.detach()
    # Some 20 layers, each rounding to 11 bits, errors adding as in a random walk: 20^0.5 * 2^-12.
    assert (torch.from_numpy(depth).float() - want).abs().max() <= 2e-3 * want.max()


# --- what is left behind ---


def test_modes_of_all_modules_are_restored(tmp_path):
    model = make_model(VARIANT).train()
    model.fusion.eval()
    model.encoder.blocks[1].eval()
    want = [module.training for module in model.modules()]
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.activation_checkpointing = True
    export(model, tmp_path / "model.pt2", dynamic=False)
    assert [module.training for module in model.modules()] == want
    assert model.activation_checkpointing
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
    # Exported as in eval mode, all of it.
    images = torch.rand(1, 3, 64, 64)
    depth = torch.export.load(tmp_path / "model.pt2").module()(images)["depth"]
    assert_close(depth.detach(), model.eval()(images).depth.detach())


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_failed_export_leaves_nothing_and_the_old_file(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_text("old")

    def fail(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", fail)
    monkeypatch.setattr(torch.onnx, "export", fail)
    model = make_model().train()
    with pytest.raises(OSError, match="disk full"):
        export(model, path, dynamic=False)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"
    assert all(module.training for module in model.modules())


def test_failed_trace_restores_the_modes(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("no trace")

    monkeypatch.setattr(torch.export, "export", fail)
    model = make_model().train()
    model.fusion.eval()
    with pytest.raises(RuntimeError, match="no trace"):
        export(model, tmp_path / "model.pt2")
    assert not model.fusion.training
    assert model.encoder.training
    assert not list(tmp_path.iterdir())


# --- arguments ---


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("model.pt", {}, r"path must end in \.pt2 or \.onnx, got '.*model\.pt'"),
        ("nowhere/model.pt2", {}, r"there is no folder '.*nowhere'; create it first"),
        ("model.pt2", {"size": (64, 72)}, "multiples of 16, got 64 x 72"),
        ("model.pt2", {"size": (0, 64)}, "multiples of 16, got 0 x 64"),
        ("model.pt2", {"size": (32, 64)}, "at least 48 x 48 with dynamic=True, got 32 x 64"),
    ],
)
def test_bad_arguments_raise(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export(make_model(), tmp_path / name, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_onnx_of_types_that_runtimes_lack_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=rf"no {dtype} form of these layers; convert with model.float"):
        export(make_model().to(dtype), tmp_path / "model.onnx")


# --- torch.export itself ---


def test_own_export_has_our_operator_until_it_is_decomposed():
    program = torch.export.export(make_model(), (torch.rand(1, 3, 64, 64),), strict=False)

    def namespaces(program):
        targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
        return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}

    assert "dpt" in namespaces(program)
    assert namespaces(program.run_decompositions()) == {"aten"}


def test_export_in_train_mode_updates_running_statistics():
    model = make_model(VARIANT).train()
    images = torch.rand(2, 3, 64, 64)
    program = torch.export.export(model, (images,), strict=False).run_decompositions().module()
    model(images)
    program(images)
    got = dict(program.named_buffers())
    for name, want in model.named_buffers():
        assert torch.allclose(got[name].double(), want.double(), rtol=1e-5), name
        assert not torch.equal(want, dict(make_model(VARIANT).named_buffers())[name])


def test_full_disk_is_an_oserror_and_leaves_nothing(tmp_path: Path) -> None:
    # In a process of its own: what writes in C++ would abort it.
    code = (
        "import resource, signal, sys, torch, torchdpt\n"
        "model = torchdpt.DPTModel('dpt_tiny').eval()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "try: torchdpt.export(model, sys.argv[1], dynamic=False)\n"
        "except OSError as error: print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "m.pt2"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "File too large\n"), done.stderr
    assert not list(tmp_path.iterdir())
