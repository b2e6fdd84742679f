"""What happened in a training run, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["History"]

_STEPS = ("loss", "learning_rate", "temperature", "gradient_norm")


@dataclass(slots=True)
class History:
    """Numbers of every step, and recall on the validation pairs.

    Attributes
    ----------
    loss, learning_rate, temperature, gradient_norm : list of float
        One number for each step; the norm is that before clipping, the temperature NaN where
        the loss has none.
    recall : dict of str to list
        ``"step"``, how many steps were done at each evaluation, and ``"recall@1"`` and so on.

    Examples
    --------
    >>> from ruvector.training import History
    >>> History(loss=[0.5, 0.25]).to_dict()["loss"]
    [0.5, 0.25]
    """

    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    recall: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.loss)

    def add_step(self, numbers: Mapping[str, float]) -> None:
        """Append the numbers of one step.

        Parameters
        ----------
        numbers : mapping
            By the names of the attributes.
        """
        for name in _STEPS:
            getattr(self, name).append(float(numbers[name]))

    def add_recall(self, step: int, recall: Mapping[int, float]) -> None:
        """Append an evaluation.

        Parameters
        ----------
        step : int
            How many steps were done.
        recall : mapping of int to float
            The recall at each k.
        """
        self.recall.setdefault("step", []).append(step)
        for k, value in recall.items():
            self.recall.setdefault(f"recall@{k}", []).append(value)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain lists and numbers.

        Returns
        -------
        dict
            By the names of the attributes; ready for JSON but for NaN temperatures.
        """
        columns: dict[str, Any] = {name: list(getattr(self, name)) for name in _STEPS}
        return columns | {"recall": {name: list(x) for name, x in self.recall.items()}}

    def plot(self, path: Any = None) -> Any:
        """Draw loss and recall over the steps.

        Parameters
        ----------
        path : path or file, optional
            Where to save the picture too.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        try:
            figure_of = import_module("matplotlib.figure").Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'ruvector[plot]'") from error
        figure = figure_of(figsize=(8, 4.5), layout="constrained")
        left = figure.add_subplot()
        left.plot(np.arange(1, len(self) + 1), self.loss, color="tab:gray", label="loss")
        left.set(xlabel="step", ylabel="loss")
        lines = left.get_lines()
        if self.recall:
            right = left.twinx()
            for name, values in self.recall.items():
                if name != "step":
                    right.plot(self.recall["step"], values, marker=".", label=name)
            right.set(ylabel="recall on the validation pairs", ylim=(0, 1))
            lines = [*lines, *right.get_lines()]
        left.legend(lines, [line.get_label() for line in lines], loc="center right")
        if path is not None:
            figure.savefig(path)
        return figure

    def state(self) -> dict[str, NDArray[np.float64]]:
        """Return what a checkpoint keeps: the same lists as arrays."""
        columns = {name: np.array(getattr(self, name)) for name in _STEPS}
        return columns | {name: np.array(x, np.float64) for name, x in self.recall.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.float64]]) -> History:
        """Make a history of what :meth:`state` returned."""
        steps = {name: state[name].tolist() for name in _STEPS}
        recall = {name: x.tolist() for name, x in state.items() if name not in _STEPS}
        if recall:
            recall["step"] = [int(step) for step in recall["step"]]
        return cls(**steps, recall=recall)
