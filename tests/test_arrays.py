"""User input as storage arrays: what is copied, what becomes of a dtype, what is refused."""

from __future__ import annotations

from array import array
from collections import deque

import numpy as np
import pytest

import ruvector
from ruvector import _arrays
from ruvector._arrays import BFLOAT16, contiguous_rows, floating, integers, vectors

FLOATS = (np.float16, np.float32, np.float64)


def misaligned(x):
    raw = np.frombuffer(b"\0" + x.tobytes(), np.uint8)
    return raw[1:].view(x.dtype).reshape(x.shape)


class OnlyDLPack:
    """An exporter that NumPy can read through DLPack alone."""

    def __init__(self, x):
        self._x = x

    def __dlpack__(self, **keywords):
        return self._x.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self._x.__dlpack_device__()


class OnlyArray:
    """An exporter that NumPy can read through ``__array__`` alone."""

    def __init__(self, x):
        self._x = x

    def __array__(self, dtype=None, copy=None):
        return self._x


class TestWithoutACopy:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_ndarray_is_itself(self, dtype):
        x = np.ones((3, 4), dtype)
        assert floating(x, "x") is x

    @pytest.mark.parametrize(
        "index",
        [
            np.s_[::2],
            np.s_[::-1],
            np.s_[:, 1:3],
            np.s_[:0],
        ],
        ids=str,
    )
    def test_strided_rows(self, index):
        x = np.arange(20, dtype=np.float32).reshape(5, 4)[index]
        assert contiguous_rows(floating(x, "x"), x.dtype) is x

    def test_read_only(self):
        x = np.ones((3, 4), np.float32)
        x.flags.writeable = False
        assert contiguous_rows(floating(x, "x"), x.dtype) is x

    def test_broadcast_rows(self):
        x = np.broadcast_to(np.ones(4, np.float32), (1000, 4))
        assert contiguous_rows(x, x.dtype) is x

    @pytest.mark.parametrize(
        "wrap",
        [
            memoryview,
            OnlyDLPack,
            OnlyArray,
            lambda x: x.view(np.recarray),
            lambda x: array("f", x.ravel()),
        ],
        ids=["memoryview", "dlpack", "__array__", "subclass", "array.array"],
    )
    def test_exporters(self, wrap):
        wrapped = wrap(np.arange(12, dtype=np.float32).reshape(3, 4))
        x = floating(wrapped, "x")
        assert type(x) is np.ndarray
        assert x.dtype == np.float32
        again = floating(wrapped, "x")
        assert np.shares_memory(x, again)
        assert np.array_equal(x.ravel(), np.arange(12))

    @pytest.mark.peers
    def test_torch(self):
        torch = pytest.importorskip("torch")
        tensor = torch.arange(12.0).reshape(3, 4).requires_grad_()
        x = floating(tensor, "x")
        assert x.ctypes.data == tensor.data_ptr()
        assert floating(tensor.T, "x").strides == (4, 16)

    @pytest.mark.peers
    def test_torch_bfloat16_is_its_bits(self):
        torch = pytest.importorskip("torch")
        tensor = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)
        x = floating(tensor, "x")
        assert x.ctypes.data == tensor.data_ptr()
        assert x.dtype == BFLOAT16
        assert x.tolist() == [[0x3F80, 0xC000]]

    def test_ml_dtypes_bfloat16_is_its_bits(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        given = np.array([[1.0, -2.0]], ml_dtypes.bfloat16)
        x = floating(given, "x")
        assert np.shares_memory(x, given)
        assert x.tolist() == [[0x3F80, 0xC000]]


class TestOneCopy:
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_other_byte_order(self, dtype):
        x = np.arange(6, dtype=dtype).reshape(2, 3)
        got = floating(x.astype(x.dtype.newbyteorder()), "x")
        assert got.dtype == dtype
        assert np.array_equal(got, x)

    @pytest.mark.parametrize(
        "make",
        [
            np.asfortranarray,
            lambda x: np.repeat(x, 2, axis=1)[:, ::2],
            lambda x: x[:, ::-1].copy()[:, ::-1],
            misaligned,
        ],
        ids=["fortran", "strided", "reversed", "misaligned"],
    )
    def test_rows_that_are_not_contiguous(self, make):
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        given = make(x)
        got = contiguous_rows(floating(given, "x"), x.dtype)
        assert got.flags.aligned
        assert got.strides[-1] == 4
        assert not np.shares_memory(got, given)
        assert np.array_equal(got, x)

    def test_misaligned_masks_and_integers(self):
        bias, numbers = misaligned(np.ones((2, 3), np.float32)), misaligned(np.arange(4))
        assert not bias.flags.aligned
        assert _arrays.cast(bias, bias.dtype).flags.aligned
        assert integers(numbers, "x").flags.aligned
        assert integers(numbers, "x").tolist() == [0, 1, 2, 3]

    def test_a_broadcast_axis_is_converted_once(self):
        x = np.broadcast_to(np.ones((1, 3, 4)), (10**9, 3, 4))
        got = contiguous_rows(x, np.dtype(np.float32))
        assert got.shape == x.shape
        assert got.dtype == np.float32
        assert got.strides[0] == 0

    def test_float64_beyond_float32_is_infinite_without_a_warning(self):
        assert _arrays.cast(np.array([-1e300]), np.dtype(np.float32))[0] == -np.inf

    @pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint16, ">i4"])
    def test_integers_become_float32(self, dtype):
        x = np.array([[0, 1], [1, 0]], dtype)
        got = floating(x, "x")
        assert got.dtype == np.float32
        assert np.array_equal(got, [[0, 1], [1, 0]])


