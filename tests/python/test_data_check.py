"""torchdpt.data.check_dataset and `torchdpt data check`: every kind of damage is found, and stops nothing."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_files import write_image, write_npy, write_png, write_settings

from torchdpt.data import FolderDataset, Report, Sample, SceneDataset, check_dataset
from torchdpt_command import main

RNG = np.random.default_rng(0)


def check(folder: Path) -> Report:
    return check_dataset(FolderDataset(folder, skip_incomplete=True))


def write_sample(folder: Path, name: str, counts: object) -> None:
    height, width = np.shape(counts)
    write_image(folder / f"images/{name}.png", height, width)
    write_png(folder / f"depth/{name}.png", counts)


def good() -> np.ndarray:
    return RNG.integers(1000, 9000, (6, 8), dtype=np.uint16)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder with one sample of each kind of damage, and three good ones."""
    write_settings(tmp_path, "{name: rooms, depth: {scale: 1/1000}, labels: {files: labels, classes: [wall, floor]}}")
    bad = ["empty", "constant", "few", "near", "narrow", "broken", "picture", "byte", "label"]
    for name in ["good1", "good2", "good3", "lonely", *bad]:
        write_sample(tmp_path, name, good())
        write_png(tmp_path / f"labels/{name}.png", RNG.integers(0, 2, (6, 8)), np.uint8)
    write_png(tmp_path / "depth/empty.png", np.zeros((6, 8)))
    write_png(tmp_path / "depth/constant.png", np.full((6, 8), 2000))
    write_png(tmp_path / "depth/few.png", RNG.integers(100, 256, (6, 8)))
    write_png(tmp_path / "depth/near.png", np.where(np.arange(48).reshape(6, 8) < 30, 20, 3000))
    write_png(tmp_path / "depth/narrow.png", good()[:, :7])
    (tmp_path / "depth/broken.png").write_bytes((tmp_path / "depth/good1.png").read_bytes()[:50])
    (tmp_path / "images/picture.png").write_bytes(b"text")
    write_png(tmp_path / "depth/byte.png", RNG.integers(0, 256, (6, 8)), np.uint8)
    write_png(tmp_path / "labels/label.png", np.full((6, 8), 2), np.uint8)
    (tmp_path / "depth/lonely.png").unlink()
    write_png(tmp_path / "depth/other.png", good())
    return tmp_path


def test_every_damage_is_found_and_nothing_else(damaged: Path) -> None:
    report = check(damaged)
    names = r"(\w+)\.png(?: is |: |$)"  # at the end of the first path
    found = {
        problem: sorted(re.search(names, line)[1] for line in lines)  # type: ignore[index]
        for problem, lines in report.problems.items()
    }
    assert found == {
        "image without truth": ["lonely"],
        "truth without image": ["other"],
        "empty map": ["empty"],
        "constant map": ["constant"],
        "8-bit depth": ["byte", "few"],
        "wrong unit": ["near"],
        "unreadable file": ["broken", "picture"],
        "label out of range": ["label"],
        "other size than the image": ["narrow"],
    }
    assert report.samples == 12
    first, second = sorted(report.problems["unreadable file"])
    assert first.startswith(f"{damaged}/depth/broken.png: a damaged file")
    assert second.startswith(f"{damaged}/images/picture.png: not an image")


def test_metres_that_are_millimetres(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"images/{name}.png", 6, 8)
        write_npy(tmp_path / f"depth/{name}.npy", good())
    report = check(tmp_path)
    assert list(report.problems) == ["wrong unit"]
    assert len(report.problems["wrong unit"]) == 2
    assert "depth/a.npy: up to " in report.problems["wrong unit"][0]


def test_summary_is_that_of_all_values(tmp_path: Path) -> None:
    write_settings(tmp_path, "{depth: {scale: 1/256, sky: 65535}, labels: {files: labels, first: 1}}")
    maps = []
    for i, (height, width) in enumerate([(4, 5), (4, 5), (6, 3)]):
        counts = RNG.integers(300, 20000, (height, width), dtype=np.uint16)
        counts[0, 0], counts[1] = 65535, 0
        write_sample(tmp_path, f"{i}", counts)
        write_png(tmp_path / f"labels/{i}.png", RNG.integers(0, 4, (height, width)), np.uint8)
        maps.append(counts)
    report = check(tmp_path)
    assert report.problems == {}
    assert report.sizes == {"5 x 4": 2, "3 x 6": 1}
    every = np.concatenate([counts.ravel() for counts in maps]).astype(np.float64)
    metres = every[(every > 0) & (every < 65535)] / 256
    want = {f"p{p}": np.percentile(metres, p) for p in (1, 10, 25, 50, 75, 90, 99)}
    assert report.depth == pytest.approx(
        {
            "kind": "depth",
            "unit": "metre",
            "min": metres.min(),
            "max": metres.max(),
            **want,
            "known": (every > 0).mean(),
            "sky": 3 / every.size,
        }
    )
    labels = np.concatenate([cv2.imread(str(tmp_path / f"labels/{i}.png"), -1).ravel() for i in range(3)])
    classes = {str(k - 1): (labels == k).sum() / (labels > 0).sum() for k in (1, 2, 3)}
    assert report.classes == pytest.approx(classes)


