"""One step of training after the other, in one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import (
    DEPTH,
    JOINT,
    assert_close,
    batch_of,
    config_of,
    differences,
    gradients_of,
    snapshot,
    trainer_of,
)

from torchdpt import DPTConfig, DPTModel, losses, optim
from torchdpt.classes import IGNORE_INDEX
from torchdpt.data import Batch
from torchdpt.training import Trainer, checkpoints, fit
from torchdpt.training.config import OptimizerConfig
from torchdpt.training.optimizer import learning_rate_factor, make_optimizer

HYBRID = DPTConfig(
    **DEPTH | {"encoder": "hybrid", "conv_levels": 2, "stage_depths": [1, 1, 1, 0], "channels": [256, 512, 16, 16]}
)
RESNET = DPTConfig(
    **DEPTH | {"encoder": "resnet", "conv_levels": 4, "stage_depths": [1, 1, 1, 1], "channels": [256, 512, 1024, 2048]}
)


@pytest.fixture
def double() -> Iterator[None]:
    """Networks that are made, and what goes into them, are float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


THREE = [{"type": "scenes", "name": name, "height": 32, "width": 32} for name in "abc"]


# --- gradients ---


@pytest.mark.parametrize("mixing", [{}, {"method": "pareto"}], ids=["naive", "pareto"])
def test_gradient_is_that_of_the_mean_over_images_whatever_the_parts(
    tmp_path: Path, mixing: dict[str, Any], double: None
) -> None:
    batch = batch_of(8, [0, 1, 0, 2, 0, 1, 0, 0])
    batch.mask[2] = False
    whole = trainer_of(tmp_path, DEPTH, batch_size=8, train=THREE, mixing=mixing)
    results = []
    for parts in (1, 2, 8):
        trainer = trainer_of(tmp_path, DEPTH, batch_size=8, train=THREE, mixing=mixing, accumulate=parts)
        assert differences(trainer.model.state_dict(), whole.model.state_dict()) == []
        results.append((trainer.train_step(batch), gradients_of(trainer), trainer.data_weights))
    for (loss, norm), gradient, weights in results[1:]:
        assert (loss, norm) == pytest.approx(results[0][0], rel=1e-6)  # losses are float32
        assert_close(gradient, results[0][1], 1e-9)
        torch.testing.assert_close(weights, results[0][2], rtol=1e-9, atol=0)
    if not mixing:
        output = whole.network(((batch.images / 255 - 0.5) / 0.5).permute(0, 3, 1, 2))
        loss = losses.scale_and_shift_invariant(output.depth.float(), batch.inverse_depth.float(), batch.mask).loss
        loss.backward()
        assert results[0][0][0] == pytest.approx(loss.item(), rel=1e-6)
        assert_close(results[0][1], gradients_of(whole), 1e-6)


def slow_gram(trainer: Trainer, batch: Batch, datasets: int, patterns: tuple[str, ...] = ("",)) -> np.ndarray:
    """Inner products of the gradients of the data sets' mean losses, one product after the other."""
    output = trainer.model(((batch.images / 255 - 0.5) / 0.5).permute(0, 3, 1, 2))
    chosen = [p for name, p in trainer.model.named_parameters() if name.startswith(patterns)]
    found = []
    for dataset in range(datasets):
        rows = batch.datasets == dataset
        maps = output.depth[rows].float(), batch.inverse_depth[rows].float(), batch.mask[rows]
        loss = losses.scale_and_shift_invariant(*maps).loss
        found.append(torch.autograd.grad(loss, chosen, retain_graph=True))
    result = np.zeros((datasets, datasets))
    for i in range(datasets):
        for j in range(datasets):
            result[i, j] = sum(float((a.double() * b.double()).sum()) for a, b in zip(found[i], found[j], strict=True))
    return result


@pytest.mark.parametrize("patterns", [("",), ("head.",)], ids=["all", "some parameters"])
def test_pareto_weights_are_those_of_the_shortest_gradient(
    tmp_path: Path, patterns: tuple[str, ...], double: None
) -> None:
    batch = batch_of(6, [0, 1, 2, 0, 1, 2])
    mixing = {"method": "pareto", "parameters": [f"{pattern}*" for pattern in patterns]}
    trainer = trainer_of(tmp_path, DEPTH, batch_size=6, train=THREE, mixing=mixing)
    gram = slow_gram(trainer, batch, 3, patterns)
    trainer.train_step(batch)
    weights = trainer.data_weights.numpy()
    np.testing.assert_allclose(weights, optim.min_norm(torch.tensor(gram)).numpy(), rtol=1e-5, atol=1e-8)
    # The optimality condition: no data set's gradient has a smaller product with the sum than the sum itself.
    products = gram @ weights
    assert products.min() >= weights @ gram @ weights * (1 - 1e-5)
    largest = np.sqrt(weights @ gram @ weights)
    if patterns == ("",):
        assert torch.cat([g.flatten() for g in gradients_of(trainer).values()]).norm().item() == pytest.approx(
            largest, rel=1e-5
        )


