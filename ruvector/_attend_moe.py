"""Attention by a mixture of experts for the command line."""

from __future__ import annotations

import os
from functools import lru_cache

import numpy as np

from ._attend_edges import read_parameters
from .attention import MoEAttention, MoEConfig
from .errors import RuvectorError

__all__ = ["load_mixture"]


def load_mixture(
    dim: int,
    parameters: str | None,
    num_experts: int,
    top_k: int,
    expert_types: str | None = None,
) -> MoEAttention:
    """Make a :class:`MoEAttention`, with the ``state_dict`` in a ``.npz`` file if there is one.

    Raises
    ------
    RuvectorError
        If an option is outside its domain or the file is not usable.
    """
    types = None if expert_types is None else expert_types.split(",")
    config = MoEConfig(dim, num_experts, top_k, expert_types=types)
    changed = 0
    if parameters is not None and os.path.exists(parameters):
        changed = os.stat(parameters).st_mtime_ns
    return _attention(config, parameters, changed)


@lru_cache(maxsize=1)
def _attention(config: MoEConfig, parameters: str | None, changed: int) -> MoEAttention:
    # Kept from one block of queries to the next.
    if parameters is None:
        return MoEAttention(config)
    state = read_parameters(parameters)
    dtypes = {array.dtype for array in state.values()}
    attention = MoEAttention(
        config, dtype="float64" if np.dtype(np.float64) in dtypes else "float32"
    )
    try:
        attention.load_state_dict(state)
    except (ValueError, TypeError) as error:
        raise RuvectorError(f"--parameters {parameters}: {error}") from error
    return attention
