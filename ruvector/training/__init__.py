"""Training: losses over embeddings, and where their negatives come from."""

from .losses import InfoNCELoss, LocalContrastiveLoss, LossResult, SpectralRegularization
from .miners import HardNegativeMiner, InBatchMiner

__all__ = [
    "HardNegativeMiner",
    "InBatchMiner",
    "InfoNCELoss",
    "LocalContrastiveLoss",
    "LossResult",
    "SpectralRegularization",
]
