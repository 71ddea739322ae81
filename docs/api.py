"""Writes docs/api.md, the reference of the public Python API, from signatures and docstrings: python docs/api.py"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchdpt

# In the order of the page; what a public module offers, with its name.
GROUPS = {
    "From photographs to depth and labels": (
        "DPTModel",
        "FrozenModel",
        "predict_files",
        "FileResult",
        "Prediction",
        "PointCloud",
        "metric_fit.MetricFit",
    ),
    "Photographs": ("load_image", "ImageProcessor"),
    "Classes of segmentation": ("Classes", "ADE20K", "PASCAL_CONTEXT", "IGNORE_INDEX"),
    "Networks and their parts": ("DPTConfig", "list_presets", "DPTOutput", "Encoder", "Reassemble", "Fusion", "Head"),
    "Losses": (
        "losses.scale_and_shift_invariant",
        "losses.gradient_matching",
        "losses.silog",
        "losses.LossResult",
        "losses.segmentation",
        "losses.align",
        "losses.Alignment",
    ),
    "Data": (
        "data.Sample",
        "data.Dataset",
        "data.FolderDataset",
        "data.SceneDataset",
        "data.ADE20KDataset",
        "data.BlendedMVSDataset",
        "data.HRWSIDataset",
        "data.KITTIDataset",
        "data.KITTISelectionDataset",
        "data.NYUDataset",
        "data.NYUFramesDataset",
        "data.ReDWebDataset",
        "data.DATASETS",
        "data.open_dataset",
        "data.check_dataset",
        "data.Report",
        "data.Augmentation",
        "data.Mixture",
        "data.Draw",
        "data.batches",
        "data.Batch",
        "scenes.render",
        "scenes.RenderedScene",
        "scenes.CLASS_NAMES",
    ),
    "Training": (
        "fit",
        "TrainConfig",
        "training.DataConfig",
        "training.ModelConfig",
        "training.LossConfig",
        "training.MixingConfig",
        "training.OptimizerConfig",
        "training.TrainResult",
        "training.Trainer",
        "training.list_configs",
        "optim.gram",
        "optim.min_norm",
    ),
    "Evaluation": (
        "evaluate_dataset",
        "evaluate.Evaluator",
        "evaluate.EvaluationResult",
        "protocols.get",
        "protocols.PROTOCOLS",
        "protocols.Protocol",
        "protocols.DepthProtocol",
        "protocols.OrdinalProtocol",
        "protocols.SegmentationProtocol",
        "protocols.kb_crop",
        "protocols.more_is_better",
        "protocols.single_scale",
        "protocols.to_json",
        "metrics.DepthMetrics",
        "metrics.DepthResult",
        "metrics.WHDR",
        "metrics.WHDRResult",
        "metrics.SegmentationMetrics",
        "metrics.SegmentationResult",
        "metrics.SegmentationImage",
    ),
    "Elsewhere": ("export", "cmake_prefix_path"),
}
# What is public in these stands in their own __all__, and not in torchdpt's.
MODULES = ("data", "evaluate", "losses", "metric_fit", "metrics", "optim", "protocols", "scenes", "training")
INTRODUCTION = """\
# The Python API

