"""Numbers that follow a curve over the steps of a training: learning rate, temperature."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import finite, integer, one_of
from ..errors import InvalidConfigError

__all__ = ["LearningRateScheduler", "TemperatureAnnealing"]

_DECAYS = ("linear", "exponential", "cosine", "step")
_LEVELS = 10


class _Schedule(ABC):
    """A value for each step; where the schedule stands is all of its state."""

    _step = 0
    _total_steps: int

    @abstractmethod
    def _value(self) -> float:
        """Return the value at the current step."""

    @property
    def total_steps(self) -> int:
        """The step at which the curve ends; the value stays from there on."""
        return self._total_steps

    @property
    def current_step(self) -> int:
        """The step whose value comes next."""
        return self._step

    @property
    def progress(self) -> float:
        """The part of all steps that is behind, from 0 to 1."""
        return min(1.0, self._step / self._total_steps)

    def step(self, t: int | None = None) -> float:
        """Return the value of the current step and go on to the next.

        Parameters
        ----------
        t : int, optional
            Go to this step first.

        Raises
        ------
        InvalidConfigError
            If `t` is not an integer of at least 0.
        """
        if t is not None:
            self._step = integer(t, "t", 0)
        value = self._value()
        self._step += 1
        return value

    def reset(self) -> None:
        """Go back to the first step."""
        self._step = 0

    def state_dict(self) -> dict[str, int]:
        """Return where the schedule stands: its ``step``."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called, of a schedule with the same arguments.

        Raises
        ------
        InvalidConfigError
            If `state` holds anything but a ``step`` of at least 0.
        """
        self._step = step_in(state)


class LearningRateScheduler(_Schedule):
    """A linear warm-up, then half a period of a cosine.

    Parameters
    ----------
    base_learning_rate : float
        The highest rate; positive.
    warmup_steps : int
        Steps of the warm-up: the rate of step i is ``(i + 1) / warmup_steps`` of the highest.
        0 for none; at most `total_steps`.
    total_steps : int
        From this step on the rate is `min_learning_rate`; at least 1.
    min_learning_rate : float, default 1e-7
        At least 0 and at most `base_learning_rate`.

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    References
    ----------
    Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", arXiv
    1608.03983, equation 5.

    Examples
    --------
    >>> from ruvector.training import LearningRateScheduler
    >>> schedule = LearningRateScheduler(0.1, warmup_steps=2, total_steps=6)
    >>> [round(schedule.step(), 4) for _ in range(7)]
    [0.05, 0.1, 0.1, 0.0854, 0.05, 0.0146, 0.0]
    """

    def __init__(
        self,
        base_learning_rate: float,
        warmup_steps: int,
        total_steps: int,
        min_learning_rate: float = 1e-7,
    ) -> None:
        self._base = finite(base_learning_rate, "base_learning_rate", positive=True)
        self._warmup = integer(warmup_steps, "warmup_steps", 0)
        self._total_steps = integer(total_steps, "total_steps", 1)
        self._minimum = finite(min_learning_rate, "min_learning_rate")
        if self._warmup > self._total_steps:
            raise InvalidConfigError(
                f"warmup_steps must be at most total_steps, got warmup_steps={warmup_steps!r} "
                f"and total_steps={total_steps!r}"
            )
        if not 0 <= self._minimum <= self._base:
            raise InvalidConfigError(
                "min_learning_rate must be at least 0 and at most base_learning_rate, got "
                f"min_learning_rate={min_learning_rate!r} and "
                f"base_learning_rate={base_learning_rate!r}"
            )

    @classmethod
    def with_min_lr(
        cls, base_learning_rate: float, warmup_steps: int, total_steps: int, min_lr: float
    ) -> LearningRateScheduler:
        """Return a schedule that ends at `min_lr`."""
        return cls(base_learning_rate, warmup_steps, total_steps, min_lr)

    def __repr__(self) -> str:
        return (
            f"LearningRateScheduler(base_learning_rate={self._base!r}, "
            f"warmup_steps={self._warmup}, total_steps={self._total_steps}, "
            f"min_learning_rate={self._minimum!r})"
        )

    @property
    def base_learning_rate(self) -> float:
        """The highest rate."""
        return self._base

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return self._warmup

    @property
    def min_learning_rate(self) -> float:
        """The rate at the end."""
        return self._minimum

    @property
    def learning_rate(self) -> float:
        """The rate of the current step."""
        return self._value()

    def get_lr(self) -> float:
        """Return the rate of the current step, without going on."""
        return self._value()

    def _value(self) -> float:
        if self._step < self._warmup:
            return self._base * (self._step + 1) / self._warmup
        if self._step >= self._total_steps:
            return self._minimum
        part = (self._step - self._warmup) / (self._total_steps - self._warmup)
        return _cosine(self._base, self._minimum, part)


class TemperatureAnnealing(_Schedule):
    """A temperature that goes from one value to another.

    Parameters
    ----------
    initial_temp, final_temp : float
        The temperature of the first step and that from `total_steps` on; positive.
    total_steps : int
        At least 1.
    decay_type : {"linear", "exponential", "cosine", "step"}, default "linear"
        The curve between: a line, a constant factor a step, half a period of a cosine, or ten
        level stretches along the line.

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    Examples
    --------
    >>> from ruvector.training import TemperatureAnnealing
    >>> schedule = TemperatureAnnealing(1.0, 0.0625, 4, decay_type="exponential")
    >>> [schedule.step() for _ in range(6)]
    [1.0, 0.5, 0.25, 0.125, 0.0625, 0.0625]
    """

    def __init__(
        self,
        initial_temp: float,
        final_temp: float,
        total_steps: int,
        decay_type: str = "linear",
    ) -> None:
        self._initial = finite(initial_temp, "initial_temp", positive=True)
        self._final = finite(final_temp, "final_temp", positive=True)
        self._total_steps = integer(total_steps, "total_steps", 1)
        self._decay_type = one_of(decay_type, "decay_type", _DECAYS)

    @classmethod
    def with_decay(
        cls, initial_temp: float, final_temp: float, total_steps: int, decay_type: str
    ) -> TemperatureAnnealing:
        """Return a schedule with this curve."""
        return cls(initial_temp, final_temp, total_steps, decay_type)

    def __repr__(self) -> str:
        return (
            f"TemperatureAnnealing(initial_temp={self._initial!r}, "
            f"final_temp={self._final!r}, total_steps={self._total_steps}, "
            f"decay_type={self._decay_type!r})"
        )

    @property
    def initial_temp(self) -> float:
        """The temperature of the first step."""
        return self._initial

    @property
    def final_temp(self) -> float:
        """The temperature at the end."""
        return self._final

    @property
    def decay_type(self) -> str:
        """The curve between them."""
        return self._decay_type

    @property
    def temperature(self) -> float:
        """The temperature of the current step."""
        return self._value()

    def get_temp(self) -> float:
        """Return the temperature of the current step, without going on."""
        return self._value()

    def _value(self) -> float:
        if self._step >= self._total_steps:
            return self._final
        part = self._step / self._total_steps
        if self._decay_type == "exponential":
            return self._initial * math.pow(self._final / self._initial, part)
        if self._decay_type == "cosine":
            return _cosine(self._initial, self._final, part)
        if self._decay_type == "step":
            part = self._step * _LEVELS // self._total_steps / _LEVELS
        return self._initial + (self._final - self._initial) * part


def step_in(state: Mapping[str, Any]) -> int:
    """Return the only entry of a schedule's state."""
    if set(state) != {"step"}:
        raise InvalidConfigError(f"state must hold ['step'], got {sorted(state)}")
    value = np.asarray(state["step"])
    return integer(value.item() if value.ndim == 0 else value, "step", 0)


def _cosine(high: float, low: float, part: float) -> float:
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * part))
