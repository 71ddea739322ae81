"""The network that comes with the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import torchdpt
from torchdpt import TrainConfig, data, evaluate_dataset, fit, protocols

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import bench_accuracy  # noqa: E402


@pytest.fixture(scope="module")
def demo() -> torchdpt.DPTModel:
    return torchdpt.DPTModel.from_pretrained("demo")


def test_files_are_small_and_depth_alone(demo: torchdpt.DPTModel) -> None:
    folder = Path(torchdpt.__file__).parent / "weights/demo"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000
    assert (folder / "README.md").exists()
    assert demo.config.depth_head
    assert demo.config.num_classes == 0
    assert {parameter.dtype for parameter in demo.parameters()} == {torch.float32}
    assert next(torchdpt.DPTModel.from_pretrained("demo", dtype=torch.float16).parameters()).dtype == torch.float16


def test_a_folder_of_that_name_is_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torchdpt.DPTModel("dpt_tiny").save_pretrained("demo")
    assert torchdpt.DPTModel.from_pretrained("demo").config.encoder == "hybrid"
    assert torchdpt.DPTModel.from_pretrained("./demo").config == torchdpt.DPTConfig.preset("dpt_tiny")
    assert torchdpt.DPTModel.from_pretrained(Path("./demo").absolute()).config.encoder == "vit"


def test_depth_of_scenes_that_it_has_not_seen(demo: torchdpt.DPTModel) -> None:
    scenes = data.SceneDataset(256, first=bench_accuracy.FIRST_SCENE)  # a part of those that are recorded
    found = evaluate_dataset(demo, scenes, protocols.get("scenes"))
    assert found.metrics["abs_rel"] < 0.15
    assert np.median([image["abs_rel"] for image in found.per_image]) < 0.14
    assert found.metrics["delta1"] > 0.78


@pytest.mark.parametrize("number", [pytest.param(0, id="motorcycle"), pytest.param(1, id="arc2017")])
def test_depth_of_real_photographs_is_better_than_a_constant_and_a_ramp(demo: torchdpt.DPTModel, number: int) -> None:
    sample = bench_accuracy.real_pairs()[number]
    height, width = sample.image.shape[:2]
    network = bench_accuracy.error(torch.from_numpy(demo.predict(sample.image.numpy()).depth), sample)
    ramp = torch.arange(height).float()[:, None].expand(height, width)
    assert network < bench_accuracy.error(ramp, sample)
    assert network < bench_accuracy.error(torch.ones(height, width), sample)


@pytest.mark.slow
def test_first_300_steps_of_the_recipe_halve_the_error(tmp_path: Path) -> None:
    fit(TrainConfig.load("demo", [f"out={tmp_path / 'run'}", "steps=300", "panels=0"]))
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    errors = {row["step"]: row["headline"] for row in rows if row["kind"] == "validation/scenes"}
    assert errors[300] < 0.5 * errors[0]


def write_folder(folder: Path, first: int, count: int) -> Path:
    """Scenes as somebody's own files: photographs, and depth in millimetres."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"depth": {"files": "depth", "scale": "1/1000"}}))
    scenes = data.SceneDataset(count, first=first, height=80, width=112)
    for i in range(count):
        sample = scenes[i]
        depth = sample.depth().numpy()
        counts = np.where(depth < 65, 1000 * depth, 0).round().astype(np.uint16)
        Image.fromarray(sample.image.numpy()).save(folder / f"images/{i}.png")
        Image.fromarray(counts).save(folder / f"depth/{i}.png")
    return folder


def test_fine_tuning_on_forty_images_beats_training_from_scratch(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", 4_000_000, 40)
    held_out = write_folder(tmp_path / "held_out", 5_000_000, 16)
    scratch = json.loads(torchdpt.DPTModel.from_pretrained("demo").config.to_json())
    for name in ("format_version", "torchdpt_version", "batch_norm_group"):
        scratch.pop(name, None)
    errors = {}
    for name, model in {"tuned": {"weights": "demo"}, "scratch": {"fields": scratch}}.items():
        config = TrainConfig.load(
            "my_depth",
            [
                f"out={tmp_path / name}",
                f"train=[{{type: folder, path: {train}}}]",
                f"validation=[{{type: folder, path: {held_out}, name: held out}}]",
                f"model={json.dumps(model)}",
                "augmentation={size: [96, 128], crop: [96, 128]}",
                "steps=20",
                "workers=0",
                "panels=0",
            ],
        )
        errors[name] = fit(config).validation["held out"]
    assert errors["tuned"] < errors["scratch"]
