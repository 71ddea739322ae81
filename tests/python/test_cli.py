"""The command torchdpt, as a user calls it. Which results it writes where is in test_results.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CONFIG, files, write_photograph

import torchdpt_command
from torchdpt import DPTConfig, DPTModel, FileResult, Prediction, cli, list_presets
from torchdpt.classes import ADE20K
from torchdpt_command import main

# --- predict ---


def test_predict_writes_what_the_model_predicts(checkpoint: str, tmp_path: Path) -> None:
    write_photograph(tmp_path / "a.png")
    out = tmp_path / "out"
    formats = "color,png16,npz,npy,pfm"
    assert (
        main(["predict", str(tmp_path / "a.png"), "--model", checkpoint, "--out", str(out), "--format", formats]) == 0
    )
    assert files(out) == {"a_color.png", "a_depth.png", "a.npz", "a.npy", "a.pfm"}
    want = DPTModel.from_pretrained(checkpoint).predict(tmp_path / "a.png").depth
    assert np.array_equal(np.load(out / "a.npy"), want)
    assert np.abs(Prediction.load(out / "a_depth.png").depth - want).max() <= np.ptp(want) / 65534


def test_frozen_model_predicts(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photograph(tmp_path / "a.png")
    frozen = DPTModel.from_pretrained(checkpoint, device="cpu").freeze()
    frozen.save(tmp_path / "model.frozen")
    want = frozen.predict(tmp_path / "a.png").depth
    for name, model in (("one", [checkpoint, "--frozen"]), ("other", [str(tmp_path / "model.frozen")])):
        out = tmp_path / name
        options = ["--out", str(out), "--format", "npy"]
        assert main(["predict", str(tmp_path / "a.png"), "--model", *model, *options]) == 0
        assert np.array_equal(np.load(out / "a.npy"), want)
    assert main(["export", str(tmp_path / "model.frozen"), str(tmp_path / "model.pt2")]) == 2
    assert "is a frozen model, whose tensors are folded to predict alone" in capsys.readouterr().err


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
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert "190 of 200 images" in message
    assert "10 failed:" in message
    assert all(f"{tmp_path}/in/{name}: " in message for name in bad)
    want = {f"{i:03}.npy" for i in range(200)} - {name.replace("png", "npy") for name in bad}
    assert files(out) == want


def test_closed_output_stops_nothing(checkpoint: str, tmp_path: Path) -> None:
    for i in range(12):
        write_photograph(tmp_path / "in" / f"{i}.png")
    command = [sys.executable, "-m", "torchdpt_command", "predict", str(tmp_path / "in"), "--model", checkpoint]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out"), "--format", "npy", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    message = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert message.count("nobody reads the output any more; going on without it") == 1
    assert len(files(tmp_path / "out")) == 12


def test_help_and_version_do_not_import_torch() -> None:
    code = "import sys, torchdpt_command as c\ntry: c.main([{!r}])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    for option in ("--help", "--version", "--print-completion=bash"):
        assert subprocess.run([sys.executable, "-c", code.format(option)], stdout=subprocess.DEVNULL).returncode == 0


def test_interrupt_while_torch_is_imported_is_silent() -> None:
    code = (
        "import sys, builtins, torchdpt_command as c\noriginal = builtins.__import__\n"
        "def stop(name, *rest):\n  if name == 'torch': raise KeyboardInterrupt\n  return original(name, *rest)\n"
        "builtins.__import__ = stop\nsys.exit(c.main(['models']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_doctor_reports_a_torch_that_does_not_fit(option: list[str]) -> None:
    code = "import sys, torch, torchdpt_command; torch.__version__ = '2.99.1'; "
    code += f"sys.exit(torchdpt_command.main(['doctor', *{option}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "and this is torch 2.99.1: rebuild it" in done.stdout
    assert done.stderr == ""


def test_json_lines(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photograph(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("text")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path), "--model", checkpoint, "--out", str(out), "--format", "npz", "--json"]) == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert good == {
        "image": f"{tmp_path}/a.png",
        "written": [f"{out}/a.npz"],
        "kind": "relative_inverse_depth",
        "unit": None,
    }
    assert bad["image"] == f"{tmp_path}/b.png"
    assert "not an image" in bad["error"]


class Stub:
    """A model of which the command needs the config alone."""

    def __init__(self, config: DPTConfig) -> None:
        self.config = config


@pytest.mark.parametrize(
    ("depth", "classes", "names"),
    [
        (True, 0, {"a_color.png", "a_depth.png"}),
        (False, 150, {"a_overlay.png", "a_labels.png"}),
        (True, 150, {"a_color.png", "a_depth.png", "a_overlay.png", "a_labels.png"}),
    ],
)
def test_default_formats_are_of_what_the_model_predicts(
    depth: bool,
    classes: int,
    names: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = np.array([[0, 0, 2, 255], [0, 1, 2, 255]])
    prediction = Prediction(
        np.ones((2, 4), np.float32) if depth else None,
        image=np.zeros((2, 4, 3), np.uint8),
        labels=labels if classes else None,
        classes=ADE20K if classes else None,
    )
    stub = Stub(CONFIG.replace(depth_head=depth, num_classes=classes))
    monkeypatch.setattr(cli, "load_model", lambda *_: stub)
    monkeypatch.setattr("torchdpt.predict_files", lambda _, paths, **__: [FileResult(str(paths[0]), prediction, None)])
    write_photograph(tmp_path / "a.png")
    out = tmp_path / "out"
    arguments = ["predict", str(tmp_path / "a.png"), "--model", "stub", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    assert files(out) == names
    record = json.loads(capsys.readouterr().out)
    assert record["kind"] == ("relative_inverse_depth" if depth else None)
    shares = [("wall", 0.375), ("sky", 0.25), ("building", 0.125)]
    want = [{"name": name, "share": share} for name, share in shares]
    assert record.get("labels") == (want if classes else None)
    assert main([*arguments, "--resume"]) == 0
    assert "1 of 1 are there already" in capsys.readouterr().err
    if not (depth and classes):
        format, there = ("labels", "depth") if depth else ("pfm", "classes")
        assert main([*arguments, "--format", format]) == 2
        error = capsys.readouterr().err
        assert f"--format: this model predicts {there} alone; wanted of " in error
        assert f"got '{format}'" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{folder}", "--model", "dpt_tiny"], "no images in this folder (wanted files ending in"),
        (["predict", "a.png", "--model", "dpt_tiny", "--format", "exr"], "--format must be a comma-separated list of"),
        (
            ["predict", "a.png", "--model", "dpt_tiny", "--device", "quantum"],
            "--device must be cpu, cuda, cuda:1, ..., got 'quantum'",
        ),
        (["predict", "a.png", "--model", "{folder}"], "has no model.safetensors; pass the folder"),
        (["export", "dpt_tiny", "m.h5"], "path must end in .pt2 or .onnx"),
        (["bench", "dpt_tiny", "--image", "missing.jpg"], "missing.jpg"),
        (["bench", "dpt_tiny", "--image", "{folder}/text.png"], "{folder}/text.png: not an image"),
        (["predict", "a.png", "--model", "dpt_tny"], "no preset of that name; did you mean dpt_tiny"),
        (["info", "qqq"], "no preset of that name; `torchdpt models` lists them"),
        *(
            (["predict", "a.png", "--model", "dpt_tiny", "--device", name], "--device must be cpu, cuda, cuda:1, ...")
            for name in ("mps", "xpu", "meta")
        ),
        (["predict", "a.png", "--model", "dpt_tiny", "--out", "{folder}/text.png"], "results cannot be written there"),
        (["predict", "a.png", "--model", "dpt_tiny", "--out", "{folder}/text.png/x"], "(Not a directory)"),
        (["predict", "a.png", "--model", "dpt_tiny", "--input-size", "100000"], "pass a smaller input_size"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "text.png" in str(arguments):
        (tmp_path / "text.png").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message.format(folder=tmp_path) in error
    assert "Traceback" not in error


def test_unknown_model_in_a_fresh_process() -> None:
    # What looks like a hub id, where no network is; in a process that has imported nothing of the hub's.
    command = [sys.executable, "-m", "torchdpt_command", "info", "some/where"]
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 2
    assert "the hub could not be reached for a model of that name" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--runs=0", "--runs=-1", "--warm-up=-1", "--runs=x"])
def test_bad_counts_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "dpt_tiny", option])
    assert "wanted a whole number" in capsys.readouterr().err


def test_missing_file_is_named_once(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", f"{tmp_path}/a.png", "--model", checkpoint, "--out", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"  {tmp_path}/a.png: No such file or directory"


@pytest.mark.parametrize("text", ["100x", "0", "1x2x3", "wide", "-5"])
def test_bad_sizes_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "a.png", "--model", "dpt_tiny", f"--input-size={text}"])
    assert f"wanted pixels, N or HEIGHTxWIDTH, got '{text}'" in capsys.readouterr().err


# --- the other commands ---


def test_info(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", checkpoint, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["parameters"] == sum(p.numel() for p in DPTModel(CONFIG).parameters())
    assert values["network input of a 640 x 480 photograph"] == "96 x 64"
    assert values["what it is"] == "a checkpoint in the layout of torchdpt"
    assert values["ignored"] == "none"
    assert values["preprocessing"]["multiple_of"] == 32
    assert main(["info", checkpoint]) == 0
    assert "multiply-additions" in capsys.readouterr().out
    assert main(["info", "dpt_tiny"]) == 0
    assert "a preset: the description of a network, without weights" in capsys.readouterr().out


def test_info_names_what_a_file_stores_and_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = DPTModel(CONFIG).save_pretrained(tmp_path, layout="transformers")
    assert main(["info", str(tmp_path), "--json"]) == 0
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
    assert main(["info", "someone/depth", "--revision", "v2", *where]) == 0
    assert str(folder) in capsys.readouterr().out
    assert main(["convert", "someone/depth", str(tmp_path / "out"), "--revision", "v2", *where]) == 0
    assert main(["info", "someone/depth", *where]) == 2  # its main branch is not there
    assert "is not whole in the hub's cache" in capsys.readouterr().err


def test_multiply_additions_are_those_of_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    config = DPTConfig.preset("dpt_base")
    tokens, width = 577, 768
    encoder = 12 * (12 * tokens * width**2 + 2 * tokens**2 * width) + 576 * 768 * width
    counted = cli.multiply_adds(config, 384, 384)
    assert encoder < counted
    # The decoder, layer by layer: kernel area x channels in x channels out x pixels.
    levels = [96, 48, 24, 12]
    read = 4 * (576 + 1) * width * width  # patches and readout token apart: half of what the paper's layer takes
    project = sum(576 * width * c for c in config.channels)
    resample = 96 * 96 * 96 * 96 + 192 * 192 * 48 * 48 + 9 * 768 * 768 * 12 * 12
    inputs = sum(9 * c * 256 * s * s for c, s in zip(config.channels, levels, strict=True))
    units = sum(9 * 256 * 256 * s * s * 2 * (1 if s == 12 else 2) for s in levels)
    out = sum(256 * 256 * s * s for s in levels)
    head = 9 * 256 * 128 * 192**2 + 9 * 128 * 32 * 384**2 + 32 * 384**2
    assert counted == encoder + read + project + resample + inputs + units + out + head


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == list_presets()
    assert rows["dpt_large"]["parameters"] == 341_848_257
    assert main(["models"]) == 0
    assert "341.8 M" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    unseen = torch.version.cuda is not None and not torch.cuda.is_available()
    assert main(["doctor", "--json"]) == int(unseen)
    values = json.loads(capsys.readouterr().out)
    assert values["runs with torch"] == torch.__version__
    assert ("sees no GPU" in str(values["problems"])) if unseen else values["problems"] == "none"


def test_convert_and_export(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", checkpoint, str(tmp_path / "hf"), "--layout", "transformers"]) == 0
    assert "written as zeros" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    want, got = (DPTModel.from_pretrained(path) for path in (checkpoint, tmp_path / "back"))
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), want.parameters(), strict=True))
    assert got.processor == want.processor
    assert main(["export", checkpoint, str(tmp_path / "m.pt2"), "--size", "64x96", "--static"]) == 0
    program = torch.export.load(tmp_path / "m.pt2").module()
    images = torch.rand(1, 3, 64, 96)
    assert (program(images)["depth"] - want(images).depth).abs().max() <= 1e-5


def test_help_has_an_example_for_each_command() -> None:
    parser = torchdpt_command.build_parser()
    (commands,) = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    wanted = {"predict", "train", "data", "eval", "info", "convert", "export", "models", "doctor", "bench"}
    assert set(commands) == wanted
    (of_data,) = [action.choices for action in commands.pop("data")._actions if isinstance(action.choices, dict)]
    assert set(of_data) == {"check"}
    commands |= {f"data {name}": command for name, command in of_data.items()}
    for name, command in commands.items():
        assert f"example: torchdpt {name}" in command.format_help()


def test_settings_may_stand_between_options(capsys: pytest.CaptureFixture[str]) -> None:
    args = torchdpt_command.parse(["train", "demo", "steps=1", "--allow-changes", "seed=2", "--print", "ema=null"])
    assert args.changes == ["steps=1", "seed=2", "ema=null"]
    assert args.allow_changes
    assert args.print
    for wrong in (["train", "demo", "--print", "steps"], ["train", "demo", "--steps=1"], ["models", "steps=1"]):
        with pytest.raises(SystemExit):
            torchdpt_command.parse(wrong)
        assert f"unrecognized arguments: {wrong[-1]}" in capsys.readouterr().err


def test_completion_is_printed() -> None:
    command = [sys.executable, "-m", "torchdpt_command", "--print-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--input-size" in done.stdout
    subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)
