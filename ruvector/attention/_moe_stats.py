"""What a mixture of experts has routed."""

from __future__ import annotations

import os
from threading import Lock
from typing import NamedTuple

import numpy as np

from .._arrays import Array
from .._kernels import routing

__all__ = ["RoutingStats", "Tally"]

# One for all objects, which stay picklable; it is held for microseconds.
_lock = Lock()


class RoutingStats(NamedTuple):
    """What a :class:`MoEAttention` has routed since the last reset.

    Attributes
    ----------
    routings : ndarray of int, shape (num_experts,)
        How many queries each expert answered.
    queries : int
        Number of queries.
    overflowed : int
        How many of their choices were not served, because the chosen expert was full.
    dropped : int
        Queries for which no expert was left, so that their output is 0.
    """

    routings: Array
    queries: int
    overflowed: int
    dropped: int


class Tally:
    """Statistics that several threads may add to."""

    __slots__ = ("_stats",)

    def __init__(self, experts: int) -> None:
        self._stats = RoutingStats(np.zeros(experts, np.int64), 0, 0, 0)

    @property
    def stats(self) -> RoutingStats:
        """The sums so far."""
        stats = self._stats
        return stats._replace(routings=stats.routings.copy())

    def add(self, wanted: Array, choice: Array) -> None:
        """Count the choices of some queries, and what was made of them."""
        served = choice[choice >= 0]
        overflowed, dropped = (0, 0) if choice is wanted else routing.overflow(wanted, choice)
        with _lock:
            stats = self._stats
            self._stats = RoutingStats(
                stats.routings + np.bincount(served, minlength=stats.routings.size),
                stats.queries + len(choice),
                stats.overflowed + overflowed,
                stats.dropped + dropped,
            )


def _forget_after_fork() -> None:
    # The thread that forked need not be the one that held the lock.
    global _lock
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
