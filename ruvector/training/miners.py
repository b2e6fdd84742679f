"""Where negatives come from: candidates chosen by how hard they are, or the batch itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _config, _kernels
from .._arrays import Array, compute_dtype, floating, integers, promote, vectors
from .._checks import finite, flag, integer, seeded
from .._kernels import mining
from .._rows import rows, zero_vector
from ..errors import DimensionMismatchError, EmptyInputError, InvalidConfigError
from ._triples import check_width

__all__ = ["HardNegativeMiner", "InBatchMiner"]

_STRATEGIES = ("random", "hard", "semi_hard", "distance_weighted")


class HardNegativeMiner:
    """Choose negatives for anchors from candidates.

    Parameters
    ----------
    strategy : {"random", "hard", "semi_hard", "distance_weighted"}
        ``"random"``
            Any, all alike.
        ``"hard"``
            Those with the largest cosine, largest first.
        ``"semi_hard"``
            Those farther from the anchor than its positive, but by less than the margin
            (Euclidean), nearest first. Where there are ``f`` and that is too few, the first
            ``num_negatives - f`` of the hard ones follow, except those that are there already.
        ``"distance_weighted"``
            Drawn so that every distance on the unit sphere is as likely as any other.
    margin : float, default 0.1
        Of ``"semi_hard"``; finite and positive.
    temperature : float, default 1.0
        Of ``"distance_weighted"``: divides the logarithms of the weights, so that a small one
        prefers rare distances more; finite and positive.
    seed : int or numpy.random.Generator, optional
        Where the random strategies start; each call goes on from the one before.
    cutoff : float, default 0.5
        Of ``"distance_weighted"``: smaller distances weigh as much as this one, so that near
        duplicates do not outweigh everything; from 0 to 2.

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    Notes
    -----
    Sources: Schroff et al. 2015 (arXiv 1503.03832) for semi-hard negatives, Wu et al. 2017
    (arXiv 1706.07567) for distance weights and their cutoff.

    Examples
    --------
    >>> from ruvector.training import HardNegativeMiner
    >>> candidates = [[1.0, 0.2], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]
    >>> miner = HardNegativeMiner("hard")
    >>> miner.mine([1.0, 0.1], [1.0, 0.0], candidates, 2)
    array([0, 1])

    Candidate 2 is the positive itself. For a batch there is a row for every anchor:

    >>> miner.mine([[1.0, 0.1], [0.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], candidates, 2)
    array([[0, 1],
           [0, 2]])
    """

    def __init__(
        self,
        strategy: str,
        margin: float = 0.1,
        temperature: float = 1.0,
        seed: int | np.random.Generator | None = None,
        *,
        cutoff: float = 0.5,
    ) -> None:
        if not isinstance(strategy, str) or strategy not in _STRATEGIES:
            words = ", ".join(map(repr, _STRATEGIES[:-1]))
            raise InvalidConfigError(
                f"strategy must be {words} or {_STRATEGIES[-1]!r}, got {strategy!r}"
            )
        self._strategy = strategy
        self._margin = finite(margin, "margin", positive=True)
        self._temperature = finite(temperature, "temperature", positive=True)
        self._cutoff = finite(cutoff, "cutoff")
        if not 0 <= self._cutoff <= 2:
            raise InvalidConfigError(f"cutoff must be from 0 to 2, got {cutoff!r}")
        self._rng = seeded(seed)

    @classmethod
    def with_margin(
        cls, strategy: str, margin: float, *, seed: int | np.random.Generator | None = None
    ) -> HardNegativeMiner:
        """Make a miner with a margin.

        Parameters
        ----------
        strategy, margin, seed
            As in the class.

        Returns
        -------
        HardNegativeMiner

        Examples
        --------
        >>> from ruvector.training import HardNegativeMiner
        >>> HardNegativeMiner.with_margin("semi_hard", 0.5).margin
        0.5
        """
        return cls(strategy, margin=margin, seed=seed)

    @classmethod
    def with_temperature(
        cls, strategy: str, temperature: float, *, seed: int | np.random.Generator | None = None
    ) -> HardNegativeMiner:
        """Make a miner with a temperature.

        Parameters
        ----------
        strategy, temperature, seed
            As in the class.

        Returns
        -------
        HardNegativeMiner

        Examples
        --------
        >>> from ruvector.training import HardNegativeMiner
        >>> HardNegativeMiner.with_temperature("distance_weighted", 2.0).temperature
        2.0
        """
        return cls(strategy, temperature=temperature, seed=seed)

    @property
    def strategy(self) -> str:
        """How negatives are chosen."""
        return self._strategy

    @property
    def margin(self) -> float:
        """How much farther than the positive a semi-hard negative may be."""
        return self._margin

    @property
    def temperature(self) -> float:
        """The divisor of the logarithms of the weights."""
        return self._temperature

    @property
    def cutoff(self) -> float:
        """The distance below which weights do not grow."""
        return self._cutoff

    def mine(
        self,
        anchor: ArrayLike,
        positive: ArrayLike,
        candidates: ArrayLike,
        num_negatives: int,
    ) -> NDArray[np.int64]:
        """Choose negatives.

        Parameters
        ----------
        anchor : array_like, shape (d,) or (B, d)
        positive : array_like, shape (d,) or (p, d), for a batch (B, d) or (B, p, d)
            One positive or several. Candidates that equal one of them are never chosen; of
            several the farthest says where semi-hard negatives begin.
        candidates : array_like, shape (N, d)
            Where they are chosen from.
        num_negatives : int
            How many are wanted of each anchor, at least 1.

        Returns
        -------
        ndarray of int64, shape (num_negatives,) or fewer, or (B, num_negatives)
            Indices of distinct candidates. Where there are fewer the result for one anchor is
            shorter, and a row of a batch ends in -1.

        Raises
        ------
        DimensionMismatchError
            If shapes do not fit together.
        EmptyInputError
            If there are no anchors, positives or candidates, or one of the first or the last is
            zero where cosines are compared.
        InvalidConfigError
            If `num_negatives` is not an integer of at least 1.
        TypeError
            If an input does not hold real numbers.

        Examples
        --------
        >>> from ruvector.training import HardNegativeMiner
        >>> miner = HardNegativeMiner("semi_hard", margin=1.0)
        >>> miner.mine([0.0, 1.0], [0.0, 2.0], [[0.0, 5.0], [0.0, 2.5], [0.0, 1.5]], 1)
        array([1])
        """
        first, second, pool = (
            floating(anchor, "anchor"),
            floating(positive, "positive"),
            vectors(candidates, "candidates"),
        )
        _check_shapes(first, second, pool)
        k = integer(num_negatives, "num_negatives", 1)
        single = first.ndim == 1
        dtype = compute_dtype(promote(first, second, pool))
        anchors, chosen = rows(first, dtype), rows(pool, dtype)
        positives = rows(second, dtype).reshape(len(anchors), -1, pool.shape[1])
        found = self._mine(anchors, positives, chosen, k, {"anchor": first, "candidates": pool})
        return found[0][found[0] >= 0] if single else found

    def state_dict(self) -> dict[str, Any]:
        """Return where the random strategies stand.

        Returns
        -------
        dict
            ``rng``, the state of the generator, of plain numbers and strings.
        """
        return {"rng": self._rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called.

        Parameters
        ----------
        state : mapping
            What it returned, of a miner with the same kind of generator.

        Raises
        ------
        InvalidConfigError
            If it is something else.

        Examples
        --------
        >>> from ruvector.training import HardNegativeMiner
        >>> miner, other = HardNegativeMiner("random", seed=1), HardNegativeMiner("random")
        >>> other.load_state_dict(miner.state_dict())
        >>> arguments = [1.0], [2.0], [[float(i)] for i in range(9)], 3
        >>> bool((miner.mine(*arguments) == other.mine(*arguments)).all())
        True
        """
        try:
            self._rng.bit_generator.state = state["rng"]
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidConfigError(f"state must be that of a miner ({error})") from error

    def _mine(
        self,
        anchors: Array,
        positives: Array,
        candidates: Array,
        k: int,
        given: dict[str, Array],
    ) -> NDArray[np.int64]:
        known = mining.positives_among(positives, candidates)
        if self._strategy == "random":
            return mining.random(anchors, candidates, k, known, self._rng)
        threads = _config.current_threads()
        query, key = (np.empty_like(x) for x in (anchors, candidates))
        for x, unit in ((anchors, query), (candidates, key)):
            if not _kernels.utils.normalize(x, unit):
                raise zero_vector(**given)
        if self._strategy == "distance_weighted":
            return mining.distance_weighted(
                query, key, k, self._temperature, self._cutoff, known, self._rng, threads
            )
        hardest = mining.hard(query, key, k, known, threads)
        if self._strategy == "hard":
            return hardest
        return mining.semi_hard(
            anchors, positives, candidates, hardest, self._margin, known, threads
        )

    def __repr__(self) -> str:
        return (
            f"HardNegativeMiner({self._strategy!r}, margin={self._margin!r}, "
            f"temperature={self._temperature!r}, cutoff={self._cutoff!r})"
        )


class InBatchMiner:
    """Take the other rows of the batch as negatives.

    Parameters
    ----------
    exclude_positive : bool, default True
        Whether the row of the anchor's positive is no negative.

    Raises
    ------
    InvalidConfigError
        If it is not a bool.

    Examples
    --------
    >>> from ruvector.training import InBatchMiner
    >>> InBatchMiner().get_negatives(1, 3, 6)
    array([0, 2, 4, 5])
    >>> InBatchMiner.include_positive().get_negatives(1, 3, 6)
    array([0, 2, 3, 4, 5])
    """

    def __init__(self, exclude_positive: bool = True) -> None:
        self._exclude_positive = flag(exclude_positive, "exclude_positive")

    @classmethod
    def include_positive(cls) -> InBatchMiner:
        """Make a miner that leaves out the anchor alone.

        Returns
        -------
        InBatchMiner

        Examples
        --------
        >>> from ruvector.training import InBatchMiner
        >>> InBatchMiner.include_positive().exclude_positive
        False
        """
        return cls(exclude_positive=False)

    @property
    def exclude_positive(self) -> bool:
        """Whether the row of the positive is left out."""
        return self._exclude_positive

    def get_negatives(
        self, anchor_idx: Any, positive_idx: Any, batch_size: int
    ) -> NDArray[np.int64]:
        """Return the rows that are negatives.

        Parameters
        ----------
        anchor_idx, positive_idx : int, or array_like of int, shape (B,)
            The rows of an anchor and of its positive, or of several anchors.
        batch_size : int
            Number of rows.

        Returns
        -------
        ndarray of int64, shape (n,) or (B, n)
            In rising order. A row of several that has fewer ends in -1.

        Raises
        ------
        DimensionMismatchError
            If the indices do not have the same shape, or more than one axis.
        InvalidConfigError
            If an index is not a row of the batch.
        TypeError
            If an index is not an integer.

        Examples
        --------
        >>> from ruvector.training import InBatchMiner
        >>> InBatchMiner().get_negatives([0, 1], [2, 3], 4)
        array([[1, 3],
               [0, 2]])
        """
        size = integer(batch_size, "batch_size", 1)
        anchors, positives = (
            integers(x, name)
            for x, name in ((anchor_idx, "anchor_idx"), (positive_idx, "positive_idx"))
        )
        if anchors.shape != positives.shape or anchors.ndim > 1:
            raise DimensionMismatchError(
                f"anchor_idx and positive_idx must be integers or have one shape (B,), "
                f"got shapes {anchors.shape} and {positives.shape}"
            )
        for name, index in (("anchor_idx", anchors), ("positive_idx", positives)):
            if ((index < 0) | (index >= size)).any():
                raise InvalidConfigError(
                    f"{name} must be from 0 to {size - 1}, got {index.tolist()}"
                )
        excluded = positives if self._exclude_positive else anchors
        found = mining.others(np.atleast_1d(anchors), np.atleast_1d(excluded), size)
        return found if anchors.ndim else found[0]

    def __repr__(self) -> str:
        return f"InBatchMiner(exclude_positive={self._exclude_positive!r})"


def _check_shapes(anchor: Array, positive: Array, candidates: Array) -> None:
    if anchor.ndim not in (1, 2):
        raise DimensionMismatchError(
            f"anchor must have shape (d,) or (B, d), got {anchor.shape}"
        )
    if candidates.ndim != 2:
        raise DimensionMismatchError(
            f"candidates must have shape (N, d), got {candidates.shape}"
        )
    for name, array in (
        ("anchor", anchor),
        ("positive", positive),
        ("candidates", candidates),
    ):
        if not array.size:
            raise EmptyInputError(f"{name} must not be empty, got shape {array.shape}")
    lead = anchor.shape[:-1]
    if positive.ndim - anchor.ndim not in (0, 1) or positive.shape[: len(lead)] != lead:
        shapes = "(d,) or (p, d)" if anchor.ndim == 1 else "(B, d) or (B, p, d)"
        raise DimensionMismatchError(
            f"positive must have shape {shapes} for anchor of shape {anchor.shape}, "
            f"got {positive.shape}"
        )
    check_width(positive, "positive", anchor)
    check_width(candidates, "candidates", anchor)
