"""The geometry of the Poincare ball: formulas, accuracy, broadcasting, errors."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import reference_ball
from hypothesis import given
from hypothesis import strategies as st
from reference_ball import each

from ruvector import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")

CURVATURES = [0.1, 1.0, 4.0]
DTYPES = {"float32": 2e-6, "float64": 1e-12}


def points(*shape, seed=0, radius=0.8, c=1.0, dtype=np.float64):
    """Make points of norms up to `radius` times that of the ball."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    x *= radius * rng.random((*shape[:-1], 1)) / np.linalg.norm(x, axis=-1, keepdims=True)
    return (x / np.sqrt(c)).astype(dtype)


def on_sphere(*shape, norm, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return norm * x / np.linalg.norm(x, axis=-1, keepdims=True)


def near(got, wanted, tolerance):
    assert got.shape == np.shape(wanted)
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=tolerance, atol=tolerance)


class TestFormulas:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("c", CURVATURES)
    @pytest.mark.parametrize("dim", [1, 2, 7, 33])
    def test_pairs(self, dim, c, dtype):
        x, y = points(2, 20, dim, c=c, dtype=dtype)
        for ours, theirs in (
            (hyperbolic.poincare_distance, reference_ball.distance),
            (hyperbolic.mobius_add, reference_ball.mobius_add),
            (hyperbolic.log_map, reference_ball.log_map),
            (hyperbolic.exp_map, reference_ball.exp_map),
        ):
            got = ours(x, y, c)
            assert got.dtype == dtype
            near(got, each(lambda a, b: theirs(a, b, c), x, y), DTYPES[dtype] * 5)  # noqa: B023

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("c", CURVATURES)
    def test_single_points(self, c, dtype):
        x = points(20, 7, c=c, dtype=dtype)
        origin, tolerance = np.zeros(7), DTYPES[dtype] * 5
        near(
            hyperbolic.expmap0(3 * x, c),
            each(lambda v: reference_ball.exp_map(origin, v, c), 3 * x),
            tolerance,
        )
        near(
            hyperbolic.logmap0(x, c),
            each(lambda y: reference_ball.log_map(origin, y, c), x),
            tolerance,
        )
        near(
            hyperbolic.conformal_factor(x, c),
            each(lambda y: reference_ball.conformal(y, c), x),
            tolerance,
        )
        near(
            hyperbolic.project_to_ball(3 * x, c, eps=1e-3),
            each(lambda y: reference_ball.project(y, c, 1e-3), 3 * x),
            tolerance,
        )

    @pytest.mark.parametrize("c", CURVATURES)
    @pytest.mark.parametrize("r", [-1.0, 0.0, 0.5, 2.0, 3.0])
    def test_multiples(self, c, r):
        x = points(20, 7, c=c)
        got = hyperbolic.mobius_scalar_mult(r, x, c)
        origin = np.zeros(7)
        np.testing.assert_allclose(
            hyperbolic.poincare_distance(origin, got, c),
            abs(r) * hyperbolic.poincare_distance(origin, x, c),
            rtol=1e-12,
        )
        if r in (2.0, 3.0):
            twice = hyperbolic.mobius_add(x, x, c)
            wanted = twice if r == 2 else hyperbolic.mobius_add(x, twice, c)
            np.testing.assert_allclose(got, wanted, rtol=1e-12)
        if r == -1:
            np.testing.assert_allclose(got, -x, rtol=1e-12)

    @pytest.mark.parametrize("c", CURVATURES)
    def test_hyperboloid(self, c):
        x = points(20, 7, c=c, radius=0.99)
        lorentz = hyperbolic.poincare_to_lorentz(x, c)
        assert lorentz.shape == (20, 8)
        time, space = lorentz[:, 0], lorentz[:, 1:]
        np.testing.assert_allclose(time**2 - (space**2).sum(axis=1), 1 / c, rtol=1e-9)
        assert (time > 0).all()
        np.testing.assert_allclose(hyperbolic.lorentz_to_poincare(lorentz, c), x, rtol=1e-12)
        product = time[0] * time - space @ space[0]
        distance = np.arccosh(np.maximum(c * product, 1)) / np.sqrt(c)
        np.testing.assert_allclose(
            hyperbolic.poincare_distance(x[0], x, c), distance, rtol=1e-6, atol=1e-6
        )

    @pytest.mark.parametrize("c", CURVATURES)
    def test_midpoint(self, c):
        x, w = points(30, 7, c=c), np.random.default_rng(0).random(30)
        factor = each(lambda y: reference_ball.conformal(y, c), x)
        state = np.append(w @ (factor[:, None] * x), w @ (factor - 1))
        got = hyperbolic.einstein_midpoint(x, c, w)
        np.testing.assert_allclose(got, reference_ball.midpoint(state, c), rtol=1e-12)

    def test_zero_vectors(self):
        zero = np.zeros(3)
        x = points(3)
        assert (hyperbolic.exp_map(x, zero, 1.0) == x).all()
        assert (hyperbolic.log_map(x, x, 1.0) == 0).all()
        assert hyperbolic.poincare_distance(x, x, 1.0) == 0
        for function in (hyperbolic.expmap0, hyperbolic.logmap0, hyperbolic.project_to_ball):
            assert (function(zero, 1.0) == 0).all()
        assert (hyperbolic.mobius_scalar_mult(2.0, zero, 1.0) == 0).all()
        assert (hyperbolic.mobius_add(zero, x, 1.0) == x).all()
        np.testing.assert_allclose(hyperbolic.mobius_add(x, zero, 1.0), x, rtol=1e-15)
        assert (hyperbolic.frechet_mean([zero], 1.0) == 0).all()

    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_sign_of_the_curvature_is_dropped(self, sign):
        x, y = points(2, 3)
        assert hyperbolic.poincare_distance(x, y, sign) == hyperbolic.poincare_distance(x, y, 1)


