"""A linear map of embeddings, to be trained where the encoder behind them cannot be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .._arrays import Array, cast, compute_dtype, contiguous_rows, floating
from .._checks import integer, real_type
from ..attention._parameters import Learned
from ..errors import DimensionMismatchError, InvalidConfigError
from ._products import apply, outer

__all__ = ["LinearAdapter"]


class LinearAdapter(Learned):
    r"""A linear map that starts as the identity: :math:`y = W x`.

    With a `rank` only a low-rank change of the identity is learned,
    :math:`y = I x + B A x`, which has ``rank * (dim_in + dim_out)`` numbers.

    Parameters
    ----------
    dim_in, dim_out : int
        Width of what comes in and of what goes out. Where they differ the identity keeps the
        first numbers, or adds zeros behind them.
    rank : int, optional
        Rank of the change; without it the whole matrix is learned.
    seed : int, default 42
        Seed of A, which starts with numbers of variance ``1 / dim_in``; B starts with zeros.
    dtype : {"float32", "float64"}, default "float32"
        Type of the parameters.

    Raises
    ------
    InvalidConfigError
        If an argument is outside its domain.

    Notes
    -----
    Parameters are ``weight`` (dim_out, dim_in), or ``down`` (rank, dim_in) and ``up``
    (dim_out, rank), as in LoRA [1]_. :meth:`encode` costs one product with them,
    :meth:`backward` another; both run on all threads with the same result.

    References
    ----------
    .. [1] E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
       arXiv:2106.09685.

    Examples
    --------
    >>> import numpy as np
    >>> from ruvector.training import LinearAdapter
    >>> adapter = LinearAdapter(3, 2)
    >>> adapter.encode([[1.0, 2.0, 3.0]])
    array([[1., 2.]], dtype=float32)
    >>> adapter.backward(np.ones((1, 2), np.float32))
    {'weight': array([[1., 2., 3.],
           [1., 2., 3.]], dtype=float32)}
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        rank: int | None = None,
        *,
        seed: int = 42,
        dtype: DTypeLike = "float32",
    ) -> None:
        self._dim_in = integer(dim_in, "dim_in", 1)
        self._dim_out = integer(dim_out, "dim_out", 1)
        self._rank = None if rank is None else integer(rank, "rank", 1)
        if self._rank is not None and self._rank > min(self._dim_in, self._dim_out):
            raise InvalidConfigError(
                f"rank must be at most {min(self._dim_in, self._dim_out)}, got {rank!r}"
            )
        real = real_type(dtype, "dtype")
        if self._rank is None:
            self._parameters = {"weight": np.eye(self._dim_out, self._dim_in, dtype=real)}
        else:
            rng = np.random.default_rng(integer(seed, "seed", 0))
            down = rng.standard_normal((self._rank, self._dim_in)) / self._dim_in**0.5
            self._parameters = {
                "down": down.astype(real),
                "up": np.zeros((self._dim_out, self._rank), real),
            }
        self._input: Array | None = None
        self._inner: Array | None = None

    @property
    def dim_in(self) -> int:
        """Width of what comes in."""
        return self._dim_in

    @property
    def dim_out(self) -> int:
        """Width of what goes out."""
        return self._dim_out

    @property
    def rank(self) -> int | None:
        """Rank of the change of the identity, None where the whole matrix is learned."""
        return self._rank

    def encode(self, x: ArrayLike) -> Array:
        """Map vectors.

        Parameters
        ----------
        x : array_like, shape (n, dim_in) or (dim_in,)
            It is remembered for :meth:`backward`, not copied.

        Returns
        -------
        ndarray, shape (n, dim_out) or (dim_out,)
            float64 where `x` or the parameters are, else float32.

        Raises
        ------
        DimensionMismatchError, TypeError
            If `x` has another shape or does not hold real numbers.

        Examples
        --------
        >>> from ruvector.training import LinearAdapter
        >>> LinearAdapter(2, 3).encode([1.0, 2.0])
        array([1., 2., 0.], dtype=float32)
        """
        array = floating(x, "x")
        if array.ndim not in (1, 2) or array.shape[-1] != self._dim_in:
            raise DimensionMismatchError(
                f"x must have shape (n, {self._dim_in}) or ({self._dim_in},), got {array.shape}"
            )
        real = next(iter(self._parameters.values())).dtype
        dtype = np.result_type(compute_dtype(array.dtype), real)
        # Half precision is read as it lies beside float32 parameters.
        storage = array.dtype if compute_dtype(array.dtype) == dtype else dtype
        rows = np.atleast_2d(contiguous_rows(array, storage))
        parameters = {name: cast(p, dtype) for name, p in self._parameters.items()}
        if self._rank is None:
            result, inner = apply(rows, parameters["weight"]), None
        else:
            inner = apply(rows, parameters["down"])
            result = apply(inner, parameters["up"])
            kept = min(self._dim_in, self._dim_out)
            result[:, :kept] += cast(rows[:, :kept], dtype)
        self._input, self._inner = rows, inner
        return result.reshape(*array.shape[:-1], self._dim_out)

    def backward(self, grad: ArrayLike) -> dict[str, Array]:
        """Return the gradients of the parameters.

        Parameters
        ----------
        grad : array_like, shape (n, dim_out) or (dim_out,)
            Gradient of what the last :meth:`encode` returned.

        Returns
        -------
        dict of str to ndarray
            By the names of :meth:`parameters`, in their dtype.

        Raises
        ------
        InvalidConfigError
            If nothing was encoded.
        DimensionMismatchError, TypeError
            If `grad` has another shape than the encodings, or does not hold real numbers.

        Examples
        --------
        >>> from ruvector.training import LinearAdapter
        >>> adapter = LinearAdapter(2, 2, rank=1)
        >>> _ = adapter.encode([[1.0, 0.0]])
        >>> sorted(adapter.backward([[0.0, 1.0]]))
        ['down', 'up']
        """
        if self._input is None:
            raise InvalidConfigError("backward needs an encode before it")
        array = np.atleast_2d(floating(grad, "grad"))
        wanted = (len(self._input), self._dim_out)
        if array.shape != wanted:
            raise DimensionMismatchError(f"grad must have shape {wanted}, got {array.shape}")
        real = next(iter(self._parameters.values())).dtype
        rows, array = cast(self._input, real), contiguous_rows(array, real)
        if self._inner is None:
            return {"weight": outer(array, rows)}
        through = apply(array, np.ascontiguousarray(self._parameters["up"].T))
        return {"down": outer(through, rows), "up": outer(array, cast(self._inner, real))}

    def __repr__(self) -> str:
        """Return the call that makes such an adapter."""
        rank = "" if self._rank is None else f", rank={self._rank}"
        return f"LinearAdapter({self._dim_in}, {self._dim_out}{rank})"
