"""Attention from files to a file, in blocks of queries, for the command line.

Inputs are memory-mapped and the output is written row after row, so memory stays at one
block of queries whatever the sizes. The output appears under its name only when it is
complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._attend_edges import block_features, load_edge_featured
from ._attend_linear import LINEAR_FIELDS, linear_blocks, load_linear
from ._attend_moe import load_mixture
from ._attend_rope import ROPE_FIELDS, attend_graph_rope, block_positions
from ._files import atomic_file, open_array
from ._progress import progress
from .attention import (
    DotProductAttention,
    DualSpaceAttention,
    HyperbolicAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
    RoPEConfig,
)
from .errors import (
    DimensionMismatchError,
    EmptyInputError,
    InvalidConfigError,
    InvalidMaskError,
)
from .functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["KINDS", "Job", "attend_files"]

# The options that each kind takes besides a mask; the first list must be given.
_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "dot-product": ((), ()),
    "multi-head": (("heads",), ()),
    "flash": ((), ("heads", "causal")),
    "linear": (("num_features",), ("kernel", "seed", "causal", "parameters")),
    "local-global": (("local_window", "global_tokens"), ()),
    "hyperbolic": ((), ("curvature", "temperature", "inputs")),
    "dual-space": (
        ("heads", "euclidean_dim"),
        ("curvature", "temperature", "fusion_weight"),
    ),
    "moe": (("num_experts", "top_k"), ("expert_types", "parameters")),
    "edge-featured": (("parameters",), ("edge_features",)),
    "graph-rope": (
        ("max_position",),
        ("heads", *ROPE_FIELDS[1:], "query_positions", "key_positions"),
    ),
}
KINDS = tuple(_OPTIONS)
_NAMES = tuple(
    dict.fromkeys(name for lists in _OPTIONS.values() for names in lists for name in names)
)

# A block is this much work (multiplications) and at most this many array elements: long
# enough to hide the cost of a call, short enough for progress and Ctrl-C.
_BLOCK_WORK = 2**31
_BLOCK_ELEMENTS = 2**22
_MIN_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Job:
    """What the command line asked for; paths are as the user wrote them."""

    kind: str
    query: str
    keys: str
    values: str
    output: str
    mask: str | None = None
    heads: int | None = None
    causal: bool = False
    num_features: int | None = None
    kernel: str | None = None
    seed: int | None = None
    local_window: int | None = None
    global_tokens: int | None = None
    curvature: float | None = None
    temperature: float | None = None
    inputs: str | None = None
    euclidean_dim: int | None = None
    fusion_weight: float | None = None
    num_experts: int | None = None
    top_k: int | None = None
    expert_types: str | None = None
    parameters: str | None = None
    edge_features: str | None = None
    max_position: int | None = None
    base: float | None = None
    scaling: str | None = None
    scaling_factor: float | None = None
    original_max_position: int | None = None
    layout: str | None = None
    query_positions: str | None = None
    key_positions: str | None = None

    def __post_init__(self) -> None:
        required, optional = _OPTIONS[self.kind]
        for name in _NAMES:
            option = "--" + name.replace("_", "-")
            value = getattr(self, name)
            given = value is not None and value is not False
            if given and name not in required + optional:
                raise InvalidConfigError(f"{option} does not apply to --kind {self.kind}")
            if name in required and not given:
                raise InvalidConfigError(f"--kind {self.kind} needs {option}")
        if self.heads is not None and self.heads < 1:
            raise InvalidConfigError(f"--heads must be at least 1, got {self.heads}")

    def given(self, *names: str) -> dict[str, Any]:
        """Return the options among `names` that were given."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def attend_files(job: Job) -> str:
    """Run one job and write its output.

    Parameters
    ----------
    job : Job
        ``query`` of shape ``(dim,)``, ``(m, dim)`` or ``(B, m, dim)``, ``keys``
        ``(n, dim)`` and ``values`` ``(n, dim_v)``, with a leading B or not beside a batch;
        ``mask`` ``(n,)``, ``(m, n)`` or ``(B, m, n)``, bool or float.

    Returns
    -------
    str
        Dtype and shape of the output.

    Raises
    ------
    RuvectorError
        If a file is not usable or the shapes and options do not fit together.
    OSError
        If a file cannot be read or written.
    """
    query = open_array(job.query, "--query")
    keys = open_array(job.keys, "--keys")
    values = open_array(job.values, "--values")
    mask = None if job.mask is None else open_array(job.mask, "--mask")
    _check(job, query, keys, values, mask)
    common = np.result_type(*(_working_dtype(array) for array in (query, keys, values)))
    keys, values = _prepared(keys, common), _prepared(values, common)

    dtype = _working_dtype(query)
    width = values.shape[-1]
    if job.kind == "edge-featured":
        width = load_edge_featured(job.parameters or "").out_dim
    shape = (*query.shape[:-1], width)
    rows = int(np.prod(query.shape[:-1]))
    with (
        atomic_file(job.output, "--output") as file,
        progress(rows, "attend", "queries") as advance,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": dtype.str, "fortran_order": False, "shape": shape}
        )
        for block in _blocks(job, query, keys, values, mask):
            file.write(np.ascontiguousarray(block, dtype=dtype).data)
            advance(block.size // width if width else 0)
    return f"{dtype} {shape}"


def _blocks(
    job: Job,
    query: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    mask: NDArray[Any] | None,
) -> Iterator[NDArray[Any]]:
    if query.ndim == 1 and job.kind != "linear":
        yield _rows(job, query, keys, values, mask, 0, 1)
        return
    if query.ndim == 3:
        keys, values = (
            np.broadcast_to(array, (len(query), *array.shape[-2:])) for array in (keys, values)
        )
        for index in range(len(query)):
            one_mask = mask if mask is None or mask.ndim < 3 else mask[index]
            yield from _blocks(job, query[index], keys[index], values[index], one_mask)
        return
    width = keys.shape[-1] + values.shape[-1]
    step = min(_BLOCK_WORK // (len(keys) * width), _BLOCK_ELEMENTS // width)
    step = max(_MIN_BLOCK, step)
    if job.kind == "linear":
        fields = job.given(*LINEAR_FIELDS)
        attention = load_linear(keys.shape[1], job.causal, job.parameters, **fields)
        yield from linear_blocks(attention, query, keys, values, mask, step)
        return
    for start in range(0, len(query), step):
        block = query[start : start + step]
        block_mask = mask if mask is None or mask.ndim == 1 else mask[start : start + step]
        yield _rows(job, block, keys, values, block_mask, start, len(query))


def _rows(
    job: Job,
    query: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    mask: NDArray[Any] | None,
    start: int,
    total: int,
) -> NDArray[Any]:
    """Return the outputs of the queries that follow the first ``start`` of ``total``."""
    out: NDArray[Any]
    dim = keys.shape[1]
    if job.kind == "dot-product":
        out = DotProductAttention(dim).compute(query, keys, values, mask=mask)
    elif job.kind == "multi-head":
        out = MultiHeadAttention(dim, job.heads or 1).compute(query, keys, values, mask=mask)
    elif job.kind == "local-global":
        out = LocalGlobalAttention(dim, job.local_window or 0, job.global_tokens or 0).compute(
            query,
            keys,
            values,
            mask=mask,
            positions=np.arange(start, start + len(query)) if total > 1 else None,
        )
    elif job.kind == "hyperbolic":
        attention = HyperbolicAttention(dim, **job.given("curvature", "temperature", "inputs"))
        out = attention.compute(query, keys, values, mask=mask)
    elif job.kind == "dual-space":
        width = job.euclidean_dim or 0
        dual = DualSpaceAttention(
            euclidean_dim=width,
            hyperbolic_dim=dim - width,
            num_heads=job.heads,
            learn_fusion=False,
            **{"curvature": 1.0, **job.given("curvature", "temperature", "fusion_weight")},
        )
        out = dual.compute(query, keys, values, mask=mask)
    elif job.kind == "moe":
        fields = job.given("num_experts", "top_k", "expert_types")
        mixture = load_mixture(dim, job.parameters, **fields)
        out = mixture.compute(query, keys, values, mask=mask)
    elif job.kind == "edge-featured":
        features = None
        if job.edge_features is not None:
            features = open_array(job.edge_features, "--edge-features")
            stop = start + len(np.atleast_2d(query))
            features = block_features(features, len(keys), start, stop, total)
            features = features[0] if query.ndim == 1 and features.ndim == 3 else features
        layer = load_edge_featured(job.parameters or "")
        out = layer.compute_with_edges(query, keys, values, features, mask=mask)
    elif job.kind == "graph-rope":
        queries = places = None
        if job.query_positions is not None:
            stop = start + len(np.atleast_2d(query))
            queries = open_array(job.query_positions, "--query-positions")
            queries = block_positions(queries, start, stop, total)
            queries = queries.reshape(()) if query.ndim == 1 else queries
        if job.key_positions is not None:
            places = open_array(job.key_positions, "--key-positions")
        config = RoPEConfig(dim, num_heads=job.heads or 1, **job.given(*ROPE_FIELDS))
        out = attend_graph_rope(config, (query, keys, values), mask, queries, places)
    else:
        out = _flash(job, query, keys, values, mask, len(keys) - total + start)
    return out


def _flash(
    job: Job,
    query: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    mask: NDArray[Any] | None,
    offset: int,
) -> NDArray[Any]:
    """Attend by heads; when causal, the first query sees the first ``offset + 1`` keys."""
    rows = np.atleast_2d(query)
    if job.causal:
        # Bottom-right over all queries is bottom-right over this block and the keys that
        # its last query sees.
        seen = max(0, offset + len(rows))
        keys, values = keys[:seen], values[:seen]
        mask = None if mask is None else mask[..., :seen]
    heads = job.heads or 1
    out = scaled_dot_product_attention(
        _split_heads(rows, heads),
        _split_heads(keys, heads),
        _split_heads(values, heads),
        attn_mask=mask,
        is_causal=job.causal,
        causal_alignment="bottom_right",
    )
    joined: NDArray[Any] = out.swapaxes(0, 1).reshape(*query.shape[:-1], values.shape[1])
    return joined


def _split_heads(array: NDArray[Any], heads: int) -> NDArray[Any]:
    rows, width = array.shape
    return array.reshape(rows, heads, width // heads).swapaxes(0, 1)


def _check(
    job: Job,
    query: NDArray[Any],
    keys: NDArray[Any],
    values: NDArray[Any],
    mask: NDArray[Any] | None,
) -> None:
    batch = query.shape[:-2]
    if query.ndim not in (1, 2, 3):
        raise DimensionMismatchError(
            f"query must have shape (dim,), (m, dim) or (B, m, dim), got {query.shape}"
        )
    for name, array, width in (("keys", keys, "dim"), ("values", values, "dim_v")):
        if array.ndim < 2 or array.shape[:-2] not in ((), batch):
            wanted = f"(n, {width})" + (f" or ({batch[0]}, n, {width})" if batch else "")
            raise DimensionMismatchError(
                f"{name} must have shape {wanted} beside query {query.shape}, got {array.shape}"
            )
    dim, n = query.shape[-1], keys.shape[-2]
    m = query.shape[-2] if query.ndim > 1 else 1
    if keys.shape[-1] != dim:
        raise DimensionMismatchError(
            f"keys must hold vectors of length {dim} as in query, got {keys.shape[-1]}"
        )
    if values.shape[-2] != n:
        raise DimensionMismatchError(
            f"values must hold {n} vectors, one per key, got {values.shape[-2]}"
        )
    if n == 0 or dim == 0:
        raise EmptyInputError(f"keys must hold at least one vector, got shape {keys.shape}")
    heads = job.heads or 1
    if dim % heads or values.shape[-1] % heads:
        raise DimensionMismatchError(
            f"--heads {heads} does not divide the width of the keys ({dim}) and of the "
            f"values ({values.shape[-1]})"
        )
    if mask is not None:
        shapes = [(n,), (m, n), *([(*batch, m, n)] if batch else [])]
        if mask.shape not in shapes:
            raise InvalidMaskError(
                f"mask must have shape {' or '.join(map(str, shapes))}, got {mask.shape}"
            )
        if mask.dtype.kind not in "bf":
            raise InvalidMaskError(f"mask must be bool or float, got {mask.dtype}")
    if job.kind == "local-global" and m not in (1, n):
        raise DimensionMismatchError(
            f"query must hold one vector or one per key ({n}) for local-global, got {m}"
        )


def _working_dtype(array: NDArray[Any]) -> np.dtype[Any]:
    if array.dtype.kind == "f":
        return array.dtype.newbyteorder("=")
    return np.dtype(np.float32)


def _prepared(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    # Keys and values serve every block: what would be copied for each is copied once here.
    if array.dtype == dtype and array.strides[-1] == dtype.itemsize:
        return array
    return np.ascontiguousarray(array, dtype=dtype)
