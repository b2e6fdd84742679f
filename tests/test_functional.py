"""scaled_dot_product_attention and its relatives against the float64 reference."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from functional_cases import close, expected
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector._options import read_mask
from ruvector._problem import batches

pytestmark = pytest.mark.usefixtures("backend")
attention = ruvector.scaled_dot_product_attention


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def inputs(query, key, value=None, dtype=np.float32):
    shapes = query, key, key if value is None else value
    return [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def check(arrays, dtype="float32", **keywords):
    out, lse = attention(*arrays, **keywords, return_lse=True)
    wanted, wanted_lse, _ = expected(*arrays, **keywords)
    assert out.dtype == dtype
    assert lse.dtype == ("float64" if dtype == "float64" else "float32")
    close(out, wanted, dtype)
    close(lse, wanted_lse, lse.dtype)


@st.composite
def calls(draw):
    """Draw a call with any of the options, alone or together."""
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    key_heads = draw(st.sampled_from([h for h in (1, 2, 3, 6) if heads % h == 0]))
    num_queries, num_keys = draw(st.integers(1, 9)), draw(st.integers(0, 17))
    dim, dim_v = draw(st.integers(1, 17)), draw(st.integers(1, 17))
    batch = draw(st.sampled_from([(), (1,), (2,), (2, 3)]))
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    dtype = draw(st.sampled_from(["float32", "float64"]))
    arrays = [
        rng.standard_normal((*batch, *shape)).astype(dtype)
        for shape in (
            (heads, num_queries, dim),
            (key_heads, num_keys, dim),
            (key_heads, num_keys, dim_v),
        )
    ]
    sides = st.none() | st.integers(0, 6)
    options = {
        "is_causal": st.booleans(),
        "causal_alignment": st.sampled_from(["top_left", "bottom_right"]),
        "window": st.none() | st.tuples(sides, sides),
        "num_sink_tokens": st.integers(0, 4),
        "softcap": st.none() | st.floats(0.5, 20),
        "scale": st.none() | st.floats(-2, 2),
    }
    keywords = {name: draw(option) for name, option in options.items() if draw(st.booleans())}
    if draw(st.booleans()):
        keywords["sink_logits"] = rng.standard_normal(heads)
    if draw(st.booleans()):
        keywords["alibi_slopes"] = rng.random(heads)
    if draw(st.booleans()):
        full = (*batch, heads, num_queries, num_keys)
        kept = draw(st.lists(st.booleans(), min_size=len(full), max_size=len(full)))
        shape = [n if keep else 1 for n, keep in zip(full, kept, strict=True)]
        shape = shape[draw(st.integers(0, len(shape) - 1)) :]
        visible = rng.random(shape) < 0.7
        bias = np.where(visible, rng.standard_normal(shape), -np.inf)
        keywords["attn_mask"] = visible if draw(st.booleans()) else bias.astype(np.float32)
    return arrays, dtype, {**keywords, "enable_gqa": True}


@given(calls())
def test_all_options_together(call):
    arrays, dtype, keywords = call
    check(arrays, dtype, **keywords)


@given(calls())
def test_weights(call):
    (query, key, value), dtype, keywords = call
    weights = ruvector.attention_weights_from(query, key, **keywords)
    assert weights.dtype == dtype
    close(weights, expected(query, key, value, **keywords)[2], dtype)


@given(calls(), st.integers(1, 20))
def test_top_k(call, k):
    (query, key, value), dtype, keywords = call
    indices, weights = ruvector.top_k_keys(query, key, k, **keywords)
    wanted = expected(query, key, value, **keywords)[2]
    assert (indices.dtype, weights.dtype) == (np.int64, dtype)
    assert indices.shape == weights.shape == (*query.shape[:-1], k)
    ordered = np.sort(wanted, axis=-1)[..., ::-1][..., :k]
    found = ordered.shape[-1]
    close(weights[..., :found], ordered, dtype)
    assert not weights[..., found:].any()
    assert np.array_equal(indices == -1, weights == 0)
    chosen = np.take_along_axis(
        np.concatenate((wanted, np.zeros((*wanted.shape[:-1], 1))), axis=-1), indices, axis=-1
    )
    close(weights, chosen, dtype)


class TestShapes:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3, 2)], ids=str)
    def test_batch_axes(self, batch, dtype):
        arrays = inputs((*batch, 2, 5, 8), (*batch, 2, 7, 8), (*batch, 2, 7, 3), dtype)
        check(arrays, dtype)

    @pytest.mark.parametrize(
        "shapes",
        [
            ((5, 8), (7, 8), (7, 3)),
            ((5, 8), (4, 7, 8), (4, 7, 3)),
            ((4, 5, 8), (7, 8), (7, 3)),
            ((2, 4, 5, 8), (4, 7, 8), (7, 3)),
            ((2, 1, 4, 5, 8), (3, 1, 7, 8), (2, 3, 4, 7, 3)),
            ((1, 1, 5, 8), (3, 4, 7, 8), (1, 4, 7, 3)),
            ((6, 1, 2, 5, 8), (1, 4, 2, 7, 8), (6, 4, 2, 7, 3)),
        ],
        ids=str,
    )
    def test_broadcast(self, shapes):
        check(inputs(*shapes))

    def test_grouped_heads_broadcast_over_the_batch(self):
        arrays = inputs((3, 6, 5, 8), (1, 2, 7, 8), (3, 1, 7, 3))
        check(arrays, enable_gqa=True)

    @pytest.mark.parametrize(
        "order", [(0, 2, 1, 3), (2, 0, 1, 3), (1, 2, 0, 3), (2, 1, 0, 3)], ids=str
    )
    def test_any_order_of_the_leading_axes_in_memory(self, order):
        arrays = [
            np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
            for x in inputs((2, 3, 5, 8), (2, 3, 7, 8))
        ]
        check(arrays)

    def test_values_without_width(self):
        check(inputs((2, 3, 4), (2, 5, 4), (2, 5, 0)))

    @pytest.mark.parametrize("num_keys", [0, 3])
    def test_no_features_weigh_all_keys_alike(self, num_keys):
        arrays = inputs((2, 3, 0), (2, num_keys, 0), (2, num_keys, 4))
        check(arrays, scale=1.0)
        attention(*arrays)

    @pytest.mark.parametrize(
        ("query", "key"),
        [((2, 0, 4), (2, 3, 4)), ((0, 2, 3, 4), (0, 2, 5, 4)), ((0, 3, 4), (0, 5, 4))],
    )
    def test_nothing_to_compute(self, query, key):
        q, k, v = inputs(query, key)
        out, lse = attention(q, k, v, return_lse=True)
        assert (out.shape, lse.shape) == (query, query[:-1])
        assert ruvector.attention_weights_from(q, k).shape == (*query[:-1], key[-2])
        assert ruvector.top_k_keys(q, k, 2)[0].shape == (*query[:-1], 2)

    def test_no_keys(self):
        check(inputs((2, 3, 4), (2, 0, 4)))
        check(inputs((2, 3, 4), (2, 0, 4)), sink_logits=[0.5, -1.0])

    def test_lists(self):
        out = attention([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[1.0], [0.0]], scale=0)
        assert out.dtype == np.float32
        assert out.tolist() == [[0.5]]


class TestBatches:
    def chunks(self, batch, *arrays):
        return list(batches(batch, arrays))

    def test_contiguous_axes_are_one(self):
        x = normal(2, 3, 4, 5)
        ((chunk, none),) = self.chunks((2, 3, 4), x, None)
        assert (chunk.shape, none) == ((24, 5), None)
        assert np.shares_memory(chunk, x)

    def test_repeated_axes_are_one(self):
        x, y = np.broadcast_to(normal(5), (2, 3, 5)), np.broadcast_to(normal(3, 5), (1, 3, 5))
        ((chunk,),) = self.chunks((2, 3), x)
        assert (chunk.shape, chunk.strides) == ((6, 5), (0, 4))
        ((chunk,),) = self.chunks((1, 3), y)
        assert chunk.shape == (3, 5)

    def test_what_is_left_over_is_a_loop_over_the_shorter_axes(self):
        x = normal(2, 3, 4, 5)
        y = np.broadcast_to(normal(3, 1, 5), (2, 3, 4, 5))
        chunks = self.chunks((2, 3, 4), x, y)
        assert len(chunks) == 6
        got = np.stack([chunk for chunk, _ in chunks]).reshape(x.shape)
        assert np.array_equal(got, x)
        for chunk in chunks:
            assert all(np.shares_memory(*pair) for pair in zip(chunk, (x, y), strict=True))

    def test_the_longest_axis_stays_whole(self):
        x = normal(5, 2, 3)[:, ::2]
        x = np.broadcast_to(x, (5, 4, 3))
        chunks = self.chunks((5, 4), x)
        assert [chunk.shape for (chunk,) in chunks] == [(5, 3)] * 4


class TestDtypes:
    def test_mixed_inputs_promote_and_the_output_is_the_querys(self):
        q, k, v = inputs((2, 3, 8), (2, 5, 8), dtype=np.float64)
        for dtype in (np.float16, np.float32, np.float64):
            query = q.astype(dtype)
            out, lse = attention(query, k, v, return_lse=True)
            wanted, wanted_lse, _ = expected(query, k, v)
            assert out.dtype == dtype
            assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
            close(out, wanted, dtype)
            close(lse, wanted_lse, lse.dtype)

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        arrays = [x.astype(ml_dtypes.bfloat16) for x in inputs((2, 3, 8), (2, 5, 8))]
        wanted, wanted_lse, _ = expected(*(x.astype(np.float64) for x in arrays))
        for query, key in ((0, 0), (0, 1), (1, 0)):
            q = arrays[0].astype(np.float32) if query else arrays[0]
            k = arrays[1].astype(np.float32) if key else arrays[1]
            out, lse = attention(q, k, arrays[2], return_lse=True)
            assert (out.dtype, lse.dtype) == (q.dtype, np.float32)
            np.testing.assert_allclose(out.astype(float), wanted, rtol=2e-2, atol=2e-2)
            np.testing.assert_allclose(lse, wanted_lse, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_a_float_mask_of_any_dtype(self, dtype):
        bias = normal(3, 5, dtype=dtype)
        bias[1, 2] = -np.inf
        check(inputs((2, 3, 8), (2, 5, 8)), attn_mask=bias)

    def test_a_broadcast_mask_is_not_repeated_in_memory(self):
        scores = (10**6, 10**6)
        mask = read_mask(np.broadcast_to(np.zeros(1), scores), "mask", np.dtype(np.float32))
        assert (mask.dtype, mask.shape, mask.strides) == (np.float32, scores, (0, 0))


class TestOut:
    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
    def test_any_strides(self, batch):
        arrays = inputs((*batch, 2, 5, 8), (*batch, 2, 7, 8), (*batch, 2, 7, 6))
        wanted = attention(*arrays)
        shape = wanted.shape
        swapped = np.empty((*shape[:-3], shape[-2], shape[-3], shape[-1]), np.float32)
        for out in (
            np.empty(shape, np.float32),
            np.empty((*shape[:-1], 12), np.float32)[..., :6],
            np.empty((*shape[:-1], 12), np.float32)[..., ::-2],
            np.empty((2 * shape[0], *shape[1:]), np.float32)[::-2],
            swapped.swapaxes(-2, -3),
        ):
            assert attention(*arrays, out=out) is out
            np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)

    def test_two_axes(self):
        arrays = inputs((5, 8), (7, 8))
        out = np.empty((5, 8), np.float32)
        got, lse = attention(*arrays, out=out, return_lse=True)
        assert got is out
        assert lse.shape == (5,)
        assert np.array_equal(out, attention(*arrays))

    @pytest.mark.parametrize("place", range(4))
    def test_may_overlap_an_input(self, place):
        arrays = [*inputs((2, 3, 7, 8), (2, 3, 7, 8)), normal(2, 3, 7, 8, seed=5)]
        mask = arrays[3][..., :7]
        wanted = attention(*arrays[:3], mask)
        out = arrays[place]
        attention(*arrays[:3], mask, out=out)
        np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("name", ["sink_logits", "alibi_slopes"])
    def test_may_overlap_numbers_per_head(self, name):
        arrays = inputs((2, 3, 7, 8), (2, 3, 7, 8))
        out = normal(2, 3, 7, 8, seed=5)
        numbers = out[0, 0, 0, :3]
        wanted = attention(*arrays, **{name: numbers})
        attention(*arrays, **{name: numbers}, out=out)
        np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)

    def test_may_be_a_shifted_input(self):
        buffer = normal(3, 8, 8)
        query, key, value = buffer[:, :-1], normal(3, 7, 8, seed=1), normal(3, 7, 8, seed=2)
        wanted = attention(query, key, value)
        attention(query, key, value, out=buffer[:, 1:])
        np.testing.assert_allclose(buffer[:, 1:], wanted, rtol=1e-6, atol=1e-6)


def test_signature():
    assert str(inspect.signature(attention)).split(" -> ")[0] == (
        "(query: 'ArrayLike', key: 'ArrayLike', value: 'ArrayLike', "
        "attn_mask: 'ArrayLike | None' = None, dropout_p: 'float' = 0.0, "
        "is_causal: 'bool' = False, *, scale: 'float | None' = None, "
        "enable_gqa: 'bool' = False, causal_alignment: 'Alignment' = 'top_left', "
        "window: 'Window | None' = None, num_sink_tokens: 'int' = 0, "
        "sink_logits: 'ArrayLike | None' = None, softcap: 'float | None' = None, "
        "alibi_slopes: 'ArrayLike | None' = None, cu_seqlens_q: 'ArrayLike | None' = None, "
        "cu_seqlens_k: 'ArrayLike | None' = None, return_lse: 'bool' = False, "
        "out: 'Array | None' = None)"
    )


def test_top_k_of_a_single_query():
    query, keys = normal(8), normal(20, 8, seed=1)
    indices, weights = ruvector.top_k_keys(query, keys, 3)
    many, many_weights = ruvector.top_k_keys(query[None], keys, 3)
    assert (indices.shape, weights.shape) == ((3,), (3,))
    assert np.array_equal(indices, many[0])
    assert np.array_equal(weights, many_weights[0])
    mask = np.arange(20) == 5
    assert ruvector.top_k_keys(query, keys, 2, mask)[0].tolist() == [5, -1]


class TestRagged:
    def test_equals_sequence_after_sequence(self):
        q, k, v = inputs((9, 4, 8), (11, 2, 8), (11, 2, 3))
        cu_q, cu_k = [0, 0, 4, 5, 9], [0, 3, 3, 9, 11]
        mask = normal(4, 9, 11) > -0.5
        keywords = {
            "is_causal": True,
            "causal_alignment": "bottom_right",
            "window": (3, None),
            "sink_logits": [0.0, 1.0, 2.0, 3.0],
            "enable_gqa": True,
        }
        out, lse = attention(
            q, k, v, mask, **keywords, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_lse=True
        )
        assert (out.shape, lse.shape) == ((9, 4, 3), (9, 4))
        for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
            part = [x.swapaxes(0, 1) for x in (q[a:b], k[c:d], v[c:d])]
            wanted, wanted_lse, _ = expected(*part, mask[:, a:b, c:d], **keywords)
            close(out[a:b].swapaxes(0, 1), wanted)
            close(lse[a:b].T, wanted_lse)

    @pytest.mark.peers
    def test_boundaries_of_any_integer_kind(self):
        torch = pytest.importorskip("torch")
        q, k, v = inputs((4, 2, 8), (5, 2, 8))
        first = attention(q, k, v, cu_seqlens_q=[0, 1, 4], cu_seqlens_k=[0, 2, 5])
        for convert in (np.int32, np.uint8, lambda x: torch.tensor(x, dtype=torch.int32)):
            cu_q, cu_k = convert([0, 1, 4]), convert([0, 2, 5])
            again = attention(q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
            assert np.array_equal(first, again)

    def test_no_sequences(self):
        q, k, v = inputs((0, 2, 8), (0, 2, 8))
        out = attention(q, k, v, cu_seqlens_q=[0], cu_seqlens_k=[0])
        assert out.shape == (0, 2, 8)

    def test_out(self):
        q, k, v = inputs((4, 2, 8), (5, 2, 8))
        sequences = {"cu_seqlens_q": [0, 1, 4], "cu_seqlens_k": [0, 2, 5]}
        wanted = attention(q, k, v, **sequences)
        out = np.empty((4, 2, 8), np.float32)
        assert attention(q, k, v, **sequences, out=out) is out
        assert np.array_equal(out, wanted)
