"""What a part of a memory contributes to attention over all of it, by family.

Softmax families contribute (o, L); attention in the ball the average that its midpoint is
taken from, with L; linear attention its sums. Keys are numbered over all parts: a part that
begins at key `start` moves the positions of the queries by that much, and with them the
causal rule and the window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import _config
from ._arrays import Array, cast, compute_dtype
from ._kernels.spec import LinearState
from ._states import merge_states
from .attention import Attention, GraphRoPEAttention, LinearAttention
from .attention._ball import BallAttention
from .attention.base import Gradients, Inputs
from .attention.dense import SoftmaxAttention
from .errors import InvalidConfigError

__all__ = [
    "EdgePlan",
    "MidpointPlan",
    "Plan",
    "RotaryPlan",
    "Sight",
    "SoftmaxPlan",
    "SumsPlan",
    "Upstream",
]


@dataclass(frozen=True, slots=True)
class Sight:
    """Which keys a query sees by where both stand, as :class:`AttentionSpec` has it.

    Parameters
    ----------
    causal : bool
        Whether a query sees no key behind its own position.
    left, right : int
        How many keys it sees on each side, -1 for all.
    num_sinks : int
        How many first keys it sees anyway.
    symmetric : bool
        Whether a query that is among these sees all keys.
    positions : ndarray of int64, shape (m,), or None
        Where the queries stand; None where it does not matter.
    """

    causal: bool = False
    left: int = -1
    right: int = -1
    num_sinks: int = 0
    symmetric: bool = False
    positions: Array | None = None

    @property
    def everything(self) -> bool:
        """Whether every query sees every key."""
        return not self.causal and self.left < 0 and self.right < 0

    def options(self, start: int) -> dict[str, Any]:
        """Return the fields of an ``AttentionSpec`` over the keys from `start` on."""
        if self.everything:
            return {}
        assert self.positions is not None
        return {
            "causal": self.causal,
            "left": self.left,
            "right": self.right,
            # Below 0 where all sinks lie before this part; no key and no position is.
            "num_sinks": self.num_sinks - start,
            "symmetric": self.symmetric,
            "positions": self.positions - start,
        }


class Upstream(NamedTuple):
    """What the gradient of one part needs of the whole: all of it is as large as the query."""

    output: Array
    lse: Array
    grad_output: Array
    grad_lse: Array | None


class Plan(ABC):
    """Attention from one query array over parts of a memory; it travels to every worker.

    Parameters
    ----------
    attention : Attention
    query : ndarray, shape (dim,), (m, dim) or (B, m, dim)
        As the caller gave it, checked.
    sight : Sight
    threads : int or None
        Kernel threads for each part, None for those of whoever calls.
    """

    __slots__ = ("attention", "query", "sight", "threads")

    def __init__(
        self, attention: Attention, query: Array, sight: Sight, threads: int | None
    ) -> None:
        self.attention = attention
        self.query = query
        self.sight = sight
        self.threads = threads

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.attention, self.query, self.sight, self.threads)

    @property
    def numbered(self) -> bool:
        """Whether it matters where among all keys a part begins."""
        return not self.sight.everything

    @property
    def takes_caches(self) -> bool:
        """Whether a part may be a cache, which computes by itself."""
        return False

    @property
    def own_scale(self) -> float | None:
        """The factor on dot products where it is not what a cache takes on its own."""
        return None

    def own_threads(self) -> AbstractContextManager[None]:
        """Limit the kernels inside a ``with`` block to the threads of one part."""
        return nullcontext() if self.threads is None else _config.num_threads(self.threads)

    def state(self, keys: ArrayLike, values: ArrayLike, start: int, mask: Any) -> Any:
        """Return what a part of the memory contributes, None where it is empty."""
        if np.shape(keys)[-2] == 0:
            return None
        with self.own_threads():
            return self._state(keys, values, start, mask)

    def merge(self, first: Any, second: Any) -> Any:
        """Combine the contributions of two parts, in their order."""
        if first is None or second is None:
            return second if first is None else first
        return self._merge(first, second)

    def finish(self, state: Any, width: int) -> tuple[Array, Any]:
        """Turn the contribution of all parts into output and L; `width` is that of values."""
        if state is None:
            dtype, shape = self.query.dtype, (*self.query.shape[:-1], width)
            heads = self.attention._heads
            lse = np.full(
                shape[:-1] if heads == 1 else (*shape[:-1], heads), -np.inf,
                compute_dtype(dtype),
            )  # fmt: skip
            return np.zeros(shape, dtype), lse[()]
        return self._finish(state)

    def gradients(
        self,
        keys: ArrayLike,
        values: ArrayLike,
        start: int,
        mask: Any,
        upstream: Upstream,
    ) -> Gradients:
        """Return the gradient in a part, and the part of the query's that comes from it."""
        raise InvalidConfigError(
            f"attention must be softmax attention for gradients, got {self.attention!r}"
        )

    @abstractmethod
    def _state(self, keys: ArrayLike, values: ArrayLike, start: int, mask: Any) -> Any:
        """Return what a part that has keys contributes."""

    def _merge(self, first: Any, second: Any) -> Any:
        return merge_states(*zip(first, second, strict=True))

    def _finish(self, state: Any) -> tuple[Array, Any]:
        output, lse = state
        return output, lse


