"""Losses over embeddings that return all their gradients.

They compare anchors with positives and negatives: one anchor ``(d,)`` with negatives
``(N, d)``, or a batch ``(B, d)`` whose negatives are shared ``(N, d)``, each anchor's own
``(B, N, d)``, or, where they are None, the positives of the other anchors. No array of
``B * B * d`` numbers is ever formed, and in the batch none of ``B * B``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _config
from .._checks import finite, flag
from .._kernels import contrastive
from .._kernels import hinge as hinges
from ..errors import InvalidConfigError
from ._result import LossResult
from ._triples import Triples, reduced, reduction_of, row_weights

__all__ = ["InfoNCELoss", "LocalContrastiveLoss", "LossResult"]

# The rounding of a float32 cosine over a temperature below this one shows in the weights.
_COLD = 1e-3
_COLDEST = 1e-12


class InfoNCELoss:
    r"""Tell the positive of an anchor from negatives, by cosine similarity.

    .. math:: -\log \frac{\exp(\cos(a, p) / \tau)}
              {\exp(\cos(a, p) / \tau) + \sum_j \exp(\cos(a, n_j) / \tau)}

    Parameters
    ----------
    temperature : float, default 0.07
        :math:`\tau`, finite and at least 1e-12: below, the rounding of a cosine decides. Under
        1e-3 float32 is computed in float64.
    learn_temperature : bool, default False
        Whether the temperature is among the parameters that training updates.
    reduction : {"mean", "sum", "none"}, default "mean"
        What becomes of the losses of a batch.

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    Notes
    -----
    Source: van den Oord et al. 2018 (arXiv 1807.03748), the positive in the denominator. The
    sum is the log-sum-exp of attention from the anchors to the negatives, and its gradients are
    those of attention, so the engine computes both: no score is stored, memory is that of a few
    arrays of the inputs' size, and the work runs on all threads with the same result.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.training import InfoNCELoss
    >>> loss = InfoNCELoss(temperature=0.5)
    >>> round(loss.compute([1.0, 0.0], [1.0, 0.0], [[0.0, 1.0], [-1.0, 0.0]]), 4)
    0.1429

    A batch whose anchors are told from each other's positives:

    >>> rng = np.random.default_rng(0)
    >>> anchors, positives = rng.standard_normal((2, 8, 16))
    >>> result = loss.compute_with_gradients(anchors, positives)
    >>> result.anchor.shape, result.positive.shape
    ((8, 16), (8, 16))
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learn_temperature: bool = False,
        *,
        reduction: str = "mean",
    ) -> None:
        self._temperature = np.array([_checked_temperature(temperature)])
        self._learn = flag(learn_temperature, "learn_temperature")
        self._reduction = reduction_of(reduction)

    @property
    def temperature(self) -> float:
        """The divisor of the similarities; may be set."""
        return float(self._temperature[0])

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature[0] = _checked_temperature(value)

    @property
    def learn_temperature(self) -> bool:
        """Whether the temperature is a parameter."""
        return self._learn

    @property
    def reduction(self) -> str:
        """What becomes of the losses of a batch."""
        return self._reduction

    def parameters(self) -> dict[str, NDArray[np.float64]]:
        """Return what training updates in place.

        Returns
        -------
        dict
            ``{"temperature": array}``, one number whose gradient is
            :attr:`LossResult.temperature`, where it is learned, else nothing.

        Examples
        --------
        >>> from ruvector.training import InfoNCELoss
        >>> InfoNCELoss(0.1, learn_temperature=True).parameters()
        {'temperature': array([0.1])}
        """
        return {"temperature": self._temperature} if self._learn else {}

    def compute(
        self,
        anchor: ArrayLike,
        positive: ArrayLike,
        negatives: ArrayLike | None = None,
        *,
        ids: ArrayLike | None = None,
        negative_ids: ArrayLike | None = None,
    ) -> Any:
        """Return the loss.

        Parameters
        ----------
        anchor : array_like, shape (d,) or (B, d)
            No vector may be zero, here and below.
        positive : array_like, shape (d,) or (B, d)
            One for each anchor.
        negatives : array_like, shape (N, d) or (B, N, d), or None
            Shared by all anchors, or each anchor's own. None takes the positives of the others,
            and a batch of one then has nothing to lose.
        ids : array_like of int, shape (B,), optional
            What each positive is. Negatives with the same id do not count.
        negative_ids : array_like of int, shape (N,) or (B, N), optional
            What each negative is, where negatives are given.

        Returns
        -------
        float, or ndarray of float64, shape (B,)

        Raises
        ------
        DimensionMismatchError
            If shapes do not fit together.
        EmptyInputError
            If there is no anchor or no negative, or a vector is zero.
        InvalidConfigError
            If ids come without what they belong to, or a learned temperature is below 1e-12.
        TypeError
            If an input does not hold real numbers, or ids are not integers.

        Examples
        --------
        The first and the last positive are the same text:

        >>> from ruvector.training import InfoNCELoss
        >>> texts = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
        >>> loss = InfoNCELoss(1.0)
        >>> round(loss.compute(texts, texts), 3)
        0.758
        >>> round(loss.compute(texts, texts, ids=[5, 6, 5]), 3)
        0.393
        """
        triples = self._triples(anchor, positive, negatives, ids, negative_ids)
        losses, _ = self._run(triples, None)
        return reduced(losses, self._reduction, triples.single)

    def compute_with_gradients(
        self,
        anchor: ArrayLike,
        positive: ArrayLike,
        negatives: ArrayLike | None = None,
        *,
        ids: ArrayLike | None = None,
        negative_ids: ArrayLike | None = None,
    ) -> LossResult:
        """Return the loss and its gradients.

        Parameters
        ----------
        anchor, positive, negatives, ids, negative_ids
            As in :meth:`compute`, with the same errors.

        Returns
        -------
        LossResult

        Examples
        --------
        >>> from ruvector.training import InfoNCELoss
        >>> loss = InfoNCELoss(1.0)
        >>> result = loss.compute_with_gradients([1.0, 0.0], [1.0, 0.0], [[0.0, 1.0]])
        >>> round(result.loss, 3), result.negatives.round(3)
        (0.313, array([[0.269, 0.   ]], dtype=float32))
        """
        triples = self._triples(anchor, positive, negatives, ids, negative_ids)
        weight = row_weights(self._reduction, len(triples.anchor))
        losses, gradients = self._run(triples, weight)
        assert gradients is not None
        return LossResult(
            reduced(losses, self._reduction, triples.single),
            *triples.returned(gradients.anchor, gradients.positive, gradients.negatives),
            gradients.temperature,
        )

    def _triples(self, *arguments: object) -> Triples:
        return Triples(*arguments, precise=_checked_temperature(self.temperature) < _COLD)

    def _run(
        self, triples: Triples, weight: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], contrastive.InfoNCEGradients | None]:
        found = contrastive.info_nce(
            triples.anchor,
            triples.positive,
            triples.negatives,
            self.temperature,
            triples.ids,
            weight,
            _config.current_threads(),
        )
        if found is None:
            raise triples.zero_vector()
        return found

    def __repr__(self) -> str:
        learned = ", learn_temperature=True" if self._learn else ""
        return f"InfoNCELoss({self.temperature!r}{learned}, reduction={self._reduction!r})"


