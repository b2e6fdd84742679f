"""A gradient against central differences of the function that it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ._arrays import FLOAT64, Array, cast, floating
from ._checks import finite
from .errors import DimensionMismatchError, GradientCheckError, InvalidConfigError

__all__ = ["gradcheck"]

# Entries that a report lists for one input.
_LISTED = 3


def gradcheck(
    fn: Callable[..., tuple[Any, Any]],
    inputs: Sequence[Any] | Mapping[str, Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-6,
    rtol: float = 1e-5,
    raise_exception: bool = True,
) -> bool:
    """Compare a gradient with central differences in float64, entry by entry.

    Parameters
    ----------
    fn : callable
        Called with float64 arrays, ``fn(*inputs)`` or, for a mapping, ``fn(**inputs)``.
        Returns ``(value, gradients)``: a scalar, and its gradient in each input. With a
        sequence of inputs that is a sequence of as many arrays; with a mapping, a mapping or
        an object with attributes of the same names. None passes an input over.
    inputs : sequence or mapping of array_like
        Where to check. Copied to float64; `fn` sees one entry changed at a time.
    eps : float, default 1e-6
        Step to either side.
    atol, rtol : float, default 1e-6 and 1e-5
        An entry is right within ``atol + rtol * abs(difference quotient)``.
    raise_exception : bool, default True
        Whether a wrong gradient raises; else the result is False.

    Returns
    -------
    bool
        Whether every entry of every gradient is right.

    Raises
    ------
    GradientCheckError
        If one is not; the message lists the worst entries of each input.
    DimensionMismatchError
        If `fn` returns a value that is no scalar, as many gradients as there are not inputs,
        or a gradient of another shape than its input.
    InvalidConfigError
        If there are no inputs, or an option is outside its domain.
    TypeError
        If an input does not hold real numbers.

    Notes
    -----
    A function with a kink, as a maximum with a tie, has no derivative there, and the check
    may fail.

    Examples
    --------
    Attention, weighted to a scalar:

    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> attention = ruvector.FlashAttention(4, causal=True)
    >>> weight = rng.standard_normal((3, 2))
    >>> def loss(query, keys, values):
    ...     output, grads = attention.compute_with_gradients(query, keys, values, weight)
    ...     return (output * weight).sum(), (grads.query, grads.keys, grads.values)
    >>> shapes = (3, 4), (5, 4), (5, 2)
    >>> ruvector.gradcheck(loss, [rng.standard_normal(shape) for shape in shapes])
    True
    """
    step = finite(eps, "eps", positive=True)
    atol, rtol = finite(atol, "atol"), finite(rtol, "rtol")
    if isinstance(inputs, Mapping):
        names, given = list(inputs), list(inputs.values())
    else:
        given = list(inputs)
        names = [f"inputs[{i}]" for i in range(len(given))]
    if not given:
        raise InvalidConfigError("inputs must hold at least one array, got none")
    arrays = [
        np.array(cast(floating(x, name), FLOAT64)) for x, name in zip(given, names, strict=True)
    ]

    def call() -> tuple[Any, Any]:
        copies = [array.copy() for array in arrays]
        if isinstance(inputs, Mapping):
            return fn(**dict(zip(names, copies, strict=True)))
        return fn(*copies)

    value, gradients = call()
    _scalar(value)
    reports = []
    for name, array, gradient in zip(
        names, arrays, _by_input(gradients, names, isinstance(inputs, Mapping)), strict=True
    ):
        if gradient is None:
            continue
        exact = cast(floating(gradient, f"gradient of {name}"), FLOAT64)
        if exact.shape != array.shape:
            raise DimensionMismatchError(
                f"gradient of {name} must have shape {array.shape}, got {exact.shape}"
            )
        quotient = _quotients(lambda: _scalar(call()[0]), array, step)
        allowed = atol + rtol * np.abs(quotient)
        report = _report(name, exact, quotient, allowed)
        if report:
            reports.append(report)
    if reports and raise_exception:
        raise GradientCheckError("\n".join(reports))
    return not reports


def _by_input(gradients: Any, names: list[str], named: bool) -> list[Any]:
    if not named:
        found = list(gradients)
        if len(found) != len(names):
            raise DimensionMismatchError(
                f"fn must return {len(names)} gradients, one per input, got {len(found)}"
            )
        return found
    if isinstance(gradients, Mapping):
        return [gradients[name] for name in names]
    return [getattr(gradients, name) for name in names]


def _scalar(value: Any) -> float:
    array = floating(value, "value of fn")
    if array.size != 1:
        raise DimensionMismatchError(f"value of fn must be a scalar, got shape {array.shape}")
    return float(array.reshape(()))


def _quotients(value: Callable[[], float], array: Array, step: float) -> Array:
    """Move one entry after another to either side."""
    result = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        here = array[index]
        array[index] = high = here + step
        above = value()
        array[index] = low = here - step
        below = value()
        array[index] = here
        # The step as it was taken: adding to a large number rounds it.
        result[index] = (above - below) / (high - low)
    return result


def _report(name: str, exact: Array, quotient: Array, allowed: Array) -> str:
    with np.errstate(invalid="ignore"):
        error = np.abs(exact - quotient)
    # NaN compares false and is wrong, too.
    wrong = ~(error <= allowed)
    count = int(np.count_nonzero(wrong))
    if not count:
        return ""
    rank = np.where(wrong, np.where(np.isnan(error), math.inf, error), -math.inf)
    lines = [
        f"gradient of {name} is wrong in {count} of {exact.size} entries "
        f"(largest error {rank.max():.3g})"
    ]
    for flat in np.argsort(-rank, axis=None, kind="stable")[: min(count, _LISTED)]:
        index = tuple(int(i) for i in np.unravel_index(flat, exact.shape))
        lines.append(
            f"  at {index}: gradient {exact[index]:.9g}, differences {quotient[index]:.9g}"
        )
    return "\n".join(lines)
