"""The compiled vector utilities against their NumPy twin, function by function."""

from __future__ import annotations

import numpy as np
import pytest

from ruvector import _kernels
from ruvector._kernels.fallback import utils as twin

SIZES = [1, 7, 15, 16, 17, 31, 32, 33, 97]
ROWS = [1, 2, 9, 33, 65, 130]
FLOATS = [np.float32, np.float64]
RTOL = {np.float32: 1e-6, np.float64: 1e-13}
ATOL = {np.float32: 1e-7, np.float64: 1e-14}

pytestmark = pytest.mark.usefixtures("backend")

# Name, further arguments, shape of the result for (rows, d).
ONE_MATRIX = {
    "softmax": ((1.0,), lambda n, d: (n, d)),
    "l2_norm": ((), lambda n, d: (n,)),
    "normalize": ((), lambda n, d: (n, d)),
    "batch_normalize": ((1e-8,), lambda n, d: (n, d)),
    "pairwise_distances": ((), lambda n, d: (n, n)),
}
IN_PLACE = ["softmax", "normalize", "batch_normalize"]


@pytest.fixture(params=FLOATS, ids=["f32", "f64"])
def dtype(request):
    return request.param


def random(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def call(module, name, x, out, **keywords):
    """Call a function of one matrix, its arguments in their order."""
    arguments, _ = ONE_MATRIX[name]
    function = getattr(module, name)
    if name == "pairwise_distances":
        return function(x, out, keywords.get("threads", 1))
    return function(x, *keywords.get("arguments", arguments), out)


def compare(name, x, arguments=None):
    """Compute with both twins, between guards, and return what they agree on."""
    keywords = {} if arguments is None else {"arguments": arguments}
    shape = ONE_MATRIX[name][1](*x.shape)
    expected = np.empty(shape, x.dtype)
    buffer = np.full(expected.size + 64, 7, x.dtype)
    # One element behind a vector's boundary, so that no kernel may rely on alignment.
    out = buffer[17 : 17 + expected.size].reshape(shape)
    before = x.copy()
    returned = call(twin, name, x, expected, **keywords)
    assert call(_kernels.utils, name, x, out, **keywords) is returned
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(buffer[:17], 7)
    np.testing.assert_array_equal(buffer[17 + expected.size :], 7)
    if returned is False:
        np.testing.assert_array_equal(out, 7)
    else:
        close(out, expected)
    return out


def close(actual, expected):
    kind = expected.dtype.type
    np.testing.assert_allclose(actual, expected, rtol=RTOL[kind], atol=ATOL[kind])


class TestTwins:
    @pytest.mark.parametrize("name", ONE_MATRIX)
    @pytest.mark.parametrize("d", SIZES)
    @pytest.mark.parametrize("rows", ROWS)
    def test_values(self, name, rows, d, dtype):
        compare(name, random((rows, d), dtype))

    @pytest.mark.parametrize("name", ONE_MATRIX)
    @pytest.mark.parametrize("d", [300, 1030])
    def test_long_rows(self, name, d, dtype):
        compare(name, random((70, d), dtype))

    @pytest.mark.parametrize("name", ONE_MATRIX)
    def test_unaligned_rows(self, name, dtype):
        x = random(33 * 17 + 1, dtype)[1:].reshape(33, 17)
        x.flags.writeable = False
        compare(name, x)

    @pytest.mark.parametrize("name", ONE_MATRIX)
    @pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
    def test_empty(self, name, shape, dtype):
        compare(name, np.empty(shape, dtype))

    @pytest.mark.parametrize("name", ONE_MATRIX)
    @pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("d", [1, 16, 33, 97])
    def test_not_finite(self, name, d, special, dtype):
        for column in {0, d // 2, d - 1}:
            x = random((37, d), dtype)
            x[5, column] = special
            x[6] = special
            x[-1, column] = special
            compare(name, x)
            x[-1, column] *= -1
            compare(name, x)

    @pytest.mark.parametrize("name", ["l2_norm", "normalize", "pairwise_distances"])
    @pytest.mark.parametrize("d", [1, 7, 33])
    def test_magnitudes(self, name, d, dtype):
        limits = np.finfo(dtype)
        x = random((24, d), dtype)
        x /= np.abs(x).max()
        with np.errstate(under="ignore", over="ignore"):
            x[::4] *= limits.max / 4
            x[1::4] *= limits.smallest_subnormal * 64
            x[2::4] *= np.sqrt(limits.tiny)
        x[:, 0] += x[:, 0] == 0
        compare(name, x)

    @pytest.mark.parametrize("name", ["l2_norm", "normalize"])
    def test_one_magnitude_after_another(self, name, dtype):
        low, high = (-149, 128) if dtype == np.float32 else (-1074, 1024)
        x = np.ldexp(np.ones((high - low, 1)), np.arange(low, high)[:, None]).astype(dtype)
        exact = x[:, 0] if name == "l2_norm" else np.ones_like(x)
        np.testing.assert_array_equal(compare(name, x), exact)


class TestSoftmax:
    @pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-3, 0.3, 7.0, 1e40, 1e300])
    @pytest.mark.parametrize("d", [1, 16, 33])
    def test_temperature(self, d, temperature, dtype):
        x = random((9, d), dtype)
        x[3, 0] = -np.inf
        x[4] = -np.inf
        x[5, 0] = np.inf
        x[6, 0] = np.nan
        compare("softmax", x, (temperature,))

    def test_large_offsets(self, dtype):
        x = random((9, 33), dtype)
        x[::2] += np.array(1e6, dtype)
        x[1] = [np.finfo(dtype).max, -np.finfo(dtype).max, 0] * 11
        compare("softmax", x)

    def test_many_equal_entries(self, dtype):
        x = np.zeros((2, 300_007), dtype)
        out = compare("softmax", x)
        np.testing.assert_allclose(out, 1 / 300_007, rtol=2e-7)


