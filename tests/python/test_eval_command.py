"""torchdpt eval, as a user calls it."""

from __future__ import annotations

import csv
import errno
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CONFIG, files, write_photograph
from networks import SEGMENTATION
from PIL import Image

from torchdpt import DPTModel, cli_eval, protocols
from torchdpt.data import Dataset, Sample, SceneDataset
from torchdpt.evaluate_model import evaluate_dataset
from torchdpt.protocols import SegmentationProtocol
from torchdpt_command import main

PROTOCOL = "scenes,input_size=(64,64)"
SCENES = "scenes:length=4,height=48,width=64"


def run(checkpoint: str, *arguments: str, protocol: str = PROTOCOL, data: str = SCENES) -> int:
    return main(["eval", "--model", checkpoint, "--protocol", protocol, "--data", data, *arguments])


class Damaged:
    """Scenes of which the second cannot be read."""

    name = "damaged"

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int, /) -> Sample:
        if index == 1:
            raise ValueError("b.png: a damaged image")
        return SceneDataset(4, height=48, width=64)[index]


# --- what it writes ---


def test_results_are_those_of_evaluate_dataset(checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    assert run(checkpoint, "--out", str(out), "--worst", "2", "--batch-size", "3", "--device", "cpu") == 0
    protocol = protocols.get("scenes", input_size=(64, 64))
    data = SceneDataset(4, first=3_000_000, height=48, width=64)
    expected = evaluate_dataset(DPTModel.from_pretrained(checkpoint, device="cpu"), data, protocol, batch_size=3)
    record = json.loads((out / "results.json").read_text())
    assert record["runs"] == [json.loads(json.dumps(expected.to_json()))]
    with open(out / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["3000000", "3000001", "3000002", "3000003"]
    assert [float(row["abs_rel"]) for row in rows] == [row["abs_rel"] for row in expected.per_image]
    worst = sorted(expected.per_image, key=lambda row: -row["abs_rel"])[:2]
    pictures = [f"worst/{rank:03}_{row['id']}.png" for rank, row in enumerate(worst, 1)]
    assert files(out) == {"results.json", "per_image.csv", *pictures}
    first = np.asarray(Image.open(out / pictures[0]))
    assert first.shape == (48, 256, 3)
    assert np.array_equal(first[:, :64], data[worst[0]["index"]].image.numpy())


def test_the_record_says_what_the_numbers_depend_on(checkpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(checkpoint, "--json", "--limit", "2", "--device", "cpu", "--dtype", "float32") == 0
    output = capsys.readouterr()
    record = json.loads(output.out)
    assert output.err == ""
    assert record["model"]["source"] == checkpoint
    assert record["model"]["random_weights"] is False
    assert record["model"]["frozen"] is False
    assert record["model"]["config"] == json.loads(CONFIG.to_json())
    assert record["model"]["processor"]["mean"] == [0.5, 0.5, 0.5]
    assert record["data"] == {"source": SCENES, "name": "scenes", "samples": 4, "evaluated": 2}
    assert (record["device"], record["dtype"], record["batch_size"]) == ("cpu", "float32", 8)
    assert record["versions"]["torch"] == torch.__version__
    assert record["runs"][0]["protocol"] == json.loads(
        json.dumps(protocols.to_json(protocols.get("scenes", input_size=(64, 64))))
    )


def test_frozen_model_is_measured(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.frozen"
    DPTModel.from_pretrained(checkpoint, device="cpu").freeze(torch.bfloat16).save(file)
    records = []
    for model, options in ((checkpoint, ["--frozen", "--dtype", "bfloat16"]), (str(file), [])):
        assert run(model, "--json", "--limit", "2", *options) == 0
        records.append(json.loads(capsys.readouterr().out))
        assert (records[-1]["model"]["frozen"], records[-1]["dtype"], records[-1]["device"]) == (
            True,
            "bfloat16",
            "cpu",
        )
    assert records[0]["runs"] == records[1]["runs"]
    assert run(str(file), "--frozen", "--dtype", "float32") == 2
    assert "is a frozen model and has its own --dtype" in capsys.readouterr().err


def test_several_input_sizes_give_a_curve(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(checkpoint, "--out", str(out), "--worst", "1", "--input-size", "64,96,48x64", "--limit", "2") == 0
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [run["protocol"]["input_size"] for run in runs] == [[64, 64], [96, 96], [48, 64]]
    curve = json.loads((out / "curve.json").read_text())
    assert curve["headline"] == "abs_rel"
    assert [point["input_size"] for point in curve["points"]] == ["64", "96", "48x64"]
    assert [point["abs_rel"] for point in curve["points"]] == [run["metrics"]["abs_rel"] for run in runs]
    with open(out / "curve.csv") as file:
        assert [float(row["rmse"]) for row in csv.DictReader(file)] == [run["metrics"]["rmse"] for run in runs]
    assert Image.open(out / "curve.png").size == (640, 480)
    with open(out / "per_image.csv") as file:
        rows = [(row["input_size"], row["id"]) for row in csv.DictReader(file)]
    assert rows == [(size, id) for size in ("64", "96", "48x64") for id in ("3000000", "3000001")]
    pictures = {name for name in files(out) if name.startswith("worst/")}
    assert {str(Path(name).parent) for name in pictures} == {"worst/64", "worst/96", "worst/48x64"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["scenes,", "input", "size", "64", "96", "48x64"]
    assert lines[1].split() == ["abs_rel", "*", *(f"{run['metrics']['abs_rel']:.4f}" for run in runs)]


def test_classes_are_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    DPTModel(CONFIG.replace(**SEGMENTATION | {"num_classes": 10})).save_pretrained(tmp_path / "model")
    protocol = "ade20k,num_classes=10,base_size=64,crop_size=64,stride=42,scales=(1.0,1.5)"
    out = tmp_path / "out"
    assert run(str(tmp_path / "model"), "--out", str(out), "--worst", "1", protocol=protocol) == 0
    record = json.loads((out / "results.json").read_text())["runs"][0]
    assert record["headline"]["name"] == "miou"
    assert len(record["iou"]) == 10
    assert record["protocol"]["scales"] == [1.0, 1.5]
    (picture,) = (out / "worst").iterdir()
    assert Image.open(picture).size == (256, 48)


def test_a_folder_of_ones_own_is_measured(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, rng = tmp_path / "rooms", np.random.default_rng(0)
    (data / "depth").mkdir(parents=True)
    for name in ("a", "b", "c"):
        write_photograph(data / "images" / f"{name}.png", 48, 64)
        np.save(data / "depth" / f"{name}.npy", rng.uniform(0, 12, (48, 64)).astype(np.float32))
    protocol = "own_depth,cap=10,max_target=10,input_size=(64,64)"
    assert run(checkpoint, "--json", "--device", "cpu", protocol=protocol, data=str(data)) == 0
    (result,) = json.loads(capsys.readouterr().out)["runs"]
    assert result["counts"]["images"] == 3
    known = sum((np.load(path) < 10).sum() for path in (data / "depth").iterdir())
    assert result["counts"]["pixels"] == known
    (data / "images" / "b.png").write_bytes(b"no picture")
    assert run(checkpoint, protocol=protocol, data=f"folder:{data}") == 1
    assert f"1 of 3 samples failed:\n  number 1: {data}/images/b.png" in capsys.readouterr().err


def test_failures_are_reported_and_the_rest_measured(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def open_dataset(kind: str, **options: object) -> Dataset:
        asked.append((kind, options))
        return Damaged()

    monkeypatch.setattr(cli_eval, "open_dataset", open_dataset)
    out = tmp_path / "out"
    assert run(checkpoint, "--out", str(out), "--worst", "0", data="nyu:/data/nyu,split=test") == 1
    output = capsys.readouterr()
    assert "1 of 4 samples failed:\n  number 1: b.png: a damaged image" in output.err
    assert output.out.splitlines()[-1].split() == ["failed", "1"]
    failures = json.loads((out / "results.json").read_text())["runs"][0]["failures"]
    assert failures == [{"index": 1, "id": None, "error": "b.png: a damaged image"}]
    assert files(out) == {"results.json", "per_image.csv"}
    assert run(checkpoint, data=str(tmp_path)) == 1
    assert run(checkpoint, data="my:folder/x") == 1
    assert asked == [
        ("nyu", {"path": "/data/nyu", "split": "test"}),
        ("folder", {"path": str(tmp_path)}),
        ("my", {"path": "folder/x"}),
    ]


def test_a_record_is_not_overwritten(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text("{}")
    assert run(checkpoint, "--out", str(tmp_path)) == 2
    assert "results.json is there already; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "results.json").read_text() == "{}"


def test_numbers_are_printed_though_the_disk_is_full(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cli_eval, "write_atomically", full)
    assert run(checkpoint, "--out", str(tmp_path / "out")) == 2
    captured = capsys.readouterr()
    assert "abs_rel *" in captured.out
    assert "No space left on device" in captured.err


# --- what it refuses ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "scene"}, "there is no protocol 'scene' (did you mean 'scenes'?)"),
        ({"protocol": "scenes,capp=10"}, "scenes has no field 'capp'"),
        ({"protocol": "scenes,cap"}, "--protocol: wanted field=value, got 'cap'"),
        ({"protocol": "scenes,cap=far"}, "scenes: cap must be float | None, got 'far'"),
        ({"protocol": "scenes,input_size=64"}, "scenes: input_size must be tuple[int, int] | None, got 64"),
        ({"protocol": "scenes,input_size=(64,64,64)"}, "scenes: input_size must be tuple[int, int] | None"),
        ({"protocol": "scenes,resize=small"}, "resize must be one of 'minimal', 'lower_bound'"),
        ({"protocol": "ade20k,flip=1"}, "ade20k: flip must be bool, got 1"),
        ({"protocol": "ade20k"}, "ade20k is of 150 classes, and this network has no head for classes"),
        ({"protocol": "nyu_eigen"}, "nyu_eigen measures depth in metres, and this network predicts relative inverse"),
        ({"protocol": "diw"}, "diw is of the order of points"),
        ({"data": "scenes:length=0"}, "length, height and width must be positive"),
        ({"data": "scenes:lenght=3"}, "scenes: there is no option 'lenght'"),
        ({"data": "scenes:length=few"}, "scenes: the option 'length' must be int, got 'few'"),
        ({"data": "scens:"}, "there is no data set of type 'scens'"),
        ({"data": "nowhere/at/all"}, "there is no folder nowhere/at/all"),
    ],
)
def test_what_does_not_fit_is_said(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    assert run(checkpoint, "--out", str(tmp_path / "out"), **changes) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fields_of_a_protocol_are_read_as_python_writes_them() -> None:
    text = "kitti_eigen,cap=10,max_target=None,crop=(45,471,41,601),crop_unit=pixel,name=mine,quantisation=None"
    expected = {"cap": 10, "max_target": None, "crop": (45, 471, 41, 601), "crop_unit": "pixel", "name": "mine"}
    assert cli_eval.read_protocol(text) == protocols.get("kitti_eigen", **expected, quantisation=None)
    many = cli_eval.read_protocol("pascal_context,scales=(0.5,1),flip=False")
    assert isinstance(many, SegmentationProtocol)
    assert (many.scales, many.flip) == ((0.5, 1), False)


def test_scenes_are_those_that_training_has_not_seen() -> None:
    data = cli_eval.open_data("scenes:")
    assert (len(data), data[0].id, data[0].image.shape) == (100, "3000000", (192, 256, 3))
