from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]

def rotate(
    x: _Array,
    out: _Array,
    positions: NDArray[np.int64],
    table: _Array,
    neighbours: bool,
    threads: int,
) -> None: ...
