"""What can be trained: the interface of a model, and of two that are trained together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from numpy.typing import ArrayLike

from .._arrays import Array

__all__ = ["Model", "PairModel", "learned_of"]


@runtime_checkable
class Model(Protocol):
    """One model that encodes anchors, positives and negatives alike.

    Examples
    --------
    >>> from ruvector.training import LinearAdapter, Model
    >>> isinstance(LinearAdapter(8, 4), Model)
    True
    """

    def encode(self, x: Any) -> Array:
        """Return an embedding for each of the n items of `x`, shape ``(n, d)``."""
        ...

    def backward(self, grad: Array) -> dict[str, Array]:
        """Return the gradients of the parameters.

        Parameters
        ----------
        grad : ndarray, shape (n, d)
            Gradient of what the last :meth:`encode` returned.

        Returns
        -------
        dict of str to ndarray
            By the names of :meth:`parameters`, in their shapes and dtypes.
        """
        ...

    def parameters(self) -> dict[str, Array]:
        """Return live views of what is learned."""
        ...

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all that a checkpoint has to keep."""
        ...

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over what :meth:`state_dict` returned."""
        ...


@runtime_checkable
class PairModel(Protocol):
    """A model that encodes anchors in one way, positives and negatives in another.

    The rest is as in :class:`Model`.

    Examples
    --------
    >>> from ruvector.training import LinearAdapter, PairEncoder, PairModel
    >>> isinstance(PairEncoder(LinearAdapter(8, 4), LinearAdapter(8, 4)), PairModel)
    True
    """

    def encode_anchors(self, x: Any) -> Array:
        """Return an embedding for each anchor, shape ``(n, d)``."""
        ...

    def encode_positives(self, x: Any) -> Array:
        """Return an embedding for each positive or negative, shape ``(n, d)``."""
        ...

    def backward_pair(self, grad_anchors: Array, grad_positives: Array) -> dict[str, Array]:
        """Return the gradients of the parameters from those of the last two encodings."""
        ...

    def parameters(self) -> dict[str, Array]:
        """Return live views of what is learned."""
        ...

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all that a checkpoint has to keep."""
        ...

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over what :meth:`state_dict` returned."""
        ...


def learned_of(part: Any) -> dict[str, Array]:
    """Return live views of the parameters of a loss or an attention, if it has any."""
    parameters: dict[str, Array] = part.parameters() if hasattr(part, "parameters") else {}
    return parameters
