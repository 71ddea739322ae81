"""What the installed package holds, and how it answers a torch that it was not built for."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchdpt
from torchdpt import _C, _build

PACKAGE = Path(_C.__file__).parent
LIBRARIES = [Path(_C.__file__), PACKAGE / "lib" / "libdpt.so"]


def dynamic_section(library: Path) -> str:
    return subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_runpath_is_relative(library: Path) -> None:
    paths = re.search(r"RUNPATH\).*\[(.*)\]", dynamic_section(library))
    assert paths is not None
    assert all(path.startswith("$ORIGIN") for path in paths[1].split(":"))


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_only_libraries_of_torch_and_the_system_are_needed(library: Path) -> None:
    needed = set(re.findall(r"NEEDED\).*\[(.*)\]", dynamic_section(library)))
    system = {
        "libc.so.6",
        "libm.so.6",
        "libstdc++.so.6",
        "libgcc_s.so.1",
        "ld-linux-x86-64.so.2",
        "libcudart.so.13",
    }
    assert {name for name in needed - system if not re.match(r"lib(torch|c10)", name)} <= {"libdpt.so"}


def test_core_does_not_need_python() -> None:
    assert "python" not in dynamic_section(PACKAGE / "lib" / "libdpt.so")


def test_pybind_is_that_of_torch() -> None:
    def tags(library: Path) -> set[bytes]:
        return set(re.findall(rb"__pybind11_internals_v\d+", library.read_bytes()))

    torch_tags = tags(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert len(torch_tags) == 1
    assert tags(Path(_C.__file__)) == torch_tags


def test_wheel_holds_headers_and_a_cmake_package_and_no_tests() -> None:
    files = importlib.metadata.files("torchdpt")
    assert files is not None
    names = {str(file) for file in files}
    sources = Path(__file__).parents[2] / "csrc"
    headers = {f"torchdpt/include/{path.relative_to(sources)}" for path in (sources / "dpt").rglob("*.h")}
    assert headers <= names
    assert {"torchdpt/lib/libdpt.so", "torchdpt/py.typed", "torchdpt/_C.pyi", "torchdpt/_build.py"} <= names
    assert "torchdpt/share/cmake/dpt/dptConfig.cmake" in names
    assert "torchdpt_command.py" in names
    command = ("torchdpt_command.py", "__pycache__/torchdpt_command.")
    allowed = ("torchdpt/", *command, f"torchdpt-{torchdpt.__version__}.dist-info/")
    # Besides, the command, as it lies beside the interpreter.
    assert [Path(name).parts[-2:] for name in names if not name.startswith(allowed)] == [("bin", "torchdpt")]
    assert [name for name in names if "test" in name or name.endswith((".cpp", ".cu", ".in"))] == []


def test_wheel_requires_the_torch_minor_it_was_built_with() -> None:
    requirements = importlib.metadata.requires("torchdpt")
    minor = ".".join(_build.TORCH_VERSION.split(".")[:2])
    assert f"torch==2.{minor.split('.')[1]}.*" in (requirements or [])


def test_another_torch_is_refused_in_one_sentence() -> None:
    code = "import torch; torch.__version__ = '2.99.1+cpu'; import torchdpt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = done.stderr.splitlines()[-1]
    assert f"was built with torch {_build.TORCH_VERSION}, and this is torch 2.99.1+cpu" in message
    assert "pip install --no-build-isolation" in message


def test_import_does_not_load_optional_packages() -> None:
    code = "import sys, torch; before = set(sys.modules); import torchdpt; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"PIL", "onnx", "onnxscript", "safetensors", "transformers", "huggingface_hub"})
