"""What the gradients of every class promise beside their values."""

from __future__ import annotations

import numpy as np

FLAGS = (
    {},
    {"return_lse": True},
    {"return_weights": True},
    {"return_lse": True, "return_weights": True},
)


def check_results(attention, arrays, **keywords):
    """Compare what comes beside the gradients with ``compute``, and their shapes and types."""
    mask = np.array([True, False, True, True, True])
    for flags in FLAGS:
        wanted = attention.compute(*arrays, mask=mask, **flags, **keywords)
        first = wanted[0] if flags else wanted
        got, gradients = attention.compute_with_gradients(
            *arrays, np.ones_like(first), mask=mask, **flags, **keywords
        )
        assert isinstance(got, tuple) == bool(flags)
        for a, b in zip(got if flags else (got,), wanted if flags else (wanted,), strict=True):
            np.testing.assert_array_equal(a, b)
        assert gradients.mask is None
        for part, x in zip(("query", "keys", "values"), arrays, strict=True):
            assert gradients[part].shape == x.shape
            assert gradients[part].dtype == np.float32
        learned = attention.parameters() if hasattr(attention, "parameters") else {}
        assert types(gradients.parameters) == types(learned)


def types(arrays):
    return {name: array.dtype for name, array in arrays.items()}


def check_dtype(attention, dtype, arrays, mask, grad):
    """Compare gradients in a storage type with float64 and return them."""
    arrays, mask = [x.astype(dtype) for x in arrays], mask.astype(dtype)
    wide = [x.astype(np.float64) for x in (*arrays, mask)]
    _, got = attention.compute_with_gradients(*arrays, grad, mask=mask)
    _, true = attention.compute_with_gradients(*wide[:3], grad, mask=wide[3])
    for name in ("query", "keys", "values", "mask"):
        assert got[name].dtype == dtype
        error = np.abs(got[name].astype(np.float64) - true[name]).max()
        assert error < {"float64": 1e-12, "float32": 1e-5}.get(np.dtype(dtype).name, 0.03)
    return got
