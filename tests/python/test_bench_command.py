"""The command `torchdpt bench`."""

from __future__ import annotations

import json
import statistics

import pytest

from torchdpt import DPTConfig, DPTModel, cli, cli_bench, list_presets
from torchdpt_command import main


def test_bench_reports_mean_and_median_of_each_stage(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = {name: [1.0 + i, 2.0 + i, 9.0 + i] for i, name in enumerate(cli_bench.STAGES)}
    measured: list[tuple[int, ...]] = []
    time_stages = cli_bench.time_stages

    def timed(model: DPTModel, data: bytes, **options: object) -> dict[str, list[float]]:
        model.register_forward_pre_hook(lambda _, images: measured.append(tuple(images[0].shape)))
        taken = time_stages(model, data, **options)
        assert [len(values) for values in taken.values()] == [3] * 4
        assert min(min(values) for values in taken.values()) > 0
        return dict(fixed)

    monkeypatch.setattr(cli_bench, "time_stages", timed)
    assert main(["bench", checkpoint, "--runs", "3", "--warm-up", "2", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert measured == [(1, 3, 64, 64)] * 5
    assert values["image"] == values["network input"] == "64 x 64"
    for i, name in enumerate(cli_bench.STAGES):
        assert values[f"{name} (ms)"] == {"mean": 4.0 + i, "median": 2.0 + i}
    assert values["total (ms)"] == {"mean": 22.0, "median": 14.0}
    assert values["all but the network (% of the total)"] == 72.7
    assert main(["bench", checkpoint, "--runs", "3", "--warm-up", "0"]) == 0
    shown = capsys.readouterr()
    assert "network (ms)                          mean 6.0, median 4.0\n" in shown.out
    assert shown.err == ""  # no terminal, no bar


def test_bench_shows_progress_on_a_terminal(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["bench", checkpoint, "--runs", "2", "--warm-up", "1"]) == 0
    assert "3/3" in capsys.readouterr().err
    assert main(["bench", checkpoint, "--runs", "2", "--warm-up", "1", "--json"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("preset", [name for name in list_presets() if DPTConfig.preset(name).depth_head])
def test_bench_of_published_depth_has_the_input_of_the_paper(
    preset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def untimed(model: DPTModel, data: bytes, **_: object) -> dict[str, list[float]]:
        return {name: [1.0] for name in cli_bench.STAGES}

    monkeypatch.setattr(cli, "load_model", lambda *_: DPTModel(preset, device="meta"))
    monkeypatch.setattr(cli_bench, "time_stages", untimed)
    assert main(["bench", preset, "--json"]) == 0
    own = {"dpt_hybrid_nyu": "640 x 480", "dpt_hybrid_kitti": "1216 x 352"}
    assert json.loads(capsys.readouterr().out)["network input"] == own.get(preset, "384 x 384")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bench_of_a_frozen_network_shows_its_parts(
    checkpoint: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", checkpoint, "--frozen", "--dtype", dtype, "--runs", "3", "--warm-up", "1", "--json"]
    assert main(arguments) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["device"] == "cpu, frozen"
    assert values["dtype"] == dtype
    medians = {name: value["median"] for name, value in values.items() if name.endswith("(ms)")}
    parts = ["patch embedding", "attention", "MLP", "reassemble", "fusion", "head"]
    assert list(medians) == [
        *(f"{name} (ms)" for name in cli_bench.STAGES),
        *(f"network: {part} (ms)" for part in parts),
        "total (ms)",
    ]
    total = statistics.fmean(values[f"{name} (ms)"]["mean"] for name in cli_bench.STAGES) * len(cli_bench.STAGES)
    assert values["total (ms)"]["mean"] == pytest.approx(total, abs=0.01)  # parts are not counted twice


def test_bench_refuses_what_cannot_be_frozen(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", checkpoint, "--frozen", "--dtype", "float16"]) == 2
    assert "or float8_e4m3fn on a CUDA device, got Half on cpu" in capsys.readouterr().err
