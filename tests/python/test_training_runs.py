"""Whole runs of training, and where they start."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import DEPTH, JOINT, METRIC, assert_close, batch_of, config_of, differences, gradients_of, trainer_of

from torchdpt import DPTConfig, DPTModel
from torchdpt.classes import Classes
from torchdpt.data import Augmentation, Batch, Sample, SceneDataset, batches
from torchdpt.training import TrainConfig, Trainer, checkpoints, fit
from torchdpt.training import trainer as trainer_module
from torchdpt.training.config import OptimizerConfig

# --- whole runs ---


def test_depth_and_classes_are_learned_together(tmp_path: Path) -> None:
    optimizer = {"encoder_lr": 2e-3, "decoder_lr": 5e-3}
    trainer = trainer_of(tmp_path, JOINT | {"dropout": 0.0}, steps=30, optimizer=optimizer)
    batch = next(batches(trainer.datasets, trainer.mixture, trainer.config.augmentation, range(1)))

    def both() -> list[float]:
        with torch.no_grad():
            terms = trainer._terms(batch).losses.double().sum(0)
        return (terms / trainer.objective.counts(batch).sum(0)).tolist()

    before = both()
    for _ in range(30):
        trainer.train_step(batch)
    after = both()
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.7 * before[1]


def test_bfloat16_runs_with_losses_in_float32(tmp_path: Path) -> None:
    full, half = (trainer_of(tmp_path, JOINT | {"dropout": 0.0}, precision=p) for p in ("float32", "bfloat16"))
    batch = batch_of(4)
    kinds = []
    half.network.register_forward_hook(lambda _, __, output: kinds.append(output.logits.dtype))
    terms = half._terms(batch)
    assert kinds == [torch.bfloat16]
    assert terms.losses.dtype == torch.float32
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}
    losses_of = [trainer.train_step(batch)[0] for trainer in (full, half)]
    assert losses_of[0] != losses_of[1]
    assert losses_of[1] == pytest.approx(losses_of[0], rel=0.05)  # bfloat16 has 8 bits
    assert {g.dtype for g in gradients_of(half).values()} == {torch.float32}


def assert_compiled_equals_eager(folder: Path) -> None:
    eager, compiled = (trainer_of(folder, DEPTH, compile=on) for on in (False, True))
    assert compiled.network is not compiled.model
    one, other = (trainer.train_step(batch_of(4)) for trainer in (eager, compiled))
    assert other == pytest.approx(one, rel=1e-4)  # float32 in another order
    assert_close(gradients_of(compiled), gradients_of(eager), 1e-4)
    assert {*compiled.state()["model"]} == {*eager.state()["model"]}


def test_compiled_network_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    assert_compiled_equals_eager(tmp_path)


def test_network_compiled_by_inductor_trains(tmp_path: Path) -> None:
    assert_compiled_equals_eager(tmp_path)


def test_run_leaves_its_config_log_and_model(tmp_path: Path) -> None:
    config = config_of(tmp_path, JOINT, ema=0.9, log_every=5, save_every=6)
    result = fit(config)
    assert (result.step, result.finished, result.validation) == (12, True, {})
    assert not result.model.training
    assert TrainConfig.load(tmp_path / "config.yaml") == config
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [("train", 5), ("train", 10), ("train", 12)]
    assert all(r["loss"] > 0 and r["gradient_norm"] > 0 and r["lr_encoder"] == 1e-3 for r in records)
    saved = DPTModel.from_pretrained(tmp_path / "final")
    assert differences(saved.state_dict(), result.model.state_dict()) == []
    assert saved.processor.size == (32, 32)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000006", "step_00000012"]
    again = fit(config)
    assert (again.step, again.finished) == (12, True)
    assert differences(again.model.state_dict(), result.model.state_dict()) == []


def test_run_goes_on_with_other_settings_only_if_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(config_of(tmp_path, steps=2))
    changes: dict[str, Any] = {"steps": 4, "batch_size": 2, "threads": None, "workers": 0, "keep": 5}
    with pytest.raises(ValueError, match=r"with other settings: batch_size: 4 -> 2; steps: 2 -> 4\. Set another out="):
        Trainer(config_of(tmp_path, **changes))
    assert fit(config_of(tmp_path, **changes), allow_changes=True).step == 4
    assert "going on with other settings: batch_size: 4 -> 2; steps: 2 -> 4" in caplog.text


def test_changed_settings_of_the_optimiser_are_those_of_the_config(tmp_path: Path) -> None:
    fit(config_of(tmp_path, DEPTH, steps=2))
    kept = checkpoints.newest(tmp_path / "checkpoints")
    assert kept is not None
    optimizer = {"name": "adam", "encoder_lr": 3e-4, "decoder_lr": 2e-4, "layer_decay": 0.5, "weight_decay": 0.1}
    with pytest.raises(ValueError, match="other settings"):
        Trainer(config_of(tmp_path, DEPTH, optimizer=optimizer))
    config = config_of(tmp_path, DEPTH, optimizer=OptimizerConfig(**kept["config"]["optimizer"]).model_dump())
    trainer = Trainer(config, allow_changes=True)
    assert differences(trainer.state()["optimizer"], kept["optimizer"]) == []
    for changed in (optimizer, {"name": "sgd", "encoder_lr": 3e-4, "decoder_lr": 2e-4}):
        trainer = Trainer(config_of(tmp_path, DEPTH, optimizer=changed), allow_changes=True)
        trainer.train_step(batch_of(4))
        rates = {g["name"]: g["lr"] for g in trainer.optimizer.param_groups}
        assert (rates["encoder"], rates["decoder"]) == (3e-4, 2e-4)
        steps = {float(state.get("step", 0)) for state in trainer.state()["optimizer"].values()}
        assert steps == ({3.0} if changed is optimizer else {0.0})
        for name, state in trainer.state()["optimizer"].items():
            # The moments are those of the parameter, in whatever group it is now.
            moments = state["exp_avg"] if changed is optimizer else state["momentum_buffer"]
            assert moments.shape == trainer.model.get_parameter(name).shape


def test_run_of_fewer_steps_than_were_made_is_finished(tmp_path: Path) -> None:
    fit(config_of(tmp_path, steps=3))
    result = fit(config_of(tmp_path, steps=2), allow_changes=True)
    assert (result.step, result.finished) == (3, True)


def test_batch_that_processes_and_parts_do_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size 4 must be a multiple of 1 processes x 3 parts"):
        trainer_of(tmp_path, accumulate=3)


def test_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device must be auto, cpu, cuda"):
        trainer_of(tmp_path, device="gpu")


# --- where a run starts ---


def test_seed_decides_the_first_parameters(tmp_path: Path) -> None:
    states = [trainer_of(tmp_path, seed=seed).model.state_dict() for seed in (0, 0, 1)]
    assert differences(states[0], states[1]) == []
    assert differences(states[0], states[2]) != []


def test_other_heads_start_at_random_and_the_rest_from_the_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(7)
    start = DPTModel(DPTConfig(**DEPTH))
    start.save_pretrained(tmp_path / "start")
    fields = {"depth_head": False, "num_classes": 10, "dropout": 0.0}
    model = {"weights": str(tmp_path / "start"), "fields": fields}
    with caplog.at_level("INFO", "torchdpt"):
        trainer = trainer_of(tmp_path / "run", model=model, loss={"depth": None})
    assert "tensors that start at random: head.segmentation.conv.weight" in caplog.text
    assert trainer.model.config == start.config.replace(**fields)
    mine, theirs = trainer.model.state_dict(), start.state_dict()
    assert {name.split(".")[0] for name in mine if name in theirs} == {"encoder", "reassemble", "fusion"}
    for name in mine:
        assert name.startswith("head.") or torch.equal(mine[name], theirs[name])
    assert math.isfinite(trainer.train_step(batch_of(4))[0])
    # And a run that goes on needs the weights no more.
    trainer.save()
    again = trainer_of(tmp_path / "run", model=model, loss={"depth": None})
    assert differences(again.state(), trainer.state()) == []
    with pytest.raises(ValueError, match=r"model.fields change more than the heads .*fusion"):
        trainer_of(tmp_path / "other", model=model | {"fields": {"features": 16}})


def test_normalisation_is_that_of_the_weights(tmp_path: Path) -> None:
    start = DPTModel(DPTConfig(**DEPTH))
    start.processor = dataclasses.replace(start.processor, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    start.save_pretrained(tmp_path / "start")
    seen: list[torch.Tensor] = []
    for _ in range(2):  # and after going on
        trainer = trainer_of(tmp_path / "run", model={"weights": str(tmp_path / "start")})
        assert (trainer.model.processor.mean, trainer.model.processor.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        trainer.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        batch = batch_of(4)
        trainer.train_step(batch)
        trainer.save()
    images = batch.images.permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    for tensor in seen:
        torch.testing.assert_close(tensor, (images - mean) / std)


def test_names_of_classes_are_those_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Nameless(SceneDataset):
        def __init__(self) -> None:
            super().__init__(6, height=32, width=32)
            self.classes = None

    monkeypatch.setattr(trainer_module, "open_dataset", lambda _: Nameless())
    start = DPTModel(DPTConfig(**JOINT))
    start.classes = Classes("mine", tuple(f"class of mine {i}" for i in range(10)))
    start.save_pretrained(tmp_path / "start")
    for _ in range(2):  # and after going on
        train, model = [{"type": "nameless"}], {"weights": str(tmp_path / "start")}
        trainer = trainer_of(tmp_path / "run", model=model, train=train)
        assert trainer.model.classes == start.classes
        trainer.save()


class Aligned:
    """Scenes whose depth is what a network predicts, in metres by a scale and a shift that are known."""

    name = "aligned"

    def __init__(self, path: str) -> None:
        self.model = DPTModel.from_pretrained(path)
        self.scenes = SceneDataset(6, height=32, width=32)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.scenes[index]
        assert sample.mask is not None
        prediction = torch.from_numpy(self.model.predict(sample.image.numpy()).depth)
        mask = sample.mask.clone()
        mask[:5] = False
        target = torch.where(mask, 1 / (0.7 * prediction + 0.2), 0)
        target[10, 10] = torch.inf  # a pixel of sky
        return sample.replace(target=target, mask=mask)


def test_fit_metric_finds_scale_and_shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "open_dataset", lambda _, **options: Aligned(**options))
    torch.manual_seed(3)
    start = DPTModel(DPTConfig(**DEPTH))
    start.save_pretrained(tmp_path / "start")
    model = {"weights": str(tmp_path / "start"), "fit_metric": True}
    train = [{"type": "aligned", "path": str(tmp_path / "start")}]
    trainer = trainer_of(tmp_path / "run", model=model, train=train, loss={"depth": "silog"})
    config = trainer.model.config
    assert config.metric
    assert config.depth_scale == pytest.approx(0.7, rel=1e-5)  # predictions are float32
    assert config.depth_shift == pytest.approx(0.2, rel=1e-5)
    assert differences(trainer.model.state_dict(), start.state_dict()) == []
    assert all(p.requires_grad for p in trainer.model.parameters())
    loss, _ = trainer.train_step(next(iter_batches(trainer)))
    assert loss < 1e-4  # it already predicts the truth, but for the sky


def iter_batches(trainer: Trainer) -> Iterator[Batch]:
    return batches(trainer.datasets, trainer.mixture, Augmentation(resize="none", crop=(32, 32), flip=False), range(1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"fields": METRIC, "fit_metric": True}, "wants a network of relative depth"),
        ({"fields": DEPTH, "fit_metric": True}, "set model.weights"),
    ],
)
def test_fit_metric_without_its_means_is_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, model=model, loss={"depth": "silog"})
