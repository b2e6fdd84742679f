"""The numbers of an attention class that can be learned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from .._arrays import Array, floating
from ..errors import DimensionMismatchError, InvalidConfigError

__all__ = ["Learned", "taken_parameters"]


class Learned:
    """Mixin of the classes with parameters, which are kept by name in ``_parameters``."""

    _parameters: dict[str, Array]

    def parameters(self) -> dict[str, Array]:
        """Return the parameters that can be learned.

        Returns
        -------
        dict of str to ndarray
            Live views: what is written into them counts from the next call on. Empty where
            nothing is learned.
        """
        return dict(self._parameters)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters, to be kept.

        Returns
        -------
        dict of str to ndarray
            By the names of :meth:`parameters`.
        """
        return {name: array.copy() for name, array in self._parameters.items()}

    def load_state_dict(self, state: Mapping[str, ArrayLike]) -> None:
        """Take over parameters that :meth:`state_dict` returned.

        Parameters
        ----------
        state : mapping of str to array_like
            All parameters and no others, of their shapes.

        Raises
        ------
        InvalidConfigError
            If names are missing or unknown, or a value is outside its domain.
        DimensionMismatchError
            If a shape is another one.
        """
        taken = taken_parameters(state, self._parameters)
        self._check_parameters(taken)
        for name, given in taken.items():
            np.copyto(self._parameters[name], given)

    def _check_parameters(self, parameters: Mapping[str, Array]) -> None:
        """Raise where a value is outside its domain."""


def taken_parameters(
    state: Mapping[str, ArrayLike], parameters: Mapping[str, Array]
) -> dict[str, Array]:
    """Return what a saved state holds for parameters, once all of it is found to fit them."""
    if set(state) != set(parameters):
        raise InvalidConfigError(f"state must hold {sorted(parameters)}, got {sorted(state)}")
    taken = {}
    for name, array in parameters.items():
        given = floating(state[name], name)
        if given.shape != array.shape:
            raise DimensionMismatchError(
                f"{name} must have shape {array.shape}, got {given.shape}"
            )
        taken[name] = given.astype(array.dtype)
    return taken
