"""How a trainer trains."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from .._checks import finite, flag, integer
from ..errors import InvalidConfigError

__all__ = ["TrainerConfig"]


@dataclass(frozen=True, slots=True)
class TrainerConfig:
    """The settings of a :class:`Trainer`.

    Parameters
    ----------
    batch_size : int, default 128
        Pairs of a step. The last batch of an epoch holds what is left.
    num_epochs : int, default 10
        How often every pair is seen.
    gradient_clip : float, optional
        Gradients whose norm, over all parameters, is larger are scaled down to it.
    weight_decay : float, default 0.01
        Of the AdamW optimizer that a trainer makes where none is given, as are the next two.
    warmup_steps : int, default 0
        The rate grows linearly over so many steps, unless there is a schedule.
    learning_rate : float, default 1e-3
    seed : int, default 42
        Of the order of the pairs and of negatives that are drawn.
    eval_every : int, default 1
        Epochs between two evaluations on the validation pairs.
    patience : int, optional
        Stop when so many evaluations in a row have not improved the first recall, and leave
        the model as it was at the best one.
    checkpoint_dir : path, optional
        Folder for ``checkpoint.npz``, which is made where it is missing.
    checkpoint_every : int, optional
        Steps between two checkpoints, beside the one at the end of every epoch.
    num_negatives : int, default 10
        Negatives to mine for each anchor, or to draw for a batch, where no curriculum tells.
    mine_every : int, default 1
        Epochs for which mined negatives hold.
    in_batch_negatives : bool, default True
        Whether the other positives of a batch are negatives, beside those that are given or
        mined.
    recall_at : tuple of int, default (1, 5)
        The k of the recall@k that are reported.

    Raises
    ------
    InvalidConfigError
        If a value is outside its domain.

    Examples
    --------
    >>> from ruvector.training import TrainerConfig
    >>> TrainerConfig(batch_size=32, num_epochs=3).batch_size
    32
    """

    batch_size: int = 128
    num_epochs: int = 10
    gradient_clip: float | None = None
    weight_decay: float = 0.01
    warmup_steps: int = 0
    learning_rate: float = 1e-3
    seed: int = 42
    eval_every: int = 1
    patience: int | None = None
    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_every: int | None = None
    num_negatives: int = 10
    mine_every: int = 1
    in_batch_negatives: bool = True
    recall_at: tuple[int, ...] = (1, 5)

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_epochs", "eval_every", "num_negatives", "mine_every"):
            self._set(name, integer(getattr(self, name), name, 1))
        for name in ("warmup_steps", "seed"):
            self._set(name, integer(getattr(self, name), name, 0))
        for name in ("patience", "checkpoint_every"):
            if getattr(self, name) is not None:
                self._set(name, integer(getattr(self, name), name, 1))
        if self.gradient_clip is not None:
            value = finite(self.gradient_clip, "gradient_clip", positive=True)
            self._set("gradient_clip", value)
        self._set("learning_rate", finite(self.learning_rate, "learning_rate", positive=True))
        self._set("weight_decay", finite(self.weight_decay, "weight_decay"))
        if self.weight_decay < 0:
            raise InvalidConfigError(
                f"weight_decay must not be negative, got {self.weight_decay!r}"
            )
        self._set("in_batch_negatives", flag(self.in_batch_negatives, "in_batch_negatives"))
        if self.checkpoint_dir is not None:
            self._set("checkpoint_dir", os.fspath(self.checkpoint_dir))
        ks = self.recall_at
        if not isinstance(ks, tuple | list) or not ks:
            raise InvalidConfigError(f"recall_at must hold integers, got {ks!r}")
        self._set("recall_at", tuple(integer(k, "recall_at", 1) for k in ks))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def shaping(self) -> dict[str, Any]:
        """Return what decides how a run goes; a resumed one must have it alike.

        Returns
        -------
        dict
            The fields, without the number of epochs and where and how often checkpoints are
            written.
        """
        left_out = ("num_epochs", "checkpoint_dir", "checkpoint_every")
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return named | {"recall_at": list(self.recall_at)}
