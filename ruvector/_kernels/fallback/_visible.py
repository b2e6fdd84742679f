"""Which keys a block of query rows can see by position: causality, window, sink tokens.

A row at position ``p`` sees key ``j`` when (see :mod:`ruvector._kernels.spec`) ::

    j <= p                                     when causal
    and (p - left <= j <= p + right or j < num_sinks or symmetric and p < num_sinks)

Everything here is worked out from the lowest and the highest position of the block, so
that key tiles nobody sees are never touched and those everybody sees carry no mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import AttentionSpec

__all__ = ["VisibleKeys", "is_positional", "reach"]


def is_positional(spec: AttentionSpec) -> bool:
    """Tell whether visibility depends on positions at all."""
    return spec.causal or spec.left >= 0 or spec.right >= 0


def reach(spec: AttentionSpec, num_keys: int) -> int:
    """Give the number of keys a row sees at most, sink tokens apart."""
    if spec.left < 0 or (spec.right < 0 and not spec.causal):
        return num_keys
    ahead = 0 if spec.causal else spec.right
    return min(num_keys, spec.left + 1 + ahead)


class VisibleKeys:
    """The keys that rows at the given positions see.

    Parameters
    ----------
    positions : ndarray of int64, shape (rows,)
        Where each row stands; at least one.
    spec : AttentionSpec
        The visible set.
    num_keys : int
        How many keys there are.
    """

    __slots__ = ("_everybody", "_high", "_low", "_num_keys", "_positions", "_spec")

    def __init__(
        self, positions: NDArray[np.int64], spec: AttentionSpec, num_keys: int
    ) -> None:
        self._positions = positions
        self._spec = spec
        self._num_keys = num_keys
        self._low = int(positions.min())
        self._high = int(positions.max())
        self._everybody = self._seen_by_every_row()

    def _seen_by_every_row(self) -> tuple[int, int]:
        spec = self._spec
        start, stop = 0, self._num_keys
        if spec.causal:
            stop = min(stop, self._low + 1)
        if spec.left >= 0:
            start = self._high - spec.left
        if spec.right >= 0:
            stop = min(stop, self._low + spec.right + 1)
        return start, stop

    def ranges(self) -> list[tuple[int, int]]:
        """Give the ascending key ranges outside of which no row sees anything."""
        spec = self._spec
        end = min(self._num_keys, self._high + 1) if spec.causal else self._num_keys
        if end <= 0:
            return []
        if spec.left < 0 and spec.right < 0:
            return [(0, end)]
        sinks = min(spec.num_sinks, end)
        if spec.symmetric and self._low < spec.num_sinks:
            start, stop = 0, end
        else:
            start = max(0, self._low - spec.left) if spec.left >= 0 else 0
            stop = min(end, self._high + spec.right + 1) if spec.right >= 0 else end
        if start >= stop:
            start = stop = 0
        if start <= sinks:
            start, stop, sinks = 0, max(stop, sinks), 0
        return [(a, b) for a, b in ((0, sinks), (start, stop)) if a < b]

    def doubtful(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Give the parts of a key range that not every row is known to see."""
        first, last = self._everybody
        if first >= last or first >= stop or last <= start:
            return [(start, stop)]
        return [(a, b) for a, b in ((start, first), (last, stop)) if a < b]

    def mask(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Tell for every row and every key of a range whether the row sees the key."""
        spec = self._spec
        pos = self._positions[:, np.newaxis]
        keys = np.arange(start, stop)
        visible = np.ones((len(pos), len(keys)), np.bool_)
        if spec.left >= 0:
            visible &= keys >= pos - spec.left
        if spec.right >= 0:
            visible &= keys <= pos + spec.right
        visible |= keys < spec.num_sinks
        if spec.symmetric:
            visible |= pos < spec.num_sinks
        if spec.causal:
            visible &= keys <= pos
        return visible
