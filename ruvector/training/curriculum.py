"""A curriculum: stages of training, from easy to hard, each for a number of steps."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .._checks import finite, integer
from ..errors import InvalidConfigError
from .schedules import step_in

__all__ = ["CurriculumScheduler", "CurriculumStage"]

# Name, difficulty, temperature and negatives of upstream's default stages.
_DEFAULT = (
    ("warm_up", 0.1, 2.0, 5),
    ("easy", 0.3, 1.0, 10),
    ("medium", 0.6, 0.5, 20),
    ("hard", 1.0, 0.1, 50),
)


@dataclass(frozen=True, slots=True)
class CurriculumStage:
    """One stage of a curriculum.

    Parameters
    ----------
    name : str
        What it is called; not empty.
    difficulty : float
        From 0 to 1.
    duration : int
        For how many steps it lasts; at least 1.
    temperature : float, default 1.0
        Of the loss; positive.
    negative_count : int, default 10
        Negatives for each anchor; at least 0.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain.

    Examples
    --------
    >>> from ruvector.training import CurriculumStage
    >>> CurriculumStage("easy", 0.2, duration=100).negative_count
    10
    """

    name: str
    difficulty: float
    duration: int
    temperature: float = 1.0
    negative_count: int = 10

    def __post_init__(self) -> None:
        """Check the fields."""
        if not isinstance(self.name, str) or not self.name:
            raise InvalidConfigError(f"name must be a string, not empty, got {self.name!r}")
        difficulty = finite(self.difficulty, "difficulty")
        if not 0 <= difficulty <= 1:
            raise InvalidConfigError(f"difficulty must be from 0 to 1, got {self.difficulty!r}")
        for name, value in (
            ("difficulty", difficulty),
            ("duration", integer(self.duration, "duration", 1)),
            ("temperature", finite(self.temperature, "temperature", positive=True)),
            ("negative_count", integer(self.negative_count, "negative_count", 0)),
        ):
            object.__setattr__(self, name, value)


class CurriculumScheduler:
    """Stages one after the other; the last one stays.

    Parameters
    ----------
    stages : iterable of CurriculumStage, optional
        The first stages. :meth:`add_stage` adds more.

    Raises
    ------
    InvalidConfigError
        If something else than a stage is among them.

    References
    ----------
    Bengio et al. 2009, "Curriculum learning".

    Examples
    --------
    >>> from ruvector.training import CurriculumScheduler, CurriculumStage
    >>> curriculum = CurriculumScheduler([CurriculumStage("easy", 0.2, duration=2)])
    >>> _ = curriculum.add_stage(CurriculumStage("hard", 1.0, duration=2, negative_count=50))
    >>> curriculum.negative_count
    10
    >>> [curriculum.step().name for _ in range(5)]
    ['easy', 'hard', 'hard', 'hard', 'hard']
    >>> curriculum.is_complete
    True
    """

    def __init__(self, stages: Iterable[CurriculumStage] = ()) -> None:
        self._stages: list[CurriculumStage] = []
        self._ends: list[int] = []
        self._step = 0
        for stage in stages:
            self.add_stage(stage)

    @classmethod
    def default_curriculum(cls, total_steps: int) -> CurriculumScheduler:
        """Return upstream's four stages, each a quarter of the steps, rounded down.

        Parameters
        ----------
        total_steps : int
            At least 4.

        Raises
        ------
        InvalidConfigError
            If it is less.

        Examples
        --------
        >>> from ruvector.training import CurriculumScheduler
        >>> for stage in CurriculumScheduler.default_curriculum(1000).stages:
        ...     print(stage.name, stage.difficulty, stage.temperature, stage.negative_count)
        warm_up 0.1 2.0 5
        easy 0.3 1.0 10
        medium 0.6 0.5 20
        hard 1.0 0.1 50
        """
        duration = integer(total_steps, "total_steps", len(_DEFAULT)) // len(_DEFAULT)
        return cls(
            CurriculumStage(name, difficulty, duration, temperature, negatives)
            for name, difficulty, temperature, negatives in _DEFAULT
        )

    def __repr__(self) -> str:
        return f"CurriculumScheduler({self._stages!r})"

    def add_stage(self, stage: CurriculumStage) -> CurriculumScheduler:
        """Add a stage behind the others.

        Returns
        -------
        CurriculumScheduler
            Itself, so that calls can follow each other.

        Raises
        ------
        InvalidConfigError
            If it is not a :class:`CurriculumStage`.
        """
        if not isinstance(stage, CurriculumStage):
            raise InvalidConfigError(f"stage must be a CurriculumStage, got {stage!r}")
        self._stages.append(stage)
        self._ends = list(itertools.accumulate(stage.duration for stage in self._stages))
        return self

    @property
    def stages(self) -> tuple[CurriculumStage, ...]:
        """All stages, in order."""
        return tuple(self._stages)

    @property
    def total_steps(self) -> int:
        """How long all stages last."""
        return self._ends[-1] if self._ends else 0

    @property
    def current_step(self) -> int:
        """How many steps are behind."""
        return self._step

    @property
    def current_stage(self) -> CurriculumStage:
        """The stage of the current step; behind the end it is the last one.

        Raises
        ------
        InvalidConfigError
            If there are no stages.
        """
        if not self._stages:
            raise InvalidConfigError("the curriculum must have a stage, got none")
        index = bisect_right(self._ends, self._step)
        return self._stages[min(index, len(self._stages) - 1)]

    @property
    def difficulty(self) -> float:
        """Difficulty of the current stage."""
        return self.current_stage.difficulty

    @property
    def temperature(self) -> float:
        """Temperature of the current stage."""
        return self.current_stage.temperature

    @property
    def negative_count(self) -> int:
        """Negatives for each anchor in the current stage."""
        return self.current_stage.negative_count

    @property
    def is_complete(self) -> bool:
        """Whether all stages are behind."""
        return self._step >= self.total_steps

    @property
    def progress(self) -> float:
        """The part of all steps that is behind, from 0 to 1."""
        return 1.0 if self.is_complete else self._step / self.total_steps

    def step(self, t: int | None = None) -> CurriculumStage:
        """Go on by one step and return the stage of that step.

        Parameters
        ----------
        t : int, optional
            Go to this step first.

        Raises
        ------
        InvalidConfigError
            If `t` is not an integer of at least 0, or there are no stages.
        """
        before = self._step if t is None else integer(t, "t", 0)
        if not self._stages:
            raise InvalidConfigError("the curriculum must have a stage, got none")
        self._step = before + 1
        return self.current_stage

    def reset(self) -> None:
        """Go back to the first step."""
        self._step = 0

    def state_dict(self) -> dict[str, int]:
        """Return where the curriculum stands: its ``step``."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called, of a curriculum with the same stages.

        Raises
        ------
        InvalidConfigError
            If `state` holds anything but a ``step`` of at least 0.
        """
        self._step = step_in(state)
