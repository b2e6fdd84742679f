"""Plain-text tables of results."""

from __future__ import annotations

from collections.abc import Sequence

from .core import OURS
from .run import CurveResult, RowResult

__all__ = ["curve_table", "quantity", "row_table", "summary"]

_HEADER = (
    "row", "thr", OURS, "+-", "GF/s", "GB/s", "against", "theirs", "ratio", "must",
    "aim", "verdict",
)  # fmt: skip
_BEHIND = ("LOSS", "short of must", "below aim")
_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def quantity(value: float, unit: str) -> str:
    """Format a value with three digits; seconds get a fitting prefix."""
    if unit != "s":
        return f"{value:.3g} {unit}"
    scale, name = next((pair for pair in _SCALES if value >= pair[0]), _SCALES[-1])
    return f"{value / scale:.3g} {name}"


def _optional(value: float | None, pattern: str) -> str:
    return "" if value is None else format(value, pattern)


def _rows(result: RowResult) -> list[tuple[str, ...]]:
    name, threads = result.name, str(result.threads)
    if result.error is not None:
        return [(name, threads, "FAILED", *[""] * 8, result.error)]
    if result.value is None:
        return [(name, threads, "skipped", *[""] * 8, result.skipped[OURS])]
    lead = (
        name, threads, quantity(result.value, result.unit), f"{result.spread:.0%}",
        _optional(result.gflops, ".1f"), _optional(result.gbytes, ".1f"),
    )  # fmt: skip
    lines = [
        (
            outcome.peer, quantity(outcome.value, result.unit), f"{outcome.ratio:.2f}",
            _optional(outcome.must, "g"), _optional(outcome.aim, "g"), outcome.verdict,
        )
        for outcome in result.outcomes
    ]  # fmt: skip
    lines += [(peer, "", "", "", "", f"skipped: {why}") for peer, why in result.skipped.items()]
    lines = lines or [("", "", "", "", "", "")]
    return [(*(lead if i == 0 else ("",) * 6), *line) for i, line in enumerate(lines)]


def _layout(lines: Sequence[Sequence[str]], left: set[int]) -> str:
    widths = [
        max(map(len, column)) for column in zip(*(line[:-1] for line in lines), strict=True)
    ]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line[:-1], widths, strict=True))
        ]
        text.append("  ".join([*cells, line[-1]]).rstrip())
    return "\n".join(text)


def row_table(results: Sequence[RowResult]) -> str:
    """Format rows: ours, each peer's figure, the ratio against its targets, the verdict."""
    lines: list[tuple[str, ...]] = [_HEADER]
    for result in results:
        lines += _rows(result)
    return _layout(lines, left={0, 6})


def curve_table(result: CurveResult) -> str:
    """Format a curve, a column per size, and the largest over the smallest value."""
    xs = sorted({x for points in result.series.values() for x in points})
    lines = [(result.x_label, *map(str, xs), "largest / smallest")]
    for name, points in result.series.items():
        values = [points[x] for x in xs if x in points]
        ratio = f"{max(values) / min(values):.2f}" if min(values) > 0 else ""
        cells = [f"{points[x]:.3g}" if x in points else "" for x in xs]
        lines.append((name, *cells, ratio))
    title = f"{result.name}: {result.y_label}; expected: {result.expected}"
    skipped = [f"  left out {x}: {reason}" for x, reason in result.skipped.items()]
    failed = [] if result.error is None else [f"  FAILED at {result.error}"]
    return "\n".join([title, _layout(lines, left={0}), *skipped, *failed])


def summary(results: Sequence[RowResult]) -> str:
    """Count the verdicts and list what lost, fell short or failed."""
    counts: dict[str, int] = {}
    behind = []
    for result in results:
        if result.error is not None:
            counts["failed"] = counts.get("failed", 0) + 1
            behind.append(f"  {result.name}: {result.error}")
        for outcome in result.outcomes:
            counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
            if outcome.verdict in _BEHIND:
                wanted = outcome.must if outcome.must is not None else outcome.aim
                against = f"{outcome.ratio:.2f} of {outcome.peer}"
                goal = "" if wanted is None else f", wanted {wanted:g}"
                behind.append(f"  {outcome.verdict}: {result.name}: {against}{goal}")
    head = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
    return "\n".join([f"summary: {head or 'nothing compared'}", *behind])
