"""Interleaved timing: in each round every side takes its turn, so drift hits all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .sides import Local, Side

__all__ = ["FULL", "QUICK", "Plan", "Timing", "fastest", "interleave"]

T = TypeVar("T")
# A turn begins with calls for this long, unmeasured: a thread that slept may share a processor
# with the one that wakes it until the system moves it, which takes a few milliseconds.
_WARM_UP = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure.

    A sample repeats the call until it lasts ``min_sample`` seconds; rounds go on until
    ``budget`` seconds per side and ``min_rounds`` are reached, or ``max_rounds``.
    ``settle`` seconds of sleep before each sample let the other sides' thread pools stop
    spinning.
    """

    min_sample: float
    budget: float
    min_rounds: int
    max_rounds: int
    settle: float = 0.0


FULL = Plan(min_sample=0.005, budget=1.5, min_rounds=7, max_rounds=200)
QUICK = Plan(min_sample=0.001, budget=0.1, min_rounds=3, max_rounds=20)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call: one entry of ``samples`` per round, each a mean of ``repeats``."""

    samples: tuple[float, ...]
    repeats: int

    @property
    def median(self) -> float:
        """The median sample."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The interquartile range over the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / self.median if self.median else 0.0


def _calibrate(side: Side, min_sample: float) -> tuple[int, float]:
    """Warm up; return how often the call must repeat to fill a sample, and its seconds."""
    side.seconds(1)
    repeats = 1
    while True:
        seconds = side.seconds(repeats)
        elapsed = seconds * repeats
        if elapsed >= min_sample:
            return repeats, seconds
        growth = min_sample / max(elapsed, 1e-9)
        repeats = max(repeats + 1, math.ceil(repeats * min(growth * 1.1, 10.0)))


def interleave(sides: Mapping[str, Side], plan: Plan = FULL) -> dict[str, Timing]:
    """Time all sides in turns and return one `Timing` each."""
    calibrated = {name: _calibrate(side, plan.min_sample) for name, side in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    deadline = time.perf_counter() + plan.budget * len(order)
    for round_number in range(plan.max_rounds):
        if round_number >= plan.min_rounds and time.perf_counter() > deadline:
            break
        for name in order:
            if plan.settle:
                time.sleep(plan.settle)
            repeats, seconds = calibrated[name]
            if seconds < _WARM_UP:
                sides[name].seconds(math.ceil(_WARM_UP / max(seconds, 1e-9)))
            samples[name].append(sides[name].seconds(repeats))
        order = [*order[1:], order[0]]
    return {name: Timing(tuple(samples[name]), calibrated[name][0]) for name in sides}


def fastest(candidates: Sequence[T], call: Callable[[T], Callable[[], object]]) -> T:
    """Return the candidate whose call is quickest, so that a peer runs its best form."""
    if len(candidates) == 1:
        return candidates[0]
    plan = Plan(min_sample=0.002, budget=0.05, min_rounds=3, max_rounds=10)
    timings = interleave({str(i): Local(call(c)) for i, c in enumerate(candidates)}, plan)
    return candidates[min(range(len(candidates)), key=lambda i: timings[str(i)].median)]
