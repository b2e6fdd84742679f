from typing import Any

import numpy as np
from numpy.typing import NDArray

_Array = NDArray[Any]

def store_rows(rows: _Array, out: _Array, scales: NDArray[np.float32] | None) -> bool: ...
def load_rows(stored: _Array, scales: NDArray[np.float32] | None) -> _Array: ...
