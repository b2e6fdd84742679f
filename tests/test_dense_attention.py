"""The dense attention classes against the float64 reference: shapes, masks, extras, out."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import reference
from functional_cases import TOLERANCES

from ruvector import (
    DotProductAttention,
    FlashAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
)

pytestmark = pytest.mark.usefixtures("backend")

DIM = 12
# A class and the fields of the specification that it stands for, by number of queries.
CLASSES = {
    "dot": (DotProductAttention(DIM), 1, {}),
    "dot scaled": (DotProductAttention(DIM, scale=0.7), 1, {"scale": 0.7}),
    "heads 1": (MultiHeadAttention(DIM, 1), 1, {}),
    "heads 3": (MultiHeadAttention(DIM, 3), 3, {}),
    "flash": (FlashAttention(DIM), 1, {}),
    "causal": (FlashAttention(DIM, causal=True), 1, {"causal": True, "bottom_right": True}),
    "local": (LocalGlobalAttention(DIM, 4, 1), 1, {"left": 2, "right": 2, "num_sinks": 1}),
}
every_class = pytest.mark.parametrize("name", list(CLASSES))


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def memory(n, dim_v=DIM, batch=(), dtype=np.float32):
    return (
        normal(*batch, n, DIM, seed=1, dtype=dtype),
        normal(*batch, n, dim_v, seed=2, dtype=dtype),
    )


def expected(name, query, keys, values, mask=None):
    """Compute (out, lse, weights) with three axes before heads are merged or dropped."""
    _, heads, options = CLASSES[name]
    query, keys, values = (
        x.reshape((1,) * (3 - x.ndim) + x.shape) for x in (query, keys, values)
    )
    batch, m, n = len(query), query.shape[1], keys.shape[1]

    def by_head(x):
        x = np.broadcast_to(x, (batch, *x.shape[1:]))
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    spec = {"scale": (DIM // heads) ** -0.5, **options}
    if name == "local":
        if m == 1:
            spec["positions"] = np.array([n // 2])
        else:
            spec["symmetric"] = True
    if mask is not None:
        mask = np.asarray(mask)
        mask = mask[:, None] if mask.ndim == 3 else mask
        mask = np.broadcast_to(mask, (batch, heads, m, n))
        spec["mask" if mask.dtype == bool else "bias"] = mask
    out, lse, weights = reference.attention(*map(by_head, (query, keys, values)), **spec)
    return out.swapaxes(1, 2).reshape(batch, m, -1), lse.swapaxes(1, 2), weights


def check(name, query, keys, values, mask=None, dtype="float32"):
    """Compare every combination of extras with the reference, and their shapes."""
    attention, heads, _ = CLASSES[name]
    q, k, v = (np.asarray(x) for x in (query, keys, values))
    out, lse, weights = expected(name, q, k, v, mask)
    if heads == 1:
        lse, weights = lse[..., 0], weights[:, 0]
    if q.ndim == 1:
        out, lse, weights = out[0, 0], lse[0, 0], weights[0, ..., 0, :]
    elif q.ndim == 2:
        out, lse, weights = out[0], lse[0], weights[0]
    rtol, atol = TOLERANCES[dtype]
    extra_dtype = "float64" if dtype == "float64" else "float32"
    for keywords, wanted in (
        ({}, [out]),
        ({"return_lse": True}, [out, lse]),
        ({"return_weights": True}, [out, weights]),
        ({"return_lse": True, "return_weights": True}, [out, lse, weights]),
    ):
        got = attention.compute(query, keys, values, mask=mask, **keywords)
        got = got if keywords else (got,)
        assert isinstance(got, tuple)
        for i, (x, y) in enumerate(zip(got, wanted, strict=True)):
            assert np.shape(x) == np.shape(y)
            assert x.dtype == (dtype if i == 0 else extra_dtype)
            np.testing.assert_allclose(np.asarray(x, np.float64), y, rtol=rtol, atol=atol)


class TestShapes:
    @every_class
    @pytest.mark.parametrize("n", [1, 7, 33])
    @pytest.mark.parametrize("dim_v", [DIM, 6])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
    def test_one_query(self, name, n, dim_v, dtype):
        check(name, normal(DIM, dtype=dtype), *memory(n, dim_v, dtype=dtype), dtype=dtype)

    @every_class
    @pytest.mark.parametrize("m", [1, 9])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_several_queries(self, name, m, dtype):
        check(name, normal(m, DIM, dtype=dtype), *memory(9, 6, dtype=dtype), dtype=dtype)

    @every_class
    @pytest.mark.parametrize("memory_batch", [(3,), (1,), ()], ids=str)
    def test_batches(self, name, memory_batch):
        check(name, normal(3, 9, DIM), *memory(9, 6, memory_batch))

    @pytest.mark.parametrize("name", ["dot", "heads 3", "flash", "causal"])
    @pytest.mark.parametrize(("m", "n"), [(2, 9), (9, 4)])
    def test_any_number_of_queries(self, name, m, n):
        check(name, normal(m, DIM), *memory(n))
        check(name, normal(2, m, DIM), *memory(n, batch=(2,)))

    @every_class
    def test_no_queries(self, name):
        attention, heads, _ = CLASSES[name]
        for lead in ((0,), (2, 0), (0, 9)):
            out, lse, weights = attention.compute(
                normal(*lead, DIM), *memory(9, 6), return_lse=True, return_weights=True
            )
            assert out.shape == (*lead, 6)
            assert lse.shape == (*lead, *[heads] * (heads > 1))
            assert weights.shape == (*lead[:-1], *[heads] * (heads > 1), lead[-1], 9)


class TestInputs:
    @every_class
    @pytest.mark.parametrize(
        "convert",
        [
            list,
            tuple,
            lambda x: [list(map(float, row)) for row in x],
            lambda x: [array("f", row) for row in x],
            lambda x: [memoryview(row) for row in x],
            memoryview,
            np.asfortranarray,
            lambda x: np.repeat(x, 2, axis=0)[::2],
            lambda x: x[::-1].copy()[::-1],
            lambda x: x.astype(">f4"),
        ],
        ids=[
            "list of arrays",
            "tuple of arrays",
            "lists",
            "array.array",
            "memoryviews",
            "memoryview",
            "fortran",
            "rows",
            "reversed",
            "byte order",
        ],
    )
    def test_kinds(self, name, convert):
        attention = CLASSES[name][0]
        query, (keys, values) = normal(DIM), memory(9)
        wanted = attention.compute(query, keys, values, mask=np.ones(9, bool))
        got = attention.compute(query, convert(keys), convert(values))
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)

    def test_read_only(self):
        query, (keys, values) = normal(DIM), memory(9)
        for x in (query, keys, values):
            x.flags.writeable = False
        for name in CLASSES:
            check(name, query, keys, values)

    def test_integers(self):
        attention = MultiHeadAttention(4, 2)
        query, keys = np.arange(4), np.arange(12).reshape(3, 4)
        got = attention.compute(query, keys, keys > 5)
        wanted = attention.compute(*(x.astype(np.float32) for x in (query, keys, keys > 5)))
        assert got.dtype == np.float32
        assert np.array_equal(got, wanted)

    def test_mixed_dtypes(self):
        query, (keys, values) = normal(DIM), memory(9, dtype=np.float64)
        attention = DotProductAttention(DIM)
        out, lse, weights = attention.compute(
            query, keys, values, return_lse=True, return_weights=True
        )
        assert (out.dtype, lse.dtype, weights.dtype) == (np.float32,) * 3
        exact = attention.compute(query.astype(np.float64), keys, values)
        assert np.array_equal(out, exact.astype(np.float32))

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        for name, (attention, _, _) in CLASSES.items():
            query, keys, values = (
                x.astype(ml_dtypes.bfloat16) for x in (normal(9, DIM), *memory(9))
            )
            out = attention.compute(query, keys, values)
            wanted, _, _ = expected(name, *(x.astype(float) for x in (query, keys, values)))
            assert out.dtype == ml_dtypes.bfloat16
            np.testing.assert_allclose(out.astype(float), wanted[0], rtol=2e-2, atol=2e-2)

    def test_wide_range(self):
        query, (keys, values) = 50 * normal(DIM), memory(9)
        for name in CLASSES:
            out = CLASSES[name][0].compute(query, 50 * keys, values)
            assert np.isfinite(out).all()


class TestMasks:
    @every_class
    @pytest.mark.parametrize("kind", ["bool", "float32", "float64", "float16", "lists"])
    def test_kinds_and_shapes(self, name, kind):
        rng = np.random.default_rng(5)
        for lead in ((), (9,), (3, 9)):
            shapes = [(9,), (1, 9), (9, 9), (3, 9, 9), (3, 1, 9), (1, 9, 9)]
            for shape in shapes[: {0: 2, 1: 3, 2: 6}[len(lead)]]:
                visible = rng.random(shape) < 0.6
                mask = visible
                if kind != "bool":
                    mask = np.where(visible, rng.standard_normal(shape), -np.inf)
                    mask = mask.astype("float32" if kind == "lists" else kind)
                query = normal(*lead, DIM)
                keys, values = memory(9, 6, lead[:-1])
                check(name, query, keys, values, mask.tolist() if kind == "lists" else mask)

    @every_class
    def test_compute_with_mask(self, name):
        attention = CLASSES[name][0]
        arguments = normal(DIM), *memory(9)
        mask = np.arange(9) % 2 == 0
        got = attention.compute_with_mask(*arguments, mask)
        assert np.array_equal(got, attention.compute(*arguments, mask=mask))

    @every_class
    def test_everything_hidden(self, name):
        attention = CLASSES[name][0]
        for mask in (np.zeros(9, bool), np.full(9, -np.inf, np.float32)):
            out, lse, weights = attention.compute(
                normal(9, DIM), *memory(9), mask=mask, return_lse=True, return_weights=True
            )
            assert not out.any()
            assert (lse == -np.inf).all()
            assert not weights.any()

    @every_class
    @pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
    def test_what_is_hidden_does_not_leak(self, name, poison):
        attention = CLASSES[name][0]
        query, (keys, values) = normal(9, DIM), memory(9)
        mask = np.arange(9) != 4
        wanted = attention.compute(
            query, keys, values, mask=mask, return_lse=True, return_weights=True
        )
        keys[4] = values[4] = poison
        got = attention.compute(
            query, keys, values, mask=mask, return_lse=True, return_weights=True
        )
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)

    @every_class
    def test_nan_in_a_query_stays_in_its_row(self, name):
        attention = CLASSES[name][0]
        query, (keys, values) = normal(9, DIM), memory(9)
        wanted = attention.compute(query, keys, values)
        query[3] = np.nan
        got = attention.compute(query, keys, values)
        assert np.isnan(got[3]).all()
        rest = np.arange(9) != 3
        np.testing.assert_allclose(got[rest], wanted[rest], rtol=1e-6, atol=1e-6)


class TestOut:
    @every_class
    @pytest.mark.parametrize("lead", [(), (9,), (2, 9)], ids=str)
    def test_is_written_and_returned(self, name, lead):
        attention = CLASSES[name][0]
        arguments = normal(*lead, DIM), *memory(9, 6)
        wanted = attention.compute(*arguments)
        for out in (
            np.empty((*lead, 6), np.float32),
            np.empty((*lead, 12), np.float32)[..., :6],
            np.empty((*lead, 12), np.float32)[..., ::2],
            np.empty((*lead, 6), np.float32)[..., ::-1],
        ):
            assert attention.compute(*arguments, out=out) is out
            np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)
        got, lse = attention.compute(*arguments, out=out, return_lse=True)
        assert got is out
        assert np.shape(lse)[: len(lead)] == lead

    @every_class
    @pytest.mark.parametrize("place", ["query", "keys", "values", "shifted", "mask"])
    def test_may_overlap_an_input(self, name, place):
        attention = CLASSES[name][0]
        buffer = normal(10, DIM)
        query, (keys, values), mask = buffer[:9], memory(9), np.zeros((9, 9), np.float32)
        wanted = attention.compute(query, keys, values, mask=mask)
        whole = np.zeros((9, DIM), np.float32)
        out = {
            "query": query,
            "keys": keys,
            "values": values,
            "shifted": buffer[1:],
            "mask": whole,
        }[place]
        if place == "mask":
            mask = whole[:, :9]
        attention.compute(query, keys, values, mask=mask, out=out)
        np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-6)
