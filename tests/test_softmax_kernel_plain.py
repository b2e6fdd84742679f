"""The fast path of one float32 query over contiguous float32 keys."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from softmax_cases import SIZES, quiet

from ruvector import _kernels

pytestmark = pytest.mark.usefixtures("backend")


def _arrays(n=17, dim=24, dim_v=16, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((dim,), (n, dim), (n, dim_v))
    )


def _attend(query, keys, values, heads=1, scale=0.3, lse=False, weights=False, threads=1):
    with quiet():
        return _kernels.softmax.attend_plain(
            query, keys, values, heads, scale, lse, weights, threads
        )


def _reference(query, keys, values, heads, scale):
    query, keys, values = (
        a.reshape(-1, heads, a.shape[-1] // heads).swapaxes(0, 1)[None]
        for a in (query[None], keys, values)
    )
    out, lse, weights = reference.attention(query, keys, values, scale=scale)
    return out.reshape(-1), lse[0, :, 0], weights[0, :, 0]


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("n", [*SIZES, 1000, 12_000])
def test_against_the_reference(n, heads):
    for dim, dim_v in ((8, 8), (24, 16), (40, 56), (384, 384)):
        arrays = _arrays(n, dim, dim_v)
        out, lse, weights = _attend(*arrays, heads=heads, lse=True, weights=True, threads=2)
        expected, expected_lse, expected_weights = _reference(*arrays, heads, 0.3)
        np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
        if heads == 1:
            expected_lse, expected_weights = expected_lse[0], expected_weights[0]
        np.testing.assert_allclose(lse, expected_lse, rtol=4e-6, atol=4e-6)
        np.testing.assert_allclose(weights, expected_weights, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dim", [1, 3, 7, 15, 17, 31, 33, 97])
def test_odd_widths(dim):
    arrays = _arrays(33, dim, dim + 1)
    expected, _, _ = _reference(*arrays, 1, 0.3)
    np.testing.assert_allclose(_attend(*arrays), expected, rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("heads", [1, 4])
def test_what_comes_back(heads):
    arrays = _arrays()
    out = _attend(*arrays, heads=heads)
    assert type(out) is np.ndarray
    assert (out.dtype, out.shape) == (np.float32, (16,))
    assert out.flags.owndata or out.base is not None
    with_lse = _attend(*arrays, heads=heads, lse=True)
    with_weights = _attend(*arrays, heads=heads, weights=True)
    with_both = _attend(*arrays, heads=heads, lse=True, weights=True)
    assert [len(r) for r in (with_lse, with_weights, with_both)] == [2, 2, 3]
    assert all(type(r) is tuple for r in (with_lse, with_weights, with_both))
    lse, weights = with_both[1:]
    assert lse.dtype == weights.dtype == np.float32
    assert np.shape(lse) == (() if heads == 1 else (heads,))
    assert weights.shape == ((17,) if heads == 1 else (heads, 17))
    if heads == 1:
        assert isinstance(lse, np.float32)
    for result in (with_lse, with_weights, with_both):
        np.testing.assert_array_equal(result[0], out)
    np.testing.assert_array_equal(with_lse[1], lse)
    np.testing.assert_array_equal(with_weights[1], weights)


def _unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    odd = raw[1:].view(np.float32).reshape(array.shape)
    odd[...] = array
    return odd


class _Subclass(np.ndarray):
    pass


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "change",
    [
        np.ndarray.tolist,
        lambda a: a.astype(np.float64),
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.int32),
        lambda a: a.astype(a.dtype.newbyteorder("S")),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a[..., ::-1],
        _unaligned,
        lambda a: a.view(_Subclass),
        lambda a: a[np.newaxis],
        lambda a: a[..., 0],
        lambda a: None,
    ],
    ids=[
        "list",
        "float64",
        "float16",
        "int32",
        "byte-swapped",
        "strided",
        "reversed",
        "misaligned",
        "subclass",
        "one axis more",
        "one axis less",
        "None",
    ],
)
def test_anything_else_is_for_the_general_path(which, change):
    arrays = list(_arrays())
    assert _attend(*arrays) is not None
    arrays[which] = change(arrays[which])
    assert _attend(*arrays) is None


def test_shapes_that_do_not_fit():
    query, keys, values = _arrays()
    assert _attend(query[:-1].copy(), keys, values) is None
    assert _attend(query, keys[:-1], values) is None
    assert _attend(query, keys[:0], values[:0]) is None
    assert _attend(query, keys, values, heads=5) is None
    assert _attend(query, keys, values, heads=12) is None
    assert _attend(query, keys.T.copy(), values) is None
    assert _attend(query, np.asfortranarray(keys), values) is None


def test_read_only_and_shared_memory():
    query, keys, _ = _arrays(dim_v=24)
    expected, _, _ = _reference(query, keys, keys, 1, 0.3)
    for array in (query, keys):
        array.flags.writeable = False
    np.testing.assert_allclose(_attend(query, keys, keys), expected, rtol=2e-5, atol=4e-6)
    first = np.frombuffer(keys[0].tobytes(), np.float32)
    assert _attend(first, keys, keys) is not None


def test_inputs_are_left_alone():
    arrays = _arrays()
    before = [a.copy() for a in arrays]
    for heads in (1, 4):
        _attend(*arrays, heads=heads, lse=True, weights=True)
    for now, then in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("heads", [1, 4])
def test_nan_poisons_its_head_alone(heads):
    query, keys, values = _arrays()
    keys[3, 0] = np.nan
    out, lse, weights = _attend(query, keys, values, heads=heads, lse=True, weights=True)
    width = 16 // heads
    assert np.isnan(out[:width]).all()
    assert np.isfinite(out[width:]).all()
    assert np.isnan(np.ravel(lse)[0])
    assert np.isnan(weights.reshape(heads, -1)[0]).all()


@pytest.mark.parametrize("heads", [1, 4])
def test_scores_that_are_all_minus_infinity(heads):
    query, keys, values = _arrays()
    query[...] = 1
    keys[...] = -np.inf
    result = _attend(query, keys, values, heads=heads, lse=True)
    if result is not None:
        assert (result[0] == 0).all()
        assert np.all(result[1] == -np.inf)


def test_large_scores_stay_finite():
    out, lse = _attend(*_arrays(n=97), scale=1000.0, lse=True)
    assert np.isfinite(out).all()
    assert np.isfinite(lse)
