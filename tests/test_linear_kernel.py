"""The kernels of linear attention against their definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference_linear
from hypothesis import given
from hypothesis import strategies as st
from linear_cases import KERNELS, new_state, problem, scaled
from softmax_cases import LAYOUTS, SIZES, STORAGE, quiet, relaid, to_float64

from ruvector import _kernels

pytestmark = pytest.mark.usefixtures("backend")

kernels = pytest.mark.parametrize("kernel", KERNELS)
causal = pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])


@kernels
@causal
class TestAttend:
    @pytest.mark.parametrize("num_queries", SIZES)
    def test_lengths(self, kernel, causal, num_queries):
        for num_keys in (1, 7, 16, 33, 97):
            problem(num_queries=num_queries, num_keys=num_keys, heads=1, kernel=kernel,
                    causal=causal).check()  # fmt: skip

    @pytest.mark.parametrize("dtype", STORAGE)
    def test_widths(self, kernel, causal, dtype):
        for i, size in enumerate(SIZES):
            problem(i, dim=size, dim_v=SIZES[i - 3], num_features=SIZES[i - 5], num_queries=40,
                    num_keys=40, heads=1, kernel=kernel, causal=causal, dtype=dtype,
                    ).check(slack=2)  # fmt: skip

    @pytest.mark.parametrize("bias", ["hidden", "float"])
    @pytest.mark.parametrize("dtype", STORAGE)
    def test_masks(self, kernel, causal, dtype, bias):
        for num_queries, num_keys in ((1, 50), (70, 70), (20, 70), (70, 20)):
            problem(batch=2, num_queries=num_queries, num_keys=num_keys, kernel=kernel,
                    causal=causal, dtype=dtype, bias=bias).check()  # fmt: skip

    @pytest.mark.parametrize("dtype", STORAGE)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, kernel, causal, layout, dtype):
        case = problem(batch=2, heads=3, num_queries=40, num_keys=40, dim=16, kernel=kernel,
                       causal=causal, dtype=dtype)  # fmt: skip
        for name in ("query", "key", "value"):
            array = relaid(getattr(case, name), layout)
            array.flags.writeable = False
            setattr(case, name, array)
        case.check()

    def test_one_memory_for_all_and_outputs_with_strides(self, kernel, causal):
        case = problem(batch=3, heads=2, num_queries=33, num_keys=33, kernel=kernel,
                       causal=causal)  # fmt: skip
        case.key = np.broadcast_to(case.key[:1, :1], case.key.shape)
        case.value = np.broadcast_to(case.value[:1, :1], case.value.shape)
        out = np.full((33, 3, 2, 11), np.nan, np.float32)[..., :8].transpose(1, 2, 0, 3)
        lse = np.full((33, 2, 3), np.nan, np.float32).T
        with quiet():
            _kernels.linear.attend(case.query, case.key, case.value, None, out, lse, causal,
                                   case.features, 1)  # fmt: skip
        case.compare(out, lse)

    def test_without_lse(self, kernel, causal):
        case = problem(num_queries=40, num_keys=40, kernel=kernel, causal=causal)
        out, _ = case.attend()
        again, _ = case.results()
        with quiet():
            _kernels.linear.attend(case.query, case.key, case.value, None, again, None, causal,
                                   case.features, 1)  # fmt: skip
        np.testing.assert_array_equal(again, out)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_long(self, kernel, causal, dtype):
        case = problem(heads=1, num_queries=700, num_keys=700, dim=24, num_features=100,
                       kernel=kernel, causal=causal, dtype=dtype)  # fmt: skip
        case.check(slack=2)

    @pytest.mark.parametrize("shape", [{"batch": 0}, {"heads": 0}, {"num_queries": 0}], ids=str)
    def test_no_queries(self, kernel, causal, shape):
        out, _ = problem(kernel=kernel, causal=causal, **shape).attend()
        assert out.size == 0

    def test_no_keys(self, kernel, causal):
        for options in ({"num_keys": 0}, {"bias": np.full((1, 9), -np.inf)}):
            out, lse = problem(num_queries=40, kernel=kernel, causal=causal, **options).attend()
            assert (out == 0).all()
            assert (lse == -np.inf).all()

    def test_no_values(self, kernel, causal):
        case = problem(dim_v=0, num_queries=9, kernel=kernel, causal=causal)
        out, lse = case.attend()
        assert out.shape[3] == 0
        case.compare(out, lse)

    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_what_is_hidden_does_not_leak(self, kernel, causal, poison):
        bias = np.zeros((1, 150))
        bias[:, [0, 3, 40, 149]] = -np.inf
        case = problem(num_queries=150, num_keys=150, kernel=kernel, causal=causal, bias=bias)
        expected = case.reference()
        case.key[..., [0, 3], :] = poison
        case.value[..., [40, 149], :] = poison
        case.compare(*case.attend(), expected)

    def test_nan_in_a_query_stays_in_its_row(self, kernel, causal):
        case = problem(num_queries=70, num_keys=70, kernel=kernel, causal=causal)
        expected, expected_lse, _ = case.reference()
        case.query[:, :, 37, 2] = np.nan
        out, lse = case.attend()
        for got, wanted in ((out, expected), (lse[..., None], expected_lse[..., None])):
            assert np.isnan(got[:, :, 37]).all()
            others = np.arange(70) != 37
            np.testing.assert_allclose(got[:, :, others], wanted[:, :, others], rtol=2e-5,
                                       atol=1e-5)  # fmt: skip

    def test_nan_in_a_key_reaches_the_rows_that_see_it(self, kernel, causal):
        case = problem(num_queries=70, num_keys=70, kernel=kernel, causal=causal)
        expected, *_ = case.reference()
        case.key[:, :, 37, 2] = np.nan
        out, lse = case.attend()
        first = 37 if causal else 0
        assert np.isnan(out[:, :, first:]).all()
        assert np.isnan(lse[:, :, first:]).all()
        np.testing.assert_allclose(out[:, :, :first], expected[:, :, :first], rtol=2e-5,
                                   atol=1e-5)  # fmt: skip

    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_a_value_reaches_no_row_before_it(self, kernel, causal, poison):
        case = problem(num_queries=150, num_keys=150, kernel=kernel, causal=causal)
        expected, *_ = case.reference()
        case.value[:, :, [40, 60], 2] = poison
        out, lse = case.attend()
        first = 40 if causal else 0
        assert not np.isfinite(out[:, :, first:, 2]).any()
        assert np.isfinite(lse).all()
        out[:, :, first:, 2] = expected[:, :, first:, 2]
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=1e-5)

    def test_batch_mates_do_not_matter(self, kernel, causal):
        case = problem(batch=3, num_queries=40, num_keys=40, kernel=kernel, causal=causal)
        case.key[1] *= 10
        case.query[1] *= 10
        out, lse = case.attend()
        for b in range(3):
            one = slice(b, b + 1)
            alone = replace(
                case, query=case.query[one], key=case.key[one], value=case.value[one]
            )
            np.testing.assert_allclose(out[one], alone.attend()[0], rtol=2e-5, atol=4e-6)
            np.testing.assert_allclose(lse[one], alone.attend()[1], rtol=2e-5, atol=4e-6)

    def test_threads_do_not_change_a_bit(self, kernel, causal, backend):
        for batch, length in ((1, 9000), (5, 300)):
            case = problem(batch=batch, heads=1, num_queries=length, num_keys=length, dim=16,
                           num_features=70, kernel=kernel, causal=causal)  # fmt: skip
            for a, b in zip(case.attend(1), case.attend(3), strict=True):
                if backend[0] == "native":
                    np.testing.assert_array_equal(a, b)
                else:
                    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


class TestExponentials:
    """What only the stabilised exponentials have to stand."""

    @causal
    @pytest.mark.parametrize("norm", [10.0, 1e3, 1e6, 1e15])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_large_norms_stay_finite_and_in_the_hull(self, norm, causal, dtype):
        case = problem(num_queries=130, num_keys=130, dim=32, dim_v=5, num_features=64,
                       norm=norm, causal=causal, dtype=dtype)  # fmt: skip
        out, lse = case.attend()
        assert np.isfinite(out).all()
        assert np.isfinite(lse).all()
        value = case.value
        if causal:
            low, high = (f.accumulate(value, axis=2) for f in (np.minimum, np.maximum))
        else:
            low, high = (f(value, axis=2, keepdims=True) for f in (np.min, np.max))
        assert (out >= low - 1e-5).all()
        assert (out <= high + 1e-5).all()

    @causal
    def test_norms_of_any_size_in_one_sequence(self, causal):
        case = problem(heads=1, num_queries=200, num_keys=200, dim=16, num_features=50,
                       causal=causal, dtype="float64")  # fmt: skip
        rng = np.random.default_rng(1)
        case.key *= np.exp(rng.uniform(-3, 5, (1, 1, 200, 1)))
        case.query *= np.exp(rng.uniform(-3, 5, (1, 1, 200, 1)))
        case.check(slack=30)

    @pytest.mark.parametrize("factor", [0.0, 1e-20])
    def test_tiny_vectors_average(self, factor):
        case = scaled(problem(num_queries=3, num_keys=50), np.float32(factor))
        out, _ = case.attend()
        mean = np.broadcast_to(case.value.mean(axis=2, keepdims=True), out.shape)
        np.testing.assert_allclose(out, mean, rtol=1e-5, atol=1e-6)

    def test_a_rising_prefix_maximum(self):
        """Each key's exponents are far above all before it: what was summed must vanish."""
        case = problem(heads=1, num_queries=100, num_keys=100, dim=4, causal=True,
                       dtype="float64", num_features=9)  # fmt: skip
        case.key[0, 0] = case.key[0, 0, :1] * np.linspace(60, 0, 100)[:, None]
        case.check(slack=30)
        single = replace(
            case,
            **{n: getattr(case, n).astype(np.float32) for n in ("query", "key", "value")},
            features=replace(
                case.features, projection=case.features.projection.astype(np.float32)
            ),
            dtype="float32",
        )
        single.check(slack=50)

    @causal
    def test_epsilon_counts(self, causal):
        for epsilon in (0.0, 0.1):
            problem(num_queries=40, num_keys=40, causal=causal, epsilon=epsilon).check()


