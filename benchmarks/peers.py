"""The runtimes that frozen models are compared with. Each takes a network and images and makes a call of them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DPTForDepthEstimation, DPTForSemanticSegmentation

import torchdpt

Case = Callable[[], Tensor]


# That transformers has, too.
PRESETS = ("dpt_tiny", "dpt_base", "dpt_hybrid", "dpt_large", "dpt_hybrid_ade", "dpt_large_ade")


def model_of(preset: str, size: int) -> torchdpt.DPTModel:
    """With random weights and this native size, the only one that transformers' hybrid takes.

    It is the variant that transformers has; what a network of the preset differs in takes no time.
    """
    torch.manual_seed(0)
    config = torchdpt.DPTConfig.preset(preset).replace(image_size=size)
    if config.encoder == "hybrid":
        config = config.replace(weight_standardization="variance")
    if config.num_classes > 0:
        config = config.replace(auxiliary_head="last")
    return torchdpt.DPTModel(config).eval()


class Peer(nn.Module):
    """transformers' network of a folder, with its map alone, which exporters like better."""

    def __init__(self, folder: str, config: torchdpt.DPTConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.depth = config.depth_head
        kind = DPTForDepthEstimation if self.depth else DPTForSemanticSegmentation
        self.model = kind.from_pretrained(folder, dtype=dtype)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=images)
        found: Tensor = output.predicted_depth if self.depth else output.logits
        return found


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def onnx_file(network: nn.Module, images: Tensor, path: Path) -> str:
    with torch.no_grad():
        torch.onnx.export(network, (images,), str(path), dynamo=True, verbose=False)
    return str(path)


def onnx_runtime(path: str, images: Tensor) -> Case:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would take the others' cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def openvino(path: str, images: Tensor, dtype: torch.dtype) -> Case:
    """What int8 leaves is bfloat16 where the processor has it."""
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    half = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype == torch.int8:
        import nncf

        samples = nncf.Dataset([image.numpy()[None] for image in images])
        network = nncf.quantize(network, samples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images))
    settings = {
        "INFERENCE_PRECISION_HINT": "f32" if dtype == torch.float32 or not half else "bf16",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(network, "CPU", settings)
    return lambda: torch.from_numpy(compiled([images.numpy()])[0].copy())


def inductor(network: nn.Module, images: Tensor, **options: Any) -> Case:
    torch.compiler.reset()
    compiled = torch.compile(network, options={"freezing": True, **options}, fullgraph=True)
    return lambda: compiled(images)


def zentorch(network: nn.Module, images: Tensor) -> Case:
    import zentorch  # noqa: F401 (registers the backend)

    compiled = torch.compile(network, backend="zentorch")
    return lambda: compiled(images)


def ahead_of_time(network: nn.Module, images: Tensor) -> Case:
    exported = torch.export.export(network, (images,), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(
            exported, package_path=str(Path(folder) / "model.pt2"), inductor_configs={"freezing": True}
        )
        loaded = torch._inductor.aoti_load_package(package)
    return lambda: loaded(images)


def peers(
    names: list[str], folder: str, config: torchdpt.DPTConfig, images: Tensor, dtype: torch.dtype
) -> dict[str, Callable[[], Case]]:
    """What makes each case. Peers that are not installed, or do not have the precision, are left out."""
    found: dict[str, Callable[[], Case]] = {}
    if dtype != torch.int8 and set(names) & {"transformers", "compile", "autotune", "aoti", "zentorch"}:
        cast = images.to(dtype)
        network = Peer(folder, config, dtype)
        eager: dict[str, Callable[[], Case]] = {
            "transformers": lambda: lambda: network(cast),
            "compile": lambda: inductor(network, cast),
            "autotune": lambda: inductor(network, cast, max_autotune=True),
            "aoti": lambda: ahead_of_time(network, cast),
        }
        titles = {
            "transformers": "transformers",
            "compile": "torch.compile, freezing",
            "autotune": "torch.compile, max-autotune",
            "aoti": "AOTInductor",
        }
        found |= {titles[name]: eager[name] for name in titles if name in names}
        if "zentorch" in names and installed("zentorch"):
            found["zentorch"] = lambda: zentorch(network, cast)
    if set(names) & {"onnxruntime", "openvino"}:
        path = onnx_file(Peer(folder, config, torch.float32), images, Path(folder) / "peer.onnx")
        found |= runtimes(names, path, images, dtype)
    return found


def runtimes(
    names: list[str], path: str, images: Tensor, dtype: torch.dtype, what: str = ""
) -> dict[str, Callable[[], Case]]:
    """Of an ONNX file; `what` is added to the names."""
    found: dict[str, Callable[[], Case]] = {}
    if "onnxruntime" in names and dtype == torch.float32 and installed("onnxruntime"):
        found[f"ONNX Runtime{what}"] = lambda: onnx_runtime(path, images)
    if "openvino" in names and installed("openvino") and (dtype != torch.int8 or installed("nncf")):
        found[f"OpenVINO{what}"] = lambda: openvino(path, images, dtype)
    return found
