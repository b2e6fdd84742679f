"""How far a training run is: what a checkpoint keeps beside the model and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import Array
from .history import History

__all__ = ["Run"]


@dataclass(slots=True)
class Run:
    """The state of a run between two steps.

    Attributes
    ----------
    step : int
        Steps done.
    history : History
    best : float or None
        The best recall so far, and in `best_state` the model that had it.
    stale : int
        Evaluations since then.
    stopped : bool
        Whether patience ended the run.
    mined : ndarray of int64, shape (n, k), or None
        Negatives of every anchor, which hold for some epochs.
    """

    step: int = 0
    history: History = field(default_factory=History)
    best: float | None = None
    best_state: dict[str, Array] | None = None
    stale: int = 0
    stopped: bool = False
    mined: NDArray[np.int64] | None = None

    def evaluated(self, score: float, state: dict[str, Array] | None) -> None:
        """Take note of an evaluation, and of the model if it is the best so far."""
        if self.best is None or score > self.best:
            self.best, self.best_state, self.stale = score, state, 0
        else:
            self.stale += 1

    def state(self) -> dict[str, Any]:
        """Return what :meth:`from_state` takes."""
        named = {name: getattr(self, name) for name in self.__slots__}
        return named | {"history": self.history.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Run:
        """Make the run that :meth:`state` described."""
        return cls(**{**state, "history": History.from_state(state["history"])})
