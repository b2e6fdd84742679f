"""What a benchmark is: rows, measurements and curves, and what they are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from .machine import Machine
    from .peers import Peers
    from .sides import Side

__all__ = [
    "OURS",
    "Case",
    "Context",
    "Curve",
    "Family",
    "Item",
    "Measurement",
    "ResultsDifferError",
    "Row",
    "Target",
    "UnavailableError",
]

OURS = "ruvector"


class ResultsDifferError(AssertionError):
    """Two sides of a row did not compute the same thing, so timing them means nothing."""


class UnavailableError(RuntimeError):
    """A peer, a package or a CPU feature that the row needs is not here."""


@dataclass(frozen=True, slots=True)
class Target:
    """Required and hoped-for ratio, their time over ours (or ours over a machine's peak)."""

    must: float | None = None
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a row may ask about the run."""

    threads: int
    quick: bool
    peers: Peers
    machine: Machine

    @property
    def rng(self) -> np.random.Generator:
        """A generator with the same seed for every row."""
        import numpy

        return numpy.random.default_rng(2024)


@dataclass(frozen=True, slots=True)
class Case:
    """The built sides of a row. A peer is a factory that may raise `UnavailableError`."""

    ours: Side
    peers: dict[str, Callable[[], Side]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One piece of work timed on our side and on the side of every peer.

    ``tolerance`` bounds ``max |a - b| / max |b|`` in the check that runs before the timing.
    ``flops`` and ``traffic`` (bytes) give the GF/s and GB/s columns; ``peak`` and
    ``bandwidth`` are targets for the share of the machine's measured limits. ``threads``
    pins the thread count of this row.
    """

    name: str
    build: Callable[[Context], Case]
    targets: dict[str, Target] = field(default_factory=dict)
    flops: float = 0.0
    traffic: float = 0.0
    tolerance: float = 1e-4
    threads: int | None = None
    peak: Target | None = None
    bandwidth: Target | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A quantity that is not the time of a call, with an upper limit: size, import time.

    ``measure`` returns one value per side, ours under the name ``"ruvector"``.
    """

    name: str
    unit: str
    measure: Callable[[Context], dict[str, float]]
    must: float | None = None
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """How a figure grows with a size; ``point`` returns one value per series at one ``x``.

    A point that cannot be measured here raises `UnavailableError` and is left out.
    """

    name: str
    x_label: str
    y_label: str
    expected: str
    xs: Sequence[int]
    quick: Sequence[int]
    point: Callable[[Context, int], dict[str, float]]


Item = Row | Measurement | Curve


@dataclass(frozen=True, slots=True)
class Family:
    """A module of :mod:`benchmarks.families`: its name, its summary and its items."""

    name: str
    summary: str
    module: Any

    def items(self) -> list[Item]:
        """Rows and measurements first, then curves."""
        curves: Callable[[], list[Curve]] = getattr(self.module, "curves", list)
        return [*self.module.rows(), *curves()]
