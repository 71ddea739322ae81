"""The commands of docs/training.md, as they stand there, with a small network, small crops and two steps."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from narrow import NARROW
from PIL import Image

import torchdpt
import torchdpt_command
from torchdpt import checkpoint
from torchdpt.training.start import FREE

TEXT = (Path(__file__).parents[2] / "docs/training.md").read_text()
(RENDER,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
]
SMALL = [
    "steps=2", "batch_size=2", "validate_every=1", "save_every=1", "workers=0", "device=cpu",
    "augmentation={size: [32, 32], crop: [32, 32]}",
]  # fmt: skip


def test_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = tmp_path / "a_small_network"  # in the place of the one that is shipped
    torchdpt.DPTModel(NARROW.replace(image_size=32)).save_pretrained(demo)
    find = checkpoint.find
    monkeypatch.setattr(checkpoint, "find", lambda path, **options: find(demo if path == "demo" else path, **options))
    monkeypatch.chdir(tmp_path)
    exec(RENDER, {})
    for name, high in (("images", 256), ("labels", 3)):  # three classes
        Path("photos", name).mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, high, (40, 50), np.uint8)
        Image.fromarray(pixels).save(f"photos/{name}/a.png")
    ours = [words[1:] for words in COMMANDS if words[0] == "torchdpt"]
    assert [words[0] for words in ours[:8]] == ["data", "train", "train", "train", "eval", "eval", "predict", "export"]
    for words in ours:
        printed = words[-3:-1] == ["--print", ">"]
        if printed:
            words, target = words[:-3], words[-1]
            words = [*words, *SMALL, "--print"]
        elif words[0] == "train" and words[1] == "rooms.yaml":
            words = [*words, "threads=1"]
        elif words[0] == "train":
            words = [*words, *SMALL]
        status = torchdpt_command.main(words)
        out, err = capsys.readouterr()
        assert status == 0, (words, err)
        if printed:
            Path(target).write_text(out)
    assert yaml.safe_load(Path("rooms.yaml").read_text())["out"] == "runs/rooms"
    names = {path.name for path in (tmp_path / "runs/rooms").iterdir()}
    assert names >= {"config.yaml", "log.jsonl", "pictures", "checkpoints", "best", "final"}
    kinds = [json.loads(line)["kind"] for line in Path("runs/rooms/log.jsonl").read_text().splitlines()]
    assert kinds.count("validation/rooms") == 3  # before the first step and after both
    assert Path("rooms.onnx").stat().st_size > 0
    assert Path("measured/results.json").is_file()
    assert torchdpt.DPTModel.from_pretrained("runs/metres/final").config.metric
    both = torchdpt.DPTModel.from_pretrained("runs/both/final").config
    assert (both.depth_head, both.num_classes) == (True, 10)
    classes = torchdpt.DPTModel.from_pretrained("runs/my_segmentation/final").config
    assert (classes.depth_head, classes.num_classes) == (False, 3)


def test_settings_that_are_free_to_change_are_named() -> None:
    sentence = re.search(r"do not change the result \((.*?)\)", TEXT, re.DOTALL)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == set(FREE)
