"""What every attention class has in common: its interface and the shapes of its calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array
from .._checks import integer
from ._inputs import Gradients, Inputs, by_head

__all__ = ["Attention", "Gradients", "Inputs", "by_head"]


class Attention(ABC):
    """Base class of all attention mechanisms over a memory of keys and values.

    A subclass names its configuration in ``_fields``, has a property for each, computes in
    :meth:`_evaluate` and differentiates in :meth:`_differentiate`.

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    """

    _fields: ClassVar[tuple[str, ...]] = ("dim",)
    _heads = 1

    def __init__(self, dim: int) -> None:
        self._dim = integer(dim, "dim", 1)

    @property
    def dim(self) -> int:
        """Width of queries and keys."""
        return self._dim

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
        """Attend from one query, several, or a batch of several.

        Parameters
        ----------
        query : array_like, shape (dim,), (m, dim) or (B, m, dim)
            float32, float64, float16 or bfloat16; anything else real becomes float32.
        keys : array_like, shape (n, dim), or (B, n, dim) beside a batch of queries
            An array or a sequence of n vectors, at least one.
        values : array_like, shape (n, dim_v), or (B, n, dim_v) beside a batch of queries
            As many vectors as keys.
        mask : array_like, shape (n,) or (m, n), optional
            Bool: True attends. Float: added to the scores, and -inf hides. With a batch of
            queries also (B, m, n).
        return_lse : bool, default False
            Whether to return the natural log-sum-exp of the scores.
        return_weights : bool, default False
            Whether to return the weights.
        out : ndarray, optional
            Array for the output, with its shape and the query's dtype; it may overlap an
            input.

        Returns
        -------
        output : ndarray, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            In the query's dtype. A query that sees nothing gets 0.
        lse : ndarray, shape (), (m,) or (B, m)
            With an axis of heads at the end where there are several. Only with
            `return_lse`.
        weights : ndarray, shape (n,), (m, n) or (B, m, n)
            With an axis of heads before the last of these (before the last two where there
            are several queries), where there are several heads. Only with
            `return_weights`.

        Raises
        ------
        DimensionMismatchError
            If shapes do not fit each other or the configuration.
        EmptyInputError
            If there are no keys.
        InvalidMaskError
            If the mask has another shape, or is neither bool nor float.
        TypeError
            If an array does not hold real numbers.
        """
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute(inputs, mask, return_lse, return_weights, out)

    def compute_with_mask(
        self, query: ArrayLike, keys: ArrayLike, values: ArrayLike, mask: ArrayLike | None
    ) -> Any:
        """Attend under a mask; the same as ``compute(query, keys, values, mask=mask)``.

        Parameters
        ----------
        query, keys, values, mask : array_like
            As in :meth:`compute`.

        Returns
        -------
        ndarray
            The output of :meth:`compute`.
        """
        return self.compute(query, keys, values, mask=mask)

    async def compute_async(
        self, query: ArrayLike, keys: ArrayLike, values: ArrayLike, **keywords: Any
    ) -> Any:
        """Run :meth:`compute` in a worker thread, so that the event loop goes on.

        Parameters
        ----------
        query, keys, values : array_like
            As in :meth:`compute`.
        **keywords
            As in :meth:`compute`.

        Returns
        -------
        ndarray or tuple of ndarray
            What :meth:`compute` returns.
        """
        from asyncio import to_thread

        return await to_thread(self.compute, query, keys, values, **keywords)

    def _compute(
        self,
        inputs: Inputs,
        mask: ArrayLike | None,
        return_lse: bool,
        return_weights: bool,
        out: Array | None,
        **options: Any,
    ) -> Any:
        checked = None if mask is None else self._checked_mask(inputs, mask)
        destination, work = inputs.output(out, self._work_dtype(inputs), (checked,))
        lse, weights = self._evaluate(
            inputs, checked, work, return_lse, return_weights, **options
        )
        return inputs.result(destination, lse if return_lse else None, weights)

    def compute_with_gradients(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        grad_output: ArrayLike,
        *,
        grad_lse: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, Gradients]:
        """Attend, and give the gradient in everything that was attended with.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`compute`.
        grad_output : array_like, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            Gradient of the output.
        grad_lse : array_like, optional
            Gradient of the log-sum-exp, in its shape, where something depends on it.

        Returns
        -------
        result : ndarray or tuple of ndarray
            What :meth:`compute` returns.
        gradients : Gradients
            Gradient of ``sum(output * grad_output) + sum(lse * grad_lse)`` in `query`,
            `keys`, `values` and a float `mask`, each in the shape and dtype of the argument;
            of a memory or a mask that serves a batch, summed; and in what the class learns, in
            ``gradients.parameters``. There is no second derivative.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute_with_gradients(
            inputs, grad_output, grad_lse, mask, return_lse, return_weights, out
        )

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
        checked = None if mask is None else self._checked_mask(inputs, mask)
        work_dtype = self._work_dtype(inputs)
        gradient = inputs.checked_gradient(grad_output, work_dtype)
        lse_gradient = None
        if grad_lse is not None:
            lse_gradient = inputs.checked_lse_gradient(grad_lse, self._heads)
        destination, work = inputs.output(out, work_dtype, (checked, gradient, lse_gradient))
        lse, weights = self._evaluate(inputs, checked, work, True, return_weights, **options)
        gradients = self._differentiate(
            inputs, checked, work, lse, gradient, lse_gradient, **options
        )
        result = inputs.result(destination, lse if return_lse else None, weights)
        return result, inputs.shaped_gradients(gradients)

    def _checked_mask(self, inputs: Inputs, mask: ArrayLike) -> Array:
        """Return the caller's mask as a view of shape ``(B, 1, m, n)``."""
        return inputs.checked_mask(mask)

    def _work_dtype(self, inputs: Inputs) -> np.dtype[Any]:
        """Return the dtype in which :meth:`_evaluate` writes the output."""
        return inputs.query.dtype

    @abstractmethod
    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        """Write the output, and return L and the weights where asked for.

        Parameters
        ----------
        inputs : Inputs
            The checked arrays.
        mask : ndarray, shape (B, 1, m, n), or None
            A view: bool, or the compute dtype for a bias.
        out : ndarray, shape (B, m, dim_v)
            Takes the output, in the dtype of :meth:`_work_dtype`.
        return_lse, return_weights : bool
            What is asked for.
        **options
            What a subclass adds to ``compute``.

        Returns
        -------
        lse : ndarray, shape (B, heads, m), or None
        weights : ndarray, shape (B, heads, m, n), or None
        """

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
        """Compute the gradients of what :meth:`_evaluate` computed.

        Parameters
        ----------
        inputs, mask, **options
            As in :meth:`_evaluate`.
        output : ndarray, shape (B, m, dim_v)
            What :meth:`_evaluate` wrote.
        lse : ndarray, shape (B, heads, m), or None
            What :meth:`_evaluate` returned.
        grad_output : ndarray, shape (B, m, dim_v)
            In the dtype of `output`, with contiguous rows.
        grad_lse : ndarray, shape (B, heads, m), or None
            In the compute dtype.

        Returns
        -------
        Gradients
            `query`, `keys` and `values` with the axes of :class:`Inputs`, those of a memory
            that serves the whole batch with a first axis of length 1 (as
            :meth:`Inputs.new_gradients` makes them); `mask` as
            :meth:`Inputs.new_mask_gradient` makes it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradients")

    def _config(self) -> tuple[tuple[str, Any], ...]:
        return tuple((name, getattr(self, name)) for name in self._fields)

    def __repr__(self) -> str:
        """Return the call that makes an equal object."""
        config = ", ".join(f"{name}={value!r}" for name, value in self._config())
        return f"{type(self).__name__}({config})"

    def __eq__(self, other: object) -> bool:
        """Compare class and configuration."""
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Attention)
        return self._config() == other._config()

    def __hash__(self) -> int:
        """Hash class and configuration."""
        return hash((type(self), self._config()))
