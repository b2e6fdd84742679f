"""The gradient of a GATv2 layer: through finish, scores and transforms, by parameter.

The kernels differentiate with respect to what the transforms gave, ``left = W_l x_j`` and
``right = W_r x_i``; from there on it is matrix products. Every score has both biases, so the
gradient of that shift is the sum of the gradient of `right` over the receivers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import _kernels
from ._arrays import Array, cast, contiguous_rows
from ._csr import Looped
from ._gatv2 import Layer
from ._kernels.spec import EdgeSpec

__all__ = ["TrainedLayer"]


class Graph(NamedTuple):
    """Edges by receiver, with what only an edge has."""

    indptr: Array
    indices: Array
    features: Array | None
    bias: Array | None


class State(NamedTuple):
    """What the forward pass left of receivers: L and D ``(N, H)``, dO ``(N, H, C)``."""

    lse: Array
    delta: Array
    grad: Array


@dataclass(slots=True)
class Terms:
    """Gradients of what the kernel was called with; `messages` None where part of `left`."""

    left: Array
    messages: Array | None
    right: Array
    features: Array | None
    bias: Array | None
    att: Array
    weight: Array | None


class TrainedLayer(Layer):
    """A :class:`Layer` that also gives gradients; see there for its parameters."""

    def attend_graph_with_gradients(
        self,
        x: Array,
        x_src: Array | None,
        indptr: Array,
        indices: Array,
        features: Array | None,
        loops: bool,
        out: Array,
        lse: Array,
        grad_output: Array,
        grad_lse: Array | None,
    ) -> tuple[Array, Array | None, Array | None, dict[str, Array]]:
        """Write output and L as :meth:`attend_graph`; return gradients in the compute dtype.

        Gradients of the output ``(N, width)`` and of L ``(N, H)`` are of that dtype, too.
        Returned are those of `x`, `x_src`, `features` and the parameters.
        """
        x = self._stored(x)
        senders = x if x_src is None else self._stored(x_src)
        if features is not None:
            features = contiguous_rows(features, self.dtype)
        left, right = self._ends(x, senders)
        sums: Array = np.empty(right.shape, self.dtype)
        rows = sums.reshape(len(x), self._heads * self.channels)
        spec = self._plain_spec(features, loops)
        arguments = (left, right, features, spec, indptr, indices, rows, lse)
        _kernels.graph.aggregate(*arguments, self._threads)
        state = self._state(sums, lse, grad_output, grad_lse)
        out[...] = self._finished(sums, lse.T, x)
        indices = np.asarray(indices, np.int64)
        looped = Looped(indptr, indices, len(senders)) if loops else None
        if looped is None:
            graph = Graph(indptr, indices, features, None)
        else:
            filled = None if features is None else looped.features(features)
            graph = Graph(looped.indptr, looped.indices, filled, None)
        terms = self._differentiated(left, left, right, graph, state)
        grad_features = terms.features
        if looped is not None and grad_features is not None:
            grad_features = looped.features_gradient(grad_features)
        weight = self._weight_gradient(senders, terms.left)
        parameters = self._parameters(x, terms, state, grad_output, weight)
        grad_x = self._receiver_gradient(terms, grad_output)
        grad_senders = self._back(terms.left, self._left)
        if x_src is None:
            return grad_x + grad_senders, None, grad_features, parameters
        return grad_x, grad_senders, grad_features, parameters

    def differentiate(
        self,
        query: Array,
        keys: Array,
        values: Array,
        features: Array | None,
        mask: Array | None,
        sums: Array,
        lse: Array,
        grad_output: Array,
        grad_lse: Array | None,
        grad_mask: Array | None,
        shared: bool,
    ) -> tuple[Array, Array, Array, Array | None, dict[str, Array]]:
        """Return gradients of what :meth:`attend` computed, in the compute dtype.

        Parameters
        ----------
        query, keys, values, features, mask, sums, lse : ndarray
            As in :meth:`attend`, with what that wrote.
        grad_output : ndarray, shape (B, m, width)
            Of the compute dtype, as is `grad_lse`.
        grad_lse : ndarray, shape (B, H, m), or None
        grad_mask : ndarray, shape (B or 1, 1, m or 1, n), or None
            Takes the gradient of a float mask.
        shared : bool
            Whether one memory of keys and values serves the batch.

        Returns
        -------
        query : ndarray, shape (B, m, dim)
        keys, values : ndarray, shape (B, n, dim), or (1, n, dim) of a shared memory
        features : ndarray, shape (B, m, n, edge_dim), or None
        parameters : dict of str to ndarray
        """
        batch, m, dim = query.shape
        n = keys.shape[1]
        if shared:
            keys, values = (
                x[:1] if batch else np.zeros((1, n, dim), self.dtype) for x in (keys, values)
            )
        keys, values = (self._stored(x).reshape(len(x) * n, dim) for x in (keys, values))
        rows = self._stored(query).reshape(batch * m, dim)
        grad_rows = grad_output.reshape(batch * m, grad_output.shape[2])
        left, messages = (self._transformed(x, self._left) for x in (keys, values))
        right = self._transformed(rows, self._right)
        by_row = np.ascontiguousarray(lse.swapaxes(1, 2)).reshape(batch * m, self._heads)
        if grad_lse is not None:
            grad_lse = grad_lse.swapaxes(1, 2).reshape(by_row.shape)
        state = self._state(sums, by_row, grad_rows, grad_lse)
        total = self._new_terms(left, right, None if features is None else features.shape)
        if grad_mask is not None:
            grad_mask[...] = 0
        for part in self._parts(batch, m, n):
            pairs = _Pairs(part, (batch, m, n), shared, mask, features, self.dtype)
            terms = self._differentiated(
                left[pairs.senders], messages[pairs.senders], right[pairs.receivers],
                pairs.graph, State(*(x[pairs.receivers] for x in state)), split=True,
            )  # fmt: skip
            pairs.add(terms, total, grad_mask)
        assert total.messages is not None
        weight = self._weight_gradient(keys, total.left)
        weight += self._weight_gradient(values, total.messages)
        parameters = self._parameters(rows, total, state, grad_rows, weight)
        memory = (1 if shared else batch, n, dim)
        return (
            self._receiver_gradient(total, grad_rows).reshape(query.shape),
            self._back(total.left, self._left).reshape(memory),
            self._back(total.messages, self._left).reshape(memory),
            total.features,
            parameters,
        )

    def _plain_spec(self, features: Array | None, loops: bool) -> EdgeSpec:
        """Score as the layer does, and leave the sums as they are."""
        return EdgeSpec(
            att=self._att,
            negative_slope=self._slope,
            edge_weight=None if features is None else self._edge,
            shift=self._shift,
            loops=loops,
        )

    def _state(
        self, sums: Array, lse: Array, grad_output: Array, grad_lse: Array | None
    ) -> State:
        shape = (len(lse), self._heads, self.channels)
        if self._average:
            grad = np.empty(shape, self.dtype)
            grad[...] = (grad_output / self.dtype.type(self._heads))[:, np.newaxis]
        else:
            grad = np.ascontiguousarray(grad_output).reshape(shape)
        with np.errstate(invalid="ignore", over="ignore"):
            delta = np.einsum("nhc,nhc->nh", sums, grad)
            if grad_lse is not None:
                delta -= grad_lse
        return State(lse, delta, grad)

    def _differentiated(
        self,
        left: Array,
        messages: Array,
        right: Array,
        graph: Graph,
        state: State,
        *,
        split: bool = False,
    ) -> Terms:
        """Call the kernel; with `split`, messages have a gradient of their own."""
        indptr, indices, features, bias = graph
        terms = Terms(
            np.empty_like(left),
            np.empty_like(messages) if split else None,
            np.empty_like(right),
            None if features is None else np.empty_like(features),
            None if bias is None else np.empty_like(bias),
            np.empty_like(self._att),
            None if features is None else np.empty_like(self._edge),
        )
        spec = self._plain_spec(features, False)
        arguments: list[Any] = [left, messages, right, features, bias, spec, indptr, indices]
        arguments += state
        arguments += (
            terms.left, terms.messages, terms.right, terms.features, terms.bias, terms.att,
            terms.weight, self._threads,
        )  # fmt: skip
        _kernels.graph_backward.attend_backward(*arguments)
        return terms

    def _new_terms(self, left: Array, right: Array, features: tuple[int, ...] | None) -> Terms:
        return Terms(
            np.zeros_like(left),
            np.zeros_like(left),
            np.zeros_like(right),
            None if features is None else np.zeros(features, self.dtype),
            None,
            np.zeros_like(self._att),
            None if features is None else np.zeros_like(self._edge),
        )

    def _weight_gradient(self, x: Array, grad: Array) -> Array:
        """Return the gradient of a weight that rows of x are multiplied by."""
        x, grad = contiguous_rows(x, self.dtype), _rows(grad)
        result = np.empty((grad.shape[1], x.shape[1]), self.dtype)
        _kernels.graph_backward.weight_gradient(x, grad, result, self._threads)
        if not np.isfinite(result).all():
            # A row that nothing depends on must not leave 0 * NaN.
            x = np.where((grad != 0).any(axis=1, keepdims=True), x, self.dtype.type(0))
            _kernels.graph_backward.weight_gradient(x, grad, result, self._threads)
        return result

    def _back(self, grad: Array, weight: Array) -> Array:
        """Turn the gradient of ``x @ weight.T`` into that of x."""
        grad = _rows(grad)
        result = np.empty((len(grad), weight.shape[1]), self.dtype)
        transposed = np.ascontiguousarray(weight.T)
        _kernels.graph.project(grad, transposed, result, self._threads)
        return result

    def _receiver_gradient(self, terms: Terms, grad_output: Array) -> Array:
        result = self._back(terms.right, self._right)
        if self._residual is not None:
            result += self._back(grad_output, self._residual)
        return result

    def _parameters(
        self, x: Array, terms: Terms, state: State, grad_output: Array, weight: Array
    ) -> dict[str, Array]:
        """Return the gradients by name, `weight` that of ``W_l`` through the senders."""
        shared = self._right is self._left
        result = {"att": terms.att[np.newaxis], "lin_l.weight": weight}
        receivers = self._weight_gradient(x, terms.right)
        if shared:
            weight += receivers
        else:
            result["lin_r.weight"] = receivers
        if self._shift is not None:
            shift = terms.right.sum(axis=0, dtype=np.float64).ravel()
            seen = (state.lse != -np.inf)[..., np.newaxis]
            message = state.grad.sum(axis=0, dtype=np.float64, where=seen).ravel()
            result["lin_l.bias"] = message + (2 * shift if shared else shift)
            if not shared:
                result["lin_r.bias"] = shift
        if self._edge is not None:
            given = terms.weight
            result["lin_edge.weight"] = np.zeros_like(self._edge) if given is None else given
        if self._residual is not None:
            result["res.weight"] = self._weight_gradient(x, grad_output)
        if self._bias is not None:
            result["bias"] = grad_output.sum(axis=0, dtype=np.float64)
        return {name: cast(array, self.dtype) for name, array in result.items()}


def _rows(x: Array) -> Array:
    """Join the axes behind the first."""
    return x.reshape(len(x), int(np.prod(x.shape[1:])))


class _Pairs:
    """The visible pairs of a part of (batch, queries) and all keys, as a graph.

    Parameters
    ----------
    part : tuple of slice
        Over the batch and its queries.
    sizes : tuple of int
        Number of entries, queries and keys.
    shared : bool
        Whether the batch has one memory.
    mask : ndarray, shape (B, 1, m, n), or None
    features : ndarray, shape (B, m, n, edge_dim), or None
    dtype : dtype
        The compute dtype.

    Attributes
    ----------
    receivers, senders : slice
        Of all queries ``B * m`` and all keys ``B * n``, those of the part.
    graph : Graph
    """

    def __init__(
        self,
        part: tuple[slice, slice],
        sizes: tuple[int, int, int],
        shared: bool,
        mask: Array | None,
        features: Array | None,
        dtype: np.dtype[Any],
    ) -> None:
        batch, queries = self._part = part
        _, m, n = sizes
        entries, rows = (range(size)[x] for size, x in zip(sizes, part, strict=False))
        # Either all queries of some entries, or some queries of one.
        first = entries.start * m + rows.start
        self.receivers = slice(first, first + len(entries) * len(rows))
        self.senders = slice(None) if shared else slice(entries.start * n, entries.stop * n)
        self._shape = (len(entries), len(rows), n)
        self._seen = self._visible(mask)
        offsets = np.arange(self._shape[0]) * (0 if shared else n)
        senders = offsets[:, np.newaxis, np.newaxis] + np.arange(n)
        counts = self._seen.sum(axis=2).ravel()
        self.graph = Graph(
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            np.broadcast_to(senders, self._shape)[self._seen],
            None if features is None else contiguous_rows(features[part], dtype)[self._seen],
            None
            if mask is None or mask.dtype == np.bool_
            else cast(mask[batch, 0, queries], dtype)[self._seen],
        )

    def _visible(self, mask: Array | None) -> Array:
        if mask is None:
            return np.ones(self._shape, np.bool_)
        batch, queries = self._part
        given = mask[batch, 0, queries]
        return given if given.dtype == np.bool_ else given != -np.inf

    def add(self, terms: Terms, total: Terms, grad_mask: Array | None) -> None:
        """Add the gradients of this part to those of the whole."""
        assert total.messages is not None
        total.left[self.senders] += terms.left
        total.messages[self.senders] += terms.messages
        total.right[self.receivers] = terms.right
        total.att += terms.att
        if total.features is not None:
            assert total.weight is not None
            total.features[self._part][self._seen] = terms.features
            total.weight += terms.weight
        if grad_mask is not None:
            grad = np.zeros(self._shape, grad_mask.dtype)
            grad[self._seen] = terms.bias
            batch, queries = self._part
            target = grad_mask[
                slice(0, 1) if len(grad_mask) == 1 else batch,
                0,
                slice(0, 1) if grad_mask.shape[2] == 1 else queries,
            ]
            axes = tuple(i for i in (0, 1) if target.shape[i] != grad.shape[i])
            target += grad.sum(axis=axes, keepdims=True)
