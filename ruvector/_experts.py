"""The experts of a mixture and its router, in the form that kernels take.

An expert multiplies queries and keys by weights of its own and attends to the values as they
are. It runs once for all queries that are routed to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from . import _config, _kernels
from ._arrays import FLOAT64, Array, cast, compute_dtype, contiguous_rows
from ._ball_problem import BallProblem
from ._features import LinearProblem, draw_projection, feature_spec, key_bias
from ._kernels import routing
from ._kernels.spec import BallSpec
from ._problem import Problem

__all__ = [
    "EXPERT_TYPES",
    "Answer",
    "Block",
    "ExpertWeights",
    "Routed",
    "Visit",
    "initial_parameters",
    "mix",
    "project",
    "repeats",
    "route",
    "transformed",
]

EXPERT_TYPES = ("standard", "hyperbolic", "linear")

# How far the initial weights of an expert are from the identity.
_NOISE = 0.02
# The features of linear experts are those of LinearAttention(dim, 2 * dim).
_FEATURES, _FEATURES_SEED = 2, 42
_BALL = BallSpec(curvature=1.0, distance_scale=1.0, tangent=False)
# Numbers of a block of queries that is widened for the router.
_BLOCK = 1 << 18


def initial_parameters(
    dim: int, types: Sequence[str], rng: np.random.Generator, dtype: np.dtype[Any]
) -> dict[str, Array]:
    """Draw a router that spreads queries of unit variance, and experts near the identity."""
    router = rng.standard_normal((len(types), dim)) / dim**0.5
    parameters = {"router.weight": router.astype(dtype)}
    for i, kind in enumerate(types):
        for role in ("query", "key"):
            weight = np.eye(dim) + _NOISE * rng.standard_normal((dim, dim))
            # Few queries are multiplied by this one's transpose, which then is contiguous.
            order: Literal["C", "F"] = "F" if (kind, role) == ("standard", "key") else "C"
            parameters[f"experts.{i}.{role}.weight"] = weight.astype(dtype, order=order)
    if "linear" in types:
        own = np.random.default_rng(_FEATURES_SEED)
        projection = draw_projection(dim, _FEATURES * dim, True, own)
        parameters["projection"] = projection.astype(dtype)
    return parameters


class Routed(NamedTuple):
    """Where the R queries of a call go.

    Attributes
    ----------
    logits : ndarray, shape (R, N)
        What the router gives, in the compute dtype.
    wanted : ndarray of int, shape (R, top_k)
        The best experts of each query.
    choice : ndarray of int, shape (R, top_k)
        The experts that it goes to, -1 for none.
    jitter : ndarray, shape (R, dim), or None
        What the router's view of a query was multiplied by.
    """

    logits: Array
    wanted: Array
    choice: Array
    jitter: Array | None


def route(
    query: Array,
    weight: Array,
    dtype: np.dtype[Any],
    top_k: int,
    *,
    expert_capacity: float | None,
    jitter: float,
    rng: np.random.Generator,
) -> Routed:
    """Choose experts for queries ``(B, m, dim)``, in the order of their rows.

    Logits are summed in float64. Every number of a query is first multiplied by one drawn
    from 1 - jitter to 1 + jitter.
    """
    rows = query.reshape(-1, query.shape[-1])
    logits = np.empty((len(rows), len(weight)), FLOAT64)
    weight = cast(weight, FLOAT64)
    noise = rng.uniform(1 - jitter, 1 + jitter, rows.shape) if jitter else None
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        block = cast(rows[start : start + step], FLOAT64)
        if noise is not None:
            block = block * noise[start : start + step]
        project(block, weight, logits[start : start + step])
    with np.errstate(over="ignore"):
        logits = logits.astype(dtype, copy=False)
    order = routing.rank(logits)
    wanted = choice = order[:, :top_k]
    if expert_capacity is not None:
        limit = routing.capacity(expert_capacity, len(rows), top_k, len(weight))
        choice = routing.assign(order, top_k, limit)
    return Routed(logits, wanted, choice, noise)


def mix(
    routed: Routed,
    types: Sequence[str],
    parameters: Mapping[str, Array],
    query: Array,
    keys: Array,
    values: Array,
    mask: Array | None,
    out: Array,
    weights: Array | None,
    visits: list[Visit] | None = None,
) -> None:
    """Write the average of the outputs of each query's experts, and of their weights.

    Query is ``(B, m, dim)``, keys ``(B, n, dim)``, values ``(B, n, dim_v)``, a mask
    ``(B, 1, m, n)``; `out` is ``(B, m, dim_v)`` and `weights` ``(B, 1, m, n)``, in the compute
    dtype. What their gradient needs is added to `visits`.
    """
    dtype = out.dtype
    shares = routing.mixture_weights(routed.logits, routed.choice).astype(dtype)
    out[...] = 0
    if weights is not None:
        weights[...] = 0
    groups = routing.rows_by_expert(routed.choice, len(types))
    for expert, (rows, positions) in enumerate(groups):
        if not rows.size:
            continue
        where = np.divmod(rows, query.shape[1])
        block = _gather(query, keys, values, mask, where)
        weight = ExpertWeights(
            cast(parameters[f"experts.{expert}.query.weight"], dtype),
            cast(parameters[f"experts.{expert}.key.weight"], dtype),
            parameters.get("projection"),
        )
        answer = _ATTEND[types[expert]](block, weight, dtype, visits is not None)
        share = shares[rows, positions, np.newaxis]
        out[where] += share * cast(block.listed(answer.output), dtype)
        if weights is not None:
            weights[where[0], 0, where[1]] += share * block.listed(
                answer.problem.weights()[:, 0]
            )
        if visits is not None:
            visits.append(Visit(expert, rows, positions, block, weight, answer))


class ExpertWeights(NamedTuple):
    """The parameters of one expert; the projection serves linear ones."""

    query: Array
    key: Array
    projection: Array | None


class Block(NamedTuple):
    """The queries that go to one expert, beside the memories that they attend to.

    Attributes
    ----------
    where : tuple of ndarray of int
        Batch entries and rows of the queries.
    entries : ndarray of int, shape (G,), or None
        The batch entries of the memories; None where one memory serves them all.
    query : ndarray, shape (G, M, dim)
        The queries by memory, of which shorter lists are filled up with repetitions.
    keys : ndarray, shape (G, n, dim)
    values : ndarray, shape (G, n, dim_v)
    mask : ndarray, shape (G, 1, M, n), or None
    valid : ndarray of bool, shape (G, M), or None
        Which queries are no repetitions; all are where there is one memory.
    """

    where: tuple[Array, Array]
    entries: Array | None
    query: Array
    keys: Array
    values: Array
    mask: Array | None
    valid: Array | None

    @property
    def few_queries(self) -> bool:
        """Whether there are no more queries than keys of a memory."""
        return bool(self.query.shape[1] <= self.keys.shape[1])

    def listed(self, x: Array) -> Array:
        """Bring rows ``(G, M, ...)`` to the list of queries that were asked for."""
        return x[0] if self.valid is None else x[self.valid]

    def unlisted(self, x: Array) -> Array:
        """Bring a list of rows to ``(G, M, ...)``, with 0 for repetitions."""
        if self.valid is None:
            return x[np.newaxis]
        rows = np.zeros((*self.valid.shape, *x.shape[1:]), x.dtype)
        rows[self.valid] = x
        return rows


class Answer(NamedTuple):
    """What an expert makes of a block.

    Attributes
    ----------
    output : ndarray, shape (G, M, dim_v)
    problem : Problem, BallProblem or LinearProblem
        What it computed.
    lse : ndarray, shape (G, 1, M), or None
        L, where it was wanted and a gradient needs it.
    state : ndarray, shape (G, 1, M, dim_v + 1), or None
        What the midpoints of a hyperbolic expert were made of.
    """

    output: Array
    problem: Problem | BallProblem | LinearProblem
    lse: Array | None
    state: Array | None


class Visit(NamedTuple):
    """One expert's part in a mixture: the rows at these positions of their choices."""

    expert: int
    rows: Array
    positions: Array
    block: Block
    weights: ExpertWeights
    answer: Answer


