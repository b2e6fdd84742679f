"""The losses of ruvector.training one anchor at a time, in float64.

``sets`` says for every anchor which vectors are its negatives, as indices into the negatives,
or into the positives where the batch is its own.
"""

from __future__ import annotations

import numpy as np

REDUCTIONS = ("mean", "sum", "none")


def sets_of(anchors, negatives, ids=None, negative_ids=None):
    """Return the indices of the negatives of every anchor."""
    if negatives is None:
        return [
            [j for j in range(len(anchors)) if j != i and (ids is None or ids[j] != ids[i])]
            for i in range(len(anchors))
        ]
    count = negatives.shape[-2]
    own = negative_ids is not None and np.ndim(negative_ids) == 2
    return [
        [
            j
            for j in range(count)
            if ids is None or (negative_ids[i][j] if own else negative_ids[j]) != ids[i]
        ]
        for i in range(len(anchors))
    ]


def normalised(x):
    norm = np.sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / norm, norm


def through_norm(gradient, unit, norm):
    return (gradient - (gradient * unit).sum(axis=-1, keepdims=True) * unit) / norm


def reduce(losses, reduction):
    return {"mean": losses.mean, "sum": losses.sum, "none": losses.copy}[reduction]()


def weights(count, reduction):
    return np.full(count, 1 / count if reduction == "mean" else 1.0)


def info_nce(anchors, positives, negatives, temperature, sets, reduction="mean"):
    """Return the loss and the gradients of anchors, positives, negatives, temperature."""
    a, p = (np.asarray(x, np.float64) for x in (anchors, positives))
    n = p if negatives is None else np.asarray(negatives, np.float64)
    (au, an), (pu, pn), (nu, nn) = normalised(a), normalised(p), normalised(n)
    losses = np.empty(len(a))
    da, dp, dn = np.zeros_like(a), np.zeros_like(p), np.zeros_like(n)
    dt = 0.0
    share = weights(len(a), reduction)
    for i, chosen in enumerate(sets):
        keys = (nu[i] if n.ndim == 3 else nu)[chosen]
        keys = np.concatenate((pu[i][None], keys))
        s = keys @ au[i] / temperature
        powers = np.exp(s - s.max())
        losses[i] = np.log(powers.sum()) + s.max() - s[0]
        ds = powers / powers.sum()
        ds[0] -= 1
        ds *= share[i]
        da[i] = ds @ keys / temperature
        dt -= (ds * s).sum() / temperature
        dk = ds[:, None] * au[i] / temperature
        dp[i] += dk[0]
        if n.ndim == 3:
            dn[i][chosen] += dk[1:]
        else:
            dn[chosen] += dk[1:]
    if negatives is None:
        dp += dn
        dn = None
    else:
        dn = through_norm(dn, nu, nn)
    return (
        reduce(losses, reduction),
        through_norm(da, au, an),
        through_norm(dp, pu, pn),
        dn,
        dt,
    )


def hinge(anchors, positives, negatives, margin, sets, reduction="mean"):
    """Return the loss and the gradients of anchors, positives and negatives."""
    a, p = (np.asarray(x, np.float64) for x in (anchors, positives))
    n = p if negatives is None else np.asarray(negatives, np.float64)
    losses = np.zeros(len(a))
    da, dp, dn = np.zeros_like(a), np.zeros_like(p), np.zeros_like(n)
    share = weights(len(a), reduction)
    for i, chosen in enumerate(sets):
        to_positive = a[i] - p[i]
        near = np.sqrt((to_positive**2).sum())
        for j in chosen:
            apart = a[i] - (n[i, j] if n.ndim == 3 else n[j])
            far = np.sqrt((apart**2).sum())
            if near - far + margin <= 0:
                continue
            losses[i] += (near - far + margin) / len(chosen)
            pull = share[i] / len(chosen) * (to_positive / near if near else to_positive)
            push = share[i] / len(chosen) * (apart / far if far else apart)
            da[i] += pull - push
            dp[i] -= pull
            dn[(i, j) if n.ndim == 3 else j] += push
    if negatives is None:
        dp += dn
        dn = None
    return reduce(losses, reduction), da, dp, dn
