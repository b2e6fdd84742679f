"""What is fixed of an attention with features on the edges: its fields and parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._arrays import floating
from .._checks import generator, real_type, settings
from .._gatv2 import initial_parameters
from ..errors import InvalidConfigError
from ._edge_config import EdgeFeaturedConfig
from ._parameters import Learned
from .base import Attention

__all__ = ["EdgeAttention"]


class EdgeAttention(Learned, Attention):
    """Attention with the parameters of a GATv2 layer."""

    _fields = (
        "node_dim",
        "edge_dim",
        "num_heads",
        "out_dim",
        "concat_heads",
        "add_self_loops",
        "negative_slope",
        "share_weights",
        "bias",
        "residual",
    )

    def __init__(
        self,
        config: EdgeFeaturedConfig | None = None,
        *,
        seed: int | None = None,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = "float32",
        **fields: Any,
    ) -> None:
        chosen = settings(EdgeFeaturedConfig, config, fields)
        super().__init__(chosen.node_dim)
        self._settings = chosen
        self._heads = chosen.num_heads
        drawn = generator(seed, rng)
        self._parameters = initial_parameters(chosen, drawn, real_type(dtype, "dtype"))

    @property
    def node_dim(self) -> int:
        """Width of a node's vector."""
        return self._settings.node_dim

    @property
    def edge_dim(self) -> int:
        """Width of an edge's features."""
        return self._settings.edge_dim

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return self._settings.num_heads

    @property
    def out_dim(self) -> int:
        """Width of the output."""
        assert self._settings.out_dim is not None
        return self._settings.out_dim

    @property
    def concat_heads(self) -> bool:
        """Whether the heads are laid side by side."""
        return self._settings.concat_heads

    @property
    def add_self_loops(self) -> bool:
        """Whether a node of a graph attends to itself."""
        return self._settings.add_self_loops

    @property
    def negative_slope(self) -> float:
        """Slope of LeakyReLU below 0."""
        return self._settings.negative_slope

    @property
    def share_weights(self) -> bool:
        """Whether receivers are transformed as senders are."""
        return self._settings.share_weights

    @property
    def bias(self) -> bool:
        """Whether there are biases."""
        return self._settings.bias

    @property
    def residual(self) -> bool:
        """Whether a linear map of the receiver is added to the output."""
        return self._settings.residual

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over parameters, ours or those of a ``GATv2Conv`` of torch_geometric.

        Parameters
        ----------
        state : mapping of str to array_like
            All parameters and no others, of their shapes. With `share_weights` also the
            copies ``lin_r.weight`` and ``lin_r.bias`` that ``GATv2Conv`` lists.

        Raises
        ------
        InvalidConfigError
            If names are missing or unknown, or copies differ.
        DimensionMismatchError
            If a shape is another one.
        """
        if self.share_weights:
            state = dict(state)
            for name in ("weight", "bias"):
                copy, shared = state.pop(f"lin_r.{name}", None), state.get(f"lin_l.{name}")
                if copy is not None and not np.array_equal(
                    floating(copy, f"lin_r.{name}"), floating(shared, f"lin_l.{name}")
                ):
                    raise InvalidConfigError(
                        f"lin_r.{name} must equal lin_l.{name} with share_weights"
                    )
        super().load_state_dict(state)
