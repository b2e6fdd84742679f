from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import AttentionSpec, BallSpec

_Array = NDArray[Any]

def attend_backward(
    query: _Array,
    key: _Array,
    value: _Array,
    out: _Array,
    lse: _Array,
    grad_out: _Array,
    grad_lse: _Array | None,
    grad_query: _Array | None,
    grad_key: _Array | None,
    grad_value: _Array | None,
    grad_bias: _Array | None,
    grad_slopes: _Array | None,
    grad_sinks: _Array | None,
    spec: AttentionSpec,
    threads: int,
) -> None: ...
def attend_ball_backward(
    query: _Array | None,
    key: _Array | None,
    value: _Array | None,
    ball_query: _Array,
    ball_key: _Array,
    ball_value: _Array | None,
    state: _Array | None,
    lse: _Array,
    grad_state: _Array | None,
    grad_lse: _Array | None,
    grad_weights: _Array | None,
    grad_query: _Array | None,
    grad_key: _Array | None,
    grad_value: _Array | None,
    grad_ball_query: _Array,
    grad_ball_key: _Array,
    grad_ball_value: _Array | None,
    grad_bias: _Array | None,
    grad_parameters: NDArray[np.float64] | None,
    spec: AttentionSpec,
    ball: BallSpec,
    threads: int,
) -> None: ...