class TestAccuracy:
    @pytest.mark.parametrize("c", CURVATURES)
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-5), ("float64", 1e-12)])
    def test_round_trip_at_the_boundary(self, c, dtype, tolerance):
        x, y = on_sphere(2, 50, 9, norm=0.99 / np.sqrt(c)).astype(dtype)
        for base in (x, np.zeros_like(x)):
            there = hyperbolic.log_map(base, y, c)
            back = hyperbolic.exp_map(base, there, c)
            np.testing.assert_allclose(back, y, rtol=0, atol=tolerance / np.sqrt(c))
        back = hyperbolic.expmap0(hyperbolic.logmap0(y, c), c)
        np.testing.assert_allclose(back, y, rtol=0, atol=tolerance / np.sqrt(c))

    @pytest.mark.parametrize("norm", [0.0, 0.5, 0.99, 0.9999])
    def test_distance_of_points_a_ten_thousandth_apart(self, norm):
        x = on_sphere(50, 9, norm=norm).astype(np.float32)
        y = (x + 1e-4 * on_sphere(50, 9, norm=0.5, seed=1)).astype(np.float32)
        got = hyperbolic.poincare_distance(x, y, 1.0)
        wanted = each(lambda a, b: reference_ball.distance(a, b, 1.0), x, y)
        np.testing.assert_allclose(got, wanted, rtol=2e-7)

    def test_distance_is_symmetric_and_zero_to_itself(self):
        x, y = points(2, 50, 9, radius=0.999, dtype=np.float32)
        np.testing.assert_array_equal(
            hyperbolic.poincare_distance(x, y, 1.0), hyperbolic.poincare_distance(y, x, 1.0)
        )
        assert (hyperbolic.poincare_distance(x, x, 1.0) == 0).all()

    def test_log_map_of_close_points(self):
        x = points(50, 9, dtype=np.float32)
        y = (x + on_sphere(50, 9, norm=1e-5)).astype(np.float32)
        got = hyperbolic.log_map(x, y, 1.0)
        factor = 1 - (x.astype(np.float64) ** 2).sum(axis=1, keepdims=True)
        # For such a short way it is nearly the difference itself.
        assert factor.min() > 0.3
        np.testing.assert_allclose(got, y.astype(np.float64) - x, rtol=0, atol=3e-10)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    @pytest.mark.parametrize("c", CURVATURES)
    def test_results_are_inside_the_ball(self, dtype, c):
        x = points(200, 5, c=c, radius=0.99, dtype=dtype)
        far = (200 * on_sphere(200, 5, norm=1.0)).astype(dtype)
        for got in (
            hyperbolic.exp_map(x, far, c),
            hyperbolic.expmap0(far, c),
            hyperbolic.mobius_scalar_mult(50.0, x, c),
            hyperbolic.project_to_ball(far, c, eps=0.0),
            hyperbolic.mobius_add(hyperbolic.expmap0(far, c), x, c),
        ):
            assert got.dtype == dtype
            norm = np.linalg.norm(got.astype(np.float64), axis=1)
            assert (norm < 1 / np.sqrt(c)).all()
            assert np.isfinite(hyperbolic.conformal_factor(got, c)).all()

    def test_outside_is_nan_and_the_boundary_infinitely_far(self):
        inside, boundary, outside = [0.5, 0.0], [1.0, 0.0], [1.1, 0.0]
        assert hyperbolic.poincare_distance(inside, boundary, 1.0) == np.inf
        for other in (inside, outside, [-1.2, 0.0]):
            assert np.isnan(hyperbolic.poincare_distance(outside, other, 1.0))
        assert np.isnan(hyperbolic.conformal_factor(outside, 1.0))
        assert np.isnan(hyperbolic.mobius_add(outside, inside, 1.0)).all()
        assert np.isnan(hyperbolic.lorentz_to_poincare([-2.0, 0.0, 1.0], 1.0)).all()


