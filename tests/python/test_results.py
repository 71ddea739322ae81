"""The results of `torchdpt predict`: their names, and runs that are repeated, resumed or interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import files, write_photograph

from torchdpt import results
from torchdpt_command import main


def stems(folder: Path) -> set[str]:
    return {name.removesuffix(".npy") for name in files(folder)}


@pytest.mark.parametrize(
    ("photographs", "arguments", "want"),
    [
        (["in/a.jpg", "in/a.png", "in/a_jpg.png"], ["in"], {"a_jpg", "a_png", "a_jpg_jpg"}),
        (["in/x/a.png", "in/y/a.png", "in/y/a.bmp", "in/b.JPG"], ["in"], {"x/a", "y/a_png", "y/a_bmp", "b"}),
        (["in/x/a.png"], ["in"], {"x/a"}),
        (["in/x/a.png"], ["in/x"], {"a"}),
        (["in/x/a.png"], ["in", "in/x/a.png"], {"x/a"}),
        (["p/x/a.png", "q/x/a.png", "p/b.png", "r/c.png"], ["p", "q", "r"], {"p/x/a", "q/x/a", "p/b", "c"}),
        (["p/d/a.png", "q/d/a.png"], ["p/d", "q/d"], {"d/a_png", "d/a_png_png"}),
        (["p/a.png", "q/a.png", "q/b.png"], ["p/a.png", "q/a.png"], {"p/a", "q/a"}),
        (["p/x/a.png", "p/y/a.png", "p/y/b.bmp"], ["p/*/*.png"], {"x/a", "y/a"}),
        (["p/.a.png", "p/.b/a.png", "p/c.png"], ["p"], {"c"}),  # hidden
    ],
)
def test_names_mirror_folders_and_never_collide(
    photographs: list[str],
    arguments: list[str],
    want: set[str],
    checkpoint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in photographs:
        write_photograph(tmp_path / name)
    for _ in range(2):  # and stay
        assert main(["predict", *arguments, "--model", checkpoint, "--out", "o", "--format", "npy"]) == 0
        assert stems(tmp_path / "o") == want


def test_results_are_no_input_of_the_next_run(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photograph(tmp_path / "a.png")
    for argument in (".", "**/*.png", "."):
        assert main(["predict", argument, "--model", checkpoint, "--out", "out", "--format", "color"]) == 0
        assert files(tmp_path / "out") == {"a_color.png"}
    for argument in ("out", "out/*.png"):
        assert main(["predict", argument, "--model", checkpoint, "--out", "out"]) == 2
        assert f"{argument}: all its images are below out, the folder of the results" in capsys.readouterr().err


def test_resume_takes_only_results_of_the_same_photograph_and_settings(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("p/a.png", "q/a.png"):
        write_photograph(tmp_path / name)
    out = tmp_path / "o"

    def run(folder: str, *options: str) -> str:
        command = ["predict", folder, "--model", checkpoint, "--out", "o", "--resume", "--format"]
        assert main([*command, *(options or ["npy"])]) == 0
        return capsys.readouterr().err

    run("p")
    first = (out / "a.npy").read_bytes()
    assert "0 of 1 are there already" in run("q")
    assert files(out) == {"a.npy", "a_png.npy"}
    assert (out / "a.npy").read_bytes() == first
    for folder in ("p", "q"):
        assert "1 of 1 are there already" in run(folder)
    assert "0 of 1 are there already" in run("p", "npy", "--input-size", "96")
    assert (out / "a.npy").read_bytes() != first
    assert "0 of 1 are there already" in run("p")
    assert (out / "a.npy").read_bytes() == first
    assert "0 of 1 are there already" in run("p", "npz")
    assert "1 of 1 are there already" in run("p", "npz,npy")
    (out / "a.npy").write_bytes(b"")
    assert "0 of 1 are there already" in run("p", "npz,npy")
    (out / results.MANIFEST).write_text("[]")
    assert main(["predict", "p", "--model", checkpoint, "--out", "o"]) == 2
    assert "damaged; delete it" in capsys.readouterr().err


def test_globs(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.png", "2.png", "3.bmp"):
        write_photograph(tmp_path / name)
    out = tmp_path / "out"
    assert main(["predict", f"{tmp_path}/*.png", "--model", checkpoint, "--out", str(out), "--format", "npy"]) == 0
    assert files(out) == {"1.npy", "2.npy"}
    assert main(["predict", f"{tmp_path}/*.tif", "--model", checkpoint]) == 2
    assert f"{tmp_path}/*.tif: matches no file" in capsys.readouterr().err


def test_interrupted_run_is_resumed_to_the_same_end(checkpoint: str, tmp_path: Path) -> None:
    bad = {f"{i}.png" for i in range(5, 200, 20)}
    for i in range(200):
        write_photograph(tmp_path / "in" / f"{i}.png", 100, 150)
    for name in bad:
        (tmp_path / "in" / name).write_bytes(b"broken")

    def start(out: Path, *options: str) -> subprocess.Popen[str]:
        arguments = ["predict", str(tmp_path / "in"), "--model", checkpoint, "--out", str(out), "--format", "npy"]
        # A shell's background jobs, and so their children, are deaf to SIGINT.
        return subprocess.Popen(
            [sys.executable, "-m", "torchdpt_command", *arguments, "--batch-size", "1", *options],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    out = tmp_path / "out"
    process = start(out)
    deadline = time.monotonic() + 60
    while len(list(out.glob("[0-9]*.npy"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command with --resume goes on" in message
    kept = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    assert 0 < len(kept) < 190
    assert all(np.load(out / name).shape == (100, 150) for name in kept)  # also: no temporary file
    process = start(out, "--resume")
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    # The one that was being written may be whole, and not yet noted.
    there = int(message.split(" of 200 are there already")[0])
    assert len(kept) - 1 <= there <= len(kept)
    assert "10 failed:" in message
    assert all(f"/in/{name}: not an image" in message for name in bad)
    want = {f"{i}.npy" for i in range(200) if f"{i}.png" not in bad}
    assert files(out) == want
    assert sum((out / name).stat().st_mtime_ns == written for name, written in kept.items()) >= there
    straight = tmp_path / "straight"
    assert start(straight).wait(timeout=60) == 1
    assert all((straight / name).read_bytes() == (out / name).read_bytes() for name in want)


def test_full_disk_is_an_error_of_the_file(
    checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photograph(tmp_path / "a.png")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "a.png"), "--model", checkpoint, "--out", str(out)]) == 1
    assert f"a.png: No space left on device: {out}/a_color.png" in capsys.readouterr().err
    assert files(out) == set()
