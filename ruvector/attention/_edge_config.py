"""The configuration of attention with features on the edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .._checks import finite, flag, integer
from ..errors import InvalidConfigError

__all__ = ["EdgeFeaturedConfig"]


@dataclass(frozen=True, slots=True)
class EdgeFeaturedConfig:
    """The configuration of :class:`EdgeFeaturedAttention`.

    Parameters
    ----------
    node_dim : int
        Width of a node's vector.
    edge_dim : int
        Width of an edge's features; 0 where edges have none.
    num_heads : int
        Number of heads.
    out_dim : int, optional
        Width of the output where heads are concatenated, which `num_heads` divides; width of
        one head where they are averaged. `node_dim` by default.
    concat_heads : bool, default True
        Whether the heads are laid side by side; averaged otherwise.
    add_self_loops : bool, default True
        Whether a node of a graph attends to itself: then its own edges to itself do not
        count, and one is added whose features are the mean over its other edges.
    negative_slope : float, default 0.2
        Slope of LeakyReLU below 0.
    share_weights : bool, default False
        Whether receivers are transformed as senders are.
    bias : bool, default True
        Whether the transforms of nodes and the output have a bias.
    residual : bool, default False
        Whether a linear map of the receiver is added to the output.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain.

    Examples
    --------
    >>> import ruvector
    >>> ruvector.EdgeFeaturedConfig(32, 4, num_heads=8).out_dim
    32
    """

    node_dim: int
    edge_dim: int
    num_heads: int
    out_dim: int | None = None
    concat_heads: bool = True
    add_self_loops: bool = True
    negative_slope: float = 0.2
    share_weights: bool = False
    bias: bool = True
    residual: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        checked: dict[str, Any] = {
            "node_dim": integer(self.node_dim, "node_dim", 1),
            "edge_dim": integer(self.edge_dim, "edge_dim", 0),
            "num_heads": integer(self.num_heads, "num_heads", 1),
            "negative_slope": finite(self.negative_slope, "negative_slope"),
        }
        width = checked["node_dim"] if self.out_dim is None else self.out_dim
        checked["out_dim"] = integer(width, "out_dim", 1)
        for name in ("concat_heads", "add_self_loops", "share_weights", "bias", "residual"):
            checked[name] = flag(getattr(self, name), name)
        if checked["concat_heads"] and checked["out_dim"] % checked["num_heads"]:
            raise InvalidConfigError(
                f"num_heads must divide out_dim where heads are concatenated, got "
                f"num_heads={checked['num_heads']} and out_dim={checked['out_dim']}"
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)
