"""The settings of a training run: a YAML file, with changes from the command line, checked."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from torchdpt.annotations import is_of, name_of
from torchdpt.config import DPTConfig
from torchdpt.data import Augmentation

__all__ = ["TrainConfig", "list_configs"]

CONFIGS = Path(__file__).parent.parent / "configs"


class _Loader(yaml.SafeLoader):
    """YAML as of version 1.2, where 1e-4 is a number; PyYAML takes it for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _has_bool_for_number(value: Any, hint: Any) -> bool:
    """Whether true or false, alone or in a list, stands where the type has none: pydantic takes them for 1 and 0."""
    value = tuple(value) if isinstance(value, list) else value
    parts = value if isinstance(value, tuple) else (value,)
    return any(isinstance(part, bool) for part in parts) and not is_of(value, hint)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        hint = cls.model_fields[info.field_name or ""].annotation
        if _has_bool_for_number(value, hint):
            raise ValueError(f"must be {name_of(hint)}")
        return value


class ModelConfig(_Section):
    """The network, and what it starts from.

    Attributes:
        preset: Name of a preset (`torchdpt.list_presets`).
        fields: Fields of `DPTConfig` that differ from the preset, or without one from the defaults.
        ablation: (table, row) of `DPTConfig.ablation`, in place of a preset.
        weights: A checkpoint of the whole network to start from, as `DPTModel.from_pretrained` takes it. The network is
            the checkpoint's; `fields` may only change its heads, which then start at random where shapes differ.
        encoder_weights: A checkpoint of the encoder to start from, as `DPTModel` takes it; or the id of one on the hub.
        fit_metric: Make a network of relative depth one of metres before training, as DPT did for NYU and KITTI: the
            scale and shift that align its inverse depth to the truth (robustly), averaged over training images.
        fit_metric_images: Over how many images at most.
        size: (height, width) at which the trained model will predict. Default: the crop of training.
        resize: Policy of `ImageProcessor` by which photographs get there.
    """

    preset: str | None = None
    fields: dict[str, Any] = {}
    ablation: tuple[Literal["taps", "readout", "backbone"], str] | None = None
    weights: str | None = None
    encoder_weights: str | None = None
    fit_metric: bool = False
    fit_metric_images: int = Field(1000, ge=1)
    size: tuple[int, int] | None = None
    resize: Literal["minimal", "lower_bound", "upper_bound", "exact"] = "minimal"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [name for name in ("preset", "ablation", "weights") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"the network comes from one source, got {' and '.join(sources)}")
        if self.weights is not None and self.encoder_weights is not None:
            raise ValueError("weights holds an encoder, too; leave out encoder_weights")
        return self

    def network(self) -> DPTConfig:
        """The network's config, if it does not come from `weights`.

        Raises:
            ValueError: if there is no such preset, row or field.
        """
        if self.ablation is not None:
            table, row = self.ablation
            rows = DPTConfig.ablation(table)
            if row not in rows:
                raise ValueError(f"model.ablation: table {table} has no row {row!r}; it has {', '.join(rows)}")
            base = rows[row]
        else:
            base = DPTConfig() if self.preset is None else DPTConfig.preset(self.preset)
        return changed(base, self.fields)


