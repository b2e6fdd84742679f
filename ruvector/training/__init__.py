"""Training: losses over embeddings, and where their negatives come from."""

from .losses import InfoNCELoss, LocalContrastiveLoss, LossResult
from .miners import HardNegativeMiner, InBatchMiner
from .spectral import SpectralRegularization

__all__ = [
    "HardNegativeMiner",
    "InBatchMiner",
    "InfoNCELoss",
    "LocalContrastiveLoss",
    "LossResult",
    "SpectralRegularization",
]
