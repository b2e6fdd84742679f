"""What is fixed of an attention with rotary positions, and what positions do to vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _config, _kernels
from .._arrays import FLOAT32, Array, compute_dtype, integers
from .._checks import settings
from .._kernels.spec import AttentionSpec, RotarySpec
from .._rope import Turns
from ..errors import DimensionMismatchError, InvalidConfigError
from ._inputs import is_plain
from ._rope_config import RoPEConfig
from .base import Inputs
from .dense import SoftmaxAttention

__all__ = ["Positions", "RotaryAttention"]

Positions = NDArray[np.int64]


class RotaryAttention(SoftmaxAttention):
    """Softmax attention of vectors that are turned by their positions."""

    _fields = (
        "dim",
        "max_position",
        "base",
        "scaling_factor",
        "num_heads",
        "scaling",
        "layout",
        "original_max_position",
        "beta_fast",
        "beta_slow",
    )

    def __init__(self, config: RoPEConfig | None = None, **fields: Any) -> None:
        chosen = settings(RoPEConfig, config, fields)
        super().__init__(chosen.dim, chosen.num_heads)
        self._settings = chosen
        original = chosen.original_max_position
        self._turns = Turns(
            chosen.head_dim,
            chosen.max_position,
            base=chosen.base,
            factor=chosen.scaling_factor,
            scaling=chosen.scaling,
            neighbours=chosen.layout == "interleaved",
            original=original or chosen.max_position / chosen.scaling_factor,
            beta_fast=chosen.beta_fast,
            beta_slow=chosen.beta_slow,
        )
        # The number of keys of the last plain call, and how it scored.
        self._last: tuple[int, AttentionSpec] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy the configuration, from which the tables follow."""
        return type(self), (self._settings,)

    @property
    def max_position(self) -> int:
        """One more than the last position."""
        return self._settings.max_position

    @property
    def base(self) -> float:
        """Base of the angles."""
        return self._settings.base

    @property
    def scaling_factor(self) -> float:
        """How many times longer than trained on positions may run."""
        return self._settings.scaling_factor

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self._settings.num_heads

    @property
    def head_dim(self) -> int:
        """Width of one head of queries and keys."""
        return self._settings.head_dim

    @property
    def scaling(self) -> str:
        """What the scaling factor does."""
        return self._settings.scaling

    @property
    def layout(self) -> str:
        """Which entries of a head are pairs."""
        return self._settings.layout

    @property
    def original_max_position(self) -> int | None:
        """The length that was trained on, where it was given."""
        return self._settings.original_max_position

    @property
    def beta_fast(self) -> float:
        """Turns over the original length from which on a pair is fast."""
        return self._settings.beta_fast

    @property
    def beta_slow(self) -> float:
        """Turns over the original length up to which a pair is slow."""
        return self._settings.beta_slow

    def _single(self, query: Any, keys: Any, values: Any) -> Array | None:
        heads, width = self._heads, self._dim // self._heads
        if not is_plain(query, keys, values, self._dim) or values.shape[1] % heads:
            return None
        n, columns = values.shape
        if n > self.max_position:
            return None
        last = self._last
        if last is None or last[0] != n:
            last = self._last = n, self._spec_of(n)
        out = np.empty(columns, FLOAT32)
        _kernels.softmax.attend(
            query.reshape(1, heads, 1, width),
            keys.reshape(1, n, heads, width).swapaxes(1, 2),
            values.reshape(1, n, heads, columns // heads).swapaxes(1, 2),
            out.reshape(1, heads, 1, columns // heads),
            None,
            last[1],
            _config.current_threads(),
        )
        return out

    def _spec_of(self, n: int) -> AttentionSpec:
        """Return how one query at 0 scores keys at 0 to ``n - 1``."""
        table = self._turns.table(n, FLOAT32)
        queries, keys = np.zeros((1, 1), np.int64), np.arange(n, dtype=np.int64)[np.newaxis]
        rotary = RotarySpec(table, self._turns.neighbours, queries, keys)
        return AttentionSpec(scale=self._scale, rotary=rotary)

    def _checked_positions(
        self, inputs: Inputs, query_position: ArrayLike | None, key_positions: ArrayLike | None
    ) -> dict[str, Positions]:
        """Return the positions of the caller, or 0 and 0 to ``n - 1``, for every row."""
        (batch, m), n = inputs.query.shape[:2], inputs.keys.shape[1]
        leading = inputs.leading
        queries, keys = np.zeros(m, np.int64), None
        if query_position is not None:
            queries = self._in_range(query_position, "query_position")
            _check_shape(queries, "query_position", ((), leading[-1:], leading))
        if key_positions is not None:
            keys = self._in_range(key_positions, "key_positions")
            _check_shape(keys, "key_positions", ((n,), (*leading[:-1], n)))
        elif n > self.max_position:
            raise InvalidConfigError(
                f"keys must be at most {self.max_position} (max_position) where they have no "
                f"positions of their own, got {n}"
            )
        else:
            keys = np.arange(n, dtype=np.int64)
        return {
            "query_positions": _by_row(queries, batch, m),
            "key_positions": _by_row(keys, batch, n),
        }

    def _in_range(self, positions: ArrayLike, name: str) -> Positions:
        array, last = integers(positions, name), self.max_position - 1
        if array.size:
            for position in (array.min(), array.max()):
                if not 0 <= position <= last:
                    raise InvalidConfigError(
                        f"{name} must be between 0 and {last} (max_position - 1), "
                        f"got {position}"
                    )
        return array

    def _rotary(self, inputs: Inputs, queries: Positions, keys: Positions) -> RotarySpec:
        count = 1 + max(int(queries.max(initial=-1)), int(keys.max(initial=-1)))
        table = self._turns.table(count, compute_dtype(inputs.query.dtype))
        return RotarySpec(table, self._turns.neighbours, queries, keys)

    def _turned(self, x: Array, positions: Positions, table: Array) -> Array:
        """Turn vectors ``(..., dim)`` that stand at positions of the same leading axes."""
        rows = x.reshape(-1, self.num_heads, self.head_dim)
        out = np.empty(rows.shape, rows.dtype)
        _kernels.rotary.rotate(
            rows,
            out,
            np.ascontiguousarray(positions).reshape(-1),
            table,
            self._turns.neighbours,
            _config.current_threads(),
        )
        return out.reshape(x.shape)


def _check_shape(array: Positions, name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    if array.shape not in shapes:
        listed = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise DimensionMismatchError(f"{name} must have shape {listed}, got {array.shape}")


def _by_row(positions: Positions, batch: int, length: int) -> Positions:
    # A copy, as positions are still read while the output is written, and in rows that lie in
    # one piece.
    if positions.ndim == 0:
        rows = np.full((1, length), positions)
    else:
        rows = np.array(positions, ndmin=2)
    return rows if len(rows) == batch else np.broadcast_to(rows, (batch, length))
