"""Softmax attention over a memory: dot-product, multi-head and flash."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _config, _kernels
from .._arrays import Array
from .._backward import Targets, differentiate
from .._checks import finite, flag, integer
from .._problem import Problem
from ..errors import DimensionMismatchError, InvalidConfigError
from .base import Attention, Gradients, Inputs, by_head

__all__ = [
    "DotProductAttention",
    "FlashAttention",
    "MultiHeadAttention",
    "SoftmaxAttention",
]


class SoftmaxAttention(Attention):
    """Softmax of scaled dot products, by heads that are contiguous slices of the vectors."""

    def __init__(self, dim: int, heads: int = 1, scale: float | None = None) -> None:
        super().__init__(dim)
        self._heads = heads
        self._scale = (self._dim // heads) ** -0.5 if scale is None else scale

    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        heads = self._heads
        if inputs.values.shape[-1] % heads:
            raise DimensionMismatchError(
                f"values must have a width that divides into {heads} heads, "
                f"got {inputs.values.shape[-1]}"
            )
        problem = self._problem(inputs, mask, **options)
        lse = problem.new_lse() if return_lse else None
        problem.attend(by_head(out, heads), lse)
        return lse, problem.weights() if return_weights else None

    def _problem(self, inputs: Inputs, mask: Array | None, **options: Any) -> Problem:
        heads = self._heads
        if mask is not None and heads > 1:
            mask = np.broadcast_to(mask, (len(mask), heads, *mask.shape[2:]))
        return Problem(
            by_head(inputs.query, heads),
            by_head(inputs.keys, heads),
            by_head(inputs.values, heads),
            mask,
            {"scale": self._scale, **options},
        )

    def _differentiate(
        self,
        inputs: Inputs,
        mask: Array | None,
        output: Array,
        lse: Array | None,
        grad_output: Array,
        grad_lse: Array | None,
        **options: Any,
    ) -> Gradients:
        assert lse is not None
        heads = self._heads
        query, keys, values = inputs.new_gradients()
        mask_gradient = inputs.new_mask_gradient(mask)
        targets = Targets(
            by_head(query, heads), by_head(keys, heads), by_head(values, heads), mask_gradient
        )
        differentiate(
            self._problem(inputs, mask, **options),
            by_head(output, heads),
            lse,
            by_head(grad_output, heads),
            grad_lse,
            targets,
        )
        return Gradients(query, keys, values, mask_gradient)


class _PlainAttention(SoftmaxAttention):
    """Softmax attention of which a single query needs nothing but heads and scale."""

    def compute(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        # This method is the whole cost of a small call: it stays flat.
        if mask is None and out is None:
            result = _kernels.softmax.attend_plain(
                query,
                keys,
                values,
                self._heads,
                self._scale,
                return_lse,
                return_weights,
                _config.current_threads(),
            )
            if result is not None and len(query) == self._dim:  # type: ignore[arg-type]
                return result
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute(inputs, mask, return_lse, return_weights, out)


class DotProductAttention(_PlainAttention):
    r"""Scaled dot-product attention with one head.

    .. math:: o = \sum_j p_j v_j, \qquad p = \mathrm{softmax}_j(\mathrm{scale}\; q \cdot k_j)

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    scale : float, optional
        Factor on the dot products; ``1 / sqrt(dim)`` by default.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> attention = ruvector.DotProductAttention(2, scale=1.0)
    >>> keys = np.array([[0.0, 1.0], [0.0, -1.0]], np.float32)
    >>> values = np.array([[1.0], [0.0]], np.float32)
    >>> output, weights = attention.compute([0.0, 1.0], keys, values, return_weights=True)
    >>> weights.round(3)
    array([0.881, 0.119], dtype=float32)
    """

    _fields = ("dim", "scale")

    def __init__(self, dim: int, scale: float | None = None) -> None:
        super().__init__(dim, scale=None if scale is None else finite(scale, "scale"))

    @property
    def scale(self) -> float:
        """Factor on the dot products."""
        return self._scale


class MultiHeadAttention(_PlainAttention):
    r"""Dot-product attention in several heads, each a contiguous slice of the vectors.

    There are no projections: head `h` attends with columns ``h * head_dim`` to
    ``(h + 1) * head_dim`` of queries and keys to the same share of the values' columns.

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    num_heads : int
        Number of heads; divides `dim`, and the width of the values.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> keys = rng.standard_normal((100, 384), dtype=np.float32)
    >>> attention = ruvector.MultiHeadAttention(384, num_heads=8)
    >>> output, lse = attention.compute(keys[:3], keys, keys, return_lse=True)
    >>> output.shape, lse.shape
    ((3, 384), (3, 8))
    """

    _fields = ("dim", "num_heads")

    def __init__(self, dim: int, num_heads: int) -> None:
        heads = integer(num_heads, "num_heads", 1)
        if integer(dim, "dim", 1) % heads:
            raise InvalidConfigError(
                f"num_heads must divide dim, got num_heads={heads} and dim={dim}"
            )
        super().__init__(dim, heads)

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self._heads

    @property
    def head_dim(self) -> int:
        """Width of one head of queries and keys."""
        return self._dim // self._heads


class FlashAttention(_PlainAttention):
    """Scaled dot-product attention with one head, optionally causal.

    Every class here streams over the keys and never holds the scores; the name stands for
    the causal rule that this one adds.

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    block_size : int, optional
        Recorded only: the engine picks its own tile.
    causal : bool, default False
        Whether the queries are the last m of the n positions and see no key behind their
        own: query `i` sees keys up to ``n - m + i``. A single query sees all keys.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work
       Partitioning", 2023, arXiv:2307.08691.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> keys, values = np.zeros((3, 4), np.float32), np.eye(3, dtype=np.float32)
    >>> ruvector.FlashAttention(4, causal=True).compute(keys[1:], keys, values).round(3)
    array([[0.5  , 0.5  , 0.   ],
           [0.333, 0.333, 0.333]], dtype=float32)
    """

    _fields = ("dim", "block_size", "causal")

    def __init__(self, dim: int, block_size: int | None = None, causal: bool = False) -> None:
        super().__init__(dim)
        self._block_size = None if block_size is None else integer(block_size, "block_size", 1)
        self._causal = flag(causal, "causal")

    @property
    def block_size(self) -> int | None:
        """The block size that was asked for."""
        return self._block_size

    @property
    def causal(self) -> bool:
        """Whether a query sees no key behind its own position."""
        return self._causal

    def _problem(self, inputs: Inputs, mask: Array | None, **options: Any) -> Problem:
        return super()._problem(
            inputs, mask, causal=self._causal, bottom_right=self._causal, **options
        )
