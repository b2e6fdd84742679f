"""Runs rows, measurements and curves: check, then time, then compare with the targets."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .core import (
    OURS,
    Context,
    Curve,
    Measurement,
    ResultsDifferError,
    Row,
    Target,
    UnavailableError,
)
from .peers import equal_threads
from .sides import Results, Side
from .timing import FULL, QUICK, Timing, interleave

__all__ = [
    "CurveResult",
    "Outcome",
    "RowResult",
    "check",
    "present",
    "run_curve",
    "run_measurement",
    "run_row",
    "sample",
]

_SETTLE = 0.05  # OpenBLAS workers spin some 25 ms after their last job


@dataclass(frozen=True, slots=True)
class Outcome:
    """Our side against one peer: ``value`` is theirs, ``ratio`` how much better we are."""

    peer: str
    value: float
    ratio: float
    must: float | None
    aim: float | None
    spread: float = 0.0

    @property
    def verdict(self) -> str:
        """The comparison in words, losses included."""
        if self.aim is not None and self.ratio >= self.aim:
            return "aim met"
        if self.must is not None and self.ratio >= self.must:
            return "must met"
        if self.must is None and self.aim is not None:
            return "below aim"
        if self.ratio < 1:
            return "LOSS"
        return "win" if self.must is None else "short of must"


@dataclass(slots=True)
class RowResult:
    """What a row or measurement gave.

    ``error`` says why its build or its check failed, ``skipped`` which sides were missing;
    ``value`` is None where there was nothing to time.
    """

    name: str
    threads: int
    unit: str = "s"
    value: float | None = None
    spread: float = 0.0
    gflops: float | None = None
    gbytes: float | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    error: str | None = None


@dataclass(slots=True)
class CurveResult:
    """The points of a curve by series, and the sizes that were left out, with the reason."""

    name: str
    x_label: str
    y_label: str
    expected: str
    series: dict[str, dict[int, float]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)
    error: str | None = None


def check(row: str, peer: str, ours: Results, theirs: Results, tolerance: float) -> None:
    """Raise `ResultsDifferError` unless both sides computed the same arrays."""
    if len(ours) != len(theirs):
        raise ResultsDifferError(f"{row}: {len(ours)} outputs, {peer} gives {len(theirs)}")
    for position, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            message = f"{row}: output {position} has shape {a.shape}, {peer}'s has {b.shape}"
            raise ResultsDifferError(message)
        error = np.max(np.abs(a - b), initial=0.0) / max(np.max(np.abs(b), initial=0.0), 1e-30)
        if not error <= tolerance:
            message = f"{row}: output {position} differs from {peer}'s by {error:.1e} relative"
            raise ResultsDifferError(f"{message} to its largest entry, allowed {tolerance:.0e}")


def sample(ctx: Context, sides: dict[str, Side]) -> dict[str, Timing]:
    """Time the sides with the run's plan."""
    plan = QUICK if ctx.quick else FULL
    if ctx.threads > 1:
        plan = dataclasses.replace(plan, settle=_SETTLE)
    return interleave(sides, plan)


def present(builders: dict[str, Callable[[], Side]]) -> dict[str, Side]:
    """Build the sides that are available and leave out the others."""
    sides = {}
    for name, build in builders.items():
        with contextlib.suppress(UnavailableError):
            sides[name] = build()
    return sides


def _shares(row: Row, ctx: Context, seconds: float) -> list[Outcome]:
    limits = [
        ("sgemm peak", row.peak, row.flops, ctx.machine.fma),
        ("memory read", row.bandwidth, row.traffic, ctx.machine.bandwidth),
    ]
    return [
        Outcome(name, work / limit, work / seconds / limit, target.must, target.aim)
        for name, target, work, limit in limits
        # the limits were measured with the run's threads
        if target is not None and ctx.threads == ctx.machine.threads
    ]


def run_row(row: Row, ctx: Context) -> RowResult:
    """Build the sides of a row, check them against ours, time them and compare."""
    if row.threads is not None:
        ctx = dataclasses.replace(ctx, threads=row.threads)
    result = RowResult(row.name, ctx.threads)
    if ctx.threads > ctx.machine.cpus:
        reason = f"needs {ctx.threads} CPUs, this process may use {ctx.machine.cpus}"
        result.skipped[OURS] = reason
        return result
    sides: dict[str, Side] = {}
    with equal_threads(ctx.threads):
        try:
            case = row.build(ctx)
            sides[OURS] = case.ours
            ours = case.ours.result()
            for peer, build in case.peers.items():
                try:
                    sides[peer] = build()
                except UnavailableError as reason:
                    result.skipped[peer] = str(reason)
                else:
                    check(row.name, peer, ours, sides[peer].result(), row.tolerance)
            timings = sample(ctx, sides)
        except UnavailableError as reason:
            result.skipped[OURS] = str(reason)
            return result
        except Exception as error:
            # one broken row must not hide the rest; the command ends with an error
            result.error = f"{type(error).__name__}: {error}"
            return result
        finally:
            for side in sides.values():
                side.close()
    seconds = timings[OURS].median
    result.value, result.spread = seconds, timings[OURS].spread
    result.gflops = row.flops / seconds / 1e9 if row.flops else None
    result.gbytes = row.traffic / seconds / 1e9 if row.traffic else None
    for peer, timing in timings.items():
        if peer != OURS:
            target = row.targets.get(peer, Target())
            ratio = timing.median / seconds
            result.outcomes.append(
                Outcome(peer, timing.median, ratio, target.must, target.aim, timing.spread)
            )
    result.outcomes += _shares(row, ctx, seconds)
    return result


def run_measurement(item: Measurement, ctx: Context) -> RowResult:
    """Measure a quantity and compare it with its limits and with the peers' values."""
    result = RowResult(item.name, ctx.threads, item.unit)
    try:
        values = item.measure(ctx)
    except UnavailableError as reason:
        result.skipped[OURS] = str(reason)
        return result
    except Exception as error:
        result.error = f"{type(error).__name__}: {error}"
        return result
    result.value = values[OURS]
    for name, limit in (("limit (must)", item.must), ("limit (aim)", item.aim)):
        if limit is not None:
            must, aim = (1.0, None) if name == "limit (must)" else (None, 1.0)
            ratio = limit / result.value
            result.outcomes.append(Outcome(name, limit, ratio, must, aim))
    result.outcomes += [
        Outcome(peer, value, value / result.value, None, None)
        for peer, value in values.items()
        if peer != OURS
    ]
    return result


def run_curve(curve: Curve, ctx: Context) -> CurveResult:
    """Measure all points of a curve."""
    result = CurveResult(curve.name, curve.x_label, curve.y_label, curve.expected)
    for x in curve.quick if ctx.quick else curve.xs:
        try:
            values = curve.point(ctx, x)
        except UnavailableError as reason:
            result.skipped[x] = str(reason)
            continue
        except Exception as error:
            result.error = f"{x}: {type(error).__name__}: {error}"
            break
        for series, value in values.items():
            result.series.setdefault(series, {})[x] = value
    return result
