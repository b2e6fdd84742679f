"""Linear attention for the command line: sums of the keys, read by blocks of queries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._attend_edges import read_parameters
from .attention import LinearAttention
from .errors import RuvectorError

__all__ = ["LINEAR_FIELDS", "linear_blocks", "load_linear"]

LINEAR_FIELDS = ("num_features", "kernel", "seed")


def load_linear(
    dim: int, causal: bool, parameters: str | None, **fields: Any
) -> LinearAttention:
    """Make a :class:`LinearAttention`, with the ``state_dict`` in a ``.npz`` file if any.

    Raises
    ------
    RuvectorError
        If an option is outside its domain or the file is not usable.
    """
    if parameters is None:
        return LinearAttention(dim, causal=causal, **fields)
    state = read_parameters(parameters)
    wide = np.dtype(np.float64) in {array.dtype for array in state.values()}
    attention = LinearAttention(
        dim, causal=causal, dtype="float64" if wide else "float32", **fields
    )
    try:
        attention.load_state_dict(state)
    except (ValueError, TypeError) as error:
        raise RuvectorError(f"--parameters {parameters}: {error}") from error
    return attention


def linear_blocks(
    attention: LinearAttention,
    query: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    mask: NDArray[Any] | None,
    step: int,
) -> Iterator[NDArray[Any]]:
    """Yield the outputs of `step` queries at a time.

    The keys are summed once. A causal query is the one at the position of its key, and what is
    summed grows with it.
    """
    rows = np.atleast_2d(query)
    first = len(keys) - len(rows)
    before = max(0, first) if attention.causal else len(keys)
    attention.prefill(keys[:before], values[:before], mask=_part(mask, 0, before))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if not attention.causal:
            yield attention.attend(block)
            continue
        outputs = []
        for i, row in enumerate(block, first + start):
            if i >= 0:
                own = _part(mask, i, i + 1)
                attention.append(keys[i : i + 1], values[i : i + 1], mask=own)
            outputs.append(attention.attend(row))
        yield np.stack(outputs)


def _part(mask: NDArray[Any] | None, start: int, stop: int) -> NDArray[Any] | None:
    return None if mask is None else mask[start:stop]
