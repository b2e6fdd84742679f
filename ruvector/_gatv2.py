"""A GATv2 layer in the form that kernels take: transforms, scores, weighted sums.

With ``left = W_l x_j`` and ``right = W_r x_i`` the biases of both transforms enter every
score as one shift, and that of the messages is added after the weighted sum, whose weights
add up to 1: so the transforms are plain matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _config, _kernels
from ._arrays import Array, cast, compute_dtype, contiguous_rows
from ._kernels.spec import AttentionSpec, EdgeSpec

if TYPE_CHECKING:
    from .attention._edge_config import EdgeFeaturedConfig

__all__ = ["Layer", "initial_parameters"]

# Scores held at a time where several queries attend densely.
_SCORES = 1 << 22


def initial_parameters(
    config: EdgeFeaturedConfig, rng: np.random.Generator, dtype: np.dtype[Any]
) -> dict[str, Array]:
    """Draw weights from Glorot's uniform distribution and set biases to 0."""
    assert config.out_dim is not None
    heads, dim = config.num_heads, config.node_dim
    channels = config.out_dim // heads if config.concat_heads else config.out_dim
    width = heads * channels

    def glorot(*shape: int) -> Array:
        bound = (6 / (shape[-2] + shape[-1])) ** 0.5
        return rng.uniform(-bound, bound, shape).astype(dtype)

    parameters = {"att": glorot(1, heads, channels)}
    for name in ("lin_l",) if config.share_weights else ("lin_l", "lin_r"):
        parameters[f"{name}.weight"] = glorot(width, dim)
        if config.bias:
            parameters[f"{name}.bias"] = np.zeros(width, dtype)
    if config.edge_dim:
        parameters["lin_edge.weight"] = glorot(width, config.edge_dim)
    if config.residual:
        parameters["res.weight"] = glorot(config.out_dim, dim)
    if config.bias:
        parameters["bias"] = np.zeros(config.out_dim, dtype)
    return parameters


