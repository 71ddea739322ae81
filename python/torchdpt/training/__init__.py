"""Training: the recipe of DPT and MiDaS, from a config to a model; docs/training.md."""

from torchdpt.training.config import TrainConfig, list_configs
from torchdpt.training.trainer import Trainer, TrainResult, fit

__all__ = ["TrainConfig", "TrainResult", "Trainer", "fit", "list_configs"]