def test_pareto_weights_of_two_are_the_closed_form(tmp_path: Path, double: None) -> None:
    batch = batch_of(4, [0, 1, 1, 0])
    trainer = trainer_of(tmp_path, DEPTH, train=THREE[:2], mixing={"method": "pareto"})
    (aa, ab), (_, bb) = slow_gram(trainer, batch, 2)
    trainer.train_step(batch)
    weight = min(1, max(0, (bb - ab) / (aa + bb - 2 * ab)))
    np.testing.assert_allclose(trainer.data_weights.numpy(), [weight, 1 - weight], rtol=1e-5, atol=1e-8)


def test_pareto_weights_are_found_anew_every_so_many_steps(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DEPTH, train=THREE[:2], mixing={"method": "pareto", "every": 3})
    weights = []
    for step in range(7):
        trainer.train_step(batch_of(4, [0, 1, 1, 0], seed=step))
        weights.append(tuple(trainer.data_weights.tolist()))
    assert weights[0] == weights[1] == weights[2] != weights[3] == weights[4] == weights[5] != weights[6]


def test_data_set_alone_in_a_batch_has_all_of_the_weight(tmp_path: Path, double: None) -> None:
    batch = batch_of(4, [1, 1, 1, 1])
    naive = trainer_of(tmp_path, DEPTH, train=THREE)
    naive.train_step(batch)
    for every in (1, 2):
        trainer = trainer_of(tmp_path, DEPTH, train=THREE, mixing={"method": "pareto", "every": every})
        trainer.step = 1
        trainer.data_weights = torch.tensor([0.7, 0.0, 0.3])  # of an earlier batch
        trainer.train_step(batch)
        assert_close(gradients_of(trainer), gradients_of(naive), 1e-9)


def test_pareto_of_no_parameter_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DEPTH, mixing={"method": "pareto", "parameters": ["decoder.*"]})
    with pytest.raises(ValueError, match=r"no parameter of the network matches decoder\.\*"):
        trainer.train_step(batch_of(4))


def test_weighing_leaves_the_statistics_of_batch_normalisation_alone(tmp_path: Path) -> None:
    fields = JOINT | {"dropout": 0.0}
    one = trainer_of(tmp_path, fields)
    other = trainer_of(tmp_path, fields, mixing={"method": "pareto"})
    for trainer in (one, other):
        trainer.train_step(batch_of(4))
    buffers = dict(one.model.named_buffers())
    assert differences(dict(other.model.named_buffers()), buffers) == []
    assert int(buffers["head.segmentation.norm.num_batches_tracked"]) == 1


@pytest.mark.parametrize("mixing", ["naive", "pareto"])
def test_checkpointing_gives_the_same_gradients(tmp_path: Path, mixing: str, double: None) -> None:
    batch = batch_of(4, [0, 1, 1, 0])
    found = []
    for on in (False, True):
        options: dict[str, Any] = {"activation_checkpointing": on, "mixing": {"method": mixing}}
        trainer = trainer_of(tmp_path, JOINT, train=THREE[:2], **options)
        assert trainer.model.activation_checkpointing == on
        trainer.train_step(batch)
        found.append(gradients_of(trainer))
    assert_close(found[1], found[0], 1e-12)


def test_clipping_shortens_the_gradient_and_reports_its_length(tmp_path: Path) -> None:
    plain, clipped = (
        trainer_of(tmp_path, DEPTH, optimizer={"name": "sgd", "clip_norm": limit}) for limit in (None, 0.01)
    )
    norm = plain.train_step(batch_of(4))[1]
    assert norm > 0.02
    assert clipped.train_step(batch_of(4))[1] == pytest.approx(norm, rel=1e-6)
    length = torch.cat([g.flatten() for g in gradients_of(clipped).values()]).norm().item()
    assert length == pytest.approx(0.01, rel=1e-3)
    assert_close({n: g * 0.01 / norm for n, g in gradients_of(plain).items()}, gradients_of(clipped), 1e-3)


# --- the optimiser ---


