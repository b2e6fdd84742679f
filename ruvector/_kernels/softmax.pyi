from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import AttentionSpec, BallSpec

_Array = NDArray[Any]

def attend(
    query: _Array,
    key: _Array,
    value: _Array,
    out: _Array,
    lse: _Array | None,
    spec: AttentionSpec,
    threads: int,
) -> None: ...
def attend_ball(
    query: _Array | None,
    key: _Array | None,
    value: _Array | None,
    out: _Array | None,
    ball_query: _Array,
    ball_key: _Array,
    ball_value: _Array,
    ball_out: _Array,
    lse: _Array | None,
    spec: AttentionSpec,
    ball: BallSpec,
    threads: int,
) -> None: ...
def weights(
    query: _Array,
    key: _Array,
    out: _Array,
    spec: AttentionSpec,
    threads: int,
) -> None: ...
def weights_ball(
    query: _Array | None,
    key: _Array | None,
    ball_query: _Array,
    ball_key: _Array,
    out: _Array,
    spec: AttentionSpec,
    ball: BallSpec,
    threads: int,
) -> None: ...
def top_k(
    query: _Array,
    key: _Array,
    k: int,
    indices: NDArray[np.int64],
    weights: _Array,
    spec: AttentionSpec,
    threads: int,
) -> None: ...
def merge(outputs: _Array, lses: _Array, out: _Array, lse: _Array) -> None: ...
def attend_plain(
    query: Any,
    keys: Any,
    values: Any,
    heads: int,
    scale: float,
    return_lse: bool,
    return_weights: bool,
    threads: int,
) -> Any: ...
