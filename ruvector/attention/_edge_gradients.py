"""The gradients of attention with features on the edges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import (
    Array,
    Output,
    cast,
    compute_dtype,
    contiguous_rows,
    finished,
    floating,
    view,
)
from .._csr import read_csr
from .._gatv2_backward import TrainedLayer
from ..errors import DimensionMismatchError
from ._edge_base import EdgeAttention
from ._edge_inputs import checked_edges, checked_features, checked_nodes
from .base import Gradients, Inputs

__all__ = ["GraphGradients", "TrainedEdges"]


@dataclass(frozen=True, slots=True, eq=False)
class GraphGradients:
    """What ``compute_graph_with_gradients`` returns beside the result.

    Attributes
    ----------
    x : ndarray
        In shape and dtype of the argument, as are the next two.
    x_src : ndarray or None
        None where the graph is not bipartite.
    edge_features : ndarray or None
        None where there are no edge features.
    parameters : dict of str to ndarray
        By the names that ``parameters()`` uses, in shapes and dtypes of the parameters.
    """

    x: Array
    x_src: Array | None = None
    edge_features: Array | None = None
    parameters: dict[str, Array] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """Return a gradient by its name."""
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)


class TrainedEdges(EdgeAttention):
    """Attention with the parameters of a GATv2 layer, and its gradients."""

    def compute_graph_with_gradients(
        self,
        x: ArrayLike,
        indptr: Any,
        indices: ArrayLike | None,
        grad_output: ArrayLike,
        edge_features: ArrayLike | None = None,
        *,
        x_src: ArrayLike | None = None,
        grad_lse: ArrayLike | None = None,
        return_lse: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, GraphGradients]:
        """Attend over a graph, and give the gradient in everything that it depends on.

        Parameters
        ----------
        x, indptr, indices, edge_features, x_src, return_lse, out
            As in :meth:`compute_graph`; `indices` is None beside a graph.
        grad_output : array_like, shape (N, out_dim)
            Gradient of the output.
        grad_lse : array_like, shape (N, num_heads), or (N,) for one head, optional
            Gradient of the log-sum-exp, where something depends on it.

        Returns
        -------
        result : ndarray or tuple of ndarray
            What :meth:`compute_graph` returns.
        gradients : GraphGradients
            Gradient of ``sum(output * grad_output) + sum(lse * grad_lse)`` in `x`, `x_src`,
            `edge_features` and every parameter. There is no second derivative.

        Raises
        ------
        DimensionMismatchError, InvalidConfigError, TypeError
            As :meth:`compute_graph`.

        Notes
        -----
        Scores are computed again from the log-sum-exp, edge by edge: memory beside arguments
        and results is a few times N H C numbers, and with self-loops a copy of the features.

        Examples
        --------
        >>> import numpy as np
        >>> import ruvector
        >>> attention = ruvector.EdgeFeaturedAttention.simple(8, 2, num_heads=2)
        >>> indptr, indices, _ = ruvector.graph.edges_to_csr([[0, 1, 2], [1, 2, 1]], 3)
        >>> x, features = np.ones((3, 8), np.float32), np.ones((3, 2), np.float32)
        >>> output, gradients = attention.compute_graph_with_gradients(
        ...     x, indptr, indices, np.ones((3, 8)), features
        ... )
        >>> gradients.x.shape, gradients.edge_features.shape
        ((3, 8), (3, 2))
        >>> gradients.parameters["bias"]
        array([3., 3., 3., 3., 3., 3., 3., 3.], dtype=float32)
        """
        nodes = checked_nodes(x, "x", self._dim)
        senders = None if x_src is None else checked_nodes(x_src, "x_src", self._dim)
        count = len(nodes if senders is None else senders)
        starts, sources = read_csr(indptr, indices, len(nodes), count)
        features = checked_edges(edge_features, (sources.size, self.edge_dim))
        layer = self._layer(nodes, senders, features)
        gradient = _like(grad_output, "grad_output", "output", (len(nodes), self.out_dim))
        lse_gradient = None
        if grad_lse is not None:
            shape = (len(nodes),) if self._heads == 1 else (len(nodes), self._heads)
            lse_gradient = _like(grad_lse, "grad_lse", "log-sum-exp", shape)
            lse_gradient = cast(lse_gradient, layer.dtype).reshape(len(nodes), self._heads)
        destination = Output(
            out,
            (len(nodes), self.out_dim),
            nodes.dtype,
            layer.dtype,
            (nodes, senders, starts, sources, features, gradient),
        )
        lse = np.empty((len(nodes), self._heads), layer.dtype)
        grad_x, grad_senders, grad_features, parameters = layer.attend_graph_with_gradients(
            nodes,
            senders,
            starts,
            sources,
            features,
            self.add_self_loops,
            destination.work,
            lse,
            contiguous_rows(gradient, layer.dtype),
            lse_gradient,
        )
        gradients = GraphGradients(
            finished(grad_x, nodes.shape, nodes.dtype),
            _shaped(grad_senders, x_src, senders),
            _shaped(grad_features, edge_features, features),
            self._own(parameters),
        )
        result = destination.deliver()
        if not return_lse:
            return result, gradients
        lse = cast(lse, compute_dtype(nodes.dtype))
        return (result, lse[:, 0] if self._heads == 1 else lse), gradients

    def compute_with_gradients(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        grad_output: ArrayLike,
        *,
        grad_lse: ArrayLike | None = None,
        edge_features: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, Gradients]:
        """Attend, and give the gradient in everything that was attended with.

        Parameters
        ----------
        query, keys, values, edge_features, mask, return_lse, return_weights, out
            As in :meth:`compute_with_edges`.
        grad_output : array_like, shape (out_dim,), (m, out_dim) or (B, m, out_dim)
            Gradient of the output.
        grad_lse : array_like, optional
            As in :meth:`Attention.compute_with_gradients`.

        Returns
        -------
        result : ndarray or tuple of ndarray
            What :meth:`compute_with_edges` returns.
        gradients : Gradients
            As :meth:`Attention.compute_with_gradients`, also in `edge_features` and in every
            parameter.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`Attention.compute`.
        """
        inputs = Inputs(query, keys, values, self._dim)
        self._check_values(inputs)
        features = checked_features(edge_features, inputs, self.edge_dim)
        checked = None if mask is None else inputs.checked_mask(mask)
        layer = self._layer(inputs.query, features)
        gradient = inputs.checked_gradient(grad_output, layer.dtype, self.out_dim)
        lse_gradient = None
        if grad_lse is not None:
            lse_gradient = inputs.checked_lse_gradient(grad_lse, self._heads)
            lse_gradient = cast(lse_gradient, layer.dtype)
        given = (inputs.query, inputs.keys, inputs.values)
        destination = Output(
            out,
            (*inputs.leading, self.out_dim),
            inputs.dtype,
            layer.dtype,
            (*given, checked, features, gradient, lse_gradient),
        )
        batch, m, _ = inputs.query.shape
        work = destination.work.reshape(batch, m, self.out_dim)
        weights = None
        if return_weights:
            shape = (batch, self._heads, m, inputs.keys.shape[1])
            weights = np.empty(shape, layer.dtype)
        sums = np.empty((batch * m, self._heads, layer.channels), layer.dtype)
        lse = layer.attend(*given, features, checked, work, weights, sums)
        grad_mask = inputs.new_mask_gradient(checked)
        grad_query, grad_keys, grad_values, grad_features, parameters = layer.differentiate(
            *given,
            features,
            checked,
            sums,
            lse,
            gradient,
            lse_gradient,
            grad_mask,
            inputs.shared_keys and inputs.shared_values,
        )
        if inputs.shared_keys:
            grad_keys = grad_keys.sum(axis=0, keepdims=True)
        if inputs.shared_values:
            grad_values = grad_values.sum(axis=0, keepdims=True)
        gradients = inputs.shaped_gradients(
            Gradients(
                grad_query,
                grad_keys,
                grad_values,
                mask=grad_mask,
                edge_features=_shaped(grad_features, edge_features, features),
                parameters=self._own(parameters),
            )
        )
        return inputs.result(destination, lse if return_lse else None, weights), gradients

    def _layer(self, *arrays: Array | None) -> TrainedLayer:
        average = not self.concat_heads
        return TrainedLayer(self._parameters, self.negative_slope, average, *arrays)

    def _check_values(self, inputs: Inputs) -> None:
        if inputs.values.shape[-1] != self._dim:
            raise DimensionMismatchError(
                f"values must have the width {self._dim} of the keys, "
                f"got {inputs.values.shape[-1]}"
            )

    def _own(self, parameters: dict[str, Array]) -> dict[str, Array]:
        """Bring gradients to the shapes and dtypes of the parameters, in their order."""
        return {
            name: finished(parameters[name], array.shape, array.dtype)
            for name, array in self._parameters.items()
        }


def _like(x: ArrayLike, name: str, what: str, shape: tuple[int, ...]) -> Array:
    array = floating(x, name)
    if array.shape != shape:
        raise DimensionMismatchError(
            f"{name} must have shape {shape} like the {what}, got {array.shape}"
        )
    return array


def _shaped(grad: Array | None, given: Any, checked: Array | None) -> Array | None:
    """Bring a gradient to what the caller gave: summed over the axes that were added."""
    if grad is None or checked is None:
        return None
    shape = view(given, "array")[0].shape
    if grad.ndim > len(shape) > 1:
        grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    return finished(grad, shape, checked.dtype)
