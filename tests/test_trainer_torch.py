"""A run of the trainer against the same loop in torch, step by step."""

from __future__ import annotations

import numpy as np
import pytest
from training_cases import DIM, pairs

from ruvector.training import (
    AdamWOptimizer,
    InfoNCELoss,
    LinearAdapter,
    PairEncoder,
    Trainer,
    TrainerConfig,
)

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]


@pytest.mark.parametrize("clip", [None, 0.3])
def test_same_losses_norms_and_weights(clip):
    anchors, positives = (x.astype(np.float64) for x in pairs(50))
    maps = [LinearAdapter(DIM, DIM, dtype="float64") for _ in range(2)]
    trainer = Trainer(
        PairEncoder(*maps),
        InfoNCELoss(0.2),
        AdamWOptimizer(0.01),
        config=TrainerConfig(batch_size=16, num_epochs=3, seed=5, gradient_clip=clip),
    )
    history = trainer.fit(anchors, positives)

    left, right = (torch.eye(DIM, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.AdamW([left, right], lr=0.01)
    losses, norms = [], []
    for epoch in range(3):
        order = np.random.default_rng([5, 0, epoch]).permutation(50)
        for rows in torch.from_numpy(order).split(16):
            a = torch.nn.functional.normalize(torch.from_numpy(anchors)[rows] @ left.T)
            p = torch.nn.functional.normalize(torch.from_numpy(positives)[rows] @ right.T)
            scores = a @ p.T / 0.2
            loss = torch.nn.functional.cross_entropy(scores, torch.arange(len(rows)))
            optimizer.zero_grad()
            loss.backward()
            limit = np.inf if clip is None else clip
            norms.append(torch.nn.utils.clip_grad_norm_([left, right], limit).item())
            optimizer.step()
            losses.append(loss.item())
    np.testing.assert_allclose(history.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(history.gradient_norm, norms, rtol=1e-4)
    for ours, theirs in zip(maps, (left, right), strict=True):
        weight = ours.parameters()["weight"]
        np.testing.assert_allclose(weight, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
