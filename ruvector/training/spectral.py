"""Penalties on how embeddings spread over directions, and on spectral norms of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import _config
from .._arrays import Array, finished, floating
from .._checks import finite, one_of
from .._kernels import spectral
from ..errors import EmptyInputError, InvalidConfigError
from ._result import LossResult
from ._triples import matrix

__all__ = ["SpectralRegularization"]


class SpectralRegularization:
    r"""Penalise embeddings that use some directions more than others, or large weights.

    ``mode="variance"``, over embeddings ``(n, d)``:

    .. math:: w \, \mathrm{var}_k(\mathrm{var}_i(x_{ik}))

    ``mode="spectral_norm"``, over a matrix or a list or dict of them:

    .. math:: \frac{w}{2} \sum_W \sigma_{max}(W)^2

    Parameters
    ----------
    weight : float
        w, finite and not negative.
    mode : {"variance", "spectral_norm"}, default "variance"

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    Notes
    -----
    The second is that of Yoshida and Miyato 2017 (arXiv 1705.10941), by an eigenvalue of the
    smaller Gram matrix instead of power iteration.

    Examples
    --------
    >>> from ruvector.training import SpectralRegularization
    >>> penalty = SpectralRegularization(0.5)
    >>> penalty.compute([[0.0, 0.0], [2.0, 4.0]])
    1.125
    >>> penalty.compute_with_gradients([[0.0, 0.0], [2.0, 4.0]]).gradients
    array([[ 0.75, -1.5 ],
           [-0.75,  1.5 ]], dtype=float32)
    >>> penalty = SpectralRegularization(1.0, mode="spectral_norm")
    >>> round(penalty.compute([[3.0, 0.0], [0.0, 1.0]]), 6)
    4.5
    """

    def __init__(self, weight: float, mode: str = "variance") -> None:
        self._weight = finite(weight, "weight")
        if self._weight < 0:
            raise InvalidConfigError(f"weight must not be negative, got {weight!r}")
        self._mode = one_of(mode, "mode", ("variance", "spectral_norm"))

    @property
    def weight(self) -> float:
        """What the penalty counts."""
        return self._weight

    @property
    def mode(self) -> str:
        """What is penalised."""
        return self._mode

    def compute(self, embeddings: Any) -> float:
        """Return the penalty.

        Parameters
        ----------
        embeddings : array_like, shape (n, d), or a list or dict of them
            The last two for ``mode="spectral_norm"`` only, where an array is one matrix. A list
            of numbers is an array.

        Returns
        -------
        float

        Raises
        ------
        DimensionMismatchError
            If an array does not have two axes.
        EmptyInputError
            If there is nothing in it.
        InvalidConfigError
            If a matrix holds NaN or infinity, and so has no spectral norm.
        TypeError
            If it does not hold real numbers.

        Examples
        --------
        >>> from ruvector.training import SpectralRegularization
        >>> SpectralRegularization(1.0).compute([[1.0, 2.0], [3.0, 4.0]])
        0.0
        """
        return float(self.compute_with_gradients(embeddings).loss)

    def compute_with_gradients(self, embeddings: Any) -> LossResult:
        """Return the penalty and its gradient.

        Parameters
        ----------
        embeddings
            As in :meth:`compute`, with the same errors.

        Returns
        -------
        LossResult
            `gradients` is an array, a list or a dict as `embeddings` is.

        Examples
        --------
        >>> import numpy as np
        >>> from ruvector.training import SpectralRegularization
        >>> penalty = SpectralRegularization(1.0, mode="spectral_norm")
        >>> result = penalty.compute_with_gradients({"w": np.diag([3.0, 1.0])})
        >>> round(result.loss, 6), np.abs(result.gradients["w"]).round(6)
        (4.5, array([[3., 0.],
               [0., 0.]]))
        """
        if self._mode == "variance":
            given = floating(embeddings, "embeddings")
            loss, gradient = spectral.variance_of_variances(
                matrix(given, "embeddings"), self._weight
            )
            return LossResult(loss, finished(gradient, given.shape, given.dtype))
        if isinstance(embeddings, Mapping):
            named = {
                key: self._norm(x, f"embeddings[{key!r}]") for key, x in embeddings.items()
            }
            found = list(named.values())
            result: Any = {key: gradient for key, (_, gradient) in named.items()}
        elif isinstance(embeddings, list | tuple) and _is_list_of_matrices(embeddings):
            found = [self._norm(x, f"embeddings[{i}]") for i, x in enumerate(embeddings)]
            result = [gradient for _, gradient in found]
        else:
            found = [self._norm(embeddings, "embeddings")]
            result = found[0][1]
        if not found:
            raise EmptyInputError("embeddings must hold at least one matrix, got none")
        return LossResult(sum(loss for loss, _ in found), result)

    def _norm(self, x: Any, name: str) -> tuple[float, Array]:
        given = floating(x, name)
        weights = matrix(given, name)
        if not np.isfinite(weights).all():
            raise InvalidConfigError(f"{name} must hold finite numbers, got NaN or infinity")
        loss, gradient = spectral.spectral_norm(
            weights, self._weight, _config.current_threads()
        )
        return loss, finished(gradient, given.shape, given.dtype)

    def __repr__(self) -> str:
        return f"SpectralRegularization({self._weight!r}, mode={self._mode!r})"


def _is_list_of_matrices(x: list[Any] | tuple[Any, ...]) -> bool:
    """Tell a list of matrices from one matrix as a list of rows."""
    if not x:
        return True
    return np.ndim(x[0]) == 2
