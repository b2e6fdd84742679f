"""What the losses return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._arrays import Array

__all__ = ["LossResult"]


@dataclass(frozen=True, slots=True, eq=False)
class LossResult:
    """A loss and its gradients, each in shape and dtype of the argument.

    Attributes
    ----------
    loss : float or ndarray, shape (B,)
        An array for a batch with ``reduction="none"``; gradients are then those of its sum.
    anchor : ndarray
        Gradient of the anchors; of the embeddings, or of the matrices in a list, for
        :class:`SpectralRegularization`.
    positive : ndarray or None
        Gradient of the positives, as negatives of other anchors too where the batch provides
        those.
    negatives : ndarray or None
        Gradient of the negatives, None where there were none given.
    temperature : float or None
        Gradient of the temperature, where the loss has one.

    Examples
    --------
    >>> from ruvector.training import InfoNCELoss
    >>> result = InfoNCELoss().compute_with_gradients([1.0, 0.0], [1.0, 0.1], [[0.0, 1.0]])
    >>> result.gradients is result.anchor
    True
    """

    loss: Any
    anchor: Any
    positive: Array | None = None
    negatives: Array | None = None
    temperature: float | None = None

    @property
    def gradients(self) -> Any:
        """The gradient of the anchors."""
        return self.anchor
