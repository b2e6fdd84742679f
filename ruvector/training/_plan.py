"""What schedules and the curriculum say about a step."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..errors import InvalidConfigError
from .config import TrainerConfig

__all__ = ["Plan", "Settings"]


class Settings(NamedTuple):
    """The settings of one step; None leaves what optimizer, loss and config say."""

    learning_rate: float | None
    temperature: float | None
    num_negatives: int | None
    difficulty: float


class Plan:
    """Asks schedules for their values at a step, whatever step they were at.

    Parameters
    ----------
    lr_schedule, temperature_schedule, curriculum : object with ``step``, or None
    config : TrainerConfig
    warms_up : bool
        Whether the config's rate and warm-up count where there is no schedule.
    loss : object
        The loss whose temperature is set.
    """

    def __init__(
        self,
        lr_schedule: Any,
        temperature_schedule: Any,
        curriculum: Any,
        config: TrainerConfig,
        warms_up: bool,
        loss: Any,
    ) -> None:
        named = {
            "lr_schedule": lr_schedule,
            "temperature_schedule": temperature_schedule,
            "curriculum": curriculum,
        }
        for name, given in named.items():
            if given is not None and not callable(getattr(given, "step", None)):
                raise InvalidConfigError(f"{name} must have a method step, got {given!r}")
        has_temperature = hasattr(loss, "temperature")
        if temperature_schedule is not None and not has_temperature:
            raise InvalidConfigError(
                f"temperature_schedule must come with a loss that has one, got {loss!r}"
            )
        self._rate = lr_schedule
        self._temperature = temperature_schedule
        self._curriculum = curriculum
        self._config = config
        self._warms_up = warms_up
        self._has_temperature = has_temperature
        if self.sets_temperature and getattr(loss, "learn_temperature", False):
            raise InvalidConfigError(
                "loss: a temperature that is learned must not come with a schedule or a "
                "curriculum, which set it"
            )

    @property
    def sets_temperature(self) -> bool:
        """Whether steps have a temperature of their own."""
        given = self._temperature is not None or self._curriculum is not None
        return given and self._has_temperature

    def at(self, step: int) -> Settings:
        """Return the settings of a step, counted from 0."""
        rate = temperature = count = None
        difficulty = 1.0
        if self._rate is not None:
            rate = float(self._rate.step(step))
        elif self._warms_up:
            warmup = self._config.warmup_steps
            rate = self._config.learning_rate * min(1.0, (step + 1) / max(1, warmup))
        if self._curriculum is not None:
            stage = self._curriculum.step(step)
            count, difficulty = int(stage.negative_count), float(stage.difficulty)
            temperature = float(stage.temperature)
        if self._temperature is not None:
            temperature = float(self._temperature.step(step))
        return Settings(rate, temperature if self._has_temperature else None, count, difficulty)
