from typing import Any

from numpy.typing import NDArray

from ruvector._kernels.spec import FeatureSpec, LinearState

_Array = NDArray[Any]

def attend(
    query: _Array,
    key: _Array,
    value: _Array,
    bias: _Array | None,
    out: _Array,
    lse: _Array | None,
    causal: bool,
    features: FeatureSpec,
    threads: int,
) -> None: ...
def absorb(
    key: _Array,
    value: _Array,
    bias: _Array | None,
    state: LinearState,
    features: FeatureSpec,
    threads: int,
) -> None: ...
def attend_state(
    query: _Array,
    state: LinearState,
    out: _Array,
    lse: _Array | None,
    features: FeatureSpec,
    threads: int,
) -> None: ...
def merge(state: LinearState, other: LinearState) -> None: ...
