"""The command torchdpt, as a user calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchdpt import DPTConfig, DPTModel, Prediction, cli, list_presets

CONFIG = DPTConfig(
    image_size=64,
    width=32,
    depth=4,
    heads=2,
    mlp_width=64,
    taps=(0, 1, 2, 3),
    channels=(8, 8, 16, 16),
    features=16,
)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    DPTModel(CONFIG).save_pretrained(folder)
    return str(folder)


def write_photograph(path: Path, height: int = 40, width: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- predict ---


def test_predict_writes_what_the_model_predicts(checkpoint: str, tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.png")
    out = tmp_path / "out"
    formats = "color,png16,npz,npy,pfm"
    assert (
        cli.main(["predict", str(tmp_path / "a.png"), "--model", checkpoint, "--out", str(out), "--format", formats])
        == 0
    )
    assert files(out) == {"a_color.png", "a_depth.png", "a.npz", "a.npy", "a.pfm"}
    want = DPTModel.from_pretrained(checkpoint).predict(tmp_path / "a.png").depth
    assert np.array_equal(np.load(out / "a.npy"), want)
    assert np.abs(Prediction.load(out / "a_depth.png").depth - want).max() <= np.ptp(want) / 65534


def test_names_never_collide(checkpoint: str, tmp_path: Path) -> None:
    for name in ("in/a.png", "in/x/a.png", "in/y/a.png", "in/y/a.bmp", "in/b.JPG"):
        write_photograph(tmp_path / name)
    (tmp_path / "in/notes.txt").write_text("no image")
    out = tmp_path / "in" / "out"  # below the images: its pictures are no input of the next run
    arguments = ["predict", str(tmp_path / "in"), str(tmp_path / "in/a.png"), "--model", checkpoint, "--out", str(out)]
    want = {"a.npy", "x/a.npy", "y/a_png.npy", "y/a_bmp.npy", "b.npy"}
    for _ in range(2):
        assert cli.main([*arguments, "--format", "npy"]) == 0
        assert files(out) == want


def test_globs(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.png", "2.png", "3.bmp"):
        write_photograph(tmp_path / name)
    out = tmp_path / "out"
    assert cli.main(["predict", f"{tmp_path}/*.png", "--model", checkpoint, "--out", str(out), "--format", "npy"]) == 0
    assert files(out) == {"1.npy", "2.npy"}
    assert cli.main(["predict", f"{tmp_path}/*.tif", "--model", checkpoint]) == 2
    assert f"{tmp_path}/*.tif: matches no file" in capsys.readouterr().err


def test_bad_files_are_reported_and_the_others_finished(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = {f"{i:03}.png" for i in range(5, 200, 20)}
    for i in range(200):
        name = f"{i:03}.png"
        if name in bad:
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(b"\x89PNG\r\n\x1a\nbroken")
        else:
            write_photograph(tmp_path / "in" / name, 32, 48)
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "in"), "--model", checkpoint, "--out", str(out), "--format", "npy"]
    assert cli.main(arguments) == 1
    message = capsys.readouterr().err
    assert "190 of 200 images" in message
    assert "10 failed:" in message
    assert all(f"{tmp_path}/in/{name}: " in message for name in bad)
    want = {f"{i:03}.npy" for i in range(200)} - {name.replace("png", "npy") for name in bad}
    assert files(out) == want
    # Interrupted before the last 90, and resumed.
    before = {name: (out / name).read_bytes() for name in want}
    gone = sorted(want)[100:]
    for name in gone:
        (out / name).unlink()
    kept = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert cli.main([*arguments, "--resume"]) == 1
    assert "100 of 200 are there already" in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    assert all((out / name).stat().st_mtime_ns == time_ for name, time_ in kept.items())


def test_interrupted_run_leaves_whole_files_and_says_how_to_go_on(checkpoint: str, tmp_path: Path) -> None:
    for i in range(300):
        write_photograph(tmp_path / "in" / f"{i}.png", 200, 300)
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "in"), "--model", checkpoint, "--out", str(out), "--batch-size", "1"]
    command = [sys.executable, "-m", "torchdpt.cli", *arguments, "--format", "npy"]
    # A shell's background jobs, and so their children, are deaf to SIGINT.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("[0-9]*.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command with --resume goes on" in message
    assert 0 < len(files(out)) < 300
    assert all(np.load(out / name).shape == (200, 300) for name in files(out))  # also: no temporary file


def test_full_disk_is_an_error_of_the_file(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photograph(tmp_path / "a.png")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    assert cli.main(["predict", str(tmp_path / "a.png"), "--model", checkpoint, "--out", str(out)]) == 1
    assert "a.png: [Errno 28] No space left on device" in capsys.readouterr().err
    assert files(out) == set()


def test_json_lines(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photograph(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    out = tmp_path / "out"
    assert (
        cli.main(["predict", str(tmp_path), "--model", checkpoint, "--out", str(out), "--format", "npz", "--json"]) == 1
    )
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good == {
        "image": f"{tmp_path}/a.png",
        "written": [f"{out}/a.npz"],
        "kind": "relative_inverse_depth",
        "unit": None,
    }
    assert bad["image"] == f"{tmp_path}/b.png"
    assert "not an image" in bad["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{folder}", "--model", "dpt_tiny"], "no images in this folder (wanted files ending in"),
        (["predict", "a.png", "--model", "dpt_tiny", "--format", "exr"], "--format must be a comma-separated list of"),
        (
            ["predict", "a.png", "--model", "dpt_tiny", "--batch-size", "0"],
            "batch_size must be an integer of at least 1, got 0",
        ),
        (
            ["predict", "a.png", "--model", "dpt_tiny", "--device", "quantum"],
            "--device must be cpu, cuda, cuda:1, ..., got 'quantum'",
        ),
        (["predict", "a.png", "--model", "{folder}"], "has no model.safetensors; pass the folder"),
        (["export", "dpt_tiny", "m.h5"], "path must end in .pt2 or .onnx"),
        (["bench", "dpt_tiny", "--image", "missing.jpg"], "missing.jpg"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_unknown_model_in_a_fresh_process() -> None:
    # What looks like a hub id, where no network is; in a process that has imported nothing of the hub's.
    command = [sys.executable, "-m", "torchdpt.cli", "info", "some/where"]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 2
    assert "the hub could not be reached for a model of that name" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["100x", "0", "1x2x3", "wide", "-5"])
def test_bad_sizes_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", "a.png", "--model", "dpt_tiny", f"--input-size={text}"])
    assert f"wanted pixels, N or HEIGHTxWIDTH, got '{text}'" in capsys.readouterr().err


# --- the other commands ---


def test_info(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", checkpoint, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["parameters"] == sum(p.numel() for p in DPTModel(CONFIG).parameters())
    assert values["network input of a 640 x 480 photograph"] == "96 x 64"
    assert values["what it is"] == "a checkpoint in the layout of torchdpt"
    assert values["ignored"] == "none"
    assert values["preprocessing"]["multiple_of"] == 32
    assert cli.main(["info", checkpoint]) == 0
    assert "multiply-additions" in capsys.readouterr().out
    assert cli.main(["info", "dpt_tiny"]) == 0
    assert "a preset: the description of a network, without weights" in capsys.readouterr().out


def test_info_names_what_a_file_stores_and_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = DPTModel(CONFIG.replace(head_features=32)).save_pretrained(tmp_path, layout="transformers")
    assert cli.main(["info", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["what it is"] == "a checkpoint in the layout of transformers"
    assert values["ignored"] == sorted(zeros)
    assert values["ignored parameters"] == 2 * 32 + 2 * (9 * 16 * 16 + 16)


def test_hub_options_reach_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models--someone--depth/snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    DPTModel(CONFIG).save_pretrained(folder)
    (tmp_path / "models--someone--depth/refs").mkdir()
    (tmp_path / "models--someone--depth/refs/v2").write_text("0" * 40)
    where = ["--cache-dir", str(tmp_path), "--local-files-only"]
    assert cli.main(["info", "someone/depth", "--revision", "v2", *where]) == 0
    assert str(folder) in capsys.readouterr().out
    assert cli.main(["convert", "someone/depth", str(tmp_path / "out"), "--revision", "v2", *where]) == 0
    assert cli.main(["info", "someone/depth", *where]) == 2  # its main branch is not there
    assert "is not whole in the hub's cache" in capsys.readouterr().err


def test_multiply_additions_are_those_of_the_paper(capsys: pytest.CaptureFixture[str]) -> None:
    config = DPTConfig.preset("dpt_base")
    tokens, width = 577, 768
    encoder = 12 * (12 * tokens * width**2 + 2 * tokens**2 * width) + 576 * 768 * width
    counted = cli.multiply_adds(config, 384, 384)
    assert encoder < counted
    # The decoder, layer by layer: kernel area x channels in x channels out x pixels.
    levels = [96, 48, 24, 12]
    read = 4 * 576 * 2 * width * width
    project = sum(576 * width * c for c in config.channels)
    resample = 96 * 96 * 96 * 96 + 192 * 192 * 48 * 48 + 9 * 768 * 768 * 12 * 12
    inputs = sum(9 * c * 256 * s * s for c, s in zip(config.channels, levels, strict=True))
    units = sum(9 * 256 * 256 * s * s * 2 * (1 if s == 12 else 2) for s in levels)
    out = sum(256 * 256 * s * s for s in levels)
    head = 9 * 256 * 128 * 192**2 + 9 * 128 * 32 * 384**2 + 32 * 384**2
    assert counted == encoder + read + project + resample + inputs + units + out + head


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == list_presets()
    assert rows["dpt_large"]["parameters"] == 341_848_257
    assert cli.main(["models"]) == 0
    assert "341.8 M" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["runs with torch"] == torch.__version__
    assert values["problems"] == "none"


def test_convert_and_export(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", checkpoint, str(tmp_path / "hf"), "--layout", "transformers"]) == 0
    assert "written as zeros" in capsys.readouterr().err
    assert cli.main(["convert", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    want, got = (DPTModel.from_pretrained(path) for path in (checkpoint, tmp_path / "back"))
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), want.parameters(), strict=True))
    assert got.processor == want.processor
    assert cli.main(["export", checkpoint, str(tmp_path / "m.pt2"), "--size", "64x96", "--static"]) == 0
    program = torch.export.load(tmp_path / "m.pt2").module()
    images = torch.rand(1, 3, 64, 96)
    assert (program(images)["depth"] - want(images).depth).abs().max() <= 1e-5


def test_bench_reports_each_stage(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", checkpoint, "--runs", "2", "--warm-up", "0", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {
        f"{name} (ms, median)" for name in ("decode", "prepare", "network", "resize and write", "total")
    } < values.keys()


def test_help_has_an_example_for_each_command() -> None:
    parser = cli.build_parser()
    (commands,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    assert set(commands) == {"predict", "info", "convert", "export", "models", "doctor", "bench"}
    for name, command in commands.items():
        assert f"example: torchdpt {name}" in command.format_help()


def test_completion_is_printed() -> None:
    command = [sys.executable, "-m", "torchdpt.cli", "--print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--input-size" in done.stdout
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