class Layer:
    """The parameters of a layer in one compute dtype, and its two ways of attending.

    Parameters
    ----------
    parameters : mapping of str to ndarray
        As :class:`ruvector.EdgeFeaturedAttention` names them.
    negative_slope : float
        Of LeakyReLU.
    average : bool
        Whether heads are averaged instead of laid side by side.
    arrays : sequence of ndarray or None
        The storage arrays of the call, which decide on the compute dtype with the
        parameters.

    Attributes
    ----------
    dtype : dtype
        The compute dtype.
    channels : int
        Width of one head.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        negative_slope: float,
        average: bool,
        *arrays: Array | None,
    ) -> None:
        _, self._heads, self.channels = parameters["att"].shape
        self.dtype: np.dtype[Any] = np.result_type(
            parameters["att"],
            *(compute_dtype(x.dtype) for x in arrays if x is not None),
        )
        p = {name: cast(x, self.dtype) for name, x in parameters.items()}
        by_head = (self._heads, self.channels)
        self._att = p["att"][0]
        self._left = p["lin_l.weight"]
        self._right = p.get("lin_r.weight", self._left)
        self._edge = p.get("lin_edge.weight")
        self._residual, self._bias = p.get("res.weight"), p.get("bias")
        self._message = self._shift = None
        if "lin_l.bias" in p:
            self._message = p["lin_l.bias"].reshape(by_head)
            self._shift = self._message + p.get("lin_r.bias", p["lin_l.bias"]).reshape(by_head)
        self._slope, self._average = negative_slope, average
        self._threads = _config.current_threads()

    def attend_graph(
        self,
        x: Array,
        x_src: Array | None,
        indptr: Array,
        indices: Array,
        features: Array | None,
        loops: bool,
        out: Array,
        lse: Array | None,
    ) -> None:
        """Write the output ``(N, width)`` and L ``(N, H)`` of every node of a graph."""
        x = self._stored(x)
        left, right = self._ends(x, x if x_src is None else self._stored(x_src))
        if self._residual is not None:
            _kernels.graph.project(x, self._residual, out, self._threads)
        _kernels.graph.aggregate(
            left,
            right,
            None if features is None else self._stored(features),
            self._spec(features, loops),
            indptr,
            indices,
            out,
            lse,
            self._threads,
        )

    def attend(
        self,
        query: Array,
        keys: Array,
        values: Array,
        features: Array | None,
        mask: Array | None,
        out: Array,
        weights: Array | None,
        sums: Array | None = None,
    ) -> Array:
        """Write the output ``(B, m, width)`` and perhaps weights ``(B, H, m, n)``; return L.

        Keys and values are ``(B, n, dim)``, features ``(B, m, n, edge_dim)``, a mask is
        ``(B, 1, m, n)``. `sums` takes the attended sums ``(B * m, H, C)`` before anything is
        added to them.
        """
        batch, m, _ = query.shape
        shape = (batch, self._heads, m)
        query = self._stored(query)
        if features is not None:
            features = self._stored(features)
        left = self._transformed(self._stored(keys), self._left)
        right = self._transformed(query, self._right)
        values = contiguous_rows(values, self.dtype)
        lse = np.empty(shape, self.dtype)
        mean = np.empty((*shape, values.shape[2]), self.dtype)
        for part in self._parts(batch, m, keys.shape[1]):
            self._attend_part(part, left, right, values, features, mask, mean, lse, weights)
        if m and batch:
            messages = self._messages(mean)
            if sums is not None:
                sums[...] = messages
            rows = self._finished(messages, lse, query.reshape(batch * m, query.shape[2]))
            out[...] = rows.reshape(out.shape)
        return lse

    def _ends(self, x: Array, senders: Array) -> tuple[Array, Array]:
        """Transform senders and receivers."""
        left = self._transformed(senders, self._left)
        if senders is x and self._right is self._left:
            return left, left
        return left, self._transformed(x, self._right)

    def _stored(self, x: Array) -> Array:
        """Bring an array to rows that kernels read beside the compute dtype."""
        fits = compute_dtype(x.dtype) == self.dtype
        return contiguous_rows(x, x.dtype if fits else self.dtype)

    def _transformed(self, x: Array, weight: Array) -> Array:
        """Multiply vectors by a weight, ``(..., H, C)``; what is broadcast stays so."""
        if x.ndim == 3 and x.shape[0] > 1 and x.strides[0] == 0:
            once = self._transformed(x[:1], weight)
            return np.broadcast_to(once, (x.shape[0], *once.shape[1:]))
        rows = x.reshape(-1, x.shape[-1])
        result = np.empty((len(rows), self._heads * self.channels), self.dtype)
        _kernels.graph.project(rows, weight, result, self._threads)
        return result.reshape(*x.shape[:-1], self._heads, self.channels)

    def _spec(self, features: Array | None, loops: bool) -> EdgeSpec:
        return EdgeSpec(
            att=self._att,
            negative_slope=self._slope,
            edge_weight=None if features is None else self._edge,
            shift=self._shift,
            message=self._message,
            bias=self._bias,
            loops=loops,
            average=self._average,
            accumulate=self._residual is not None,
        )

    def _parts(self, batch: int, m: int, n: int) -> list[tuple[slice, slice]]:
        """Cut (batch, queries) into parts whose scores fit into memory."""
        if not m:
            return []
        rows = max(1, _SCORES // max(1, n * self._heads))
        if rows < m:
            return [
                (slice(b, b + 1), slice(i, i + rows))
                for b in range(batch)
                for i in range(0, m, rows)
            ]
        step = max(1, rows // max(1, m))
        return [(slice(b, b + step), slice(m)) for b in range(0, batch, step)]

    def _attend_part(
        self,
        part: tuple[slice, slice],
        left: Array,
        right: Array,
        values: Array,
        features: Array | None,
        mask: Array | None,
        mean: Array,
        lse: Array,
        weights: Array | None,
    ) -> None:
        b, i = part
        by_head = (b, slice(None), i)
        lse, mean, values, left = lse[by_head], mean[by_head], values[b], left[b]
        scores = np.empty((*lse.shape, values.shape[1]), self.dtype)
        _kernels.graph.scores(
            left,
            right[part],
            None if features is None else features[part],
            self._spec(features, False),
            scores,
            self._threads,
        )
        seen = None if mask is None else mask[by_head]
        if seen is not None and seen.dtype != np.bool_:
            visible = seen != -np.inf
            np.add(scores, cast(seen, self.dtype), out=scores, where=visible)
            seen = visible
        if seen is not None:
            seen = np.broadcast_to(seen, scores.shape)
        # The engine adds these scores as a bias to a dot product that is 0.
        spec = AttentionSpec(scale=1.0, bias=scores, mask=seen)
        zero = np.zeros(1, self.dtype)
        query = np.broadcast_to(zero, (*lse.shape, 1))
        key = np.broadcast_to(zero, (len(values), 1, values.shape[1], 1))
        _kernels.softmax.attend(
            query, key, values[:, np.newaxis], mean, lse, spec, self._threads
        )
        if weights is not None:
            _kernels.softmax.weights(query, key, weights[by_head], spec, self._threads)

    def _messages(self, mean: Array) -> Array:
        """Turn mean values ``(B, H, m, dim)`` into mean messages ``(B * m, H, C)``."""
        batch, heads, m, dim = mean.shape
        messages = np.empty((batch * m, heads, self.channels), self.dtype)
        weight = self._left.reshape(heads, self.channels, dim)
        for h in range(heads):
            rows = mean[:, h].reshape(batch * m, dim)
            _kernels.graph.project(rows, weight[h], messages[:, h], self._threads)
        return messages

    def _finished(self, sums: Array, lse: Array, x: Array) -> Array:
        """Turn attended sums ``(N, H, C)`` of receivers ``(N, dim)`` into rows of output.

        The sums are overwritten. L is ``(..., H, m)``, N long without the heads.
        """
        if self._message is not None:
            seen = (lse != -np.inf).swapaxes(-1, -2).reshape(*sums.shape[:2], 1)
            np.add(sums, self._message, out=sums, where=seen)
        rows: Array = sums.reshape(len(sums), self._heads * self.channels)
        if self._average:
            rows = sums.mean(axis=1)
        if self._bias is not None:
            rows += self._bias
        if self._residual is not None:
            residual = np.empty(rows.shape, self.dtype)
            _kernels.graph.project(x, self._residual, residual, self._threads)
            rows += residual
        return rows