class LocalContrastiveLoss:
    r"""Keep the positive nearer to its anchor than every negative, by a margin.

    .. math:: \frac{1}{N} \sum_j \max(0, |a - p| - |a - n_j| + m)

    Parameters
    ----------
    margin : float, default 1.0
        m, finite and not negative.
    reduction : {"mean", "sum", "none"}, default "mean"
        What becomes of the losses of a batch, each of which is the mean over the negatives.

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    Notes
    -----
    The triplet loss of Schroff et al. 2015 (arXiv 1503.03832) with distances that are not
    squared. Where a hinge is exactly 0, or vectors coincide, the subgradient is 0.

    Examples
    --------
    >>> from ruvector.training import LocalContrastiveLoss
    >>> loss = LocalContrastiveLoss(margin=1.0)
    >>> loss.compute([0.0, 0.0], [0.0, 1.0], [[0.0, 1.5], [3.0, 0.0]])
    0.25
    >>> loss.compute_with_gradients([0.0, 0.0], [0.0, 1.0], [[0.0, 1.5], [3.0, 0.0]]).negatives
    array([[ 0. , -0.5],
           [ 0. ,  0. ]], dtype=float32)
    """

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        self._margin = finite(margin, "margin")
        if self._margin < 0:
            raise InvalidConfigError(f"margin must not be negative, got {margin!r}")
        self._reduction = reduction_of(reduction)

    @property
    def margin(self) -> float:
        """How much nearer the positive has to be."""
        return self._margin

    @property
    def reduction(self) -> str:
        """What becomes of the losses of a batch."""
        return self._reduction

    def compute(
        self,
        anchor: ArrayLike,
        positive: ArrayLike,
        negatives: ArrayLike | None = None,
        *,
        ids: ArrayLike | None = None,
        negative_ids: ArrayLike | None = None,
    ) -> Any:
        """Return the loss.

        Parameters
        ----------
        anchor, positive, negatives, ids, negative_ids
            As in :meth:`InfoNCELoss.compute`; vectors may be zero. An anchor whose negatives
            are all hidden by their ids loses nothing.

        Returns
        -------
        float, or ndarray of float64, shape (B,)

        Raises
        ------
        DimensionMismatchError, EmptyInputError, InvalidConfigError, TypeError
            As in :meth:`InfoNCELoss.compute`.

        Examples
        --------
        >>> from ruvector.training import LocalContrastiveLoss
        >>> LocalContrastiveLoss(1.0, "none").compute([[0.0], [1.0]], [[0.0], [3.0]])
        array([0., 2.])
        """
        triples = Triples(anchor, positive, negatives, ids, negative_ids)
        losses, _ = self._run(triples, None)
        return reduced(losses, self._reduction, triples.single)

    def compute_with_gradients(
        self,
        anchor: ArrayLike,
        positive: ArrayLike,
        negatives: ArrayLike | None = None,
        *,
        ids: ArrayLike | None = None,
        negative_ids: ArrayLike | None = None,
    ) -> LossResult:
        """Return the loss and its gradients.

        Parameters
        ----------
        anchor, positive, negatives, ids, negative_ids
            As in :meth:`compute`, with the same errors.

        Returns
        -------
        LossResult
            Its `temperature` is None.

        Examples
        --------
        >>> from ruvector.training import LocalContrastiveLoss
        >>> result = LocalContrastiveLoss(1.0).compute_with_gradients([0.0], [1.0], [[-1.5]])
        >>> result.loss, result.anchor
        (0.5, array([-2.], dtype=float32))
        """
        triples = Triples(anchor, positive, negatives, ids, negative_ids)
        weight = row_weights(self._reduction, len(triples.anchor))
        losses, gradients = self._run(triples, weight)
        assert gradients is not None
        return LossResult(
            reduced(losses, self._reduction, triples.single), *triples.returned(*gradients)
        )

    def _run(
        self, triples: Triples, weight: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64], hinges.HingeGradients | None]:
        return hinges.hinge(
            triples.anchor,
            triples.positive,
            triples.negatives,
            self._margin,
            triples.ids,
            weight,
            _config.current_threads(),
        )

    def __repr__(self) -> str:
        return f"LocalContrastiveLoss({self._margin!r}, reduction={self._reduction!r})"


def _checked_temperature(value: Any) -> float:
    temperature = finite(value, "temperature", positive=True)
    if temperature < _COLDEST:
        raise InvalidConfigError(f"temperature must be at least {_COLDEST}, got {value!r}")
    return temperature
