"""Optimisers, schedules and the curriculum against recorded runs of the npm packages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ruvector.training import (
    AdamOptimizer,
    AdamWOptimizer,
    CurriculumScheduler,
    LearningRateScheduler,
    SGDOptimizer,
    TemperatureAnnealing,
)

RECORDED = json.loads((Path(__file__).parent / "data" / "upstream.json").read_text())
OPTIMIZERS = {"sgd": SGDOptimizer, "adam": AdamOptimizer, "adamw": AdamWOptimizer}
OURS = {
    "lr": "learning_rate",
    "eps": "epsilon",
    "initial_lr": "base_learning_rate",
    "min_lr": "min_learning_rate",
    "decay": "decay_type",
}


def cases(*operations):
    return [case for case in RECORDED["cases"] if case["op"] in operations]


def options(case):
    return {OURS.get(name, name): value for name, value in case["params"].items()}


def test_every_operation_was_recorded():
    assert len(cases(*OPTIMIZERS)) == 24
    assert len(cases("lr_schedule", "curriculum_default")) == 8
    assert len(cases("temperature_annealing")) == 16


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", cases(*OPTIMIZERS), ids=lambda case: case["op"])
def test_trail_of_an_optimizer(case):
    optimizer = OPTIMIZERS[case["op"]](**options(case))
    params = np.array(case["inputs"]["params"], np.float32)
    for gradient, recorded in zip(case["inputs"]["gradients"], case["output"], strict=True):
        optimizer.step(gradient, params=params)
        np.testing.assert_allclose(params, recorded, rtol=1e-4, atol=4e-6)


@pytest.mark.parametrize(
    "case", cases("lr_schedule", "temperature_annealing"), ids=lambda case: case["op"]
)
def test_schedule(case):
    kind = LearningRateScheduler if case["op"] == "lr_schedule" else TemperatureAnnealing
    schedule = kind(**options(case))
    values = [schedule.step() for _ in range(case["inputs"]["steps"])]
    np.testing.assert_allclose(values, case["output"], rtol=1e-4)


@pytest.mark.parametrize("case", cases("curriculum_default"), ids=lambda case: case["op"])
def test_default_curriculum(case):
    curriculum = CurriculumScheduler.default_curriculum(**case["params"])
    for recorded in case["output"]:
        stage = curriculum.step()
        assert stage.name == recorded["name"]
        assert curriculum.is_complete is recorded["is_complete"]
        for source in (stage, curriculum):
            for name in ("difficulty", "temperature", "negative_count"):
                assert getattr(source, name) == pytest.approx(recorded[name], rel=1e-4)
