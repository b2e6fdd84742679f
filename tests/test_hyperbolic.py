"""The geometry of the Poincare ball: formulas, accuracy, isometries, upstream."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import reference_ball
from hyperbolic_cases import CURVATURES, DTYPES, near, on_sphere, points
from hypothesis import given
from hypothesis import strategies as st
from reference_ball import each

from ruvector import (
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")


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

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_boundary_gives_no_nan(self, dtype):
        inside = np.array([[0.3, 0.1]], dtype)
        edge, origin = np.array([[1, 0], [0, -1]], dtype), np.zeros((1, 2), dtype)
        endless = np.array([[np.inf, 0], [0, -np.inf]])
        np.testing.assert_array_equal(hyperbolic.logmap0(edge, 1.0), endless)
        np.testing.assert_array_equal(hyperbolic.log_map(origin, edge, 1.0), endless)
        assert np.isinf(hyperbolic.log_map(inside, edge, 1.0)).all()
        np.testing.assert_array_equal(hyperbolic.log_map(edge, inside, 1.0), 0)
        np.testing.assert_array_equal(hyperbolic.log_map(edge, edge, 1.0), 0)
        lorentz = hyperbolic.poincare_to_lorentz(edge, 1.0)
        np.testing.assert_array_equal(lorentz, np.hstack([[[np.inf]] * 2, endless]))
        apart = hyperbolic.poincare_distance(edge[:, np.newaxis], edge, 1.0)
        np.testing.assert_array_equal(apart, [[0, np.inf], [np.inf, 0]])
        np.testing.assert_array_equal(hyperbolic.mobius_scalar_mult(0.0, edge, 1.0), 0)
        for still in (
            hyperbolic.mobius_scalar_mult(2.0, edge, 1.0),
            hyperbolic.mobius_add(edge, inside, 1.0),
            hyperbolic.exp_map(edge, inside, 1.0),
            hyperbolic.exp_map(edge, origin, 1.0),
        ):
            np.testing.assert_allclose(still, edge, atol=1e-6)

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
