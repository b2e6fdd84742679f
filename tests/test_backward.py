"""attention_backward and compute_with_gradients: axes, dtypes, broadcasting, errors."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import reference_backward
from functional_cases import expected as expected_forward
from hypothesis import given
from hypothesis import strategies as st

import ruvector
from ruvector import _backward

pytestmark = pytest.mark.usefixtures("backend")

TOLERANCES = {"float32": 3e-5, "float64": 1e-10, "float16": 5e-3}


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def differences(loss, array, step=1e-6):
    """Differentiate a scalar function by moving the entries of one float64 array."""
    result = np.empty(array.shape)
    for index in np.ndindex(array.shape):
        here = array[index]
        array[index] = here + step
        above = loss()
        array[index] = here - step
        result[index] = (above - loss()) / (2 * step)
        array[index] = here
    return result


def both(query, key, value, *, seed=5, with_lse=True, **keywords):
    """Run forward and backward; return the gradients and what was differentiated."""
    output, lse = ruvector.scaled_dot_product_attention(
        query, key, value, return_lse=True, **keywords
    )
    grad_output = normal(*output.shape, seed=seed, dtype=output.dtype)
    grad_lse = normal(*lse.shape, seed=seed + 1, dtype=lse.dtype) if with_lse else None
    gradients = ruvector.attention_backward(
        query, key, value, output, lse, grad_output, grad_lse=grad_lse, **keywords
    )
    return gradients, grad_output, grad_lse


def check(query, key, value, *, with_lse=True, **keywords):
    """Compare the gradients in everything with central differences of the formula."""
    gradients, grad_output, grad_lse = both(query, key, value, with_lse=with_lse, **keywords)
    dtype = np.result_type(query, key, value).name
    arrays = {"query": query, "key": key, "value": value}
    for name in ("attn_mask", "alibi_slopes", "sink_logits"):
        x = keywords.get(name)
        if x is None or x.dtype == bool:
            assert getattr(gradients, name) is None
        else:
            arrays[name] = x
    moved = {name: x.astype(np.float64) for name, x in arrays.items()}

    def loss():
        out, lse, _ = expected_forward(**{**keywords, **moved})
        value = (out * grad_output.astype(np.float64)).sum()
        return value if grad_lse is None else value + (lse * grad_lse).sum()

    for name, x in arrays.items():
        got = getattr(gradients, name)
        assert got.shape == x.shape, name
        assert got.dtype == x.dtype, name
        true = differences(loss, moved[name])
        bound = max(TOLERANCES[dtype], 1e-7) * max(1, np.abs(true).max(initial=0))
        np.testing.assert_allclose(got, true, rtol=0, atol=bound, err_msg=name)
    return gradients


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_every_option_together(dtype):
    check(
        normal(1, 4, 3, 4, dtype=dtype),
        normal(1, 2, 5, 4, seed=1, dtype=dtype),
        normal(1, 2, 5, 3, seed=2, dtype=dtype),
        attn_mask=normal(3, 5, seed=3, dtype=dtype),
        is_causal=True,
        enable_gqa=True,
        causal_alignment="bottom_right",
        window=(3, None),
        num_sink_tokens=1,
        scale=0.7,
        softcap=1.5,
        alibi_slopes=np.array([0.5, 0.25, 0.1, 0.0], dtype),
        sink_logits=np.array([0.0, 1.0, -1.0, 0.3], dtype),
    )


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 3), (5, 3)),
        ((2, 4, 3), (2, 5, 3)),
        ((3, 4, 3), (5, 3)),
        ((4, 3), (3, 5, 3)),
        ((3, 4, 3), (1, 5, 3)),
        ((2, 1, 4, 3), (1, 3, 5, 3)),
        ((2, 3, 2, 4, 3), (1, 3, 2, 5, 3)),
        ((2, 3, 2, 4, 3), (3, 1, 5, 3)),
        ((2, 1, 2, 4, 3), (3, 2, 5, 3)),
        ((2, 1, 2, 1, 3, 2), (1, 3, 1, 2, 4, 2)),
    ],
    ids=str,
)
def test_broadcast_axes_are_summed(shapes):
    query, key = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    check(query, key, normal(*key.shape[:-1], 2, seed=2))
    # Values of other batch axes than the keys.
    check(query, key, normal(*shapes[1][-2:-1], 2, seed=2))


def test_values_of_one_head_for_keys_of_several():
    check(normal(2, 2, 4, 3), normal(2, 2, 5, 3, seed=1), normal(1, 1, 5, 2, seed=2))


@pytest.mark.parametrize(
    "shape",
    [
        (4, 5),
        (1, 5),
        (4, 1),
        (1, 1),
        (5,),
        (3, 4, 5),
        (3, 1, 1),
        (2, 3, 4, 5),
        (2, 1, 1, 5),
        (2, 1, 4, 1),
        (1, 3, 4, 5),
        (1, 1, 1, 1),
    ],
    ids=str,
)
def test_mask_gradient_has_the_shape_of_the_mask(shape):
    arrays = normal(2, 3, 4, 2), normal(2, 3, 5, 2, seed=1), normal(2, 3, 5, 2, seed=2)
    check(*arrays, attn_mask=normal(*shape, seed=3))
    check(*arrays, attn_mask=normal(*shape, seed=3) > -0.5, with_lse=False)


@pytest.mark.parametrize(
    "shape", [(2, 3, 1, 4, 5), (2, 1, 2, 4, 5), (1, 3, 2, 1, 5), (3, 1, 4, 1)], ids=str
)
def test_mask_gradient_under_several_batch_axes(shape):
    query = normal(2, 3, 2, 4, 2)
    key = normal(1, 3, 2, 5, 2, seed=1)
    check(query, key, key[0], attn_mask=normal(*shape, seed=3))


def test_mask_of_two_axes_with_arrays_of_two_axes():
    check(normal(4, 3), normal(5, 3, seed=1), normal(5, 2, seed=2), attn_mask=normal(4, 5))


def test_hidden_entries_of_a_float_mask_have_no_gradient():
    mask = normal(4, 5)
    mask[1] = mask[2, 3] = -np.inf
    gradients, *_ = both(normal(2, 4, 3), normal(2, 5, 3), normal(2, 5, 3), attn_mask=mask)
    assert not gradients.attn_mask[mask == -np.inf].any()
    assert not gradients.query[:, 1].any()


def test_big_broadcast_memory_is_summed_in_parts(monkeypatch):
    monkeypatch.setattr(_backward, "_UNSUMMED", 100)
    query, key, value = normal(7, 2, 3, 4), normal(2, 5, 4, seed=1), normal(2, 5, 3, seed=2)
    check(query, key, value)
    check(query, key[:1], value[:1], attn_mask=normal(7, 1, 3, 5))


@pytest.mark.parametrize("with_lse", [False, True])
def test_packed_sequences(with_lse):
    ends_q, ends_k = np.array([0, 2, 2, 6]), np.array([0, 4, 5, 9])
    query, key, value = normal(6, 4, 3), normal(9, 2, 3, seed=1), normal(9, 2, 2, seed=2)
    options = {
        "attn_mask": normal(4, 6, 9, seed=3),
        "alibi_slopes": np.array([0.5, 0.2, 0.1, 0.0]),
        "sink_logits": np.zeros(4),
    }
    flags = {
        "is_causal": True,
        "causal_alignment": "bottom_right",
        "enable_gqa": True,
        "cu_seqlens_q": ends_q,
        "cu_seqlens_k": ends_k,
    }
    got, grad_output, grad_lse = both(query, key, value, with_lse=with_lse, **options, **flags)
    true = reference_backward.gradients(
        *(x.swapaxes(0, 1)[None] for x in (query, key, value, grad_output)),
        None if grad_lse is None else grad_lse.T[None],
        scale=3**-0.5,
        causal=True,
        bottom_right=True,
        bias=options["attn_mask"][None],
        slopes=options["alibi_slopes"],
        sink_logits=options["sink_logits"],
        cu_seqlens_q=ends_q,
        cu_seqlens_k=ends_k,
    )
    for name in ("query", "key", "value"):
        wanted = getattr(true, name)[0].swapaxes(0, 1)
        assert getattr(got, name).shape == wanted.shape
        assert getattr(got, name).flags.c_contiguous
        np.testing.assert_allclose(getattr(got, name), wanted, atol=1e-12)
    np.testing.assert_allclose(got.attn_mask, true.bias[0], atol=1e-12)
    np.testing.assert_allclose(got.alibi_slopes, true.slopes, atol=1e-12)
    np.testing.assert_allclose(got.sink_logits, true.sinks, atol=1e-12)


@pytest.mark.parametrize(
    "shapes",
    [
        ((0, 2, 4, 3), (0, 2, 5, 3)),
        ((2, 2, 0, 3), (2, 2, 5, 3)),
        ((2, 2, 4, 3), (2, 2, 0, 3)),
        ((2, 0, 4, 3), (2, 0, 5, 3)),
        ((2, 2, 4, 3), (1, 2, 0, 3)),
    ],
    ids=str,
)
def test_empty_axes(shapes):
    query, key = (normal(*shape) for shape in shapes)
    gradients, *_ = both(query, key, key)
    assert gradients.query.shape == query.shape
    assert not gradients.query.any()
    assert gradients.key.shape == key.shape
    assert not gradients.key.any()
    assert not gradients.value.any()


def test_each_gradient_has_the_dtype_of_its_argument():
    query, key, value = (
        normal(2, n, 4, seed=n, dtype=dtype)
        for n, dtype in ((3, "float32"), (5, "float64"), (5, "float16"))
    )
    mask = normal(3, 5, dtype="float16")
    gradients, *_ = both(query, key, value, attn_mask=mask, sink_logits=[0.5, 0.25])
    names = [x.dtype.name for x in gradients if x is not None]
    assert names == ["float32", "float64", "float16", "float16", "float32"]


def test_lists_and_integers():
    gradients, *_ = both([[1, 2], [3, 4]], [[1.0, 0.0]], [[5.0]])
    assert gradients.query.dtype == gradients.key.dtype == np.float32
    np.testing.assert_allclose(gradients.value, [[2 * 0 + gradients.value[0, 0]]])
    assert gradients.query.shape == (2, 2)


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    query, key = (normal(2, n, 8, seed=n).astype(ml_dtypes.bfloat16) for n in (5, 7))
    value = normal(7, 8, seed=3).astype(ml_dtypes.bfloat16)
    mask = normal(5, 7).astype(ml_dtypes.bfloat16)
    output, lse = ruvector.scaled_dot_product_attention(
        query, key, value, mask, return_lse=True
    )
    grad = normal(*output.shape).astype(ml_dtypes.bfloat16)
    got = ruvector.attention_backward(query, key, value, output, lse, grad, attn_mask=mask)
    wide = [x.astype(np.float64) for x in (query, key, value, mask)]
    out64, lse64 = ruvector.scaled_dot_product_attention(*wide, return_lse=True)
    true = ruvector.attention_backward(
        *wide[:3], out64, lse64, grad.astype(np.float64), attn_mask=wide[3]
    )
    for name in ("query", "key", "value", "attn_mask"):
        array = getattr(got, name)
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(
            array.astype(np.float64), getattr(true, name), atol=0.05, rtol=0.05
        )


def test_strided_arguments_and_gradients_of_the_output():
    query, key, value = (normal(2, n, 3, 4, seed=n).swapaxes(1, 2) for n in (5, 6, 6))
    output, lse = ruvector.scaled_dot_product_attention(query, key, value, return_lse=True)
    contiguous = [np.ascontiguousarray(x) for x in (query, key, value)]
    wanted = ruvector.attention_backward(*contiguous, output, lse, np.ones_like(output))
    got = ruvector.attention_backward(
        query, key, value, output, lse, np.broadcast_to(np.float64(1), output.shape)
    )
    for a, b in zip(got[:3], wanted[:3], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)


def test_keywords_are_those_of_the_forward():
    forward = inspect.signature(ruvector.scaled_dot_product_attention).parameters
    backward = inspect.signature(ruvector.attention_backward).parameters
    only = set(backward) - set(forward)
    assert only == {"output", "lse", "grad_output", "grad_lse"}
    assert set(forward) - set(backward) == {"return_lse", "out"}
    for name in set(forward) & set(backward):
        assert forward[name].default == backward[name].default


@pytest.mark.parametrize("name", ["output", "lse", "grad_output", "grad_lse"])
def test_wrong_shapes_are_named(name):
    query, key = normal(2, 4, 3), normal(2, 5, 3)
    output, lse = ruvector.scaled_dot_product_attention(query, key, key, return_lse=True)
    arrays = {"output": output, "lse": lse, "grad_output": output, "grad_lse": lse}
    arrays[name] = arrays[name][:1]
    with pytest.raises(ruvector.DimensionMismatchError, match=f"^{name} must have shape"):
        ruvector.attention_backward(query, key, key, **arrays)
    arrays[name] = arrays[name].astype(complex)
    with pytest.raises(TypeError, match=f"^{name} must hold real numbers"):
        ruvector.attention_backward(query, key, key, **arrays)


def test_errors_of_the_forward_are_the_same():
    query, key = normal(2, 4, 3), normal(2, 5, 3)
    output, lse = ruvector.scaled_dot_product_attention(query, key, key, return_lse=True)
    given = (query, key, key, output, lse, output)
    with pytest.raises(ruvector.InvalidConfigError, match="dropout_p"):
        ruvector.attention_backward(*given, dropout_p=0.1)
    with pytest.raises(ruvector.InvalidMaskError, match="attn_mask"):
        ruvector.attention_backward(*given, attn_mask=np.ones((7, 7)))
    with pytest.raises(ruvector.InvalidConfigError, match="cu_seqlens_k must be given"):
        ruvector.attention_backward(*given, cu_seqlens_q=[0, 4])


@given(
    st.integers(1, 3),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_directional_derivative(heads, num_queries, num_keys, causal, capped, seed):
    """Along a random direction in all inputs at once."""
    rng = np.random.default_rng(seed)
    shapes = (heads, num_queries, 3), (heads, num_keys, 3), (heads, num_keys, 2)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    ways = [rng.standard_normal(shape) for shape in shapes]
    options = {"is_causal": causal, "softcap": 2.0 if capped else None}
    gradients, grad_output, grad_lse = both(*arrays, **options)

    def loss(step):
        output, lse = ruvector.scaled_dot_product_attention(
            *(x + step * way for x, way in zip(arrays, ways, strict=True)),
            return_lse=True,
            **options,
        )
        return (output * grad_output).sum() + (lse * grad_lse).sum()

    slope = sum((g * way).sum() for g, way in zip(gradients[:3], ways, strict=True))
    np.testing.assert_allclose(slope, (loss(1e-6) - loss(-1e-6)) / 2e-6, atol=1e-6, rtol=1e-6)
