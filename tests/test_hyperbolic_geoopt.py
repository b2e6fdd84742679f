"""The geometry of the ball against geoopt."""

from __future__ import annotations

import numpy as np
import pytest

from ruvector import DualSpaceAttention, HyperbolicAttention, hyperbolic

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


class TestGradients:
    """Those of torch through geoopt's maps, without what keeps points from the boundary."""

    @pytest.mark.parametrize("inputs", ["ball", "tangent"])
    def test_attention(self, inputs):
        given = [points(n, 6, c=1.3, seed=i) for i, n in enumerate((5, 30, 30))]
        rng = np.random.default_rng(9)
        grad, grad_lse = rng.standard_normal((5, 6)), rng.standard_normal(5)
        q, key, v = (torch.from_numpy(x.copy()).requires_grad_() for x in given)
        c, temperature = (
            torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.3, 0.7)
        )
        placed = [gmath.expmap0(x, k=-c) if inputs == "tangent" else x for x in (q, key, v)]
        scores = -gmath.dist(placed[0][:, None], placed[1][None], k=-c) / temperature
        output = gmath.weighted_midpoint(
            placed[2][None].expand(5, 30, 6), torch.softmax(scores, dim=-1), reducedim=[1], k=-c
        )
        lse = torch.logsumexp(scores, dim=-1)
        loss = (output * torch.from_numpy(grad)).sum() + (
            lse * torch.from_numpy(grad_lse)
        ).sum()
        loss.backward()
        attention = HyperbolicAttention(
            6, 1.3, 0.7, inputs=inputs, learn_curvature=True, learn_temperature=True
        )
        _, got = attention.compute_with_gradients(*given, grad, grad_lse=grad_lse)
        for name, theirs in (("query", q), ("keys", key), ("values", v)):
            np.testing.assert_allclose(got[name], theirs.grad, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(got.parameters["curvature"], c.grad, rtol=1e-7)
        np.testing.assert_allclose(got.parameters["temperature"], temperature.grad, rtol=1e-7)

    def test_dual_space(self):
        rng = np.random.default_rng(0)
        given = [0.6 * rng.standard_normal((n, 7)) for n in (5, 30, 30)]
        grad = rng.standard_normal((5, 7))
        q, key, v = (torch.from_numpy(x.copy()).requires_grad_() for x in given)
        logit = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
        k = torch.tensor(-0.8, dtype=torch.float64)
        w = torch.sigmoid(logit)
        x, y, z = (gmath.expmap0(a[:, 4:], k=k) for a in (q, key, v))
        scores = (1 - w) * q[:, :4] @ key[:, :4].T / 2
        scores = (scores - w * gmath.dist(x[:, None], y[None], k=k)) / 0.9
        weights = torch.softmax(scores, dim=-1)
        middle = gmath.weighted_midpoint(z[None].expand(5, 30, 3), weights, reducedim=[1], k=k)
        output = torch.cat([weights @ v[:, :4], gmath.logmap0(middle, k=k)], dim=-1)
        (output * torch.from_numpy(grad)).sum().backward()
        attention = DualSpaceAttention(
            euclidean_dim=4, hyperbolic_dim=3, num_heads=1, curvature=0.8, temperature=0.9
        )
        attention.parameters()["fusion_logit"][...] = -0.4
        _, got = attention.compute_with_gradients(*given, grad)
        for name, theirs in (("query", q), ("keys", key), ("values", v)):
            np.testing.assert_allclose(got[name], theirs.grad, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(got.parameters["fusion_logit"], logit.grad, rtol=1e-8)
