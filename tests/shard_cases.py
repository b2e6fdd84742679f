"""A memory, and ways to cut it into shards."""

from __future__ import annotations

import numpy as np
from batch_cases import CONFIGS, DIM

import ruvector

MERGING = [name for name in CONFIGS if name != "moe"]
N = 40


def arrays(n=N, m=None, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shape = (DIM,) if m is None else (m, DIM) if isinstance(m, int) else (*m, DIM)
    query = (0.5 * rng.standard_normal(shape)).astype(dtype)
    keys, values = (0.5 * rng.standard_normal((2, n, DIM))).astype(dtype)
    return query, keys, values


def cut(keys, values, at):
    return list(zip(np.split(keys, at), np.split(values, at), strict=True))


def whole_positions(name, query, n):
    """Positions that local-global attention needs for several queries."""
    if name != "local-global" or query.ndim == 1:
        return {}
    return {"positions": np.arange(query.shape[-2]) * 7 % n}


CUTS = {
    "random": [3, 19, 22],
    "one key each": list(range(1, N)),
    "empty ones": [0, 0, 5, 5, 30, N, N],
    "uncut": [],
    "halves": [20],
}


class Cache:
    """The protocol that a KVCache follows."""

    def __init__(self, keys, values):
        self._arrays = keys, values

    def attend(self, query, *, scale=None, return_lse=False):
        attention = ruvector.DotProductAttention(DIM, scale)
        return attention.compute(query, *self._arrays, return_lse=return_lse)
