"""What a softmax kernel computes besides ``q.k`` and ``p.v``, in one checked record.

For query row ``i``, standing at position ``pos``, and key ``j`` of head ``h``, in this
order::

    s = scale * q_i.k_j
    s = softcap * tanh(s / softcap)               with a softcap
    s = s - slopes[h] * |pos - j|                 with slopes (ALiBi)
    s = s + bias[b, h, i, j]                      with a bias; -inf hides the key

    visible = mask[b, h, i, j]                    with a mask
          and j <= pos                            when causal
          and (pos - left <= j <= pos + right     -1 leaves that side open
               or j < num_sinks
               or symmetric and pos < num_sinks)

``pos`` is ``positions[i]`` where positions are given, else ``i`` (plus ``Lk - Lq`` of that
sequence when ``bottom_right``). ``sink_logits[h]`` is one more score in the denominator
and in L of every row, without a value: a row that sees no key has ``o = 0`` and
``L = sink_logits[h]``, or ``-inf`` where there are no sink logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AdamSpec",
    "AttentionSpec",
    "BallSpec",
    "EdgeSpec",
    "FeatureSpec",
    "LinearState",
    "RotarySpec",
    "SGDSpec",
]

_Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionSpec:
    """The score function and the visible set of one attention call.

    The arrays are checked by whoever builds the record (:mod:`ruvector.functional`):
    ``slopes`` and ``sink_logits`` are contiguous ``(H,)`` arrays of the compute dtype
    (float64 for float64 input, else float32), ``bias`` (compute dtype) and ``mask`` (bool)
    are ``(B, H, Lq, Lk)`` views of any strides, zero included, ``positions`` is a
    contiguous int64 ``(Lq,)``, ``cu_seqlens_q`` and ``cu_seqlens_k`` are contiguous int64
    ``(S + 1,)`` and come together.

    With `key_scales` a key is the stored row times its scale, with `value_scales` a value:
    float32 views ``(B, Hkv, Lk)`` with a contiguous last axis, finite. Rows are then int8.
    The gradient and calls with a ball have neither.

    With `rotary` the kernels take ``R(u) q_i . R(v) k_j`` for the dot product, u and v being
    the positions of the rows: all but those with a ball and those of the gradient.
    """

    scale: float
    softcap: float | None = None
    causal: bool = False
    bottom_right: bool = False
    left: int = -1
    right: int = -1
    num_sinks: int = 0
    symmetric: bool = False
    slopes: _Array | None = None
    sink_logits: _Array | None = None
    bias: _Array | None = None
    mask: NDArray[np.bool_] | None = None
    positions: NDArray[np.int64] | None = None
    cu_seqlens_q: NDArray[np.int64] | None = None
    cu_seqlens_k: NDArray[np.int64] | None = None
    rotary: RotarySpec | None = None
    key_scales: _Array | None = None
    value_scales: _Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RotarySpec:
    """Where rows of queries and keys stand, and by what angles a position turns them.

    R(u) turns each pair (x, y) of a row into ``(x c - y s, x s + y c)``. Pairs are entries i
    and ``i + D/2`` of a row, or with `neighbours` entries 2 i and 2 i + 1. ``table[u]`` is a
    row in the same layout with (c, s) in the place of each pair.

    ``table`` is contiguous ``(P, D)`` of the compute dtype, ``query_positions`` ``(B, Lq)``
    and ``key_positions`` ``(B, Lk)`` are int64, their last axis contiguous, and between 0
    and ``P - 1``.
    """

    table: _Array
    neighbours: bool
    query_positions: NDArray[np.int64]
    key_positions: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class BallSpec:
    """The part of a score and of the values that lives in a Poincare ball.

    Beside the dot product (times ``AttentionSpec.scale``) a score then has the term
    ``-distance_scale * d_c(x(q), x(k))`` over a second pair of arrays, and the second part
    of the values is averaged as an Einstein midpoint: its state is the ordinary softmax
    average of ``[lambda x(v), lambda - 1]``, ``lambda = 2 / (1 - c |x|^2)``, one entry wider
    than the value, from which the midpoint is taken last (Shimizu et al. 2021, arXiv
    2006.08210, theorem 2).

    x is the exponential map at the origin where ``tangent``, else the identity; either is
    then shortened to norm ``1 / sqrt(c) - 1e-5`` at the most.
    """

    curvature: float
    distance_scale: float
    tangent: bool


@dataclass(frozen=True, slots=True, eq=False)
class EdgeSpec:
    """How an edge of a graph is scored, and what becomes of a node's attended sum (GATv2).

    The edge from sender j to receiver i has in head h the score::

        s = att[h] . leaky_relu(right[i, h] + left[j, h] + edge_weight[h] e_ij + shift[h])

    with the slope `negative_slope` below 0. With `loops` an edge from a node to itself does
    not count; instead each receiver below the number of senders has one whose features are
    the mean over its other edges (0 where there are none).

    The sum ``o[i, h] = sum_j p_ij left[j, h]`` is finished, for receivers that have an edge,
    by adding ``message[h]``; the heads are then laid side by side, or averaged with
    `average`, and ``bias`` is added; with `accumulate` also what the output held.

    Contiguous arrays of the compute dtype: att, shift and message ``(H, C)``, edge_weight
    ``(H * C, De)``, bias of the output's width.
    """

    att: _Array
    negative_slope: float
    edge_weight: _Array | None = None
    shift: _Array | None = None
    message: _Array | None = None
    bias: _Array | None = None
    loops: bool = False
    average: bool = False
    accumulate: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSpec:
    """The features phi of linear attention, where key j weighs ``gain * phi(q).phi(k_j)``.

    With ``y = projection @ (scale * x)`` and `kernel`::

        "softmax"   phi(x) = exp(y - |scale x|^2 / 2)
        "relu"      phi(x) = max(y, 0) + epsilon
        "elu"       phi(x) = elu(y) + 1

    The exponentials are stabilised: those of a query are divided by their maximum over the
    features, those of the keys that a query sees by their maximum over features and keys, and
    `epsilon` is added to each. L is the logarithm of the sum of the weights before that
    division.

    ``projection`` is contiguous ``(M, D)`` of the compute dtype.
    """

    kernel: str
    projection: _Array
    scale: float
    epsilon: float
    gain: float


class LinearState(NamedTuple):
    """What linear attention keeps of the keys and values of each sequence and head.

    Attributes
    ----------
    numerator : ndarray of float64, shape (B, H, M, Dv)
        ``sum_j phi_j v_j``; exponentials are relative to `stabiliser`, without epsilon.
    denominator : ndarray of float64, shape (B, H, M)
        ``sum_j phi_j``.
    stabiliser : ndarray of float64, shape (B, H)
        Largest exponent of a feature: -inf where there is no key, 0 for other kernels than
        ``"softmax"``.
    value_sum : ndarray of float64, shape (B, H, Dv)
        ``sum_j v_j``.
    num_keys : ndarray of int64, shape (B, H)
        Number of keys.
    """

    numerator: _Array
    denominator: _Array
    stabiliser: _Array
    value_sum: _Array
    num_keys: _Array


@dataclass(frozen=True, slots=True)
class SGDSpec:
    """One step of gradient descent, with momentum where there are buffers.

    With the gradient ``d = g + decay p``::

        b = d                                     at the first step
        b = momentum b + (1 - dampening) d        at the others
        p = p - rate d                            without momentum
        p = p - rate b                            with it
        p = p - rate (d + momentum b)             with it, nesterov
    """

    rate: float
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    decay: float = 0.0
    first: bool = False

    @property
    def keep(self) -> float:
        """What of the buffer stays."""
        return 0.0 if self.first else self.momentum

    @property
    def share(self) -> float:
        """What of the gradient enters the buffer."""
        return 1.0 if self.first else 1.0 - self.dampening


@dataclass(frozen=True, slots=True)
class AdamSpec:
    """Step number `step` of Adam, counted from 1 (Kingma and Ba 2015, arXiv 1412.6980).

    With the gradient ``d = g + decay p``::

        m = beta1 m + (1 - beta1) d
        v = beta2 v + (1 - beta2) d^2
        w = max(w, v)                             with peaks (AMSGrad), else v
        p = (1 - shrinkage) p - corrected_rate m / (root sqrt(w) + epsilon)

    The moments start at zero, which the last two factors correct. They are computed in
    float64, because ``1 - beta2`` to a power is mostly rounding in float32.
    """

    rate: float
    beta1: float
    beta2: float
    epsilon: float
    step: int
    decay: float = 0.0
    shrinkage: float = 0.0

    @property
    def corrected_rate(self) -> float:
        """The rate over the part of the first moment that is there yet."""
        return self.rate / (1.0 - self.beta1**self.step)

    @property
    def root(self) -> float:
        """One over the root of the part of the second moment that is there yet."""
        return 1.0 / math.sqrt(1.0 - self.beta2**self.step)
