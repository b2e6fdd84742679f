"""Attention mechanisms for the CPU: exact, streaming, and without a framework.

The functions and classes here take anything that NumPy can view and return NumPy arrays.
Compiled kernels do the work where they are installed, their NumPy twins elsewhere;
:func:`backend` tells which.
"""

from . import graph
from ._config import (
    backend,
    get_include,
    get_num_threads,
    info,
    num_threads,
    set_num_threads,
    version,
)
from ._gradcheck import gradcheck
from ._version import __version__
from .attention import (
    Attention,
    DotProductAttention,
    DualSpaceAttention,
    DualSpaceConfig,
    EdgeFeaturedAttention,
    EdgeFeaturedConfig,
    FlashAttention,
    GraphRoPEAttention,
    HyperbolicAttention,
    LinearAttention,
    LinearState,
    LocalGlobalAttention,
    MoEAttention,
    MoEConfig,
    MultiHeadAttention,
    RoPEConfig,
)
from .errors import (
    DimensionMismatchError,
    EmptyInputError,
    GradientCheckError,
    InvalidConfigError,
    InvalidMaskError,
    RuvectorError,
)
from .functional import (
    AttentionGradients,
    attention_backward,
    attention_weights_from,
    linear_attention,
    merge_states,
    scaled_dot_product_attention,
    top_k_keys,
)
from .utils import (
    attention_weights,
    available_mechanisms,
    batch_normalize,
    cosine_similarity,
    l2_norm,
    normalize,
    pairwise_distances,
    random_orthogonal_matrix,
    scaled_dot_attention,
    softmax,
)

__all__ = [
    "Attention",
    "AttentionGradients",
    "DimensionMismatchError",
    "DotProductAttention",
    "DualSpaceAttention",
    "DualSpaceConfig",
    "EdgeFeaturedAttention",
    "EdgeFeaturedConfig",
    "EmptyInputError",
    "FlashAttention",
    "GradientCheckError",
    "GraphRoPEAttention",
    "HyperbolicAttention",
    "InvalidConfigError",
    "InvalidMaskError",
    "LinearAttention",
    "LinearState",
    "LocalGlobalAttention",
    "MoEAttention",
    "MoEConfig",
    "MultiHeadAttention",
    "RoPEConfig",
    "RuvectorError",
    "__version__",
    "attention_backward",
    "attention_weights",
    "attention_weights_from",
    "available_mechanisms",
    "backend",
    "batch_normalize",
    "cosine_similarity",
    "get_include",
    "get_num_threads",
    "gradcheck",
    "graph",
    "info",
    "l2_norm",
    "linear_attention",
    "merge_states",
    "normalize",
    "num_threads",
    "pairwise_distances",
    "random_orthogonal_matrix",
    "scaled_dot_attention",
    "scaled_dot_product_attention",
    "set_num_threads",
    "softmax",
    "top_k_keys",
    "version",
]


def __dir__() -> list[str]:
    return list(__all__)
