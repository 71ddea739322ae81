"""What docs/ says of the sources: the directions of dependency, and code that is quoted."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Part -> what it may use beside itself. A file belongs to the longest part that its path starts with.
CPP = {
    "dpt/export": set(),
    "dpt/common": {"dpt/export"},
    "dpt/ops/all_reduce": {"dpt/common"},
    "dpt/ops/form": {"dpt/common"},
    "dpt/ops/autocast": {"dpt/common"},
    "dpt/ops/winograd": {"dpt/common", "dpt/ops/runtime"},
    "dpt/ops/conv2d": {"dpt/common", "dpt/ops/form", "dpt/ops/autocast", "dpt/ops/winograd"},
    "dpt/ops/runtime": {"dpt/common", "dpt/runtime/execute", "dpt/runtime/kernels"},
    "dpt/ops/matmul": {"dpt/common", "dpt/ops/runtime"},
    "dpt/ops/linear": {"dpt/common", "dpt/ops/form", "dpt/ops/autocast", "dpt/ops/matmul"},
    "dpt/layers": {"dpt/common", "dpt/ops/all_reduce", "dpt/ops/conv2d", "dpt/ops/linear"},
    "dpt/ops": {"dpt/common", "dpt/layers", "dpt/ops/form", "dpt/ops/autocast", "dpt/ops/linear", "dpt/ops/runtime"},
    "dpt/loss": {"dpt/common", "dpt/ops"},
    "dpt/encoder": {"dpt/layers", "dpt/ops", "dpt/ops/conv2d", "dpt/common"},
    "dpt/decoder": {"dpt/layers", "dpt/ops", "dpt/ops/linear", "dpt/common"},
    "dpt/io/json": {"dpt/export"},
    "dpt/io/safetensors_header": {"dpt/export", "dpt/io/json"},
    "dpt/io/atomic_file": {"dpt/common"},
    "dpt/io/safetensors": {"dpt/common", "dpt/io/safetensors_header", "dpt/io/atomic_file"},
    "dpt/config": {"dpt/encoder", "dpt/decoder", "dpt/io/json", "dpt/common"},
    "dpt/presets": {"dpt/config"},
    "dpt/model": {"dpt/config", "dpt/encoder", "dpt/decoder"},
    "dpt/io/names": {"dpt/config"},
    "dpt/io/transformers_config": {"dpt/config"},
    "dpt/io/shapes": {"dpt/io/names"},
    "dpt/io/isl_org": {"dpt/io/names", "dpt/io/shapes"},
    "dpt/io/source": {
        "dpt/model",
        "dpt/io/names",
        "dpt/io/shapes",
        "dpt/io/transformers_config",
        "dpt/io/isl_org",
        "dpt/io/safetensors",
    },
    "dpt/io/encoder_weights": {"dpt/model", "dpt/encoder", "dpt/io/names", "dpt/io/shapes", "dpt/io/source"},
    "dpt/io/checkpoint": {
        "dpt/model",
        "dpt/io/names",
        "dpt/io/shapes",
        "dpt/io/source",
        "dpt/io/transformers_config",
        "dpt/io/isl_org",
        "dpt/io/safetensors",
        "dpt/io/atomic_file",
    },
    "dpt/optim/min_norm_solver": {"dpt/export"},
    "dpt/scenes": {"dpt/export"},
    "dpt/scenes/operators": {"dpt/common", "dpt/scenes"},
    "dpt/optim": {"dpt/common", "dpt/optim/min_norm_solver"},
    "dpt/runtime/kernels": {"dpt/export"},
    "dpt/runtime/profile": {"dpt/export"},
    "dpt/runtime/execute": {"dpt/runtime/kernels"},
    "dpt/runtime/simd": set(),
    "dpt/runtime": {
        "dpt/runtime/execute",
        "dpt/runtime/kernels",
        "dpt/runtime/profile",
        "dpt/common",
        "dpt/config",
        "dpt/encoder",
        "dpt/io/json",
        "dpt/io/safetensors",
        "dpt/model",
        "dpt/ops",
        "dpt/ops/autocast",
    },
    "dpt/module": {"dpt/model", "dpt/io/checkpoint"},
    "dpt/operators": {"dpt/model"},
    "bindings": {"dpt/runtime", "dpt/model", "dpt/io/checkpoint", "dpt/io/encoder_weights", "dpt/io/safetensors"},
}
PYTHON = {
    "_build": set(),
    "_C": set(),
    "config": {"_C"},
    "annotations": set(),
    "colormaps": set(),
    "files": set(),
    "image": {"files"},
    "classes": {"files"},
    "losses": {"classes"},
    "prediction_files": {"classes"},
    "metric_fit": set(),
    "prediction": {"classes", "colormaps", "files", "metric_fit", "prediction_files"},
    "predict": {"classes", "config", "image", "prediction", "stages"},  # type of the last
    "frozen": {"_C", "classes", "config", "image", "predict", "prediction", "stages"},
    "checkpoint": {"_C", "files"},
    "stages": {"_C", "config"},
    "model": {"_C", "checkpoint", "classes", "config", "frozen", "image", "predict", "prediction", "stages"},
    "export": {"model"},
    "optim": set(),
    "scenes": set(),
    "data": {"annotations", "classes", "files", "image", "prediction_files", "scenes"},
    "tally": set(),
    "segmentation_metrics": {"classes", "tally"},
    "metrics": {"segmentation_metrics", "tally"},
    "protocols": {"annotations", "classes"},
    "evaluate": {"losses", "metrics", "protocols", "tally"},
    "multi_scale": {"image", "predict", "protocols"},
    "evaluate_model": {"classes", "data", "evaluate", "image", "multi_scale", "predict", "protocols", "tally"},
    "evaluation_files": {"classes", "colormaps", "data", "evaluate", "evaluate_model", "image", "protocols"},
    "cli_eval": {
        "cli",
        "data",
        "evaluate",
        "evaluate_model",
        "evaluation_files",
        "files",
        "predict",  # a type
        "prediction_files",
        "protocols",
    },
    "results": {"files", "image"},
    "cli_train": {"training"},
    "training": {
        "annotations",
        "checkpoint",
        "classes",
        "config",
        "data",
        "evaluate",
        "evaluate_model",
        "files",
        "image",
        "losses",
        "model",
        "optim",
        "prediction",
        "protocols",
        "stages",
        "tally",
    },
    "cli_data": {"data"},
    "cli_bench": {"cli", "frozen", "model", "predict"},
    "cli": {"_build", "checkpoint", "export", "model", "predict", "prediction", "prediction_files", "results"},
}


def part_of(path: str, parts: dict[str, set[str]]) -> str:
    matches = [part for part in parts if path == part or path.startswith((f"{part}/", f"{part}."))]
    if not matches:
        raise AssertionError(f"{path} belongs to no part: name it in docs/architecture.md and here")
    return max(matches, key=len)


def test_cpp_includes_follow_the_arrows() -> None:
    wrong = []
    files = [*(ROOT / "csrc").rglob("*.h"), *(ROOT / "csrc").rglob("*.cpp"), *(ROOT / "csrc").rglob("*.cu")]
    assert len(files) > 20
    for file in files:
        part = part_of(str(file.relative_to(ROOT / "csrc")), CPP)
        for include in re.findall(r'#include "(.*)"', file.read_text()):
            used = part_of(include, CPP)
            if used != part and used not in CPP[part]:
                wrong.append(f"{file.relative_to(ROOT)} ({part}) includes {include} ({used})")
    assert wrong == []


def test_files_with_kernels_have_no_torch_headers() -> None:
    files = list((ROOT / "csrc").rglob("*.cu"))
    assert files
    for file in files:
        assert not re.search(r"#include <(ATen|c10|torch)/", file.read_text()), file


def test_what_needs_no_torch_has_no_torch_headers() -> None:
    for stem in ("io/json", "io/safetensors_header", "optim/min_norm_solver"):
        for suffix in (".h", ".cpp"):
            text = (ROOT / "csrc/dpt" / (stem + suffix)).read_text()
            assert not re.search(r'#include (<(ATen|c10|torch)/|"dpt/common.h")', text)


def test_python_imports_follow_the_arrows() -> None:
    wrong = []
    package = ROOT / "python/torchdpt"
    for file in package.rglob("*.py"):
        if file == package / "__init__.py":
            continue
        part = file.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module == "torchdpt":
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchdpt."):
                names = [str(node.module).split(".")[1]]
            used = [name for name in names if name != part]
            wrong += [f"{file.relative_to(package)} imports {name}" for name in used if name not in PYTHON[part]]
    assert wrong == []


def test_no_function_of_the_network_is_written_in_python() -> None:
    for file in (ROOT / "python/torchdpt").rglob("*.py"):
        # They resize results to photographs or the truth, photographs to scales, and samples.
        if file.stem in ("predict", "evaluate", "multi_scale", "transforms"):
            continue
        assert not re.search(r"torch\.nn\.functional|import.* functional|\bF\.", file.read_text()), file


def test_cpp_quoted_in_the_docs_is_in_the_sources() -> None:
    text = "".join((ROOT / "docs" / name).read_text() for name in ("add_an_encoder.md", "cpp.md"))
    blocks = re.findall(r"```cpp\n// ((?:csrc|tests)/\S+)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 10
    for path, text in blocks:
        source = (ROOT / path).read_text()
        at = 0
        for part in re.split(r"(?m)^ *\.\.\.\n", text):
            assert part in source[at:], f"{path} does not hold, after what is quoted before:\n{part}"
            at = source.index(part, at) + len(part)
