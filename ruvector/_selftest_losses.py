"""Contrastive losses and mined negatives against their formulas, for the self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .training import HardNegativeMiner, InfoNCELoss, LocalContrastiveLoss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["losses"]

_TOLERANCE = {"float64": 1e-11, "float32": 1e-5}
# (anchors, negatives, dim)
_SHAPES = ((1, 5, 8), (9, 33, 17), (70, 50, 32))
_TEMPERATURE = 0.2


def _unit(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(x / np.sqrt((x * x).sum(axis=-1, keepdims=True)))


def _info_nce(
    anchors: NDArray[Any], keys: NDArray[Any], own: NDArray[Any]
) -> tuple[float, NDArray[Any]]:
    """Return loss and gradient of anchors where key ``own[i]`` is the positive of anchor i.

    `keys` are ``(B, K, d)``.
    """
    a, k = _unit(anchors), _unit(keys)
    scores = np.einsum("bd,bkd->bk", a, k) / _TEMPERATURE
    powers = np.exp(scores)
    weights = powers / powers.sum(axis=1, keepdims=True)
    rows = np.arange(len(a))
    loss = -np.log(weights[rows, own]).mean()
    weights[rows, own] -= 1
    gradient = np.einsum("bk,bkd->bd", weights, k) / (_TEMPERATURE * len(a))
    gradient -= (gradient * a).sum(axis=1, keepdims=True) * a
    return float(loss), gradient / np.sqrt((anchors**2).sum(axis=1, keepdims=True))


def losses(rng: np.random.Generator) -> Iterator[Case]:
    """Yield comparisons of losses, of gradients and of the hardest candidates."""
    for dtype, allowed in _TOLERANCE.items():
        for rows, count, dim in _SHAPES:
            a, p = rng.standard_normal((2, rows, dim)).astype(dtype)
            shared = rng.standard_normal((count, dim)).astype(dtype)
            a64, p64, n64 = (x.astype(np.float64) for x in (a, p, shared))
            forms = {
                "in batch": (None, np.broadcast_to(p64, (rows, rows, dim)), np.arange(rows)),
                "shared": (
                    shared,
                    np.concatenate(
                        (p64[:, None], np.broadcast_to(n64, (rows, count, dim))), axis=1
                    ),
                    np.zeros(rows, np.intp),
                ),
            }
            for form, (negatives, keys, own) in forms.items():
                result = InfoNCELoss(_TEMPERATURE).compute_with_gradients(a, p, negatives)
                loss, gradient = _info_nce(a64, keys, own)
                label = f"InfoNCE {form}, {dtype}, {(rows, count, dim)}"
                yield label, result.loss, loss, allowed
                yield f"{label}, gradient", result.anchor, gradient, allowed
            far = np.sqrt(((a64[:, None] - n64) ** 2).sum(axis=2))
            near = np.sqrt(((a64 - p64) ** 2).sum(axis=1, keepdims=True))
            expected = np.maximum(near - far + 1, 0).mean()
            got = LocalContrastiveLoss(1.0).compute(a, p, shared)
            yield f"hinge, {dtype}, {(rows, count, dim)}", got, expected, allowed
            similar = _unit(a64) @ _unit(n64).T
            found = HardNegativeMiner("hard").mine(a, p, shared, 4)
            got = np.take_along_axis(similar, found, axis=1)
            expected = -np.sort(-similar, axis=1)[:, :4]
            yield f"hardest, {dtype}, {(rows, count, dim)}", got, expected, allowed
