"""The gradients of linear attention and of mixtures against differences: for the self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .attention import LinearAttention, MoEAttention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["linear_gradients", "moe_gradients"]

# Of a central difference in float64, and of the narrow types against that one.
_DIFFERENCE = 1e-6
_TOLERANCE = {"float32": 2e-4, "float16": 2e-2}
_STEP = 1e-5

# (queries, keys, dim, dim_v)
_SHAPES = ((1, 1, 1, 1), (9, 33, 17, 5), (140, 300, 8, 9))
_NAMES = ("query", "keys", "values")


def _difference(
    loss: Callable[..., float], inputs: dict[str, Any], name: str, way: NDArray[Any]
) -> float:
    sides = [loss(**inputs | {name: inputs[name] + s * _STEP * way}) for s in (1, -1)]
    return (sides[0] - sides[1]) / (2 * _STEP)


def _arrays(rng: np.random.Generator, shape: tuple[int, ...]) -> dict[str, Any]:
    m, n, dim, dim_v = shape
    widths = ((m, dim), (n, dim), (n, dim_v))
    return {
        name: rng.standard_normal(own) for name, own in zip(_NAMES, widths, strict=True)
    } | {"mask": rng.standard_normal(n)}


def linear_gradients(rng: np.random.Generator) -> Iterator[Case]:
    """Yield gradients of every kernel, causal or not, and those of narrow types."""
    for shape in _SHAPES:
        for kernel in ("softmax", "relu", "elu"):
            for causal in (False, True):
                attention = LinearAttention(
                    shape[2], 12, kernel, causal=causal, dtype="float64"
                )
                label = f"{kernel}{', causal' if causal else ''}, {shape}"
                yield from _linear(rng, attention, _arrays(rng, shape), label)


def _linear(
    rng: np.random.Generator,
    attention: LinearAttention,
    inputs: dict[str, Any],
    label: str,
) -> Iterator[Case]:
    out, lse = attention.compute(**inputs, return_lse=True)
    grad, grad_lse = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)

    def loss(**given: Any) -> float:
        out, lse = attention.compute(**given, return_lse=True)
        return float((out * grad).sum() + (lse * grad_lse).sum())

    _, made = attention.compute_with_gradients(**inputs, grad_output=grad, grad_lse=grad_lse)
    for name, array in inputs.items():
        way = rng.standard_normal(array.shape) / array.size**0.5
        expected = _difference(loss, inputs, name, way)
        yield f"{name}: {label}", (made[name] * way).sum(), expected, _DIFFERENCE
    for name, array in attention.parameters().items():
        way = rng.standard_normal(array.shape) / array.size**0.5
        before, sides = array.copy(), []
        for sign in (1, -1):
            array[...] = before + sign * _STEP * way
            sides.append(loss(**inputs))
        array[...] = before
        expected = (sides[0] - sides[1]) / (2 * _STEP)
        got = (made.parameters[name] * way).sum()
        yield f"{name}: {label}", got, expected, _DIFFERENCE
    narrow = LinearAttention(
        attention.dim, attention.num_features, attention.kernel, causal=attention.causal
    )
    for dtype, allowed in _TOLERANCE.items():
        given: dict[str, Any] = {name: x.astype(dtype) for name, x in inputs.items()}
        wide: dict[str, Any] = {name: x.astype(np.float64) for name, x in given.items()}
        _, got = narrow.compute_with_gradients(**given, grad_output=grad, grad_lse=grad_lse)
        _, true = narrow.compute_with_gradients(**wide, grad_output=grad, grad_lse=grad_lse)
        for name in inputs:
            top = max(1.0, np.abs(true[name]).max())
            yield f"{name}: {label}, {dtype}", got[name] / top, true[name] / top, allowed


def moe_gradients(rng: np.random.Generator) -> Iterator[Case]:
    """Yield gradients of mixtures in training, the loss included."""
    for shape in _SHAPES:
        inputs = _arrays(rng, shape)
        fields: dict[str, Any] = {
            "dim": shape[2],
            "num_experts": 6,
            "top_k": 3,
            "jitter_noise": 0.1,
            "aux_loss_weight": 0.1,
        }
        parameters = MoEAttention(**fields, dtype="float64").state_dict()
        grad = rng.standard_normal((shape[0], shape[3]))

        def layer(given: dict[str, Any], fields: dict[str, Any] = fields) -> MoEAttention:
            # Each draws the same jitter.
            made = MoEAttention(**fields, dtype="float64")
            made.load_state_dict({name: given[name] for name in made.parameters()})
            return made

        def loss(grad: NDArray[Any] = grad, **given: Any) -> float:
            own = {name: given[name] for name in (*_NAMES, "mask")}
            out, loss = layer(given).compute_with_aux_loss(**own)
            return float((out * grad).sum()) + loss

        _, made = layer(inputs | parameters).compute_with_gradients(
            **inputs, grad_output=grad, grad_aux_loss=1.0
        )
        found = {name: made[name] for name in inputs} | made.parameters
        for name, array in (inputs | parameters).items():
            way = rng.standard_normal(array.shape) / array.size**0.5
            expected = _difference(loss, inputs | parameters, name, way)
            yield f"{name}: {shape}", (found[name] * way).sum(), expected, _DIFFERENCE