class TestSequences:
    @pytest.mark.parametrize(
        "given",
        [
            [[1.0, 2.0], [3.0, 4.0]],
            ((1, 2), (3, 4)),
            [[True, 2], [3.5, 4]],
            [],
        ],
    )
    def test_nested_numbers_are_float32(self, given):
        assert floating(given, "x").dtype == np.float32

    def test_numpy_scalars_keep_their_dtype(self):
        assert floating([np.float64(1), np.float64(2)], "x").dtype == np.float64

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_vectors_keep_their_dtype(self, dtype):
        rows = [np.arange(3, dtype=dtype) + i for i in range(4)]
        got = floating(rows, "x")
        assert got.dtype == dtype
        assert np.array_equal(got, np.stack(rows))

    def test_vectors_of_any_kind_promote(self):
        got = floating([array("f", [1, 2]), memoryview(array("d", [3, 4])), np.arange(2)], "x")
        assert got.dtype == np.float64
        assert np.array_equal(got, [[1, 2], [3, 4], [0, 1]])

    def test_integer_vectors_beside_float_vectors(self):
        assert floating([np.arange(2), np.ones(2, np.float16)], "x").dtype == np.float32

    def test_nested_vectors(self):
        got = floating([[np.ones(2, np.float64)] * 3] * 4, "x")
        assert (got.shape, got.dtype) == ((4, 3, 2), np.float64)

    @pytest.mark.peers
    def test_torch_vectors(self):
        torch = pytest.importorskip("torch")
        got = floating([torch.ones(3, dtype=torch.bfloat16, requires_grad=True)] * 2, "x")
        assert (got.shape, got.dtype) == ((2, 3), BFLOAT16)
        got = floating([torch.ones(3, dtype=torch.bfloat16), np.ones(3, np.float32)], "x")
        assert np.array_equal(got, np.ones((2, 3), np.float32))

    def test_other_sequences(self):
        assert floating(range(3), "x").dtype == np.float32
        assert np.array_equal(floating(deque([1.5, 2.5]), "x"), [1.5, 2.5])

    def test_no_vectors(self):
        assert vectors([], "keys").shape == (0, 0)
        assert vectors(np.empty((0, 3)), "keys").shape == (0, 3)

    def test_ragged_numbers(self):
        with pytest.raises(
            ruvector.DimensionMismatchError, match=r"^keys must have rows of one"
        ):
            floating([[1.0, 2.0], [3.0]], "keys")

    def test_ragged_vectors(self):
        message = r"^keys\[1\] must have shape \(2,\) like keys\[0\], got \(3,\)$"
        with pytest.raises(ruvector.DimensionMismatchError, match=message):
            floating([np.ones(2), np.ones(3)], "keys")


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "got"),
        [
            (np.ones(2, complex), "complex128"),
            ([1j], "complex128"),
            ([np.ones(2, complex)] * 2, "complex128"),
            (["1.0"], "<U3"),
            ("1.0", "<U3"),
            (b"1.0", "|S3"),
            (None, "object"),
            ([None, 1.0], "object"),
            ({1.0}, "object"),
            (np.ones(2, object), "object"),
            (np.ones(2, "m8[s]"), r"timedelta64\[s\]"),
            (np.ones(2, [("a", "f4")]), r"\[\('a', '<f4'\)\]"),
        ],
    )
    def test_what_is_not_a_real_number(self, given, got):
        with pytest.raises(
            TypeError, match=rf"^keys(\[0\])? must hold real.* got dtype {got}$"
        ):
            floating(given, "keys")

    @pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is double")
    def test_masked_arrays_would_lose_their_mask(self):
        masked = np.ma.array([1.0, 2.0], mask=[True, False])
        for wrong in (masked, [masked, masked]):
            with pytest.raises(TypeError, match=r"^keys.* is a masked array"):
                floating(wrong, "keys")

    def test_long_double(self):
        with pytest.raises(TypeError, match=r"^x must hold real numbers"):
            floating(np.ones(2, np.longdouble), "x")

    def test_mixed_vectors_name_the_wrong_one(self):
        with pytest.raises(TypeError, match=r"^keys\[1\] must hold real .*complex128"):
            floating([np.ones(2), np.ones(2, complex)], "keys")

    @pytest.mark.peers
    def test_torch(self):
        torch = pytest.importorskip("torch")
        for wrong in (
            torch.ones(2, dtype=torch.complex64),
            torch.ones(2, dtype=torch.complex64).conj(),
            torch.ones(2, dtype=torch.float8_e4m3fn),
        ):
            with pytest.raises(TypeError, match=r"^x must hold real numbers"):
                floating(wrong, "x")
        for wrong in (torch.ones(2, device="meta"), torch.eye(2).to_sparse()):
            with pytest.raises(TypeError, match=r"^x must be a dense CPU tensor"):
                floating(wrong, "x")

    @pytest.mark.peers
    def test_dlpack_of_what_numpy_cannot_hold(self):
        torch = pytest.importorskip("torch")
        with pytest.raises(TypeError, match=r"^x cannot be read through DLPack"):
            floating(OnlyDLPack(torch.ones(2, dtype=torch.bfloat16)), "x")

    def test_integers(self):
        assert integers([], "x").tolist() == []
        assert integers(np.int32(3), "x").shape == ()
        assert integers(np.arange(6, dtype=">u2")[::2], "x").tolist() == [0, 2, 4]
        for wrong in ([0.0, 1.0], [True], np.ones(2, complex), "12"):
            with pytest.raises(TypeError, match=r"^x must hold integers, got dtype"):
                integers(wrong, "x")

    @pytest.mark.parametrize("dtype", ["<u8", ">u8"])
    def test_integers_beyond_int64(self, dtype):
        assert integers(np.array([2**63 - 1, 0], dtype), "x").tolist() == [2**63 - 1, 0]
        with pytest.raises(ruvector.InvalidConfigError) as caught:
            integers(np.array([0, 2**63], dtype), "x")
        assert str(caught.value) == (
            "x must hold integers that fit int64, got 9223372036854775808"
        )

    @pytest.mark.parametrize("number", [2**63, 2**64, 2**70, -(2**63) - 1])
    @pytest.mark.parametrize("kind", [list, tuple])
    def test_python_integers_beyond_int64(self, kind, number):
        with pytest.raises(ruvector.InvalidConfigError, match=rf"^x must .*, got {number}$"):
            integers(kind([[0, 1], [-1, number]]), "x")


class TestPromotion:
    @pytest.mark.parametrize("a", FLOATS)
    @pytest.mark.parametrize("b", FLOATS)
    def test_is_numpys(self, a, b):
        assert _arrays.promote(np.empty(1, a), np.empty(1, b)) == np.promote_types(a, b)

    @pytest.mark.parametrize(
        ("other", "expected"),
        [
            (BFLOAT16, BFLOAT16),
            (np.float16, np.float32),
            (np.float32, np.float32),
            (np.float64, np.float64),
        ],
    )
    def test_bfloat16(self, other, expected):
        x, y = np.empty(1, BFLOAT16), np.empty(1, other)
        assert _arrays.promote(x, y) == _arrays.promote(y, x, x) == expected

    def test_widened_bfloat16_is_exact(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        x = np.array([[1.5, -np.inf, 3e38, 1e-40, 0.0]], ml_dtypes.bfloat16)
        for dtype in (np.float32, np.float64):
            got = contiguous_rows(floating(x, "x"), np.dtype(dtype))
            assert np.array_equal(got, x.astype(dtype))
