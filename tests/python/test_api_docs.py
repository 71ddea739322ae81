"""docs/api.md says what the code says, and everything public has a docstring."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
API = runpy.run_path(str(DOCS / "api.py"))


def test_api_md_is_what_its_script_writes() -> None:
    assert (DOCS / "api.md").read_text() == API["render"](), "docs/api.md is out of date; run: python docs/api.py"


def test_everything_public_has_a_docstring() -> None:
    documented = {name: value for name, value in API["public"]().items() if callable(value)}
    for name, value in list(documented.items()):
        if inspect.isclass(value):
            documented |= {f"{name}.{member}": what for member, what in API["members"](value)}
    assert {"DPTModel.predict", "DPTModel.from_pretrained", "Encoder.forward", "Prediction.valid"} <= documented.keys()
    assert {"metrics.DepthMetrics.update", "metrics.WHDR.merge", "protocols.get"} <= documented.keys()
    # Named tuples and dataclasses without one are given their signature: "Name(field, ...)".
    starts = {name: f"{name.rpartition('.')[2]}(" for name in documented}
    missing = [name for name, start in starts.items() if (documented[name].__doc__ or start).startswith(start)]
    assert missing == [], "these need docstrings"


def test_markdown_keeps_sections_and_items_apart() -> None:
    doc = """Do it.

    Args:
        size: (height, width), as in
            depth = offset
            + scale * value.
        name: Whose.

    Returns:
        One thing, told
        on two lines.
    """
    expected = ["Do it.", "", "**Args**", "", "- `size`: (height, width), as in depth = offset + scale * value."]
    expected += ["- `name`: Whose.", "", "**Returns**", "", "- One thing, told on two lines."]
    assert API["markdown"](doc).splitlines() == expected


def test_no_wrapped_line_begins_as_a_list_would() -> None:
    lines = API["wrap"]("a + b - c 1. " * 60, "- ").splitlines()
    assert len(lines) > 5
    assert all(len(line) <= 120 and line[:2] == "  " and line[2] in "abc" for line in lines[1:])
