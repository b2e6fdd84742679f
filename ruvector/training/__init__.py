"""Training: losses, negatives, optimisers, schedules, models, and a trainer over them."""

from .adapter_files import load_adapter, save_adapter
from .adapters import LinearAdapter
from .config import TrainerConfig
from .curriculum import CurriculumScheduler, CurriculumStage
from .encoders import GraphEncoder, MemoryEncoder
from .history import History
from .losses import InfoNCELoss, LocalContrastiveLoss, LossResult
from .miners import HardNegativeMiner, InBatchMiner
from .model import Model, PairModel
from .optimizers import AdamOptimizer, AdamWOptimizer, SGDOptimizer, clip_grad_norm
from .pair_encoder import PairEncoder
from .recall import recall_at_k
from .schedules import LearningRateScheduler, TemperatureAnnealing
from .spectral import SpectralRegularization
from .trainer import Trainer

__all__ = [
    "AdamOptimizer",
    "AdamWOptimizer",
    "CurriculumScheduler",
    "CurriculumStage",
    "GraphEncoder",
    "HardNegativeMiner",
    "History",
    "InBatchMiner",
    "InfoNCELoss",
    "LearningRateScheduler",
    "LinearAdapter",
    "LocalContrastiveLoss",
    "LossResult",
    "MemoryEncoder",
    "Model",
    "PairEncoder",
    "PairModel",
    "SGDOptimizer",
    "SpectralRegularization",
    "TemperatureAnnealing",
    "Trainer",
    "TrainerConfig",
    "clip_grad_norm",
    "load_adapter",
    "recall_at_k",
    "save_adapter",
]
