from typing import Any

from numpy.typing import NDArray

from ruvector._kernels.spec import AttentionSpec

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