@pytest.mark.parametrize("network", [DPTConfig(**JOINT), HYBRID, RESNET], ids=["vit", "hybrid", "resnet"])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_every_parameter_is_in_one_group_at_its_rate(network: DPTConfig, decay: float) -> None:
    model = DPTModel(network)
    config = OptimizerConfig(name="adamw", encoder_lr=1e-3, decoder_lr=1e-2, layer_decay=decay, weight_decay=0.1)
    groups = make_optimizer(model, config).param_groups
    rates = {id(p): (g["base_lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(rates) == len([*model.parameters()])
    for name, parameter in model.named_parameters():
        rate, weight_decay = rates[id(parameter)]
        if not name.startswith("encoder."):
            wanted = 1e-2
        elif name.startswith("encoder.blocks."):
            wanted = 1e-3 * decay ** (3 - int(name.split(".")[2]))
        elif network.encoder == "resnet":
            wanted = 1e-3
        else:  # what comes before the four blocks
            wanted = 1e-3 * decay**4
        assert rate == pytest.approx(wanted, rel=1e-12), name
        vector = parameter.dim() < 2 or name in ("encoder.cls_token", "encoder.pos_embed")
        assert weight_decay == (0.0 if vector else 0.1), name
    assert {g["name"] for g in groups if g["shown"]} == {"encoder", "decoder"}


@pytest.mark.parametrize("network", [DPTConfig(**JOINT | {"distilled": True}), HYBRID], ids=["distilled", "hybrid"])
def test_tokens_have_no_weight_decay(network: DPTConfig) -> None:
    model = DPTModel(network)
    groups = make_optimizer(model, OptimizerConfig(weight_decay=0.1)).param_groups
    without = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in without and p.dim() > 1}
    assert names == {f"encoder.{n}" for n in ("cls_token", "dist_token", "pos_embed") if n[:4] != "dist"} | (
        {"encoder.dist_token"} if network.distilled else set()
    )


@pytest.mark.parametrize(
    ("schedule", "middle"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5), ("poly", 0.5**0.9)]
)
def test_schedules_begin_at_one_and_end_near_zero(schedule: Any, middle: float) -> None:
    config = OptimizerConfig(schedule=schedule)
    factors = [learning_rate_factor(config, step, 1000) for step in range(1000)]
    assert factors[0] == 1
    assert factors[500] == pytest.approx(middle)
    assert factors == sorted(factors, reverse=True)
    if schedule != "constant":
        assert 0 < factors[-1] < 2.1e-3


def test_warmup_rises_linearly() -> None:
    config = OptimizerConfig(warmup_steps=4)
    assert [learning_rate_factor(config, step, 100) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    falling = OptimizerConfig(warmup_steps=4, schedule="linear")
    assert learning_rate_factor(falling, 1, 100) == pytest.approx(0.4 * 0.99)


def test_sgd_with_poly_is_its_recurrence(tmp_path: Path) -> None:
    optimizer = {"name": "sgd", "encoder_lr": 1e-3, "decoder_lr": 1e-2, "momentum": 0.9, "schedule": "poly"}
    optimizer["weight_decay"] = 0.01
    trainer = trainer_of(tmp_path, DEPTH, steps=3, optimizer=optimizer)
    values = {name: p.detach().double().clone() for name, p in trainer.model.named_parameters()}
    momentum = {name: torch.zeros_like(value) for name, value in values.items()}
    for step in range(3):
        trainer.train_step(batch_of(4, seed=step))
        for name, gradient in gradients_of(trainer).items():
            decayed = gradient.dim() > 1 and not name.endswith(("cls_token", "pos_embed"))
            total = gradient.double() + (0.01 * values[name] if decayed else 0)
            momentum[name] = 0.9 * momentum[name] + total
            rate = (1e-3 if name.startswith("encoder") else 1e-2) * (1 - step / 3) ** 0.9
            values[name] = values[name] - rate * momentum[name]
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), values[name], rtol=1e-5, atol=1e-7)


def test_average_is_its_recurrence(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, JOINT, ema=0.3)
    assert trainer.averaged is not None
    wanted = {name: p.detach().double().clone() for name, p in trainer.model.named_parameters()}
    for step in range(6):
        trainer.train_step(batch_of(4, seed=step))
        decay = min(0.3, (1 + step) / (10 + step))
        for name, parameter in trainer.model.named_parameters():
            wanted[name] = decay * wanted[name] + (1 - decay) * parameter.detach().double()
    for name, parameter in trainer.averaged.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], rtol=1e-6, atol=1e-7)
        assert not parameter.requires_grad
    assert differences(dict(trainer.averaged.named_buffers()), dict(trainer.model.named_buffers())) == []
    assert trainer.result_model is trainer.averaged


