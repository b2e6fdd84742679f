"""compute_with_gradients of the dense classes."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from class_gradient_cases import check_dtype, check_results

import ruvector

pytestmark = pytest.mark.usefixtures("backend")

MECHANISMS = {
    "dot-product": (ruvector.DotProductAttention(4, scale=0.8), {}),
    "multi-head": (ruvector.MultiHeadAttention(4, num_heads=2), {}),
    "flash": (ruvector.FlashAttention(4, causal=True), {}),
    "local-global": (ruvector.LocalGlobalAttention(4, 2, 1), {"positions": True}),
}
SHAPES = {
    "one query": ((4,), (5, 4), (5, 2)),
    "several": ((3, 4), (5, 4), (5, 2)),
    "batch": ((2, 3, 4), (2, 5, 4), (2, 5, 2)),
    "shared memory": ((2, 3, 4), (5, 4), (5, 2)),
    "memory with one entry": ((2, 3, 4), (1, 5, 4), (5, 2)),
}


def normal(*shape, seed=0, dtype="float64"):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def keywords_of(name, query_shape):
    if "positions" not in MECHANISMS[name][1]:
        return {}
    m = 1 if len(query_shape) == 1 else query_shape[-2]
    return {"positions": np.arange(m)[::-1].copy()}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", MECHANISMS)
class TestGradients:
    def test_central_differences(self, name, shapes):
        attention = MECHANISMS[name][0]
        keywords = keywords_of(name, shapes[0])
        arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        output, lse = attention.compute(*arrays, return_lse=True, **keywords)
        grad_output, grad_lse = normal(*output.shape), normal(*np.shape(lse), seed=7)

        def fn(query, keys, values):
            (output, lse), gradients = attention.compute_with_gradients(
                query, keys, values, grad_output, grad_lse=grad_lse, return_lse=True,
                **keywords,
            )  # fmt: skip
            assert gradients.mask is None
            return (
                (output * grad_output).sum() + (lse * grad_lse).sum(),
                (gradients.query, gradients.keys, gradients.values),
            )

        assert ruvector.gradcheck(fn, arrays)

    def test_float_mask(self, name, shapes):
        attention = MECHANISMS[name][0]
        keywords = keywords_of(name, shapes[0])
        arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
        grad_output = normal(*attention.compute(*arrays, **keywords).shape)
        masks = [(5,), (1, 5)]
        if len(shapes[0]) > 1:
            masks.append((3, 5))
        if len(shapes[0]) == 3:
            masks += [(2, 3, 5), (1, 3, 5), (2, 1, 5)]
        for shape in masks:

            def fn(mask):
                output, gradients = attention.compute_with_gradients(
                    *arrays, grad_output, mask=mask, **keywords
                )
                assert gradients.mask.shape == mask.shape
                return (output * grad_output).sum(), [gradients.mask]

            assert ruvector.gradcheck(fn, [normal(*shape, seed=9)])

    def test_the_result_is_that_of_compute(self, name, shapes):
        attention = MECHANISMS[name][0]
        keywords = keywords_of(name, shapes[0])
        arrays = [normal(*shape, seed=i, dtype="float32") for i, shape in enumerate(shapes)]
        check_results(attention, arrays, **keywords)


def test_gradients_by_name():
    attention = ruvector.DotProductAttention(4)
    _, gradients = attention.compute_with_gradients(
        normal(4), normal(5, 4), normal(5, 2), normal(2)
    )
    assert gradients["query"] is gradients.query
    assert gradients["keys"] is gradients.keys
    assert gradients.edge_features is None
    assert gradients.parameters == {}
    with pytest.raises(KeyError):
        gradients["weights"]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_dtypes(dtype):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    attention = ruvector.MultiHeadAttention(16, 4)
    arrays = [normal(*shape) for shape in ((3, 16), (9, 16), (9, 8))]
    check_dtype(attention, dtype, arrays, normal(3, 9), normal(3, 8))


def test_dtypes_may_differ():
    attention = ruvector.DotProductAttention(4)
    _, gradients = attention.compute_with_gradients(
        normal(2, 3, 4, dtype="float32"),
        normal(5, 4, dtype="float16"),
        normal(5, 2).tolist(),
        np.ones((2, 3, 2)),
        mask=normal(5),
    )
    assert gradients.query.dtype == np.float32
    assert gradients.keys.dtype == np.float16
    assert gradients.values.dtype == np.float32
    assert gradients.mask.dtype == np.float64


def test_shared_memory_sums_over_the_batch():
    attention = ruvector.MultiHeadAttention(8, 2)
    query, keys, values, grad = normal(6, 3, 8), normal(5, 8), normal(5, 4), normal(6, 3, 4)
    _, together = attention.compute_with_gradients(query, keys, values, grad)
    apart = [
        attention.compute_with_gradients(q, keys, values, g)[1]
        for q, g in zip(query, grad, strict=True)
    ]
    np.testing.assert_allclose(together.keys, sum(g.keys for g in apart), atol=1e-12)
    np.testing.assert_allclose(together.values, sum(g.values for g in apart), atol=1e-12)
    np.testing.assert_allclose(together.query, [g.query for g in apart], atol=1e-12)


def test_out_may_overlap_the_inputs():
    attention = ruvector.DotProductAttention(4)
    query, keys, grad = normal(3, 4), normal(5, 4), normal(3, 4)
    wanted, true = attention.compute_with_gradients(query.copy(), keys, keys, grad.copy())
    for out in (query, grad):
        given = query.copy(), grad.copy()
        got, gradients = attention.compute_with_gradients(query, keys, keys, grad, out=out)
        assert got is out
        np.testing.assert_allclose(got, wanted, atol=1e-15)
        for name in ("query", "keys", "values"):
            np.testing.assert_allclose(gradients[name], true[name], atol=1e-15)
        query[...], grad[...] = given


def test_out_is_untouched_by_an_error():
    attention = ruvector.MultiHeadAttention(4, 2)
    out = np.full((3, 4), 7.0)
    query, keys = normal(3, 4), normal(5, 4)
    for options in ({"grad_lse": np.ones(3)}, {"grad_lse": np.ones((3, 2), complex)}):
        with pytest.raises((ruvector.DimensionMismatchError, TypeError), match="grad_lse"):
            attention.compute_with_gradients(
                query, keys, keys, np.ones((3, 4)), out=out, **options
            )
    with pytest.raises(ruvector.DimensionMismatchError, match="grad_output must have shape"):
        attention.compute_with_gradients(query, keys, keys, np.ones((3, 3)), out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("name", MECHANISMS)
def test_keywords_are_those_of_compute(name):
    attention = MECHANISMS[name][0]
    forward = inspect.signature(attention.compute).parameters
    backward = inspect.signature(attention.compute_with_gradients).parameters
    assert set(backward) - set(forward) == {"grad_output", "grad_lse"}
    assert set(forward) <= set(backward)


def test_errors_are_those_of_compute():
    local = ruvector.LocalGlobalAttention(4, 2, 1)
    with pytest.raises(ruvector.InvalidConfigError, match="positions"):
        local.compute_with_gradients(normal(2, 4), normal(5, 4), normal(5, 4), normal(2, 4))
    with pytest.raises(ruvector.EmptyInputError):
        local.compute_with_gradients(normal(4), normal(0, 4), normal(0, 4), normal(4))


def test_mechanism_without_gradients_says_so():
    class Bare(ruvector.Attention):
        def _evaluate(self, inputs, mask, out, return_lse, return_weights, **options):
            out[...] = 0
            return None, None

    with pytest.raises(NotImplementedError, match="Bare has no gradients"):
        Bare(4).compute_with_gradients(normal(4), normal(5, 4), normal(5, 4), normal(4))
