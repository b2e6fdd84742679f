"""One step of training: encode, compare, take gradients back, clip, update."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import Array
from ..errors import NonFiniteError
from ._joint import Joint
from ._pairs import Chosen
from ._plan import Settings
from .config import TrainerConfig
from .model import learned_of
from .optimizers import clip_grad_norm

__all__ = ["Stepper"]

_LOSS = "loss."


class Stepper:
    """Takes steps with one model, loss and optimizer.

    Parameters
    ----------
    model : Model or PairModel
    joint : Joint
        The model.
    loss, optimizer : object
    config : TrainerConfig
    """

    def __init__(
        self, model: Any, joint: Joint, loss: Any, optimizer: Any, config: TrainerConfig
    ) -> None:
        self._model = model
        self._joint = joint
        self._loss = loss
        self._optimizer = optimizer
        self._limit = math.inf if config.gradient_clip is None else config.gradient_clip
        self._in_batch = config.in_batch_negatives

    def parameters(self) -> dict[str, Array]:
        """Return live views of what the optimizer updates: of the model and of the loss."""
        own: dict[str, Array] = dict(self._model.parameters())
        learned = learned_of(self._loss)
        return own | {_LOSS + name: array for name, array in learned.items()}

    def take(
        self,
        anchors: Array,
        positives: Array,
        chosen: Chosen | None,
        ids: NDArray[np.int64] | None,
        settings: Settings,
        number: int,
    ) -> dict[str, float]:
        """Take one step; `number` is what an error calls it.

        Parameters
        ----------
        anchors, positives : ndarray, shape (B, ...)
        chosen : Chosen or None
            Negatives beside the batch's own.
        ids : ndarray of int64, shape (B,), or None
            What the positives are; needed beside negatives with ids.
        settings : Settings
        number : int

        Returns
        -------
        dict of str to float
            Loss, learning rate, temperature and gradient norm.

        Raises
        ------
        NonFiniteError
            If the loss or a gradient is NaN or infinite; nothing was updated.
        """
        others = positives if chosen is None else np.concatenate((positives, chosen.items))
        first, second = self._joint.encode(anchors, others)
        with self._at_temperature(settings.temperature):
            loss, grad_first, grad_second, own = self._compared(first, second, chosen, ids)
            temperature = float(getattr(self._loss, "temperature", math.nan))
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {number}: the loss is {loss}")
        gradients = self._joint.backward(grad_first, grad_second) | own
        norm = float(clip_grad_norm(gradients, self._limit))
        if not math.isfinite(norm):
            bad = sorted(name for name, x in gradients.items() if not np.isfinite(x).all())
            raise NonFiniteError(
                f"step {number}: the gradient of {', '.join(bad)} is not finite"
            )
        if settings.learning_rate is not None:
            self._optimizer.learning_rate = settings.learning_rate
        self._optimizer.step(gradients, params=self.parameters())
        return {
            "loss": loss,
            "learning_rate": float(self._optimizer.learning_rate),
            "temperature": temperature,
            "gradient_norm": norm,
        }

    def _compared(
        self, first: Array, second: Array, chosen: Chosen | None, ids: Any
    ) -> tuple[float, Array, Array, dict[str, Array]]:
        count = len(first)
        positive = second[:count]
        named: dict[str, Any] = {}
        negatives: Array | None = None
        if chosen is None or not len(chosen.ids):
            named = {} if ids is None else {"ids": ids}
        elif self._in_batch:
            negatives = second
            named = {"ids": ids, "negative_ids": np.concatenate((ids, chosen.ids))}
        elif chosen.each:
            negatives = second[count:].reshape(count, chosen.each, -1)
        else:
            negatives = second[count:]
            named = {"ids": ids, "negative_ids": chosen.ids}
        result = self._loss.compute_with_gradients(first, positive, negatives, **named)
        grad = result.positive
        if negatives is second:
            grad = np.array(result.negatives)
            grad[:count] += result.positive
        elif negatives is not None:
            grad = np.concatenate((grad, result.negatives.reshape(-1, second.shape[1])))
        learned = learned_of(self._loss)
        own = {
            _LOSS + name: np.asarray(getattr(result, name), array.dtype).reshape(array.shape)
            for name, array in learned.items()
        }
        return float(np.mean(result.loss)), result.anchor, grad, own

    @contextmanager
    def _at_temperature(self, value: float | None) -> Iterator[None]:
        if value is None:
            yield
            return
        before = self._loss.temperature
        self._loss.temperature = value
        try:
            yield
        finally:
            self._loss.temperature = before
