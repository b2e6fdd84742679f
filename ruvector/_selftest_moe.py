"""A mixture of experts against its formula, for the self-test.

The formula lets every expert answer every query, and weighs what the router did not choose
with 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .attention import MoEAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["moe"]

_TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
_SHAPES = ((1, 1, 8), (1, 300, 64), (9, 33, 17), (70, 50, 32))


def _softmax(scores: NDArray[Any]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float64)


def _standard(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(_softmax(q @ k.T / np.sqrt(q.shape[1])) @ v, np.float64)


def _hyperbolic(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> NDArray[np.float64]:
    """Take the mean on the hyperboloid, where it is scaled back."""
    inside = [1 - (x * x).sum(axis=1) for x in (q, k, v)]
    squares = ((q[:, None] - k) ** 2).sum(axis=2)
    weights = _softmax(-np.arccosh(1 + 2 * squares / (inside[0][:, None] * inside[1])))
    mean = weights @ (np.column_stack((2 - inside[2], 2 * v)) / inside[2][:, None])
    mean /= np.sqrt(mean[:, :1] ** 2 - (mean[:, 1:] ** 2).sum(axis=1, keepdims=True))
    return np.asarray(mean[:, 1:] / (1 + mean[:, :1]), np.float64)


def _linear(
    q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], projection: NDArray[Any]
) -> NDArray[np.float64]:
    q, k = (x / q.shape[1] ** 0.25 for x in (q, k))
    left, right = (x @ projection.T - (x * x).sum(axis=1)[:, None] / 2 for x in (q, k))
    left = np.exp(left - left.max(axis=1, keepdims=True)) + 1e-6
    weights = left @ (np.exp(right - right.max()) + 1e-6).T
    return np.asarray(weights / weights.sum(axis=1, keepdims=True) @ v, np.float64)


def _expected(
    layer: MoEAttention, query: NDArray[Any], keys: NDArray[Any], values: NDArray[Any]
) -> tuple[NDArray[np.float64], float]:
    """Return the output and the auxiliary loss."""
    p = {name: array.astype(np.float64) for name, array in layer.parameters().items()}
    q, k, v = (x.astype(np.float64) for x in (query, keys, values))
    logits = q @ p["router.weight"].T
    least = np.sort(logits, axis=1)[:, -layer.top_k]
    chosen = logits >= least[:, None]
    shares = _softmax(np.where(chosen, logits, -np.inf))
    out = np.zeros((len(q), v.shape[1]))
    for i, kind in enumerate(layer.expert_types):
        own = q @ p[f"experts.{i}.query.weight"].T, k @ p[f"experts.{i}.key.weight"].T, v
        if kind == "linear":
            answer = _linear(*own, p["projection"])
        else:
            answer = {"standard": _standard, "hyperbolic": _hyperbolic}[kind](*own)
        out += shares[:, i, None] * answer
    balance = layer.num_experts * chosen.mean(axis=0) @ _softmax(logits).mean(axis=0)
    z = np.log(np.exp(logits).sum(axis=1))
    loss = layer.load_balance_weight * balance / layer.top_k
    return out, float(loss + layer.aux_loss_weight * np.mean(z * z))


def moe(rng: np.random.Generator) -> Iterator[Case]:
    """Compare ``MoEAttention`` and its auxiliary loss, with room for all queries."""
    for dtype, allowed in _TOLERANCE.items():
        for m, n, dim in _SHAPES:
            layer = MoEAttention(
                dim=dim,
                num_experts=6,
                top_k=3,
                expert_capacity=6,
                aux_loss_weight=0.1,
                rng=rng,
                dtype=dtype,
            )
            q, k, v = (
                (0.4 * rng.standard_normal((rows, dim)) / np.sqrt(dim)).astype(dtype)
                for rows in (m, n, n)
            )
            out, loss = layer.compute_with_aux_loss(q, k, v)
            expected, expected_loss = _expected(layer, q, k, v)
            label = f"{dtype}, {(m, n, dim)}"
            yield label, out, expected, allowed
            yield f"{label}, loss", loss, expected_loss, allowed
            one = layer.compute(q[-1], k, v)
            yield f"{label}, one query", one, expected[-1], allowed
