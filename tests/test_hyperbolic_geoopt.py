"""The geometry of the ball against geoopt."""

from __future__ import annotations

import numpy as np
import pytest

from ruvector import HyperbolicAttention, hyperbolic

pytestmark = [pytest.mark.peers, pytest.mark.usefixtures("backend")]

torch = pytest.importorskip("torch")
pytest.importorskip("geoopt")
gmath = pytest.importorskip("geoopt.manifolds.stereographic.math")
lmath = pytest.importorskip("geoopt.manifolds.lorentz.math")


def points(*shape, c, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    x *= 0.9 * rng.random((*shape[:-1], 1)) / np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.sqrt(c)


@pytest.mark.parametrize("c", [0.3, 1.0, 2.5])
class TestGeoopt:
    def test_pairs(self, c):
        x, y = points(2, 40, 7, c=c)
        a, b, k = (
            torch.from_numpy(x),
            torch.from_numpy(y),
            torch.tensor(-c, dtype=torch.float64),
        )
        for ours, theirs in (
            (hyperbolic.poincare_distance, gmath.dist),
            (hyperbolic.mobius_add, gmath.mobius_add),
            (hyperbolic.exp_map, gmath.expmap),
            (hyperbolic.log_map, gmath.logmap),
        ):
            np.testing.assert_allclose(ours(x, y, c), theirs(a, b, k=k), rtol=1e-9, atol=1e-11)

    def test_single_points(self, c):
        x = points(40, 7, c=c)
        a, k = torch.from_numpy(x), torch.tensor(-c, dtype=torch.float64)
        for ours, theirs in (
            (hyperbolic.expmap0(x, c), gmath.expmap0(a, k=k)),
            (hyperbolic.logmap0(x, c), gmath.logmap0(a, k=k)),
            (hyperbolic.conformal_factor(x, c), gmath.lambda_x(a, k=k)),
            (
                hyperbolic.mobius_scalar_mult(1.7, x, c),
                gmath.mobius_scalar_mul(torch.tensor(1.7, dtype=torch.float64), a, k=k),
            ),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)

    def test_midpoint(self, c):
        x, weights = points(40, 7, c=c), np.random.default_rng(0).random(40)
        theirs = gmath.weighted_midpoint(
            torch.from_numpy(x),
            torch.from_numpy(weights),
            k=torch.tensor(-c, dtype=torch.float64),
        )
        ours = hyperbolic.einstein_midpoint(x, c, weights)
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)

    def test_attention(self, c):
        query, keys, values = (points(n, 6, c=c, seed=i) for i, n in enumerate((5, 30, 30)))
        k = torch.tensor(-c, dtype=torch.float64)
        q, key, v = map(torch.from_numpy, (query, keys, values))
        weights = torch.softmax(-gmath.dist(q[:, None], key[None], k=k) / 0.7, dim=-1)
        theirs = gmath.weighted_midpoint(v[None].expand(5, 30, 6), weights, reducedim=[1], k=k)
        got = HyperbolicAttention(6, c, 0.7).compute(query, keys, values, return_weights=True)
        np.testing.assert_allclose(got[0], theirs, rtol=1e-8)
        np.testing.assert_allclose(got[1], weights, rtol=1e-8)


def test_hyperboloid():
    # geoopt's k is the square of the radius; its ball is the unit ball whatever k.
    x = points(40, 7, c=1.0)
    theirs = lmath.poincare_to_lorentz(
        torch.from_numpy(x), k=torch.tensor(1.0, dtype=torch.float64)
    )
    np.testing.assert_allclose(hyperbolic.poincare_to_lorentz(x, 1.0), theirs, rtol=2e-5)
    back = lmath.lorentz_to_poincare(theirs, k=torch.tensor(1.0, dtype=torch.float64))
    np.testing.assert_allclose(
        hyperbolic.lorentz_to_poincare(theirs.numpy(), 1.0), back, rtol=2e-5
    )
