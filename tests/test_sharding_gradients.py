"""The gradients of attention over a memory in shards, against those over the whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from batch_cases import DIM, make
from numpy.testing import assert_allclose, assert_array_equal
from shard_cases import CUTS, Cache, N, arrays, cut

from ruvector import (
    DimensionMismatchError,
    InvalidConfigError,
)
from ruvector.sharding import sharded_attention, sharded_attention_backward


@pytest.mark.usefixtures("backend")
class TestGradients:
    @pytest.mark.parametrize("name", ["dot-product", "multi-head", "flash", "graph-rope"])
    @pytest.mark.parametrize("at", CUTS.values(), ids=CUTS)
    def test_equal_those_of_the_whole(self, name, at):
        self.check(name, at, {}, None)

    def test_through_the_log_sum_exp_and_a_float_mask(self):
        mask = np.random.default_rng(5).standard_normal(N)
        self.check("dot-product", [4, 4, 25], {"mask": mask}, np.linspace(-1, 1, 5))

    def test_with_a_bool_mask_by_row(self):
        mask = np.random.default_rng(5).random((5, N)) < 0.5
        mask[2] = False
        self.check("multi-head", [4, 4, 25], {"mask": mask}, None)

    def test_local_global(self):
        self.check("local-global", [9, 17], {"positions": [0, 9, 17, 30, 39]}, None)

    def test_on_a_pool(self):
        with ThreadPoolExecutor(2) as pool:
            self.check("dot-product", [9, 17], {}, None, executor=pool)

    def check(self, name, at, options, grad_lse, **where):
        query, keys, values = arrays(m=5, dtype=np.float64)
        attention = make(name)
        grad = np.random.default_rng(4).standard_normal((5, DIM))
        expected_output, expected = attention.compute_with_gradients(
            query, keys, values, grad, grad_lse=grad_lse, **options
        )
        shards = cut(keys, values, at)
        output, lse = sharded_attention(
            query, shards, attention=attention, return_lse=True, **options, **where
        )
        grads = sharded_attention_backward(
            query, shards, output, lse, grad,
            grad_lse=grad_lse, attention=attention, **options, **where,
        )  # fmt: skip
        assert_allclose(output, expected_output, atol=1e-12)
        assert_allclose(grads.query, expected.query, atol=1e-11)
        assert [key.shape for key, _ in grads.shards] == [key.shape for key, _ in shards]
        assert_allclose(np.vstack([k for k, _ in grads.shards]), expected.keys, atol=1e-11)
        assert_allclose(np.vstack([v for _, v in grads.shards]), expected.values, atol=1e-11)
        if expected.mask is None:
            assert grads.mask is None
        else:
            assert_allclose(grads.mask, expected.mask, atol=1e-11)

    def test_kept_where_the_caller_says(self):
        query, keys, values = arrays()
        shards = cut(keys, values, [7])
        output, lse = sharded_attention(query, shards, return_lse=True)
        wanted = sharded_attention_backward(query, shards, output, lse, np.ones(DIM))
        out = [(np.empty_like(k), np.empty_like(v)) for k, v in shards]
        grads = sharded_attention_backward(query, shards, output, lse, np.ones(DIM), out=out)
        for pair, given_pair, other in zip(grads.shards, out, wanted.shards, strict=True):
            for x, y, z in zip(pair, given_pair, other, strict=True):
                assert x is y
                assert_array_equal(x, z)

    def test_errors(self):
        query, keys, values = arrays()
        shards = cut(keys, values, [7])
        output, lse = sharded_attention(query, shards, return_lse=True)
        with pytest.raises(DimensionMismatchError, match=r"grad_output must have shape \(8,\)"):
            sharded_attention_backward(query, shards, output, lse, np.ones(3))
        with pytest.raises(DimensionMismatchError, match=r"lse must have shape \(\), got"):
            sharded_attention_backward(query, shards, output, output, output)
        with pytest.raises(DimensionMismatchError, match="out must hold 2 pairs, one per sh"):
            sharded_attention_backward(query, shards, output, lse, output, out=[])
        with pytest.raises(DimensionMismatchError, match=r"out\[0\] must hold writeable arra"):
            sharded_attention_backward(query, shards, output, lse, output, out=shards[::-1])
        with pytest.raises(InvalidConfigError, match="must be softmax attention for gradient"):
            sharded_attention_backward(
                query, shards, output, lse, output, attention=make("hyperbolic")
            )
        with pytest.raises(InvalidConfigError, match="must be pairs of arrays for gradients"):
            sharded_attention_backward(query, [Cache(keys, values)], output, lse, output)
