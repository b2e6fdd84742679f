from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import EdgeSpec

_Array = NDArray[Any]
_Integers = NDArray[np.int64]

def project(x: _Array, weight: _Array, out: _Array, threads: int) -> None: ...
def aggregate(
    left: _Array,
    right: _Array,
    edges: _Array | None,
    spec: EdgeSpec,
    indptr: _Integers,
    indices: _Array,
    out: _Array,
    lse: _Array | None,
    threads: int,
) -> None: ...
def scores(
    left: _Array,
    right: _Array,
    edges: _Array | None,
    spec: EdgeSpec,
    out: _Array,
    threads: int,
) -> None: ...
def group(keys: _Integers, indptr: _Integers, order: _Integers) -> None: ...
def hops(
    indptr: _Integers,
    indices: _Array,
    sources: _Integers,
    max_hops: int,
    out: _Integers,
) -> None: ...
