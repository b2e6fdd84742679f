"""scaled_dot_product_attention against torch on everything that torch can do on a CPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import ruvector

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]

# bfloat16 results of both sides are rounded, and torch rounds the weights too.
TOLERANCES = {
    torch.float32: (2e-5, 4e-6),
    torch.float64: (1e-11, 1e-12),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 2e-3),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def compare(query, key, value, attn_mask=None, **keywords):
    """Run both on the same tensors and compare what comes out."""
    theirs = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, **keywords
    )
    ours = ruvector.scaled_dot_product_attention(query, key, value, attn_mask, **keywords)
    rtol, atol = TOLERANCES[query.dtype]
    assert ours.shape == tuple(theirs.shape)
    assert ours.dtype.name == str(query.dtype).removeprefix("torch.")
    np.testing.assert_allclose(
        ours.astype(np.float64), theirs.double().numpy(), rtol=rtol, atol=atol
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(
    ("length", "num_keys"), list(itertools.product((1, 7, 16, 33), (1, 15, 32, 97)))
)
def test_lengths(length, num_keys, is_causal, dtype):
    query = normal(2, 3, length, 16, dtype=dtype)
    key, value = (normal(2, 3, num_keys, 16, seed=i, dtype=dtype) for i in (1, 2))
    compare(query, key, value, is_causal=is_causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 8, 31, 64, 130])
@pytest.mark.parametrize("dim_v", [1, 8, 33, 64])
def test_widths(dim, dim_v, dtype):
    query, key = normal(1, 2, 9, dim, dtype=dtype), normal(1, 2, 12, dim, seed=1, dtype=dtype)
    compare(query, key, normal(1, 2, 12, dim_v, seed=2, dtype=dtype))


MASK_SHAPES = [
    (4, 5),
    (1, 5),
    (4, 1),
    (1, 1),
    (3, 4, 5),
    (1, 4, 5),
    (3, 1, 1),
    (2, 3, 4, 5),
    (2, 1, 1, 5),
    (2, 1, 4, 1),
    (1, 3, 4, 5),
    (1, 1, 1, 1),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks(kind, shape, dtype):
    query = normal(2, 3, 4, 8, dtype=dtype)
    key, value = (normal(2, 3, 5, 8, seed=i, dtype=dtype) for i in (1, 2))
    mask = normal(*shape, seed=3) > -0.3
    if kind == "float":
        mask = normal(*shape, seed=4).masked_fill(~mask, -torch.inf).to(dtype)
    compare(query, key, value, mask)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_rows_that_see_nothing(kind, dtype):
    query = normal(2, 3, 4, 8, dtype=dtype)
    key, value = (normal(2, 3, 5, 8, seed=i, dtype=dtype) for i in (1, 2))
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1] = False
    if kind == "float":
        mask = torch.zeros(4, 5).masked_fill(~mask, -torch.inf).to(dtype)
    compare(query, key, value, mask)
    out = ruvector.scaled_dot_product_attention(query, key, value, mask)
    assert not out[:, :, 1].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 1), (4, 2), (6, 3), (6, 6)])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
def test_grouped_heads(heads, key_heads, is_causal, dtype):
    query = normal(2, heads, 7, 16, dtype=dtype)
    key, value = (normal(2, key_heads, 9, 16, seed=i, dtype=dtype) for i in (1, 2))
    compare(query, key, value, is_causal=is_causal, enable_gqa=True)
    mask = normal(7, 9) > 0
    mask[:, 0] = True
    compare(query, key, value, mask, enable_gqa=True)


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 8), (5, 8)),
        ((3, 4, 8), (3, 5, 8)),
        ((3, 4, 8), (5, 8)),
        ((4, 8), (3, 5, 8)),
        ((2, 1, 4, 8), (1, 3, 5, 8)),
        ((2, 3, 2, 4, 8), (1, 3, 2, 5, 8)),
        ((2, 1, 2, 4, 8), (3, 2, 5, 8)),
        ((6, 1, 2, 2, 4, 8), (1, 5, 1, 2, 5, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batch_axes(shapes, dtype):
    query, key = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes))
    compare(query, key, key.flip(-1))


@pytest.mark.parametrize("scale", [None, 0.0, 1.0, -0.5, 3.0])
def test_scale(scale):
    query, key = normal(2, 4, 8), normal(2, 5, 8, seed=1)
    compare(query, key, key, scale=scale)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
        lambda x: x.repeat_interleave(2, dim=2)[:, :, ::2],
        lambda x: x[:1, :1].expand(x.shape),
        lambda x: x.clone().requires_grad_(),
    ],
    ids=["(B, L, H, D)", "transposed", "columns", "rows", "expanded", "requires grad"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(change, dtype):
    arrays = [change(normal(2, 3, n, 8, seed=n, dtype=dtype)) for n in (4, 5, 5)]
    with torch.no_grad():
        compare(*arrays)


def test_wide_range_of_scores():
    query, key, value = (normal(2, n, 16, seed=n, dtype=torch.float64) for n in (9, 33, 33))
    compare(100 * query, 100 * key, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_out_is_a_tensor(dtype):
    query, key = normal(2, 4, 8, dtype=dtype), normal(2, 5, 8, seed=1, dtype=dtype)
    out = torch.empty_like(query)
    assert ruvector.scaled_dot_product_attention(query, key, key, out=out) is out
    wanted = ruvector.scaled_dot_product_attention(query, key, key)
    assert np.array_equal(out.float().numpy(), wanted.astype(np.float32))


def test_error_is_no_larger_than_torchs():
    query, key, value = (normal(1, 4, 256, 64, seed=i) for i in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(
        query.double(), key.double(), value.double()
    ).numpy()
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value).numpy()
    ours = ruvector.scaled_dot_product_attention(query, key, value)
    error, their_error = (np.sqrt(np.mean((x - exact) ** 2)) for x in (ours, theirs))
    assert error <= 1.5 * their_error