class TestIsometries:
    @staticmethod
    def move(seed, dim, c):
        """Make an isometry: a rotation, then a Mobius translation."""
        rng = np.random.default_rng(seed)
        rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
        by = points(dim, seed=seed, radius=0.7, c=c)
        return lambda x: hyperbolic.mobius_add(by, x @ rotation, c)

    @given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.05, 20))
    def test_distances_stay(self, seed, dim, c):
        x, y = points(2, 8, dim, seed=seed + 1, c=c)
        move = self.move(seed, dim, c)
        np.testing.assert_allclose(
            hyperbolic.poincare_distance(move(x), move(y), c),
            hyperbolic.poincare_distance(x, y, c),
            rtol=1e-9,
        )

    @given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.05, 20))
    def test_means_move_along(self, seed, dim, c):
        x = points(8, dim, seed=seed + 1, c=c)
        weights = np.random.default_rng(seed).random(8)
        move = self.move(seed, dim, c)
        for mean in (hyperbolic.einstein_midpoint, hyperbolic.frechet_mean):
            there = mean(move(x), c, weights)
            away = hyperbolic.poincare_distance(there, move(mean(x, c, weights)), c)
            assert away * np.sqrt(c) < 3e-6

    @given(st.integers(0, 10_000), st.permutations(range(9)))
    def test_means_do_not_depend_on_the_order(self, seed, order):
        x, weights = points(9, 5, seed=seed), np.random.default_rng(seed).random(9)
        for mean in (hyperbolic.einstein_midpoint, hyperbolic.frechet_mean):
            np.testing.assert_allclose(
                mean(x[order], 1.0, weights[order]), mean(x, 1.0, weights), atol=1e-6
            )


