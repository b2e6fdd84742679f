"""The negatives of a step: those of the batch, given ones, drawn ones and mined ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidConfigError
from ._joint import Joint
from ._pairs import Chosen, Items, Pairs
from ._plan import Settings
from .config import TrainerConfig
from .miners import InBatchMiner

__all__ = ["Negatives"]

_Integers = NDArray[np.int64]
# Sets the draws of negatives apart from those of the order.
_STREAM = 1
# Anchors that negatives are mined for at a time.
_BLOCK = 16384


class Negatives:
    """Chooses the negatives of every step.

    Mined negatives, and those drawn, serve all anchors of the batch: a row that is encoded
    anyway is one more negative for everyone, and ids keep positives apart.

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

    @property
    def mines(self) -> bool:
        """Whether there is something to mine."""
        return self._miner is not None

    def mine(self, joint: Joint, plans: Iterable[Settings]) -> _Integers:
        """Mine for every anchor what the steps of some plans need, as the model is now.

        Returns
        -------
        ndarray of int64, shape (n, k)
            Candidates by anchor; where there are fewer a row ends in -1.
        """
        most = max(self._shares(settings)[0] for settings in plans)
        mined = np.empty((len(self._pairs), most), np.int64)
        if not most:
            return mined
        assert self._pool is not None
        anchors = joint.all_anchors(self._pairs.anchors)
        positives = joint.all_positives(self._pairs.positives)
        pool = positives if self._from_positives else joint.all_positives(self._pool)
        for start in range(0, len(mined), _BLOCK):
            rows = slice(start, start + _BLOCK)
            mined[rows] = self._miner.mine(anchors[rows], positives[rows], pool, most)
        return mined

    def choose(
        self, step: int, rows: _Integers, settings: Settings, mined: _Integers | None
    ) -> Chosen | None:
        """Choose for the anchors `rows`, among what was mined for all."""
        if self._pairs.own is not None:
            return self._pairs.own_negatives(rows, settings.num_negatives)
        if self._pool is None:
            return None
        from_mined, drawn = self._shares(settings)
        found = []
        if from_mined:
            assert mined is not None
            best = mined[rows, :from_mined]
            found.append(best[best >= 0])
        if drawn:
            rng = np.random.default_rng([self._seed, _STREAM, step])
            count = min(drawn, len(self._pool))
            found.append(rng.choice(len(self._pool), count, replace=False))
        if not found:
            return None
        chosen = np.unique(np.concatenate(found))
        if self._from_positives and self._in_batch:
            chosen = np.setdiff1d(chosen, rows, assume_unique=True)
        if not self._from_positives:
            ids = np.full(len(chosen), self._pairs.other_id)
        else:
            ids = self._pairs.ids[chosen]
        return Chosen(self._pool.take(chosen), ids, 0)

    def _shares(self, settings: Settings) -> tuple[int, int]:
        """Return how many negatives are mined for each anchor, how many drawn for all."""
        count = self._count if settings.num_negatives is None else settings.num_negatives
        if self._miner is None:
            return 0, count
        mined = min(count, max(1, round(settings.difficulty * count)))
        return mined, count - mined
