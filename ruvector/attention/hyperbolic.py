"""Attention between points of the Poincare ball."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _config, _kernels
from .._arrays import FLOAT32, Array
from .._ball_backward import BallTargets, Parameters, differentiate_frechet
from .._ball_problem import BallProblem
from .._checks import finite, flag, integer, one_of
from .._hyperbolic import largest_norm
from .._hyperbolic_means import warn_unless_converged
from .._kernels.spec import AttentionSpec, BallSpec
from ..errors import InvalidConfigError
from ._ball import BallAttention, ball_curvature, ball_temperature
from .base import Gradients, Inputs

__all__ = ["HyperbolicAttention"]

_AGGREGATIONS = ("midpoint", "frechet")
_INPUTS = ("ball", "tangent")
_PLAIN = AttentionSpec(scale=1.0)


class HyperbolicAttention(BallAttention):
    r"""Attention by distance in the Poincare ball, with a mean of the ball as the output.

    .. math::

        p = \mathrm{softmax}_j\left( -\frac{d_c(q, k_j)}{\mathrm{temperature}} \right),
        \qquad m = \frac{r}{1 + \sqrt{1 - c|r|^2}}, \qquad
        r = \frac{\sum_j p_j \lambda_j v_j}{\sum_j p_j (\lambda_j - 1)}, \qquad
        \lambda_j = \frac{2}{1 - c|v_j|^2}

    Parameters
    ----------
    dim : int
        Width of queries and keys. Values may be of any width.
    curvature : float, default 1.0
        Its absolute value is c: the ball has the radius ``1 / sqrt(c)``. Not 0.
    temperature : float, default 1.0
        Divides the distances; at least 1e-12.
    aggregation : {"midpoint", "frechet"}, default "midpoint"
        Which mean of the values: the Einstein midpoint above, which streams and merges, or
        the Frechet mean, the point of least weighted squared distance, which is searched
        for under all the weights of a query.
    inputs : {"ball", "tangent"}, default "ball"
        What queries, keys and values are: points, or tangent vectors at the origin, which
        are mapped to points by the exponential map. Either is then shortened to norm
        ``1 / sqrt(c) - 1e-5`` at the most. Embeddings of unit norm are tangent vectors: as
        points they would all lie on the boundary. The output is a point in either case.
    learn_curvature, learn_temperature : bool, default False
        Whether these are parameters: they are then in :meth:`parameters` under their names.
    tol : float, default 1e-6
        How near to the Frechet mean is near enough: a distance, in units of
        ``1 / sqrt(c)``.
    max_iter : int, default 500
        After how many steps its search stops with a RuntimeWarning.

    Raises
    ------
    InvalidConfigError
        If a parameter is outside its domain.

    See Also
    --------
    ruvector.hyperbolic : The geometry behind it as functions.

    Notes
    -----
    Where one value close to the boundary has nearly all the weight, rounding moves the
    midpoint in float32 by up to 3e-4 towards the origin; in float64 by 1e-8.

    References
    ----------
    .. [1] C. Gulcehre et al., "Hyperbolic Attention Networks", 2018, arXiv:1805.09786.
    .. [2] R. Shimizu, Y. Mukuta, T. Harada, "Hyperbolic Neural Networks++", 2021,
       arXiv:2006.08210.
    .. [3] A. Lou et al., "Differentiating through the Frechet Mean", 2020,
       arXiv:2003.00335.

    Examples
    --------
    >>> import numpy as np
    >>> import ruvector
    >>> attention = ruvector.HyperbolicAttention(2, temperature=0.5)
    >>> keys = np.array([[0.0, 0.5], [0.0, -0.5], [0.0, 0.95]], np.float32)
    >>> output, weights = attention.compute([0.0, 0.6], keys, keys, return_weights=True)
    >>> weights.round(3)
    array([0.97 , 0.012, 0.018], dtype=float32)

    A memory in parts: states merge, outputs do not.

    >>> parts = [attention.compute_state([0.0, 0.6], x, x) for x in (keys[:1], keys[1:])]
    >>> state, lse = attention.merge_states(*zip(*parts))
    >>> bool(np.allclose(attention.finalize(state), output, atol=1e-6))
    True
    """

    _fields = (
        "dim",
        "curvature",
        "temperature",
        "aggregation",
        "inputs",
        "learn_curvature",
        "learn_temperature",
        "tol",
        "max_iter",
    )

    def __init__(
        self,
        dim: int,
        curvature: float = 1.0,
        temperature: float = 1.0,
        aggregation: str = "midpoint",
        inputs: str = "ball",
        learn_curvature: bool = False,
        learn_temperature: bool = False,
        *,
        tol: float = 1e-6,
        max_iter: int = 500,
    ) -> None:
        super().__init__(dim)
        self._curvature = ball_curvature(curvature)
        self._temperature = ball_temperature(temperature)
        self._aggregation = one_of(aggregation, "aggregation", _AGGREGATIONS)
        self._inputs = one_of(inputs, "inputs", _INPUTS)
        self._learn_curvature = flag(learn_curvature, "learn_curvature")
        self._learn_temperature = flag(learn_temperature, "learn_temperature")
        self._tol = finite(tol, "tol", positive=True)
        self._max_iter = integer(max_iter, "max_iter", 1)
        self._parameters = {}
        if self._learn_curvature:
            self._parameters["curvature"] = np.array(self._curvature)
        if self._learn_temperature:
            self._parameters["temperature"] = np.array(self._temperature)

    @property
    def curvature(self) -> float:
        """Absolute value of the curvature as it is now, learned or not."""
        if not self._learn_curvature:
            return self._curvature
        return ball_curvature(float(self._parameters["curvature"]))

    @property
    def temperature(self) -> float:
        """What divides the distances as it is now, learned or not."""
        if not self._learn_temperature:
            return self._temperature
        return ball_temperature(float(self._parameters["temperature"]))

    @property
    def aggregation(self) -> str:
        """Which mean of the values is taken."""
        return self._aggregation

    @property
    def inputs(self) -> str:
        """What queries, keys and values are read as."""
        return self._inputs

    @property
    def learn_curvature(self) -> bool:
        """Whether the curvature is a parameter."""
        return self._learn_curvature

    @property
    def learn_temperature(self) -> bool:
        """Whether the temperature is a parameter."""
        return self._learn_temperature

    @property
    def tol(self) -> float:
        """How near to the Frechet mean is near enough."""
        return self._tol

    @property
    def max_iter(self) -> int:
        """After how many steps the search for the Frechet mean stops."""
        return self._max_iter

    def compute_with_temperature(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        temperature: float,
        **keywords: Any,
    ) -> Any:
        """Attend at a temperature of this call's own.

        Parameters
        ----------
        query, keys, values : array_like
            As in :meth:`compute`.
        temperature : float
            Divides the distances; at least 1e-12.
        **keywords
            As in :meth:`compute`.

        Returns
        -------
        ndarray or tuple of ndarray
            What :meth:`compute` returns.

        Raises
        ------
        InvalidConfigError
            If the temperature is not finite or below 1e-12.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        return self._with_temperature(
            ball_temperature(temperature), query, keys, values, **keywords
        )

    def _with_temperature(
        self,
        temperature: float,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        *,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> Any:
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute(
            inputs, mask, return_lse, return_weights, out, temperature=temperature
        )

    def compute_with_gradients(
        self,
        query: ArrayLike,
        keys: ArrayLike,
        values: ArrayLike,
        grad_output: ArrayLike,
        *,
        grad_lse: ArrayLike | None = None,
        temperature: float | None = None,
        mask: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: Array | None = None,
    ) -> tuple[Any, Gradients]:
        """Attend, and give the gradient in everything that was attended with.

        Parameters
        ----------
        query, keys, values, mask, return_lse, return_weights, out
            As in :meth:`compute`.
        grad_output : array_like, shape (dim_v,), (m, dim_v) or (B, m, dim_v)
            Gradient of the output.
        grad_lse : array_like, optional
            Gradient of the log-sum-exp, in its shape, where something depends on it.
        temperature : float, optional
            As in :meth:`compute_with_temperature`; a learned one then has the gradient 0.

        Returns
        -------
        result : ndarray or tuple of ndarray
            What :meth:`compute` returns.
        gradients : Gradients
            As :meth:`Attention.compute_with_gradients` gives it, through the map into the
            ball: a vector that is shortened has no gradient along itself. Where a query lies
            on a key, the distance between them has none. `parameters` holds ``curvature``
            and ``temperature`` where they are learned. A Frechet mean is differentiated as
            the exact one [3]_.

        Raises
        ------
        InvalidConfigError
            If the temperature is not finite or below 1e-12.
        DimensionMismatchError, EmptyInputError, InvalidMaskError, TypeError
            As :meth:`compute`.
        """
        options = {}
        if temperature is not None:
            options["temperature"] = ball_temperature(temperature)
        inputs = Inputs(query, keys, values, self._dim)
        return self._compute_with_gradients(
            inputs, grad_output, grad_lse, mask, return_lse, return_weights, out, **options
        )

    def _single(self, query: Any, keys: Any, values: Any) -> Array | None:
        if not (
            type(query) is type(keys) is type(values) is np.ndarray
            and query.dtype == keys.dtype == values.dtype == FLOAT32
            and query.ndim == 1
            and keys.ndim == values.ndim == 2
            and len(query) == self._dim == keys.shape[1]
            and len(values) == len(keys) > 0
            and query.flags.carray
            and keys.flags.c_contiguous
            and keys.flags.aligned
            and values.flags.c_contiguous
            and values.flags.aligned
            and self._aggregation == "midpoint"
        ):
            return None
        width = values.shape[1]
        state, point = np.empty((1, 1, 1, width + 1), FLOAT32), np.empty((1, width), FLOAT32)
        ball = self._ball(self.temperature)
        _kernels.softmax.attend_ball(
            None,
            None,
            None,
            None,
            query[np.newaxis, np.newaxis, np.newaxis],
            keys[np.newaxis, np.newaxis],
            values[np.newaxis, np.newaxis],
            state,
            None,
            _PLAIN,
            ball,
            _config.current_threads(),
        )
        _kernels.hyperbolic.midpoint(state[0, 0], point, ball.curvature, False)
        result: Array = point[0]
        return result

    def _check_mergeable(self) -> None:
        if self._aggregation != "midpoint":
            raise InvalidConfigError(
                f"aggregation must be 'midpoint' for states, got {self._aggregation!r}"
            )

    def _evaluate(
        self,
        inputs: Inputs,
        mask: Array | None,
        out: Array,
        return_lse: bool,
        return_weights: bool,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        if self._aggregation == "midpoint":
            return super()._evaluate(inputs, mask, out, return_lse, return_weights, **options)
        problem = self._problem(inputs, mask, **options)
        c = problem.ball.curvature
        left = problem.frechet_means(out, self._tol, self._max_iter, largest_norm(c, out))
        warn_unless_converged(left, self._tol, self._max_iter)
        lse = problem.lse() if return_lse else None
        return lse, problem.weights() if return_weights else None

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
        if self._aggregation == "midpoint":
            return super()._differentiate(
                inputs, mask, output, lse, grad_output, grad_lse, **options
            )
        assert lse is not None
        query, keys, values = inputs.new_gradients()
        mask_gradient = inputs.new_mask_gradient(mask)
        numbers = differentiate_frechet(
            self._problem(inputs, mask, **options),
            output,
            lse,
            grad_output,
            grad_lse,
            BallTargets(None, self._by_space(query, keys, values)[1], mask_gradient),
            parameters=bool(self._parameters),
        )
        parameters = self._parameter_gradients(numbers, **options)
        return Gradients(query, keys, values, mask_gradient, parameters=parameters)

    def _by_space(self, *arrays: Array) -> tuple[None, tuple[Array, ...]]:
        return None, tuple(x[:, np.newaxis] for x in arrays)

    def _parameter_gradients(
        self, numbers: Parameters, temperature: float | None = None, **_: Any
    ) -> dict[str, Array]:
        gradients = {}
        if self._learn_curvature:
            sign = np.sign(self._parameters["curvature"])
            gradients["curvature"] = np.array(sign * numbers.curvature)
        if self._learn_temperature:
            # A call's own temperature leaves the learned one without influence.
            own = 0.0 if temperature is not None else -(self.temperature**-2.0)
            gradients["temperature"] = np.array(own * numbers.distance_scale)
        return gradients

    def _ball(self, temperature: float) -> BallSpec:
        return BallSpec(self.curvature, 1 / temperature, self._inputs == "tangent")

    def _problem(
        self, inputs: Inputs, mask: Array | None, temperature: float | None = None, **_: Any
    ) -> BallProblem:
        ball = self._ball(self.temperature if temperature is None else temperature)
        query, keys, values = self._by_space(inputs.query, inputs.keys, inputs.values)[1]
        return BallProblem(None, (query, keys, values), mask, 1.0, ball)

    def _finish(self, state: Array, out: Array) -> None:
        points = np.empty((math.prod(out.shape[:2]), out.shape[2]), out.dtype)
        rows = state.reshape(len(points), state.shape[3])
        _kernels.hyperbolic.midpoint(rows, points, self.curvature, False)
        out[...] = points.reshape(out.shape)

    def _config(self) -> tuple[tuple[str, Any], ...]:
        # As constructed: what is learned must not change the hash.
        return tuple((name, getattr(self, f"_{name}")) for name in self._fields)

    def _check_parameters(self, parameters: Mapping[str, Array]) -> None:
        if "curvature" in parameters:
            ball_curvature(float(parameters["curvature"]))
        if "temperature" in parameters:
            ball_temperature(float(parameters["temperature"]))