def test_percentiles_of_large_maps_are_of_all_columns(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {scale: 1/1000}")
    for i in range(8):
        write_sample(tmp_path, f"{i}", np.tile(np.arange(1000, 2000, 10), (128, 1)))
    depth = check(tmp_path).depth
    # 2048 values drawn from 1 to 1.99: the standard deviation of a quantile q is sqrt(q (1 - q) / 2048), at most 0.011.
    for p in (1, 10, 25, 50, 75, 90, 99):
        assert abs(depth[f"p{p}"] - (1 + p / 100)) < 0.05


def test_relative_inverse_depth_has_no_sky_and_no_unit(tmp_path: Path) -> None:
    write_settings(tmp_path, "depth: {kind: inverse_depth, invalid: []}")
    write_image(tmp_path / "images/a.png", 2, 2)
    write_png(tmp_path / "depth/a.png", [[0, 1], [2, 3]], np.uint8)
    report = check(tmp_path)
    assert report.problems == {}
    assert (report.depth["min"], report.depth["max"], report.depth["sky"]) == (0, 3, 0)


def test_labels_without_a_class_are_empty(tmp_path: Path) -> None:
    write_image(tmp_path / "images/a.png", 2, 2)
    write_png(tmp_path / "labels/a.png", np.full((2, 2), 255), np.uint8)
    report = check(tmp_path)
    assert report.problems == {"empty map": [f"{tmp_path}/labels/a.png: no pixel has a class"]}
    assert report.depth == {}


def test_any_data_set_can_be_checked() -> None:
    report = check_dataset(SceneDataset(4, height=24, width=32), workers=2)
    assert report.sizes == {"32 x 24": 4}
    assert report.problems == {}
    assert report.depth["known"] == 1
    assert math.isfinite(report.depth["max"])


class Unkind:
    """A data set whose samples raise what they should not."""

    name = "unkind"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int, /) -> Sample:
        if index == 1:
            raise RuntimeError
        return Sample(image=torch.zeros(2, 2, 3, dtype=torch.uint8), dataset=self.name, id=str(index))


def test_no_error_stops_the_rest() -> None:
    report = check_dataset(Unkind())
    assert report.problems == {"unreadable file": ["unkind, sample 1: RuntimeError"]}
    assert report.sizes == {"2 x 2": 2}


def test_a_missing_package_is_no_fault_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "images/a.png", 2, 2)
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth/a.h5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match="pip install h5py"):
        check(tmp_path)


# --- the command ---


def test_command_prints_what_is_wrong(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(damaged)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("rooms: 12 samples\n")
    assert "images      8 x 6 (7)\n" in out
    assert "depth       depth, metres: 0.02 to " in out
    assert "\nclasses     " in out
    assert f"\nempty map: 1\n  {damaged}/depth/empty.png: depth is known nowhere\n" in out
    assert "8-bit depth: 2\n" in out
    assert "no problems" not in out


def test_command_gives_three_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        write_sample(tmp_path, f"{i}", np.zeros((2, 2)))
    assert main(["data", "check", str(tmp_path)]) == 1
    assert capsys.readouterr().out.endswith(
        "empty map: 5\n"
        + "".join(f"  {tmp_path}/depth/{i}.png: depth is known nowhere\n" for i in range(3))
        + "  ...\n"
    )
    assert main(["data", "check", str(tmp_path), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert problems == {"empty map": [f"{tmp_path}/depth/{i}.png: depth is known nowhere" for i in range(5)]}


def test_command_is_content_with_a_good_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_settings(tmp_path, "depth: {scale: 1/1000}")
    for name in ("train/a", "val/b"):
        write_sample(tmp_path, name, good())
    assert main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path.name}: 2 samples\n")
    assert out.endswith("\nno problems found\n")
    assert main(["data", "check", str(tmp_path), "--option", "split=val", "--option", "name=mine", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["dataset"], report["samples"], report["problems"]) == ("mine", 1, {})


def test_command_knows_the_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_image(tmp_path / "Imgs/a.jpg", 1, 3)
    write_image(tmp_path / "Imgs/b.jpg", 1, 3)
    write_png(tmp_path / "RDs/a.png", [[0, 100, 255]], np.uint8)
    assert main(["data", "check", str(tmp_path), "--type", "redweb"]) == 1
    out = capsys.readouterr().out
    assert "image without truth: 1\n  Imgs/b.jpg: there is no depth map 'b' in RDs" in out
    assert "depth       inverse depth, relative: 155 to 255\n" in out
    assert main(["data", "check", str(tmp_path), "--type", "redwep"]) == 2
    assert "there is no data set of type 'redwep'; did you mean 'redweb'?" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "--option", "spilt=train"]) == 2
    assert "folder: there is no option 'spilt'; did you mean 'split'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path), "--option", "train"])
    assert "wanted NAME=VALUE, got 'train'" in capsys.readouterr().err