@kernels
class TestState:
    @pytest.mark.parametrize("bias", [None, "hidden", "float"])
    @pytest.mark.parametrize("dtype", STORAGE)
    def test_is_what_it_says(self, kernel, dtype, bias):
        case = problem(batch=2, num_keys=130, dim=17, dim_v=9, num_features=40, kernel=kernel,
                       dtype=dtype, bias=bias)  # fmt: skip
        state = case.state()
        exact = dtype == "float64"
        for b, h in np.ndindex(2, 2):
            options = case.options() | {"bias": None if bias is None else case.bias[b]}
            wanted = reference_linear.state(
                to_float64(case.key)[b, h],
                to_float64(case.value)[b, h],
                case.features.projection,
                **options,
            )
            for got, want in zip(state, wanted, strict=True):
                scale = np.abs(want).max() if np.size(want) else 1
                np.testing.assert_allclose(
                    got[b, h],
                    want,
                    rtol=1e-10 if exact else 1e-4,
                    atol=(1e-12 if exact else 1e-5) * scale,
                )

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("bias", [None, "hidden"])
    def test_append_merge_and_batch_agree(self, kernel, dtype, bias):
        case = problem(num_queries=33, num_keys=90, num_features=37, kernel=kernel,
                       dtype=dtype, bias=bias)  # fmt: skip
        case.check()
        whole = case.read(case.state())
        case.compare(*whole)
        one_by_one = case.state(keys=slice(0, 0))
        for j in range(90):
            case.absorb(one_by_one, slice(j, j + 1))
        case.compare(*case.read(one_by_one))
        parts = [case.state(keys=keys) for keys in (slice(0, 31), slice(31, 31), slice(31, 90))]
        merged = case.state(keys=slice(0, 0))
        for part in parts:
            _kernels.linear.merge(merged, part)
        case.compare(*case.read(merged))
        for state in (one_by_one, merged):
            for a, b in zip(state, case.state(), strict=True):
                scale = np.abs(b).max()
                bound = 1e-12 if dtype == "float64" else 3e-6
                np.testing.assert_allclose(a, b, rtol=0, atol=bound * scale)

    def test_no_keys(self, kernel):
        case = problem(num_queries=40, kernel=kernel)
        empty = case.state(keys=slice(0, 0))
        for a, b in zip(empty, new_state(1, 2, len(case.features.projection), 8, kernel),
                        strict=True):  # fmt: skip
            np.testing.assert_array_equal(a, b)
        out, lse = case.read(empty)
        assert (out == 0).all()
        assert (lse == -np.inf).all()
        state = case.state()
        for a, b in ((state, empty), (empty, state)):
            with quiet():
                _kernels.linear.merge(a, b)
            case.compare(*case.read(a))

    def test_threads_do_not_change_a_bit(self, kernel, backend):
        case = problem(heads=1, num_keys=20_000, num_queries=300, dim=16, num_features=70,
                       kernel=kernel)  # fmt: skip
        one, three = case.state(1), case.state(3)
        for a, b in zip(one, three, strict=True):
            if backend[0] == "native":
                np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5 * np.abs(b).max())
        for a, b in zip(case.read(one, 1), case.read(one, 3), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


@given(
    seed=st.integers(0, 2**32 - 1),
    kernel=st.sampled_from(KERNELS),
    lengths=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 70)),
    bias=st.sampled_from([None, "hidden", "float"]),
    causal=st.booleans(),
)
def test_any_problem(seed, kernel, lengths, widths, bias, causal):
    dim, dim_v, num_features = widths
    problem(seed, kernel=kernel, heads=1, num_queries=lengths[0], num_keys=lengths[1], dim=dim,
            dim_v=dim_v, num_features=num_features, bias=bias, causal=causal,
            dtype="float64").check(slack=10)  # fmt: skip


@given(seed=st.integers(0, 1000), cut=st.integers(0, 60), kernel=st.sampled_from(KERNELS))
def test_causal_rows_see_their_prefix(seed, cut, kernel):
    """A causal row equals the same row over the keys up to it alone."""
    case = problem(seed, kernel=kernel, num_queries=61, num_keys=61, causal=True)
    out, lse = case.attend()
    alone = replace(case, query=case.query[:, :, cut : cut + 1], key=case.key[:, :, : cut + 1],
                    value=case.value[:, :, : cut + 1], causal=False)  # fmt: skip
    expected, expected_lse = alone.attend()
    np.testing.assert_allclose(out[:, :, cut : cut + 1], expected, rtol=5e-5, atol=1e-5)
    np.testing.assert_allclose(lse[:, :, cut : cut + 1], expected_lse, rtol=2e-5, atol=1e-5)
