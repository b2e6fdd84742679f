"""The configuration of attention with rotary positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._checks import finite, integer, one_of
from ..errors import InvalidConfigError

__all__ = ["RoPEConfig"]

_SCALINGS = ("linear", "ntk", "yarn")
_LAYOUTS = ("half", "interleaved")


@dataclass(frozen=True, slots=True)
class RoPEConfig:
    """The configuration of :class:`GraphRoPEAttention`.

    Parameters
    ----------
    dim : int
        Width of queries and keys; `num_heads` divides it, and the width of a head is even.
    max_position : int
        Positions are from 0 to ``max_position - 1``.
    base : float, default 10000.0
        Pair i of a head of width d turns by ``base ** (-2 i / d)`` a position; above 1.
    scaling_factor : float, default 1.0
        How many times longer than what a model was trained on positions may run; positive.
    num_heads : int, default 1
        Number of heads: contiguous slices of the vectors, each turned on its own.
    scaling : {"linear", "ntk", "yarn"}, default "linear"
        What the factor s does. ``"linear"`` divides positions by s. ``"ntk"`` takes
        ``base * s ** (d / (d - 2))`` for the base, for heads wider than 2. ``"yarn"``
        divides the angles of slow pairs by s, leaves those of fast pairs, takes a linear
        mixture between the two, and multiplies sines and cosines by ``0.1 ln(s) + 1`` where
        s is above 1.
    layout : {"half", "interleaved"}, default "half"
        Which entries of a head are pairs: i and ``i + d / 2``, as in Hugging Face's models, or
        2 i and 2 i + 1, as in the paper.
    original_max_position : int, optional
        The length a model was trained on, for ``"yarn"``; ``max_position / scaling_factor``
        by default.
    beta_fast, beta_slow : float, default 32 and 1
        Pairs that turn more often than `beta_fast` over the original length are fast, those
        that turn less often than `beta_slow` slow; for ``"yarn"``.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain.

    Examples
    --------
    >>> import ruvector
    >>> ruvector.RoPEConfig(64, 512, num_heads=4, scaling="yarn", scaling_factor=4).layout
    'half'
    """

    dim: int
    max_position: int
    base: float = 10000.0
    scaling_factor: float = 1.0
    num_heads: int = 1
    scaling: str = "linear"
    layout: str = "half"
    original_max_position: int | None = None
    beta_fast: float = 32
    beta_slow: float = 1

    def __post_init__(self) -> None:
        """Check the fields."""
        checked: dict[str, Any] = {
            name: integer(getattr(self, name), name, 1)
            for name in ("dim", "max_position", "num_heads")
        }
        dim, heads = checked["dim"], checked["num_heads"]
        if dim % heads or dim // heads % 2:
            raise InvalidConfigError(
                f"dim must divide into num_heads heads of an even width, got dim={dim} and "
                f"num_heads={heads}"
            )
        checked["base"] = base = finite(self.base, "base")
        if base <= 1:
            raise InvalidConfigError(f"base must be above 1, got {self.base!r}")
        for name in ("scaling_factor", "beta_fast", "beta_slow"):
            checked[name] = finite(getattr(self, name), name, positive=True)
        checked["scaling"] = one_of(self.scaling, "scaling", _SCALINGS)
        checked["layout"] = one_of(self.layout, "layout", _LAYOUTS)
        if checked["scaling"] == "ntk" and dim // heads == 2:
            raise InvalidConfigError(
                f"scaling must not be 'ntk' for heads of width 2, got dim={dim} and "
                f"num_heads={heads}"
            )
        if checked["beta_fast"] < checked["beta_slow"]:
            raise InvalidConfigError(
                f"beta_fast must be at least beta_slow, got {self.beta_fast!r} and "
                f"{self.beta_slow!r}"
            )
        if self.original_max_position is not None:
            checked["original_max_position"] = integer(
                self.original_max_position, "original_max_position", 1
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads
