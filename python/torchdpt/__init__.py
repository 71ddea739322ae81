"""Dense Prediction Transformers (Ranftl, Bochkovskiy, Koltun 2021) in C++ and CUDA on LibTorch.

The network is written in C++ and called as operators (`torch.ops.dpt`); `DPTModel` is a `torch.nn.Module` that owns its
tensors.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import torch as _torch

from torchdpt import _build


def _check_torch() -> None:
    """A compiled extension fits one minor release of torch; with another, loading it ends in undefined symbols."""
    built, runs = _build.TORCH_VERSION, _torch.__version__
    if built.split(".")[:2] != runs.split(".")[:2]:
        raise ImportError(
            f"torchdpt {_build.VERSION} was built with torch {built}, and this is torch {runs}: rebuild it in its "
            "source checkout with `pip install scikit-build-core ninja && pip install --no-build-isolation --no-deps "
            "--force-reinstall .`"
        )


_check_torch()

from torchdpt import _C, data, evaluate, losses, metrics, optim, protocols, scenes  # noqa: E402, F401
from torchdpt.classes import ADE20K, IGNORE_INDEX, PASCAL_CONTEXT, Classes  # noqa: E402
from torchdpt.config import DPTConfig, list_presets  # noqa: E402
from torchdpt.evaluate_model import evaluate_dataset  # noqa: E402
from torchdpt.export import export  # noqa: E402
from torchdpt.frozen import FrozenModel  # noqa: E402
from torchdpt.image import ImageProcessor, load_image  # noqa: E402
from torchdpt.model import DPTModel  # noqa: E402
from torchdpt.predict import FileResult, predict_files  # noqa: E402
from torchdpt.prediction import PointCloud, Prediction  # noqa: E402
from torchdpt.stages import DPTOutput, Encoder, Fusion, Head, Reassemble  # noqa: E402

if _TYPE_CHECKING:
    from torchdpt.training import TrainConfig, fit

__version__ = _build.VERSION

# For CMake: find_package(dpt) with this in CMAKE_PREFIX_PATH gives the target dpt::dpt.
cmake_prefix_path = str(_Path(_C.__file__).parent / "share" / "cmake")

__all__ = [
    "ADE20K",
    "IGNORE_INDEX",
    "PASCAL_CONTEXT",
    "Classes",
    "DPTConfig",
    "DPTModel",
    "DPTOutput",
    "Encoder",
    "FileResult",
    "FrozenModel",
    "Fusion",
    "Head",
    "ImageProcessor",
    "PointCloud",
    "Prediction",
    "Reassemble",
    "TrainConfig",
    "cmake_prefix_path",
    "evaluate_dataset",
    "export",
    "fit",
    "list_presets",
    "load_image",
    "predict_files",
]


def __getattr__(name: str) -> _Any:
    """Training is imported when it is asked for: most programs predict."""
    if name not in ("TrainConfig", "fit"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchdpt import training

    return getattr(training, name)
