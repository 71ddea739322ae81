"""The build backend: scikit-build-core, plus what only a PyTorch extension needs.

A compiled extension fits one minor release of torch. So an isolated build asks for one torch (a plain sdist does not
need any), and the wheel requires the minor release that it was built with.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

import scikit_build_core.build as _backend
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "dynamic_metadata",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# The torch that an isolated build compiles against; DPT_BUILD_TORCH names another release.
DEFAULT_TORCH = "2.13.0"
SUPPORTED_TORCH = "torch>=2.11,<2.14"
DEPENDENCIES = [
    "numpy>=1.26",
    "pillow>=12.1",
    "huggingface_hub>=1.0",
    "pydantic>=2.7",
    "pyyaml>=6.0",
    "tqdm>=4.66",
    "shtab>=1.7",
]


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    torch = os.environ.get("DPT_BUILD_TORCH", DEFAULT_TORCH)
    return [*_backend.get_requires_for_build_wheel(config_settings), f"torch=={torch}"]


def get_requires_for_build_editable(config_settings: dict[str, Any] | None = None) -> list[str]:
    return get_requires_for_build_wheel(config_settings)


def dynamic_metadata(field: str, settings: Mapping[str, Any], project: Mapping[str, Any]) -> list[str]:
    """Return the value of `project.dependencies` (called by scikit-build-core)."""
    if field != "dependencies":
        raise ValueError(f"build_backend provides dependencies, not {field}")
    try:
        major, minor = importlib.metadata.version("torch").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:  # an sdist is made without torch
        return [SUPPORTED_TORCH, *DEPENDENCIES]
    return [f"torch=={major}.{minor}.*", *DEPENDENCIES]
