"""The configuration of a mixture of attention experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .._checks import finite, integer
from .._experts import EXPERT_TYPES
from ..errors import InvalidConfigError

__all__ = ["MoEConfig"]


@dataclass(frozen=True, slots=True)
class MoEConfig:
    """The configuration of :class:`MoEAttention`.

    Parameters
    ----------
    dim : int
        Width of queries and keys.
    num_experts : int
        Number of experts.
    top_k : int
        How many of them answer a query; at most `num_experts`.
    expert_capacity : float, default 1.25
        How many queries an expert takes in training, as a multiple of its even share
        ``m * top_k / num_experts``; positive.
    load_balance_weight : float, default 0.01
        Factor on the loss for unequal use of the experts; not negative.
    aux_loss_weight : float, default 0.0
        Factor on the mean square of the log-sum-exp of the router's logits; not negative.
    jitter_noise : float, default 0.0
        In training the router sees each number of a query multiplied by one drawn from
        ``1 - jitter_noise`` to ``1 + jitter_noise``; at least 0 and below 1.
    expert_types : sequence of {"standard", "hyperbolic", "linear"}, optional
        The type of each expert. By default these three in turn.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain.

    Examples
    --------
    >>> import ruvector
    >>> ruvector.MoEConfig(64, num_experts=8, top_k=2).expert_capacity
    1.25
    """

    dim: int
    num_experts: int
    top_k: int
    expert_capacity: float = 1.25
    load_balance_weight: float = 0.01
    aux_loss_weight: float = 0.0
    jitter_noise: float = 0.0
    expert_types: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        experts = integer(self.num_experts, "num_experts", 1)
        checked: dict[str, Any] = {
            "dim": integer(self.dim, "dim", 1),
            "num_experts": experts,
            "top_k": integer(self.top_k, "top_k", 1),
            "expert_capacity": finite(self.expert_capacity, "expert_capacity", positive=True),
        }
        if checked["top_k"] > experts:
            raise InvalidConfigError(
                f"top_k must be at most num_experts, got top_k={self.top_k!r} and "
                f"num_experts={experts}"
            )
        for name in ("load_balance_weight", "aux_loss_weight", "jitter_noise"):
            checked[name] = finite(getattr(self, name), name)
            if checked[name] < 0:
                raise InvalidConfigError(
                    f"{name} must not be negative, got {getattr(self, name)!r}"
                )
        if checked["jitter_noise"] >= 1:
            raise InvalidConfigError(
                f"jitter_noise must be less than 1, got {self.jitter_noise!r}"
            )
        if self.expert_types is not None:
            checked["expert_types"] = _checked_types(self.expert_types, experts)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def _checked_types(types: Any, experts: int) -> tuple[str, ...]:
    if isinstance(types, str) or not isinstance(types, Sequence):
        raise InvalidConfigError(f"expert_types must be a sequence of types, got {types!r}")
    for kind in types:
        if kind not in EXPERT_TYPES:
            words = ", ".join(map(repr, EXPERT_TYPES[:-1]))
            raise InvalidConfigError(
                f"expert_types must hold {words} or {EXPERT_TYPES[-1]!r}, got {kind!r}"
            )
    if len(types) != experts:
        raise InvalidConfigError(
            f"expert_types must hold {experts} types, one per expert, got {len(types)}"
        )
    return tuple(types)
