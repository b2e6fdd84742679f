"""Schedules and the curriculum: their curves, where they stand, errors."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

import ruvector
from ruvector.training import (
    CurriculumScheduler,
    CurriculumStage,
    LearningRateScheduler,
    TemperatureAnnealing,
)

STAGES = [
    CurriculumStage("easy", 0.2, 3, temperature=2.0, negative_count=4),
    CurriculumStage("hard", 0.9, 2, temperature=0.5, negative_count=40),
]
MAKERS = {
    "learning rate": lambda: LearningRateScheduler(0.1, 3, 11),
    "temperature": lambda: TemperatureAnnealing(2.0, 0.1, 11, "exponential"),
    "curriculum": lambda: CurriculumScheduler(STAGES),
}


class TestLearningRate:
    def test_curve(self):
        schedule = LearningRateScheduler(0.4, 4, 12, min_learning_rate=0.2)
        rates = [schedule.step() for _ in range(15)]
        turn = np.pi * np.arange(8) / 8
        wanted = [0.1, 0.2, 0.3, 0.4, *(0.3 + 0.1 * np.cos(turn)), 0.2, 0.2, 0.2]
        np.testing.assert_allclose(rates, wanted, rtol=1e-14)

    def test_ends(self):
        assert LearningRateScheduler(0.1, 0, 5).step() == 0.1
        all_warm = LearningRateScheduler(0.1, 2, 2, 0.0)
        assert [all_warm.step() for _ in range(3)] == [0.05, 0.1, 0.0]
        assert LearningRateScheduler(0.1, 0, 1).step(5) == 1e-7

    def test_getters(self):
        schedule = LearningRateScheduler.with_min_lr(0.1, 2, 8, 0.01)
        assert schedule.get_lr() == schedule.learning_rate == 0.05
        assert schedule.current_step == 0
        assert (schedule.base_learning_rate, schedule.min_learning_rate) == (0.1, 0.01)
        assert (schedule.warmup_steps, schedule.total_steps) == (2, 8)
        assert repr(schedule) == (
            "LearningRateScheduler(base_learning_rate=0.1, warmup_steps=2, total_steps=8, "
            "min_learning_rate=0.01)"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0.0, 1, 2), "base_learning_rate must be a positive"),
            ((0.1, -1, 2), "warmup_steps must be an integer"),
            ((0.1, 3, 2), "warmup_steps must be at most total_steps"),
            ((0.1, 0, 0), "total_steps must be an integer of at least 1"),
            ((0.1, 0, 2.5), "total_steps must be an integer"),
            ((0.1, 0, 2, -1e-3), "min_learning_rate must be at least 0"),
            ((0.1, 0, 2, 0.2), "at most base_learning_rate"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ruvector.InvalidConfigError, match=message):
            LearningRateScheduler(*arguments)


class TestTemperature:
    @pytest.mark.parametrize(
        ("kind", "curve"),
        [
            ("linear", lambda t: 2 - 1.5 * t),
            ("exponential", lambda t: 2 * 0.25**t),
            ("cosine", lambda t: 1.25 + 0.75 * np.cos(np.pi * t)),
            ("step", lambda t: 2 - 1.5 * np.floor(10 * t + 1e-9) / 10),
        ],
    )
    @pytest.mark.parametrize("total", [1, 7, 10, 23, 100])
    def test_curve(self, kind, curve, total):
        schedule = TemperatureAnnealing.with_decay(2.0, 0.5, total, kind)
        temperatures = [schedule.step() for _ in range(total + 3)]
        wanted = [*curve(np.arange(total) / total), 0.5, 0.5, 0.5]
        np.testing.assert_allclose(temperatures, wanted, rtol=1e-13)

    def test_getters(self):
        schedule = TemperatureAnnealing(2.0, 0.5, 10)
        assert schedule.get_temp() == schedule.temperature == schedule.initial_temp == 2.0
        assert (schedule.final_temp, schedule.decay_type, schedule.current_step) == (
            0.5, "linear", 0,
        )  # fmt: skip
        assert repr(schedule) == (
            "TemperatureAnnealing(initial_temp=2.0, final_temp=0.5, total_steps=10, "
            "decay_type='linear')"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((0.0, 1.0, 2), "initial_temp must be a positive"),
            ((1.0, -1.0, 2), "final_temp must be a positive"),
            ((1.0, 1.0, 0), "total_steps must be an integer"),
            ((1.0, 1.0, 5, "fast"), "decay_type must be 'linear' or"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ruvector.InvalidConfigError, match=message):
            TemperatureAnnealing(*arguments)


class TestCurriculum:
    def test_goes_through_the_stages(self):
        curriculum = CurriculumScheduler(STAGES)
        assert curriculum.stages == tuple(STAGES)
        assert curriculum.current_stage == STAGES[0]
        seen = [(curriculum.step().name, curriculum.is_complete) for _ in range(7)]
        assert seen == [
            ("easy", False), ("easy", False), ("hard", False), ("hard", False),
            ("hard", True), ("hard", True), ("hard", True),
        ]  # fmt: skip
        assert (curriculum.difficulty, curriculum.temperature) == (0.9, 0.5)
        assert curriculum.negative_count == 40

    def test_progress(self):
        curriculum = CurriculumScheduler(STAGES)
        progress = []
        for _ in range(7):
            progress.append(curriculum.progress)
            curriculum.step()
        assert progress == [0, 0.2, 0.4, 0.6, 0.8, 1, 1]

    def test_without_stages(self):
        curriculum = CurriculumScheduler()
        assert curriculum.is_complete
        assert curriculum.progress == 1
        for use in (curriculum.step, lambda: curriculum.difficulty):
            with pytest.raises(ruvector.InvalidConfigError, match="must have a stage"):
                use()
        assert curriculum.current_step == 0
        assert curriculum.add_stage(STAGES[0]).total_steps == 3
        assert repr(curriculum) == f"CurriculumScheduler([{STAGES[0]!r}])"

    @pytest.mark.parametrize(
        "change",
        [
            {"name": ""},
            {"name": 3},
            {"difficulty": 1.1},
            {"difficulty": -0.1},
            {"duration": 0},
            {"temperature": 0.0},
            {"negative_count": -1},
        ],
    )
    def test_errors(self, change):
        with pytest.raises(ruvector.InvalidConfigError, match=next(iter(change))):
            dataclasses.replace(STAGES[0], **change)

    def test_errors_of_the_scheduler(self):
        with pytest.raises(ruvector.InvalidConfigError, match="must be a CurriculumStage"):
            CurriculumScheduler([("easy", 0.1)])
        with pytest.raises(ruvector.InvalidConfigError, match="at least 4"):
            CurriculumScheduler.default_curriculum(3)


@pytest.mark.parametrize("name", MAKERS)
class TestEvery:
    def test_step_to(self, name):
        walked, jumped = MAKERS[name](), MAKERS[name]()
        trail = [walked.step() for _ in range(14)]
        for t in (5, 0, 13, 4):
            assert jumped.step(t) == trail[t]
            assert jumped.current_step == t + 1
        assert jumped.step() == trail[5]
        for bad in (-1, 1.5, True, "1"):
            with pytest.raises(ruvector.InvalidConfigError, match="t must be an integer"):
                jumped.step(bad)
        assert jumped.current_step == 6

    def test_reset(self, name):
        schedule = MAKERS[name]()
        trail = [schedule.step() for _ in range(5)]
        schedule.reset()
        assert schedule.progress == 0
        assert [schedule.step() for _ in range(5)] == trail

    def test_resumes(self, name):
        whole, first, second = (MAKERS[name]() for _ in range(3))
        trail = [whole.step() for _ in range(14)]
        for _ in range(6):
            first.step()
        file = io.BytesIO()
        np.savez(file, **first.state_dict())
        file.seek(0)
        with np.load(file) as state:
            second.load_state_dict(state)
        assert [second.step() for _ in range(8)] == trail[6:]
        for bad in ({}, {"step": -1}, {"step": 1.5}, {"step": [1, 2]}, {"step": 1, "a": 2}):
            with pytest.raises(ruvector.InvalidConfigError):
                second.load_state_dict(bad)
        assert second.current_step == 14

    def test_progress_ends_at_one(self, name):
        schedule = MAKERS[name]()
        for _ in range(20):
            assert 0 <= schedule.progress <= 1
            schedule.step()
        assert schedule.progress == 1
