"""Every available kernel against the formula it stands for, in float64, in seconds.

Each mechanism has one function that yields cases: what was computed, what the formula
gives, and how far apart they may be. :data:`MECHANISMS` lists these functions; a new
mechanism adds one entry.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from . import _kernels
from ._config import num_threads
from ._kernels.spec import AttentionSpec
from ._selftest_ball import dual_space, hyperbolic
from ._selftest_batch import memories, shards
from ._selftest_cache import cache
from ._selftest_differences import linear_gradients, moe_gradients
from ._selftest_gradients import gradients
from ._selftest_graph import edge_featured, hop_distances
from ._selftest_graph_gradients import edge_gradients
from ._selftest_linear import linear
from ._selftest_losses import losses
from ._selftest_moe import moe
from ._selftest_reference import attention, bfloat16_bits, bfloat16_values
from ._selftest_rope import graph_rope, rope_gradients
from ._selftest_training import optimizers
from .attention import (
    DotProductAttention,
    FlashAttention,
    LocalGlobalAttention,
    MultiHeadAttention,
)
from .functional import merge_states, scaled_dot_product_attention, top_k_keys
from .utils import cosine_similarity, normalize, pairwise_distances, softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Case = tuple[str, Any, Any, float]

__all__ = ["MECHANISMS", "Check", "Report", "selftest"]

# Greatest error relative to 1 + |expected|, for values of about unit variance. float16 and
# bfloat16 round the stored output, and bfloat16 products round the weights too.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}

# (heads, key heads, queries, keys, dim, dim_v): around the vector widths, on both sides of
# the paths for few and for many queries, grouped heads, values wider than the keys.
_SHAPES = (
    (1, 1, 1, 1, 1, 1),
    (2, 1, 7, 9, 8, 5),
    (3, 3, 1, 300, 64, 64),
    (6, 2, 17, 31, 33, 17),
    (2, 2, 33, 97, 40, 72),
    (2, 1, 65, 129, 128, 128),
    (1, 1, 35, 600, 24, 24),
    (2, 2, 2, 1025, 80, 80),
    (1, 1, 3, 16, 15, 31),
    (1, 1, 130, 257, 96, 96),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison; ``error`` is infinite where NaN, infinities, shape or dtype differ."""

    backend: str
    isa: str | None
    mechanism: str
    name: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def path(self) -> str:
        """Backend and instruction set."""
        return f"{self.backend} {self.isa}" if self.isa else self.backend

    @property
    def ratio(self) -> float:
        """Error as a part of the tolerance, which may be 0; above 1 it failed."""
        if self.error == 0:
            return 0.0
        return self.error / self.tolerance if self.tolerance else np.inf

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a self-test; its string is a table with every failed check below it."""

    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether there were checks and each of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def __str__(self) -> str:
        groups: dict[tuple[str, str], list[Check]] = {}
        for check in self.checks:
            groups.setdefault((check.path, check.mechanism), []).append(check)
        lines = [f"{'kernels':<20}{'mechanism':<30}{'checks':>6}  {'error/allowed':>13}"]
        for (path, mechanism), checks in groups.items():
            worst = max(check.ratio for check in checks)
            verdict = "ok" if all(check.passed for check in checks) else "FAILED"
            lines.append(
                f"{path:<20}{mechanism:<30}{len(checks):>6}  {worst:>13.3f}  {verdict}"
            )
        failed = [check for check in self.checks if not check.passed]
        for check in failed:
            lines.append(
                f"FAILED {check.path} {check.mechanism}, {check.name}: "
                f"error {check.error:.2e}, allowed {check.tolerance:.0e} {check.note}".rstrip()
            )
        lines.append(f"{len(self.checks)} checks, {len(failed)} failed, {self.seconds:.1f} s")
        return "\n".join(lines)


def selftest() -> Report:
    """Run every mechanism on every backend and instruction set of this machine.

    Returns
    -------
    Report
        Every comparison made. The backend in use before is in use again afterwards.
    """
    begin = time.perf_counter()
    before = _kernels.backend, _kernels.isa
    checks: list[Check] = []
    # Thousands of small products on a busy machine: starting threads for each takes longer
    # than the arithmetic. The cases about threads start their own.
    with threadpool_limits(1, user_api="blas"), num_threads(1):
        try:
            for backend, isa in _kernels.available():
                _kernels.select(backend, isa)
                for mechanism, cases in MECHANISMS.items():
                    checks += _run(backend, isa, mechanism, cases)
        finally:
            _kernels.select(*before)
    return Report(tuple(checks), time.perf_counter() - begin)


def _run(
    backend: str,
    isa: str | None,
    mechanism: str,
    cases: Callable[[np.random.Generator], Iterator[Case]],
) -> Iterator[Check]:
    try:
        for name, got, expected, tolerance in cases(np.random.default_rng(0)):
            error = _error(np.asarray(got), np.asarray(expected))
            yield Check(backend, isa, mechanism, name, error, tolerance)
    except Exception as error:
        note = f"({type(error).__name__}: {error})"
        yield Check(backend, isa, mechanism, "raised", np.inf, TOLERANCE["float32"], note)


def _error(got: NDArray[Any], expected: NDArray[Any]) -> float:
    if got.shape != expected.shape:
        return np.inf
    got = got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return np.inf
    error = np.abs(got[finite] - expected[finite]) / (1 + np.abs(expected[finite]))
    return float(np.max(error, initial=0.0)) if not np.isnan(error).any() else np.inf


def _functional(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in ("float32", "float64", "float16"):
        for shape in _SHAPES:
            heads, key_heads, m, n, dim, dim_v = shape
            q = rng.standard_normal((2, heads, m, dim)).astype(dtype)
            k = rng.standard_normal((2, key_heads, n, dim)).astype(dtype)
            v = rng.standard_normal((2, key_heads, n, dim_v)).astype(dtype)
            for name, options in _features(rng, heads, m, n):
                out, lse = scaled_dot_product_attention(
                    q, k, v, enable_gqa=True, return_lse=True, **options
                )
                expected, expected_lse, _ = attention(q, k, v, **options)
                label = f"{name}, {dtype}, {shape}"
                yield label, out, expected, TOLERANCE[dtype]
                allowed = TOLERANCE["float64" if dtype == "float64" else "float32"]
                yield f"{label}, lse", lse, expected_lse, allowed


def _features(
    rng: np.random.Generator, heads: int, m: int, n: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    mask = rng.random((m, n)) < 0.7
    mask[m // 2] = False
    bias = np.where(
        rng.random((heads, m, n)) < 0.8, rng.standard_normal((heads, m, n)), -np.inf
    )
    yield "plain", {}
    yield "causal", {"is_causal": True}
    yield "bool mask", {"attn_mask": mask}
    yield "float mask", {"attn_mask": bias.astype(np.float32)}
    yield (
        "window and sink tokens",
        {"window": (5, 3), "num_sink_tokens": 2, "causal_alignment": "bottom_right"},
    )
    yield (
        "everything",
        {
            "attn_mask": mask,
            "is_causal": True,
            "causal_alignment": "bottom_right",
            "scale": 0.3,
            "window": (20, None),
            "num_sink_tokens": 1,
            "sink_logits": rng.standard_normal(heads).astype(np.float32),
            "softcap": 2.0,
            "alibi_slopes": np.exp2(-np.arange(1.0, heads + 1)).astype(np.float32),
        },
    )


def _bfloat16(rng: np.random.Generator) -> Iterator[Case]:
    for shape in _SHAPES:
        heads, key_heads, m, n, dim, dim_v = shape
        q = bfloat16_bits(rng.standard_normal((1, heads, m, dim)))
        k = bfloat16_bits(rng.standard_normal((1, key_heads, n, dim)))
        v = bfloat16_bits(rng.standard_normal((1, key_heads, n, dim_v)))
        out = np.empty((1, heads, m, dim_v), np.uint16)
        spec = AttentionSpec(scale=dim**-0.5)
        _kernels.softmax.attend(q, k, v, out, None, spec, 1)
        expected, _, _ = attention(bfloat16_values(q), bfloat16_values(k), bfloat16_values(v))
        yield f"plain, {shape}", bfloat16_values(out), expected, TOLERANCE["bfloat16"]


def _hidden(rng: np.random.Generator) -> Iterator[Case]:
    for m, n in ((1, 40), (50, 70)):
        q, k, v = (rng.standard_normal((1, 1, rows, 24)) for rows in (m, n, n))
        mask = np.ones(n, bool)
        mask[[3, n - 1]] = False
        expected, _, _ = attention(q, k, v, attn_mask=mask)
        for dtype in ("float32", "float64"):
            keys, values = k.astype(dtype), v.astype(dtype)
            keys[..., 3, :], values[..., -1, :] = np.nan, np.inf
            out = scaled_dot_product_attention(q.astype(dtype), keys, values, mask)
            yield f"NaN behind a mask, {dtype}, {m}", out, expected, TOLERANCE[dtype]


def _ragged(rng: np.random.Generator) -> Iterator[Case]:
    ends_q, ends_k = np.array([0, 3, 3, 20, 21]), np.array([0, 50, 60, 60, 97])
    q, k, v = (rng.standard_normal((rows, 2, 16)) for rows in (21, 97, 97))
    for causal in (False, True):
        options: dict[str, Any] = {"is_causal": causal, "causal_alignment": "bottom_right"}
        out = scaled_dot_product_attention(
            q, k, v, cu_seqlens_q=ends_q, cu_seqlens_k=ends_k, **options
        )
        expected = np.empty_like(q)
        for i in range(4):
            rows = slice(ends_q[i], ends_q[i + 1])
            keys = slice(ends_k[i], ends_k[i + 1])
            one, _, _ = attention(
                _heads_first(q[rows]), _heads_first(k[keys]), _heads_first(v[keys]), **options
            )
            expected[rows] = one[0].swapaxes(0, 1)
        label = "ragged, causal" if causal else "ragged"
        yield label, out, expected, TOLERANCE["float64"]


def _heads_first(packed: NDArray[Any]) -> NDArray[Any]:
    return packed.swapaxes(0, 1)[np.newaxis]


def _merged(rng: np.random.Generator) -> Iterator[Case]:
    q, k, v = (rng.standard_normal((1, 2, rows, 32)) for rows in (5, 64, 64))
    expected, expected_lse, _ = attention(q, k, v)
    states = [
        scaled_dot_product_attention(q, k[..., i:j, :], v[..., i:j, :], return_lse=True)
        for i, j in ((0, 13), (13, 13), (13, 64))
    ]
    out, lse = merge_states([state[0] for state in states], [state[1] for state in states])
    yield "merged", out, expected, TOLERANCE["float64"]
    yield "merged, lse", lse, expected_lse, TOLERANCE["float64"]


def _threads(rng: np.random.Generator) -> Iterator[Case]:
    for m, n in ((1, 20_000), (257, 1500)):
        q, k, v = (rng.standard_normal((rows, 64)).astype(np.float32) for rows in (m, n, n))
        mechanism = MultiHeadAttention(64, 4)
        with num_threads(1):
            one = mechanism.compute(q, k, v)
        with num_threads(3):
            three = mechanism.compute(q, k, v)
        same = 0.0 if _kernels.backend == "native" else TOLERANCE["float32"]
        yield f"1 and 3 threads, {m} queries", three, one, same


def _split(array: NDArray[Any], heads: int) -> NDArray[Any]:
    return _heads_first(array.reshape(len(array), heads, -1))


def _classes(
    rng: np.random.Generator, make: Callable[[int], Any], heads: int, causal: bool = False
) -> Iterator[Case]:
    for dtype in ("float32", "float64"):
        for m, n, dim in ((1, 1, 8), (1, 100, 384), (1, 1000, 64), (9, 33, 16), (70, 70, 64)):
            q, k, v = (rng.standard_normal((rows, dim)).astype(dtype) for rows in (m, n, n))
            out, lse, weights = make(dim).compute(q, k, v, return_lse=True, return_weights=True)
            expected, expected_lse, expected_weights = attention(
                _split(q, heads),
                _split(k, heads),
                _split(v, heads),
                is_causal=causal,
                causal_alignment="bottom_right",
            )
            label, allowed = f"{dtype}, {(m, n, dim)}", TOLERANCE[dtype]
            joined = expected[0].swapaxes(0, 1).reshape(m, dim)
            yield label, out, joined, allowed
            yield f"{label}, one query", make(dim).compute(q[-1], k, v), joined[-1], allowed
            squeeze = 0 if heads == 1 else slice(None)
            yield f"{label}, lse", lse, expected_lse[0, squeeze].T, allowed
            yield f"{label}, weights", weights, expected_weights[0, squeeze], allowed


def _dot_product(rng: np.random.Generator) -> Iterator[Case]:
    return _classes(rng, DotProductAttention, 1)


def _multi_head(rng: np.random.Generator) -> Iterator[Case]:
    return _classes(rng, lambda dim: MultiHeadAttention(dim, 8), 8)


def _flash(rng: np.random.Generator) -> Iterator[Case]:
    return _classes(rng, lambda dim: FlashAttention(dim, causal=True), 1, causal=True)


def _local_global(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in ("float32", "float64"):
        for n, window, tokens in ((1, 2, 1), (40, 8, 3), (300, 64, 2)):
            q, k, v = (rng.standard_normal((n, 32)).astype(dtype) for _ in range(3))
            place = np.arange(n)
            near = np.abs(place[:, None] - place) <= window // 2
            mask = near | (place < tokens) | (place[:, None] < tokens)
            expected = attention(q[None, None], k[None, None], v[None, None], attn_mask=mask)
            out = LocalGlobalAttention(32, window, tokens).compute(q, k, v, positions=place)
            label = f"{dtype}, {(n, window, tokens)}"
            yield label, out, expected[0][0, 0], TOLERANCE[dtype]


def _top_k(rng: np.random.Generator) -> Iterator[Case]:
    q, k = rng.standard_normal((4, 48)), rng.standard_normal((500, 48))
    indices, weights = top_k_keys(q, k, 7)
    _, _, every = attention(q[None, None], k[None, None], k[None, None])
    best = np.argsort(-every[0, 0], axis=-1)[:, :7]
    expected = np.take_along_axis(every[0, 0], best, axis=-1)
    yield "indices", indices, best, TOLERANCE["float64"]
    yield "weights", weights, expected, TOLERANCE["float64"]


def _utilities(rng: np.random.Generator) -> Iterator[Case]:
    for dtype in ("float32", "float64"):
        x = rng.standard_normal((37, 33)).astype(dtype)
        y = x.astype(np.float64)
        powers = np.exp(y - y.max(-1, keepdims=True))
        norms = np.linalg.norm(y, axis=-1)
        allowed = TOLERANCE[dtype]
        yield f"softmax, {dtype}", softmax(x), powers / powers.sum(-1, keepdims=True), allowed
        yield f"normalize, {dtype}", normalize(x), y / norms[:, None], allowed
        cosine = (y[0] * y[1:]).sum(-1) / (norms[0] * norms[1:])
        yield f"cosine_similarity, {dtype}", cosine_similarity(x[0], x[1:]), cosine, allowed
        distances = np.linalg.norm(y[:, None] - y, axis=-1)
        yield f"pairwise_distances, {dtype}", pairwise_distances(x), distances, allowed


MECHANISMS: dict[str, Callable[[np.random.Generator], Iterator[Case]]] = {
    "scaled_dot_product_attention": _functional,
    "bfloat16": _bfloat16,
    "hidden keys": _hidden,
    "ragged": _ragged,
    "parallel_attention_compute": memories,
    "sharded_attention": shards,
    "merge_states": _merged,
    "top_k_keys": _top_k,
    "threads": _threads,
    "dot-product": _dot_product,
    "multi-head": _multi_head,
    "flash": _flash,
    "linear": linear,
    "local-global": _local_global,
    "moe": moe,
    "hyperbolic": hyperbolic,
    "dual-space": dual_space,
    "edge-featured": edge_featured,
    "graph-rope": graph_rope,
    "hop_distances": hop_distances,
    "gradients": gradients,
    "linear gradients": linear_gradients,
    "moe gradients": moe_gradients,
    "losses": losses,
    "optimizers": optimizers,
    "KVCache": cache,
    "edge gradients": edge_gradients,
    "rope gradients": rope_gradients,
    "utilities": _utilities,
}
