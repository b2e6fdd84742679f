"""Models made of attention: over a memory, and over a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import BFLOAT16, FLOAT32, Array, cast, compute_dtype, floating, integers, vectors
from .._checks import flag
from ..attention import Attention, EdgeFeaturedAttention
from ..attention._parameters import taken_parameters
from ..errors import DimensionMismatchError, InvalidConfigError
from .model import learned_of

__all__ = ["GraphEncoder", "MemoryEncoder"]

_ATTENTION = "attention."


class _OwnState:
    """Mixin of the encoders whose state is their parameters."""

    def parameters(self) -> dict[str, Array]:
        """Return what is learned, as live views."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters.

        Returns
        -------
        dict of str to ndarray
            By the names of ``parameters()``.
        """
        return {name: array.copy() for name, array in self.parameters().items()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over what :meth:`state_dict` returned.

        Parameters
        ----------
        state : mapping of str to array_like
            All parameters and no others, of their shapes.

        Raises
        ------
        InvalidConfigError
            If names are missing or unknown.
        DimensionMismatchError
            If a shape is another one.
        """
        parameters = self.parameters()
        for name, given in taken_parameters(state, parameters).items():
            np.copyto(parameters[name], given)


class MemoryEncoder(_OwnState):
    """What a memory answers, as an embedding: attention over learned keys and values.

    Parameters
    ----------
    attention : Attention
        Any mechanism with gradients; its own parameters are learned with the memory.
    keys : array_like, shape (n, dim)
    values : array_like, shape (n, dim_v)
    learn_keys, learn_values : bool, default True
        Whether they are learned, from a copy. What is not is read where it lies.

    Raises
    ------
    DimensionMismatchError, TypeError
        If keys or values have another shape or do not hold real numbers.
    InvalidConfigError
        If `attention` is none, or there is nothing to learn.

    Notes
    -----
    Parameters are ``keys``, ``values`` and, with ``attention.`` before their names, those of
    the mechanism. :meth:`backward` computes the output again, in the memory of a tile.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> from ruvector.training import MemoryEncoder
    >>> rng = np.random.default_rng(0)
    >>> keys, values = rng.standard_normal((2, 10, 4), dtype=np.float32)
    >>> encoder = MemoryEncoder(ruvector.DotProductAttention(4), keys, values)
    >>> encoder.encode(np.ones((3, 4), np.float32)).shape
    (3, 4)
    >>> sorted(encoder.backward(np.ones((3, 4), np.float32)))
    ['keys', 'values']
    """

    def __init__(
        self,
        attention: Attention,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        learn_keys: bool = True,
        learn_values: bool = True,
    ) -> None:
        if not isinstance(attention, Attention):
            raise InvalidConfigError(f"attention must be an Attention, got {attention!r}")
        k, v = vectors(keys, "keys"), vectors(values, "values")
        if k.ndim != 2 or k.shape[1] != attention.dim:
            raise DimensionMismatchError(
                f"keys must have shape (n, {attention.dim}), got {k.shape}"
            )
        if v.ndim != 2 or len(v) != len(k):
            raise DimensionMismatchError(
                f"values must have shape ({len(k)}, dim_v) beside the keys, got {v.shape}"
            )
        self.attention = attention
        self._memory: dict[str, Any] = {"keys": keys, "values": values}
        self._learned: dict[str, Array] = {}
        for name, array, learn in (("keys", k, learn_keys), ("values", v, learn_values)):
            if flag(learn, f"learn_{name}"):
                self._learned[name] = np.array(cast(array, compute_dtype(array.dtype)))
                self._memory[name] = self._learned[name]
        if not self.parameters():
            raise InvalidConfigError("learn_keys, learn_values: there is nothing to learn")
        self._input: Any = None

    @property
    def keys(self) -> Array:
        """The keys, those that are learned as a live view."""
        return np.asarray(self._memory["keys"])

    @property
    def values(self) -> Array:
        """The values, those that are learned as a live view."""
        return np.asarray(self._memory["values"])

    def parameters(self) -> dict[str, Array]:
        """Return what is learned.

        Returns
        -------
        dict of str to ndarray
            Live views.
        """
        return self._learned | _parameters_of(self.attention)

    def encode(self, x: ArrayLike) -> Array:
        """Attend from each row to the memory.

        Parameters
        ----------
        x : array_like, shape (n, dim)
            It is remembered for :meth:`backward`, not copied.

        Returns
        -------
        ndarray, shape (n, dim_v)

        Raises
        ------
        DimensionMismatchError, EmptyInputError, TypeError
            As :meth:`Attention.compute`.
        """
        self._input = _widened(x, "x")
        output: Array = self.attention.compute(self._input, **self._memory)
        return output

    def backward(self, grad: ArrayLike) -> dict[str, Array]:
        """Return the gradients of the parameters.

        Parameters
        ----------
        grad : array_like, shape (n, dim_v)
            Gradient of what the last :meth:`encode` returned.

        Returns
        -------
        dict of str to ndarray
            By the names of :meth:`parameters`.

        Raises
        ------
        InvalidConfigError
            If nothing was encoded.
        DimensionMismatchError, TypeError
            If `grad` has another shape than the encodings, or does not hold real numbers.
        """
        if self._input is None:
            raise InvalidConfigError("backward needs an encode before it")
        _, gradients = self.attention.compute_with_gradients(
            self._input, self._memory["keys"], self._memory["values"], grad
        )
        return {name: gradients[name] for name in self._learned} | _named(
            gradients.parameters, self.attention
        )


