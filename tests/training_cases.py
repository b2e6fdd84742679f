"""Small pairs to train on, a loss written out, and a run that a test can start and kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from isolated import environ, selecting

from ruvector.training import (
    CurriculumScheduler,
    CurriculumStage,
    HardNegativeMiner,
    InfoNCELoss,
    LearningRateScheduler,
    LinearAdapter,
    PairEncoder,
    SGDOptimizer,
    TemperatureAnnealing,
    Trainer,
    TrainerConfig,
)

DIM = 12


def pairs(count=96, seed=0, dim=DIM):
    """Return anchors and noisy images of them under one hidden map."""
    rng = np.random.default_rng(seed)
    hidden = np.random.default_rng(99).standard_normal((dim, dim)) / dim**0.5
    anchors = rng.standard_normal((count, dim))
    positives = anchors @ hidden + 0.1 * rng.standard_normal((count, dim))
    return anchors.astype(np.float32), positives.astype(np.float32)


def full_trainer(folder=None, *, pair=True, strategy="distance_weighted", **config):
    """Return a trainer that uses everything at once."""
    fields = {
        "batch_size": 20,
        "num_epochs": 4,
        "learning_rate": 0.02,
        "gradient_clip": 0.5,
        "mine_every": 2,
        "patience": 50,
        "checkpoint_dir": folder,
        "checkpoint_every": 2,
        **config,
    }
    steps = 5 * fields["num_epochs"]
    model = LinearAdapter(DIM, DIM)
    if pair:
        model = PairEncoder(model, LinearAdapter(DIM, DIM, 3))
    return Trainer(
        model,
        InfoNCELoss(0.2),
        lr_schedule=LearningRateScheduler(fields["learning_rate"], 3, steps),
        temperature_schedule=TemperatureAnnealing(0.5, 0.1, steps),
        curriculum=CurriculumScheduler(
            [CurriculumStage("easy", 0.3, 9, 0.5, 4), CurriculumStage("hard", 1.0, 9, 0.1, 3)]
        ),
        miner=HardNegativeMiner(strategy, seed=7),
        config=TrainerConfig(**fields),
    )


def everything(trainer):
    """Return all that a run ends with, as named arrays."""
    state = {f"model {name}": x for name, x in trainer.model.state_dict().items()}
    for name, x in trainer.optimizer.state_dict().items():
        state[f"optimizer {name}"] = np.asarray(x)
    for name, x in trainer.history.state().items():
        state[f"history {name}"] = x
    return state


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


TESTS = Path(__file__).parent


def run(code, *arguments, backend=("python", None)):
    environment = environ(**selecting(backend))
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(TESTS)])
    return subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
