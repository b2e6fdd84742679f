"""The dense attention classes as objects: configuration, errors, async."""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
import re
from contextvars import ContextVar

import numpy as np
import pytest

import ruvector
from ruvector import (
    Attention,
    DimensionMismatchError,
    DotProductAttention,
    EmptyInputError,
    FlashAttention,
    InvalidConfigError,
    InvalidMaskError,
    LocalGlobalAttention,
    MultiHeadAttention,
)

OBJECTS = [
    (DotProductAttention(4), "DotProductAttention(dim=4, scale=0.5)"),
    (DotProductAttention(4, scale=2), "DotProductAttention(dim=4, scale=2.0)"),
    (MultiHeadAttention(8, 2), "MultiHeadAttention(dim=8, num_heads=2)"),
    (MultiHeadAttention(8, num_heads=4), "MultiHeadAttention(dim=8, num_heads=4)"),
    (FlashAttention(8), "FlashAttention(dim=8, block_size=None, causal=False)"),
    (FlashAttention(8, 64, True), "FlashAttention(dim=8, block_size=64, causal=True)"),
    (
        LocalGlobalAttention(8, 5, 1),
        "LocalGlobalAttention(dim=8, local_window=5, global_tokens=1)",
    ),
]
every_object = pytest.mark.parametrize(
    ("attention", "text"), OBJECTS, ids=[t for _, t in OBJECTS]
)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class TestConfiguration:
    @every_object
    def test_repr_makes_an_equal_object(self, attention, text):
        assert repr(attention) == text
        again = eval(text, vars(ruvector))
        assert again == attention
        assert hash(again) == hash(attention)
        assert again is not attention

    @every_object
    def test_differs_from_every_other(self, attention, text):
        others = [other for other, _ in OBJECTS if other is not attention]
        assert all(attention != other for other in others)
        assert attention != text
        assert len({other for other, _ in OBJECTS}) == len(OBJECTS)

    @every_object
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickle(self, attention, text, protocol):
        again = pickle.loads(pickle.dumps(attention, protocol))
        assert again == attention
        assert repr(again) == text

    @every_object
    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_copy(self, attention, text, copied):
        again = copied(attention)
        assert again == attention
        query, keys = normal(attention.dim), normal(5, attention.dim)
        assert np.array_equal(
            again.compute(query, keys, keys), attention.compute(query, keys, keys)
        )

    @every_object
    def test_properties_are_read_only(self, attention, text):
        assert isinstance(attention, Attention)
        for name in re.findall(r"(\w+)=", text):
            with pytest.raises(AttributeError):
                setattr(attention, name, 1)

    def test_properties(self):
        assert DotProductAttention(16).scale == 0.25
        heads = MultiHeadAttention(12, 3)
        assert (heads.dim, heads.num_heads, heads.head_dim) == (12, 3, 4)
        flash = FlashAttention(np.int64(4), block_size=32)
        assert (flash.dim, flash.block_size, flash.causal) == (4, 32, False)
        local = LocalGlobalAttention(4, 7, 2)
        assert (local.local_window, local.global_tokens) == (7, 2)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: DotProductAttention(0), "dim must be an integer of at least 1, got 0"),
            (lambda: FlashAttention(2.0), "dim must be an integer of at least 1, got 2.0"),
            (lambda: FlashAttention("4"), "dim must be an integer of at least 1, got '4'"),
            (lambda: FlashAttention(True), "dim must be an integer of at least 1, got True"),
            (
                lambda: DotProductAttention(4, scale=np.inf),
                "scale must be a finite number, got inf",
            ),
            (
                lambda: MultiHeadAttention(8, 0),
                "num_heads must be an integer of at least 1, got 0",
            ),
            (
                lambda: MultiHeadAttention(8, 3),
                "num_heads must divide dim, got num_heads=3 and dim=8",
            ),
            (
                lambda: FlashAttention(8, 0),
                "block_size must be an integer of at least 1, got 0",
            ),
            (
                lambda: FlashAttention(8, causal="yes"),
                "causal must be True or False, got 'yes'",
            ),
            (
                lambda: LocalGlobalAttention(8, -1, 0),
                "local_window must be an integer of at least 0, got -1",
            ),
            (
                lambda: LocalGlobalAttention(8, 1, -1),
                "global_tokens must be an integer of at least 0, got -1",
            ),
        ],
    )
    def test_refused(self, make, message):
        with pytest.raises(InvalidConfigError, match=f"^{re.escape(message)}$"):
            make()

    def test_base_class_is_abstract(self):
        with pytest.raises(TypeError, match="abstract"):
            Attention(4)

    @every_object
    def test_signature_of_compute(self, attention, text):
        parameters = inspect.signature(attention.compute).parameters
        names = ["query", "keys", "values", "mask", "return_lse", "return_weights", "out"]
        if isinstance(attention, LocalGlobalAttention):
            names.insert(3, "positions")
        assert list(parameters) == names
        assert inspect.getdoc(attention.compute)


