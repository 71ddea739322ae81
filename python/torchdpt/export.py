"""Export to torch.export programs and ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchdpt.model import DPTModel


class _Named(nn.Module):
    """The outputs that a network has, by name: an exported graph has no None."""

    def __init__(self, model: DPTModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        output = self.model(images)._asdict()
        return {name: value for name, value in output.items() if value is not None}


def _decompositions() -> dict[Any, Any]:
    """To core ATen, but for what every runtime has a better form of than its parts."""
    table = torch.export.default_decompositions()
    for whole in (torch.ops.aten.linear.default, torch.ops.aten.scaled_dot_product_attention.default):
        table.pop(whole)  # type: ignore[no-untyped-call]
    return table


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch.onnx warns that torchvision is not installed, which nothing here needs, and of how torch uses itself."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")

    def keep(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()

    log.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        log.removeFilter(keep)


def export(
    model: DPTModel,
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    dynamic: bool = True,
) -> None:
    """Write a model as a graph of plain ATen or ONNX operators, which needs torchdpt no more.

    Args:
        model: The model; it is exported as in eval mode.
        path: `*.pt2` (`torch.export.load`) or `*.onnx` (needs the packages onnx and onnxscript). The input is `images`
            [B, 3, H, W], the outputs are those of DPTOutput that the model has.
        size: (height, width) to export for. Default: the config's native size.
        dynamic: Whether batch, height and width (in multiples of `config.size_multiple`) stay free; sides are then
            larger than the coarsest stride. Otherwise the batch is 1.

    An ONNX model above 1.5 GB keeps its weights in a second file, `*.onnx.data`, which belongs beside it.

    A .pt2 program refuses sides that are no such multiples; ONNX has no such check, and would leave out
    the rest of the image.

    Raises:
        ValueError: if the path has another ending, or `size` is no multiple of the patch size or too small for
            `dynamic`.
    """
    path = Path(path)
    if path.suffix not in {".pt2", ".onnx"}:
        raise ValueError(f"path must end in .pt2 or .onnx, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {str(path.parent)!r}; create it first")
    dtype = next(model.parameters()).dtype
    if path.suffix == ".onnx" and dtype not in (torch.float32, torch.float16):
        raise ValueError(
            f"ONNX runtimes have no {dtype} form of these layers; convert with model.float() or model.half()"
        )
    multiple = model.config.size_multiple
    height, width = size or (model.config.image_size, model.config.image_size)
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise ValueError(f"size must be multiples of {multiple}, got {height} x {width}")

    # torch.export fixes a side that is 1 anywhere in the network.
    smallest = max(multiple, model.config.strides[-1]) + multiple
    if dynamic and min(height, width) < smallest:
        raise ValueError(
            f"size must be at least {smallest} x {smallest} with dynamic=True, got {height} x {width}; "
            "pass a larger size or dynamic=False"
        )

    tensor = next(model.parameters())
    images = torch.zeros(2 if dynamic else 1, 3, height, width, dtype=tensor.dtype, device=tensor.device)
    shapes: dict[str, Any] | None = None
    if dynamic:
        rows, columns = (multiple * torch.export.Dim(name, min=smallest // multiple) for name in ("rows", "columns"))
        shapes = {"images": {0: torch.export.Dim("batch"), 2: rows, 3: columns}}
    with torch.no_grad(), model._eval_mode(), _quietly():
        program = torch.export.export(_Named(model).eval(), (images,), dynamic_shapes=shapes, strict=False)
        program = program.run_decompositions(_decompositions())

    # Written beside the goal, then renamed: a reader never sees half a file.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".dpt-export-") as folder:
        temporary = Path(folder) / path.name
        if path.suffix == ".pt2":
            buffer = io.BytesIO()  # to a path, torch aborts the process when the disk is full
            torch.export.save(program, buffer)
            temporary.write_bytes(buffer.getbuffer())
        else:
            names = program.call_spec.out_spec.context  # the keys of the dict that _Named returns
            with _quietly():
                onnx = torch.onnx.export(
                    program, dynamo=True, input_names=["images"], output_names=names, verbose=False
                )
            if onnx is None:
                raise RuntimeError("torch.onnx.export returned no program")
            onnx.save(temporary)  # in two files where one would be too large
        # The graph last: it never names weights that are not there.
        for written in sorted(Path(folder).iterdir(), key=lambda file: file == temporary):
            written.replace(path.parent / written.name)
