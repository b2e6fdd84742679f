"""linear_attention over any number of batch axes."""

from __future__ import annotations

import numpy as np
import pytest
from linear_classes import DIM, FEATURES, KERNELS, near, normal

import ruvector
from ruvector import LinearAttention, linear_attention

pytestmark = pytest.mark.usefixtures("backend")

kernels = pytest.mark.parametrize("kernel", KERNELS)


class TestFunction:
    @pytest.mark.parametrize("causal", [False, True])
    @kernels
    def test_equals_the_class_head_by_head(self, kernel, causal):
        q, k = normal(2, 3, 20, DIM), normal(2, 3, 20, DIM, seed=1)
        v = normal(2, 3, 20, 5)
        out, lse = linear_attention(
            q, k, v, num_features=FEATURES, kernel=kernel, causal=causal, return_lse=True
        )
        attention = LinearAttention(DIM, FEATURES, kernel, causal=causal)
        for b, h in np.ndindex(2, 3):
            expected = attention.compute(q[b, h], k[b, h], v[b, h], return_lse=True)
            near(out[b, h], expected[0])
            near(lse[b, h], expected[1])

    def test_axes(self):
        q, k, v = normal(2, 3, 4, 9, DIM), normal(3, 1, 20, DIM), normal(20, 5)
        out, lse = linear_attention(q, k, v, num_features=FEATURES, return_lse=True)
        assert (out.shape, lse.shape) == ((2, 3, 4, 9, 5), (2, 3, 4, 9))
        attention = LinearAttention(DIM, FEATURES)
        for a, b, h in np.ndindex(2, 3, 4):
            near(out[a, b, h], attention.compute(q[a, b, h], k[b, 0], v))
        flat = linear_attention(q[0, 0, 0], k[0, 0], v, num_features=FEATURES, return_lse=True)
        assert (flat[0].shape, flat[1].shape) == ((9, 5), (9,))
        near(flat[0], out[0, 0, 0])

    def test_no_keys(self):
        out, lse = linear_attention(
            normal(2, 3, DIM), np.zeros((2, 0, DIM)), np.zeros((2, 0, 5)),
            num_features=FEATURES, return_lse=True,
        )  # fmt: skip
        assert (out == 0).all()
        assert (lse == -np.inf).all()

    def test_masks(self):
        q, k, v = normal(2, 3, 9, DIM), normal(2, 3, 20, DIM), normal(2, 3, 20, 5)
        each = normal(2, 20) > 0
        out = linear_attention(q, k, v, num_features=FEATURES, mask=each)
        for b in range(2):
            near(
                out[b], linear_attention(q[b], k[b], v[b], num_features=FEATURES, mask=each[b])
            )
        near(
            linear_attention(q, k, v, num_features=FEATURES, mask=each[:1])[1],
            linear_attention(q[1], k[1], v[1], num_features=FEATURES, mask=each[0]),
        )
        for wrong in ((9, 20), (2, 9, 20), (19,), ()):
            with pytest.raises(ruvector.InvalidMaskError) as caught:
                linear_attention(q, k, v, num_features=4, mask=np.ones(wrong, bool))
            assert str(caught.value) == (
                f"mask must have shape (20,) or (2, 20), got shape {wrong}"
            )

    def test_projection_and_out(self):
        q, k, v = normal(2, 9, DIM), normal(2, 20, DIM), normal(2, 20, DIM)
        attention = LinearAttention(DIM, FEATURES, seed=5)
        expected = linear_attention(q, k, v, num_features=FEATURES, seed=5)
        projection = attention.parameters()["projection"]
        out = linear_attention(q, k, v, num_features=FEATURES, projection=projection, out=q)
        assert out is q
        near(out, expected)

    def test_memory_layouts(self):
        q, k, v = (normal(2, 20, 3, DIM, seed=s) for s in range(3))
        out = linear_attention(*(x.swapaxes(1, 2) for x in (q, k, v)), num_features=FEATURES)
        packed = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (q, k, v))
        near(out, linear_attention(*packed, num_features=FEATURES))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"kernel": "gauss"}, ruvector.InvalidConfigError, "kernel must be 'softmax'"),
            (
                {"num_features": 0},
                ruvector.InvalidConfigError,
                "num_features must be an integer",
            ),
            ({"seed": None}, ruvector.InvalidConfigError, "seed must be an integer"),
            ({"ortho": 0}, ruvector.InvalidConfigError, "ortho must be True or False"),
            ({"causal": 1}, ruvector.InvalidConfigError, "causal must be True or False"),
            (
                {"projection": np.ones((3, DIM))},
                ruvector.DimensionMismatchError,
                r"projection must have shape \(4, 16\), got \(3, 16\)",
            ),
            (
                {"k": np.ones((9, 5))},
                ruvector.DimensionMismatchError,
                "k must have 16 features",
            ),
            ({"v": np.ones((8, 5))}, ruvector.DimensionMismatchError, "v must have 9 rows"),
            ({"q": np.ones((2, 0))}, ruvector.DimensionMismatchError, "k must have 0 features"),
            ({"q": np.ones(3)}, ruvector.DimensionMismatchError, "q must have at least 2 axes"),
            ({"q": ["a"]}, TypeError, "q must hold real numbers"),
        ],
    )
    def test_wrong_calls(self, options, error, message):
        arguments = {"q": normal(3, DIM), "k": normal(9, DIM), "v": normal(9, 5)}
        with pytest.raises(error, match=message):
            linear_attention(**arguments | {"num_features": 4} | options)

    def test_no_width(self):
        with pytest.raises(ruvector.DimensionMismatchError, match="q must have at least one"):
            linear_attention(np.ones((2, 0)), np.ones((3, 0)), np.ones((3, 1)), num_features=4)
