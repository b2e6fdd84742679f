"""Contrastive: InfoNCE and hard negatives, against torch and pytorch-metric-learning."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import ruvector
from ruvector.training import HardNegativeMiner, InfoNCELoss, LocalContrastiveLoss

from ..core import OURS, Case, Context, Curve, Row, Target
from ..run import present, sample
from ..sides import Local, Side

__all__ = ["curves", "rows"]

_TEMPERATURE = 0.07


def _flops(rows: int, dim: int) -> float:
    """Count the three products that loss and gradients need at least."""
    return 6.0 * rows * rows * dim


def _arrays(ctx: Context, *rows: int, dim: int) -> list[np.ndarray]:
    rng = ctx.rng
    return [rng.standard_normal((count, dim), dtype=np.float32) for count in rows]


def _parts(result: Any) -> tuple[Any, ...]:
    return result.loss, result.anchor, result.positive


def _ours(arrays: list[np.ndarray], ids: np.ndarray | None = None) -> Side:
    loss = InfoNCELoss(_TEMPERATURE)
    return Local(functools.partial(loss.compute_with_gradients, *arrays, ids=ids), _parts)


def _formula(ctx: Context, arrays: list[np.ndarray], ids: np.ndarray | None = None) -> Side:
    torch = ctx.peers.module("torch")
    functional = torch.nn.functional
    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
    target = torch.arange(len(arrays[0]))
    hidden = None
    if ids is not None:
        known = torch.from_numpy(ids)
        hidden = (known[:, None] == known) & ~torch.eye(len(ids), dtype=torch.bool)

    def call() -> tuple[Any, ...]:
        anchors, positives = (functional.normalize(x) for x in tensors)
        scores = anchors @ positives.T / _TEMPERATURE
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        loss = functional.cross_entropy(scores, target)
        return (loss, *torch.autograd.grad(loss, tensors))

    return Local(call)


def _metric_learning(ctx: Context, arrays: list[np.ndarray]) -> Side:
    torch = ctx.peers.module("torch")
    ctx.peers.module("pytorch_metric_learning")
    from pytorch_metric_learning.losses import NTXentLoss

    tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
    labels = torch.arange(len(arrays[0]))
    # Were both the same object, an anchor and its positive would count as one and the same.
    others = labels.clone()
    criterion = NTXentLoss(temperature=_TEMPERATURE)

    def call() -> tuple[Any, ...]:
        loss = criterion(tensors[0], labels, ref_emb=tensors[1], ref_labels=others)
        return (loss, *torch.autograd.grad(loss, tensors))

    return Local(call)


def _build(rows: int, dim: int, both: bool, duplicates: bool, ctx: Context) -> Case:
    arrays = _arrays(ctx, rows, rows, dim=dim)
    ids = np.arange(rows) // 2 if duplicates else None
    peers = {"torch": lambda: _formula(ctx, arrays, ids)}
    if both:
        peers["pytorch-metric-learning"] = lambda: _metric_learning(ctx, arrays)
    return Case(_ours(arrays, ids), peers)


def _row(
    rows: int,
    dim: int,
    target: Target,
    *,
    both: bool = False,
    duplicates: bool = False,
    threads: int | None = None,
) -> Row:
    return Row(
        f"InfoNCE in batch {(rows, dim)}"
        + (", every id twice" if duplicates else "")
        + ("" if threads is None else " threaded"),
        functools.partial(_build, rows, dim, both, duplicates),
        {"torch": target, **({"pytorch-metric-learning": Target()} if both else {})},
        flops=_flops(rows, dim),
        threads=threads,
    )


def _triplets(rows: int, dim: int, ctx: Context) -> Case:
    arrays = _arrays(ctx, rows, rows, dim=dim)
    loss = LocalContrastiveLoss(1.0)

    def peer() -> Side:
        torch = ctx.peers.module("torch")
        tensors = [torch.from_numpy(x).requires_grad_() for x in arrays]
        others = ~torch.eye(rows, dtype=torch.bool)

        def call() -> tuple[Any, ...]:
            anchors, positives = tensors
            far = torch.cdist(anchors, positives)
            near = (anchors - positives).norm(dim=1, keepdim=True)
            value = torch.relu(near - far + 1.0)[others].mean()
            return (value, *torch.autograd.grad(value, tensors))

        return Local(call)

    return Case(
        Local(functools.partial(loss.compute_with_gradients, *arrays), _parts), {"torch": peer}
    )


def _mining(rows: int, count: int, dim: int, ctx: Context) -> Case:
    anchors, positives, candidates = _arrays(ctx, rows, rows, count, dim=dim)
    miner = HardNegativeMiner("hard")
    units = [ruvector.normalize(x) for x in (anchors, candidates)]

    def values(found: np.ndarray) -> np.ndarray:
        # What is compared are the similarities: a rounding may swap two of them.
        return np.einsum("bd,bkd->bk", units[0], units[1][found])

    def peer() -> Side:
        torch = ctx.peers.module("torch")
        functional = torch.nn.functional
        one, two = (torch.from_numpy(x) for x in (anchors, candidates))

        def call() -> Any:
            with torch.inference_mode():
                return (functional.normalize(one) @ functional.normalize(two).T).topk(10)[1]

        return Local(call, lambda found: values(found.numpy()))

    return Case(
        Local(functools.partial(miner.mine, anchors, positives, candidates, 10), values),
        {"torch": peer},
    )


def rows() -> list[Row]:
    """Losses in the batch with all gradients, one and two threads; the hardest candidates."""
    target = Target(0.9, 1.3)
    return [
        _row(512, 384, target, both=True),
        _row(512, 384, target, threads=2),
        _row(128, 384, Target()),
        _row(2048, 384, Target()),
        _row(512, 384, Target(), duplicates=True),
        Row(
            "LocalContrastiveLoss in batch (512, 384)",
            functools.partial(_triplets, 512, 384),
            {"torch": Target()},
        ),
        Row(
            "10 hardest of 20,000 candidates for 128 anchors of 384",
            functools.partial(_mining, 128, 20_000, 384),
            {"torch": Target()},
            flops=2.0 * 128 * 20_000 * 384,
        ),
    ]


def _rate_by_rows(ctx: Context, rows: int) -> dict[str, float]:
    arrays = _arrays(ctx, rows, rows, dim=384)
    sides = present({OURS: lambda: _ours(arrays), "torch": lambda: _formula(ctx, arrays)})
    timings = sample(ctx, sides)
    return {name: _flops(rows, 384) / timing.median / 1e9 for name, timing in timings.items()}


def curves() -> list[Curve]:
    """GF/s by the size of the batch."""
    return [
        Curve(
            "InfoNCE by batch", "anchors", "GF/s", "flat",
            (128, 256, 512, 1024, 2048, 4096), (128, 512), _rate_by_rows,
        )
    ]  # fmt: skip
