"""Trainer: epochs of an adapter of embeddings, against the same loop in torch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ruvector.training import (
    AdamWOptimizer,
    InfoNCELoss,
    LinearAdapter,
    PairEncoder,
    Trainer,
    TrainerConfig,
)

from ..core import Case, Context, Row, Target
from ..sides import Local, Side

__all__ = ["rows"]

_TEMPERATURE = 0.05
_RATE = 1e-3
_SEED = 3


def _orders(count: int, epochs: int) -> list[np.ndarray]:
    """Return the orders that the trainer takes, so that both sides see the same batches."""
    return [np.random.default_rng([_SEED, 0, e]).permutation(count) for e in range(epochs)]


def _ours(anchors: np.ndarray, positives: np.ndarray, batch: int, epochs: int) -> Side:
    config = TrainerConfig(batch_size=batch, num_epochs=epochs, seed=_SEED)
    dim = anchors.shape[1]

    def call() -> Any:
        pair = PairEncoder(LinearAdapter(dim, dim), LinearAdapter(dim, dim))
        trainer = Trainer(pair, InfoNCELoss(_TEMPERATURE), AdamWOptimizer(_RATE), config=config)
        return trainer.fit(anchors, positives, progress=False)

    return Local(call, lambda history: np.array(history.loss))


def _torch(
    ctx: Context, anchors: np.ndarray, positives: np.ndarray, batch: int, epochs: int
) -> Side:
    torch = ctx.peers.module("torch")
    functional = torch.nn.functional
    x, y = torch.from_numpy(anchors), torch.from_numpy(positives)
    orders = [torch.from_numpy(order) for order in _orders(len(anchors), epochs)]
    dim = anchors.shape[1]

    def call() -> Any:
        left, right = (torch.eye(dim, requires_grad=True) for _ in range(2))
        optimizer = torch.optim.AdamW([left, right], lr=_RATE, fused=True)
        losses = []
        for order in orders:
            for rows in order.split(batch):
                a = functional.normalize(x[rows] @ left.T)
                p = functional.normalize(y[rows] @ right.T)
                scores = a @ p.T / _TEMPERATURE
                loss = functional.cross_entropy(scores, torch.arange(len(rows)))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        return np.array(losses)

    return Local(call)


def _build(count: int, dim: int, batch: int, epochs: int, ctx: Context) -> Case:
    rng = ctx.rng
    anchors = rng.standard_normal((count, dim), dtype=np.float32)
    # Too close, and nothing would be left to lose.
    positives = anchors + 4 * rng.standard_normal((count, dim), dtype=np.float32)
    return Case(
        _ours(anchors, positives, batch, epochs),
        {"torch": lambda: _torch(ctx, anchors, positives, batch, epochs)},
    )


def rows() -> list[Row]:
    """Two epochs of two 384 x 384 maps, in-batch negatives, one and two threads."""
    return [
        Row(
            "two epochs of 1,371 pairs of 384, batches of 128"
            + ("" if threads is None else " threaded"),
            functools.partial(_build, 1371, 384, 128, 2),
            {"torch": Target(1.0)},
            # Rounding grows along the way.
            tolerance=1e-3,
            threads=threads,
        )
        for threads in (None, 2)
    ]
