"""The trainer: what a step does, what schedules and miners change, evaluation, stopping."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from training_cases import DIM, full_trainer, pairs

import ruvector
from ruvector.errors import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    NonFiniteError,
)
from ruvector.training import (
    AdamOptimizer,
    AdamWOptimizer,
    CurriculumScheduler,
    CurriculumStage,
    HardNegativeMiner,
    History,
    InBatchMiner,
    InfoNCELoss,
    LearningRateScheduler,
    LinearAdapter,
    LocalContrastiveLoss,
    MemoryEncoder,
    PairEncoder,
    SGDOptimizer,
    TemperatureAnnealing,
    Trainer,
    TrainerConfig,
    recall_at_k,
)

pytestmark = pytest.mark.usefixtures("backend")


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def info_nce(anchors, candidates, hidden, temperature):
    """Mean InfoNCE where candidate i is the positive of anchor i, in float64."""
    scores = unit(anchors) @ unit(candidates).T / temperature
    scores = np.where(hidden, -np.inf, scores)
    top = scores.max(axis=1, keepdims=True)
    lse = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0]
    return float((lse - scores[np.arange(len(anchors)), np.arange(len(anchors))]).mean())


class Recorder:
    """A loss that notes what it is called with."""

    def __init__(self, temperature=0.5):
        self.temperature = temperature
        self._loss = InfoNCELoss(temperature)
        self.calls = []

    def compute_with_gradients(self, anchor, positive, negatives=None, **ids):
        self.calls.append((anchor, positive, negatives, ids, self.temperature))
        self._loss.temperature = self.temperature
        return self._loss.compute_with_gradients(anchor, positive, negatives, **ids)


def sgd(rate=0.1):
    return SGDOptimizer(rate)


class TestStep:
    def test_is_the_gradient_step_of_the_formula(self):
        """One SGD step against central differences of a loss written out here."""
        anchors, positives = (x.astype(float) for x in pairs(7))
        negatives = pairs(5, seed=3)[1].astype(float)
        adapter = LinearAdapter(DIM, DIM, dtype="float64")
        config = TrainerConfig(batch_size=7)
        trainer = Trainer(adapter, InfoNCELoss(0.3), sgd(0.2), config=config)
        numbers = trainer.train_step(anchors, positives, negatives)
        candidates = np.concatenate((positives, negatives))
        nothing = np.zeros((7, 12), bool)

        def value(weight):
            return info_nce(anchors @ weight.T, candidates @ weight.T, nothing, 0.3)

        start = np.eye(DIM)
        assert numbers["loss"] == pytest.approx(value(start), rel=1e-9)
        gradient = np.empty((DIM, DIM))
        for i, j in np.ndindex(DIM, DIM):
            step = np.zeros((DIM, DIM))
            step[i, j] = 1e-6
            gradient[i, j] = (value(start + step) - value(start - step)) / 2e-6
        updated = adapter.parameters()["weight"]
        np.testing.assert_allclose(updated, start - 0.2 * gradient, rtol=1e-6, atol=1e-8)
        assert numbers["gradient_norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
        assert numbers["learning_rate"] == 0.2
        assert numbers["temperature"] == 0.3

    def test_pair_has_two_gradients(self):
        anchors, positives = (x.astype(float) for x in pairs(6))
        pair = PairEncoder(
            LinearAdapter(DIM, DIM, dtype="float64"), LinearAdapter(DIM, DIM, dtype="float64")
        )
        Trainer(pair, InfoNCELoss(0.3), sgd(1.0)).train_step(anchors, positives)
        hidden = np.zeros((6, 6), bool)
        for side in range(2):
            step = np.zeros((DIM, DIM))
            step[1, 2] = 1e-6
            ends = []
            for sign in (1, -1):
                weights = [np.eye(DIM), np.eye(DIM)]
                weights[side] = weights[side] + sign * step
                ends.append(
                    info_nce(anchors @ weights[0].T, positives @ weights[1].T, hidden, 0.3)
                )
            numeric = (ends[0] - ends[1]) / 2e-6
            model = (pair.anchors, pair.positives)[side]
            assert -model.parameters()["weight"][1, 2] == pytest.approx(numeric, rel=1e-5)

    def test_negatives_of_each_anchor(self):
        anchors, positives = pairs(4)
        negatives = np.random.default_rng(1).standard_normal((4, 3, DIM)).astype(np.float32)
        for in_batch, shape in ((True, (16, DIM)), (False, (4, 3, DIM))):
            loss = Recorder()
            config = TrainerConfig(in_batch_negatives=in_batch)
            Trainer(LinearAdapter(DIM, DIM), loss, sgd(), config=config).train_step(
                anchors, positives, negatives
            )
            (_, positive, given, ids, _) = loss.calls[0]
            assert given.shape == shape
            if in_batch:
                np.testing.assert_array_equal(given[:4], positive)
                assert not set(ids["ids"]) & set(ids["negative_ids"][4:])
            np.testing.assert_allclose(
                given[4:] if in_batch else given.reshape(12, DIM), negatives.reshape(12, DIM)
            )

    def test_equal_ids_are_no_negatives(self):
        anchors, positives = (x.astype(float) for x in pairs(5))
        ids = np.array([3, 8, 3, 9, 10])
        hidden = (ids[:, None] == ids) & ~np.eye(5, dtype=bool)
        adapter = LinearAdapter(DIM, DIM, dtype="float64")
        numbers = Trainer(adapter, InfoNCELoss(0.3), sgd()).train_step(
            anchors, positives, ids=ids
        )
        expected = info_nce(anchors, positives, hidden, 0.3)
        assert numbers["loss"] == pytest.approx(expected, rel=1e-9)

    def test_clipping(self):
        anchors, positives = pairs(16)
        weights = []
        for clip in (None, 1e-3):
            adapter = LinearAdapter(DIM, DIM)
            trainer = Trainer(
                adapter, InfoNCELoss(0.1), sgd(1.0), config=TrainerConfig(gradient_clip=clip)
            )
            norm = trainer.train_step(anchors, positives)["gradient_norm"]
            weights.append(np.linalg.norm(adapter.parameters()["weight"] - np.eye(DIM)))
        assert norm > 0.01
        assert weights[0] == pytest.approx(norm, rel=1e-3)
        assert weights[1] == pytest.approx(1e-3, rel=1e-2)

    def test_learned_temperature(self):
        anchors, positives = pairs(16)
        loss = InfoNCELoss(0.5, learn_temperature=True)
        trainer = Trainer(LinearAdapter(DIM, DIM), loss, AdamOptimizer(0.01))
        trainer.train_step(anchors, positives)
        assert loss.temperature != 0.5
        assert "exp_avg.loss.temperature" in trainer.optimizer.state_dict()

    @pytest.mark.parametrize("poison", ["anchors", "positives"])
    def test_not_finite(self, poison):
        arrays = dict(zip(("anchors", "positives"), pairs(8), strict=True))
        trainer = Trainer(LinearAdapter(DIM, DIM), LocalContrastiveLoss(1.0))
        trainer.train_step(**arrays)
        before = trainer.model.state_dict()["weight"], trainer.optimizer.state_dict()["step"]
        arrays[poison] = arrays[poison].copy()
        arrays[poison][3, 5] = np.nan
        with pytest.raises(NonFiniteError, match=r"^step 2: the (loss|gradient)"):
            trainer.train_step(**arrays)
        np.testing.assert_array_equal(trainer.model.state_dict()["weight"], before[0])
        assert trainer.optimizer.state_dict()["step"] == before[1]
        assert (trainer.step, len(trainer.history)) == (1, 1)

    def test_infinite_gradient_is_named(self):
        class Wild:
            def compute_with_gradients(self, anchor, positive, negatives=None, **ids):
                result = InfoNCELoss().compute_with_gradients(anchor, positive, negatives)
                result.anchor[0, 0] = np.inf
                return result

        adapter = LinearAdapter(DIM, DIM, 2)
        adapter.parameters()["up"][:] = 0.1
        with pytest.raises(NonFiniteError, match=r"^step 1: the gradient of down, up is not"):
            Trainer(adapter, Wild()).train_step(*pairs(8))


class TestSettings:
    def steps(self, count, **arguments):
        loss = Recorder()
        trainer = Trainer(LinearAdapter(DIM, DIM), loss, **arguments)
        for _ in range(count):
            trainer.train_step(*pairs(8))
        assert loss.temperature == 0.5
        return trainer, loss

    def test_rate_of_the_config(self):
        config = TrainerConfig(learning_rate=0.4, warmup_steps=4, weight_decay=0.3)
        trainer, _ = self.steps(6, config=config)
        assert trainer.history.learning_rate == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
        assert isinstance(trainer.optimizer, AdamWOptimizer)
        assert trainer.optimizer.weight_decay == 0.3

    def test_an_optimizer_has_its_own_rate(self):
        config = TrainerConfig(learning_rate=0.4, warmup_steps=4)
        trainer, _ = self.steps(2, optimizer=sgd(0.05), config=config)
        assert trainer.history.learning_rate == [0.05, 0.05]

    def test_a_schedule_overrides(self):
        schedule = LearningRateScheduler(0.1, 2, 10)
        expected = [LearningRateScheduler(0.1, 2, 10).step(t) for t in range(4)]
        schedule.step(7)
        trainer, _ = self.steps(4, optimizer=sgd(0.05), lr_schedule=schedule)
        assert trainer.history.learning_rate == pytest.approx(expected)

    def test_temperature_schedule_before_curriculum_before_loss(self):
        curriculum = CurriculumScheduler([CurriculumStage("a", 0.5, 100, temperature=0.25)])
        annealing = TemperatureAnnealing(1.0, 0.1, 4)
        expected = [TemperatureAnnealing(1.0, 0.1, 4).step(t) for t in range(3)]
        for arguments, temperatures in (
            ({}, [0.5] * 3),
            ({"curriculum": curriculum}, [0.25] * 3),
            ({"curriculum": curriculum, "temperature_schedule": annealing}, expected),
        ):
            trainer, loss = self.steps(3, **arguments)
            assert [call[4] for call in loss.calls] == pytest.approx(temperatures)
            assert trainer.history.temperature == pytest.approx(temperatures)

    def test_no_temperature(self):
        trainer = Trainer(LinearAdapter(DIM, DIM), LocalContrastiveLoss(0.5))
        trainer.train_step(*pairs(8))
        assert np.isnan(trainer.history.temperature[0])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"model": object()}, "model must have encode, backward"),
            ({"loss": 3}, "loss must have compute_with_gradients, got 3"),
            ({"optimizer": 3}, "optimizer must have step, got 3"),
            ({"miner": 3}, "miner must have a method mine, got 3"),
            ({"lr_schedule": 0.1}, "lr_schedule must have a method step, got 0.1"),
            ({"config": {}}, "config must be a TrainerConfig"),
            (
                {
                    "loss": LocalContrastiveLoss(1.0),
                    "temperature_schedule": TemperatureAnnealing(1, 0.1, 4),
                },
                "temperature_schedule must come with a loss that has one",
            ),
            (
                {
                    "loss": InfoNCELoss(0.1, learn_temperature=True),
                    "temperature_schedule": TemperatureAnnealing(1, 0.1, 4),
                },
                "a temperature that is learned must not come with a schedule",
            ),
        ],
    )
    def test_what_does_not_fit(self, arguments, message):
        with pytest.raises(InvalidConfigError, match=message):
            Trainer(**{"model": LinearAdapter(DIM, DIM), **arguments})

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
            ({"num_epochs": 1.5}, "num_epochs must be an integer"),
            ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0"),
            ({"gradient_clip": 0}, "gradient_clip must be a positive finite number"),
            ({"weight_decay": -1}, "weight_decay must not be negative"),
            ({"learning_rate": np.nan}, "learning_rate must be a positive finite number"),
            ({"recall_at": ()}, "recall_at must hold integers"),
            ({"recall_at": (1, 0)}, "recall_at must be an integer of at least 1"),
            ({"patience": 0}, "patience must be an integer of at least 1"),
        ],
    )
    def test_config(self, fields, message):
        with pytest.raises(InvalidConfigError, match=message):
            TrainerConfig(**fields)


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


class TestFit:
    def test_history_and_metrics(self):
        anchors, positives = pairs(60)
        held_out = pairs(30, seed=1)
        trainer = full_trainer(eval_every=2)
        history = trainer.fit(anchors, positives, validation=held_out)
        assert history is trainer.history
        assert history.recall["step"] == [0, 6, 12]
        assert history.recall["recall@1"][-1] > history.recall["recall@1"][0]
        as_dict = json.loads(json.dumps(history.to_dict()))
        assert set(as_dict) == {
            "loss",
            "learning_rate",
            "temperature",
            "gradient_norm",
            "recall",
        }
        assert [len(as_dict[name]) for name in ("loss", "gradient_norm")] == [12, 12]
        metrics = trainer.get_metrics()
        assert metrics["step"] == 12
        assert metrics["loss"] == history.loss[-1]
        assert metrics["recall@5"] == history.recall["recall@5"][-1]
        assert metrics["best_recall@1"] == max(history.recall["recall@1"])

    def test_evaluate_is_recall_of_the_encodings(self):
        anchors, positives = pairs(50)
        trainer = full_trainer()
        trainer.fit(anchors, positives, validation=pairs(10, seed=1))
        model = trainer.model
        encoded = model.encode_anchors(anchors), model.encode_positives(positives)
        scores = unit(encoded[0].astype(float)) @ unit(encoded[1].astype(float)).T
        rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
        found = trainer.evaluate(anchors, positives)
        assert found == {f"recall@{k}": pytest.approx((rank < k).mean()) for k in (1, 5)}

    def test_patience_keeps_the_best(self):
        anchors, positives = pairs(40)
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((40, DIM)).astype(np.float32)
        trainer = Trainer(
            LinearAdapter(DIM, DIM),
            config=TrainerConfig(
                batch_size=40, num_epochs=50, patience=3, learning_rate=0.5, seed=1
            ),
        )
        same = (anchors, anchors)
        history = trainer.fit(anchors, noise, validation=same)
        assert history.recall["recall@1"][0] == 1
        assert len(history) == 3
        np.testing.assert_array_equal(trainer.model.parameters()["weight"], np.eye(DIM))
        with pytest.raises(InvalidConfigError, match="patience needs validation pairs"):
            trainer.fit(anchors, positives)

    def test_same_seed_same_run(self):
        runs = []
        for seed in (1, 1, 2):
            trainer = full_trainer(seed=seed)
            trainer.fit(*pairs(), validation=pairs(10, seed=1))
            runs.append(trainer.history.loss)
        assert runs[0] == runs[1] != runs[2]

    def test_threads_do_not_matter(self, backend):
        losses = []
        for threads in (1, 2):
            with ruvector.num_threads(threads):
                trainer = full_trainer()
                trainer.fit(*pairs(), validation=pairs(10, seed=1))
                losses.append(trainer.history.loss)
        if backend[0] == "native":
            assert losses[0] == losses[1]
        else:
            assert losses[0] == pytest.approx(losses[1], rel=1e-3)

    def test_memory_mapped_half_precision(self, tmp_path):
        arrays = []
        for name, array in zip("ap", pairs(), strict=True):
            np.save(tmp_path / f"{name}.npy", array.astype(np.float16))
            arrays.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
        trainer = full_trainer()
        trainer.fit(*arrays, validation=arrays)
        again = full_trainer()
        again.fit(*(np.array(x) for x in arrays), validation=arrays)
        assert again.history.loss == trainer.history.loss

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        arrays = [x.astype(ml_dtypes.bfloat16) for x in pairs()]
        trainer, wide = full_trainer(), full_trainer()
        trainer.fit(*arrays, validation=arrays)
        wide.fit(*(x.astype(np.float32) for x in arrays), validation=arrays)
        assert trainer.history.loss == wide.history.loss

    def test_a_memory_learns(self):
        rng = np.random.default_rng(0)
        keys, values = 0.1 * rng.standard_normal((2, 30, DIM)).astype(np.float32)
        memory = MemoryEncoder(ruvector.DotProductAttention(DIM), keys, values)
        trainer = Trainer(memory, config=TrainerConfig(num_epochs=30, learning_rate=0.05))
        arrays = pairs(40)
        trainer.fit(*arrays)
        assert trainer.history.loss[-1] < 0.8 * trainer.history.loss[0]

    def test_progress(self, capsys, monkeypatch):
        from ruvector import _progress

        monkeypatch.setattr(_progress, "DELAY", 0.0)
        monkeypatch.setattr(_progress, "INTERVAL", 0.0)
        trainer = full_trainer()
        trainer.fit(*pairs(), validation=pairs(9), progress=False)
        assert capsys.readouterr().err == ""
        trainer.fit(*pairs(), validation=pairs(9), progress="auto")
        lines = capsys.readouterr().err.splitlines()
        assert re.fullmatch(r"train: 1 of 20 steps \(5%\), loss \d\.\d+", lines[0])
        with pytest.raises(InvalidConfigError, match="progress must be 'auto', True or False"):
            trainer.fit(*pairs(), progress="loud")

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                (np.ones((3, 2)), np.ones((4, 2))),
                DimensionMismatchError,
                "positives must hold 3",
            ),
            ((np.ones((0, 2)), np.ones((0, 2))), EmptyInputError, "anchors must not be empty"),
            ((np.ones(()), np.ones(())), DimensionMismatchError, "anchors must have shape"),
            (
                (np.ones((3, 2)), np.array(["a", "b", "c"])),
                TypeError,
                "positives must hold real",
            ),
            (
                (np.ones((3, 2)), np.ones((3, 4))),
                DimensionMismatchError,
                r"positives must hold items of shape \(2,\) like anchors, got \(4,\)",
            ),
        ],
    )
    def test_bad_pairs(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Trainer(LinearAdapter(2, 2)).fit(*arguments)

    @pytest.mark.parametrize(
        ("negatives", "message"),
        [
            (np.ones((5, 3)), r"negatives must hold items of shape \(2,\) like positives"),
            (np.ones((4, 5, 2)), r"negatives must have shape \('N', 2\) or \(3, 'k', 2\)"),
            (np.ones(2), r"negatives must have shape"),
        ],
    )
    def test_bad_negatives(self, negatives, message):
        with pytest.raises(DimensionMismatchError, match=message):
            Trainer(LinearAdapter(2, 2)).fit(
                np.ones((3, 2)), np.ones((3, 2)), negatives=negatives
            )

    def test_bad_ids_and_validation(self):
        x = np.ones((3, 2), np.float32)
        trainer = Trainer(LinearAdapter(2, 2))
        with pytest.raises(DimensionMismatchError, match=r"ids must have shape \(3,\)"):
            trainer.fit(x, x, ids=[1, 2])
        with pytest.raises(TypeError, match="ids must hold integers"):
            trainer.fit(x, x, ids=[0.5, 1, 2])
        with pytest.raises(InvalidConfigError, match="validation must be a pair"):
            trainer.fit(x, x, validation=x)


class TestHistory:
    def test_plot(self, tmp_path):
        pytest.importorskip("matplotlib")
        history = History([3.0, 2.0], [0.1, 0.1], [1.0, 1.0], [1.0, 1.0])
        history.add_recall(2, {1: 0.5, 5: 0.75})
        path = tmp_path / "curve.png"
        figure = history.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG")
        left, right = figure.axes
        np.testing.assert_array_equal(left.get_lines()[0].get_ydata(), [3.0, 2.0])
        assert [line.get_label() for line in right.get_lines()] == ["recall@1", "recall@5"]

    def test_plot_without_matplotlib(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=re.escape("pip install 'ruvector[plot]'")):
            History([1.0]).plot()


class TestRecall:
    def test_against_ranks(self):
        rng = np.random.default_rng(0)
        anchors = rng.standard_normal((300, 9))
        positives = np.concatenate(
            (anchors + rng.standard_normal((300, 9)), rng.standard_normal((50, 9)))
        )
        scores = unit(anchors) @ unit(positives).T
        rank = (scores > scores[np.arange(300), np.arange(300)][:, None]).sum(axis=1)
        expected = {k: (rank < k).mean() for k in (1, 3, 400)}
        assert recall_at_k(anchors, positives, (1, 3, 400)) == pytest.approx(expected)
        assert recall_at_k(anchors, positives, 3)[3] == expected[3]

    def test_blocks(self, monkeypatch):
        from ruvector.training import recall

        arrays = np.random.default_rng(0).standard_normal((2, 70, 5)).astype(np.float32)
        whole = recall_at_k(*arrays)
        monkeypatch.setattr(recall, "_BLOCK", 16)
        assert recall_at_k(*arrays) == whole

    def test_a_zero_vector_finds_nothing_in_particular(self):
        assert recall_at_k(np.zeros((2, 3)), np.eye(2, 3), 1) == {1: 0.5}

    def test_bad_input(self):
        with pytest.raises(DimensionMismatchError, match="positives must hold 3 vectors"):
            recall_at_k(np.ones((3, 2)), np.ones((2, 2)))
        with pytest.raises(DimensionMismatchError, match=r"anchors must have shape \(n, d\)"):
            recall_at_k(np.ones(3), np.ones((3, 2)))
        with pytest.raises(EmptyInputError, match="anchors must not be empty"):
            recall_at_k(np.ones((0, 2)), np.ones((0, 2)))
        with pytest.raises(InvalidConfigError, match="k must be an integer of at least 1"):
            recall_at_k(np.ones((3, 2)), np.ones((3, 2)), 0)
