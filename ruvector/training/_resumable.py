"""Checkpoints of a trainer: what is in them, where they lie, and going on from them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..errors import CheckpointError, InvalidConfigError, NonFiniteError
from ._pairs import Pairs
from ._run import Run
from .checkpoints import read_state, write_state
from .config import TrainerConfig
from .model import learned_of

__all__ = ["Resumable"]

_FILE = "checkpoint.npz"
_KIND = "training checkpoint"


class Resumable:
    """Base class of a trainer: everything that its steps change can be saved and taken over."""

    config: TrainerConfig
    model: Any
    loss: Any
    optimizer: Any
    miner: Any
    _run: Run
    _pairs: dict[str, Any] | None
    """The fingerprint of what the run is trained on."""

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Save model, optimizer and run.

        Parameters
        ----------
        path : path
            A file that was there stays unless the new one is complete.

        Raises
        ------
        RuvectorError, OSError
            If it cannot be written.
        """
        write_state(
            path,
            _KIND,
            {
                "parts": self._parts(),
                "config": self.config.shaping(),
                "pairs": self._pairs,
                "run": self._run.state(),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "loss": {name: array.copy() for name, array in learned_of(self.loss).items()},
                "miner": getattr(self.miner, "state_dict", dict)(),
            },
        )

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Take over what :meth:`save_checkpoint` saved, of a trainer made alike.

        Parameters
        ----------
        path : path

        Raises
        ------
        CheckpointError
            If the file is damaged or that of another kind of trainer.
        OSError
            If it cannot be read.
        """
        self._take_over(self._read(path), path)

    def _read(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        state = read_state(path, _KIND)
        for key, ours in (("parts", self._parts()), ("config", self.config.shaping())):
            for field, value in ours.items():
                if state[key].get(field) != value:
                    raise CheckpointError(
                        f"{os.fspath(path)}: belongs to a run with {field} "
                        f"{state[key].get(field)!r}, not {value!r}"
                    )
        return state

    def _take_over(self, state: dict[str, Any], path: str | os.PathLike[str]) -> None:
        former = self.model.state_dict()
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError, TypeError) as error:
            self.model.load_state_dict(former)
            raise CheckpointError(
                f"{os.fspath(path)}: does not fit the model ({error})"
            ) from error
        for field, array in learned_of(self.loss).items():
            np.copyto(array, state["loss"][field])
        if state["miner"]:
            self.miner.load_state_dict(state["miner"])
        self._run = Run.from_state(state["run"])
        self._pairs = state["pairs"]

    def _begin(self, pairs: Pairs, resume: bool | str | os.PathLike[str]) -> None:
        """Start a run, or go on with one that was saved."""
        path = self._path() if resume is True else resume
        if resume is True and path is None:
            raise InvalidConfigError("resume=True needs a checkpoint_dir in the config")
        given = pairs.fingerprint()
        if not path or (resume is True and not os.path.exists(path)):
            self._run, self._pairs = Run(), given
            return
        state = self._read(path)
        for name in given.keys() | (state["pairs"] or {}).keys():
            if (state["pairs"] or {}).get(name) != given.get(name):
                raise CheckpointError(f"{os.fspath(path)}: belongs to a run on other {name}")
        self._take_over(state, path)

    def _save_when_due(self, epoch_ended: bool) -> bool:
        every = self.config.checkpoint_every
        due = epoch_ended or (every is not None and self._run.step % every == 0)
        if due:
            self._save_in_folder()
        return due

    def _save_in_folder(self) -> None:
        path = self._path()
        if path is not None:
            for name, array in self.model.parameters().items():
                if not np.isfinite(array).all():
                    raise NonFiniteError(
                        f"step {self._run.step}: {name} is not finite any more"
                    )
            os.makedirs(os.path.dirname(path), exist_ok=True)
            self.save_checkpoint(path)

    def _path(self) -> str | None:
        folder = self.config.checkpoint_dir
        return None if folder is None else os.path.join(folder, _FILE)

    def _parts(self) -> dict[str, str]:
        named = {
            "model": self.model,
            "loss": self.loss,
            "optimizer": self.optimizer,
            "miner": self.miner,
        }
        return {name: type(part).__name__ for name, part in named.items()}