What `import torchdpt` offers, written from the code by `python docs/api.py`. Shapes use the letters `B` batch, `H W`
image, `N` patch tokens, `D` token width, `C` feature channels, `K` classes. `ImageLike` is whatever
[load_image](#load_image) takes. Parameters after `*` are passed by name.
"""


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that this library defines, in the order of the code."""
    kinds = (type(members), classmethod, staticmethod, property)
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        for name, value in vars(base).items() if base.__module__.startswith("torchdpt") else ():
            if isinstance(value, kinds) and (not name.startswith("_") or name == "__call__"):
                found.setdefault(name, value)
    yield from found.items()


def type_text(annotation: Any, module: str) -> str:
    """An annotation as written; names that a module gave to types (`Path = str | ...`) are spelled out."""

    def spell_out(match: re.Match[str]) -> str:
        value = vars(sys.modules[module]).get(match[0])
        return match[0] if value is None or inspect.isclass(value) else str(value)

    written = (
        annotation.__name__ if type(annotation) is type else getattr(annotation, "__forward_arg__", str(annotation))
    )
    written = re.sub(r"<class '([\w.]+)'>", r"\1", written)
    text = re.sub(r"(?<![.\w\"'])[A-Z]\w*", spell_out, written)
    text = re.sub(r"\b(torchdpt|config|transforms|pathlib)\.(\w+\.)*", "", text)
    return text.replace("typing.", "").replace("numpy.ndarray[Any, Any]", "numpy.ndarray")


def signature(start: str, function: Any) -> str:
    """On one line, or on one for each parameter where that would be too long."""
    found, module, empty = inspect.signature(function), function.__module__, inspect.Parameter.empty
    parameters: list[str] = []
    for name, parameter in found.parameters.items():
        if parameter.kind == parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        text = f"**{name}" if parameter.kind == parameter.VAR_KEYWORD else name
        text += "" if parameter.annotation is empty else f": {type_text(parameter.annotation, module)}"
        default = repr(parameter.default)
        default = default if len(default) < 100 else f"{type(parameter.default).__name__}(...)"
        parameters.append(text if parameter.default is empty else f"{text} = {default}")
    end = "" if inspect.isclass(function) else f" -> {type_text(found.return_annotation, module)}"
    text = f"{start}({', '.join(parameters)}){end}"
    text = text if len(text) <= 100 else start + "(\n    " + ",\n    ".join(parameters) + f",\n){end}"
    return text.replace("'", '"')


def wrap(text: str, start: str = "") -> str:
    # No line may begin with what Markdown takes for the start of a list or a heading.
    glued = re.sub(r"\s+(?=[-+*#>=]|\d+[.)])", "\0", " ".join(text.split()))
    lines = textwrap.wrap(glued, 120 - len(start), break_long_words=False, break_on_hyphens=False)
    return start + f"\n{' ' * len(start)}".join(lines).replace("\0", " ")


def markdown(doc: str) -> str:
    """A docstring's paragraphs, and its Google-style sections as lists."""
    parts: list[str] = []
    for block in re.split(r"\n\n(?=\S)", inspect.cleandoc(doc)):
        title, _, body = block.partition(":\n")
        if title not in ("Args", "Attributes", "Raises", "Returns"):
            parts.append(wrap(block))
            continue
        items = [body] if title == "Returns" else re.split(r"\n(?=\S)", textwrap.dedent(body))
        items = [re.sub(r"^(\**\w+):", r"`\1`:", item) for item in items]
        parts.append("\n".join([f"**{title}**\n", *(wrap(item, "- ") for item in items)]))
    return "\n\n".join(parts)


def entry(heading: str, code: str, text: str) -> str:
    return f"{heading}\n\n```python\n{code}\n```\n\n{text}\n"


def public() -> dict[str, Any]:
    """Everything public by its name below torchdpt."""
    values = {name: getattr(torchdpt, name) for name in torchdpt.__all__}
    for module in MODULES:
        home = getattr(torchdpt, module)
        values |= {f"{module}.{name}": getattr(home, name) for name in home.__all__}
    return values


def section(name: str) -> str:
    """One public name, and below it its members."""
    value = public()[name]
    module, _, short = name.rpartition(".")
    if not callable(value):  # a constant: a comment stands in the place of a docstring
        wanted = f"torchdpt.{module}" if module else "torchdpt"
        homes = [
            home
            for name, home in sys.modules.items()
            if name in (wanted, "torchdpt.classes") or (module and name.startswith(f"{wanted}."))
        ]
        source = "".join(map(inspect.getsource, homes))
        comment = re.search(rf"((?:^# .*\n)+){short}(?:: .*)? = ", source, re.MULTILINE)
        assert comment is not None, f"torchdpt.{name} needs a comment above it"
        return entry(f"## {name}", f"{name}: {type(value).__name__}", wrap(comment[1].replace("# ", "")))
    kind = "class" if inspect.isclass(value) else "def"
    entries = [entry(f"## {name}", signature(f"{kind} {short}", value), markdown(value.__doc__ or ""))]
    for member, what in members(value) if inspect.isclass(value) else ():
        if isinstance(what, property):
            getter: Any = what.fget
            code = f"{member}: {type_text(getter.__annotations__['return'], value.__module__)}  # property"
        else:
            code = f"@{type(what).__name__}\n" if isinstance(what, classmethod | staticmethod) else ""
            code += signature(f"def {member}", getattr(what, "__func__", what))
        entries.append(entry(f"### `{short}.{member}`", code, markdown(what.__doc__ or "")))
    return "\n".join(entries)


def link(name: str) -> str:
    return f"[{name}](#{name.lower().replace('.', '')})"


def render() -> str:
    """The text of docs/api.md."""
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(public()), "GROUPS in docs/api.py must name what is in torchdpt.__all__ and MODULES"
    links = {title: ", ".join(map(link, group)) for title, group in GROUPS.items()}
    contents = "\n".join(wrap(f"{title}: {link}", "- ") for title, link in links.items())
    return "\n".join([INTRODUCTION, f"{contents}\n", *map(section, names)])


if __name__ == "__main__":
    Path(__file__).with_name("api.md").write_text(render())