class SoftmaxPlan(Plan):
    """Softmax attention: (o, L), which are output and log-sum-exp themselves."""

    __slots__ = ()

    @property
    def takes_caches(self) -> bool:
        return type(self) is SoftmaxPlan

    @property
    def own_scale(self) -> float | None:
        attention = self._softmax
        usual = SoftmaxAttention(attention.dim, attention._heads)._scale
        return None if attention._scale == usual else attention._scale

    def _state(self, keys: ArrayLike, values: ArrayLike, start: int, mask: Any) -> Any:
        inputs, checked, options = self._call(keys, values, start, mask)
        attention = self._softmax
        destination, work = inputs.output(None, attention._work_dtype(inputs), ())
        lse, _ = attention._evaluate(inputs, checked, work, True, False, **options)
        return inputs.result(destination, lse, None)

    def gradients(
        self,
        keys: ArrayLike,
        values: ArrayLike,
        start: int,
        mask: Any,
        upstream: Upstream,
    ) -> Gradients:
        inputs, checked, options = self._call(keys, values, start, mask)
        attention = self._softmax
        dtype, heads = attention._work_dtype(inputs), attention._heads
        lse_gradient = None
        if upstream.grad_lse is not None:
            lse_gradient = inputs.checked_lse_gradient(upstream.grad_lse, heads)
        with self.own_threads():
            gradients = attention._differentiate(
                inputs,
                checked,
                # Both have the shapes that those of their gradients must have.
                inputs.checked_gradient(upstream.output, dtype),
                inputs.checked_lse_gradient(upstream.lse, heads),
                inputs.checked_gradient(upstream.grad_output, dtype),
                lse_gradient,
                **options,
            )
        return inputs.shaped_gradients(gradients)

    @property
    def _softmax(self) -> SoftmaxAttention:
        assert isinstance(self.attention, SoftmaxAttention)
        return self.attention

    def _call(
        self, keys: ArrayLike, values: ArrayLike, start: int, mask: Any
    ) -> tuple[Inputs, Array | None, dict[str, Any]]:
        inputs = Inputs(self.query, keys, values, self.attention.dim, empty=True)
        checked = None if mask is None else inputs.checked_mask(mask)
        return inputs, checked, self._options(inputs, start)

    def _options(self, inputs: Inputs, start: int) -> dict[str, Any]:
        return self.sight.options(start)


class RotaryPlan(SoftmaxPlan):
    """Softmax attention with rotary positions: the query at 0, keys by their number."""

    __slots__ = ()

    @property
    def numbered(self) -> bool:
        return True

    def _options(self, inputs: Inputs, start: int) -> dict[str, Any]:
        assert isinstance(self.attention, GraphRoPEAttention)
        stop = start + inputs.keys.shape[1]
        return self.attention._checked_positions(inputs, None, np.arange(start, stop))


class MidpointPlan(Plan):
    """Attention in the ball: the average that midpoints are taken from, and L."""

    __slots__ = ()

    def _state(self, keys: ArrayLike, values: ArrayLike, start: int, mask: Any) -> Any:
        return self._ball.compute_state(self.query, keys, values, mask=mask)

    def _finish(self, state: Any) -> tuple[Array, Any]:
        average, lse = state
        output = self._ball.finalize(average)
        return cast(output, self.query.dtype), lse

    @property
    def _ball(self) -> BallAttention:
        assert isinstance(self.attention, BallAttention)
        return self.attention


class SumsPlan(Plan):
    """Linear attention: sums over the keys, which know nothing of the query."""

    __slots__ = ()

    def _state(self, keys: ArrayLike, values: ArrayLike, start: int, mask: Any) -> Any:
        running = self._running()
        running.prefill(keys, values, mask=mask)
        return running.state

    def _merge(self, first: LinearState, second: LinearState) -> Any:
        running = self._running()
        running.merge(first)
        running.merge(second)
        return running.state

    def _finish(self, state: LinearState) -> tuple[Array, Any]:
        running = self._running()
        running.merge(state)
        result: tuple[Array, Any] = running.attend(self.query, return_lse=True)
        return result

    def _running(self) -> LinearAttention:
        assert isinstance(self.attention, LinearAttention)
        running = copy(self.attention)
        running.reset()
        return running


class EdgePlan(Plan):
    """Graph attention of one head, or of several side by side.

    Bias and residual are in the output of every part; as the weights of the parts sum to 1
    they come out of the merge as they are.
    """

    __slots__ = ()

    def _state(self, keys: ArrayLike, values: ArrayLike, start: int, mask: Any) -> Any:
        return self.attention.compute(self.query, keys, values, mask=mask, return_lse=True)

    def _finish(self, state: Any) -> tuple[Array, Any]:
        output, lse = state
        blind = np.isneginf(lse if self.attention._heads == 1 else lse[..., 0])
        if blind.any():
            key = np.zeros((1, self.attention.dim), self.query.dtype)
            alone = self.attention.compute(self.query, key, key, mask=[False])
            output = np.where(blind[..., np.newaxis], alone, output)
        return output, lse

    def finish(self, state: Any, width: int) -> tuple[Array, Any]:
        if state is None:
            key = np.zeros((1, self.attention.dim), self.query.dtype)
            result: tuple[Array, Any] = self.attention.compute(
                self.query, key, key, mask=[False], return_lse=True
            )
            return result
        return self._finish(state)
