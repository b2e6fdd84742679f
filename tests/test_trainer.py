"""The trainer: what a step does, and what schedules and settings change."""

from __future__ import annotations

import numpy as np
import pytest
from training_cases import DIM, Recorder, info_nce, pairs, sgd

from ruvector.errors import (
    InvalidConfigError,
    NonFiniteError,
)
from ruvector.training import (
    AdamOptimizer,
    AdamWOptimizer,
    CurriculumScheduler,
    CurriculumStage,
    InfoNCELoss,
    LearningRateScheduler,
    LinearAdapter,
    LocalContrastiveLoss,
    PairEncoder,
    TemperatureAnnealing,
    Trainer,
    TrainerConfig,
)

pytestmark = pytest.mark.usefixtures("backend")


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
