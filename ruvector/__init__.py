"""Attention mechanisms for the CPU: exact, streaming, and without a framework.

The functions and classes here take anything that NumPy can view and return NumPy arrays.
Compiled kernels do the work where they are installed, their NumPy twins elsewhere;
:func:`backend` tells which. Training, batches, streams and shards are imported when they are
first asked for.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

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
    LinearGradients,
    attention_backward,
    attention_weights_from,
    linear_attention,
    linear_attention_backward,
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

if TYPE_CHECKING:
    from . import batch, hyperbolic, sharding, stream, training
    from .batch import (
        BatchProcessor,
        parallel_attention_compute,
        parallel_attention_compute_async,
    )
    from .sharding import sharded_attention, sharded_attention_backward
    from .stream import KVCache, StreamProcessor
    from .training import (
        AdamOptimizer,
        AdamWOptimizer,
        CurriculumScheduler,
        CurriculumStage,
        GraphEncoder,
        HardNegativeMiner,
        InBatchMiner,
        InfoNCELoss,
        LearningRateScheduler,
        LinearAdapter,
        LocalContrastiveLoss,
        MemoryEncoder,
        SGDOptimizer,
        SpectralRegularization,
        TemperatureAnnealing,
        Trainer,
        TrainerConfig,
        clip_grad_norm,
    )

__all__ = [
    "AdamOptimizer",
    "AdamWOptimizer",
    "Attention",
    "AttentionGradients",
    "BatchProcessor",
    "CurriculumScheduler",
    "CurriculumStage",
    "DimensionMismatchError",
    "DotProductAttention",
    "DualSpaceAttention",
    "DualSpaceConfig",
    "EdgeFeaturedAttention",
    "EdgeFeaturedConfig",
    "EmptyInputError",
    "FlashAttention",
    "GradientCheckError",
    "GraphEncoder",
    "GraphRoPEAttention",
    "HardNegativeMiner",
    "HyperbolicAttention",
    "InBatchMiner",
    "InfoNCELoss",
    "InvalidConfigError",
    "InvalidMaskError",
    "KVCache",
    "LearningRateScheduler",
    "LinearAdapter",
    "LinearAttention",
    "LinearGradients",
    "LinearState",
    "LocalContrastiveLoss",
    "LocalGlobalAttention",
    "MemoryEncoder",
    "MoEAttention",
    "MoEConfig",
    "MultiHeadAttention",
    "RoPEConfig",
    "RuvectorError",
    "SGDOptimizer",
    "SpectralRegularization",
    "StreamProcessor",
    "TemperatureAnnealing",
    "Trainer",
    "TrainerConfig",
    "__version__",
    "attention_backward",
    "attention_weights",
    "attention_weights_from",
    "available_mechanisms",
    "backend",
    "batch",
    "batch_normalize",
    "clip_grad_norm",
    "cosine_similarity",
    "get_include",
    "get_num_threads",
    "gradcheck",
    "graph",
    "hyperbolic",
    "info",
    "l2_norm",
    "linear_attention",
    "linear_attention_backward",
    "merge_states",
    "normalize",
    "num_threads",
    "pairwise_distances",
    "parallel_attention_compute",
    "parallel_attention_compute_async",
    "random_orthogonal_matrix",
    "scaled_dot_attention",
    "scaled_dot_product_attention",
    "set_num_threads",
    "sharded_attention",
    "sharded_attention_backward",
    "sharding",
    "softmax",
    "stream",
    "top_k_keys",
    "training",
    "version",
]

# Those that need another package are not in __all__: a star import would fail without it.
_MODULES = ("batch", "dask", "hyperbolic", "sharding", "stream", "torch", "training")
_LATER = {
    "BatchProcessor": "batch",
    "parallel_attention_compute": "batch",
    "parallel_attention_compute_async": "batch",
    "sharded_attention": "sharding",
    "sharded_attention_backward": "sharding",
    "KVCache": "stream",
    "StreamProcessor": "stream",
    "AdamOptimizer": "training",
    "AdamWOptimizer": "training",
    "CurriculumScheduler": "training",
    "CurriculumStage": "training",
    "HardNegativeMiner": "training",
    "InBatchMiner": "training",
    "InfoNCELoss": "training",
    "LearningRateScheduler": "training",
    "LocalContrastiveLoss": "training",
    "SGDOptimizer": "training",
    "SpectralRegularization": "training",
    "TemperatureAnnealing": "training",
    "GraphEncoder": "training",
    "LinearAdapter": "training",
    "MemoryEncoder": "training",
    "Trainer": "training",
    "TrainerConfig": "training",
    "clip_grad_norm": "training",
}


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return _import_module(f".{name}", __name__)
    if name in _LATER:
        return getattr(_import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