class GraphEncoder(_OwnState):
    """The nodes of a graph as embeddings: graph attention, whose weights are learned.

    Anchors, positives and negatives are numbers of nodes.

    Parameters
    ----------
    attention : EdgeFeaturedAttention
    x : array_like, shape (N, node_dim)
        Vectors of the nodes.
    indptr, indices, edge_features
        The graph, as in :meth:`EdgeFeaturedAttention.compute_graph`.
    learn_x : bool, default False
        Whether the vectors of the nodes are learned too, from a copy.

    Raises
    ------
    DimensionMismatchError, TypeError
        If the arrays do not fit together.
    InvalidConfigError
        If `attention` is none of graphs.

    Notes
    -----
    Parameters are those of the attention with ``attention.`` before their names, and ``x``.
    Every call attends over the whole graph.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> from ruvector.training import GraphEncoder
    >>> attention = ruvector.EdgeFeaturedAttention.simple(8, 0, num_heads=2)
    >>> indptr, indices, _ = ruvector.graph.edges_to_csr([[0, 1, 2], [1, 2, 0]], 3)
    >>> nodes = np.eye(3, 8, dtype=np.float32)
    >>> encoder = GraphEncoder(attention, nodes, indptr, indices)
    >>> encoder.encode([2, 0, 2]).shape
    (3, 8)
    """

    def __init__(
        self,
        attention: EdgeFeaturedAttention,
        x: ArrayLike,
        indptr: Any,
        indices: ArrayLike | None = None,
        edge_features: ArrayLike | None = None,
        *,
        learn_x: bool = False,
    ) -> None:
        if not isinstance(attention, EdgeFeaturedAttention):
            raise InvalidConfigError(
                f"attention must be an EdgeFeaturedAttention, got {attention!r}"
            )
        nodes = floating(x, "x")
        if nodes.ndim != 2 or nodes.shape[1] != attention.node_dim:
            raise DimensionMismatchError(
                f"x must have shape (N, {attention.node_dim}), got {nodes.shape}"
            )
        self.attention = attention
        self._x: Any = x
        self._learned: dict[str, Array] = {}
        if flag(learn_x, "learn_x"):
            self._x = np.array(cast(nodes, compute_dtype(nodes.dtype)))
            self._learned["x"] = self._x
        self._count = len(nodes)
        self._graph = (indptr, indices, edge_features)
        self._nodes: Array | None = None

    def parameters(self) -> dict[str, Array]:
        """Return what is learned.

        Returns
        -------
        dict of str to ndarray
            Live views.
        """
        return self._learned | _parameters_of(self.attention)

    def encode(self, x: ArrayLike) -> Array:
        """Return the embeddings of some nodes.

        Parameters
        ----------
        x : array_like of int, shape (n,)
            Numbers of nodes, repeated or not.

        Returns
        -------
        ndarray, shape (n, out_dim)

        Raises
        ------
        DimensionMismatchError
            If `x` has another number of axes.
        InvalidConfigError
            If a number is that of no node.
        TypeError
            If `x` does not hold integers.
        """
        nodes = integers(x, "x")
        if nodes.ndim != 1:
            raise DimensionMismatchError(f"x must have shape (n,), got {nodes.shape}")
        if nodes.size and not 0 <= nodes.min() <= nodes.max() < self._count:
            raise InvalidConfigError(
                f"x must be from 0 to {self._count - 1}, got {nodes.min()} to {nodes.max()}"
            )
        output: Array = self.attention.compute_graph(self._x, *self._graph)
        self._nodes = nodes
        return output[nodes]

    def backward(self, grad: ArrayLike) -> dict[str, Array]:
        """Return the gradients of the parameters.

        Parameters
        ----------
        grad : array_like, shape (n, out_dim)
            Gradient of what the last :meth:`encode` returned.

        Returns
        -------
        dict of str to ndarray
            By the names of :meth:`parameters`.

        Raises
        ------
        InvalidConfigError
            If nothing was encoded.
        DimensionMismatchError, TypeError
            If `grad` has another shape than the encodings, or does not hold real numbers.
        """
        if self._nodes is None:
            raise InvalidConfigError("backward needs an encode before it")
        given = floating(grad, "grad")
        wanted = (len(self._nodes), self.attention.out_dim)
        if given.shape != wanted:
            raise DimensionMismatchError(f"grad must have shape {wanted}, got {given.shape}")
        full = np.zeros((self._count, wanted[1]), compute_dtype(given.dtype))
        np.add.at(full, self._nodes, cast(given, full.dtype))
        indptr, indices, edge_features = self._graph
        _, gradients = self.attention.compute_graph_with_gradients(
            self._x, indptr, indices, full, edge_features
        )
        return {name: gradients[name] for name in self._learned} | _named(
            gradients.parameters, self.attention
        )


def _parameters_of(attention: Attention) -> dict[str, Array]:
    return {_ATTENTION + name: array for name, array in learned_of(attention).items()}


def _named(gradients: Mapping[str, Array], attention: Attention) -> dict[str, Array]:
    return {_ATTENTION + name: gradients[name] for name in learned_of(attention)}


def _widened(x: ArrayLike, name: str) -> Array:
    """Return float16 and bfloat16 as float32: the outputs of a model are to be trained on."""
    array = floating(x, name)
    return cast(array, FLOAT32) if array.dtype in (BFLOAT16, np.float16) else array
