from typing import Any

import numpy as np
from numpy.typing import NDArray

from ruvector._kernels.spec import AdamSpec, SGDSpec

_Arrays = list[NDArray[Any]]

def sgd(
    params: _Arrays, gradients: _Arrays, buffers: _Arrays | None, spec: SGDSpec, threads: int
) -> None: ...
def adam(
    params: _Arrays,
    gradients: _Arrays,
    first: _Arrays,
    second: _Arrays,
    peaks: _Arrays | None,
    spec: AdamSpec,
    threads: int,
) -> None: ...
def norm(arrays: _Arrays, threads: int) -> float: ...
def scale(arrays: _Arrays, factor: float, threads: int) -> None: ...
def bounds(arrays: _Arrays) -> NDArray[np.int64]: ...
