"""The trainer's negatives: mined, drawn from a pool, set by a curriculum."""

from __future__ import annotations

import numpy as np
import pytest
from training_cases import DIM, Recorder, pairs, sgd, unit

from ruvector.errors import (
    InvalidConfigError,
)
from ruvector.training import (
    AdamWOptimizer,
    CurriculumScheduler,
    CurriculumStage,
    HardNegativeMiner,
    InBatchMiner,
    InfoNCELoss,
    LinearAdapter,
    LocalContrastiveLoss,
    Trainer,
    TrainerConfig,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestNegatives:
    def fit(self, *, miner=None, curriculum=None, negatives=None, ids=None, **config):
        loss = Recorder()
        fields = {"batch_size": 10, "num_epochs": 1, **config}
        trainer = Trainer(
            LinearAdapter(DIM, DIM),
            loss,
            sgd(0.01),
            miner=miner,
            curriculum=curriculum,
            config=TrainerConfig(**fields),
        )
        trainer.fit(*pairs(25), negatives=negatives, ids=ids)
        return loss.calls

    def test_every_pair_is_seen_once_an_epoch(self):
        calls = self.fit(num_epochs=2, num_negatives=4)
        assert [len(call[0]) for call in calls] == [10, 10, 5, 10, 10, 5]
        assert all(call[2] is None for call in calls)
        anchors = pairs(25)[0]
        first = np.concatenate([call[0] for call in calls[:1]])
        order = [int(np.argmin(((anchors - row) ** 2).sum(axis=1))) for row in first]
        expected = np.random.default_rng([42, 0, 0]).permutation(25)[:10]
        assert order == expected.tolist()

    def test_mined_among_the_positives(self):
        calls = self.fit(miner=HardNegativeMiner("hard"), num_negatives=2)
        anchors, positives = pairs(25)
        scores = unit(anchors.astype(float)) @ unit(positives.astype(float)).T
        np.fill_diagonal(scores, -np.inf)
        hardest = np.argsort(-scores, axis=1)[:, :2]
        rows = np.random.default_rng([42, 0, 0]).permutation(25)[:10]
        expected = np.setdiff1d(hardest[rows], rows)
        _, _, negatives, ids, _ = calls[0]
        np.testing.assert_array_equal(ids["ids"], rows)
        np.testing.assert_array_equal(ids["negative_ids"], [*rows, *expected])
        np.testing.assert_allclose(negatives[10:], positives[expected], rtol=1e-6)

    def test_mined_in_a_pool(self):
        pool = pairs(40, seed=9)[1]
        calls = self.fit(
            miner=HardNegativeMiner("hard"),
            negatives=pool,
            num_negatives=1,
            in_batch_negatives=False,
        )
        _, _, negatives, ids, _ = calls[0]
        assert {row.tobytes() for row in negatives} <= {row.tobytes() for row in pool}
        assert not set(ids["negative_ids"]) & set(range(25))

    def test_drawn_from_a_pool(self):
        pool = pairs(40, seed=9)[1]
        calls = self.fit(negatives=pool, num_negatives=6)
        assert all(len(call[2]) == len(call[0]) + 6 for call in calls)
        assert not np.array_equal(calls[0][2][10:], calls[1][2][10:])

    def test_curriculum_says_how_many_and_how_hard(self):
        curriculum = CurriculumScheduler(
            [
                CurriculumStage("a", 0.0, 2, negative_count=0),
                CurriculumStage("b", 0.5, 5, 1.0, 7),
            ]
        )
        pool = pairs(60, seed=9)[1]
        calls = self.fit(negatives=pool, curriculum=curriculum)
        assert [None if c[2] is None else len(c[2]) - len(c[0]) for c in calls] == [None, 7, 7]
        mined = []

        class Miner:
            def mine(self, anchor, positive, candidates, num_negatives):
                mined.append(num_negatives)
                return np.zeros((len(anchor), num_negatives), np.int64) - 1

        self.fit(negatives=pool, curriculum=curriculum, miner=Miner())
        assert mined == [4]

    def test_curriculum_takes_the_first_of_each_anchor(self):
        curriculum = CurriculumScheduler([CurriculumStage("a", 0.5, 9, negative_count=2)])
        negatives = np.random.default_rng(0).standard_normal((25, 4, DIM)).astype(np.float32)
        assert self.fit(negatives=negatives)[0][2].shape == (10 + 40, DIM)
        calls = self.fit(negatives=negatives, curriculum=curriculum, in_batch_negatives=False)
        assert calls[0][2].shape == (10, 2, DIM)

    def test_mined_negatives_hold_for_some_epochs(self):
        seen = []

        class Miner:
            def mine(self, anchor, positive, candidates, num_negatives):
                seen.append(candidates.copy())
                hard = HardNegativeMiner("hard")
                return hard.mine(anchor, positive, candidates, num_negatives)

        self.fit(miner=Miner(), num_epochs=5, mine_every=2)
        assert len(seen) == 3
        np.testing.assert_array_equal(seen[0], pairs(25)[1])
        assert not np.array_equal(seen[1], seen[2])

    def test_in_batch_miner_is_the_batch(self):
        assert all(call[2] is None for call in self.fit(miner=InBatchMiner()))

    def test_what_excludes_each_other(self):
        own = np.ones((25, 2, DIM), np.float32)
        with pytest.raises(InvalidConfigError, match="miner must not come with negatives of"):
            self.fit(miner=HardNegativeMiner("hard"), negatives=own)
        with pytest.raises(InvalidConfigError, match="in_batch_negatives is False"):
            self.fit(in_batch_negatives=False)

    @pytest.mark.parametrize("strategy", ["random", "hard", "semi_hard", "distance_weighted"])
    @pytest.mark.parametrize("loss", [InfoNCELoss(0.2), LocalContrastiveLoss(0.5)])
    @pytest.mark.parametrize("pool", [False, True])
    @pytest.mark.parametrize("in_batch", [False, True])
    @pytest.mark.parametrize("stages", [False, True])
    def test_every_combination_learns(self, strategy, loss, pool, in_batch, stages):
        anchors, positives = pairs(60)
        curriculum = CurriculumScheduler(
            [CurriculumStage("a", 0.3, 6, 0.3, 3), CurriculumStage("b", 1.0, 6, 0.2, 2)]
        )
        trainer = Trainer(
            LinearAdapter(DIM, DIM),
            loss,
            AdamWOptimizer(0.02),
            miner=HardNegativeMiner(strategy, seed=1),
            curriculum=curriculum if stages else None,
            config=TrainerConfig(
                batch_size=20, num_epochs=6, num_negatives=2, in_batch_negatives=in_batch
            ),
        )
        before = trainer.evaluate(anchors, positives)["recall@5"]
        history = trainer.fit(
            anchors, positives, negatives=pairs(50, seed=5)[1] if pool else None
        )
        assert len(history) == 18
        assert trainer.evaluate(anchors, positives)["recall@5"] > before
