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

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["AttentionSpec", "BallSpec"]

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