@pytest.mark.usefixtures("backend")
class TestErrors:
    # At four features and two keys everything below is wrong in one way only.
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                (zeros(3), zeros(2, 3), zeros(2, 3)),
                DimensionMismatchError,
                "query must have shape (4,), (m, 4) or (B, m, 4), got (3,)",
            ),
            (
                (zeros(1, 1, 1, 4), zeros(2, 4), zeros(2, 4)),
                DimensionMismatchError,
                "query must have shape (4,), (m, 4) or (B, m, 4), got (1, 1, 1, 4)",
            ),
            (
                (zeros(4), zeros(2, 3), zeros(2, 4)),
                DimensionMismatchError,
                "keys must have shape (n, 4), got (2, 3)",
            ),
            (
                (zeros(4), zeros(4), zeros(2, 4)),
                DimensionMismatchError,
                "keys must have shape (n, 4), got (4,)",
            ),
            (
                (zeros(4), zeros(1, 2, 4), zeros(2, 4)),
                DimensionMismatchError,
                "keys must have shape (n, 4), got (1, 2, 4)",
            ),
            (
                (zeros(3, 5, 4), zeros(2, 2, 4), zeros(2, 4)),
                DimensionMismatchError,
                "keys must have shape (3, n, 4) or (n, 4), got (2, 2, 4)",
            ),
            (
                (zeros(4), zeros(2, 4), zeros(2)),
                DimensionMismatchError,
                "values must have shape (n, dim_v), got (2,)",
            ),
            (
                (zeros(4), zeros(2, 4), zeros(3, 4)),
                DimensionMismatchError,
                "values must hold 2 vectors, one per key, got 3",
            ),
            (
                (zeros(4), zeros(0, 4), zeros(0, 4)),
                EmptyInputError,
                "keys must hold at least one vector, got shape (0, 4)",
            ),
            (
                (zeros(4), [], []),
                EmptyInputError,
                "keys must hold at least one vector, got shape (0, 0)",
            ),
            ((zeros(4), ["abcd"], zeros(1, 4)), TypeError, "keys must hold real numbers"),
            ((zeros(4) * 1j, zeros(2, 4), zeros(2, 4)), TypeError, "query must hold real"),
            ((zeros(4), zeros(2, 4), None), TypeError, "values must hold real numbers"),
            (
                (zeros(4), [zeros(4), zeros(3)], zeros(2, 4)),
                DimensionMismatchError,
                "keys[1] must have shape (4,) like keys[0], got (3,)",
            ),
        ],
    )
    @pytest.mark.parametrize(
        "attention",
        [
            DotProductAttention(4),
            MultiHeadAttention(4, 2),
            FlashAttention(4),
            LocalGlobalAttention(4, 2, 1),
        ],
        ids=lambda attention: type(attention).__name__,
    )
    def test_arrays(self, attention, arguments, error, message):
        before = repr(attention)
        for keywords in ({}, {"out": np.full(4, 7, np.float32)}):
            with pytest.raises(error, match="^" + re.escape(message)):
                attention.compute(*arguments, **keywords)
            assert (keywords.get("out", 7) == 7).all() if keywords else True
        assert repr(attention) == before

    def test_values_that_do_not_divide_into_heads(self):
        out = np.full(5, 7, np.float32)
        message = "values must have a width that divides into 2 heads, got 5"
        with pytest.raises(DimensionMismatchError, match=message):
            MultiHeadAttention(4, 2).compute(zeros(4), zeros(3, 4), zeros(3, 5), out=out)
        assert (out == 7).all()

    @pytest.mark.parametrize(
        "mask",
        [
            np.ones(3, bool),
            np.ones((3, 2), bool),
            np.ones((5, 1)),
            np.ones((1, 5, 2), bool),
            np.True_,
            np.ones(1, bool),
            [],
        ],
        ids=np.shape,
    )
    def test_mask_shapes(self, mask):
        message = f"mask must have shape (2,) or (5, 2), got shape {np.shape(mask)}"
        self.refuses_mask(mask, InvalidMaskError, message)

    @pytest.mark.parametrize(
        ("mask", "error", "dtype"),
        [
            (np.ones(2, np.int8), InvalidMaskError, "int8"),
            ([1, 0], InvalidMaskError, np.dtype(int).name),
            (["a", "b"], TypeError, "<U1"),
            ([None, None], TypeError, "object"),
            (np.ones(2, complex), TypeError, "complex128"),
        ],
    )
    def test_mask_types(self, mask, error, dtype):
        message = "mask must be bool (True attends) or float (added to the scores), got dtype "
        self.refuses_mask(mask, error, message + dtype)

    def refuses_mask(self, mask, error, message):
        out = np.full((5, 4), 7, np.float32)
        arrays = zeros(5, 4), zeros(2, 4), zeros(2, 4)
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            FlashAttention(4).compute(*arrays, mask=mask, out=out)
        assert (out == 7).all()
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            FlashAttention(4).compute_with_mask(*arrays, mask)

    def test_mask_of_a_batch(self):
        arrays = zeros(3, 5, 4), zeros(2, 4), zeros(2, 4)
        for shape in ((2, 5, 2), (3, 4, 2), (3, 1, 5, 2)):
            with pytest.raises(InvalidMaskError, match=r"^mask must have .*got shape"):
                FlashAttention(4).compute(*arrays, mask=np.ones(shape, bool))

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (np.full(5, 7, np.float32), DimensionMismatchError, "out must have shape (4,)"),
            (np.full(4, 7.0), TypeError, "out must have dtype float32, got float64"),
            ([7.0] * 4, TypeError, "out must be an array, got list"),
        ],
    )
    def test_out(self, out, error, message):
        with pytest.raises(error, match="^" + re.escape(message)):
            DotProductAttention(4).compute(zeros(4), zeros(2, 4), zeros(2, 4), out=out)
        assert np.all(np.asarray(out) == 7)


