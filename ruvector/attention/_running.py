"""The running state of linear attention: sums that grow key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _config, _kernels
from .._arrays import (
    FLOAT64,
    Array,
    Output,
    compute_dtype,
    contiguous_rows,
    floating,
    promote,
    vectors,
)
from .._features import feature_spec, key_bias, new_state
from .._kernels.spec import FeatureSpec, LinearState
from ..errors import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    InvalidMaskError,
)
from ._parameters import Learned
from .base import Attention

__all__ = ["RunningSums"]


class RunningSums(Learned, Attention):
    """Linear attention that remembers its keys as sums of their features."""

    _num_features: int
    _kernel: str
    _state: LinearState | None = None

    @property
    def state(self) -> LinearState | None:
        """A copy of the running state, None before :meth:`prefill` and :meth:`append`.

        Its arrays are without leading axes: ``numerator`` is (num_features, dim_v).
        """
        if self._state is None:
            return None
        return LinearState(*(x[0, 0].copy() for x in self._state))

    def prefill(
        self, keys: ArrayLike, values: ArrayLike, *, mask: ArrayLike | None = None
    ) -> None:
        """Start the running state from a memory, instead of what it was.

        Parameters
        ----------
        keys : array_like, shape (n, dim)
            There may be none.
        values : array_like, shape (n, dim_v)
        mask : array_like, shape (n,), optional
            As in :meth:`compute`.

        Raises
        ------
        DimensionMismatchError, InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        self._state = self._absorb(keys, values, ("keys", "values"), mask, None)

    def append(
        self, key: ArrayLike, value: ArrayLike, *, mask: ArrayLike | None = None
    ) -> None:
        """Add one key to the running state, or several.

        Parameters
        ----------
        key : array_like, shape (dim,) or (n, dim)
        value : array_like, shape (dim_v,) or (n, dim_v)
        mask : array_like, shape (n,), optional
            As in :meth:`compute`.

        Raises
        ------
        DimensionMismatchError
            If shapes do not fit each other or the state.
        InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        self._state = self._absorb(key, value, ("key", "value"), mask, self._state)

    def attend(
        self, query: ArrayLike, *, return_lse: bool = False, out: Array | None = None
    ) -> Any:
        """Attend from queries to everything that the running state has seen.

        Parameters
        ----------
        query : array_like, shape (dim,), (m, dim) or (B, m, dim)
        return_lse, out
            As in :meth:`compute`.

        Returns
        -------
        output : ndarray, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            In the query's dtype; 0 where every key was hidden.
        lse : ndarray, shape (), (m,) or (B, m)
            Only with `return_lse`.

        Raises
        ------
        EmptyInputError
            Before :meth:`prefill` and :meth:`append`.
        DimensionMismatchError, TypeError
            As :meth:`compute`.
        """
        state = self._state
        if state is None:
            raise EmptyInputError("state must hold keys: prefill or append first")
        q = floating(query, "query")
        if not 1 <= q.ndim <= 3 or q.shape[-1] != self._dim:
            raise DimensionMismatchError(
                f"query must have shape ({self._dim},), (m, {self._dim}) or "
                f"(B, m, {self._dim}), got {q.shape}"
            )
        stored = self._stored(q)
        real = compute_dtype(stored.dtype)
        leading, width = q.shape[:-1], state.numerator.shape[-1]
        destination = Output(out, (*leading, width), q.dtype, stored.dtype, (q,))
        lse = np.empty(leading, compute_dtype(q.dtype)) if return_lse else None
        rows = np.empty((1, 1, stored.size // self._dim), real) if return_lse else None
        _kernels.linear.attend_state(
            np.ascontiguousarray(stored).reshape(1, 1, -1, self._dim),
            state,
            destination.work.reshape(1, 1, -1, width),
            rows,
            self._features(real),
            _config.current_threads(),
        )
        result = destination.deliver()
        if lse is None or rows is None:
            return result
        lse[...] = rows.reshape(leading)
        return result, lse[()]

    def merge(self, other: RunningSums | LinearState) -> None:
        """Add the keys of another running state to this one.

        Parameters
        ----------
        other : LinearAttention or LinearState
            One of equal configuration and parameters, or its :attr:`state`.

        Raises
        ------
        InvalidConfigError
            If `other` is of another configuration or has other parameters.
        DimensionMismatchError
            If the states differ in shape.
        """
        if isinstance(other, RunningSums):
            self._check_same(other)
            added = other._state
            if added is None:
                return
        elif isinstance(other, LinearState):
            added = LinearState(*(np.asarray(x)[np.newaxis, np.newaxis] for x in other))
        else:
            raise TypeError(
                f"other must be a LinearAttention or a LinearState, got {type(other).__name__}"
            )
        features = self._features(FLOAT64)
        width = added.numerator.shape[-1]
        own = self._state
        empty = new_state(1, 1, features, width if own is None else own.numerator.shape[-1])
        for name, x, y in zip(LinearState._fields, empty, added, strict=True):
            if x.shape != y.shape:
                raise DimensionMismatchError(
                    f"other must have a {name} of shape {x.shape[2:]}, got {y.shape[2:]}"
                )
        total = empty if own is None else LinearState(*(x.copy() for x in own))
        _kernels.linear.merge(
            total,
            LinearState(
                *(np.ascontiguousarray(y, x.dtype) for x, y in zip(empty, added, strict=True))
            ),
        )
        self._state = total

    def reset(self) -> None:
        """Forget the running state."""
        self._state = None

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over parameters that :meth:`state_dict` returned; forget the running state.

        Parameters
        ----------
        state : mapping of str to array_like
            All parameters and no others, of their shapes.

        Raises
        ------
        InvalidConfigError
            If names are missing or unknown.
        DimensionMismatchError
            If a shape is another one.
        """
        super().load_state_dict(state)
        self._state = None

    def _features(self, dtype: np.dtype[Any]) -> FeatureSpec:
        """Return the feature map in a compute dtype."""
        projection = self._parameters.get("projection")
        return feature_spec(self._kernel, projection, self._dim, dtype)

    def _stored(self, x: Array) -> Array:
        """Bring an array to rows that kernels read beside the parameters."""
        projection = self._parameters.get("projection")
        wide = projection is not None and projection.dtype == FLOAT64
        return contiguous_rows(x, FLOAT64 if wide else x.dtype)

    def _check_same(self, other: RunningSums) -> None:
        same = (self._dim, self._num_features, self._kernel) == (
            other._dim,
            other._num_features,
            other._kernel,
        )
        if not same or not all(
            np.array_equal(x, other._parameters[name]) for name, x in self._parameters.items()
        ):
            raise InvalidConfigError(
                f"other must have the configuration and the parameters of {self!r}, "
                f"got {other!r}"
            )

    def _absorb(
        self,
        keys: ArrayLike,
        values: ArrayLike,
        names: tuple[str, str],
        mask: ArrayLike | None,
        state: LinearState | None,
    ) -> LinearState:
        """Add keys to a state in place, once everything is checked, or to a new one."""
        k, v = vectors(keys, names[0]), vectors(values, names[1])
        if names[0] == "key" and k.ndim == v.ndim == 1:
            k, v = k[np.newaxis], v[np.newaxis]
        if k.shape == (0, 0):
            k = k.reshape(0, self._dim)
        if k.ndim != 2 or k.shape[1] != self._dim:
            raise DimensionMismatchError(
                f"{names[0]} must have shape (n, {self._dim}), got {k.shape}"
            )
        width = "dim_v" if state is None else state.numerator.shape[-1]
        if v.ndim != 2 or (state is not None and v.shape[1] != width):
            raise DimensionMismatchError(
                f"{names[1]} must have shape (n, {width}), got {v.shape}"
            )
        if len(v) != len(k):
            raise DimensionMismatchError(
                f"{names[1]} must hold {len(k)} vectors, one per key, got {len(v)}"
            )
        dtype = promote(k, v)
        k, v = (self._stored(contiguous_rows(x, dtype)) for x in (k, v))
        real = compute_dtype(k.dtype)
        bias = None
        if mask is not None:
            bias = key_bias(mask, "mask", real)
            if bias.shape != (len(k),):
                raise InvalidMaskError(f"mask must have shape ({len(k)},), got {bias.shape}")
            bias = contiguous_rows(bias, real)[np.newaxis]
        features = self._features(real)
        if state is None:
            state = new_state(1, 1, features, v.shape[1])
        _kernels.linear.absorb(
            k[np.newaxis, np.newaxis],
            v[np.newaxis, np.newaxis],
            bias,
            state,
            features,
            _config.current_threads(),
        )
        return state
