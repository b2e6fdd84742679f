"""What attention with a part in a Poincare ball has in common: its state, which merges."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, cast, compute_dtype, floating
from .._ball_backward import BallTargets, Parameters, differentiate_midpoint
from .._ball_problem import BallProblem
from .._checks import curvature_of, finite
from .._states import merge_states
from ..errors import DimensionMismatchError, InvalidConfigError
from ._parameters import Learned
from .base import Attention, Gradients, Inputs

__all__ = ["BallAttention", "ball_curvature", "ball_temperature"]

# Below, the rounding of a distance decides, and soon the scores overflow.
_COLDEST = 1e-12


def ball_curvature(value: Any) -> float:
    """Return the absolute value of the curvature of a ball that attention can work in."""
    curvature = curvature_of(value)
    if curvature >= 1e10:
        raise InvalidConfigError(
            f"curvature must be less than 1e10, where the ball is as narrow as the margin that "
            f"points keep to its boundary, got {value!r}"
        )
    return curvature


def ball_temperature(value: Any) -> float:
    """Return a temperature that scores and their gradients can be divided by."""
    temperature = finite(value, "temperature", positive=True)
    if temperature < _COLDEST:
        raise InvalidConfigError(f"temperature must be at least {_COLDEST}, got {value!r}")
    return temperature


class BallAttention(Learned, Attention):
    """Attention whose output is finished from an average that merges.

    A subclass makes the problem of a call in :meth:`_problem` and finishes averages in
    :meth:`_finish`.
    """

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
        if mask is None and out is None and not (return_lse or return_weights):
            result = self._single(query, keys, values)
            if result is not None:
                return result
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute(inputs, mask, return_lse, return_weights, out)

    def compute_state(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
    ) -> tuple[Array, Any]:
        """Attend over a part of the keys, up to what merges with that of other parts.

        Parameters
        ----------
        query, keys, values, mask : array_like
            As in :meth:`compute`; here there may be no keys.

        Returns
        -------
        state : ndarray, shape (..., width) or (..., heads, width)
            What is averaged before a midpoint is taken: the Euclidean part of the values
            where there is one, ``lambda v``, and ``lambda - 1``. 0 for a query that sees
            nothing. float32, or float64 for float64.
        lse : ndarray, shape (...) or (..., heads)
            The natural log-sum-exp of the scores; -inf for a query that sees nothing.

        Raises
        ------
        DimensionMismatchError, InvalidConfigError, InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        self._check_mergeable()
        inputs = Inputs(query, keys, values, self._dim, empty=True)
        checked = None if mask is None else inputs.checked_mask(mask)
        state, lse = self._problem(inputs, checked).attend(True)
        by_query = state.swapaxes(1, 2)
        if self._heads == 1:
            by_query = by_query[:, :, 0]
        by_query = by_query[(0,) * (2 - len(inputs.leading))]
        return cast(by_query, compute_dtype(inputs.dtype)), inputs.shaped_lse(lse)

    @staticmethod
    def merge_states(
        states: ArrayLike | Sequence[ArrayLike], lses: ArrayLike | Sequence[ArrayLike]
    ) -> tuple[Array, Array]:
        """Combine the states over disjoint parts of the keys into that over all of them.

        It is :func:`ruvector.merge_states`. Only states merge: outputs are midpoints, and
        the midpoint of midpoints is another point than that of all values.

        Parameters
        ----------
        states : array_like, shape (P, ...), or sequence of P arrays (...)
            The states of P parts, as :meth:`compute_state` returns them.
        lses : array_like, shape (P, ...), or sequence of P arrays (...)
            The log-sum-exp beside each.

        Returns
        -------
        state, lse : ndarray
            Those over all parts.

        Raises
        ------
        EmptyInputError
            If there are no parts.
        DimensionMismatchError
            If the shapes do not fit each other.
        """
        return merge_states(states, lses)

    def finalize(self, state: ArrayLike) -> Array:
        """Turn a state into the output that :meth:`compute` gives.

        Parameters
        ----------
        state : array_like, shape (..., width) or (..., heads, width)
            As :meth:`compute_state` and :meth:`merge_states` return it.

        Returns
        -------
        ndarray, shape (..., dim_v)
            The output, in the dtype of the state.

        Raises
        ------
        DimensionMismatchError
            If the state does not have that shape.
        InvalidConfigError
            If the aggregation has no states.
        """
        self._check_mergeable()
        array = floating(state, "state")
        axes = 1 if self._heads == 1 else 2
        width = self._state_width()
        if (
            array.ndim < axes
            or (axes == 2 and array.shape[-2] != self._heads)
            or (array.shape[-1] == 0 if width is None else array.shape[-1] != width)
        ):
            heads = "" if axes == 1 else f"{self._heads}, "
            wanted = "dim_v + 1" if width is None else str(width)
            raise DimensionMismatchError(
                f"state must have shape (..., {heads}{wanted}), got {array.shape}"
            )
        lead = array.shape[: array.ndim - axes]
        work = cast(array, compute_dtype(array.dtype))
        rows = work.reshape(1, -1, self._heads, array.shape[-1])
        out = np.empty((1, rows.shape[1], self._output_width(array.shape[-1])), work.dtype)
        self._finish(np.ascontiguousarray(rows.swapaxes(1, 2)), out)
        return out.reshape(*lead, out.shape[2])

    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        problem = self._problem(inputs, mask, **options)
        state, lse = problem.attend(return_lse)
        if "kept" in options:
            options["kept"].append(state)
        self._finish(state, out)
        return lse, problem.weights() if return_weights else None

    def _compute_with_gradients(
        self,
        inputs: Inputs,
        grad_output: ArrayLike,
        grad_lse: ArrayLike | None,
        mask: ArrayLike | None,
        return_lse: bool,
        return_weights: bool,
        out: Array | None,
        **options: Any,
    ) -> tuple[Any, Gradients]:
        # The gradient starts from the state that the output was finished from.
        return super()._compute_with_gradients(
            inputs, grad_output, grad_lse, mask, return_lse, return_weights, out,
            kept=[], **options,
        )  # fmt: skip

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
        problem = self._problem(inputs, mask, **options)
        query, keys, values = inputs.new_gradients()
        mask_gradient = inputs.new_mask_gradient(mask)
        flat, curved = self._by_space(query, keys, values)
        own = self._by_space(grad_output)
        numbers = differentiate_midpoint(
            problem,
            options["kept"][0],
            lse,
            (None if own[0] is None else own[0][0], own[1][0]),
            grad_lse,
            BallTargets(flat, curved, mask_gradient),
            to_tangent=flat is not None,
            parameters=bool(self._parameters),
        )
        parameters = self._parameter_gradients(numbers, **options)
        return Gradients(query, keys, values, mask_gradient, parameters=parameters)

    def _work_dtype(self, inputs: Inputs) -> np.dtype[Any]:
        return compute_dtype(inputs.query.dtype)

    def _single(self, query: Any, keys: Any, values: Any) -> Array | None:
        """Attend from one query without detours; None where a call is not that simple."""
        return None

    def _check_mergeable(self) -> None:
        """Raise where the output is not finished from a state."""

    @abstractmethod
    def _problem(self, inputs: Inputs, mask: Array | None, **options: Any) -> BallProblem:
        """Return what kernels take of a call."""

    @abstractmethod
    def _by_space(self, *arrays: Array) -> tuple[tuple[Array, ...] | None, tuple[Array, ...]]:
        """View vectors by heads: their parts outside of the ball, if any, and those in it."""

    @abstractmethod
    def _parameter_gradients(self, numbers: Parameters, **options: Any) -> dict[str, Array]:
        """Turn the gradients of a problem's numbers into those of the parameters."""

    @abstractmethod
    def _finish(self, state: Array, out: Array) -> None:
        """Turn contiguous states ``(B, heads, m, width)`` into outputs ``(B, m, dim_v)``."""

    def _state_width(self) -> int | None:
        """Return the width that states have, None where it depends on the values."""
        return None

    def _output_width(self, width: int) -> int:
        """Return dim_v for states of a width."""
        return width - 1
