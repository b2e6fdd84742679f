"""A ragged problem taken apart into its sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ruvector._kernels.spec import AttentionSpec, RotarySpec

__all__ = ["sequences"]


def sequences(spec: AttentionSpec) -> Iterator[tuple[slice, slice, AttentionSpec]]:
    """Give the rows, the keys and the specification of every sequence that has rows.

    A problem that is not ragged is one sequence.
    """
    if spec.cu_seqlens_q is None:
        yield slice(None), slice(None), spec
        return
    assert spec.cu_seqlens_k is not None
    plain = replace(spec, cu_seqlens_q=None, cu_seqlens_k=None)
    arrays = (spec.bias, spec.mask, spec.positions, spec.rotary, spec.key_scales)
    packed = any(a is not None for a in arrays)
    q_ends, k_ends = spec.cu_seqlens_q.tolist(), spec.cu_seqlens_k.tolist()
    for s in range(len(q_ends) - 1):
        q, k = slice(q_ends[s], q_ends[s + 1]), slice(k_ends[s], k_ends[s + 1])
        if q.start == q.stop:
            continue
        own = plain
        if packed:
            own = replace(
                plain,
                bias=None if spec.bias is None else spec.bias[:, :, q, k],
                mask=None if spec.mask is None else spec.mask[:, :, q, k],
                positions=None if spec.positions is None else spec.positions[q],
                key_scales=None if spec.key_scales is None else spec.key_scales[:, :, k],
                value_scales=None if spec.value_scales is None else spec.value_scales[:, :, k],
                rotary=None if spec.rotary is None else _part(spec.rotary, q, k),
            )
        yield q, k, own


def _part(rotary: RotarySpec, q: slice, k: slice) -> RotarySpec:
    return replace(
        rotary,
        query_positions=rotary.query_positions[:, q],
        key_positions=rotary.key_positions[:, k],
    )
