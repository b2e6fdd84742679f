"""Checks of scalar options: each returns the plain Python value or names the argument."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any, TypeVar

import numpy as np

from .errors import InvalidConfigError

__all__ = [
    "MOST_POSITIONS",
    "MOST_THREADS",
    "curvature_of",
    "extent",
    "finite",
    "flag",
    "generator",
    "integer",
    "one_of",
    "real_type",
    "seeded",
    "settings",
]

_T = TypeVar("_T")

MOST_POSITIONS = 2**62
"""More than any array has; kernels add a position to it without overflow."""

MOST_THREADS = 2**31 - 1
"""What a kernel takes; more are as many as there are pieces of work, too."""


def flag(value: Any, name: str) -> bool:
    """Return `value` as a bool; only a bool is one."""
    if not isinstance(value, bool | np.bool_):
        raise InvalidConfigError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def integer(value: Any, name: str, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`; a bool is not a number here."""
    try:
        result = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        result = None
    if result is None or result < minimum:
        raise InvalidConfigError(
            f"{name} must be an integer of at least {minimum}, got {value!r}"
        )
    return result


def extent(value: Any, name: str) -> int:
    """Return a number of positions; one beyond every array is as good as any other."""
    return min(integer(value, name, 0), MOST_POSITIONS)


def real_type(value: Any, name: str) -> np.dtype[Any]:
    """Return the NumPy type that `value` names: float32 or float64."""
    found: np.dtype[Any] | None
    try:
        found = np.dtype(value)
    except TypeError:
        found = None
    if found is None or found not in (np.float32, np.float64):
        raise InvalidConfigError(f"{name} must be 'float32' or 'float64', got {value!r}")
    return found


def finite(value: Any, name: str, *, positive: bool = False) -> float:
    """Return `value` as a finite float, above 0 where `positive`."""
    result = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not math.isfinite(result) or (positive and result <= 0):
        kind = "positive finite number" if positive else "finite number"
        raise InvalidConfigError(f"{name} must be a {kind}, got {value!r}")
    return result


def curvature_of(value: Any) -> float:
    """Return the absolute value of a curvature; the space must not be flat."""
    result = abs(finite(value, "curvature"))
    if result == 0:
        raise InvalidConfigError(f"curvature must not be 0, got {value!r}")
    return result


def generator(seed: Any, rng: Any, default: int | None = None) -> np.random.Generator:
    """Return `rng`, or a new generator of `seed`; one of them may be given."""
    if rng is None:
        return np.random.default_rng(default if seed is None else integer(seed, "seed", 0))
    if seed is not None:
        raise InvalidConfigError("seed and rng must not both be given")
    if not isinstance(rng, np.random.Generator):
        raise InvalidConfigError(f"rng must be a numpy.random.Generator, got {rng!r}")
    return rng


def seeded(seed: Any) -> np.random.Generator:
    """Return the generator that `seed` is, or a new one of it."""
    return seed if isinstance(seed, np.random.Generator) else generator(seed, None)


def one_of(value: Any, name: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is one of the words allowed."""
    if not isinstance(value, str) or value not in allowed:
        words = " or ".join(repr(word) for word in allowed)
        raise InvalidConfigError(f"{name} must be {words}, got {value!r}")
    return value


def settings(kind: type[_T], config: _T | None, fields: dict[str, Any]) -> _T:
    """Return a configuration given as a whole or as its fields."""
    if config is None:
        return kind(**fields)
    if not isinstance(config, kind):
        raise InvalidConfigError(f"config must be a {kind.__name__}, got {config!r}")
    if fields:
        raise InvalidConfigError(f"config must not come with its fields, got {sorted(fields)}")
    return config