class DataConfig(_Section):
    """A data set: its type (`torchdpt.data.DATASETS`), the options of that type, and how often it is drawn.

    Attributes:
        type: What kind of data set.
        weight: How often it is drawn, against the others'.
        protocol: Of validation: how it is measured: one of `torchdpt.protocols.PROTOCOLS`, or at the size of training
            "depth" (metres, or relative inverse depth), or "classes". Default: "depth", of a network that predicts it.
        protocol_fields: Of validation: fields of the protocol that differ, such as `cap` and `crop`.
        images: Of validation: how many of its samples at most, evenly spaced. Default: all.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    weight: float = Field(1.0, ge=0)
    protocol: str | None = None
    protocol_fields: dict[str, Any] = {}
    images: int | None = Field(None, ge=1)

    @property
    def options(self) -> dict[str, Any]:
        """Those of the type: what is not named above."""
        return dict(self.model_extra or {})


class LossConfig(_Section):
    """What is minimised; see `torchdpt.losses`.

    Attributes:
        depth: "scale_and_shift_invariant" for relative depth, "silog" for metres, None for no depth.
        alignment: Of the former.
        data: Its data term.
        trim: Its share of residuals left out.
        alpha: Weight of the gradient term; with "silog" that of log depth. 0 for sparse depth.
        scales: Of the gradient term.
        silog: Variant of the latter, an error of each image: "eigen", or "depth_anything".
        segmentation: Weight of the cross-entropy, where the network and the data have classes.
        auxiliary: Weight of the auxiliary head's, within it.
    """

    depth: Literal["scale_and_shift_invariant", "silog"] | None = "scale_and_shift_invariant"
    alignment: Literal["robust", "least_squares"] = "robust"
    data: Literal["trimmed", "mae", "mse"] = "trimmed"
    trim: float = Field(0.2, ge=0, lt=1)
    alpha: float = Field(0.5, ge=0)
    scales: int = Field(4, ge=1)
    silog: Literal["eigen", "depth_anything"] = "eigen"
    segmentation: float = Field(1.0, ge=0)
    auxiliary: float = Field(0.2, ge=0)


class MixingConfig(_Section):
    """How the gradients of several data sets become one.

    Attributes:
        method: "naive", the gradient of the mean over all samples; "pareto", the shortest convex combination of the
            data sets' gradients (Sener and Koltun 2018), which lowers the loss of each of them.
        parameters: Of "pareto": patterns (fnmatch) of the parameters whose gradients decide; empty for all, which is
            exact, and takes the memory of one gradient for each data set.
        every: Of "pareto": the weights are computed anew in each so many steps.
    """

    method: Literal["naive", "pareto"] = "naive"
    parameters: tuple[str, ...] = ()
    every: int = Field(1, ge=1)


class OptimizerConfig(_Section):
    """How parameters are changed.

    Attributes:
        name: "adam", "adamw" or "sgd".
        encoder_lr: Learning rate of the encoder.
        decoder_lr: Of all the rest.
        layer_decay: Factor of the learning rate from one block of a transformer to the one before.
        betas: Of Adam and AdamW.
        eps: Of Adam and AdamW.
        momentum: Of SGD.
        weight_decay: Not of vectors: biases, normalisation, position embedding and tokens.
        schedule: From 1 to 0 over the run: "constant", "linear", "cosine", or "poly", (1 - t)^0.9.
        warmup_steps: Over which learning rates rise from 0, linearly.
        clip_norm: Longer gradients are shortened to this; None: none.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    encoder_lr: float = Field(1e-5, ge=0)
    decoder_lr: float = Field(1e-4, ge=0)
    layer_decay: float = Field(1.0, gt=0, le=1)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine", "poly"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0)