def _gather(
    query: Array,
    keys: Array,
    values: Array,
    mask: Array | None,
    where: tuple[Array, Array],
) -> Block:
    """Collect queries ``(B, m, dim)`` at the rising positions `where` as one block.

    Keys are ``(B, n, dim)``, values ``(B, n, dim_v)``, a mask is ``(B, 1, m, n)``.
    """
    batch, rows = where
    if all(repeats(x, 0) for x in (keys, values)):
        shape = (1, 1, len(rows), keys.shape[1])
        if mask is None:
            seen = None
        elif repeats(mask, 0) and repeats(mask, 2):
            seen = np.broadcast_to(mask[:1, :, :1], shape)
        else:
            seen = mask[batch, 0, rows].reshape(shape)
        return Block(
            where, None, query[batch, rows][np.newaxis], keys[:1], values[:1], seen, None
        )
    entries, starts, counts = np.unique(batch, return_index=True, return_counts=True)
    slots = np.arange(counts.max())
    valid = slots < counts[:, np.newaxis]
    filled = rows[starts[:, np.newaxis] + np.minimum(slots, counts[:, np.newaxis] - 1)]
    if mask is not None:
        if repeats(mask, 2):
            shape = (len(entries), 1, len(slots), mask.shape[3])
            mask = np.broadcast_to(_chosen(mask, entries)[:, :, :1], shape)
        else:
            mask = mask[entries[:, np.newaxis], 0, filled][:, np.newaxis]
    return Block(
        where,
        entries,
        query[entries[:, np.newaxis], filled],
        _chosen(keys, entries),
        _chosen(values, entries),
        mask,
        valid,
    )


