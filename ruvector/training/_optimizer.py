"""What the optimisers share: the forms of a step, the state of each parameter, its saving."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .._arrays import FLOAT32, FLOAT64, Array, compute_dtype, floating
from .._checks import finite, integer
from .._config import current_threads
from ..errors import DimensionMismatchError, InvalidConfigError
from ._trees import Targets, flat_values, flatten, label, rebuild, values_like

__all__ = ["Optimizer", "between", "not_negative"]

_CACHE_LINE = 64


class _State(NamedTuple):
    """What is kept of one parameter: its shape, and flat arrays, one a slot."""

    shape: tuple[int, ...]
    arrays: list[Array]


class Optimizer(ABC):
    """Base class of the optimisers; they differ in their options and in one kernel call."""

    _slots: tuple[str, ...] = ()
    """Names of the arrays that are kept of each parameter, those of torch."""

    _options: ClassVar[tuple[str, ...]]
    """Names of the constructor's arguments, for the repr."""

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        self._learning_rate = not_negative(learning_rate, "learning_rate")
        self._weight_decay = not_negative(weight_decay, "weight_decay")
        self._steps = 0
        self._states: dict[str, _State] = {}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options)
        return f"{type(self).__name__}({options})"

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step; can be set."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._learning_rate = not_negative(value, "learning_rate")

    def get_learning_rate(self) -> float:
        """Return the learning rate."""
        return self._learning_rate

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the steps to come.

        Raises
        ------
        InvalidConfigError
            If it is not a finite number of at least 0.
        """
        self.learning_rate = learning_rate

    @property
    def weight_decay(self) -> float:
        """The weight decay."""
        return self._weight_decay

    @property
    def num_steps(self) -> int:
        """How many steps were taken since the start or the last :meth:`reset`."""
        return self._steps

    def step(self, gradients: Any, *, params: Any = None) -> Any:
        """Take one step.

        Parameters
        ----------
        gradients : array_like, list or dict of array_like, nested at will
            In the structure of `params`. The order of a dict's keys does not matter. A list
            of numbers is one array.
        params : array, list or dict of arrays, optional
            What to update: float32 or float64, writeable, none sharing memory with another.
            NumPy arrays of any strides, CPU tensors of torch, ``array.array`` and memoryviews
            are updated in place; those that are not contiguous through a copy.

        Returns
        -------
        array, list or dict
            `params`, updated; where they were not given, the updates to add to them, in
            the structure of `gradients`.

        Raises
        ------
        InvalidConfigError
            If there is weight decay and no `params`; if names differ between `gradients` and
            `params` or from those of the steps before; if an array of `params` is read-only,
            broadcast, or shares memory with another.
        DimensionMismatchError
            If the shape of a gradient is not that of its parameter, or the shape of a
            parameter not that of the steps before.
        TypeError
            If a parameter is no array of float32 or float64, or a gradient is not real.

        Notes
        -----
        An error leaves parameters and optimiser as they were. On the native backend a step is
        one call of a kernel, which Ctrl-C cannot cut in half. Gradients are not looked at: NaN
        in one makes its parameter NaN.
        """
        if params is None:
            if self._weight_decay != 0:
                raise InvalidConfigError(
                    f"params must be given where weight_decay is not 0, got weight_decay="
                    f"{self._weight_decay!r}"
                )
            leaves = {
                path: floating(leaf, label("gradients", path))
                for path, leaf in flatten(gradients, "gradients").items()
            }
            # The update of zero is what there is to add.
            zeros = {
                path: np.zeros(leaf.shape, compute_dtype(leaf.dtype))
                for path, leaf in leaves.items()
            }
            self._apply(Targets(zeros, "gradients"), leaves, "gradients")
            return rebuild(gradients, zeros.values())
        targets = Targets(params, "params")
        self._apply(targets, gradients, "params")
        return params

    def _apply(self, targets: Targets, gradients: Any, name: str) -> None:
        values = flat_values(values_like(gradients, "gradients", targets.arrays), targets)
        states = self._states_of(targets, name)
        arrays = [
            [state.arrays[i] for state in states.values()] for i in range(len(self._slots))
        ]
        threads = current_threads()
        before = self._steps, self._states
        # Set first, so that a Ctrl-C which arrives with the kernel's return finds all of it.
        self._steps, self._states = self._steps + 1, states
        try:
            self._update(targets.flat, values, arrays, threads)
        except Exception:
            self._steps, self._states = before
            raise
        targets.write_back()

    @abstractmethod
    def _update(
        self,
        params: list[Array],
        gradients: list[Array],
        slots: list[list[Array]],
        threads: int,
    ) -> None:
        """Take step number ``_steps`` on flat arrays."""

    def _states_of(self, targets: Targets, name: str) -> dict[str, _State]:
        """Return the state of every target, in their order; all new at the first step."""
        if not self._slots:
            return {}
        if not self._states:
            return {
                path: _State(array.shape, _zeros_like(flat, len(self._slots)))
                for (path, array), flat in zip(
                    targets.arrays.items(), targets.flat, strict=True
                )
            }
        if self._states.keys() != targets.arrays.keys():
            raise InvalidConfigError(
                f"{name} must hold the arrays of the steps before (reset() forgets them), "
                f"{sorted(self._states)}, got {sorted(targets.arrays)}"
            )
        for (path, array), flat in zip(targets.arrays.items(), targets.flat, strict=True):
            state = self._states[path]
            if array.shape != state.shape:
                raise DimensionMismatchError(
                    f"{label(name, path)} must have shape {state.shape} as in the steps "
                    f"before, got {array.shape}"
                )
            if flat.dtype != state.arrays[0].dtype:
                raise InvalidConfigError(
                    f"{label(name, path)} must have dtype {state.arrays[0].dtype} as in the "
                    f"steps before, got {flat.dtype}"
                )
        return {path: self._states[path] for path in targets.arrays}

    def reset(self) -> None:
        """Forget all steps: moments, momentum and their number. The learning rate stays."""
        self._steps = 0
        self._states = {}

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of what the steps to come depend on, beside the options.

        Returns
        -------
        dict
            ``step`` and ``learning_rate``, and arrays under the names that torch gives them,
            such as ``exp_avg``; with lists and dicts a path follows, as in
            ``exp_avg.layers.0``. Flat, so that ``numpy.savez(file, **state)`` keeps it.
        """
        state: dict[str, Any] = {"step": self._steps, "learning_rate": self._learning_rate}
        for path, (shape, arrays) in self._states.items():
            for slot, array in zip(self._slots, arrays, strict=True):
                state[label(slot, path)] = array.reshape(shape).copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called.

        Parameters
        ----------
        state : mapping
            What it returned, of an optimiser with the same options; also read back by
            ``numpy.load``.

        Raises
        ------
        InvalidConfigError
            If an entry is missing, unknown or outside its domain.
        DimensionMismatchError
            If the arrays of one parameter differ in shape.
        TypeError
            If an array is not float32 or float64.
        """
        scalars = {name: np.asarray(state[name]) for name in _SCALARS if name in state}
        if len(scalars) < len(_SCALARS) or any(value.ndim for value in scalars.values()):
            raise InvalidConfigError(
                f"state must hold numbers for {list(_SCALARS)}, got {sorted(state)}"
            )
        steps = integer(scalars["step"].item(), "step", 0)
        learning_rate = not_negative(scalars["learning_rate"].item(), "learning_rate")
        found: dict[str, dict[str, Array]] = {}
        for name, value in state.items():
            slot, _, path = name.partition(".")
            if slot in self._slots:
                found.setdefault(path, {})[slot] = _loaded(value, name)
            elif name not in scalars:
                raise InvalidConfigError(
                    f"state must hold {[*_SCALARS, *self._slots]}, got {name!r}"
                )
        if self._slots and bool(found) != (steps > 0):
            raise InvalidConfigError(
                f"state must hold arrays for {list(self._slots)} from the first step on, "
                f"got step {steps} and {sorted(state)}"
            )
        states = {path: self._loaded_state(path, arrays) for path, arrays in found.items()}
        self._steps, self._learning_rate, self._states = steps, learning_rate, states

    def _loaded_state(self, path: str, arrays: dict[str, Array]) -> _State:
        missing = [label(slot, path) for slot in self._slots if slot not in arrays]
        if missing:
            raise InvalidConfigError(f"state must hold {missing}, which it lacks")
        first = arrays[self._slots[0]]
        copies = _zeros_like(first.reshape(-1), len(self._slots))
        for slot, copy in zip(self._slots, copies, strict=True):
            if arrays[slot].shape != first.shape or arrays[slot].dtype != first.dtype:
                raise DimensionMismatchError(
                    f"{label(slot, path)} must have shape {first.shape} and dtype "
                    f"{first.dtype} like {label(self._slots[0], path)}, "
                    f"got {arrays[slot].shape} and {arrays[slot].dtype}"
                )
            copy[:] = arrays[slot].reshape(-1)
        return _State(first.shape, copies)


_SCALARS = ("step", "learning_rate")


def not_negative(value: Any, name: str) -> float:
    """Return `value` as a finite float of at least 0."""
    result = finite(value, name)
    if result < 0:
        raise InvalidConfigError(f"{name} must not be negative, got {value!r}")
    return result


def between(value: Any, name: str) -> float:
    """Return `value` as a float of at least 0 and below 1."""
    result = finite(value, name)
    if not 0 <= result < 1:
        raise InvalidConfigError(f"{name} must be at least 0 and less than 1, got {value!r}")
    return result


def _loaded(value: Any, name: str) -> Array:
    array = np.asarray(value)
    if array.dtype.newbyteorder("=") not in (FLOAT32, FLOAT64):
        raise TypeError(f"{name} must have dtype float32 or float64, got {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _zeros_like(flat: Array, count: int) -> list[Array]:
    """Return arrays of zeros, each lying in its cache lines as `flat` lies in its own."""
    # One allocation, which is more often large enough for large pages.
    step = -(-flat.nbytes // _CACHE_LINE) * _CACHE_LINE
    memory = np.zeros(count * step + _CACHE_LINE, np.uint8)
    shift = (_address(flat) - _address(memory)) % _CACHE_LINE
    starts = [shift + i * step for i in range(count)]
    return [memory[start : start + flat.nbytes].view(flat.dtype) for start in starts]


def _address(x: Array) -> int:
    address: int = x.__array_interface__["data"][0]
    return address
