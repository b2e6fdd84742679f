from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import EdgeSpec

_Array = NDArray[Any]
_Integers = NDArray[np.int64]

def weight_gradient(x: _Array, grad: _Array, out: _Array, threads: int) -> None: ...
def loop_features(
    features: _Array, indptr: _Integers, indices: _Integers, nodes: int, out: _Array
) -> None: ...
def loop_features_gradient(
    grad: _Array, indptr: _Integers, indices: _Integers, nodes: int, out: _Array
) -> None: ...
def attend_backward(
    left: _Array,
    messages: _Array,
    right: _Array,
    edges: _Array | None,
    bias: _Array | None,
    spec: EdgeSpec,
    indptr: _Integers,
    indices: _Integers,
    lse: _Array,
    delta: _Array,
    grad_sums: _Array,
    grad_left: _Array,
    grad_messages: _Array | None,
    grad_right: _Array,
    grad_edges: _Array | None,
    grad_bias: _Array | None,
    grad_att: _Array,
    grad_weight: _Array | None,
    threads: int,
) -> None: ...
