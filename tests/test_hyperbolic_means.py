"""Frechet means and midpoints in the Poincare ball."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hyperbolic_cases import CURVATURES, on_sphere, points

from ruvector import (
    hyperbolic,
)

pytestmark = pytest.mark.usefixtures("backend")


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
