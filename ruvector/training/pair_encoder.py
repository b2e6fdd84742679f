"""Two models that are trained as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from .._arrays import Array
from ..errors import InvalidConfigError
from .model import Model

__all__ = ["PairEncoder"]


class PairEncoder:
    """Two models that are trained together: one for anchors, one for positives and negatives.

    Parameters
    ----------
    anchors, positives : Model
        Two models whose embeddings are equally wide.

    Raises
    ------
    InvalidConfigError
        If they are no models, or one and the same.

    Notes
    -----
    Parameters are those of the models, with ``anchors.`` and ``positives.`` before their names.

    Examples
    --------
    >>> from ruvector.training import LinearAdapter, PairEncoder
    >>> pair = PairEncoder(LinearAdapter(8, 4), LinearAdapter(6, 4))
    >>> sorted(pair.parameters())
    ['anchors.weight', 'positives.weight']
    """

    def __init__(self, anchors: Model, positives: Model) -> None:
        for name, model in (("anchors", anchors), ("positives", positives)):
            if not isinstance(model, Model):
                raise InvalidConfigError(f"{name} must be a model, got {model!r}")
        if anchors is positives:
            raise InvalidConfigError("anchors and positives must be two models, got one")
        self.anchors, self.positives = anchors, positives

    def encode_anchors(self, x: Any) -> Array:
        """Encode with the model of the anchors."""
        return self.anchors.encode(x)

    def encode_positives(self, x: Any) -> Array:
        """Encode with the model of the positives."""
        return self.positives.encode(x)

    def backward_pair(self, grad_anchors: Array, grad_positives: Array) -> dict[str, Array]:
        """Return the gradients of the parameters.

        Parameters
        ----------
        grad_anchors, grad_positives : array_like
            Gradients of what the last :meth:`encode_anchors` and :meth:`encode_positives`
            returned.

        Returns
        -------
        dict of str to ndarray
            By the names of :meth:`parameters`.
        """
        return self._joined(
            self.anchors.backward(grad_anchors), self.positives.backward(grad_positives)
        )

    def parameters(self) -> dict[str, Array]:
        """Return what is learned.

        Returns
        -------
        dict of str to ndarray
            Live views.
        """
        return self._joined(self.anchors.parameters(), self.positives.parameters())

    def state_dict(self) -> dict[str, Array]:
        """Return copies of what the two models keep.

        Returns
        -------
        dict of str to ndarray
        """
        return self._joined(self.anchors.state_dict(), self.positives.state_dict())

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over what :meth:`state_dict` returned.

        Parameters
        ----------
        state : mapping of str to array_like
            All of it, of the same shapes.

        Raises
        ------
        InvalidConfigError, DimensionMismatchError
            If it does not fit the models.
        """
        former = self.anchors.state_dict()
        parts: dict[str, dict[str, ArrayLike]] = {"anchors": {}, "positives": {}}
        for name, value in state.items():
            side, _, rest = name.partition(".")
            if side not in parts:
                raise InvalidConfigError(f"state must not hold {name!r}")
            parts[side][rest] = value
        self.anchors.load_state_dict(parts["anchors"])
        try:
            self.positives.load_state_dict(parts["positives"])
        except BaseException:
            self.anchors.load_state_dict(former)
            raise

    @staticmethod
    def _joined(anchors: dict[str, Array], positives: dict[str, Array]) -> dict[str, Array]:
        return {f"anchors.{name}": array for name, array in anchors.items()} | {
            f"positives.{name}": array for name, array in positives.items()
        }

    def __repr__(self) -> str:
        """Return the call that makes such a pair."""
        return f"PairEncoder({self.anchors!r}, {self.positives!r})"
