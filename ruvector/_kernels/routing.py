r"""Routing of rows to experts: choice, capacity, weights and losses, from the router's logits.

For a row with the logits z over N experts::

    P = softmax(z)
    choice = the k experts with the largest z, the lowest index first where they are equal
    weight_c = exp(z_c) / sum over the choice of exp(z)

With a capacity an expert takes no more rows than that. Choices are then served by rank,
first choices before second ones, and within a rank by row; one that does not fit goes to
the best expert that has room and that the row does not have yet.

The losses over R rows, with f_i the share of expert i in all ``R k`` choices::

    load balance = N sum_i f_i mean(P_i)        (Switch Transformer, arXiv 2101.03961)
    z-loss = mean(logsumexp(z)^2)               (ST-MoE, arXiv 2202.08906)

NumPy alone serves both backends: for 10 000 rows and 8 experts all of this takes 4 ms, where
the experts take hundreds. Cost and memory are those of a few arrays of ``R N`` numbers.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "assign",
    "auxiliary_gradient",
    "auxiliary_loss",
    "capacity",
    "mixture_gradient",
    "mixture_weights",
    "overflow",
    "probabilities",
    "rank",
    "rows_by_expert",
]

_Array = NDArray[Any]
_Integers = NDArray[np.intp]
_Floats = NDArray[np.float64]


def rank(logits: _Array) -> _Integers:
    """Return the experts of every row ``(R, N)``, best first.

    Logits are compared in float32: summed in more than that, they then come out alike for
    experts of equal weights, whatever the order of summation was.
    """
    with np.errstate(over="ignore"):
        compared = -logits.astype(np.float32)
    return np.argsort(compared, axis=1, kind="stable")


def capacity(factor: float, rows: int, count: int, experts: int) -> int:
    """Return how many rows an expert takes: its even share times a factor, rounded up."""
    wanted = factor * rows * count / experts
    # No expert has a row twice.
    return rows if wanted >= rows else math.ceil(wanted)


def assign(order: _Integers, count: int, limit: int) -> _Integers:
    """Serve `count` choices of every row within a capacity.

    Parameters
    ----------
    order : ndarray, shape (R, N)
        As :func:`rank` returns it.
    count : int
        Experts that a row is to have.
    limit : int
        Rows that an expert takes.

    Returns
    -------
    ndarray, shape (R, count)
        Experts in the order in which a row got them, -1 where there was none left.
    """
    rows, experts = order.shape
    # One more expert stands for none; it has room for all and comes last for everyone.
    nobody = experts
    order = np.column_stack((order, np.full(rows, nobody)))
    room = np.full(experts + 1, limit)
    room[nobody] = rows * count
    place = np.zeros(rows, np.intp)
    choice = np.empty((rows, count), np.intp)
    for turn in range(count):
        waiting = np.arange(rows)
        while waiting.size:
            wanted = _next(order, place, waiting, room)
            served = _first_without_room(wanted, room)
            taken = wanted[:served]
            choice[waiting[:served], turn] = taken
            place[waiting[:served]] += taken != nobody
            room -= np.bincount(taken, minlength=experts + 1)
            waiting = waiting[served:]
    choice[choice == nobody] = -1
    return choice


def _next(order: _Integers, place: _Integers, waiting: _Integers, room: _Integers) -> _Integers:
    """Return the best expert with room for each waiting row, and move the rows on to it.

    What lies before the place of a row it has already, or is full and stays so.
    """
    while True:
        wanted = order[waiting, place[waiting]]
        full = room[wanted] == 0
        if not full.any():
            return wanted
        place[waiting[full]] += 1


def _first_without_room(wanted: _Integers, room: _Integers) -> int:
    """Return the first position at which an expert is asked for once more than it has room."""
    crowded = np.flatnonzero(np.bincount(wanted, minlength=room.size) > room)
    return min((np.flatnonzero(wanted == e)[room[e]] for e in crowded), default=wanted.size)


def overflow(wanted: _Integers, choice: _Integers) -> tuple[int, int]:
    """Count choices that were not served, and rows that were served none."""
    served = (wanted[:, :, np.newaxis] == choice[:, np.newaxis]).any(axis=2)
    nothing = (choice < 0).all(axis=1)
    return int(np.count_nonzero(~served)), int(np.count_nonzero(nothing))


def probabilities(logits: _Array) -> tuple[_Floats, _Floats]:
    """Return softmax ``(R, N)`` and log-sum-exp ``(R,)`` of the logits."""
    with np.errstate(invalid="ignore"):
        greatest = logits.max(axis=1, keepdims=True)
        powers = np.exp(np.subtract(logits, greatest, dtype=np.float64))
        total = powers.sum(axis=1, keepdims=True)
        return powers / total, (greatest + np.log(total))[:, 0]


def mixture_weights(logits: _Array, choice: _Integers) -> _Floats:
    """Return the softmax over the experts of each row alone, 0 where there is none."""
    chosen = logits[np.arange(len(choice))[:, np.newaxis], choice].astype(np.float64)
    chosen[choice < 0] = -np.inf
    greatest = chosen.max(axis=1, keepdims=True)
    greatest[greatest == -np.inf] = 0
    with np.errstate(invalid="ignore"):
        powers: _Floats = np.exp(chosen - greatest)
        powers /= np.maximum(powers.sum(axis=1, keepdims=True), 1)
    return powers


def mixture_gradient(
    weights: _Floats, gradient: _Floats, choice: _Integers, out: _Floats
) -> None:
    """Add to `out` (R, N) the gradient in the logits, of that in the weights ``(R, k)``."""
    rows, positions = np.nonzero(choice >= 0)
    with np.errstate(invalid="ignore"):
        mean = np.sum(weights * gradient, axis=1, keepdims=True)
        own = weights * (gradient - mean)
    out[rows, choice[rows, positions]] += own[rows, positions]


def rows_by_expert(choice: _Integers, experts: int) -> list[tuple[_Integers, _Integers]]:
    """Return (rows, positions in their choice) for each expert, rows in rising order."""
    rows, positions = np.divmod(np.argsort(choice, axis=None, kind="stable"), choice.shape[1])
    counts = np.bincount(choice.ravel() + 1, minlength=experts + 1)
    ends = np.cumsum(counts)
    return [(rows[start:end], positions[start:end]) for start, end in pairwise(ends)]


def auxiliary_loss(
    logits: _Array, choice: _Integers, balance_weight: float, z_weight: float
) -> float:
    """Return the weighted sum of the losses, of choices before capacity; 0 without rows."""
    rows, experts = logits.shape
    if rows == 0:
        return 0.0
    shares, lse = probabilities(logits)
    fractions = np.bincount(choice.ravel(), minlength=experts) / choice.size
    balance = experts * (fractions @ shares.mean(axis=0))
    return float(balance_weight * balance + z_weight * np.mean(np.square(lse)))


def auxiliary_gradient(
    logits: _Array, choice: _Integers, balance_weight: float, z_weight: float
) -> _Floats:
    """Return the gradient of :func:`auxiliary_loss` in the logits, the choices being fixed."""
    rows, experts = logits.shape
    shares, lse = probabilities(logits)
    fractions = np.bincount(choice.ravel(), minlength=experts) / max(1, choice.size)
    balance = balance_weight * experts * (fractions - (shares @ fractions)[:, np.newaxis])
    gradient: _Floats = shares * (balance + 2 * z_weight * lse[:, np.newaxis])
    gradient /= max(1, rows)
    return gradient
