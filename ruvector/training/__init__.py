"""Training: losses, where their negatives come from, optimisers, schedules and curricula."""

from .curriculum import CurriculumScheduler, CurriculumStage
from .losses import InfoNCELoss, LocalContrastiveLoss, LossResult
from .miners import HardNegativeMiner, InBatchMiner
from .optimizers import AdamOptimizer, AdamWOptimizer, SGDOptimizer, clip_grad_norm
from .schedules import LearningRateScheduler, TemperatureAnnealing
from .spectral import SpectralRegularization

__all__ = [
    "AdamOptimizer",
    "AdamWOptimizer",
    "CurriculumScheduler",
    "CurriculumStage",
    "HardNegativeMiner",
    "InBatchMiner",
    "InfoNCELoss",
    "LearningRateScheduler",
    "LocalContrastiveLoss",
    "LossResult",
    "SGDOptimizer",
    "SpectralRegularization",
    "TemperatureAnnealing",
    "clip_grad_norm",
]
