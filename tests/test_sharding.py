"""Attention over a memory in shards, against attention over the whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from batch_cases import DIM, TYPES, make, type_of
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from shard_cases import CUTS, MERGING, Cache, N, arrays, cut, whole_positions

import ruvector
from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    InvalidMaskError,
)
from ruvector._shards import merge_tree
from ruvector.sharding import sharded_attention


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", MERGING)
class TestEveryFamilyThatMerges:
    @pytest.mark.parametrize("m", [None, 1, 5, (2, 3)], ids=str)
    @pytest.mark.parametrize("at", CUTS.values(), ids=CUTS)
    def test_equals_the_whole(self, name, at, m):
        query, keys, values = arrays(m=m)
        attention = make(name)
        options = whole_positions(name, query, N)
        expected, lse = attention.compute(query, keys, values, return_lse=True, **options)
        output, merged = sharded_attention(
            query, cut(keys, values, at), attention=attention, return_lse=True, **options
        )
        assert output.dtype == np.float32
        assert merged.shape == lse.shape
        assert_allclose(output, expected, rtol=2e-5, atol=2e-6)
        assert_allclose(merged, lse, rtol=1e-5, atol=1e-5)

    def test_masks_cover_all_shards(self, name):
        query, keys, values = arrays(m=5)
        attention = make(name)
        rng = np.random.default_rng(3)
        keys[7], values[9] = np.nan, np.inf
        hidden = rng.random(N) < 0.4
        hidden[[7, 9]] = True
        masks = [~hidden, np.where(hidden, -np.inf, rng.random(N)).astype(np.float32)]
        if name != "linear":
            masks += [np.broadcast_to(mask, (5, N)) for mask in masks]
        options = whole_positions(name, query, N)
        for mask in masks:
            expected = attention.compute(query, keys, values, mask=mask, **options)
            output = sharded_attention(
                query, cut(keys, values, [5, 8, 30]), attention=attention, mask=mask, **options
            )
            assert_allclose(output, expected, rtol=2e-5, atol=2e-6)

    def test_nothing_is_seen(self, name):
        query, keys, values = arrays(m=5)
        attention, none = make(name), np.zeros(N, bool)
        options = whole_positions(name, query, N)
        expected, lse = attention.compute(
            query, keys, values, mask=none, return_lse=True, **options
        )
        shards = cut(keys, values, [5, 20])
        output, merged = sharded_attention(
            query, shards, attention=attention, mask=none, return_lse=True, **options
        )
        assert_allclose(output, expected, atol=1e-7)
        assert_array_equal(merged, lse)
        if options:
            return
        output, merged = sharded_attention(
            query[0], cut(keys[:0], values[:0], [0]), attention=attention, return_lse=True
        )
        assert_allclose(output, expected[0], atol=1e-7)
        assert_array_equal(merged, lse[0])
        assert output.dtype == np.float32

    @pytest.mark.parametrize("dtype", TYPES)
    def test_types(self, name, dtype):
        dtype = type_of(dtype)
        query, keys, values = arrays(dtype=dtype)
        attention = make(name)
        if name in ("edge-featured", "linear") and dtype == np.float64:
            attention = make(name, dtype="float64")
        output = sharded_attention(query, cut(keys, values, [9, 22]), attention=attention)
        expected = attention.compute(query, keys, values)
        assert output.dtype == dtype
        tolerance = 1e-12 if dtype == np.float64 else 2e-2
        assert_allclose(
            output.astype(np.float64), expected.astype(np.float64), tolerance, tolerance
        )

    def test_the_worker_and_the_order_do_not_matter(self, name):
        query, keys, values = arrays(m=5)
        shards, attention = cut(keys, values, [1, 2, 9, 31]), make(name)
        options = whole_positions(name, query, N)
        alone = sharded_attention(query, shards, attention=attention, **options)
        with ThreadPoolExecutor(3) as pool:
            for _ in range(3):
                output = sharded_attention(
                    query, shards, attention=attention, executor=pool, **options
                )
                assert_array_equal(output, alone)


@pytest.mark.usefixtures("backend")
class TestPositions:
    """Causality and windows count over all shards."""

    @given(
        data=st.data(),
        causal=st.booleans(),
        left=st.none() | st.integers(0, 12),
        right=st.none() | st.integers(0, 12),
        sinks=st.integers(0, 9),
        m=st.integers(1, 9),
    )
    def test_as_the_function_over_the_whole(self, data, causal, left, right, sinks, m):
        query, keys, values = arrays(n=30, m=m)
        at = sorted(data.draw(st.lists(st.integers(0, 30), max_size=6)))
        heads = data.draw(st.sampled_from([1, 2]))
        top_left = data.draw(st.booleans())
        expected, lse = ruvector.scaled_dot_product_attention(
            *(x.reshape(len(x), heads, -1).swapaxes(0, 1) for x in (query, keys, values)),
            is_causal=causal,
            window=(left, right),
            num_sink_tokens=sinks,
            causal_alignment="top_left" if top_left else "bottom_right",
            return_lse=True,
        )
        output, merged = sharded_attention(
            query,
            cut(keys, values, at),
            attention=ruvector.MultiHeadAttention(DIM, heads),
            is_causal=causal,
            window=(left, right),
            num_sink_tokens=sinks,
            positions=np.arange(m) if top_left else None,
            return_lse=True,
        )
        assert_allclose(output, expected.swapaxes(0, 1).reshape(m, DIM), rtol=2e-5, atol=2e-6)
        assert_allclose(merged.reshape(m, heads), lse.T, rtol=1e-5, atol=1e-5)

    def test_flash_brings_its_own_rule(self):
        query, keys, values = arrays(m=6)
        attention = ruvector.FlashAttention(DIM, causal=True)
        output = sharded_attention(query, cut(keys, values, [36, 38]), attention=attention)
        expected = attention.compute(query, keys, values)
        assert_allclose(output, expected, rtol=2e-5, atol=2e-6)

    @given(window=st.integers(0, 20), tokens=st.integers(0, 12), data=st.data())
    def test_local_global_as_many_queries_as_keys(self, window, tokens, data):
        query, keys, values = arrays(n=15, m=15)
        at = sorted(data.draw(st.lists(st.integers(0, 15), max_size=5)))
        attention = ruvector.LocalGlobalAttention(DIM, window, tokens)
        output = sharded_attention(query, cut(keys, values, at), attention=attention)
        expected = attention.compute(query, keys, values)
        assert_allclose(output, expected, rtol=2e-5, atol=2e-6)


class TestShards:
    def test_caches_beside_arrays(self):
        query, keys, values = arrays(m=3)
        first, second = cut(keys, values, [15])
        expected, lse = ruvector.DotProductAttention(DIM).compute(
            query, keys, values, return_lse=True
        )
        for shards in (
            [Cache(*first), second],
            [first, Cache(*second)],
            [Cache(*first), Cache(*second)],
        ):
            output, merged = sharded_attention(query, shards, return_lse=True)
            assert_allclose(output, expected, atol=1e-6)
            assert_allclose(merged, lse, atol=1e-5)
        with pytest.raises(InvalidConfigError, match="caches take no mask"):
            sharded_attention(query, [Cache(*first), second], mask=np.ones(25, bool))
        with pytest.raises(InvalidConfigError, match="shards of known lengths"):
            sharded_attention(query, [Cache(*first), second], is_causal=True)
        for name in ("hyperbolic", "linear", "graph-rope"):
            with pytest.raises(InvalidConfigError, match="must be dot-product or multi-head"):
                sharded_attention(query[0], [second, Cache(*first)], attention=make(name))

    def test_a_scale_reaches_caches(self):
        query, keys, values = arrays(m=3)
        first, second = cut(keys, values, [15])
        attention = ruvector.DotProductAttention(DIM, scale=3.0)
        output = sharded_attention(query, [Cache(*first), second], attention=attention)
        assert_allclose(output, attention.compute(query, keys, values), atol=1e-6)

    def test_key_value_caches(self):
        stream = pytest.importorskip("ruvector.stream")
        query, keys, values = arrays(m=3)
        caches = []
        for at in (slice(0, 15), slice(15, 15), slice(15, N)):
            caches.append(stream.KVCache(DIM, num_heads=2))
            caches[-1].append(keys[at], values[at])
        attention = ruvector.MultiHeadAttention(DIM, 2)
        expected, lse = attention.compute(query, keys, values, return_lse=True)
        output, merged = sharded_attention(query, caches, attention=attention, return_lse=True)
        assert_allclose(output, expected, atol=1e-6)
        assert_allclose(merged, lse, atol=1e-5)

    def test_names_of_files(self, tmp_path):
        query, keys, values = arrays(m=3)
        np.save(tmp_path / "k.npy", keys[:15])
        np.save(tmp_path / "v.npy", values[:15])
        named = (tmp_path / "k.npy", str(tmp_path / "v.npy"))
        output = sharded_attention(query, [named, (keys[15:], values[15:])])
        expected = ruvector.DotProductAttention(DIM).compute(query, keys, values)
        assert_allclose(output, expected, atol=1e-6)

    def test_values_of_another_width(self):
        query, keys, values = arrays(m=3)
        output = sharded_attention(query, cut(keys, values[:, :3], [0, 20]))
        expected = ruvector.DotProductAttention(DIM).compute(query, keys, values[:, :3])
        assert_allclose(output, expected, atol=1e-6)
        empty = sharded_attention(query, [(keys[:0], values[:0, :3])])
        assert_array_equal(empty, np.zeros((3, 3)))

    def test_batches_of_memories(self):
        query, *_ = arrays(m=(2, 3))
        keys, values = np.random.default_rng(1).standard_normal((2, 2, 20, DIM))
        shards = [(keys[:, part], values[:, part]) for part in (slice(4), slice(4, None))]
        output = sharded_attention(query, shards)
        expected = ruvector.DotProductAttention(DIM).compute(query, keys, values)
        assert_allclose(output, expected, atol=1e-6)

    def test_tree_merges_neighbours_in_order(self):
        seen = []

        def merge(a, b):
            seen.append((a, b))
            return a + b

        assert merge_tree(list("abcde"), merge) == "abcde"
        assert seen == [("a", "b"), ("c", "d"), ("ab", "cd"), ("abcd", "e")]

    def test_threads_of_a_shard(self):
        class Counting(Cache):
            def attend(self, query, *, return_lse=False):
                counted.append(ruvector.get_num_threads())
                return super().attend(query, return_lse=return_lse)

        counted = []
        query, keys, values = arrays()
        shard = Counting(keys, values)
        with ThreadPoolExecutor(1) as pool:
            sharded_attention(query, [shard], executor=pool)
            sharded_attention(query, [shard], executor=pool, num_threads=3)
        sharded_attention(query, [shard])
        assert counted == [1, 3, ruvector.get_num_threads()]


class TestErrors:
    def test_what_does_not_merge(self):
        query, keys, values = arrays(m=2)
        shards = cut(keys, values, [3])
        averaging = ruvector.EdgeFeaturedAttention(
            node_dim=DIM, edge_dim=1, num_heads=2, concat_heads=False
        )
        for attention in (make("moe"), averaging, make("linear", causal=True)):
            with pytest.raises(InvalidConfigError, match="over parts of a memory merge, got"):
                sharded_attention(query, shards, attention=attention)
        frechet = ruvector.HyperbolicAttention(DIM, aggregation="frechet")
        with pytest.raises(InvalidConfigError, match="aggregation must be 'midpoint'"):
            sharded_attention(query, shards, attention=frechet)

    def test_options_of_other_families(self):
        query, keys, values = arrays(m=2)
        shards = cut(keys, values, [3])
        for options in ({"is_causal": True}, {"window": (1, 1)}, {"positions": [0, 1]}):
            with pytest.raises(InvalidConfigError, match="are for dot-product, multi-head"):
                sharded_attention(query, shards, attention=make("hyperbolic"), **options)
        with pytest.raises(InvalidConfigError, match="are for dot-product, multi-head"):
            sharded_attention(query, shards, attention=make("local-global"), is_causal=True)
        with pytest.raises(InvalidConfigError, match="positions must be given for 2 queries"):
            sharded_attention(query, shards, attention=make("local-global"))

    def test_shapes(self):
        query, keys, values = arrays(m=2)
        with pytest.raises(EmptyInputError, match="shards must hold at least one"):
            sharded_attention(query, [])
        with pytest.raises(TypeError, match=r"shards\[0\] must be a pair \(keys, values\)"):
            sharded_attention(query, [keys])
        with pytest.raises(DimensionMismatchError, match=r"shards\[1\] must hold keys of sha"):
            sharded_attention(query, [(keys, values), (keys[0], values[0])])
        with pytest.raises(DimensionMismatchError, match=r"shards\[1\] must have values of w"):
            sharded_attention(query, [(keys, values), (keys, values[:, :3])])
        with pytest.raises(DimensionMismatchError, match=r"shards\[0\] must have keys of wid"):
            sharded_attention(query, [(keys[:, :3], values)])
        with pytest.raises(DimensionMismatchError, match=r"query must have shape \(8,\)"):
            sharded_attention(query[:, :3], [(keys, values)], attention=make("flash"))
        with pytest.raises(InvalidMaskError, match="mask must have 40 entries on its last ax"):
            sharded_attention(query, [(keys, values)], mask=np.ones(39, bool))
        with pytest.raises(InvalidConfigError, match="num_threads must be an integer of at"):
            sharded_attention(query, [(keys, values)], num_threads=0)
        with pytest.raises(TypeError, match="attention must be an Attention, got str"):
            sharded_attention(query, [(keys, values)], attention="flash")