class TestInPlace:
    @pytest.mark.parametrize("name", IN_PLACE)
    @pytest.mark.parametrize("d", SIZES)
    def test_same_as_fresh(self, name, d, dtype):
        x = random((33, d), dtype)
        x[3, 0] = np.nan
        expected = np.empty_like(x)
        call(_kernels.utils, name, x, expected)
        call(_kernels.utils, name, x, x)
        np.testing.assert_array_equal(x, expected)

    def test_extreme_temperature(self, dtype):
        x = random((5, 33), dtype)
        expected = np.empty_like(x)
        _kernels.utils.softmax(x, 1e-200, expected)
        _kernels.utils.softmax(x, 1e-200, x)
        np.testing.assert_array_equal(x, expected)


class TestZeroRows:
    @pytest.mark.parametrize("d", [1, 16, 33])
    @pytest.mark.parametrize("row", [0, 4, 8])
    def test_normalize(self, row, d, dtype):
        x = random((9, d), dtype)
        x[row] = 0
        compare("normalize", x)
        before = x.copy()
        assert _kernels.utils.normalize(x, x) is False
        np.testing.assert_array_equal(x, before)
        for value in (np.finfo(dtype).smallest_subnormal, np.nan):
            x[row, -1] = value
            compare("normalize", x)


class TestCosine:
    @staticmethod
    def compare(a, b):
        count = len(b) if len(a) == 1 else len(a)
        expected, out = np.full(count, 7, a.dtype), np.full(count, 7, a.dtype)
        returned = twin.cosine_similarity(a, b, expected)
        assert _kernels.utils.cosine_similarity(a, b, out) is returned
        close(out, expected)
        return returned

    @pytest.mark.parametrize("d", SIZES)
    @pytest.mark.parametrize(
        ("m", "n"), [(1, 1), (1, 9), (9, 1), (9, 9), (1, 0), (0, 1), (0, 0)]
    )
    def test_values(self, m, n, d, dtype):
        assert self.compare(random((m, d), dtype), random((n, d), dtype, 1))

    @pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, special, dtype):
        a, b = random((9, 17), dtype), random((9, 17), dtype, 1)
        a[1, 3], a[2], b[3, 16], b[2, 5] = special, special, special, special
        assert self.compare(a, b)

    def test_magnitudes(self, dtype):
        limits = np.finfo(dtype)
        factors = np.array(
            [1, limits.max / 8, limits.smallest_subnormal * 1024, np.sqrt(limits.tiny)]
        )
        a, b = random((16, 17), np.float64), random((16, 17), np.float64, 1)
        a = (a * np.repeat(factors, 4)[:, None]).astype(dtype)
        b = (b * np.tile(factors, 4)[:, None]).astype(dtype)
        assert self.compare(a, b)

    def test_zero_rows(self, dtype):
        a, zero = random((9, 17), dtype), np.zeros((1, 17), dtype)
        b = a.copy()
        b[8] = 0
        assert not self.compare(a, b)
        assert not self.compare(b, a)
        assert not self.compare(a, zero)
        assert not self.compare(zero, np.empty((0, 17), dtype))
        assert not self.compare(np.empty((3, 0), dtype), np.empty((3, 0), dtype))


class TestPairwiseDistances:
    @pytest.mark.parametrize("d", [1, 16, 17, 300])
    @pytest.mark.parametrize("rows", [63, 64, 65, 129, 200])
    def test_bits_do_not_depend_on_threads(self, rows, d, dtype):
        x = random((rows, d), dtype)
        one, many = np.empty((rows, rows), dtype), np.empty((rows, rows), dtype)
        _kernels.utils.pairwise_distances(x, one, 1)
        np.testing.assert_array_equal(one, one.T)
        np.testing.assert_array_equal(np.diag(one), 0)
        for threads in (2, 3, 7):
            _kernels.utils.pairwise_distances(x, many, threads)
            np.testing.assert_array_equal(many, one)

    def test_small_differences_of_large_vectors(self, dtype):
        limits = np.finfo(dtype)
        x = np.full((40, 9), limits.max / 2, dtype)
        x[:, 4] = limits.smallest_subnormal * np.arange(40)
        x[1::3, 0] = -limits.max / 2
        compare("pairwise_distances", x)

    def test_every_magnitude(self, dtype):
        low, high = (-149, 128) if dtype == np.float32 else (-1074, 1024)
        x = np.ldexp(np.ones((high - low, 1)), np.arange(low, high)[:, None]).astype(dtype)
        out = np.empty((len(x), len(x)), dtype)
        _kernels.utils.pairwise_distances(x, out, 1)
        np.testing.assert_allclose(out, np.abs(x - x.T), rtol=2.5 * np.finfo(dtype).eps, atol=0)

    def test_equal_rows(self, dtype):
        x = np.repeat(random((7, 33), dtype), 10, axis=0)
        out = compare("pairwise_distances", x)
        np.testing.assert_array_equal(out.reshape(7, 10, 7, 10)[range(7), :, range(7)], 0)