class TestMeans:
    @pytest.mark.parametrize("mean", [hyperbolic.einstein_midpoint, hyperbolic.frechet_mean])
    def test_two_points_meet_in_the_middle(self, mean):
        x = points(2, 6)
        middle = mean(x, 1.0)
        there, back = hyperbolic.poincare_distance(x, middle, 1.0)
        assert there == pytest.approx(back, rel=1e-6)
        whole = hyperbolic.poincare_distance(x[0], x[1], 1.0)
        assert there + back == pytest.approx(whole, rel=1e-9)

    @pytest.mark.parametrize("norm", [0.5, 0.99, 0.9999])
    @pytest.mark.parametrize("c", CURVATURES)
    def test_frechet_mean_is_stationary(self, norm, c):
        x = on_sphere(12, 5, norm=norm / np.sqrt(c))
        weights = np.random.default_rng(0).random(12) ** 4
        weights /= weights.sum()
        mean = hyperbolic.frechet_mean(x, c, weights, tol=1e-7)
        pull = weights @ hyperbolic.log_map(mean, x, c)
        length = np.linalg.norm(pull) * hyperbolic.conformal_factor(mean, c)
        assert length * np.sqrt(c) < 2e-7

    def test_frechet_mean_is_least(self):
        x = points(10, 4, radius=0.95)

        def total(y):
            return (hyperbolic.poincare_distance(x, y, 1.0) ** 2).sum()

        mean = hyperbolic.frechet_mean(x, 1.0)
        least = total(mean)
        assert total(hyperbolic.einstein_midpoint(x, 1.0)) > least
        for step in on_sphere(20, 4, norm=1e-3):
            assert total(mean + step) > least

    def test_warns_where_it_has_not_converged(self):
        x = on_sphere(3, 2, norm=0.999)
        message = r"^the Frechet mean has not converged after 2 steps: it may be .* away"
        with pytest.warns(RuntimeWarning, match=message) as caught:
            hyperbolic.frechet_mean(x, 1.0, [0.9, 0.05, 0.05], max_iter=2)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hyperbolic.frechet_mean(x, 1.0, [0.9, 0.05, 0.05])

    @pytest.mark.parametrize("mean", [hyperbolic.einstein_midpoint, hyperbolic.frechet_mean])
    def test_axes(self, mean):
        x, weights = points(3, 4, 6, 5, dtype=np.float32), np.random.default_rng(0).random(6)
        got = mean(x, 1.0, weights)
        assert got.shape == (3, 4, 5)
        assert got.dtype == np.float32
        for index in np.ndindex(3, 4):
            np.testing.assert_allclose(got[index], mean(x[index], 1.0, weights), atol=1e-6)
        several = np.random.default_rng(1).random((2, 1, 6))
        got = mean(x[0, 0], 1.0, several)
        assert got.shape == (2, 1, 5)
        np.testing.assert_allclose(got[1, 0], mean(x[0, 0], 1.0, several[1, 0]), atol=1e-6)
        both = mean(x[:, :1], 1.0, np.random.default_rng(2).random((4, 6)))
        assert both.shape == (3, 4, 5)

    @pytest.mark.parametrize("mean", [hyperbolic.einstein_midpoint, hyperbolic.frechet_mean])
    def test_what_has_no_weight_takes_no_part(self, mean):
        x, weights = points(2, 6, 5), np.array([1.0, 0, 2, 0, 1, 0])
        wanted = mean(x[0, ::2], 1.0, weights[::2])
        x[0, 1], x[0, 3], x[0, 5] = np.nan, np.inf, 7.0
        np.testing.assert_allclose(mean(x[0], 1.0, weights), wanted, atol=1e-9)
        assert (mean(x[1], 1.0, np.zeros(6)) == 0).all()
        weights[1] = 1
        both = mean(x, 1.0, weights)
        assert np.isnan(both[0]).all()
        assert np.isfinite(both[1]).all()

    @pytest.mark.parametrize("mean", [hyperbolic.einstein_midpoint, hyperbolic.frechet_mean])
    def test_scale_of_the_weights(self, mean):
        x, weights = points(6, 5), np.random.default_rng(0).random(6)
        np.testing.assert_allclose(
            mean(x, 1.0, 1000 * weights), mean(x, 1.0, weights), atol=1e-9
        )
        np.testing.assert_allclose(mean(x, 1.0), mean(x, 1.0, np.ones(6)), atol=1e-12)

    def test_one_point_is_its_own_mean(self):
        x = on_sphere(1, 8, norm=1 - 1e-5)
        for mean in (hyperbolic.einstein_midpoint, hyperbolic.frechet_mean):
            np.testing.assert_allclose(mean(x, 1.0), x[0], rtol=1e-10)
            got = mean(x.astype(np.float32), 1.0)
            np.testing.assert_allclose(got, x[0], rtol=0, atol=1e-7)

    def test_more_weights_than_one_tile(self):
        x, weights = points(700, 3), np.random.default_rng(0).random((900, 700))
        got = hyperbolic.frechet_mean(x, 1.0, weights)
        for i in (0, 450, 899):
            np.testing.assert_allclose(
                got[i], hyperbolic.frechet_mean(x, 1.0, weights[i]), atol=1e-6
            )


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


RECORDED = json.loads((Path(__file__).parent / "data" / "upstream.json").read_text())
OPERATIONS = {
    "poincare_distance": lambda a, b, **p: hyperbolic.poincare_distance(a, b, **p),
    "mobius_add": lambda a, b, **p: hyperbolic.mobius_add(a, b, **p),
    "project_to_ball": lambda vector, **p: hyperbolic.project_to_ball(vector, **p),
}
CASES = [case for case in RECORDED["cases"] if case["op"] in OPERATIONS]


def test_every_operation_was_recorded():
    assert {case["op"] for case in CASES} == set(OPERATIONS)
    assert len(CASES) == 12


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["op"])
def test_equals_upstream(case):
    got = OPERATIONS[case["op"]](**case["inputs"], **case["params"])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, case["output"], rtol=2e-5, atol=4e-6)
