"""Curves as PNG files; needs matplotlib."""

from __future__ import annotations

import re
from pathlib import Path

from .run import CurveResult

__all__ = ["plot"]


def plot(result: CurveResult, folder: Path) -> Path:
    """Draw one curve, sizes on a logarithmic axis, and return the file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in result.series.items():
        xs = sorted(points)
        axes.plot(xs, [points[x] for x in xs], marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(result.x_label)
    axes.set_ylabel(result.y_label)
    axes.set_title(f"{result.name} (expected: {result.expected})", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (re.sub(r"[^a-z0-9]+", "-", result.name.lower()).strip("-") + ".png")
    figure.savefig(path, dpi=120)
    return path
