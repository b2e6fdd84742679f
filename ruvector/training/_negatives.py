"""The negatives of a step: those of the batch, given ones, drawn ones and mined ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._arrays import Array
from ..errors import InvalidConfigError
from ._joint import Joint
from ._pairs import Chosen, Items, Pairs
from .config import TrainerConfig
from .miners import InBatchMiner

__all__ = ["Negatives"]

_Integers = NDArray[np.int64]
# Sets the draws of negatives apart from those of the order.
_STREAM = 1


class Negatives:
    """Chooses the negatives of every step.

    Mined negatives, and those drawn, serve all anchors of the batch: a row that is encoded
    anyway is one more negative for everyone, and ids keep positives apart. Candidates are
    ranked as they were encoded when the epoch began.

    Parameters
    ----------
    pairs : Pairs
    miner : object with ``mine``, or None
    config : TrainerConfig
    """

    def __init__(self, pairs: Pairs, miner: Any, config: TrainerConfig) -> None:
        self._pairs = pairs
        self._miner: Any = None if isinstance(miner, InBatchMiner) else miner
        self._seed = config.seed
        self._count = config.num_negatives
        self._in_batch = config.in_batch_negatives
        if self._miner is not None and pairs.own is not None:
            raise InvalidConfigError(
                "miner must not come with negatives of each anchor, which are not mined"
            )
        # Candidates are the positives where there are no other negatives.
        self._from_positives = pairs.pool is None
        self._pool: Items | None = pairs.pool
        if self._pool is None and self._miner is not None:
            self._pool = pairs.positives
        if not self._in_batch and self._pool is None and pairs.own is None:
            raise InvalidConfigError(
                "in_batch_negatives is False, so negatives or a miner must be given"
            )
        self._encoded: tuple[Array, Array, Array] | None = None

    @property
    def mines(self) -> bool:
        """Whether candidates have to be encoded when an epoch begins."""
        return self._miner is not None

    def refresh(self, joint: Joint) -> None:
        """Encode the candidates as the model is now."""
        anchors = joint.all_anchors(self._pairs.anchors)
        positives = joint.all_positives(self._pairs.positives)
        assert self._pool is not None
        pool = positives if self._from_positives else joint.all_positives(self._pool)
        self._encoded = anchors, positives, pool

    def choose(
        self, step: int, rows: _Integers, count: int | None, difficulty: float
    ) -> Chosen | None:
        """Choose `count` for the anchors `rows`, of which the share `difficulty` is mined."""
        if self._pairs.own is not None:
            return self._pairs.own_negatives(rows, count)
        if self._pool is None:
            return None
        count = self._count if count is None else count
        if not count:
            return None
        found = []
        mined = 0
        if self._miner is not None:
            mined = max(1, round(difficulty * count))
            found.append(self._mined(rows, mined))
        if mined < count:
            rng = np.random.default_rng([self._seed, _STREAM, step])
            drawn = min(count - mined, len(self._pool))
            found.append(rng.choice(len(self._pool), drawn, replace=False))
        chosen = np.unique(np.concatenate(found))
        if self._from_positives and self._in_batch:
            chosen = np.setdiff1d(chosen, rows, assume_unique=True)
        if not self._from_positives:
            ids = np.full(len(chosen), self._pairs.other_id)
        else:
            ids = self._pairs.ids[chosen]
        return Chosen(self._pool.take(chosen), ids, 0)

    def _mined(self, rows: _Integers, count: int) -> _Integers:
        assert self._encoded is not None
        assert self._miner is not None
        anchors, positives, pool = self._encoded
        indices: _Integers = self._miner.mine(anchors[rows], positives[rows], pool, count)
        return indices[indices >= 0]
