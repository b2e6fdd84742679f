"""Softmax attention over a memory: dot-product, multi-head, flash and local-global."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _config, _kernels
from .._arrays import Array, integers
from .._checks import finite, flag, integer
from .._problem import Problem
from ..errors import DimensionMismatchError, InvalidConfigError
from .base import Attention, Inputs

__all__ = [
    "DotProductAttention",
    "FlashAttention",
    "LocalGlobalAttention",
    "MultiHeadAttention",
]


class _SoftmaxAttention(Attention):
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
        problem = Problem(
            _by_head(inputs.query, heads),
            _by_head(inputs.keys, heads),
            _by_head(inputs.values, heads),
            mask,
            {"scale": self._scale, **options},
        )
        if mask is not None and heads > 1:
            problem.mask = np.broadcast_to(mask, (len(mask), heads, *mask.shape[2:]))
        lse = problem.new_lse() if return_lse else None
        problem.attend(_by_head(out, heads), lse)
        return lse, problem.weights() if return_weights else None


class _PlainAttention(_SoftmaxAttention):
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


def _by_head(x: Array, heads: int) -> Array:
    """View vectors ``(B, length, width)`` as ``(B, heads, length, width // heads)``."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


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

    def _evaluate(self, *args: Any, **options: Any) -> tuple[Array | None, Array | None]:
        return super()._evaluate(
            *args, causal=self._causal, bottom_right=self._causal, **options
        )


class LocalGlobalAttention(_SoftmaxAttention):
    """Attention within a window around each query, and to a few global tokens.

    A query at position `p` sees the keys within ``local_window // 2`` of `p` on each side
    and the first `global_tokens` keys. A query that is itself a global token,
    ``p < global_tokens``, sees every key.

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    local_window : int
        Width of the window.
    global_tokens : int
        Number of first keys that every query sees.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    References
    ----------
    .. [1] I. Beltagy, M. Peters, A. Cohan, "Longformer: The Long-Document Transformer",
       2020, arXiv:2004.05150.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> attention = ruvector.LocalGlobalAttention(4, local_window=2, global_tokens=1)
    >>> keys = np.zeros((6, 4), np.float32)
    >>> output, weights = attention.compute(
    ...     keys[0], keys, keys, positions=4, return_weights=True
    ... )
    >>> weights
    array([0.25, 0.  , 0.  , 0.25, 0.25, 0.25], dtype=float32)
    """

    _fields = ("dim", "local_window", "global_tokens")

    def __init__(self, dim: int, local_window: int, global_tokens: int) -> None:
        super().__init__(dim)
        self._local_window = integer(local_window, "local_window", 0)
        self._global_tokens = integer(global_tokens, "global_tokens", 0)

    @property
    def local_window(self) -> int:
        """Width of the window."""
        return self._local_window

    @property
    def global_tokens(self) -> int:
        """Number of first keys that every query sees."""
        return self._global_tokens

    def compute(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        positions: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from one query, several, or a batch of several.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`Attention.compute`. A mask hides keys; it does not shift positions.
        positions : array_like of int, shape (m,), optional
            Where each query stands among the keys; a number for one query. Without it a
            single query stands at ``n // 2`` and is not a global token itself, and as many
            queries as keys stand at 0 to ``n - 1``; any other number needs positions.

        Returns
        -------
        ndarray or tuple of ndarray
            As :meth:`Attention.compute`.

        Raises
        ------
        InvalidConfigError
            If positions are missing or negative.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`Attention.compute`.
        """
        inputs = Inputs(query, keys, values, self._dim)
        m, n = inputs.query.shape[1], inputs.keys.shape[1]
        options: dict[str, Any] = {"symmetric": True}
        if positions is not None:
            options["positions"] = _checked_positions(positions, m)
        elif m == 1:
            options = {"positions": np.full(1, n // 2, np.int64)}
        elif m not in (0, n):
            raise InvalidConfigError(
                f"positions must be given for {m} queries over {n} keys, got None"
            )
        return self._compute(inputs, mask, return_lse, return_weights, out, **options)

    def _evaluate(self, *args: Any, **options: Any) -> tuple[Array | None, Array | None]:
        half = self._local_window // 2
        return super()._evaluate(
            *args, left=half, right=half, num_sinks=self._global_tokens, **options
        )


def _checked_positions(positions: ArrayLike, m: int) -> Array:
    array = integers(positions, "positions")
    if array.shape != (m,) and not (m == 1 and array.ndim == 0):
        raise DimensionMismatchError(
            f"positions must have shape ({m},), one per query, got {array.shape}"
        )
    if array.size and array.min() < 0:
        raise InvalidConfigError(f"positions must not be negative, got {array.min()}")
    return array.reshape(m)
