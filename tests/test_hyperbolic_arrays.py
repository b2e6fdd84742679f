"""Functions of the Poincare ball as functions of arrays: broadcasting, types, errors."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hyperbolic_cases import points

from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")


class TestArrays:
    def test_broadcasting(self):
        x, y = points(4, 1, 3), points(5, 3, seed=1)
        distance = hyperbolic.poincare_distance(x, y, 1.0)
        assert distance.shape == (4, 5)
        moved = hyperbolic.mobius_add(x, y, 1.0)
        assert moved.shape == (4, 5, 3)
        for i, j in np.ndindex(4, 5):
            one = hyperbolic.poincare_distance(x[i, 0], y[j], 1.0)
            assert np.isscalar(one)
            assert distance[i, j] == one
            np.testing.assert_array_equal(
                moved[i, j], hyperbolic.mobius_add(x[i, 0], y[j], 1.0)
            )
        assert hyperbolic.exp_map(x[0, 0], y, 1.0).shape == (5, 3)
        assert hyperbolic.log_map(y, x[0, 0], 1.0).shape == (5, 3)
        assert hyperbolic.mobius_scalar_mult([[1.0], [2.0]], y, 1.0).shape == (2, 5, 3)
        assert hyperbolic.mobius_scalar_mult(np.arange(5.0), y, 1.0).shape == (5, 3)

    def test_blocks_of_rows(self):
        x, y = points(2, 3000, 40)
        got = hyperbolic.mobius_add(x, y, 1.0)
        for i in (0, 818, 819, 2999):
            np.testing.assert_array_equal(got[i], hyperbolic.mobius_add(x[i], y[i], 1.0))

    def test_dtypes(self):
        x = points(4, 3)
        assert hyperbolic.expmap0(x.tolist(), 1.0).dtype == np.float32
        assert hyperbolic.expmap0([[0, 0, 0]], 1.0).dtype == np.float32
        single = hyperbolic.poincare_distance(x[0].astype(np.float32), x[1], 1.0)
        assert single.dtype == np.float64
        half = hyperbolic.mobius_add(x.astype(np.float16), x.astype(np.float16), 1.0)
        assert half.dtype == np.float16
        np.testing.assert_allclose(
            half.astype(float), hyperbolic.mobius_add(x, x, 1.0), rtol=0, atol=2e-3
        )

    def test_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        x = points(4, 3).astype(ml_dtypes.bfloat16)
        got = hyperbolic.expmap0(x, 1.0)
        assert got.dtype == ml_dtypes.bfloat16
        np.testing.assert_allclose(
            got.astype(float), hyperbolic.expmap0(x.astype(float), 1.0), rtol=0, atol=4e-3
        )

    def test_strides_and_read_only(self):
        x = points(8, 6)
        wide = np.asfortranarray(x)[::-2]
        wide.flags.writeable = False
        np.testing.assert_array_equal(
            hyperbolic.expmap0(wide, 1.0), hyperbolic.expmap0(x[::-2].copy(), 1.0)
        )

    def test_empty_axes(self):
        none = np.empty((0, 3))
        assert hyperbolic.poincare_distance(none, none, 1.0).shape == (0,)
        assert hyperbolic.exp_map(np.zeros(3), none, 1.0).shape == (0, 3)
        assert hyperbolic.poincare_to_lorentz(none, 1.0).shape == (0, 4)
        assert hyperbolic.lorentz_to_poincare(np.empty((0, 4)), 1.0).shape == (0, 3)
        assert hyperbolic.frechet_mean(np.empty((0, 2, 3)), 1.0).shape == (0, 3)
        assert hyperbolic.poincare_distance(np.empty(0), np.empty(0), 1.0) == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (
                lambda: hyperbolic.expmap0([0.0], 0),
                InvalidConfigError,
                "curvature must not be 0, got 0",
            ),
            (
                lambda: hyperbolic.poincare_distance([0.0], [0.0], np.nan),
                InvalidConfigError,
                "curvature must be a finite number, got nan",
            ),
            (
                lambda: hyperbolic.logmap0([0.0], "1"),
                InvalidConfigError,
                "curvature must be a finite number, got '1'",
            ),
            (
                lambda: hyperbolic.project_to_ball([0.0], 4.0, eps=0.5),
                InvalidConfigError,
                "eps must be at least 0 and less than the radius 0.5, got 0.5",
            ),
            (
                lambda: hyperbolic.project_to_ball([0.0], 1.0, eps=-1e-3),
                InvalidConfigError,
                "eps must be at least 0 and less than the radius 1, got -0.001",
            ),
            (
                lambda: hyperbolic.conformal_factor(0.5, 1.0),
                DimensionMismatchError,
                "x must have shape (..., d), got ()",
            ),
            (
                lambda: hyperbolic.mobius_add([0.0, 0.0], [0.0], 1.0),
                DimensionMismatchError,
                "y must hold vectors of length 2 as in x, got 1",
            ),
            (
                lambda: hyperbolic.exp_map(np.zeros((2, 3)), np.zeros((4, 3)), 1.0),
                DimensionMismatchError,
                "base and tangent must have leading axes that broadcast, got (2,) and (4,)",
            ),
            (
                lambda: hyperbolic.log_map([0.0, 0.0], [0.0], 1.0),
                DimensionMismatchError,
                "point must hold vectors of length 2 as in base, got 1",
            ),
            (
                lambda: hyperbolic.mobius_scalar_mult([1.0, 2.0], np.zeros((3, 2)), 1.0),
                DimensionMismatchError,
                "r and x must have leading axes that broadcast, got (2,) and (3,)",
            ),
            (
                lambda: hyperbolic.lorentz_to_poincare(np.zeros((2, 0)), 1.0),
                DimensionMismatchError,
                "x must have shape (..., d + 1), got (2, 0)",
            ),
            (
                lambda: hyperbolic.frechet_mean([0.0, 0.0], 1.0),
                DimensionMismatchError,
                "points must have shape (..., n, d), got (2,)",
            ),
            (
                lambda: hyperbolic.einstein_midpoint(np.zeros((0, 3)), 1.0),
                EmptyInputError,
                "points must hold at least one point, got shape (0, 3)",
            ),
            (
                lambda: hyperbolic.einstein_midpoint(np.zeros((2, 3)), 1.0, [1.0]),
                DimensionMismatchError,
                "weights must have 2 entries on the last axis, one per point, got 1",
            ),
            (
                lambda: hyperbolic.frechet_mean(np.zeros((2, 3)), 1.0, [1.0, -0.5]),
                InvalidConfigError,
                "weights must not be negative, got -0.5",
            ),
            (
                lambda: hyperbolic.frechet_mean(np.zeros((2, 3)), 1.0, tol=0.0),
                InvalidConfigError,
                "tol must be a positive finite number, got 0.0",
            ),
            (
                lambda: hyperbolic.frechet_mean(np.zeros((2, 3)), 1.0, max_iter=0),
                InvalidConfigError,
                "max_iter must be an integer of at least 1, got 0",
            ),
            (
                lambda: hyperbolic.frechet_mean(np.zeros((3, 2, 3)), 1.0, np.ones((2, 2))),
                DimensionMismatchError,
                "points and weights must have leading axes that broadcast, got (3,) and (2,)",
            ),
            (
                lambda: hyperbolic.expmap0([1j], 1.0),
                TypeError,
                "tangent must hold real numbers",
            ),
        ],
    )
    def test_message(self, call, error, message):
        with pytest.raises(error, match="^" + re.escape(message)):
            call()