def _standard(
    block: Block, weights: ExpertWeights, dtype: np.dtype[Any], with_lse: bool
) -> Answer:
    query = transformed(block.query, weights.query, dtype)
    if block.few_queries:
        # q . W k = W^T q . k: the keys are read as they lie.
        keys, values = (_stored(x, dtype) for x in (block.keys, block.values))
        query = contiguous_rows(transformed(query, weights.key.T, dtype), keys.dtype)
    else:
        keys = transformed(block.keys, weights.key, dtype)
        values = contiguous_rows(block.values, dtype)
    problem = Problem(
        query[:, np.newaxis],
        keys[:, np.newaxis],
        values[:, np.newaxis],
        block.mask,
        {"scale": query.shape[2] ** -0.5},
    )
    output = np.empty((*query.shape[:2], values.shape[2]), query.dtype)
    lse = problem.new_lse() if with_lse else None
    problem.attend(output[:, np.newaxis], lse)
    return Answer(output, problem, lse, None)


def _hyperbolic(
    block: Block, weights: ExpertWeights, dtype: np.dtype[Any], with_lse: bool
) -> Answer:
    query = transformed(block.query, weights.query, dtype)
    keys = transformed(block.keys, weights.key, dtype)
    values = contiguous_rows(block.values, dtype)
    curved = (query[:, np.newaxis], keys[:, np.newaxis], values[:, np.newaxis])
    problem = BallProblem(None, curved, block.mask, 1.0, _BALL)
    state, lse = problem.attend(with_lse)
    rows, width = query.shape[0] * query.shape[1], values.shape[2]
    output = np.empty((*query.shape[:2], width), dtype)
    _kernels.hyperbolic.midpoint(
        state.reshape(rows, width + 1),
        output.reshape(rows, width),
        _BALL.curvature,
        _BALL.tangent,
    )
    return Answer(output, problem, lse, state)


def _linear(
    block: Block, weights: ExpertWeights, dtype: np.dtype[Any], with_lse: bool
) -> Answer:
    query = transformed(block.query, weights.query, dtype)
    keys = transformed(block.keys, weights.key, dtype)
    values = contiguous_rows(block.values, dtype)
    bias = None
    if block.mask is not None:
        # The same for every query.
        bias = contiguous_rows(key_bias(block.mask[:, 0, 0], "mask", dtype), dtype)
    problem = LinearProblem(
        query[:, np.newaxis],
        keys[:, np.newaxis],
        values[:, np.newaxis],
        bias,
        False,
        feature_spec("softmax", weights.projection, query.shape[2], dtype),
    )
    output = np.empty((*query.shape[:2], values.shape[2]), dtype)
    problem.attend(output[:, np.newaxis])
    return Answer(output, problem, None, None)


_ATTEND = {"standard": _standard, "hyperbolic": _hyperbolic, "linear": _linear}


def transformed(x: Array, weight: Array, dtype: np.dtype[Any]) -> Array:
    """Multiply vectors ``(G, length, dim)`` by a weight; a memory that is shared only once."""
    if len(x) > 1 and repeats(x, 0):
        once = transformed(x[:1], weight, dtype)
        return np.broadcast_to(once, (len(x), *once.shape[1:]))
    result = np.empty((*x.shape[:2], len(weight)), dtype)
    rows = _stored(x, dtype).reshape(-1, x.shape[2])
    project(rows, np.ascontiguousarray(weight), result.reshape(-1, len(weight)))
    return result


def project(rows: Array, weight: Array, out: Array) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        _kernels.graph.project(rows, weight, out, _config.current_threads())


def _stored(x: Array, dtype: np.dtype[Any]) -> Array:
    """Bring an array to rows that kernels read beside the compute dtype."""
    return contiguous_rows(x, x.dtype if compute_dtype(x.dtype) == dtype else dtype)


def repeats(x: Array, axis: int) -> bool:
    return x.shape[axis] == 1 or x.strides[axis] == 0


def _chosen(x: Array, entries: Array) -> Array:
    """Take entries of the first axis; a view where they are all or all the same."""
    if x.strides[0] == 0:
        return np.broadcast_to(x[:1], (len(entries), *x.shape[1:]))
    return x if len(x) == len(entries) else x[entries]
