"""Linear attention over a memory, with a running state."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._arrays import Array, cast, compute_dtype, contiguous_rows, view
from .._checks import flag, generator, integer, one_of, real_type
from .._features import KERNELS, LinearProblem, draw_projection, key_bias
from .._kernels.spec import LinearState
from .._linear_backward import LinearTargets, differentiate_linear
from ..errors import InvalidMaskError
from ._running import RunningSums
from .base import Gradients, Inputs

__all__ = ["LinearAttention", "LinearState"]

_SEED = 42


class LinearAttention(RunningSums):
    r"""Attention by products of features, at a cost that is linear in the number of keys.

    .. math::

        o = \frac{\phi(q)^T A}{\phi(q)^T B}, \qquad
        A = \sum_j \phi(k_j)\, v_j^T, \qquad B = \sum_j \phi(k_j)

    The features of ``"softmax"`` are those of FAVOR+ [1]_: with rows :math:`w_m` of a random
    projection and :math:`\tilde x = d^{-1/4} x`,

    .. math::

        \phi_m(x) = \frac{1}{\sqrt M}
        \exp\left( w_m \cdot \tilde x - \tfrac12 |\tilde x|^2 \right)

    so that :math:`\phi(q) \cdot \phi(k)` is an estimate without bias of
    :math:`\exp(q \cdot k / \sqrt d)`, whose error falls with the square root of M. ``"relu"``
    has the features :math:`\max(w_m \cdot x, 0) + 10^{-3}`, over :math:`\sqrt M`, and
    ``"elu"`` [2]_ has :math:`\mathrm{elu}(x) + 1`, one for each entry of x.

    Parameters
    ----------
    dim : int
        Width d of queries and keys. Values may be of any width.
    num_features : int
        Number M of features; not used by ``"elu"``.
    kernel : {"softmax", "relu", "elu"}, default "softmax"
        The features.
    seed : int, default 42
        Seed of the projection.
    ortho : bool, default True
        Whether the rows of the projection are orthogonal in blocks of `dim`, which makes the
        estimate more precise.
    causal : bool, default False
        Whether the queries of :meth:`compute` are the last m of the n positions and see no
        key behind their own: query `i` sees keys up to ``n - m + i``.
    rng : numpy.random.Generator, optional
        Where the projection comes from instead of a `seed`.
    dtype : {"float32", "float64"}, default "float32"
        Type of the projection. Calls compute in it, or in that of their arrays if that is
        wider.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain, or both `seed` and `rng` are given.

    See Also
    --------
    linear_attention : The same for batches of sequences with several heads.

    Notes
    -----
    Exponentials are computed relative to the largest of a query's features, and to the largest
    of the keys that a query sees; :math:`10^{-6}` is added to each. The output therefore stays
    finite and within the hull of the values, whatever the norms. It does not depend on the
    batch. The log-sum-exp is that of the estimated weights.

    The parameter is ``projection`` (num_features, dim); ``"elu"`` has none.
    :meth:`compute_with_gradients` gives its gradient in ``gradients.parameters``, and that of a
    float mask of keys.

    The sums A and B are all that later queries need: :meth:`prefill` and :meth:`append` keep
    them, :meth:`attend` reads them, in time and memory that do not grow with the number of
    keys. Sums over parts of a memory :meth:`merge`.

    References
    ----------
    .. [1] K. Choromanski et al., "Rethinking Attention with Performers", 2020,
       arXiv:2009.14794.
    .. [2] A. Katharopoulos et al., "Transformers are RNNs: Fast Autoregressive Transformers
       with Linear Attention", 2020, arXiv:2006.16236.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> rng = np.random.default_rng(0)
    >>> keys = ruvector.normalize(rng.standard_normal((1000, 64), dtype=np.float32))
    >>> attention = ruvector.LinearAttention(64, num_features=256)
    >>> output = attention.compute(keys[:5], keys, keys)
    >>> output.shape
    (5, 64)

    Token by token:

    >>> attention.prefill(keys[:900], keys[:900])
    >>> for key in keys[900:]:
    ...     attention.append(key, key)
    >>> bool(np.allclose(attention.attend(keys[:5]), output, atol=1e-5))
    True
    """

    _fields = ("dim", "num_features", "kernel", "seed", "ortho", "causal")

    def __init__(
        self,
        dim: int,
        num_features: int,
        kernel: str = "softmax",
        seed: int | None = None,
        ortho: bool = True,
        causal: bool = False,
        *,
        rng: np.random.Generator | None = None,
        dtype: DTypeLike = "float32",
    ) -> None:
        super().__init__(dim)
        self._num_features = integer(num_features, "num_features", 1)
        self._kernel = one_of(kernel, "kernel", KERNELS)
        self._ortho = flag(ortho, "ortho")
        self._causal = flag(causal, "causal")
        source = generator(seed, rng, _SEED)
        self._seed = None if rng is not None else _SEED if seed is None else int(seed)
        real = real_type(dtype, "dtype")
        self._parameters = {}
        if self._kernel != "elu":
            drawn = draw_projection(self._dim, self._num_features, self._ortho, source)
            self._parameters["projection"] = drawn.astype(real)

    @property
    def num_features(self) -> int:
        """Number of features that was asked for."""
        return self._num_features

    @property
    def kernel(self) -> str:
        """The features."""
        return self._kernel

    @property
    def seed(self) -> int | None:
        """Seed of the projection, None where it came from a generator."""
        return self._seed

    @property
    def ortho(self) -> bool:
        """Whether the rows of the projection are orthogonal in blocks."""
        return self._ortho

    @property
    def causal(self) -> bool:
        """Whether a query sees no key behind its own position."""
        return self._causal

    def compute(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        """Attend from one query, several, or a batch of several; the state is not touched.

        Parameters
        ----------
        query, keys, values, out
            As in :meth:`Attention.compute`.
        mask : array_like, shape (n,), optional
            Which keys there are for all queries. Bool: True attends. Float: added to the
            logarithm of a key's weight, and -inf hides.
        return_lse : bool, default False
            Whether to return the natural logarithm of the sum of the weights.
        return_weights : bool, default False
            Whether to return the weights, which cost time and memory that are quadratic.

        Returns
        -------
        ndarray or tuple of ndarray
            As :meth:`Attention.compute`.

        Raises
        ------
        DimensionMismatchError, EmptyInputError, TypeError
            As :meth:`Attention.compute`.
        InvalidMaskError
            If the mask is not of shape (n,), or is neither bool nor float.
        """
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute(inputs, mask, return_lse, return_weights, out)

    def _work_dtype(self, inputs: Inputs) -> np.dtype[Any]:
        return self._stored(inputs.query[:0]).dtype

    def _checked_mask(self, inputs: Inputs, mask: ArrayLike) -> Array:
        shape = view(mask, "mask")[0].shape
        if len(shape) != 1:
            raise InvalidMaskError(
                f"mask must have shape ({inputs.keys.shape[1]},), the same keys for every "
                f"query, got shape {shape}"
            )
        return inputs.checked_mask(mask)

    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        batch, m, _ = inputs.query.shape
        shared = batch > 1 and inputs.keys.strides[0] == inputs.values.strides[0] == 0
        problem = self._problem(inputs, mask, shared)
        lse = problem.new_lse() if return_lse else None
        work = out.reshape(*problem.query.shape[:3], out.shape[2])
        problem.attend(work, lse)
        if not np.may_share_memory(work, out):
            out[...] = work.reshape(out.shape)
        weights = problem.weights() if return_weights else None
        return (
            None if lse is None else lse.reshape(batch, 1, m),
            None if weights is None else weights.reshape(batch, 1, m, inputs.keys.shape[1]),
        )

    def _problem(self, inputs: Inputs, mask: Array | None, shared: bool) -> LinearProblem:
        """Return what is computed; one memory for all the batch is summed once."""
        query, keys, values = (
            self._stored(x) for x in (inputs.query, inputs.keys, inputs.values)
        )
        if shared and not self._causal:
            query = np.ascontiguousarray(query).reshape(1, -1, self._dim)
            keys, values = keys[:1], values[:1]
        bias = None
        if mask is not None and query.shape[1]:
            bias = key_bias(mask[: len(keys), 0, 0], "mask", compute_dtype(query.dtype))
            bias = contiguous_rows(bias, bias.dtype)
        return LinearProblem(
            query[:, np.newaxis],
            keys[:, np.newaxis],
            values[:, np.newaxis],
            bias,
            self._causal,
            self._features(compute_dtype(query.dtype)),
        )

    def _differentiate(
        self,
        inputs: Inputs,
        mask: Array | None,
        output: Array,
        lse: Array | None,
        grad_output: Array,
        grad_lse: Array | None,
        **options: Any,
    ) -> Gradients:
        batch = len(inputs.query)
        targets = inputs.new_gradients()
        shared = batch > 1 and len(targets[1]) == len(targets[2]) == 1
        problem = self._problem(inputs, mask, shared)
        query, keys, values = targets
        if problem.query.dtype != inputs.query.dtype:
            query, keys, values = (np.empty(x.shape, problem.query.dtype) for x in targets)
        lengths = problem.query.shape[:3]
        mask_gradient = inputs.new_mask_gradient(mask)
        projection = None
        if "projection" in self._parameters:
            projection = np.zeros(self._parameters["projection"].shape)
        differentiate_linear(
            problem,
            output.reshape(*lengths, output.shape[2]),
            grad_output.reshape(*lengths, output.shape[2]),
            None
            if grad_lse is None
            else cast(grad_lse, problem.features.projection.dtype).reshape(lengths),
            LinearTargets(
                query.reshape(problem.query.shape),
                keys[:, np.newaxis],
                values[:, np.newaxis],
                None if mask_gradient is None else mask_gradient[:, 0, 0],
                projection,
            ),
        )
        learned = {}
        if projection is not None:
            learned["projection"] = cast(projection, self._parameters["projection"].dtype)
        return Gradients(query, keys, values, mask_gradient, parameters=learned)