@pytest.mark.usefixtures("backend")
class TestAsync:
    @every_object
    def test_equals_compute(self, attention, text):
        query, keys = normal(attention.dim), normal(5, attention.dim)
        mask = np.array([True, True, False, True, True])

        async def both():
            return await asyncio.gather(
                attention.compute_async(query, keys, keys),
                attention.compute_async(query, keys, keys, mask=mask, return_lse=True),
            )

        plain, (masked, lse) = asyncio.run(both())
        assert np.array_equal(plain, attention.compute(query, keys, keys))
        wanted, wanted_lse = attention.compute(query, keys, keys, mask=mask, return_lse=True)
        assert np.array_equal(masked, wanted)
        assert np.array_equal(lse, wanted_lse)

    def test_errors_come_back(self):
        with pytest.raises(EmptyInputError):
            asyncio.run(DotProductAttention(4).compute_async(zeros(4), [], []))

    def test_context_goes_along(self):
        here: ContextVar[int] = ContextVar("here", default=0)
        seen = []

        class Probe(DotProductAttention):
            def compute(self, *args, **keywords):
                seen.append((here.get(), ruvector.get_num_threads()))

        async def run():
            here.set(5)
            with ruvector.num_threads(1):
                await Probe(4).compute_async(None, None, None)

        asyncio.run(run())
        assert seen == [(5, 1)]
