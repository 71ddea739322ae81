"""What benchmarks/ computes, apart from times."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from networks import FAMILY, VIT, make_model

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import report
from rewritten import Rewritten, executed_flop

REWRITES = ("fold_project", "fold_level_project", "phases", "products_first", "winograd")
ONE_HEAD = {name: config for name, config in FAMILY.items() if not (config.depth_head and config.num_classes)}
NETWORKS = ONE_HEAD | {
    "vit, tokens added": VIT.replace(readout="add", distilled=True, metric=True, depth_shift=0.1),
    "vit, in panels": VIT.replace(width=256, mlp_width=512),
}


@pytest.mark.parametrize("without", [(), ("products_first",), REWRITES])
@pytest.mark.parametrize("name", NETWORKS)
def test_rewritten_network_is_the_frozen_one(name: str, without: tuple[str, ...], tmp_path: Path) -> None:
    config = NETWORKS[name]
    frozen = make_model(config).freeze(without=without)
    frozen.save(tmp_path / "model.frozen")
    images = torch.randn(2, 3, 96, 160)
    with torch.no_grad():
        got = Rewritten(tmp_path / "model.frozen")(images)
    output = frozen(images)
    want = output.depth if config.depth_head else output.logits
    assert want is not None
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 2e-5 * (want.max() - want.min())  # both float32


def flop_by_hand(winograd: bool) -> int:
    """Of VIT without rewrites, except perhaps Winograd, on two images of 64 x 96: 4 x 6 patches, width 32."""
    patches, d, c = 24, 32, 16
    tokens = 1 + patches
    total = patches * 768 * d
    total += 4 * (tokens * d * 3 * d + 2 * tokens * tokens * d + tokens * d * d + 2 * tokens * d * 64)
    total += 4 * (patches * d * d + d * d)  # readout
    total += patches * d * (8 + 8 + 16 + 16)  # projections
    total += patches * (16 * 8 * 8 + 4 * 8 * 8)  # transposed convolutions
    total += 2 * 3 * 9 * 16 * 16  # convolution of stride 2

    def convolution(height: int, width: int, inputs: int, outputs: int) -> int:
        if winograd:
            return 36 * -(-height // 4) * -(-width // 4) * inputs * outputs
        return 9 * height * width * inputs * outputs

    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    for (height, width), channels, units in zip(sizes, (8, 8, 16, 16), (2, 2, 2, 1), strict=True):
        total += convolution(height, width, channels, c)
        total += 2 * units * convolution(height, width, c, c)
        total += height * width * c * c  # projection of the fusion
    total += convolution(32, 48, 16, 8) + convolution(64, 96, 8, 8) + 64 * 96 * 8
    return 2 * 2 * total


@pytest.mark.parametrize("winograd", [False, True])
def test_executed_products_are_those_counted_by_hand(winograd: bool, tmp_path: Path) -> None:
    without = [name for name in REWRITES if not (winograd and name == "winograd")]
    make_model(VIT).freeze(without=without).save(tmp_path / "model.frozen")
    assert executed_flop(tmp_path / "model.frozen", 2, 64, 96) == flop_by_hand(winograd)


# --- the page ---


def test_page_says_what_was_measured() -> None:
    assert report.PAGE.read_text() == report.page(), "docs/runtime.md is out of date; run: python benchmarks/report.py"


def test_tables_of_a_record() -> None:
    record = {"model": "dpt_base", "dtype": "float32", "size": 384, "batch": 1, "threads": 2, "amx": False}
    times = {"ours": 100, "ours without winograd": 120, "A": 150, "B": 130, "B, our rewrites": 90}
    rows = [
        {"case": name, "median_ms": time, "quartiles_ms": [time - 1, time + 2], "error": "1.0e-6"}
        for name, time in times.items()
    ]
    rows[0]["fraction_of_peak"] = 0.844
    expected = "| dpt_base | float32 | no | 384 | 1 | 2 | 100 (99 to 102) | B 130 (129 to 132) | 1.30 | 1.0e-6 | 84 % |"
    assert report.summary([record | {"rows": rows}]).splitlines()[2:] == [expected]
    lines = report.every_case(record | {"rows": rows}).splitlines()
    assert lines[0] == "dpt_base, float32, 384 x 384, batch 1, 2 threads:"
    assert lines[5] == "| ours without winograd | 120 (119 to 122) | 1.20 | 1.0e-6 |  |  |"


def test_curves_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"case": case, "batch": batch, "size": size, "threads": threads, "median_ms": 10.0 * batch * size / threads}
        for case in ("ours", "OpenVINO")
        for batch, size in ((1, 256), (1, 384), (2, 384))
        for threads in (1, 2)
    ]
    rows.append(rows[-1] | {"case": "ours, image by image"})
    monkeypatch.setattr(report, "CURVES", tmp_path / "curves.svg")
    report.draw({"model": "dpt_base", "dtype": "float32", "cpu": "a processor", "rows": rows})
    drawn = (tmp_path / "curves.svg").read_text()
    assert all(f"<!-- {label} -->" in drawn for label in ("ours, 1 thread", "ours, 2 threads", "OpenVINO, 2 threads"))
    assert "image by image" not in drawn
