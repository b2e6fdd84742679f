"""The online softmax: a running maximum and sum of exponentials for every query row.

Milakov and Gimelshein 2018, "Online normalizer calculation for softmax", arXiv 1805.02867.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.fallback._tiles import Block
from ruvector._kernels.spec import AttentionSpec

__all__ = ["Normaliser", "zero_point"]

_Array = NDArray[Any]


class Normaliser:
    """Running maximum and sum of the exponentials of the scores of a block's rows."""

    __slots__ = ("_block", "_maximum", "_sum")

    def __init__(self, block: Block, spec: AttentionSpec, dtype: np.dtype[Any]) -> None:
        self._block = block
        self._maximum = np.full((*block.lines, 1), -np.inf, dtype)
        if spec.sink_logits is not None:
            self._maximum.reshape(*block.shape, 1)[...] = spec.sink_logits[
                block.place[1], np.newaxis, np.newaxis
            ]
        self._sum = (self._maximum != -np.inf).astype(dtype)

    def update(self, scores: _Array) -> _Array:
        """Take in a tile, turning its scores into weights relative to the maximum so far.

        Returns the factor by which what was summed before has to be multiplied.
        """
        maximum = np.maximum(self._maximum, scores.max(axis=-1, keepdims=True))
        origin = zero_point(maximum)
        scores -= origin
        np.exp(scores, out=scores)
        factor: _Array = np.exp(self._maximum - origin)
        self._maximum = maximum
        self._sum *= factor
        self._sum += scores.sum(axis=-1, keepdims=True)
        return factor

    def divide(self, total: _Array) -> _Array:
        """Normalise the weighted sums; a row that saw nothing keeps its zeros."""
        total /= np.where(self._sum == 0, 1, self._sum)
        return total.reshape(*self._block.shape, total.shape[-1])

    def weigh(self, scores: _Array) -> None:
        """Turn scores of the rows, some or all of those taken in, into weights in place."""
        shape = (*scores.shape[:-1], 1)
        # A hidden key weighs 0 where the sum is NaN or nothing is seen, too.
        hidden = None if (self._sum > 0).all() else scores == -np.inf
        scores -= self._maximum.reshape(shape)
        np.exp(scores, out=scores)
        scores /= self._sum.reshape(shape)
        if hidden is not None:
            scores[hidden] = 0

    def lse(self) -> _Array:
        """Give L of every row, in the shape of the block."""
        result: _Array = self._maximum + np.log(self._sum)
        return result.reshape(self._block.shape)


def zero_point(maximum: _Array) -> _Array:
    """Give what is subtracted from scores: their maximum, or 0 where all are hidden."""
    return np.where(maximum == -np.inf, 0, maximum)
