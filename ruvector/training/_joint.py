"""One model or a pair of models behind one interface for the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._arrays import Array
from ..errors import DimensionMismatchError, InvalidConfigError
from ._pairs import Items
from .model import Model, PairModel

__all__ = ["Joint"]

# Items that are encoded at a time where there is nothing to learn from them.
_BLOCK = 4096


class Joint:
    """Encodes the anchors and the others of a step, and takes their gradients back.

    Parameters
    ----------
    model : Model or PairModel
    """

    def __init__(self, model: Any) -> None:
        self._pair = isinstance(model, PairModel)
        if not self._pair and not isinstance(model, Model):
            raise InvalidConfigError(
                "model must have encode, backward, parameters, state_dict and "
                f"load_state_dict, got {model!r}"
            )
        self._model = model

    def encode(self, anchors: Array, others: Array) -> tuple[Array, Array]:
        """Encode a step's items; one model takes them all in one call."""
        if self._pair:
            return self._model.encode_anchors(anchors), self._model.encode_positives(others)
        if anchors.shape[1:] != others.shape[1:]:
            raise DimensionMismatchError(
                f"positives must hold items of shape {anchors.shape[1:]} like anchors, "
                f"got {others.shape[1:]}"
            )
        both = self._model.encode(np.concatenate((anchors, others)))
        return both[: len(anchors)], both[len(anchors) :]

    def backward(self, anchors: Array, others: Array) -> dict[str, Array]:
        """Return the gradients of the parameters from those of the encodings."""
        gradients: dict[str, Array]
        if self._pair:
            gradients = self._model.backward_pair(anchors, others)
        else:
            gradients = self._model.backward(np.concatenate((anchors, others)))
        return gradients

    def all_anchors(self, items: Items) -> Array:
        """Encode any number of anchors, a block at a time."""
        return _all(self._model.encode_anchors if self._pair else self._model.encode, items)

    def all_positives(self, items: Items) -> Array:
        """Encode any number of positives or negatives, a block at a time."""
        return _all(self._model.encode_positives if self._pair else self._model.encode, items)


def _all(encode: Callable[[Array], Array], items: Items) -> Array:
    result: Array | None = None
    for rows in _blocks(len(items)):
        block = encode(items.take(rows))
        if result is None:
            result = np.empty((len(items), *block.shape[1:]), block.dtype)
        result[rows] = block
    assert result is not None
    return result


def _blocks(count: int) -> Iterator[slice]:
    return (slice(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK))
