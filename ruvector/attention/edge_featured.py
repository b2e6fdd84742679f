"""Attention over the neighbours in a graph, with features on the edges (GATv2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, Output, cast, compute_dtype
from .._csr import read_csr
from .._gatv2 import Layer
from ._edge_config import EdgeFeaturedConfig
from ._edge_gradients import TrainedEdges
from ._edge_inputs import checked_edges, checked_features, checked_nodes
from .base import Inputs

__all__ = ["EdgeFeaturedAttention", "EdgeFeaturedConfig"]


class EdgeFeaturedAttention(TrainedEdges):
    r"""Attention of a node to its neighbours in a graph, scored with the edges' features.

    Node i attends to the nodes j that send to it (GATv2). In each head

    .. math::

        s_{ij} = a^\top \mathrm{LeakyReLU}(W_r x_i + W_l x_j + W_e e_{ij}), \qquad
        o_i = \sum_j \mathrm{softmax}_j(s_{ij})\, W_l x_j

    :meth:`compute_graph` does that for a whole graph, :meth:`compute` and
    :meth:`compute_with_edges` for single nodes and their neighbours.

    Parameters
    ----------
    config : EdgeFeaturedConfig, optional
        The configuration; without it, its fields are given as keywords.
    seed : int, optional
        Seed of the initial weights; without it they differ from object to object.
    rng : numpy.random.Generator, optional
        Where the initial weights come from instead.
    dtype : {"float32", "float64"}, default "float32"
        Type of the parameters. Calls compute in it, or in that of their arrays if that is
        wider.
    **fields
        The fields of :class:`EdgeFeaturedConfig`.

    Raises
    ------
    InvalidConfigError
        If a field is outside its domain, or both a config and fields, or both `seed` and
        `rng` are given.

    Notes
    -----
    Parameters have the names and shapes of torch_geometric's ``GATv2Conv``, whose
    ``state_dict()`` can be loaded as it is: ``att`` (1, H, C), ``lin_l.weight`` and
    ``lin_r.weight`` (H C, node_dim), ``lin_edge.weight`` (H C, edge_dim), ``res.weight``,
    and with a bias ``lin_l.bias``, ``lin_r.bias`` and ``bias``. Weights start from Glorot's
    uniform distribution, biases from 0.

    A graph of N nodes and E edges costs ``2 N node_dim H C + E H C edge_dim`` multiply-adds
    and a few passes over E H C numbers; memory beside the arguments is a few times N H C.

    References
    ----------
    .. [1] S. Brody, U. Alon, E. Yahav, "How Attentive are Graph Attention Networks?", 2021,
       arXiv:2105.14491.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> attention = ruvector.EdgeFeaturedAttention.simple(16, 3, num_heads=4)
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((5, 16), dtype=np.float32)
    >>> indptr, indices, order = ruvector.graph.edges_to_csr([[0, 1, 4, 2], [1, 0, 0, 3]], 5)
    >>> features = rng.standard_normal((4, 3), dtype=np.float32)[order]
    >>> output, lse = attention.compute_graph(x, indptr, indices, features, return_lse=True)
    >>> output.shape, lse.shape
    ((5, 16), (5, 4))
    >>> attention.compute_with_edges(x[0], x[1:], x[1:], features).shape
    (16,)
    """

    @classmethod
    def simple(
        cls, node_dim: int, edge_dim: int, num_heads: int, *, seed: int | None = None
    ) -> EdgeFeaturedAttention:
        """Make an attention with the defaults of :class:`EdgeFeaturedConfig`.

        Parameters
        ----------
        node_dim, edge_dim, num_heads
            As in :class:`EdgeFeaturedConfig`.
        seed : int, optional
            As in the class.

        Returns
        -------
        EdgeFeaturedAttention
        """
        return cls(EdgeFeaturedConfig(node_dim, edge_dim, num_heads), seed=seed)

    def compute_with_edges(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        edge_features: ArrayLike | None,
        *,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from one node, several, or a batch of several, to neighbours.

        Scores come from the keys and the features of the edges, the messages ``W_l v`` from
        the values. No edge from a node to itself is added.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`Attention.compute`; values are as wide as keys, the output is
            `out_dim` wide.
        edge_features : array_like, shape (n, edge_dim) or (m, n, edge_dim), or None
            Features of the edge from each key to each query; with a batch of queries also
            (B, m, n, edge_dim). None leaves their term out.

        Returns
        -------
        ndarray or tuple of ndarray
            As :meth:`Attention.compute`. A query that sees nothing gets the bias and the
            residual alone.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`Attention.compute`.
        """
        inputs = Inputs(query, keys, values, self._dim)
        features = checked_features(edge_features, inputs, self.edge_dim)
        return self._compute(inputs, mask, return_lse, return_weights, out, features=features)

    def compute_graph(
        self,
        x: ArrayLike,
        indptr: Any,
        indices: ArrayLike | None = None,
        edge_features: ArrayLike | None = None,
        *,
        x_src: ArrayLike | None = None,
        return_lse: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from every node of a graph to the nodes that send to it.

        Parameters
        ----------
        x : array_like, shape (N, node_dim)
            Vectors of the nodes; of the receivers in a bipartite graph.
        indptr : array_like of int, shape (N + 1,), or a graph
            Node i receives through the edges ``indptr[i]`` to ``indptr[i + 1]``
            (:func:`ruvector.graph.edges_to_csr` makes such rows). Or, without `indices`, a
            SciPy sparse array whose row i lists what sends to i, or a NetworkX graph.
        indices : array_like of int, shape (E,)
            The sender of each edge, in any order within a row; an edge may repeat.
        edge_features : array_like, shape (E, edge_dim), optional
            Features of the edges in the order of `indices`; also (E,) where they are 1 wide.
            Without them their term is left out.
        x_src : array_like, shape (M, node_dim), optional
            Vectors of the senders in a bipartite graph.
        return_lse : bool, default False
            Whether to return the natural log-sum-exp of the scores.
        out : ndarray, shape (N, out_dim), optional
            Array for the output, of the dtype of `x`; it may overlap an input.

        Returns
        -------
        output : ndarray, shape (N, out_dim)
            In the dtype of `x`. A node that nothing sends to gets the bias and the residual
            alone.
        lse : ndarray, shape (N, num_heads), or (N,) for one head
            -inf for a node that nothing sends to. Only with `return_lse`.

        Raises
        ------
        DimensionMismatchError
            If shapes and lengths do not fit each other.
        InvalidConfigError
            If `indptr` decreases or an index is out of range.
        TypeError
            If an array does not hold real numbers, or `indptr` or `indices` not integers.
        """
        nodes = checked_nodes(x, "x", self._dim)
        senders = None if x_src is None else checked_nodes(x_src, "x_src", self._dim)
        count = len(nodes if senders is None else senders)
        starts, sources = read_csr(indptr, indices, len(nodes), count)
        features = checked_edges(edge_features, (sources.size, self.edge_dim))
        layer = self._layer(nodes, senders, features)
        destination = Output(
            out,
            (len(nodes), self.out_dim),
            nodes.dtype,
            layer.dtype,
            (nodes, senders, starts, sources, features),
        )
        lse = np.empty((len(nodes), self._heads), layer.dtype) if return_lse else None
        layer.attend_graph(
            nodes,
            senders,
            starts,
            sources,
            features,
            self.add_self_loops,
            destination.work,
            lse,
        )
        result = destination.deliver()
        if lse is None:
            return result
        lse = cast(lse, compute_dtype(nodes.dtype))
        return result, lse[:, 0] if self._heads == 1 else lse

    def _compute(
        self,
        inputs: Inputs,
        mask: ArrayLike | None,
        return_lse: bool,
        return_weights: bool,
        out: Array | None,
        **options: Any,
    ) -> Any:
        self._check_values(inputs)
        checked = None if mask is None else inputs.checked_mask(mask)
        features = options.get("features")
        layer = self._layer(inputs.query, features)
        destination = Output(
            out,
            (*inputs.leading, self.out_dim),
            inputs.dtype,
            layer.dtype,
            (inputs.query, inputs.keys, inputs.values, checked, features),
        )
        work = destination.work.reshape(*inputs.query.shape[:2], self.out_dim)
        lse, weights = self._evaluate(
            inputs, checked, work, return_lse, return_weights, layer=layer, **options
        )
        return inputs.result(destination, lse if return_lse else None, weights)

    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        layer: Layer = options["layer"]
        batch, m, _ = inputs.query.shape
        shape = (batch, self._heads, m, inputs.keys.shape[1])
        weights = np.empty(shape, layer.dtype) if return_weights else None
        features = options.get("features")
        lse = layer.attend(
            inputs.query, inputs.keys, inputs.values, features, mask, out, weights
        )
        return lse, weights
