"""Attention mechanisms as classes over a memory of keys and values."""

from ._edge_gradients import GraphGradients
from .base import Attention, Gradients
from .dense import DotProductAttention, FlashAttention, MultiHeadAttention
from .dual_space import DualSpaceAttention, DualSpaceConfig
from .edge_featured import EdgeFeaturedAttention, EdgeFeaturedConfig
from .hyperbolic import HyperbolicAttention
from .linear import LinearAttention, LinearState
from .local_global import LocalGlobalAttention
from .moe import MoEAttention, MoEConfig, RoutingStats
from .rotary import GraphRoPEAttention, RoPEConfig

__all__ = [
    "Attention",
    "DotProductAttention",
    "DualSpaceAttention",
    "DualSpaceConfig",
    "EdgeFeaturedAttention",
    "EdgeFeaturedConfig",
    "FlashAttention",
    "Gradients",
    "GraphGradients",
    "GraphRoPEAttention",
    "HyperbolicAttention",
    "LinearAttention",
    "LinearState",
    "LocalGlobalAttention",
    "MoEAttention",
    "MoEConfig",
    "MultiHeadAttention",
    "RoPEConfig",
    "RoutingStats",
]
