"""The settings of a training run: what is read, what is refused, and what an error names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from training_runs import config_of

from torchdpt import DPTConfig
from torchdpt.training import TrainConfig, Trainer, list_configs

LEAST: dict[str, Any] = {"out": "run", "train": [{"type": "scenes"}], "steps": 5}


def with_value(key: str, value: Any) -> dict[str, Any]:
    """The least config with a value somewhere."""
    values = yaml.safe_load(yaml.safe_dump(LEAST))
    *parents, last = key.split(".")
    at = values
    for part in parents:
        at = at.setdefault(part, {}) if isinstance(at, dict) else at[int(part)]
    at[last] = value
    return values


def refused(values: Any) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TrainConfig.from_dict(values, name="my.yaml")
    message = str(error.value)
    assert message.startswith("my.yaml: ")
    return message


def written(folder: Path, values: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def test_defaults_are_the_recipe_of_dpt() -> None:
    config = TrainConfig.from_dict(LEAST)
    assert (config.optimizer.name, config.optimizer.encoder_lr, config.optimizer.decoder_lr) == ("adam", 1e-5, 1e-4)
    assert (config.batch_size, config.augmentation.size, config.augmentation.crop) == (16, (384, 384), (384, 384))
    assert (config.loss.trim, config.loss.alpha, config.loss.scales) == (0.2, 0.5, 4)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("step", "steps"),
        ("optimiser", "optimizer"),
        ("optimizer.encoder_rate", "encoder_lr"),
        ("model.pre_set", "preset"),
        ("augmentation.croop", "crop"),
        ("loss.alignement", "alignment"),
        ("mixing.methods", "method"),
    ],
)
def test_misspelt_key_names_the_nearest(key: str, nearest: str) -> None:
    assert f"there is no key {key!r} (did you mean {nearest!r}?)" in refused(with_value(key, 1))


def test_key_that_is_near_to_none_names_all() -> None:
    assert "there is no key 'mixing.zzz'; there are method, parameters, every" in refused(with_value("mixing.zzz", 1))


def test_misspelt_field_of_the_network_names_the_nearest() -> None:
    config = TrainConfig.from_dict(with_value("model.fields", {"widht": 3}))
    with pytest.raises(ValueError, match=r"model.fields: there is no field 'widht' \(did you mean 'width'\?\)"):
        config.model.network()


def test_misspelt_option_or_type_of_a_data_set_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no option 'heigth'.*did you mean 'height'"):
        Trainer(config_of(tmp_path, train=[{"type": "scenes", "heigth": 3}]))
    with pytest.raises(ValueError, match=r"no data set of type 'scene'.*did you mean 'scenes'"):
        Trainer(config_of(tmp_path, train=[{"type": "scene"}]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", "many"),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("steps", -1),
        ("ema", 1.0),
        ("precision", "float16"),
        ("train", []),
        ("train", {"type": "scenes"}),
        ("train.0.weight", -1),
        ("optimizer.encoder_lr", "fast"),
        ("optimizer.encoder_lr", float("nan")),
        ("optimizer.decoder_lr", float("inf")),
        ("optimizer.betas", [0.9]),
        ("optimizer", 3),
        ("augmentation.size", [384]),
        ("augmentation.crop", "large"),
        ("augmentation.rescale", [2, 1]),
        ("augmentation.resize", "larger"),
        ("loss.trim", 1),
        ("mixing.parameters", 3),
        ("model.ablation", ["heads", "x"]),
        ("seed", -1),
    ],
)
def test_wrong_value_is_refused_by_its_name(key: str, value: Any) -> None:
    message = refused(with_value(key, value))
    assert key.split(".")[0] in message
    assert "there is no key" not in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", True, "steps: must be int | None, got True"),
        ("loss.alpha", False, "loss.alpha: must be float, got False"),
        ("optimizer.betas", [0.9, True], "optimizer.betas: must be tuple[float, float], got [0.9, True]"),
        ("augmentation.colors", True, "augmentation: colors must be float, got True"),
        ("augmentation.crop", [True, 96], "augmentation: crop must be tuple[int, int] | None, got [True, 96]"),
        ("compile", 3, "compile: must be true or false, got 3"),
        ("steps", 1.5, "steps: must be a whole number, got 1.5"),
        ("steps", "many", "steps: must be a whole number, got 'many'"),
        ("optimizer.encoder_lr", "fast", "optimizer.encoder_lr: must be a number, got 'fast'"),
        ("optimizer.eps", float("inf"), "optimizer.eps: must be a finite number, got inf"),
        ("batch_size", 0, "batch_size: must be at least 1, got 0"),
        ("optimizer.eps", 0, "optimizer.eps: must be above 0.0, got 0"),
        ("loss.trim", 1, "loss.trim: must be below 1.0, got 1"),
        ("optimizer.layer_decay", 2, "optimizer.layer_decay: must be at most 1.0, got 2"),
        ("precision", "float16", "precision: must be 'float32' or 'bfloat16', got 'float16'"),
        ("train", [], "train: must hold 1 or more, got []"),
        ("augmentation.crop", "large", "augmentation.crop: must be a list, got 'large'"),
        ("device", 3, "device: must be text, got 3"),
        ("optimizer", 3, "optimizer: must be keys and values, got 3"),
    ],
)
def test_message_says_what_was_wanted_and_what_came(key: str, value: Any, message: str) -> None:
    assert refused(with_value(key, value)) == f"my.yaml: {message}"


def test_batch_that_memory_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size 1000000000: 1000000000 images of 32 x 32 .* take 16,384 GB, and"):
        Trainer(config_of(tmp_path, batch_size=1e9))


def test_what_is_missing_is_named() -> None:
    message = refused({"steps": 5, "train": [{"weight": 2}]})
    assert "out is missing" in message
    assert "train.0.type is missing" in message


@pytest.mark.parametrize("changes", [{"steps": None}, {"epochs": 2}])
def test_length_is_either_steps_or_epochs(changes: dict[str, Any]) -> None:
    assert "wanted either steps or epochs" in refused(LEAST | changes)


def test_epochs_are_of_images_or_of_steps() -> None:
    epochs = {"steps": None, "epochs": 3}
    assert "epoch_images or epoch_steps, got both" in refused(LEAST | epochs | {"epoch_images": 5, "epoch_steps": 5})
    assert "wanted epochs, not steps" in refused(LEAST | {"epoch_steps": 5})
    steps = {
        name: TrainConfig.from_dict(LEAST | epochs | {"batch_size": 16} | extra).total_steps(1000)
        for name, extra in {
            "all": {},
            "images": {"epoch_images": 72_000},
            "steps": {"epoch_steps": 72_000},
            "half": {"epochs": 0.5, "epoch_images": 72_000},
            "short": {"epochs": 0.001},
        }.items()
    }
    # 3 * 1000 / 16 = 187.5; the paper's 72,000 by either reading.
    assert steps == {"all": 188, "images": 13_500, "steps": 216_000, "half": 2250, "short": 1}
    assert TrainConfig.from_dict(LEAST).total_steps(1000) == 5


@pytest.mark.parametrize("other", ["ablation", "weights"])
def test_network_comes_from_one_source(other: str) -> None:
    values = {"ablation": ["readout", "Ignore"], "weights": "w.pt"}
    message = refused(LEAST | {"model": {"preset": "dpt_tiny", other: values[other]}})
    assert f"one source, got preset and {other}" in message
    assert "weights holds an encoder" in refused(LEAST | {"model": {"weights": "a", "encoder_weights": "b"}})


def test_network_is_that_of_preset_fields_or_ablation() -> None:
    def network(**model: Any) -> DPTConfig:
        return TrainConfig.from_dict(LEAST | {"model": model}).model.network()

    assert network() == DPTConfig()
    assert network(preset="dpt_tiny") == DPTConfig.preset("dpt_tiny")
    assert network(preset="dpt_tiny", fields={"features": 8}) == DPTConfig.preset("dpt_tiny").replace(features=8)
    row, config = next(iter(DPTConfig.ablation("taps").items()))
    assert network(ablation=["taps", row]) == config
    with pytest.raises(ValueError, match=r"model.ablation: table taps has no row 'x'; it has .*, "):
        network(ablation=["taps", "x"])


# --- files and changes ---


def test_changes_reach_every_place(tmp_path: Path) -> None:
    path = written(tmp_path, LEAST | {"train": [{"type": "scenes"}, {"type": "folder", "path": "a"}]})
    config = TrainConfig.load(
        path,
        [
            "optimizer.encoder_lr=1e-4",
            "optimizer.betas=[0.8, 0.95]",
            "augmentation.crop=null",
            "augmentation.size=[96, 128]",
            "train.1.path=b/c",
            "train.0.first=3",
            "model.fields.depth_scale=1e-4",
            "model.fields.taps=[1, 2, 3, 4]",
            "precision=bfloat16",
            "compile=true",
            "steps=7",
        ],
    )
    assert config.optimizer.encoder_lr == 1e-4
    assert config.optimizer.betas == (0.8, 0.95)
    assert (config.augmentation.crop, config.augmentation.size) == (None, (96, 128))
    assert (config.train[0].options, config.train[1].options) == ({"first": 3}, {"path": "b/c"})
    assert config.model.fields == {"depth_scale": 1e-4, "taps": [1, 2, 3, 4]}
    assert (config.precision, config.compile, config.steps) == ("bfloat16", True, 7)


@pytest.mark.parametrize("text", ["1e-4", "1.5e+3", "-2E5", ".5e1", "1.e2", "+3e0"])
def test_numbers_with_an_exponent_are_numbers_everywhere(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, f"{{out: run, steps: 1, train: [{{type: scenes, a: {text}}}]}}")
    config = TrainConfig.load(path, [f"train.0.b={text}", "train.0.c=e5", "train.0.d=1e", "train.0.e=7"])
    number = float(text)
    assert config.train[0].options == {"a": number, "b": number, "c": "e5", "d": "1e", "e": 7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("steps", "wanted key=value, got 'steps'"),
        ("=5", "wanted key=value, got '=5'"),
        ("train.3.path=a", "train.3.path=a: there is no place 'train.3.path'"),
        ("train.first.path=a", "there is no place 'train.first.path'"),
        ("out.name=a", "there is no place 'out.name'"),
        ("steps=[1", "the value is not YAML"),
        ("stpes=3", r"there is no key 'stpes' \(did you mean 'steps'\?\)"),
        ("optimizer.encoder_lr=fast", "optimizer.encoder_lr: .*number.*got 'fast'"),
    ],
)
def test_change_that_cannot_be_made_is_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.load(written(tmp_path, LEAST), [change])


@pytest.mark.parametrize(("text", "message"), [("[1, 2", "not YAML"), ("- 1", "wanted keys and values, got list")])
def test_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.load(written(tmp_path, text))


def test_config_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no config 'no such config at all'.* wanted a YAML file or one of"):
        TrainConfig.load("no such config at all")


@pytest.mark.parametrize("name", list_configs())
def test_shipped_config_is_read(name: str) -> None:
    config = TrainConfig.load(name)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "photographs")
    with pytest.raises((ValueError, OSError), match="photographs"):
        Trainer(config_of(tmp_path / "run", train=[{"type": "folder", "path": missing}]))


def test_all_settings_survive_a_file(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        validation=[{"type": "scenes", "images": 3}],
        ema=0.99,
        mixing={"method": "pareto", "parameters": ["encoder.*"]},
        augmentation={"size": [32, 48], "crop": None, "rescale": [0.5, 2]},
        optimizer={"encoder_lr": 1e-5, "clip_norm": 1},
    )
    assert TrainConfig.load(written(tmp_path, config.to_dict())) == config
    assert TrainConfig.from_dict(config.to_dict()).differences(config.to_dict()) == []


def test_differences_name_both_values() -> None:
    here = TrainConfig.from_dict(LEAST | {"optimizer": {"encoder_lr": 1e-3}, "validation": [{"type": "scenes"}]})
    there = TrainConfig.from_dict(LEAST | {"batch_size": 8, "model": {"fields": {"width": 5}}}).to_dict()
    assert [line for line in here.differences(there) if "validation" not in line] == [
        "batch_size: 8 -> 16",
        "model.fields.width: 5 -> (not set)",
        "optimizer.encoder_lr: 1e-05 -> 0.001",
    ]
    assert "validation.0.type: (not set) -> scenes" in here.differences(there)