class TrainConfig(_Section):
    """A training run. Defaults are the recipe of DPT's depth; `configs/` has whole recipes.

    Attributes:
        out: Folder of the run: checkpoints, logs, and the trained model in `final/` and `best/`.
        train: Data sets to train on.
        validation: Data sets to measure on.
        model: The network.
        augmentation: What is done to training samples.
        loss: What is minimised.
        mixing: How data sets are weighed against each other.
        optimizer: How parameters are changed.
        steps: How long to train, in steps; or else `epochs`.
        epochs: How long to train, in epochs.
        epoch_images: Images of an epoch. Default: as many as the training data sets have.
        epoch_steps: Steps of an epoch, in place of `epoch_images`. (The paper's 72,000 are either; docs/training.md.)
        batch_size: Samples of a step, of all processes together.
        accumulate: A process runs its samples in this many parts, one after the other.
        precision: "bfloat16": the network runs under autocast, losses in float32.
        ema: Decay of the average of parameters that is validated and saved in place of the last ones; None: none.
        activation_checkpointing: Less memory for about a third more time.
        compile: Whether the network runs under torch.compile.
        seed: Of first values, samples and augmentation.
        device: "auto" takes a GPU where there is one.
        workers: Processes that read ahead, for each training process.
        threads: Of the CPU, for each training process. Default: torch's.
        max_bad_steps: So many steps in a row without a finite loss and gradient end the training.
        log_every: Steps between lines of the log.
        validate_every: Steps between validations; 0: only before the first and after the last step.
        save_every: Steps between checkpoints; 0: only after the last step.
        keep: Checkpoints that are kept, the newest ones.
        panels: Pictures of predictions in TensorBoard and in `pictures/`, for each validation.
    """

    out: Path
    train: tuple[DataConfig, ...] = Field(min_length=1)
    validation: tuple[DataConfig, ...] = ()
    model: ModelConfig = ModelConfig()
    augmentation: Augmentation = Augmentation()
    loss: LossConfig = LossConfig()
    mixing: MixingConfig = MixingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    epoch_images: int | None = Field(None, ge=1)
    epoch_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    accumulate: int = Field(1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    ema: float | None = Field(None, gt=0, lt=1)
    activation_checkpointing: bool = False
    compile: bool = False
    seed: int = Field(0, ge=0, lt=2**63)
    device: str = "auto"
    workers: int = Field(1, ge=0)
    threads: int | None = Field(None, ge=1)
    max_bad_steps: int = Field(10, ge=1)
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(0, ge=0)
    save_every: int = Field(1000, ge=0)
    keep: int = Field(2, ge=1)
    panels: int = Field(4, ge=0)

    @field_validator("augmentation", mode="before")
    @classmethod
    def _true_is_no_number_there_either(cls, value: Any) -> Any:
        hints = get_type_hints(Augmentation)
        for name, part in value.items() if isinstance(value, dict) else ():
            if name in hints and _has_bool_for_number(part, hints[name]):
                raise ValueError(f"{name} must be {name_of(hints[name])}, got {part!r}")
        return value

    @model_validator(mode="after")
    def _data(self) -> Self:
        for i, data in enumerate(self.train):
            if data.protocol is not None or data.protocol_fields or data.images is not None:
                raise ValueError(f"train.{i}: protocol, protocol_fields and images are of validation, not of training")
        for i, data in enumerate(self.validation):
            if data.weight != 1:
                raise ValueError(f"validation.{i}: weight is of training, not of validation")
        return self

    @model_validator(mode="after")
    def _length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            got = "neither" if self.steps is None else "both; take one back, such as steps=null"
            raise ValueError(f"how long to train: wanted either steps or epochs, got {got}")
        if self.epochs is None and (self.epoch_images or self.epoch_steps):
            raise ValueError("epoch_images and epoch_steps say what epochs are; wanted epochs, not steps")
        if self.epoch_images is not None and self.epoch_steps is not None:
            raise ValueError("an epoch has epoch_images or epoch_steps, got both")
        return self

    def total_steps(self, images: int) -> int:
        """How long to train, in steps, on so many images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        steps_per_epoch = self.epoch_steps or (self.epoch_images or images) / self.batch_size
        return max(1, round(self.epochs * steps_per_epoch))

    @classmethod
    def load(cls, source: str | os.PathLike[str], changes: Sequence[str] = ()) -> Self:
        """Read a config.

        Args:
            source: A YAML file, or the name of one that is shipped (`list_configs`).
            changes: "key=value", the value in YAML; keys of sections and numbers of lists are joined by dots:
                "optimizer.encoder_lr=1e-5", "train.0.path=photos".

        Raises:
            ValueError: if there is no such file or key, or a value is wrong; it names the nearest key.
        """
        path = Path(source)
        if not path.is_file():
            path = CONFIGS / f"{source}.yaml"
            if not path.is_file():
                near = difflib.get_close_matches(str(source), list_configs(), n=1, cutoff=0.4)
                why = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(
                    f"there is no config {str(source)!r}{why}; wanted a YAML file or one of {', '.join(list_configs())}"
                )
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: wanted keys and values, got {type(values).__name__}")
        for change in changes:
            _set(values, change)
        return cls.from_dict(values, name=f"{path}{' with the given changes' if changes else ''}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, name: str = "config") -> Self:
        """Check values, as `load` reads them.

        Raises:
            ValueError: if a key is unknown or a value is wrong; it names the nearest key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{name}: {_explain(error, cls)}") from None

    def to_dict(self) -> dict[str, Any]:
        """All settings, for YAML or JSON."""
        return self.model_dump(mode="json")

    def differences(self, other: dict[str, Any]) -> list[str]:
        """Settings that differ from those of another run, as `to_dict` gives them: "key: there -> here"."""
        mine, theirs = _flat(self.to_dict()), _flat(other)
        keys = sorted({*mine, *theirs})
        absent = "(not set)"
        return [
            f"{key}: {theirs.get(key, absent)} -> {mine.get(key, absent)}"
            for key in keys
            if mine.get(key, absent) != theirs.get(key, absent)
        ]


def list_configs() -> list[str]:
    """Names of the recipes that are shipped."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def changed(config: DPTConfig, fields: dict[str, Any]) -> DPTConfig:
    """The config with some fields changed.

    Raises:
        ValueError: if there is no such field; it names the nearest.
    """
    known = list(DPTConfig.__dataclass_fields__)
    for name in fields:
        if name not in known:
            raise ValueError(f"model.fields: there is no field {name!r}{_nearest(name, known)}")
    return config.replace(**fields)


def _set(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise ValueError(f"wanted key=value, got {change!r}")
    *parents, last = key.split(".")
    at: Any = values
    try:
        for part in parents:
            if isinstance(at, list):
                at = at[int(part)]
            else:
                if at.get(part) is None:
                    at[part] = {}
                at = at[part]
        at[int(last) if isinstance(at, list) else last] = yaml.load(text, _Loader)
    except (IndexError, ValueError, TypeError, AttributeError):
        raise ValueError(f"{change}: there is no place {key!r} in the config") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{change}: the value is not YAML: {error}") from error


# By the types of pydantic's errors, whose own words are others.
_MESSAGES = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("string_type", "path_type"), "must be text"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "dataclass_type"), "must be keys and values"),
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "literal_error": "must be {expected}",
    "too_short": "must hold {min_length} or more",
    "too_long": "must hold {max_length} at most",
}


def _explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Pydantic's errors in one line each, with the nearest key for an unknown one."""
    lines = []
    for problem in error.errors():
        where = [str(part) for part in problem["loc"]]
        key = ".".join(where)
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            lines.append(f"there is no key {key!r}{_nearest(where[-1], _keys(root, where[:-1]))}")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:
            message = _MESSAGES.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            message = message.format(**problem.get("ctx", {})) if problem["type"] in _MESSAGES else message
            got = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
            lines.append(f"{key}: {message}{got}" if key else message)
    return "; ".join(lines)


def _keys(section: Any, where: Sequence[str]) -> list[str]:
    """Names of the settings of a section, found by the path to it."""
    for part in where:
        fields = getattr(section, "model_fields", {})
        if part in fields:
            section = fields[part].annotation
    return list(getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", {}))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else f"; there are {', '.join(known)}" if known else ""


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        pairs = values.items()
    elif isinstance(values, list) and any(isinstance(value, dict) for value in values):
        pairs = ((str(i), value) for i, value in enumerate(values))  # type: ignore[assignment]
    else:
        return {prefix: values}
    return {key: leaf for name, value in pairs for key, leaf in _flat(value, f"{prefix}.{name}".lstrip(".")).items()}
