"""The Poincare ball written down in float64, for the tests to compare with.

Nothing here knows the package. Formulas are those of Ganea et al. 2018 (arXiv 1805.09112)
and Shimizu et al. 2021 (arXiv 2006.08210), one pair of points or one row at a time.
"""

from __future__ import annotations

import numpy as np
import reference


def project(x, c, eps=1e-5):
    """Shorten a vector to norm 1/sqrt(c) - eps at the most."""
    x = np.asarray(x, np.float64)
    limit = 1 / np.sqrt(c) - eps
    norm = np.sqrt((x * x).sum())
    return x * (limit / norm) if norm > limit else x


def distance(x, y, c):
    """Measure d_c through asinh, from differences."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    gap = np.sqrt(((x - y) ** 2).sum())
    root = np.sqrt((1 - c * (x * x).sum()) * (1 - c * (y * y).sum()))
    return 2 / np.sqrt(c) * np.arcsinh(np.sqrt(c) * gap / root)


def mobius_add(x, y, c):
    """Add as the paper writes it."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    xy, xx, yy = (x * y).sum(), (x * x).sum(), (y * y).sum()
    above = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
    return above / (1 + 2 * c * xy + c * c * xx * yy)


def conformal(x, c):
    """Give lambda_x."""
    x = np.asarray(x, np.float64)
    return 2 / (1 - c * (x * x).sum())


def exp_map(base, v, c):
    """Follow the geodesic that leaves `base` along v."""
    v = np.asarray(v, np.float64)
    norm, root = np.sqrt((v * v).sum()), np.sqrt(c)
    if norm == 0:
        return np.asarray(base, np.float64)
    step = np.tanh(root * conformal(base, c) * norm / 2) * v / (root * norm)
    return mobius_add(base, step, c)


def log_map(base, y, c):
    """Give the tangent vector at `base` that leads to y."""
    u = mobius_add(-np.asarray(base, np.float64), y, c)
    norm, root = np.sqrt((u * u).sum()), np.sqrt(c)
    if norm == 0:
        return u
    return 2 / (root * conformal(base, c)) * np.arctanh(root * norm) * u / norm


def into_ball(x, c, tangent):
    """Read a vector as a point, as an attention over the ball does."""
    x = np.asarray(x, np.float64)
    return project(exp_map(np.zeros_like(x), x, c) if tangent else x, c)


def midpoint(state, c):
    """Finish [average of lambda x, average of lambda - 1]."""
    state = np.asarray(state, np.float64)
    if state[-1] == 0:
        return np.zeros(len(state) - 1)
    r = state[:-1] / state[-1]
    return r / (1 + np.sqrt(max(0, 1 - c * (r * r).sum())))


def each(function, *arrays):
    """Apply a function of vectors along the last axis."""
    lead = arrays[0].shape[:-1]
    rows = [np.stack([function(*(a[i] for a in arrays)) for i in np.ndindex(lead)])]
    return rows[0].reshape(*lead, *rows[0].shape[1:])


def attention(
    ball_query,
    ball_key,
    ball_value,
    *,
    curvature,
    distance_scale,
    tangent=False,
    query=None,
    key=None,
    value=None,
    **spec,
):
    """Compute attention whose scores and values have a part in the ball.

    Parameters
    ----------
    ball_query, ball_key, ball_value : ndarray, shapes (B, H, Lq, Dh), (B, Hkv, Lk, Dh), \
(B, Hkv, Lk, Dhv)
        The part in the ball.
    curvature, distance_scale, tangent
        The fields of ``ruvector._kernels.spec.BallSpec``.
    query, key, value : ndarray, optional
        The other part.
    **spec
        As in ``reference.attention``.

    Returns
    -------
    out : ndarray, shape (B, H, Lq, Dv)
    state : ndarray, shape (B, H, Lq, Dhv + 1)
        The average of [lambda x(v), lambda - 1].
    lse : ndarray, shape (B, H, Lq)
    weights : ndarray, shape (B, H, Lq, Lk)
    """

    def read(x):
        return each(lambda row: into_ball(row, curvature, tangent), x)

    def absent(x):
        return np.zeros((*x.shape[:3], 0))

    with np.errstate(all="ignore"):
        q, k, v = read(ball_query), read(ball_key), read(ball_value)
        batch, heads, num_queries, _ = q.shape
        group = heads // k.shape[1]
        extra = np.zeros((batch, heads, num_queries, k.shape[2]))
        for b, h, i, j in np.ndindex(extra.shape):
            extra[b, h, i, j] = -distance_scale * distance(
                q[b, h, i], k[b, h // group, j], curvature
            )
        factor = each(lambda row: conformal(row, curvature), v)[..., np.newaxis]
        value = absent(v) if value is None else np.asarray(value, np.float64)
        out, lse, weights = reference.attention(
            absent(q) if query is None else query,
            absent(k) if key is None else key,
            np.concatenate([value, factor * v, factor - 1], axis=-1),
            extra=extra,
            **spec,
        )
    return out[..., : value.shape[3]], out[..., value.shape[3] :], lse, weights
