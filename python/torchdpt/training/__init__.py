"""Training: the recipe of DPT and MiDaS, from a config to a model; docs/training.md."""

from torchdpt.training.config import DataConfig, LossConfig, MixingConfig, ModelConfig, OptimizerConfig, list_configs
from torchdpt.training.config import TrainConfig as TrainConfig
from torchdpt.training.trainer import Trainer, TrainResult
from torchdpt.training.trainer import fit as fit

__all__ = [
    "DataConfig",
    "LossConfig",
    "MixingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainResult",
    "Trainer",
    "list_configs",
]
