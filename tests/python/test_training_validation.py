"""When a run measures its model, and which one it keeps as the best."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training_runs import DEPTH, JOINT, batch_of, config_of, differences, trainer_of

from torchdpt import DPTModel, protocols
from torchdpt.data import SceneDataset
from torchdpt.evaluate_model import evaluate_dataset
from torchdpt.protocols import DepthProtocol, SegmentationProtocol
from torchdpt.training import fit
from torchdpt.training import trainer as trainer_module

HEADLINES = [0.9, 0.5, math.nan, 0.7, 0.3, 0.4, 0.6]


class Measured:
    """A validation whose headline numbers are known; it notes the models that it gets."""

    protocol = types.SimpleNamespace(headline="absrel")
    seen: list[dict[str, Any]]

    def __init__(self, config: Any, network: Any) -> None:
        self.name = config.options["name"]

    def run(self, model: DPTModel) -> Any:
        model.eval()
        number = len(self.seen)
        self.seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return types.SimpleNamespace(
            headline=HEADLINES[number],
            metrics={"rmse": 1.0},
            counts={"images": number},
            protocol=self.protocol,
            failures=(),
        )

    def is_better(self, one: float, other: float) -> bool:
        return one < other

    def pictures(self, model: DPTModel, count: int) -> list[list[np.ndarray]]:
        return [[np.zeros((2, 3, 3), np.uint8)]] * count


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.setattr(trainer_module, "Validation", Measured)
    monkeypatch.setattr(Measured, "seen", [], raising=False)
    return Measured.seen


VALIDATION: dict[str, Any] = {"validation": [{"type": "scenes", "name": "held out"}], "ema": 0.5}


def test_best_model_is_kept_whenever_it_was(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    result = fit(config_of(tmp_path, **VALIDATION, validate_every=2, panels=1))
    assert len(seen) == 7  # before the first step, and after each second one
    assert result.validation == {"held out": 0.6}
    best = DPTModel.from_pretrained(tmp_path / "best").state_dict()
    assert differences(best, seen[4]) == []
    assert differences(DPTModel.from_pretrained(tmp_path / "final").state_dict(), seen[6]) == []
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    measured = [(r["step"], r["headline"], r["rmse"]) for r in records if r["kind"] == "validation/held out"]
    assert measured == [
        (2 * i, None if math.isnan(headline) else headline, 1.0) for i, headline in enumerate(HEADLINES)
    ]
    pictures = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert pictures == [f"held out_{step:08d}.png" for step in range(0, 13, 2)]


def test_run_that_goes_on_knows_its_best(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    fit(config_of(tmp_path, **VALIDATION, validate_every=2, steps=8))
    before = DPTModel.from_pretrained(tmp_path / "best").state_dict()
    fit(config_of(tmp_path, **VALIDATION, validate_every=2, steps=12), allow_changes=True)
    assert len(seen) == 7
    assert differences(DPTModel.from_pretrained(tmp_path / "best").state_dict(), before) == []


def test_without_an_interval_it_is_measured_first_and_last(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    fit(config_of(tmp_path, **VALIDATION))
    assert len(seen) == 2


def test_training_goes_on_in_train_mode(tmp_path: Path, seen: list[dict[str, Any]]) -> None:
    trainer = trainer_of(tmp_path, JOINT, validation=VALIDATION["validation"])
    assert trainer.validate() == {"held out": 0.9}  # outside of `fit`, too
    assert trainer.model.training
    before = {name: b.clone() for name, b in trainer.model.named_buffers()}
    trainer.train_step(batch_of(4))
    assert differences(dict(trainer.model.named_buffers()), before) != []


# --- how it is measured ---

SCENES: dict[str, Any] = {"type": "scenes", "first": 2_000_000, "length": 3, "height": 32, "width": 48}


def test_depth_and_classes_of_one_network_are_measured(tmp_path: Path) -> None:
    validation = [SCENES, SCENES | {"name": "classes", "protocol": "classes"}]
    result = fit(config_of(tmp_path, validation=validation, steps=2))
    model = DPTModel.from_pretrained(tmp_path / "final")
    data = SceneDataset(3, first=2_000_000, height=32, width=48)
    depth = DepthProtocol(
        name="", dataset="", input_size=(32, 32), target="inverse_depth", error_space="inverse_depth", multiple_of=32
    )
    classes = SegmentationProtocol(
        name="",
        dataset="",
        num_classes=10,
        absent="skip",
        scales=(1.0,),
        base_size=32,
        resize="minimal",
        crop_size=None,
        stride=None,
        flip=False,
        score="logits",
        upsample="bicubic",
    )
    for name, protocol in (("scenes", depth), ("classes", classes)):
        assert result.validation[name] == evaluate_dataset(model, data, protocol).headline
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "validation/classes" and "miou" in r] == [0, 2]
    assert (tmp_path / "pictures/classes_00000002.png").is_file()


def test_fields_of_a_protocol_can_be_changed(tmp_path: Path) -> None:
    changes = {"cap": 10, "max_target": 10, "crop": [4, 28, 4, 44]}
    (validation,) = trainer_of(
        tmp_path, DEPTH, validation=[SCENES | {"protocol": "own_depth", "protocol_fields": changes}]
    ).validations
    assert validation.protocol == protocols.get("own_depth", cap=10, max_target=10, crop=(4, 28, 4, 44))
    (validation,) = trainer_of(tmp_path, validation=[SCENES | {"protocol_fields": {"average": "pooled"}}]).validations
    assert isinstance(validation.protocol, DepthProtocol)
    assert (validation.protocol.name, validation.protocol.average) == ("validation", "pooled")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "own_dept"}, r"no protocol 'own_dept' \(did you mean 'own_depth'\?\)"),
        ({"protocol": "own_depth", "protocol_fields": {"capp": 10}}, "own_depth has no field 'capp'; it has name,"),
        (
            {"protocol": "own_depth", "protocol_fields": {"cap": "far"}},
            r"own_depth: cap must be float \| None, got 'far'",
        ),
        ({"protocol_fields": {"average": "median"}}, "validation: average must be one of 'image', 'pooled'"),
        ({"protocol": "classes"}, "'classes' is of a network with a head for classes; set model.fields.num_classes"),
        ({"protocol": "own_metric"}, "own_metric measures depth in metres, and this network predicts relative"),
    ],
)
def test_protocols_that_do_not_fit_are_refused_before_the_first_step(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, DEPTH, validation=[SCENES | changes])


def test_protocols_are_not_of_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.0: protocol, protocol_fields and images are of validation"):
        config_of(tmp_path, train=[SCENES | {"protocol_fields": {"cap": 10}}])
