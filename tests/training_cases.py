"""Small pairs to train on, and a run that a test can start, kill and resume."""

from __future__ import annotations

import numpy as np

from ruvector.training import (
    CurriculumScheduler,
    CurriculumStage,
    HardNegativeMiner,
    InfoNCELoss,
    LearningRateScheduler,
    LinearAdapter,
    PairEncoder,
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
