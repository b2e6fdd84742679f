from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import AttentionSpec

_Array = NDArray[Any]

def attend(
    query: _Array,
    keys: list[_Array],
    values: list[_Array],
    ends: NDArray[np.int64],
    out: _Array,
    spec: AttentionSpec,
    threads: int,
) -> None: ...
def plain(queries: list[Any], keys: list[Any], values: list[Any], dim: int) -> bool: ...
