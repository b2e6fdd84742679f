"""Training of a model on pairs: batches, negatives, schedules, checkpoints, evaluation."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._progress import progress as reported
from ..errors import InvalidConfigError
from ._interrupt import DeferredInterrupt
from ._joint import Joint
from ._negatives import Negatives
from ._pairs import Chosen, Items, Pairs
from ._plan import Plan, Settings
from ._resumable import Resumable
from ._run import Run
from ._step import Stepper
from .config import TrainerConfig
from .history import History
from .losses import InfoNCELoss
from .optimizers import AdamWOptimizer
from .recall import recall_at_k

__all__ = ["Trainer"]


class Trainer(Resumable):
    """Train a model so that anchors find their positives.

    Parameters
    ----------
    model : Model or PairModel
        Such as :class:`LinearAdapter`, :class:`MemoryEncoder`, :class:`GraphEncoder`, or a
        :class:`PairEncoder` of two.
    loss : optional
        :class:`InfoNCELoss` where it is None, or any object with its
        ``compute_with_gradients``.
    optimizer : optional
        An optimizer; without it :class:`AdamWOptimizer` with the rate, the weight decay and
        the warm-up of the config.
    lr_schedule : optional
        Sets the rate of every step, whatever the optimizer's own.
    temperature_schedule : optional
        Sets the temperature of the loss at every step.
    curriculum : CurriculumScheduler, optional
        Its stage sets how many negatives a step has, which share of them is mined (the
        difficulty; the others are drawn), and the temperature where no schedule does.
    miner : HardNegativeMiner, optional
        Chooses negatives for each anchor, among those given to :meth:`fit` or else among all
        positives, as the model encodes them when an epoch begins.
    config : TrainerConfig, optional

    Raises
    ------
    InvalidConfigError
        If an argument lacks what is needed of it, or arguments exclude each other.

    Notes
    -----
    Schedules are asked for step t of the run, counted from 0, whatever they did before. Orders
    and draws come from the seed and the number of the epoch or step, so a run that was killed
    and resumed ends with the same bits on the same machine and instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.training import LinearAdapter, Trainer, TrainerConfig
    >>> rng = np.random.default_rng(0)
    >>> anchors = rng.standard_normal((64, 8), dtype=np.float32)
    >>> positives = anchors @ rng.standard_normal((8, 8), dtype=np.float32)
    >>> config = TrainerConfig(batch_size=16, num_epochs=20, learning_rate=0.02)
    >>> trainer = Trainer(LinearAdapter(8, 8), config=config)
    >>> before = trainer.evaluate(anchors, positives)
    >>> history = trainer.fit(anchors, positives)
    >>> len(history), before["recall@1"] < trainer.evaluate(anchors, positives)["recall@1"]
    (80, True)
    """

    def __init__(
        self,
        model: Any,
        loss: Any = None,
        optimizer: Any = None,
        *,
        lr_schedule: Any = None,
        temperature_schedule: Any = None,
        curriculum: Any = None,
        miner: Any = None,
        config: TrainerConfig | None = None,
    ) -> None:
        self.config = TrainerConfig() if config is None else config
        if not isinstance(self.config, TrainerConfig):
            raise InvalidConfigError(f"config must be a TrainerConfig, got {config!r}")
        self.model = model
        self._joint = Joint(model)
        self.loss = InfoNCELoss() if loss is None else loss
        if not callable(getattr(self.loss, "compute_with_gradients", None)):
            raise InvalidConfigError(f"loss must have compute_with_gradients, got {loss!r}")
        self.optimizer = optimizer
        if optimizer is None:
            self.optimizer = AdamWOptimizer(
                self.config.learning_rate, weight_decay=self.config.weight_decay
            )
        for name in ("step", "state_dict", "load_state_dict"):
            if not callable(getattr(self.optimizer, name, None)):
                raise InvalidConfigError(f"optimizer must have {name}, got {optimizer!r}")
        if (
            miner is not None
            and not hasattr(miner, "mine")
            and not hasattr(miner, "get_negatives")
        ):
            raise InvalidConfigError(f"miner must have a method mine, got {miner!r}")
        self.miner = miner
        own = optimizer is None
        self._plan = Plan(
            lr_schedule, temperature_schedule, curriculum, self.config, own, self.loss
        )
        self._stepper = Stepper(model, self._joint, self.loss, self.optimizer, self.config)
        self._run = Run()
        self._pairs: dict[str, Any] | None = None
        self._order: tuple[int, NDArray[np.intp]] | None = None

    @property
    def step(self) -> int:
        """How many steps of the run are done."""
        return self._run.step

    @property
    def history(self) -> History:
        """What happened in the run so far."""
        return self._run.history

    def fit(
        self,
        anchors: ArrayLike,
        positives: ArrayLike,
        *,
        negatives: ArrayLike | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
        ids: ArrayLike | None = None,
        progress: bool | str = "auto",
        resume: bool | str | os.PathLike[str] = False,
    ) -> History:
        """Train for the epochs of the config.

        Parameters
        ----------
        anchors, positives : array_like, shape (n, ...)
            Row i of the positives is what anchor i is to find. They are read a batch at a time,
            so they may be memory-mapped; what a row is the model knows, a vector mostly.
        negatives : array_like, shape (N, ...) or (n, k, ...), optional
            A pool, from which each step mines or draws, or each anchor's own, all of which (or
            the first ones, as the curriculum says) are used.
        validation : tuple of (anchors, positives), optional
            Pairs for the recall in the history, at the start and after epochs.
        ids : array_like of int, shape (n,), optional
            What each positive is; equal ones are no negatives of each other. By default their
            row, so that every one is something else.
        progress : "auto" or bool, default "auto"
            Whether work that takes long says how far it is, on standard error: with a bar where
            tqdm is installed and someone watches, else by a line now and then.
        resume : bool or path, default False
            True goes on from the checkpoint in the config's folder where there is one, a path
            from that one. Everything else must be as it was; more epochs may be asked for.

        Returns
        -------
        History

        Raises
        ------
        DimensionMismatchError, EmptyInputError, TypeError
            If the arrays do not fit together.
        InvalidConfigError
            If arguments and settings exclude each other.
        CheckpointError
            If the checkpoint is damaged or that of another run.
        NonFiniteError
            If the loss or a gradient is NaN or infinite. The step was not taken, and the last
            checkpoint stays.
        KeyboardInterrupt
            After Ctrl-C, at the end of the step and after a checkpoint; a second one does not
            wait.
        OSError
            If a checkpoint cannot be written. The former one stays.
        """
        if progress not in ("auto", True, False):
            raise InvalidConfigError(
                f"progress must be 'auto', True or False, got {progress!r}"
            )
        pairs = Pairs(anchors, positives, negatives, ids)
        held_out = None if validation is None else _validation(validation)
        if self.config.patience is not None and held_out is None:
            raise InvalidConfigError("patience needs validation pairs, got validation=None")
        source = Negatives(pairs, self.miner, self.config)
        self._begin(pairs, resume)
        self._order = None
        per_epoch = -(-len(pairs) // self.config.batch_size)
        total = per_epoch * self.config.num_epochs
        with (
            DeferredInterrupt() as interrupt,
            reported(total, "train", "steps")
            if progress
            else nullcontext(lambda *_: None) as advance,
        ):
            if self._run.step:
                advance(self._run.step)
            if held_out is not None and not self._run.step:
                self._check(held_out)
            while self._run.step < total and not self._run.stopped:
                self._fit_step(pairs, source, per_epoch)
                epoch, within = divmod(self._run.step, per_epoch)
                if not within:
                    if epoch % self.config.mine_every == 0:
                        self._run.mined = None
                    if held_out is not None and epoch % self.config.eval_every == 0:
                        self._check(held_out)
                saved = self._save_when_due(not within)
                advance(1, f"loss {self._run.history.loss[-1]:.4g}")
                if interrupt.requested:
                    if not saved:
                        self._save_in_folder()
                    raise KeyboardInterrupt
        if interrupt.requested:
            raise KeyboardInterrupt
        if self._run.best_state is not None:
            self.model.load_state_dict(self._run.best_state)
        return self._run.history

    def train_step(
        self,
        anchors: ArrayLike,
        positives: ArrayLike,
        negatives: ArrayLike | None = None,
        *,
        ids: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Take one step on a batch of the caller's.

        Parameters
        ----------
        anchors, positives : array_like, shape (B, ...)
        negatives : array_like, shape (N, ...) or (B, k, ...), optional
            All of them are used; nothing is mined or drawn.
        ids : array_like of int, shape (B,), optional
            As in :meth:`fit`.

        Returns
        -------
        dict of str to float
            ``loss``, ``learning_rate``, ``temperature`` and ``gradient_norm``.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, TypeError, NonFiniteError
            As :meth:`fit`.
        """
        pairs = Pairs(anchors, positives, negatives, ids)
        settings = self._plan.at(self._run.step)
        return self._step_on(pairs, np.arange(len(pairs)), pairs.all_negatives(), settings)

    def evaluate(self, anchors: ArrayLike, positives: ArrayLike) -> dict[str, float]:
        """Return the recall of the model, at each k of the config.

        Parameters
        ----------
        anchors : array_like, shape (n, ...)
        positives : array_like, shape (m, ...)
            Among which every anchor ranks; as in :func:`recall_at_k`.

        Returns
        -------
        dict of str to float
            ``recall@1`` and so on.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, TypeError
            If the arrays do not fit together.
        """
        found = self._recall(_validation((anchors, positives)))
        return {f"recall@{k}": value for k, value in found.items()}

    def get_metrics(self) -> dict[str, float]:
        """Return where the run is.

        Returns
        -------
        dict of str to float
            ``step``, and where there are any the last numbers of the history and the best
            recall.
        """
        history = self._run.history
        metrics: dict[str, float] = {"step": self._run.step}
        for name, column in (history.to_dict() | history.recall).items():
            if name not in ("recall", "step") and column:
                metrics[name] = column[-1]
        if self._run.best is not None:
            metrics[f"best_recall@{self.config.recall_at[0]}"] = self._run.best
        return metrics

    def _fit_step(self, pairs: Pairs, source: Negatives, per_epoch: int) -> None:
        step = self._run.step
        epoch, within = divmod(step, per_epoch)
        window = self.config.mine_every * per_epoch
        if source.mines and step % window == 0:
            plans = (self._plan.at(later) for later in range(step, step + window))
            self._run.mined = source.mine(self._joint, plans)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.config.seed, 0, epoch])
            self._order = epoch, rng.permutation(len(pairs))
        start = within * self.config.batch_size
        rows = self._order[1][start : start + self.config.batch_size]
        settings = self._plan.at(step)
        chosen = source.choose(step, rows, settings, self._run.mined)
        self._step_on(pairs, rows, chosen, settings)

    def _step_on(
        self,
        pairs: Pairs,
        rows: NDArray[np.intp],
        chosen: Chosen | None,
        settings: Settings,
    ) -> dict[str, float]:
        numbers = self._stepper.take(
            pairs.anchors.take(rows),
            pairs.positives.take(rows),
            chosen,
            pairs.ids[rows] if chosen is not None or pairs.given_ids else None,
            settings,
            self._run.step + 1,
        )
        self._run.step += 1
        self._run.history.add_step(numbers)
        return numbers

    def _check(self, held_out: tuple[Items, Items]) -> None:
        """Evaluate, take note of it, and see whether patience is at its end."""
        run, patience = self._run, self.config.patience
        found = self._recall(held_out)
        run.history.add_recall(run.step, found)
        state = None if patience is None else self.model.state_dict()
        run.evaluated(found[self.config.recall_at[0]], state)
        run.stopped = patience is not None and run.stale >= patience

    def _recall(self, held_out: tuple[Items, Items]) -> dict[int, float]:
        anchors = self._joint.all_anchors(held_out[0])
        positives = self._joint.all_positives(held_out[1])
        return recall_at_k(anchors, positives, self.config.recall_at)


def _validation(given: tuple[ArrayLike, ArrayLike]) -> tuple[Items, Items]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise InvalidConfigError("validation must be a pair (anchors, positives)")
    return Items(given[0], "validation anchors"), Items(given[1], "validation positives")