# --- what is not finite, and what is empty ---


def spoiled(batch: Batch) -> Batch:
    batch.mask[:] = False
    batch.labels[:] = IGNORE_INDEX
    return batch


@pytest.mark.parametrize("mixing", ["naive", "pareto"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_step_that_is_not_finite_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: float, mixing: str
) -> None:
    trainer = trainer_of(tmp_path, JOINT, ema=0.9, mixing={"method": mixing}, train=THREE[:2])
    trainer.train_step(batch_of(4, [0, 1, 1, 0]))
    with torch.no_grad():
        trainer.model.get_parameter("encoder.patch_embed.bias")[3] = value
    before = snapshot(trainer)
    loss, norm = trainer.train_step(batch_of(4, [0, 1, 1, 0], seed=1))
    assert not (math.isfinite(loss) and math.isfinite(norm))
    assert differences(before, snapshot(trainer)) == ["/bad_steps", "/step"]
    assert (trainer.step, trainer.bad_steps) == (2, 1)
    assert "step 1 skipped, not finite: random/0, random/1, random/2, random/3" in caplog.text


@pytest.mark.parametrize("mixing", ["naive", "pareto"])
def test_step_without_targets_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, mixing: str) -> None:
    trainer = trainer_of(tmp_path, JOINT, ema=0.9, mixing={"method": mixing}, optimizer={"weight_decay": 0.1})
    trainer.train_step(batch_of(4))
    before = snapshot(trainer)
    assert math.isnan(trainer.train_step(spoiled(batch_of(4)))[0])
    assert differences(before, snapshot(trainer)) == ["/bad_steps", "/step"]
    assert "step 1 skipped, no usable target: random/0, random/1, random/2, random/3" in caplog.text


def test_gradient_alone_that_is_not_finite_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = trainer_of(tmp_path, DEPTH)
    trainer.model.get_parameter("head.depth.conv1.weight").register_hook(lambda g: g * math.inf)
    before = snapshot(trainer)
    loss, norm = trainer.train_step(batch_of(4))
    assert math.isfinite(loss)
    assert not math.isfinite(norm)
    assert differences(before, snapshot(trainer)) == ["/bad_steps", "/step"]
    assert "step 0 skipped, not finite: the gradient alone; the losses are finite" in caplog.text


def test_good_step_ends_the_count_of_bad_ones(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, DEPTH, max_bad_steps=3)
    counts = []
    for bad in (True, True, False, True, True):
        trainer.train_step(spoiled(batch_of(4)) if bad else batch_of(4))
        counts.append(trainer.bad_steps)
    assert counts == [1, 2, 0, 1, 2]
    with pytest.raises(
        FloatingPointError, match=r"3 steps in a row were skipped, the last one at step 5 because of no "
    ):
        trainer.train_step(spoiled(batch_of(4)))


def test_run_that_stays_bad_ends_and_leaves_its_last_checkpoint(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, JOINT, max_bad_steps=3, save_every=4)
    step = trainer.train_step

    def break_at_five(batch: Batch) -> tuple[float, float]:
        if trainer.step == 5:
            with torch.no_grad():
                trainer.model.get_parameter("head.depth.conv1.bias")[0] = math.nan
        return step(batch)

    trainer.train_step = break_at_five  # type: ignore[method-assign]
    with pytest.raises(
        FloatingPointError, match=r"3 steps in a row .* step 7 because of not finite: scenes/\d+, scenes"
    ):
        trainer.fit()
    found = checkpoints.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found["step"] == 4
    assert all(tensor.isfinite().all() for tensor in found["model"].values())
    assert fit(config_of(tmp_path, JOINT, max_bad_steps=3, save_every=4)).step == 12


def test_label_out_of_range_ends_the_run_by_its_sample(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, JOINT)
    batch = batch_of(4)
    batch.labels[2, 5, 5] = 10
    with pytest.raises(ValueError, match=r"random/\d: label 10 is none of the network's 10 classes"):
        trainer.train_step(batch)


def test_data_of_other_classes_than_the_network_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scenes has 10 classes, and the network 4; set model\.fields"):
        trainer_of(tmp_path, JOINT | {"num_classes": 4})


def test_unreadable_samples_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batch = batch_of(4)
    batch.errors = ["a, sample 5: gone"]
    trainer = trainer_of(tmp_path, DEPTH, accumulate=2)
    for _ in range(2):
        trainer.train_step(batch)
    assert caplog.text.count("left out: a, sample 5: gone") == 1
