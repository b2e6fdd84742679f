"""A state machine: a cache and a plain list of rows take the same steps."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from cache_cases import ATOL, DTYPES, RTOL, attended, stored
from hypothesis import settings, strategies
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import ruvector
from ruvector.stream import KVCache

HEADS, DIM, DIM_V = 2, 6, 4
seeds = strategies.integers(0, 2**16)


class Machine(RuleBasedStateMachine):
    """Rows are kept as what they stand for once stored."""

    @initialize(
        dtype=strategies.sampled_from(DTYPES),
        window=strategies.none() | strategies.integers(1, 12),
        sinks=strategies.integers(0, 3),
        capacity=strategies.none() | strategies.integers(15, 30),
    )
    def start(self, dtype, window, sinks, capacity):
        self.dtype, self.window, self.sinks, self.capacity = dtype, window, sinks, capacity
        self.cache = KVCache(
            DIM,
            DIM_V,
            capacity,
            dtype,
            num_heads=HEADS,
            window=window,
            num_sink_tokens=sinks,
        )
        self.keys, self.values = np.empty((0, DIM)), np.empty((0, DIM_V))

    def keep(self, rows):
        self.keys, self.values = self.keys[rows], self.values[rows]

    @rule(seed=seeds, count=strategies.integers(0, 20) | strategies.just(None))
    def append(self, seed, count):
        rng = np.random.default_rng(seed)
        n = 1 if count is None else count
        key, value = (
            rng.standard_normal((n, width)).astype(np.float32) for width in (DIM, DIM_V)
        )
        full = self.window is None and self.capacity is not None
        given = (key[0], value[0]) if count is None else (key, value)
        if full and len(self.keys) + n > self.capacity:
            with pytest.raises(ruvector.InvalidConfigError):
                self.cache.append(*given)
            return
        self.cache.append(*given)
        self.keys = np.concatenate([self.keys, stored(key, self.dtype, HEADS)])
        self.values = np.concatenate([self.values, stored(value, self.dtype, HEADS)])
        if self.window is not None:
            total = len(self.keys)
            rows = range(total)
            self.keep([i for i in rows if i < self.sinks or i >= total - self.window])

    @rule(seed=seeds, place=strategies.integers(0, 2))
    def fail(self, seed, place):
        key = np.random.default_rng(seed).standard_normal((3, DIM))
        key[place, seed % DIM] = np.nan if self.dtype == "int8" else 1e39
        with pytest.raises(ruvector.InvalidConfigError):
            self.cache.append(key, np.zeros((3, DIM_V)))

    @rule(share=strategies.floats(0, 1))
    def truncate(self, share):
        length = round(share * len(self.keys))
        self.cache.truncate(length)
        self.keep(slice(length))

    @rule(share=strategies.floats(0, 1))
    def evict(self, share):
        most = max(0, len(self.keys) - self.sinks)
        count = round(share * most)
        self.cache.evict(count)
        rows = range(len(self.keys))
        self.keep([i for i in rows if i < self.sinks or i >= self.sinks + count])
        with pytest.raises(ruvector.InvalidConfigError):
            self.cache.evict(most - count + 1)

    @rule(seed=seeds)
    def evict_some(self, seed):
        gone = np.random.default_rng(seed).random(len(self.keys)) < 0.3
        self.cache.evict(gone if seed % 2 else np.flatnonzero(gone))
        self.keep(~gone)

    @precondition(lambda self: len(self.keys) > 20)
    @rule()
    def clear(self):
        self.cache.clear()
        self.keep(slice(0))

    @rule(how=strategies.sampled_from([copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]))
    def copied(self, how):
        other, self.cache = self.cache, how(self.cache)
        other.clear()

    @rule()
    def snapshot(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache"
            self.cache.snapshot(path)
            self.cache = KVCache.restore(path)
            assert self.cache.path == str(path)
            self.cache.keys.sum()

    @rule(seed=seeds, m=strategies.integers(1, 9), causal=strategies.booleans())
    def attend(self, seed, m, causal):
        query = np.random.default_rng(seed).standard_normal((m, DIM)).astype(np.float32)
        out, lse = self.cache.attend(query, causal=causal, return_lse=True)
        want, want_lse, _ = attended(query, self.keys, self.values, HEADS, causal=causal)
        np.testing.assert_allclose(out, want, rtol=RTOL, atol=ATOL)
        np.testing.assert_allclose(lse, want_lse, rtol=RTOL, atol=ATOL)

    @invariant()
    def holds_the_same_rows(self):
        if not hasattr(self, "cache"):
            return
        assert len(self.cache) == len(self.keys)
        np.testing.assert_array_equal(self.cache.keys, self.keys.astype(np.float32))
        np.testing.assert_array_equal(self.cache.values, self.values.astype(np.float32))


@pytest.mark.usefixtures("backend")
def test_same_steps_same_rows():
    # The profile's settings: the same steps in every run.
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=20, stateful_step_count=30)
    )
