"""Training with the workers of a Dask cluster."""

from __future__ import annotations

from typing import Any

from ._checks import integer
from ._data_parallel import ParallelModel, ParallelPair
from .errors import InvalidConfigError
from .training import PairModel
from .training import Trainer as LocalTrainer
from .training._joint import Joint
from .training._step import Stepper

__all__ = ["Trainer"]


class Trainer(LocalTrainer):
    """Train a model with the workers of a Dask cluster, each on its share of a batch.

    Workers encode their rows and take gradients back; embeddings, of which the loss compares
    all with all, and the sums of the gradients come to the program, which steps. So every
    batch has all its negatives, and the result is that of
    :class:`ruvector.training.Trainer` on one machine to rounding, for any number of shards.

    Parameters
    ----------
    model, loss, optimizer, **keywords
        As in :class:`ruvector.training.Trainer`. An embedding may depend on its own item and
        the parameters alone, as it does in all models of :mod:`ruvector.training`. The model
        is sent to the workers once, and its state with every task.
    client : distributed.Client, optional
        The cluster; by default the client that was made last.
    num_shards : int, optional
        Into how many shares a batch is cut; by default one for each worker.
    num_threads : int, default 1
        Kernel threads of one task.

    Raises
    ------
    InvalidConfigError
        If there is no client, or an argument is outside its domain.

    Notes
    -----
    Checkpoints are those of :class:`ruvector.training.Trainer`: a run may go on elsewhere. For
    a step as many numbers travel as batch and embeddings hold, twice, and the parameters twice
    for each shard. A worker encodes again to take gradients back.

    Examples
    --------
    ::

        from distributed import Client
        from ruvector.training import LinearAdapter, TrainerConfig

        client = Client("tcp://scheduler:8786")
        trainer = ruvector.dask.Trainer(
            LinearAdapter(384, 384), client=client, config=TrainerConfig(batch_size=4096)
        )
        history = trainer.fit(anchors, positives)
    """

    def __init__(
        self,
        model: Any,
        loss: Any = None,
        optimizer: Any = None,
        *,
        client: Any = None,
        num_shards: int | None = None,
        num_threads: int = 1,
        **keywords: Any,
    ) -> None:
        super().__init__(model, loss, optimizer, **keywords)
        if client is None:
            client = _last_client()
        shards = len(client.nthreads()) if num_shards is None else num_shards
        kind = ParallelPair if isinstance(model, PairModel) else ParallelModel
        parallel = kind(
            model,
            client,
            integer(shards, "num_shards", 1),
            integer(num_threads, "num_threads", 1),
        )
        self._joint = Joint(parallel)
        self._stepper = Stepper(model, self._joint, self.loss, self.optimizer, self.config)


def _last_client() -> Any:
    from importlib import import_module

    try:
        return import_module("distributed").Client.current()
    except ValueError:
        raise InvalidConfigError(
            "client must be a distributed.Client where none was made before, got None"
        ) from None
